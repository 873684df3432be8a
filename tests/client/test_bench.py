"""The measurements run, and say of what they measure; how long it takes is nobody's promise here."""

from __future__ import annotations

import pytest

from paramserver.client.bench.apply import measure_apply
from paramserver.client.bench.pulls import measure_pulls
from paramserver.client.bench.rounds import measure_rounds
from paramserver.client.cli.entry import main
from paramserver.wire import sharing
from paramserver.wire.errors import JobError, RequestError

SIZE = 300_000


@pytest.mark.parametrize("transport", ["shm", "stream"])
def test_a_pull_is_timed_beside_its_floor(transport: str) -> None:
    if transport == "shm" and not sharing.AVAILABLE:
        pytest.skip("this system has no memory to share")
    found = measure_pulls(SIZE, 5, transport).summary()
    assert (found["size"], found["transport"], found["pulls"]) == (SIZE, transport, 5)
    assert 0 < found["p10_ms"] <= found["median_ms"] <= found["p90_ms"]
    assert found["ratio"] == pytest.approx(found["median_ms"] / found["floor_ms"])
    assert set(found["peak_rss_mb"]) == {"server", "worker"}


@pytest.mark.parametrize("optimizer", [{"momentum": 0.9}, {"optimizer": "adam", "plain": True}])
def test_an_update_is_timed_beside_its_floor(optimizer: dict[str, object]) -> None:
    found = measure_apply(SIZE, 3, 5, **optimizer).summary()  # type: ignore[arg-type]
    assert (found["size"], found["workers"], found["updates"]) == (SIZE, 3, 5)
    assert 0 < found["p10_ms"] <= found["median_ms"] <= found["p90_ms"]
    assert found["ratio"] == pytest.approx(found["median_ms"] / found["floor_ms"])
    assert found["code"] == "numpy" or not optimizer.get("plain")


@pytest.mark.parametrize("transport", ["shm", "stream"])
def test_rounds_over_sockets_are_timed_beside_sockets_that_are_not_paced_too(transport: str) -> None:
    if transport == "shm" and not sharing.AVAILABLE:
        pytest.skip("this system has no memory to share")
    found = measure_rounds(1000, 2, 20, transport)
    assert found.ratio == pytest.approx(found.median_ms / found.floor_ms)
    if transport == "shm":
        assert found.unpaced_floor_ms is found.unpaced_ratio is None
    else:
        assert found.unpaced_floor_ms is not None
        assert found.unpaced_ratio == pytest.approx(found.median_ms / found.unpaced_floor_ms)


@pytest.mark.parametrize("transport", ["shm", "stream"])
def test_the_command_tells_all_of_it(transport: str, capsys: pytest.CaptureFixture[str]) -> None:
    if transport == "shm" and not sharing.AVAILABLE:
        pytest.skip("this system has no memory to share")
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "round", "--size", "1000", "--rounds", "20", "--transport", transport])
    told = capsys.readouterr().out
    assert f"1,000 parameters, 2 workers, {transport}, 20 rounds" in told
    assert ("not paced" in told) == (transport == "stream")
    assert "memory server" in told


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(RequestError, match="pulls is 4, allowed are 5 and more"):
        measure_pulls(SIZE, 4)
    with pytest.raises(RequestError, match="'shn', allowed are auto, shm, stream, grpc, did you mean 'shm'"):
        measure_rounds(SIZE, 2, 5, "shn")
    with pytest.raises(JobError, match="momentum"):
        measure_apply(SIZE, 2, 5, "adam", momentum=0.5)
