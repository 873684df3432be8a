"""A table against the simplest one there is: a dict of rows, updated one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.server.optimizers import StepInfo, make_optimizer
from paramserver.server.optimizers.optimizer import Array
from paramserver.server.tables import rows as rows_module
from paramserver.server.tables.rows import SWEEPS, Bounds, Rows
from paramserver.wire.job import OptimizerSection
from paramserver.wire.tables import Table, initial_rows
from server.test_optimizers import CASES, SCALAR

OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"name": "adam"},
    {"name": "adamw", "weight_decay": 0.01},
    {"name": "adagrad", "initial_accumulator": 0.1},
    {"name": "rmsprop", "momentum": 0.5},
    {"name": "yogi", "initial_accumulator": 0.01},
    {"name": "ftrl", "l1": 0.05, "l2": 0.1},
]
DTYPE = np.dtype(np.float32)
TABLE = Table(3, 0.5)


def make(section: dict[str, Any], bounds: Bounds = Bounds()) -> Rows:  # noqa: B008
    return Rows("t", TABLE, 7, DTYPE, make_optimizer(OptimizerSection(**section)), bounds)


class Naive:
    """Rows in a dict; an update is one call of the optimizer for each row."""

    def __init__(self, section: dict[str, Any], bounds: Bounds = Bounds()) -> None:  # noqa: B008
        self.optimizer = make_optimizer(OptimizerSection(**section), fuse=False)
        self.bounds = bounds
        self.rows: dict[int, tuple[Array, Any]] = {}
        self.touched: dict[int, int] = {}

    def read(self, key: int) -> Array:
        if key in self.rows:
            return self.rows[key][0]
        return initial_rows(7, "t", TABLE, np.array([key]), DTYPE)[0]

    def update(self, keys: list[int], gradient: Array, info: StepInfo) -> None:
        scratch = np.empty((self.optimizer.scratch_rows, 3), DTYPE)
        for key, values in zip(keys, gradient.copy(), strict=True):
            theta, state = self.rows.get(key, (self.read(key), self.optimizer.init(3, DTYPE)))
            self.optimizer.update(theta, values, state, info, theta, state, scratch)
            self.rows[key] = theta, state
            self.touched[key] = info.number
        self.forget(info.number)

    def forget(self, version: int) -> None:
        kept = set(self.rows)
        age, most = self.bounds.max_age, self.bounds.max_rows
        too_full = most and len(kept) > most
        if age and version % -(-age // SWEEPS) == 0:
            kept = {key for key in kept if version - self.touched[key] <= age}
        if too_full and len(kept) > most:
            by_age = sorted(kept, key=lambda key: (self.touched[key], key))
            kept = set(by_age[-(most - most // SWEEPS) :])
        self.rows = {key: self.rows[key] for key in kept}


UPDATES = st.lists(
    st.tuples(st.sets(st.integers(-20, 40), min_size=1, max_size=25), st.integers(0, 1000)), min_size=1, max_size=12
)


def run(table: Rows, naive: Naive, updates: list[tuple[set[int], int]]) -> None:
    for number, (chosen, seed) in enumerate(updates, start=1):
        keys = sorted(chosen)
        gradient = np.random.default_rng(seed).standard_normal((len(keys), 3)).astype(DTYPE)
        naive.update(keys, gradient, StepInfo(number, 0.1))
        table.update(np.array(keys), gradient, StepInfo(number, 0.1))
        asked = np.arange(-25, 45)
        np.testing.assert_array_equal(table.read(asked), [naive.read(key) for key in asked.tolist()])
        assert table.count == len(naive.rows)


@pytest.mark.parametrize("section", OPTIMIZERS, ids=lambda section: "-".join(map(str, section.values())))
@given(updates=UPDATES)
@settings(max_examples=20)
def test_updates_give_the_bits_of_rows_updated_one_at_a_time(
    section: dict[str, Any], updates: list[tuple[set[int], int]]
) -> None:
    run(make(section), Naive(section), updates)


@pytest.mark.parametrize("case", [case for case, section in CASES.items() if section["name"] in SCALAR])
def test_a_row_follows_the_scalar_formulas_over_the_updates_that_name_it(case: str) -> None:
    """A hundred updates, of which each names about half of the rows; Adam and Yogi count those that do not as well."""
    section, table = OptimizerSection(**CASES[case]), Table(2, 0.5)
    rows = Rows("t", table, 7, np.dtype(np.float64), make_optimizer(section))
    keys, rng = np.arange(-3, 9), np.random.default_rng(4)
    first = rows.read(keys)
    gradients = rng.normal(size=(100, keys.size, 2))
    named = rng.random((100, keys.size)) < 0.5
    rates = section.learning_rate / (1 + (0.0 if section.name == "ftrl" else 0.01) * np.arange(100))
    for number, (own, gradient, rate) in enumerate(zip(named, gradients, rates.tolist(), strict=True), start=1):
        rows.update(keys[own], gradient[own], StepInfo(number, rate))
    found = rows.read(keys)
    for place, column in np.ndindex(found.shape):
        own = named[:, place]
        numbers = {"numbers": (np.flatnonzero(own) + 1).tolist()} if section.name in ("adam", "adamw", "yogi") else {}
        start, own_gradients = float(first[place, column]), gradients[own, place, column].tolist()
        expected = SCALAR[section.name](start, section, own_gradients, rates[own].tolist(), **numbers)
        assert found[place, column] == pytest.approx(expected, rel=1e-10, abs=1e-13)


@given(updates=UPDATES, max_rows=st.integers(0, 30), max_age=st.integers(0, 12))
def test_the_same_rows_are_forgotten_as_by_the_rule_itself(
    updates: list[tuple[set[int], int]], max_rows: int, max_age: int
) -> None:
    bounds = Bounds(max_rows, max_age)
    table = make({"name": "adagrad"}, bounds)
    run(table, Naive({"name": "adagrad"}, bounds), updates)
    assert not max_rows or table.count <= max_rows


def test_reading_creates_nothing_and_a_first_update_begins_at_what_was_read() -> None:
    table = make({"name": "sgd"})
    keys = np.array([5, 9])
    before = table.read(keys)
    assert table.count == 0
    assert np.unique(before).size == 6
    table.update(keys, np.zeros((2, 3), DTYPE), StepInfo(1, 0.1))
    assert table.count == 2
    np.testing.assert_array_equal(table.read(keys), before)


def test_neither_the_order_of_arrival_nor_a_copy_shows_in_any_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that came in another order, over a snapshot, in other blocks: the same table."""
    rng = np.random.default_rng(3)
    keys = np.unique(rng.integers(-1000, 1000, 500))
    gradient = rng.standard_normal((keys.size, 3)).astype(DTYPE)
    bounds, section = Bounds(max_rows=300), {"name": "adam"}
    at_once, one_by_one = make(section, bounds), make(section, bounds)
    at_once.update(keys[:250], gradient[:250].copy(), StepInfo(1, 0.1))
    for place in rng.permutation(250):
        one = slice(place, place + 1)
        one_by_one.update(keys[one], gradient[one].copy(), StepInfo(1, 0.1))
    copied = make(section, bounds)
    copied.restore(one_by_one.contents())
    monkeypatch.setattr(rows_module, "BLOCK_VALUES", 8)
    blocks = make(section, bounds)
    blocks.restore(at_once.contents())
    tables = (at_once, one_by_one, copied, blocks)
    for table in tables:
        # Now some must go.
        table.update(keys[100:450], gradient[100:450].copy(), StepInfo(2, 0.1))
    expected = at_once.contents().in_order()
    assert expected[0].size == 300 - 300 // SWEEPS
    for table in tables[1:]:
        for found, wanted in zip(table.contents().in_order(), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_what_a_table_of_embeddings_takes_is_at_most_1_6_times_the_rows() -> None:
    table = Rows("t", Table(16, 0.1), 0, DTYPE, make_optimizer(OptimizerSection()), Bounds(max_age=10**6))
    for size in (10_000, 40_000, 47_000, 90_000):
        keys = np.arange(table.count, size)
        table.update(keys, np.zeros((keys.size, 16), DTYPE), StepInfo(1, 0.1))
        assert table.nbytes <= 1.6 * size * 16 * 4
