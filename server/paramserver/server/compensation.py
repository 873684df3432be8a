"""Delay compensation: what a gradient computed at an old θ would be at the present one, to first order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paramserver.wire.layout import Array

#: Share of the last mean square that is kept, as in the paper's runs on CIFAR-10.
DECAY = 0.95
#: Added to the mean square, so that its root may divide.
EPSILON = 1e-7


class DelayCompensation:
    """DC-ASGD with adaptive strength, and the copies of θ that it needs.

        s ← m·s + (1 − m)·g²
        g ← g + λ/√(s + ε) · g² · (θ − θ_pulled)

    g² stands for the diagonal of the Hessian. `strength` is λ; `size` and `dtype` are those of θ.

    Source: Zheng et al., "Asynchronous Stochastic Gradient Descent with Delay Compensation", 2017, algorithm 2 and
    equation 14 (DC-ASGD-a).

    Warning: takes the memory of one more θ for the mean square and of up to one for each shard, the copies that their
    holders have pulled.
    """

    def __init__(self, size: int, dtype: npt.DTypeLike, strength: float) -> None:
        self._strength = strength
        self._mean_square: Array = np.zeros(size, dtype)
        #: By shard: the θ that its next contribution is computed at. Shards that pulled one version share a copy.
        self._pulled: dict[int, Array] = {}
        self._latest: tuple[int, Array] | None = None

    def remember(self, shard: int, version: int, theta: Array) -> None:
        """Keep θ of `version`, at which the next contribution of the shard will be computed."""
        if self._latest is None or self._latest[0] != version:
            self._latest = version, theta.copy()
        self._pulled[shard] = self._latest[1]

    @property
    def mean_square(self) -> Array:
        """The running mean of g², which changes with the next update."""
        return self._mean_square

    def restore(self, mean_square: Array) -> None:
        """Go on from an earlier mean of g²."""
        self._mean_square[:] = mean_square

    def pulled(self, shard: int) -> Array:
        """Return the θ that the shard's next contribution is computed at."""
        return self._pulled[shard]

    def replay(self, shard: int, pulled: Array) -> None:
        """Take `pulled` for the θ that the shard's next contribution was computed at."""
        self._pulled[shard] = pulled

    def correct(self, shard: int, start: int, gradient: Array, theta: Array) -> None:
        """Correct a block of the shard's gradient in place; `start` is its first element within θ."""
        mean_square = self._mean_square[start : start + gradient.size]
        square = gradient * gradient
        mean_square *= DECAY
        mean_square += (1 - DECAY) * square
        strength = self._strength / np.sqrt(mean_square + EPSILON)
        gradient += strength * square * (theta - self._pulled[shard][start : start + gradient.size])
