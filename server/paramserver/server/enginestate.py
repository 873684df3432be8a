"""What of the engine outlives the process: plain numbers, in the snapshot beside the θ that they belong to.

Workers and leases are not among them: workers join anew, and the epochs of a restarted server begin above all that it
ever gave.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class ShardRecord(BaseModel):
    """One shard; the fields are those of `leases.ShardState`."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    clock: int
    rows: int
    pinned_to: str | None
    loss: float
    samples: int
    missed: int


class EngineState(BaseModel):
    """The control state of a job at one version of θ; `Engine.state` makes it and `Engine.restored` reads it.

    A round that is open is not in it: its contributions are computed again, with the same bits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    phase: Literal["train", "done", "stopped"]
    reason: str
    version: int
    shards: tuple[ShardRecord, ...]
    total_steps: int
    finished_steps: int
    samples: int
    loss: float
    #: Seconds of training, without the time between a crash and the restart; NaN if it never began.
    elapsed_s: float
    staleness: dict[int, int]
    calm_losses: int
    calm_gradients: int
