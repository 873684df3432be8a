"""Small data sets that need no file: `builtin:NAME`, all of it or its parts `/train` and `/test`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError, nearest
from paramserver.worker.data.source import ArraySource

Arrays = tuple[NDArray[Any], NDArray[Any]]

#: Seeds of `linear` and of the split. The legacy generator is used since numpy froze its stream for good.
LINEAR_SEED = 20
SPLIT_SEED = 80


def linear() -> Arrays:
    """Return 1000 points of y = 2x + 1 + 0.1 · N(0, 1), x uniform in [0, 1): float64."""
    random = np.random.RandomState(LINEAR_SEED)
    x = random.uniform(size=(1000, 1))
    return x, 2 * x[:, 0] + 1 + 0.1 * random.standard_normal(1000)


def digits() -> Arrays:
    """Return 1797 images of 8 × 8 pixels, scaled from 0 … 16 to [0, 1], and their digits 0 … 9."""
    x, y = _sklearn("digits")
    return x / 16, y


def breast_cancer() -> Arrays:
    """Return 569 tumours with 30 features and the labels 0 (malignant) and 1 (benign)."""
    return _sklearn("breast_cancer")


def diabetes() -> Arrays:
    """Return 442 patients with 10 features and the progression of their disease, 25 … 346."""
    return _sklearn("diabetes")


DATASETS: dict[str, Callable[[], Arrays]] = {
    "linear": linear,
    "digits": digits,
    "breast_cancer": breast_cancer,
    "diabetes": diabetes,
}


def open_builtin(source: str) -> ArraySource:
    """Return a built-in set; `/train` and `/test` are 80 % and 20 % of its rows, always shuffled alike.

    Raises:
        DataError: if there is no such set or part, or scikit-learn is needed and missing.
    """
    name, _, part = source.removeprefix("builtin:").partition("/")
    if name not in DATASETS:
        raise DataError(f"{source!r}: no such set{nearest(name, DATASETS) or '.'} Allowed: {', '.join(DATASETS)}")
    if part not in ("", "train", "test"):
        raise DataError(f"{source!r}: no such part{nearest(part, ('train', 'test')) or '.'} Allowed: train, test")
    x, y = DATASETS[name]()
    if part:
        order = np.random.RandomState(SPLIT_SEED).permutation(len(y))
        tests = len(y) // 5
        rows = order[:tests] if part == "test" else order[tests:]
        x, y = x[rows], y[rows]
    return ArraySource(source, x, y)


@lru_cache
def _sklearn(name: str) -> Arrays:
    try:
        from sklearn import datasets
    except ImportError:
        raise DataError(
            f"'builtin:{name}' needs scikit-learn, which is missing: pip install 'paramserver[datasets]'"
        ) from None
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    # All shards of a process share them.
    x.flags.writeable = y.flags.writeable = False
    return x, y
