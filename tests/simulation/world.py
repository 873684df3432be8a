"""One simulated run: servers, workers and a client, what goes wrong with them, and the promises that must hold."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from random import Random
from typing import Any

import grpc
import numpy as np

from paramserver.server.coordinator import Coordinator
from paramserver.server.events import Contribution
from paramserver.server.following import Follower
from paramserver.server.leading import LeadingRun
from paramserver.server.log import Log
from paramserver.server.session import MAX_WAITING
from paramserver.server.shell import Shell
from paramserver.server.store import Store
from paramserver.wire.errors import ParamserverError, TaskError
from paramserver.wire.framing import decode_server_message
from paramserver.wire.job import Job, TrainSection
from paramserver.wire.layout import Array, Layout
from paramserver.wire.sharing import Draft
from paramserver.wire.v1 import paramserver_pb2 as pb
from paramserver.worker.process import work
from paramserver.worker.trainer import Gradient, Identity, Trainer
from simulation.host import Host
from simulation.ledger import Learner, contribution, loss, samples
from simulation.loop import Clock, Process
from simulation.network import Context, Network
from simulation.oracle import Oracle, Violation
from simulation.real import AHEAD_VERSIONS, surroundings
from simulation.scenario import ALL, Fault, Focus, Scenario, draw

#: Simulated seconds from the end of all faults in which every job must end: leases, keepalives and connection attempts
#: run out one after the other, and then everything may have to be computed once more.
PATIENCE_S = 150.0

#: More events than any run needs; beyond it something turns in circles.
MAX_EVENTS = 20_000

#: Faults after which a lease is lost and comes back, or a contribution is refused.
DISORDERLY = {"stop worker", "stop server", "part", "switch"}


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
        count = s.partitions
        self.hosts = [
            Host(self, n, count, self._rng, lambda: self._rng.expovariate(1 / s.disk_s)) for n in range(count)
        ]
        #: Where clients go: the server that decides.
        self._first = self.hosts[0]
        self._addresses = tuple(host.name for host in self.hosts)
        #: The connection of several servers that was looked at last.
        self._led = b""
        #: How often they were connected.
        self._leads = 0
        self.oracles: dict[str, Oracle] = {}
        self._workers: dict[int, Process] = {}
        self._names: dict[int, str] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._slow: dict[int, float] = {}
        self._worker_count = 0
        self._client = Process("client", self.clock, lambda: 0.0)
        self._graves: list[Process] = []
        #: Switch the policy as soon as a round is open; 0 for not.
        self._switch_in_round = 0
        #: Workers that cannot compute; jobs in which one was sick may fail.
        self._sick: set[int] = set()
        self._sickened: set[str] = set()
        #: Cut the power of these as soon as the client, or a worker by an acknowledgement, was promised something.
        self._ambush: list[Host] = []
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
        with surroundings(self.clock, self.network, Random(self.seed + 2), s.chunk_bytes, store):
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
                hosts = [process for host in self.hosts for process in (*host.graves, host.process)]
                for process in [*self._graves, *self._workers.values(), self._client, *hosts]:
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
        for host in self.hosts:
            host.start()
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
                for host in self.hosts:
                    if process is host.process:
                        self._look(host)
            if clock.now > deadline or self.events > MAX_EVENTS:
                raise Violation(f"no end {PATIENCE_S:g} s after the last fault ({self.events} events): {self._why()}")

    def _end(self) -> None:
        """Let servers die once more: whoever was told of an end can rely on it."""
        if self._first.process is None:
            return
        job = self.scenario.jobs[-1]
        leads = self._leads
        victims = self._victims(self._rng.randrange(1 << 16))
        power = self._rng.random() < 0.5
        for host in victims:
            host.kill(power)
        for host in victims:
            host.start()
        if job.server.durability == "none":
            return
        for _ in range(200 if len(self.hosts) == 1 else MAX_EVENTS):
            process = self.clock.step()
            if process is self._first.process and self._shell is not None:
                if isinstance(self._shell, Coordinator):
                    self._look(self._first)
                if not isinstance(self._shell, Coordinator) or self._leads > leads:
                    break
        if self._shell is None or self._shell.run is None:
            raise Violation("the last job is gone")

    def _victims(self, number: int) -> list[Host]:
        """Choose one server, or all of several."""
        chosen = number // 7 % (len(self.hosts) + 1)
        return self.hosts if chosen == len(self.hosts) else [self.hosts[chosen]]

    def _why(self) -> str:
        if self._shell is None or self._shell.run is None:
            return "the server has no job"
        engine = self._shell.run.engine
        waits = "; ".join(wait.reason for wait in engine.waits(self.clock.now))
        waits += self._shell.waits_for
        return f"phase {engine.phase}, clocks {engine.clocks}, version {engine.version}; {waits}"

    # The servers.

    @property
    def _shell(self) -> Shell | None:
        return self._first.decides

    def server_started(self, host: Host) -> None:
        self.tell(f"{host.name} starts{self._describe_run(host)}")
        if len(self.hosts) == 1:
            self._check_start()

    def server_died(self, host: Host) -> None:
        if host is self._first:
            for oracle in self.oracles.values():
                oracle.server_died()
        # What was acknowledged since cannot be had from an older snapshot that the log does not lead on from.
        logs = any(job.server.durability == "log" for job in self.scenario.jobs)
        if host.rots and not logs and host.flip_newest():
            for oracle in self.oracles.values():
                oracle.disk_rotted()

    def server_ended(self, host: Host) -> None:
        shell = host.decides
        is_sure = not isinstance(shell, Coordinator) or shell._is_open
        if shell is not None and shell.run is not None and is_sure and not self._disk_failed:
            run = shell.run
            if run.engine.phase in ("train", "done", "stopped"):
                self.oracles[run.job_id].promise_version(run.engine.version)

    @property
    def _disk_failed(self) -> bool:
        """Has a server said that it could not keep something?"""
        return any(host.disk_failed_since_boot for host in self.hosts)

    def _check_start(self) -> None:
        """What was acknowledged before is there, now that all servers are."""
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
        if isinstance(run, LeadingRun) and run._lost is not None:
            # It is over, and its parameters cannot be had: whoever submits the next job gives up the one before.
            is_last = oracle is list(self.oracles.values())[-1]
            if not oracle.rotted and is_last and run.engine.phase != "failed":
                raise Violation(f"what was promised to be kept is gone: {run._lost}")
        elif run.store is not None:
            oracle.started(run.store.version)
        elif oracle.promised_version:
            raise Violation(f"came back without θ, version {oracle.promised_version} was promised to be kept")
        if oracle.promised_end is not None and oracle.promised_end != (run.engine.phase, run.engine.version):
            raise Violation(f"the job ended with {oracle.promised_end}, and came back{self._describe_run(self._first)}")

    def _describe_run(self, host: Host) -> str:
        if host.shell is None or host.shell.run is None:
            return ""
        run = host.shell.run
        engine = run.engine
        return f" with job {run.job_id}, phase {engine.phase}, version {engine.version}, clocks {engine.clocks}"

    def _promise_when_written(self, oracle: Oracle, version: int) -> None:
        """Hold the server to a version from when the disk operations ahead of the message are done."""
        server = self._first.process
        assert server is not None

        def promise() -> None:
            if server.alive:
                oracle.promise_version(version)
                self._spring()

        if server.io_time <= self.clock.now:
            oracle.promise_version(version)
        # Nobody is killed in the middle of saying it.
        self.clock.at(max(server.io_time, self.clock.now), None, promise)

    def _number_of(self, context: Context) -> int:
        worker = context.processes[0]
        return next(number for number, process in self._workers.items() if process is worker)

    def work_goes_out(self, message: bytes, context: Context) -> None:
        number = self._number_of(context)
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

    def acknowledgement_goes_out(self, message: bytes) -> None:
        """Whoever is told that a contribution counts may rely on it, and on all that was in θ before it."""
        c = decode_server_message(message)[0].acknowledged
        assert self._shell is not None
        assert self._shell.run is not None
        run = self._shell.run
        oracle = self.oracles[run.job_id]
        version = oracle.version_with(c.shard, c.step)
        if run.job.server.durability == "log":
            self._promise_when_written(oracle, min(version, oracle.logged_version))

    def _look(self, host: Host) -> None:
        """Check what must hold after every event of a server."""
        shell = host.shell
        if shell is None:
            return
        for session in shell.sessions.values():
            if len(session._outbox) > MAX_WAITING:
                raise Violation(f"{len(session._outbox)} answers wait for worker {session.name}")
        if isinstance(shell, Coordinator):
            self._look_at_lead(shell)
            if not shell._is_open:
                # The next run is being brought to where all can begin.
                return
        run = shell.run
        if run is None or run.store is None:
            return
        oracle = self.oracles[run.job_id]
        engine = run.engine
        part = oracle.parts[host.number]
        # The coordinator's engine has decided on an update that it is about to order.
        ahead = engine.version - run.store.version
        if not 0 <= ahead <= isinstance(run, LeadingRun) or run.store.version != part.version:
            raise Violation(f"engine at {engine.version}, store at {run.store.version}, θ at {part.version}")
        if isinstance(shell, Follower):
            first = self._shell
            # While it is being brought to where all can begin, the coordinator's run is still the one before.
            is_led = isinstance(first, Coordinator) and first._is_open and first.cluster == shell.cluster != b""
            if is_led and first is not None and first.run is not None and engine.version > first.run.engine.version:
                raise Violation(f"{host.name} is at {engine.version}, nobody ordered that")
            return
        if isinstance(run.log, Log) and run.job.train.mode != "sync":
            behind = run.log._promised - run.log.safe
            if behind > AHEAD_VERSIONS + len(engine.shards):
                raise Violation(f"training is {behind} versions ahead of the disk, allowed are {AHEAD_VERSIONS}")
        if len(engine._round) > len(engine.shards):
            raise Violation(f"{len(engine._round)} contributions are in a round of {len(engine.shards)} shards")
        if self._switch_in_round and engine._round:
            number, self._switch_in_round = self._switch_in_round, 0
            self._by_client(self._switch(number))

    def _look_at_lead(self, shell: Coordinator) -> None:
        if shell._is_open and shell.cluster != self._led:
            self._led = shell.cluster
            self._leads += 1
            self.tell(f"all servers are connected{self._describe_run(self._first)}")
            self._check_start()
        run = shell.run
        if run is not None:
            # What was computed under one lease and is not whole everywhere; leases that ended are forgotten.
            most = 2 * len(run.engine.shards)
            if len(run._values) > most or len(run._gathering._where) > most or len(run._gathering._given) > most:
                raise Violation(f"{len(run._values)} contributions wait for other servers")

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
                await work(self._addresses, trainer, 1e9)
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
            versions = oracle.versions_of(held)
            await asyncio.sleep(self._rng.expovariate(1 / self.scenario.compute_s) * self._slow[number])
            if number in self._sick:
                self._sick.discard(number)
                self._sickened.add(f"job {shape.number}")
                raise TaskError("sick")
            if shape.flat(theta).tobytes() != held.tobytes():
                raise Violation("θ changed under a worker's hands")
            count = samples(shard, step)
            parts = shape.cut(held)
            sums = [contribution(shape, p, v, shard, step, number) for p, v in zip(parts, versions, strict=True)]
            return Gradient(loss(shape, parts[0], shard, step), shape.layout.views(np.concatenate(sums) / count), count)

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
        self._spring()

    def _spring(self) -> None:
        """Have the ambush, if there is one, fall on those that it waits for."""
        hosts, self._ambush = self._ambush, []
        for host in hosts:
            host.kill(power=True)
            host.start_in(0.1)

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

    def _call(self, method: str, request: Any) -> AsyncIterator[Any]:
        return self.network.call(self._client, self._first.name, method, request)

    async def _ask(self, method: str, request: Any) -> Any:
        """Call until there is an answer."""
        while True:
            try:
                async for reply in self._call(method, request):
                    return reply
            except grpc.aio.AioRpcError as error:
                self.tell(f"client: {method}: {error.code().name}: {error.details()}")
            await asyncio.sleep(0.2)

    async def _watch(self, job_id: str, oracle: Oracle) -> bool:
        """Watch a job to its end; False if it is gone."""
        step = 0
        while True:
            try:
                async for reply in self._call("Watch", pb.WatchRequest(after_step=step)):
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
            # Where nothing of a job is kept, it is over with the first of several servers that is lost.
            is_lost = not oracle.survives and self._leads > 1 and "nothing of the job is kept" in status.reason
            if status.job_id not in self._sickened and not is_lost:
                raise Violation(f"the job failed: {status.reason}")
            return
        if oracle.survives and not self._disk_failed:
            oracle.promise_end(status.state, status.version)
        run = self._shell.run if self._shell is not None else None
        if run is not None and run.job_id == status.job_id and run.engine.ended and not oracle.rotted:
            columns = run.history.columns()
            oracle.ended(status.state, columns["step"].tolist(), columns["loss"].tolist())

    async def _checkpoint(self) -> None:
        if not self.oracles:
            return
        oracle = list(self.oracles.values())[-1]
        # The answer does not say which job it is about.
        is_sure = oracle.submitted
        try:
            async for reply in self._call("Snapshot", pb.SnapshotRequest()):
                if is_sure:
                    oracle.promise_version(reply.version)
                self._promised(f"checkpoint of version {reply.version}")
        except grpc.aio.AioRpcError as error:
            self.tell(f"client: checkpoint: {error.code().name}: {error.details()}")

    async def _export(self) -> None:
        theta, version, job_id = b"", 0, ""
        try:
            async for reply in self._call("Pull", pb.PullRequest()):
                theta, version, job_id = theta + reply.payload, reply.version, reply.job_id
        except grpc.aio.AioRpcError as error:
            self.tell(f"client: export: {error.code().name}: {error.details()}")
            return
        oracle = self.oracles[job_id]
        oracle.exported(version, np.frombuffer(theta))
        if oracle.job.server.durability == "log":
            oracle.promise_version(min(version, oracle.logged_version))
        self._promised(f"θ of version {version}")

    async def _stop_job(self) -> None:
        try:
            async for _ in self._call("Stop", pb.StopRequest(reason="asked to")):
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
            async for reply in self._call("SetPolicy", pb.SetPolicyRequest(**changes)):
                told = Job.from_json(reply.job_json).train
                if told not in oracle.policies and not oracle.rotted:
                    raise Violation(f"after a switch to {after} the server has {told}")
                if oracle.survives and not self._disk_failed:
                    oracle.switched(after, self.clock.now)
                self._promised(f"policy is {changes}")
        except grpc.aio.AioRpcError as error:
            self.tell(f"client: switch: {error.code().name}: {error.details()}")

    # What goes wrong.

    def _strike(self, fault: Fault) -> None:
        now, workers = self.clock.now, sorted(self._workers)
        host = self.hosts[fault.number // 7 % len(self.hosts)]
        worker = workers[fault.number % len(workers)] if workers else 0
        if self._trace:
            self.tell(f"fault: {fault.kind} ({fault.number}) for {fault.duration_s:.2f} s")
        match fault.kind:
            case "kill server" | "cut power":
                for victim in self._victims(fault.number):
                    if victim.process is not None:
                        victim.kill(fault.kind == "cut power")
                        victim.start_in(fault.duration_s)
            case "kill server while it writes" | "cut power while it writes":
                host.trap = fault.number % 20, fault.kind.startswith("cut")
            case "end server":
                host.end()
            case "stop server":
                self._stop(host.process, fault.duration_s)
            case "kill worker" if workers:
                self._kill_worker(worker)
                self.clock.at(now + fault.duration_s, None, self._start_worker)
            case "stop worker" if workers:
                self._stop(self._workers[worker], fault.duration_s * 3)
            case "slow worker" if workers:
                self._slow[worker] = 20.0
            case "part":
                one, other = self._ends_of_a_cut(fault.number)
                if one is not None and other is not None:
                    self.network.part(one, other)
                    pair = frozenset((one.name, other.name))
                    self.clock.at(now + fault.duration_s * 5, None, lambda: self.network.heal(pair))
            case "reset" if self.network.connections:
                self.network.connections[fault.number % len(self.network.connections)].reset()
            case "join":
                self._start_worker()
            case "leave" if workers:
                self._tasks[worker].cancel()
                self._workers[worker].wake()
            case "fail disk":
                host.disk_fails = True
                self.clock.at(now + fault.duration_s, None, lambda: setattr(host, "disk_fails", False))
            case "cut power after a promise":
                self._ambush = self._victims(fault.number)
                if fault.number % 2:
                    self._by_client(self._checkpoint())
            case "rot":
                host.rots = True
            case "export":
                self._by_client(self._export())
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

    def _ends_of_a_cut(self, number: int) -> tuple[Process | None, Process | None]:
        """Choose two processes that talk to each other."""
        first, *followers = [host.process for host in self.hosts]
        workers = [self._workers[number] for number in sorted(self._workers)]
        pairs = [(first, other) for other in (self._client, *workers, *followers)]
        pairs += [(follower, worker) for follower in followers for worker in workers]
        return pairs[number % len(pairs)]

    def _stop(self, process: Process | None, seconds: float) -> None:
        if process is None or process.stopped:
            return
        process.stop()
        self.network.stopped(process)
        self.clock.at(self.clock.now + seconds, None, process.resume)

    def _calm_down(self) -> None:
        self.tell("all is well from now on")
        self._calm = True
        self._ambush = []
        for host in self.hosts:
            host.trap, host.disk_fails, host.rots = None, False, False
        self.network.heal()
        self.network.wild = False
        for connection in list(self.network.connections) if self.scenario.wild else []:
            connection.reset()
        for process in [*(host.process for host in self.hosts), *self._workers.values()]:
            if process is not None and process.stopped:
                process.resume()
        for number in self._slow:
            self._slow[number] = 1.0
        for host in self.hosts:
            if host.process is None:
                host.start()
        self._sick.clear()
        if not self._workers or self._sickened:
            # One that failed gets no more work for its job.
            self._start_worker()


class _ObservedStore(Store):
    """The real store, watched."""

    world: World

    def __init__(self, job: Job, layout: Layout, theta: Any, total_steps: int) -> None:
        super().__init__(job, layout, theta, total_steps)
        self._oracle = self.world.oracles[f"job {job.task.options['number']}"]
        self._train = job.train
        self._host = self.world.hosts[layout.start // self._oracle.shape.size]
        shell = self._host.shell
        self._lead = b"" if shell is None else shell.cluster
        if isinstance(theta, Draft):
            self._oracle.begun(self._host.number, self.theta)

    def restage(self, job: Job) -> None:
        super().restage(job)
        self._train = job.train

    def restore(self, version: int, optimizer_state: Any) -> None:
        super().restore(version, optimizer_state)
        self._oracle.restored(self._host.number, version, self.theta)

    def apply(
        self,
        version: int,
        step: int,
        contributions: Sequence[Contribution],
        answer: Sequence[float] | None = None,
        rows: Sequence[float] = (),
    ) -> float | None:
        norm = super().apply(version, step, contributions, answer, rows)
        shell = self._host.shell
        if shell is None or shell.run is None or shell.run.store is not self:
            # The log is being replayed, by a run that nobody works in yet.
            self._oracle.restored(self._host.number, version, self.theta)
            return norm
        if self.world._trace:
            named = [(c.shard, c.step) for c in contributions]
            self.world.tell(f"{self._host.name}: version {version} of {named}")
        self._oracle.updated(self._host.number, self._lead, version, contributions, self.theta, self._train)
        return norm


def _retrieve(process: Process) -> Callable[[asyncio.Task[None]], None]:
    def look(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            process.errors.append(repr(task.exception()))

    return look
