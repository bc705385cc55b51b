"""Shared-prefix scoring against padded scoring of the whole texts, on several architectures and at its edges."""

import logging
import random

import pytest
import torch
import transformers

from aisp_ray.lm.prefixes import PrefixStore
from aisp_ray.rewards import _packed
from aisp_ray.rewards._packed import Keys, Packed
from aisp_ray.rewards._reader import Reader
from aisp_ray.rewards._tokens import TokenRow
from aisp_ray.rewards.sequence_classifier import SequenceClassifier, _in_float32

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
    "max_position_embeddings": 512,
    "num_labels": 1,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
SHARING = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "llama, biases": transformers.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": transformers.Qwen3Config(**GROUPED),
    "gemma": transformers.GemmaConfig(**{**GROUPED, "head_dim": 16}),
    "phi3": transformers.Phi3Config(**SIZES, num_key_value_heads=4),
    "gpt2": transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=200, n_positions=512, num_labels=1, pad_token_id=0
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES),
    "gemma2, soft-capped": transformers.Gemma2Config(
        **{**GROUPED, "head_dim": 16}, attn_logit_softcapping=5.0, sliding_window=16
    ),
    "gemma3, windows and full": transformers.Gemma3TextConfig(
        **{**GROUPED, "num_hidden_layers": 6, "head_dim": 16}, sliding_window=16
    ),
    "gpt_oss, sinks": transformers.GptOssConfig(
        **GROUPED, sliding_window=16, num_local_experts=4, num_experts_per_tok=2
    ),
    "mistral, window": transformers.MistralConfig(**GROUPED, sliding_window=24),
    "qwen3, window in one layer": transformers.Qwen3Config(
        **GROUPED, use_sliding_window=True, sliding_window=20, max_window_layers=1
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(**GROUPED, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2),
}


def make(config, scale=0.3, device="cpu", dtype=torch.float32, **settings):
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).float().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape) * scale)
    model.to(device, dtype)
    _in_float32(model.score)
    spec = SequenceClassifier(model="small", **settings)
    return Reader(model, *spec._parts(model), spec)


def group(seed, prompt, lengths, shared=None):
    """A prompt of random tokens and rows that continue all of it, or its first `shared` tokens."""
    rng = random.Random(seed)
    head = tuple(rng.choices(range(1, 200), k=prompt))
    keep = shared or [prompt] * len(lengths)
    rows = [
        TokenRow(head[:k] + tuple(rng.choices(range(1, 200), k=length)), k)
        for k, length in zip(keep, lengths, strict=True)
    ]
    return head, rows


def difference(reader, groups):
    packed = [value for values in reader.read(groups)[0] for value in values]
    with torch.inference_mode():
        padded = [float(reader.padded([row])) for _, rows in groups for row in rows]
    return max(abs(a - b) for a, b in zip(packed, padded, strict=True)), max(padded) - min(padded)


@pytest.mark.parametrize("name", SHARING)
def test_scores_are_the_padded_ones(name):
    reader = make(SHARING[name])
    assert reader.packed is not None
    groups = [group(1, 40, (30, 17, 17, 3, 1)), group(2, 5, (9, 9, 9))]
    apart, range_ = difference(reader, groups)
    assert apart < 1e-4
    assert range_ > 0.05


def test_rows_may_share_different_parts_of_the_prompt_or_nothing():
    reader = make(SHARING["llama"])
    groups = [group(3, 20, (6, 6, 5, 4, 2, 1), shared=[20, 19, 20, 7, 1, 0]), group(4, 8, (3,), shared=[0])]
    assert difference(reader, groups)[0] < 1e-4
    wide = make(SHARING["llama"], across_prompts=True)
    assert difference(wide, groups)[0] < 1e-4


def test_a_row_that_is_the_whole_prompt_still_has_a_last_token():
    reader = make(SHARING["llama"])
    head = tuple(range(1, 12))
    assert difference(reader, [(head, [TokenRow(head, 11), TokenRow((*head, 5), 11)])])[0] < 1e-4


@pytest.mark.parametrize("batch_tokens", [1, 13, 64, 100_000])
def test_batches_of_any_size_give_the_same_scores(batch_tokens):
    reader = make(SHARING["llama"], batch_tokens=batch_tokens)
    assert difference(reader, [group(5, 30, (20, 11, 8, 8, 1)), group(6, 3, (50, 2))])[0] < 1e-4


