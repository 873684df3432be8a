"""Aggregation of a round that withstands some contributions that are wrong, broken or hostile.

Pure functions over a stack of mean gradients, shape (n, size), one row per contribution in shard order, float32 or
float64; each returns one gradient of shape (size,) in the same dtype. Rows are finite: others never get this far.

Warning: all of these need every contribution in memory at once. Only the mean weighs contributions by their samples.
And none can tell an honest contribution that is unusual, because its shard is, from a hostile one: on shards that
differ much, they lose accuracy that the mean would have kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from paramserver.server.optimizers.norms import clip_factor
from paramserver.server.wholesums import Asking, Question
from paramserver.wire.job import TrainSection
from paramserver.wire.layout import Array


def aggregate(
    train: TrainSection, chunks: Sequence[Sequence[Array]], samples: Sequence[int], dtype: np.dtype[np.generic]
) -> Asking[Array]:
    """Return the gradient of a round as the job wants it.

    `chunks` are consecutive pieces of the gradient, each a sequence of that piece of every contribution; a contribution
    is the sum over as many examples as `samples` says. What depends on whole contributions is asked for.
    """
    # Of several servers one may have no part of a small θ.
    stack = np.stack([np.concatenate(row) for row in zip(*chunks, strict=True)] or [np.empty(0, dtype)] * len(samples))
    for row, count in zip(stack, samples, strict=True):
        np.multiply(row, 1.0 / count, out=row)
    if train.clip_contribution:
        clip_rows(stack, train.clip_contribution, (yield Question(stack)))
    match train.aggregate:
        case "median":
            return median(stack)
        case "trimmed_mean":
            return trimmed_mean(stack, train.trim)
        case "krum" | "multi_krum":
            distances = matrix((yield Question(stack, of_pairs=True)), len(stack))
            selected = 1 if train.aggregate == "krum" else len(stack) - train.byzantine
            return multi_krum(stack, train.byzantine, selected, distances)
        case "mean":
            return weighted_mean(stack, samples)


def weighted_mean(stack: Array, samples: Sequence[int]) -> Array:
    """Return the mean of the rows, each weighed by its samples."""
    weights = np.array(samples, np.float64) / sum(samples)
    mean: Array = np.zeros_like(stack[0])
    for row, weight in zip(stack, weights, strict=True):
        mean += row * stack.dtype.type(weight)
    return mean


def clip_rows(stack: Array, bound: float, squares: Array) -> None:
    """Scale every row in place whose Euclidean norm is above `bound` down to it; `squares` are those of their norms.

        g ← g · min(1, bound/‖g‖)

    Source: Sun et al., "Can You Really Backdoor Federated Learning?", 2019, there of the differences that clients send.

    Warning: against few contributions of large norm; a hostile one within the bound still counts in full.
    """
    for row, square in zip(stack, squares, strict=True):
        factor = clip_factor(math.sqrt(square), bound)
        if factor != 1.0:
            np.multiply(row, factor, out=row)


def median(stack: Array) -> Array:
    """Return the median of each coordinate; for an even number of rows, the mean of the two in the middle.

    Withstands fewer than half of the rows. Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal
    Statistical Rates", 2018, definition 1.

    Warning: its variance is above that of the mean, and it is biased where the rows are skewed.
    """
    middle: Array = np.median(stack, axis=0)
    return middle


def trimmed_mean(stack: Array, trim: int) -> Array:
    """Return the mean of each coordinate without its `trim` smallest and `trim` largest values; 2·trim < n.

    Withstands `trim` rows. Source: Yin et al. 2018, definition 2 (with β = trim/n).
    """
    kept: Array = np.sort(stack, axis=0)[trim : len(stack) - trim].mean(axis=0)
    return kept


def multi_krum(stack: Array, byzantine: int, selected: int, distances: Array) -> Array:
    """Return the mean of the `selected` rows of lowest Krum score; with 1 this is Krum itself.

    `distances` are the squared ones between rows, float64 of shape (n, n).

    The score of a row is the sum of its squared distances to its n − byzantine − 2 nearest others; of equal scores the
    lower row counts as the better. Withstands `byzantine` rows where n ≥ 2·byzantine + 3.

    Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017, section 4.

    Warning: takes n² distances over the whole gradient. A hostile row that hides among the honest ones may shift single
    coordinates by as much as the rows differ as a whole, which in many dimensions is a lot.
    """
    others = distances.copy()
    np.fill_diagonal(others, math.inf)
    scores = np.sort(others, axis=1)[:, : len(stack) - byzantine - 2].sum(axis=1)
    best = np.sort(np.argsort(scores, kind="stable")[:selected])
    chosen: Array = stack[best].mean(axis=0)
    return chosen


def matrix(pairs: Array, count: int) -> Array:
    """Return numbers that belong to the pairs (0, 1), (0, 2), … (1, 2), … of `count` rows as a symmetric matrix."""
    found = np.zeros((count, count))
    found[np.triu_indices(count, 1)] = pairs
    return found + found.T
