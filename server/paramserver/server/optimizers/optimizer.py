"""What an optimizer is to the store: pure functions over blocks of one flat vector.

This module and the optimizers beside it do no I/O, keep nothing between two calls and allocate no array.
Every update is elementwise, so the bits do not depend on where the vector is cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

#: A flat, contiguous vector of float32 or float64; within one call all arrays have one dtype and one length.
Array = npt.NDArray[Any]

#: A NamedTuple of flat arrays, each as long as θ; its field names are the names in a snapshot.
State = Any

S = TypeVar("S", bound=tuple[Any, ...])


class StepInfo(NamedTuple):
    """What an update must know besides arrays."""

    #: The number of this update, from 1: the t of Adam's bias correction.
    number: int
    #: A Python float: a numpy float64 would turn float32 arithmetic into float64.
    learning_rate: float


class Update(Protocol):
    """Write the updated block of θ and of the state.

    `new_theta` is `theta` itself (in place) or does not overlap it (double buffer), and likewise
    `new_state` and `state`. `gradient` holds the mean or sum already scaled, and is overwritten. `scratch`
    has shape `(Optimizer.scratch_rows, at least len(theta))`; what it holds before and after means nothing.
    """

    def __call__(
        self,
        theta: Array,
        gradient: Array,
        state: State,
        step: StepInfo,
        new_theta: Array,
        new_state: State,
        scratch: Array,
    ) -> None: ...


class UpdateByTerms(Protocol):
    """Update a block of θ and of the state in place by `scale` times the sum of `terms`, which are one or two.

    Terms may be read-only and are not changed. The bits are those of adding up, scaling and `update`.
    """

    def __call__(self, theta: Array, terms: Sequence[Array], scale: float, state: State, step: StepInfo) -> None: ...


class Direction(Protocol):
    """Write a raw step over `gradient`, and the part of the state that it needs to `new_state`."""

    def __call__(
        self,
        theta: Array,
        gradient: Array,
        state: State,
        step: StepInfo,
        new_state: State,
        scratch: Array,
    ) -> None: ...


class Layerwise(NamedTuple):
    """The phase before `update` of an optimizer whose rate depends on norms of whole tensors.

    First `direction` runs over all blocks. Then, for each tensor, `ratio(‖θ‖, ‖direction‖)` scales the
    learning rate with which `update` is given the direction in place of the gradient.
    """

    direction: Direction
    ratio: Callable[[float, float], float]


class Optimizer(NamedTuple):
    """An `(init, update)` pair, with a phase before `update` where tensors are scaled as wholes.

    `init(size, dtype)` returns the state before the first update, with arrays of length `size`.
    """

    init: Callable[[int, npt.DTypeLike], State]
    update: Update
    #: How many rows of scratch `update` and `direction` need.
    scratch_rows: int
    #: None: elementwise, so a block can be updated before the rest of the gradient is there.
    layerwise: Layerwise | None = None
    #: None: the gradient is added up and scaled first, for `update`.
    update_by_terms: UpdateByTerms | None = None
    #: It may only be used for a θ of so many elements; for fewer it would not be worth being compiled.
    by_terms_from: int = 0
    #: It may be given two bytes of bfloat16, as uint16, in place of every value.
    takes_halves: bool = False
    #: A compiler is there anyway.
    is_compiled: bool = False


class NoState(NamedTuple):
    """The state of an optimizer that remembers nothing."""


def slice_state(state: S, start: int, stop: int) -> S:
    """Return views of `state[start:stop]` of every array, in the same NamedTuple."""
    return type(state)(*[array[start:stop] for array in state])


def filled(size: int, dtype: npt.DTypeLike, value: float = 0.0) -> Array:
    """Return a vector whose pages are touched now, unlike those of `np.zeros`, to spare the first update."""
    return np.full(size, value, dtype)


def drop_subnormal(state: State, work: Array) -> None:
    """Set to zero in place what of a state is subnormal: too small for all its digits, and many times slower.

    What decays without gradients ends there and, being rounded, never at zero. `work` is overwritten.
    """
    for values in state:
        magnitudes = np.abs(values, out=work[: values.size])
        np.copyto(values, 0, where=magnitudes < np.finfo(values.dtype).smallest_normal)


def add_decay(theta: Array, gradient: Array, weight_decay: float, work: Array) -> None:
    """Add the gradient of `weight_decay·‖θ‖²/2` to `gradient`: decay that is coupled with it."""
    if weight_decay:
        np.multiply(theta, weight_decay, out=work)
        np.add(gradient, work, out=gradient)
