"""A model that is in this process already as a policy, or one to load: what a call from Python names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aisp_ray import config
from aisp_ray.policy.base import PolicySpec
from aisp_ray.policy.causal_lm import CausalLM, LoadedCausalLM

_TARGET = f"{CausalLM.__module__}.{CausalLM.__qualname__}"


@dataclass(frozen=True, kw_only=True)
class GivenModel(PolicySpec):
    """A loaded `transformers` model, on the device and in the dtype it has, and its tokenizer."""

    settings: CausalLM
    model: Any
    tokenizer: Any

    def load(self, device: str) -> LoadedCausalLM:
        return self.settings.around(self.model.eval(), self.tokenizer)


def policy_of(model: Any, tokenizer: Any, settings: Mapping[str, Any], here: bool) -> PolicySpec:
    """The policy of a path, a hub id or a loaded model; settings: keys of `CausalLM`.

    here: a model named by its path is loaded on this machine's GPU, if there is one, unless settings say otherwise.

    Raises:
        ValueError: a setting is wrong, a loaded model comes without its tokenizer, or a path comes with one.
    """
    import torch

    if isinstance(model, str):
        if tokenizer is not None:
            raise ValueError("tokenizer is for a loaded model; a path or hub id brings its own")
        place = {"num_gpus": 1.0} if here and torch.cuda.is_available() else {}
        return config.build({"_target_": _TARGET, **place, "model": model, **settings}, "policy")
    if tokenizer is None:
        raise ValueError(f"model is a {type(model).__name__}; give its tokenizer too: tokenizer=AutoTokenizer...")
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return GivenModel(
        settings=config.build({"_target_": _TARGET, "model": name, **settings}, "policy"),
        model=model,
        tokenizer=tokenizer,
    )
