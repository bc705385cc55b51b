"""Any Hugging Face causal language model as a policy, unmodified."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.engine.base import RolloutRequest, StopRules
from aisp_ray.errors import DataError, require_one_of
from aisp_ray.lm import gguf
from aisp_ray.lm.checkpoints import damage, dtype_for, load_whole, loading
from aisp_ray.lm.text import damaged_template, require_fitting_tokenizer, unread
from aisp_ray.policy._render import Renderer
from aisp_ray.policy.base import PolicySpec
from aisp_ray.policy.templates import find_template
from aisp_ray.types import Prompt, Proposal, Rollouts

DEMO = "demo:"  # prefix of the embedded models' names
DTYPES = ("auto", "float32", "bfloat16", "float16")
ENGINES = ("auto", "fast", "expanded", "plain", "vllm")
_VLLM_CONTEXT = 32768  # tokens of prompt and response under engine=vllm, where max_prompt_tokens does not say


@dataclass(frozen=True, kw_only=True)
class CausalLM(PolicySpec):
    """Settings of a causal language model."""

    model: str  # hub id, folder, file.gguf, or demo:policy
    gguf_file: str | None = None  # the GGUF file to load, where model is a hub id or folder that holds several
    revision: str | None = None  # commit or tag on the hub; null takes the newest and pins it in the manifest
    adapter: str | None = None  # PEFT adapter merged into the weights at load: hub id or path
    adapter_revision: str | None = None  # commit or tag of the adapter on the hub
    cache_dir: str | None = None  # folder of downloaded checkpoints, e.g. on a disk all nodes share; null: HF_HOME's
    dtype: str = "auto"  # auto (float32 on a CPU, bfloat16 on a GPU) | float32 | bfloat16 | float16 (`dtype_on`)
    engine: str = "auto"  # auto | fast | expanded | plain | vllm; auto: vllm on a GPU where it is installed, else fast
    kernels: bool = True  # engine=fast on a CPU in float32: its own products, where a C compiler is found
    narrow: bool = True  # engine=fast on a GPU: step only slots in use; false: equal bits whatever runs beside
    flash: bool = False  # engine=fast on a GPU, not run on one yet: PyTorch's FlashAttention where it can
    slots: int | None = None  # rows decoded side by side; null chooses from free memory
    template: str = "chat"  # chat | re_control_user | re_control_human | transcript | args | vicuna | plain | x.jinja
    system: str | None = None  # system turn for prompts that have none
    chat_options: dict[str, Any] = field(default_factory=dict)  # passed to the chat template: {enable_thinking: false}
    max_new_tokens: int = 128  # response tokens at most
    min_new_tokens: int = 0  # the end token is forbidden before, and a stop string does not count
    stop_strings: tuple[str, ...] | None = None  # a response ends where one of these starts; null: the template's
    stop_tokens: tuple[str, ...] = ()  # further tokens that end a response, as written in the vocabulary
    max_prompt_tokens: int | None = None  # longer prompts are error rows; null: what context and engine hold
    trust_remote_code: bool = False  # run Python code that the checkpoint brings along

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("dtype", self.dtype, DTYPES)
        require_one_of("engine", self.engine, ENGINES)
        find_template(self.template)
        for key in ("max_new_tokens", "max_prompt_tokens", "slots"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value}; it must be at least 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}; it lies in 0..max_new_tokens={self.max_new_tokens}"
            )
        if self.stop_strings and not all(self.stop_strings):
            raise ValueError("stop_strings holds an empty text, which would end every response before it begins")
        if self.engine == "vllm" and not self.kernels:
            raise ValueError("kernels has no effect with engine=vllm; it is for engine=fast on a CPU")
        for key, given in (("narrow", not self.narrow), ("flash", self.flash)):
            if given and (self.num_gpus == 0 or self.engine not in ("auto", "fast")):
                raise ValueError(
                    f"{key} has no effect with engine={self.engine} and num_gpus={self.num_gpus:g}; it is for "
                    "engine=fast on a GPU"
                )
        if self.chat_options and find_template(self.template) is not None:
            raise ValueError(f"chat_options have no effect with template={self.template}; they are for template=chat")
        if self.system and self.template == "plain":
            raise ValueError("system has no effect with template=plain; the prompt's text is read as it is")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings in force."""
        template = find_template(self.template)
        if self.stop_strings is not None:
            return self.stop_strings
        return template.stop_strings if template else ()

    def check(self) -> list[str]:
        found = gguf.check("policy", self.model, self.gguf_file)
        if (problem := self._vllm_problem()) is not None:
            found.append(problem)
        for key, name in (("model", self.model), ("adapter", self.adapter)):
            try:
                self._commit(key, name)
            except ValueError as error:
                found.append(str(error))
            else:
                problem = damage(resolve(name)) if name is not None else None
                found += [f"policy.{key}={name}: {problem}"] if problem else []
        if self.template.endswith(".jinja") and (problem := damaged_template(self.template, self.chat_options)):
            found.append(f"policy.template={self.template}{problem}")
        return found

    def pinned(self) -> CausalLM:
        """These settings with the hub's newest commits and the dtype written in: all actors and a resumed run load the
        same.

        Raises:
            ValueError: as in `check`.
        """
        return replace(
            self,
            dtype=self.dtype_on("cuda" if self.num_gpus > 0 else "cpu"),
            engine=self.engine_for("cuda" if self.num_gpus > 0 else "cpu"),
            revision=self._commit("model", self.model) or self.revision,
            adapter_revision=self._commit("adapter", self.adapter) or self.adapter_revision,
        )

    def announcement(self) -> str:
        device = "cuda" if self.num_gpus > 0 else "cpu"
        where = "the CPU" if device == "cpu" else f"{self.num_gpus:g} GPU{'s' * (self.num_gpus > 1)}"
        engine = self.engine_for(device)
        dtype = self.dtype_on(device)
        note = "" if self.dtype in ("auto", dtype) else f" (policy.dtype={self.dtype}: on a CPU float32 is faster)"
        return f"policy: {self.model} in {dtype}{note} on {where}, engine {engine}"

    def dtype_on(self, device: str) -> str:
        """The type that the weights are loaded in on "cpu" or "cuda".

        The fast engine on a CPU has kernels for float32 alone, about four times as fast as bfloat16 there, so it takes
        float32 for either half type; the other engines take what is asked.
        """
        dtype = dtype_for(self.dtype, device)
        return "float32" if device == "cpu" and self.engine_for(device) == "fast" else dtype

    def engine_for(self, device: str) -> str:
        """The engine that `auto` is on "cpu" or "cuda"; any other is itself."""
        if self.engine != "auto":
            return self.engine
        from aisp_ray.engine.vllm.setup import problem

        dense = self.adapter is None and not self._is_gguf
        return "vllm" if device == "cuda" and dense and problem() is None else "fast"

    @property
    def _is_gguf(self) -> bool:
        return self.gguf_file is not None or self.model.endswith(gguf.SUFFIX)

    def _vllm_problem(self) -> str | None:
        """Why engine=vllm cannot do what is asked, a sentence, or None."""
        if self.engine != "vllm":
            return None
        from aisp_ray.engine.vllm.setup import problem

        if self.adapter is not None:
            return "policy.adapter is merged into the weights, which engine=vllm cannot do; use policy.engine=fast"
        if self._is_gguf:
            return "policy.engine=vllm: vLLM 0.32 reads no GGUF files; use policy.engine=fast, or safetensors"
        return problem()

    def _commit(self, key: str, name: str | None) -> str | None:
        """The hub commit of the model or adapter; None for what is on the disk."""
        from aisp_ray.lm.hub import look_up

        if name is None or (key == "model" and name.endswith(gguf.SUFFIX)):
            return None
        probe, revision = (
            (self.gguf_file or "config.json", self.revision)
            if key == "model"
            else ("adapter_config.json", self.adapter_revision)
        )
        path = resolve(name)
        if (path / probe).is_file():
            return None
        if name.startswith((DEMO, "/", ".", "~")) or path.exists() or name.count("/") > 1:
            raise ValueError(
                f"policy.{key}={name}: there is no {probe} in {path.absolute()}; give a checkpoint folder or hub id"
            )
        return look_up(name, f"policy.{key}", "model", revision, self.cache_dir, probe)

    def load(self, device: str) -> LoadedCausalLM:
        """The policy on "cpu" or "cuda".

        Raises:
            ValueError: no machine would load it: a setting, a file or a package is wrong.
            LoadError: no memory, no network, or whatever else may be gone next time.
        """
        from transformers import AutoTokenizer

        source, options = gguf.locate(str(resolve(self.model)), self.gguf_file)
        kwargs = {"revision": self.revision, "trust_remote_code": self.trust_remote_code, "cache_dir": self.cache_dir}
        with loading("policy.model", self.model, source):
            tokenizer = AutoTokenizer.from_pretrained(source, **options, **kwargs)
        self._renderer(tokenizer)  # what is wrong with the template is said before the weights load
        with loading("policy.model", self.model, source):
            if self.engine_for(device) == "vllm":
                return self._load_vllm(source, tokenizer, device, kwargs)
            model = self._load_model(source, device, {**gguf.weights_options(options), **kwargs})
        if self.adapter:
            adapter = str(resolve(self.adapter))
            with loading("policy.adapter", self.adapter, adapter):
                model = _merge_adapter(model, adapter, self.adapter_revision, self.cache_dir)
        return self.around(model if self.num_gpus > 1 else model.to(device), tokenizer)

    def around(self, model: Any, tokenizer: Any) -> LoadedCausalLM:
        """The policy of a model that is loaded already, on the device and in the dtype it has."""
        from aisp_ray.engine.factory import build_engine
        from aisp_ray.engine.slots import Ways

        if self.engine == "vllm":
            raise ValueError("engine=vllm loads a model itself, so it cannot take one that is loaded; use engine=fast")
        engine = build_engine(
            model,
            kind="fast" if self.engine == "auto" else self.engine,
            slots=self.slots,
            decode=_decoder(tokenizer),
            max_new_tokens=self.max_new_tokens,
            longest_prompt=self.max_prompt_tokens,
            ways=Ways(narrow=None if self.narrow else False, kernels=self.kernels, flash=self.flash),
        )
        return LoadedCausalLM(self, tokenizer, engine, model)

    def _load_vllm(self, source: str, tokenizer: Any, device: str, kwargs: Mapping[str, Any]) -> LoadedCausalLM:
        """The policy of a model that vLLM loads: here are only its settings."""
        from transformers import AutoConfig

        from aisp_ray.engine.vllm.load import build_vllm_engine, generation_config
        from aisp_ray.engine.vllm.setup import VllmSettings

        if (problem := self._vllm_problem()) is not None:
            raise ValueError(problem)
        config = AutoConfig.from_pretrained(source, **kwargs)
        room = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or _VLLM_CONTEXT
        asked = _VLLM_CONTEXT if self.max_prompt_tokens is None else self.max_prompt_tokens + self.max_new_tokens
        settings = VllmSettings(
            source,
            self.dtype_on(device),
            min(room, asked),
            revision=self.revision,
            cache_dir=self.cache_dir,
            trust_remote_code=self.trust_remote_code,
            slots=self.slots,
            num_gpus=self.num_gpus,
        )
        engine = build_vllm_engine(settings, _decoder(tokenizer))
        engine.longest_prompt = settings.context - self.max_new_tokens
        facts = SimpleNamespace(config=config, generation_config=generation_config(source, kwargs))
        return LoadedCausalLM(self, tokenizer, engine, facts)

    def _renderer(self, tokenizer: Any) -> Renderer:
        return Renderer(tokenizer, self.template, self.system, self.chat_options)

    def _load_model(self, source: str, device: str, kwargs: Mapping[str, Any]) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        spread: dict[str, Any] = {"device_map": "auto"} if self.num_gpus > 1 else {}
        if device != "cpu" and not spread and not self._is_gguf:
            spread = {"device_map": {"": device}}  # not through the host's memory first
        dtype = getattr(torch, self.dtype_on(device))
        otherwise = "it is no causal language model, and its responses would come from random weights"
        return gguf.as_dense(load_whole(AutoModelForCausalLM, source, otherwise, dtype=dtype, **spread, **kwargs))


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Token ids of a response to its text, in which stop strings are looked for."""
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


def resolve(model: str) -> Path:
    """The folder of a path or an embedded model; a hub id comes back as the path of that name."""
    if model.startswith(DEMO):
        return Path(__file__).parent.parent / "demo" / "models" / model.removeprefix(DEMO)
    return Path(model).expanduser()


def _merge_adapter(model: Any, source: str, revision: str | None, cache: str | None) -> Any:
    """The model with an adapter's update added to its weights: as fast as the model itself, and of the same class."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ValueError("it needs the package peft: pip install peft") from error
    more: dict[str, Any] = {key: value for key, value in (("revision", revision), ("cache_dir", cache)) if value}
    kind = PeftConfig.from_pretrained(source, **more)
    if kind.is_prompt_learning:
        raise ValueError(
            f"it is a {kind.peft_type.value} adapter: it puts vectors before the prompt instead of changing weights, "
            "so it cannot be merged; give an adapter that changes weights, such as LoRA"
        )
    adapted = PeftModel.from_pretrained(model, source, **more)
    if not hasattr(adapted, "merge_and_unload"):
        raise ValueError(f"it is a {kind.peft_type.value} adapter, which cannot be merged into the weights")
    return adapted.merge_and_unload(safe_merge=True)


