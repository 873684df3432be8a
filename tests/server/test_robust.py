"""Robust aggregation: the formulas, and that it trains where the mean is led astray."""

from __future__ import annotations

import statistics
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.server.robust import aggregate, clip_rows, matrix, median, multi_krum, trimmed_mean, weighted_mean
from paramserver.server.wholesums import Question, alone
from paramserver.wire.errors import JobError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout
from paramserver.worker.learner import Learner
from paramserver.worker.trainer import Gradient
from server.inprocess import Training, gradient

SHARDS = 7
#: Shards whose gradients are hostile.
HOSTILE = (1, 4)


@st.composite
def stacks(draw: st.DrawFn, fewest: int = 3) -> Array:
    n, size, seed = draw(st.integers(fewest, 8)), draw(st.integers(1, 9)), draw(st.integers(0, 99))
    return np.random.default_rng(seed).normal(size=(n, size)).astype(draw(st.sampled_from(["float32", "float64"])))


@settings(deadline=None)
@given(stack=stacks(), trim=st.integers(0, 3))
def test_median_and_trimmed_mean_are_those_of_every_coordinate(stack: Array, trim: int) -> None:
    trim = min(trim, (len(stack) - 1) // 2)
    columns = [[float(v) for v in column] for column in stack.T]
    assert median(stack).dtype == stack.dtype
    np.testing.assert_allclose(median(stack), [statistics.median(c) for c in columns], rtol=1e-6, atol=1e-7)
    expected = [statistics.fmean(sorted(c)[trim : len(c) - trim]) for c in columns]
    np.testing.assert_allclose(trimmed_mean(stack, trim), expected, rtol=1e-5, atol=1e-6)


def squared_distances(stack: Array) -> Array:
    question = Question(stack, of_pairs=True)
    return matrix(question.alone(Layout([("x", stack.shape[1:])], stack.dtype)), len(stack))


@settings(deadline=None)
@given(stack=stacks(fewest=5), byzantine=st.integers(0, 2))
def test_krum_chooses_the_row_whose_nearest_others_are_nearest(stack: Array, byzantine: int) -> None:
    n = len(stack)
    byzantine = min(byzantine, (n - 3) // 2)

    def score(i: int) -> float:
        """The least that the distances to any n − f − 2 others add up to."""
        others = [sum((float(a) - float(b)) ** 2 for a, b in zip(stack[i], stack[j], strict=True)) for j in range(n)]
        return min(sum(others[j] for j in few) for few in combinations(set(range(n)) - {i}, n - byzantine - 2))

    ranked = sorted(range(n), key=score)
    assert multi_krum(stack, byzantine, 1, squared_distances(stack)).tobytes() == stack[ranked[0]].tobytes()
    np.testing.assert_allclose(
        multi_krum(stack, byzantine, n - byzantine, squared_distances(stack)),
        stack[sorted(ranked[: n - byzantine])].mean(axis=0),
        rtol=1e-5,
    )


@settings(deadline=None)
@given(stack=stacks(), bound=st.floats(0.1, 5))
def test_clipping_shortens_what_is_too_long_and_touches_nothing_else(stack: Array, bound: float) -> None:
    clipped = stack.copy()
    clip_rows(clipped, bound, np.square(clipped, dtype=np.float64).sum(axis=1))
    for before, after in zip(stack, clipped, strict=True):
        length = float(np.linalg.norm(before.astype(np.float64)))
        if length <= bound:
            assert after.tobytes() == before.tobytes()
        else:
            np.testing.assert_allclose(after, before * (bound / length), rtol=1e-5)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 99), chunk=st.sampled_from([1000, 65536, 100_000, 200_000]))
@pytest.mark.parametrize("how", ["multi_krum", "mean"])
def test_how_contributions_are_cut_into_chunks_does_not_show_in_the_bits(how: str, seed: int, chunk: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(5, 150_000)).astype(np.float32)
    train = make_job(aggregate=how, clip_contribution=100.0).train
    layout, samples = Layout([("a", (70_001,)), ("b", (79_999,))], "float32"), [1, 2, 3, 4, 5]
    whole = alone(aggregate(train, [list(rows)], samples, layout.dtype), layout)
    cut = [[row[i : i + chunk] for row in rows] for i in range(0, 150_000, chunk)]
    assert alone(aggregate(train, cut, samples, layout.dtype), layout).tobytes() == whole.tobytes()


