"""How contributions lie in a segment of the log, and what a damaged segment still proves.

A segment is a row of frames, each a header and a body. Header, little-endian: the segment's mark (8 bytes, in its file
name too), the version of θ (uint64) that the update makes, the newest version known to be safe when the frame was
written (uint64), the lengths of the two parts of the body (uint64 each), the CRC-32 of the body and that of the header
(uint32 each). The body is JSON and the contribution's values. The first frame opens the segment and holds the policy; a
frame without a body only says what is safe: it is written once a group of contributions has been synced, and before
anybody is told of them.

So a reader can tell a torn end from lost bytes. What a frame calls safe must be there, or somebody was promised what
is gone; what no frame calls safe was promised to nobody.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from paramserver.server.events import Contribution
from paramserver.wire.job import TrainSection

#: Raised when an older program could no longer read what this one writes.
FORMAT = 1

MARK_BYTES = 8

_HEADER = struct.Struct(f"<{MARK_BYTES}sQQQQI")
_CHECK_BYTES = 4
HEADER_BYTES = _HEADER.size + _CHECK_BYTES

_json = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode

_NAME = re.compile(r"(?P<serial>\d{10})-(?P<job>[0-9a-f]{8})-(?P<base>\d{20})-(?P<mark>[0-9a-f]{16})\.log")


class SegmentName(NamedTuple):
    """What the name of a segment's file says; the names of a job sort in the order in which they were begun."""

    serial: int
    #: Of the job, as in the names of its snapshots.
    job: str
    #: The version of θ that the first contribution is applied to.
    base: int
    #: Random: frames of another segment, or numbers that look like one, are not taken for this one's.
    mark: bytes

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return what a file name says; None if it is not that of a segment."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(int(match["serial"]), match["job"], int(match["base"]), bytes.fromhex(match["mark"]))

    def __str__(self) -> str:
        return f"{self.serial:010d}-{self.job}-{self.base:020d}-{self.mark.hex()}.log"


class Record(NamedTuple):
    """A contribution as it was applied, all alone, to make `version`."""

    version: int
    #: Number of the update for schedules.
    step: int
    #: Seconds of training by then.
    elapsed_s: float
    contribution: Contribution
    #: The bytes that were applied, in consecutive pieces.
    values: Sequence[memoryview]
    #: With several servers: the sums over whole vectors that the update needed, question by question.
    answers: Sequence[Sequence[float]] = ()

    @property
    def nbytes(self) -> int:
        """The length of the values."""
        return sum(piece.nbytes for piece in self.values)


class Frame(NamedTuple):
    """One frame whose header is as it was written."""

    version: int
    safe: int
    #: None if the bytes are not those that were written.
    body: tuple[bytes, memoryview] | None


def opening(name: SegmentName, train: TrainSection, safe: int) -> list[bytes | memoryview]:
    """Return the pieces of a segment's first frame; `train` is the policy under which its contributions are applied."""
    head = {"format": FORMAT, "train": train.model_dump(mode="json")}
    return _frame(name.mark, name.base, safe, json.dumps(head).encode(), ())


def encode(mark: bytes, record: Record, safe: int) -> list[bytes | memoryview]:
    """Return the pieces of a record's frame; the values are not copied."""
    told = [record.answers] if record.answers else []
    head = _json([record.step, record.elapsed_s, *record.contribution, *told]).encode()
    return _frame(mark, record.version, safe, head, record.values)


def safe_note(mark: bytes, safe: int) -> bytes:
    """Return the frame that says that everything up to version `safe` is on the disk."""
    return b"".join(_frame(mark, safe, safe, b"", ()))


def frames(data: bytes, mark: bytes) -> Iterator[Frame]:
    """Find the frames of a segment, also those behind broken bytes; their bodies are views of `data`."""
    view, at = memoryview(data), 0
    while (at := data.find(mark, at)) >= 0:
        header, check = view[at : at + _HEADER.size], view[at + _HEADER.size : at + HEADER_BYTES]
        if len(check) < _CHECK_BYTES or _check(header) != check:
            at += 1
            continue
        _, version, safe, head_bytes, value_bytes, body_crc = _HEADER.unpack(header)
        start = at + HEADER_BYTES
        end = start + head_bytes + value_bytes
        whole = end <= len(view) and zlib.crc32(view[start:end]) == body_crc
        body = (bytes(view[start : start + head_bytes]), view[start + head_bytes : end]) if whole else None
        yield Frame(version, safe, body)
        # The header is right, so that the body is no place to look for frames, whatever has become of it.
        at = min(end, len(view))


def read_opening(frame: Frame) -> tuple[int, TrainSection]:
    """Return the format and the policy that a segment's first frame tells.

    Raises:
        ValueError: if this program cannot read them.
    """
    assert frame.body is not None
    head = json.loads(frame.body[0])
    return head["format"], TrainSection.model_validate(head["train"])


def read_record(frame: Frame) -> Record:
    """Return the record that a frame holds.

    Raises:
        ValueError: if this program cannot read it.
    """
    assert frame.body is not None
    step, elapsed_s, *rest = json.loads(frame.body[0])
    names = len(Contribution._fields)
    (answers,) = rest[names:] or [()]
    return Record(frame.version, step, elapsed_s, Contribution(*rest[:names]), (frame.body[1],), answers)


def _frame(mark: bytes, version: int, safe: int, head: bytes, values: Sequence[memoryview]) -> list[bytes | memoryview]:
    # Of 40 kB it takes less than half of what SHA-256 does, even where the processor knows that.
    body_crc, length = zlib.crc32(head), 0
    for piece in values:
        body_crc = zlib.crc32(piece, body_crc)
        length += piece.nbytes
    header = _HEADER.pack(mark, version, safe, len(head), length, body_crc)
    return [header + _check(header) + head, *values]


def _check(header: bytes | memoryview) -> bytes:
    return zlib.crc32(header).to_bytes(_CHECK_BYTES, "little")
