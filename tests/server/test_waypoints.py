"""A job whose pushes keep something back: shards change hands, servers restart, and θ has the same bits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paramserver.server import events as ev
from paramserver.server.run import Run
from paramserver.server.snapshot import parse
from paramserver.wire.job import Job
from paramserver.worker.trainer import Identity, Trainer
from server.inprocess import DEADLINE_S, Pipe, Training, at_once

WIRES: list[dict[str, Any]] = [
    {"push": "topk", "density": 0.1, "exact_every": 8},
    {"push": "topk", "density": 0.1, "momentum": 0.9, "exact_every": 8},
    {"push": "sign", "exact_every": 5},
    {"push": "powersgd", "rank": 1, "exact_every": 8},
    {"push": "int8", "pull": "bf16"},
]


def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(80, 12))
    return x, np.argmax(x[:, :5] + 0.3 * rng.normal(size=(80, 5)), axis=1)


def job(wire: dict[str, Any], **train: Any) -> Job:
    return Job.from_dict(
        {
            "task": {"use": "softmax_regression"},
            "data": {"source": f"{__name__}:data", "shards": 4, "batch_size": 7},
            "train": {"steps": 37, **train},
            "optimizer": {"name": "adam", "learning_rate": 0.05},
            "stop": {"tolerance": 1e-12},
            "wire": wire,
        }
    )


def bits(training: Training) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in training.theta.items()}


def undisturbed(wire: dict[str, Any]) -> Training:
    return Training(job(wire)).finish(at_once)


class Disturbed(Training):
    """Workers come and go: whenever the version first reaches a key of `plan`, its worker leaves and another joins."""

    def __init__(self, asked: Job, plan: dict[int, str]) -> None:
        self._plan = plan
        self._workers: dict[str, asyncio.Task[None]] = {}
        self.replaced = 0
        super().__init__(asked, Disturbed._replace)

    def _replace(self) -> None:  # type: ignore[misc]
        victim = self._plan.pop(self.run.engine.version, None)
        if victim is not None:
            self.sessions.pop(victim)
            self._workers.pop(victim).cancel()
            self.run.feed(ev.Left(victim, "it was killed"))
            self.replaced += 1
            self.start(f"{victim}'")

    def start(self, name: str) -> None:
        stream: Any = Pipe(self)
        self._workers[name] = asyncio.create_task(Trainer(Identity(name), compute=at_once).follow(stream))

    async def to_the_end(self, *names: str) -> None:
        for name in names:
            self.start(name)
        async with asyncio.timeout(DEADLINE_S):
            while not self.run.engine.ended:
                await asyncio.sleep(0)
                for worker in self._workers.values():
                    if worker.done() and not worker.cancelled():
                        worker.result()
        for worker in self._workers.values():
            worker.cancel()
        await asyncio.gather(*self._workers.values(), return_exceptions=True)


@pytest.mark.parametrize("wire", WIRES, ids=str)
def test_the_number_of_workers_does_not_show(wire: dict[str, Any]) -> None:
    alone = undisturbed(wire)
    assert bits(Training(job(wire)).finish(at_once, at_once, at_once)) == bits(alone)
    assert bits(Training(job({})).finish(at_once)) != bits(alone)


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("plan", [{3: "a"}, {8: "b", 9: "a", 20: "b'", 36: "a'"}, {1: "a", 15: "b", 16: "a'"}], ids=str)
def test_a_worker_that_dies_does_not_show(wire: dict[str, Any], plan: dict[int, str]) -> None:
    training, expected = Disturbed(job(wire), dict(plan)), undisturbed(wire)
    asyncio.run(training.to_the_end("a", "b"))
    assert training.replaced == len(plan)
    assert bits(training) == bits(expected)
    found, wanted = ([(p.step, p.version, p.loss) for p in t.run.history.after(0)] for t in (training, expected))
    assert found == wanted
    assert set(training.rejected) <= {"gap", "stale", "fenced"}


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("version", [0, 7, 8, 21, 36])
def test_a_restarted_server_does_not_show(wire: dict[str, Any], version: int) -> None:
    files: list[bytes] = []

    def look(training: Training) -> None:
        if training.run.engine.version == version and training.run.engine.phase == "train" and not files:
            files.append(b"".join(training.run.snapshot().pieces("")))

    expected = Training(job(wire), look).finish(at_once)
    again = Training(job(wire))
    again.run.restore(parse(memoryview(bytearray(files[0]))))
    assert again.run.engine.version <= version
    assert bits(again.finish(at_once, at_once)) == bits(expected)
    assert [p.loss for p in again.run.history.after(0)] == [p.loss for p in expected.run.history.after(0)]


@pytest.mark.parametrize("policy", [{"mode": "async"}, {"mode": "ssp"}, {"quorum": 3}], ids=str)
def test_without_rounds_of_all_shards_nothing_goes_back(policy: dict[str, Any]) -> None:
    training = Disturbed(job(WIRES[0], **policy), {11: "a", 20: "b"})
    versions: list[int] = []
    moved: Callable[[], None] = training.moved

    def look() -> None:
        versions.append(training.run.engine.version)
        moved()

    training.moved = look  # type: ignore[method-assign]
    asyncio.run(training.to_the_end("a", "b"))
    assert training.run.engine.phase == "done"
    assert versions == sorted(versions)


def test_a_switch_of_the_policy_forgets_where_it_could_go_back_to() -> None:
    def switch(training: Training) -> None:
        if training.run.engine.version == 11 and training.run.job.train.mode == "sync":
            training.run.set_policy({"mode": "async"})
            assert training.run.engine.version == 11
        if training.run.engine.version == 50 and training.run.job.train.mode == "async":
            training.run.set_policy({"mode": "sync"})

    training = Training(job(WIRES[0], steps=60), switch).finish(at_once, at_once)
    assert training.run.engine.phase == "done"
    assert min(training.run.engine.clocks) == 60


#: Of the 12 × 5 weights and 5 biases: 7 values with places; a scale and bits; factors of 12 + 5 and the biases; a scale
#: and levels.
PUSH_BYTES = {"topk": 7 * 6, "sign": 4 + 9, "powersgd": 4 * (12 + 5 + 5), "int8": 4 + 65}


@pytest.mark.parametrize("wire", WIRES, ids=str)
def test_the_server_counts_the_bytes_that_travel(wire: dict[str, Any]) -> None:
    training = undisturbed(wire)
    (session,) = training.sessions.values()
    exact = 37 // wire["exact_every"] if "exact_every" in wire else 0
    assert session.received == 4 * (exact * 4 * 65 + (37 - exact) * PUSH_BYTES[wire["push"]])


def test_a_run_keeps_no_waypoint_where_nothing_is_kept_back() -> None:
    run: Run = undisturbed({"push": "int8"}).run
    assert run._waypoints is None
