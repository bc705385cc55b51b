"""Where a dataset's rows are: files anywhere, a folder saved by `datasets`, or a set on the hub.

A source is split into shards that are read one task each; reading all shards in order gives the input order.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import itertools
import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import quote, unquote

from aisp_ray.data import _records
from aisp_ray.data._compression import SUFFIXES as PACKED
from aisp_ray.data._compression import ArchiveError, open_unpacked

if TYPE_CHECKING:
    from aisp_ray.data.base import DataSpec

FORMATS = ("jsonl", "json", "csv", "parquet")
DEMO = "demo:"  # the prompts and problems that come with the package
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_NO_DATA = (
    *("dataset_infos.json", "dataset_info.json", "metadata.json", "manifest.json", "croissant.json"),
    *("config.json", "package.json", "readme.json", "schema.json"),
)
_NATIVE = ("s3", "gs", "gcs", "hdfs", "viewfs", "file")  # schemes that pyarrow reads itself
_MOST_METADATA = 1 << 20  # bytes; a larger JSON file in a folder is data
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HASH_WHOLE = 256 << 20  # bytes; larger files are hashed at both ends


class Shard(Protocol):
    """What one task reads."""

    def records(self) -> Iterator[_records.Record]: ...


class RowSource(Protocol):
    """Rows somewhere, in a fixed order. `local`: on a disk of this node, perhaps of no other."""

    @property
    def local(self) -> bool: ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of files that lie there and are no data."""

    def shards(self) -> list[Shard]: ...

    def columns(self, look: int) -> tuple[str, ...] | None:
        """Column names of the first rows; None if there is no row to tell."""

    def fingerprint(self) -> dict[str, Any]: ...


def find(spec: DataSpec) -> RowSource:
    """The source of a dataset's settings.

    Raises:
        ValueError: nothing is there; one sentence that says what to change.
    """
    path = spec.path
    if not path:
        raise ValueError("data.path is not set; give a file, folder, glob, URI or hub name: data.path=prompts.jsonl")
    if path.startswith(DEMO):
        return _demo(path, spec.format)
    if "://" in path:
        return _remote(path, spec)
    local = Path(path).expanduser()
    if local.is_dir() and any((local / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return SavedSet(str(local), spec.split)
    if local.exists() or any(letter in path for letter in "*?["):
        return _local_files(local, spec)
    if path.startswith(("/", ".", "~")) or _format(path) or not _HUB_NAME.fullmatch(path):
        raise ValueError(f"data.path={path}: no such file or folder (looked in {Path.cwd()})")
    return HubSet(path, spec.subset, spec.split, spec.revision, spec.subset_is_folder)


# ------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True, slots=True)
class File:
    """One file, local or behind a URI."""

    path: str
    name: str  # its path below the given one: what error sentences and the manifest say
    kind: str  # of FORMATS
    size: int
    stamp: str | None = None  # URI only: time of the last change
    max_line: int = 64 << 20  # bytes of a line

    def open(self) -> BinaryIO:
        """The file's bytes, decompressed. Raises ArchiveError."""
        return open_unpacked(_open_uri(self.path) if "://" in self.path else open(self.path, "rb"), self.name)

    @property
    def partitions(self) -> dict[str, str]:
        """Columns that folder names such as lang=de hold."""
        pairs = [part.split("=", 1) for part in Path(self.name).parts[:-1] if "=" in part.strip("=")]
        return {key: unquote(value) for key, value in pairs if value != "__HIVE_DEFAULT_PARTITION__"}

    def records(self) -> Iterator[_records.Record]:
        remote = "://" in self.path
        try:
            stream = self.open()
        except FileNotFoundError as error:
            fix = "put the data on a disk that all nodes share, or give a URI (data.path=s3://...)"
            raise FileNotFoundError(f"{self.path} is not on the node {socket.gethostname()}; {fix}") from error
        except ArchiveError as error:
            yield {"error": str(error)}
            return
        columns = self.partitions
        with stream:
            for record in _records.read_records(stream, self.name, self.kind, remote, self.max_line):
                yield {"row": {**columns, **record["row"]}} if columns and "row" in record else record

    def identity(self) -> dict[str, Any]:
        """A file is known by its content where it is local, else by its size and time of change."""
        if "://" in self.path:
            return {"name": self.name, "size": self.size, "modified": self.stamp}
        return {"name": self.name, "size": self.size, "blake2b": _content_hash(Path(self.path), self.size)}


@dataclass(frozen=True, slots=True)
class Files:
    """Files in name order."""

    files: tuple[File, ...]
    skipped: tuple[str, ...] = ()  # names of files that are no data

    @property
    def local(self) -> bool:
        return not any("://" in file.path for file in self.files)

    def shards(self) -> list[Shard]:
        return list(self.files)

    def columns(self, look: int) -> tuple[str, ...] | None:
        for file in self.files if self.local else self.files[:1]:
            with contextlib.suppress(OSError), file.open():
                pass  # an archive is refused here, before anything loads
        return _columns(self.files[0].records(), look)

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "files", "files": [file.identity() for file in self.files]}


def _demo(path: str, kind: str | None) -> Files:
    name = path.removeprefix(DEMO)
    package = Path(__file__).parent.parent
    folders = (package / "demo" / "prompts", package / "data" / "problems")
    for folder in folders:
        file = folder / f"{name}.jsonl"
        if file.is_file():
            return Files((File(str(file), path, kind or "jsonl", file.stat().st_size),))
    known = sorted(DEMO + file.stem for folder in folders for file in folder.glob("*.jsonl"))
    raise ValueError(f"data.path={path}: there is no such set in the package; it has {', '.join(known)}")


def _local_files(local: Path, spec: DataSpec) -> Files:
    if local.is_file():
        return Files((_file(local, local.name, spec, _format(local.name)),))
    if not local.is_dir():
        root = Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), local.parts))
        found = sorted(Path(path) for path in glob.glob(str(local), recursive=True))
        files = [_file(path, str(path.relative_to(root)), spec, _format(path.name)) for path in found if path.is_file()]
        return Files(tuple(files or _nothing(spec.path, "nothing matches this glob")))
    found = sorted(path for path in local.rglob("*") if path.is_file() and not _hidden(path.relative_to(local)))
    data = [path for path in found if _format(path.name) and path.name.lower() not in _NO_DATA]
    data = [path for path in data if len(data) == 1 or not _is_metadata(path, spec)]
    files = [_file(path, str(path.relative_to(local)), spec, _format(path.name)) for path in data]
    skipped = tuple(str(path.relative_to(local)) for path in found if path not in set(data))
    chosen = _of_split(files, spec) or _nothing(spec.path, f"the folder holds no {', '.join(_SUFFIXES)} file")
    return Files(tuple(chosen), skipped)


