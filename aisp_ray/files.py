"""Where a run's files are: a folder or a URI (s3://, gs://, hdfs://, file://), written whole or not at all.

<out>/rows/part-<method>-<chunk>.parquet     nothing but Parquet, a pure function of the input's positions
<out>/particles/part-<method>-<chunk>.parquet
<out>/manifest.json  summary.json
<out>/_state/inflight.json                   what a restart resumes from
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from aisp_ray.errors import RefusedError, redacted_values

ROWS, PARTICLES, STATE = "rows", "particles", "_state"
MANIFEST, SUMMARY = "manifest.json", "summary.json"
_PART = re.compile(r"^part-(?P<method>.+)-(?P<chunk>\d{8})\.parquet$")


def part_name(method: str, chunk: int) -> str:
    return f"part-{method}-{chunk:08d}.parquet"


def resolve(out: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of `out` and the path on it.

    Raises:
        ValueError: there is no such filesystem, or it cannot be reached.
    """
    if "://" not in out:
        return pafs.LocalFileSystem(), str(Path(out).expanduser().absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(out)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"out={out}: {error}; give a folder, s3://..., gs://..., hdfs://... or file:///...") from error
    return filesystem, path.rstrip("/")


def split_query(place: str) -> tuple[str, str]:
    """A folder or URI without a slash at its end, and its query (?endpoint_override=...): "" where there is none."""
    path, mark, query = place.partition("?") if "://" in place else (place, "", "")
    return path.rstrip("/") or path[:1], mark + query


def inside(place: str, name: str) -> str:
    """`<place>/<name>` of a folder or URI, whose query stays at the end."""
    path, query = split_query(place)
    return f"{path.rstrip('/')}/{name}{query}"


