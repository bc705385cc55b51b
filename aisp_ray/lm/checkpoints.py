"""Checkpoints: the type they are loaded in, and what is wrong with their files, in one sentence."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

from aisp_ray.lm.gguf import SUFFIX

_POINTER = b"version https://git-lfs.github.com/spec/"
_WEIGHTS = (".safetensors", SUFFIX, ".bin", ".pt")
_MOST = 400  # characters of a library's text


def dtype_for(asked: str, device: str) -> str:
    """The name of the floating-point type a model is loaded in. auto: the type that is fast on "cpu" or "cuda"."""
    if asked != "auto":
        return asked
    return "float32" if device == "cpu" else "bfloat16"


def damage(source: str | Path) -> str | None:
    """What is wrong with a local checkpoint folder or file: a Git-LFS pointer or a cut-off file. None: nothing found.

    A hub id is no local path, and nothing is found of it.
    """
    path = Path(source).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if file.is_file() and (problem := _damage(file)):
            return problem
    return None


def _damage(file: Path) -> str | None:
    with file.open("rb") as opened:
        first = opened.read(len(_POINTER))
    if first == _POINTER:
        return f"{file} is a Git-LFS pointer and not the file itself; run `git lfs pull` in {file.parent}"
    if file.suffix == ".safetensors" and (problem := _torn(file)):
        return f"{file} is damaged: {problem}; copy or download it again"
    if file.suffix == SUFFIX and first[:4] != b"GGUF":
        return f"{file} is no GGUF file: it does not begin with the letters GGUF"
    if file.suffix in _WEIGHTS and not first:
        return f"{file} is empty; copy or download it again"
    return None


def _torn(file: Path) -> str | None:
    """What is wrong with a safetensors file: its header says how long the file is."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + length > size:
            return f"it has {size:,} bytes, fewer than its header"
        try:
            tensors = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "its header cannot be read"
    whole = 8 + length + max(ends, default=0)
    return None if size == whole else f"it has {size:,} bytes and its header says {whole:,}"


def reason(error: BaseException, key: str = "policy") -> str:
    """What an exception of the libraries says, on one line: the line that says what, and the setting that mends it.

    key: the setting's group, e.g. policy or reward.
    """
    text = str(error).strip() or type(error).__name__
    if "`tiktoken` is required" in text and importlib.util.find_spec("sentencepiece") is None:
        return "its tokenizer is a SentencePiece file, which needs one more package: pip install sentencepiece"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = lines[0]
    if len(lines) > 1 and told.endswith(":"):
        more = f" (and {len(lines) - 2} lines more)" if len(lines) > 2 else ""
        told = f"{told} {lines[1]}{more}"
    if "trust_remote_code" in text:
        told = f"{told.rstrip('.')}; {key}.trust_remote_code=true allows that"
    return told if len(told) <= _MOST else f"{told[:_MOST]} ..."
