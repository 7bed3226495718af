"""Bad records: set aside with their reason, counted, listed; too many stop the run."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path

from alanything_jax.data.files import lines, write_aside


class TooManyBad(ValueError):
    """More records were set aside than the stated share."""


@dataclasses.dataclass
class Quarantine:
    """Collects what is left out while a source is read.

    Attributes:
      path: the list, written by `close`; None where another process writes it.
      max_share: share of faulty records (too long ones do not count) that is tolerated.
      unknown: columns that a format did not know and kept, and in how many records.
    """

    path: Path | None
    max_share: float = 0.05
    entries: list[dict] = dataclasses.field(default_factory=list)
    seen: int = 0
    unknown: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )

    def add(self, source: str, row: int, error: Exception, sound: str = "") -> None:
        """Set one record aside; `sound` says why, if it is nobody's fault."""
        reason = str(error)
        entry = {"source": source, "row": row, "reason": reason, "fault": not sound}
        self.entries.append(entry | ({"kind": sound} if sound else {}))

    @property
    def faults(self) -> list[dict]:
        """The records that are bad, not merely too long."""
        return [entry for entry in self.entries if entry["fault"]]

    def close(self) -> None:
        """Write the list; raise if too much is on it.

        Raises TooManyBad: with the first reasons.
        """
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # What a stream added before a stop stays.
            streamed = [e for e in lines(self.path) if "step" in e]
            write_aside(self.path, _listed([*self.entries, *streamed]))
        self.check()

    def append(self, first: int, step: int) -> None:
        """List the entries from number `first` on as those of a stream's step."""
        some = [entry | {"step": step} for entry in self.entries[first:]]
        if some and self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_listed(some))

    def check(self) -> None:
        """Raises TooManyBad: with the first reasons."""
        bad = self.faults
        if bad and len(bad) > self.max_share * self.seen:
            said = (f"{e['source']} row {e['row']}: {e['reason']}" for e in bad[:5])
            first = "; ".join(said)
            raise TooManyBad(
                f"{len(bad)} of {self.seen} records are bad, more than the tolerated "
                f"{self.max_share:.0%}: {first}. All are listed in {self.path}. Mend the "
                "data, or raise max_bad_share."
            )

    def summary(self) -> str:
        """One line: how many of each kind."""
        kinds = collections.Counter(
            "bad" if entry["fault"] else entry["kind"] for entry in self.entries
        )
        said = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none set aside"
        if self.unknown:
            names = ", ".join(f"{name} ({n})" for name, n in self.unknown.items())
            said += f"; unknown columns, kept in `extra`: {names}"
        return said


def _listed(entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)