@pytest.mark.parametrize("copied", [1, 40, 1 << 15])
def test_the_joined_attention_of_gpus_is_the_merged_one_of_the_cpu(copied, monkeypatch):
    reader = make(SHARING["llama"])
    groups = [group(7, 20, (6, 6, 5, 1), shared=[20, 20, 20, 4]), group(8, 9, (4, 4), shared=[0, 9])]
    expected = reader.read(groups)[0]
    sizes = []

    def joined(self, segment, call):
        lengths = self.lengths[segment.first_row : segment.last_row]
        rows = [part[0, :, segment.start : segment.stop] for part in (call.query, call.key, call.value)]
        index, back = self._padded_index(segment, "cpu")
        own = [part[:, index].unflatten(1, (len(lengths), -1)).transpose(0, 1) for part in rows]
        own = [own[0], *(part.repeat_interleave(2, dim=1) for part in own[1:])]
        prefix = segment.prefix.layers[call.layer] if segment.shared else None
        out = _packed._joined(own, prefix, segment.shared, call.scale)
        return out.transpose(0, 1).flatten(1, 2)[:, back]

    class Spy:
        @staticmethod
        def scaled_dot_product_attention(query, key, value, **more):
            sizes.append(key.shape[0] * key.shape[2])
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, **more)

    monkeypatch.setattr(_packed, "F", Spy)
    monkeypatch.setattr(_packed, "COPIED", copied)
    monkeypatch.setattr(_packed.Layout, "_segment", joined)
    reader.packed.store.trim(0)
    for values, others in zip(reader.read(groups)[0], expected, strict=True):
        assert values == pytest.approx(others, abs=2e-5)
    assert max(sizes) <= max(copied, 26)  # a row alone always fits


