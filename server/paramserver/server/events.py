"""What the engine is told (events) and what it wants done (effects). Plain data, no behaviour."""

from __future__ import annotations

import enum
from typing import NamedTuple

from paramserver.server.enginestate import EngineState
from paramserver.wire.job import TrainSection


class Kind(enum.IntEnum):
    """What a worker is asked to compute for a shard; numbers, since the hash of other enumerations is slow."""

    GRADIENT = 1
    SURVEY = 2
    INITIAL = 3


class Code(enum.Enum):
    """Why a message about a shard was not taken."""

    FENCED = "fenced"
    DUPLICATE = "duplicate"
    GAP = "gap"
    INVALID = "invalid"
    #: Its round closed without it.
    SUPERSEDED = "superseded"
    #: Too old to count; the step is to be computed again.
    STALE = "stale"


class Assignment(NamedTuple):
    """Work on one shard, valid as long as the lease with this epoch is."""

    kind: Kind
    shard: int
    epoch: int
    step: int


class Contribution(NamedTuple):
    """The gradient of (shard, step), without its values: those stay with the shell."""

    worker: str
    shard: int
    epoch: int
    step: int
    #: The version of θ that it was computed at.
    version: int
    samples: int
    #: Mean loss over its samples.
    loss: float


class Joined(NamedTuple):
    """A worker can take work; `accepts` are the shards it may be given (None: any), `pinned` its alone."""

    worker: str
    accepts: frozenset[int] | None = None
    pinned: frozenset[int] = frozenset()


class Left(NamedTuple):
    """A worker's stream ended."""

    worker: str
    reason: str


class Heard(NamedTuple):
    """A worker gave a sign of life and nothing else."""

    worker: str


class Pulled(NamedTuple):
    """A worker asks for work; what it was assigned before is pushed or given up."""

    worker: str


class Surveyed(NamedTuple):
    """A shard was counted."""

    worker: str
    shard: int
    epoch: int
    rows: int


class Initialised(NamedTuple):
    """The initial parameters are in."""

    worker: str
    shard: int
    epoch: int


class Pushed(NamedTuple):
    """Contributions of a worker are in whole; with `pull` it asks for work at the same time."""

    contributions: tuple[Contribution, ...]
    pull: bool = False


class Replayed(NamedTuple):
    """A contribution that was counted before the server was started again is counted once more, in its old place."""

    contribution: Contribution


class Misbehaved(NamedTuple):
    """A worker sent something that breaks the contract; it was not taken."""

    worker: str
    shard: int
    step: int
    reason: str
    #: The kind of offence in a word, under which it is counted.
    fault: str = "malformed"


class Failed(NamedTuple):
    """A worker says that it cannot do the job."""

    worker: str
    reason: str


class Measured(NamedTuple):
    """The norm of the gradient that made a version, as the store computed it."""

    version: int
    gradient_norm: float


class PolicyChanged(NamedTuple):
    """A client wants the job to go on under another policy; the rest of the section is as it was."""

    train: TrainSection


class TakenBack(NamedTuple):
    """What was computed since this state of the job cannot be gone on from; it is to be computed again."""

    state: EngineState


class StopAsked(NamedTuple):
    """A client wants the job to end."""

    reason: str


class Broken(NamedTuple):
    """There is no going on: the server itself failed at what the engine asked for, or shards do not go together."""

    reason: str


class Fetched(NamedTuple):
    """To a partition that is led: a worker waits for θ of `version`, to compute these shards with it."""

    worker: str
    version: int
    shards: tuple[int, ...]
    #: Of these, those whose own parameters it lacks, in elastic averaging.
    own: tuple[int, ...] = ()
    era: int = 0
    #: Rises with everything that the worker asks for.
    number: int = 0


class Ordered(NamedTuple):
    """To a partition that is led: the coordinator wants this done when its turn has come."""

    order: See | Apply | SumUp | Restage | End | Save | Capture | Mark | GoBack


class Tick(NamedTuple):
    """Time has passed."""


Event = (
    Joined
    | Left
    | Heard
    | Pulled
    | Surveyed
    | Initialised
    | Pushed
    | Replayed
    | Misbehaved
    | Failed
    | Measured
    | PolicyChanged
    | TakenBack
    | StopAsked
    | Broken
    | Fetched
    | Ordered
    | Tick
)


class Keep(NamedTuple):
    """The contribution of (shard, step) counts: keep its values until an `Apply` names it."""

    shard: int
    step: int


class Apply(NamedTuple):
    """Add up these contributions in this order and update θ to `version`; `step` numbers it for schedules, from 1.

    With a quorum, who is among the contributions is a matter of timing; this is the record of it.
    """

    version: int
    step: int
    contributions: tuple[Contribution, ...]
    #: To the last of the update's questions, where this process cannot know it: θ is cut over several servers.
    answer: tuple[float, ...] | None = None


class See(NamedTuple):
    """On a partition that is led: the contributions are in, and lie in memory that it sees."""

    contributions: tuple[Contribution, ...]
    #: Process and descriptor of each; None: where the last one of the shard was.
    slots: tuple[tuple[int, int] | None, ...]


class SumUp(NamedTuple):
    """On a partition that is led: go on with an update to its next question; the same as `Apply` comes later."""

    apply: Apply


class Report(NamedTuple):
    """On a partition that is led: tell the coordinator that this is in, or with None that the first θ is."""

    contribution: Contribution | None


class Supply(NamedTuple):
    """On a partition that is led: send θ as it is now to the worker, which computes these shards with it."""

    worker: str
    shards: tuple[int, ...]
    own: tuple[int, ...] = ()


class Save(NamedTuple):
    """On a partition that is led: write a snapshot, and keep that of version `common` beside it."""

    common: int | None


class Capture(NamedTuple):
    """On a partition that is led: copy θ for a reader who knows the number."""

    number: int


class Mark(NamedTuple):
    """On a partition that is led: remember the state as it is now, for `GoBack`."""


class Grant(NamedTuple):
    """Answer the worker's pull: these assignments, with θ at `version`."""

    worker: str
    version: int
    assignments: tuple[Assignment, ...]
    #: From now on a sign of life is expected this often; None: as before.
    heartbeat_s: float | None = None


class Refuse(NamedTuple):
    """Tell the worker that its message about (shard, step) was not taken."""

    worker: str
    shard: int
    step: int
    code: Code
    reason: str
    #: What an INVALID message did wrong, in a word.
    fault: str = ""


class Revoke(NamedTuple):
    """The worker's lease on the shard has ended; drop what it is sending for it."""

    worker: str
    shard: int
    epoch: int
    reason: str


class Progress(NamedTuple):
    """Every shard has made `step` steps; `loss` is the sample-weighted mean of their last losses."""

    step: int
    version: int
    loss: float
    samples: int
    elapsed_s: float


class Restage(NamedTuple):
    """The policy is now this one: forget all contributions that are not applied; their steps are computed again."""

    train: TrainSection


class GoBack(NamedTuple):
    """Take θ and all that belongs to it back to the state that was given; forget contributions not applied."""


class CombineSurveys(NamedTuple):
    """All shards are counted: combine their surveys in shard order."""


class End(NamedTuple):
    """The job is over: "done", "failed" or "stopped"."""

    status: str
    reason: str


Effect = (
    Keep
    | See
    | Apply
    | Grant
    | Refuse
    | Revoke
    | Progress
    | Restage
    | GoBack
    | CombineSurveys
    | End
    | SumUp
    | Report
    | Supply
    | Save
    | Capture
    | Mark
)
