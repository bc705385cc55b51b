"""MISVO's gradient, Fisher product and step against autograd and a transcription in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toy_world import DIM, ToyPolicy, drive

from aisp_ray.controls import score_log as score_controls
from aisp_ray.controls.score_log import ScoreEntry, ScoreLog, _Responses, fisher_product, kl_gradient, reward_gradient
from aisp_ray.methods.misvo import Misvo, leave_one_out
from aisp_ray.pipeline.codec import decode, encode


class Double(ToyPolicy):
    """The toy in float64, so that exact identities hold to rounding."""

    def __init__(self, **kw):
        super().__init__(**kw)
        for name in ("embedding", "position", "weight", "bias"):
            setattr(self, name, getattr(self, name).double())


def reward(ids):
    return float(sum((t + 1) * (y - 2) for t, y in enumerate(ids)))


def log_probability(policy, ids, u, temperature=1.0):
    rows = (policy.head(policy.replay([ids])[0] + u[: len(ids)]) / temperature).log_softmax(-1)
    return sum(rows[t, y] for t, y in enumerate(ids))


def test_leave_one_out_compares_with_the_others():
    r = np.array([1.0, 4.0, -2.0])
    expected = [1 - (4 - 2) / 2, 4 - (1 - 2) / 2, -2 - (1 + 4) / 2]
    np.testing.assert_allclose(leave_one_out(r), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_expected_step_is_the_gradient_of_the_expected_reward(temperature):
    """Over all pairs of responses, weighted by their probability, g averages to grad_u E[r] exactly."""
    policy = Double(max_new_tokens=3, seed=1)
    u = (0.3 * torch.randn(3, DIM, generator=torch.Generator().manual_seed(2))).double().requires_grad_()
    responses = [ids for ids, _ in policy.responses()]
    log_p = torch.stack([log_probability(policy, ids, u, temperature) for ids in responses])
    r = torch.tensor([reward(ids) for ids in responses], dtype=torch.float64)
    exact = torch.autograd.grad((log_p.exp() * r).sum(), u)[0]
    p = log_p.exp().detach()
    assert p.sum() == pytest.approx(1.0)
    # g is linear in the advantages: one call a response with advantage 1, then the sum over pairs by hand
    drawn = [_Responses.of([ids], policy, 3) for ids in responses]
    drawn = [_Responses(d.hidden.double(), d.tokens, d.live.double()) for d in drawn]
    one = torch.ones(1, dtype=torch.float64)
    score = torch.stack([reward_gradient(policy.head, u.detach(), d, one, temperature) for d in drawn])
    gap = r[:, None] - r[None, :]  # the leave-one-out advantage of i beside j; j's is its negative
    np.testing.assert_allclose(leave_one_out(r[[3, 7]].numpy()), [gap[3, 7], gap[7, 3]])
    average = (
        torch.einsum("i,j,ij,itd->td", p, p, gap, score) / 2 - torch.einsum("i,j,ij,jtd->td", p, p, gap, score) / 2
    )
    torch.testing.assert_close(average, exact, atol=1e-6, rtol=0)  # pre-logits are kept in float32


def test_a_linear_head_gives_the_papers_formula():
    policy = Double(max_new_tokens=3)
    ids, advantages = [(1, 2, 3), (4, 0), (2, 2, 2)], [0.5, -1.5, 1.0]
    u = torch.randn(3, DIM, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.zeros(3, DIM).double()
    for a, y in zip(advantages, ids, strict=True):
        for t, h in enumerate(policy.replay([y])[0]):
            p = policy.head(h + u[t]).softmax(-1)
            e = torch.eye(5).double()[y[t]]
            expected[t] += a / 3 * policy.weight.T @ (e - p)
    drawn = _Responses.of(ids, policy, 3)
    drawn = _Responses(drawn.hidden.double(), drawn.tokens, drawn.live.double())
    found = reward_gradient(policy.head, u, drawn, torch.tensor(advantages).double(), 1.0)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


def reference_of(policy):
    ids = [(1, 2, 3), (4, 0), (2, 1, 0)]
    found = _Responses.of(ids, policy, 3)
    return _Responses(found.hidden.double(), found.tokens, found.live.double())


@pytest.mark.parametrize("capped", [False, True])
def test_the_fisher_product_is_the_explicit_matrix_and_the_curvature_of_the_kl(capped):
    policy, u = Double(max_new_tokens=3), torch.randn(3, DIM, generator=torch.Generator().manual_seed(4)).double()
    head = (lambda z: 2.0 * torch.tanh(policy.head(z) / 2.0)) if capped else policy.head
    reference = reference_of(policy)
    found = fisher_product(head, u, reference, 1.0)
    for t in range(3):
        F = torch.zeros(DIM, DIM).double()
        alive = [i for i in range(3) if reference.live[i, t]]
        for i in alive:
            z = reference.hidden[i, t]
            J = torch.autograd.functional.jacobian(head, z)  # [V, d]
            p = head(z).softmax(-1)
            F += J.T @ (torch.diag(p) - torch.outer(p, p)) @ J / len(alive)
        torch.testing.assert_close(found[t], F @ u[t], atol=1e-9, rtol=0)

        def kl(x, t=t, alive=alive):
            base = [head(reference.hidden[i, t]).log_softmax(-1) for i in alive]
            moved = [head(reference.hidden[i, t] + x).log_softmax(-1) for i in alive]
            return sum((q.exp() * (q - b)).sum() for q, b in zip(moved, base, strict=True)) / len(alive)

        hessian = torch.autograd.functional.hessian(kl, torch.zeros(DIM).double())
        torch.testing.assert_close(hessian, F, atol=1e-9, rtol=0)
        torch.testing.assert_close(
            kl_gradient(head, u, reference, 1.0)[t], torch.autograd.functional.jacobian(kl, u[t]), atol=1e-9, rtol=0
        )


@pytest.mark.parametrize(
    ("penalty", "fisher"),
    [
        *((penalty, "reference") for penalty in ("fisher", "kl", "l2", "none")),
        ("fisher", "prefixes"),
        ("fisher", "on_policy"),
    ],
)
def test_the_loop_is_the_papers(penalty, fisher):
    """Ten lines of it: sample, leave-one-out, gradient, frozen reference, step; explicit matrices, no chunks."""
    policy = ToyPolicy(max_new_tokens=3, seed=5)
    method = Misvo(n=6, kappa=3, step_size=0.2, strength=0.5, penalty=penalty, fisher=fisher, horizon=3)
    state, history = drive(method, policy, reward)
    u = torch.zeros(3, DIM)
    first = [item.token_ids for item in history[0][1].items]
    for _, rollouts, scores, _ in history:
        r, step = np.array(scores.rewards), torch.zeros(3, DIM)
        for i, item in enumerate(rollouts.items):
            a = r[i] - np.delete(r, i).mean()
            for t, y in enumerate(item.token_ids):
                p = policy.head(policy.prelogit(item.token_ids[:t]) + u[t]).softmax(-1)
                step[t] += a / 6 * policy.weight.T @ (torch.eye(5)[y] - p)
        for t in range(3):
            last = [item.token_ids for item in rollouts.items]
            alive = [ids for ids in (first if fisher == "reference" else last) if t < len(ids)]
            for ids in alive:
                z = policy.prelogit(ids[:t])
                p, q = policy.head(z).softmax(-1), policy.head(z + u[t]).softmax(-1)
                own = q if fisher == "on_policy" else p
                F = policy.weight.T @ (torch.diag(own) - torch.outer(own, own)) @ policy.weight
                gap = q.log() - p.log()
                kl = policy.weight.T @ (q * (gap - (q * gap).sum()))
                step[t] -= 0.5 / len(alive) * {"fisher": F @ u[t], "kl": kl, "l2": u[t], "none": 0 * u[t]}[penalty]
            if not alive and penalty == "l2":
                step[t] -= 0.5 * u[t]
        u = u + 0.2 * step
    torch.testing.assert_close(method.mean(state).fold(policy, 3), u, atol=1e-5, rtol=1e-5)


def test_chunks_over_time_and_going_on_from_the_parent_change_nothing(monkeypatch):
    policy = ToyPolicy(max_new_tokens=4)
    entries = (ScoreEntry(((1, 2, 3, 4), (4, 0)), (1.0, -1.0)), ScoreEntry(((2, 2, 0), (1, 1, 1, 1)), (-0.5, 0.5)))
    log = ScoreLog(entries)
    whole = log.fold(policy, 4)
    monkeypatch.setattr(score_controls, "CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(log.fold(policy, 4), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(log.advance(log.parent().fold(policy, 4), policy, 4), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(log.fold(policy, 2), whole[:2], atol=1e-6, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(log.fold(policy, 4), whole, atol=1e-6, rtol=0)


def test_rewards_rise_on_an_easy_reward():
    policy = ToyPolicy(max_new_tokens=4, ends=False)
    _, history = drive(Misvo(n=24, kappa=9, step_size=0.6, strength=0.0, penalty="none", horizon=4), policy, reward)
    means = [np.mean(scores.rewards) for _, _, scores, _ in history]
    assert np.mean(means[-3:]) > np.mean(means[:3]) + 1.0


def test_failed_responses_are_left_out_and_one_alone_moves_nothing():
    from toy_world import prompt

    from aisp_ray.types import Scores

    policy, method = ToyPolicy(), Misvo(n=3, kappa=3, horizon=4)
    state = method.init(prompt(), 0)
    rollouts = policy.rollout(prompt(), method.ask(state), 0)
    one, _ = method.tell(state, rollouts, Scores((1.0, math.nan, math.nan)))
    assert one.entries == ()
    two, _ = method.tell(state, rollouts, Scores((1.0, math.nan, 2.0)))
    assert two.entries[0].advantages == (-1.0, 1.0)
    assert two.entries[0].token_ids == (rollouts.items[0].token_ids, rollouts.items[2].token_ids)
    assert decode(encode(two)) == two


@pytest.mark.parametrize(("settings", "words"), [({"n": 1}, "at least 2"), ({"penalty": "L1"}, "fisher, kl, l2, none")])
def test_bad_settings_say_what_is_allowed(settings, words):
    with pytest.raises(ValueError, match=words):
        Misvo(**settings)
