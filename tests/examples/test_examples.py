"""The examples are what the documents say they are, and train by the documented command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("model", ["huber.py", "clicks.py"])
def test_a_model_of_ones_own_takes_at_most_15_lines(model: str) -> None:
    lines = (EXAMPLES / model).read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 15


def test_a_model_of_ones_own_trains_by_the_command(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="builtin:diabetes comes with scikit-learn")
    found = trained("huber.toml", tmp_path)
    # The median is the best constant; the model must know much more than that.
    y = open_source("builtin:diabetes/test").read(0, 88)[1]
    best_constant = np.abs(y - np.median(y)).mean()
    assert found["metrics"]["test_mean_absolute_error"] < 0.75 * best_constant


def test_a_model_of_ones_own_on_tables_finds_the_columns_that_tell_something(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="hashed columns are a sparse matrix")
    found = trained("clicks.toml", tmp_path, "--run", str(tmp_path / "run"))
    # One bit for each example is what a coin needs; the mean rate of clicks alone needs almost as much.
    assert found["loss"] < 0.55 * np.log(2)
    theta = np.load(tmp_path / "run" / "theta.npz")
    # Eight cities, three devices and eight hours, most of which tell nothing.
    assert theta["w.keys"].shape == (19,)
    assert 5 <= (theta["w.rows"] == 0).sum() <= 13


def trained(job: str, folder: Path, *options: str) -> dict[str, Any]:
    """Train an example from another directory, since the job's paths start in its own folder."""
    command = [sys.executable, "-m", "paramserver.client.cli", "train", str(EXAMPLES / job), "--json", *options]
    path = ":".join(str(EXAMPLES.parent / part) for part in ("protos", "server", "worker", "client"))
    environment = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result
