"""The loop and the driver with fake models: pure functions of (seed, prompt, iteration, particle)."""

import ast
import asyncio
import inspect
import json
import math
import re
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from aisp_ray.driver import Driver, MethodError, search
from aisp_ray.errors import DataError
from aisp_ray.ledger import Outcome, Task, particle_rows, row_of
from aisp_ray.methods.aisp import Aisp
from aisp_ray.methods.best_of_n import BestOfN
from aisp_ray.pipeline.codec import decode, encode
from aisp_ray.results import PARTICLE_SCHEMA, ROW_SCHEMA
from aisp_ray.rng import generator
from aisp_ray.types import Prompt, Rollout, Rollouts, Scores

NOUNS = {"method", "policy", "reward"}
RUN = {"run_id": "r", "config_hash": "h", "seed": 0}


def draw(seed, prompt, iteration, particle):
    return float(generator(seed, prompt.prompt_id, iteration, particle).normal())


class FakePolicy:
    def __init__(self):
        self.running = self.most = 0

    async def rollout(self, prompt, proposal, seed):
        if "too long" in prompt.text:
            raise DataError("the prompt has 9 tokens")
        if "crash" in prompt.text:
            raise RuntimeError("no actor left")
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        items = tuple(
            Rollout(i, repr(draw(seed, prompt, proposal.iteration, i)), (1, 2, 3), "stop", 3)
            for i in range(proposal.num_samples)
        )
        return Rollouts(proposal.iteration, items, 5, control_norm=0.5, seconds=0.1)


class FakeReward:
    async def score(self, prompt, responses):
        await asyncio.sleep(0)
        rewards = [math.nan if "hopeless" in prompt.text else float(text) for text in responses]
        errors = tuple("not a number" if math.isnan(r) else None for r in rewards)
        return Scores(tuple(rewards), errors, seconds=0.2)


def prompt(ordinal, text="hello", error=None):
    return Prompt(f"fake/test/{ordinal:08d}", ordinal, "fake", text, error=error)


class FailingJudge:
    """Gives no score, and says why in one of the two ways."""

    def __init__(self, raises):
        self.raises = raises

    async def score(self, prompt, responses):
        if self.raises:
            raise DataError("the response is too long")
        return Scores((math.nan,), ("the endpoint said 401",))


def outcomes(tasks, in_flight=4, policy=None, resume=None, judges=None, reward=None):
    async def go():
        async def stream():
            for task in tasks:
                yield task

        driver = Driver(policy or FakePolicy(), reward or FakeReward(), judges or {"judge": FakeReward()}, 0, in_flight)
        return [outcome async for outcome in driver.run(stream(), resume)]

    return asyncio.run(go())


def test_best_of_n_keeps_the_best_of_all_draws():
    task = Task(prompt(3), "best_of_n", BestOfN(n=4, kappa=3))
    progress = asyncio.run(search(task, FakePolicy(), FakeReward(), seed=7))
    rewards = [[draw(7, task.prompt, k, i) for i in range(4)] for k in range(3)]
    assert progress.state.best.reward == max(map(max, rewards))
    assert progress.trace.reward_mean == pytest.approx([sum(r) / 4 for r in rewards])
    assert progress.trace.reward_max == pytest.approx([max(r) for r in rewards])
    best = [max(max(r) for r in rewards[: k + 1]) for k in range(3)]
    assert progress.trace.reward_best == pytest.approx(best)
    assert progress.trace.num_samples_seen == (4, 8, 12)
    assert (progress.trace.num_generated_tokens, progress.trace.num_reward_calls) == (36, 12)


def test_aisp_traces_its_effective_sample_size():
    task = Task(prompt(0), "aisp", Aisp(n=5, kappa=2, horizon=3))
    progress = asyncio.run(search(task, FakePolicy(), FakeReward(), seed=0))
    assert all(1 <= ess <= 5 for ess in progress.trace.ess)
    assert len(progress.state.log.entries) == 2


