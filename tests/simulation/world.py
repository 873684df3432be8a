"""One simulated run: a server, workers and a client, what goes wrong with them, and the promises that must hold."""

from __future__ import annotations

import asyncio
import errno
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import Any

import grpc

from paramserver.server.control import ControlService
from paramserver.server.log import Log
from paramserver.server.session import MAX_WAITING
from paramserver.server.shell import Shell
from paramserver.server.snapshots import StateDirectory
from paramserver.server.store import Store
from paramserver.server.training import TrainingService
from paramserver.wire.errors import ParamserverError, StateError, TaskError
from paramserver.wire.framing import decode_server_message
from paramserver.wire.job import Job, TrainSection
from paramserver.wire.layout import Array
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.process import work
from paramserver.worker.trainer import Gradient, Identity, Trainer
from simulation.disk import Disk, Path
from simulation.ledger import Learner, contribution, loss, samples
from simulation.loop import Clock, Process
from simulation.network import Context, Network
from simulation.oracle import Oracle, Violation
from simulation.real import AHEAD_VERSIONS, surroundings
from simulation.scenario import ALL, Fault, Focus, Scenario, draw

STATE = "/var/lib/state"

#: Simulated seconds from the end of all faults in which every job must end: leases, keepalives and connection attempts
#: run out one after the other, and then everything may have to be computed once more.
PATIENCE_S = 150.0

#: More events than any run needs; beyond it something turns in circles.
MAX_EVENTS = 10_000

#: Faults after which a lease is lost and comes back, or a contribution is refused.
DISORDERLY = {"stop worker", "stop server", "part", "switch"}

_WORK_TAG = pb.ServerMessage.DESCRIPTOR.fields_by_name["work"].number << 3 | 2
_ACKNOWLEDGED_TAG = pb.ServerMessage.DESCRIPTOR.fields_by_name["acknowledged"].number << 3 | 2


