"""The job: what to train, on which data, under which policy, until when.

These models are the one definition of a job's names, types, defaults and bounds. A job file, the Python API and
the wire all pass through them. A job names code (a task), it never carries it.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from paramserver.wire.errors import JobError, nearest

#: Tensors of a job all have one of these dtypes.
Dtype = Literal["float32", "float64"]

#: Counts of steps must fit 64 bits on the wire, and a double where a language has no such numbers.
MAX_STEPS = 10**15


class Section(BaseModel):
    """A table of the job file: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TaskSection(Section):
    """Which model to train; `use` is a built-in name, `module:Name` or `file.py:Name`."""

    use: str = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _can_travel(cls, options: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(options, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"options are strings, finite numbers, booleans, lists and tables: {error}") from None
        return options


class DataSection(Section):
    """Where the examples are and how they are cut into shards and batches."""

    source: str = Field(min_length=1)
    test: str = ""
    label: str = ""
    shards: int = Field(default=4, ge=1, le=65536)
    #: Relative sizes of the shards; empty: as equal as can be.
    shard_weights: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
    #: The concentration α of the Dirichlet distribution by which rows are dealt by label; unset: rows as they stand.
    label_skew: float | None = Field(default=None, ge=0.001, le=10**6)
    batch_size: int = Field(default=256, ge=0)
    standardize: bool = False
    #: Columns of a csv file that hold text; each cell becomes a 64-bit key.
    hash: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _hash_fits(self) -> Self:
        if self.hash and self.standardize:
            raise ValueError("standardize = true cannot be had with hash: hashed columns have no mean")
        return self

    @model_validator(mode="after")
    def _a_weight_for_every_shard(self) -> Self:
        if self.shard_weights and len(self.shard_weights) != self.shards:
            raise ValueError(
                f"shard_weights has {len(self.shard_weights)} weights for {self.shards} shards;"
                " give one for each, or none"
            )
        return self


class TrainSection(Section):
    """The consistency policy and how long to train; a step is one contribution of every shard.

    A key that belongs to another mode stands by until the job is switched to that mode.
    """

    mode: Literal["sync", "async", "ssp"] = "sync"
    #: sync: contributions that close a round; 0 is one of every shard.
    quorum: int = Field(default=0, ge=0)
    #: ssp: steps that a shard may be ahead of the slowest.
    staleness: int = Field(default=3, ge=0)
    #: async, ssp: versions that θ may have moved on since a contribution's pull; 0 is no bound.
    max_delay: int = Field(default=0, ge=0)
    #: async, ssp: divide the learning rate by 1 + delay.
    staleness_scaling: bool = False
    #: async, ssp: the λ of DC-ASGD-a; 0 is no compensation.
    delay_compensation: float = Field(default=0.0, ge=0)
    reduce: Literal["mean", "sum"] = "mean"
    #: sync: how the contributions of a round become one gradient.
    aggregate: Literal["mean", "median", "trimmed_mean", "krum", "multi_krum"] = "mean"
    #: trimmed_mean: values left out at either end of every coordinate.
    trim: int = Field(default=0, ge=0)
    #: krum, multi_krum: contributions of a round that may be hostile.
    byzantine: int = Field(default=0, ge=0)
    #: sync: bound on the norm of every contribution's mean gradient; 0 is no bound.
    clip_contribution: float = Field(default=0.0, ge=0)
    #: Bound on the norm of a contribution's mean gradient, beyond which it is refused; 0 is no bound.
    refuse_norm: float = Field(default=0.0, ge=0)
    #: Batches that a worker computes, moving its own θ, before it pushes.
    local_steps: int = Field(default=1, ge=1, le=65536)
    #: Whether the accumulated gradient, the difference of the parameters or a shard's own parameters are pushed.
    local_update: Literal["gradient", "difference", "elastic"] = "gradient"
    #: elastic: the share of its way to θ that a shard goes before its local steps.
    elasticity: float = Field(default=0.0, ge=0, lt=1)
    #: Of the worker's own steps; that of the optimizer if not set.
    local_learning_rate: float | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0, le=10**9)
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    seed: int = Field(default=0, ge=0, lt=2**32)
    dtype: Dtype = "float32"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs = {self.epochs} and steps = {self.steps} are both set; give one of them")
        return self

    @model_validator(mode="after")
    def _aggregate_fits(self) -> Self:
        how = self.aggregate
        if self.trim and how != "trimmed_mean":
            raise ValueError(f"trim = {self.trim} has no meaning for {how!r}, only for 'trimmed_mean'")
        if self.byzantine and how not in ("krum", "multi_krum"):
            raise ValueError(
                f"byzantine = {self.byzantine} has no meaning for {how!r}, only for 'krum' and 'multi_krum'"
            )
        if self.is_robust and (self.mode, self.reduce) != ("sync", "mean"):
            raise ValueError(
                f"aggregate = {how!r} with clip_contribution = {self.clip_contribution:g} needs mode = 'sync'"
                f" and reduce = 'mean', found {self.mode!r} and {self.reduce!r}"
            )
        return self

    @model_validator(mode="after")
    def _local_steps_fit(self) -> Self:
        if self.local_learning_rate is not None and not self.goes_local:
            raise ValueError(f"local_learning_rate = {self.local_learning_rate} has no meaning with local_steps = 1")
        how = self.local_update
        if how != "gradient" and self.local_learning_rate is None:
            raise ValueError(
                f"local_update = {how!r} needs local_learning_rate: the optimizer's rate is that of the outer step"
            )
        if how != "gradient" and self.reduce != "mean":
            raise ValueError(f"local_update = {how!r} needs reduce = 'mean', found {self.reduce!r}")
        if (how == "elastic") != (self.elasticity > 0):
            raise ValueError(
                f"local_update = {how!r} and elasticity = {self.elasticity:g} do not go together:"
                " 'elastic' needs an elasticity above 0, and nothing else takes one"
            )
        if how == "elastic" and self.delay_compensation:
            raise ValueError(
                f"delay_compensation = {self.delay_compensation:g} has no meaning for local_update = 'elastic',"
                " which pushes no gradient"
            )
        if how == "elastic" and self.refuse_norm:
            raise ValueError(
                f"refuse_norm = {self.refuse_norm:g} has no meaning for local_update = 'elastic',"
                " which pushes no gradient"
            )
        return self

    @property
    def goes_local(self) -> bool:
        """Whether workers move a θ of their own."""
        return self.local_steps > 1 or self.local_update != "gradient"

    @property
    def is_robust(self) -> bool:
        """Whether a round is anything else than the sum of its contributions."""
        return self.aggregate != "mean" or self.clip_contribution > 0

    @property
    def epochs_or_default(self) -> float:
        """Passes over the data if `steps` does not say how long to train."""
        return 10.0 if self.epochs is None else self.epochs


