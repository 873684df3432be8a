"""The job: TOML and JSON say the same, and every wrong key is named with what was found and what is allowed."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from paramserver.wire.errors import JobError
from paramserver.wire.job import Job

LEAST = {"task": {"use": "linear_regression"}, "data": {"source": "train.csv"}}

TOML = """
[task]
use = "my_model.py:Model"
options = { hidden = [256, 10], name = "θ", rate = 0.5, deep = { on = true } }
[data]
source = "train.csv"
test = "test.csv"
label = "y"
shards = 8
batch_size = 0
standardize = true
[train]
mode = "ssp"
staleness = 2
reduce = "sum"
epochs = 3
seed = 7
dtype = "float64"
[optimizer]
name = "adam"
learning_rate = 1
clip_norm = 2.5
schedule = "cosine"
warmup_steps = 10
[stop]
target_loss = 0.01
tolerance = 1e-6
patience = 4
max_seconds = 600
[server]
lease_s = 5
"""


def test_every_key_but_two_has_its_documented_default() -> None:
    job = Job.from_dict(LEAST)
    assert (job.data.shards, job.data.batch_size, job.data.standardize) == (4, 256, False)
    assert (job.train.mode, job.train.staleness, job.train.reduce) == ("sync", 3, "mean")
    assert (job.train.seed, job.train.dtype, job.train.epochs_or_default) == (0, "float32", 10.0)
    assert (job.optimizer.name, job.optimizer.learning_rate) == ("sgd", 0.1)
    assert (job.stop.target_loss, job.stop.tolerance, job.stop.patience) == (None, 0.0, 3)
    assert job.server.partitions == 1


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(TOML, encoding="utf-8")
    job = Job.from_toml(path)
    assert job == Job.from_json(json.dumps(tomllib.loads(TOML)))
    assert job == Job.from_json(job.to_json()), "what crosses the wire is the same job"
    assert job.task.options["name"] == "θ"
    assert job.optimizer.learning_rate == 1.0


#: Path of a key, its wrong value, and what the message must say.
WRONG: list[tuple[str, Any, list[str]]] = [
    ("task.use", "", ["'task.use' is ''", "at least 1 character"]),
    ("task.use", 3, ["'task.use' is 3", "valid string"]),
    ("task.options", [1], ["'task.options' is [1]", "dictionary"]),
    ("task.options", {"a": math.nan}, ["task.options", "finite numbers"]),
    ("task.options", {"a": "\ud800"}, ["task.options", "strings"]),
    ("task.options", {"a": {1, 2}}, ["task.options", "lists and tables"]),
    ("task.optoins", {}, ["unknown key 'task.optoins', did you mean 'options'?", "Allowed: options, use"]),
    ("data.source", None, ["'data.source' is None"]),
    ("data.shard", 3, ["unknown key 'data.shard', did you mean 'shards'?", "Allowed: batch_size,"]),
    ("data.zzz", 3, ["unknown key 'data.zzz'. Allowed: batch_size,"]),
    ("data.shards", 0, ["'data.shards' is 0", "greater than or equal to 1"]),
    ("data.shards", 65_537, ["'data.shards' is 65537", "less than or equal to 65536"]),
    ("data.shards", "4", ["'data.shards' is '4'", "valid integer"]),
    ("data.shards", 4.5, ["'data.shards' is 4.5", "valid integer"]),
    ("data.shards", True, ["'data.shards' is True", "valid integer"]),
    ("data.batch_size", -1, ["'data.batch_size' is -1", "greater than or equal to 0"]),
    ("data.shard_weights", [1, 2], ["data: shard_weights has 2 weights for 4 shards; give one for each"]),
    ("data.shard_weights", [1, 1, 1, 0], ["'data.shard_weights.3' is 0", "greater than 0"]),
    ("data.label_skew", 0, ["'data.label_skew' is 0", "greater than or equal to 0.001"]),
    ("data.standardize", 1, ["'data.standardize' is 1", "valid boolean"]),
    ("data", 3, ["'data' is 3"]),
    ("train.mode", "synch", ["'train.mode' is 'synch', did you mean 'sync'?", "'sync', 'async' or 'ssp'"]),
    ("train.mode", 7, ["'train.mode' is 7. Allowed: 'sync', 'async' or 'ssp'"]),
    ("train.dtype", "float16", ["'train.dtype' is 'float16'", "'float32' or 'float64'"]),
    ("train.staleness", -1, ["'train.staleness' is -1"]),
    ("train.epochs", 0, ["'train.epochs' is 0", "greater than 0"]),
    ("train.epochs", math.inf, ["'train.epochs' is inf"]),
    ("train.epochs", 1e300, ["'train.epochs' is 1e+300"]),
    ("train.steps", 0, ["'train.steps' is 0"]),
    ("train.steps", 2**70, ["'train.steps' is 1180591620717411303424"]),
    ("train.seed", 2**32, ["'train.seed' is 4294967296", "less than 4294967296"]),
    ("optimizer.name", "adma", ["'optimizer.name' is 'adma', did you mean 'adam'?"]),
    ("optimizer.learning_rate", 0, ["'optimizer.learning_rate' is 0", "greater than 0"]),
    ("optimizer.learning_rate", math.nan, ["'optimizer.learning_rate' is nan", "finite"]),
    ("optimizer.momentum", 1.0, ["'optimizer.momentum' is 1.0", "less than 1"]),
    ("optimizer.nesterov", True, ["optimizer: nesterov = true needs momentum above 0"]),
    ("optimizer.schedule", "step", ["optimizer: schedule = 'step' needs decay_steps of 1 or more"]),
    ("stop.patience", 0, ["'stop.patience' is 0"]),
    ("stop.max_seconds", -1, ["'stop.max_seconds' is -1"]),
    ("server.lease_s", 0.0, ["'server.lease_s' is 0.0", "greater than or equal to 0.1"]),
    ("server.partitions", 0, ["'server.partitions' is 0", "greater than or equal to 1"]),
    (
        "sever",
        {},
        ["unknown key 'sever', did you mean 'server'?", "Allowed: data, optimizer, server, stop, task, train"],
    ),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG, ids=[f"{path}={value!r:.20}" for path, value, _ in WRONG])
def test_a_wrong_key_is_named_with_what_was_found_and_what_is_allowed(path: str, value: Any, said: list[str]) -> None:
    tables: dict[str, Any] = json.loads(json.dumps(LEAST))
    *table, key = path.split(".")
    (tables.setdefault(table[0], {}) if table else tables)[key] = value
    with pytest.raises(JobError) as caught:
        Job.from_dict(tables, origin="job.toml")
    for part in ["job.toml: ", *said]:
        assert part in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(JobError) as caught:
        Job.from_dict({"task": {}, "train": {"mode": "x", "sed": 1}})
    lines = str(caught.value).splitlines()
    assert lines == [
        "job: 'task.use' is missing",
        "job: 'data' is missing",
        "job: 'train.mode' is 'x'. Allowed: 'sync', 'async' or 'ssp'",
        "job: unknown key 'train.sed', did you mean 'seed'? "
        "Allowed: aggregate, byzantine, clip_contribution, delay_compensation, dtype, elasticity, epochs, "
        "local_learning_rate, local_steps, local_update, max_delay, mode, quorum, reduce, refuse_norm, seed, "
        "staleness, staleness_scaling, steps, trim",
    ]


def test_epochs_and_steps_together_are_refused() -> None:
    with pytest.raises(JobError, match=r"train: epochs = 2.0 and steps = 5 are both set; give one of them"):
        Job.from_dict(LEAST | {"train": {"epochs": 2, "steps": 5}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("1" * 5_000, "not valid JSON"),
        ("[]", "a JSON object is expected, found list"),
        ("null", "a JSON object is expected, found NoneType"),
    ],
)
def test_what_is_no_json_object_is_refused(text: str, said: str) -> None:
    with pytest.raises(JobError, match=said):
        Job.from_json(text)


@pytest.mark.parametrize(
    ("content", "said"), [(b"[task\n", "not valid TOML"), (b"\xff\xfe", "cannot be read"), (None, "no such job file")]
)
def test_what_is_no_job_file_is_refused_by_its_path(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "job.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobError) as caught:
        Job.from_toml(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    with pytest.raises(JobError, match="cannot be read"):
        Job.from_toml(tmp_path)
