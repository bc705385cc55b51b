"""What the Hugging Face hub says about a model or dataset before anything is loaded.

The answer is a commit, or one sentence that says what is wrong and the command that fixes it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

TIMEOUT = 10.0  # seconds
_DATASET_PROBE = "README.md"


@lru_cache(maxsize=64)
def look_up(
    name: str,
    key: str,
    kind: str = "model",
    revision: str | None = None,
    cache: str | None = None,
    probe: str = "config.json",
) -> str | None:
    """The commit of a revision of the hub's `name`; None when offline with a copy whose commit is not known.

    key: the setting that holds the name, e.g. policy.model. kind: model | dataset. cache: folder; None is HF_HOME's.
    probe: the file that shows that a copy of a model is in the cache.

    Raises:
        ValueError: one sentence: unknown, gated, no such revision, no network and no copy, a cache without permission.
    """
    from huggingface_hub import constants

    at = f"{key}={name}"
    _check_cache(at, Path(cache or constants.HF_HUB_CACHE))
    cached, commit = _cached(name, revision, cache, None if kind == "dataset" else probe)
    if constants.HF_HUB_OFFLINE:
        if cached:
            return commit
        fix = f"unset it, or download once where there is a network: {_download(name, kind, revision)}"
        raise ValueError(f"{at}: HF_HUB_OFFLINE is set and the {kind} is not in the cache; {fix}")
    return _ask(name, kind, revision, at, (cached, commit))


def _ask(name: str, kind: str, revision: str | None, at: str, copy: tuple[bool, str | None]) -> str | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
        if info.gated:
            HfApi().auth_check(name, repo_type=kind)
        return info.sha
    except GatedRepoError as error:
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
        fix = f"accept its terms at {page}, then run `hf auth login` or set HF_TOKEN on every node"
        raise ValueError(f"{at}: this {kind} is gated and there is no token that may read it; {fix}") from error
    except RevisionNotFoundError as error:
        setting = f"{at.partition('=')[0].rpartition('.')[0]}.revision"
        fix = f"leave {setting} out, or see the tags with `hf repos tag list {name} --repo-type {kind}`"
        raise ValueError(f"{at}: the {kind} has no revision {revision!r}; {fix}") from error
    except RepositoryNotFoundError as error:
        fix = "fix the name or, if it is private, run `hf auth login`"
        raise ValueError(f"{at}: neither a local path nor a {kind} on the hub; {fix}") from error
    except Exception as error:  # no network, in any of its forms
        if copy[0]:
            return copy[1]
        fix = f"download it where there is a network ({_download(name, kind, revision)}) or give a local path"
        text = f"{at}: no such local path, and the hub cannot be reached ({type(error).__name__}); {fix}"
        raise ValueError(text) from error


def _download(name: str, kind: str, revision: str | None) -> str:
    kinds = " --repo-type dataset" if kind == "dataset" else ""
    return f"hf download {name}{kinds}{f' --revision {revision}' if revision else ''}"


def _cached(name: str, revision: str | None, cache: str | None, probe: str | None) -> tuple[bool, str | None]:
    """(whether a copy is there, its commit where known). `datasets` keeps prepared copies in a cache of its own."""
    from huggingface_hub import constants, try_to_load_from_cache

    kind = "model" if probe else "dataset"
    found = try_to_load_from_cache(name, probe or _DATASET_PROBE, cache_dir=cache, revision=revision, repo_type=kind)
    if isinstance(found, str):
        return True, Path(found).parent.name
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    return kind == "dataset" and (prepared / name.replace("/", "___")).is_dir(), None


def _check_cache(at: str, folder: Path) -> None:
    """A shared cache that this user may not write to is said before a download fails half-way."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK) and not os.access(folder, os.R_OK | os.X_OK):
        fix = "export HF_HOME=<a folder that every node can write to>"
        raise ValueError(f"{at}: the cache {folder} can be neither read nor written by this user; {fix}")
