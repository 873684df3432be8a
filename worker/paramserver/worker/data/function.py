"""Data from the user's own function, `module:function` or `file.py:function`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError, ParamserverError
from paramserver.worker.batches import Features
from paramserver.worker.data.source import ArraySource, Source, checked
from paramserver.worker.data.sparse import as_csr
from paramserver.worker.objects import line_of, load_object


def open_function(name: str, base: Path | None) -> Source:
    """Return what a function returns as a source.

    A function without arguments returns all of (x, y). One that takes `start` and `stop` returns these rows
    only, and says how many there are by its attribute `rows`, as in `load.rows = 1_000_000`.

    Raises:
        DataError: if the function cannot be found, fails, or returns something else.
    """
    function = load_object(name, base, DataError)
    if not callable(function):
        raise DataError(f"{name!r} is of type {type(function).__name__}; a function is expected")
    if {"start", "stop"} <= set(inspect.signature(function).parameters):
        return RangeSource(name, function)
    return ArraySource(name, *_call(name, function))


class RangeSource:
    """A function of `start` and `stop` as a source."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        rows = getattr(function, "rows", None)
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise DataError(
                f"{name!r} takes start and stop, so it needs an attribute 'rows' of 1 or more; found {rows!r}"
            )
        self._name, self._function = name, function
        self.rows: int = rows
        self.features = int(self.read(0, 1)[0].shape[1])

    def read(self, start: int, stop: int) -> tuple[Features, NDArray[Any]]:
        """Call the function for these rows."""
        x, y = checked(self._name, *_call(self._name, self._function, start=start, stop=stop))
        if x.shape[0] != stop - start:
            raise DataError(f"{self._name!r} returned {x.shape[0]} rows for start={start}, stop={stop}")
        return x, y


def _call(name: str, function: Callable[..., Any], **rows: int) -> tuple[Features, NDArray[Any]]:
    try:
        result = function(**rows)
    except ParamserverError:
        raise
    except Exception as error:
        raise DataError(f"{name!r} raised {type(error).__name__}: {error}{line_of(error)}") from error
    if not isinstance(result, tuple) or len(result) != 2:
        raise DataError(f"{name!r} returned {type(result).__name__}; a pair (x, y) is expected")
    x, y = result
    try:
        # numpy would wrap a sparse matrix as one object.
        return as_csr(x) if hasattr(x, "tocsr") else np.asarray(x), np.asarray(y)
    except ValueError as error:
        raise DataError(f"{name!r} returned no arrays: {error}") from None
