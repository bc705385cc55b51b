"""Reads the rows of one or several outputs into one table, and names what was compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from aisp_ray.errors import redacted, redacted_values
from aisp_ray.files import MANIFEST, PARTICLES, ROWS, Output, inside, split_query
from aisp_ray.results import ROW_SCHEMA, SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Label:
    """What a line of the table is called."""

    method: str
    differing: tuple[tuple[str, Any], ...] = ()  # the settings that set it apart from other lines of its method

    def __str__(self) -> str:
        return " ".join([self.method, *(f"{key}={_plain(value)}" for key, value in self.differing)])


def read_rows(out: str | Sequence[str]) -> pa.Table:
    """All rows of one or several outputs, with two columns more: `out` (which output) and `label` (what was run).

    The label is the method's name; where outputs ran one method under different settings, the settings that differ
    follow it ("aisp sigma=0.5"). Seeds of one setting share a label. Works while the job still writes.

    out: the folder that jobs/eval.py wrote (or its rows folder), local or a URI that pyarrow reads (s3://...).

    Raises:
        ValueError: an output has no rows; the text says where they were looked for.
    """
    return read_labelled(out)[0]


def read_labelled(out: str | Sequence[str]) -> tuple[pa.Table, dict[str, Label]]:
    """`read_rows`, and its labels by name with the settings that set them apart as values."""
    manifests = {path: read_json(path, MANIFEST) for path in output_list(out)}
    table = pa.concat_tables([_in_method_order(_read_one(path), manifest) for path, manifest in manifests.items()])
    labels = make_labels(table, manifests)
    table = table.append_column("label", pa.array(list(map(str, labels)), pa.string()))
    return first_of_each(table), {str(label): label for label in labels}


def only(rows: pa.Table, methods: Sequence[str]) -> pa.Table:
    """The rows of these methods (all of them for an empty list).

    Raises:
        ValueError: a method has no rows.
    """
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
    if named is None or holds_rows(path + query):
        return path + query
    return f"{named[1] or '.'}{query}"


def holds_rows(out: str) -> bool:
    """Whether there is an evaluation, perhaps one that has just begun."""
    output = Output(out)
    return output.read(MANIFEST) is not None or bool(output.parquet_files(ROWS))


def name_of(place: str) -> str:
    """The last part of a folder or URI."""
    return redacted(split_query(place)[0]).rpartition("/")[2]


def read_json(out: str, name: str) -> dict[str, Any]:
    """`<out>/<name>`; empty where there is none yet. Raises ValueError where it is not a JSON object."""
    return redacted_values(Output(out).read_json(name) or {})


def read_parts(out: str, folder: str, schema: pa.Schema) -> pa.Table:
    """`<out>/<folder>/*.parquet` in file-name order as one table: see `read_files`."""
    return read_files(out, Output(out).parquet_files(folder), schema)


def read_files(out: str, names: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Files of an output as one table of `schema`; a column that a file lacks is null in it.

    Raises:
        ValueError: a file is damaged, of another schema version, or holds something else; the text names it.
    """
    output = Output(out)
    parts = [_conform(output.read_table(name), schema, inside(out, name)) for name in names]
    return pa.concat_tables(parts) if parts else schema.empty_table()


def particle_files(out: str, needed: str) -> list[str]:
    """Names of an output's files of particles.

    Raises:
        ValueError: there are none; needed says what to do.
    """
    names = Output(out).parquet_files(PARTICLES)
    if not names:
        raise ValueError(f"{inside(out, PARTICLES)} is empty: {needed}")
    return names


def _conform(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """The columns of `schema`, from a file as an evaluation writes it."""
    version = (table.schema.metadata or {}).get(b"aisp_ray.schema", SCHEMA_VERSION.encode()).decode()
    if version != SCHEMA_VERSION:
        raise ValueError(f"{where} has schema version {version}, and this version of aisp-ray reads {SCHEMA_VERSION}")
    missing = {"prompt_id", "method"} - set(table.column_names)
    if missing:
        raise ValueError(
            f"{where} is not a file of an evaluation: it has no column {min(missing)}; move it out of that folder"
        )
    columns = []
    for field in schema:
        try:
            there = field.name in table.column_names
            columns.append(table[field.name].cast(field.type) if there else pa.nulls(table.num_rows, field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            kind = table.schema.field(field.name).type
            raise ValueError(f"{where}: column {field.name} is {kind}, not {field.type}; move the file away") from error
    return pa.table(columns, schema=schema)


def _read_one(out: str) -> pa.Table:
    table = read_parts(out, ROWS, ROW_SCHEMA)
    if table.num_rows == 0:
        files = inside(out, "rows/*.parquet")
        raise ValueError(f"no rows in {files}; give out=<the folder that jobs/eval.py or jobs/tune.py wrote>")
    table = table.replace_schema_metadata(None)
    return table.append_column("out", pa.array([out] * table.num_rows, pa.string()))


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


def first_of_each(table: pa.Table) -> pa.Table:
    """Without repeats of one (label, prompt, seed): the same evaluation kept in two outputs counts once."""
    columns = [table[name].to_pylist() for name in ("label", "prompt_id", "prompt", "seed")]
    first: dict[tuple, int] = {}
    for index, key in enumerate(zip(*columns, strict=True)):
        first.setdefault(key, index)
    return table if len(first) == table.num_rows else table.take(list(first.values()))
