"""Picture augmentation: each change against its definition, and a slot's pictures the same in any
stack."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as vision

from sweepstack.data import streams
from sweepstack.training.regularization import (
    Augmentation,
    crop,
    cutout,
    flip,
    rotate_and_translate,
)

CHANGES = ("crop", "flip", "affine", "cutout")
STRENGTHS = {
    "crop_padding": [4.0, 0.0, 2.0, 40.0],
    "horizontal_flip": [1.0, 1.0, 0.0, 1.0],
    "rotation": [15.0, 0.0, 180.0, 3.0],
    "translation": [0.1, 0.3, 0.0, 0.5],
    "cutout": [8.0, 0.0, 3.0, 100.0],
}


def augmentation(*on):
    return Augmentation(**{change: change in on for change in CHANGES})


def strengths(slots=4, **constant):
    values = {name: torch.tensor(row)[:slots] for name, row in STRENGTHS.items()}
    return values | {name: torch.full((slots,), value) for name, value in constant.items()}


def keys(slots=4, step=0):
    return streams.split(torch.arange(slots), torch.tensor(step))


def pictures(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def numbers(samples, count, seed=1):
    u = torch.rand(samples, count, generator=torch.Generator().manual_seed(seed))
    return u if count > 1 else u.squeeze(1)


# --- a stack --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [*((change,) for change in CHANGES), CHANGES])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 7, 13)])
def test_a_slots_pictures_are_bit_equal_alone_and_in_a_stack(on, shape):
    x, change = pictures(4, 5, *shape), augmentation(*on)
    together = change(x, keys(), strengths())
    assert together.shape == x.shape
    assert not torch.equal(together, x)
    for slot in range(4):
        own = {name: values[[slot]] for name, values in strengths().items()}
        alone = change(x[[slot]], keys()[[slot]], own)
        assert torch.equal(together[[slot]], alone)


def test_a_pictures_numbers_do_not_depend_on_the_batch_size():
    x, change = pictures(4, 6, 3, 8, 8), augmentation(*CHANGES)
    assert torch.equal(change(x, keys(), strengths())[:, :2], change(x[:, :2], keys(), strengths()))


@pytest.mark.parametrize("change", CHANGES)
def test_pictures_differ_between_samples_slots_and_steps(change):
    x = pictures(1, 1, 1, 32, 32).expand(4, 64, 1, 32, 32)
    given = strengths(
        crop_padding=4.0, horizontal_flip=1.0, rotation=20.0, translation=0.2, cutout=8.0
    )
    now, later = (augmentation(change)(x, keys(step=step), given) for step in (0, 1))
    assert not (now == now[:, :1]).flatten(2).all(-1)[:, 1:].all(1).any()
    assert not torch.equal(now[0], now[1])
    assert not torch.equal(now, later)


@pytest.mark.parametrize("other", ["crop", "affine", "cutout"])
def test_switching_a_change_on_does_not_alter_the_numbers_of_another(other):
    """The same pictures are mirrored, whatever else happens to them."""
    x = pictures(4, 64, 1, 9, 9)
    weak = strengths(
        horizontal_flip=1.0, crop_padding=0.0, rotation=1e-3, translation=0.0, cutout=0.0
    )
    alone = augmentation("flip")(x, keys(), weak)
    both = augmentation("flip", other)(x, keys(), weak)
    torch.testing.assert_close(both, alone, atol=1e-2, rtol=0)
    assert not torch.equal(alone, x)


def test_changes_draw_independent_numbers():
    """Where crop moves a dot says nothing about where cutout erases one."""
    n, dot = 2000, torch.zeros(1, 1, 1, 17, 17)
    dot[..., 8, 8] = 1.0
    given = strengths(1, crop_padding=8.0, cutout=1.0)
    moved = augmentation("crop")(dot.expand(1, n, 1, 17, 17), keys(1), given)
    erased = 1 - augmentation("cutout")(torch.ones(1, n, 1, 17, 17), keys(1), given)
    places = [picture.flatten(2).argmax(-1).squeeze(0) for picture in (moved, erased)]
    for axis in (lambda place: place % 17, lambda place: place // 17):
        columns = torch.stack([axis(place).double() for place in places])
        assert columns.std(1).min() > 4
        assert torch.corrcoef(columns)[0, 1].abs() < 5 / n**0.5


def test_any_says_whether_there_is_something_to_do():
    assert not augmentation().any
    assert all(augmentation(change).any for change in CHANGES)
    x = pictures(2, 3, 1, 4, 4)
    assert torch.equal(augmentation()(x, keys(2), {}), x)


# --- each change ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    padding=st.integers(0, 50),
    seed=st.integers(0, 99),
)
def test_crop_cuts_a_window_out_of_the_padded_picture(size, padding, seed):
    x, u = pictures(3, 2, *size, seed=seed), numbers(3, 2, seed=seed)
    cropped = crop(x, u, torch.full((3,), float(padding)))
    height, width = size
    padded = F.pad(x, (padding,) * 4)
    for sample, (left, top) in enumerate((u * (2 * padding + 1)).long().tolist()):
        window = padded[sample, :, top : top + height, left : left + width]
        assert torch.equal(cropped[sample], window)


def test_crop_shifts_evenly_from_minus_to_plus_padding():
    x = torch.zeros(20_000, 1, 9, 9)
    x[:, :, 4, 4] = 1.0
    u = streams.uniform(torch.arange(20_000), 2)
    where = crop(x, u, torch.full((20_000,), 2)).flatten(1).nonzero()[:, 1]
    counts = torch.bincount(where, minlength=81).view(9, 9)
    assert counts.sum() == counts[2:7, 2:7].sum() == 20_000
    assert (counts[2:7, 2:7] - 800).abs().max() < 5 * 800**0.5


def test_flip_mirrors_half_of_the_pictures_where_it_is_on():
    x, enabled = pictures(4000, 2, 3, 5), torch.ones(4000)
    enabled[2000:] = 0
    flipped = flip(x, streams.uniform(torch.arange(4000), 1).squeeze(1), enabled)
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert ((flipped == x).flatten(1).all(1) ^ mirrored).all()
    assert not mirrored[2000:].any()
    assert mirrored[:2000].sum().item() == pytest.approx(1000, abs=5 * 500**0.5)


@pytest.mark.parametrize(
    ("angle", "right", "down"), [(0, 3, 0), (30, 0, 0), (-75, 0, 4), (160, -2, 3), (0, 0, 0)]
)
@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_rotation_then_translation_is_torchvisions(angle, right, down, size):
    x, (height, width) = pictures(1, 3, *size), size
    bilinear = vision.InterpolationMode.BILINEAR
    expected = vision.affine(x, float(angle), [right, down], 1.0, [0.0, 0.0], bilinear)
    # With the strengths 180° and 1/2 side, these numbers give the wanted angle and shifts.
    u = torch.tensor([[angle / 180 + 1, 2 * right / width + 1, 2 * down / height + 1]]) / 2
    ours = rotate_and_translate(x, u, torch.tensor([180.0]), torch.tensor([0.5]))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_a_quarter_turn_moves_every_pixel():
    x = pictures(2, 3, 11, 11)
    u = torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.5, 0.5]])
    turned = rotate_and_translate(x, u, torch.tensor([90.0, 90.0]), torch.zeros(2))
    expected = torch.stack((x[0].rot90(-1, (1, 2)), x[1].rot90(1, (1, 2))))
    torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)


def test_angles_and_shifts_fill_their_ranges():
    """A dot right of the center shows the angle; that of an unturned picture the shift."""
    n, side = 5000, 41
    x = torch.zeros(n, 1, side, side)
    x[:, :, 20, 32] = 1.0
    u = streams.uniform(torch.arange(n), 3)
    ramp = torch.arange(side).float() - 20

    def dots(rotation, translation):
        moved = rotate_and_translate(
            x, u, torch.full((n,), rotation), torch.full((n,), translation)
        ).squeeze(1)
        mass = moved.sum((1, 2))
        return (moved.sum(1) * ramp).sum(1) / mass, (moved.sum(2) * ramp).sum(1) / mass

    column, row = dots(30.0, 0.0)
    angles = torch.rad2deg(torch.atan2(row, column))
    torch.testing.assert_close(angles, 30 * (2 * u[:, 0] - 1), atol=0.5, rtol=0)
    column, row = dots(0.0, 0.1)
    shifts = 0.1 * side * (2 * u[:, 1:] - 1)
    torch.testing.assert_close(torch.stack((column - 12, row), 1), shifts, atol=1e-3, rtol=0)


def test_rotation_and_translation_of_0_keep_the_picture():
    x = pictures(8, 3, 28, 28)
    kept = rotate_and_translate(x, numbers(8, 3), torch.zeros(8), torch.zeros(8))
    torch.testing.assert_close(kept, x, atol=1e-4, rtol=0)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    side=st.integers(0, 30),
    seed=st.integers(0, 99),
)
def test_cutout_erases_a_square_around_its_center(size, side, seed):
    x, u = pictures(4, 2, *size, seed=seed), numbers(4, 2, seed=seed)
    erased = cutout(x, u, torch.full((4,), float(side)))
    for sample, (column, row) in enumerate((u * torch.tensor(size[::-1])).long().tolist()):
        expected = x[sample].clone()
        top, left = row - side // 2, column - side // 2
        expected[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
        assert torch.equal(erased[sample], expected)


@pytest.mark.parametrize("change", [crop, flip, rotate_and_translate, cutout])
def test_a_broken_picture_does_not_touch_the_others(change):
    x = pictures(3, 2, 8, 8)
    broken = x.clone()
    broken[1] = float("nan")
    count = {crop: 2, flip: 1, rotate_and_translate: 3, cutout: 2}[change]
    amount = [torch.ones(3)] * (2 if change is rotate_and_translate else 1)
    a, b = (change(each, numbers(3, count), *amount) for each in (x, broken))
    assert torch.equal(a[[0, 2]], b[[0, 2]])
