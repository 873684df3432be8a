"""Losses that several tasks share, each with its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cross_entropy(scores: NDArray[Any], labels: NDArray[np.int64], scale: float = 1.0) -> tuple[float, NDArray[Any]]:
    """Return the mean of −log softmax(scores)[label], and `scale` times its gradient by the scores.

    Args:
        scores: Floats, shape (n, classes); overwritten, since the gradient takes its place.
        labels: Class numbers, shape (n,).
    """
    rows = np.arange(len(labels))
    scores -= np.maximum.reduce(scores, axis=1, keepdims=True)
    chosen = scores[rows, labels]
    np.exp(scores, out=scores)
    total = np.add.reduce(scores, axis=1)
    loss = float(np.add.reduce(np.log(total) - chosen, dtype=np.float64)) / len(labels)
    scores /= total[:, None]
    scores[rows, labels] -= 1
    if scale != len(labels):
        scores /= len(labels) / scale
    return loss, scores


def penalise(l2: float, w: NDArray[Any], grad: NDArray[Any], scale: float = 1.0) -> float:
    """Return l2 · ‖w‖² and add `scale` times its gradient, 2 · l2 · w, to `grad` in place."""
    if not l2:
        return 0.0
    grad += 2 * l2 * scale * w
    return l2 * float(np.sum(np.square(w), dtype=np.float64))


def log_loss(scores: NDArray[Any], y: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    """Return the mean log loss of scores, shape (n,), for labels above 0 or not, and its gradient by the scores."""
    sign = np.where(y > 0, -1, 1).astype(scores.dtype)
    signed = scores * sign
    # The loss log(1 + e^s) has the derivative e^s / (1 + e^s): neither overflows here.
    losses = np.logaddexp(0, signed)
    return float(np.mean(losses, dtype=np.float64)), sign * np.exp(signed - losses) / len(scores)


def squared_loss(scores: NDArray[Any], y: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    """Return the mean squared error of scores, shape (n,), and its gradient by the scores."""
    residual = scores - y
    return float(np.mean(np.square(residual), dtype=np.float64)), residual * (2 / len(scores))
