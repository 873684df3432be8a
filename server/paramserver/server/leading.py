"""The job on the coordinator of several servers: what the engine decides is done here and ordered there.

The engine is the one of a single server. What differs is that its effects take time, since others have a part in them:
an event is handled when all effects of the one before it are carried out, which mostly is at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import numpy as np

from paramserver.server import events as ev
from paramserver.server.acts import Acts
from paramserver.server.gathering import Gathering, Name
from paramserver.server.links import Link
from paramserver.server.reading import Captured, Copied, in_chunks, merged, received, stream
from paramserver.server.run import Run
from paramserver.server.session import Arrived, Incoming, Session
from paramserver.server.store import Store
from paramserver.server.tables.arriving import Parts
from paramserver.server.wholesums import Question, questions
from paramserver.wire.errors import NotReady, ParamserverError, ProtocolError, StateError, TensorError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout
from paramserver.wire.sharing import Segment
from paramserver.wire.v1 import paramserver_pb2 as pb

T = TypeVar("T")

#: Numbers of captures, which no two jobs share: who reads one late must not be given another's.
_captures = itertools.count(1)

log = logging.getLogger(__name__)


class LeadingRun(Run):
    """A job whose θ is cut over this server and those that `links` lead to; `moved` is called after every event."""

    _passes_slots_on = True

    def __init__(
        self,
        job_id: str,
        job: Job,
        sessions: Mapping[str, Session],
        clock: Callable[[], float],
        epoch: int,
        links: Sequence[Link],
        moved: Callable[[], None],
    ) -> None:
        super().__init__(job_id, job, sessions, clock, epoch)
        self._links = links
        self._acts = Acts(moved)
        #: Who waits for an act of theirs.
        self._waiting: set[asyncio.Future[None]] = set()
        #: Set once the connection to the others is lost; the next run takes over from there.
        self._lost: ParamserverError | None = None
        self._gathering = Gathering(job.server.partitions)
        #: Values of what is gathered, by name, and its rows of tables.
        self._values: dict[Name, tuple[Arrived, Parts]] = {}
        #: Where contributions lie that count here, by shard; None if the others were told of it.
        self._sights: dict[int, Segment | None] = {}
        #: Where the others know that of a shard to lie.
        self._shown: dict[int, Segment] = {}
        #: Workers whose pull waits for what they pushed before it.
        self._pulls: set[str] = set()
        #: The initial parameters are in: here, and on these partitions.
        self._initial: ev.Initialised | None = None
        self._initialised: set[int] = set()
        #: A tick is in the queue.
        self.is_to_tick = False
        #: The newest version of θ that every partition can go back to by a snapshot, or by one and the log.
        self.common: int | None = None

    async def work(self) -> None:
        """Carry on until cancelled.

        Raises:
            ParamserverError: if another partition is gone or breaks the contract.
        """
        await self._acts.work()

    def abandon(self, error: ParamserverError) -> None:
        """Let go of everybody who waits, since nothing more will be done."""
        self._lost = error
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(error)

    @property
    def is_given_up(self) -> bool:
        """Will it not be taken up again, whoever comes back?"""
        return isinstance(self._lost, NotReady)

    async def between(self, act: Callable[[], Awaitable[T]]) -> T:
        """Do something between two events, and return what came of it.

        Raises:
            ParamserverError: if the connection to the other partitions is lost meanwhile.
        """
        if self._lost is not None:
            raise self._lost
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found: list[T] = []

        async def do() -> None:
            if done.done():
                # Whoever asked was told that nothing comes of it, or has gone.
                return
            found.append(await act())
            if not done.done():
                done.set_result(None)

        self._waiting.add(done)
        self._acts.add(do)
        try:
            await done
        finally:
            self._waiting.discard(done)
        return found[0]

    async def quiet(self) -> None:
        """Return when every event that was fed is handled."""

        async def nothing() -> None:
            pass

        await self.between(nothing)

    async def make_room(self) -> None:
        """Give no more orders, since those for the next job come now, and let go of everybody who waits.

        Raises:
            ParamserverError: if the connection to the other partitions is lost.
        """

        async def give_up() -> None:
            self.abandon(NotReady(f"job {self.job_id} has made room for the next one"))

        with suppress(NotReady):
            await self.between(give_up)

    def check(self) -> None:
        """Look whether it is still connected to the other partitions.

        Raises:
            ParamserverError: if it is not, so that all will go back to what all have.
        """
        if self._lost is not None:
            raise self._lost
        for link in self._links:
            if link.broken.done():
                link.broken.result()

    @property
    def is_initialised(self) -> bool:
        """Are there parameters, on all partitions?"""
        return super().is_initialised and len(self._initialised) == len(self._links)

    async def capture(self) -> Captured:
        """Return θ as it is now, from all partitions."""

        async def copy() -> tuple[int, int, Copied]:
            assert self.store is not None
            number = next(_captures)
            await self._order(pb.Order(capture=pb.Capture(number=number)))
            return number, self.store.version, Copied.of(self.store, self.tables)

        number, version, own = await self.between(copy)
        # All is asked for at once, since copies are kept only for a while.
        theta = [link.read(number) for link in self._links]
        tables = []
        for table, contents in enumerate(own.tables):
            theirs = [received(link.read(number, table), contents) for link in self._links]
            tables.append(merged([stream(contents), *theirs]))
        return Captured(version, _joined(own.theta, theta), tables)

    @property
    def table_rows(self) -> dict[str, int]:
        """How many rows each table has on all servers, by name; those of the others a moment ago."""
        rows = Counter(super().table_rows)
        for link in self._links:
            rows.update(dict(zip(rows, link.beat.table_rows, strict=False)))
        return rows

    def feed(self, event: ev.Event) -> None:
        """Queue an event."""
        match event:
            case ev.Left(worker):
                # Whoever comes back under its name asks anew.
                self._pulls.discard(worker)
                self._later(event)
            case ev.Pulled(worker) if self._waits_for(worker):
                # A pull gives up what was not pushed before it, so what was must count first.
                self._pulls.add(worker)
            case ev.Initialised():
                self._initial = event
                self._look_at_initial()
            case ev.Pushed((contribution,)):
                self._acts.add(partial(self._refuse, contribution))
            case ev.Tick():
                self.is_to_tick = True
                self._later(event)
            case _:
                self._later(event)

    def _later(self, event: ev.Event) -> None:
        self._acts.add(partial(self._handle, event))

    async def _handle(self, event: ev.Event) -> None:
        if isinstance(event, ev.Tick):
            self.is_to_tick = False
        self._now = self._clock()
        try:
            follow_up = None
            for effect in self._others_first(self.engine.handle(event, self._now)):
                follow_up = await self._carry_out_everywhere(effect) or follow_up
        except ParamserverError:
            # Of another partition.
            raise
        except Exception as error:
            log.exception("the job cannot go on")
            reason = f"the server failed at version {self.engine.version}: {type(error).__name__}: {error}"
            follow_up = None if self.engine.ended else ev.Broken(reason)
        if follow_up is not None:
            await self._handle(follow_up)
        if (
            self._waypoints is not None
            and self.store is not None
            and self._waypoints.pass_by(self.job.train, self.engine, self.store, self._clock())
        ):
            await self._order(pb.Order(mark=pb.Mark()))

    async def _refuse(self, c: ev.Contribution) -> None:
        """Refuse a contribution of which nothing was taken."""
        if self.engine.review(c) is not None:
            await self._handle(ev.Pushed((c,)))
            return
        reason = f"step {c.step} of shard {c.shard} came before it was expected: compute it again"
        self._carry_out(ev.Refuse(c.worker, c.shard, c.step, ev.Code.STALE, reason))

    async def _decide(self, contribution: ev.Contribution, values: Arrived, rows: Parts, pull: bool) -> None:
        """Let the engine decide on a contribution that every partition has, and on the pull that came with it."""
        name = contribution.shard, contribution.step
        event: ev.Event = ev.Pushed((contribution,), pull)
        if self._refuse_norm and self.engine.review(contribution) is None:
            event = self._look_at_norm(contribution, self._gathering.told(contribution)) or event
        self._arrived[name], self._arrived_rows[name] = values, rows
        await self._handle(event)
        self._arrived.pop(name, None)
        self._arrived_rows.pop(name, None)
        self._gathering.decided(contribution)

    def _look_at_norm(self, c: ev.Contribution, told: list[bytes]) -> ev.Event | None:
        """Return what is wrong with a contribution that is too long as a whole."""
        assert self.store is not None
        own, *others = told
        layout = self.store.layout
        material = np.frombuffer(own, np.float64 if layout.is_on_grid else layout.dtype).reshape(1, -1)
        squares = answer_of(Question(material), layout, material, others)
        fault = self._too_long(c, math.sqrt(squares[0]))
        reason = f"push of worker {c.worker}, shard {c.shard}, step {c.step}: {fault}"
        return ev.Misbehaved(c.worker, c.shard, c.step, reason, "norm") if fault else None

    def _is_in_sight(self, store: Store) -> bool:
        """Do all servers see what workers share with this one, and have nothing to tell each other of it?"""
        is_plain = self.tables is None and store.elastic is None and self.log is None and not self._refuse_norm
        # Where θ goes back, a number of changes does not tell which version it is.
        is_plain = is_plain and not self.job.wire.keeps_back
        return is_plain and all(link.sees for link in self._links)

    def _take_shared(self, store: Store, session: Session, incoming: Incoming, in_sight: bool) -> None:
        if in_sight and not self._is_in_sight(store):
            raise TensorError("the contribution is said to be in sight of all servers, which it is not")
        super()._take_shared(store, session, incoming, in_sight)

    def _describe(self, store: Store, shared: bool) -> pb.Layout:
        layout = super()._describe(store, shared)
        layout.in_sight = layout.HasField("theta") and self._is_in_sight(store)
        return layout

    def _count(self, contributions: tuple[ev.Contribution, ...], pull: bool) -> None:
        for contribution in contributions:
            place, name = (contribution.shard, contribution.step), Name.of(contribution)
            values, rows = self._arrived.pop(place), self._arrived_rows.pop(place, {})
            if self._gathering.is_given(name):
                # It came twice, and is about to be decided on.
                pass
            elif self.engine.review(contribution) is None:
                self._values[name] = values, rows
                told = b""
                if self._refuse_norm and self.store is not None:
                    told = self._measured(self.store, values.blocks).tobytes()
                found = self._gathering.arrived(contribution, told, values.sight is not None)
                # A pull behind what is everywhere at once waits for nothing.
                at_once = pull and values.sight is not None and contribution is contributions[-1]
                self._gathered(found, at_once)
                pull = pull and not at_once
            else:
                # What others have of it is waited for no more.
                self._forget(name.shard, name.epoch, name.step)
                self.feed(ev.Pushed((contribution,)))
        if pull:
            self.feed(ev.Pulled(contributions[0].worker))

    def _gathered(self, contribution: ev.Contribution | None, pull: bool = False) -> None:
        if contribution is not None:
            values, rows = self._values.pop(Name.of(contribution))
            self._acts.add(partial(self._decide, contribution, values, rows, pull))
            self._release()

    def _waits_for(self, worker: str) -> bool:
        is_initial = self._initial is not None and self._initial.worker == worker
        return is_initial or self._gathering.is_waited_for(worker)

    def _release(self) -> None:
        """Pass on the pulls that wait for nothing any more."""
        released = sorted(worker for worker in self._pulls if not self._waits_for(worker))
        self._pulls.difference_update(released)
        for worker in released:
            self._later(ev.Pulled(worker))

    def _look_at_initial(self) -> None:
        if self._initial is not None and len(self._initialised) == len(self._links):
            event, self._initial = self._initial, None
            self._later(event)
            self._release()

    def take_report(self, link: Link, report: pb.Report) -> None:
        """Act on what a partition tells of itself."""
        match report.WhichOneof("kind"):
            case "held":
                held = report.held
                shards = self.engine.shards
                name = Name(held.shard, held.epoch, held.step, held.version)
                if held.shard >= len(shards) or held.epoch != shards[held.shard].epoch:
                    return
                # What was refused here, such as by a round that closed without it, is not waited for.
                if held.step >= self.engine.clocks[held.shard] or self._gathering.is_here(name):
                    self._gathered(self._gathering.reported(name, link.partition, held.values))
            case "logged":
                # One that comes while all go back to a version tells no more than that.
                if self.log is not None:
                    self.log.reported(link.partition, report.logged.safe, report.logged.error)
            case "initialised":
                self._initialised.add(link.partition)
                self._look_at_initial()
            case "bad":
                bad = report.bad
                if bad.shard < len(self.engine.shards):
                    self._forget(bad.shard, self.engine.shards[bad.shard].epoch, bad.step)
                self._later(ev.Misbehaved(bad.worker, bad.shard, bad.step, f"{link.name}: {bad.reason}"))
            case "broken":
                self._later(ev.Broken(f"{link.name}: {report.broken.reason}"))
            case other:
                raise ProtocolError(f"{link.name} sent {other or 'an empty report'}, which has no place here")

    def _forget(self, shard: int, epoch: int, step: int | None = None) -> None:
        self._gathering.forget(shard, epoch, step)
        for name in [n for n in self._values if n.shard == shard and n.epoch <= epoch and step in (None, n.step)]:
            del self._values[name]
        self._release()

    async def _carry_out_everywhere(self, effect: ev.Effect) -> ev.Event | None:
        match effect:
            case ev.Keep(shard, step):
                self._sights[shard] = self._arrived[shard, step].sight
            case ev.Apply():
                effect = await self._apply_there(effect)
            case ev.CombineSurveys():
                broken = self._carry_out(effect)
                if broken is not None:
                    return broken
                order = pb.Order(prepare=pb.Prepare(total_steps=self.engine.total_steps))
                await asyncio.gather(*(link.ask("prepared", order) for link in self._links))
                return None
            case ev.Restage(train):
                await self._order(pb.Order(restage=pb.Restage(train_json=train.model_dump_json())))
                if self.log is not None:
                    self.log.pause()
            case ev.GoBack():
                # Once all have answered, nothing that they told of is still on its way.
                order = pb.Order(go_back=pb.GoBack())
                await asyncio.gather(*(link.ask("gone_back", order) for link in self._links))
                self.era += 1
                self._gathering = Gathering(self.job.server.partitions)
                self._values.clear()
                self._release()
            case ev.End(_status, reason):
                await self._order(pb.Order(over=pb.Over(reason=reason)))
            case ev.Revoke(_worker, shard, epoch):
                if self._initial is not None and (self._initial.shard, self._initial.epoch) == (shard, epoch):
                    # The rest of the parameters may never come.
                    self._initial = None
                self._forget(shard, epoch)
        return self._carry_out(effect)

    async def _order(self, order: pb.Order) -> None:
        for link in self._links:
            await link.send(order)

    async def _apply_there(self, apply: ev.Apply) -> ev.Apply:
        """Have the others apply an update; return what is left to do here."""
        order = pb.Apply(version=apply.version, step=apply.step)
        for c in apply.contributions:
            counted = order.contributions.add(
                shard=c.shard, epoch=c.epoch, step=c.step, version=c.version, samples=c.samples
            )
            self._show(counted)
        for _ in range(questions(self.job)):
            assert self.store is not None
            apply = await self._ask_all(self.store, order, apply)
            order.answer[:] = apply.answer or ()
            for counted in order.contributions:
                # It is in by now.
                counted.in_sight = False
        await self._order(pb.Order(apply=order))
        return apply

    def _show(self, counted: pb.Counted) -> None:
        """Say where a contribution lies, if the others were not told of it."""
        shard = counted.shard
        sight = self._sights.pop(shard, None)
        if sight is None:
            return
        counted.in_sight = True
        if self._shown.get(shard) is not sight:
            counted.slot.pid, counted.slot.descriptor = os.getpid(), sight.descriptor
            # For as long as they may open it.
            self._shown[shard] = sight

    async def _ask_all(self, store: Store, order: pb.Apply, apply: ev.Apply) -> ev.Apply:
        """Have all servers go on with an update to its next question; return the update with the answer, which has the
        bits that a single server finds."""
        sum_up = pb.Order(sum_up=pb.SumUp(apply=order))
        asked = [await link.begin_to_ask("sums", sum_up) for link in self._links]
        question = store.ask(apply.version, apply.step, apply.contributions, apply.answer)
        rows = [] if self.tables is None else self.tables.sum_up(apply.contributions)
        told = []
        for answer in asked:
            sums = (await answer).sums
            told.append(sums.values)
            rows += sums.rows
        found = answer_of(question, store.layout, question.material(store.layout), told, rows)
        return apply._replace(answer=tuple(found.tolist()))

    async def begin_there(self, version: int | None = None) -> None:
        """Have the other partitions begin the job, or go back to a version of it.

        Raises:
            StateError: if one cannot.
        """
        # Which policy and whether the job is over is known here, whatever their snapshot says.
        begin = pb.Begin(
            job_id=self.job_id,
            job_json=self.submitted.to_json(),
            version=version,
            epoch=self.engine.epoch,
            train_json=self.job.train.model_dump_json(),
        )
        reports = await asyncio.gather(*(link.ask("begun", pb.Order(begin=begin)) for link in self._links))
        for link, report in zip(self._links, reports, strict=True):
            if report.begun.error:
                raise StateError(f"{link.name}: {report.begun.error}")
        if version is None:
            return
        self.common = version
        if self.engine.ended:
            await self._order(pb.Order(over=pb.Over(reason=self.engine.reason)))
        self._initialised = {link.partition for link in self._links}

    async def save_there(self) -> list[asyncio.Future[pb.Report]]:
        """Have the other partitions write a snapshot of θ as it is now; return what their answers will come in."""
        order = pb.Order(save=pb.Save(common=self.common))
        return [await link.begin_to_ask("saved", order) for link in self._links]


def answer_of(
    question: Question, layout: Layout, own: Array, told: Sequence[bytes], rows: Sequence[float] = ()
) -> Array:
    """Return the answer to a question from the material of this server and that of the others in their order."""
    parts = [np.frombuffer(values, own.dtype).reshape(len(own), -1) for values in told]
    return question.answer(layout, [own, *parts], rows)


async def _joined(own: memoryview, others: Sequence[AsyncIterator[pb.ReadReply]]) -> AsyncIterator[memoryview]:
    async for piece in in_chunks(own):
        yield piece
    for replies in others:
        async for reply in replies:
            yield memoryview(reply.payload)