def _is_metadata(path: Path, spec: DataSpec) -> bool:
    """Whether a small .json file is one object without any column of the set: it describes the data beside it."""
    if path.suffix.lower() != ".json" or path.stat().st_size > _MOST_METADATA:
        return False
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError, OSError):
        return False
    return isinstance(value, Mapping) and not value.keys() & set(spec.wanted_columns)


def _file(path: Path, name: str, spec: DataSpec, kind: str | None) -> File:
    kind = spec.format or kind
    if kind is None:
        _nothing(spec.path, f"the format of {name} is not known from its name; set data.format={'|'.join(FORMATS)}")
    return File(str(path.resolve()), name, str(kind), path.stat().st_size, max_line=spec.max_line_mb << 20)


def _of_split(files: list[File], spec: DataSpec) -> list[File]:
    """The files of the split, where files or their folders are named after splits; else all."""
    named = [(file, _split_in(file.name)) for file in files]
    splits = {split for _, split in named if split}
    if not splits:
        return files
    chosen = [file for file, split in named if split == spec.split]
    if not chosen:
        _nothing(spec.path, f"no file of the split {spec.split!r}; it has {', '.join(sorted(splits))}: set data.split")
    return chosen


def _split_in(name: str) -> str | None:
    """The split that a folder split=... or a word at the beginning of a folder's or the file's name says."""
    partitions = [part.split("=", 1) for part in Path(name).parts[:-1] if part.lower().startswith("split=")]
    if partitions:
        return unquote(partitions[-1][1])
    words = [re.split(r"[-_.]", part)[0].lower() for part in reversed(Path(name).parts)]
    return next((word for word in words if word in _SPLITS), None)


def _nothing(path: str, reason: str) -> Any:
    raise ValueError(f"data.path={path}: {reason}")


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _format(name: str) -> str | None:
    path = Path(name.lower())
    return _SUFFIXES.get((path.with_suffix("") if path.suffix in PACKED else path).suffix)


