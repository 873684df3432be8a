"""Chooses how to read a data source: by its prefix, its suffix, or the first bytes of the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from paramserver.wire.errors import DataError
from paramserver.worker.data.builtin import open_builtin
from paramserver.worker.data.csv_file import CsvSource
from paramserver.worker.data.function import open_function
from paramserver.worker.data.idx_file import GZIP_MAGIC, IdxSource
from paramserver.worker.data.npy_file import open_npy, open_npz
from paramserver.worker.data.parquet_file import ParquetSource
from paramserver.worker.data.source import Source
from paramserver.worker.data.svmlight_file import SvmlightSource

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".npy": "npy",
    ".npz": "npz",
    ".svm": "svmlight",
    ".svmlight": "svmlight",
    ".libsvm": "svmlight",
    ".parquet": "parquet",
}
#: Openings of files whose suffix says nothing; text that fits none of them is csv.
OPENINGS = (
    (re.compile(rb"\x93NUMPY"), "npy"),
    (re.compile(rb"PK\x03\x04"), "npz"),
    (re.compile(rb"PAR1"), "parquet"),
    (re.compile(re.escape(GZIP_MAGIC) + rb"|\0\0[\x08-\x0e][\x01-\x08]", re.DOTALL), "idx"),
    (re.compile(rb"(?:\s*#[^\n]*\n)*\s*[-+.\deE]+[ \t]+\d+:"), "svmlight"),
)
OPENING_BYTES = 4096


def open_source(
    source: str,
    label: str = "",
    base: Path | None = None,
    hash: Sequence[str] = (),
) -> Source:
    """Open `builtin:NAME`, `module:function`, `file.py:function` or a file.

    Relative paths start at `base` (default: the working directory). What `label` means depends on the kind:
    a column of a table, an array of a .npz file, or a file of labels. `hash` names the columns of a csv file that hold
    text, see `CsvSource`.

    Raises:
        DataError: if there is no such source, or it is malformed.
    """
    if hash and source.startswith("builtin:"):
        raise _cannot_hash(source)
    if source.startswith("builtin:"):
        return open_builtin(source)
    path = (base or Path()) / source
    if not path.is_file():
        if ":" in source:
            if hash:
                raise _cannot_hash(source)
            return open_function(source, base)
        raise DataError(f"{path}: {'not a file' if path.exists() else 'no such data file'}")
    try:
        return _open_file(path, label, base, hash)
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _open_file(path: Path, label: str, base: Path | None, hash: Sequence[str]) -> Source:
    kind = SUFFIXES.get(path.suffix.lower()) or _kind_of_content(path)
    if hash and kind != "csv":
        raise _cannot_hash(str(path))
    match kind:
        case "npy":
            return open_npy(path, label, base)
        case "npz":
            return open_npz(path, label)
        case "parquet":
            return ParquetSource(path, label)
        case "idx":
            return IdxSource(path, label, base)
        case "svmlight":
            return SvmlightSource(path)
        case _:
            return CsvSource(path, label, hash)


def _cannot_hash(source: str) -> DataError:
    return DataError(f"{source}: data.hash names columns of a csv file, and this is none")


def _kind_of_content(path: Path) -> str:
    with path.open("rb") as file:
        opening = file.read(OPENING_BYTES)
    return next((kind for pattern, kind in OPENINGS if pattern.match(opening)), "csv")
