"""What docs/wire-format.md shows byte by byte is what goes over the wire."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from paramserver.wire.framing import encode
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.batches import BatchOrder, epoch_order

DOCUMENT = (Path(__file__).parents[2] / "docs/wire-format.md").read_text(encoding="utf-8")

MESSAGES = [
    (pb.WorkerMessage(join=pb.Join(protocol=1, worker="w1")), None),
    (pb.WorkerMessage(pull=pb.PullWork()), None),
    (
        pb.WorkerMessage(push=pb.Push(shard=2, epoch=7, step=5, version=5, samples=3, loss=0.25, pull=True)),
        np.array([1, -2], "<f4"),
    ),
    (
        pb.WorkerMessage(push_rows=pb.PushRows(shard=2, epoch=7, step=5, count=2)),
        np.frombuffer(np.array([-1, 7], "<i8").tobytes() + np.array([0.5, -2], "<f4").tobytes(), np.uint8),
    ),
    (pb.ServerMessage(welcome=pb.Welcome(protocol=1, chunk_bytes=1 << 20)), None),
    (
        pb.ServerMessage(
            work=pb.Work(version=5, last=True, assignments=[pb.Assignment(shard=2, epoch=7, step=5)]),
        ),
        np.array([0.5, 0], "<f4"),
    ),
]


def golden() -> list[bytes]:
    dumps = re.findall(r"```hex\n(.*?)```", DOCUMENT, re.DOTALL)
    return [
        b"".join(
            bytes.fromhex(re.match(r" *((?:[0-9a-f]{2} )*[0-9a-f]{2})(?= {3})", line)[1])  # type: ignore[index]
            for line in dump.splitlines()
        )
        for dump in dumps
    ]


@pytest.mark.parametrize(("message", "payload", "expected"), [(*m, g) for m, g in zip(MESSAGES, golden(), strict=True)])
def test_golden_bytes(
    message: pb.WorkerMessage | pb.ServerMessage, payload: np.ndarray | None, expected: bytes
) -> None:
    assert encode(message, payload) == expected
    read = type(message).FromString(expected)
    assert read.payload == (b"" if payload is None else payload.tobytes())
    read.ClearField("payload")
    assert read == message


def test_the_words_and_batches_of_the_example() -> None:
    words = re.search(r"^ {4}((?:[0-9a-f]{16} ?){4})$", DOCUMENT, re.MULTILINE)
    assert words is not None
    key = np.array([5 << 32 | 2, 1], dtype=np.uint64)
    drawn = np.random.Philox(key=key).random_raw(4)
    assert [int(word, 16) for word in words[1].split()] == drawn.tolist()
    assert f"({int(key[0])}, 1)" in DOCUMENT
    assert f"the order {' '.join(map(str, epoch_order(5, 2, 1, 10)))} in it" in " ".join(DOCUMENT.split())
    order = BatchOrder(5, 2, 10, 4)
    first, second, third = (" ".join(map(str, order.rows_of(step))) for step in (3, 4, 5))
    assert f"rows {first}, {second} and {third}." in " ".join(DOCUMENT.split())
