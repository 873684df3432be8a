import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.wire.errors import DataError
from paramserver.worker.batches import Batch, BatchOrder, epoch_order, shard_range, steps_per_epoch

counts = st.integers(1, 60)


@given(rows=counts, shards=counts)
def test_shards_cut_all_rows_into_contiguous_parts_of_nearly_equal_size(rows, shards):
    if shards > rows:
        with pytest.raises(DataError, match=f"{shards} shards are more than the {rows} rows"):
            shard_range(rows, shards, 0)
        return
    ranges = [shard_range(rows, shards, shard) for shard in range(shards)]
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(rows))
    sizes = {stop - start for start, stop in ranges}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(rows=st.integers(1, 10_000), weights=st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20))
def test_weighted_shards_cut_all_rows_into_contiguous_parts_of_these_proportions(rows, weights):
    exact = np.array(weights) / sum(weights) * rows
    ranges = []
    for shard in range(len(weights)):
        try:
            ranges.append(shard_range(rows, len(weights), shard, weights))
        except DataError as error:
            # Whoever reads a shard that is empty says so, whatever the others do.
            assert "every shard needs a row" in str(error)  # noqa: PT017
            assert exact[shard] < 1 + 1e-6 or len(weights) > rows
            return
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(rows))
    np.testing.assert_allclose([stop - start for start, stop in ranges], exact, atol=1 + 1e-6)


def test_equal_weights_are_no_weights():
    for shard in range(7):
        assert shard_range(100, 7, shard, [0.3] * 7) == shard_range(100, 7, shard)


@pytest.mark.parametrize("shard", [-1, 4])
def test_a_shard_outside_the_job_is_refused(shard):
    with pytest.raises(DataError, match="shards 0 to 3"):
        shard_range(100, 4, shard)


@given(seed=st.integers(0, 2**32 - 1), shard=st.integers(0, 65535), rows=counts, size=counts, epoch=counts)
def test_the_batches_of_an_epoch_visit_every_row_exactly_once(seed, shard, rows, size, epoch):
    order = BatchOrder(seed, shard, rows, size)
    per_epoch = steps_per_epoch(rows, size)
    batches = [np.arange(rows)[order.rows_of(epoch * per_epoch + i)] for i in range(per_epoch)]
    assert sorted(np.concatenate(batches)) == list(range(rows))
    assert all(len(batch) == min(size, rows) for batch in batches[:-1])


@given(steps=st.lists(st.integers(0, 40), min_size=1))
def test_a_batch_does_not_depend_on_the_steps_asked_for_before(steps):
    walked = BatchOrder(7, 3, 23, 5)
    for step in steps:
        np.testing.assert_array_equal(walked.rows_of(step), BatchOrder(7, 3, 23, 5).rows_of(step))


def test_seed_shard_and_epoch_each_change_the_order():
    orders = [epoch_order(*key, rows=50).tolist() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_what_the_documented_recipe_gives_forever():
    assert epoch_order(seed=1, shard=2, epoch=3, rows=8).tolist() == [1, 0, 4, 5, 7, 6, 3, 2]


def test_a_batch_of_the_whole_shard_is_a_slice():
    for size in (0, 10, 11):
        assert BatchOrder(0, 0, 10, size).rows_of(5) == slice(0, 10)


def test_labels_of_minus_one_are_class_0():
    batch = Batch(np.zeros((2, 1)), np.array([-1.0, 1.0]), classes=2)
    assert batch.n == 2
    assert batch.labels.tolist() == [0, 1]
