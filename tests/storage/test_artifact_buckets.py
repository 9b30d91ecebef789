"""Buckets of S3, against a local moto server, and of Google Cloud Storage, against a stand-in."""

from __future__ import annotations

import logging
import sys
import types
import warnings

import pytest

from sweepstack.config.errors import EnvironmentFault
from sweepstack.storage import artifacts
from sweepstack.storage.artifacts import Store


@pytest.fixture(scope="module")
def s3():
    """A bucket called trials on a server of this process; its URL's beginning."""
    pytest.importorskip("boto3", reason="boto3 is not installed (sweepstack[s3])")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # botocore's, of coming versions of Python
        running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        Store("s3://trials", "").backend.client.create_bucket(Bucket="trials")
        yield "s3://trials"
        running.stop()


@pytest.fixture
def gs(monkeypatch):
    """Google's client, as far as Optuna's store and ours use it, over a dictionary."""
    objects = {}

    class Blob:
        def __init__(self, name):
            self.name = name

        @property
        def size(self):
            return len(objects[self.name])

        def upload_from_string(self, data):
            objects[self.name] = data

        def download_as_bytes(self):
            return objects[self.name]

    class Bucket:
        def blob(self, name):
            return Blob(name)

        def get_blob(self, name):
            return Blob(name) if name in objects else None

        def delete_blob(self, name):
            del objects[name]

    class Client:
        def bucket(self, name):
            return Bucket()

        def list_blobs(self, bucket, prefix):
            return [Blob(name) for name in sorted(objects) if name.startswith(prefix)]

    from optuna.artifacts import GCSArtifactStore

    module = sys.modules[GCSArtifactStore.__module__]
    google = types.SimpleNamespace(cloud=types.SimpleNamespace(storage=types.SimpleNamespace()))
    google.cloud.storage.Client = Client
    monkeypatch.setattr(module, "google", google, raising=False)
    monkeypatch.setattr(module._imports, "_deferred", None)
    monkeypatch.setattr(artifacts, "_is_installed", lambda name: True)
    return "gs://trials"


@pytest.fixture(params=["folder", "s3", "gs"])
def where(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "shared")
    return request.getfixturevalue(request.param)


@pytest.fixture
def study(tmp_path):
    """A study's folder with three trials, the last with a model."""
    for number in range(3):
        folder = tmp_path / "study" / str(number)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(f"number: {number}")
        (folder / "metrics.json").write_text("{}")
        (folder / "secret.txt").write_text("not ours")
    for name in artifacts.MODELS:
        (tmp_path / "study" / "2" / name).write_bytes(bytes(100_000))
    return tmp_path / "study"


@pytest.mark.parametrize("prefix", ["", "/a/b"])
def test_what_is_put_there_is_taken_and_removed(where, prefix, study, tmp_path):
    where = artifacts.place(where + prefix)
    artifacts.check(where)
    assert Store(where, "").sizes() == {} if "://" in where else not (tmp_path / "shared").exists()
    store, other = Store.new(where, "my study/1"), Store.new(where, "other")
    assert store.key.startswith("my-study-1-")
    assert Store.of(store.kept).kept == store.kept
    file = tmp_path / "archive"
    for numbers, models in (([0, 1, 2], False), ([2], True), ([1], False)):
        assert artifacts.pack(study, numbers, file, models=models) == numbers
        store.write(artifacts.name_of(numbers, models=models), file)
    assert list(other.sizes()) == []
    assert sorted(store.sizes()) == ["0-2.zip", "1.zip", "2.models.zip"]
    to = tmp_path / "elsewhere"
    assert artifacts.fetch(store, to, {1, 2, 7}, {0, 2}) == ({1, 2}, {2})
    found = sorted(str(path.relative_to(to)) for path in to.rglob("*") if path.is_file())
    small = [f"{n}/{name}" for n in (1, 2) for name in ("config.yaml", "metrics.json")]
    assert found == sorted([*small, *(f"2/{name}" for name in artifacts.MODELS)])
    assert (to / "2/config.yaml").read_text() == "number: 2"
    assert (to / "2/best.pt").stat().st_size == 100_000
    store.remove(["1.zip"])
    assert sorted(store.sizes()) == ["0-2.zip", "2.models.zip"]
    store.remove_all()
    if "://" in where:
        assert store.sizes() == {}
    else:
        assert not (tmp_path / "shared" / store.key).exists()


def test_what_a_bucket_refuses_is_one_line(s3, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "sweepstack")
    with pytest.raises(EnvironmentFault, match=r"s3://absent: cannot write: .*does not exist"):
        artifacts.check("s3://absent")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/absent")
    with pytest.raises(EnvironmentFault, match=r"cannot write: .*Unable to locate credentials"):
        artifacts.check(s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(EnvironmentFault, match=r"cannot write: .*127.0.0.1:9") as error:
        artifacts.check(s3)
    assert "\n" not in str(error.value)
    assert "verysecret" not in str(error.value) + caplog.text