def test_distances_too_large_for_a_float_lose() -> None:
    stack = np.zeros((5, 3))
    stack[2] = 1e300
    assert np.isinf(squared_distances(stack)[2, 0])
    assert multi_krum(stack, 1, 4, squared_distances(stack)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("aggregation", ["trimmed_mean", "krum", "multi_krum"])
def test_a_nan_that_spoils_the_mean_and_the_median_is_left_out(aggregation: str) -> None:
    """The server refuses NaN before it gets so far; this is what is left if it did not look."""
    stack = np.random.default_rng(5).normal(1, 0.1, (7, 4))
    for row in HOSTILE:
        stack[row, row % 4] = np.nan
    assert np.isnan(weighted_mean(stack, [1] * 7)).any()
    assert np.isnan(median(stack)).any()
    train = make_job(aggregate=aggregation, **{"trim" if "mean" in aggregation else "byzantine": 2}).train
    layout = Layout([("x", (4,))], "float64")
    np.testing.assert_allclose(alone(aggregate(train, [list(stack)], [1] * 7, layout.dtype), layout), 1, atol=0.2)


def make_job(**train: Any) -> Job:
    return Job.from_dict(
        {
            "task": {"use": "linear_regression"},
            "data": {"source": "builtin:linear", "shards": SHARDS, "batch_size": 0},
            "train": {"steps": 60, "dtype": "float64", **train},
            "optimizer": {"learning_rate": 0.5},
        }
    )


def attacked(factor: float) -> Any:
    """Multiply what hostile shards send."""

    async def compute(
        learner: Learner, theta: dict[str, Array], shard: int, step: int, _out: dict[str, Array]
    ) -> Gradient:
        computed = gradient(learner, theta, shard, step)
        if shard not in HOSTILE:
            return computed
        arrays = {name: factor * g for name, g in computed.arrays.items()}
        return Gradient(computed.loss, arrays, computed.samples, computed.is_scaled)

    return compute


def distance_to_the_truth(factor: float, **train: Any) -> float:
    theta = Training(make_job(**train)).finish(attacked(factor), attacked(factor)).theta
    return float(max(abs(theta["w"].item() - 2), abs(theta["b"].item() - 1)))


ATTACKS = [pytest.param(-4.0, id="sign flip"), pytest.param(1e4, id="large norm")]


@pytest.mark.parametrize("factor", ATTACKS)
def test_the_mean_is_led_astray(factor: float) -> None:
    assert distance_to_the_truth(1.0) < 0.3
    assert not distance_to_the_truth(factor) < 2


@pytest.mark.parametrize("factor", ATTACKS)
@pytest.mark.parametrize(
    "train",
    [
        {"aggregate": "median"},
        {"aggregate": "trimmed_mean", "trim": 2},
        {"aggregate": "krum", "byzantine": 2},
        {"aggregate": "multi_krum", "byzantine": 2},
        {"aggregate": "median", "clip_contribution": 1.0},
    ],
    ids=lambda train: "-".join(map(str, train.values())),
)
def test_robust_aggregation_comes_near_the_truth(train: dict[str, Any], factor: float) -> None:
    assert distance_to_the_truth(factor, **train) < 0.4


def test_clipping_each_contribution_bounds_what_a_large_one_does() -> None:
    assert distance_to_the_truth(1e4, clip_contribution=0.5) < 0.4


def test_robust_rounds_have_the_same_bits_for_any_number_of_workers() -> None:
    job = make_job(aggregate="multi_krum", byzantine=2, clip_contribution=2.0)
    thetas = [Training(job).finish(*[attacked(-4.0)] * workers).theta for workers in (1, 3)]
    assert all(value.tobytes() == thetas[1][name].tobytes() for name, value in thetas[0].items())


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"aggregate": "mode"}, "Allowed: 'mean', 'median'"),
        ({"aggregate": "median", "mode": "async"}, "needs mode = 'sync'"),
        ({"clip_contribution": 1.0, "mode": "ssp"}, "needs mode = 'sync'"),
        ({"aggregate": "median", "reduce": "sum"}, "reduce = 'mean'"),
        (
            {"aggregate": "trimmed_mean", "trim": 4},
            "leaves nothing of the 7 contributions of a round; allowed are up to 3",
        ),
        ({"aggregate": "trimmed_mean", "trim": 2, "quorum": 4}, "of the 4 contributions"),
        ({"trim": 1}, "trim = 1 has no meaning for 'mean'"),
        ({"byzantine": 1}, "byzantine = 1 has no meaning for 'mean'"),
        ({"aggregate": "krum", "byzantine": 3}, "needs 9 contributions in a round for 'krum', found 7"),
        ({"clip_contribution": -1.0}, "train.clip_contribution"),
    ],
)
def test_what_cannot_work_is_refused(train: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError) as refused:
        make_job(**train)
    assert told in str(refused.value)
