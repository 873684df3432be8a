"""A growing column keeps what it holds, and takes no memory for what was not written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paramserver.server.tables.column import HUGE_BYTES, Column


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6), st.sampled_from([(), (3,)]))
def test_values_stay_as_they_are_when_it_grows(sizes: list[int], shape: tuple[int, ...]) -> None:
    column, count = Column(np.dtype(np.float32), shape), 0
    for size in sizes:
        count += size
        column.reserve(count)
        assert len(column.values) >= count
        place = slice(count - size, count)
        column.values[place] = np.arange(count - size, count).reshape(-1, *(1 for _ in shape))
    expected = np.broadcast_to(np.arange(count).reshape(-1, *(1 for _ in shape)), (count, *shape))
    np.testing.assert_array_equal(column.values[:count], expected)


def test_what_is_kept_moves_to_the_front_across_blocks() -> None:
    rows = HUGE_BYTES // 8 * 2 + 17
    column = Column(np.dtype(np.int64))
    column.reserve(rows)
    column.values[:rows] = np.arange(rows)
    kept = np.flatnonzero(np.random.default_rng(0).random(rows) < 0.7)
    column.keep(kept)
    np.testing.assert_array_equal(column.values[: kept.size], kept)


def test_room_that_was_not_written_takes_no_memory() -> None:
    column = Column(np.dtype(np.float64), (16,))
    before = resident_bytes()
    column.reserve(1 << 20)
    assert column.values.nbytes >= 128 << 20
    assert resident_bytes() - before < 16 << 20
