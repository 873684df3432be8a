"""The directory of a run: the job, the history as it grows, the parameters, plots, logs and the result."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from numpy.typing import NDArray

from paramserver.client.connection.client import Point
from paramserver.client.files import write_text, write_theta
from paramserver.wire.errors import JobError, RequestError
from paramserver.wire.job import Job

#: The file in a run directory that says how the run ended.
RESULT = "result.json"

_ORIGIN = "origin.json"


class Origin(NamedTuple):
    """How a run on this machine was started, which is how it goes on."""

    job_id: str
    #: Where relative paths of the job start.
    base: str
    workers: int


class RunDirectory:
    """A directory that holds one run and nothing else.

    It contains `job.json`, `history.jsonl` (a point a line), `theta.npz`, `theta.safetensors`, `loss.png`,
    `loss.svg`, `result.json` and `logs/`; of a run on this machine also `origin.json` and, unless its job keeps
    nothing, the server's `state/`.

    Args:
        path: must not exist or be empty; by default `runs/<timestamp>-<task>`.

    Raises:
        RequestError: if the directory is in use or cannot be made.
    """

    def __init__(self, job: Job, path: str | Path | None = None) -> None:
        self.path = Path(path) if path else fresh_path(job)
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                raise RequestError(f"run directory {self.path} is not empty; name one that is empty or does not exist")
            self.logs = self.path / "logs"
            self.logs.mkdir()
            write_text(self.path / "job.json", json.dumps(json.loads(job.to_json()), indent=2) + "\n")
        except OSError as error:
            raise RequestError(f"run directory {self.path}: {error.strerror}") from None

    @classmethod
    def reopen(cls, path: str | Path) -> tuple[Self, Job, Origin]:
        """Return the directory of an earlier run on this machine, its job, and how it was started.

        Raises:
            RequestError: if there is none that can go on.
        """
        self = cls.__new__(cls)
        self.path, self.logs, self._made = Path(path), Path(path) / "logs", []
        try:
            job = Job.from_json((self.path / "job.json").read_text(encoding="utf-8"))
            origin = Origin(**json.loads((self.path / _ORIGIN).read_text(encoding="utf-8")))
            self.logs.mkdir(exist_ok=True)
        except OSError as error:
            raise RequestError(f"{path} holds no run of this machine: {error.filename}: {error.strerror}") from None
        except (JobError, ValueError, TypeError) as error:
            raise RequestError(f"{path} holds no run that can go on: {error}") from None
        return self, job, origin

    @property
    def state(self) -> Path:
        """Where a server on this machine keeps the job."""
        return self.path / "state"

    def note(self, origin: Origin) -> None:
        """Write down what it takes to go on."""
        write_text(self.path / _ORIGIN, json.dumps(origin._asdict(), indent=2) + "\n")

    def begin_history(self) -> None:
        """Forget the history of an earlier start: the server tells it again, as far as it still holds."""
        (self.path / "history.jsonl").unlink(missing_ok=True)

    def append(self, points: Iterable[Point]) -> None:
        """Add points to the history, on the disk at once."""
        lines = "".join(json.dumps(point._asdict()) + "\n" for point in points)
        if lines:
            with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
                file.write(lines)

    def finish(
        self, job: Job, history: Sequence[Point], theta: Mapping[str, NDArray[Any]], result: Mapping[str, Any]
    ) -> None:
        """Write the parameters (if there are any), the plots and, last, the result."""
        if theta:
            write_theta(self.path / "theta.npz", theta)
            write_theta(self.path / "theta.safetensors", theta)
        if history:
            self._plot(job, history)
        write_text(self.path / RESULT, json.dumps(result, indent=2) + "\n")

    def discard(self) -> None:
        """Remove the run and every directory that was made for it."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        for folder in self._made:
            if any(folder.iterdir()):
                break
            folder.rmdir()

    def _plot(self, job: Job, history: Sequence[Point]) -> None:
        try:
            from paramserver.client.plot import plot_loss
        except ImportError:
            print("note: no loss curve, since matplotlib is missing: pip install 'paramserver[plot]'", file=sys.stderr)
            return
        plot_loss(job, history, [self.path / "loss.png", self.path / "loss.svg"])


def fresh_path(job: Job) -> Path:
    """Return a path for a run directory that does not exist yet: `runs/<timestamp>-<task>`."""
    task = re.sub(r"[^A-Za-z0-9_.-]+", "-", job.task.use.rpartition(":")[2])
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{task}"
    names = (f"{name}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in (Path("runs") / name for name in names) if not path.exists())
