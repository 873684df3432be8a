"""Beside a stream the chunks of vectors are longer: fewer messages for the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

from paramserver.server import events as ev
from paramserver.server.run import Run
from paramserver.server.session import Session
from paramserver.server.store import CHUNK_BYTES, IN_A_ROUND, LONGER, Store
from paramserver.wire.framing import decode_server_message, whole
from paramserver.wire.job import Job
from paramserver.wire.layout import Layout
from paramserver.wire.v1 import paramserver_pb2 as pb

CHUNK = CHUNK_BYTES // 4


def make_store(size: int, shards: int, wire: str = "full") -> Store:
    sections = {"task": {"use": "m"}, "data": {"source": "d", "shards": shards}, "wire": {"push": wire, "pull": wire}}
    layout = Layout([("t", (size,))], "float32")
    return Store(Job.from_dict(sections), layout, [np.arange(size, dtype=np.float32)], 9)


@pytest.mark.parametrize(
    ("size", "shards", "times"),
    [
        (10, 1, 1),
        (2 * CHUNK, 2, 1),
        (2 * CHUNK, 2 * IN_A_ROUND, 4),
        (IN_A_ROUND * CHUNK, 1, 1),
        (2 * IN_A_ROUND * CHUNK, 1, 2),
        (IN_A_ROUND * CHUNK, 3, 3),
        (20 * CHUNK, 64, LONGER),
    ],
)
def test_chunks_are_as_long_as_leaves_enough_of_them_in_a_round(size: int, shards: int, times: int) -> None:
    store = make_store(size, shards)
    assert (store.chunk_for(False), store.chunk_for(True)) == (CHUNK, times * CHUNK)
    assert store.describe(shared=False).chunk_bytes == times * CHUNK_BYTES


@pytest.mark.parametrize("wire", ["full", "bf16"])
def test_theta_is_cut_for_both_ways_and_is_the_same_on_both(wire: str) -> None:
    store = make_store(7 * CHUNK + 5, 4, wire)
    unit = CHUNK if wire == "full" else 2 * CHUNK
    read = []
    for is_beside in (False, True, False):
        messages = store.answer(pb.ServerMessage(work=pb.Work(version=0, last=True)), is_beside)
        decoded = [decode_server_message(whole(message)) for message in messages]
        long = store.chunk_for(is_beside)
        assert [message.work.offset for message, _ in decoded] == list(range(0, store.theta.size, long))
        assert [message.work.last for message, _ in decoded] == [False] * (len(decoded) - 1) + [True]
        read.append(b"".join(payload for _, payload in decoded))
    assert store.chunk_for(True) > unit == store.chunk_for(False)
    assert read[0] == read[1] == read[2]
    assert len(read[0]) == store.theta_nbytes


class Beside(Session):
    """A session whose messages go beside its stream."""

    is_beside = True


class Pushing:
    """A worker that has been given the one step of its one shard."""

    size = 8 * CHUNK + 1

    def __init__(self, session: Session) -> None:
        sections = {"task": {"use": "t"}, "data": {"source": "d", "shards": 1}, "train": {"steps": 9}}
        self.now, self.session = 0.0, session
        job = Job.from_dict(sections)
        self.run = Run("job", job, {"w": session}, clock=lambda: self.now, epoch=0)
        self.run.welcome(session)
        self.take(pull=pb.PullWork())
        self.take(survey=pb.Survey(shard=0, epoch=1, rows=1, features=1))
        self.take(pull=pb.PullWork())
        tensors = Layout([("t", (self.size,))], "float32").to_proto()
        self.take(np.zeros(self.size, np.float32), initial=pb.Initial(shard=0, epoch=1, tensors=tensors))
        self.take(pull=pb.PullWork())
        #: Where the chunks of θ begin as it was sent: what came before it has no offset.
        self.starts = [message.work.offset for message in self.sent if message.work.offset]
        session._outbox.clear()

    @property
    def sent(self) -> list[pb.ServerMessage]:
        return [decode_server_message(whole(data))[0] for answer in self.session._outbox for data in answer]

    def take(self, payload: np.ndarray | None = None, **kind: object) -> None:
        data = memoryview(b"") if payload is None else payload.data.cast("B")
        self.run.take(self.session, pb.WorkerMessage(**kind), data)

    def push(self, offset: int, count: int) -> None:
        epoch = self.run.engine.shards[0].epoch
        self.take(np.ones(count, np.float32), push=pb.Push(shard=0, epoch=epoch, samples=1, offset=offset))

    @property
    def refusals(self) -> list[str]:
        return [message.refusal.reason for message in self.sent if message.HasField("refusal")]


@pytest.mark.parametrize(("session", "times", "other"), [(Session, 1, 2), (Beside, 2, 1)], ids=["stream", "beside"])
def test_theta_goes_and_pushes_come_in_the_chunks_of_their_way_and_in_no_others(
    session: type[Session], times: int, other: int
) -> None:
    worker = Pushing(session(pb.Join(protocol=1, worker="w")))
    assert worker.run.store is not None
    assert worker.run.store.chunk_for(True) == 2 * CHUNK
    assert worker.starts == list(range(times * CHUNK, worker.size, times * CHUNK))
    worker.push(0, other * CHUNK)
    [refusal] = worker.refusals
    assert f"a chunk of {other * CHUNK} values came at offset 0; {times * CHUNK} values at offset 0" in refusal
    worker.take(pull=pb.PullWork())
    for start in range(0, worker.size, times * CHUNK):
        worker.push(start, min(times * CHUNK, worker.size - start))
    assert worker.run.engine.version == 1
    assert len(worker.refusals) == 1


@pytest.mark.parametrize("hears", [True, False])
def test_who_is_in_the_middle_of_a_message_is_not_silent(hears: bool) -> None:
    worker = Pushing(Beside(pb.Join(protocol=1, worker="w")))
    state = worker.run.engine.workers["w"]
    for _ in range(10):
        worker.now += state.heartbeat_s
        if hears:
            worker.run.hear(worker.session)
        worker.run.feed(ev.Tick())
    assert state.alive == hears
