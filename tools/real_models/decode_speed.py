"""CPU seconds of one iteration on SmolLM2: the fast engine against `generate` with a hook on the LM head.

python -m tools.real_models.decode_speed [build/real/policy] [repeats]

16 particles, a prompt of about 150 tokens, 64 new tokens, float32, one thread: greedy under noise, as `aisp` decodes,
and drawn at T = 1 and top-p 0.95 under noise, best-of-n's draws with noise on top. Both sides are timed in CPU seconds
of this process, by turns, so that other work on the machine counts little. The engine does each prompt twice: the first
iteration of a search reads the prompt, later ones have it in the prefix store. `generate` reads it every time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from aisp_ray.controls.laws import OpenLoop
from aisp_ray.policy.causal_lm import CausalLM, LoadedCausalLM
from aisp_ray.types import Message, Prompt, Proposal, Sampling

PARTICLES, NEW_TOKENS, SIGMA = 16, 64, 0.4
DECODING = {"greedy": Sampling(), "top-p": Sampling(1.0, top_p=0.95)}
QUESTION = (
    "My landlord wants to paint the stairs next week and asks everybody to keep the hall free from Monday"
    " to Wednesday. I have two bicycles, a pram and a large plant there, my cellar is full, and I am away"
    " on Tuesday. My neighbour has offered to help, but last time he forgot. Write down what I should do "
    "on which day, whom I should ask for what, and how I should word a short and friendly message to the "
    "landlord in which I ask him for one more day if that is possible without any trouble for the "
    "painters."
)


def engine_side(policy: LoadedCausalLM, prompt: Prompt, iteration: int, sampling: Sampling) -> int:
    """One rollout of a prompt; returns the tokens that it decoded."""
    control = OpenLoop(horizon=NEW_TOKENS, mean=None, sigma=SIGMA)
    request = policy.request(prompt, Proposal(iteration, PARTICLES, control, sampling), 0)
    ticket = policy.engine.submit(replace(request, stop=replace(request.stop, token_ids=())))
    while True:
        for number, result in policy.engine.step():
            if number == ticket:
                if isinstance(result, Exception):
                    raise result
                return sum(len(item.token_ids) for item in result.items)


def generate_side(model: Any, ids: list[int], sampling: Sampling) -> int:
    """The same by `generate`: a batch of the prompt, noise added before the LM head at every step."""
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] + SIGMA * torch.randn_like(args[0]),))
    rows = torch.tensor([ids] * PARTICLES)
    with torch.inference_mode():
        out = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=sampling.temperature > 0,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            use_cache=True,
        )
    hook.remove()
    return int(out[:, rows.shape[1] :].numel())


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """(CPU seconds of this process, tokens)."""
    started = time.process_time()
    tokens = work()
    return time.process_time() - started, tokens


def main(checkpoint: str, repeats: int) -> None:
    torch.set_num_threads(1)
    policy = CausalLM(model=checkpoint, max_new_tokens=NEW_TOKENS).load("cpu")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    best: dict[str, float] = {}
    for turn in range(repeats):
        text = f"Number {turn}. {QUESTION}"  # a new prompt: the engine reads it anew, as generate does
        prompt = Prompt(f"speed/test/{turn}", turn, "speed", text, (Message("user", text),))
        ids = policy.renderer.ids(prompt)
        for decode, sampling in DECODING.items():
            sides: dict[str, Callable[[], int]] = {
                "first iteration": partial(engine_side, policy, prompt, 0, sampling),
                "later iteration": partial(engine_side, policy, prompt, 1, sampling),
                "generate": partial(generate_side, model, ids, sampling),
            }
            for name, work in sides.items():
                seconds, tokens = timed(work)
                name = f"{decode}, {name}"
                best[name] = min(best.get(name, seconds), seconds)
                print(f"{name}: {len(ids)} prompt tokens, {tokens} new in {seconds:.2f} CPU s", flush=True)
            policy.engine.store.trim(0)  # the next decoding reads the prompt anew
    for decode in DECODING:
        for name in ("first iteration", "later iteration"):
            ratio = best[f"{decode}, generate"] / best[f"{decode}, {name}"]
            print(f"{decode}: generate / {name} {ratio:.2f}")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0] if words else "build/real/policy", int(words[1]) if len(words) > 1 else 2)
