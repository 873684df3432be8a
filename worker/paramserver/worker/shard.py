"""One shard of a job's data: opened, surveyed and cut into batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import DataError
from paramserver.wire.job import Job
from paramserver.wire.moments import Moments
from paramserver.worker.batches import Batch, BatchOrder, Features, shard_range
from paramserver.worker.data import open_source
from paramserver.worker.data.pick import all_labels, pick
from paramserver.worker.data.sparse import HASHED_FEATURES, with_features
from paramserver.worker.labelskew import deal_by_label
from paramserver.worker.moments import Standardizer, moments

#: Whole numbers up to here may be class numbers; larger ones are values, such as amounts or times.
MAX_CLASSES = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What a shard knows of its data before training; the surveys of all shards make the job's."""

    rows: int
    #: 0 where column numbers are hashes.
    features: int
    #: Classes seen in this shard, see `count_classes`. The job has 0 if any shard has 0, else the maximum.
    classes: int
    #: None unless the job standardises.
    moments: Moments | None


class Shard:
    """The rows of one shard; what `batch(step)` returns depends only on the job, the data and the step.

    x stays memory-mapped where its source is, and is then cast batch by batch.
    """

    def __init__(self, job: Job, shard: int, x: Features, y: NDArray[Any]) -> None:
        self.rows, self.features = x.shape
        self._standardize = job.data.standardize
        self._dtype = np.dtype(job.train.dtype)
        self._order = BatchOrder(job.train.seed, shard, self.rows, job.data.batch_size)
        self._x = x
        self._y = _frozen(np.array(y, dtype=self._dtype))
        self._own_classes = count_classes(y)
        self._classes = 0
        #: Applied batch by batch; None where nothing is left to apply.
        self._standardizer: Standardizer | None = None
        #: What every step works on if it works on all rows and they are in memory.
        self._whole: Batch | None = None

    @classmethod
    def open(cls, job: Job, shard: int, base: Path | None = None) -> Shard:
        """Read the rows of a shard; relative paths of the job start at `base`.

        No other rows are read, but for their labels where the job deals rows by label.

        Raises:
            DataError: if the source is missing or malformed, a shard would be empty, or the job deals rows by label
                and the labels are no class numbers.
        """
        data = job.data
        source = open_source(data.source, data.label, base, data.hash)
        if data.label_skew is None:
            x, y = source.read(*shard_range(source.rows, data.shards, shard, data.shard_weights))
        else:
            x, y = pick(source, _dealt_rows(job, shard, all_labels(source)))
        return cls(job, shard, x, y)

    def survey(self) -> Survey:
        """Return rows, features, classes and, if the job standardises, the moments of this shard.

        Raises:
            DataError: if the job standardises and a feature is not finite.
        """
        own = moments(self._x) if self._standardize else None
        features = 0 if self.features == HASHED_FEATURES else self.features
        return Survey(self.rows, features, self._own_classes, own)

    def prepare(self, classes: int, standardizer: Standardizer | None = None) -> None:
        """Take what the surveys of all shards gave, once, before the first batch."""
        self._classes = classes
        self._standardizer = standardizer
        if not _is_mapped(self._x):
            self._x = _frozen(self._ready(self._x))
            self._standardizer = None
            if self._order.is_whole:
                self._whole = Batch(self._x, self._y, self._classes)

    @property
    def is_made(self) -> bool:
        """Is every batch all of the shard, and there already?"""
        return self._whole is not None

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0."""
        if self._whole is not None:
            return self._whole
        rows = self._order.rows_of(step)
        return Batch(self._ready(_rows(self._x, rows)), self._y[rows], self._classes)

    def _ready(self, x: Features) -> Features:
        return _in_dtype(self._standardizer.apply(x) if self._standardizer else x, self._dtype)


def _rows(x: Features, rows: slice | NDArray[np.int64]) -> Features:
    if isinstance(rows, slice):
        # The whole shard, which csr would copy.
        return x
    # A fifth faster than an index for a batch of long rows, three times for a few short ones.
    return x.take(rows, axis=0) if isinstance(x, np.ndarray) else x[rows]


def _dealt_rows(job: Job, shard: int, labels: NDArray[Any]) -> NDArray[np.int64]:
    data = job.data
    assert data.label_skew is not None
    if not count_classes(labels):
        raise DataError(
            f"data.label_skew = {data.label_skew:g} needs labels 0, 1, 2, … or -1/+1; {data.source} has others"
        )
    ranges = [shard_range(len(labels), data.shards, each, data.shard_weights) for each in range(data.shards)]
    return deal_by_label(labels, [stop - start for start, stop in ranges], data.label_skew, job.train.seed)[shard]


def open_test(
    job: Job, features: int, classes: int, standardizer: Standardizer | None = None, base: Path | None = None
) -> Batch:
    """Return all of `data.test` as one batch with the features, classes and standardisation of training.

    Raises:
        DataError: if the job names no test data, or they do not fit the training data.
    """
    name = job.data.test
    if not name:
        raise DataError("the job has no data.test to evaluate on")
    source = open_source(name, _test_label(job), base, job.data.hash)
    x, y = source.read(0, source.rows)
    if not isinstance(x, np.ndarray):
        x = with_features(x, features)
    elif source.features != features:
        raise DataError(f"{name}: {source.features} features, but training has {features}")
    if classes and not 0 < count_classes(y) <= classes:
        raise DataError(f"{name}: labels from {y.min()} to {y.max()}, but training has the classes 0 to {classes - 1}")
    dtype = np.dtype(job.train.dtype)
    return Batch(_in_dtype(standardizer.apply(x) if standardizer else x, dtype), y.astype(dtype), classes)


def _test_label(job: Job) -> str:
    """Return the label of the test data: that of training, unless it names a file of training's labels."""
    label = job.data.label
    if label.endswith(".npy") and job.data.test.endswith(".npy"):
        raise DataError(
            f"data.label = {label!r} labels the training rows; data.test = {job.data.test!r} has "
            "none: keep it as .npz with x and y, or as .npy with the label as its last column"
        )
    return "" if label.endswith(".npy") or "idx1" in label else label


def count_classes(y: NDArray[Any]) -> int:
    """Return the largest label + 1 if all are whole numbers from 0, 2 if all are −1 or +1, else 0."""
    if ((y == 1) | (y == -1)).all():
        return 2
    if ((y >= 0) & (y < MAX_CLASSES) & (y == np.floor(y))).all():
        return int(y.max()) + 1
    return 0


def _in_dtype(x: Features, dtype: np.dtype[Any]) -> Features:
    return np.ascontiguousarray(x, dtype=dtype) if isinstance(x, np.ndarray) else x.astype(dtype, copy=False)


def _frozen(array: Features) -> Features:
    # A task that changed its batch in place would otherwise change the shard, and with it every later step.
    (array if isinstance(array, np.ndarray) else array.data).flags.writeable = False
    return array


def _is_mapped(x: Features) -> bool:
    while isinstance(x, np.ndarray):
        if isinstance(x, np.memmap):
            return True
        x = x.base
    return False
