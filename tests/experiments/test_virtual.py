"""Virtual time against the same job over queues and messages, and the delays that it is there for."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from paramserver.wire.job import Job
from server.inprocess import Training, at_once

virtual = importlib.import_module("experiments.virtual")


def make_job(shards: int = 3, **train: Any) -> Job:
    return Job.from_dict(
        {
            "task": {"use": "linear_regression"},
            "data": {"source": "builtin:linear", "shards": shards, "batch_size": 20, "standardize": True},
            "train": {"steps": 12, "dtype": "float64", **train},
        }
    )


@pytest.mark.parametrize("train", [{}, {"local_steps": 3}, {"aggregate": "median"}], ids=str)
def test_a_synchronous_run_has_the_bits_of_a_real_one(train: dict[str, Any]) -> None:
    simulated = virtual.Simulation(make_job(**train), [virtual.Worker(2.0), virtual.Worker(0.3)]).run()
    real = Training(make_job(**train)).finish(at_once)
    assert simulated.engine.phase == "done"
    assert {name: value.tobytes() for name, value in simulated.theta.items()} == {
        name: value.tobytes() for name, value in real.theta.items()
    }


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_shards_that_take_turns_are_each_as_late_as_there_are_others(delay: int) -> None:
    job = make_job(shards=delay + 1, mode="async")
    simulation = virtual.Simulation(job, [virtual.Worker()] * (delay + 1)).run()
    staleness = dict(simulation.engine.staleness)
    assert staleness.pop(delay) == 12 * (delay + 1) - delay
    assert sum(staleness.values()) == delay, "only the first ones are less late"


def test_a_slow_worker_is_as_late_as_it_is_slow() -> None:
    job = make_job(shards=2, mode="async", steps=1000)
    workers = [virtual.Worker(1.0), virtual.Worker(7.5)]
    simulation = virtual.Simulation(job, workers).run(lambda running: running.now >= 60)
    assert simulation.engine.clocks == [60, 7] or simulation.engine.clocks == [59, 8]
    assert max(simulation.engine.staleness) in (7, 8)