@pytest.mark.parametrize("name", ["gemma2, soft-capped", "gpt_oss, sinks", "mistral, window"])
def test_few_logits_at_a_time_give_the_same_scores(name, monkeypatch):
    reader = make(SHARING[name])
    groups = [group(25, 40, (30, 17, 17, 3, 1)), group(26, 9, (4, 4), shared=[0, 9])]
    expected = reader.read(groups)[0]
    monkeypatch.setattr(_packed, "SCORES", 500)
    for values, others in zip(reader.read(groups)[0], expected, strict=True):
        assert values == pytest.approx(others, abs=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
def test_a_gpu_gives_the_scores_of_the_cpu(dtype, tolerance):
    groups = [group(23, 40, (30, 17, 17, 3, 1)), group(24, 12, (9, 4), shared=[12, 3])]
    expected = make(SHARING["llama"]).read(groups)[0]
    torch.manual_seed(0)
    reader = make(SHARING["llama"], device="cuda", dtype=dtype, across_prompts=True)
    assert reader.packed is not None
    for values, others in zip(reader.read(groups)[0], expected, strict=True):
        assert values == pytest.approx(others, abs=tolerance)


def test_the_prompt_is_read_once_over_all_iterations():
    reader = make(SHARING["llama"])
    head, rows = group(9, 100, (10, 10, 10, 10))
    before = reader.packed.tokens_read
    for _ in range(5):
        reader.read([(head, rows)])
    assert reader.packed.tokens_read - before == 100 + 5 * 40
    assert reader.stats()["prefix_hits"] == 4
    assert reader.stats()["prefix_misses"] == 1
    assert reader.stats()["prefix_bytes"] == 2 * 2 * 100 * 2 * 8 * 4  # layers, keys and values, tokens, heads, width


def test_a_dropped_prompt_is_read_again_to_the_same_bits():
    head, rows = group(10, 50, (10, 7, 3))
    others = [group(seed, 50, (5, 5)) for seed in range(11, 15)]
    reader = make(SHARING["llama"])
    reader.packed.store.limit_bytes = 2 * 2 * 2 * 50 * 2 * 8 * 4  # two prompts
    first = reader.read([(head, rows)])[0]
    for other in others:
        reader.read([other])
        assert reader.packed.store.num_bytes <= reader.packed.store.limit_bytes
    assert reader.read([(head, rows)])[0] == first
    assert reader.stats()["prefix_misses"] == 6


def test_the_store_drops_what_was_not_used_for_longest():
    reads = []
    read = lambda key: reads.append(key) or Keys({0: (torch.zeros(8), torch.zeros(8))})  # noqa: E731 (64 bytes)
    store = PrefixStore(read, limit_bytes=2 * 64)
    for key in ((1,), (2,), (1,), (3,), (1,), (3,), (2,)):
        entry, _ = store.acquire(key)
        store.release(entry)
    assert reads == [(1,), (2,), (3,), (2,)]
    assert store.num_bytes == 128
    small = PrefixStore(read, limit_bytes=10)
    entry, _ = small.acquire((1,))
    assert small.find((1,)) is entry  # too large to keep, still used
    small.release(entry)
    small.trim()
    assert len(small) == 0


@pytest.mark.parametrize("name", ["mistral, window", "gemma2, soft-capped", "gpt_oss, sinks"])
def test_a_text_beyond_the_sliding_window_reads_its_prompt_once(name):
    reader = make(SHARING[name])
    for prompt, lengths in ((19, (5, 4, 2)), (30, (5, 4)), (10, (45, 26, 5)), (80, (60, 1))):
        before = reader.packed.tokens_read
        apart, spread = difference(reader, [group(prompt, prompt, lengths)])
        assert apart < 1e-4
        assert spread > 1e-3
        assert reader.packed.tokens_read - before == prompt + sum(lengths)


NOT_SHARING = {
    "layers with states": transformers.Qwen3NextConfig(**GROUPED, num_experts=2, num_experts_per_tok=1),
    "rotary frequencies of the whole batch": transformers.LlamaConfig(
        **GROUPED, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    ),
}


@pytest.mark.parametrize("name", NOT_SHARING)
def test_what_cannot_share_is_read_padded_and_says_so(name, caplog):
    with caplog.at_level(logging.WARNING):
        reader = make(NOT_SHARING[name])
    assert reader.packed is None
    assert "padded batches of whole texts" in caplog.text
    assert difference(reader, [group(19, 20, (6, 5, 1))])[0] < 1e-4


def test_a_model_whose_attention_is_another_is_found_out_at_load(monkeypatch, caplog):
    """Shared-prefix attention that gave other scores is never taken into use."""
    read = Packed.__call__
    monkeypatch.setattr(Packed, "__call__", lambda self, groups: 1.1 * read(self, groups))
    with caplog.at_level(logging.WARNING):
        reader = make(SHARING["llama"])
    assert reader.packed is None
    assert "differ from its own forward by 0." in caplog.text


@pytest.mark.parametrize(("name", "option"), [("gemma2, soft-capped", "softcap"), ("gpt_oss, sinks", "s_aux"),
                                              ("mistral, window", "sliding_window")])  # fmt: skip
def test_attention_that_drops_an_option_is_found_out_at_load(name, option, monkeypatch, caplog):
    attend = _packed.Layout.attend
    drop = lambda self, call: attend(self, call._replace(options={**call.options, option: None}))  # noqa: E731
    monkeypatch.setattr(_packed.Layout, "attend", drop)
    with caplog.at_level(logging.WARNING):
        assert make(SHARING[name]).packed is None
    assert "differ from its own forward" in caplog.text


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_out_of_memory_halves_the_batch_and_goes_on(shared_prefix, monkeypatch):
    reader = make(SHARING["llama"], shared_prefix=shared_prefix)
    whole = group(20, 10, (8, 7, 6, 5, 4, 3, 2))
    expected = reader.read([whole])[0][0]
    kind = Packed if shared_prefix else type(reader.padded)
    read, sizes = kind.__call__, []

    def tight(self, rows):
        count = sum(len(part[1]) for part in rows) if shared_prefix else len(rows)
        sizes.append(count)
        if count > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(self, rows)

    monkeypatch.setattr(kind, "__call__", tight)
    rewards, errors = reader.read([whole])
    assert rewards[0] == pytest.approx(expected, abs=1e-5)
    assert errors == [[None] * 7]
    assert reader.stats()["batch_halvings"] == sum(size > 2 for size in sizes)


def test_a_row_that_does_not_fit_alone_is_its_own_error(monkeypatch):
    reader = make(SHARING["llama"], shared_prefix=False)
    head, rows = group(21, 10, (30, 3, 2))
    read = type(reader.padded).__call__

    def tight(self, some):
        if max(len(row.ids) for row in some) > 20:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return read(self, some)

    monkeypatch.setattr(type(reader.padded), "__call__", tight)
    rewards, errors = reader.read([(head, rows)])
    assert "out of memory" in errors[0][0]
    assert errors[0][1:] == [None, None]
    assert rewards[0][1] == rewards[0][1]


def test_other_errors_of_the_model_are_not_taken_for_missing_memory(monkeypatch):
    reader = make(SHARING["llama"])
    monkeypatch.setattr(Packed, "__call__", lambda self, parts: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        reader.read([group(22, 5, (3,))])
