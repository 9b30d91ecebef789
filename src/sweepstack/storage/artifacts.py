"""Where a study keeps the files of its trials for all machines: `hydra.sweeper.artifacts`, a shared
folder, or a bucket of S3 or Google Cloud Storage, by Optuna's artifact stores.

Below PLACE/KEY (the study's attribute `attributes.ARTIFACTS` names both; KEY is never used again)
stand ZIP archives, named by the trials that they hold:

    0-15_18.zip      small files of trials 0 to 15 and 18: 0/config.yaml, 0/history.csv, ...
    17.models.zip    best.pt and model.pt of trial 17, apart so that they can be removed

Credentials are found by boto3 and google-cloud-storage themselves, and never written. Archives are
not trusted: files of known names and bounded sizes are taken, into the folders of the trials that
were asked for, and nothing else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import shutil
import tempfile
import uuid
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeGuard

from sweepstack.config.errors import (
    LAYERS,
    EnvironmentFault,
    InputError,
    SweepstackError,
    masked,
    nearest,
    one_line,
)

log = logging.getLogger(__name__)

SETTING = "hydra.sweeper.artifacts"
PACKAGES = {"s3": ("boto3", "s3"), "gs": ("google.cloud.storage", "gcs")}
"""By scheme: the module that reaches the buckets, and our extra that brings it."""
DONE = "metrics.json"
"""Written last: a trial's folder with it is whole."""
SMALL = (
    *("overrides.yaml", "config.yaml", "history.csv", LAYERS, "sweepstack.log", "classes.json"),
    DONE,
)
MODELS = ("best.pt.sha256", "model.pt", "best.pt")
"""Files of a trial, the one last that says that they are whole."""
MAX_BATCH = 32
"""Trials of one archive at most, whose numbers fit into the name of a file."""
MAX_SMALL, MAX_MODEL = 2**28, 2**36
"""Bytes of one file at most, unpacked."""
MAX_MEMBERS = 20
"""Files of a trial in an archive at most, so that a list of millions is not read."""
READERS = 8
"""Archives that are read at the same time."""
TIMEOUT_S = 5.0
"""How long a bucket's server may take to accept a connection; it is asked three times."""
_told: set[tuple[str, str]] = set()
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"(?:[\w.=+-]+/)*[\w.=+-]*")
_KEY = re.compile(r"[\w-]{1,60}")
_NAME = re.compile(r"(\d{1,9}(?:-\d{1,9})?(?:_\d{1,9}(?:-\d{1,9})?)*)(\.models)?\.zip")


def place(given: str) -> str:
    """A place as a study keeps it: a folder by its absolute path, or the bucket's URL.

    Raises:
        InputError: it is neither, or a URL holds more than a bucket and a prefix.
    """
    scheme, is_url, rest = given.partition("://")
    bucket, _, prefix = rest.partition("/")
    if not is_url and given.strip() and not re.match(r"\w+:/", given):
        return str(Path(given).expanduser().absolute())
    is_sound = _BUCKET.fullmatch(bucket) and _PREFIX.fullmatch(prefix)
    if scheme not in PACKAGES or not is_sound or ".." in prefix.split("/"):
        near = "" if scheme in PACKAGES or not scheme else nearest(scheme, PACKAGES)
        raise InputError(
            f"{SETTING} must be a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX without "
            f"credentials, got '{masked(given)}'{near}"
        )
    return f"{scheme}://{rest.rstrip('/')}"


