"""RE-Control's value function: loss and gradient step against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aisp_ray.controls.value import Example, Fit, ValueFunction, fit, gradient_feedback, value_loss


def function_of(dim=3, hidden=5, seed=0):
    torch.manual_seed(seed)
    return ValueFunction(dim, hidden)


@pytest.mark.parametrize(("terminal", "end_of"), [("last", lambda T: T - 1), ("first_compat", lambda T: 0)])
def test_the_loss_and_its_gradient_are_the_papers(terminal, end_of):
    function, g = function_of(), torch.Generator().manual_seed(1)
    lengths, r = [4, 1, 2], torch.tensor([1.0, -0.5, 2.0])
    hidden = torch.randn(3, 4, 3, generator=g)
    live = torch.tensor([[t < T for t in range(4)] for T in lengths]).float()
    expected = 0.0
    for i, T in enumerate(lengths):
        V = [function(hidden[i, t]) for t in range(T)]
        expected = expected + sum((V[t] - V[t + 1]) ** 2 for t in range(T - 1)) + (V[end_of(T)] - r[i]) ** 2
    expected = expected / 3
    found = value_loss(function(hidden), live, r, terminal)
    torch.testing.assert_close(found, expected)
    one = torch.autograd.grad(found, list(function.parameters()))
    two = torch.autograd.grad(expected, list(function.parameters()))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_law_takes_gradient_steps_on_the_value(tmp_path, steps):
    function = function_of()
    function.save(tmp_path / "v.safetensors", {})
    law = gradient_feedback("cpu", 3, str(tmp_path / "v.safetensors"), step_size=0.3, steps=steps)
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    W1, b1, W2, b2, W3, _ = [p.detach() for p in function.parameters()]
    moved = z.clone()
    for _ in range(steps):  # the gradient of the network, by hand
        a1 = moved @ W1.T + b1
        a2 = a1.relu() @ W2.T + b2
        moved = moved + 0.3 * (((a2 > 0).float() * W3[0]) @ W2 * (a1 > 0).float()) @ W1
    torch.testing.assert_close(law(z), moved - z, atol=1e-6, rtol=1e-5)
    assert (function(z + law(z)) >= function(z) - 1e-6).all()
    with torch.inference_mode():  # where an engine may call it
        torch.testing.assert_close(law(z), moved - z, atol=1e-6, rtol=1e-5)


def test_rows_do_not_see_each_other(tmp_path):
    function_of().save(tmp_path / "v.safetensors", {})
    law = gradient_feedback("cpu", 3, str(tmp_path / "v.safetensors"), step_size=0.3, steps=3)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(law(z)[2:3], law(z[2:3]))


def test_a_file_keeps_the_function_and_its_facts(tmp_path):
    function = function_of()
    function.save(tmp_path / "v.safetensors", {"cost": {"num_samples": 7}})
    again, facts = ValueFunction.load(tmp_path / "v.safetensors")
    z = torch.randn(4, 3)
    torch.testing.assert_close(again(z), function(z))
    assert facts["cost"]["num_samples"] == 7


def test_wrong_files_and_widths_are_named(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match="jobs/train_value"):
        ValueFunction.load(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(ValueError, match="is no value function"):
        ValueFunction.load(tmp_path / "x.safetensors")
    function_of().save(tmp_path / "v.safetensors", {})
    with pytest.raises(ValueError, match="width 3, the policy's is 8"):
        gradient_feedback("cpu", 8, str(tmp_path / "v.safetensors"), step_size=0.3, steps=1)


def test_a_fit_learns_what_can_be_learnt_and_repeats():
    """The reward is a linear function of the last pre-logit, which the earlier ones carry too."""
    draw = np.random.default_rng(0)
    examples = []
    for _ in range(120):
        z = draw.standard_normal(4)
        rows = z + 0.1 * draw.standard_normal((draw.integers(1, 6), 4))
        examples.append(Example(rows.astype(np.float16), float(rows[-1] @ [1.0, -2.0, 0.5, 0.0])))
    how = Fit(hidden=16, epochs=25, batch_size=16, learning_rate=1e-2, terminal="last", seed=3)
    function, curve = fit(examples[:100], examples[100:], how)
    assert curve[-1]["held_out_correlation"] > 0.9
    assert min(point["held_out_loss"] for point in curve) < 0.3 * curve[0]["held_out_loss"]
    again, _ = fit(examples[:100], examples[100:], how)
    for a, b in zip(function.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
