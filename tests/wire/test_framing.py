"""Framing: plain protobuf in both directions, and nothing but ProtocolError for what is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paramserver.wire.errors import ProtocolError
from paramserver.wire.framing import decode_server_message, decode_worker_message, encode
from paramserver.wire.v1 import paramserver_pb2 as pb

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)

HEADERS = st.one_of(
    st.builds(
        lambda **fields: pb.WorkerMessage(push=pb.Push(**fields)),
        shard=U32,
        epoch=U64,
        step=U64,
        version=U64,
        samples=U64,
        loss=st.floats(),
        offset=U64,
        pull=st.booleans(),
    ),
    st.builds(
        lambda name, shape, offset: pb.WorkerMessage(
            initial=pb.Initial(tensors=[pb.Tensor(name=name, shape=shape)], offset=offset)
        ),
        name=st.text(st.characters(codec="utf-8"), max_size=300),
        shape=st.lists(U64, max_size=9),
        offset=U64,
    ),
    st.builds(lambda held, job: pb.WorkerMessage(pull=pb.PullWork(held=held, job_id=job)), st.none() | U64, st.text()),
    st.just(pb.WorkerMessage(heartbeat=pb.Heartbeat())),
    st.just(pb.WorkerMessage()),
)

PAYLOADS = st.binary(max_size=200) | st.integers(126, 129).map(bytes) | st.integers(16382, 16386).map(bytes)


@given(header=HEADERS, payload=PAYLOADS)
def test_what_we_write_is_plain_protobuf_and_what_protobuf_writes_is_read(
    header: pb.WorkerMessage, payload: bytes
) -> None:
    plain = pb.WorkerMessage(payload=payload)
    plain.MergeFrom(header)
    ours = encode(header, np.frombuffer(payload, np.uint8))
    read, view = decode_worker_message(ours)
    if len(payload) >= 4096:
        assert (len(ours) - len(payload)) % 8 == 0, "a large payload begins where its values are aligned"
        plain.filler = read.filler
        read.ClearField("filler")
    assert ours == plain.SerializeToString(deterministic=True)
    assert read.SerializeToString(deterministic=True) == header.SerializeToString(deterministic=True)
    assert view == payload


@given(values=st.lists(st.floats(width=32), min_size=1), version=U64)
def test_a_tensor_arrives_bit_by_bit_without_a_copy(values: list[float], version: int) -> None:
    array = np.array(values, np.float32)
    data = encode(pb.ServerMessage(work=pb.Work(version=version)), array)
    message, view = decode_server_message(data)
    assert message.work.version == version
    assert not message.payload
    assert view.obj is data, "a view of the received bytes"
    assert np.frombuffer(view, "<f4").tobytes() == array.tobytes()


#: Fixed for good: a worker in another language was written against these bytes.
GOLDEN: list[tuple[str, Any, bytes, str]] = [
    (
        "join",
        pb.WorkerMessage(join=pb.Join(protocol=1, worker="w0", host="h", pid=300, accepts=[0, 5], pinned=[5])),
        b"",
        "0a13080112027730" + "1a0168" + "20ac02" + "2a020005" + "320105",
    ),
    ("pull held 0", pb.WorkerMessage(pull=pb.PullWork(held=0)), b"", "12020800"),
    ("pull", pb.WorkerMessage(pull=pb.PullWork()), b"", "1200"),
    ("first pull", pb.WorkerMessage(pull=pb.PullWork(job_id="j")), b"", "1203" + "12016a"),
    (
        "push of two float32",
        pb.WorkerMessage(push=pb.Push(shard=1, epoch=2, step=3, version=3, samples=4, loss=0.5, pull=True)),
        np.array([1.0, -2.0], "<f4").tobytes(),
        "2a15080110021803200328" + "0431000000000000e03f4001" + "7a080000803f000000c0",
    ),
    (
        "work",
        pb.ServerMessage(work=pb.Work(version=7, last=True, assignments=[pb.Assignment(shard=1, epoch=2, step=7)])),
        np.array([0.5], "<f8").tobytes(),
        "2a0c0807180122061001180220" + "07" + "7a08000000000000e03f",
    ),
    ("welcome", pb.ServerMessage(welcome=pb.Welcome(protocol=1, chunk_bytes=1 << 20)), b"", "0a06080110808040"),
    (
        "refusal",
        pb.ServerMessage(refusal=pb.Refusal(code=pb.Refusal.FENCED, shard=1, step=2, reason="no")),
        b"",
        "320a0801100118022202" + "6e6f",
    ),
]


@pytest.mark.parametrize(("name", "header", "payload", "golden"), GOLDEN, ids=[name for name, *_ in GOLDEN])
def test_golden_bytes(name: str, header: Any, payload: bytes, golden: str) -> None:  # noqa: ARG001
    assert encode(header, np.frombuffer(payload, np.uint8)).hex() == golden
    decode = decode_worker_message if isinstance(header, pb.WorkerMessage) else decode_server_message
    read, view = decode(bytes.fromhex(golden))
    assert (read, bytes(view)) == (header, payload)


def reference(data: bytes) -> tuple[pb.WorkerMessage, bytes] | None:
    """Read bytes as protobuf itself does."""
    try:
        message = pb.WorkerMessage.FromString(data)
    except Exception:
        return None
    payload = message.payload
    message.ClearField("payload")
    return message, payload


def same_as_protobuf(data: bytes) -> None:
    expected = reference(data)
    if expected is None:
        with pytest.raises(ProtocolError, match=f"a message of {len(data)} bytes is not a WorkerMessage"):
            decode_worker_message(data)
        return
    message, view = decode_worker_message(data)
    assert message.SerializeToString(deterministic=True) == expected[0].SerializeToString(deterministic=True)
    assert bytes(view) == expected[1]


VALID = [encode(header, np.frombuffer(payload, np.uint8)) for _, header, payload, _ in GOLDEN[:4]]


@given(data=st.binary(max_size=64))
@example(b"\x7a")
@example(b"\x7a\x05abc")
@example(b"\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x7a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00")
@example(b"\x7a\x81\x00x")
@example(b"\x7a\x81\x80\x80\x80\x00x")
@example(b"\x7a\x81\x80\x80\x80\x80\x00x")
@example(b"\x02\x00\x7a\x01x")
@example(b"\x7a\x01a\x7a\x01b")
@example(b"\x7a\x01a\x32\x00")
@example(b"\x32\x00\x12\x00\x7a\x01b")
@example(b"\xfa\x7f\x01q\x7a\x01b")
@example(b"\x0a\x05\x12\x03\xff\xfe\xfd\x7a\x01b")
@example(b"\x13\x13\x14\x14\x7a\x01b")
@example(b"\x13" * 64)
def test_any_bytes_are_read_as_protobuf_reads_them_or_refused(data: bytes) -> None:
    same_as_protobuf(data)


@given(data=st.data())
def test_damaged_messages_are_read_as_protobuf_reads_them_or_refused(data: st.DataObject) -> None:
    message = bytearray(data.draw(st.sampled_from(VALID)))
    match data.draw(st.sampled_from(["cut", "flip", "insert", "join", "append"])):
        case "cut":
            del message[data.draw(st.integers(0, len(message))) :]
        case "flip":
            message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
        case "insert":
            position = data.draw(st.integers(0, len(message)))
            message[position:position] = data.draw(st.binary(min_size=1, max_size=12))
        case "join":
            message += data.draw(st.sampled_from(VALID))
        case "append":
            message += data.draw(st.binary(max_size=12))
    same_as_protobuf(bytes(message))


def test_a_huge_announced_length_allocates_nothing() -> None:
    for length in ("ffffffff0f", "ffffffffffffffff7f", "ffffffffffffffffff01"):
        with pytest.raises(ProtocolError, match="is not a WorkerMessage"):
            decode_worker_message(bytes.fromhex("7a" + length) + b"few bytes")
