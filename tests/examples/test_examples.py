"""The examples are what the documents say they are, and train by the documented command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paramserver.wire.job import Job
from paramserver.worker.data import open_source
from paramserver.worker.tasks import load_task

EXAMPLES = Path(__file__).parents[2] / "examples"
JOBS = sorted(EXAMPLES.glob("*.toml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_file_names_a_task_that_loads(path: Path) -> None:
    job = Job.from_toml(path)
    assert load_task(job.task.use, job.task.options, EXAMPLES)


def test_a_model_of_ones_own_takes_at_most_15_lines() -> None:
    lines = (EXAMPLES / "huber.py").read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 15


def test_a_model_of_ones_own_trains_by_the_command(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="builtin:diabetes comes with scikit-learn")
    # From another directory: the job's paths start in its own folder.
    command = [sys.executable, "-m", "paramserver.client.cli", "train", str(EXAMPLES / "huber.toml"), "--json"]
    path = ":".join(str(EXAMPLES.parent / part) for part in ("protos", "server", "worker", "client"))
    environment = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    # The median is the best constant; the model must know much more than that.
    y = open_source("builtin:diabetes/test").read(0, 88)[1]
    best_constant = np.abs(y - np.median(y)).mean()
    assert json.loads(done.stdout)["metrics"]["test_mean_absolute_error"] < 0.75 * best_constant
