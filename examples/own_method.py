"""A method of your own, in one file: `python examples/own_method.py`. docs/extending.md explains the contract.

This one draws n responses per iteration and stops as soon as one of them reaches `threshold`.
"""

from dataclasses import dataclass, replace

from aisp_ray import best_responses
from aisp_ray.methods.base import State, best_candidate
from aisp_ray.types import Proposal, Sampling


@dataclass(frozen=True)
class GoodEnough:
    """Draw until a response is good enough, at most kappa times."""

    threshold: float
    n: int = 8
    kappa: int = 8
    temperature: float = 1.0

    @property
    def num_samples(self):
        return self.n * self.kappa

    @property
    def num_iterations(self):
        return self.kappa

    def init(self, prompt, seed):
        return State(prompt.prompt_id, seed)

    def ask(self, state):
        return Proposal(state.iteration, self.n, sampling=Sampling(self.temperature))

    def tell(self, state, rollouts, scores):
        best = best_candidate(state.best, rollouts, scores)
        good = best is not None and best.reward >= self.threshold
        state = replace(state, iteration=state.iteration + 1, best=best)
        return replace(state, done=good or state.iteration == self.kappa), {"good": float(good)}


def main():
    prompts = ["Could you help me brew the coffee? It tastes bitter.", "How do I clean the oven?"]
    for item in best_responses("demo:policy", prompts, "demo", method=GoodEnough(threshold=1.2), seed=0):
        print(f"{item.reward:.2f} after {item.cost['num_samples']} samples: {item.response}")


if __name__ == "__main__":
    main()
