"""What every data source offers, and the source that arrays in memory or in mapped files already are."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError
from paramserver.worker.batches import Features


class Source(Protocol):
    """A table of examples that can be read by ranges of rows."""

    @property
    def rows(self) -> int:
        """Number of examples, at least 1."""

    @property
    def features(self) -> int:
        """Number of features, at least 1."""

    def read(self, start: int, stop: int) -> tuple[Features, NDArray[Any]]:
        """Return x (stop − start, features) and y (stop − start,) of these rows, reading no others."""


class ArraySource:
    """Arrays as a source; where they are memory-mapped, `read` returns a view of the file.

    Raises:
        DataError: if `x` and `y` are not numeric arrays with one row and one label per example.
    """

    def __init__(self, name: str, x: Features, y: NDArray[Any]) -> None:
        self._x, self._y = checked(name, x, y)
        self.rows, self.features = self._x.shape

    def read(self, start: int, stop: int) -> tuple[Features, NDArray[Any]]:
        """Return views of these rows."""
        return self._x[start:stop], self._y[start:stop]

    def labels(self, start: int, stop: int) -> NDArray[Any]:
        """Return a view of the labels of these rows."""
        return self._y[start:stop]

    def pick(self, rows: NDArray[np.int64]) -> tuple[Features, NDArray[Any]]:
        """Return copies of any rows."""
        return self._x[rows], self._y[rows]


def checked(name: str, x: Features, y: NDArray[Any]) -> tuple[Features, NDArray[Any]]:
    """Return x as (rows, features) and y as (rows,), after flattening further axes.

    Raises:
        DataError: if shapes or dtypes cannot be those of examples and labels.
    """
    if x.dtype.kind not in "biuf" or y.dtype.kind not in "biuf":
        raise DataError(f"{name}: x is {x.dtype} and y is {y.dtype}; real numbers are expected")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if x.ndim < 2 or y.ndim != 1:
        raise DataError(f"{name}: x has shape {x.shape} and y {y.shape}; (rows, features) and (rows,) are expected")
    if x.shape[0] != y.shape[0]:
        raise DataError(f"{name}: x has {x.shape[0]} rows but there are {y.shape[0]} labels")
    if 0 in x.shape:
        raise DataError(f"{name}: x has shape {x.shape}: at least one row and one feature are expected")
    if isinstance(x, np.ndarray) and x.ndim > 2:
        x = x.reshape(x.shape[0], -1)
    return x, y
