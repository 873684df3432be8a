"""What was found: a line of JSON on the machine, and one for each cell as it was measured."""

from __future__ import annotations

import json
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

    def has(self, kind: str, options: dict[str, Any]) -> bool:
        """Return whether this is such a cell; options that are not named may be anything."""
        return self.kind == kind and all(self.options.get(name) == value for name, value in options.items())


class Results:
    """The records of one run, in the order in which they were measured."""

    def __init__(self, machine: dict[str, Any], records: list[Record]) -> None:
        self.machine = machine
        self.records = records

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
