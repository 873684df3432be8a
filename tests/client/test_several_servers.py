"""Several servers on this machine: the result of one, also after everything was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramserver.client.launch import LocalCluster
from paramserver.client.training import resume, train
from paramserver.wire.errors import RequestError
from paramserver.wire.job import Job

JOB = {
    "task": {"use": "linear_regression"},
    "data": {"source": "builtin:linear", "batch_size": 8},
    "train": {"steps": 60},
    "server": {"snapshot_every_s": 0.05},
}


def test_a_run_over_two_servers_has_the_bits_of_one_and_gives_its_result_again(tmp_path: Path) -> None:
    job = Job.from_dict(JOB)
    alone = train(job, workers=1, run=tmp_path / "one")
    clusters: list[LocalCluster] = []
    both = train(job, workers=2, servers=2, run=tmp_path / "two", started=clusters.append)
    assert both.theta_sha256 == alone.theta_sha256
    assert [point.loss for point in both.history] == [point.loss for point in alone.history]
    assert sorted(path.name for path in (tmp_path / "two/state").iterdir()) == ["server-0", "server-1"]
    again = resume(tmp_path / "two")
    assert again.theta_sha256 == alone.theta_sha256


def test_numbers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    job = Job.from_dict(JOB)
    with pytest.raises(RequestError, match="servers is 0, allowed are 1 and more"):
        train(job, servers=0, run=tmp_path / "none")
