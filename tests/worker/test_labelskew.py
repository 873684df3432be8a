import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.worker.batches import shard_range
from paramserver.worker.labelskew import deal_by_label


@given(
    labels=st.lists(st.integers(-1, 6), min_size=1, max_size=80),
    shards=st.integers(1, 9),
    concentration=st.sampled_from([0.001, 0.1, 1.0, 100.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_row_goes_to_one_shard_and_every_shard_has_its_size(labels, shards, concentration, seed):
    shards = min(shards, len(labels))
    ranges = [shard_range(len(labels), shards, shard) for shard in range(shards)]
    sizes = [stop - start for start, stop in ranges]
    dealt = deal_by_label(np.array(labels), sizes, concentration, seed)
    assert [len(rows) for rows in dealt] == sizes
    assert sorted(np.concatenate(dealt)) == list(range(len(labels)))
    assert all((np.diff(rows) > 0).all() for rows in dealt)
    again = deal_by_label(np.array(labels), sizes, concentration, seed)
    assert all((a == b).all() for a, b in zip(dealt, again, strict=True))


def shares(concentration: float, seed: int = 0) -> np.ndarray:
    """How much of each shard every label makes, shape (shards, labels)."""
    labels = np.arange(5000) % 5
    dealt = deal_by_label(labels, [500] * 10, concentration, seed)
    return np.array([np.bincount(labels[rows], minlength=5) / 500 for rows in dealt])


def test_a_large_concentration_deals_all_shards_the_same_mixture():
    np.testing.assert_allclose(shares(1e6), 0.2, atol=0.01)


def test_a_small_concentration_deals_a_shard_one_label():
    mostly = [shares(0.01, seed).max(axis=1)[0] for seed in range(40)]
    assert np.median(mostly) > 0.99


def test_the_first_shards_vary_as_a_dirichlet_distribution_does():
    """The variance of a share p is p(1 − p)/(α + 1)."""
    first = np.array([shares(4.0, seed)[0] for seed in range(300)])
    assert first.mean() == pytest.approx(0.2)
    assert first.var() == pytest.approx(0.2 * 0.8 / 5, rel=0.15)


def test_another_seed_deals_otherwise():
    dealt = [deal_by_label(np.arange(60) % 3, [20] * 3, 1.0, seed)[0].tolist() for seed in range(5)]
    assert len({tuple(rows) for rows in dealt}) == 5


def test_the_rows_of_a_seed_are_those_of_every_numpy():
    dealt = deal_by_label(np.arange(12) % 3, [5, 4, 3], 3.0, seed=3)
    assert [rows.tolist() for rows in dealt] == [[0, 3, 6, 9, 11], [1, 4, 7, 10], [2, 5, 8]]
