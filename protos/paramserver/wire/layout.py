"""How named tensors lie in the one flat vector that travels and that the server updates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramserver.wire.errors import TensorError
from paramserver.wire.v1 import paramserver_pb2 as pb

Array = NDArray[Any]

#: What a peer may declare; checked before anything is allocated.
MAX_TENSORS = 65_536
MAX_NAME = 256
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**40

#: Elements of a tensor, counted from its first, between two places where it may be cut: a block of the norms.
GRID = 65_536

#: See `is_finite`.
FEW = 1024


class Tensor(NamedTuple):
    """A named tensor and the index of its first element in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Layout:
    """The tensors of θ back to back, in a fixed order, all of one dtype.

    Raises:
        TensorError: if names repeat or sizes are out of bounds; a part of a layout may be empty, a whole one not.
    """

    def __init__(
        self, shapes: Iterable[tuple[str, Sequence[int]]], dtype: str | np.dtype[Any], whole: Layout | None = None
    ) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.tensors: list[Tensor] = []
        names: set[str] = set()
        offset = 0
        for name, dimensions in shapes:
            shape = tuple(int(n) for n in dimensions)
            if not 1 <= len(name) <= MAX_NAME:
                raise TensorError(f"tensor name {name[:40]!r} has {len(name)} characters, allowed are 1 to {MAX_NAME}")
            if name in names:
                raise TensorError(f"tensor {name!r} is declared twice")
            # An empty tensor is no licence for dimensions that no array library can hold.
            if (
                len(shape) > MAX_DIMENSIONS
                or min(shape, default=0) < 0
                or math.prod(filter(None, shape)) > MAX_ELEMENTS
            ):
                raise TensorError(
                    f"tensor {name!r} has shape {shape}; allowed are up to {MAX_DIMENSIONS} dimensions "
                    f"and {MAX_ELEMENTS} elements"
                )
            names.add(name)
            tensor = Tensor(name, shape, offset)
            self.tensors.append(tensor)
            offset += tensor.size
            if len(names) > MAX_TENSORS or offset > MAX_ELEMENTS:
                raise TensorError(
                    f"{len(names)} tensors with {offset} elements; allowed are {MAX_TENSORS} and {MAX_ELEMENTS}"
                )
        if offset == 0 and whole is None:
            raise TensorError("the parameters have no elements")
        #: Elements of the flat vector.
        self.size = offset
        #: The layout that this is a part of, and where in it this part begins; a layout is its own only part.
        self.whole = whole or self
        self.start = 0
        #: False for the parts of a whole that was too small to be cut on the grid.
        self.is_on_grid = True

    @classmethod
    def of(cls, arrays: Mapping[str, Array], dtype: str) -> Layout:
        """Lay out the arrays of a model in the order of the mapping."""
        return cls(((name, array.shape) for name, array in arrays.items()), dtype)

    @classmethod
    def from_proto(cls, tensors: Iterable[pb.Tensor], dtype: str) -> Layout:
        """Read a layout from a peer."""
        return cls(((tensor.name, tensor.shape) for tensor in tensors), dtype)

    def to_proto(self) -> list[pb.Tensor]:
        """Return the wire form."""
        return [pb.Tensor(name=tensor.name, shape=tensor.shape) for tensor in self.tensors]

    def part_of(self, whole: Array) -> Array:
        """Return this part of a vector of the whole layout."""
        return whole[self.start : self.start + self.size]

    def views(self, flat: Array) -> dict[str, Array]:
        """Return the tensors as views of a flat vector of `size` elements."""
        return {t.name: flat[t.offset : t.offset + t.size].reshape(t.shape) for t in self.tensors}

    def cut(self, parts: int) -> list[Layout]:
        """Return consecutive layouts of about one size that make up this one; a tensor that is cut is flat in each.

        Where they are cut depends on nothing but shapes and `parts`. It is on the grid of `GRID` elements within every
        tensor, so that sums over its blocks can be had part by part; parameters too few for that are cut anywhere. Of
        fewer elements than parts, each of the first parts has one and the last ones have none.
        """
        if parts == 1:
            return [self]
        ideal = [self.size * part // parts for part in range(1, parts)]
        cuts = [0, *(self._on_grid(place) for place in ideal), self.size]
        is_on_grid = all(start < stop for start, stop in itertools.pairwise(cuts))
        if not is_on_grid:
            cuts = [0, *ideal, self.size] if self.size >= parts else [min(n, self.size) for n in range(parts + 1)]
        parts_made = [self._part(start, stop) for start, stop in itertools.pairwise(cuts)]
        for part in parts_made:
            part.is_on_grid = is_on_grid
        return parts_made

    def _on_grid(self, place: int) -> int:
        """Return the place nearest to this one where a cut may be."""
        tensor = next(t for t in self.tensors if t.offset + t.size > place)
        return min(tensor.offset + (place - tensor.offset + GRID // 2) // GRID * GRID, tensor.offset + tensor.size)

    def _part(self, start: int, stop: int) -> Layout:
        shapes = []
        for tensor in self.tensors:
            first, end = max(start, tensor.offset), min(stop, tensor.offset + tensor.size)
            if first < end:
                shapes.append((tensor.name, tensor.shape if end - first == tensor.size else (end - first,)))
        part = Layout(shapes, self.dtype, whole=self)
        part.start = start
        return part

    def locate(self, index: int) -> tuple[str, int]:
        """Return the name of the tensor that the flat vector holds at `index`, and which of its elements that is."""
        tensor = next(t for t in reversed(self.tensors) if t.offset <= index)
        return tensor.name, index - tensor.offset

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and (self.dtype, self.tensors) == (other.dtype, other.tensors)

    __hash__ = None  # type: ignore[assignment]


def pack(arrays: Mapping[str, Array], views: Mapping[str, Array], scale: float = 1.0) -> None:
    """Write `scale` times the arrays into the views of a flat vector, in one pass; none where they are these views."""
    for name, view in views.items():
        if scale != 1.0 or arrays[name] is not view:
            np.multiply(arrays[name], scale, out=view)


def read_values(payload: memoryview, dtype: np.dtype[Any], offset: int, size: int) -> Array:
    """Return the payload of a chunk as a read-only view, after checking that it lies within `size` elements.

    Raises:
        TensorError: if the length is no multiple of the item size or the chunk leaves the vector.
    """
    count, rest = divmod(payload.nbytes, dtype.itemsize)
    if rest or not count:
        raise TensorError(f"a chunk of {payload.nbytes} bytes holds no whole number of {dtype.name} values")
    if offset + count > size:
        raise TensorError(f"a chunk of {count} values at offset {offset} leaves the vector of {size} values")
    return np.frombuffer(payload, dtype=dtype)


def is_finite(values: Array, squares: Callable[[Array], float] | None = None) -> bool:
    """Say whether no value is NaN or infinite; `squares` may be given as what sums their squares, without a warning.

    A finite sum of squares proves it in one fast pass; only if that overflows is every value looked at. Of a few
    values, looking is cheaper.
    """
    if values.size <= FEW:
        # Four times as fast as `all`, which takes its way through Python.
        return 0 not in np.isfinite(values).tobytes()
    # Unlike `dot`, `vdot` does not warn of what overflows, which is no fault here.
    total = np.vdot(values, values) if squares is None else squares(values)
    return math.isfinite(total) or bool(np.isfinite(values).all())