def test_rows_do_not_depend_on_how_many_are_in_flight():
    tasks = [Task(prompt(i), "aisp", Aisp(n=3, kappa=3, horizon=3)) for i in range(12)]

    def rows(in_flight):
        found = [row_of(outcome, RUN) for outcome in outcomes(tasks, in_flight)]
        return sorted(({**row, "wall_seconds": 0} for row in found), key=lambda row: row["ordinal"])

    assert rows(1) == rows(12)


def test_no_more_than_in_flight_run_at_once():
    policy = FakePolicy()
    found = outcomes([Task(prompt(i), "b", BestOfN(n=2, kappa=3)) for i in range(20)], 3, policy)
    assert len(found) == 20
    assert policy.most == 3


def test_bad_data_is_an_error_row_and_the_rest_goes_on():
    tasks = [
        Task(prompt(0), "b", BestOfN(n=2, kappa=1)),
        Task(prompt(1, "too long"), "b", BestOfN(n=2, kappa=1)),
        Task(prompt(2, "", error="the prompt is empty"), "b", BestOfN(n=2, kappa=1)),
        Task(prompt(3, "hopeless"), "b", BestOfN(n=2, kappa=1)),
    ]
    rows = {outcome.task.prompt.ordinal: row_of(outcome, RUN) for outcome in outcomes(tasks)}
    assert [rows[i]["status"] for i in range(4)] == ["ok", "error", "error", "error"]
    assert rows[1]["error"] == "the prompt has 9 tokens"
    assert rows[2]["error"] == "the prompt is empty"
    assert "not a number" in rows[3]["error"]
    assert rows[3]["num_failed_particles"] == 2
    assert rows[3]["reward"] is None
    assert rows[3]["reward_mean"] == [None]


def test_why_a_judge_has_no_score_stays_with_the_row():
    judges = {"judge": FakeReward(), "raises": FailingJudge(True), "answers": FailingJudge(False)}
    (outcome,) = outcomes([Task(prompt(0), "b", BestOfN(n=2, kappa=1))], judges=judges)
    row = row_of(outcome, RUN)
    assert row["judge_names"] == list(judges)
    assert row["judge_rewards"] == [row["reward"], None, None]
    reasons = {"raises": "the response is too long", "answers": "the endpoint said 401"}
    assert json.loads(row["extra"])["judge_errors"] == reasons
    (outcome,) = outcomes([Task(prompt(0), "b", BestOfN(n=2, kappa=1))])
    assert "judge_errors" not in (row_of(outcome, RUN)["extra"] or "")


def test_how_many_responses_were_scored_with_a_cut_prompt_is_in_the_row():
    class Cutting(FakeReward):
        async def score(self, prompt, responses):
            return replace(await super().score(prompt, responses), num_truncated=1 if prompt.ordinal else 0)

    def extra(ordinal):
        task = Task(prompt(ordinal), "b", BestOfN(n=2, kappa=3))
        progress = asyncio.run(search(task, FakePolicy(), Cutting(), seed=0))
        return json.loads(row_of(Outcome(task, progress), RUN)["extra"] or "{}")

    assert extra(1)["num_truncated"] == 3
    assert "num_truncated" not in extra(0)


def test_a_lost_machine_ends_the_run_and_is_not_a_row():
    with pytest.raises(RuntimeError, match="no actor left"):
        outcomes([Task(prompt(0, "crash"), "b", BestOfN(n=2, kappa=1))])


class Fragile(BestOfN):
    """A method that fails on some prompts, in its second iteration."""

    def tell(self, state, rollouts, scores):
        if rollouts.iteration == 1 and int(state.prompt_id[-8:]) in self.fails_on:
            raise ZeroDivisionError("no weight is left")
        return super().tell(state, rollouts, scores)


def fragile(*ordinals):
    method = Fragile(n=2, kappa=3)
    object.__setattr__(method, "fails_on", ordinals)
    return method


