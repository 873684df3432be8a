"""A job in virtual time: the real engine, store, optimizer and learner in one process, without network and threads.

What a worker computes takes as long as the experiment says, so delays are exact and a run repeats to the bit. What is
left out is what the experiments here do not ask about: messages, leases that end, and the cost of computing.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from paramserver.server import events as ev
from paramserver.server.engine import Engine
from paramserver.server.store import Store
from paramserver.wire.errors import TaskError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout, pack
from paramserver.wire.moments import Moments, combine
from paramserver.worker.batches import Batch
from paramserver.worker.encoder import Encoder
from paramserver.worker.learner import Learner
from paramserver.worker.localsteps import local_steps
from paramserver.worker.moments import Standardizer
from paramserver.worker.shard import Survey, open_test
from paramserver.worker.tasks import metrics


@dataclass(frozen=True, slots=True)
class Worker:
    """Somebody who computes, at a speed and with an honesty of their own."""

    #: Virtual seconds for a step.
    seconds: float = 1.0
    #: What becomes of a mean gradient before it is pushed: (gradient, shard, step) to what arrives instead.
    alter: Callable[[Array, int, int], Array] | None = None


class Simulation:
    """One run of a job; `checked` False lets contributions in that are not finite, which no server does."""

    def __init__(self, job: Job, workers: Sequence[Worker], checked: bool = True) -> None:
        self.job = job
        self.engine = Engine(job)
        self.now = 0.0
        #: How many contributions were pushed, and their tensor bytes as they would travel.
        self.contributions = self.pushed_bytes = 0
        self._workers = {f"w{number}": worker for number, worker in enumerate(workers)}
        self._checked = checked
        self._learner = Learner(job)
        self._store: Store | None = None
        self._encoder: Encoder | None = None
        self._surveys: dict[int, Survey] = {}
        self._events: deque[ev.Event] = deque()
        #: (time, order, worker, assignment, version, θ then, whether the worker asks for more afterwards)
        self._computing: list[tuple[float, int, str, ev.Assignment, int, Array, bool]] = []
        self._granted = 0
        self._stopped = False

    @property
    def version(self) -> int:
        """How many updates θ has had."""
        return self.engine.version

    @property
    def theta(self) -> dict[str, Array]:
        """Views of θ as it is now."""
        store = self._parameters
        return store.layout.views(store.theta)

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return self._parameters.layout.size

    @property
    def _parameters(self) -> Store:
        assert self._store is not None
        return self._store

    def run(self, after_update: Callable[[Simulation], bool] = lambda _: False) -> Simulation:
        """Train until the job ends, or until `after_update`, called after every update of θ, returns True."""
        self._stop_if = after_update
        # All are there before the first one is given work, so that nobody begins with the shards of others.
        self._feed(*map(ev.Joined, self._workers))
        self._feed(*map(ev.Pulled, self._workers))
        while self._computing and not self.engine.ended and not self._stopped:
            self.now, _, name, assignment, version, theta, asks = heapq.heappop(self._computing)
            self._push(name, assignment, version, theta)
            if asks:
                self._feed(ev.Pulled(name))
        return self

    def test_accuracy(self) -> float:
        """Return the share of test examples that θ gets right; 0 for a θ that is not finite."""
        if not all(np.isfinite(values).all() for values in self.theta.values()):
            return 0.0
        return metrics(self._learner.task, self.theta, self._test)["accuracy"]

    @cached_property
    def _test(self) -> Batch:
        standardizer = None if self._moments is None else Standardizer.from_moments(self._moments)
        return open_test(self.job, self._features, self._classes, standardizer)

    def _feed(self, *events: ev.Event) -> None:
        self._events.extend(events)
        while self._events:
            for effect in self.engine.handle(self._events.popleft(), self.now):
                match effect:
                    case ev.Keep(shard):
                        self._parameters.incoming.hold(shard, self._parameters.cut(self._arrived))
                    case ev.Apply(version, step, contributions):
                        norm = self._parameters.apply(version, step, contributions)
                        if norm is not None:
                            self._events.append(ev.Measured(version, norm))
                        self._stopped = self._stopped or self._stop_if(self)
                    case ev.CombineSurveys():
                        self._combine_surveys()
                    case ev.Grant():
                        self._grant(effect)

    def _grant(self, grant: ev.Grant) -> None:
        name = grant.worker
        when = self.now
        for number, assignment in enumerate(grant.assignments, start=1):
            shard, epoch = assignment.shard, assignment.epoch
            is_last = number == len(grant.assignments)
            match assignment.kind:
                case ev.Kind.SURVEY:
                    self._surveys[shard] = survey = self._learner.survey(shard)
                    self._events.append(ev.Surveyed(name, shard, epoch, survey.rows))
                case ev.Kind.INITIAL:
                    self._initialise(shard)
                    self._events.append(ev.Initialised(name, shard, epoch))
                case ev.Kind.GRADIENT:
                    self._parameters.granted(shard)
                    when += self._workers[name].seconds
                    self._granted += 1
                    theta = self._parameters.theta.copy()
                    entry = (when, self._granted, name, assignment, grant.version, theta, is_last)
                    heapq.heappush(self._computing, entry)
                    continue
            if is_last:
                self._events.append(ev.Pulled(name))

    def _combine_surveys(self) -> None:
        surveys = [self._surveys[shard] for shard in sorted(self._surveys)]
        self._features = max(survey.features for survey in surveys)
        self._classes = max(s.classes for s in surveys) if all(s.classes for s in surveys) else 0
        moments: list[Moments] = [survey.moments for survey in surveys if survey.moments is not None]
        self._moments = combine(moments) if moments else None
        self._learner.prepare(self._classes, self._moments)

    def _initialise(self, shard: int) -> None:
        arrays = self._learner.initial(shard)
        layout = Layout.of(arrays, self.job.train.dtype)
        flat = np.empty(layout.size, layout.dtype)
        pack(arrays, layout.views(flat))
        self._store = Store(self.job, layout, [flat], self.engine.total_steps)
        if self.job.wire.push != "full":
            self._encoder = Encoder(self.job, layout, [self._store.chunk])

    def _push(self, name: str, assignment: ev.Assignment, version: int, theta: Array) -> None:
        store, shard, step = self._parameters, assignment.shard, assignment.step
        views = store.layout.views(theta)
        try:
            loss, arrays, samples = self._compute(views, shard, step)
        except TaskError as error:
            self._feed(ev.Failed(name, str(error)))
            return
        flat = np.empty(store.layout.size, store.layout.dtype)
        pack(arrays, store.layout.views(flat))
        alter = self._workers[name].alter
        if alter is not None:
            flat = alter(flat, shard, step)
        flat *= samples
        self.contributions += 1
        if self._encoder is None:
            self.pushed_bytes += flat.nbytes
        else:
            self.pushed_bytes += sum(
                piece.nbytes for _, piece in self._encoder.encode(flat, shard, step, in_place=True)[0]
            )
        contribution = ev.Contribution(name, shard, assignment.epoch, step, version, samples, loss)
        if self._checked and store.update.first_not_finite(flat) is not None:
            self._feed(ev.Misbehaved(name, shard, step, "the contribution is not finite"))
            return
        self._arrived = flat
        self._feed(ev.Pushed((contribution,)))

    def _compute(self, theta: dict[str, Array], shard: int, step: int) -> tuple[float, dict[str, Array], int]:
        if self.job.train.goes_local:
            return local_steps(self._learner, theta, shard, step)
        batch = self._learner.batch(shard, step)
        loss, arrays = self._learner.gradient(theta, batch, shard, step)
        return loss, arrays, batch.n
