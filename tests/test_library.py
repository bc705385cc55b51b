"""`best_responses`: the call of a script or notebook."""

import asyncio
import inspect
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aisp_ray import abest_responses, best_responses, evaluate
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.worker import beside_a_loop

PROMPTS = ["Could you help me brew the coffee? It tastes bitter.", "How do I clean the oven?"]
SMALL = {"policy": {"max_new_tokens": 12}, "progress": False, "n": 3}


def most_words(prompt, responses):
    return [float(len(set(text.split()))) for text in responses]


@pytest.fixture(scope="module")
def found():
    return best_responses("demo:policy", PROMPTS, most_words, kappa=2, **SMALL)


def test_a_result_holds_the_response_its_reward_its_trace_and_its_cost(found):
    assert [item.prompt for item in found] == PROMPTS
    for item in found:
        assert item.error is None
        assert item.reward == most_words(None, [item.response])[0]
        assert len(item.trace["reward_mean"]) == 2
        assert item.cost["num_samples"] == 6


def test_the_same_call_gives_the_same_responses(found):
    again = best_responses("demo:policy", PROMPTS, most_words, kappa=2, **SMALL)
    other = best_responses("demo:policy", PROMPTS, most_words, kappa=2, seed=1, **SMALL)
    assert [item.response for item in again] == [item.response for item in found]
    assert [item.response for item in other] != [item.response for item in found]


def test_results_are_a_table_in_the_schema_of_an_evaluation(found):
    from aisp_ray.results import ROW_SCHEMA

    assert found.to_arrow().schema == ROW_SCHEMA
    assert found.to_arrow()["response"].to_pylist() == [item.response for item in found]
    assert "2 best responses" in repr(found)
    assert len(found[:1]) == 1


def test_a_loaded_model_and_its_path_give_the_same_responses(found):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(__file__).parent.parent / "aisp_ray" / "demo" / "models" / "policy"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    same = best_responses(model, PROMPTS, most_words, tokenizer=tokenizer, kappa=2, **SMALL)
    assert [item.response for item in same] == [item.response for item in found]


def test_a_running_event_loop_does_not_matter():
    async def notebook():
        inside = best_responses("demo:policy", PROMPTS[:1], most_words, method="best_of_n", **SMALL)
        awaited = await abest_responses("demo:policy", PROMPTS[:1], most_words, method="best_of_n", **SMALL)
        return inside[0].response, awaited[0].response

    inside, awaited = asyncio.run(notebook())
    assert inside == awaited


def test_dialogues_rows_and_method_objects_are_taken():
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": PROMPTS[1]},
    ]
    prompts = [turns, {"prompt": PROMPTS[0], "other": 1}]
    found = best_responses(
        "demo:policy", prompts, most_words, method=BestOfN(n=2), policy={"max_new_tokens": 8}, progress=False
    )
    assert [item.error for item in found] == [None, None]
    assert PROMPTS[1] in found[0].prompt


def test_a_prompt_that_cannot_be_used_costs_the_others_nothing():
    found = best_responses("demo:policy", [PROMPTS[0], "", [{"role": "user"}]], most_words, method="best_of_n", **SMALL)
    assert found[0].error is None
    for item in found[1:]:
        assert item.error
        assert item.response is None
        assert math.isnan(item.reward)
    assert "2 failed" in repr(found)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"prompts": "one text"}, "give a list of prompts"),
        ({"method": "aips"}, "Did you mean"),
        ({"sigmaa": 1}, "sigma"),
        ({"max_new_tokens": 8, "slots": 2}, r"give policy=\{'max_new_tokens': 8, 'slots': 2\}"),
        ({"reward": 3}, "not a function"),
        ({"reward": "demoo"}, "Did you mean"),
        ({"policy": {"max_new_token": 3}}, "max_new_tokens"),
        ({"model": "no/such/folder"}, "config.json"),
        ({"tokenizer": object()}, "tokenizer"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, text):
    call = {"model": "demo:policy", "prompts": PROMPTS, "reward": most_words, "progress": False, **arguments}
    with pytest.raises(ValueError, match=text):
        best_responses(call.pop("model"), call.pop("prompts"), call.pop("reward"), **call)


def test_importing_the_package_stays_light():
    script = "import sys, aisp_ray; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent).returncode == 0


def test_a_budget_is_the_number_of_responses_of_any_method():
    for method in ("best_of_n", "aisp"):
        found = best_responses("demo:policy", PROMPTS[:1], most_words, method=method, budget=6, **SMALL)
        assert found[0].cost["num_samples"] == 6
    with pytest.raises(ValueError, match="no multiple"):
        best_responses("demo:policy", PROMPTS[:1], most_words, budget=7, **SMALL)


def test_an_evaluation_is_the_command_and_its_results_open(tmp_path, monkeypatch):
    from tests.report.made_rows import made_row, write_output

    asked = []
    monkeypatch.setattr("aisp_ray.pipeline.run", lambda plan: asked.append(plan) or 0)
    monkeypatch.setattr("aisp_ray.report.figures.evaluation.DRAWINGS", ())  # drawing takes most of a report's time
    rows = [made_row(method, ordinal, 0) for method in ("best_of_n", "aisp") for ordinal in range(4)]
    out = write_output(tmp_path / "out", rows, config={})
    done = evaluate({"method.aisp.sigma": 0.25}, method=["best_of_n", "aisp"], limit=4, out=str(out), report=False)
    (plan,) = asked
    assert (list(plan.methods), plan.methods["aisp"].sigma, plan.limit) == (["best_of_n", "aisp"], 0.25, 4)
    assert done.to_arrow().num_rows == len(done.to_pandas()) == 8
    assert "vs best_of_n" in done.table()
    assert str(done) == done.table()
    assert done.table("markdown").startswith("**made**")
    assert Path(done.report()).is_file()


@pytest.mark.parametrize(("code", "error"), [(1, RuntimeError), (2, ValueError), (75, RuntimeError)])
def test_an_evaluation_that_did_not_end_raises(code, error, tmp_path, monkeypatch):
    monkeypatch.setattr("aisp_ray.pipeline.run", lambda plan: code)
    with pytest.raises(error, match=str(tmp_path)):
        evaluate(out=str(tmp_path))
    monkeypatch.setattr("aisp_ray.pipeline.run", lambda plan: 130)
    with pytest.raises(KeyboardInterrupt):
        evaluate(out=str(tmp_path))


def test_a_wrong_key_of_an_evaluation_is_one_sentence(tmp_path):
    for keys, text in (({"metod": "aisp"}, "Did you mean"), ({"seed": 2**70}, "64 bits"), ({"limit": 0}, "at least 1")):
        with pytest.raises(ValueError, match=text):
            evaluate(out=str(tmp_path), **keys)


def test_both_calls_have_one_signature():
    assert inspect.signature(best_responses) == inspect.signature(abest_responses)
    assert best_responses.__name__ == "best_responses"
    assert best_responses.__doc__ == abest_responses.__doc__
    assert not inspect.iscoroutinefunction(best_responses)


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, which processes that run tests side by side ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_beside_a_running_loop_ends_the_work_and_not_only_the_wait():
    """As in a notebook, whose own loop runs in the main thread."""
    ended = []

    async def forever():
        try:
            await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                await asyncio.sleep(0.01)
        finally:
            ended.append(threading.current_thread().name)

    async def cell():
        beside_a_loop(lambda: asyncio.run(forever()))

    loop = asyncio.new_event_loop()
    for count in (1, 2):  # and the next cell works
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(cell())
        assert ended == ["aisp_ray"] * count
    loop.close()
