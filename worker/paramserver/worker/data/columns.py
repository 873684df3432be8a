"""Finds the label among the columns of a table, for every kind of file that is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError, nearest


def label_column(name: str, label: str, count: int, header: Sequence[str] = ()) -> int:
    """Return the position of the label: by header name, by number (negative from the end), or the last.

    Raises:
        DataError: if no column is the label, if two are, or if no feature is left beside it.
    """
    if count < 2:
        raise DataError(f"{name}: {count} column found; at least one feature and the label are expected")
    if not label:
        return count - 1
    matches = [column for column, title in enumerate(header) if title == label]
    if len(matches) > 1:
        raise DataError(f"{name}: the label {label!r} names {len(matches)} columns: {matches}")
    if matches:
        return matches[0]
    try:
        column = int(label)
    except ValueError:
        if not header:
            raise DataError(
                f"{name}: there is no header, so the label {label!r} names no column; "
                f"a number from 0 to {count - 1} is expected"
            ) from None
        hint = nearest(label, header) or "."
        raise DataError(f"{name}: no label column {label!r}{hint} Columns: {', '.join(header)}") from None
    if not -count <= column < count:
        raise DataError(f"{name}: label column {column} does not exist: columns are numbered 0 to {count - 1}")
    return column % count


def hashed_columns(name: str, hash: Sequence[str], count: int, label: int, header: Sequence[str]) -> dict[int, str]:
    """Return the titles of the columns to hash by their positions, in the order in which `hash` names them.

    A title is what `hash` says: a header name or, without a header, a number.

    Raises:
        DataError: if a name is no column, or the label's.
    """
    found = {}
    for title in hash:
        column = label_column(name, title, count, header)
        if column == label or column in found:
            raise DataError(f"{name}: data.hash names column {title!r}, which is {_other_use(column, label)}")
        found[column] = title
    return found


def _other_use(column: int, label: int) -> str:
    return "the label" if column == label else "named twice"


def without_column(table: NDArray[Any], column: int) -> NDArray[Any]:
    """Return the table without one column: a view where the column is the first or the last, else a copy."""
    if column == 0:
        return table[:, 1:]
    if column == table.shape[1] - 1:
        return table[:, :-1]
    return np.delete(table, column, axis=1)