#: What each optimizer takes besides the learning rate, its schedule and clipping.
OPTIMIZER_OPTIONS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov", "weight_decay"),
    "adam": ("beta1", "beta2", "epsilon", "weight_decay"),
    "adamw": ("beta1", "beta2", "epsilon", "weight_decay"),
    "adagrad": ("epsilon", "initial_accumulator", "weight_decay"),
    "rmsprop": ("rho", "epsilon", "momentum", "weight_decay"),
    "yogi": ("beta1", "beta2", "epsilon", "initial_accumulator"),
    "ftrl": ("l1", "l2", "beta"),
    "lars": ("momentum", "nesterov", "weight_decay", "trust_coefficient"),
    "lamb": ("beta1", "beta2", "epsilon", "weight_decay"),
}


class OptimizerSection(Section):
    """The update that the server applies, its learning-rate schedule and gradient clipping.

    An option that the named optimizer does not take must keep its default. For `ftrl`, `learning_rate` is the
    paper's α. For all but `adamw` and `lamb`, `weight_decay` is added to the gradient (L2).
    """

    name: Literal["sgd", "adam", "adamw", "adagrad", "rmsprop", "yogi", "ftrl", "lars", "lamb"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    #: Decay of the mean gradient and, beta2, of the mean squared gradient in Adam and its kin.
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    #: Above zero in float32 too, since 0/0 would be NaN where a gradient is zero.
    epsilon: float = Field(default=1e-8, ge=1e-30)
    #: rmsprop: decay of the mean squared gradient.
    rho: float = Field(default=0.99, ge=0, lt=1)
    #: adagrad, yogi: the accumulated squared gradient before the first update.
    initial_accumulator: float = Field(default=0.0, ge=0)
    #: ftrl: weights of |θ| and θ²/2, and the β that holds the first rates down.
    l1: float = Field(default=0.0, ge=0)
    l2: float = Field(default=0.0, ge=0)
    beta: float = Field(default=1.0, ge=1e-30)
    #: lars: the share of a tensor's norm that a step with learning rate 1 moves it by.
    trust_coefficient: float = Field(default=0.001, gt=0)
    #: Bound on the norm of the whole gradient; 0 is no bound.
    clip_norm: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "step", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    decay_rate: float = Field(default=0.1, gt=0, le=1)
    final_learning_rate: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        taken = OPTIMIZER_OPTIONS[self.name]
        for option in sorted({option for options in OPTIMIZER_OPTIONS.values() for option in options}):
            value = getattr(self, option)
            if option not in taken and value != type(self).model_fields[option].default:
                raise ValueError(f"{option} = {value} has no meaning for {self.name}, which takes {', '.join(taken)}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs momentum above 0")
        if self.schedule == "step" and self.decay_steps == 0:
            raise ValueError("schedule = 'step' needs decay_steps of 1 or more: the steps between two decays")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate = {self.final_learning_rate} is above"
                f" learning_rate = {self.learning_rate}: a schedule only falls"
            )
        if self.name == "ftrl" and (self.schedule != "constant" or self.warmup_steps):
            raise ValueError(
                f"schedule = {self.schedule!r} with warmup_steps = {self.warmup_steps} has no meaning for"
                " ftrl: its state holds terms of all steps at one learning rate; use 'constant' and 0"
            )
        return self


