"""What each filter dropped, for the terminal and the card."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Drops:
    """Counts of an export under way. A filter that is set and drops nothing is listed with 0."""

    num_prompts: int = 0  # prompts read, of all outputs
    num_empty: int = 0  # prompts that no row could be made of
    num_made: int = 0  # rows before the filters on rows
    responses: dict[str, int] = field(default_factory=dict)  # filter -> responses that it dropped
    rows: dict[str, int] = field(default_factory=dict)  # filter -> rows that it dropped

    def response(self, name: str, count: int = 1) -> None:
        self.responses[name] = self.responses.get(name, 0) + count

    def row(self, name: str, count: int = 1) -> None:
        self.rows[name] = self.rows.get(name, 0) + count

    def lines(self) -> list[str]:
        """One sentence per filter."""
        found = [f"{self.num_prompts:,} prompts, {self.num_empty:,} of them without a row"]
        found += [f"{name}: {count:,} responses dropped" for name, count in self.responses.items()]
        found.append(f"{self.num_made:,} rows before the filters on rows")
        return found + [f"{name}: {count:,} rows dropped" for name, count in self.rows.items()]