class World:
    """A run of one seed."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None, focus: Focus = ALL) -> None:
        self.seed = seed
        self._trace = trace
        self._rng = Random(seed)
        self.scenario: Scenario = draw(self._rng, focus)
        s = self.scenario
        self.clock = Clock()
        self.network = Network(self.clock, Random(seed + 1), s.latency_s, s.wild)
        self.network.serve_stream = self._serve_stream
        self.network.serve_call = self._serve_call
        self.disk = Disk(lambda: self._rng.expovariate(1 / s.disk_s), self._disk_fault)
        self.disk.watch = self._disk_moved
        self._disk_fails = False
        #: Something that was promised may not have reached it then; the server has said so.
        self._disk_failed_since_boot = False
        #: A bit of the newest snapshot flips when the server dies next.
        self._rots = False
        self.oracles: dict[str, Oracle] = {}
        self._server: Process | None = None
        self._shell: Shell | None = None
        #: It was told to end.
        self._ending = False
        self._services: tuple[TrainingService, ControlService]
        self._workers: dict[int, Process] = {}
        self._names: dict[int, str] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._slow: dict[int, float] = {}
        self._worker_count = 0
        self._client = Process("client", self.clock, lambda: 0.0)
        self._graves: list[Process] = []
        #: Kills the server at one of the next operations of its disk: (operations left, whether the power goes too).
        self._trap: tuple[int, bool] | None = None
        #: Switch the policy as soon as a round is open; 0 for not.
        self._switch_in_round = 0
        #: Workers that cannot compute; jobs in which one was sick may fail.
        self._sick: set[int] = set()
        self._sickened: set[str] = set()
        #: Cut the power as soon as the client was promised something.
        self._ambush = False
        #: Nothing happens for which a worker could rightly be asked to compute the same again on the same stream.
        self._is_orderly = not s.wild and not {f.kind for f in s.faults} & DISORDERLY
        self._asked: set[tuple[object, ...]] = set()
        #: Promises that were found broken.
        self.broken: list[str] = []
        self._calm = False
        self._finished = False
        self.events = 0

    def run(self) -> None:
        """Run to the end of all jobs.

        Raises:
            Violation: if a promise is broken.
        """
        s = self.scenario
        store = type("ObservedStore", (_ObservedStore,), {"world": self})
        with surroundings(self.clock, self.network, self.disk, Random(self.seed + 2), s.chunk_bytes, store):
            # What a collection happens to find runs the ends of coroutines, at a time that no seed decides.
            collects = gc.isenabled()
            gc.disable()
            try:
                self._begin()
                self._go()
                self._end()
            finally:
                if collects:
                    gc.enable()
                for process in [*self._graves, *self._workers.values(), self._client, self._server]:
                    if process is not None:
                        process.bury()

    def tell(self, text: str) -> None:
        """Write a line of the trace."""
        if self._trace is not None:
            self._trace(f"{self.clock.now - 1000.0:10.4f}  {text}")

    def _begin(self) -> None:
        start = self.clock.now
        if self._trace:
            self.tell(self.scenario.describe)
        self._start_server()
        for _ in range(self.scenario.workers):
            self._start_worker()
        self._by_client(self._drive())
        for fault in self.scenario.faults:
            self.clock.at(start + fault.at, None, lambda fault=fault: self._strike(fault))
        self.clock.at(start + self.scenario.calm_at, None, self._calm_down)

    def _go(self) -> None:
        deadline = self.clock.now + self.scenario.calm_at + PATIENCE_S
        clock = self.clock
        while not self._finished:
            process = clock.step()
            self.events += 1
            if process is not None:
                if self.broken:
                    raise Violation(self.broken[0])
                if process.errors:
                    raise Violation(f"{process.name}: {process.errors[0]}")
                if process is self._server:
                    self._look()
            if clock.now > deadline or self.events > MAX_EVENTS:
                raise Violation(f"no end {PATIENCE_S:g} s after the last fault ({self.events} events): {self._why()}")

    def _end(self) -> None:
        """Let the server die once more: whoever was told of an end can rely on it."""
        if self._server is None:
            return
        job = self.scenario.jobs[-1]
        self._kill_server(power=self._rng.random() < 0.5)
        self._start_server()
        for _ in range(200):
            self.clock.step()
            if self._shell is not None:
                break
        if job.server.durability != "none" and (self._shell is None or self._shell.run is None):
            raise Violation("the last job is gone")

    def _why(self) -> str:
        if self._shell is None or self._shell.run is None:
            return "the server has no job"
        engine = self._shell.run.engine
        waits = "; ".join(wait.reason for wait in engine.waits(self.clock.now))
        return f"phase {engine.phase}, clocks {engine.clocks}, version {engine.version}; {waits}"

    # The server.

    def _start_server(self) -> None:
        process = Process("server", self.clock, lambda: self._rng.expovariate(1 / self.scenario.disk_s))
        self._server = process
        self._shell = None
        self._ending = False

        def boot() -> None:
            try:
                directory = StateDirectory(Path(STATE))
                shell = Shell(directory)
            except StateError as error:
                if not self._disk_fails and not self._disk_failed_since_boot:
                    raise Violation(f"the server does not start: {error}") from None
                self.tell(f"the server does not start: {error}")
                self._kill_server(power=False)
                self._start_server_in(0.5)
                return
            self._disk_failed_since_boot = False
            self._shell = shell
            self._services = TrainingService(shell), ControlService(shell)
            self.network.server = process
            self.tell(f"server starts{'' if shell.run is None else f' with {self._describe_run()}'}")
            self._check_start()

        self.clock.at(self.clock.now, process, boot)

    def _start_server_in(self, seconds: float) -> None:
        def start() -> None:
            if self._server is None:
                self._start_server()

        self.clock.at(self.clock.now + seconds, None, start)

    def _check_start(self) -> None:
        """What was acknowledged before is there."""
        shell = self._shell
        assert shell is not None
        run = shell.run
        submitted = [oracle for oracle in self.oracles.values() if oracle.submitted]
        if not submitted or not submitted[-1].survives:
            return
        if run is None:
            raise Violation("a job that was accepted is gone")
        oracle = self.oracles[run.job_id]
        if list(self.oracles.values()).index(oracle) < list(self.oracles.values()).index(submitted[-1]):
            raise Violation(f"job {run.job_id} came back in place of a later one")
        if run.job.train not in oracle.policies and not oracle.rotted:
            raise Violation(f"the policy is {run.job.train}, promised was one of {oracle.policies}")
        if run.store is not None:
            oracle.started(run.store.version)
        elif oracle.promised_version:
            raise Violation(f"came back without θ, version {oracle.promised_version} was promised to be kept")
        if oracle.promised_end is not None and oracle.promised_end != (run.engine.phase, run.engine.version):
            raise Violation(f"the job ended with {oracle.promised_end}, and came back in {self._describe_run()}")

    def _describe_run(self) -> str:
        assert self._shell is not None
        assert self._shell.run is not None
        run = self._shell.run
        return f"job {run.job_id}, phase {run.engine.phase}, version {run.engine.version}, clocks {run.engine.clocks}"

    def _kill_server(self, power: bool) -> None:
        process = self._server
        if process is None:
            return
        now = self.clock.now
        self.tell(f"server is killed{', power is lost' if power else ''}")
        self._trap = None
        self._server = self._shell = self.network.server = None
        process.kill()
        self._graves.append(process)
        if power:
            self.disk.power_lost(now, self._rng)
        else:
            self.disk.process_died(now)
        for oracle in self.oracles.values():
            oracle.server_died()
        if self._rots:
            self._rot()

    def _rot(self) -> None:
        """Flip a bit of the newest snapshot, if there is one to fall back to."""
        if any(job.server.durability == "log" for job in self.scenario.jobs):
            # What was acknowledged since cannot be had from an older snapshot that the log does not lead on from.
            return
        entries = self.disk.content.directories.get(STATE, {})
        files = sorted(name for name in entries if name.endswith(".safetensors"))
        if len(files) > 1 and files[-1].split("-")[1] == files[-2].split("-")[1]:
            self._rots = False
            self.tell(f"{files[-1]} rots")
            self.disk.flip(entries[files[-1]], self._rng)
            for oracle in self.oracles.values():
                oracle.disk_rotted()

    async def _terminate(self, process: Process, shell: Shell) -> None:
        """What the server process does on SIGTERM, see `paramserver.server.process`."""
        self.network.server = None
        shell.end_streams()
        await asyncio.sleep(0.5)
        for connection in list(self.network.connections):
            if process in connection.processes:
                connection.close(connection.server)
        await shell.close()
        if shell.run is not None and not self._disk_failed_since_boot:
            run = shell.run
            if run.engine.phase in ("train", "done", "stopped"):
                self.oracles[run.job_id].promise_version(run.engine.version)
        self.tell("server has ended")
        # It exits once it has nothing more to do.
        self.clock.at(self.clock.now, None, lambda: self._end_server(process))

    def _end_server(self, process: Process) -> None:
        if self._server is process:
            self._kill_server(power=False)
            self._start_server_in(0.3)

    async def _serve_stream(self, context: Context) -> None:
        original = context.write
        number = self._number_of(context)

        async def write(message: bytes) -> None:
            if message[0] == _WORK_TAG:
                self._work_goes_out(message, number, context)
            elif message[0] == _ACKNOWLEDGED_TAG:
                self._acknowledgement_goes_out(message)
            await original(message)

        context.write = write  # type: ignore[method-assign]
        await self._services[0]._train(None, context)  # type: ignore[arg-type]

    def _promise_when_written(self, oracle: Oracle, version: int) -> None:
        """Hold the server to a version from when the disk operations ahead of the message are done."""
        server = self._server
        assert server is not None

        def promise() -> None:
            if server.alive:
                oracle.promise_version(version)

        if server.io_time <= self.clock.now:
            promise()
        else:
            self.clock.at(server.io_time, None, promise)

    def _number_of(self, context: Context) -> int:
        worker = context.processes[0]
        return next(number for number, process in self._workers.items() if process is worker)

    def _work_goes_out(self, message: bytes, number: int, context: Context) -> None:
        work = decode_server_message(message)[0].work
        assert self._shell is not None
        assert self._shell.run is not None
        oracle = self.oracles[self._shell.run.job_id]
        for assignment in work.assignments:
            if assignment.kind == pb.Assignment.GRADIENT:
                oracle.assigned(assignment.shard, assignment.step, number)
                asked = (context.number, assignment.shard, assignment.epoch, assignment.step, work.version)
                if self._is_orderly and asked in self._asked:
                    what = f"step {assignment.step} of shard {assignment.shard}"
                    self.broken.append(f"the server asks worker {number} twice for {what}")
                self._asked.add(asked)
                if self._trace:
                    what = f"step {assignment.step} of shard {assignment.shard} at version {work.version}"
                    self.tell(f"server asks worker {number} for {what}, epoch {assignment.epoch}")

    def _acknowledgement_goes_out(self, message: bytes) -> None:
        """Whoever is told that a contribution counts may rely on it, and on all that was in θ before it."""
        c = decode_server_message(message)[0].acknowledged
        assert self._shell is not None
        assert self._shell.run is not None
        run = self._shell.run
        oracle = self.oracles[run.job_id]
        version = oracle.version_with(c.shard, c.step)
        if run.job.server.durability == "log":
            self._promise_when_written(oracle, min(version, oracle.logged_version))

    async def _serve_call(self, method: str, request: Any, context: Context) -> AsyncIterator[Any]:
        service = self._services[1]
        if method == "Watch":
            async for reply in service.Watch(request, context):  # type: ignore[arg-type]
                yield reply
        else:
            yield await getattr(service, method)(request, context)

    def _look(self) -> None:
        """Check what must hold after every event of the server."""
        shell = self._shell
        if shell is None:
            return
        for session in shell.sessions.values():
            if len(session._outbox) > MAX_WAITING:
                raise Violation(f"{len(session._outbox)} answers wait for worker {session.name}")
        run = shell.run
        if run is None or run.store is None:
            return
        oracle = self.oracles[run.job_id]
        engine = run.engine
        if not engine.version == run.store.version == oracle.version:
            raise Violation(f"engine at {engine.version}, store at {run.store.version}, θ at {oracle.version}")
        if isinstance(run.log, Log) and run.job.train.mode != "sync":
            ahead = run.log._promised - run.log.safe
            if ahead > AHEAD_VERSIONS + len(engine.shards):
                raise Violation(f"training is {ahead} versions ahead of the disk, allowed are {AHEAD_VERSIONS}")
        if len(engine._round) > len(engine.shards):
            raise Violation(f"{len(engine._round)} contributions are in a round of {len(engine.shards)} shards")
        if self._switch_in_round and engine._round:
            number, self._switch_in_round = self._switch_in_round, 0
            self._by_client(self._switch(number))

    # The workers.

    def _start_worker(self) -> None:
        self._worker_count += 1
        number = self._worker_count
        taken = {self._names[other] for other in self._workers}
        seat = next(seat for seat in range(len(taken) + 1) if f"w{seat}" not in taken)
        name = f"w{seat}" if self.scenario.keeps_names else f"w{number}"
        process = Process(f"worker {number}", self.clock, lambda: self._rng.expovariate(1 / self.scenario.compute_s))
        self._workers[number], self._names[number] = process, name
        self._slow[number] = 1.0
        trainer = Trainer(Identity(name, instance=number, acknowledge=True), compute=self._compute_of(number))
        self.tell(f"worker {number} starts as {name}")

        async def main() -> None:
            try:
                await work(("server",), trainer, 1e9)
            except ParamserverError as error:
                self.tell(f"worker {number} gives up: {error}")
                if not self.scenario.wild:
                    process.errors.append(f"gives up: {error!r}")
            self.clock.at(self.clock.now, None, lambda: self._worker_exits(number))

        self._tasks[number] = process.start(main())
        self._tasks[number].add_done_callback(_retrieve(process))

    def _worker_exits(self, number: int) -> None:
        if number in self._workers:
            self._kill_worker(number)
            if self._calm and not self._workers:
                self._start_worker()

    def _compute_of(self, number: int) -> Any:
        async def compute(
            learner: Learner, theta: dict[str, Array], shard: int, step: int, _out: dict[str, Array]
        ) -> Gradient:
            shape = learner.shape
            oracle = self.oracles[f"job {shape.number}"]
            held = shape.flat(theta)
            version = oracle.version_of(held)
            await asyncio.sleep(self._rng.expovariate(1 / self.scenario.compute_s) * self._slow[number])
            if number in self._sick:
                self._sick.discard(number)
                self._sickened.add(f"job {shape.number}")
                raise TaskError("sick")
            if shape.flat(theta).tobytes() != held.tobytes():
                raise Violation("θ changed under a worker's hands")
            count = samples(shard, step)
            views = shape.views(contribution(shape, held, version, shard, step, number) / count)
            return Gradient(loss(shape, held, shard, step), views, count)

        return compute

    def _kill_worker(self, number: int) -> None:
        process = self._workers.pop(number)
        self.tell(f"worker {number} is gone")
        process.kill()
        self._graves.append(process)

    # The client.

    def _promised(self, what: str) -> None:
        """The client was told something that it may rely on."""
        self.tell(f"client: {what}")
        if self._ambush:
            self._ambush = False
            self._kill_server(power=True)
            self._start_server_in(0.1)

    def _by_client(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._client.start(coroutine).add_done_callback(_retrieve(self._client))

    async def _drive(self) -> None:
        for number, job in enumerate(self.scenario.jobs, start=1):
            job_id = f"job {number}"
            oracle = self.oracles[job_id] = Oracle(job, self.broken)
            request = pb.SubmitRequest(job_id=job_id, job_json=job.to_json())
            while True:
                await self._ask("Submit", request)
                oracle.submitted = True
                self._promised(f"{job_id} is accepted")
                if await self._watch(job_id, oracle):
                    break
                # It was not to be kept, and the server died.
                oracle.submitted = False
        self._finished = True

    async def _ask(self, method: str, request: Any) -> Any:
        """Call until there is an answer."""
        while True:
            try:
                async for reply in self.network.call(self._client, method, request):
                    return reply
            except grpc.aio.AioRpcError as error:
                self.tell(f"client: {method}: {error.code().name}: {error.details()}")
            await asyncio.sleep(0.2)

    async def _watch(self, job_id: str, oracle: Oracle) -> bool:
        """Watch a job to its end; False if it is gone."""
        step = 0
        while True:
            try:
                async for reply in self.network.call(self._client, "Watch", pb.WatchRequest(after_step=step)):
                    status = reply.status
                    if status.job_id != job_id:
                        raise Violation(f"{status.job_id or 'no job'} is in the place of {job_id}")
                    for point in reply.points:
                        if point.step != step + 1:
                            raise Violation(f"a watcher sees step {point.step} after {step}")
                        step = point.step
                    if status.state in ("done", "failed", "stopped") and not reply.points:
                        self._check_end(status, oracle)
                        return True
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    if oracle.survives:
                        raise Violation("a job that was accepted is gone") from None
                    return False
            await asyncio.sleep(0.1)

    def _check_end(self, status: pb.StatusReply, oracle: Oracle) -> None:
        self.tell(f"client: {status.job_id} is {status.state}: {status.reason}")
        if status.state == "failed":
            if status.job_id not in self._sickened:
                raise Violation(f"the job failed: {status.reason}")
            return
        if oracle.survives and not self._disk_failed_since_boot:
            oracle.promise_end(status.state, status.version)
        run = self._shell.run if self._shell is not None else None
        if run is not None and run.job_id == status.job_id and run.engine.ended:
            columns = run.history.columns()
            oracle.ended(status.state, columns["step"].tolist(), columns["loss"].tolist())

    async def _checkpoint(self) -> None:
        if not self.oracles:
            return
        oracle = list(self.oracles.values())[-1]
        # The answer does not say which job it is about.
        is_sure = oracle.submitted
        try:
            async for reply in self.network.call(self._client, "Snapshot", pb.SnapshotRequest()):
                if is_sure:
                    oracle.promise_version(reply.version)
                self._promised(f"checkpoint of version {reply.version}")
        except grpc.aio.AioRpcError as error:
            self.tell(f"client: checkpoint: {error.code().name}: {error.details()}")

    async def _stop_job(self) -> None:
        try:
            async for _ in self.network.call(self._client, "Stop", pb.StopRequest(reason="asked to")):
                self.tell("client: the job is stopped")
        except grpc.aio.AioRpcError as error:
            self.tell(f"client: stop: {error.code().name}: {error.details()}")

    async def _switch(self, number: int) -> None:
        if not self.oracles or len(self.scenario.jobs) > 1:
            return
        (oracle,) = self.oracles.values()
        job = oracle.job
        if job.optimizer.momentum:
            return
        rng = Random(number)
        changes: dict[str, Any] = {
            "mode": rng.choice(("sync", "ssp", "async")),
            "quorum": rng.randint(0, job.data.shards),
            "staleness": rng.randint(0, 2),
            "max_delay": rng.choice((0, 1, 3)),
        }
        after = TrainSection(**{**job.train.model_dump(), **changes})
        oracle.switching(after, self.clock.now)
        try:
            async for reply in self.network.call(self._client, "SetPolicy", pb.SetPolicyRequest(**changes)):
                told = Job.from_json(reply.job_json).train
                if told not in oracle.policies and not oracle.rotted:
                    raise Violation(f"after a switch to {after} the server has {told}")
                if oracle.survives and not self._disk_failed_since_boot:
                    oracle.switched(after, self.clock.now)
                self._promised(f"policy is {changes}")
        except grpc.aio.AioRpcError as error:
            self.tell(f"client: switch: {error.code().name}: {error.details()}")

    # What goes wrong.

    def _disk_fault(self, kind: str) -> int:
        if not self._disk_fails or self._rng.random() < 0.6:
            return 0
        self._disk_failed_since_boot = True
        return errno.EIO if kind in ("fsync", "sync", "rename", "unlink") else errno.ENOSPC

    def _disk_moved(self, at: float, _kind: str) -> None:
        if self._trap is None:
            return
        left, power = self._trap
        self._trap = (left - 1, power) if left else None
        if not left:
            server = self._server

            def die() -> None:
                if self._server is server:
                    self._kill_server(power)
                    self._start_server_in(0.1)

            # Before the operation that follows.
            self.clock.at(at, None, die)

    def _strike(self, fault: Fault) -> None:
        now, server, workers = self.clock.now, self._server, sorted(self._workers)
        worker = workers[fault.number % len(workers)] if workers else 0
        if self._trace:
            self.tell(f"fault: {fault.kind} ({fault.number}) for {fault.duration_s:.2f} s")
        match fault.kind:
            case "kill server" | "cut power":
                if server is not None:
                    self._kill_server(fault.kind == "cut power")
                    self._start_server_in(fault.duration_s)
            case "kill server while it writes" | "cut power while it writes":
                self._trap = fault.number % 20, fault.kind.startswith("cut")
            case "end server":
                if server is not None and self._shell is not None and not server.stopped and not self._ending:
                    self._ending = True
                    server.start(self._terminate(server, self._shell))
            case "stop server":
                self._stop(server, fault.duration_s)
            case "kill worker" if workers:
                self._kill_worker(worker)
                self.clock.at(now + fault.duration_s, None, self._start_worker)
            case "stop worker" if workers:
                self._stop(self._workers[worker], fault.duration_s * 3)
            case "slow worker" if workers:
                self._slow[worker] = 20.0
            case "part":
                ends: list[Process | None] = [server, self._client, *(self._workers[w] for w in workers)]
                other = ends[1 + fault.number % (len(ends) - 1)]
                if server is not None and other is not None:
                    self.network.part(server, other)
                    pair = frozenset((server.name, other.name))
                    self.clock.at(now + fault.duration_s * 5, None, lambda: self.network.heal(pair))
            case "reset" if self.network.connections:
                self.network.connections[fault.number % len(self.network.connections)].reset()
            case "join":
                self._start_worker()
            case "leave" if workers:
                self._tasks[worker].cancel()
                self._workers[worker].wake()
            case "fail disk":
                self._disk_fails = True
                self.clock.at(now + fault.duration_s, None, self._repair_disk)
            case "cut power after a promise":
                self._ambush = True
                if fault.number % 2:
                    self._by_client(self._checkpoint())
            case "rot":
                self._rots = True
            case "checkpoint":
                self._by_client(self._checkpoint())
            case "switch" if fault.number % 2:
                self._switch_in_round = fault.number
            case "switch":
                self._by_client(self._switch(fault.number))
            case "stop job":
                self._by_client(self._stop_job())
            case "sicken worker" if workers:
                self._sick.add(worker)

    def _repair_disk(self) -> None:
        self._disk_fails = False

    def _stop(self, process: Process | None, seconds: float) -> None:
        if process is None or process.stopped:
            return
        process.stop()
        self.network.stopped(process)
        self.clock.at(self.clock.now + seconds, None, process.resume)

    def _calm_down(self) -> None:
        self.tell("all is well from now on")
        self._calm = True
        self._trap = None
        self._disk_fails = self._rots = self._ambush = False
        self.network.heal()
        self.network.wild = False
        for connection in list(self.network.connections) if self.scenario.wild else []:
            connection.reset()
        for process in [self._server, *self._workers.values()]:
            if process is not None and process.stopped:
                process.resume()
        for number in self._slow:
            self._slow[number] = 1.0
        if self._server is None:
            self._start_server()
        self._sick.clear()
        if not self._workers or self._sickened:
            # One that failed gets no more work for its job.
            self._start_worker()


class _ObservedStore(Store):
    """The real store, watched."""

    world: World

    def __init__(self, job: Job, *arguments: Any) -> None:
        super().__init__(job, *arguments)
        self._oracle = self.world.oracles[f"job {job.task.options['number']}"]
        self._is_restored = False
        self._train = job.train
        if self.world._shell is not None:
            self._oracle.begun(self.theta)

    def restage(self, job: Job) -> None:
        super().restage(job)
        self._train = job.train

    def restore(self, version: int, optimizer_state: Any) -> None:
        super().restore(version, optimizer_state)
        self._oracle.restored(version, self.theta)

    def apply(self, version: int, step: int, contributions: Any, whole_norm: float | None = None) -> float | None:
        norm = super().apply(version, step, contributions, whole_norm)
        if self.world._shell is None:
            # The log is being replayed.
            self._oracle.restored(version, self.theta)
            return norm
        named = [(c.shard, c.step) for c in contributions]
        if self.world._trace:
            self.world.tell(f"server: version {version} of {named}")
        self._oracle.updated(version, named, self.theta, self._train)
        return norm


def _retrieve(process: Process) -> Callable[[asyncio.Task[None]], None]:
    def look(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            process.errors.append(repr(task.exception()))

    return look