def check(where: str) -> None:
    """Check that files can be put into a place; makes nothing but, for a moment, a probe.

    Raises:
        EnvironmentFault: the folder cannot be written, the bucket not be reached, or a package is
            missing.
    """
    store = Store(where, "")
    if not store.is_folder:
        with store.explained("write"):
            store.backend.write(name := store.path(".sweepstack"), io.BytesIO(b"sweepstack"))
            with contextlib.suppress(Exception):  # who may not remove may still put
                store.backend.remove(name)
        store.sizes()
        return
    there = Path(where)
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise EnvironmentFault(f"{SETTING}={where}: {there} is no folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        said = error.strerror or error
        raise EnvironmentFault(f"{SETTING}={where}: cannot write {there}: {said}") from error


class Store:
    """The archives of one study.

    Every method raises EnvironmentFault, one line, where the place fails.

    Attributes:
        where: as `place` returns it.
        key: the study's part of it.
    """

    def __init__(self, where: str, key: str):
        self.where, self.key = where, key

    @classmethod
    def of(cls, kept: object) -> Store | None:
        """That of a study's attribute, which comes from anyone; None where it names none."""
        if not isinstance(kept, Mapping):
            return None
        where, key = kept.get("where"), kept.get("key")
        if not isinstance(where, str) or not isinstance(key, str) or not _KEY.fullmatch(key):
            return None
        with contextlib.suppress(InputError):
            return cls(where, key) if place(where) == where else None
        return None

    @classmethod
    def new(cls, where: str, study: str) -> Store:
        """That of a study that had none; the folder is made."""
        name = re.sub(r"[^\w-]+", "-", study, flags=re.ASCII)[:40].strip("-")
        made = cls(where, f"{name or 'study'}-{uuid.uuid4().hex[:12]}")
        if made.is_folder:
            with made.explained("make"):
                Path(where, made.key).mkdir(parents=True)
        return made

    @property
    def kept(self) -> dict[str, str]:
        """What the study keeps."""
        return {"where": self.where, "key": self.key}

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder and no bucket."""
        return "://" not in self.where

    def path(self, name: str) -> str:
        """What Optuna's store calls an object."""
        prefix = "" if self.is_folder else self.where.partition("://")[2].partition("/")[2]
        return "/".join(filter(None, (prefix, self.key, name)))

    @cached_property
    def backend(self) -> Any:
        """Optuna's store."""
        bucket = self.where.partition("://")[2].partition("/")[0]
        scheme = "" if self.is_folder else self.where.partition("://")[0]
        if scheme:
            module, extra = PACKAGES[scheme]
            if not _is_installed(module):
                raise EnvironmentFault(
                    f"{SETTING}={self.where} needs the package {module}, which is not installed: "
                    f"pip install 'sweepstack[{extra}]'"
                )
        from optuna import artifacts

        with self.explained("open"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both that they are new, and of old versions of Python
            if scheme == "s3":
                return artifacts.Boto3ArtifactStore(bucket, _s3_client(), avoid_buf_copy=True)
            if scheme == "gs":
                return artifacts.GCSArtifactStore(bucket)
            return artifacts.FileSystemArtifactStore(self.where)

    def sizes(self) -> dict[str, int]:
        """Bytes of each archive, by name."""
        backend, beginning = self.backend, self.path("")
        beginning = f"{beginning}/" if beginning else ""
        with self.explained("list"):
            if self.is_folder:
                with os.scandir(Path(self.where, self.key)) as found:
                    every = [(entry.name, entry.stat().st_size) for entry in found]
            elif self.where.startswith("s3:"):
                pages = backend.client.get_paginator("list_objects_v2")
                pages = pages.paginate(Bucket=backend.bucket, Prefix=beginning)
                objects = (each for page in pages for each in page.get("Contents", ()))
                every = [(each["Key"], each["Size"]) for each in objects]
            else:
                blobs = backend.client.list_blobs(backend.bucket_name, prefix=beginning)
                every = [(blob.name, blob.size) for blob in blobs]
        if not self.is_folder:
            every = [(name.removeprefix(beginning), size) for name, size in every]
        return {name: size for name, size in every if _NAME.fullmatch(name)}

    def write(self, name: str, file: Path) -> None:
        """Put an archive there, whole or not at all."""
        to = beside = self.path(name)
        if self.is_folder:  # Optuna's writes in place
            beside = self.path(f".{name}.{os.getpid()}.tmp")
        with self.explained("write"), file.open("rb") as content:
            self.backend.write(beside, content)
            if beside != to:
                os.replace(Path(self.where, beside), Path(self.where, to))

    def read(self, name: str, file: Path, size: int) -> None:
        """Copy an archive of so many bytes."""
        with self.explained("read"), file.open("wb") as to:
            found = self.backend.open_reader(self.path(name))
            with contextlib.closing(found):
                left = size
                while left and (part := found.read(min(left, 2**20))):
                    to.write(part)
                    left -= len(part)

    def remove(self, names: Iterable[str]) -> None:
        """Remove archives."""
        with self.explained("remove"):
            for name in names:
                self.backend.remove(self.path(name))

    def remove_all(self) -> None:
        """Remove all archives, and their folder unless it holds anything else: the study, which
        names it, may come from anyone."""
        self.remove(self.sizes())
        if self.is_folder:
            with contextlib.suppress(OSError):
                Path(self.where, self.key).rmdir()

    @contextlib.contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn whatever a store raises into one line."""
        try:
            yield
        except SweepstackError:
            raise
        except Exception as error:  # each client has exceptions of its own
            said = error.strerror if isinstance(error, OSError) and error.strerror else error
            said = one_line(said) or type(error).__name__
            raise EnvironmentFault(f"artifacts in {self.where}: cannot {doing}: {said}") from None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package above it
        return False


def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    retries = {"max_attempts": 3, "mode": "standard"}
    session = boto3.session.Session()  # the default one keeps what it found first
    return session.client("s3", config=Config(connect_timeout=TIMEOUT_S, retries=retries))


def is_name(name: object) -> TypeGuard[str]:
    """Whether a study's attribute is the name of a folder: it decides which files are read."""
    return isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..")


def say_once(study: tuple[str, str], line: str) -> None:
    """Warn that files are not here, once for a study (storage and name)."""
    if study not in _told:
        _told.add(study)
        log.warning("%s", line)


# --- archives ------------------------------------------------------------------------------------


def name_of(numbers: Collection[int], *, models: bool = False) -> str:
    """The name of the archive of these trials."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][-1] == number - 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    return "_".join("-".join(map(str, span)) for span in spans) + ".models" * models + ".zip"


def held_in(name: str) -> tuple[set[int], bool]:
    """The trials of an archive by its name, and whether it is of models."""
    match = _NAME.fullmatch(name)
    found: set[int] = set()
    for span in match[1].split("_") if match else ():
        first, _, last = span.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if len(found) + len(numbers) > MAX_BATCH:
            return set(), False  # none of ours
        found.update(numbers)
    return found, bool(match and match[2])


def holdings(names: Iterable[str]) -> tuple[dict[int, str], dict[int, str]]:
    """The archives that hold the small files of each trial, and its models."""
    found: tuple[dict[int, str], dict[int, str]] = ({}, {})
    for name in sorted(names):
        numbers, models = held_in(name)
        found[models].update(dict.fromkeys(numbers, name))
    return found


def pack(study: Path, numbers: Sequence[int], to: Path, *, models: bool = False) -> list[int]:
    """Write an archive of trials; return those that have files."""
    packed = []
    kind = zipfile.ZIP_STORED if models else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(to, "w", kind, compresslevel=1, strict_timestamps=False) as archive:
        for number in numbers:
            for name in MODELS if models else SMALL:
                # It may be removed meanwhile, with a model that others beat.
                with contextlib.suppress(FileNotFoundError):
                    archive.write(study / str(number) / name, f"{number}/{name}")
                    packed.append(number)
    return list(dict.fromkeys(packed))


def unpack(file: Path, study: Path, numbers: Collection[int], *, models: bool = False) -> set[int]:
    """Take trials from an archive into their folders; return those that it holds.

    A trial's files appear after each other, last the one that says that they are whole.

    Raises:
        EnvironmentFault: it is damaged, too large, or the folder cannot be written.
    """
    names, limit = (MODELS, MAX_MODEL) if models else (SMALL, MAX_SMALL)
    try:
        study.mkdir(parents=True, exist_ok=True)
        with (
            zipfile.ZipFile(file) as archive,
            tempfile.TemporaryDirectory(dir=study, prefix=".pull-") as scratch,
        ):
            every = archive.infolist()
            members = {each.filename: each for each in every}
            if len(every) > MAX_BATCH * MAX_MEMBERS:
                raise EnvironmentFault(f"{file.name} holds {len(every)} files, which is none ours")
            taken = set()
            for number in numbers:
                found = [n for n in names if f"{number}/{n}" in members]
                sizes = [members[f"{number}/{name}"].file_size for name in found]
                free = shutil.disk_usage(study).free
                if max(sizes, default=0) > limit or sum(sizes) > free:
                    raise EnvironmentFault(f"{file.name} is too large: {sum(sizes):,} bytes")
                if names[-1] in found:
                    _take(archive, number, found, study, Path(scratch))
                    taken.add(number)
            return taken
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as error:
        raise EnvironmentFault(f"{file.name} is damaged: {one_line(error)}") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise EnvironmentFault(f"cannot unpack {file.name}: {one_line(error)}") from error


def _take(
    archive: zipfile.ZipFile, number: int, names: Sequence[str], study: Path, scratch: Path
) -> None:
    folder = study / str(number)
    if folder.is_symlink():
        raise EnvironmentFault(f"{folder} is a symbolic link, which no trial's folder may be")
    folder.mkdir(exist_ok=True)
    for name in names:  # as plain bytes, whatever the archive says that they are
        with archive.open(f"{number}/{name}") as source, (scratch / name).open("wb") as to:
            shutil.copyfileobj(source, to)
    for name in names:
        os.replace(scratch / name, folder / name)


def fetch(
    store: Store, study: Path, numbers: Collection[int], models: Collection[int] = ()
) -> tuple[set[int], set[int]]:
    """Take the files of trials into the study's folder, and the models of others.

    Returns:
        The trials whose files were taken, and those whose models were. An archive that cannot be
        read is named in a warning.

    Raises:
        EnvironmentFault: the store cannot be listed.
    """
    sizes = store.sizes()
    taken: tuple[set[int], set[int]] = (set(), set())
    with ThreadPoolExecutor(READERS, "sweepstack-artifacts") as readers:
        for kind, wanted in enumerate((numbers, models)):
            by_name: dict[str, set[int]] = {}
            for number, name in holdings(sizes)[kind].items():
                if number in wanted:
                    by_name.setdefault(name, set()).add(number)
            get = partial(_fetched, store, study, sizes, bool(kind))
            taken[kind].update(*readers.map(get, by_name.items()))
    return taken


def _fetched(
    store: Store,
    study: Path,
    sizes: Mapping[str, int],
    models: bool,
    wanted: tuple[str, set[int]],
) -> set[int]:
    name, numbers = wanted
    try:
        with tempfile.TemporaryDirectory(prefix="sweepstack-") as scratch:
            if sizes[name] > shutil.disk_usage(scratch).free:
                raise EnvironmentFault(f"no space for {name}: {sizes[name]:,} bytes")
            store.read(name, file := Path(scratch) / name, sizes[name])
            return unpack(file, study, numbers, models=models)
    except EnvironmentFault as error:
        log.warning("artifacts in %s: %s", store.where, error)
        return set()
