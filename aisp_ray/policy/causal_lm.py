"""Any Hugging Face causal language model as a policy, unmodified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aisp_ray.engine.base import RolloutRequest, StopRules
from aisp_ray.policy.base import PolicySpec
from aisp_ray.types import DataError, Message, Prompt, Proposal, Rollouts

DEMO = "demo:"  # prefix of the embedded models' names


@dataclass(frozen=True, kw_only=True)
class CausalLM(PolicySpec):
    """Settings of a causal language model."""

    model: str  # hub id, path, or demo:policy
    revision: str | None = None  # commit or tag on the hub; null takes the newest and pins it in the manifest
    dtype: str = "bfloat16"  # float32 | bfloat16 | float16
    engine: str = "plain"  # fast | plain: same tokens; plain is the reference
    slots: int | None = None  # rows decoded side by side; null chooses from free memory
    max_new_tokens: int = 128  # response tokens at most
    min_new_tokens: int = 0  # the end token is forbidden before
    stop_strings: tuple[str, ...] = ()  # a response ends where one of these starts
    max_prompt_tokens: int | None = None  # longer prompts are error rows; null: what the context leaves
    trust_remote_code: bool = False  # run Python code that the checkpoint brings along

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}; it is one of float32, bfloat16, float16")
        if self.engine not in ("fast", "plain"):
            raise ValueError(f"engine is {self.engine!r}; it is fast or plain")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")

    def check(self) -> list[str]:
        path = resolve(self.model)
        if (self.model.startswith((DEMO, "/", ".")) or path.exists()) and not (path / "config.json").is_file():
            return [f"policy.model={self.model}: there is no config.json in {path}; give a checkpoint folder or hub id"]
        return []

    def load(self, device: str) -> LoadedCausalLM:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from aisp_ray.engine.factory import build_engine

        source = str(resolve(self.model))
        kwargs = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
        spread = {"device_map": "auto"} if self.num_gpus > 1 else {}
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, self.dtype), **spread, **kwargs)
        if not spread:
            model = model.to(device)
        engine = build_engine(
            model,
            kind=self.engine,
            slots=self.slots,
            decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
            max_new_tokens=self.max_new_tokens,
        )
        return LoadedCausalLM(self, tokenizer, engine, int(getattr(model.config, "max_position_embeddings", 1 << 20)))


def resolve(model: str) -> Path:
    """The folder of a path or an embedded model; a hub id comes back as the path of that name."""
    if model.startswith(DEMO):
        return Path(__file__).parent.parent / "demo" / "models" / model.removeprefix(DEMO)
    return Path(model)


class LoadedCausalLM:
    """`policy.base.LoadedPolicy` of a causal language model."""

    def __init__(self, spec: CausalLM, tokenizer: Any, engine: Any, context: int):
        self.spec = spec
        self.tokenizer = tokenizer
        self.engine = engine
        self._context = context
        generation = tokenizer.eos_token_id
        self._stop = StopRules(
            token_ids=() if generation is None else (generation,),
            strings=spec.stop_strings,
            min_new_tokens=spec.min_new_tokens,
        )

    def describe(self, prompt: Prompt) -> str:
        turns = [{"role": turn.role, "content": turn.content} for turn in _turns(prompt)]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def request(self, prompt: Prompt, proposal: Proposal, seed: int) -> RolloutRequest:
        from aisp_ray.rng import prompt_key

        ids = self.tokenizer(self.describe(prompt), add_special_tokens=False)["input_ids"]
        limit = self._context - self.spec.max_new_tokens
        limits = [n for n in (limit, self.spec.max_prompt_tokens, prompt.max_tokens) if n is not None]
        if len(ids) > min(limits):
            raise DataError(f"the prompt has {len(ids)} tokens; at most {min(limits)} fit (data.max_prompt_tokens)")
        most = min(proposal.max_new_tokens or self.spec.max_new_tokens, self.spec.max_new_tokens)
        return RolloutRequest(tuple(ids), prompt_key(seed, prompt.prompt_id), proposal, most, self._stop)

    def finish(self, rollouts: Rollouts) -> Rollouts:
        texts = self.tokenizer.batch_decode([list(item.token_ids) for item in rollouts.items], skip_special_tokens=True)
        items = tuple(
            replace(item, text=cut(text, self.spec.stop_strings))
            for item, text in zip(rollouts.items, texts, strict=True)
        )
        return replace(rollouts, items=items)


def cut(text: str, strings: Sequence[str]) -> str:
    """The text up to the first stop string."""
    ends = [at for string in strings if (at := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def _turns(prompt: Prompt) -> tuple[Message, ...]:
    return prompt.messages or (Message("user", prompt.text),)
