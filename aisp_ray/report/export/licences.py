"""Licences of models and prompt sets, as their own cards name them."""

from __future__ import annotations

from pathlib import Path

import yaml

UNKNOWN = "unknown"
_OWN = "MIT (a part of aisp-ray)"
_TIMEOUT = 10.0  # seconds


def licence_of(name: str, kind: str, online: bool) -> str:
    """The licence that a card names, `unknown` where there is none to read.

    name: a path, a hub id, or demo:<name>. kind: model | dataset. online: whether the hub may be asked for what is
    neither here nor in its cache.
    """
    if name.startswith("demo:"):
        return _OWN
    local = Path(name).expanduser()
    if local.exists():
        card = (local if local.is_dir() else local.parent) / "README.md"
        return _of_card(card.read_text(encoding="utf-8")) if card.is_file() else UNKNOWN
    return _cached(name, kind) or (_asked(name, kind) if online else None) or UNKNOWN


def _of_card(text: str) -> str:
    """`license` of the front matter, with `license_name` where the licence is "other"."""
    parts = text.split("---", 2)
    if parts[0].strip() or len(parts) < 3:
        return UNKNOWN
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return UNKNOWN
    named = (front.get("license"), front.get("license_name")) if isinstance(front, dict) else (None, None)
    found = [", ".join(map(str, one)) if isinstance(one, list) else str(one) for one in named if one]
    return ": ".join(found) or UNKNOWN


def _cached(name: str, kind: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "README.md", repo_type=kind)
    except HFValidationError:  # a URI or a path that is gone
        return None
    return _of_card(Path(path).read_text(encoding="utf-8")) if isinstance(path, str) else None


def _asked(name: str, kind: str) -> str | None:
    from huggingface_hub import HfApi

    try:
        card = getattr(HfApi().repo_info(name, repo_type=kind, timeout=_TIMEOUT), "card_data", None)
    except Exception:  # no network, gated, gone: a card without this licence is better than no export
        return None
    return str(card["license"]) if card is not None and card.get("license") else None
