"""What workers say of their shards before training, and what becomes of it: the census and the moments of all rows."""

from __future__ import annotations

import numpy as np

from paramserver.wire.errors import DataError, TensorError
from paramserver.wire.moments import Moments, combine
from paramserver.wire.v1 import paramserver_pb2 as pb

#: Rows, features or classes of a shard; the sums over all shards still fit 64 bits.
MAX_COUNT = 2**40


class Surveys:
    """The surveys of the shards; the last one of a shard counts."""

    def __init__(self) -> None:
        self._all: dict[int, tuple[pb.Survey, Moments | None]] = {}

    def hold(self, survey: pb.Survey, moments: Moments | None) -> None:
        """Take the survey of a shard, and what `moments_of` found with it."""
        self._all[survey.shard] = survey, moments

    def combine(self, standardize: bool) -> tuple[pb.Census, Moments | None]:
        """Return what all shards have together, each of which has a survey here, and forget the surveys.

        Raises:
            DataError: if the features are to be standardized and the shards do not agree on them.
        """
        # In shard order, since the bits of the moments depend on it.
        surveys, moments = zip(*(self._all[shard] for shard in sorted(self._all)), strict=True)
        self._all.clear()
        return _census(surveys), _moments(surveys, moments) if standardize else None


def moments_of(survey: pb.Survey, payload: memoryview) -> Moments | None:
    """Check a survey and return the moments in its payload: 2 · features float64, or none.

    Raises:
        TensorError: if its numbers or the payload's length cannot be.
        DataError: if the payload holds no moments.
    """
    counts = (survey.rows, survey.features, survey.classes)
    if not survey.rows or max(counts) > MAX_COUNT or payload.nbytes not in (0, 16 * survey.features):
        raise TensorError(
            f"{survey.rows} rows, {survey.features} features, {survey.classes} classes and {payload.nbytes} "
            f"bytes of moments; 1 to {MAX_COUNT} rows and none or 16 bytes for each feature are expected"
        )
    return Moments.from_flat(survey.rows, np.frombuffer(payload, dtype="<f8")) if payload.nbytes else None


def _census(surveys: tuple[pb.Survey, ...]) -> pb.Census:
    return pb.Census(
        rows=sum(survey.rows for survey in surveys),
        features=max(survey.features for survey in surveys),
        # One shard without class labels means that the labels are no classes.
        classes=max(s.classes for s in surveys) if all(s.classes for s in surveys) else 0,
    )


def _moments(surveys: tuple[pb.Survey, ...], moments: tuple[Moments | None, ...]) -> Moments:
    first = surveys[0].features
    unlike = next((survey for survey in surveys if survey.features != first), None)
    if unlike is not None:
        raise DataError(
            f"data.standardize needs the same features in every shard, but shard {surveys[0].shard} has {first}"
            f" and shard {unlike.shard} has {unlike.features}"
        )
    missing = next((survey.shard for survey, m in zip(surveys, moments, strict=True) if m is None), None)
    if missing is not None:
        raise DataError(f"data.standardize needs the moments of shard {missing}, which sent none")
    return combine([m for m in moments if m is not None])
