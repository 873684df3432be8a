"""Layouts: tensors lie back to back, and a peer that declares nonsense is told what."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.wire.errors import TensorError
from paramserver.wire.layout import FEW, GRID, MAX_ELEMENTS, Layout, is_finite, pack, read_values
from paramserver.wire.v1 import paramserver_pb2 as pb

SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
NAMED_SHAPES = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), SHAPES, min_size=1)


@given(shapes=NAMED_SHAPES.filter(lambda found: sum(map(math.prod, found.values())) > 0), dtype=st.sampled_from("fd"))
def test_packing_lays_tensors_back_to_back_and_views_find_them_again(
    shapes: dict[str, tuple[int, ...]], dtype: str
) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    layout = Layout.of(arrays, np.dtype(dtype).name)
    flat = np.full(layout.size, np.nan, layout.dtype)
    pack(arrays, layout.views(flat), scale=2)
    assert flat.tobytes() == b"".join((2 * arrays[name]).tobytes() for name in shapes)
    views = layout.views(flat)
    assert list(views) == list(shapes)
    assert all(np.shares_memory(view, flat) for view in views.values() if view.size)
    assert Layout.from_proto(layout.to_proto(), np.dtype(dtype).name) == layout


def test_layouts_differ_in_order_shape_and_dtype() -> None:
    one = Layout([("a", (2,)), ("b", (3,))], "float32")
    assert one == Layout([("a", [2]), ("b", [3])], "<f4")
    assert one != Layout([("b", (3,)), ("a", (2,))], "float32")
    assert one != Layout([("a", (2, 1)), ("b", (3,))], "float32")
    assert one != Layout([("a", (2,)), ("b", (3,))], "float64")


BIG = 2**64 - 1

LIES: list[tuple[list[tuple[str, list[int]]], str]] = [
    ([], "the parameters have no elements"),
    ([("w", [0])], "the parameters have no elements"),
    ([("", [1])], "tensor name '' has 0 characters, allowed are 1 to 256"),
    ([("n" * 257, [1])], "has 257 characters, allowed are 1 to 256"),
    ([("w", [1]), ("w", [1])], "tensor 'w' is declared twice"),
    ([("w", [1] * 9)], "up to 8 dimensions"),
    ([("w", [BIG])], str(MAX_ELEMENTS)),
    ([("w", [2**20, 2**20, 2])], str(MAX_ELEMENTS)),
    ([("w", [BIG] * 8)], str(MAX_ELEMENTS)),
    ([("w", [1]), ("v", [BIG, 0])], "tensor 'v' has shape (18446744073709551615, 0)"),
    ([("w", [1]), ("v", [2**40, 0, 2**40])], "tensor 'v'"),
    ([("w", [2**39]), ("v", [2**39]), ("u", [1])], "3 tensors with 1099511627777 elements"),
    ([(f"t{i}", [1]) for i in range(65_537)], "65537 tensors"),
]


@pytest.mark.parametrize(("tensors", "said"), LIES, ids=[said[:40] for _, said in LIES])
def test_a_layout_that_lies_is_refused_with_what_is_allowed(tensors: list[tuple[str, list[int]]], said: str) -> None:
    with pytest.raises(TensorError) as caught:
        Layout.from_proto([pb.Tensor(name=name, shape=shape) for name, shape in tensors], "float32")
    assert said in str(caught.value)


@given(shapes=st.lists(st.lists(st.sampled_from([0, 1, 2, 7, 2**20, 2**40, 2**63, BIG]), max_size=9), max_size=3))
def test_whatever_a_peer_declares_is_refused_or_can_be_made(shapes: list[list[int]]) -> None:
    try:
        layout = Layout.from_proto([pb.Tensor(name=str(i), shape=s) for i, s in enumerate(shapes)], "float64")
    except TensorError:
        return
    assert 1 <= layout.size <= MAX_ELEMENTS
    # Without memory behind it, so that only the shape is tried.
    nothing = np.broadcast_to(np.float64(0), (layout.size,))
    if layout.size < 1000:
        assert [view.shape for view in layout.views(nothing).values()] == [tuple(s) for s in shapes]
    else:
        empty = [t for t in layout.tensors if t.size == 0]
        assert [np.empty(0).reshape(t.shape).shape for t in empty] == [t.shape for t in empty]


@pytest.mark.parametrize(
    ("size", "offset", "total", "said"),
    [
        (0, 0, 4, "a chunk of 0 bytes holds no whole number of float32 values"),
        (7, 0, 4, "a chunk of 7 bytes holds no whole number of float32 values"),
        (8, 3, 4, "a chunk of 2 values at offset 3 leaves the vector of 4 values"),
        (4, 4, 4, "offset 4 leaves"),
        (4, 2**64 - 1, 4, "offset 18446744073709551615 leaves"),
    ],
)
def test_a_chunk_that_lies_is_refused_with_its_numbers(size: int, offset: int, total: int, said: str) -> None:
    with pytest.raises(TensorError, match="chunk") as caught:
        read_values(memoryview(bytes(size)), np.dtype("<f4"), offset, total)
    assert said in str(caught.value)


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=9),
    offset=st.integers(0, 5),
    room=st.integers(0, 3),
    shift=st.integers(0, 3),
)
def test_values_are_read_in_place_at_any_address(values: list[float], offset: int, room: int, shift: int) -> None:
    sent = np.array(values, "<f4")
    payload = memoryview(bytes(shift) + sent.tobytes())[shift:]
    found = read_values(payload, np.dtype("<f4"), offset, offset + len(values) + room)
    assert found.tobytes() == sent.tobytes()
    assert not found.flags.writeable


LARGEST = float(np.finfo(np.float32).max)


@given(values=st.lists(st.floats(width=32) | st.sampled_from([LARGEST, -LARGEST, math.inf, math.nan]), min_size=1))
def test_finite_means_that_every_value_is(values: list[float]) -> None:
    for dtype in ("float32", "float64"):
        array: np.ndarray[Any, Any] = np.array(values, dtype)
        assert is_finite(array) == bool(np.isfinite(array).all())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("times", [1, FEW], ids=["a few", "many"])
def test_values_whose_sum_overflows_are_finite_all_the_same(times: int) -> None:
    assert is_finite(np.full(100 * times, LARGEST, np.float32))
    assert is_finite(np.array([1e308, 1e308, -1e308, -1e308] * 100 * times))
    assert not is_finite(np.array([math.inf, -math.inf] * times))
    assert not is_finite(np.array([math.nan, 1.0] * times))


SIZES = st.lists(st.sampled_from([0, 1, 5, GRID - 1, GRID, 3 * GRID + 7, 40 * GRID]), min_size=1, max_size=6)


@given(sizes=SIZES.filter(any), parts=st.integers(1, 7))
def test_parts_are_consecutive_even_and_all_there_is(sizes: list[int], parts: int) -> None:
    whole = Layout([(f"t{n}", (size,)) for n, size in enumerate(sizes)], "float32")
    found = whole.cut(parts)
    assert [part.start for part in found] == [0, *itertools.accumulate(part.size for part in found)][:-1]
    assert sum(part.size for part in found) == whole.size
    assert all(part.whole is whole or (parts == 1 and part is whole) for part in found)
    # Tensor by tensor, the pieces make up the tensor, in order.
    pieces: dict[str, int] = {}
    for part in found:
        for tensor in part.tensors:
            pieces[tensor.name] = pieces.get(tensor.name, 0) + tensor.size
    assert pieces | {f"t{n}": 0 for n, size in enumerate(sizes) if not size and parts > 1} == {
        t.name: t.size for t in whole.tensors
    }
    if whole.size < parts:
        assert [part.size for part in found] == [1] * whole.size + [0] * (parts - whole.size)
        return
    for index, part in enumerate(found):
        off_by = abs(part.start - whole.size * index // parts)
        assert off_by <= GRID // 2 or not part.is_on_grid
        if part.is_on_grid:
            starts = (t.offset for t in whole.tensors if t.offset <= part.start < t.offset + t.size)
            assert all((part.start - start) % GRID == 0 for start in starts)


def test_a_tensor_that_is_not_cut_keeps_its_shape() -> None:
    first, second = Layout([("a", (3, 4)), ("b", (2, 6)), ("c", ())], "float64").cut(2)
    assert [(t.name, t.shape) for t in first.tensors] == [("a", (3, 4))]
    assert [(t.name, t.shape) for t in second.tensors] == [("b", (2, 6)), ("c", ())]
    small = Layout([("a", (3, 4))], "float64").cut(3)
    assert [(t.shape, part.start, part.is_on_grid) for part in small for t in part.tensors] == [
        ((4,), 0, False),
        ((4,), 4, False),
        ((4,), 8, False),
    ]
