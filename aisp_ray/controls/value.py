"""A value function of pre-logits, its training loss, and the control law that follows its gradient.

RE-Control, Kong et al., 2024, arXiv 2406.05954. Shapes: B responses, T positions, d pre-logit width. Row t of a
response is the pre-logit that its token t was picked from; row 0 is the prompt's last position.

Differs from the authors' code: training and decoding share one network (theirs declare two); the terminal value is
fitted at the last position (`terminal="last"`) where theirs fits it at the first (`first_compat`), an effect of an
argmax over a mask.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aisp_ray.controls.value_file import value_file


class ValueFunction(nn.Module):
    """V(z), reward units: three linear layers with ReLUs between. [..., d] -> [...]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, prelogits: Tensor) -> Tensor:
        return self.layers(prelogits).squeeze(-1)

    def save(self, path: str | Path, facts: dict[str, Any]) -> None:
        """One safetensors file; `facts` (JSON values: what it was trained on, at which cost) go into its header."""
        from safetensors.torch import save

        header = {"dim": self.dim, "hidden": self.hidden, **facts}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # written by us: safetensors' own writer makes files that only their owner can read
        Path(path).write_bytes(save(self.state_dict(), metadata={"value_function": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path, device: Any = "cpu") -> tuple[ValueFunction, dict[str, Any]]:
        """The function and its facts.

        Raises:
            ValueError: there is no such file, or it holds something else.
        """
        from safetensors import safe_open

        place = value_file(str(path))
        if not place.is_file():
            raise ValueError(f"there is no value function at {path}; train one with jobs/train_value.py")
        with safe_open(str(place), framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {}).get("value_function", "null"))
            if header is None:
                raise ValueError(f"{path} is no value function of jobs/train_value.py")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        function = cls(header["dim"], header["hidden"]).to(device)
        function.load_state_dict(state)
        return function.eval(), header


def gradient_feedback(device: Any, dim: int, path: str, step_size: float, steps: int) -> Callable[[Tensor], Tensor]:
    """The law u(z): where `steps` gradient steps of `step_size` on V, begun at z, lead, minus z. [rows, d] each.

    Raises:
        ValueError: the value function was trained on another pre-logit width.
    """
    function, _ = ValueFunction.load(path, device)
    if function.dim != dim:
        raise ValueError(
            f"the value function of {path} reads pre-logits of width {function.dim}, the policy's is {dim}"
        )
    function.requires_grad_(False)

    def law(z: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            start = z.detach().float().clone()
            moved = start.clone()
            for _ in range(steps):
                moved.requires_grad_()
                moved = (moved + step_size * torch.autograd.grad(function(moved).sum(), moved)[0]).detach()
            return moved - start

    return law


def value_loss(values: Tensor, live: Tensor, rewards: Tensor, terminal: str = "last") -> Tensor:
    """1/B sum of (V_t - V_{t+1})^2 over live neighbours and (V_end - r)^2. values, live: [B, T]; rewards: [B].

    Both sides of a pair get a gradient. V_end is the last live position's ("last") or the first's ("first_compat").
    """
    pairs = live[:, 1:] * live[:, :-1]
    smooth = (pairs * (values[:, 1:] - values[:, :-1]).square()).sum()
    last = live.sum(1).long() - 1 if terminal == "last" else torch.zeros(len(live), dtype=torch.int64)
    end = values.gather(1, last.to(values.device)[:, None]).squeeze(1)
    return (smooth + (end - rewards).square().sum()) / len(rewards)


@dataclass(frozen=True, slots=True)
class Example:
    """One response: what it is trained on."""

    prelogits: np.ndarray  # float16 [T, d]
    reward: float


@dataclass(frozen=True, slots=True)
class Fit:
    """How a value function is fitted."""

    hidden: int
    epochs: int
    batch_size: int
    learning_rate: float
    terminal: str
    seed: int


def fit(
    train: Sequence[Example], held_out: Sequence[Example], how: Fit
) -> tuple[ValueFunction, list[dict[str, float]]]:
    """Adam on `value_loss`. Returns the function of the epoch with the lowest held-out loss, and the curve.

    The curve holds per epoch: train_loss, held_out_loss, held_out_correlation (of V at the end with the reward).
    Initial weights and batches are named by the seed: equal data give equal weights on one machine.
    """
    draw = torch.Generator().manual_seed(how.seed % 2**63)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed % 2**63)
        function = ValueFunction(train[0].prelogits.shape[1], how.hidden)
    optimizer = torch.optim.Adam(function.parameters(), lr=how.learning_rate)
    curve: list[dict[str, float]] = []
    best = {name: value.clone() for name, value in function.state_dict().items()}
    for _ in range(how.epochs):
        total = 0.0
        for part in torch.randperm(len(train), generator=draw).split(how.batch_size):
            hidden, live, rewards = _batch([train[i] for i in part.tolist()])
            loss = value_loss(function(hidden), live, rewards, how.terminal)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(part)
        curve.append({"train_loss": total / len(train), **evaluate(function, held_out, how)})
        if curve[-1]["held_out_loss"] <= min(point["held_out_loss"] for point in curve):
            best = {name: value.clone() for name, value in function.state_dict().items()}
    function.load_state_dict(best)
    return function.eval(), curve


@torch.no_grad()
def evaluate(function: ValueFunction, examples: Sequence[Example], how: Fit) -> dict[str, float]:
    """Loss and correlation of V at the last position with the reward, on given responses."""
    total, ends, rewards = 0.0, [], []
    for start in range(0, len(examples), how.batch_size):
        hidden, live, r = _batch(examples[start : start + how.batch_size])
        values = function(hidden)
        total += float(value_loss(values, live, r, how.terminal)) * len(r)
        ends += values.gather(1, live.sum(1).long()[:, None] - 1).squeeze(1).tolist()
        rewards += r.tolist()
    varied = len(rewards) > 1 and np.std(ends) > 0 and np.std(rewards) > 0
    correlation = float(np.corrcoef(ends, rewards)[0, 1]) if varied else float("nan")
    return {"held_out_loss": total / len(examples), "held_out_correlation": correlation}


def _batch(examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Padded float32 pre-logits [B, T, d], live [B, T], rewards [B]."""
    longest, dim = max(len(e.prelogits) for e in examples), examples[0].prelogits.shape[1]
    hidden, live = torch.zeros(len(examples), longest, dim), torch.zeros(len(examples), longest)
    for i, example in enumerate(examples):
        hidden[i, : len(example.prelogits)] = torch.from_numpy(example.prelogits.astype(np.float32))
        live[i, : len(example.prelogits)] = 1.0
    return hidden, live, torch.tensor([example.reward for example in examples])
