"""The features that every transport, number of servers and recovery has to give the same bits for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from paramserver.wire.job import Job

SHARDS, STEPS = 4, 6

BASE: dict[str, dict[str, Any]] = {
    "task": {"use": "mlp", "options": {"hidden": [6], "activation": "tanh"}},
    "data": {"source": "conformance.models:points", "shards": SHARDS, "batch_size": 8},
    "train": {"steps": STEPS, "seed": 3},
    "optimizer": {"learning_rate": 0.1},
    "server": {"lease_s": 60.0},
}


class Feature(NamedTuple):
    """A part of a job.

    `workers` are as many as may share the work without a difference in the bits. With `turns` there is one for every
    shard, and they push in this order, again and again. `pinned` are shards that only the last worker can read.
    """

    name: str
    job: dict[str, dict[str, Any]]
    workers: int = 2
    turns: tuple[int, ...] = ()
    pinned: tuple[int, ...] = ()
    #: (shard, step) before which the policy is switched, and to what.
    switches: tuple[tuple[tuple[int, int], dict[str, str | int]], ...] = ()
    #: Whether the bits outlast a death.
    recovers: bool = True
    #: Whether how late contributions are is a matter of timing.
    delays_vary: bool = False


def rounds(name: str, **sections: Any) -> Feature:
    """Name a feature whose bits do not depend on who computes what."""
    return Feature(name, sections)


def in_order(name: str, **sections: Any) -> Feature:
    """Name a feature whose bits depend on the order of the contributions, which one worker makes always the same."""
    return Feature(name, sections, workers=1)


def in_turns(name: str, *turns: int, sections: dict[str, Any] | None = None, **train: Any) -> Feature:
    """Name a policy whose bits depend on delays, which turns make always the same, but for a death."""
    job = {**(sections or {}), "train": {"mode": "async", **train}}
    job["data"] = {**job.get("data", {}), "shards": 2}
    return Feature(name, job, workers=2, turns=turns, recovers=False)


def tally(name: str, **train: Any) -> Feature:
    """Name a policy whose sums of integers must be those of each contribution counted once, whoever computes when."""
    train = {"reduce": "sum", "dtype": "float64", **train}
    server = {"durability": train.pop("durability", "snapshot")}
    return Feature(
        name,
        {
            "task": {"use": "conformance.models:Tally", "options": {}},
            "data": {"source": "conformance.models:numbers"},
            "train": train,
            "optimizer": {"learning_rate": 1.0},
            "server": server,
        },
        workers=3,
        delays_vary=train["mode"] != "sync",
    )


WORDS = {
    "task": {"use": "server.sparsetask:TwoTables", "options": {}},
    "data": {"source": "server.sparsetask:words", "batch_size": 16},
}
CLICKS = {
    "task": {"use": "sparse_logistic_regression", "options": {}},
    "data": {
        "source": str(Path(__file__).parents[2] / "examples" / "clicks.csv"),
        "label": "clicked",
        "hash": ["city", "device", "hour"],
        "batch_size": 20,
    },
}
WIDE = {"task": {"use": "conformance.models:Wide", "options": {}}, "data": {"shards": 2}}
#: In longer chunks beside a stream.
LONG = {**WIDE, "data": {"shards": 4}}
KEEPS_BACK = {"exact_every": 3}

FEATURES = [
    # Policies.
    rounds("sync"),
    in_order("quorum", train={"quorum": 3}),
    in_order("async", train={"mode": "async"}, optimizer={"name": "adam"}),
    in_order("async-log", train={"mode": "async"}, server={"durability": "log"}),
    in_order("async-log-clipped", train={"mode": "async"}, optimizer={"clip_norm": 0.3}, server={"durability": "log"}),
    in_order("ssp", train={"mode": "ssp", "staleness": 1}),
    in_turns("delays-scaled", 0, 0, 1, staleness_scaling=True),
    in_turns("delays-compensated", 0, 0, 1, delay_compensation=0.5),
    in_turns("delays-bounded", 0, 0, 1, max_delay=1),
    in_turns("ssp-delays", 0, 1, mode="ssp", staleness=1, staleness_scaling=True, delay_compensation=0.5),
    in_order(
        "switched",
        train={"steps": 8},
    )._replace(
        switches=(
            ((0, 1), {"mode": "async", "max_delay": 9}),
            ((0, 3), {"mode": "ssp", "staleness": 1}),
            ((0, 6), {"mode": "sync"}),
        )
    ),
    tally("tally-sync", mode="sync"),
    tally("tally-async", mode="async"),
    tally("tally-max-delay", mode="async", max_delay=1),
    tally("tally-ssp", mode="ssp", staleness=1),
    tally("tally-log", mode="async", durability="log"),
    # Optimizers, with what goes before and after them, on data that is dealt in every way.
    rounds("nesterov", optimizer={"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, data={"batch_size": 0}),
    rounds("adam", optimizer={"name": "adam", "clip_norm": 0.3}),
    rounds("adamw", optimizer={"name": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup_steps": 2}),
    rounds("adagrad", optimizer={"name": "adagrad"}, data={"standardize": True}),
    rounds("rmsprop", optimizer={"name": "rmsprop", "momentum": 0.5}, data={"label_skew": 0.5}),
    rounds(
        "yogi",
        optimizer={"name": "yogi", "schedule": "step", "decay_steps": 2},
        data={"shard_weights": [1.0, 2.0, 4.0, 1.0]},
    ),
    rounds("ftrl", optimizer={"name": "ftrl", "l1": 0.01}),
    rounds("lars", optimizer={"name": "lars", "trust_coefficient": 0.1}),
    rounds("lamb", optimizer={"name": "lamb", "weight_decay": 0.01}),
    rounds("pinned", optimizer={"momentum": 0.5})._replace(pinned=(1,)),
    rounds("tolerance", stop={"tolerance": 10.0, "patience": 5}, train={"dtype": "float64"}),
    rounds("wide", **WIDE, optimizer={"momentum": 0.9, "clip_norm": 9.0}),
    # Robust aggregation.
    rounds("median", train={"aggregate": "median"}),
    rounds("trimmed-mean", train={"aggregate": "trimmed_mean", "trim": 1}),
    rounds("krum", train={"aggregate": "krum"}),
    rounds("multi-krum", train={"aggregate": "multi_krum", "clip_contribution": 0.5}),
    in_order("quorum-median", train={"quorum": 3, "aggregate": "median"}),
    rounds("clip-contribution", train={"clip_contribution": 0.1}),
    rounds("refuse-norm", train={"refuse_norm": 1e6}),
    # Codecs.
    rounds("bf16", wire={"push": "bf16", "pull": "bf16"}),
    rounds("fp16", wire={"push": "fp16", "pull": "fp16"}),
    rounds("wide-bf16", **WIDE, wire={"push": "bf16", "pull": "bf16"}),
    rounds("long-chunks", **LONG, optimizer={"momentum": 0.9}),
    rounds("long-chunks-int8", **LONG, wire={"push": "int8", "pull": "bf16"}),
    rounds("int8", wire={"push": "int8"}),
    rounds("topk", wire={"push": "topk", "density": 0.2, "momentum": 0.5, **KEEPS_BACK}),
    rounds("sign", wire={"push": "sign", **KEEPS_BACK}, optimizer={"learning_rate": 0.01}),
    rounds("powersgd", wire={"push": "powersgd", "rank": 1, **KEEPS_BACK}),
    in_order("async-int8-log", train={"mode": "async"}, wire={"push": "int8"}, server={"durability": "log"}),
    # Without rounds, what a push kept back dies with its worker.
    in_order("async-topk", train={"mode": "async"}, wire={"push": "topk", "density": 0.2, **KEEPS_BACK})._replace(
        recovers=False
    ),
    # Local steps.
    rounds("downpour", train={"local_steps": 3}, optimizer={"name": "adagrad"}),
    rounds(
        "diloco",
        train={"local_steps": 2, "local_update": "difference", "local_learning_rate": 0.1},
        optimizer={"learning_rate": 0.7, "momentum": 0.9, "nesterov": True},
    ),
    rounds(
        "elastic",
        train={"local_steps": 2, "local_update": "elastic", "local_learning_rate": 0.1, "elasticity": 0.2},
        optimizer={"learning_rate": 1.0},
    ),
    in_order("async-downpour", train={"mode": "async", "local_steps": 2}),
    in_order(
        "ssp-difference",
        train={
            "mode": "ssp",
            "local_steps": 2,
            "local_update": "difference",
            "local_learning_rate": 0.1,
        },
        optimizer={"learning_rate": 1.0},
    ),
    in_order(
        "async-elastic",
        train={
            "mode": "async",
            "local_steps": 2,
            "local_update": "elastic",
            "local_learning_rate": 0.1,
            "elasticity": 0.2,
        },
        optimizer={"learning_rate": 0.2},
    ),
    # Tables.
    rounds("tables", **WORDS, optimizer={"name": "adam"}),
    # Not table_max_rows, of which every server has its own share.
    rounds("tables-forgetting", **WORDS, server={"table_max_age": 3}),
    rounds("tables-clipped", **WORDS, optimizer={"name": "rmsprop", "momentum": 0.5, "clip_norm": 0.05}),
    rounds("tables-int8", **WORDS, optimizer={"momentum": 0.9}, wire={"push": "int8", "pull": "bf16"}),
    in_order("async-tables", **WORDS, train={"mode": "async"}, optimizer={"name": "ftrl", "l1": 0.003}),
    in_turns("tables-delays", 0, 0, 1, sections={**WORDS, "optimizer": {"name": "yogi"}}, staleness_scaling=True),
    rounds("hashed-ftrl", **CLICKS, optimizer={"name": "ftrl", "l1": 0.003}),
    rounds(
        "factorization-machine",
        task={"use": "factorization_machine", "options": {"rank": 3, "l2": 0.01}},
        data={"source": "server.sparsetask:words", "batch_size": 16},
        optimizer={"name": "adagrad"},
    ),
    rounds(
        "matrix-factorization",
        task={"use": "matrix_factorization", "options": {"rank": 2, "l2": 0.01}},
        data={"source": "conformance.models:ratings"},
        optimizer={"name": "adamw", "weight_decay": 0.01},
    ),
]

#: What is refused over several servers, with what is said. Whoever lifts a refusal removes its row.
REFUSED: dict[str, str] = {}


def make_job(feature: Feature, partitions: int) -> Job:
    """Return the job of a cell."""
    sections = {*BASE, *feature.job}
    tables = {name: {**BASE.get(name, {}), **feature.job.get(name, {})} for name in sorted(sections)}
    tables["server"]["partitions"] = partitions
    return Job.from_dict(tables)