def _content_hash(path: Path, size: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as stream:
        if size > _HASH_WHOLE:
            digest.update(stream.read(1 << 20))
            stream.seek(-(1 << 20), 2)
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _columns(records: Iterator[_records.Record], look: int) -> tuple[str, ...] | None:
    """Names of all columns of the first rows. Only columns that are there at all count, whatever they hold."""
    seen: dict[str, None] = {}
    for _, record in zip(range(look), records, strict=False):
        seen.update(dict.fromkeys(str(key) for key in record.get("row", ())))
    return tuple(seen) or None


# -------------------------------------------------------------------------------------------------------- URIs


def _filesystem(uri: str) -> tuple[Any, str]:
    """(pyarrow file system, path in it). s3, gs, hdfs and file natively, everything else (hf, http, abfs) by fsspec."""
    from pyarrow import fs

    if uri.split("://")[0] in _NATIVE:
        return fs.FileSystem.from_uri(uri)
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _open_uri(uri: str) -> BinaryIO:
    filesystem, path = _filesystem(uri)
    return io.BufferedReader(filesystem.open_input_file(path), 1 << 20)


def _remote(uri: str, spec: DataSpec) -> Files:
    from pyarrow import fs

    try:
        filesystem, root = _filesystem(uri)
        info = filesystem.get_file_info(root)
        found = [info]
        if info.type == fs.FileType.Directory:
            found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except Exception as error:  # whatever the storage's library raises: no such bucket, no credentials, no library
        raise ValueError(f"data.path={uri}: cannot be listed: {_records.first_line(error)}") from error
    if info.type == fs.FileType.NotFound:
        raise ValueError(f"data.path={uri}: nothing is there")
    found = [item for item in sorted(found, key=lambda item: item.path) if item.type == fs.FileType.File]
    files, skipped = [], []
    for item in found:
        if not (spec.format or _format(item.path)) or (len(found) > 1 and item.base_name.lower() in _NO_DATA):
            skipped.append(item.base_name)
        else:
            files.append(_remote_file(uri, root, item, spec))
    chosen = _of_split(files, spec) or _nothing(uri, f"holds no {', '.join(_SUFFIXES)} file")
    return Files(tuple(chosen), tuple(skipped))


def _remote_file(uri: str, root: str, item: Any, spec: DataSpec) -> File:
    base, mark, query = uri.partition("?")
    scheme = base.split("://")[0]
    listed = quote(item.path) if scheme in _NATIVE else item.path  # pyarrow decodes what it is given, fsspec does not
    path = item.path if "://" in item.path else f"{scheme}://{listed}"
    name = item.path[len(root) :].strip("/") or item.base_name
    kind = str(spec.format or _format(item.path))
    return File(path + mark + query, name, kind, item.size, str(item.mtime), spec.max_line_mb << 20)


# ------------------------------------------------------------------------------------- sets of the datasets library


@dataclass(frozen=True, slots=True)
class SavedSet:
    """A folder written by `datasets`' save_to_disk."""

    path: str
    split: str
    local = True
    skipped = ()

    def shards(self) -> list[Shard]:
        return [self]

    def records(self) -> Iterator[_records.Record]:
        import datasets

        try:
            found = datasets.load_from_disk(self.path)
            rows = found[self.split] if isinstance(found, Mapping) else found
            yield from ({"row": dict(row)} for row in rows)
        except Exception as error:
            yield {"error": f"{self.path} cannot be read: {type(error).__name__}: {_records.first_line(error)}"}

    def columns(self, look: int) -> tuple[str, ...] | None:
        splits = Path(self.path) / "dataset_dict.json"
        if splits.is_file() and not (Path(self.path) / self.split).is_dir():
            found = sorted(item.name for item in Path(self.path).iterdir() if item.is_dir())
            _nothing(self.path, f"no split {self.split!r}; it has {', '.join(found)}: set data.split")
        return _columns(self.records(), look)

    def fingerprint(self) -> dict[str, Any]:
        folder = Path(self.path) / self.split if (Path(self.path) / self.split).is_dir() else Path(self.path)
        files = sorted(item for item in folder.rglob("*") if item.is_file() and item.suffix in (".arrow", ".json"))
        known = [File(str(item), str(item.relative_to(folder)), "arrow", item.stat().st_size) for item in files]
        return {"kind": "saved", "files": [item.identity() for item in known]}


@dataclass(frozen=True, slots=True)
class HubSet:
    """A set on the Hugging Face hub, read by `datasets`: streamed, or from its cache when offline."""

    path: str
    subset: str | None
    split: str
    revision: str | None
    subset_is_folder: bool = False
    local = False
    skipped = ()

    def shards(self) -> list[Shard]:
        return [self]

    def records(self) -> Iterator[_records.Record]:
        return ({"row": dict(row)} for row in self._rows())

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        import datasets
        from huggingface_hub import constants

        streaming = not constants.HF_HUB_OFFLINE
        with contextlib.suppress(AttributeError):
            datasets.disable_progress_bars()
        part = {"data_dir" if self.subset_is_folder else "name": self.subset} if self.subset else {}
        where = {"split": self.split, "revision": self.revision or self.commit(), "streaming": streaming}
        return iter(datasets.load_dataset(self.path, **part, **where))

    def columns(self, look: int) -> tuple[str, ...] | None:
        self.commit()
        return None

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "hub", "set": self.path, "subset": self.subset, "split": self.split, "commit": self.commit()}

    def commit(self) -> str | None:
        """The hub's commit of the revision. Raises ValueError with one sentence."""
        from aisp_ray.lm.hub import look_up

        return look_up(self.path, "data.path", "dataset", self.revision)
