"""Deals rows to shards so that every shard has another mixture of labels, as where data come from different places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def deal_by_label(
    labels: NDArray[Any], sizes: Sequence[int], concentration: float, seed: int
) -> list[NDArray[np.int64]]:
    """Return the rows of every shard, ascending: a partition of all rows and a pure function of the arguments.

    Shard after shard draws its mixture q ~ Dirichlet(α · p) of the labels, where p are their shares of all rows, and
    takes that many rows of each at random; of a label that is used up, others of the mixture stand in. With a large
    `concentration` α all shards look alike, with 1 they are skewed, below 0.1 most hold one label or two.

    Args:
        labels: shape (rows,).
        sizes: rows of every shard, which add up to all rows.
        concentration: α, above 0.
        seed: 0 … 2³² − 1.

    Source: Hsu, Qi & Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", 2019, section 3. (Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks",
    2019, deal every label by a Dirichlet distribution over the shards, which makes shards of unequal size too.)

    Warning: the last shards take what is left, so their mixtures are less extreme than α says.
    """
    # The legacy generator is used since numpy froze its stream for good.
    random = np.random.RandomState(seed)
    _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    pools = [random.permutation(np.flatnonzero(numbers == label)) for label in range(len(counts))]
    used = np.zeros_like(counts)
    shards = []
    for size in sizes:
        taken = _allot(size, _mixture(random, concentration * counts / counts.sum()), counts - used)
        rows = [pool[start : start + n] for pool, start, n in zip(pools, used, taken, strict=True)]
        shards.append(np.sort(np.concatenate(rows)))
        used += taken
    return shards


def _mixture(random: np.random.RandomState, alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw from a Dirichlet distribution, also where α is so small that all but one share underflow."""
    gammas = random.standard_gamma(alpha)
    chosen = random.choice(len(alpha), p=alpha / alpha.sum())
    if gammas.sum() == 0:
        gammas[chosen] = 1.0
    mixture: NDArray[np.float64] = gammas / gammas.sum()
    return mixture


def _allot(size: int, mixture: NDArray[np.float64], left: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many rows of each label make `size` rows, close to the mixture and none above what is left."""
    taken = np.zeros_like(left)
    while missing := size - int(taken.sum()):
        rest = left - taken
        weights = np.where(rest > 0, mixture, 0.0)
        if weights.sum() == 0:
            weights = rest.astype(np.float64)
        exact = missing * weights / weights.sum()
        share = np.floor(exact).astype(np.int64)
        # The largest remainders are rounded up.
        share[np.argsort(share - exact, kind="stable")[: missing - int(share.sum())]] += 1
        taken += np.minimum(share, rest)
    return taken
