"""A worker process that pushes integers which it makes up, and writes down what the server acknowledged.

python accounting_worker.py ADDRESS NAME JOURNAL. Every push of (shard, step) carries one integer of its own, at the
element of that shard and step. `sent` is in the journal before the push leaves, `acked` once the server has
acknowledged it. Before it asks for more it waits for that as often as not: so it is ahead of the server's disk now and
then, and as a rule knows what counts when somebody is killed.
"""

from __future__ import annotations

import os
import random
import sys

import grpc
import numpy as np

from paramserver.wire.v1 import paramserver_pb2 as pb

STEPS = 60
SHARDS = 4
METHOD = "/paramserver.wire.v1.Training/Train"


class Journal:
    """Lines that outlive `kill -9`."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, what: str, shard: int, step: int, value: int) -> None:
        os.write(self._file, f"{what} {shard} {step} {value}\n".encode())


def stream(address: str, name: str, journal: Journal) -> None:
    """Work until the stream breaks or the job is over."""
    import queue

    outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def send(payload: bytes = b"", **kind: object) -> None:
        outgoing.put(pb.WorkerMessage(payload=payload, **kind).SerializeToString())  # type: ignore[arg-type]

    chance = random.Random(os.urandom(8))
    pending: dict[tuple[int, int, int], int] = {}
    waits = False
    size = SHARDS * STEPS
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(METHOD)(iter(outgoing.get, None))
        send(join=pb.Join(protocol=1, worker=name, acknowledge=True))
        for data in call:
            message = pb.ServerMessage.FromString(data)
            kind = message.WhichOneof("kind")
            if kind == "job":
                send(pull=pb.PullWork())
            elif kind == "ended":
                call.cancel()
                return
            elif kind == "refusal":
                refusal = message.refusal
                pending = {name: v for name, v in pending.items() if name[::2] != (refusal.shard, refusal.step)}
                send(pull=pb.PullWork())
            elif kind == "acknowledged":
                c = message.acknowledged
                journal.write("acked", c.shard, c.step, pending.pop((c.shard, c.epoch, c.step)))
                if waits and not pending:
                    waits = False
                    send(pull=pb.PullWork())
            elif kind == "work" and message.work.last:
                for a in message.work.assignments:
                    if a.kind == pb.Assignment.SURVEY:
                        send(survey=pb.Survey(shard=a.shard, epoch=a.epoch, rows=10, features=1))
                    elif a.kind == pb.Assignment.INITIAL:
                        tensors = [pb.Tensor(name="sum", shape=[size])]
                        send(np.zeros(size).tobytes(), initial=pb.Initial(shard=0, epoch=a.epoch, tensors=tensors))
                    else:
                        value = chance.randrange(1, 2**40)
                        gradient = np.zeros(size)
                        gradient[a.shard * STEPS + a.step] = value
                        journal.write("sent", a.shard, a.step, value)
                        pending[a.shard, a.epoch, a.step] = value
                        push = pb.Push(
                            shard=a.shard,
                            epoch=a.epoch,
                            step=a.step,
                            version=message.work.version,
                            samples=1,
                            loss=1.0,
                        )
                        send(gradient.tobytes(), push=push)
                waits = bool(pending) and chance.random() < 0.5
                if not waits:
                    send(pull=pb.PullWork())


def main(address: str, name: str, path: str) -> None:
    """Work for as long as the process lives."""
    import time

    journal = Journal(path)
    while True:
        try:
            stream(address, name, journal)
            return
        except grpc.RpcError:
            time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
