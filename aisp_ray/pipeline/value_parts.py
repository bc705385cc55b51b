"""Labelled responses of a training on disk, one file per prompt, so that one that was stopped draws none of them again.

They lie beside the file that the training will write, in a folder named by all that decides them, and go once it is
written. What is not named there (epochs, the width of the network) may change in between.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp_ray.ledger import Trace
from aisp_ray.pipeline.codec import decode, encode

if TYPE_CHECKING:
    from aisp_ray.controls.value import Example


class Parts:
    """The files of one training. out: the file that it writes; identity: JSON values that decide the responses."""

    def __init__(self, out: Path, identity: Mapping[str, Any]):
        text = json.dumps(identity, sort_keys=True, default=str)
        self.folder = out.with_name(f"{out.stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.parts")

    def add(self, ordinal: int, prompt_id: str, examples: Sequence[Example], trace: Trace) -> None:
        """Keep one prompt; the file appears whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target, temporary = self._path(ordinal), self.folder / f".tmp-{ordinal}"
        arrays: dict[str, Any] = {str(i): example.prelogits for i, example in enumerate(examples)}
        arrays["rewards"] = np.array([example.reward for example in examples], dtype=np.float64)
        arrays["about"] = np.array(json.dumps({"prompt_id": prompt_id, "trace": encode(trace)}))
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)
        os.replace(temporary, target)

    def load(self) -> Iterator[tuple[int, str, list[Example], Trace]]:
        """Ordinal, prompt id, responses and ledger of every kept prompt."""
        from aisp_ray.controls.value import Example

        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path) as kept:
                about, rewards = json.loads(str(kept["about"])), kept["rewards"].tolist()
                examples = [Example(kept[str(i)], reward) for i, reward in enumerate(rewards)]
            yield int(path.stem), about["prompt_id"], examples, decode(about["trace"])

    def remove(self) -> None:
        """They are not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, ordinal: int) -> Path:
        return self.folder / f"{ordinal:08d}.npz"
