"""A server that logs what it counts: nothing that was acknowledged is lost or counted twice, whoever is killed."""

from __future__ import annotations

from typing import Any

import pytest

from processes.cluster import Cluster, Control
from processes.test_recovery_processes import STEPS, kill, slow_job, start


def logged_job(cluster: Cluster, **changes: Any) -> dict[str, Any]:
    """Return a job whose only snapshots are those that it cannot do without."""
    defaults = {"train__mode": "async", "server__durability": "log", "server__snapshot_every_s": 3600.0}
    return slow_job(cluster, **{**defaults, **changes})


@pytest.mark.parametrize("mode", ["async", "ssp"])
def test_a_killed_server_goes_on_where_it_was_seen_last(cluster: Cluster, mode: str) -> None:
    tables = logged_job(cluster, train__mode=mode)
    control = start(cluster)
    cluster.workers(control, "w0", "w1")
    control.submit(tables, "j")
    for version in (100, 300):
        control.when(lambda s, v=version: s.version > v)
        acknowledged = seen(control)
        kill(control.process)
        control = start(cluster, control.address)
        assert control.status().version >= acknowledged
    last = control.finish()
    assert last.state == "done"
    assert last.version == 4 * STEPS
    assert list(last.clock) == [STEPS] * 4
    assert sum(last.staleness.values()) == 4 * STEPS
    assert "replayed" in cluster.logs()


def seen(control: Control) -> int:
    """Return the version of θ that a client is given."""
    control.theta()
    return control.pulled
