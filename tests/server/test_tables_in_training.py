"""Whole trainings with tables: against one process with a dict of rows, for any number of workers, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramserver.server.run import Run
from paramserver.server.session import Session
from paramserver.server.snapshot import Snapshot, parse
from paramserver.wire.framing import decode_server_message
from paramserver.wire.job import Job
from paramserver.wire.tables import Table, initial_rows
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.learner import Learner
from paramserver.worker.rowexchange import MAX_ASKED
from server.inprocess import Pipe, Training, at_once, slower

SHARDS = 3


def make_job(task: str = "LogisticRows", **sections: Any) -> Job:
    base: dict[str, Any] = {
        "task": {"use": f"server.sparsetask:{task}"},
        "data": {"source": "server.sparsetask:words", "shards": SHARDS, "batch_size": 32},
        "train": {"dtype": "float64", "steps": 12},
        "optimizer": {"name": "ftrl", "learning_rate": 0.5, "l1": 0.003},
    }
    return Job.from_dict(base | {name: base.get(name, {}) | section for name, section in sections.items()})


def of_task(use: str, job: Job) -> Job:
    """Return the job with a task of the library."""
    return Job.from_dict(job.model_dump() | {"task": {"use": use}})


def tables(training: Training) -> dict[str, dict[int, list[float]]]:
    assert training.run.tables is not None
    found = {}
    for name, contents in training.run.tables.contents().items():
        keys, rows = contents.in_order()
        found[name] = dict(zip(keys.tolist(), rows.tolist(), strict=True))
    return found


def by_hand(job: Job) -> tuple[float, dict[int, float]]:
    """FTRL logistic regression after McMahan et al. 2013, algorithm 1, on the mean gradient of a round."""
    learner = Learner(job)
    for shard in range(SHARDS):
        learner.survey(shard)
    learner.prepare(2, None)
    alpha, l1 = job.optimizer.learning_rate, job.optimizer.l1
    z: dict[Any, float] = {}
    n: dict[Any, float] = {}

    def weight(key: Any) -> float:
        if abs(z.get(key, 0.0)) <= l1:
            return 0.0
        return -(z[key] - np.sign(z[key]) * l1) / ((1.0 + n[key] ** 0.5) / alpha)

    for step in range(12):
        gradient: dict[Any, float] = {}
        batches = [learner.batch(shard, step) for shard in range(SHARDS)]
        samples = sum(batch.n for batch in batches)
        for batch in batches:
            for i in range(batch.n):
                own = slice(batch.x.indptr[i], batch.x.indptr[i + 1])
                features = [*zip(batch.x.indices[own].tolist(), batch.x.data[own].tolist(), strict=True), ("b", 1.0)]
                score = sum(weight(key) * value for key, value in features)
                error = 1 / (1 + np.exp(-score)) - batch.y[i]
                for key, value in features:
                    gradient[key] = gradient.get(key, 0.0) + error * value / samples
        before = {key: weight(key) for key in gradient}
        for key, g in gradient.items():
            sigma = ((n.get(key, 0.0) + g * g) ** 0.5 - n.get(key, 0.0) ** 0.5) / alpha
            z[key] = z.get(key, 0.0) + g - sigma * before[key]
            n[key] = n.get(key, 0.0) + g * g
    return weight("b"), {key: weight(key) for key in z if key != "b"}


CLICKS = {
    "source": str(Path(__file__).parents[2] / "examples" / "clicks.csv"),
    "label": "clicked",
    "hash": ["city", "device", "hour"],
}


@pytest.mark.parametrize(
    "job",
    [make_job(), of_task("sparse_logistic_regression", make_job(data=CLICKS, optimizer={"l1": 0.03}))],
    ids=["a model of one's own", "hashed text"],
)
def test_a_training_equals_one_process_with_a_dict_of_weights(job: Job) -> None:
    training = Training(job).finish(at_once, at_once)
    bias, weights = by_hand(job)
    found = tables(training)["w"]
    assert training.theta["b"][0] == pytest.approx(bias, rel=1e-10)
    assert set(found) == set(weights)
    for key, weight in weights.items():
        assert found[key][0] == pytest.approx(weight, rel=1e-10, abs=1e-14)
    zeros = sum(weight == 0 for weight in weights.values())
    assert 0 < zeros < len(weights)
    assert [row == [0.0] for row in found.values()].count(True) == zeros


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_gradient_is_clipped_as_that_of_the_same_model_without_a_table(mode: str) -> None:
    sections: dict[str, Any] = {"train": {"mode": mode}, "optimizer": {"name": "sgd", "l1": 0.0, "clip_norm": 0.05}}
    found = Training(make_job(**sections)).finish(at_once)
    dense = Training(of_task("logistic_regression", make_job(**sections))).finish(at_once).theta
    free = Training(make_job(**sections | {"optimizer": {"name": "sgd", "l1": 0.0}})).finish(at_once)
    assert found.theta["b"] == pytest.approx(dense["b"], rel=1e-10)
    assert found.theta["b"] != pytest.approx(free.theta["b"], rel=1e-3)
    for key, row in tables(found)["w"].items():
        assert row[0] == pytest.approx(dense["w"][key], rel=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad"])
@pytest.mark.parametrize("task", ["LogisticRows", "TwoTables"])
def test_the_bits_do_not_depend_on_the_number_of_workers(task: str, optimizer: str) -> None:
    job = make_job(task, train={"dtype": "float32"}, optimizer={"name": optimizer, "l1": 0.0})
    one, three = Training(job).finish(at_once), Training(job).finish(at_once, slower(5), at_once)
    assert tables(one) == tables(three)
    assert one.theta["b"].tobytes() == three.theta["b"].tobytes()
    assert not three.rejected


@pytest.mark.parametrize(
    "train",
    [
        {"mode": "async"},
        {"mode": "async", "max_delay": 2, "staleness_scaling": True},
        {"mode": "ssp", "staleness": 1},
        {"mode": "sync", "quorum": 2},
    ],
    ids=lambda train: "-".join(map(str, train.values())),
)
def test_every_mode_learns(train: dict[str, Any]) -> None:
    training = Training(make_job("TwoTables", train=train)).finish(at_once, slower(4), at_once)
    losses = [point.loss for point in training.run.history.after(0)]
    assert training.run.engine.phase == "done"
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    assert set(training.rejected) <= {"stale", "superseded"}


def test_recovery_from_any_snapshot_gives_the_same_bits() -> None:
    # A round names few rows, so that which of the others are forgotten is told by their age.
    server, data = {"table_max_rows": 40}, {"batch_size": 2}
    job = make_job("TwoTables", data=data, optimizer={"name": "adam", "l1": 0.0}, server=server)
    whole = Training(job)
    snapshots: list[Snapshot] = []

    def look(training: Training) -> None:
        engine = training.run.engine
        if engine.phase == "train" and engine.version in (0, 4, 11) and engine.version >= 4 * len(snapshots) - 1:
            snapshots.append(training.run.snapshot())

    whole._on_move = look
    whole.finish(at_once, at_once)
    expected = tables(whole)
    assert max(len(rows) for rows in expected.values()) <= 40
    assert len(snapshots) >= 3
    for snapshot in (snapshots[0], snapshots[-1]):
        again = Training(job)
        again.run.restore(parse(memoryview(bytearray(b"".join(snapshot.pieces(snapshot.theta_sha256))))))
        again.finish(at_once, at_once, at_once)
        assert tables(again) == expected
        assert again.theta["b"].tobytes() == whole.theta["b"].tobytes()


def test_many_keys_travel_in_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Training(make_job()).finish(at_once)
    # As if a chunk held 8 rows: more messages than may wait for their answers at once.
    monkeypatch.setattr("paramserver.worker.trainer.RowExchange", _with_chunks_of(8 * 16))
    found = Training(make_job())
    asked: list[str] = []
    found._on_move = lambda _: asked.append("")
    found.finish(at_once)
    assert len(asked) > SHARDS * MAX_ASKED
    assert tables(found) == tables(expected)


def _with_chunks_of(size: int) -> Callable[..., Any]:
    from paramserver.worker.rowexchange import RowExchange

    def make(stream: Any, described: Any, dtype: Any, _chunk_bytes: int, aside: Any) -> RowExchange:
        return RowExchange(stream, described, dtype, size, aside)

    return make


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_messages_that_come_twice_change_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message about rows, and every answer, arrives twice."""
    job = make_job("TwoTables", train={"mode": mode})
    expected = Training(job).finish(at_once)
    send, receive = Pipe.send, Pipe.receive
    again: list[Any] = []

    async def send_twice(pipe: Pipe, message: Any, payload: Any = None) -> None:
        await send(pipe, message, payload)
        if message.WhichOneof("kind") in ("pull_rows", "push_rows"):
            await send(pipe, message, payload)

    async def receive_twice(pipe: Pipe) -> Any:
        if again:
            return again.pop()
        received = await receive(pipe)
        assert received is not None
        copy = pb.ServerMessage()
        copy.CopyFrom(received[0])
        if received[0].WhichOneof("kind") == "work" and received[0].work.assignments[0].kind == pb.Assignment.GRADIENT:
            again.append((copy, received[1]))
        return received

    monkeypatch.setattr(Pipe, "send", send_twice)
    monkeypatch.setattr(Pipe, "receive", receive_twice)
    found = Training(job).finish(at_once)
    assert tables(found) == tables(expected)
    assert not found.rejected


