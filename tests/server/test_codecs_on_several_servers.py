"""Contributions that travel encoded to several servers: read as a single one reads them, whoever dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramserver.server.decoder import Decoder
from paramserver.wire.codecs import chunk_elements
from paramserver.wire.job import Job
from paramserver.wire.layout import GRID, Layout
from paramserver.worker.encoder import Encoder
from server.severalservers import train

KEEPS_BACK = {"exact_every": 3}
WIRES: list[dict[str, Any]] = [
    {"push": "bf16", "pull": "bf16"},
    {"push": "int8"},
    {"push": "topk", "density": 0.1, **KEEPS_BACK},
    {"push": "sign", **KEEPS_BACK},
    {"push": "powersgd", "rank": 2, **KEEPS_BACK},
]


class Mean:
    """A single parameter."""

    def init(self, rng: np.random.Generator, batch: Any) -> dict[str, Any]:  # noqa: ARG002
        return {"m": np.zeros(1, np.float32)}

    def loss_and_grad(self, params: dict[str, Any], batch: Any) -> tuple[float, dict[str, Any]]:
        error = params["m"] - batch.x.mean(dtype=np.float32)
        return float(error[0] ** 2), {"m": 2 * error}


def make_job(wire: dict[str, Any], **sections: Any) -> Job:
    return Job.from_dict(
        {
            "task": {"use": "mlp", "options": {"hidden": [6], "activation": "tanh"}},
            "data": {"source": "conformance.models:points", "shards": 4, "batch_size": 8},
            "train": {"steps": 9},
            "wire": wire,
            **sections,
        }
    )


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire["push"])
@pytest.mark.parametrize("partitions", [2, 3, 5])
def test_every_part_is_read_as_the_whole_would_be(wire: dict[str, Any], partitions: int) -> None:
    """Parts are cut within blocks, tensors and rows of matrices; a chunk holds less than most of them."""
    shapes = [("a", (7,)), ("m", (300, 700)), ("b", (GRID + 5,)), ("n", (3, 5, 7)), ("z", ())]
    layout = Layout(shapes, "float32")
    job = make_job(wire, server={"partitions": partitions})
    chunk = chunk_elements(job, 4 * GRID)
    alone, several = Encoder(make_job(wire), layout, [chunk]), Encoder(job, layout, [chunk] * partitions)
    decoders = [Decoder(job, part) for part in layout.cut(partitions)]
    rng = np.random.default_rng(0)
    for step in range(4):
        gradient = rng.normal(size=layout.size).astype(np.float32)
        expected, found = gradient.copy(), gradient.copy()
        alone.encode(expected, 0, step, in_place=True)
        pieces = several.encode(found, 0, step, in_place=True)
        assert found.tobytes() == expected.tobytes()
        read = []
        for own, decoder in zip(pieces, decoders, strict=True):
            chunks = []
            for offset, piece in own:
                values, finite = decoder.read(memoryview(piece.tobytes()), offset, step, chunk)
                assert finite
                chunks.append(values)
            assert sum(piece.nbytes for _, piece in own) == decoder.nbytes(step)
            read += decoder.whole(chunks, step)
        assert np.concatenate(read).tobytes() == expected.tobytes()


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire["push"])
def test_a_server_without_a_part_of_a_small_theta_hears_of_contributions(
    monkeypatch: pytest.MonkeyPatch, wire: dict[str, Any]
) -> None:
    use = f"{__name__}:Mean"
    job = make_job(wire, task={"use": use}, train={"steps": 5})
    assert train(monkeypatch, job, 3) == train(monkeypatch, job, 1)


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire["push"])
def test_whoever_dies_the_bits_are_those_of_one_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wire: dict[str, Any]
) -> None:
    job = make_job(wire, server={"snapshot_every_s": 0.01})
    expected = train(monkeypatch, job, 1)
    deeds = {
        2: lambda servers: servers.kill_worker("b"),
        4: lambda servers: servers.kill(1),
        5: lambda servers: servers.kill_worker("a"),
        7: lambda servers: servers.kill(0),
    }
    for shares in (False, True):
        folder = tmp_path / str(shares)
        assert train(monkeypatch, job, 3, folder, deeds, shares=shares) == expected
