"""Messages of the training stream to bytes and back, touching tensor bytes as rarely as possible.

The result is ordinary protobuf: any implementation can read it, and whatever any implementation writes is read here.
The stubs would copy a tensor into the message and again into the serialised string. Here the header is serialised by
protobuf and the tensor joined behind it as field 15 (one copy); a received tensor is a view of the received bytes
(no copy).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from paramserver.wire.errors import ProtocolError
from paramserver.wire.v1.paramserver_pb2 import ServerMessage, WorkerMessage

#: Tag byte of `payload`: field 15, wire type 2 (length-delimited).
_PAYLOAD_TAG = 0x7A
_PAYLOAD_TAG_BYTE = bytes([_PAYLOAD_TAG])
_LENGTH_DELIMITED = 2

#: Bytes; numpy works on values that lie across such boundaries several times more slowly.
_ALIGNMENT = 8
#: Payloads of fewer bytes are not worth a filler.
_ALIGNED_FROM = 4096
#: `filler` (field 14, wire type 2) that closes a gap of 0, 1, 2, … bytes, or one by `_ALIGNMENT` larger.
_FILLERS = [b"", *(bytes([0x72, n]) + bytes(n) for n in (7, 8, 1, 2, 3, 4, 5))]

M = TypeVar("M", WorkerMessage, ServerMessage)


def encode(header: WorkerMessage | ServerMessage, payload: np.ndarray | None = None) -> bytes:
    """Return the wire form of `header` with `payload` (C-contiguous, little-endian) as its field 15."""
    if payload is None or payload.nbytes == 0:
        return header.SerializeToString()
    view = payload.data
    head = header.SerializeToString()
    length = _varint(view.nbytes)
    if view.nbytes >= _ALIGNED_FROM:
        head += _FILLERS[-(len(head) + 1 + len(length)) % _ALIGNMENT]
    return b"".join((head, _PAYLOAD_TAG_BYTE, length, view))


def decode_worker_message(data: bytes) -> tuple[WorkerMessage, memoryview]:
    """Read what a worker sent; the payload is a view of `data`."""
    return _decode(data, WorkerMessage)


def decode_server_message(data: bytes) -> tuple[ServerMessage, memoryview]:
    """Read what the server sent; the payload is a view of `data`."""
    return _decode(data, ServerMessage)


def _decode(data: bytes, kind: type[M]) -> tuple[M, memoryview]:
    try:
        start, stop = _find_payload(data)
        if start is not None:
            return kind.FromString(data[:start]), memoryview(data)[stop:]
        message = kind.FromString(data)
    except (DecodeError, IndexError) as error:
        raise ProtocolError(f"a message of {len(data)} bytes is not a {kind.__name__}: {error}") from None
    payload = memoryview(message.payload)
    message.ClearField("payload")
    return message, payload


def _find_payload(data: bytes) -> tuple[int | None, int]:
    """Return where the payload's tag and its bytes start, if it is the last field as our own writers place it."""
    position, size = 0, len(data)
    while position < size:
        tag = data[position]
        # Only one-byte tags of length-delimited fields occur in an envelope; anything else is left to protobuf.
        if tag & 0x87 != _LENGTH_DELIMITED:
            return None, 0
        length, start = _read_varint(data, position + 1)
        if tag == _PAYLOAD_TAG:
            return (position, start) if start + length == size else (None, 0)
        position = start + length
    return None, 0


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        # As protobuf has it: longer ones cannot be the length of anything that exists.
        if shift > 28:
            raise DecodeError("a length is longer than five bytes")
