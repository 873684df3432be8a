"""Promises are compared with what a run found, and with nothing else."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from benchmarks import accuracy, measuring
from benchmarks.figures import Figure, Limit, figures, number
from benchmarks.plan import FULL, LARGE, MIDDLE, PAIR, QUICK, SMALL, TRANSPORTS, cells
from benchmarks.results import Record, Results


def rounds(transport: str, size: int, workers: int, ms: float, **others: Any) -> Record:
    options = {"transport": transport, "size": size, "workers": workers, "wire": "full", "rounds": 10}
    found = {
        "median_ms": ms,
        "floor_ms": ms / 2,
        "ratio": 2.0,
        "cpu_s_per_gb": 1.0,
        "floor_cpu_s_per_gb": 0.5,
        "peak_rss_mb": {"server": 100.0},
        **others,
    }
    return Record("rounds", options, found)


def figure(records: list[Record], start: str) -> Figure:
    (one,) = [each for each in figures(Results({}, records)) if each.name.startswith(start)]
    return one


@pytest.mark.parametrize(
    ("must", "aim", "value", "met"),
    [
        (Limit("≤", 2), Limit("≤", 1), 1.0, "yes"),
        (Limit("≤", 2), Limit("≤", 1), 1.01, "must only"),
        (Limit("≤", 2), Limit("≤", 1), 2.01, "no"),
        (Limit("≤", 2), None, 2.0, "yes"),
        (None, Limit("≤", 1), 1.5, "aim missed"),
        (Limit("≥", 2), None, 1.99, "no"),
        (Limit("<", 1), None, 1.0, "no"),
        (Limit("≤", 2), Limit("≤", 1), None, "not measured"),
    ],
)
def test_a_figure_is_met_or_not(must: Limit | None, aim: Limit | None, value: float | None, met: str) -> None:
    assert Figure("x", must, aim, value, "").met() == met


def test_an_empty_run_meets_nothing() -> None:
    assert {each.met() for each in figures(Results({}, []))} == {"not measured"}


def test_what_was_measured_is_compared_with_its_own_limit() -> None:
    records = [rounds("shm", SMALL, PAIR, 0.3), rounds("shm", MIDDLE, PAIR, 1.8), rounds("shm", LARGE, PAIR, 41.0)]
    names = (f"shared memory, round, D = {size:,}" for size in (SMALL, MIDDLE, LARGE))
    found = {each.name: each for each in figures(Results({}, records))}
    assert [found[name].met() for name in names] == ["must only", "yes", "no"]


def test_a_cell_that_failed_says_why() -> None:
    options = {"transport": "shm", "size": 750_000_000, "rounds": 3}
    failed = figure([Record("fits", options, None, "no memory\nat all")], "shared memory, θ of 3 GB")
    assert (failed.value, failed.told, failed.met()) == (None, "no memory", "not measured")


def test_the_fastest_peer_counts() -> None:
    records = [rounds("shm", MIDDLE, PAIR, 2.0)]
    start = f"shared memory, round, D = {MIDDLE:,}, beside the fastest peer"
    for peer, ms in (("gloo", 5.0), ("ray", 3.0)):
        options = {"peer": peer, "size": MIDDLE, "workers": PAIR, "rounds": 10}
        records.append(Record("peer", options, {"median_ms": ms}))
    assert figure(records, start).value == pytest.approx(2 / 3)
    assert figure(records[:2], start).met() == "yes"


def test_the_worst_doubling_of_workers_is_told() -> None:
    times = {SMALL: (1.0, 1.5, 3.0, 6.0), MIDDLE: (1.0, 2.0, 5.0, 8.0)}
    records = [
        rounds("stream", size, workers, ms)
        for size, each in times.items()
        for workers, ms in zip((1, 2, 4, 8), each, strict=True)
    ]
    found = figure(records, "stream, twice the workers")
    assert (found.value, found.met()) == (2.5, "aim missed")
    assert f"D = {MIDDLE:,}, 2 to 4 workers" in found.told
    found = figure(records, "stream, a round for each worker")
    assert (found.value, found.met()) == (1.25, "no")
    assert f"D = {MIDDLE:,}, 4 workers" in found.told
    assert figure(records[:4], "stream, a round for each worker").met() == "yes"
    assert figure(records[1:4], "stream, a round for each worker").value is None
    # A gap between the numbers of workers is no doubling.
    assert figure([rounds("stream", SMALL, 1, 1.0), rounds("stream", SMALL, 8, 9.0)], "stream, twice").value is None


def test_of_several_turns_the_middle_one_is_told() -> None:
    times = (3.0, 1.0, 2.0)
    records = [rounds("shm", SMALL, PAIR, ms, ratio=9 * ms)._replace(turn=turn) for turn, ms in enumerate(times)]
    (record,) = Results({}, records).records
    assert record.found is not None
    assert (record.found["median_ms"], record.found["ratio"]) == (2.0, 18.0)
    assert record.found["each_ms"] == {0: 3.0, 1: 1.0, 2: 2.0}


def test_what_is_compared_was_measured_in_one_turn() -> None:
    # The machine is ten times slower in the second turn, and in the third the only worker failed.
    times = {1: (1.0, 10.0, None), 2: (2.0, 21.0, 9.0), 4: (4.0, 60.0, 3.0)}
    records = []
    for workers, each in times.items():
        for turn, ms in enumerate(each):
            record = rounds("stream", SMALL, workers, ms or 0.0)._replace(turn=turn)
            records.append(record if ms else record._replace(found=None, error="no luck"))
    found = figure(records, "stream, a round for each worker")
    assert (found.value, found.told) == (1.25, "1.25 × (D = 1,000, 4 workers)")
    found = figure(records, "stream, twice the workers")
    assert found.value == pytest.approx(2.05)
    (only, _, _) = Results({}, records).records
    assert (only.error, only.found is not None) == ("no luck", True)


def test_a_peer_is_compared_with_the_rounds_of_its_own_turn() -> None:
    options = {"peer": "gloo", "size": MIDDLE, "workers": PAIR, "rounds": 10}
    records = []
    # Slower by ten in the second turn and by two in the third; this and the peer have their middle in different ones.
    for turn, (ms, other) in enumerate([(1.0, 4.0), (10.0, 50.0), (3.0, 3.0)]):
        records.append(rounds("shm", MIDDLE, PAIR, ms)._replace(turn=turn))
        records.append(Record("peer", options, {"median_ms": other}, turn=turn))
    found = figure(records, f"shared memory, round, D = {MIDDLE:,}, beside the fastest peer")
    assert (found.value, found.told) == (0.25, "0.25 × (3.00 ms; gloo all-reduce 4.00 ms)")


def test_lists_of_all_turns_are_put_together() -> None:
    options = {"transport": "stream", "size": LARGE, "rounds": 9, "servers": 2}
    turns = [(10.0, 11.0), (20.0, 24.0), (10.0, 13.0)]
    records = [
        Record("partitions", options, {"one_ms": [one], "several_ms": [two]}, turn=turn)
        for turn, (one, two) in enumerate(turns)
    ]
    found = figure(records, f"stream, two servers beside one, D = {LARGE:,}")
    assert (found.value, found.told, found.met()) == (1.2, "1.20 × (1.10 to 1.30)", "no")


def test_memory_counts_bytes_of_theta() -> None:
    of_theta = 4 * LARGE / 2**20
    for transport, times, met in (("shm", 3.9, "yes"), ("shm", 4.1, "no"), ("stream", 5.9, "yes")):
        record = rounds(transport, LARGE, PAIR, 1.0, peak_rss_mb={"server": times * of_theta})
        found = figure([record], f"{'shared memory' if transport == 'shm' else 'stream'}, the server's peak memory")
        assert (found.value, found.met()) == (pytest.approx(times), met)


@pytest.mark.parametrize(("per_sample", "met"), [(0.0, "yes"), (1.0, "aim missed")])
def test_memory_that_grows_with_rounds_is_found(per_sample: float, met: str) -> None:
    warm_up = [[float(n), 10.0 * n] for n in range(10)]
    samples = warm_up + [[float(n), 100 + (n % 3) + per_sample * n] for n in range(10, 100)]
    options = {"transport": "shm", "size": LARGE, "rounds": 1_000}
    assert figure([Record("flat", options, {"samples": samples})], "shared memory, growth").met() == met


def test_bytes_per_second_and_partitions_are_ratios() -> None:
    options = {"transport": "stream", "sizes": [25, 250], "rounds": [9, 9]}
    found = {"gb_per_s": [2.0, 1.7], "ratio": 0.85, "median_ms": [1.0, 2.0]}
    assert figure([Record("message_size", options, found)], "stream, throughput").met() == "no"
    options = {"transport": "stream", "size": LARGE, "rounds": 9, "servers": 2}
    record = Record("partitions", options, {"one_ms": [10.0], "several_ms": [11.0]})
    assert figure([record], f"stream, two servers beside one, D = {LARGE:,}").met() == "yes"


def test_examples_per_second_are_compared_within_each_repeat() -> None:
    rates = {accuracy.PLAIN: [100.0, 50.0], accuracy.ONE: [90.0, 45.0], accuracy.TWO: [135.0, 67.5]}
    runs = {name: [{"samples_per_s": rate} for rate in each] for name, each in rates.items()}
    records = [Record("accuracy", {"batch": 256, "epochs": 1}, runs)]
    assert figure(records, "Fashion-MNIST, batch 256, examples/s of two").met() == "no"
    assert figure(records, "Fashion-MNIST, batch 256, examples/s of one").met() == "yes"


def test_every_cell_can_be_measured_and_comes_once() -> None:
    for effort in (FULL, QUICK):
        planned = list(cells(effort))
        assert len({str(cell) for cell in planned}) == len(planned)
        for cell in planned:
            inspect.signature(measuring.KINDS[cell.kind]).bind(**cell.options)
    assert {cell.kind for cell in cells(FULL)} == set(measuring.KINDS)


def test_a_full_run_measures_every_figure() -> None:
    """Every figure names cells that are in the plan: with all of them found there, none is left without a value."""
    answers: dict[str, dict[str, Any]] = {
        "rounds": rounds("shm", SMALL, 1, 1.0).found or {},
        "peer": {"median_ms": 1.0},
        "partitions": {"one_ms": [1.0], "several_ms": [1.0]},
        "message_size": {"gb_per_s": [1.0, 1.0], "ratio": 1.0},
        "fits": {"together_mb": 1.0},
        "flat": {"samples": [[float(n), 1.0] for n in range(20)]},
        "accuracy": {name: [{"samples_per_s": 1.0}] for name in accuracy.WAYS},
    }
    records = [Record(cell.kind, cell.options, answers.get(cell.kind)) for cell in cells(FULL)]
    assert [each.name for each in figures(Results({}, records)) if each.value is None] == []
    assert {cell.options["transport"] for cell in cells(FULL) if "transport" in cell.options} == set(TRANSPORTS)


def test_numbers_have_three_digits() -> None:
    values = (0.0, 0.000951, 0.04217, 0.5, 1.2345, 12.345, 123.45, 12345.6, -0.25)
    told = ["0", "0.000951", "0.0422", "0.500", "1.23", "12.3", "123", "12,346", "-0.250"]
    assert [number(value) for value in values] == told
