"""Make the demo: `python -m tools.demo_models.train --what all --out aisp_ray/demo --seed 0`.

Order matters: tokenizer, then policy, then reward (it starts from the policy). The judge trains a body of its own, on
other documents and other preferences, and so needs the tokenizer only.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from tools.demo_models import data, tokens
from tools.demo_models.fit_policy import lm_figures, train_lm
from tools.demo_models.fit_reward import reward_figures, train_reward


def make_tokenizer(out: Path, seed: int) -> dict[str, float]:
    """Train and save the tokenizer."""
    texts = (t for q, r in data.documents(20_000, f"policy/{seed}") for t in (*q.turns, r))
    tokenizer = tokens.build_tokenizer(texts)
    tokenizer.save_pretrained(out / "models" / "policy")
    return {"entries": len(tokenizer)}


def make_policy(out: Path, seed: int) -> dict[str, float]:
    """Train and save the policy."""
    folder = out / "models" / "policy"
    tokenizer = tokens.load_tokenizer(folder)
    model = train_lm(tokenizer, f"policy/{seed}", steps=700)
    model.save_pretrained(folder)
    return lm_figures(model, tokenizer)


def make_reward(out: Path, seed: int) -> dict[str, float]:
    """Train the reward from the policy's body and save it."""
    folder = out / "models" / "policy"
    tokenizer = tokens.load_tokenizer(folder)
    body = LlamaForCausalLM.from_pretrained(folder)
    return _finish_reward(train_reward(body, tokenizer, f"reward/{seed}", steps=2400), tokenizer, out / "models/reward")


def make_judge(out: Path, seed: int) -> dict[str, float]:
    """Train the held-out judge: own initial weights, own documents, own preferences."""
    tokenizer = tokens.load_tokenizer(out / "models" / "policy")
    body = train_lm(tokenizer, f"judge/{seed}", steps=500)
    return _finish_reward(train_reward(body, tokenizer, f"judge/{seed}", steps=1200), tokenizer, out / "models/judge")


def _finish_reward(model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, out: Path) -> dict:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return reward_figures(model, tokenizer)


def make_prompts(out: Path, seed: int) -> dict[str, float]:
    """Write the prompt files."""
    data.write_prompts(out / "prompts", seed)
    return {}


JOBS = {
    "tokenizer": make_tokenizer,
    "policy": make_policy,
    "reward": make_reward,
    "judge": make_judge,
    "prompts": make_prompts,
}


def main() -> None:
    """Run one job or all of them, and print the figures of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("all", *JOBS), default="all")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets models/ and prompts/")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, job in JOBS.items():
        if arguments.what in ("all", name):
            start = time.time()
            figures = {k: round(v, 3) for k, v in job(arguments.out, arguments.seed).items()}
            print(name, json.dumps(figures), f"{time.time() - start:.0f}s", flush=True)


if __name__ == "__main__":
    main()
