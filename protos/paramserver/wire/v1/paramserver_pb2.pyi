from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerMessage(_message.Message):
    __slots__ = ("join", "pull", "survey", "initial", "push", "heartbeat", "leave", "failure", "share", "slot", "pushes", "pull_rows", "push_rows", "move", "filler", "payload")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    SURVEY_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    PULL_ROWS_FIELD_NUMBER: _ClassVar[int]
    PUSH_ROWS_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    FILLER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    join: Join
    pull: PullWork
    survey: Survey
    initial: Initial
    push: Push
    heartbeat: Heartbeat
    leave: Leave
    failure: Failure
    share: Share
    slot: Slot
    pushes: Pushes
    pull_rows: PullRows
    push_rows: PushRows
    move: Move
    filler: bytes
    payload: bytes
    def __init__(self, join: _Optional[_Union[Join, _Mapping]] = ..., pull: _Optional[_Union[PullWork, _Mapping]] = ..., survey: _Optional[_Union[Survey, _Mapping]] = ..., initial: _Optional[_Union[Initial, _Mapping]] = ..., push: _Optional[_Union[Push, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., share: _Optional[_Union[Share, _Mapping]] = ..., slot: _Optional[_Union[Slot, _Mapping]] = ..., pushes: _Optional[_Union[Pushes, _Mapping]] = ..., pull_rows: _Optional[_Union[PullRows, _Mapping]] = ..., push_rows: _Optional[_Union[PushRows, _Mapping]] = ..., move: _Optional[_Union[Move, _Mapping]] = ..., filler: _Optional[bytes] = ..., payload: _Optional[bytes] = ...) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("welcome", "job", "census", "layout", "work", "refusal", "ended", "rows", "own", "moved", "acknowledged", "filler", "payload")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    CENSUS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    FILLER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    job: JobStarted
    census: Census
    layout: Layout
    work: Work
    refusal: Refusal
    ended: JobEnded
    rows: Rows
    own: Own
    moved: Moved
    acknowledged: Acknowledged
    filler: bytes
    payload: bytes
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., job: _Optional[_Union[JobStarted, _Mapping]] = ..., census: _Optional[_Union[Census, _Mapping]] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., work: _Optional[_Union[Work, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., ended: _Optional[_Union[JobEnded, _Mapping]] = ..., rows: _Optional[_Union[Rows, _Mapping]] = ..., own: _Optional[_Union[Own, _Mapping]] = ..., moved: _Optional[_Union[Moved, _Mapping]] = ..., acknowledged: _Optional[_Union[Acknowledged, _Mapping]] = ..., filler: _Optional[bytes] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("protocol", "worker", "host", "pid", "accepts", "pinned", "instance", "acknowledge", "partition", "partitions")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGE_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    worker: str
    host: str
    pid: int
    accepts: _containers.RepeatedScalarFieldContainer[int]
    pinned: _containers.RepeatedScalarFieldContainer[int]
    instance: int
    acknowledge: bool
    partition: int
    partitions: int
    def __init__(self, protocol: _Optional[int] = ..., worker: _Optional[str] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., accepts: _Optional[_Iterable[int]] = ..., pinned: _Optional[_Iterable[int]] = ..., instance: _Optional[int] = ..., acknowledge: bool = ..., partition: _Optional[int] = ..., partitions: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "chunk_bytes", "probe", "takes_pipes", "port", "ticket", "cluster")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    TAKES_PIPES_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    chunk_bytes: int
    probe: SharedMemory
    takes_pipes: bool
    port: int
    ticket: bytes
    cluster: bytes
    def __init__(self, protocol: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., probe: _Optional[_Union[SharedMemory, _Mapping]] = ..., takes_pipes: bool = ..., port: _Optional[int] = ..., ticket: _Optional[bytes] = ..., cluster: _Optional[bytes] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("pid", "descriptor")
    PID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    pid: int
    descriptor: int
    def __init__(self, pid: _Optional[int] = ..., descriptor: _Optional[int] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    def __init__(self, proof: _Optional[bytes] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("pipes", "connection")
    PIPES_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    pipes: Pipes
    connection: bool
    def __init__(self, pipes: _Optional[_Union[Pipes, _Mapping]] = ..., connection: bool = ...) -> None: ...

class Pipes(_message.Message):
    __slots__ = ("pid", "up", "down")
    PID_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    pid: int
    up: int
    down: int
    def __init__(self, pid: _Optional[int] = ..., up: _Optional[int] = ..., down: _Optional[int] = ...) -> None: ...

class Moved(_message.Message):
    __slots__ = ("done",)
    DONE_FIELD_NUMBER: _ClassVar[int]
    done: bool
    def __init__(self, done: bool = ...) -> None: ...

class Slot(_message.Message):
    __slots__ = ("shard", "memory")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    shard: int
    memory: SharedMemory
    def __init__(self, shard: _Optional[int] = ..., memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class JobStarted(_message.Message):
    __slots__ = ("job_id", "job_json", "heartbeat_s")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_JSON_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    job_json: str
    heartbeat_s: float
    def __init__(self, job_id: _Optional[str] = ..., job_json: _Optional[str] = ..., heartbeat_s: _Optional[float] = ...) -> None: ...

class Census(_message.Message):
    __slots__ = ("rows", "features", "classes")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    rows: int
    features: int
    classes: int
    def __init__(self, rows: _Optional[int] = ..., features: _Optional[int] = ..., classes: _Optional[int] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("tensors", "theta", "moves", "tables", "in_sight", "chunk_bytes")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    THETA_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    IN_SIGHT_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    theta: SharedMemory
    moves: bool
    tables: _containers.RepeatedCompositeFieldContainer[Table]
    in_sight: bool
    chunk_bytes: int
    def __init__(self, tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., theta: _Optional[_Union[SharedMemory, _Mapping]] = ..., moves: bool = ..., tables: _Optional[_Iterable[_Union[Table, _Mapping]]] = ..., in_sight: bool = ..., chunk_bytes: _Optional[int] = ...) -> None: ...

class Table(_message.Message):
    __slots__ = ("name", "dim", "scale")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dim: int
    scale: float
    def __init__(self, name: _Optional[str] = ..., dim: _Optional[int] = ..., scale: _Optional[float] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class PullWork(_message.Message):
    __slots__ = ("held", "job_id", "version", "shards", "own", "era", "number")
    HELD_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    held: int
    job_id: str
    version: int
    shards: _containers.RepeatedScalarFieldContainer[int]
    own: _containers.RepeatedScalarFieldContainer[int]
    era: int
    number: int
    def __init__(self, held: _Optional[int] = ..., job_id: _Optional[str] = ..., version: _Optional[int] = ..., shards: _Optional[_Iterable[int]] = ..., own: _Optional[_Iterable[int]] = ..., era: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class Work(_message.Message):
    __slots__ = ("version", "offset", "last", "assignments", "heartbeat_s", "era", "number", "in_step")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    IN_STEP_FIELD_NUMBER: _ClassVar[int]
    version: int
    offset: int
    last: bool
    assignments: _containers.RepeatedCompositeFieldContainer[Assignment]
    heartbeat_s: float
    era: int
    number: int
    in_step: bool
    def __init__(self, version: _Optional[int] = ..., offset: _Optional[int] = ..., last: bool = ..., assignments: _Optional[_Iterable[_Union[Assignment, _Mapping]]] = ..., heartbeat_s: _Optional[float] = ..., era: _Optional[int] = ..., number: _Optional[int] = ..., in_step: bool = ...) -> None: ...

class Own(_message.Message):
    __slots__ = ("shard", "offset")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    shard: int
    offset: int
    def __init__(self, shard: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("kind", "shard", "epoch", "step")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        GRADIENT: _ClassVar[Assignment.Kind]
        SURVEY: _ClassVar[Assignment.Kind]
        INITIAL: _ClassVar[Assignment.Kind]
    GRADIENT: Assignment.Kind
    SURVEY: Assignment.Kind
    INITIAL: Assignment.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    kind: Assignment.Kind
    shard: int
    epoch: int
    step: int
    def __init__(self, kind: _Optional[_Union[Assignment.Kind, str]] = ..., shard: _Optional[int] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class Survey(_message.Message):
    __slots__ = ("shard", "epoch", "rows", "features", "classes")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    rows: int
    features: int
    classes: int
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., rows: _Optional[int] = ..., features: _Optional[int] = ..., classes: _Optional[int] = ...) -> None: ...

class Initial(_message.Message):
    __slots__ = ("shard", "epoch", "tensors", "offset", "tables")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    offset: int
    tables: _containers.RepeatedCompositeFieldContainer[Table]
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., offset: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[Table, _Mapping]]] = ...) -> None: ...

class Push(_message.Message):
    __slots__ = ("shard", "epoch", "step", "version", "samples", "loss", "offset", "pull", "shared", "rows", "in_sight", "core", "era", "number")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    IN_SIGHT_FIELD_NUMBER: _ClassVar[int]
    CORE_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    step: int
    version: int
    samples: int
    loss: float
    offset: int
    pull: bool
    shared: bool
    rows: int
    in_sight: bool
    core: int
    era: int
    number: int
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., version: _Optional[int] = ..., samples: _Optional[int] = ..., loss: _Optional[float] = ..., offset: _Optional[int] = ..., pull: bool = ..., shared: bool = ..., rows: _Optional[int] = ..., in_sight: bool = ..., core: _Optional[int] = ..., era: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class PullRows(_message.Message):
    __slots__ = ("shard", "epoch", "step", "table", "number")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    step: int
    table: int
    number: int
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., table: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class PushRows(_message.Message):
    __slots__ = ("shard", "epoch", "step", "table", "count", "offset")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    step: int
    table: int
    count: int
    offset: int
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., table: _Optional[int] = ..., count: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Pushes(_message.Message):
    __slots__ = ("pushes",)
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    pushes: _containers.RepeatedCompositeFieldContainer[Push]
    def __init__(self, pushes: _Optional[_Iterable[_Union[Push, _Mapping]]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Leave(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "shard", "step", "reason")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Refusal.Code]
        FENCED: _ClassVar[Refusal.Code]
        DUPLICATE: _ClassVar[Refusal.Code]
        GAP: _ClassVar[Refusal.Code]
        INVALID: _ClassVar[Refusal.Code]
        SUPERSEDED: _ClassVar[Refusal.Code]
        STALE: _ClassVar[Refusal.Code]
    UNSPECIFIED: Refusal.Code
    FENCED: Refusal.Code
    DUPLICATE: Refusal.Code
    GAP: Refusal.Code
    INVALID: Refusal.Code
    SUPERSEDED: Refusal.Code
    STALE: Refusal.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: Refusal.Code
    shard: int
    step: int
    reason: str
    def __init__(self, code: _Optional[_Union[Refusal.Code, str]] = ..., shard: _Optional[int] = ..., step: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Acknowledged(_message.Message):
    __slots__ = ("shard", "epoch", "step")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    step: int
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class JobEnded(_message.Message):
    __slots__ = ("job_id", "status", "reason")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    status: str
    reason: str
    def __init__(self, job_id: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("job_id", "job_json")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_JSON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    job_json: str
    def __init__(self, job_id: _Optional[str] = ..., job_json: _Optional[str] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("job_id", "job_json", "state", "reason", "version", "clock", "total_steps", "workers", "shards", "waiting_for", "staleness", "rejected", "bytes_received", "bytes_sent", "loss", "seconds", "samples", "census", "moments", "durability", "left", "table_rows", "partitions")
    class StalenessEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class RejectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class TableRowsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_JSON_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CENSUS_FIELD_NUMBER: _ClassVar[int]
    MOMENTS_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    TABLE_ROWS_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    job_json: str
    state: str
    reason: str
    version: int
    clock: _containers.RepeatedScalarFieldContainer[int]
    total_steps: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    shards: _containers.RepeatedCompositeFieldContainer[ShardStatus]
    waiting_for: _containers.RepeatedCompositeFieldContainer[Wait]
    staleness: _containers.ScalarMap[int, int]
    rejected: _containers.ScalarMap[str, int]
    bytes_received: int
    bytes_sent: int
    loss: float
    seconds: float
    samples: int
    census: Census
    moments: bytes
    durability: str
    left: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    table_rows: _containers.ScalarMap[str, int]
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionStatus]
    def __init__(self, job_id: _Optional[str] = ..., job_json: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., version: _Optional[int] = ..., clock: _Optional[_Iterable[int]] = ..., total_steps: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., shards: _Optional[_Iterable[_Union[ShardStatus, _Mapping]]] = ..., waiting_for: _Optional[_Iterable[_Union[Wait, _Mapping]]] = ..., staleness: _Optional[_Mapping[int, int]] = ..., rejected: _Optional[_Mapping[str, int]] = ..., bytes_received: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., loss: _Optional[float] = ..., seconds: _Optional[float] = ..., samples: _Optional[int] = ..., census: _Optional[_Union[Census, _Mapping]] = ..., moments: _Optional[bytes] = ..., durability: _Optional[str] = ..., left: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., table_rows: _Optional[_Mapping[str, int]] = ..., partitions: _Optional[_Iterable[_Union[PartitionStatus, _Mapping]]] = ...) -> None: ...

class PartitionStatus(_message.Message):
    __slots__ = ("partition", "address", "state", "version", "start", "elements", "bytes_received", "bytes_sent")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    partition: int
    address: str
    state: str
    version: int
    start: int
    elements: int
    bytes_received: int
    bytes_sent: int
    def __init__(self, partition: _Optional[int] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., version: _Optional[int] = ..., start: _Optional[int] = ..., elements: _Optional[int] = ..., bytes_received: _Optional[int] = ..., bytes_sent: _Optional[int] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("name", "host", "pid", "shards", "silent_s", "pushes", "rejected", "lag", "state", "reasons", "waits")
    class ReasonsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    host: str
    pid: int
    shards: _containers.RepeatedScalarFieldContainer[int]
    silent_s: float
    pushes: int
    rejected: int
    lag: int
    state: str
    reasons: _containers.ScalarMap[str, int]
    waits: str
    def __init__(self, name: _Optional[str] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., shards: _Optional[_Iterable[int]] = ..., silent_s: _Optional[float] = ..., pushes: _Optional[int] = ..., rejected: _Optional[int] = ..., lag: _Optional[int] = ..., state: _Optional[str] = ..., reasons: _Optional[_Mapping[str, int]] = ..., waits: _Optional[str] = ...) -> None: ...

class ShardStatus(_message.Message):
    __slots__ = ("shard", "clock", "worker", "epoch", "rows")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    clock: int
    worker: str
    epoch: int
    rows: int
    def __init__(self, shard: _Optional[int] = ..., clock: _Optional[int] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("shard", "worker", "since_s", "reason", "heard_s", "then", "due_s")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    THEN_FIELD_NUMBER: _ClassVar[int]
    DUE_S_FIELD_NUMBER: _ClassVar[int]
    shard: int
    worker: str
    since_s: float
    reason: str
    heard_s: float
    then: str
    due_s: float
    def __init__(self, shard: _Optional[int] = ..., worker: _Optional[str] = ..., since_s: _Optional[float] = ..., reason: _Optional[str] = ..., heard_s: _Optional[float] = ..., then: _Optional[str] = ..., due_s: _Optional[float] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("after_step",)
    AFTER_STEP_FIELD_NUMBER: _ClassVar[int]
    after_step: int
    def __init__(self, after_step: _Optional[int] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("status", "points")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    status: StatusReply
    points: _containers.RepeatedCompositeFieldContainer[Point]
    def __init__(self, status: _Optional[_Union[StatusReply, _Mapping]] = ..., points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("step", "version", "seconds", "loss", "samples")
    STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    step: int
    version: int
    seconds: float
    loss: float
    samples: int
    def __init__(self, step: _Optional[int] = ..., version: _Optional[int] = ..., seconds: _Optional[float] = ..., loss: _Optional[float] = ..., samples: _Optional[int] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PullReply(_message.Message):
    __slots__ = ("job_id", "layout", "dtype", "version", "offset", "rows", "payload")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    layout: Layout
    dtype: str
    version: int
    offset: int
    rows: TableChunk
    payload: bytes
    def __init__(self, job_id: _Optional[str] = ..., layout: _Optional[_Union[Layout, _Mapping]] = ..., dtype: _Optional[str] = ..., version: _Optional[int] = ..., offset: _Optional[int] = ..., rows: _Optional[_Union[TableChunk, _Mapping]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class TableChunk(_message.Message):
    __slots__ = ("table", "count", "total")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    table: int
    count: int
    total: int
    def __init__(self, table: _Optional[int] = ..., count: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class StopReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("mode", "quorum", "staleness", "max_delay")
    MODE_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    MAX_DELAY_FIELD_NUMBER: _ClassVar[int]
    mode: str
    quorum: int
    staleness: int
    max_delay: int
    def __init__(self, mode: _Optional[str] = ..., quorum: _Optional[int] = ..., staleness: _Optional[int] = ..., max_delay: _Optional[int] = ...) -> None: ...

class SetPolicyReply(_message.Message):
    __slots__ = ("version", "job_json")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    JOB_JSON_FIELD_NUMBER: _ClassVar[int]
    version: int
    job_json: str
    def __init__(self, version: _Optional[int] = ..., job_json: _Optional[str] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotReply(_message.Message):
    __slots__ = ("version", "theta_sha256", "file")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    THETA_SHA256_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    version: int
    theta_sha256: str
    file: str
    def __init__(self, version: _Optional[int] = ..., theta_sha256: _Optional[str] = ..., file: _Optional[str] = ...) -> None: ...

class ProvenanceRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class ProvenanceReply(_message.Message):
    __slots__ = ("contributions", "theta_sha256")
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    THETA_SHA256_FIELD_NUMBER: _ClassVar[int]
    contributions: _containers.RepeatedCompositeFieldContainer[AppliedContribution]
    theta_sha256: str
    def __init__(self, contributions: _Optional[_Iterable[_Union[AppliedContribution, _Mapping]]] = ..., theta_sha256: _Optional[str] = ...) -> None: ...

class AppliedContribution(_message.Message):
    __slots__ = ("shard", "step", "worker", "samples", "loss", "computed_at")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_AT_FIELD_NUMBER: _ClassVar[int]
    shard: int
    step: int
    worker: str
    samples: int
    loss: float
    computed_at: int
    def __init__(self, shard: _Optional[int] = ..., step: _Optional[int] = ..., worker: _Optional[str] = ..., samples: _Optional[int] = ..., loss: _Optional[float] = ..., computed_at: _Optional[int] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("lead", "begin", "prepare", "apply", "restage", "save", "capture", "over", "sum_up", "mark", "go_back", "move")
    LEAD_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    APPLY_FIELD_NUMBER: _ClassVar[int]
    RESTAGE_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    SUM_UP_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    GO_BACK_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    lead: Lead
    begin: Begin
    prepare: Prepare
    apply: Apply
    restage: Restage
    save: Save
    capture: Capture
    over: Over
    sum_up: SumUp
    mark: Mark
    go_back: GoBack
    move: Move
    def __init__(self, lead: _Optional[_Union[Lead, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., prepare: _Optional[_Union[Prepare, _Mapping]] = ..., apply: _Optional[_Union[Apply, _Mapping]] = ..., restage: _Optional[_Union[Restage, _Mapping]] = ..., save: _Optional[_Union[Save, _Mapping]] = ..., capture: _Optional[_Union[Capture, _Mapping]] = ..., over: _Optional[_Union[Over, _Mapping]] = ..., sum_up: _Optional[_Union[SumUp, _Mapping]] = ..., mark: _Optional[_Union[Mark, _Mapping]] = ..., go_back: _Optional[_Union[GoBack, _Mapping]] = ..., move: _Optional[_Union[Move, _Mapping]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("following", "begun", "prepared", "initialised", "held", "bad", "saved", "beat", "sums", "broken", "gone_back", "moved", "logged")
    FOLLOWING_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    INITIALISED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    BAD_FIELD_NUMBER: _ClassVar[int]
    SAVED_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    GONE_BACK_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    LOGGED_FIELD_NUMBER: _ClassVar[int]
    following: Following
    begun: Begun
    prepared: Prepared
    initialised: Initialised
    held: Held
    bad: Bad
    saved: Saved
    beat: Beat
    sums: Sums
    broken: Failure
    gone_back: GoneBack
    moved: Moved
    logged: Logged
    def __init__(self, following: _Optional[_Union[Following, _Mapping]] = ..., begun: _Optional[_Union[Begun, _Mapping]] = ..., prepared: _Optional[_Union[Prepared, _Mapping]] = ..., initialised: _Optional[_Union[Initialised, _Mapping]] = ..., held: _Optional[_Union[Held, _Mapping]] = ..., bad: _Optional[_Union[Bad, _Mapping]] = ..., saved: _Optional[_Union[Saved, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., sums: _Optional[_Union[Sums, _Mapping]] = ..., broken: _Optional[_Union[Failure, _Mapping]] = ..., gone_back: _Optional[_Union[GoneBack, _Mapping]] = ..., moved: _Optional[_Union[Moved, _Mapping]] = ..., logged: _Optional[_Union[Logged, _Mapping]] = ...) -> None: ...

class Lead(_message.Message):
    __slots__ = ("protocol", "partition", "partitions", "cluster", "probe")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    partition: int
    partitions: int
    cluster: bytes
    probe: SharedMemory
    def __init__(self, protocol: _Optional[int] = ..., partition: _Optional[int] = ..., partitions: _Optional[int] = ..., cluster: _Optional[bytes] = ..., probe: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class Following(_message.Message):
    __slots__ = ("job_id", "job_json", "versions", "port", "ticket", "reaches", "proof")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_JSON_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    REACHES_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    job_json: str
    versions: _containers.RepeatedScalarFieldContainer[int]
    port: int
    ticket: bytes
    reaches: _containers.RepeatedScalarFieldContainer[int]
    proof: bytes
    def __init__(self, job_id: _Optional[str] = ..., job_json: _Optional[str] = ..., versions: _Optional[_Iterable[int]] = ..., port: _Optional[int] = ..., ticket: _Optional[bytes] = ..., reaches: _Optional[_Iterable[int]] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("job_id", "job_json", "version", "epoch", "train_json")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_JSON_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRAIN_JSON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    job_json: str
    version: int
    epoch: int
    train_json: str
    def __init__(self, job_id: _Optional[str] = ..., job_json: _Optional[str] = ..., version: _Optional[int] = ..., epoch: _Optional[int] = ..., train_json: _Optional[str] = ...) -> None: ...

class Begun(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    def __init__(self, error: _Optional[str] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ("total_steps",)
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    total_steps: int
    def __init__(self, total_steps: _Optional[int] = ...) -> None: ...

class Prepared(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Initialised(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Held(_message.Message):
    __slots__ = ("shard", "epoch", "step", "version", "values")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    step: int
    version: int
    values: bytes
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., version: _Optional[int] = ..., values: _Optional[bytes] = ...) -> None: ...

class Bad(_message.Message):
    __slots__ = ("worker", "shard", "step", "reason")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    worker: str
    shard: int
    step: int
    reason: str
    def __init__(self, worker: _Optional[str] = ..., shard: _Optional[int] = ..., step: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Apply(_message.Message):
    __slots__ = ("version", "step", "contributions", "answer")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    version: int
    step: int
    contributions: _containers.RepeatedCompositeFieldContainer[Counted]
    answer: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, version: _Optional[int] = ..., step: _Optional[int] = ..., contributions: _Optional[_Iterable[_Union[Counted, _Mapping]]] = ..., answer: _Optional[_Iterable[float]] = ...) -> None: ...

class SumUp(_message.Message):
    __slots__ = ("apply",)
    APPLY_FIELD_NUMBER: _ClassVar[int]
    apply: Apply
    def __init__(self, apply: _Optional[_Union[Apply, _Mapping]] = ...) -> None: ...

class Sums(_message.Message):
    __slots__ = ("values", "rows")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    rows: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[bytes] = ..., rows: _Optional[_Iterable[float]] = ...) -> None: ...

class Counted(_message.Message):
    __slots__ = ("shard", "epoch", "step", "version", "samples", "in_sight", "slot")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    IN_SIGHT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    step: int
    version: int
    samples: int
    in_sight: bool
    slot: SharedMemory
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., step: _Optional[int] = ..., version: _Optional[int] = ..., samples: _Optional[int] = ..., in_sight: bool = ..., slot: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class Restage(_message.Message):
    __slots__ = ("train_json",)
    TRAIN_JSON_FIELD_NUMBER: _ClassVar[int]
    train_json: str
    def __init__(self, train_json: _Optional[str] = ...) -> None: ...

class Mark(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GoBack(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GoneBack(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Save(_message.Message):
    __slots__ = ("common",)
    COMMON_FIELD_NUMBER: _ClassVar[int]
    common: int
    def __init__(self, common: _Optional[int] = ...) -> None: ...

class Logged(_message.Message):
    __slots__ = ("safe", "error")
    SAFE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    safe: int
    error: str
    def __init__(self, safe: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Saved(_message.Message):
    __slots__ = ("version", "error")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    version: int
    error: str
    def __init__(self, version: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Capture(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Over(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("version", "bytes_received", "bytes_sent", "table_rows")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    TABLE_ROWS_FIELD_NUMBER: _ClassVar[int]
    version: int
    bytes_received: int
    bytes_sent: int
    table_rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, version: _Optional[int] = ..., bytes_received: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., table_rows: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("number", "table")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    number: int
    table: int
    def __init__(self, number: _Optional[int] = ..., table: _Optional[int] = ...) -> None: ...

class ReadReply(_message.Message):
    __slots__ = ("rows", "payload")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    rows: TableChunk
    payload: bytes
    def __init__(self, rows: _Optional[_Union[TableChunk, _Mapping]] = ..., payload: _Optional[bytes] = ...) -> None: ...
