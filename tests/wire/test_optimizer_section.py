"""The `[optimizer]` table: what each optimizer takes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from paramserver.wire.errors import JobError
from paramserver.wire.job import OPTIMIZER_OPTIONS, Job, OptimizerSection


def refusal(**options: Any) -> str:
    with pytest.raises(JobError) as caught:
        Job.from_dict({"task": {"use": "t"}, "data": {"source": "d"}, "optimizer": options})
    return str(caught.value)


def test_every_optimizer_has_its_options_listed() -> None:
    names = OptimizerSection.model_fields["name"].annotation.__args__  # type: ignore[union-attr]
    assert set(names) == set(OPTIMIZER_OPTIONS)
    listed = {option for options in OPTIMIZER_OPTIONS.values() for option in options}
    assert listed <= set(OptimizerSection.model_fields)


@pytest.mark.parametrize("name", OPTIMIZER_OPTIONS)
def test_every_optimizer_has_defaults_that_cross_the_wire(name: str) -> None:
    job = Job.from_dict({"task": {"use": "t"}, "data": {"source": "d"}, "optimizer": {"name": name}})
    assert Job.from_json(job.to_json()) == job


def test_an_option_of_another_optimizer_is_refused_with_what_is_taken() -> None:
    message = refusal(name="adam", momentum=0.9)
    assert "momentum = 0.9" in message
    assert "adam, which takes beta1, beta2, epsilon, weight_decay" in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "adamm"}, "did you mean 'adam'"),
        ({"name": "sgd", "nesterov": True}, "momentum"),
        ({"momentum": 1.0}, "momentum"),
        ({"name": "adam", "epsilon": 0.0}, "epsilon"),
        ({"name": "ftrl", "beta": 0.0}, "beta"),
        ({"name": "ftrl", "schedule": "cosine"}, "'cosine'"),
        ({"name": "ftrl", "warmup_steps": 3}, "warmup_steps = 3"),
        ({"learning_rate": 0.1, "final_learning_rate": 0.2}, "final_learning_rate = 0.2"),
        ({"schedule": "step"}, "decay_steps"),
        ({"name": "rmsprop", "rho": 1.0}, "rho"),
    ],
)
def test_what_cannot_work_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    assert named in refusal(**options)
