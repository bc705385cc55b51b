"""What goes wrong when rewards are scored elsewhere, one fact each."""

import math

import pytest
import small_models
import torch
from small_models import RESPONSES, ask
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from aisp_ray.rewards.base import ScoreRequest
from aisp_ray.rewards.regression_head import RegressionHead
from aisp_ray.rewards.sequence_classifier import SequenceClassifier

LONG = "Tell me about the egg. " * 40


def load(folder, **settings):
    return SequenceClassifier(model=str(folder), **settings).load("cpu")


def rewards(scorer, prompt=None, responses=RESPONSES):
    return scorer.score([ScoreRequest(prompt or ask(), tuple(responses))])[0].rewards


def rows(scorer, prompt=None, responses=RESPONSES):
    return scorer._encode(ScoreRequest(prompt or ask(), tuple(responses))).rows


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_there_is_one_start_token(llama3, ultrarm, shared_prefix):
    """Both tokenizers put a start token before every text by themselves, and the chat template writes another."""
    tokenizer = AutoTokenizer.from_pretrained(llama3)
    doubled = tokenizer(tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False))["input_ids"]
    assert doubled[:2] == [tokenizer.bos_token_id] * 2
    named = RegressionHead(model=str(ultrarm), template="ultrarm_card", shared_prefix=shared_prefix).load("cpu")
    for scorer in (load(llama3, shared_prefix=shared_prefix), named):
        for row in rows(scorer):
            assert row.ids[0] == scorer.tokenizer.bos_token_id
            assert row.ids[1] != scorer.tokenizer.bos_token_id


def test_a_start_token_typed_into_a_named_template_is_not_doubled(ultrarm):
    scorer = RegressionHead(model=str(ultrarm), template="plain").load("cpu")
    typed = rows(scorer, ask("<s>Is it?"))
    assert [row.ids for row in typed] == [row.ids for row in rows(scorer, ask("Is it?"))]


@pytest.mark.parametrize("shared_prefix", [True, False])
@torch.no_grad()
def test_the_end_is_found_by_mask_though_pad_is_the_end_of_a_turn(llama3, shared_prefix):
    scorer = load(llama3, shared_prefix=shared_prefix)
    model = AutoModelForSequenceClassification.from_pretrained(llama3).eval()
    assert model.config.pad_token_id == scorer.tokenizer.eos_token_id
    for row, reward in zip(rows(scorer), rewards(scorer), strict=True):
        assert row.ids[-1] == model.config.pad_token_id
        hidden = model.model(input_ids=torch.tensor([row.ids])).last_hidden_state  # [1, t, d]
        assert reward == pytest.approx(float(model.score(hidden[0, -1])), abs=2e-5)
        searched = float(model(input_ids=torch.tensor([row.ids])).logits)  # searches for the pad token
        assert abs(searched - reward) > 1e-3


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_pad_tokens_inside_a_response_change_nothing_else(llama3, shared_prefix):
    scorer = load(llama3, shared_prefix=shared_prefix)
    odd = "Put<|eot|><|eot|> the egg"
    together = rewards(scorer, responses=(*RESPONSES, odd, odd + "<|eot|>"))
    assert together[:5] == pytest.approx(rewards(scorer), abs=1e-5)
    assert len({round(value, 4) for value in together}) == 7


def test_the_tokenizers_padding_and_truncation_side_do_not_matter(tmp_path, llama3):
    left = small_models.write_llama3_classifier(tmp_path, padding_side="left", truncation_side="right")
    assert AutoTokenizer.from_pretrained(left).padding_side == "left"
    for shared_prefix in (True, False):
        there, here = load(left, shared_prefix=shared_prefix), load(llama3, shared_prefix=shared_prefix)
        assert rewards(there) == rewards(here)


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_truncation_cuts_the_prompt_and_never_the_response(llama3, shared_prefix):
    scorer = load(llama3, max_tokens=60, shared_prefix=shared_prefix)
    prompt = ask(LONG)
    long_answer = "The water is hot. " * 3
    texts = (long_answer, "No.")
    for row, full in zip(rows(scorer, prompt, texts), rows(load(llama3), prompt, texts), strict=True):
        assert row.truncated
        assert len(row.ids) == 60
        assert row.ids[0] == scorer.tokenizer.bos_token_id
        assert row.ids[1:] == full.ids[-59:]
    scores = scorer.score([ScoreRequest(prompt, (long_answer, "No.", "x" * 200)), ScoreRequest(ask("Hi"), ("No.",))])
    assert scores[0].num_truncated == 2
    assert scores[1].num_truncated == 0
    assert math.isnan(scores[0].rewards[2])
    assert "does not fit max_tokens=60" in scores[0].errors[2]
    assert "p/0, particle 2" in scores[0].errors[2]
    assert scores[0].errors[:2] == (None, None)
    alone = scorer.score([ScoreRequest(prompt, (long_answer,))])[0].rewards[0]
    assert scores[0].rewards[0] == pytest.approx(alone, abs=1e-5)


