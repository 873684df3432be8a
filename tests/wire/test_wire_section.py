"""The `[wire]` table: what each codec takes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from paramserver.wire.codecs import chunk_elements
from paramserver.wire.errors import JobError
from paramserver.wire.job import WIRE_OPTIONS, Job, WireSection


def job(wire: dict[str, Any], **tables: Any) -> Job:
    return Job.from_dict({"task": {"use": "t"}, "data": {"source": "d"}, "wire": wire, **tables})


def test_every_codec_crosses_the_wire() -> None:
    pushes = WireSection.model_fields["push"].annotation.__args__  # type: ignore[union-attr]
    assert set(WIRE_OPTIONS) < set(pushes)
    for push in pushes:
        found = job({"push": push, "pull": "bf16"})
        assert Job.from_json(found.to_json()) == found
        assert found.wire.keeps_back == (push in WIRE_OPTIONS)


@pytest.mark.parametrize(
    ("wire", "tables", "said"),
    [
        ({"push": "bf16"}, {"train": {"dtype": "float64"}}, "wire.push = 'bf16' needs train.dtype = 'float32', found"),
        ({"pull": "fp16"}, {"train": {"dtype": "float64"}}, "wire.pull = 'fp16' needs train.dtype = 'float32', found"),
        ({"push": "int8"}, {"train": {"dtype": "float64"}}, "wire.push = 'int8' needs train.dtype = 'float32', found"),
        ({"pull": "int8"}, {}, "'wire.pull' is 'int8'"),
        ({"push": "sign", "density": 0.1}, {}, "density = 0.1 has no meaning for push = 'sign', only for 'topk'"),
        ({"push": "int8", "exact_every": 5}, {}, "only for 'topk', 'sign', 'powersgd'"),
        (
            {"push": "topk", "momentum": 0.9},
            {"optimizer": {"momentum": 0.8}},
            "wire.momentum = 0.9 takes the place of optimizer.momentum = 0.8",
        ),
    ],
)
def test_what_does_not_fit_is_refused(wire: dict[str, Any], tables: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError) as caught:
        job(wire, **tables)
    assert said in str(caught.value)


def test_the_last_step_of_a_window_is_exact() -> None:
    wire = job({"push": "sign", "exact_every": 3}).wire
    assert [step for step in range(8) if wire.is_exact(step)] == [2, 5]


@pytest.mark.parametrize(
    ("push", "pull", "elements"),
    [("full", "full", 256), ("bf16", "full", 256), ("full", "fp16", 256), ("int8", "bf16", 256), ("bf16", "fp16", 512)],
)
def test_a_chunk_of_halves_both_ways_has_twice_the_values(push: str, pull: str, elements: int) -> None:
    assert chunk_elements(job({"push": push, "pull": pull}), 1024) == elements
