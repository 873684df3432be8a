"""Errors: one tree, drawn as it is, and one table to and from gRPC."""

from __future__ import annotations

import grpc
import pytest

from paramserver.wire import errors
from paramserver.wire.errors import (
    STATUS_CODES,
    DataError,
    JobError,
    NotReady,
    ParamserverError,
    ProtocolError,
    RequestError,
    TaskError,
    TensorError,
    Unreachable,
    from_rpc_error,
    nearest,
    status_code,
)


class Failed(grpc.RpcError):
    """A failed call, as a client sees it."""

    def __init__(self, code: grpc.StatusCode, details: str | None) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details


def everything() -> list[type[ParamserverError]]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, ParamserverError)]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = [line for line in errors.__doc__.splitlines() if "──" in line]
    indents = {line.split("── ")[1].split()[0]: line.index("──") for line in drawn}
    assert set(indents) == {e.__name__ for e in everything()} - {"ParamserverError"}
    for error in everything()[1:]:
        assert indents[error.__name__] == 1 + 4 * (len(error.__mro__) - len(ParamserverError.__mro__) - 1)


@pytest.mark.parametrize(("kind", "code"), STATUS_CODES)
def test_an_error_that_crosses_the_network_is_the_same_error_again(
    kind: type[ParamserverError], code: grpc.StatusCode
) -> None:
    sent = kind("the reason")
    assert status_code(sent) is code
    received = from_rpc_error(Failed(code, str(sent)), "host:1")
    assert type(received) is kind
    assert "the reason" in str(received)


def test_every_error_crosses_as_itself_or_its_nearest_ancestor() -> None:
    table = dict(STATUS_CODES)
    assert len(set(table.values())) == len(table), "or the way back would be ambiguous"
    for error in everything()[1:]:
        expected = next(ancestor for ancestor in error.__mro__ if ancestor in table)
        assert status_code(error("x")) is table[expected]
    for error in (JobError, DataError, TaskError):
        assert status_code(error("x")) is status_code(RequestError("x"))
    assert status_code(TensorError("x")) is status_code(ProtocolError("x"))
    assert status_code(ParamserverError("x")) is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_no_answer_names_the_address(code: grpc.StatusCode) -> None:
    for details in ("refused", None):
        error = from_rpc_error(Failed(code, details), "host:1")
        assert type(error) is Unreachable
        assert str(error) == f"no server answers at host:1: {details or code.name}"


def test_a_status_that_we_never_send_is_still_our_error() -> None:
    error = from_rpc_error(Failed(grpc.StatusCode.DATA_LOSS, "odd"), "host:1")
    assert type(error) is ParamserverError
    assert str(error) == "host:1: DATA_LOSS: odd"
    assert type(from_rpc_error(Failed(grpc.StatusCode.NOT_FOUND, None), "host:1")) is NotReady


def test_the_nearest_spelling_is_offered_only_if_it_is_near() -> None:
    assert nearest("shard", ["shards", "source"]) == ", did you mean 'shards'?"
    assert nearest("zzz", ["shards", "source"]) == ""
    assert nearest("x", []) == ""
