"""Fit the reward head and, on the other half of the pairs and another layer, the judge: Bradley-Terry, L2.

python -m tools.real_models.fit_heads TRAIN TEST OUT

TRAIN and TEST are folders of `tools.real_models.features --keep 14,16`; TEST is used to report accuracy only. Layer,
window and penalty were chosen by cross-validation within TRAIN. The halves: pairs with even and with odd number.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from aisp_ray.lm.pooled_head import PooledHead, pool

EPS = 1e-5  # of SmolLM2's norms
KINDS = {"reward": (16, 20.0, 0), "judge": (14, 35.0, 1)}  # name -> (layers, window, which half)
PENALTY = 600.0
DATA = "Anthropic HH-RLHF, harmless-base test split (MIT)"
LIMITS = (
    "a tiny body and a few hundred pairs of one kind of dialogue: a noisy preference for harmless, helpful-sounding "
    "replies, easily over-optimised; for trying methods out, for nothing else"
)


@dataclass(frozen=True, slots=True)
class Features:
    """pooled: [pairs, 2, d], chosen first; last: [pairs, 2, d], the last token's hidden state."""

    pooled: Tensor
    last: Tensor


def read(folder: Path, layer: int, window: float) -> Features:
    spans = json.loads((folder / "spans.json").read_text())
    tokens = np.load(folder / f"tokens-{layer}.npy", mmap_mode="r")
    pooled, at = [], 0
    for prompt, chosen, rejected in spans:
        end = at + prompt + chosen + rejected
        states = torch.tensor(np.asarray(tokens[at:end], np.float32))
        first, second = states[: prompt + chosen], torch.cat([states[:prompt], states[prompt + chosen :]])
        pooled.append(torch.stack([pool(first, window, EPS), pool(second, window, EPS)]))
        at = end
    last = torch.tensor(np.asarray(np.load(folder / "last.npy", mmap_mode="r")[:, :, layer], np.float32))
    return Features(torch.stack(pooled), last)


def fit(differences: Tensor, penalty: float) -> Tensor:
    """The weights [d] of a logistic regression on chosen minus rejected, L2 on standardised differences."""
    scale = differences.std(0) + 1e-6
    inputs = differences / scale
    weight = torch.zeros(inputs.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=200)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = softplus(-(inputs @ weight)).sum() + penalty / 2 * weight.pow(2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (weight / scale).detach()


def accuracy(weight: Tensor, pooled: Tensor) -> dict[str, float]:
    """Share of pairs in the right order, with half the 95 % interval."""
    right = ((pooled[:, 0] - pooled[:, 1]) @ weight > 0).float()
    share = float(right.mean())
    half = 1.96 * (share * (1 - share) / len(right)) ** 0.5
    return {"accuracy": round(share, 3), "half_interval": round(half, 3), "pairs": len(right)}


def make(name: str, train: Path, test: Path, out: Path) -> dict[str, object]:
    """Fit one head and write it; returns its facts."""
    layers, window, half = KINDS[name]
    features, held_out = read(train, layers, window), read(test, layers, window)
    mine, other = features.pooled[half::2], features.pooled[1 - half :: 2]
    weight = fit(mine[:, 0] - mine[:, 1], PENALTY)
    values, last = mine.reshape(-1, mine.shape[-1]) @ weight, features.last[half::2].reshape(-1, mine.shape[-1])
    axis = int(last.std(0).argmin())
    facts: dict[str, object] = {
        "data": f"{len(mine)} pairs of {DATA}",
        "held_out_half": accuracy(weight, other),
        "test_file": accuracy(weight, held_out.pooled),
        "both": accuracy(weight, torch.cat([other, held_out.pooled])),
        "body": "SmolLM2-135M-Instruct (Apache-2.0), Q4_1 dequantised",
        "limits": LIMITS,
    }
    head = PooledHead(
        weight=weight,
        layers=layers,
        window=window,
        mean=float(values.mean()),
        std=float(values.std()),
        axis=axis,
        axis_mean=float(last[:, axis].mean()),
        rms=float(last.pow(2).mean(-1).sqrt().mean()),
    )
    out.mkdir(parents=True, exist_ok=True)
    head.save(out / f"{name}.safetensors", facts)
    spread = float(last.pow(2).mean(-1).sqrt().std()) / head.rms
    print(
        name,
        json.dumps(facts, indent=1),
        f"axis std {float(last.std(0)[axis]):.3f}, rms {head.rms:.2f} +- {spread:.1%}",
    )
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "test", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    for name in KINDS:
        make(name, args.train, args.test, args.out)


if __name__ == "__main__":
    main()