class LoadedCausalLM:
    """`policy.base.LoadedPolicy` of a causal language model."""

    def __init__(self, spec: CausalLM, tokenizer: Any, engine: Any, model: Any):
        self.spec = spec
        self.tokenizer = tokenizer
        self.engine = engine
        self.renderer = spec._renderer(tokenizer)
        config = model.config.get_text_config()
        self._embeddings = int(getattr(config, "vocab_size", None) or 1 << 30)
        require_fitting_tokenizer(tokenizer, self._embeddings, f"policy.model={spec.model}")
        self._context = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
        if spec.max_new_tokens >= self._context:
            raise ValueError(
                f"policy.max_new_tokens is {spec.max_new_tokens}, which leaves no room for a prompt: "
                f"{spec.model} reads at most {self._context} tokens"
            )
        ends = {*self._end_ids(model), *self.renderer.turn_ends()}
        self._stop = StopRules(tuple(sorted(ends)), spec.stops, spec.min_new_tokens)
        template = self.renderer.template
        self._strip = template is not None and template.strip

    def describe(self, prompt: Prompt) -> str:
        return self.renderer.shown(prompt)

    def request(self, prompt: Prompt, proposal: Proposal, seed: int) -> RolloutRequest:
        from aisp_ray.rng import prompt_key

        ids = self.renderer.ids(prompt)
        if not ids:
            raise DataError("the prompt has no tokens")
        if problem := unread(ids, self._embeddings):
            raise DataError(problem)
        limits = (
            (self._context - self.spec.max_new_tokens, "policy.max_new_tokens leaves no more of the model's context"),
            (self.spec.max_prompt_tokens, "policy.max_prompt_tokens"),
            (prompt.max_tokens, "data.max_prompt_tokens"),
            (self.engine.longest_prompt, "policy.max_prompt_tokens makes room for more"),
        )
        limit, key = min((n, key) for n, key in limits if n is not None)
        if len(ids) > limit:
            raise DataError(f"the prompt has {len(ids)} tokens; at most {limit} fit ({key})")
        most = min(proposal.max_new_tokens or self.spec.max_new_tokens, self.spec.max_new_tokens)
        drawn = proposal.within(self.spec.max_new_tokens)
        if isinstance(drawn.control, OpenLoop) and drawn.control.scale is None:
            law = drawn.control.scaled_for(self.engine.fingerprint["noise_scale"])
            drawn = replace(drawn, control=law)
        return RolloutRequest(tuple(ids), prompt_key(seed, prompt.prompt_id), drawn, most, self._stop)

    def finish(self, rollouts: Rollouts) -> Rollouts:
        # the token that ended a response is no part of its text, special or not
        spoken = [list(item.token_ids[: -1 if item.finish_reason == "stop" else None]) for item in rollouts.items]
        texts = self.tokenizer.batch_decode(spoken, skip_special_tokens=True)
        texts = [self._cut(text, ids) for text, ids in zip(texts, spoken, strict=True)]
        items = tuple(replace(item, text=text) for item, text in zip(rollouts.items, texts, strict=True))
        return replace(rollouts, items=items)

    def _cut(self, text: str, token_ids: Sequence[int]) -> str:
        decode = partial(self.tokenizer.decode, skip_special_tokens=True)
        text = text[: self._stop.string_start(text, token_ids, decode)]
        return text.strip() if self._strip else text

    def _end_ids(self, model: Any) -> set[int]:
        """The tokens that end a response: the tokenizer's, the generation config's, and those of `stop_tokens`."""
        listed = getattr(model.generation_config, "eos_token_id", None)
        ends = {*(listed if isinstance(listed, list | tuple) else [listed]), self.tokenizer.eos_token_id}
        vocabulary = self.tokenizer.get_vocab() if self.spec.stop_tokens else {}
        for token in self.spec.stop_tokens:
            if token not in vocabulary:
                near = difflib.get_close_matches(token, self.tokenizer.all_special_tokens, n=1)
                hint = f' Did you mean "{near[0]}"?' if near else ""
                raise ValueError(f"policy.stop_tokens: the vocabulary has no token {token!r}.{hint}")
            ends.add(vocabulary[token])
        return {int(end) for end in ends if end is not None}
