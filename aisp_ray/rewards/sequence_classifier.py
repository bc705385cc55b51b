"""Reward models in the sequence-classification format of transformers: Skywork, Tulu, FsfairX, DeBERTa and others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aisp_ray.lm.checkpoints import load_whole
from aisp_ray.rewards._neural import NeuralReward

_REDUCTIONS = re.compile(r"(label|probability):(\d+)|mean|expected")


@dataclass(frozen=True, kw_only=True)
class SequenceClassifier(NeuralReward):
    """Settings of a sequence classifier as a reward model."""

    reduction: str | None = None  # several labels only: label:K | probability:K | mean | expected (mean label number)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction is not None and not _REDUCTIONS.fullmatch(self.reduction):
            raise ValueError(
                f"reduction is {self.reduction!r}; it is label:K, probability:K (K counts from 0), mean or expected"
            )

    def _model(self, device: str) -> Any:
        from transformers import AutoModelForSequenceClassification

        model = load_whole(
            AutoModelForSequenceClassification,
            self.source,
            "it is no sequence classifier, and its rewards would come from random weights",
            trust_remote_code=self.trust_remote_code,
            **self._loading(device),
        )
        _check_labels(model.config.num_labels, self.reduction)
        head = _head_of(model)
        if head is not None:
            _in_float32(head)
        return model if self.num_gpus > 1 else model.to(device)

    def _parts(self, model: Any) -> tuple[Any | None, Callable[[Any], Any]]:
        reduce = _reducer(self.reduction)
        if hasattr(model, "score") and hasattr(model, model.base_model_prefix):
            return getattr(model, model.base_model_prefix), lambda hidden: reduce(model.score(hidden).float())
        return None, lambda logits: reduce(logits.float())


def _check_labels(count: int, reduction: str | None) -> None:
    if count == 1 and reduction is not None:
        raise ValueError(f"it has one label, so reduction={reduction} has no meaning; remove it")
    if count > 1 and reduction is None:
        raise ValueError(
            f"it has {count} labels; say what the reward is: reduction=label:K, probability:K, mean or expected"
        )
    match = _REDUCTIONS.fullmatch(reduction or "mean")
    assert match is not None, reduction  # checked when the settings were made
    if match[2] is not None and int(match[2]) >= count:
        raise ValueError(f"reduction={reduction}, but it has labels 0 to {count - 1}")


def _head_of(model: Any) -> Any | None:
    """The module behind the body: `score` of decoders, `classifier` of encoders."""
    return getattr(model, "score", None) or getattr(model, "classifier", None)


def _in_float32(head: Any) -> None:
    """Run a head in float32 whatever the body's type: rounding ties would decide between near-equal responses."""
    import torch

    def widen(_: Any, inputs: tuple) -> tuple:
        return tuple(part.float() if torch.is_tensor(part) and part.is_floating_point() else part for part in inputs)

    head.float()
    head.register_forward_pre_hook(widen)


def _reducer(reduction: str | None) -> Callable[[Any], Any]:
    """Logits [n, labels] -> rewards [n]."""
    if reduction is None:
        return lambda logits: logits[:, 0]
    if reduction == "mean":
        return lambda logits: logits.mean(-1)
    if reduction == "expected":
        return lambda logits: logits.softmax(-1) @ logits.new_tensor(range(logits.shape[-1]))
    kind, _, label = reduction.partition(":")
    if kind == "label":
        return lambda logits: logits[:, int(label)]
    return lambda logits: logits.softmax(-1)[:, int(label)]
