"""UltraRM-13b and Eurus-RM-7b: a decoder body with a bias-free linear `regression_head` at the last token.

Source: Cui et al., UltraFeedback, arXiv 2310.01377 (UltraRM-13b, Llama body); Yuan et al., Advancing LLM Reasoning
Generalists with Preference Trees, arXiv 2404.02078 (Eurus-RM-7b, Mistral body). Both are published with a model class
of their own that transformers does not know; the class is written here, so no code of the checkpoint runs. Names of
tensors are the published ones: `model.*` for the body and `regression_head.weight` [1, d].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aisp_ray.lm.checkpoints import load_whole
from aisp_ray.rewards._neural import NeuralReward


@dataclass(frozen=True, kw_only=True)
class RegressionHead(NeuralReward):
    """Settings of a Llama or Mistral body with a regression head."""

    def _model(self, device: str) -> Any:
        from transformers import AutoConfig

        cls = model_class(self._model_type())
        config = AutoConfig.from_pretrained(
            self.source, revision=self.revision, trust_remote_code=False, **self._options
        )
        model = load_whole(
            cls,
            self.source,
            "it has not the layout of UltraRM or Eurus-RM, and its rewards would come from random weights",
            config=config,
            **self._loading(device),
        )
        model.regression_head.float()
        return model if self.num_gpus > 1 else model.to(device)

    def _model_type(self) -> str:
        """As the checkpoint's configuration names it, whether or not transformers knows the name."""
        from transformers import PretrainedConfig

        settings, _ = PretrainedConfig.get_config_dict(self.source, revision=self.revision, **self._options)
        return str(settings.get("model_type"))

    def _parts(self, model: Any) -> tuple[Any, Callable[[Any], Any]]:
        return model.model, lambda hidden: model.regression_head(hidden.float())[:, 0]


def model_class(model_type: str) -> Any:
    """The class of a body with a regression head.

    Raises:
        ValueError: the body is neither Llama nor Mistral.
    """
    from torch import nn
    from transformers import LlamaModel, LlamaPreTrainedModel, MistralModel, MistralPreTrainedModel

    families = {"llama": (LlamaPreTrainedModel, LlamaModel), "mistral": (MistralPreTrainedModel, MistralModel)}
    if model_type not in families:
        raise ValueError(f"it has a {model_type!r} body; regression heads are known on {' and '.join(families)}")
    base: Any
    body: Any
    base, body = families[model_type]

    class RegressionHeadModel(base):
        def __init__(self, config: Any):
            super().__init__(config)
            self.model = body(config)
            self.regression_head = nn.Linear(config.hidden_size, 1, bias=False)
            self.post_init()

    return RegressionHeadModel
