"""What a part of the campaign found: counts of kinds and codes, broken promises, facts worth knowing."""

from __future__ import annotations

import collections
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Part:
    """One part's result; broken is empty when every promise held."""

    name: str
    seed: int
    counts: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    broken: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def count(self, kind: str, code: str, wrong: str | None = None) -> None:
        """One case.

        Args:
            code: how it ended.
            wrong: which promise that breaks.
        """
        with self._lock:
            self.counts[kind][code] += 1
            if wrong is not None:
                self.broken.append(wrong)

    @property
    def cases(self) -> int:
        return sum(codes.total() for codes in self.counts.values())

    def to_json(self) -> dict[str, Any]:
        counts = {kind: dict(codes.most_common()) for kind, codes in sorted(self.counts.items())}
        return {
            "part": self.name,
            "seed": self.seed,
            "cases": self.cases,
            "broken": self.broken,
            "facts": self.facts,
            "counts": counts,
        }

    def table(self) -> str:
        lines = [f"\n{self.name}: {self.cases} cases, seed {self.seed}"]
        for kind, codes in sorted(self.counts.items()):
            ends = ", ".join(f"{code} {number}" for code, number in codes.most_common())
            lines.append(f"  {kind:<26}{codes.total():>6}  {ends}")
        facts = ", ".join(
            f"{name} {value}" for name, value in self.facts.items() if not isinstance(value, dict)
        )
        if facts:
            lines.append(f"  {facts}")
        return "\n".join([*lines, *(f"  BROKEN: {text}" for text in self.broken)])


def resident_bytes(pid: int) -> int:
    """Memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
