"""The compiled optimizers give the bits of the numpy ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paramserver.server.events import Contribution
from paramserver.server.optimizers import Optimizer, StepInfo, fused, make_optimizer
from paramserver.server.update import Update
from paramserver.wire.job import Job, OptimizerSection
from paramserver.wire.layout import Layout

pytest.importorskip("numba", reason="needs numba, the extra `fast`")

CASES: dict[str, dict[str, Any]] = {
    "plain": {"name": "sgd"},
    "plain-decay": {"name": "sgd", "weight_decay": 0.03},
    "momentum": {"name": "sgd", "momentum": 0.9},
    "momentum-decay": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.03},
    "nesterov": {"name": "sgd", "momentum": 0.8, "nesterov": True},
    "nesterov-decay": {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.03},
    "adam": {"name": "adam"},
    "adam-decay": {"name": "adam", "weight_decay": 0.03},
    "adamw": {"name": "adamw", "weight_decay": 0.03},
}


def bits(optimizer: Optimizer, theta: Any, gradients: Any, in_place: bool) -> list[bytes]:
    theta = theta.copy()
    state = optimizer.init(theta.size, theta.dtype)
    scratch = np.full((optimizer.scratch_rows, theta.size), np.nan, theta.dtype)
    for number, gradient in enumerate(gradients, 1):
        new_theta = theta if in_place else np.full_like(theta, np.nan)
        new_state = state if in_place else type(state)(*(np.full_like(array, np.nan) for array in state))
        step = StepInfo(number, 0.1 / number)
        optimizer.update(theta, gradient.copy(), state, step, new_theta, new_state, scratch)
        theta, state = new_theta, new_state
    return [array.tobytes() for array in (theta, *state)]


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12, deadline=None)
@given(
    size=st.integers(1, 2000),
    seed=st.integers(0, 2**16),
    magnitude=st.integers(-18, 9),
    in_place=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_compiled_and_numpy_bits_are_the_same(
    case: str, size: int, seed: int, magnitude: int, in_place: bool, dtype: str
) -> None:
    section = OptimizerSection(**CASES[case])
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=size).astype(dtype)
    # From denormal squares up to large ones, and some exact zeros.
    gradients = (rng.normal(size=(5, size)) * 10.0**magnitude * (rng.random((5, size)) < 0.9)).astype(dtype)
    expected = bits(make_optimizer(section, fuse=False), theta, gradients, in_place=True)
    assert bits(make_optimizer(section, fuse=True, halves=dtype == "float32"), theta, gradients, in_place) == expected


@pytest.mark.parametrize(("size", "compiles"), [(fused.LARGE - 1, False), (fused.LARGE, True)])
def test_plain_sgd_is_compiled_for_a_large_theta(size: int, compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []
    kernels = fused._sgd_kernels

    def spy(*arguments: Any) -> Any:
        compiled.append(1)
        return kernels(*arguments)

    monkeypatch.setattr(fused, "_sgd_kernels", spy)
    job = Job.from_dict({"task": {"use": "m"}, "data": {"source": "d"}, "wire": {"push": "bf16"}})
    update = Update(job, Layout([("t", (size,))], "float32"), 1 << 18, 3, fuse=True)
    assert bool(compiled) == compiles
    theta, ones = np.zeros(size, np.float32), np.ones(size, np.float32)
    terms = [[ones[start : start + (1 << 18)]] for start in range(0, size, 1 << 18)]
    update.apply(theta, terms, 1, 1, [Contribution("w", 0, 1, 0, 0, 1, 0.5)])
    assert (len(compiled) > 1) == compiles
    assert np.unique(theta).size == 1
    assert theta[0] < 0


def test_plain_sgd_does_without_the_compiler_where_nothing_else_needs_it() -> None:
    assert make_optimizer(OptimizerSection(), fuse=True).update_by_terms is None
    assert make_optimizer(OptimizerSection(), fuse=False, halves=True).update_by_terms is None


def test_a_round_of_blocks_compiles_nothing() -> None:
    optimizer = make_optimizer(OptimizerSection(name="adam"), fuse=True)
    state = optimizer.init(100, np.float32)
    kernel: Any = fused._adam_kernel(False, False)
    before = len(kernel.signatures)
    theta, gradient = np.ones(100, np.float32), np.ones(100, np.float32)
    optimizer.update(theta, gradient, state, StepInfo(1, 0.1), theta, state, np.empty((0, 100), np.float32))
    assert len(kernel.signatures) == before


def of_bytes(values: NDArray[Any], shift: int) -> NDArray[Any]:
    """Return the values as they come in a message: read-only, and aligned or not."""
    return np.frombuffer(bytes(shift) + values.tobytes(), values.dtype, offset=shift)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("adam")])
@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(1, 500),
    block=st.integers(1, 300),
    workers=st.integers(1, 6),
    shift=st.integers(0, 7),
    reduces=st.sampled_from(["mean", "sum"]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 2**16),
)
def test_an_update_by_what_workers_sent_has_the_same_bits(
    case: str, size: int, block: int, workers: int, shift: int, reduces: str, dtype: str, seed: int
) -> None:
    layout = Layout([("t", (size,))], dtype)
    job = Job.from_dict(
        {
            "task": {"use": "m"},
            "data": {"source": "d", "shards": workers},
            "train": {"dtype": dtype, "reduce": reduces},
            "optimizer": {**CASES[case], "learning_rate": 0.1},
            # Plain SGD is compiled for nothing else; here come whole values all the same.
            "wire": {"push": "bf16"} if dtype == "float32" else {},
        }
    )
    found = []
    for fuse, sums in ((True, False), (False, False), (False, True)):
        rng = np.random.default_rng(seed)
        with pytest.MonkeyPatch.context() as patch:
            # As for a large θ.
            patch.setattr(fused, "LARGE", 1)
            update = Update(job, layout, block, 3, fuse)
        theta = rng.normal(size=size).astype(dtype)
        for version in (1, 2, 3):
            sent = [of_bytes(rng.normal(size=size).astype(dtype), shift) for _ in range(workers)]
            names = [Contribution("w", shard, 1, version - 1, version - 1, 7, 0.5) for shard in range(workers)]
            if sums:
                # What the others have to find, added up from first to last.
                sent = [sum(sent[1:], sent[0])]
            terms = [[values[start : start + block] for values in sent] for start in range(0, size, block)]
            update.apply(theta, terms, version, version - 1, names)
        found.append([theta.tobytes(), *(array.tobytes() for array in update.state)])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 1024, 1025, 4099])
def test_the_compiled_look_for_what_is_not_finite_finds_it_anywhere(size: int, dtype: str) -> None:
    check = fused.finite_check(np.dtype(dtype))
    assert check(np.full(size, np.finfo(dtype).max, dtype)), "a sum that overflows is no fault of the values"
    values = np.ones(size, dtype)
    for place in {0, size // 4, size // 2, 3 * size // 4, size - 1}:
        for wrong in (np.nan, np.inf, -np.inf):
            values[place] = wrong
            assert not check(values)
        values[place] = 1.0
    shifted = np.frombuffer(b"\0" + values.tobytes(), dtype, offset=1)
    assert check(shifted), "read-only, at any address"