def test_a_worker_whose_step_is_recalled_while_it_asks_for_rows_goes_on() -> None:
    """The policy changes between a worker's question and the answer."""
    training = Training(make_job(train={"mode": "async"}))
    changes = iter([{"mode": "ssp"}, {"mode": "sync"}, {"mode": "async"}, {"mode": "sync"}])
    asked = 0

    def change(_: Training) -> None:
        nonlocal asked
        asked += 1
        if asked > 40 and asked % 7 == 0 and (policy := next(changes, None)) is not None:
            training.run.set_policy(policy)

    training._on_move = change
    training.finish(at_once, at_once)
    assert training.run.engine.phase == "done"
    assert next(changes, None) is None
    assert "invalid" not in training.rejected


def test_a_task_with_other_tables_than_the_job_began_with_is_named() -> None:
    training = Training(make_job())

    training._on_move = lambda t: setattr(t.run.tables, "tables", {"w": Table(2)}) if t.run.tables is not None else None
    training.finish(at_once)
    assert training.run.engine.phase == "failed"
    assert "the job began with the tables" in training.run.engine.reason


class Handwritten:
    """A run in its first round with one worker that says what the test says."""

    def __init__(self, **initial: Any) -> None:
        self.session = Session(pb.Join(protocol=1, worker="w"))
        self._heard: list[bytes] = []
        job = make_job(data={"shards": 1}, train={"steps": 2, "reduce": "sum"}, optimizer={"name": "sgd", "l1": 0.0})
        self.run = Run("job", job, {"w": self.session}, clock=lambda: 0.0, epoch=0)
        self.run.welcome(self.session)
        self.say(pull=pb.PullWork())
        self.say(survey=pb.Survey(shard=0, epoch=self.epoch, rows=9, features=1))
        self.say(pull=pb.PullWork())
        fields = {"tensors": [pb.Tensor(name="b", shape=[1])], "tables": [pb.Table(name="w", dim=2, scale=0.5)]}
        self.say(0.0, initial=pb.Initial(shard=0, epoch=self.epoch, **(fields | initial)))
        self.say(pull=pb.PullWork())

    @property
    def epoch(self) -> int:
        return self.run.engine.shards[0].epoch

    @property
    def rejected(self) -> dict[str, int]:
        return dict(self.run.engine.workers["w"].rejected)

    def say(self, *values: float, keys: Any = (), **kind: Any) -> None:
        payload = np.array(keys, "<i8").tobytes() + np.array(values, "<f8").tobytes()
        self.run.take(self.session, pb.WorkerMessage(**kind), memoryview(payload))
        while self.session._outbox:
            self._heard += self.session._outbox.popleft()

    def answers(self) -> list[tuple[pb.ServerMessage, memoryview]]:
        return [decode_server_message(data) for data in self._heard]

    def ask(self, keys: Any, table: int = 0, **name: int) -> None:
        fields = {"shard": 0, "epoch": self.epoch, "step": 0, "table": table, "number": 8} | name
        self.say(keys=keys, pull_rows=pb.PullRows(**fields))

    def push(self, rows: int = 0, **name: int) -> None:
        fields = {"shard": 0, "epoch": self.epoch, "step": 0, "samples": 1, "loss": 0.5, "rows": rows} | name
        self.say(0.0, push=pb.Push(**fields))

    def push_rows(self, keys: Any, *values: float, **name: int) -> None:
        fields = {"shard": 0, "epoch": self.epoch, "step": 0, "table": 0, "count": len(keys)} | name
        self.say(*values, keys=keys, push_rows=pb.PushRows(**fields))


