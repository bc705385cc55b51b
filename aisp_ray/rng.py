"""Names for randomness. No global seed, no draw order: every draw is a pure function of its name.

The noise itself (counter-based, on the device) is in `noise.py`; this file imports no torch so that methods and the
command line can use it in milliseconds.
"""

from __future__ import annotations

import hashlib

import numpy as np

MASK64 = (1 << 64) - 1


def derive_seed(*names: object) -> int:
    """A 64-bit seed from a tuple of names, e.g. `derive_seed(run_seed, prompt_id, "bootstrap")`.

    Names are hashed with their type and length, so ("a", "bc") and ("ab", "c"), or 1 and "1", differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        text = f"{type(name).__name__}:{name}"
        digest.update(f"{len(text)}:{text};".encode())
    return int.from_bytes(digest.digest(), "little") & MASK64


def prompt_key(run_seed: int, prompt_id: str) -> int:
    """The 64-bit key of all noise and token draws of one prompt in one run."""
    return derive_seed(int(run_seed), str(prompt_id))


def generator(*names: object) -> np.random.Generator:
    """A numpy generator for host-side draws (bootstrap, MCMC accept), named like `derive_seed`."""
    return np.random.Generator(np.random.Philox(key=derive_seed(*names)))
