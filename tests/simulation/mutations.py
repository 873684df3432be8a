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
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """One fault."""

    name: str
    #: `module:Class.function` or `module:function` below `paramserver`.
    target: str
    old: str
    new: str


MUTATIONS = (
    Mutation("skip the deduplication", "server.engine:Engine.admit", "if step < clock:", "if False:"),
    Mutation(
        "forget the epoch and the holder",
        "server.engine:Engine.admit",
        "if state.holder != worker or state.epoch != epoch:",
        "if False:",
    ),
    Mutation(
        "release the barrier by the count of contributions",
        "server.engine:Engine._close_round",
        "if late and (not self._policy.quorum or len(self._round) < self._policy.quorum):",
        "if len(self._round) < (self._policy.quorum or len(self.shards) - 1):",
    ),
    Mutation(
        "close a round one contribution below the quorum",
        "server.engine:Engine._close_round",
        "len(self._round) < self._policy.quorum",
        "len(self._round) < self._policy.quorum - 1",
    ),
    Mutation(
        "apply in the order of arrival",
        "server.engine:Engine._close_round",
        "for s in sorted(self._round))",
        "for s in self._round)",
    ),
    Mutation(
        "count what a switch took back", "server.engine:Engine._change_policy", "self.clocks[c.shard] -= 1", "pass"
    ),
    Mutation(
        "forget a parked pull",
        "server.engine:Engine._answer",
        "if assignments:",
        "worker.parked = False\n            if assignments:",
    ),
    Mutation(
        "forget the history over a restart",
        "server.run:Run.restore",
        "History.of(snapshot.history or {})",
        "History()",
    ),
    Mutation(
        "let the clocks run on over a restart",
        "server.engine:Engine.state",
        "clock=self.clocks[i] - (i in open_round)",
        "clock=self.clocks[i]",
    ),
    Mutation("use a torn snapshot", "server.snapshots:_read", "if found != promised:", "if False:"),
    Mutation("no sync before the rename", "server.snapshots:StateDirectory._write", "os.fsync(file.fileno())", "pass"),
    Mutation("no sync of the directory", "server.snapshots:StateDirectory.save", "os.fsync(self._lock)", "pass"),
    Mutation("no sync of a new directory", "server.snapshots:_make", "os.fsync(above)", "pass"),
    Mutation(
        "remove the snapshot before the new one is there",
        "server.snapshots:StateDirectory.save",
        "partial.rename(file)",
        "self._good = []; self._remove_others(); partial.rename(file)",
    ),
    Mutation(
        "tell of a checkpoint before it is on the disk",
        "server.saver:Saver.save",
        "return await asyncio.shield(self._take())",
        "self._take(); from paramserver.server.snapshots import Saved; return Saved('', self._run.engine.version, '')",
    ),
    Mutation(
        "tell of the end before it is on the disk",
        "server.control:ControlService.Watch",
        "await self._shell.settled()",
        "pass",
    ),
    Mutation(
        "tell of a switch before it is on the disk",
        "server.control:ControlService.SetPolicy",
        "await self._shell.settled()",
        "pass",
    ),
    Mutation(
        "accept a job without keeping it",
        "server.shell:Shell._start",
        "self._directory.save(Snapshot(job_id, job))",
        "pass",
    ),
    Mutation(
        "never end a lease",
        "server.engine:Engine._tick",
        "if worker.alive and now >= worker.last_seen + limit_s:",
        "if False:",
    ),
    Mutation(
        "keep the leases of a worker whose stream broke", "server.engine:Engine._drop", "sorted(state.shards)", "()"
    ),
    Mutation(
        "let a shard run one step past the staleness bound",
        "server.engine:Engine._assignments",
        "lead = self._policy.lead",
        "lead = self._policy.lead + 1 if self._policy.lead else self._policy.lead",
    ),
    Mutation(
        "let a contribution be older than max_delay", "server.policies:_no_older_than", "delay <= max_delay", "True"
    ),
    Mutation(
        "leave the optimizer's state behind",
        "server.store:Store.restore",
        "self.update.state = type(remembered)(**{name: state[name] for name in remembered._fields})",
        "pass",
    ),
    Mutation(
        "send θ that the worker does not hold as held",
        "server.run:Run._grant",
        "session.held == self.store.version",
        "session.held is not None",
    ),
    Mutation("send chunks of an older θ", "server.store:Store.apply", "self._encoded = None", "pass"),
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