def test_rows_come_as_they_were_asked_for_and_change_with_the_push() -> None:
    hand = Handwritten()
    keys = np.array([-3, 8])
    hand.ask(keys)
    message, payload = hand.answers()[-1]
    first = initial_rows(0, "w", Table(2, 0.5), keys, np.dtype(np.float64))
    assert message.rows.number == 8
    assert payload == first.tobytes()
    hand.push_rows(keys, 1, 2, 3, 4)
    hand.push(rows=2)
    assert hand.run.engine.version == 1
    assert hand.run.tables is not None
    (contents,) = hand.run.tables.contents().values()
    np.testing.assert_allclose(contents.in_order()[1], first - 0.5 * np.array([[1, 2], [3, 4]]))
    assert hand.rejected == {}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda h: h.ask([1], table=1), "table 1 does not exist"),
        (lambda h: h.ask([2, 1]), "key 1 follows 2"),
        (lambda h: h.ask([]), "cannot hold 0 keys"),
        (lambda h: (h.push_rows([1], 1, np.nan), h.push(rows=1)), "holds nan"),
        (lambda h: h.push(rows=1), "0 rows of tables came, the push names 1"),
        (lambda h: (h.push_rows([1], 1, 2), h.push()), "1 rows of tables came, the push names 0"),
    ],
)
def test_what_breaks_the_contract_is_refused_with_its_reason(bad: Callable[[Handwritten], Any], reason: str) -> None:
    hand = Handwritten()
    bad(hand)
    refusals = [message.refusal for message, _ in hand.answers() if message.HasField("refusal")]
    assert [refusal.code for refusal in refusals] == [pb.Refusal.INVALID]
    assert reason in refusals[0].reason
    assert hand.rejected == {"not_finite" if "nan" in reason else "malformed": 1}
    # The step is asked for again and then counts, with nothing of what was wrong.
    hand.say(pull=pb.PullWork())
    hand.push()
    assert hand.run.engine.version == 1
    assert hand.run.tables is not None
    assert hand.run.tables.counts == {"w": 0}


def test_rows_for_work_that_is_not_ones_own_are_passed_over() -> None:
    hand = Handwritten()
    for name in ({"epoch": 99}, {"step": 1}, {"shard": 7}):
        hand.ask([1], **name)
        assert hand.answers()[-1][0].refusal.reason
        hand.push_rows([1], 1, 2, **name)
    hand.push()
    assert hand.run.engine.version == 1
    assert hand.run.tables is not None
    assert hand.run.tables.counts == {"w": 0}


@pytest.mark.parametrize(
    ("initial", "reason"),
    [
        ({"tables": [pb.Table(name="b", dim=1)]}, "both named 'b'"),
        ({"tables": [pb.Table(name="w", dim=0)]}, "dim = 0"),
        ({"tables": [pb.Table(name="w", dim=1, scale=float("inf"))]}, "scale = inf"),
    ],
)
def test_tables_that_cannot_be_end_the_job_with_the_reason(initial: dict[str, Any], reason: str) -> None:
    hand = Handwritten(**initial)
    assert hand.run.engine.phase == "failed"
    assert reason in hand.run.engine.reason
