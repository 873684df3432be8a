"""Where a job whose pushes keep something back can go back to: states at which none of its shards keeps anything.

What a push keeps back is known only to the worker that computed it, and dies with it. In rounds of all shards nobody
else need know it: every `exact_every` steps nothing is kept back, and when a shard changes hands in between, all go
back to the state of that moment and compute the same bits again. docs/adr/0007-what-is-kept-back.md weighs this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paramserver.server.engine import Engine
from paramserver.server.enginestate import EngineState
from paramserver.server.store import Store
from paramserver.wire.job import TrainSection, WireSection
from paramserver.wire.layout import Array


@dataclass(frozen=True, slots=True)
class Waypoint:
    """The job at one version of θ; nobody changes these arrays any more."""

    engine: EngineState
    theta: Array
    optimizer_state: Mapping[str, Array]


class Waypoints:
    """Keeps the last waypoint of a job: a copy of θ and of the optimizer's state.

    There is none in `async`, `ssp` or with a quorum, where bits depend on timing anyway: what a lost worker kept back
    is lost with it there.
    """

    def __init__(self, wire: WireSection) -> None:
        self._window = wire.exact_every
        self.last: Waypoint | None = None
        #: The version that was looked at last.
        self._seen = -1

    def pass_by(self, train: TrainSection, engine: Engine, store: Store, now: float) -> bool:
        """Look at the state between two events; keep it if it is a waypoint, and say whether it is a new one."""
        if engine.version == self._seen or engine.phase != "train":
            return False
        self._seen = engine.version
        if train.mode != "sync" or train.quorum or any(clock % self._window for clock in engine.clocks):
            return False
        return self.keep(engine, store, now)

    def keep(self, engine: Engine, store: Store, now: float) -> bool:
        """Keep the state as it is now; say whether that is another one than the last."""
        state = engine.state(now)
        if state is None or (self.last is not None and state.version == self.last.engine.version):
            return False
        optimizer_state = {name: array.copy() for name, array in store.optimizer_state.items()}
        self.last = Waypoint(state, store.theta.copy(), optimizer_state)
        return True

    def forget(self) -> None:
        """Give up the last waypoint: the job goes on under another policy."""
        self.last, self._seen = None, -1

    def behind(self, engine: Engine, shard: int) -> Waypoint | None:
        """Return where to go back to if the holder of a shard is lost, or None if nothing is lost with it."""
        if engine.phase != "train" or engine.clocks[shard] % self._window == 0:
            return None
        return self.last
