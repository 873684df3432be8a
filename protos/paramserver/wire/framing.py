"""Messages of the training stream to bytes and back, touching tensor bytes as rarely as possible.

The result is ordinary protobuf: any implementation can read it, and whatever any implementation writes is read here.
The stubs would copy a tensor into the message and again into the serialised string. Here the header is serialised by
protobuf, and the tensor stands behind it as field 15: joined with it for gRPC (one copy), apart from it where both can
be sent one after the other (no copy). A received tensor is a view of the received bytes (no copy).
"""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple, TypeVar

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
#: Copying fewer bytes is cheaper than sending two pieces.
_APART_FROM = 1 << 16
#: `filler` (field 14, wire type 2) that closes a gap of 0, 1, 2, … bytes, or one by `_ALIGNMENT` larger.
_FILLERS = [b"", *(bytes([0x72, n]) + bytes(n) for n in (7, 8, 1, 2, 3, 4, 5))]

M = TypeVar("M", WorkerMessage, ServerMessage)


class Apart:
    """A message whose tensor bytes are still where they came from; see `whole`."""

    __slots__ = ("__weakref__", "_whole", "head", "lock", "payload")

    def __init__(self, head: bytes, payload: memoryview) -> None:
        #: All of it but the tensor bytes.
        self.head = head
        #: Bytes; who reads them in another thread than the tensor's owner holds `lock`.
        self.payload = payload
        self.lock = Lock()
        self._whole = b""

    def __len__(self) -> int:
        return len(self.head) + len(self.payload)

    def whole(self) -> bytes:
        """Return all of it in one piece, made once; from then on it stays as it is, whatever happens to the tensor."""
        with self.lock:
            if not self._whole:
                self._whole = self.head + self.payload
                self.payload = memoryview(self._whole)[len(self.head) :]
            return self._whole


#: In wire form.
Message = bytes | Apart


class Placed(NamedTuple):
    """A message that came in two parts: the header, and the tensor bytes where they are to stay."""

    header: bytes
    payload: memoryview


#: In wire form, as it came.
Data = bytes | memoryview | Placed


def whole(message: Message) -> bytes:
    """Return a message in one piece."""
    return message.whole() if isinstance(message, Apart) else message


def frame(header: WorkerMessage | ServerMessage, payload: np.ndarray | None = None) -> Message:
    """Return the wire form of `header` with `payload` (C-contiguous, little-endian) as its field 15,
    not copied if large."""
    head = header.SerializeToString()
    size = 0 if payload is None else payload.nbytes
    if payload is None or not size:
        return head
    length = _varint(size)
    if size >= _ALIGNED_FROM:
        head += _FILLERS[-(len(head) + 1 + len(length)) % _ALIGNMENT]
    head += _PAYLOAD_TAG_BYTE + length
    view = payload.data.cast("B")
    return Apart(head, view) if size >= _APART_FROM else head + view


def encode(header: WorkerMessage | ServerMessage, payload: np.ndarray | None = None) -> bytes:
    """Return the wire form of `header` with `payload` as its field 15, in one piece."""
    if payload is None:
        return header.SerializeToString()
    return whole(frame(header, payload))


def decode_worker_message(data: Data) -> tuple[WorkerMessage, memoryview]:
    """Read what a worker sent; the payload is a view of `data`."""
    return _decode(data, WorkerMessage)


def decode_server_message(data: Data) -> tuple[ServerMessage, memoryview]:
    """Read what the server sent; the payload is a view of `data`."""
    return _decode(data, ServerMessage)


def find_payload(begun: memoryview, size: int) -> tuple[int, int] | None:
    """Return where the payload of a message of `size` bytes and the bytes in it begin, if what has come tells."""
    try:
        start, stop = _find_payload(begun, size)
    except (DecodeError, IndexError):
        return None
    return None if start is None else (start, stop)


def _decode(data: Data, kind: type[M]) -> tuple[M, memoryview]:
    try:
        if isinstance(data, Placed):
            return kind.FromString(data.header), data.payload
        start, stop = _find_payload(data, len(data))
        if start is not None:
            return kind.FromString(bytes(data[:start])), memoryview(data)[stop:]
        message = kind.FromString(bytes(data))
    except (DecodeError, IndexError) as error:
        raise ProtocolError(f"a message of {len(data)} bytes is not a {kind.__name__}: {error}") from None
    payload = memoryview(message.payload)
    message.ClearField("payload")
    return message, payload


def _find_payload(data: bytes | memoryview, size: int) -> tuple[int | None, int]:
    """Return where the payload's tag and its bytes start, if it is the last field as our own writers place it."""
    position = 0
    while position < size:
        tag = data[position]
        # Only one-byte tags of length-delimited fields occur in an envelope; anything else is left to protobuf.
        if tag & 0x87 != _LENGTH_DELIMITED:
            return None, 0
        length, start = data[position + 1], position + 2
        if length > 0x7F:
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


def _read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
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
