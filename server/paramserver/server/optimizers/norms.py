"""Euclidean norms over the whole of θ or of a tensor, with bits that do not depend on how it is cut.

Squares are summed in blocks of `NORM_BLOCK` elements, counted from the start of each tensor, and the
blocks' sums in tensor order. Partitions and chunks that cut tensors only between such blocks can therefore
each sum their own blocks, and whoever has all sums in order gets the same bits.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from paramserver.server.optimizers.optimizer import Array
from paramserver.wire.layout import GRID

#: Elements in a block; a cut inside a tensor must be at a multiple of this from the tensor's start.
NORM_BLOCK = GRID

Squares = npt.NDArray[np.float64]


def block_squares(values: Array) -> Squares:
    """Return the sum of squares of each block of `values`, a tensor or a range of one from a block on.

    Squares and sums are in float64, so that no float32 overflows them; a float64 value above 1e154 gives
    infinity.
    """
    work = np.empty(min(values.size, NORM_BLOCK), np.float64)
    sums = np.empty(-(-values.size // NORM_BLOCK), np.float64)
    with np.errstate(over="ignore"):
        for index in range(sums.size):
            block = values[index * NORM_BLOCK : (index + 1) * NORM_BLOCK]
            squares = work[: block.size]
            np.copyto(squares, block)
            np.multiply(squares, squares, out=squares)
            sums[index] = np.add.reduce(squares)
    return sums


def norm(squares: Squares) -> float:
    """Return the norm of what all the blocks hold; `squares` are their sums, in tensor order."""
    with np.errstate(over="ignore"):
        return math.sqrt(np.add.reduce(squares))


def clip_factor(gradient_norm: float, clip_norm: float) -> float:
    """Return the factor that brings a gradient of this norm down to `clip_norm`, where 0 is no bound.

    Source: Pascanu, Mikolov & Bengio, "On the difficulty of training recurrent neural networks", 2013,
    algorithm 1.

    Warning: a bound well below the usual norm makes every step as long, and so is a smaller learning rate that does
    not fall as training converges.
    """
    return clip_norm / gradient_norm if 0 < clip_norm < gradient_norm else 1.0
