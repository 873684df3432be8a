"""Every error that paramserver raises, and the one table that maps them to gRPC status codes.

ParamserverError
├── RequestError            the request was wrong: exit status 2
│   ├── JobError            a job file or job field
│   ├── DataError           a data source, file or cell
│   ├── TaskError           a task that cannot be found or breaks its contract
│   └── StateError          a state directory that cannot be used
├── JobFailed               the job ran and failed: exit status 1
├── ProtocolError           a peer sent a message that breaks the contract
│   ├── TensorError         a tensor message that lies about shape, dtype, length or values
│   └── PeerGone            shared memory of a process that died or stands still
├── Busy                    the server already runs another job
├── NotReady                what was asked for does not exist yet
└── Unreachable             a server that does not answer: exit status 3
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import grpc


class ParamserverError(Exception):
    """Base of every error that this package raises on purpose."""


class RequestError(ParamserverError):
    """The request was wrong; nothing was started or changed."""


class JobError(RequestError):
    """A job file or a job field is wrong."""


class DataError(RequestError):
    """A data source is missing, malformed or too small."""


class TaskError(RequestError):
    """A task cannot be loaded, or what it returned breaks the task contract."""


class StateError(RequestError):
    """A state directory is somebody else's, broken, newer than this program, or cannot be written."""


class JobFailed(ParamserverError):
    """The job ran and ended in failure; the message is the reason."""


class ProtocolError(ParamserverError):
    """A peer sent a message that breaks the contract."""


class TensorError(ProtocolError):
    """A tensor message lies about its shape, dtype, length or values.

    `fault` is the kind of lie in a word, under which it is counted.
    """

    def __init__(self, message: str = "", fault: str = "malformed") -> None:
        super().__init__(message)
        self.fault = fault


class PeerGone(ProtocolError):
    """Shared memory belongs to a process that died or stands still; a new connection may bring another."""


class Busy(ParamserverError):
    """The server already runs another job."""


class NotReady(ParamserverError):
    """What was asked for does not exist yet, such as θ before the first initialisation."""


class Unreachable(ParamserverError):
    """No server answers at the address within the deadline."""


#: The only translation between errors and gRPC status codes; the first match counts, in both directions.
STATUS_CODES: tuple[tuple[type[ParamserverError], grpc.StatusCode], ...] = (
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (ProtocolError, grpc.StatusCode.FAILED_PRECONDITION),
    (Busy, grpc.StatusCode.ALREADY_EXISTS),
    (NotReady, grpc.StatusCode.NOT_FOUND),
    (JobFailed, grpc.StatusCode.ABORTED),
    (Unreachable, grpc.StatusCode.UNAVAILABLE),
)


def status_code(error: ParamserverError) -> grpc.StatusCode:
    """Return the gRPC status code under which an error crosses the network."""
    return next((code for kind, code in STATUS_CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def from_rpc_error(error: grpc.RpcError, address: str) -> ParamserverError:
    """Return the paramserver error for a failed call to the server at `address`."""
    code, details = error.code(), error.details() or ""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unreachable(f"no server answers at {address}: {details or code.name}")
    for kind, known in STATUS_CODES:
        if code == known:
            return kind(details)
    return ParamserverError(f"{address}: {code.name}: {details}")


def nearest(found: str, allowed: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the nearest allowed spelling, or an empty string."""
    close = difflib.get_close_matches(found, list(allowed), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""
