"""AISP with its practical improvements, each a switch of its own. With all of them off it is `aisp`, weight for weight.

- ess_fraction: lambda is found each round so that the effective sample size is a share of n (an adaptive temperature,
  as in tempered sequential Monte Carlo, Jasra et al., 2011). No tuning per reward model: a reward scaled or shifted
  gives the same weights. Instead of it, a fixed reward_temperature, with standardise on rewards of unit spread.
- null_particle, mean_particle: particle 0 decodes without noise, under 0 in the first round and under the mean later,
  as control codes on model-predictive path integrals do (Williams et al., 2017). Such a particle is not a draw of the
  proposal; its weight pulls the mean towards itself, a data-driven damping.
- step_size: the mean goes only part of the way, u <- u + step_size * (sum_i w_i v^i - u).
- sigma_final: the noise shrinks geometrically to it over the rounds. sigma_decay: it shrinks along the response; what
  is added is decay^t v_t, and all else lives in the coordinates v. sigma_ratio: particles explore at different
  scales, from sigma / sigma_ratio to sigma * sigma_ratio.
- antithetic: particles come in pairs with mirrored noise.
- noise_shape: the noise is shaped by the LM head, so that it moves the logits equally far in every direction that the
  head can tell apart (`controls.HeadShape`). Weights, cost and mean are those of the whitened coordinates.
- elites: the best particles of earlier rounds take part in every update once more (Pinneri et al., 2020, iCEM).
- base_rounds: the first rounds are best-of-n draws from the policy itself; they count for the best response only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from aisp_ray.controls.laws import HeadShape, OpenLoop
from aisp_ray.controls.weight_log import Elite, WeightEntry, WeightLog
from aisp_ray.methods._importance import control_cost, kl_info, live_lengths
from aisp_ray.methods.base import Info, State, best_candidate, check_horizon, check_rounds, check_sampling, require
from aisp_ray.types import Prompt, Proposal, Rollouts, Sampling, Scores
from aisp_ray.weights import effective_sample_size, importance_weights, temperature_for_ess

NOISE_SHAPES = ("isotropic", "head")


@dataclass(frozen=True, slots=True)
class EliteParticle:
    """A particle worth remembering, best first in the state."""

    reward: float
    iteration: int
    particle: int
    length: int


@dataclass(frozen=True, slots=True)
class AispPlusState(State):
    """`State` with the weight log of the mean and the elites."""

    log: WeightLog = WeightLog()
    elites: tuple[EliteParticle, ...] = ()


@dataclass(frozen=True, slots=True)
class AispPlus:
    """Settings of AISP with improvements; paper symbols in brackets."""

    n: int = 16  # particles an iteration [n]
    kappa: int = 16  # iterations [kappa]
    sigma: float = 0.7  # standard deviation of the noise, of the first round if it shrinks [sigma]
    alpha: float = 0.999  # [alpha] in [0, 1]; 1 drops the control cost
    horizon: int = 128  # [tau] controlled positions; later ones are decoded without control
    temperature: float = 0.0  # 0 decodes greedily under the perturbation, above 0 samples
    top_p: float = 1.0  # nucleus mass when temperature is above 0
    ess_fraction: float | None = None  # lambda is set so that ESS = this share of n, in (0, 1); null: off
    reward_temperature: float | None = None  # a fixed [lambda], reward units; give it or ess_fraction
    standardise: bool = False  # reward_temperature is in standard deviations of the round's rewards
    null_particle: bool = False  # particle 0 of the first round is the plain decode
    mean_particle: bool = False  # particle 0 of later rounds decodes under the mean without noise
    step_size: float = 1.0  # share of the way that the mean goes, in (0, 1]
    sigma_final: float | None = None  # standard deviation in the last round; null: sigma throughout
    sigma_decay: float = 1.0  # sigma's factor from a position to the next; 0.98 leaves 0.27 of it after 64 positions
    sigma_ratio: float = 1.0  # particles' sigmas spread geometrically over [sigma / ratio, sigma * ratio]
    antithetic: bool = False  # mirrored pairs of noise
    noise_shape: str = "isotropic"  # isotropic | head: noise that moves the logits equally far in all directions
    shape_ridge: float | None = None  # of noise_shape=head, above 0: a large one is nearly isotropic; null: 0.1
    elites: int = 0  # particles of earlier rounds in every update; needs alpha=1
    base_rounds: int = 0  # first rounds drawn from the policy without control
    base_temperature: float | None = None  # sampling temperature of base_rounds, above 0
    diagnostics: bool = False  # also record kl_gaussian and kl_token_steered, nats; one more head pass a token

    def __post_init__(self) -> None:
        check_rounds(self.n, self.kappa, "particle", "iteration")
        require(self.sigma > 0, f"sigma is {self.sigma}; it is a standard deviation above 0")
        require(0 <= self.alpha <= 1, f"alpha is {self.alpha}; it lies in [0, 1]")
        check_horizon(self.horizon)
        check_sampling(self.temperature, self.top_p)
        self._check_temperature_of_rewards()
        self._check_switches()

    def _check_temperature_of_rewards(self) -> None:
        fixed, share = self.reward_temperature, self.ess_fraction
        require((fixed is None) != (share is None), "give either ess_fraction or reward_temperature")
        require(fixed is None or fixed > 0, f"reward_temperature is {fixed}; it must be above 0")
        require(share is None or 0 < share < 1, f"ess_fraction is {share}; it is a share of n in (0, 1)")
        require(not self.standardise or fixed is not None, "standardise has no effect with ess_fraction; leave it out")

    def _check_switches(self) -> None:
        require(0 < self.step_size <= 1, f"step_size is {self.step_size}; it lies in (0, 1]")
        last = self.sigma_final
        require(last is None or last > 0, f"sigma_final is {last}; it is a standard deviation above 0")
        require(self.sigma_decay > 0, f"sigma_decay is {self.sigma_decay}; it is a factor above 0, 1 keeps sigma")
        require(self.sigma_ratio >= 1, f"sigma_ratio is {self.sigma_ratio}; it is 1 (no spread) or above")
        require(self.elites >= 0, f"elites is {self.elites}; it is a count")
        require(self.elites == 0 or self.alpha == 1, "elites need alpha=1: their control cost is not known any more")
        require(0 <= self.base_rounds < self.kappa, f"base_rounds is {self.base_rounds}; it lies in [0, kappa)")
        warm = self.base_temperature
        require(self.noise_shape in NOISE_SHAPES, f"noise_shape is {self.noise_shape!r}; it is isotropic or head")
        ridge = self.shape_ridge
        require(ridge is None or ridge > 0, f"shape_ridge is {ridge}; it must be above 0")
        require(
            ridge is None or self.noise_shape == "head", "shape_ridge has no effect without noise_shape=head; set both"
        )
        require((self.base_rounds > 0) == (warm is not None), "base_rounds and base_temperature go together")
        require(warm is None or warm > 0, f"base_temperature is {warm}; it must be above 0")

    @property
    def num_samples(self) -> int:
        return self.n * self.kappa

    @property
    def num_iterations(self) -> int:
        return self.kappa

    def init(self, prompt: Prompt, seed: int) -> AispPlusState:
        return AispPlusState(prompt.prompt_id, seed)

    def ask(self, state: AispPlusState) -> Proposal:
        if state.iteration < self.base_rounds:
            return Proposal(state.iteration, self.n, sampling=Sampling(self.base_temperature or 1.0))
        control = OpenLoop(
            horizon=self.horizon,
            mean=state.log if state.log.entries else None,
            sigma=self._sigma(state.iteration),
            noise_scales=self._noise_scales(state.iteration),
            antithetic=self.antithetic,
            shape=self._shape(),
            decay=self.sigma_decay,
        )
        want = frozenset({"token_kl"}) if self.diagnostics else frozenset()
        return Proposal(state.iteration, self.n, control, Sampling(self.temperature, self.top_p), want=want)

    def tell(self, state: AispPlusState, rollouts: Rollouts, scores: Scores) -> tuple[AispPlusState, Info]:
        iteration = state.iteration + 1
        best = best_candidate(state.best, rollouts, scores)
        carried = replace(state, iteration=iteration, done=iteration >= self.kappa, best=best)
        if state.iteration < self.base_rounds:
            return carried, {}
        sigma = self._sigma(state.iteration)
        info = kl_info(rollouts, sigma) if self.diagnostics else {}
        if not np.isfinite(scores.rewards).any():
            return carried, info
        weights, reward_temperature = self._weights(state, rollouts, scores, sigma)
        lengths = live_lengths(rollouts, self.horizon)
        old = zip(state.elites, weights[self.n :].tolist(), strict=True)
        entry = WeightEntry(
            iteration=state.iteration,
            weights=tuple(weights[: self.n].tolist()),
            lengths=lengths,
            sigma=sigma,
            step_size=self.step_size,
            noise_scales=self._noise_scales(state.iteration),
            antithetic=self.antithetic,
            elites=tuple(Elite(e.iteration, e.particle, w, e.length) for e, w in old),
        )
        carried = replace(
            carried, log=WeightLog((*state.log.entries, entry)), elites=self._keep(state, scores, lengths)
        )
        info = {"ess": effective_sample_size(weights), "reward_temperature": reward_temperature, **info}
        return carried, info

    def _shape(self) -> HeadShape | None:
        if self.noise_shape == "isotropic":
            return None
        return HeadShape() if self.shape_ridge is None else HeadShape(self.shape_ridge)

    def _sigma(self, iteration: int) -> float:
        """Standard deviation of a round, geometric between the first controlled one and the last."""
        rounds = self.kappa - self.base_rounds
        if self.sigma_final is None or rounds == 1:
            return self.sigma
        return self.sigma * (self.sigma_final / self.sigma) ** ((iteration - self.base_rounds) / (rounds - 1))

    def _noise_scales(self, iteration: int) -> tuple[float, ...] | None:
        """Of each particle, relative to the round's sigma. None: all 1."""
        first = iteration == self.base_rounds
        still = self.null_particle if first else self.mean_particle
        if not still and self.sigma_ratio == 1:
            return None
        pairs = 2 if self.antithetic else 1  # both of a mirrored pair get one scale
        groups = max(1, math.ceil(self.n / pairs) - 1)
        scales = [self.sigma_ratio ** (2 * min(1.0, (i // pairs) / groups) - 1) for i in range(self.n)]
        return (0.0, *scales[1:]) if still else tuple(scales)

    def _weights(
        self, state: AispPlusState, rollouts: Rollouts, scores: Scores, sigma: float
    ) -> tuple[np.ndarray, float]:
        """Weights of the particles and then the elites, float64 [n + elites], and the lambda that made them."""
        elites = [elite.reward for elite in state.elites]
        rewards = np.array([*scores.rewards, *elites], dtype=np.float64)
        cost = np.concatenate([control_cost(rollouts, sigma, self.alpha), np.zeros(len(elites))])
        if self.ess_fraction is not None:
            reward_temperature = temperature_for_ess(rewards, max(1.0, self.ess_fraction * self.n), cost)
        else:
            reward_temperature = float(self.reward_temperature or math.nan)
            if self.standardise:
                spread = float(np.std(rewards[np.isfinite(rewards)]))
                reward_temperature *= spread if spread > 0 else 1.0
        return importance_weights(rewards, reward_temperature, cost), reward_temperature

    def _keep(self, state: AispPlusState, scores: Scores, lengths: tuple[int, ...]) -> tuple[EliteParticle, ...]:
        """The best particles of all rounds so far, best first; the earlier one wins a tie."""
        if self.elites == 0:
            return ()
        new = [
            EliteParticle(float(reward), state.iteration, i, lengths[i])
            for i, reward in enumerate(scores.rewards)
            if math.isfinite(reward)
        ]
        return tuple(sorted((*state.elites, *new), key=lambda elite: -elite.reward)[: self.elites])
