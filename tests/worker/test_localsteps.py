"""Local steps against a simulation in one process that knows only batches and the formula of the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramserver.wire.errors import JobError
from paramserver.wire.job import Job
from paramserver.worker.learner import Learner
from server.inprocess import Training, at_once

Array = np.ndarray[Any, Any]

SHARDS, ROUNDS = 3, 6


def make_job(optimizer: dict[str, Any] | None = None, **train: Any) -> Job:
    return Job.from_dict(
        {
            "task": {"use": "linear_regression"},
            "data": {"source": "builtin:linear", "shards": SHARDS, "batch_size": 100},
            "train": {"steps": ROUNDS, "dtype": "float64", **train},
            "optimizer": {"learning_rate": 0.3, **(optimizer or {})},
        }
    )


class Simulation:
    """θ = (w, b) as one vector, and the batches of a job."""

    def __init__(self, job: Job) -> None:
        self.learner = Learner(job)
        for shard in range(SHARDS):
            self.learner.survey(shard)
        self.learner.prepare(0, None)

    def gradient(self, theta: Array, shard: int, number: int) -> tuple[Array, int]:
        batch = self.learner.batch(shard, number)
        residual = theta[0] * batch.x[:, 0] + theta[1] - batch.y
        return np.array([2 * np.mean(residual * batch.x[:, 0]), 2 * np.mean(residual)]), batch.n

    def walk(self, theta: Array, shard: int, step: int, steps: int, rate: float) -> tuple[Array, Array, int]:
        """Return θ after local descent, the sum of the gradients over all samples, and the number of those."""
        own, total, samples = theta.copy(), np.zeros(2), 0
        for number in range(step * steps, step * steps + steps):
            gradient, n = self.gradient(own, shard, number)
            total, samples, own = total + n * gradient, samples + n, own - rate * gradient
        return own, total, samples


def result(training: Training) -> Array:
    return np.array([training.theta["w"].item(), training.theta["b"].item()])


@pytest.mark.parametrize("workers", [1, 2])
def test_difference_with_rate_1_is_federated_averaging(workers: int) -> None:
    job = make_job({"learning_rate": 1.0}, local_steps=5, local_update="difference", local_learning_rate=0.2)
    simulation, theta = Simulation(job), np.zeros(2)
    for step in range(ROUNDS):
        walks = [simulation.walk(theta, shard, step, 5, 0.2) for shard in range(SHARDS)]
        samples = sum(n for _, _, n in walks)
        assert len({n for _, _, n in walks}) > 1, "clients of unequal size"
        theta = sum((n / samples * own for own, _, n in walks), np.zeros(2))
    np.testing.assert_allclose(result(Training(job).finish(*[at_once] * workers)), theta, rtol=1e-12)


def test_difference_with_nesterov_is_the_outer_step_of_diloco() -> None:
    outer = {"learning_rate": 0.7, "momentum": 0.9, "nesterov": True}
    job = make_job(outer, local_steps=4, local_update="difference", local_learning_rate=0.1)
    simulation, theta, velocity = Simulation(job), np.zeros(2), np.zeros(2)
    for step in range(ROUNDS):
        walks = [simulation.walk(theta, shard, step, 4, 0.1) for shard in range(SHARDS)]
        moved = sum((n * (theta - own) for own, _, n in walks), np.zeros(2)) / sum(n for _, _, n in walks)
        velocity = 0.9 * velocity + moved
        theta = theta - 0.7 * (moved + 0.9 * velocity)
    np.testing.assert_allclose(result(Training(job).finish(at_once)), theta, rtol=1e-12)


@pytest.mark.parametrize("rate", [None, 0.05])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_gradient_is_that_of_all_batches_each_where_the_worker_was(rate: float | None, reduce: str) -> None:
    outer = 0.3 if reduce == "mean" else 1e-4
    extra = {} if rate is None else {"local_learning_rate": rate}
    job = make_job({"learning_rate": outer}, local_steps=4, reduce=reduce, **extra)
    simulation, theta = Simulation(job), np.zeros(2)
    for step in range(ROUNDS):
        walks = [simulation.walk(theta, shard, step, 4, outer if rate is None else rate) for shard in range(SHARDS)]
        total = sum((total for _, total, _ in walks), np.zeros(2))
        theta = theta - outer * (total / sum(n for _, _, n in walks) if reduce == "mean" else total)
    np.testing.assert_allclose(result(Training(job).finish(at_once, at_once)), theta, rtol=1e-11)


def test_in_async_every_contribution_is_a_step_of_its_own() -> None:
    job = make_job(
        {"learning_rate": 1.0}, mode="async", local_steps=3, local_update="difference", local_learning_rate=0.2
    )
    simulation, theta = Simulation(job), np.zeros(2)
    for step in range(ROUNDS):
        for shard in range(SHARDS):
            theta = simulation.walk(theta, shard, step, 3, 0.2)[0]
    np.testing.assert_allclose(result(Training(job).finish(at_once)), theta, rtol=1e-12)


def test_one_local_step_of_either_kind_is_the_normal_step() -> None:
    plain = Training(make_job()).finish(None)
    same = Training(make_job(local_steps=1, local_update="gradient")).finish(None)
    assert all(same.theta[name].tobytes() == value.tobytes() for name, value in plain.theta.items())
    difference = make_job({"learning_rate": 1.0}, local_update="difference", local_learning_rate=0.3)
    np.testing.assert_allclose(result(Training(difference).finish(None)), result(plain), rtol=1e-12)


def test_the_trainer_itself_takes_local_steps() -> None:
    job = make_job({"learning_rate": 1.0}, local_steps=5, local_update="difference", local_learning_rate=0.2)
    thetas = [result(Training(job).finish(compute)) for compute in (None, at_once)]
    assert thetas[0].tobytes() == thetas[1].tobytes()


def test_an_epoch_has_fewer_steps_and_the_same_batches() -> None:
    def after_one_epoch(local_steps: int) -> Training:
        return Training(make_job(steps=None, epochs=1, local_steps=local_steps)).finish(at_once)

    plain, local = after_one_epoch(1), after_one_epoch(2)
    assert (plain.run.engine.total_steps, local.run.engine.total_steps) == (4, 2)
    assert plain.run.engine.samples == local.run.engine.samples == 1000


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"local_steps": 0}, "train.local_steps"),
        ({"local_update": "delta"}, "Allowed: 'gradient', 'difference' or 'elastic'"),
        ({"local_steps": 2, "local_update": "difference"}, "needs local_learning_rate"),
        ({"local_learning_rate": 0.1}, "has no meaning with local_steps = 1"),
        ({"local_steps": 2, "local_learning_rate": 0.0}, "train.local_learning_rate"),
        ({"local_update": "difference", "local_learning_rate": 0.1, "reduce": "sum"}, "needs reduce = 'mean'"),
    ],
)
def test_what_makes_no_sense_is_refused(train: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError) as refused:
        make_job(**train)
    assert told in str(refused.value)
