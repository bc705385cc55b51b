"""Stanford Human Preferences (Ethayarajh et al., 2022): a post of a forum and its answers. The post is the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aisp_ray.data._row import text_of
from aisp_ray.data.base import DataSpec, Parsed
from aisp_ray.types import Message


@dataclass(frozen=True, kw_only=True)
class Shp(DataSpec):
    """Settings of SHP: `path` holds rows with `history` (the post).

    The hub set has one row per pair of answers to a post, so a post comes many times; deduplication goes by `post_id`
    where rows have one. The answer with more votes, `preferred` or chosen by `labels`, is kept for win rates.
    """

    path: str = "stanfordnlp/SHP"  # file, folder, glob, URI (s3:// gs:// hf:// ...), hub name, or demo:<name>

    own_name = "shp"
    columns = ("history",)

    def parse(self, row: Mapping[str, Any]) -> Parsed:
        post, error = text_of(row, "history")
        if error:
            return Parsed(error=error)
        post = post.strip()
        meta = {name: row[name] for name in ("post_id", "domain") if row.get(name) is not None}
        preferred = _preferred(row)
        if preferred:
            meta["preferred"] = preferred
        key = f"post {row['post_id']}" if row.get("post_id") else None
        return Parsed(post, (Message("user", post),), meta, key=key)


def _preferred(row: Mapping[str, Any]) -> str | None:
    """The answer with more votes; labels is 1 when it is human_ref_A."""
    if isinstance(row.get("preferred"), str):
        return row["preferred"]
    word = str(row.get("labels")).strip().lower()  # a CSV holds texts, a table with gaps 1.0
    side = "A" if word in ("1", "1.0", "true") else "B" if word in ("0", "0.0", "false") else ""
    reply = row.get(f"human_ref_{side}")
    return reply if isinstance(reply, str) else None
