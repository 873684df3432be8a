"""The reductions: the sum of a round has the bits of the in-order sum, however its chunks arrive."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.server.reduction import RoundSum, Separate, Terms

Array = np.ndarray[Any, Any]

WHOLE = -1


def gradients(seed: int, shards: int, size: int, dtype: str) -> Array:
    """Numbers of very different size, so that another order of summation shows in the bits."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((shards, size)) * 10.0 ** rng.integers(-6, 6, (shards, size))).astype(dtype)


def in_order(values: Array) -> Array:
    total = values[0].copy()
    for row in values[1:]:
        total = total + row
    return total


def added_up(chunks: list[Terms]) -> list[Array]:
    return [in_order(np.array(terms)) for terms in chunks]


def pieces(values: Array, chunk: int) -> list[Array]:
    return [values[start : start + chunk] for start in range(0, len(values), chunk)]


@given(data=st.data())
def test_the_bits_of_a_round_do_not_depend_on_how_its_chunks_arrive(data: st.DataObject) -> None:
    shards = data.draw(st.integers(1, 5), "shards")
    chunk = data.draw(st.integers(1, 4), "chunk")
    size = data.draw(st.integers(1, 11), "size")
    dtype = data.draw(st.sampled_from(["float32", "float64"]), "dtype")
    reduction = RoundSum(shards, size, chunk, np.dtype(dtype))
    for round_number in range(2):
        values = gradients(round_number, shards, size, dtype)
        count = len(pieces(values[0], chunk))
        # Every sender keeps its own order and may break off and be replaced by one that begins anew; beyond that
        # the chunks of all senders come in any order.
        waiting: list[tuple[int, list[int]]] = []
        for shard in range(shards):
            broken_off = data.draw(st.lists(st.integers(0, count), max_size=2), "broken off")
            # The last sender may share memory and hand its contribution in whole, which `WHOLE` stands for.
            last = [WHOLE] if data.draw(st.booleans(), "in shared memory") else list(range(count))
            waiting.append((shard, [i for length in broken_off for i in range(length)] + last))
        while waiting:
            position = data.draw(st.integers(0, len(waiting) - 1), "next sender")
            shard, indices = waiting[position]
            index = indices.pop(0)
            part = (values[shard] if index == WHOLE else pieces(values[shard], chunk)[index]).copy()
            part.flags.writeable = False
            if index == WHOLE:
                reduction.hold(shard, part)
            else:
                reduction.add(shard, index, part)
            if not indices:
                waiting.pop(position)
            if data.draw(st.booleans(), "holder dies"):
                reduction.drop(shard)
        summed = np.concatenate(added_up(reduction.take(range(shards))))
        assert summed.tobytes() == in_order(values).tobytes()


def test_another_order_would_show() -> None:
    values = gradients(0, 5, 50, "float32")
    assert in_order(values).tobytes() != in_order(values[::-1]).tobytes()


def test_a_round_with_a_chunk_missing_is_never_summed() -> None:
    reduction = RoundSum(2, 4, 2, np.dtype("float64"))
    reduction.add(0, 0, np.ones(2))
    reduction.add(0, 1, np.ones(2))
    reduction.add(1, 1, np.ones(2))
    with pytest.raises(AssertionError, match="before all chunks were in"):
        reduction.take([0, 1])


def test_received_chunks_are_never_written_to() -> None:
    reduction = RoundSum(3, 2, 2, np.dtype("float64"))
    parts = [np.full(2, float(i)) for i in range(3)]
    for shard, part in enumerate(parts):
        reduction.add(shard, 0, part)
    assert [p.tolist() for p in added_up(reduction.take([0, 1, 2]))] == [[3.0, 3.0]]
    assert [p.tolist() for p in parts] == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


def test_separate_hands_out_each_contribution_alone_and_forgets_what_was_broken_off() -> None:
    reduction = Separate(size=2, chunk=1)
    reduction.add(0, 0, np.array([9.0]))
    reduction.add(1, 0, np.array([1.0]))
    reduction.drop(0)
    reduction.add(0, 0, np.array([2.0]))
    reduction.add(1, 1, np.array([3.0]))
    reduction.add(0, 1, np.array([4.0]))
    assert [p.tolist() for p in added_up(reduction.take([1]))] == [[1.0], [3.0]]
    assert [p.tolist() for p in added_up(reduction.take([0]))] == [[2.0], [4.0]]
    # A push that was broken off without a word starts anew.
    reduction.add(0, 0, np.array([7.0]))
    reduction.add(0, 0, np.array([8.0]))
    assert [p.tolist() for p in added_up(reduction.take([0]))] == [[8.0]]


@given(data=st.data())
def test_separate_adds_up_who_is_named_and_a_finished_contribution_outlives_its_sender(data: st.DataObject) -> None:
    shards = data.draw(st.integers(1, 5), "shards")
    values = gradients(1, shards, 5, "float32")
    reduction = Separate(size=5, chunk=2)
    for shard in data.draw(st.permutations(range(shards)), "order of arrival"):
        if data.draw(st.booleans(), "in shared memory"):
            reduction.hold(shard, values[shard])
        else:
            for index, part in enumerate(pieces(values[shard], 2)):
                reduction.add(shard, index, part)
        reduction.drop(shard)
    named = sorted(data.draw(st.sets(st.integers(0, shards - 1), min_size=1), "named"))
    summed = np.concatenate(added_up(reduction.take(named)))
    assert summed.tobytes() == in_order(values[named]).tobytes()


@given(data=st.data())
def test_a_round_of_the_shards_that_are_behind_is_their_sum(data: st.DataObject) -> None:
    """After a switch to rounds, shards that are ahead sit out until the others have caught up."""
    shards = data.draw(st.integers(2, 5), "shards")
    values = gradients(2, shards, 5, "float32")
    behind = sorted(data.draw(st.sets(st.integers(0, shards - 1), min_size=1), "behind"))
    reduction = RoundSum(shards, 5, 2, np.dtype("float32"))
    for shard in data.draw(st.permutations(behind), "order of arrival"):
        for index, part in enumerate(pieces(values[shard], 2)):
            reduction.add(shard, index, part)
    summed = np.concatenate(added_up(reduction.take(behind)))
    assert summed.tobytes() == in_order(values[behind]).tobytes()
