"""θ of one partition: takes contributions in, has them applied, gives θ out. Decides nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from weakref import ref

import numpy as np

from paramserver.server.compensation import DelayCompensation
from paramserver.server.decoder import Decoder
from paramserver.server.elastic import Elastic
from paramserver.server.events import Contribution
from paramserver.server.reduction import Reduction, RoundSum, Separate
from paramserver.server.update import Update
from paramserver.server.wholesums import Asking, Question, alone
from paramserver.wire.codecs import Origin, chunk_elements, pull_codec
from paramserver.wire.errors import StateError
from paramserver.wire.framing import Apart, Message, encode, frame
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout
from paramserver.wire.sharing import Draft
from paramserver.wire.v1 import paramserver_pb2 as pb

#: Tensor bytes of a message: what it costs besides them is spread over many, and no peer's usual limit (4 MiB) is met.
CHUNK_BYTES = 1 << 21

#: Beside a stream, where messages may be longer, a chunk is so many times as long at most, …
LONGER = 4

#: … and a round of all shards has so many at least, since one is sent while another one is looked at.
IN_A_ROUND = 4

#: Bytes that are added up and applied while they are in cache; a power of two, so that it is a whole number of blocks
#: of the norms, and a chunk a whole number of it.
BLOCK_BYTES = 1 << 20

#: The name of delay compensation's memory among the optimizer's.
_MEAN_SQUARE = "delay_mean_square"


class Store:
    """The parameters and the contributions on their way into them.

    `theta` is one flat vector of the layout's dtype and is updated in place. What is being sent is a copy and never
    changes under the sender; who reads the shared memory either copies under the sequence lock or, in rounds of all
    shards, reads only while a contribution of its own is missing, and without it nothing is applied. `theta` in the
    constructor are the first parameters in consecutive pieces, or a draft of them that is complete.
    """

    def __init__(self, job: Job, layout: Layout, theta: Iterable[Array] | Draft, total_steps: int) -> None:
        self.layout = layout
        if not isinstance(theta, Draft):
            pieces, theta = theta, draft_of(layout)
            for values in pieces:
                theta.append(values)
        self._segment = theta.finish(owner_writes_only=True)
        self.theta = self._segment.values
        self.version = 0
        self.elastic = Elastic() if job.train.local_update == "elastic" else None
        #: False once an update has failed in the middle: θ is then neither the old nor the new one.
        self.is_whole = True
        #: Elements of a chunk on a stream, and how many times as many one has beside it.
        self.chunk = chunk_elements(job, CHUNK_BYTES)
        self._times = max(1, min(LONGER, layout.whole.size * job.data.shards // (IN_A_ROUND * self.chunk)))
        self.block = min(self.chunk, BLOCK_BYTES // layout.dtype.itemsize)
        self.update = Update(job, layout, self.block, total_steps)
        self.restage(job)
        #: All chunks of θ but the last, and the last as it travels, by the length of chunks.
        self._encoded: dict[int, tuple[list[Message], Array]] = {}
        #: Messages on their way to workers that hold θ itself, to be copied should it change before they are sent.
        self._lent: list[ref[Apart]] = []
        #: How θ travels to workers and contributions from them; None is as they are.
        self._pull_codec = pull_codec(job.wire)
        self.decoder = None if job.wire.push == "full" else Decoder(job, layout)
        #: An update that waits for an answer, and those that it was given.
        self._asking: Asking[float | None] | None = None
        self._answers: list[Sequence[float]] = []
        #: The contributions in it, by shard.
        self._asked_of: dict[int, list[Array]] = {}
        #: Answers that the update of a replayed contribution was given at the time.
        self._replayed: Sequence[Sequence[float]] = ()
        #: Bytes of θ on the wire.
        self.theta_nbytes = self.theta.nbytes
        if self._pull_codec is not None:
            self.theta_nbytes = self._pull_codec.nbytes(self.theta.size)

    @property
    def optimizer_state(self) -> dict[str, Array]:
        """What updates remember, by name: flat vectors as long as θ, which change with the next one.

        In elastic averaging the parameters of every shard are among them.
        """
        state = dict(self.update.state._asdict())
        if self._compensation is not None:
            state[_MEAN_SQUARE] = self._compensation.mean_square
        if self.elastic is not None:
            state |= self.elastic.state
        return state

    def restore(self, version: int, optimizer_state: Mapping[str, Array]) -> None:
        """Take the parameters given so far for those of `version`, whose optimizer state is this."""
        self.version = version
        state = dict(optimizer_state)
        mean_square = state.pop(_MEAN_SQUARE, None)
        if self._compensation is not None and mean_square is not None:
            self._compensation.restore(mean_square)
        if self.elastic is not None:
            self.elastic.restore(state)
        remembered = self.update.state
        self.update.state = type(remembered)(**{name: state[name] for name in remembered._fields})
        self._segment.sequence[0] = 2 * version

    def contribution(self, shard: int) -> list[Array]:
        """Return all that the update by the shard's contribution alone depends on, besides θ, in pieces.

        Where delays are compensated for, the θ that it was computed at stands behind it.
        """
        pieces = self._asked_of[shard] if shard in self._asked_of else self.held(shard)
        if self.decoder is not None:
            # The next contribution may be decoded to the same place.
            pieces = [piece.copy() for piece in pieces]
        return pieces if self._compensation is None else [*pieces, self._compensation.pulled(shard)]

    def held(self, shard: int) -> list[Array]:
        """Return the shard's contribution, which waits for others, in pieces."""
        assert isinstance(self.incoming, Separate)
        return self.incoming.held(shard)

    def answers(self, last: Sequence[float] | None) -> list[Sequence[float]]:
        """Return all answers that the update to be applied was given, of which the last comes with it."""
        return [] if last is None else [*self._answers, last]

    def replay(self, shard: int, contribution: Array, answers: Sequence[Sequence[float]] = ()) -> None:
        """Take in again what `contribution` returned, as one vector, and the `answers` that its update was given.

        Raises:
            StateError: if it does not have the right length.
        """
        size = self.layout.size
        expected = size if self._compensation is None else 2 * size
        if contribution.size != expected:
            raise StateError(f"a contribution in the log has {contribution.size} values, {expected} are expected")
        if self._compensation is not None:
            self._compensation.replay(shard, contribution[size:])
        self.incoming.hold(shard, self.cut(contribution[:size]))
        self._replayed = answers

    def go_back(self, job: Job, version: int, theta: Array, optimizer_state: Mapping[str, Array]) -> None:
        """Make θ what it was at `version`, by copies of θ and of its optimizer state; forget what is not applied."""
        self._take_back_lent()
        self._segment.sequence[0] += 1
        np.copyto(self.theta, theta)
        self._segment.sequence[0] += 1
        for name, array in self.optimizer_state.items():
            np.copyto(array, optimizer_state[name])
        self.version = version
        self.restage(job)

    def cut(self, vector: Array) -> list[Array]:
        """Return a whole vector, or a chunk of one, in blocks."""
        if 0 < vector.size <= self.block:
            return [vector]
        return [vector[start : start + self.block] for start in range(0, vector.size, self.block)]

    def restage(self, job: Job) -> None:
        """Take in contributions as the policy of `job` needs it, which may be new, and forget those not applied."""
        size, dtype, train = self.layout.size, self.layout.dtype, job.train
        in_rounds = train.mode == "sync"
        by_timing = not in_rounds or train.quorum > 0
        #: False if whoever reads θ in shared memory may take its time, see above.
        self.moves = by_timing or job.wire.keeps_back
        # With several servers, it is only known which contributions count when the others have them too.
        apart = by_timing or train.is_robust or train.local_update == "elastic" or job.server.partitions > 1
        self.incoming: Reduction = Separate() if apart else RoundSum(job.data.shards, size, self.block, dtype)
        self._looks_at_norms = train.refuse_norm > 0
        compensates = train.delay_compensation > 0 and not in_rounds
        self._compensation = DelayCompensation(size, dtype, train.delay_compensation) if compensates else None

    @property
    def shares_theta(self) -> bool:
        """Whether workers may read θ in shared memory: not where it must be known at which θ they compute."""
        return self._segment.descriptor >= 0 and self._compensation is None

    @property
    def compensates(self) -> bool:
        """Whether an update depends on the θ that its gradient was computed at."""
        return self._compensation is not None

    @property
    def adds_halves(self) -> bool:
        """Whether contributions may be held as halves: where nobody looks at their values before they are added up."""
        return isinstance(self.incoming, RoundSum) and not self._looks_at_norms

    def granted(self, shard: int) -> None:
        """Take note that the shard's next contribution will be computed at θ as it is now."""
        if self._compensation is not None:
            self._compensation.remember(shard, self.version, self.theta)

    def ask(
        self, version: int, step: int, contributions: Sequence[Contribution], answer: Sequence[float] | None = None
    ) -> Question:
        """Go on with an update of θ of which this is a part, given the answer to the last question, to the next one."""
        if answer is None:
            self._answers, self._asked_of = [], {}
            if isinstance(self.incoming, Separate):
                self._asked_of = {c.shard: self.held(c.shard) for c in contributions}
            self._asking = self._begin(version, step, contributions)
            return next(self._asking)
        assert self._asking is not None
        self._answers.append(answer)
        return self._asking.send(np.array(answer))

    def _begin(self, version: int, step: int, contributions: Sequence[Contribution]) -> Asking[float | None]:
        shards = [c.shard for c in contributions]
        chunks = self.incoming.take(shards)
        if self.elastic is not None:
            chunks = self.elastic.distances(chunks, contributions, self.theta)
        correct = None if self._compensation is None else partial(self._compensation.correct, shards[0])
        return self.update.asking(self.theta, chunks, version, step, contributions, correct)

    def apply(
        self,
        version: int,
        step: int,
        contributions: Sequence[Contribution],
        answer: Sequence[float] | None = None,
        rows: Sequence[float] = (),
    ) -> float | None:
        """Update θ with the contributions, see `Update.asking`; or end what `ask` has begun, with the last answer.

        `rows` add up to the sum of squares of the gradients of rows of tables, which an answer has in it.
        """
        replayed, self._replayed = self._replayed, ()
        for given in replayed:
            self.ask(version, step, contributions, answer)
            answer = given
        asking, self._asking, self._asked_of = self._asking, None, {}
        if asking is None or answer is None:
            asking = self._begin(version, step, contributions)
        self._take_back_lent()
        self.is_whole = False
        self._segment.sequence[0] += 1
        try:
            norm = alone(asking, self.layout, None if answer is None else np.array(answer), rows)
        finally:
            # An odd number would keep readers waiting for an end that never comes.
            self._segment.sequence[0] += 1
        self.is_whole = True
        self.version = version
        return norm

    def was_answered(self) -> None:
        """Forget θ as it was sent: what comes now takes memory, and most workers have it by then."""
        self._encoded.clear()

    def describe(self, shared: bool) -> pb.Layout:
        """Return the layout for a worker that does or does not share memory with this process."""
        layout = pb.Layout(tensors=self.layout.whole.to_proto(), chunk_bytes=self._times * CHUNK_BYTES)
        if shared and self.shares_theta:
            layout.theta.pid, layout.theta.descriptor = os.getpid(), self._segment.descriptor
            layout.moves = self.moves
        return layout

    def answer(self, message: pb.ServerMessage, beside: bool) -> list[Message]:
        """Return the messages that bring θ to who lacks it, on a stream or `beside` it; `message`, with the work,
        comes last."""
        size = self.chunk_for(beside)
        if size not in self._encoded:
            *chunks, last = self._coded(size)
            starts = range(0, len(chunks) * size, size)
            headers = (pb.ServerMessage(work=pb.Work(version=self.version, offset=start)) for start in starts)
            self._encoded[size] = [self._lend(*each) for each in zip(headers, chunks, strict=True)], last
        messages, last = self._encoded[size]
        message.work.offset = len(messages) * size
        return [*messages, self._lend(message, last)]

    def chunk_for(self, beside: bool) -> int:
        """Return the elements of a chunk of θ or of a contribution, on a stream or `beside` it."""
        return self.chunk * self._times if beside else self.chunk

    def own_of(self, shard: int) -> list[Message]:
        """Return the messages that tell a worker where the shard is in elastic averaging."""
        own = None if self.elastic is None else self.elastic.own(shard)
        if own is None:
            return [encode(pb.ServerMessage(own=pb.Own(shard=shard)))]
        starts = range(0, own.size, self.chunk)
        headers = (pb.ServerMessage(own=pb.Own(shard=shard, offset=start)) for start in starts)
        return [encode(header, own[start : start + self.chunk]) for start, header in zip(starts, headers, strict=True)]

    def _lend(self, header: pb.ServerMessage, values: Array) -> Message:
        message = frame(header, values)
        if isinstance(message, Apart) and self._pull_codec is None:
            self._lent.append(ref(message))
        return message

    def _take_back_lent(self) -> None:
        """Have what is not sent yet stay as it is, before θ changes."""
        self._encoded.clear()
        for reference in self._lent:
            message = reference()
            if message is not None:
                message.whole()
        self._lent.clear()

    def _coded(self, size: int) -> list[Array]:
        """Return the chunks of θ, one or more of so many elements, as they travel."""
        starts = range(0, self.theta.size, size) or range(1)
        codec = self._pull_codec
        if codec is None:
            return [self.theta[start : start + size] for start in starts]
        blocks = self.cut(self.theta)
        # Codecs of parameters encode every value by itself.
        coded = np.empty(codec.nbytes(self.theta.size), np.uint8)
        coded_blocks = np.split(coded, [codec.nbytes(n * self.block) for n in range(1, len(blocks))])

        def encode_share(number: int) -> None:
            for index in self.update.shares[number]:
                codec.encode(blocks[index], coded_blocks[index], Origin(0, 0, 0, index * self.block))

        self.update.spread(encode_share)
        return np.split(coded, [codec.nbytes(start) for start in starts[1:]])


def draft_of(layout: Layout) -> Draft:
    """Return where the first parameters of a layout are to be written, for a store to take over."""
    return Draft(layout.size, layout.dtype, layout.start)
