"""The reductions: the sum of a round has the bits of the in-order sum, however its contributions arrive."""

from __future__ import annotations

from typing import Any
from weakref import ref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.server.reduction import AT_ONCE, RoundSum, Separate, Terms, sum_up
from paramserver.wire.codecs import Origin, halves

Array = np.ndarray[Any, Any]


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
    values = values.copy()
    values.flags.writeable = False
    return [values[start : start + chunk] for start in range(0, len(values), chunk)]


@given(data=st.data())
def test_the_bits_of_a_round_do_not_depend_on_the_order_of_arrival(data: st.DataObject) -> None:
    shards = data.draw(st.integers(1, 2 * AT_ONCE + 3), "shards")
    chunk = data.draw(st.integers(1, 4), "chunk")
    size = data.draw(st.integers(1, 11), "size")
    dtype = data.draw(st.sampled_from(["float32", "float64"]), "dtype")
    reduction = RoundSum(shards, size, chunk, np.dtype(dtype))
    for round_number in range(2):
        values = gradients(round_number, shards, size, dtype)
        for shard in data.draw(st.permutations(range(shards)), "arrival"):
            reduction.hold(shard, pieces(values[shard], chunk), data.draw(st.booleans(), "is lent"))
        summed = np.concatenate(added_up(reduction.take(range(shards))))
        assert summed.tobytes() == in_order(values).tobytes()


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@given(shards=st.integers(1, 2 * AT_ONCE + 3), order=st.randoms(use_true_random=False))
def test_halves_make_the_sum_of_their_values(name: str, shards: int, order: Any) -> None:
    codec, size = halves(name), 11
    assert codec is not None
    coded = np.empty((shards, 2 * size), np.uint8)
    values = np.random.default_rng(shards).standard_normal((shards, size)).astype(np.float32)
    reduction = RoundSum(shards, size, 4, np.dtype("float32"))
    arrival = list(range(shards))
    order.shuffle(arrival)
    for shard in arrival:
        codec.encode(values[shard], coded[shard], Origin(0, 0, 0, 0))
        codec.decode(coded[shard].data, values[shard])
        reduction.hold(shard, pieces(codec.look(coded[shard].data)[0], 4))
    found = []
    for terms in reduction.take(range(shards)):
        found.append(np.empty(terms[-1].size, np.float32))
        sum_up(terms, found[-1])
    assert np.concatenate(found).tobytes() == in_order(values).tobytes()


def test_another_order_would_show() -> None:
    values = gradients(0, 5, 50, "float32")
    assert in_order(values).tobytes() != in_order(values[::-1]).tobytes()


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_round_with_a_contribution_missing_is_never_summed(missing: int) -> None:
    reduction = RoundSum(3, 4, 2, np.dtype("float64"))
    for shard in range(3):
        if shard != missing:
            reduction.hold(shard, pieces(np.ones(4), 2))
    with pytest.raises(AssertionError, match="before all contributions were in"):
        reduction.take([0, 1, 2])


def test_contributions_that_had_their_turn_are_let_go() -> None:
    shards = 1 + 3 * AT_ONCE + 1
    reduction = RoundSum(shards, 2, 2, np.dtype("float64"))
    held: list[ref[Array]] = []
    for shard in range(shards):
        contribution = np.ones(2)
        reduction.hold(shard, [contribution])
        held.append(ref(contribution))
        del contribution
        assert sum(each() is not None for each in held) <= AT_ONCE
    assert [len(terms) for terms in reduction.take(range(shards))] == [2]


def test_contributions_that_take_no_memory_are_added_up_at_last() -> None:
    reduction = RoundSum(4, 2, 2, np.dtype("float64"))
    for shard in range(4):
        reduction.hold(shard, pieces(np.ones(2), 2), is_lent=True)
    assert [len(terms) for terms in reduction.take([0, 1, 2, 3])] == [4]


def test_separate_hands_out_each_contribution_alone() -> None:
    reduction = Separate()
    reduction.hold(0, pieces(np.array([2.0, 4.0]), 1))
    reduction.hold(1, pieces(np.array([1.0, 3.0]), 1))
    assert [p.tolist() for p in added_up(reduction.take([1]))] == [[1.0], [3.0]]
    assert [p.tolist() for p in added_up(reduction.take([0]))] == [[2.0], [4.0]]


@settings(deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["RoundSum", "Separate"])
def test_a_round_of_some_shards_is_their_sum(kind: str, data: st.DataObject) -> None:
    """Those behind, after a switch to rounds; or those that made the quorum."""
    shards = data.draw(st.integers(2, 5), "shards")
    reduction = RoundSum(shards, 5, 2, np.dtype("float32")) if kind == "RoundSum" else Separate()
    for round_number in range(2):
        values = gradients(round_number, shards, 5, "float32")
        named = sorted(data.draw(st.sets(st.integers(0, shards - 1), min_size=1), "named"))
        for shard in data.draw(st.permutations(named), "order of arrival"):
            reduction.hold(shard, pieces(values[shard], 2), data.draw(st.booleans(), "is lent"))
        summed = np.concatenate(added_up(reduction.take(named)))
        assert summed.tobytes() == in_order(values[named]).tobytes()
