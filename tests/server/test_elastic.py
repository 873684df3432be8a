"""Elastic averaging against a simulation that knows only batches and formulas, and over everything that may die."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from paramserver.server import events as ev
from paramserver.server import snapshot as snapshots
from paramserver.server.snapshot import Snapshot
from paramserver.wire.errors import JobError
from paramserver.wire.job import Job
from paramserver.worker.learner import Learner
from paramserver.worker.trainer import Compute, Gradient, Identity, Trainer
from server.inprocess import DEADLINE_S, Pipe, Training, at_once
from worker.test_localsteps import Simulation, make_job, result

SHARDS, ROUNDS, H, RATE, ALPHA = 3, 6, 4, 0.2, 0.3
LOCAL = {"local_steps": H, "local_update": "elastic", "local_learning_rate": RATE, "elasticity": ALPHA}


def elastic_job(beta: float, **train: Any) -> Job:
    return make_job({"learning_rate": beta}, **LOCAL, **train)


def simulate(job: Job, beta: float, in_rounds: bool) -> np.ndarray:
    """Return θ after all rounds; in async one worker computes the shards in turn, each at the newest θ."""
    simulation, theta = Simulation(job), np.zeros(2)
    own: list[np.ndarray | None] = [None] * SHARDS
    for step in range(ROUNDS):
        at_start, moves, samples = theta.copy(), np.zeros(2), 0
        for shard in range(SHARDS):
            centre = at_start if in_rounds else theta
            x = own[shard]
            x = centre.copy() if x is None else x - ALPHA * (x - centre)
            x, _, n = simulation.walk(x, shard, step, H, RATE)
            own[shard] = x
            if in_rounds:
                moves, samples = moves + n * (x - at_start), samples + n
            else:
                theta = theta + beta * (x - theta)
        if in_rounds:
            theta = at_start + beta * moves / samples
    return theta


@pytest.mark.parametrize("workers", [1, 2])
def test_in_rounds_theta_moves_to_the_mean_of_the_shards(workers: int) -> None:
    job = elastic_job(SHARDS * ALPHA)
    theta = result(Training(job).finish(*[at_once] * workers))
    np.testing.assert_allclose(theta, simulate(job, SHARDS * ALPHA, in_rounds=True), rtol=1e-12)


def test_in_async_theta_moves_to_every_shard_by_itself() -> None:
    job = elastic_job(ALPHA, mode="async")
    np.testing.assert_allclose(result(Training(job).finish(at_once)), simulate(job, ALPHA, in_rounds=False), rtol=1e-12)


def test_one_shard_is_the_algorithm_of_the_paper() -> None:
    """With its elastic force written as there: both ends move from where both were."""
    beta, paper_alpha = 0.4, 0.3 * (1 - 0.4)
    data = {"source": "builtin:linear", "shards": 1, "batch_size": 100}
    job = Job.from_dict(elastic_job(beta).model_dump() | {"data": data})
    simulation, theta, x = Simulation.__new__(Simulation), np.zeros(2), np.zeros(2)
    simulation.learner = Learner(job)
    simulation.learner.survey(0)
    simulation.learner.prepare(0, None)
    for step in range(ROUNDS):
        x = simulation.walk(x, 0, step, H, RATE)[0]
        x, theta = x - paper_alpha * (x - theta), theta + beta * (x - theta)
    np.testing.assert_allclose(result(Training(job).finish(at_once)), theta, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_server_that_begins_again_goes_on_to_the_same_bits(mode: str, dtype: str) -> None:
    """Its workers know nothing of before, so every shard's own parameters must have been in the snapshot."""
    job = elastic_job(0.5, mode=mode, dtype=dtype)
    kept: list[Snapshot] = []

    def keep(training: Training) -> None:
        if not kept and training.run.engine.version >= 3:
            data = b"".join(training.run.snapshot().pieces("hash"))
            kept.append(snapshots.parse(memoryview(bytearray(data))))

    undisturbed = Training(job, on_move=keep).finish(at_once)
    restarted = Training(job)
    restarted.run.restore(kept[0])
    assert restarted.run.engine.version == 3
    restarted.finish(at_once)
    assert result(restarted).tobytes() == result(undisturbed).tobytes()


def test_a_worker_that_dies_leaves_its_shards_where_they_were() -> None:
    """What it had of its own is gone with it; another worker goes on with what the server kept."""
    job = elastic_job(0.5, dtype="float32", steps=20)
    disturbed = Training(job)
    asyncio.run(train_with_deaths(disturbed, {3: "w1", 9: "w0", 14: "w1"}))
    undisturbed = Training(job).finish(at_once)
    assert result(disturbed).tobytes() == result(undisturbed).tobytes()


async def train_with_deaths(training: Training, deaths: dict[int, str]) -> None:
    """Train with two workers of different speed; who dies comes back with nothing but its name."""

    def start(name: str) -> asyncio.Task[None]:
        stream: Any = Pipe(training)
        trainer = Trainer(Identity(name), compute=slower_local(3 if name == "w1" else 0))
        return asyncio.create_task(trainer.follow(stream))

    workers = {name: start(name) for name in ("w0", "w1")}
    async with asyncio.timeout(DEADLINE_S):
        while not training.run.engine.ended:
            await asyncio.sleep(0)
            due = [version for version in deaths if training.run.engine.version >= version]
            for version in due:
                name = deaths.pop(version)
                assert training.run.engine.workers[name].shards
                workers[name].cancel()
                del training.sessions[name]
                training.run.feed(ev.Left(name, "killed"))
                workers[name] = start(name)
    assert not deaths
    for worker in workers.values():
        worker.cancel()
    await asyncio.gather(*workers.values(), return_exceptions=True)


def slower_local(turns: int) -> Compute:
    async def compute(learner: Any, theta: Any, shard: int, step: int, out: Any) -> Gradient:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await at_once(learner, theta, shard, step, out)

    return compute


def test_the_number_of_workers_does_not_show_in_the_bits() -> None:
    job = elastic_job(0.5, dtype="float32")
    thetas = {result(Training(job).finish(*computes)).tobytes() for computes in ([at_once], [at_once] * 3, [None])}
    assert len(thetas) == 1


def test_what_was_refused_did_not_happen_to_the_shard() -> None:
    """A shard whose push was too old begins again where its last push that counted left it."""
    training = Training(elastic_job(ALPHA, mode="async", max_delay=2, steps=12))
    training.finish(at_once, at_once, slower_local(40))
    assert training.rejected["stale"] > 0
    assert training.run.engine.clocks == [12] * SHARDS


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"elasticity": 0.0}, "'elastic' needs an elasticity above 0"),
        ({"local_update": "difference"}, "nothing else takes one"),
        ({"local_learning_rate": None}, "'elastic' needs local_learning_rate"),
        ({"reduce": "sum"}, "'elastic' needs reduce = 'mean'"),
        ({"mode": "async", "delay_compensation": 0.1}, "delay_compensation = 0.1 has no meaning"),
        ({"elasticity": 1.0}, "less than 1"),
        ({"refuse_norm": 1.0}, "refuse_norm = 1 has no meaning"),
    ],
)
def test_what_makes_no_sense_is_refused(train: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError) as refused:
        make_job({"learning_rate": 0.5}, **(LOCAL | train))
    assert told in str(refused.value)


def test_a_codec_that_would_change_what_a_shard_has_is_refused() -> None:
    tables = elastic_job(0.5, dtype="float32").model_dump()
    with pytest.raises(JobError, match=r"wire\.push = 'bf16' does not go with train\.local_update = 'elastic'"):
        Job.from_dict(tables | {"wire": {"push": "bf16"}})
