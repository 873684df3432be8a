"""Sums over whole vectors: what the parts add up to is what one server finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.server.robust import matrix
from paramserver.server.wholesums import Question
from paramserver.wire.layout import GRID, Layout

SIZES = st.lists(st.sampled_from([0, 1, 5, GRID - 1, GRID, 2 * GRID + 7]), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(
    sizes=SIZES.filter(any),
    servers=st.integers(1, 4),
    vectors=st.integers(2, 3),
    of_pairs=st.booleans(),
    by_tensor=st.booleans(),
)
def test_the_answer_has_the_bits_of_one_server(
    sizes: list[int], servers: int, vectors: int, of_pairs: bool, by_tensor: bool
) -> None:
    whole = Layout([(f"t{n}", (size,)) for n, size in enumerate(sizes)], "float32")
    stack = np.random.default_rng(len(sizes)).normal(size=(vectors, whole.size)).astype(np.float32)
    parts = whole.cut(servers)
    told = []
    for part in parts:
        own = [vector[part.start : part.start + part.size] for vector in stack]
        told.append(Question(own, of_pairs, by_tensor).material(part))
    question = Question(list(stack), of_pairs, by_tensor)
    expected = question.alone(whole)
    assert {question.answer(part, told).tobytes() for part in parts} == {expected.tobytes()}
    pairs = list(itertools.combinations(stack, 2))
    rows = [a.astype(float) - b for a, b in pairs] if of_pairs else [row.astype(float) for row in stack]
    ends = list(itertools.accumulate(sizes))[:-1] if by_tensor else []
    squares = [float(np.dot(own, own)) for row in rows for own in np.split(row, ends)]
    assert expected.tolist() == pytest.approx(squares, rel=1e-9)


def test_numbers_of_pairs_stand_where_the_pair_stands() -> None:
    assert matrix(np.array([1.0, 2.0, 3.0]), 3).tolist() == [[0, 1, 2], [1, 0, 3], [2, 3, 0]]
