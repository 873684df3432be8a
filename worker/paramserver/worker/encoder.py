"""Contributions as they travel, for a job whose pushes have a codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from paramserver.wire.codecs import Origin, covering, push_codec
from paramserver.wire.codecs.powersgd import PowerSGD
from paramserver.wire.errors import TaskError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout, is_finite
from paramserver.worker.feedback import Feedback
from paramserver.worker.tasks.contract import check_flat

#: A piece of a contribution: its offset, in elements of what travels, and its bytes.
Piece = tuple[int, Array]


class Pieces(Protocol):
    """All of what travels to one server of a contribution; one that is no list makes each when it is asked for it, and
    what it gave before is then of no use any more."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Piece]: ...


class Coming:
    """Pieces that are encoded to the same memory one after the other: each is still in cache when it is sent."""

    def __init__(self, chunks: list[Piece], most: int, code: Callable[[int, Array, Array], Array]) -> None:
        """`code` is given a chunk and where it begins, and encodes it to some of the `most` bytes that it is given."""
        self._chunks = chunks
        self._most = most
        self._code = code

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[Piece]:
        room = np.empty(self._most, np.uint8)
        for start, chunk in self._chunks:
            yield start, self._code(start, chunk, room)


class Encoder:
    """Encodes the contributions of one job, for each server what concerns its part of θ, in chunks of `chunks` elements
    there.

    What a value is read as does not depend on how many servers there are.

    What a push keeps back is held here until the next push of its shard, and nowhere else; why that is enough is told
    in docs/adr/0007-what-is-kept-back.md.
    """

    def __init__(self, job: Job, layout: Layout, chunks: Sequence[int]) -> None:
        self._wire = job.wire
        self._seed = job.train.seed
        self._in_rounds = job.train.mode == "sync"
        self._layout = layout
        self._chunks = chunks
        self._codec = push_codec(job.wire)
        self._low_rank = PowerSGD(layout, job.wire.rank) if job.wire.push == "powersgd" else None
        parts = layout.cut(job.server.partitions)
        #: Of the vector, for each server: what it holds, and what has to travel for that.
        self._own = [slice(part.start, part.start + part.size) for part in parts]
        self._covering = [covering(part, self._codec) for part in parts]
        #: Of the vector of factors.
        self._needed = []
        if self._low_rank is not None:
            self._needed = [PowerSGD(part, job.wire.rank).needed() for part in parts]
        self._kept: dict[int, Feedback] = {}

    def encode(self, flat: Array, shard: int, step: int, in_place: bool = False) -> list[list[Piece]]:
        """Return for each server the pieces of a contribution.

        What `flat` holds then is of no use, or with `in_place` what the pieces will be read as.

        Raises:
            TaskError: if a value is not finite, or beyond what the codec can hold.
        """
        what = f"shard {shard}, step {step}"
        if not self._wire.keeps_back:
            pieces = self._code(flat, shard, step, what)
            if in_place:
                self._decode(pieces, flat)
            return pieces
        # Before it gets into what is kept. Where nothing is, the codec tells.
        check_flat(flat, self._layout, f"{what}: ")
        return self._encode_some(flat, shard, step, what)

    def pieces(self, flat: Array, shard: int, step: int) -> list[Pieces]:
        """Return for each server the pieces of a contribution, as `encode` does.

        For a single one, where nothing is kept back, they are encoded as they are asked for, until when `flat` has to
        stay: of several servers, some would have theirs when it is found out that another one's cannot be encoded.

        Raises:
            TaskError: as `encode`, then or later.
        """
        codec, what = self._codec, f"shard {shard}, step {step}"
        if codec is None or self._wire.keeps_back or len(self._own) > 1:
            return [*self.encode(flat, shard, step)]

        def code(start: int, chunk: Array, room: Array) -> Array:
            piece = room[: codec.nbytes(chunk.size)]
            self._code_chunk(flat, chunk, piece, Origin(self._seed, shard, step, start), what)
            return piece

        [chunks] = self._pieces(flat, self._own)
        return [Coming(chunks, max((codec.nbytes(chunk.size) for _, chunk in chunks), default=0), code)]

    @np.errstate(over="ignore", invalid="ignore")  # Is found out and told with its place.
    def _encode_some(self, flat: Array, shard: int, step: int, what: str) -> list[list[Piece]]:
        """Encode what was kept back and a contribution, and keep back what is not sent of them."""
        kept = self._kept_for(shard, step)
        kept.add(flat)
        if self._wire.is_exact(step):
            np.copyto(flat, kept.rest)
            del self._kept[shard]
            self._check(flat, flat, 0, what)
            return self._pieces(flat, self._own)
        if self._low_rank is not None:
            coded, kept.qs = self._low_rank.encode(kept.rest, kept.qs)
            self._low_rank.decode(coded, flat)
            self._check(kept.rest, flat, 0, what)
            pieces = self._pieces(coded, self._needed)
        else:
            pieces = self._code(kept.rest, shard, step, what)
            self._decode(pieces, flat)
        kept.remove(flat)
        return pieces

    def _kept_for(self, shard: int, step: int) -> Feedback:
        """Return what the push before has kept back; nothing if this process did not compute it."""
        kept = self._kept.get(shard)
        if kept is None or kept.next_step != step or step % self._wire.exact_every == 0:
            if self._in_rounds:
                # All shards are at one step, so these belong to shards that others compute now.
                self._kept = {s: k for s, k in self._kept.items() if k.next_step >= step}
            qs = [] if self._low_rank is None else self._low_rank.first_q(self._seed)
            kept = self._kept[shard] = Feedback(self._layout.size, self._wire.momentum, qs)
        kept.next_step = step + 1
        return kept

    def _code(self, values: Array, shard: int, step: int, what: str) -> list[list[Piece]]:
        codec = self._codec
        assert codec is not None
        found = []
        for place, chunks in zip(self._covering, self._pieces(values, self._covering), strict=True):
            coded = np.empty(sum(codec.nbytes(chunk.size) for _, chunk in chunks), np.uint8)
            pieces, begin = [], 0
            for start, chunk in chunks:
                piece = coded[begin : begin + codec.nbytes(chunk.size)]
                begin += piece.size
                self._code_chunk(values, chunk, piece, Origin(self._seed, shard, step, place.start + start), what)
                pieces.append((start, piece))
            found.append(pieces)
        return found

    def _code_chunk(self, values: Array, chunk: Array, piece: Array, origin: Origin, what: str) -> None:
        codec = self._codec
        assert codec is not None
        if codec.encode(chunk, piece, origin):
            return
        if not self._wire.keeps_back:
            check_flat(values, self._layout, f"{what}: ")
        decoded = np.empty_like(chunk)
        codec.decode(piece.data, decoded)
        self._check(chunk, decoded, origin.offset, what)

    def _decode(self, found: list[list[Piece]], out: Array) -> None:
        assert self._codec is not None
        for pieces, chunks in zip(found, self._pieces(out, self._covering), strict=True):
            for (_, piece), (_, chunk) in zip(pieces, chunks, strict=True):
                self._codec.decode(piece.data, chunk)

    def _pieces(self, vector: Array, places: list[slice]) -> list[list[Piece]]:
        """Cut these places of a vector in chunks, which are counted from the beginning of each."""
        owns = [vector[place] for place in places]
        return [
            [(start, own[start : start + size]) for start in range(0, own.size, size)]
            for own, size in zip(owns, self._chunks, strict=True)
        ]

    def _check(self, values: Array, decoded: Array, start: int, what: str) -> None:
        """Refuse what is not finite behind the codec; `start` is the index of the first value."""
        if is_finite(decoded):
            return
        index = int(np.argmax(~np.isfinite(decoded)))
        name, element = self._layout.locate(start + index)
        raise TaskError(
            f"{what}: the gradient's sum over the batch is {values[index]:g} at element {element} of {name!r}, beyond"
            f" what wire.push = {self._wire.push!r} can hold; use 'full' or a smaller batch"
        )
