"""GGUF files (llama.cpp's format) as ordinary checkpoints: the weights are dequantised when they are loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

SUFFIX = ".gguf"
_PACKAGES = ("gguf", "accelerate")


def is_gguf(model: str, gguf_file: str | None = None) -> bool:
    """Whether the weights come from a GGUF file: `model` is one, or names a folder or repository that holds it."""
    return gguf_file is not None or model.endswith(SUFFIX)


def locate(source: str, gguf_file: str | None = None) -> tuple[str, dict[str, str]]:
    """(folder or hub id, keyword arguments that `from_pretrained` of tokenizers and configurations needs besides)."""
    if gguf_file is not None:
        return source, {"gguf_file": gguf_file}
    if source.endswith(SUFFIX):
        path = Path(source).expanduser()
        return str(path.parent), {"gguf_file": path.name}
    return source, {}


def check(key: str, model: str, gguf_file: str | None) -> list[str]:
    """What is wrong with a GGUF model before it is loaded, a sentence each. key: the setting's group, e.g. policy."""
    if not is_gguf(model, gguf_file):
        return []
    found = []
    if gguf_file is not None and model.endswith(SUFFIX):
        found.append(f"{key}.gguf_file={gguf_file}: {key}.model is a GGUF file already; remove one of the two")
    elif gguf_file is not None and not gguf_file.endswith(SUFFIX):
        found.append(f"{key}.gguf_file={gguf_file}: give the name of a file that ends in {SUFFIX}")
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        what = f"{key}.gguf_file={gguf_file}" if gguf_file else f"{key}.model={model}"
        packages = f"the package{'s' * (len(missing) > 1)} {' and '.join(missing)}"
        found.append(f"{what}: reading GGUF files needs {packages}: pip install 'aisp-ray[gguf]'")
    if model.endswith(SUFFIX) and not Path(model).expanduser().is_file():
        found.append(f"{key}.model={model}: no such file (looked in {Path.cwd()}); of a hub repository, give its id")
        found[-1] += f" as {key}.model and the file as {key}.gguf_file"
    return found


def weights_options(options: dict[str, str]) -> dict[str, Any]:
    """Keyword arguments for `from_pretrained` of a model: those of `locate`, and that every weight is dequantised."""
    if not options:
        return {}
    from transformers import GgufConfig

    return {**options, "quantization_config": GgufConfig(dequantize=True)}


def as_dense(model: Any) -> Any:
    """The model without the marks of a quantised one: it may be cast, moved and saved like any other."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
        model.is_quantized = False
        for name in ("quantization_method",):
            if hasattr(model, name):
                delattr(model, name)
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    return model