def test_truncation_of_pairs_cuts_the_first_segment_from_the_left(deberta):
    scorer = load(deberta, template="pair", max_tokens=40)
    cut, short = rows(scorer, ask(LONG), ("No.", "Yes."))
    assert len(cut.ids) == len(short.ids) == 40
    assert cut.truncated
    text = scorer.tokenizer.decode(list(cut.ids))
    assert text.startswith("[CLS]")
    assert text.endswith("egg. [SEP]No.[SEP]")
    scores = scorer.score([ScoreRequest(ask(LONG), ("No.", "x" * 100))])[0]
    assert scores.num_truncated == 1
    assert "does not fit" in scores.errors[1]


def test_more_tokens_than_the_model_reads_are_refused(llama3):
    with pytest.raises(ValueError, match="reads at most 4096"):
        load(llama3, max_tokens=10_000)


def test_several_labels_need_a_reduction(tmp_path):
    folder = small_models.write_llama3_classifier(tmp_path, num_labels=3)
    with pytest.raises(ValueError, match="has 3 labels"):
        load(folder)
    with pytest.raises(ValueError, match="labels 0 to 2"):
        load(folder, reduction="label:3")
    logits = torch.tensor([rewards(load(folder, reduction=f"label:{k}")) for k in range(3)]).T  # [n, 3]
    expected = {
        "mean": logits.mean(1),
        "probability:1": logits.softmax(1)[:, 1],
        "expected": logits.softmax(1) @ torch.tensor([0.0, 1.0, 2.0]),
    }
    for reduction, values in expected.items():
        assert rewards(load(folder, reduction=reduction)) == pytest.approx(values.tolist(), abs=1e-5)


def test_a_reduction_of_one_label_is_an_error(llama3):
    with pytest.raises(ValueError, match="one label"):
        load(llama3, reduction="mean")
    with pytest.raises(ValueError, match="label:K"):
        SequenceClassifier(model="x", reduction="first")


def test_roles_come_from_the_messages_and_not_from_their_parity(llama3):
    turns = (("system", "Be kind."), ("user", "Hi."), ("user", "Is it?"), ("assistant", "What?"), ("user", "The egg."))
    shown = load(llama3).describe(ask("", *turns))
    assert shown == (
        "<|begin|><|start|>system<|mid|>\n\nBe kind.<|eot|><|start|>user<|mid|>\n\nHi.<|eot|>"
        "<|start|>user<|mid|>\n\nIs it?<|eot|><|start|>assistant<|mid|>\n\nWhat?<|eot|>"
        "<|start|>user<|mid|>\n\nThe egg.<|eot|><|start|>assistant<|mid|>\n\n<response><|eot|>"
    )


def test_a_role_without_a_place_in_the_template_is_an_error_of_that_prompt_only(eurus):
    scorer = RegressionHead(model=str(eurus), template="eurus").load("cpu")
    requests = [ScoreRequest(ask("", ("system", "Be kind."), ("user", "Hi."), name="p/1"), RESPONSES)]
    bad, good = scorer.score([*requests, ScoreRequest(ask(), RESPONSES)])
    assert all(map(math.isnan, bad.rewards))
    assert "p/1, particle 0" in bad.errors[0]
    assert "role 'system'" in bad.errors[0]
    assert good.errors == (None,) * 5


@pytest.mark.parametrize("kind", ["llama3", "deberta"])
@torch.no_grad()
def test_the_head_runs_in_float32_whatever_the_body_does(kind, request):
    folder = request.getfixturevalue(kind)
    template = "pair" if kind == "deberta" else "chat"
    scorer = load(folder, dtype="bfloat16", template=template)
    assert next(scorer.reader.padded.model.parameters()).dtype == torch.bfloat16
    values = torch.tensor(rewards(scorer))
    assert (values.bfloat16().float() != values).all()
    assert values.tolist() == pytest.approx(rewards(load(folder, template=template)), abs=0.3)


