"""The hub's answer for a dataset, or one sentence that says why there is none and the command that fixes it."""

from __future__ import annotations

from functools import lru_cache

TIMEOUT = 10.0  # seconds


@lru_cache(maxsize=8)
def look_up(name: str, revision: str | None) -> str | None:
    """The commit of a dataset's revision; None when offline with a cached copy.

    Raises:
        ValueError: one sentence: unknown, gated, no such revision, no network.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    at = f"data.path={name}"
    if constants.HF_HUB_OFFLINE:
        return _cached(name, at)
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT).sha
    except GatedRepoError as error:
        page = f"https://huggingface.co/datasets/{name}"
        text = f"{at}: this hub set is gated; accept its terms at {page} and run: hf auth login"
        raise ValueError(text) from error
    except RevisionNotFoundError as error:
        raise ValueError(
            f"{at}: the hub set has no revision {revision!r}; leave data.revision out or fix it"
        ) from error
    except RepositoryNotFoundError as error:
        text = f"{at}: neither a local file nor a set on the hub (if it is private, run: hf auth login)"
        raise ValueError(text) from error
    except Exception as error:  # no network in any of its forms
        text = f"{at}: no such local file, and the hub cannot be reached ({type(error).__name__}); "
        fix = f"download it where there is a network (hf download --repo-type dataset {name}) and give its folder"
        raise ValueError(text + fix) from error


def _cached(name: str, at: str) -> None:
    from pathlib import Path

    from datasets import config

    if not (Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        fix = f"unset it, or run once with a network: python -c \"import datasets; datasets.load_dataset('{name}')\""
        raise ValueError(f"{at}: HF_HUB_OFFLINE is set and the set is not in the cache; {fix}")
