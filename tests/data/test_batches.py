"""Sources of batches: the right samples, in the right order, from memory or streamed."""

import os
import signal
from dataclasses import replace
from multiprocessing import active_children

import pytest
import torch

from sweepstack import data
from sweepstack.config.errors import EnvironmentFault
from sweepstack.data import batches
from sweepstack.data.batches import DeviceSource, StreamSource
from sweepstack.data.dataset import TensorSplit

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(
        torch.device("cuda"),
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]


@pytest.fixture
def split() -> TensorSplit:
    """23 samples of shape (2, 3); y is the sample's number."""
    x = torch.rand(23, 2, 3, generator=torch.Generator().manual_seed(0))
    return TensorSplit(x, torch.arange(23))


@pytest.fixture
def lazy(configure, pictures):
    """The training pictures of the folder `pictures`, decoded when asked for."""
    config = configure("image_folder", root=str(pictures), val_folder="val", placement="stream")
    return data.load(config).train


def _indices(count: int, shape: tuple[int, int], samples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(samples, (count, *shape), generator=generator)


SOURCES = [
    lambda split, device: DeviceSource(split.tensor(), device),
    lambda split, device: StreamSource(split, device, workers=0),
    lambda split, device: StreamSource(split, device, workers=2),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", SOURCES, ids=["device", "stream", "workers"])
def test_batches_are_the_samples_asked_for_in_that_order(split, make, device):
    source = make(split, device)
    for shape in ((1, 4), (3, 5)):
        indices = _indices(9, shape, len(split))
        seen = list(source.batches(indices))
        assert len(seen) == len(indices)
        for index, (x, y) in zip(indices, seen, strict=True):
            assert x.device.type == y.device.type == device.type
            assert y.cpu().equal(index)
            assert x.cpu().equal(split.x[index])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", SOURCES, ids=["device", "stream", "workers"])
@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_chunks_are_the_split_in_order(split, make, size, device):
    parts = list(make(split, device).chunks(size))
    assert [len(y) for _, y in parts[:-1]] == [size] * (len(parts) - 1)
    assert torch.cat([x for x, _ in parts]).cpu().equal(split.x)
    assert torch.cat([y for _, y in parts]).cpu().equal(split.y)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_pictures_are_bit_equal_to_resident_ones(lazy, workers):
    indices = _indices(6, (2, 4), len(lazy))
    resident = DeviceSource(lazy.tensor(), CPU).batches(indices)
    streamed = StreamSource(lazy, CPU, workers).batches(indices)
    for one, other in zip(resident, streamed, strict=True):
        assert one[0].equal(other[0])
        assert one[1].equal(other[1])


@pytest.mark.parametrize("make", SOURCES, ids=["device", "stream", "workers"])
def test_an_iteration_left_early_does_not_disturb_the_next(split, make):
    source = make(split, CPU)
    next(iter(source.batches(_indices(8, (1, 4), len(split)))))
    indices = _indices(8, (1, 4), len(split)).flip(0)
    seen = [y for _, y in source.batches(indices)]
    assert torch.stack(seen).equal(indices)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_a_newer_one_has_ended_says_so(split, workers):
    source = StreamSource(split, CPU, workers)
    old = source.batches(_indices(8, (1, 4), len(split)))
    next(old)
    list(source.chunks(10))
    with pytest.raises(RuntimeError, match="newer iteration"):
        next(old)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_index_is_taken_beyond_those_given(split, workers):
    endless = iter(_indices(20, (1, 4), len(split)))
    source = StreamSource(split, CPU, workers)
    list(source.batches(next(endless) for _ in range(5)))
    assert len(list(endless)) == 15


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_leaves_torchs_own_random_state_alone(split, workers):
    before = torch.get_rng_state()
    source = StreamSource(split, CPU, workers)
    list(source.chunks(10))
    list(source.chunks(10))
    assert torch.get_rng_state().equal(before)


def test_worker_processes_live_as_long_as_the_source(configure, split):
    source = StreamSource(_Pids(split), CPU, workers=2)
    first, second = ({int(p) for p in torch.cat([y for _, y in source.chunks(4)])} for _ in "ab")
    assert len(first) == 2
    assert os.getpid() not in first
    assert first == second


class _Pids:
    """A split whose targets are the process that gathered them."""

    def __init__(self, split):
        self.split, self.shape = split, split.shape

    def __len__(self):
        return len(self.split)

    def gather(self, index):
        x, y = self.split.gather(index)
        return x, torch.full_like(y, os.getpid())


# --- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_breaks_while_streaming_is_named_in_one_line(lazy, pictures, workers):
    path, others = pictures / "train" / "dog" / "1.png", set(active_children())
    content = path.read_bytes()
    path.write_bytes(b"overwritten")
    source = StreamSource(lazy, CPU, workers)
    with pytest.raises(EnvironmentFault, match=r"dog/1\.png cannot be read") as caught:
        list(source.chunks(2))
    assert "\n" not in str(caught.value)
    assert set(active_children()) <= others
    path.write_bytes(content)
    assert torch.cat([y for _, y in source.chunks(2)]).equal(lazy.y)


class _Deadly(_Pids):
    def gather(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_told_in_one_line(split):
    with pytest.raises(EnvironmentFault, match=r"a data worker died .*data\.workers=0") as caught:
        list(StreamSource(_Deadly(split), CPU, workers=1).chunks(4))
    assert "\n" not in str(caught.value)


# --- where a split is kept ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "free", "kind"),
    [
        ("device", 10**12, DeviceSource),
        ("stream", 10**12, StreamSource),
        ("auto", 10**12, DeviceSource),
        ("auto", 10_000, StreamSource),
    ],
)
def test_placement_decides_where_pictures_live(lazy, monkeypatch, placement, free, kind):
    monkeypatch.setattr(batches, "free_memory", lambda device: free)
    assert isinstance(batches.source(lazy, CPU, placement, 0), kind)


@pytest.mark.parametrize(("share", "kind"), [(4, DeviceSource), (3.99, StreamSource)])
def test_auto_keeps_what_needs_a_quarter_of_the_free_memory(lazy, monkeypatch, share, kind):
    monkeypatch.setattr(batches, "free_memory", lambda device: int(share * lazy.nbytes))
    assert isinstance(batches.source(lazy, CPU, "auto", 0), kind)


def test_a_split_in_memory_is_not_streamed_to_the_cpu_unasked(split, monkeypatch):
    monkeypatch.setattr(batches, "free_memory", lambda device: 0)
    source = batches.source(split, CPU, "auto", 0)
    assert isinstance(source, DeviceSource)
    assert source.split.x.data_ptr() == split.x.data_ptr()


def test_a_split_larger_than_the_device_is_refused_before_it_is_decoded(lazy, monkeypatch):
    monkeypatch.setattr(batches, "free_memory", lambda device: 2**20)
    huge = replace(lazy, shape=(3, 10**5, 10**5))
    with pytest.raises(EnvironmentFault, match=r"needs 1117.6 GiB on cpu, 0.0 GiB are free: data"):
        batches.source(huge, CPU, "device", 0)


@pytest.mark.parametrize("device", DEVICES)
def test_free_memory_is_a_plausible_number_of_bytes(device):
    assert 2**27 < batches.free_memory(device) < 2**50