def test_the_head_of_a_regression_model_runs_in_float32(eurus):
    scorer = RegressionHead(model=str(eurus), template="eurus", dtype="bfloat16").load("cpu")
    values = torch.tensor(rewards(scorer))
    assert (values.bfloat16().float() != values).all()


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_a_score_does_not_depend_on_its_batch(llama3, shared_prefix):
    scorer = load(llama3, shared_prefix=shared_prefix)
    alone = [rewards(scorer, responses=(response,))[0] for response in RESPONSES]
    assert rewards(scorer) == pytest.approx(alone, abs=1e-5)
    small = load(llama3, shared_prefix=shared_prefix, batch_tokens=40)
    assert rewards(small) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_equal_requests_give_equal_bits_whatever_else_waits(llama3, shared_prefix):
    """Also in another order, after other prompts were kept, and after the kept ones were dropped."""
    settings = {"shared_prefix": shared_prefix, "prefix_mb": 0}
    expected = rewards(load(llama3, **settings))
    scorer = load(llama3, shared_prefix=shared_prefix)
    others = [ScoreRequest(ask(f"Question {k}? " * k, name=f"p/{k}"), RESPONSES[: k + 1]) for k in range(1, 4)]
    mine = ScoreRequest(ask(), RESPONSES)
    for at in (0, 2):
        assert scorer.score([*others[:at], mine, *others[at:]])[at].rewards == expected
    backwards = scorer.score([ScoreRequest(ask(), RESPONSES[::-1])])[0].rewards
    assert backwards[::-1] == expected


def test_across_prompts_scores_differ_by_rounding_only(llama3):
    requests = [ScoreRequest(ask(f"Question {k}? " * k, name=f"p/{k}"), RESPONSES) for k in range(1, 5)]
    apart, together = load(llama3).score(requests), load(llama3, across_prompts=True).score(requests)
    for one, other in zip(apart, together, strict=True):
        assert one.rewards == pytest.approx(other.rewards, abs=1e-5)
        assert other.seconds > 0


def test_a_template_must_be_known_and_a_chat_template_must_exist(ultrarm):
    with pytest.raises(ValueError, match="ultrarm_card"):
        SequenceClassifier(model="x", template="ultrarm")
    with pytest.raises(ValueError, match="has no chat template"):
        RegressionHead(model=str(ultrarm)).load("cpu")


def test_a_response_with_its_own_space_gets_no_second_one(ultrarm):
    scorer = RegressionHead(model=str(ultrarm), template="ultrarm_card").load("cpu")
    assert rewards(scorer, responses=(" No.",)) == rewards(scorer, responses=("No.",))


def test_identical_responses_are_read_once(llama3):
    read = []
    for responses in (("No.", "Yes."), ("No.", "Yes.", "No.", "No.")):
        scorer = load(llama3)
        before = scorer.stats()["tokens_read"]
        scores = scorer.score([ScoreRequest(ask(), responses)])[0]
        read.append(scorer.stats()["tokens_read"] - before)
    assert read[0] == read[1] > 0
    assert scores.rewards[0] == scores.rewards[2] == scores.rewards[3] != scores.rewards[1]


def test_an_empty_response_and_no_response_at_all(llama3, ultrarm):
    for scorer in (load(llama3), RegressionHead(model=str(ultrarm), template="plain").load("cpu")):
        assert math.isfinite(rewards(scorer, responses=("",))[0])
        assert rewards(scorer, responses=()) == ()


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_what_is_not_finite_is_nan_with_prompt_and_particle(llama3, shared_prefix):
    scorer = load(llama3, shared_prefix=shared_prefix)
    token = scorer.tokenizer("?", add_special_tokens=False)["input_ids"][0]
    scorer.reader.padded.body.embed_tokens.weight[token] = math.inf
    scores = scorer.score([ScoreRequest(ask("Hi."), ("No.", "No?", "Yes."))])[0]
    assert math.isnan(scores.rewards[1])
    assert scores.errors[1] == "prompt p/0, particle 1: the reward model returned nan"
    assert scores.errors[0] is None
    assert all(map(math.isfinite, (scores.rewards[0], scores.rewards[2])))


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("weight", ["score.weight", "model.norm.weight"])
def test_weights_that_are_not_finite_are_refused_at_load(llama3, tmp_path, weight, shared_prefix):
    model = AutoModelForSequenceClassification.from_pretrained(llama3)
    with torch.no_grad():
        dict(model.named_parameters())[weight].fill_(math.nan)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"the checkpoint is damaged.*not finite: {weight}"):
        load(tmp_path, shared_prefix=shared_prefix)


def test_a_token_without_an_embedding_is_refused_at_load_or_is_an_error_of_its_row(llama3, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(llama3).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(llama3)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(tmp_path)
    embeddings = AutoModelForSequenceClassification.from_pretrained(llama3).get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings:
        scores = load(tmp_path).score([ScoreRequest(ask(), ("No.", "An <image>."))])[0]
        assert "has no embedding" in scores.errors[1]
        assert scores.errors[0] is None
    tokenizer.add_tokens([f"extra{at}" for at in range(embeddings - len(tokenizer) + 2)])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give the tokenizer that belongs to this model"):
        load(tmp_path)
