"""Reads the rows of one or several outputs into one table, and names what was compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aisp_ray.files import inside, split_query

if TYPE_CHECKING:
    import pyarrow as pa


def read_rows(out: str | Sequence[str]) -> pa.Table:
    """All rows of one or several outputs, with two columns more: `out` (which output) and `label` (what was run).

    The label is the method's name; where outputs ran one method under different settings, the settings that differ
    follow it ("aisp sigma=0.5"). Seeds of one setting share a label. Works while the job still writes.

    out: the folder that jobs/eval.py wrote (or its rows folder), local or a URI that pyarrow reads (s3://...).

    Raises:
        ValueError: an output has no rows; the text says where they were looked for.
    """
    import pyarrow as pa

    manifests = {path: read_json(path, "manifest.json") for path in output_list(out)}
    table = pa.concat_tables([_in_method_order(_read_one(path), manifest) for path, manifest in manifests.items()])
    labels = make_labels(table, manifests)
    return _first_of_each(table.append_column("label", pa.array(list(map(str, labels)), pa.string())))


def only(rows: pa.Table, methods: Sequence[str]) -> pa.Table:
    """The rows of these methods (all of them for an empty list).

    Raises:
        ValueError: a method has no rows.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    there = rows["method"].unique().to_pylist()
    for name in methods:
        if name not in there:
            raise ValueError(f"methods: there are no rows of {name!r}; there are {', '.join(there)}")
    return rows.filter(pc.is_in(rows["method"], pa.array(methods, pa.string()))) if methods else rows


def output_list(out: str | Sequence[str]) -> list[str]:
    """Outputs as a list of texts without repeats, in order. The rows folder of an output stands for the output."""
    return list(dict.fromkeys(_whole(str(path)) for path in ([out] if isinstance(out, str | Path) else out)))


def _whole(place: str) -> str:
    """The output that a place is, or whose rows folder it is; without a slash at its end."""
    path, query = split_query(place)
    named = re.fullmatch("(?:(.*[^/:])/+)?rows", path)
    if named is None or read_json(path + query, "manifest.json") or parquet_files(path + query, "rows")[1]:
        return path + query
    return f"{named[1] or '.'}{query}"


def name_of(place: str) -> str:
    """The last part of a folder or URI."""
    return split_query(place)[0].rpartition("/")[2]


def filesystem(path: str) -> tuple[Any, str]:
    """A pyarrow filesystem and the path in it, for a local path or a URI."""
    from pyarrow import fs

    if "://" in path:
        return fs.FileSystem.from_uri(path)
    return fs.LocalFileSystem(), str(Path(path).expanduser().absolute())


def parquet_files(path: str, folder: str) -> tuple[Any, list[str]]:
    """The filesystem and the sorted Parquet files in `<path>/<folder>`; hidden and unfinished ones are left out."""
    from pyarrow import fs

    system, base = filesystem(path)
    infos = system.get_file_info(fs.FileSelector(f"{base}/{folder}", allow_not_found=True, recursive=True))
    names = [info.path for info in infos if info.type == fs.FileType.File and info.path.endswith(".parquet")]
    inside = len(f"{base}/{folder}")
    return system, sorted(n for n in names if not any(p.startswith((".", "_")) for p in n[inside:].split("/")))


def read_parquet(path: str, folder: str, schema: pa.Schema) -> pa.Table:
    """`<path>/<folder>/*.parquet` in file-name order as one table of `schema`; a column a file lacks is null in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    system, files = parquet_files(path, folder)
    parts = []
    for name in files:
        part = pq.ParquetFile(system.open_input_file(name)).read()
        columns = [
            part[f.name].cast(f.type) if f.name in part.column_names else pa.nulls(part.num_rows, f.type)
            for f in schema
        ]
        parts.append(pa.table(columns, schema=schema))
    return pa.concat_tables(parts) if parts else schema.empty_table()


def read_json(path: str, name: str) -> dict[str, Any]:
    """`<path>/<name>` as a dict; empty where there is none yet."""
    system, base = filesystem(path)
    try:
        with system.open_input_file(f"{base}/{name}") as file:
            value = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def label_map(out: str | Sequence[str], rows: pa.Table) -> dict[str, Label]:
    """The labels of `read_rows` by name, with the settings that set them apart as values."""
    manifests = {path: read_json(path, "manifest.json") for path in output_list(out)}
    return {str(label): label for label in make_labels(rows, manifests)}


def _read_one(path: str) -> pa.Table:
    import pyarrow as pa

    from aisp_ray.results import ROW_SCHEMA

    table = read_parquet(path, "rows", ROW_SCHEMA)
    if table.num_rows == 0:
        files = inside(path, "rows/*.parquet")
        raise ValueError(f"no rows in {files}; give out=<the folder that jobs/eval.py or jobs/tune.py wrote>")
    table = table.replace_schema_metadata(None)
    return table.append_column("out", pa.array([path] * table.num_rows, pa.string()))


@dataclass(frozen=True, slots=True)
class Label:
    """What a line of the table is called."""

    method: str
    differing: tuple[tuple[str, Any], ...] = ()  # the settings that set it apart from other lines of its method

    def __str__(self) -> str:
        return " ".join([self.method, *(f"{key}={_plain(value)}" for key, value in self.differing)])


def _in_method_order(table: pa.Table, manifest: Mapping[str, Any]) -> pa.Table:
    """The rows with methods in the order in which the run named them; files are in the order of the alphabet."""
    place = {method: i for i, method in enumerate(manifest.get("methods") or ())}
    places = [place.get(method, len(place)) for method in table["method"].to_pylist()]
    return table.take(sorted(range(len(places)), key=places.__getitem__))


def make_labels(table: pa.Table, manifests: Mapping[str, Mapping[str, Any]]) -> list[Label]:
    """The label of every row: its method, and the settings that differ between the outputs that ran this method."""
    kinds = list(zip(table["method"].to_pylist(), table["out"].to_pylist(), strict=True))
    settings = {kind: method_settings(manifests.get(kind[1], {}), kind[0]) for kind in dict.fromkeys(kinds)}
    labels = {}
    for method, out in settings:
        same = [values for kind, values in settings.items() if kind[0] == method]
        names = dict.fromkeys(key for values in same for key in values)
        differing = [key for key in names if len({_fingerprint(values.get(key)) for values in same}) > 1]
        own = settings[method, out]
        labels[method, out] = Label(method, tuple((key, own.get(key)) for key in differing))
    return [labels[kind] for kind in kinds]


def _fingerprint(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def method_settings(manifest: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The flat settings that decide what a method's rows are: its own keys, then those of the policy and the reward.

    Seed and data are left out: seeds are averaged, and prompts are paired by their id and text.
    """
    config = manifest.get("fingerprint") or manifest.get("config") or {}
    methods = config.get("method")
    flat = flatten(methods.get(method) or {}, "") if isinstance(methods, Mapping) else {}
    for group in ("policy", "reward"):
        flat |= flatten(config.get(group), group)
    return flat


def flatten(value: Any, name: str) -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots behind `name`."""
    if not isinstance(value, Mapping):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{name}.{key}" if name else str(key))
    return flat


def _plain(value: Any) -> str:
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _first_of_each(table: pa.Table) -> pa.Table:
    """Without repeats of one (label, prompt, seed): the same evaluation kept in two outputs counts once."""
    columns = [table[name].to_pylist() for name in ("label", "prompt_id", "prompt", "seed")]
    first: dict[tuple, int] = {}
    for index, key in enumerate(zip(*columns, strict=True)):
        first.setdefault(key, index)
    return table if len(first) == table.num_rows else table.take(list(first.values()))
