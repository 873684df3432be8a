"""What was sent to a worker takes no memory while the server waits for what it sends next."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import Any

import numpy as np

from paramserver.server import training
from paramserver.server.events import Contribution
from paramserver.server.session import Session
from paramserver.server.store import Store
from paramserver.wire.framing import Apart, decode_server_message, whole
from paramserver.wire.job import Job
from paramserver.wire.layout import Layout
from paramserver.wire.v1 import paramserver_pb2 as pb


class Answer(list[bytes]):
    """An answer whose end can be seen."""


def test_an_answer_is_let_go_of_once_it_was_sent() -> None:
    session = Session(pb.Join(protocol=1, worker="w"))
    sent: list[bytes] = []

    class Context:
        async def write(self, message: bytes) -> None:
            sent.append(message)

    async def send() -> None:
        answer = Answer([b"theta", b"work"])
        seen = weakref.ref(answer)
        session.deliver(answer)
        del answer
        context: Any = Context()
        writer = asyncio.create_task(training._write(session, context))
        while session._waiting is None:
            await asyncio.sleep(0)
        assert sent == [b"theta", b"work"]
        assert seen() is None
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writer

    asyncio.run(send())


def test_theta_as_it_was_sent_is_forgotten_and_made_again_for_who_comes_late() -> None:
    job = Job.from_dict({"task": {"use": "m"}, "data": {"source": "d", "shards": 1}})
    size = (5 << 20) // 4
    store = Store(job, Layout([("t", (size,))], "float32"), [np.arange(size, dtype=np.float32)], 9)
    message = pb.ServerMessage(work=pb.Work(version=0, last=True))
    first = store.answer(message, beside=False)
    assert store.answer(message, beside=False)[0] is first[0], "encoded once for all workers"
    store.was_answered()
    again = store.answer(message, beside=False)
    assert again[0] is not first[0]
    assert [whole(each) for each in again] == [whole(each) for each in first]


def test_what_waits_for_a_worker_that_does_not_read_is_theta_as_it_was() -> None:
    job = Job.from_dict({"task": {"use": "m"}, "data": {"source": "d", "shards": 1}, "train": {"mode": "async"}})
    size = (3 << 20) // 4
    values = np.arange(size, dtype=np.float32)
    store = Store(job, Layout([("t", (size,))], "float32"), [values.copy()], 9)
    waiting = store.answer(pb.ServerMessage(work=pb.Work(version=0, last=True)), beside=False)
    assert any(isinstance(message, Apart) for message in waiting), "nothing is copied before θ changes"
    for version in (1, 2):
        store.incoming.hold(0, store.cut(np.ones(size, np.float32)))
        store.apply(version, version, [Contribution("w", 0, 1, version - 1, version - 1, 1, 0.5)])
    payloads = [decode_server_message(whole(message))[1] for message in waiting]
    assert (np.concatenate([np.frombuffer(payload, np.float32) for payload in payloads]) == values).all()
    assert not (store.theta == values).any()
