"""SGD and Adam in one pass over memory, compiled by numba (the extra `fast`).

numpy needs a pass over the block for each operation; here every element is read and written once. The
operations on an element and their order are those of `sgd` and `adam`, in the same dtype, without fastmath:
the bits are the same.

SGD adds up and scales the last two contributions in the same pass, so that their sum is never written. Without momentum
it is compiled for contributions in bfloat16 alone.
Adam has as many vectors already as the compiler checks for overlap before it gives up on SIMD.

A kernel works in place, where its vectors provably do not overlap; with separate places for old and new the
compiler gives up on SIMD. So a double buffer is first copied and then updated in place, while it is in
cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from paramserver.server.optimizers.adam import MomentState, bias_correction, init_moments
from paramserver.server.optimizers.optimizer import Array, NoState, Optimizer, StepInfo, filled
from paramserver.server.optimizers.sgd import MomentumState, sgd
from paramserver.wire.codecs.bfloat16 import widened
from paramserver.wire.layout import is_finite

#: Whether kernels can be compiled here; numba itself is only imported by the first that is.
AVAILABLE = find_spec("numba") is not None

#: Elements of a θ for which plain SGD is compiled: of fewer, its passes over memory take less in a hundred rounds than
#: the compiler does.
LARGE = 1 << 19


def fused_sgd(weight_decay: float = 0.0) -> Optimizer:
    """Return `sgd` without momentum for a large θ in one pass, by contributions in bfloat16; `init` compiles it.

    Only for these, for which numba is there anyway: the 120 MB that it takes are more than a θ of 25 million values.
    """
    plain = sgd(weight_decay=weight_decay)

    def init(size: int, dtype: npt.DTypeLike) -> NoState:
        if size >= LARGE:
            _sgd_kernels(weight_decay != 0, np.dtype(dtype))
        return NoState()

    def update_by_terms(
        theta: Array,
        terms: Sequence[Array],
        scale: float,
        state: NoState,  # noqa: ARG001 (the protocol's)
        step: StepInfo,
    ) -> None:
        scalar = theta.dtype.type
        _sgd_kernels(weight_decay != 0, theta.dtype)[len(terms), terms[0].dtype.itemsize](
            theta, terms[0], terms[-1], scalar(scale), scalar(weight_decay), scalar(step.learning_rate)
        )

    return plain._replace(init=init, update_by_terms=update_by_terms, by_terms_from=LARGE, takes_halves=True)


def fused_momentum(momentum: float, nesterov: bool = False, weight_decay: float = 0.0) -> Optimizer:
    """Return `sgd` with momentum above 0, in one pass; `init` compiles the kernel."""
    kernels = partial(_momentum_kernels, nesterov, weight_decay != 0)

    def init(size: int, dtype: npt.DTypeLike) -> MomentumState:
        kernels(np.dtype(dtype))
        return MomentumState(filled(size, dtype))

    def update(
        theta: Array,
        gradient: Array,
        state: MomentumState,
        step: StepInfo,
        new_theta: Array,
        new_state: MomentumState,
        scratch: Array,  # noqa: ARG001 (the protocol's)
    ) -> None:
        _place(theta, new_theta)
        _place(state.velocity, new_state.velocity)
        update_by_terms(new_theta, [gradient], 1.0, new_state, step)

    def update_by_terms(
        theta: Array, terms: Sequence[Array], scale: float, state: MomentumState, step: StepInfo
    ) -> None:
        scalar = theta.dtype.type
        kernels(theta.dtype)[len(terms)](
            theta,
            terms[0],
            terms[-1],
            scalar(scale),
            state.velocity,
            scalar(momentum),
            scalar(weight_decay),
            scalar(step.learning_rate),
        )

    return Optimizer(init, update, scratch_rows=0, update_by_terms=update_by_terms, is_compiled=True)


def fused_adam(
    beta1: float, beta2: float, epsilon: float, weight_decay: float = 0.0, decoupled: bool = False
) -> Optimizer:
    """Return `adam`, in one pass; `init` compiles the kernel."""
    kernel = _adam_kernel(weight_decay != 0 and not decoupled, weight_decay != 0 and decoupled)

    def init(size: int, dtype: npt.DTypeLike) -> MomentState:
        none = init_moments(0, dtype)
        update(none.mean, none.mean, none, StepInfo(1, 1.0), none.mean, none, none.mean)
        return init_moments(size, dtype)

    def update(
        theta: Array,
        gradient: Array,
        state: MomentState,
        step: StepInfo,
        new_theta: Array,
        new_state: MomentState,
        scratch: Array,  # noqa: ARG001 (the protocol's)
    ) -> None:
        _place(theta, new_theta)
        _place(state.mean, new_state.mean)
        _place(state.square, new_state.square)
        scalar = theta.dtype.type
        corrected = bias_correction(step, beta1, beta2, epsilon)
        kernel(
            new_theta,
            gradient,
            new_state.mean,
            new_state.square,
            scalar(beta1),
            scalar(1.0 - beta1),
            scalar(beta2),
            scalar(1.0 - beta2),
            scalar(corrected.epsilon),
            scalar(corrected.rate),
            scalar(1.0 - step.learning_rate * weight_decay if decoupled else weight_decay),
        )

    return Optimizer(init, update, scratch_rows=0, is_compiled=True)


def finite_check(dtype: np.dtype[Any]) -> Callable[[Array], bool]:
    """Return what `wire.layout.is_finite` does, compiled now: of what another core has just written it takes a third
    less, since it reads in four places at once."""
    return partial(is_finite, squares=_squares_kernel(dtype))


@lru_cache
def _squares_kernel(dtype: np.dtype[Any]) -> Callable[[Array], float]:
    import numba  # an extra, and slow to import

    scalar = numba.from_dtype(dtype)
    zero = dtype.type(0)

    def kernel(values: Array) -> Any:
        quarter = values.size // 4
        first, second, third, fourth = zero, zero, zero, zero
        for i in range(quarter):
            first += values[i] * values[i]
            second += values[i + quarter] * values[i + quarter]
            third += values[i + 2 * quarter] * values[i + 2 * quarter]
            fourth += values[i + 3 * quarter] * values[i + 3 * quarter]
        for i in range(4 * quarter, values.size):
            first += values[i] * values[i]
        return first + second + third + fourth

    # In any order, or it would be one addition after the other; what is not finite stays so.
    compiled: Callable[[Array], float] = numba.njit(scalar(_given(scalar)), nogil=True, fastmath={"reassoc"})(kernel)
    return compiled


def _place(old: Array, new: Array) -> None:
    """Bring the old values to where the kernel updates them."""
    if not np.may_share_memory(old, new):
        np.copyto(new, old)


def _compile(function: Callable[..., None], signature: Any = None) -> Callable[..., None]:
    """Return the compiled function: now for that signature alone, or else for each that it is called with."""
    import numba  # an extra, and slow to import

    # With Python's error model, a check for division by zero in the loop would keep it from using SIMD.
    compiled: Callable[..., None] = numba.njit(signature, nogil=True, error_model="numpy")(function)
    return compiled


@lru_cache
def _sgd_kernels(decay: bool, dtype: np.dtype[Any]) -> dict[tuple[int, int], Callable[..., None]]:
    """Compile the kernels for one term and for two, by their number and the bytes of a value."""
    widths = (dtype.itemsize, 2)
    return {(terms, width): _sgd_kernel(decay, terms == 2, width == 2, dtype) for terms in (1, 2) for width in widths}


def _sgd_kernel(decay: bool, adds: bool, halves: bool, dtype: np.dtype[Any]) -> Callable[..., None]:
    import numba  # an extra, and slow to import

    def as_it_is(value: Any) -> Any:
        return value

    read = numba.njit(widened if halves else as_it_is)

    def kernel(theta: Array, first: Array, second: Array, scale: Any, weight_decay: Any, rate: Any) -> None:
        for i in range(theta.size):
            g = read(first[i])
            if adds:
                g = g + read(second[i])
            g = g * scale
            if decay:
                g = g + theta[i] * weight_decay
            theta[i] = theta[i] - g * rate

    scalar = numba.from_dtype(dtype)
    given = _given(numba.uint16 if halves else scalar)
    return _compile(kernel, (numba.types.Array(scalar, 1, "C"), given, given, scalar, scalar, scalar))


def _given(scalar: Any) -> Any:
    """Return the type of workers' memory and of messages; whatever may be written and is aligned is taken for it too,
    and not compiled anew."""
    import numba  # an extra, and slow to import

    return numba.types.Array(scalar, 1, "C", readonly=True, aligned=False)


@lru_cache
def _momentum_kernels(nesterov: bool, decay: bool, dtype: np.dtype[Any]) -> dict[int, Callable[..., None]]:
    """Compile the kernels for one term and for two, by their number."""
    return {terms: _momentum_kernel(nesterov, decay, terms == 2, dtype) for terms in (1, 2)}


def _momentum_kernel(nesterov: bool, decay: bool, adds: bool, dtype: np.dtype[Any]) -> Callable[..., None]:
    import numba  # an extra, and slow to import

    def kernel(
        theta: Array,
        first: Array,
        second: Array,
        scale: Any,
        velocity: Array,
        momentum: Any,
        weight_decay: Any,
        rate: Any,
    ) -> None:
        for i in range(theta.size):
            g = first[i]
            if adds:
                g = g + second[i]
            g = g * scale
            if decay:
                g = g + theta[i] * weight_decay
            v = velocity[i] * momentum + g
            velocity[i] = v
            if nesterov:
                theta[i] = theta[i] - (g + v * momentum) * rate
            else:
                theta[i] = theta[i] - v * rate

    scalar = numba.from_dtype(dtype)
    own = numba.types.Array(scalar, 1, "C")
    given = _given(scalar)
    return _compile(kernel, (own, given, given, scalar, own, scalar, scalar, scalar))


@lru_cache
def _adam_kernel(coupled: bool, decoupled: bool) -> Callable[..., None]:
    def kernel(
        theta: Array,
        gradient: Array,
        mean: Array,
        square: Array,
        beta1: Any,
        rest1: Any,
        beta2: Any,
        rest2: Any,
        epsilon: Any,
        rate: Any,
        decay: Any,
    ) -> None:
        for i in range(theta.size):
            w = theta[i]
            g = gradient[i]
            if coupled:
                g = g + w * decay
            v = square[i] * beta2 + g * g * rest2
            m = mean[i] * beta1 + g * rest1
            square[i] = v
            mean[i] = m
            if decoupled:
                w = w * decay
            theta[i] = w - m / (np.sqrt(v) + epsilon) * rate

    return _compile(kernel)