class StopSection(Section):
    """When to stop before the last step; a bound of 0 is no bound."""

    target_loss: float | None = None
    tolerance: float = Field(default=0.0, ge=0)
    patience: int = Field(default=3, ge=1)
    max_seconds: float = Field(default=0.0, ge=0)


class ServerSection(Section):
    """How the server holds the job."""

    #: Servers that share θ, each holding a range of it.
    partitions: int = Field(default=1, ge=1, le=1024)
    #: What outlives the server, if it was given a state directory. snapshot: θ as of the last one, and all that
    #: belongs to it. log: in async and ssp also every contribution that was acknowledged since.
    durability: Literal["none", "snapshot", "log"] = "snapshot"
    snapshot_every_s: float = Field(default=30.0, gt=0, le=86_400)
    #: The hash of θ is written down every so many versions; 0: with snapshots only.
    hash_every: int = Field(default=0, ge=0)
    lease_s: float = Field(default=10.0, ge=0.1)
    #: Computing for less than this is never too long.
    stuck_s: float = Field(default=60.0, ge=0.1)
    #: How long a shard may wait for a worker that can take it before the job fails; 0 is no bound.
    absent_s: float = Field(default=3600.0, ge=0)
    #: Pushes of a worker that break the contract before it gets no more work.
    max_bad_pushes: int = Field(default=3, ge=1)
    #: Rows that a table keeps; the longest without an update go first. 0 is no bound.
    table_max_rows: int = Field(default=0, ge=0)
    #: Updates of θ after which a row without one is forgotten; 0 is never.
    table_max_age: int = Field(default=0, ge=0, le=MAX_STEPS)


#: What each codec that keeps something back takes.
WIRE_OPTIONS: dict[str, tuple[str, ...]] = {
    "topk": ("density", "momentum", "exact_every"),
    "sign": ("exact_every",),
    "powersgd": ("rank", "exact_every"),
}


class WireSection(Section):
    """How tensors of a float32 job travel; the server computes in float32 whatever they do."""

    #: Contributions, from the workers to the server.
    push: Literal["full", "bf16", "fp16", "int8", "topk", "sign", "powersgd"] = "full"
    #: Parameters, from the server to the workers.
    pull: Literal["full", "bf16", "fp16"] = "full"
    #: topk: share of the values that is sent.
    density: float = Field(default=0.01, gt=0, le=0.5)
    #: topk: of the momentum that is corrected for what was kept back; 0 is none.
    momentum: float = Field(default=0.0, ge=0, lt=1)
    #: powersgd: columns of the factors.
    rank: int = Field(default=2, ge=1, le=1024)
    #: topk, sign, powersgd: every so many steps a push carries in full all that was kept back.
    exact_every: int = Field(default=64, ge=1, le=10**6)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        taken = WIRE_OPTIONS.get(self.push, ())
        for option in ("density", "momentum", "rank", "exact_every"):
            value = getattr(self, option)
            if option not in taken and value != type(self).model_fields[option].default:
                takers = ", ".join(repr(push) for push, options in WIRE_OPTIONS.items() if option in options)
                raise ValueError(f"{option} = {value} has no meaning for push = {self.push!r}, only for {takers}")
        return self

    @property
    def keeps_back(self) -> bool:
        """Whether a push leaves something for the next push of its shard to make up for."""
        return self.push in WIRE_OPTIONS

    def is_exact(self, step: int) -> bool:
        """Say whether the push of this step, where pushes keep something back, is one that leaves nothing."""
        return (step + 1) % self.exact_every == 0


