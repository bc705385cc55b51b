"""A reward model out of a language model's first layers and a vector of a few KB: an ordinary sequence classifier.

The reward is a linear function of the body's hidden states, averaged over the end of the text: token i of a text of T
tokens weighs exp(-(T - 1 - i)^2 / (2 window^2)). The average is an attention layer of the checkpoint itself: its query
and key are constants in one rotary pair of low frequency theta, so that their product a cos(theta distance) is the
logarithm of that weight near 0, and its values are the linear function. So any program that reads a Llama with a
classification head computes it, shared prefixes included, and no code comes with the checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONTEXT = 2048  # tokens; half a period of the rotary pair, beyond which the weight would rise again
PERIOD = 2 * CONTEXT
GAIN = 4.0  # the reward's share of the last state, in its root mean squares: drowns what the element held before


@dataclass(frozen=True, slots=True)
class PooledHead:
    """A head for one body.

    weight: [d], applied to each token's hidden state divided by its root mean square. layers: of the body, from the
    first. window: tokens. mean, std: of the weighted average on the training texts; the reward is standardised with
    them. axis, axis_mean, rms: the element of the last token's hidden state that varies least there, its mean, and the
    root mean square of that state; the reward is handed to the final norm on this element.
    """

    weight: Tensor
    layers: int
    window: float
    mean: float
    std: float
    axis: int
    axis_mean: float
    rms: float

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """One safetensors file; `facts` (JSON values: data, accuracy, limits) go into its header."""
        from safetensors.torch import save

        numbers = {key: value for key, value in asdict(self).items() if key != "weight"}
        metadata = {"head": json.dumps(numbers), "facts": json.dumps(facts)}
        path.write_bytes(save({"weight": self.weight.float().contiguous()}, metadata))

    @classmethod
    def load(cls, path: Path) -> tuple[PooledHead, dict[str, Any]]:
        """(the head, its facts)."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            head = cls(weight=file.get_tensor("weight"), **json.loads(metadata["head"]))
        return head, json.loads(metadata["facts"])


def pool(hidden: Tensor, window: float, eps: float) -> Tensor:
    """Hidden states [t, d] of a text -> their average [d] under the window: the plain form of the attention layer."""
    distance = torch.arange(hidden.shape[0] - 1, -1, -1, dtype=torch.float32)
    weight = torch.softmax(-(distance**2) / (2 * window**2), 0)
    return weight @ _scaled(hidden, eps)


def _scaled(hidden: Tensor, eps: float) -> Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps)


def build_classifier(model: Any, head: PooledHead) -> Any:
    """The sequence classifier of a loaded `LlamaForCausalLM` and a head, in float32 on the CPU.

    Raises:
        ValueError: the head is of a body with another width, or of more layers than this one has.
    """
    from transformers import LlamaForSequenceClassification

    config = type(model.config)(**{**model.config.to_dict(), **_changes(head)})
    if model.config.hidden_size != len(head.weight) or model.config.num_hidden_layers < head.layers:
        raise ValueError(
            f"the head is for {head.layers} layers of width {len(head.weight)}; this model has "
            f"{model.config.num_hidden_layers} of width {model.config.hidden_size}"
        )
    classifier = LlamaForSequenceClassification(config)
    states = classifier.state_dict()
    for name in states:
        states[name] = torch.zeros_like(states[name])
    for name, weight in model.model.state_dict().items():
        if f"model.{name}" in states and not name.startswith((f"layers.{head.layers}.", "norm.")):
            states[f"model.{name}"] = weight.float()
    states |= _pooling_layer(config, head)
    classifier.load_state_dict(states)
    return classifier.eval()


def _changes(head: PooledHead) -> dict[str, Any]:
    return {
        "num_hidden_layers": head.layers + 1,
        "num_labels": 1,
        "architectures": ["LlamaForSequenceClassification"],
        "attention_bias": True,
        "tie_word_embeddings": False,
        "max_position_embeddings": CONTEXT,
        "quantization_config": None,
        "id2label": None,
        "label2id": None,
    }


def _pooling_layer(config: Any, head: PooledHead) -> dict[str, Tensor]:
    """The weights of the last layer, the final norm and the score; what is not named stays zero."""
    size = config.head_dim
    pair = _rotary_pair(config.rope_parameters["rope_theta"], size)
    theta = config.rope_parameters["rope_theta"] ** (-2 * pair / size)
    strength = (size**0.5 / (theta * head.window) ** 2) ** 0.5  # q k / sqrt(size) = 1 / (theta window)^2
    at = f"model.layers.{head.layers}"
    query = torch.zeros(config.num_attention_heads * size)
    query[pair::size] = strength
    key = torch.zeros(config.num_key_value_heads * size)
    key[pair::size] = strength
    value = torch.zeros(config.num_key_value_heads * size, config.hidden_size)
    value[0] = head.weight
    output = torch.zeros(config.hidden_size, config.num_attention_heads * size)
    output[head.axis, 0] = GAIN * head.rms / head.std
    shift = torch.zeros(config.hidden_size)
    shift[head.axis] = -head.axis_mean - GAIN * head.mean * head.rms / head.std
    score = torch.zeros(1, config.hidden_size)
    score[0, head.axis] = 1 / GAIN
    ones = torch.ones(config.hidden_size)
    return {
        f"{at}.self_attn.q_proj.bias": query,
        f"{at}.self_attn.k_proj.bias": key,
        f"{at}.self_attn.v_proj.weight": value,
        f"{at}.self_attn.o_proj.weight": output,
        f"{at}.self_attn.o_proj.bias": shift,
        f"{at}.input_layernorm.weight": ones,
        f"{at}.post_attention_layernorm.weight": ones,
        "model.norm.weight": ones,
        "score.weight": score,
    }


def _rotary_pair(base: float, size: int) -> int:
    """The rotary pair of the highest frequency whose period is at least PERIOD."""
    pairs = [pair for pair in range(size // 2) if 2 * torch.pi * base ** (2 * pair / size) >= PERIOD]
    if not pairs:
        raise ValueError(f"no rotary pair of this model has a period of {PERIOD} tokens (rope_theta {base:g})")
    return pairs[0]
