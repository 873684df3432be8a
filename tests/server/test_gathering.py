"""What counts is what every server has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paramserver.server.events import Contribution
from paramserver.server.gathering import Gathering, Name


def contribution(worker: str = "w", shard: int = 0, epoch: int = 1, step: int = 0, version: int = 0) -> Contribution:
    return Contribution(worker, shard, epoch, step, version, samples=1, loss=1.0)


@given(data=st.data(), partitions=st.integers(2, 5), shards=st.integers(1, 4))
def test_a_contribution_is_given_out_once_when_the_last_server_has_it(
    data: st.DataObject, partitions: int, shards: int
) -> None:
    gathering = Gathering(partitions)
    arrivals = [(shard, partition) for shard in range(shards) for partition in range(partitions)]
    where: dict[int, set[int]] = {shard: set() for shard in range(shards)}
    for shard, partition in data.draw(st.permutations(arrivals)):
        c = contribution(f"w{shard}", shard)
        found = gathering.reported(Name.of(c), partition) if partition else gathering.arrived(c)
        where[shard].add(partition)
        assert found == (c if len(where[shard]) == partitions else None)
        assert gathering.is_waited_for(c.worker) == (0 in where[shard] and len(where[shard]) < partitions)


def test_what_is_in_sight_of_all_is_given_out_when_it_is_here() -> None:
    gathering = Gathering(3)
    # An older computation had reached one of the others.
    assert gathering.reported(Name.of(contribution(epoch=1)), 2) is None
    c = contribution(epoch=2)
    assert gathering.arrived(c, in_sight=True) == c
    assert gathering.arrived(c, in_sight=True) is None
    assert gathering.is_given(Name.of(c))
    assert not gathering.is_waited_for(c.worker)
    gathering.decided(c)
    assert not gathering.is_given(Name.of(c))


def test_reports_of_another_lease_step_or_version_do_not_count() -> None:
    gathering = Gathering(2)
    for other in (contribution(epoch=2), contribution(step=1), contribution(version=1), contribution(shard=1)):
        assert gathering.reported(Name.of(other), 1) is None
    assert gathering.arrived(contribution()) is None
    assert gathering.reported(Name.of(contribution()), 1) == contribution()


def test_what_is_forgotten_has_to_come_again_everywhere() -> None:
    gathering = Gathering(2)
    c = contribution()
    gathering.arrived(c)
    gathering.forget(shard=0, epoch=1)
    assert not gathering.is_waited_for("w")
    assert gathering.reported(Name.of(c), 1) is None
    assert gathering.arrived(c) == c
    # One step only, and leases up to an epoch only.
    for epoch, step in ((1, 1), (2, 2)):
        gathering.arrived(contribution(epoch=epoch, step=step))
    gathering.forget(shard=0, epoch=1, step=2)
    assert gathering.reported(Name(0, 1, 1, 0), 1) is not None
    assert gathering.reported(Name(0, 2, 2, 0), 1) is not None


def test_a_copy_that_comes_before_the_decision_is_not_waited_for() -> None:
    gathering = Gathering(2)
    c = contribution()
    gathering.reported(Name.of(c), 1)
    assert gathering.arrived(c) == c
    assert gathering.arrived(c) is None
    assert not gathering.is_waited_for("w")
    gathering.decided(c)
    # Refused since the policy changed, and computed again.
    assert gathering.reported(Name.of(c), 1) is None
    assert gathering.arrived(c) == c
