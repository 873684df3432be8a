"""What was found: a line of JSON on the machine, and one for each cell as it was measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

Found = dict[str, Any]


class Record(NamedTuple):
    """One cell: either what was found, or why nothing was."""

    kind: str
    options: dict[str, Any]
    found: Found | None = None
    error: str = ""
    #: The error is that something optional is not here.
    missing: bool = False
    took_s: float = 0.0
    #: Which measurement of this cell it is, from 0.
    turn: int = 0

    def has(self, kind: str, options: dict[str, Any]) -> bool:
        """Return whether this is such a cell; options that are not named may be anything."""
        return self.kind == kind and all(self.options.get(name) == value for name, value in options.items())


class Results:
    """The records of one run, one for each cell, in the order in which they were first measured."""

    def __init__(self, machine: dict[str, Any], records: list[Record]) -> None:
        self.machine = machine
        turns: dict[str, list[Record]] = {}
        for record in records:
            turns.setdefault(f"{record.kind} {record.options}", []).append(record)
        self.records = [_together(each) for each in turns.values()]

    def cells(self, kind: str, **options: Any) -> list[Record]:
        """Return the records of such cells."""
        return [record for record in self.records if record.has(kind, options)]

    def found(self, kind: str, **options: Any) -> Found | None:
        """Return what was found for the first such cell, or None."""
        return next((record.found for record in self.cells(kind, **options) if record.found is not None), None)

    def why_not(self, kind: str, **options: Any) -> str:
        """Return in a few words why such a cell has nothing."""
        errors = [record.error for record in self.cells(kind, **options) if record.error]
        return errors[0].splitlines()[0] if errors else "not in this run"


def _together(turns: list[Record]) -> Record:
    """Return one record of all turns of a cell; what failed in one of them is told, whatever the others found."""
    first = next((record for record in turns if record.error), turns[0])
    found = _found({record.turn: record.found for record in turns if record.found is not None})
    return first._replace(found=found, took_s=sum(record.took_s for record in turns))


def _found(turns: dict[int, Found]) -> Found | None:
    """Return the turn with the middle median and the medians of all by turn; or, where turns are lists, all of them."""
    if len(turns) < 2:
        return next(iter(turns.values()), None)
    some, *_ = turns.values()
    if "median_ms" not in some:
        return {name: [each for found in turns.values() for each in found[name]] for name in some}
    each_ms = {turn: found["median_ms"] for turn, found in turns.items()}
    middle = sorted(each_ms, key=each_ms.__getitem__)[len(each_ms) // 2]
    return {**turns[middle], "each_ms": each_ms}


def each_ms(found: Found) -> dict[int, float]:
    """Return the median of every turn, by its number."""
    each: dict[int, float] = found.get("each_ms", {0: found["median_ms"]})
    return each


def ratio(found: Found, base: Found) -> float | None:
    """Return how much longer one takes than another: the median of the ratios within turns; None if they share none."""
    ms, base_ms = each_ms(found), each_ms(base)
    ratios = [ms[turn] / base_ms[turn] for turn in ms if turn in base_ms]
    return statistics.median(ratios) if ratios else None


def begin(file: Path, machine: dict[str, Any]) -> None:
    """Write the first line of a new file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(machine, ensure_ascii=False) + "\n", encoding="utf-8")


def add(file: Path, record: Record) -> None:
    """Append a record, so that it stays whatever happens to the next."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record._asdict(), ensure_ascii=False) + "\n")


def read(file: Path) -> Results:
    """Return what a file holds.

    Raises:
        FileNotFoundError: if nothing was measured yet.
    """
    machine, *lines = file.read_text(encoding="utf-8").splitlines()
    return Results(json.loads(machine), [Record(**json.loads(line)) for line in lines])
