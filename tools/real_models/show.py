"""One prompt with the best response of each method: python -m tools.real_models.show OUT [PROMPT]"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

COLUMNS = ["ordinal", "prompt", "method", "response", "reward", "status"]


def lines_of(rows: list[dict[str, Any]], ordinal: int) -> list[str]:
    """The prompt, and under it each method's reward and response."""
    mine = [row for row in rows if row["ordinal"] == ordinal]
    if not mine:
        raise SystemExit(f"error: there is no row of prompt {ordinal}; known: {sorted({r['ordinal'] for r in rows})}")
    shown = [f"prompt {ordinal}: {mine[0]['prompt'].strip()}"]
    for row in mine:
        reward = "no reward" if row["reward"] is None else f"reward {row['reward']:.2f}"
        text = row["response"] if row["status"] == "ok" else "(error)"
        shown += ["", f"{row['method']} ({reward})"]
        shown += textwrap.wrap(" ".join(text.split()), 100, initial_indent="  ", subsequent_indent="  ")
    return shown


def main(out: str, ordinal: int = 0) -> None:
    folder = Path(out) / "rows"
    if not folder.is_dir():
        raise SystemExit(f"error: {folder} is no folder; run make real first")
    print("\n".join(lines_of(pq.read_table(folder, columns=COLUMNS).to_pylist(), ordinal)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "outputs/real", int(sys.argv[2]) if len(sys.argv) > 2 else 0)
