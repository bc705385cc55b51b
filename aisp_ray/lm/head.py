"""The model's own LM head as a function of pre-logits, and its body as a function of tokens.

Biases, soft-caps and logit scaling live in each architecture's `forward`. Calling that forward on a shallow copy whose
body just hands out the given pre-logits keeps all of them without a table of architectures.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from aisp_ray.noise import normal, split_key

# where accelerate puts a dispatched model's own forward, bound to the model: a copy would run the whole model with it
_HOOKED = ("forward", "_old_forward", "_hf_hook")


class _Output(BaseModelOutputWithPast):
    """A body's output with nothing but pre-logits; whatever else an architecture asks for is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None


class _Feeder(nn.Module):
    """Stands where the body stands and returns what it was given."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.__dict__["body"] = body  # not a submodule: only asked for the constants that a head reads from it
        self.prelogits: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["body"], name)

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPast:
        return _Output(last_hidden_state=self.prelogits)

    @property
    def decoder(self) -> _Feeder:
        """Some architectures call the decoder inside the body."""
        return self


class Head:
    """Pre-logits [..., d] -> float32 logits [..., vocabulary], exactly as the model computes them."""

    def __init__(self, model: Any):
        self._shell = copy.copy(model)
        for name in _HOOKED:
            self._shell.__dict__.pop(name, None)
        self._shell._modules = dict(model._modules)
        self._feeder = _Feeder(model.base_model)
        self._shell._modules[model.base_model_prefix] = self._feeder
        self._token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
        self.weight: Tensor = model.get_output_embeddings().weight
        self.dim = int(self.weight.shape[1])
        self.dtype = self.weight.dtype

    def __call__(self, prelogits: Tensor) -> Tensor:
        flat = prelogits.reshape(-1, 1, prelogits.shape[-1]).to(self.dtype)  # [rows, 1, d]
        self._feeder.prelogits = flat
        logits = self._shell(input_ids=self._token.expand(flat.shape[0], 1), use_cache=False).logits
        self._feeder.prelogits = None
        return logits.reshape(*prelogits.shape[:-1], -1).float()

    @torch.inference_mode()
    def noise_scale(self, draws: int = 16) -> float:
        """Standard deviation over the vocabulary of what noise of sigma 1 on the pre-logits adds to the logits.

        One sigma is not one strength; this is 2.4 for SmolLM2-135M. What all logits share is left out: it changes no
        token. Mean of `draws` named draws around pre-logits of 0, so for a soft cap that of small logits.
        """
        device = self.weight.device
        rows = torch.arange(draws, device=device)
        zero = torch.zeros_like(rows)
        noise = normal(split_key([0], device).expand(draws, 2), zero, rows, zero, self.dim)  # [draws, d]
        added = self(noise) - self(torch.zeros_like(noise[:1]))  # [draws, vocabulary]
        return float(added.std(dim=-1).mean())
