"""The LM head of a vLLM model as plain, differentiable tensor operations: for means that need W."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PlainHead:
    """Pre-logits [..., d] -> float32 logits [..., vocabulary], beside vLLM's own kernels, which have no gradient.

    Made from the parts of the model's `LogitsProcessor`: cap(scale(W z + b)). `agrees` compares it with vLLM's own
    logits; a head of another kind (quantised, of several products) must not be used.
    """

    def __init__(self, model: Any):
        inner = model if hasattr(model, "logits_processor") else model.get_language_model()
        self._processor = inner.logits_processor
        head = getattr(inner, "lm_head", None)
        if head is None or not hasattr(head, "weight"):
            head = inner.model.embed_tokens
        self._head = head
        self._held: tuple[Tensor, Tensor | None] | None = None
        self.trusted = True  # False: the check at load failed

    @property
    def weight(self) -> Tensor:
        """W, [vocabulary, d], whole on every rank.

        Raises:
            ValueError: W is quantised.
        """
        return self._parts()[0]

    @property
    def dim(self) -> int:
        return int(self.weight.shape[1])

    def __call__(self, prelogits: Tensor) -> Tensor:
        weight, bias = self._parts()
        logits = torch.nn.functional.linear(prelogits.to(weight.dtype), weight, bias)
        cap, scale = self._processor.soft_cap, self._processor.scale
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return (logits if scale == 1.0 else logits * scale).float()

    def agrees(self, prelogits: Tensor, logits: Tensor, allowed: float) -> bool:
        """Whether its logits are vLLM's on these pre-logits [rows, d], up to `allowed` of their size."""
        try:
            own = self(prelogits)
        except (ValueError, RuntimeError):  # quantised, or shapes of another kind of head
            return False
        seen = logits.isfinite()
        if own.shape != logits.shape or not bool(seen.any()):
            return False
        size = logits[seen].square().mean().sqrt()
        return bool((own[seen] - logits[seen]).abs().max() <= allowed * size)

    def _parts(self) -> tuple[Tensor, Tensor | None]:
        if not self.trusted:
            raise ValueError(
                "misvo needs the LM head's weights, and under vLLM this model's are quantised or "
                "of a form that is not known here; use policy.engine=fast for it"
            )
        if self._held is None:
            bias = getattr(self._head, "bias", None)
            self._held = self._whole(getattr(self._head, "weight", None)), None if bias is None else self._whole(bias)
        return self._held

    def _whole(self, part: Tensor | None) -> Tensor:
        """A parameter [shard, ...] of one rank as the one of all ranks, without padding and outside inference mode."""
        from vllm.distributed import tensor_model_parallel_all_gather

        if part is None or not part.is_floating_point():
            kind = "in packed form" if part is None else str(part.dtype)
            raise ValueError(f"the LM head's weights are {kind}, not floating-point numbers")
        with torch.inference_mode(False), torch.no_grad():
            mine = part.detach().clone() if part.is_inference() else part.detach()
            if getattr(self._head, "tp_size", 1) > 1:
                mine = tensor_model_parallel_all_gather(mine.contiguous(), dim=0)
            return mine[: self._processor.org_vocab_size]
