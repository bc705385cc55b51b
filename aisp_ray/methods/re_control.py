"""RE-Control: the pre-logit follows the gradient of a learned value function (Kong et al., 2024, arXiv 2406.05954).

At every generated position,  z <- z + step_size * grad V(z),  `steps` times; the edited z goes to the LM head only.
V is a small network on pre-logits, trained beforehand to predict the reward of the finished response; see
`jobs/train_value.py`, which also records what that training cost. No reward is needed while decoding.

Differs from the paper: decoding settings are pinned here (the authors' script takes the checkpoint's); several draws
(n * kappa) are scored and the best is returned, so that it can be compared at an equal number of samples. One greedy
decode, the paper's own use, is n=1, kappa=1, temperature=0.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aisp_ray.controls.laws import Feedback
from aisp_ray.controls.value_file import training_cost
from aisp_ray.methods.base import Info, Iterative, State, check_horizon, check_sampling, require
from aisp_ray.types import CONTROL, Prompt, Proposal, Rollouts, Sampling, Scores


@dataclass(frozen=True, slots=True)
class ReControlState(State):
    """`State` with this prompt's share of what training the value function took, by unit."""

    training: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReControl(Iterative):
    """Settings of RE-Control. The training cost's share is recorded with the first iteration."""

    value: str  # the value function that jobs/train_value.py wrote, a .safetensors file
    n: int = 1  # responses an iteration
    kappa: int = 1  # iterations
    step_size: float = 1.0  # of a gradient step on the pre-logit; the authors' Llama-3 recipe
    steps: int = 30  # gradient steps at each position
    temperature: float = 0.0  # 0 decodes greedily, above 0 samples
    top_p: float = 1.0  # nucleus mass when temperature is above 0
    horizon: int | None = None  # positions that are controlled; null: all
    shared_by: int = 1  # prompts that the value function's training cost is shared out over, in the extra column
    training: dict[str, Any] = field(default_factory=lambda: {"limit": 1000})  # keys of jobs/train_value.py

    same_draws = True
    state_class = ReControlState

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.value), "value is empty; give the .safetensors file that jobs/train_value.py wrote")
        require(self.step_size > 0, f"step_size is {self.step_size}; it must be above 0")
        require(self.steps >= 1, f"steps is {self.steps}; make at least 1 gradient step")
        check_sampling(self.temperature, self.top_p)
        require(
            self.temperature > 0 or self.num_samples == 1,
            f"{self.num_samples} greedy decodes would all be equal; set n=1 and kappa=1, or temperature above 0",
        )
        check_horizon(self.horizon)
        require(self.shared_by >= 1, f"shared_by is {self.shared_by}; give the number of prompts, at least 1")

    def first_steps(self, choices: Mapping[str, str]) -> list[str]:
        """How to train the value function, unless it is there."""
        if self.value.startswith("demo:") or Path(self.value).expanduser().is_file():
            return []
        words = [f"{key}={value}" for key, value in {**choices, **self.training, "out": self.value}.items()]
        return [f"python jobs/train_value.py {shlex.join(words)}"]

    def init(self, prompt: Prompt, seed: int) -> ReControlState:
        """The cost is read from the value function's file, NaN where it is not on this machine."""
        cost = training_cost(self.value)
        shares = tuple((unit.removeprefix("num_"), amount / self.shared_by) for unit, amount in cost.items())
        return ReControlState(prompt.prompt_id, seed, training=shares)

    @property
    def asks_for(self) -> frozenset[str]:
        return self.needed | {CONTROL}

    def ask(self, state: ReControlState) -> Proposal:
        options = (("path", self.value), ("step_size", self.step_size), ("steps", self.steps))
        law = Feedback(horizon=self.horizon, target="aisp_ray.controls.value:gradient_feedback", options=options)
        sampling = Sampling(self.temperature, self.top_p)
        return Proposal(state.iteration, self.n, law, sampling, want=self.needed)

    def tell(self, state: ReControlState, rollouts: Rollouts, scores: Scores) -> tuple[ReControlState, Info]:
        carried, info = self.advance(state, rollouts, scores)
        first = state.iteration == 0
        return carried, {**{f"training_{unit}": share for unit, share in state.training if first}, **info}
