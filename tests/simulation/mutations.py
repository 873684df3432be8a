"""Faults put into the real code on purpose, each of which the simulation must find.

A mutation replaces a piece of the source of one function, which must be there exactly once: if the code moves on, the
mutation fails loudly instead of testing nothing.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from simulation.scenario import ALL, Focus

_CRASHES = ("kill server", *("kill server while it writes",) * 4)
_POWER_CUTS = ("cut power", "cut power while it writes", "cut power while it writes")
_WORKERS = ("kill worker", "stop worker", "part", "reset", "join")

#: The server dies, mostly at its disk.
CRASHES = Focus(
    durabilities=("snapshot",),
    faults=_CRASHES,
    troubles=(5, 8),
    lasting=0.02,
    spread=(4.0,),
    workers=(2, 3),
    steps=(8,),
    compute_s=(0.05, 0.3),
    disk_s=(0.005,),
    snapshot_every_s=(0.05, 0.2),
    wild=0.0,
)
#: The server dies, and comes back to a θ from the middle of the job.
RETURNS = Focus(
    modes=("sync",),
    durabilities=("snapshot",),
    faults=("kill server",),
    troubles=(5, 8),
    lasting=0.02,
    spread=(1.5, 4.0),
    workers=(2, 3),
    shards=(3, 4),
    steps=(8,),
    compute_s=(0.05, 0.3),
    disk_s=(0.0002,),
    momenta=(0.5,),
    snapshot_every_s=(0.05, 0.2),
    wild=0.0,
)
#: The machine loses its power.
POWER_CUTS = Focus(durabilities=("snapshot",), faults=_POWER_CUTS, troubles=(5, 8), wild=0.0)
#: So does its disk lose a bit.
ROT = Focus(
    modes=("sync",),
    durabilities=("snapshot",),
    faults=("rot", "kill server"),
    troubles=(5, 8),
    steps=(5, 8),
    disk_s=(0.0002,),
    snapshot_every_s=(0.05,),
    wild=0.0,
)
#: The machine loses its power when somebody has just been promised something.
AMBUSHES = Focus(
    modes=("sync",),
    durabilities=("snapshot",),
    faults=("cut power after a promise",),
    troubles=(5, 8),
    lasting=0.02,
    spread=(1.5, 4.0),
    workers=(2, 3),
    steps=(8,),
    disk_s=(0.05,),
    snapshot_every_s=(4.0,),
    wild=0.0,
)
#: The policy changes again and again, also while the server dies.
SWITCHES = Focus(
    faults=("switch", "switch", "cut power after a promise"),
    troubles=(8,),
    lasting=0.02,
    workers=(2, 3),
    shards=(3, 4),
    steps=(8,),
    momenta=(0.0,),
    wild=0.0,
)
#: Workers are silent until others have their shards, and then speak.
FENCED = Focus(
    faults=("stop worker", "part"), troubles=(5, 8), lasting=0.5, spread=(4.0,), workers=(2, 3), steps=(8,), wild=0.0
)
#: Workers die, stand still and are cut off.
LOSSES = Focus(faults=_WORKERS, troubles=(5, 8, 12), workers=(2, 3, 5), wild=0.0)
#: Messages are lost, doubled and overtaken.
WILD = Focus(modes=("ssp", "async"), faults=("join",), troubles=(1,), workers=(2, 3, 5), steps=(8,), wild=1.0)
#: Several workers go at different speeds.
APART = Focus(
    modes=("ssp", "async"), faults=("slow worker", "join", "reset"), workers=(2, 3, 5), steps=(5, 8), wild=0.0
)
#: Rounds, with nothing worse than that.
ROUNDS = Focus(
    modes=("sync", "quorum"), faults=("slow worker", "kill worker"), workers=(2, 3, 5), shards=(3, 4), wild=0.0
)
#: The machine loses its power while contributions are being logged, on a disk that lags behind.
LOGGED = Focus(
    modes=("async", "ssp"),
    durabilities=("log",),
    faults=_POWER_CUTS,
    troubles=(5, 8, 12),
    lasting=0.05,
    spread=(4.0,),
    workers=(2, 3, 5),
    shards=(3, 4),
    steps=(5, 8),
    compute_s=(0.005, 0.05),
    disk_s=(0.005, 0.05),
    snapshot_every_s=(4.0,),
    wild=0.0,
)
#: So do the machines of several servers, one of them or all.
LOGGED_SERVERS = replace(
    LOGGED,
    faults=(*("cut power while it writes",) * 2, *("cut power after a promise",) * 3, "kill server while it writes"),
    lasting=0.02,
    spread=(8.0,),
    workers=(2, 3),
    compute_s=(0.05,),
    disk_s=(0.05,),
    partitions=(2, 3),
)
#: Several servers share θ, and one of them dies, mostly at its disk.
SERVERS = Focus(
    durabilities=("snapshot",),
    faults=(*_CRASHES, "checkpoint", "checkpoint"),
    troubles=(5, 8),
    lasting=0.02,
    spread=(1.5, 4.0),
    workers=(2, 3),
    steps=(8,),
    disk_s=(0.005,),
    momenta=(0.0,),
    snapshot_every_s=(0.05, 0.2),
    wild=0.0,
    partitions=(2, 3),
    asks=0.5,
)
#: Their machines lose power when somebody has just been promised something.
SERVER_AMBUSHES = replace(AMBUSHES, partitions=(2, 3), modes=("sync", "async"), disk_s=(0.005, 0.05))
#: Workers of several servers die, stand still and are cut off from some of them.
TORN = Focus(
    durabilities=("snapshot",),
    faults=_WORKERS,
    troubles=(5, 8, 12),
    lasting=0.5,
    spread=(1.5, 4.0),
    workers=(2, 3),
    steps=(5, 8),
    wild=0.0,
    partitions=(2, 3),
)
#: They die, one after the other.
FALLEN = replace(
    TORN,
    faults=("kill worker",),
    troubles=(40,),
    lasting=0.005,
    spread=(8.0,),
    workers=(3,),
    shards=(3, 4),
    compute_s=(0.005,),
)
#: Rounds of several servers close without some shards.
QUORUMS = replace(
    TORN, modes=("quorum",), faults=("slow worker", "slow worker", "join"), shards=(2,), steps=(20,), spread=(1.0,)
)
#: Workers of several servers go at different speeds.
SPREAD = replace(APART, partitions=(2, 3))
#: Messages between them are lost, doubled and overtaken.
WILD_SERVERS = replace(WILD, partitions=(2, 3), modes=("sync", "ssp", "async"))
#: Their job has a new policy every other moment.
SERVER_SWITCHES = replace(SWITCHES, partitions=(2, 3), spread=(1.0, 4.0))
#: Bits of their snapshots flip.
SERVER_ROT = replace(
    SERVERS,
    modes=("async",),
    faults=("rot", "rot", *_CRASHES),
    troubles=(8, 12),
    steps=(5, 8),
    snapshot_every_s=(0.05,),
)
#: Jobs are short, and end while something happens.
BRIEF = Focus(
    durabilities=("snapshot",),
    faults=("kill server", "kill server while it writes", "kill server while it writes", "reset", "reset"),
    troubles=(8, 12),
    lasting=0.02,
    spread=(4.0, 8.0),
    steps=(1, 2),
    compute_s=(0.3,),
    disk_s=(0.05,),
    wild=0.0,
    partitions=(2, 3),
    asks=1.0,
)


class Mutation(NamedTuple):
    """One fault."""

    name: str
    #: `module:Class.function` or `module:function` below `paramserver`.
    target: str
    old: str
    new: str
    #: Where it can show.
    focus: Focus = ALL


MUTATIONS = (
    Mutation(
        "skip the deduplication",
        "server.engine:Engine.admit",
        "if step < clock:",
        "if step < clock:\n        return None\n    if False:",
        WILD,
    ),
    Mutation(
        "forget the epoch and the holder",
        "server.engine:Engine.admit",
        "if state.holder != worker or state.epoch != epoch:",
        "if False:",
        FENCED,
    ),
    Mutation(
        "release the barrier by the count of contributions",
        "server.engine:Engine._close_round",
        "if not self._policy.quorum or len(self._round) < self._policy.quorum:",
        "if len(self._round) < (self._policy.quorum or len(self.shards) - 1):",
        ROUNDS,
    ),
    Mutation(
        "close a round one contribution below the quorum",
        "server.engine:Engine._close_round",
        "len(self._round) < self._policy.quorum",
        "len(self._round) < self._policy.quorum - 1",
        ROUNDS,
    ),
    Mutation(
        "apply in the order of arrival",
        "server.engine:Engine._close_round",
        "sorted(self._round)))",
        "self._round))",
        ROUNDS,
    ),
    Mutation(
        "count what a switch took back",
        "server.engine:Engine._change_policy",
        "self.clocks[c.shard] -= 1",
        "pass",
        SWITCHES,
    ),
    Mutation(
        "forget a parked pull",
        "server.engine:Engine._answer",
        "if assignments:",
        "worker.parked = False\n            if assignments:",
        ROUNDS,
    ),
    Mutation(
        "forget the history over a restart",
        "server.run:Run.restore",
        "History.of(snapshot.history or {})",
        "History()",
        RETURNS,
    ),
    Mutation(
        "let the clocks run on over a restart",
        "server.engine:Engine.state",
        "clock=self.clocks[i] - (i in open_round)",
        "clock=self.clocks[i]",
        RETURNS,
    ),
    Mutation("use a torn snapshot", "server.snapshots:_read", "if found != promised:", "if False:", ROT),
    Mutation(
        "no sync before the rename",
        "server.snapshots:StateDirectory._write",
        "os.fsync(file.fileno())",
        "pass",
        POWER_CUTS,
    ),
    Mutation(
        "no sync of the directory", "server.snapshots:StateDirectory.save", "os.fsync(self._lock)", "pass", POWER_CUTS
    ),
    Mutation("no sync of a new directory", "server.snapshots:_make", "os.fsync(above)", "pass", POWER_CUTS),
    Mutation(
        "remove the snapshot before the new one is there",
        "server.snapshots:StateDirectory.save",
        "partial.rename(file)",
        "self._good = []; self._remove_others(); partial.rename(file)",
        CRASHES,
    ),
    Mutation(
        "tell of a checkpoint before it is on the disk",
        "server.saver:Saver.save",
        "return await asyncio.shield(self._take())",
        "self._take(); from paramserver.server.snapshots import Saved; return Saved('', self._run.engine.version, '')",
        AMBUSHES,
    ),
    Mutation(
        "tell of the end before it is on the disk",
        "server.control:ControlService.Watch",
        "await self._shell.settled()",
        "pass",
        AMBUSHES,
    ),
    Mutation(
        "tell of a switch before it is on the disk",
        "server.control:ControlService.SetPolicy",
        "await self._shell.settled()",
        "pass",
        SWITCHES,
    ),
    Mutation(
        "accept a job without keeping it",
        "server.shell:Shell._start",
        "self._directory.save(Snapshot(job_id, job))",
        "pass",
        CRASHES,
    ),
    Mutation(
        "acknowledge before the log is on the disk",
        "server.log:Log.keeps",
        "if not held and version <= self.safe:",
        "if for_good or (not held and version <= self.safe):",
        LOGGED,
    ),
    Mutation(
        "hand out work however far the disk is behind",
        "server.log:Log.keeps",
        "if not held and version <= self.safe:",
        "if not for_good or (not held and version <= self.safe):",
        LOGGED,
    ),
    Mutation("no sync of the log", "server.log:_Writer._sync", "os.fdatasync(self._file)", "pass", LOGGED),
    Mutation(
        "call safe what the coordinator alone has logged",
        "server.log:Log.safe",
        "min(self._on_disk)",
        "self._on_disk[0]",
        LOGGED_SERVERS,
    ),
    Mutation(
        "keep the log of versions that all went back behind",
        "server.replay:records",
        "frame.version == version + 1 and (limit is None or frame.version <= limit)",
        "frame.version == version + 1",
        LOGGED_SERVERS,
    ),
    Mutation(
        "go back to what one server's log leads to",
        "server.coordinator:newest_common",
        "if all(any(",
        "if any(any(",
        LOGGED_SERVERS,
    ),
    Mutation(
        "go back by snapshots alone",
        "server.snapshots:StateDirectory.reaches",
        "reach(snapshot.version, segments(self.path, _tag(snapshot)), is_newest=number == 0)",
        "snapshot.version",
        LOGGED_SERVERS,
    ),
    Mutation(
        "never end a lease",
        "server.engine:Engine._tick",
        "if worker.alive and now >= worker.last_seen + limit_s:",
        "if False:",
        LOSSES,
    ),
    Mutation(
        "keep the leases of a worker whose stream broke",
        "server.engine:Engine._drop",
        "sorted(state.shards)",
        "()",
        LOSSES,
    ),
    Mutation(
        "let a shard run one step past the staleness bound",
        "server.engine:Engine._last_step",
        "lead = self.total_steps - 1, self._policy.lead",
        "lead = self.total_steps - 1, self._policy.lead + 1 if self._policy.lead else self._policy.lead",
        APART,
    ),
    Mutation(
        "let a contribution be older than max_delay",
        "server.policies:_no_older_than",
        "delay <= max_delay",
        "True",
        APART,
    ),
    Mutation(
        "leave the optimizer's state behind",
        "server.store:Store.restore",
        "self.update.state = type(remembered)(**{name: state[name] for name in remembered._fields})",
        "pass",
        RETURNS,
    ),
    Mutation(
        "send θ that the worker does not hold as held",
        "server.run:Run._grant",
        "session.held == self.store.version",
        "session.held is not None",
        ROUNDS,
    ),
    Mutation(
        "send chunks of an older θ",
        "server.store:Store.answer",
        "return [*messages, self._lend(message, last)]",
        "self.first = getattr(self, 'first', messages); return [*self.first, self._lend(message, last)]",
        ROUNDS,
    ),
    Mutation(
        "count what not all servers have",
        "server.gathering:Gathering._note",
        "where.keys() != self._all",
        "name not in self._here",
        FALLEN,
    ),
    Mutation(
        "forget the epoch on the other servers",
        "server.followingengine:FollowingEngine.admit",
        "epoch < fence",
        "False",
        TORN,
    ),
    Mutation(
        "keep the first of two contributions to a step",
        "server.followingengine:FollowingEngine._hold",
        "self._held[c.shard] = c",
        "self._held.setdefault(c.shard, c)",
        TORN,
    ),
    Mutation(
        "give out any version of the rest of θ",
        "server.followingengine:FollowingEngine._is_there",
        "fetch.version <= self.version or fetch.era < self.era",
        "True",
        SPREAD,
    ),
    Mutation(
        "drop what is held when the policy changes",
        "server.following:FollowingRun._restage",
        "self.store.incoming = incoming",
        "pass",
        SERVER_SWITCHES,
    ),
    Mutation(
        "go back to a version that not all servers have",
        "server.coordinator:newest_common",
        "if all(any(",
        "if any(any(",
        SERVERS,
    ),
    Mutation(
        "go back to one's own newest version",
        "server.following:Follower._go_back",
        "s.version <= version), None)",
        "(version := s.version) >= 0), None)",
        SERVERS,
    ),
    Mutation(
        "take a snapshot in the middle of an update",
        "server.coordinator:LeadingSaver._save_everywhere",
        "await self._run.between(begin)",
        "await begin()",
        SERVERS,
    ),
    Mutation(
        "leave what came after the version that all go back to",
        "server.coordinator:Coordinator._go_on",
        "self._directory.go_on_from(beginning, version)",
        "pass",
        SERVER_ROT,
    ),
    Mutation(
        "remove the version that all servers have",
        "server.snapshots:StateDirectory.save",
        "older = [f for f in older if self._versions.get(f, common + 1) <= common][-1:]",
        "older = []",
        SERVERS,
    ),
    Mutation(
        "tell of a snapshot that one server has",
        "server.coordinator:LeadingSaver._save_everywhere",
        "report = (await answer).saved",
        "report = pb.Saved()",
        SERVER_AMBUSHES,
    ),
    Mutation(
        "tell of the end while the last update is under way",
        "server.leading:LeadingRun.quiet",
        "await self.between(nothing)",
        "pass",
        BRIEF,
    ),
    Mutation(
        "tell of what a lost server has not written",
        "server.leading:LeadingRun.check",
        "if self._lost is not None:",
        "return\n    if self._lost is not None:",
        BRIEF,
    ),
    Mutation(
        "forget the policy when the job begins anew",
        "server.coordinator:Coordinator._go_on",
        "train=before.job.train",
        "train=None",
        SERVER_SWITCHES,
    ),
    Mutation(
        "keep what the rounds have closed without",
        "server.leading:LeadingRun.take_report",
        "held.step >= self.engine.clocks[held.shard] or self._gathering.is_here(name)",
        "True",
        QUORUMS,
    ),
    Mutation(
        "take an answer to what was asked before",
        "worker.partitions:Partition.fetch",
        'case "work" if self._is_old(message.work, pull):',
        'case "work" if False:',
        WILD_SERVERS,
    ),
)


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """Have the fault in the code for a while.

    Raises:
        AssertionError: if the code is no longer what the mutation expects.
    """
    module_name, _, path = mutation.target.partition(":")
    module = importlib.import_module(f"paramserver.{module_name}")
    *outer, name = path.split(".")
    owner: Any = module
    for part in outer:
        owner = getattr(owner, part)
    original = inspect.getattr_static(owner, name)
    function = getattr(original, "fget", None) or getattr(original, "__func__", original)
    source = textwrap.dedent(inspect.getsource(function))
    found = source.count(mutation.old)
    assert found == 1, f"{mutation.name}: {mutation.old!r} is {found} times in {mutation.target}"
    namespace: dict[str, Any] = {}
    code = compile(source.replace(mutation.old, mutation.new), f"<{mutation.name}>", "exec", dont_inherit=True)
    # The mutant sees the module's names, and the module does not see the mutant's.
    exec(code, module.__dict__, namespace)
    setattr(owner, name, namespace[name])
    try:
        yield
    finally:
        setattr(owner, name, original)
