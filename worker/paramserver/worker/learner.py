"""What a worker computes for one job: surveys, initial parameters and gradients. Knows no network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from paramserver.wire.errors import ParamserverError, TaskError
from paramserver.wire.job import Job
from paramserver.wire.layout import Array
from paramserver.wire.moments import Moments
from paramserver.wire.tables import Keys, Table, check_job
from paramserver.worker.batches import Batch
from paramserver.worker.moments import Standardizer
from paramserver.worker.shard import Shard, Survey
from paramserver.worker.tasks import (
    Task,
    declared_tables,
    initial_parameters,
    load_task,
    loss_and_gradient,
    takes_out,
    takes_scale,
)
from paramserver.worker.tasks.tables import keys_of


class Learner:
    """Computes for the shards that the worker is given; a shard is read when it is first needed.

    `base` is the directory from which the job's relative paths start.
    """

    def __init__(self, job: Job, base: Path | None = None) -> None:
        self.job = job
        self._base = base
        self._task: Task | None = None
        self._takes_out = self._takes_scale = False
        self._tables: dict[str, Table] = {}
        #: Batches that were made before they are asked for, by (shard, step).
        self._ahead: dict[tuple[int, int], Batch] = {}
        self._looks_ahead = False
        #: Of the features of the batch that was made last; 0 where there is nothing to make.
        self.made_nbytes = 0
        self._shards: dict[int, Shard] = {}
        self._prepared = False
        self._classes = 0
        self._standardizer: Standardizer | None = None
        #: Elastic averaging: where every shard is that was computed here last, or of which the server said it.
        self.own: dict[int, dict[str, Array]] = {}

    @property
    def task(self) -> Task:
        """The model, loaded when it is first needed."""
        if self._task is None:
            self._task = load_task(self.job.task.use, self.job.task.options, self._base)
            self._takes_out, self._takes_scale = takes_out(self._task), takes_scale(self._task)
            self._tables = declared_tables(self._task)
            if self._tables:
                check_job(self.job)
        return self._task

    @property
    def tables(self) -> dict[str, Table]:
        """The tables that the task declares."""
        _ = self.task
        return self._tables

    def keys(self, shard: int, step: int) -> dict[str, Keys]:
        """Return the keys of the rows that (shard, step) needs, by table.

        Raises:
            TaskError: if the task does not say them.
        """
        batch = self.batch(shard, step)
        # The gradient is computed of it next.
        self._ahead[shard, step] = batch
        return keys_of(self.task, self._tables, batch)

    def prepare(self, classes: int, moments: Moments | None) -> None:
        """Take what the surveys of all shards say together; a new stream says it again."""
        if self._prepared:
            return
        self._prepared = True
        self._classes = classes
        self._standardizer = None if moments is None else Standardizer.from_moments(moments)
        # Opened for the survey, before this was known.
        for shard in self._shards.values():
            shard.prepare(self._classes, self._standardizer)

    def survey(self, shard: int) -> Survey:
        """Read a shard and describe it; also loads the task, so that a wrong one is known before training."""
        _ = self.task
        opened = self._shards[shard] = Shard.open(self.job, shard, self._base)
        found = opened.survey()
        if self._prepared:
            # The job begins anew, and what the surveys say together is said only once.
            opened.prepare(self._classes, self._standardizer)
        return found

    def initial(self, shard: int) -> dict[str, Array]:
        """Return the initial parameters, computed from the seed and the shard's first batch."""
        rng = np.random.Generator(np.random.Philox(self.job.train.seed))
        return initial_parameters(self.task, rng, self.batch(shard, 0))

    def batch(self, shard: int, step: int) -> Batch:
        """Return the batch of (shard, step)."""
        ahead = self._ahead.pop((shard, step), None)
        if ahead is not None:
            return ahead
        if self._looks_ahead:
            # Who makes its batch only now will push last, after which the server is at work on its core until the next
            # work is there: it would never have a moment to look ahead, and be the last time and again. The batch that
            # is used at once is made last, and is in cache then.
            self._make_ahead(shard, step + 1)
        return self._make(shard, step)

    def look_ahead(self, coming: Sequence[tuple[int, int]], is_over: Callable[[], bool] = lambda: False) -> None:
        """Make the batches of these (shard, step) ahead, one after the other until it is over, and forget others.

        What is wrong with one is said when it is asked for.
        """
        self._looks_ahead = bool(coming)
        self._ahead = {place: self._ahead[place] for place in coming if place in self._ahead}
        for place in coming:
            if place not in self._ahead:
                if is_over():
                    return
                self._make_ahead(*place)

    def _make_ahead(self, shard: int, step: int) -> None:
        with suppress(ParamserverError):
            self._ahead[shard, step] = self._make(shard, step)

    def _make(self, shard: int, step: int) -> Batch:
        if shard not in self._shards:
            self._shards[shard] = Shard.open(self.job, shard, self._base)
            self._shards[shard].prepare(self._classes, self._standardizer)
        source = self._shards[shard]
        batch = source.batch(step)
        self.made_nbytes = 0 if source.is_made else batch.nbytes
        return batch

    def gradient(
        self,
        theta: dict[str, Array],
        batch: Batch,
        shard: int,
        step: int,
        out: dict[str, Array] | None = None,
        scale: float | None = None,
    ) -> tuple[float, dict[str, Array]]:
        """Return the checked mean loss and gradient over a batch; a task that can writes the gradient to `out`.

        `scale`, of which it is so many times then, is only for a task that takes it.

        Raises:
            TaskError: with the shard and the step, if the task fails or breaks its contract.
        """
        try:
            return loss_and_gradient(self.task, theta, batch, out if self._takes_out else None, scale)
        except TaskError as error:
            raise TaskError(f"shard {shard}, step {step}: {error}") from error

    def contribution(
        self, theta: dict[str, Array], batch: Batch, shard: int, step: int, out: dict[str, Array] | None = None
    ) -> tuple[float, dict[str, Array], bool]:
        """Return what `gradient` does, and whether the task has multiplied the gradient by the examples of the batch:
        so it travels."""
        _ = self.task
        loss, arrays = self.gradient(theta, batch, shard, step, out, batch.n if self._takes_scale else None)
        return loss, arrays, self._takes_scale