class Output:
    """The files of one run. Picklable: tasks on other nodes write with it."""

    def __init__(self, out: str, unfinished: str = STATE):
        self.out = out
        self.unfinished = unfinished  # folder in which local files grow before they are renamed
        self.filesystem, self.root = resolve(out)

    def __reduce__(self) -> tuple[Any, ...]:
        return Output, (self.out, self.unfinished)

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def write(self, name: str, data: bytes) -> None:
        """The whole file appears at once: by rename on a disk, by one PUT on an object store."""
        path = f"{self.root}/{name}"
        if not self.is_local:
            # one write of bytes made before: a stream that breaks half-way would leave a torn object
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        target, temporary = Path(path), Path(self.root, self.unfinished, f".tmp-{uuid.uuid4().hex}")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)

    def require_writable(self) -> None:
        """Write a small file and remove it again, with the folders that it needed.

        Raises:
            OSError: it cannot be written.
        """
        probe = f"{self.unfinished}/.probe-{uuid.uuid4().hex}"
        place = Path(self.root, probe)
        made = [folder for folder in place.parents if not folder.exists()] if self.is_local else []
        try:
            self.write(probe, b"")
        finally:
            with contextlib.suppress(OSError):  # whoever may write need not be allowed to delete
                self.remove(probe)
            for folder in made:  # the innermost first; a run that is refused later leaves nothing
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def read(self, name: str) -> bytes | None:
        """The content, or None where there is no such file."""
        try:
            with self.filesystem.open_input_file(f"{self.root}/{name}") as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def write_json(self, name: str, value: Any) -> None:
        """The value without secrets: other people than the one who typed them read these files."""
        self.write(name, (json.dumps(redacted_values(value), indent=1, default=str) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object, or None where there is no such file.

        Raises:
            ValueError: the file is there and holds no JSON object.
        """
        data = self.read(name)
        if data is None:
            return None
        mend = "restore the file, or give another out"
        try:
            value = json.loads(data)
        except ValueError as error:  # no JSON, or no text at all
            raise ValueError(f"{inside(self.out, name)} is not valid JSON ({error}); {mend}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{inside(self.out, name)} is not a JSON object; {mend}")
        return value

    def parquet_files(self, folder: str) -> list[str]:
        """Names of the Parquet files in and below a folder, sorted; hidden and unfinished ones are left out."""
        selector = pafs.FileSelector(f"{self.root}/{folder}", allow_not_found=True, recursive=True)
        infos = self.filesystem.get_file_info(selector)
        names = [info.path[len(self.root) + 1 :] for info in infos if info.type == pafs.FileType.File]
        kept = [name for name in names if name.endswith(".parquet")]
        return sorted(n for n in kept if not any(p.startswith((".", "_")) for p in n[len(folder) + 1 :].split("/")))

    def names(self, folder: str) -> list[str]:
        """Names of everything in a folder, sorted; none where there is no folder."""
        infos = self.filesystem.get_file_info(pafs.FileSelector(f"{self.root}/{folder}", allow_not_found=True))
        return sorted(info.base_name for info in infos)

    def remove(self, name: str) -> None:
        self.filesystem.delete_file(f"{self.root}/{name}")

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is truncated, or not Parquet.
        """
        data = self.read(name)
        if data is None:
            raise FileNotFoundError(inside(self.out, name))
        try:
            return pq.ParquetFile(pa.BufferReader(data)).read(columns=columns)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).split("\n")[0]
            raise RefusedError(
                f"{inside(self.out, name)} is not a readable Parquet file ({reason}); move it away"
            ) from error

    def parts(self, folder: str = ROWS) -> list[tuple[str, int]]:
        """(method, chunk) of every part file."""
        selector = pafs.FileSelector(f"{self.root}/{folder}", allow_not_found=True)
        found = [_PART.match(info.base_name) for info in self.filesystem.get_file_info(selector)]
        return sorted((match["method"], int(match["chunk"])) for match in found if match)

    def read_part(self, method: str, chunk: int, columns: list[str] | None = None, folder: str = ROWS) -> pa.Table:
        return self.read_table(f"{folder}/{part_name(method, chunk)}", columns)

    def write_part(self, table: pa.Table, method: str, chunk: int, folder: str = ROWS) -> None:
        self.write_table(f"{folder}/{part_name(method, chunk)}", table)

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write(name, sink.getvalue().to_pybytes())

    def clear(self) -> None:
        """Remove the rows, particles and state of an earlier configuration."""
        for folder in (ROWS, PARTICLES, STATE):
            self.filesystem.delete_dir_contents(f"{self.root}/{folder}", missing_dir_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network filesystems cannot
        pass
    finally:
        os.close(descriptor)


def to_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, one line each: `method.aisp.sigma: 0.5 there, 0.7 now`.

    Secrets are no difference: they are not kept, and a new password changes no row.
    """
    return _differences(redacted_values(before), redacted_values(now), path)


def _differences(before: Any, now: Any, path: str) -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        lines = []
        for key in sorted({*before, *now}):
            inner = f"{path}.{key}" if path else str(key)
            if key not in before:
                lines.append(f"{inner}: absent there, {now[key]!r} now")
            elif key not in now:
                lines.append(f"{inner}: {before[key]!r} there, absent now")
            else:
                lines += _differences(before[key], now[key], inner)
        return lines
    return [] if before == now else [f"{path}: {before!r} there, {now!r} now"]


def read_manifest(output: Output) -> dict[str, Any] | None:
    """The manifest of an output; None where there is none. Raises RefusedError if it cannot be read."""
    try:
        return output.read_json(MANIFEST)
    except ValueError as error:
        raise RefusedError(str(error)) from error


def mixed(what: str, before: Mapping[str, Any], lines: Sequence[str], on_mismatch: str) -> list[str] | None:
    """The differences that an output mixes from now on, those of earlier runs among them; None: it is to be emptied.

    what: the output and what it holds, for the error. lines: the differences to this run.

    Raises:
        RefusedError: there are some, and `run.on_mismatch` is refuse.
    """
    if not lines or on_mismatch == "ignore":
        return [*before.get("ignored_differences", ()), *lines]  # what is mixed stays mixed
    if on_mismatch == "overwrite":
        return None
    shown = "\n".join(f"  {line}" for line in lines[:20])
    raise RefusedError(
        f"{what} of another configuration:\n{shown}\n"
        f"give another out, or run.on_mismatch=overwrite (removes them) or run.on_mismatch=ignore (mixes them)"
    )


def as_json(value: Any) -> Any:
    """A value as it comes back from a JSON file."""
    return json.loads(json.dumps(value, default=str))
