"""Coherence: does the response speak of what was asked? Cosine of the sentence embeddings of prompt and response.

The evaluations of ARGS (Khanov et al., 2024, arXiv 2402.01694) and RE-Control (Kong et al., 2024, arXiv 2406.05954)
embed both with supervised SimCSE (Gao et al., 2021, arXiv 2104.08821), cut at 128 word pieces. Any encoder of
transformers serves; figures of different encoders do not compare.

Differs from those evaluations: rows are paired directly, where they fill an n x n matrix and take its diagonal (the
same numbers); an empty response is NaN, where they embed a blank.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aisp_ray.errors import require_one_of

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
POOLINGS = ("pooler", "cls", "mean")


@dataclass(frozen=True, slots=True)
class Coherence:
    """Settings of coherence."""

    encoder: str = "princeton-nlp/sup-simcse-bert-base-uncased"  # a sentence encoder: hub name or folder
    revision: str | None = None  # commit, tag or branch of the encoder; null takes the hub's default
    pooling: str = "pooler"  # pooler (SimCSE: first token through the pooler layer) | cls | mean of the tokens
    max_tokens: int = 128  # longer texts are cut at their end
    batch_size: int = 64  # texts an encoder call
    device: str = "cpu"  # cpu | cuda

    def __post_init__(self) -> None:
        require_one_of("pooling", self.pooling, POOLINGS)
        for name in ("max_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")

    def compute(self, prompts: Sequence[str], responses: Sequence[str | None]) -> np.ndarray:
        """float64 [responses], in [-1, 1]. NaN for an empty prompt or response, and all NaN (with a warning in the
        log) where the encoder cannot be loaded."""
        found = np.full(len(responses), math.nan)
        pairs = zip(prompts, responses, strict=True)
        kept = [i for i, (p, r) in enumerate(pairs) if p and p.strip() and r and r.strip()]
        if not kept:
            return found
        try:
            loaded = self._load()
        except (OSError, ValueError, ImportError) as error:
            log.warning("coherence is left out: the encoder %s could not be loaded: %s", self.encoder, error)
            return found
        asked = self._embed([str(prompts[i]) for i in kept], loaded)
        said = self._embed([str(responses[i]) for i in kept], loaded)
        found[kept] = (asked * said).sum(-1).double().cpu().numpy()
        return found

    def _load(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.encoder, revision=self.revision)
        model = AutoModel.from_pretrained(self.encoder, revision=self.revision).to(self.device).eval()
        return tokenizer, model

    def _embed(self, texts: Sequence[str], loaded: tuple[Any, Any]) -> Tensor:
        """Unit vectors, float32 [texts, width]. Each different text is read once, texts of like length together."""
        import torch

        tokenizer, model = loaded
        unique = sorted(set(texts), key=len)
        parts = []
        for start in range(0, len(unique), self.batch_size):
            batch = tokenizer(
                unique[start : start + self.batch_size],
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            ).to(self.device)
            with torch.inference_mode():
                output = model(**batch)
            parts.append(torch.nn.functional.normalize(self._pool(output, batch["attention_mask"]).float(), dim=-1))
        place = {text: i for i, text in enumerate(unique)}
        return torch.cat(parts)[[place[text] for text in texts]]

    def _pool(self, output: Any, mask: Tensor) -> Tensor:
        """One vector a text, [texts, width]."""
        if self.pooling == "pooler":
            if getattr(output, "pooler_output", None) is None:
                raise ValueError(f"{self.encoder} has no pooler layer; set pooling=cls or pooling=mean")
            return output.pooler_output
        if self.pooling == "cls":
            return output.last_hidden_state[:, 0]
        kept = mask[..., None].to(output.last_hidden_state.dtype)  # [texts, tokens, 1]
        return (output.last_hidden_state * kept).sum(1) / kept.sum(1)
