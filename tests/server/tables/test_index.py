"""The index finds what a dict finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paramserver.server.tables.index import KeyIndex

EXTREMES = st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)])
KEYS = st.one_of(EXTREMES, st.integers(0, 300), st.integers(-(2**63), 2**63 - 1))


@given(st.lists(st.sets(KEYS, min_size=1, max_size=200), min_size=1, max_size=8), st.sets(KEYS, max_size=100))
def test_it_finds_what_was_added_and_nothing_else(batches: list[set[int]], strange: set[int]) -> None:
    index, places = KeyIndex(), dict[int, int]()
    column = np.empty(2000, np.int64)
    for batch in batches:
        new = [key for key in batch if key not in places]
        start = len(places)
        column[start : start + len(new)] = new
        index.add(column, start, start + len(new))
        places |= {key: start + number for number, key in enumerate(new)}
        asked = np.array([*places, *strange], np.int64)
        assert index.find(column, asked).tolist() == [places.get(key, -1) for key in asked.tolist()]


def test_it_grows_and_is_built_anew() -> None:
    rng = np.random.default_rng(0)
    column = np.unique(rng.integers(-(2**63), 2**63, 50_000))
    rng.shuffle(column)
    index = KeyIndex()
    for start in range(0, column.size, 7000):
        index.add(column, start, min(start + 7000, column.size))
    np.testing.assert_array_equal(index.find(column, column), np.arange(column.size))
    # At most 16 bytes a key right after it has grown.
    assert index.nbytes <= 16 * column.size
    index.rebuild(column, 1000)
    found = index.find(column, column)
    np.testing.assert_array_equal(found[:1000], np.arange(1000))
    assert (found[1000:] == -1).all()


def test_nothing_is_found_in_an_empty_index() -> None:
    # What stands in a column beyond its rows means nothing.
    assert KeyIndex().find(np.zeros(4, np.int64), np.array([0, 5])).tolist() == [-1, -1]
