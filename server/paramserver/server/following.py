"""A partition that is led by a coordinator: takes contributions in, and carries out the coordinator's orders."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from paramserver.server import events as ev
from paramserver.server.followingengine import FollowingEngine
from paramserver.server.log import Log
from paramserver.server.logformat import Record
from paramserver.server.place import Place
from paramserver.server.reading import Copied
from paramserver.server.replay import check, records, segments
from paramserver.server.run import Run
from paramserver.server.session import Session
from paramserver.server.snapshot import Snapshot
from paramserver.server.snapshots import StateDirectory
from paramserver.server.store import Store
from paramserver.wire import sharing
from paramserver.wire.errors import NotReady, ParamserverError, ProtocolError, StateError, Unreachable
from paramserver.wire.framing import encode
from paramserver.wire.job import Job, TrainSection
from paramserver.wire.sharing import Segment
from paramserver.wire.v1 import paramserver_pb2 as pb

log = logging.getLogger(__name__)

#: How long a copy of θ is kept for its reader.
CAPTURED_S = 60.0

#: Tells the coordinator something; never waits.
Tell = Callable[[pb.Report], None]


class FollowingRun(Run):
    """A job on a partition that is led; `save` writes a snapshot of it in the background."""

    engine: FollowingEngine

    def __init__(
        self,
        job_id: str,
        job: Job,
        sessions: Mapping[str, Session],
        partition: int,
        tell: Tell,
        save: Callable[[Snapshot, int | None], None],
        epoch: int,
    ) -> None:
        super().__init__(job_id, job, sessions, time.monotonic, epoch)
        self.partition = partition
        self._tell = tell
        self._save = save
        #: θ as it was, by the number of the order to copy it.
        self._captures: dict[int, asyncio.Future[Copied]] = {}
        #: How often each was handed out.
        self._handed_out: Counter[int] = Counter()
        #: Where contributions lie that the coordinator alone was told of, whole vectors by shard.
        self._slots: dict[int, Segment] = {}

    async def captured(self, number: int) -> Copied | None:
        """Hand out θ as it was at a capture, once for the flat vector and once for each table; None if it does not
        come, or has been too long ago."""
        try:
            copied = await asyncio.wait_for(asyncio.shield(self._capture(number)), CAPTURED_S)
        except TimeoutError:
            return None
        self._handed_out[number] += 1
        if self._handed_out[number] > len(copied.tables):
            self._captures.pop(number, None)
            del self._handed_out[number]
        return copied

    def _capture(self, number: int) -> asyncio.Future[Copied]:
        """Return what a capture comes in, whether the reader or the order is first."""
        if number not in self._captures:
            loop = asyncio.get_running_loop()
            self._captures[number] = loop.create_future()
            loop.call_later(CAPTURED_S, self._drop_capture, number)
        return self._captures[number]

    def _drop_capture(self, number: int) -> None:
        self._captures.pop(number, None)
        self._handed_out.pop(number, None)

    def feed(self, event: ev.Event) -> None:
        """Let the engine handle an event and carry out what it asks for; the job does not outlive a failure."""
        try:
            for effect in self.engine.handle(event, self._clock()):
                self._carry_out(effect)
        except Exception as error:
            log.exception("the job cannot go on")
            reason = f"the server failed at version {self.engine.version}: {type(error).__name__}: {error}"
            self._tell(pb.Report(broken=pb.Failure(reason=reason)))

    def _new_engine(self, job: Job, epoch: int) -> FollowingEngine:
        return FollowingEngine(job, epoch)

    def replay(self, record: Record, train: TrainSection) -> None:
        """Apply a contribution of the log once more, under the policy of that time."""
        self.go_on_under(train)
        self._hold_again(record)
        self.engine.hold_again(record.contribution)
        self.feed(ev.Ordered(ev.Apply(record.version, record.step, (record.contribution,))))

    def go_on_under(self, train: TrainSection) -> None:
        """Have a policy, before anybody works under it."""
        if train != self.job.train:
            self.feed(ev.Ordered(ev.Restage(train)))

    def take(self, session: Session, message: pb.WorkerMessage, payload: memoryview) -> None:
        """Act on a message of a worker."""
        # What is left of the job before has epochs below those of this one, and nobody counts it; whoever waits for
        # an answer about that job is told that there will be none.
        match message.WhichOneof("kind"):
            case "pull":
                pull = message.pull
                session.has_begun = pull.job_id in ("", self.job_id)
                if not session.has_begun:
                    give_up(session, message)
                    return
                session.rows.clear()
                shards, own = tuple(pull.shards), tuple(pull.own)
                fetched = ev.Fetched(session.name, pull.version, shards, own, pull.era, pull.number)
                self._take_fetched(session, fetched, pull.held if pull.HasField("held") else None)
            case "push" if message.push.era < self.engine.era:
                # The coordinator, to which the other part goes, says that it does not count.
                pass
            case "pull_rows" if not session.has_begun:
                give_up(session, message)
            case "push" | "push_rows" | "slot" if not session.has_begun:
                pass
            case "push" if message.push.number:
                push = message.push
                self._act(session, message, payload)
                fetched = ev.Fetched(session.name, push.version + 1, (), era=push.era, number=push.number)
                self._take_fetched(session, fetched, None)
            case "survey" | "failure" as kind:
                raise ProtocolError(f"worker {session.name} sent {kind}, which belongs to the coordinator")
            case _:
                self._act(session, message, payload)

    def _take_fetched(self, session: Session, fetched: ev.Fetched, held: int | None) -> None:
        """Take note of what the worker waits for, and what it holds; one that was overtaken does not count."""
        if fetched.number >= session.number:
            session.number, session.held = fetched.number, held
        self.feed(fetched)

    def _take_initial(self, session: Session, initial: pb.Initial, payload: memoryview) -> None:
        if self.engine.phase == "train":
            # From another worker, which took over from one that died before it had told the coordinator.
            self._tell(pb.Report(initialised=pb.Initialised()))
            return
        super()._take_initial(session, initial, payload)

    def _carry_out(self, effect: ev.Effect) -> ev.Event | None:
        match effect:
            case ev.Report(None):
                self._tell(pb.Report(initialised=pb.Initialised()))
            case ev.Report(ev.Contribution(_worker, shard, epoch, step, version)):
                held = pb.Held(shard=shard, epoch=epoch, step=step, version=version)
                if self._refuse_norm and self.store is not None:
                    held.values = self._measured(self.store, self.store.held(shard)).tobytes()
                self._tell(pb.Report(held=held))
            case ev.Refuse(worker, shard, step, ev.Code.INVALID, reason):
                # Who has to answer for it, the coordinator says.
                self._tell(pb.Report(bad=pb.Bad(worker=worker, shard=shard, step=step, reason=reason)))
            case ev.Supply(worker, shards, own):
                self._supply(worker, shards, own)
            case ev.See(contributions, slots):
                assert self.store is not None
                for c, slot in zip(contributions, slots, strict=True):
                    self._see(self.store, c.shard, slot)
            case ev.Mark():
                assert self.store is not None
                if self._waypoints is not None:
                    self._waypoints.keep(self.engine, self.store, self._clock())
            case ev.GoBack():
                self._go_back()
                self._tell(pb.Report(gone_back=pb.GoneBack()))
            case ev.SumUp(apply):
                assert self.store is not None
                question = self.store.ask(apply.version, apply.step, apply.contributions, apply.answer)
                rows = [] if self.tables is None else self.tables.sum_up(apply.contributions)
                values = question.material(self.store.layout).tobytes()
                self._tell(pb.Report(sums=pb.Sums(values=values, rows=rows)))
            case ev.Save(common):
                self._save(self.snapshot(), common)
                if self.log is not None:
                    self.log.snapshot_begun()
            case ev.Capture(number):
                assert self.store is not None
                captured = self._capture(number)
                if not captured.done():
                    captured.set_result(Copied.of(self.store, self.tables))
            case ev.End():
                log.info("job %s is over: %s", self.job_id, effect.reason)
            case _:
                return super()._carry_out(effect)
        return None

    def _see(self, store: Store, shard: int, slot: tuple[int, int] | None) -> None:
        """Take in a contribution that lies where this process sees it, and was checked by the coordinator."""
        layout = store.layout
        if slot is not None:
            self._slots[shard] = Segment.open(*slot, layout.whole.size, layout.dtype)
        store.incoming.hold(shard, store.cut(layout.part_of(self._slots[shard].values)), True)

    def _restage(self, train: TrainSection) -> None:
        """Go on under another policy; unlike on the coordinator, what is held may still be asked for."""
        self.job = self.job.model_copy(update={"train": train})
        if self.log is not None:
            self.log.pause()
        if self._waypoints is not None:
            self._waypoints.forget()
        if self.store is None:
            return
        incoming = self.store.incoming
        self.store.restage(self.job)
        self.store.incoming = incoming
        if self.tables is not None:
            self.tables.restage(self.job, forgets=False)
        for session in self._sessions.values():
            session.knows_layout = False

    def _pass_over(self, session: Session) -> None:
        # What became of the push, the coordinator says, which has the other part of it.
        if session.incoming is not None:
            session.discarding, session.incoming = session.incoming.name, None

    def _supply(self, worker: str, shards: tuple[int, ...], own: tuple[int, ...]) -> None:
        session = self._sessions.get(worker)
        if session is None or self.store is None:
            return
        for shard in shards:
            self.store.granted(shard)
        if not session.knows_layout:
            session.knows_layout = True
            session.send(encode(pb.ServerMessage(layout=self.store.describe(session.shares_memory))))
        sees = session.shares_memory and self.store.shares_theta
        is_held = sees or session.held == self.store.version
        if not is_held:
            session.sent += self.store.theta_nbytes
        for shard in own:
            messages = self.store.own_of(shard)
            session.sent += sum(map(len, messages))
            session.send(*messages)
        answer = pb.ServerMessage(work=pb.Work(version=self.store.version, last=True, number=session.number))
        if is_held:
            session.send(encode(answer))
        else:
            session.send(*self.store.answer(answer, session.is_beside))


class Follower:
    """What the services of a partition that is led share; touched from the event loop only.

    Workers are taken in only while a coordinator leads it: when that goes away they have to come back, and begin with
    the coordinator.
    """

    def __init__(self, place: Place, directory: StateDirectory | None = None) -> None:
        self.place = place
        self.sessions: dict[str, Session] = {}
        self.run: FollowingRun | None = None
        #: Empty while no coordinator leads this partition.
        self.cluster = b""
        self._tell: Tell = lambda _: None
        self._end_lead: Callable[[], None] = lambda: None
        self._directory = directory
        #: None if contributions are not logged.
        self._log: Log | None = None
        if directory is not None:
            # Which one is needed, the coordinator says; until then it takes memory for nothing.
            directory.take_newest()
        # One thread: snapshots reach the disk in the order in which they were taken.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot")
        self.probe = sharing.make_probe()

    async def follow(self, lead: pb.Lead, tell: Tell, end: Callable[[], None]) -> pb.Following:
        """Begin to follow a coordinator, which is told of everything by `tell`; it takes the place of one before.

        Once it leads no more, `end` is called: whoever still thinks that it does has to hear of it.

        Raises:
            ProtocolError: if this is not the partition that it looks for.
            StateError: if what was acknowledged cannot be read any more.
        """
        if Place(lead.partition, lead.partitions) != self.place:
            raise ProtocolError(
                f"this is {self.place}, the coordinator takes it for {Place(lead.partition, lead.partitions)}; "
                "check the order and number of its --peers"
            )
        self.leave_lead(self.cluster)
        self.cluster, self._tell, self._end_lead = lead.cluster, tell, end
        self.run = None
        await self._end_log()
        following = pb.Following(proof=_look_through(lead))
        if self._directory is not None:
            for snapshot, reach in self._directory.reaches():
                following.job_id, following.job_json = snapshot.job_id, snapshot.job.to_json()
                following.versions.append(snapshot.version)
                following.reaches.append(reach)
        return following

    async def _end_log(self) -> None:
        """Write what is left of the job before."""
        log, self._log = self._log, None
        if log is not None:
            await log.close()

    def leave_lead(self, cluster: bytes) -> None:
        """The coordinator of this name is gone, if it is the present one: its workers begin anew."""
        if self.cluster != cluster:
            return
        self._end_lead()
        self.cluster, self._tell, self._end_lead = b"", lambda _: None, lambda: None
        self.end_streams()

    async def begin(self, begin: pb.Begin) -> None:
        """Carry out the one order that takes its time; those behind it have to wait."""
        error, tell = "", self._tell
        try:
            await self._begin(begin)
        except ParamserverError as failure:
            error = str(failure)
        # Another coordinator may have come meanwhile, which has not asked for this.
        tell(pb.Report(begun=pb.Begun(error=error)))

    def obey(self, order: pb.Order) -> None:
        """Carry out any other order, or queue it behind those before it.

        Raises:
            ProtocolError: if there is no job, or no such order.
        """
        kind = order.WhichOneof("kind")
        if self.run is None:
            raise ProtocolError(f"the coordinator sent {kind or 'an empty order'} without a job")
        match kind:
            case "prepare":
                self.run.engine.prepare(order.prepare.total_steps)
                self._tell(pb.Report(prepared=pb.Prepared()))
            case "apply":
                self._look_at(self.run, order.apply)
                self.run.feed(ev.Ordered(read_apply(order.apply)))
            case "sum_up":
                self._look_at(self.run, order.sum_up.apply)
                self.run.feed(ev.Ordered(ev.SumUp(read_apply(order.sum_up.apply))))
            case "restage":
                train = TrainSection.model_validate_json(order.restage.train_json)
                self.run.feed(ev.Ordered(ev.Restage(train)))
            case "save":
                common = order.save.common if order.save.HasField("common") else None
                self.run.feed(ev.Ordered(ev.Save(common)))
            case "mark":
                self.run.feed(ev.Ordered(ev.Mark()))
            case "go_back":
                self.run.feed(ev.Ordered(ev.GoBack()))
            case "capture":
                self.run.feed(ev.Ordered(ev.Capture(order.capture.number)))
            case "over":
                self.run.feed(ev.Ordered(ev.End("done", order.over.reason)))
            case other:
                raise ProtocolError(f"the coordinator sent {other or 'an empty order'}, which has no place here")

    @staticmethod
    def _look_at(run: FollowingRun, apply: pb.Apply) -> None:
        """Have the contributions taken in that only the coordinator was told of."""
        seen = [c for c in apply.contributions if c.in_sight]
        if seen:
            slots = ((c.slot.pid, c.slot.descriptor) if c.HasField("slot") else None for c in seen)
            run.feed(ev.Ordered(ev.See(tuple(map(read_counted, seen)), tuple(slots))))

    async def _begin(self, begin: pb.Begin) -> None:
        # θ of the job before makes room first.
        self.run = None
        await self._end_log()
        job = Job.from_json(begin.job_json)
        keeps = self._directory if job.server.durability != "none" else None
        run = FollowingRun(begin.job_id, job, self.sessions, self.place.partition, self._tell, self._save, begin.epoch)
        loop, cluster = asyncio.get_running_loop(), self.cluster
        if begin.HasField("version"):
            self._go_back(run, begin.version)
        run.go_on_under(TrainSection.model_validate_json(begin.train_json))
        if keeps is not None:
            version = begin.version if begin.HasField("version") else None
            await loop.run_in_executor(self._thread, keeps.go_on_from, Snapshot(begin.job_id, job), version)
            if job.server.durability == "log":
                await self._begin_log(run, keeps)
        elif self._directory is not None:
            self._directory.clear()
        if self.cluster != cluster:
            raise Unreachable("the coordinator is gone")
        self.run = run
        for session in self.sessions.values():
            session.start_job()
        log.info("job %s begins at version %d", begin.job_id, run.engine.version)

    def _go_back(self, run: FollowingRun, version: int) -> None:
        """Make a run that has just begun what it was at a version, by a snapshot and the log."""
        kept = [] if self._directory is None else self._directory.whole()
        snapshot = next((s for s in kept if s.job_id == run.job_id and s.version <= version), None)
        if self._directory is None or snapshot is None:
            raise NotReady(f"there is no snapshot that leads to version {version} of job {run.job_id} any more")
        run.restore(snapshot)
        # Whether the job is over, the coordinator says.
        run.engine.phase = "train"
        files = segments(self._directory.path, self._directory.tag(run.job_id, run.submitted))
        for record, train in records(snapshot.version, files, version):
            run.replay(record, train)
            check(run, record)
        if run.engine.version != version:
            raise NotReady(f"the log leads to version {run.engine.version} of job {run.job_id}, not to {version}")

    async def _begin_log(self, run: FollowingRun, directory: StateDirectory) -> None:
        """Log contributions from now on. Who waits for them is known to the coordinator alone, so all are urgent."""
        tell, contributions = self._tell, Log(run, directory, linger_s=0.0)
        self._log = run.log = contributions
        contributions.moved = lambda: tell(
            pb.Report(logged=pb.Logged(safe=contributions.safe, error=contributions.error))
        )
        await contributions.written()

    def _save(self, snapshot: Snapshot, common: int | None) -> None:
        tell, directory, contributions = self._tell, self._directory, self._log
        if directory is None:
            error = "it has no state directory (--state)"
            tell(pb.Report(saved=pb.Saved(version=snapshot.version, error=error)))
            return
        loop = asyncio.get_running_loop()

        def write() -> None:
            error = ""
            try:
                directory.save(snapshot, common)
            except StateError as failure:
                error = str(failure)
            loop.call_soon_threadsafe(note, error)

        def note(error: str) -> None:
            if contributions is not None and error:
                contributions.snapshot_failed(error)
            elif contributions is not None:
                contributions.snapshot_saved(snapshot.version)
            tell(pb.Report(saved=pb.Saved(version=snapshot.version, error=error)))

        self._thread.submit(write)

    def beat(self) -> None:
        """Tell the coordinator how far this partition is."""
        run, sessions = self.run, self.sessions.values()
        version = 0 if run is None else run.engine.version
        received, sent = sum(s.received for s in sessions), sum(s.sent for s in sessions)
        rows = [] if run is None else run.table_rows.values()
        beat = pb.Beat(version=version, bytes_received=received, bytes_sent=sent, table_rows=rows)
        self._tell(pb.Report(beat=beat))

    def check(self, join: pb.Join) -> None:
        """Refuse a worker that takes this server for another.

        Raises:
            ProtocolError: if it does.
            Unreachable: while no coordinator leads this partition.
        """
        self.place.check(join)
        if not self.cluster:
            raise Unreachable(f"{self.place} waits for its coordinator")

    def join(self, session: Session) -> None:
        """Take in a worker; an older stream under its name ends."""
        older = self.sessions.pop(session.name, None)
        if older is not None:
            older.close()
        self.sessions[session.name] = session
        if self.run is not None:
            session.start_job()

    def leave(self, session: Session, reason: str) -> None:
        """Forget a worker whose stream ended, unless a newer stream has its name."""
        if self.sessions.get(session.name) is session:
            del self.sessions[session.name]
            if self.run is not None:
                self.run.feed(ev.Left(session.name, reason))

    def take(self, session: Session, message: pb.WorkerMessage, payload: memoryview) -> None:
        """Act on a message of a joined worker."""
        if message.HasField("share"):
            session.shares_memory = self.probe is not None and message.share.proof == self.probe.values.tobytes()
        elif self.sessions.get(session.name) is not session:
            return
        elif self.run is not None:
            self.run.take(session, message, payload)
        else:
            give_up(session, message)

    def hear(self, _session: Session) -> None:
        """A message of a joined worker is on its way: of no interest here, the coordinator sees who is silent."""

    def end_streams(self) -> None:
        """Let every worker's stream end."""
        for session in self.sessions.values():
            session.close()

    async def close(self) -> None:
        """Finish what is being written, before the process ends."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        await self._end_log()


def _look_through(lead: pb.Lead) -> bytes:
    """Return the coordinator's proof that this process sees its memory; empty if it does not."""
    if not sharing.AVAILABLE or not lead.HasField("probe"):
        return b""
    try:
        return sharing.read_probe(lead.probe.pid, lead.probe.descriptor)
    except ProtocolError:
        return b""


def give_up(session: Session, message: pb.WorkerMessage) -> None:
    """If a worker waits for an answer, tell it that there will be none: its job is over."""
    if message.WhichOneof("kind") in ("pull", "pull_rows"):
        session.send(encode(pb.ServerMessage(ended=pb.JobEnded(job_id=message.pull.job_id))))


def read_apply(apply: pb.Apply) -> ev.Apply:
    """Return the order to update θ."""
    contributions = tuple(map(read_counted, apply.contributions))
    return ev.Apply(apply.version, apply.step, contributions, tuple(apply.answer) or None)


def read_counted(c: pb.Counted) -> ev.Contribution:
    """Return the contribution that is meant; workers and losses are the coordinator's affair."""
    return ev.Contribution("", c.shard, c.epoch, c.step, c.version, c.samples, 0.0)
