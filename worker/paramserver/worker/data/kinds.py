"""Chooses how to read a data source: by its prefix, its suffix, or the first bytes of the file."""

from __future__ import annotations

from pathlib import Path

from paramserver.wire.errors import DataError
from paramserver.worker.data.builtin import open_builtin
from paramserver.worker.data.csv_file import CsvSource
from paramserver.worker.data.source import Source


def open_source(source: str, label: str = "", base: Path | None = None) -> Source:
    """Open `builtin:NAME`, `module:function`, `file.py:function` or a file.

    Relative paths start at `base` (default: the working directory).

    Raises:
        DataError: if there is no such source, or it is malformed.
    """
    if source.startswith("builtin:"):
        return open_builtin(source)
    path = (base or Path()) / source
    if not path.is_file():
        raise DataError(f"no such data file: {path}")
    return CsvSource(path, label)
