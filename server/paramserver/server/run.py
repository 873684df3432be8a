"""One job on this server: the engine decides, the store computes, and this carries the engine's effects out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from paramserver.server import events as ev
from paramserver.server.elastic import Elastic
from paramserver.server.engine import Engine
from paramserver.server.history import History
from paramserver.server.logformat import Record
from paramserver.server.provenance import Provenance
from paramserver.server.reading import Captured, Copied, in_chunks, stream
from paramserver.server.session import Arrived, Gate, Incoming, Session
from paramserver.server.snapshot import Parameters, Snapshot, named
from paramserver.server.store import Store, draft_of
from paramserver.server.surveys import Surveys, moments_of
from paramserver.server.tables.arriving import Parts
from paramserver.server.tables.tablestore import TableStore
from paramserver.server.waypoints import Waypoints
from paramserver.server.wholesums import Question
from paramserver.wire.cores import own_core
from paramserver.wire.errors import DataError, JobError, ParamserverError, ProtocolError, StateError, TensorError
from paramserver.wire.fingerprint import theta_sha256
from paramserver.wire.framing import Message, encode
from paramserver.wire.job import Job, TrainSection
from paramserver.wire.layout import Array, Layout, is_finite, read_values
from paramserver.wire.moments import Moments
from paramserver.wire.sharing import Segment
from paramserver.wire.tables import tables_from_proto, tables_to_proto
from paramserver.wire.v1 import paramserver_pb2 as pb

log = logging.getLogger(__name__)

_REFUSAL_CODES = {
    ev.Code.FENCED: pb.Refusal.FENCED,
    ev.Code.DUPLICATE: pb.Refusal.DUPLICATE,
    ev.Code.GAP: pb.Refusal.GAP,
    ev.Code.INVALID: pb.Refusal.INVALID,
    ev.Code.SUPERSEDED: pb.Refusal.SUPERSEDED,
    ev.Code.STALE: pb.Refusal.STALE,
}

_KINDS = {
    ev.Kind.GRADIENT: pb.Assignment.GRADIENT,
    ev.Kind.SURVEY: pb.Assignment.SURVEY,
    ev.Kind.INITIAL: pb.Assignment.INITIAL,
}


class ContributionLog(Gate, Protocol):
    """Keeps contributions on the disk; it holds back what is told of them for good until they are there."""

    @property
    def safe(self) -> int:
        """Versions of θ up to this one survive the process."""

    async def caught_up(self) -> None:
        """Wait until everything that is counted now does."""

    def reported(self, partition: int, safe: int, error: str) -> None:
        """Take note of what another partition says of its log."""

    def snapshot_begun(self) -> None:
        """Take note that a snapshot of the current version is on its way."""

    def pause(self) -> None:
        """Log nothing more until the next snapshot begins, which others take part in."""

    def append(self, applied: ev.Apply, elapsed_s: float, store: Store) -> None:
        """Take the contributions that `applied` names, before they are applied."""


class Run:
    """A job from its submission on; its parameters stay readable after the end.

    Everything here runs in the server's one event loop and never awaits, so no lock is needed: between two messages
    the state is whole.
    """

    #: Other servers may have to open what workers share with this one.
    _passes_slots_on = False

    def __init__(self, job_id: str, job: Job, sessions: Mapping[str, Session], clock: Callable[[], float], epoch: int):
        self.job_id = job_id
        #: As it was submitted; `job` has the policy of the moment.
        self.submitted = job
        self.job = job
        #: 0: no bound.
        self._refuse_norm = job.train.refuse_norm
        self.engine = self._new_engine(job, epoch)
        self.store: Store | None = None
        #: None if the task declares none.
        self.tables: TableStore | None = None
        self.census: pb.Census | None = None
        self.moments: Moments | None = None
        self.history = History()
        self._surveys = Surveys()
        #: Values of whole contributions that the engine has yet to decide on, by shard and step.
        self._arrived: dict[tuple[int, int], Arrived] = {}
        self._arrived_rows: dict[tuple[int, int], Parts] = {}
        self._sessions = sessions
        self._clock = clock
        #: The time of the event that is being handled.
        self._now = clock()
        #: Where contributions go before anybody is told that they count, if the job asks for it.
        self.log: ContributionLog | None = None
        #: Where it is written down which contributions made which version, if anywhere.
        self.provenance: Provenance | None = None
        #: None where contributions keep nothing back.
        self._waypoints = Waypoints(job.wire) if job.wire.keeps_back else None
        #: Which part of θ is here, if it is cut.
        self.partition = 0
        #: How often θ has gone back, where others have to be told.
        self.era = 0

    def _new_engine(self, job: Job, epoch: int) -> Engine:
        return Engine(job, epoch)

    def snapshot(self) -> Snapshot:
        """Copy what a restart needs: the job, and from the first θ on everything that belongs to the current version.

        To be called between two events, when engine and store agree.
        """
        state, store = self.engine.state(self._clock()), self.store
        train = None if self.job is self.submitted else self.job.train
        waypoint = None if self._waypoints is None or self.engine.ended else self._waypoints.last
        if waypoint is not None and store is not None:
            # Elsewhere workers keep something back that would not be in the snapshot.
            state, theta, optimizer_state = waypoint.engine, waypoint.theta, dict(waypoint.optimizer_state)
        elif state is None or store is None:
            return Snapshot(self.job_id, self.submitted, state, train=train)
        else:
            theta = store.theta.copy()
            optimizer_state = {name: array.copy() for name, array in store.optimizer_state.items()}
        tables = {} if self.tables is None else self.tables.contents()
        parameters = Parameters(store.layout, theta, optimizer_state, tables)
        history = self.history.columns(state.finished_steps)
        return Snapshot(self.job_id, self.submitted, state, parameters, self.census, self.moments, history, train)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of this job, before the first worker joins; its arrays now belong to the run."""
        if snapshot.train is not None:
            self.job = self.submitted.model_copy(update={"train": snapshot.train})
            self.engine = self._new_engine(self.job, self.engine.epoch)
        if snapshot.engine is None:
            return
        self.engine = type(self.engine).restored(self.job, snapshot.engine, self.engine.epoch, self._clock())
        self.census, self.moments = snapshot.census, snapshot.moments
        p = snapshot.parameters
        if p is not None:
            self.store = Store(self.job, p.layout, [p.theta], self.engine.total_steps)
            self.store.restore(self.engine.version, p.optimizer_state)
            if p.tables:
                described = {name: contents.table for name, contents in p.tables.items()}
                self.tables = TableStore(self.job, described, self.engine.total_steps, self.partition)
                self.tables.restore(p.tables)
            self.history = History.of(snapshot.history or {})

    @property
    def table_rows(self) -> dict[str, int]:
        """How many rows each table has, by name."""
        return {} if self.tables is None else self.tables.counts

    @property
    def is_initialised(self) -> bool:
        """Are there parameters?"""
        return self.store is not None

    async def quiet(self) -> None:
        """Return when every event that was fed is handled."""

    async def capture(self) -> Captured:
        """Return θ as it is now, whatever happens to it meanwhile."""
        assert self.store is not None
        # Once all is over, θ stays as it is.
        copied = Copied.of(self.store, self.tables, stays=self.engine.ended)
        return Captured(self.store.version, in_chunks(copied.theta), [stream(table) for table in copied.tables])

    def feed(self, event: ev.Event) -> None:
        """Let the engine handle an event and carry out what it asks for.

        A failure on the way is the server's own (no memory, a bug): the job ends with it, and θ, which may be changed
        in part, is no longer given out.
        """
        try:
            follow_up = None
            self._now = self._clock()
            for effect in self._others_first(self.engine.handle(event, self._now)):
                # If there are two, the last goes back behind the update that the other one tells of.
                follow_up = self._carry_out(effect) or follow_up
            if follow_up is not None:
                self.feed(follow_up)
            if self._waypoints is not None and self.store is not None:
                self._waypoints.pass_by(self.job.train, self.engine, self.store, self._clock())
        except Exception as error:
            log.exception("the job cannot go on")
            reason = f"the server failed at version {self.engine.version}: {type(error).__name__}: {error}"
            for effect in self.engine.handle(ev.Broken(reason), self._clock()):
                self._carry_out(effect)

    def _others_first(self, effects: list[ev.Effect]) -> list[ev.Effect]:
        """Return the effects with grants to workers on this process's core at their end, where grants are anyway.

        A worker that is woken there may take the core before the next one is told, which then waits, its own core being
        idle, until the first has computed its whole gradient.
        """
        if len(effects) < 2 or not isinstance(effects[-2], ev.Grant):
            return effects
        core = own_core()
        far: list[ev.Effect] = []
        near: list[ev.Effect] = []
        for effect in effects:
            session = self._sessions.get(effect.worker) if isinstance(effect, ev.Grant) else None
            (far if session is None or not session.runs_on(core) else near).append(effect)
        return far + near

    def replay(self, record: Record, train: TrainSection) -> None:
        """Count a contribution of the log once more, under the policy of that time.

        Raises:
            StateError: if it is not one of this job.
        """
        if train != self.job.train:
            self.feed(ev.PolicyChanged(train))
        self._hold_again(record)
        self.feed(ev.Replayed(record.contribution))

    def _hold_again(self, record: Record) -> None:
        """Take in what the log has of a contribution."""
        shard, values = record.contribution.shard, b"".join(record.values)
        if self.store is None or not 0 <= shard < len(self.engine.shards):
            raise StateError(f"the log holds a contribution of shard {shard}, which has no place here")
        if len(values) % self.store.layout.dtype.itemsize:
            raise StateError(f"the log holds a contribution of {len(values)} bytes, not whole values")
        self.store.replay(shard, np.frombuffer(values, self.store.layout.dtype), record.answers)

    def set_policy(self, changes: Mapping[str, str | int]) -> None:
        """Go on under another policy; `changes` are keys of the job's train section.

        Raises:
            JobError: if the job would be wrong; nothing is changed then.
        """
        tables = self.job.model_dump()
        tables["train"] |= changes
        self.feed(ev.PolicyChanged(Job.from_dict(tables).train))

    def welcome(self, session: Session) -> None:
        """Bring a worker into the job."""
        session.start_job()
        session.gate = self.log
        started = pb.JobStarted(
            job_id=self.job_id,
            job_json=self.job.to_json(),
            heartbeat_s=self.engine.longest_heartbeat_s,
        )
        session.send(encode(pb.ServerMessage(job=started)))
        join = session.join
        accepts = frozenset(join.accepts) | frozenset(join.pinned) if join.accepts or join.pinned else None
        self.feed(ev.Joined(session.name, accepts, frozenset(join.pinned)))

    def take(self, session: Session, message: pb.WorkerMessage, payload: memoryview) -> None:
        """Act on a message of a worker in the job."""
        if not session.has_begun:
            # A worker that still answers the job before has yet to hear of this one.
            session.has_begun = message.pull.job_id == self.job_id
            if not session.has_begun:
                self.feed(ev.Heard(session.name))
                return
        self._act(session, message, payload)

    def hear(self, session: Session) -> None:
        """Take note that a worker in the job is there."""
        self.feed(ev.Heard(session.name))

    def _act(self, session: Session, message: pb.WorkerMessage, payload: memoryview) -> None:
        match message.WhichOneof("kind"):
            case "push":
                self._take_pushes(session, [(message.push, payload)])
            case "pushes":
                self._take_pushes(session, _with_parts(session.name, message.pushes.pushes, payload))
            case "pull":
                session.held = message.pull.held if message.pull.HasField("held") else None
                session.rows.clear()
                self.feed(ev.Pulled(session.name))
            case "pull_rows":
                self._give_rows(session, message.pull_rows, payload)
            case "push_rows":
                self._take_rows(session, message.push_rows, payload)
            case "slot":
                self._take_slot(session, message.slot)
            case "heartbeat":
                self.feed(ev.Heard(session.name))
            case "survey":
                self._take_survey(session, message.survey, payload)
            case "initial":
                self._take_initial(session, message.initial, payload)
            case "failure":
                self.feed(ev.Failed(session.name, message.failure.reason[:2000]))
            case other:
                raise TensorError(f"worker {session.name} sent {other or 'an empty message'}, which has no place here")

    def _take_pushes(self, session: Session, pushes: Sequence[tuple[pb.Push, memoryview]]) -> None:
        """Act on the contributions of one message, one or more, or on the chunk of one."""
        whole = []
        for push, payload in pushes:
            session.received += payload.nbytes
            contribution = self._take_push(session, push, payload)
            if contribution is not None:
                whole.append(contribution)
        pull, session.core = push.pull, push.core
        if pull:
            session.held = push.version
        if whole:
            self._count(tuple(whole), pull)
        elif pull:
            self.feed(ev.Pulled(session.name))

    def _count(self, contributions: tuple[ev.Contribution, ...], pull: bool) -> None:
        """Let the engine decide on contributions that are whole, their values being in `_arrived`."""
        self.feed(ev.Pushed(contributions, pull))
        self._arrived.clear()
        self._arrived_rows.clear()

    def _take_push(self, session: Session, push: pb.Push, payload: memoryview) -> ev.Contribution | None:
        """Take a contribution or a chunk of it; return it once it is whole, its values being in `_arrived` then."""
        c = _contribution(session.name, push)
        name = (c.shard, c.epoch, c.step)
        offset = push.offset
        if offset == 0:
            session.discarding, session.incoming = None, Incoming(c)
            if self.tables is not None:
                session.incoming.rows = session.rows.claim(push)
            # What comes at once is reviewed when it is in; what does not may be passed over from the first chunk on.
            if not (push.shared or self._is_whole(c, payload)) and self.engine.review(c) is not None:
                session.discarding, session.incoming = name, None
                # The engine repeats its answer and counts the refusal.
                self.feed(ev.Pushed((c,)))
        if session.discarding == name:
            return None
        incoming = session.incoming
        if offset and incoming is not None and incoming.name == name and offset < incoming.next_offset:
            # A chunk that came twice.
            return None
        if offset and incoming is None and self.engine.admit(c.worker, *name) is not None:
            # The end of what is in already, once more, or of what was refused long ago.
            session.discarding = name
            self.feed(ev.Pushed((c,)))
            return None
        try:
            if self.store is None:
                raise TensorError("a push came before the parameters were initialised")
            if incoming is None or (offset and incoming.name != name):
                raise TensorError(f"a push must begin at offset 0, this one came with offset {offset}")
            is_whole = True
            if push.shared:
                self._take_shared(self.store, session, incoming, push.in_sight)
            elif self.store.layout.size:
                self.store.was_answered()
                is_whole = self._take_chunk(self.store, session, incoming, offset, payload)
            if is_whole and self._refuse_norm and self.store.layout.whole is self.store.layout:
                self._check_norm(self.store, incoming)
            # Of what the engine is about to refuse rows were passed over, which is not what is wrong with it.
            if is_whole and incoming.rows is not None and self.engine.review(incoming.contribution) is None:
                self._arrived_rows[c.shard, c.step] = incoming.rows.parts(push.rows)
        except TensorError as error:
            session.incoming, session.discarding = None, name
            reason = f"push of worker {session.name}, shard {c.shard}, step {c.step}: {error}"
            self.feed(ev.Misbehaved(session.name, c.shard, c.step, reason, error.fault))
            return None
        if not is_whole:
            self.feed(ev.Heard(session.name))
            return None
        session.incoming = None
        self._arrived[c.shard, c.step] = Arrived(incoming.chunks, incoming.is_lent, incoming.sight)
        # The numbers that were reviewed: those of the first chunk.
        return incoming.contribution

    def _is_whole(self, c: ev.Contribution, payload: memoryview) -> bool:
        store = self.store
        if store is None:
            return False
        return payload.nbytes == (store.theta.nbytes if store.decoder is None else store.decoder.nbytes(c.step))

    def _take_chunk(self, store: Store, session: Session, incoming: Incoming, offset: int, payload: memoryview) -> bool:
        """Take a chunk of a contribution; say whether it was the last."""
        size, chunk = store.layout.size, store.chunk_for(session.is_beside)
        decoder, step = store.decoder, incoming.contribution.step
        if decoder is None:
            values = read_values(payload, store.layout.dtype, offset, size)
            if not values.flags.aligned:
                # As those of a small chunk mostly are: numpy works on them several times more slowly than it copies.
                values = values.copy()
            finite = is_finite(values)
        else:
            size = decoder.size(step)
            values, finite = decoder.read(payload, offset, step, chunk, store.adds_halves)
        count = values.size
        if offset != incoming.next_offset or count != min(chunk, size - offset):
            raise TensorError(
                f"a chunk of {count} values came at offset {offset}; "
                f"{min(chunk, size - incoming.next_offset)} values at offset {incoming.next_offset} are expected"
            )
        if not finite:
            start = store.layout.start if decoder is None else decoder.start(step)
            raise TensorError(_where_not_finite(store.layout.whole, start + offset, values), "not_finite")
        incoming.next_offset += count
        incoming.chunks.append(values)
        if incoming.next_offset < size:
            return False
        if decoder is not None:
            incoming.chunks = decoder.whole(incoming.chunks, step)
        incoming.chunks = [block for values in incoming.chunks for block in store.cut(values)]
        return True

    def _give_rows(self, session: Session, asked: pb.PullRows, payload: memoryview) -> None:
        refusal = self.engine.admit(session.name, asked.shard, asked.epoch, asked.step)
        if refusal is not None:
            self._carry_out(refusal)
            return
        try:
            if self.tables is None:
                raise TensorError("the job has no tables")
            rows = self.tables.read(asked.table, payload)
        except TensorError as error:
            reason = f"rows for worker {session.name}, shard {asked.shard}, step {asked.step}: {error}"
            self.feed(ev.Misbehaved(session.name, asked.shard, asked.step, reason, error.fault))
            return
        self.feed(ev.Heard(session.name))
        answer = pb.Rows(number=asked.number)
        session.sent += rows.nbytes
        session.send(encode(pb.ServerMessage(rows=answer), rows))

    def _take_rows(self, session: Session, push: pb.PushRows, payload: memoryview) -> None:
        session.received += payload.nbytes
        # What was not asked for is passed over; the push that follows is refused and says why.
        if self.tables is not None and self.engine.admit(session.name, push.shard, push.epoch, push.step) is None:
            session.rows.take(push, payload, list(self.tables.tables.values()), self.tables.dtype, self.tables.place)
            self.feed(ev.Heard(session.name))

    def _take_slot(self, session: Session, slot: pb.Slot) -> None:
        if not session.shares_memory or self.store is None:
            raise ProtocolError(f"worker {session.name} offers a slot without sharing memory with this server")
        layout, memory = self.store.layout.whole, slot.memory
        segment = Segment.open(memory.pid, memory.descriptor, layout.size, layout.dtype, keeps=self._passes_slots_on)
        session.slots[slot.shard] = segment

    def _take_shared(self, store: Store, session: Session, incoming: Incoming, in_sight: bool) -> None:
        """Take a contribution from its slot; one that is in sight of all servers this one looks through for all."""
        shard = incoming.contribution.shard
        if shard not in session.slots:
            raise TensorError(f"the contribution lies in a slot for shard {shard}, but none was offered")
        slot = session.slots[shard]
        contribution = store.layout.part_of(slot.values)
        incoming.is_lent = self.log is None
        if not incoming.is_lent:
            # Its worker could change it before it is on the disk.
            contribution = contribution.copy()
        if in_sight:
            incoming.sight = slot
        checked, start = (slot.values, 0) if in_sight else (contribution, store.layout.start)
        offset = store.update.first_not_finite(checked)
        if offset is not None:
            raise TensorError(_where_not_finite(store.layout.whole, start + offset, checked[offset:]), "not_finite")
        incoming.chunks = store.cut(contribution)

    def _check_norm(self, store: Store, incoming: Incoming) -> None:
        squares = Question([]).answer(store.layout, [self._measured(store, incoming.chunks)])
        if fault := self._too_long(incoming.contribution, math.sqrt(squares[0])):
            raise TensorError(fault, "norm")

    @staticmethod
    def _measured(store: Store, chunks: Sequence[Array]) -> Array:
        """Return what is here of the norm of a contribution."""
        whole = chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, store.layout.dtype), *chunks])
        return Question([whole]).material(store.layout)

    def _too_long(self, c: ev.Contribution, norm: float) -> str:
        """Say in words that a contribution of this norm is beyond what the job allows; empty if it is not."""
        found = norm / max(1, c.samples)
        if found <= self._refuse_norm:
            return ""
        return f"the mean gradient has norm {found:.6g}, refuse_norm is {self._refuse_norm:g}"

    def _take_survey(self, session: Session, survey: pb.Survey, payload: memoryview) -> None:
        try:
            moments = moments_of(survey, payload)
        except ParamserverError as error:
            reason = f"survey of worker {session.name}, shard {survey.shard}: {error}"
            self.feed(ev.Misbehaved(session.name, survey.shard, 0, reason))
            return
        if self.engine.phase == "survey" and self.engine.admit(session.name, survey.shard, survey.epoch, 0) is None:
            self._surveys.hold(survey, moments)
        self.feed(ev.Surveyed(session.name, survey.shard, survey.epoch, survey.rows))

    def _take_initial(self, session: Session, initial: pb.Initial, payload: memoryview) -> None:
        if initial.offset == 0:
            session.initial, session.initial_layout = None, list(initial.tensors)
            session.initial_tables = list(initial.tables)
        refusal = self.engine.admit(session.name, initial.shard, initial.epoch, 0)
        if refusal is not None or self.engine.phase != "initialise":
            return
        is_whole = False
        try:
            whole = Layout.from_proto(session.initial_layout, self.job.train.dtype)
            layout = whole.cut(self.job.server.partitions)[self.partition]
            described = tables_from_proto(session.initial_tables, (tensor.name for tensor in whole.tensors))
            if described and self.log is not None:
                raise TensorError("server.durability = 'log' does not hold the rows of tables; use 'snapshot'")
            tables = TableStore(self.job, described, self.engine.total_steps, self.partition) if described else None
            values = np.empty(0, layout.dtype)
            if layout.size:
                values = read_values(payload, layout.dtype, initial.offset, layout.size)
            held = 0 if session.initial is None else session.initial.written
            if initial.offset < held:
                # A chunk that came twice.
                return
            if initial.offset != held:
                raise TensorError(f"initial parameters came with offset {initial.offset}, {held} is expected")
            if not is_finite(values):
                raise TensorError(_where_not_finite(whole, layout.start + initial.offset, values))
            # Where they will stay: as messages they would be here a second time.
            session.initial = session.initial or draft_of(layout)
            session.initial.append(values)
            is_whole = session.initial.written == layout.size
            if is_whole:
                self.store = Store(self.job, layout, session.initial, self.engine.total_steps)
                self.tables, session.initial = tables, None
        except (TensorError, JobError) as error:
            self.feed(ev.Failed(session.name, str(error)))
            return
        except (OSError, MemoryError) as error:
            session.initial = None
            self.feed(ev.Broken(f"there is no room for {layout.size:,} parameters: {error}"))
            return
        except Exception as error:
            if not is_whole:
                raise
            # Nothing is wrong with the parameters: most likely numba is here, but does not fit what else is.
            log.exception("the job cannot begin")
            session.initial = None
            self.feed(ev.Broken(f"the server cannot begin with the parameters: {type(error).__name__}: {error}"))
            return
        if is_whole:
            self.feed(ev.Initialised(session.name, initial.shard, initial.epoch))
        else:
            self.feed(ev.Heard(session.name))

    def _carry_out(self, effect: ev.Effect) -> ev.Event | None:
        match effect:
            case ev.Keep():
                shard, step = effect
                assert self.store is not None
                arrived = self._arrived.pop((shard, step))
                self.store.incoming.hold(shard, arrived.blocks, arrived.is_lent)
                if self.tables is not None:
                    self.tables.hold(shard, self._arrived_rows.pop((shard, step)))
            case ev.Apply():
                version, step, contributions, answer = effect
                assert self.store is not None
                if self.log is not None:
                    self.log.append(effect, self._now - self.engine.train_started, self.store)
                rows = self.tables.sum_up(contributions) if self.tables is not None and answer is None else ()
                norm = self.store.apply(version, step, contributions, answer, rows)
                if self.tables is not None:
                    self.tables.apply(version, step, contributions, norm)
                if self.provenance is not None and self.provenance.applied(effect):
                    tables = {} if self.tables is None else self.tables.contents()
                    self.provenance.hashed(version, theta_sha256(named(self.store.layout, self.store.theta, tables)))
                self._acknowledge(contributions)
                return None if norm is None else ev.Measured(version, norm)
            case ev.Grant():
                self._grant(effect)
            case ev.Progress():
                self.history.record(effect)
            case ev.Refuse():
                refusal = pb.Refusal(
                    code=_REFUSAL_CODES[effect.code],
                    shard=effect.shard,
                    step=effect.step,
                    reason=effect.reason,
                )
                self._send(effect.worker, pb.ServerMessage(refusal=refusal))
            case ev.Revoke(worker, shard):
                return self._revoke(worker, shard)
            case ev.Restage(train):
                self._restage(train)
            case ev.GoBack():
                self._go_back()
            case ev.CombineSurveys():
                return self._combine_surveys()
            case ev.End(status, reason):
                ended = pb.ServerMessage(ended=pb.JobEnded(job_id=self.job_id, status=status, reason=reason))
                for name in self._sessions:
                    self._send(name, ended, for_good=True)
        return None

    def _send(self, worker: str, message: pb.ServerMessage, for_good: bool = False) -> None:
        session = self._sessions.get(worker)
        if session is not None:
            session.send(encode(message), for_good=for_good)

    def _acknowledge(self, contributions: Sequence[ev.Contribution]) -> None:
        """Have those who asked for it be told that their contributions are in θ."""
        for c in contributions:
            session = self._sessions.get(c.worker)
            if session is not None and session.join.acknowledge:
                acknowledged = pb.Acknowledged(shard=c.shard, epoch=c.epoch, step=c.step)
                session.send(encode(pb.ServerMessage(acknowledged=acknowledged)), for_good=True)

    def _grant(self, grant: ev.Grant) -> None:
        session = self._sessions.get(grant.worker)
        if session is None:
            return
        if self.census is not None and not session.knows_census:
            session.knows_census = True
            flat = None if self.moments is None else self.moments.to_flat()
            session.send(encode(pb.ServerMessage(census=self.census), flat))
        message = pb.ServerMessage()
        work = message.work
        work.version, work.last = grant.version, True
        if grant.heartbeat_s is not None:
            work.heartbeat_s = grant.heartbeat_s
        if self.era:
            work.era = self.era
        work.in_step = self.job.server.partitions > 1 and self._goes_in_step
        for kind, shard, epoch, step in grant.assignments:
            if self.store is not None and kind is ev.Kind.GRADIENT:
                self.store.granted(shard)
            assigned = work.assignments.add()
            assigned.kind, assigned.shard, assigned.epoch, assigned.step = _KINDS[kind], shard, epoch, step
        if self.store is None:
            session.send(encode(message))
            return
        if not session.knows_layout:
            session.knows_layout = True
            session.send(encode(pb.ServerMessage(layout=self._describe(self.store, session.shares_memory))))
        sees = session.shares_memory and self.store.shares_theta
        messages = [] if self.store.elastic is None else self._own_of(self.store, self.store.elastic, session, grant)
        if sees or session.held == self.store.version:
            session.send(*messages, encode(message))
            return
        messages += self.store.answer(message, session.is_beside)
        if session.is_full:
            session.give_up()
            return
        session.sent += self.store.theta_nbytes
        session.send(*messages)

    @property
    def _goes_in_step(self) -> bool:
        """Do workers need one version after the other from other servers, which need to know no more for that?"""
        store = self.store
        # With tables a pull says too that rows which came before it belong to no push.
        return store is not None and not store.moves and store.elastic is None and self.tables is None

    def _describe(self, store: Store, shared: bool) -> pb.Layout:
        layout = store.describe(shared)
        if self.tables is not None:
            layout.tables.extend(tables_to_proto(self.tables.tables))
        return layout

    def _own_of(self, store: Store, elastic: Elastic, session: Session, grant: ev.Grant) -> list[Message]:
        """Return the parameters of the granted shards that the worker does not have from its own last push."""
        messages = []
        for _, shard, epoch, step in grant.assignments:
            if elastic.pushed(shard) != session.asked.get(shard):
                messages += store.own_of(shard)
            session.asked[shard] = epoch, step
        session.sent += sum(map(len, messages))
        return messages

    def _revoke(self, worker: str, shard: int) -> ev.Event | None:
        session = self._sessions.get(worker)
        if session is not None and session.incoming is not None and session.incoming.contribution.shard == shard:
            self._pass_over(session)
        waypoint = None if self._waypoints is None else self._waypoints.behind(self.engine, shard)
        return None if waypoint is None else ev.TakenBack(waypoint.engine)

    def _go_back(self) -> None:
        waypoint = None if self._waypoints is None else self._waypoints.last
        assert waypoint is not None
        assert self.store is not None
        self.store.go_back(self.job, waypoint.engine.version, waypoint.theta, waypoint.optimizer_state)
        self.history.forget_after(waypoint.engine.finished_steps)
        for session in self._sessions.values():
            self._pass_over(session)

    def _restage(self, train: TrainSection) -> None:
        self.job = self.job.model_copy(update={"train": train})
        if self._waypoints is not None:
            self._waypoints.forget()
        if self.store is None:
            return
        before = self.store.moves, self.store.shares_theta
        self.store.restage(self.job)
        if self.tables is not None:
            self.tables.restage(self.job)
        for session in self._sessions.values():
            # How a worker may read θ in shared memory is part of the layout.
            if session.shares_memory and (self.store.moves, self.store.shares_theta) != before:
                session.knows_layout, session.held = False, None
            self._pass_over(session)

    def _pass_over(self, session: Session) -> None:
        """Let the rest of a push that has begun come in without taking it."""
        if session.incoming is None:
            return
        contribution = session.incoming.contribution
        session.discarding, session.incoming = session.incoming.name, None
        # A worker that is not told takes the step for done, and the same work for a repetition.
        refusal = self.engine.review(contribution)
        if refusal is not None:
            self._carry_out(refusal)

    def _combine_surveys(self) -> ev.Broken | None:
        try:
            self.census, self.moments = self._surveys.combine(self.job.data.standardize)
        except DataError as error:
            return ev.Broken(f"DataError: {error}")
        return None


def _with_parts(worker: str, pushes: Sequence[pb.Push], payload: memoryview) -> list[tuple[pb.Push, memoryview]]:
    """Return the contributions of one message, each with its part of the payload.

    Raises:
        ProtocolError: if there are none, two are of one shard, or the payload cannot be theirs.
    """
    share, rest = divmod(payload.nbytes, len(pushes)) if pushes else (0, 1)
    if rest:
        raise ProtocolError(f"worker {worker} sent {payload.nbytes} bytes for {len(pushes)} contributions")
    if len({push.shard for push in pushes}) < len(pushes):
        raise ProtocolError(f"worker {worker} sent two contributions of one shard in one message")
    return [(push, payload[index * share : (index + 1) * share]) for index, push in enumerate(pushes)]


def _contribution(worker: str, push: pb.Push) -> ev.Contribution:
    return ev.Contribution(worker, push.shard, push.epoch, push.step, push.version, push.samples, push.loss)


def _where_not_finite(layout: Layout, offset: int, values: np.ndarray) -> str:
    index = int(np.flatnonzero(~np.isfinite(values))[0])
    name, element = layout.locate(offset + index)
    return f"tensor {name!r} holds {values[index]} at element {element}"
