"""Measures one cell: `python -m benchmarks.measuring KIND OPTIONS` prints what was found as one line of JSON.

A process for each, so that none inherits another's memory, and none that fails or hangs takes others with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import accuracy, growth, tables
from benchmarks.machine import ROOT
from benchmarks.plan import PAIR, Cell
from benchmarks.results import Found, Record
from paramserver.client import leash
from paramserver.client.bench.apply import measure_apply
from paramserver.client.bench.memory import MemoryWatch, available_mb
from paramserver.client.bench.pulls import measure_pulls
from paramserver.client.bench.rounds import counted_s, measure_rounds, run_rounds

#: A cell that takes longer hangs.
LIMIT_S = 900.0
#: Memory that stays free, so that the system never has to choose whom to kill.
RESERVE_MB = 1536.0
#: Exit status of a cell or peer whose data or packages are not here.
MISSING = 3

PEERS_PYTHON = ROOT / ".venv-peers/bin/python"
PEER_SCRIPTS = {"gloo": "gloo_allreduce.py", "ray": "ray_actors.py"}


class Missing(Exception):
    """What a cell needs and is not here, in a few words for its place in the tables."""


def rounds(size: int, workers: int, rounds: int, transport: str, wire: str) -> Found:
    """Time synchronous rounds beside their floor."""
    return measure_rounds(size, workers, rounds, transport, wire).summary()


def partitions(size: int, rounds: int, transport: str, servers: int) -> Found:
    """Time one server and several."""
    one, several = (_median_ms(size, rounds, transport, count) for count in (1, servers))
    return {"one_ms": [one], "several_ms": [several]}


def message_size(transport: str, sizes: list[int], rounds: list[int]) -> Found:
    """Time a small θ, a large one, and the small one again; throughput is of all workers' gradients and parameters."""
    (small, large), (small_rounds, large_rounds) = sizes, rounds
    before = _median_ms(small, small_rounds, transport)
    large_ms = _median_ms(large, large_rounds, transport)
    small_ms = statistics.median([before, _median_ms(small, small_rounds, transport)])
    gb_per_s = [2 * PAIR * size * 4e-6 / ms for size, ms in ((small, small_ms), (large, large_ms))]
    return {"median_ms": [small_ms, large_ms], "gb_per_s": gb_per_s, "ratio": gb_per_s[1] / gb_per_s[0]}


def fits(transport: str, size: int, rounds: int) -> Found:
    """Watch the memory of all processes together while a large θ trains."""
    before = available_mb()
    watch = MemoryWatch(0.1, together=True, least_mb=RESERVE_MB)
    ran = run_rounds(size, PAIR, rounds, transport, watch=watch)
    return {
        "together_mb": max(sample.together_mb for sample in watch.samples),
        # Of the whole machine, whatever else runs: a check of the sum above.
        "less_available_mb": before - watch.available_mb,
        "peak_rss_mb": ran.peak_rss_mb,
        "median_ms": 1e3 * statistics.median(ran.intervals_s()),
    }


def flat(transport: str, size: int, rounds: int) -> Found:
    """Watch the server's memory over many rounds."""
    watch = MemoryWatch(0.02)
    ran = run_rounds(size, PAIR, rounds, transport, watch=watch)
    samples = [(sample.seconds, sample.server_mb) for sample in watch.samples]
    return {
        "samples": growth.thinned(samples, 100),
        "median_ms": 1e3 * statistics.median(counted_s(ran)),
        "peak_rss_mb": ran.peak_rss_mb,
    }


def pulls(size: int, transport: str, pulls: int) -> Found:
    """Time pulls beside their floor."""
    return measure_pulls(size, pulls, transport).summary()


def updates(size: int, updates: int, optimizer: str, momentum: float = 0.0, plain: bool = False) -> Found:
    """Time adding up and applying beside their floor."""
    return measure_apply(size, PAIR, updates, optimizer, momentum, plain).summary()


def table(rows: int) -> Found:
    """Time a table of rows beside bare numpy."""
    return tables.measure(rows, tables.DIM, tables.BATCH, "sgd")


def fashion(batch: int, epochs: int) -> Found:
    """Time Fashion-MNIST by every way of training."""
    if not accuracy.FOLDER.is_dir():
        raise Missing(f"no data: Debian's package dataset-fashion-mnist puts them into {accuracy.FOLDER}")
    return accuracy.measure(accuracy.FOLDER, batch, epochs, repeats=1)


def peer(peer: str, size: int, workers: int, rounds: int) -> Found:
    """Have another program do the same rounds, by its own interpreter."""
    python = Path(os.environ.get("PEERS_PYTHON", PEERS_PYTHON))
    if not python.exists():
        raise Missing("not installed: `make peers`")
    script = Path(__file__).parent / "peers" / PEER_SCRIPTS[peer]
    command = [str(python), str(script), *map(str, (size, workers, rounds))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == MISSING:
        raise Missing("not installed: `make peers`")
    if done.returncode:
        raise RuntimeError(_error(done.stderr))
    found: Found = json.loads(_last_line(done.stdout))
    return found


KINDS: dict[str, Callable[..., Found]] = {
    "rounds": rounds,
    "partitions": partitions,
    "message_size": message_size,
    "fits": fits,
    "flat": flat,
    "pulls": pulls,
    "updates": updates,
    "table": table,
    "accuracy": fashion,
    "peer": peer,
}


def measure(cell: Cell, limit_s: float = LIMIT_S) -> Record:
    """Measure a cell in a process of its own; a failure becomes a record too."""
    command = [sys.executable, str(leash.__file__), str(os.getpid()), __name__, cell.kind, json.dumps(cell.options)]
    started = time.monotonic()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            out, said = process.communicate(timeout=limit_s)
            error = "" if process.returncode == 0 else _error(said) or f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            out, error = "", f"given up after {limit_s:g} s"
        finally:
            # Whatever it started and left; servers and workers die with it anyway.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    found = None if error else json.loads(_last_line(out))
    missing = process.returncode == MISSING
    return Record(cell.kind, cell.options, found, error, missing, round(time.monotonic() - started, 1))


def _median_ms(size: int, rounds: int, transport: str, servers: int = 1) -> float:
    return 1e3 * statistics.median(counted_s(run_rounds(size, PAIR, rounds, transport, servers=servers)))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _error(said: str) -> str:
    """Return the line that names an error; what is indented below it quotes logs."""
    return _last_line("\n".join(line for line in said.splitlines() if not line.startswith(" ")))


def main() -> None:
    """Measure what the command line names."""
    kind, options = sys.argv[1:]
    try:
        print(json.dumps(KINDS[kind](**json.loads(options))))
    except Missing as what:
        print(what, file=sys.stderr)
        sys.exit(MISSING)


if __name__ == "__main__":
    main()
