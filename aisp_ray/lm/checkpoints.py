"""Checkpoints: the type they are loaded in, and what is wrong with their files, in one sentence."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aisp_ray.errors import LoadError, comes_from_away, will_fail_again
from aisp_ray.lm.gguf import SUFFIX

_POINTER = b"version https://git-lfs.github.com/spec/"
_WEIGHTS = (".safetensors", SUFFIX, ".bin", ".pt")
_MOST = 400  # characters of a library's text
_UNREADABLE = ("SafetensorError", "UnpicklingError")  # exceptions about what a file holds, by name
_MISFIT = re.compile(r"loading state_dict|size mismatch for")  # a RuntimeError: weights of another model


def dtype_for(asked: str, device: str) -> str:
    """The name of the floating-point type a model is loaded in. auto: the type that is fast on "cpu" or "cuda"."""
    if asked != "auto":
        return asked
    return "float32" if device == "cpu" else "bfloat16"


def pin_arithmetic() -> None:
    """Sums of products on a GPU in float32, whatever this PyTorch or its user has chosen.

    By default products of 16-bit numbers may add up in 16 bits, and those of float32 round their factors where somebody
    has asked for it: both would reach positions, noise and means.
    """
    import torch

    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")


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


def load_whole(cls: Any, source: str, otherwise: str, **how: Any) -> Any:
    """`cls.from_pretrained` of a checkpoint that holds every tensor of the model, in its shape.

    otherwise: what to say of one that lacks tensors: transformers would draw them at random.

    Raises:
        ValueError: it lacks tensors, or has some of other shapes; names them.
    """
    model, found = cls.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **how)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"it lacks {_some(missing)}: {otherwise}")
    if wrong := sorted(found["mismatched_keys"]):
        name, there, here = wrong[0]
        shapes = [" x ".join(map(str, shape)) for shape in (there, here)]
        more = f", as {len(wrong) - 1} other tensors do" if len(wrong) > 1 else ""
        raise ValueError(
            f"its {name} has the shape {shapes[0]} and by its configuration should have {shapes[1]}{more}; weights and "
            "config.json belong to different models"
        )
    return model


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} tensors more" if len(names) > 3 else "")


@contextmanager
def loading(key: str, name: str, source: str) -> Iterator[None]:
    """An exception of the libraries as one sentence that names the setting.

    key: of the setting, such as policy.adapter; without a group where whoever loads it knows the group.

    Raises:
        ValueError: no machine would load it.
        LoadError: another try may work.
    """
    try:
        yield
    except Exception as error:  # the libraries' texts have many lines
        problem = damage(source)
        kind = ValueError if problem or _is_setting(error, source) else LoadError
        why = problem or reason(error, key.rpartition(".")[0])
        raise kind(f"{key}={name} cannot be loaded on {socket.gethostname()}: {why}") from error


def _is_setting(error: Exception, source: str) -> bool:
    """Whether no machine would load this: a file or package is missing, or the libraries do not know the model.

    Where a hub's file is missing that may be the network, of which the libraries' exception does not always tell.
    """
    local = Path(source).is_absolute() or Path(source).exists()
    missing = local and isinstance(error, OSError) and error.errno is None  # what transformers raises for a file
    misfit = type(error).__name__ in _UNREADABLE or (isinstance(error, RuntimeError) and _MISFIT.search(str(error)))
    return will_fail_again(error) or bool((missing or misfit) and not comes_from_away(error))


def reason(error: BaseException, group: str = "policy") -> str:
    """What an exception of the libraries says, on one line: the line that says what, and the setting that mends it.

    group: of the setting, such as policy; empty where whoever loads it knows.
    """
    text = str(error).strip() or type(error).__name__
    if "`tiktoken` is required" in text and importlib.util.find_spec("sentencepiece") is None:
        return "its tokenizer is a SentencePiece file, which needs one more package: pip install sentencepiece"
    if "Couldn't instantiate the backend tokenizer" in text:
        return "its folder holds no tokenizer (tokenizer.json); save the tokenizer beside the weights"
    if known := re.search(r"model type `?([\w.-]+)`? but Transformers does not recognize", text):
        return f"transformers does not know its architecture, {known[1]}; a newer transformers may"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = lines[0]
    if len(lines) > 1 and told.endswith(":"):
        more = f" (and {len(lines) - 2} lines more)" if len(lines) > 2 else ""
        told = f"{told} {lines[1]}{more}"
    if "trust_remote_code=True" in text:
        told = f"it brings its own Python code; {group + '.' if group else ''}trust_remote_code=true runs that"
    if isinstance(error, KeyError | AttributeError | IndexError | AssertionError):  # texts that say nothing alone
        told = f"{type(error).__name__}: {told}"
    return told if len(told) <= _MOST else f"{told[:_MOST]} ..."
