"""Contributions that are added up as halves have the bits of those that are widened as they come in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramserver.server.decoder import Decoder
from paramserver.server.events import Contribution
from paramserver.server.optimizers import fused
from paramserver.server.reduction import RoundSum
from paramserver.server.store import Store
from paramserver.server.update import Update
from paramserver.wire.codecs import Origin, halves
from paramserver.wire.job import Job
from paramserver.wire.layout import Array, Layout
from server.inprocess import Training, at_once

SIZE, BLOCK = 100, 32
LAYOUT = Layout([("t", (SIZE,))], "float32")


def make_job(**sections: Any) -> Job:
    tables: dict[str, Any] = {
        "task": {"use": "linear_regression"},
        "data": {"source": "builtin:linear", "shards": 3, "batch_size": 32},
        "train": {"steps": 8, "reduce": "sum"},
        "optimizer": {"learning_rate": 0.001},
        "wire": {"push": "bf16"},
        "server": {},
    }
    for name, section in sections.items():
        tables[name] = tables[name] | section
    return Job.from_dict(tables)


FLAVOURS = [False, pytest.param(True, marks=pytest.mark.skipif(not fused.AVAILABLE, reason="numba is not installed"))]

OPTIMIZERS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"name": "adam"},
    {"clip_norm": 1.0},
    {"name": "lamb"},
]


@pytest.mark.parametrize("fuse", FLAVOURS)
@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_an_update_by_halves(
    optimizer: dict[str, Any], workers: int, name: str, fuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "LARGE", 1)
    job, codec = make_job(optimizer=optimizer, train={"reduce": "mean"}, wire={"push": name}), halves(name)
    assert codec is not None
    thetas = []
    for as_halves in (True, False):
        rng = np.random.default_rng(1)
        update, theta = Update(job, LAYOUT, BLOCK, 3, fuse), np.ones(SIZE, np.float32)
        for version in (1, 2):
            terms: list[list[Array]] = [[] for _ in range(0, SIZE, BLOCK)]
            for _ in range(workers):
                values, coded = rng.normal(size=SIZE).astype(np.float32), np.empty(2 * SIZE, np.uint8)
                codec.encode(values, coded, Origin(0, 0, 0, 0))
                codec.decode(coded.data, values)
                vector = codec.look(coded.data)[0] if as_halves else values
                for number, start in enumerate(range(0, SIZE, BLOCK)):
                    terms[number].append(vector[start : start + BLOCK])
            contributions = [Contribution("w", shard, 1, 0, 0, 4, 0.5) for shard in range(workers)]
            update.apply(theta, terms, version, version, contributions)
        thetas.append(theta)
    assert thetas[0].tobytes() == thetas[1].tobytes()
    assert not np.array_equal(thetas[0], np.ones(SIZE, np.float32))


@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.9}, {"clip_norm": 10.0}], ids=str)
@pytest.mark.parametrize("push", ["bf16", "fp16"])
# Of nine, eight are added up before the last.
@pytest.mark.parametrize("shards", [3, 9])
def test_a_training_by_halves(
    optimizer: dict[str, Any], push: str, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "LARGE", 1)
    job = make_job(optimizer=optimizer, wire={"push": push}, data={"shards": shards})
    seen: list[np.dtype[Any]] = []
    hold = RoundSum.hold

    def spy(self: RoundSum, shard: int, blocks: list[Array], is_lent: bool = False) -> None:
        seen.append(blocks[0].dtype)
        hold(self, shard, blocks, is_lent)

    monkeypatch.setattr(RoundSum, "hold", spy)
    found = Training(job).finish(at_once, at_once).theta
    assert {dtype.itemsize for dtype in seen} == {2}
    monkeypatch.setattr(Store, "adds_halves", False)
    seen.clear()
    expected = Training(job).finish(at_once, at_once).theta
    assert {dtype.itemsize for dtype in seen} == {4}
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_whose_norm_is_looked_at_is_widened_first() -> None:
    # The halves taken for numbers would be tens of thousands.
    plain, careful = (Training(make_job(train=train)).finish(at_once) for train in ({}, {"refuse_norm": 100.0}))
    assert (careful.run.engine.phase, careful.rejected) == ("done", {})
    for name, array in plain.theta.items():
        np.testing.assert_array_equal(careful.theta[name], array)


APART: list[dict[str, Any]] = [
    {"train": {"mode": "async"}},
    {"train": {"quorum": 2}},
    {"train": {"aggregate": "median", "reduce": "mean"}},
    {"server": {"partitions": 2}},
]


@pytest.mark.parametrize("sections", APART, ids=str)
def test_who_needs_the_values_has_them_widened(sections: dict[str, Any]) -> None:
    assert not Store(make_job(**sections), LAYOUT, [np.zeros(SIZE, np.float32)], 3).adds_halves


@pytest.mark.parametrize("push", ["bf16", "fp16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_of_what_is_not_finite_the_values_are_told(push: str, bad: float) -> None:
    job, codec, coded = make_job(wire={"push": push}), halves(push), np.empty(2 * SIZE, np.uint8)
    assert codec is not None
    values = np.zeros(SIZE, np.float32)
    values[70] = bad
    codec.encode(values, coded, Origin(0, 0, 0, 0))
    found, finite = Decoder(job, LAYOUT).read(coded.data, 0, 0, SIZE, as_halves=True)
    assert not finite
    np.testing.assert_array_equal(found, values)