def test_a_method_that_fails_on_one_prompt_costs_one_row(caplog):
    method = fragile(2)
    found = outcomes([Task(prompt(i), "fragile", method) for i in range(5)])
    rows = {outcome.task.prompt.ordinal: row_of(outcome, RUN) for outcome in found}
    assert [rows[i]["status"] for i in range(5)] == ["ok", "ok", "error", "ok", "ok"]
    assert "the method fragile failed: ZeroDivisionError: no weight is left (test_driver.py:" in rows[2]["error"]
    assert rows[2]["num_samples"] == 2  # what was drawn before counts
    assert "Traceback" in caplog.text


def test_the_first_traceback_of_a_reward_is_shown_once(caplog):
    class Failing(FakeReward):
        async def score(self, prompt, responses):
            scores = await super().score(prompt, responses)
            return replace(scores, traceback="Traceback of my_scores.py:7\n")

    tasks = [Task(prompt(i), "best_of_n", BestOfN(n=2, kappa=2)) for i in range(3)]
    found = outcomes(tasks, reward=Failing())
    assert [outcome.error for outcome in found] == [None] * 3
    assert caplog.text.count("Traceback of my_scores.py:7") == 1
    assert "the affected responses are dropped" in caplog.text


def test_a_method_that_never_worked_ends_the_run_rather_than_making_error_rows():
    class Broken(BestOfN):
        def ask(self, state):
            raise KeyError("horizon")

    with pytest.raises(MethodError, match="the method broken failed: KeyError") as raised:
        outcomes([Task(prompt(i), "broken", Broken(n=2, kappa=1)) for i in range(20)])
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_search_goes_on_from_a_snapshot_to_the_same_row():
    task = Task(prompt(5), "aisp", Aisp(n=4, kappa=4, horizon=3))
    seen = []
    whole = asyncio.run(search(task, FakePolicy(), FakeReward(), 0, watch=lambda t, p, r, s: seen.append(encode(p))))
    again = asyncio.run(search(task, FakePolicy(), FakeReward(), 0, resume=decode(seen[1])))
    assert again.state.log == whole.state.log
    assert again.state.best.response == whole.state.best.response
    assert again.trace.reward_best == whole.trace.reward_best


def test_rows_fit_their_schemas():
    import pyarrow as pa

    task = Task(prompt(0), "aisp", Aisp(n=2, kappa=1, horizon=3))
    (outcome,) = outcomes([task])
    row = row_of(outcome, RUN)
    assert set(row) == set(ROW_SCHEMA.names)
    table = pa.Table.from_pylist([row], schema=ROW_SCHEMA)
    assert table["judge_rewards"].to_pylist() == [[row["reward"]]]
    drawn = asyncio.run(FakePolicy().rollout(task.prompt, task.method.ask(task.method.init(task.prompt, 0)), 0))
    scores = asyncio.run(FakeReward().score(task.prompt, [item.text for item in drawn.items]))
    particles = list(particle_rows(task, drawn, scores, "r"))
    assert pa.Table.from_pylist(particles, schema=PARTICLE_SCHEMA).num_rows == 2
    assert set(particles[0]) == set(PARTICLE_SCHEMA.names)


def test_the_loop_of_the_readme_is_the_loop_of_the_code():
    """The same calls with the same arguments in the same order, and the same end."""

    def steps(source):
        tree = ast.parse(source.replace("progress.state", "state"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        mine = [c for c in calls if isinstance(c.func, ast.Attribute) and ast.unparse(c.func.value) in NOUNS]
        awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}
        loop = next(node for node in ast.walk(tree) if isinstance(node, ast.While))
        lines = [(c.lineno, id(c) in awaited, ast.unparse(c)) for c in mine]
        return ast.unparse(loop.test), [step[1:] for step in sorted(lines)]

    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(state = method.init.*?)```", readme, flags=re.S)
    shown = steps("async def loop():\n" + textwrap.indent(block, "    "))
    assert len(shown[1]) == 5
    assert shown == steps(inspect.getsource(search))