class Job(Section):
    """One training run: task, data, policy, optimizer, stop rule and seed.

    Raises:
        JobError: from `from_toml` and `from_dict`, with the key, the value found and what is allowed.
    """

    task: TaskSection
    data: DataSection
    train: TrainSection = TrainSection()
    optimizer: OptimizerSection = OptimizerSection()
    stop: StopSection = StopSection()
    server: ServerSection = ServerSection()
    wire: WireSection = WireSection()

    @model_validator(mode="after")
    def _wire_fits(self) -> Self:
        if self.wire.push != "full" and self.train.local_update == "elastic":
            raise ValueError(
                f"wire.push = {self.wire.push!r} does not go with train.local_update = 'elastic':"
                " a shard would lose a part of its own parameters with every push; use 'full'"
            )
        for key, value in (("push", self.wire.push), ("pull", self.wire.pull)):
            if value != "full" and self.train.dtype != "float32":
                raise ValueError(
                    f"wire.{key} = {value!r} needs train.dtype = 'float32', found {self.train.dtype!r}:"
                    " a job of that precision keeps it on the wire; use 'full'"
                )
        if self.server.durability == "log" and self.train.local_update == "elastic":
            raise ValueError(
                "server.durability = 'log' does not hold what shards have of their own with train.local_update ="
                " 'elastic'; use 'snapshot'"
            )
        if self.server.durability == "log" and self.wire.keeps_back:
            raise ValueError(
                f"server.durability = 'log' needs a wire.push that keeps nothing back, found {self.wire.push!r}:"
                " such a job takes back what it has counted when a shard changes hands; use 'snapshot'"
            )
        if self.wire.momentum and self.optimizer.momentum:
            raise ValueError(
                f"wire.momentum = {self.wire.momentum} takes the place of optimizer.momentum ="
                f" {self.optimizer.momentum}; set one of them"
            )
        return self

    @model_validator(mode="after")
    def _can_make_progress(self) -> Self:
        if self.train.quorum > self.data.shards:
            raise ValueError(
                f"train.quorum = {self.train.quorum} is above data.shards = {self.data.shards}:"
                " no round would ever close"
            )
        train, found = self.train, self.train.quorum or self.data.shards
        if 2 * train.trim >= found:
            raise ValueError(
                f"train.trim = {train.trim} leaves nothing of the {found} contributions of a round;"
                f" allowed are up to {(found - 1) // 2}"
            )
        if train.aggregate in ("krum", "multi_krum") and found < 2 * train.byzantine + 3:
            raise ValueError(
                f"train.byzantine = {train.byzantine} needs {2 * train.byzantine + 3} contributions in a round"
                f" for {train.aggregate!r}, found {found}"
            )
        return self

    @classmethod
    def from_dict(cls, tables: dict[str, Any], origin: str = "job") -> Job:
        """Check nested tables such as a parsed job file holds; `origin` opens every error message."""
        try:
            return cls.model_validate(tables)
        except ValidationError as error:
            lines = [_explain(detail) for detail in error.errors()]
            raise JobError("\n".join(f"{origin}: {line}" for line in lines)) from None

    @classmethod
    def from_toml(cls, path: str | Path) -> Job:
        """Read a job file; paths inside it stay as they are written."""
        path = Path(path)
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise JobError(f"{path}: no such job file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise JobError(f"{path}: cannot be read: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise JobError(f"{path}: not valid TOML: {error}") from None
        return cls.from_dict(tables, origin=str(path))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read the JSON form, which is how a job crosses the wire."""
        try:
            tables = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise JobError(f"job: not valid JSON: {error}") from None
        if not isinstance(tables, dict):
            raise JobError(f"job: a JSON object is expected, found {type(tables).__name__}")
        return cls.from_dict(tables)

    def to_json(self) -> str:
        """Return the JSON form with every key, defaults included."""
        return self.model_dump_json()


def _explain(detail: ErrorDetails) -> str:
    """Say which key is wrong, what was found and what is allowed."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    found = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            allowed = _keys_at(path[:-1])
            return f"unknown key {key!r}{nearest(path[-1], allowed) or '.'} Allowed: {', '.join(sorted(allowed))}"
        case "missing":
            return f"{key!r} is missing"
        case "literal_error":
            hint = nearest(found, _literals(detail)) if isinstance(found, str) else ""
            return f"{key!r} is {found!r}{hint or '.'} Allowed: {detail.get('ctx', {}).get('expected', '')}"
        case "value_error":
            reason = detail["msg"].removeprefix("Value error, ")
            return f"{key}: {reason}" if key else reason
        case _:
            return f"{key!r} is {found!r}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _literals(detail: ErrorDetails) -> list[str]:
    return [part.strip(" '") for part in str(detail.get("ctx", {}).get("expected", "")).replace(" or ", ",").split(",")]


def _keys_at(path: list[str]) -> list[str]:
    model: type[BaseModel] = Job
    for part in path:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return list(model.model_fields)
