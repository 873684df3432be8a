"""What a snapshot holds and how that becomes one safetensors file: no pickle, readable by any safetensors library.

θ is stored under its own tensor names behind `theta/`. The history of losses is in the file too, 40 bytes a point: it
has to go back in time together with θ, and one file that is there or not cannot disagree with itself.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paramserver.server.enginestate import EngineState
from paramserver.server.tables.rows import Contents
from paramserver.wire.errors import StateError
from paramserver.wire.fingerprint import theta_sha256
from paramserver.wire.job import Job, TrainSection
from paramserver.wire.layout import Array, Layout
from paramserver.wire.moments import Moments
from paramserver.wire.tables import Table, tensor_names
from paramserver.wire.v1 import paramserver_pb2 as pb

#: Raised when an older program could no longer read what this one writes.
FORMAT = 1

_DTYPES = {"F32": "<f4", "F64": "<f8", "U64": "<u8", "I64": "<i8"}
_CODES = {np.dtype(code): name for name, code in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Parameters:
    """θ and what the optimizer remembers of it, all flat vectors of the layout's dtype and size."""

    layout: Layout
    theta: Array
    optimizer_state: Mapping[str, Array]
    #: By name, in the order of the layout.
    tables: Mapping[str, Contents] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a job needs to go on after the process is gone; nobody changes its arrays any more."""

    job_id: str
    #: As it was submitted.
    job: Job
    #: None if the job is to begin anew, as after its submission.
    engine: EngineState | None = None
    #: None until the parameters are initialised.
    parameters: Parameters | None = None
    census: pb.Census | None = None
    moments: Moments | None = None
    #: Columns as `History.columns` gives them.
    history: Mapping[str, Array] | None = None
    #: The policy that the job has by now, if that is not the one it was submitted with.
    train: TrainSection | None = None

    @property
    def version(self) -> int:
        """The version of θ."""
        return 0 if self.engine is None else self.engine.version

    @property
    def theta_sha256(self) -> str:
        """The hash that names the bits of θ; empty if there is no θ. Computed anew each time."""
        p = self.parameters
        return "" if p is None else theta_sha256(named(p.layout, p.theta, p.tables))

    def pieces(self, theta_hash: str) -> Iterator[memoryview]:
        """Yield the bytes of the file, without copying an array; `theta_hash` is the snapshot's `theta_sha256`."""
        arrays = self._arrays()
        record = self._record() | {"theta_sha256": theta_hash}
        header: dict[str, Any] = {"__metadata__": {"format": str(FORMAT), "snapshot": json.dumps(record)}}
        end = 0
        for name, array in arrays.items():
            start, end = end, end + array.nbytes
            header[name] = {
                "dtype": _CODES[array.dtype.newbyteorder("<")],
                "shape": list(array.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        # Spaces behind the header let the data begin at a multiple of 8.
        text += b" " * (-len(text) % 8)
        yield memoryview(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            if array.size:
                yield memoryview(array.reshape(-1).data).cast("B")

    def _arrays(self) -> dict[str, Array]:
        # Those of 8 bytes an element come first, so that every one lies at a multiple of its element's size.
        arrays = {f"history/{name}": column for name, column in (self.history or {}).items()}
        if self.moments is not None:
            arrays |= {"moments/mean": self.moments.mean, "moments/m2": self.moments.m2}
        if self.parameters is not None:
            p = self.parameters
            for name, contents in p.tables.items():
                arrays[f"table/{name}/keys"] = contents.keys
                if contents.touched is not None:
                    arrays[f"table/{name}/touched"] = contents.touched
            for name, contents in p.tables.items():
                arrays[f"table/{name}/rows"] = contents.rows
                arrays |= {f"table/{name}/state/{part}": array for part, array in contents.state.items()}
            arrays |= {f"optimizer/{name}": array for name, array in p.optimizer_state.items()}
            arrays |= {f"theta/{name}": array for name, array in p.layout.views(p.theta).items()}
        return arrays

    def _record(self) -> dict[str, Any]:
        p, census = self.parameters, self.census
        return {
            "job_id": self.job_id,
            "job": json.loads(self.job.to_json()),
            "train": None if self.train is None else self.train.model_dump(mode="json"),
            "engine": None if self.engine is None else self.engine.model_dump(mode="json"),
            "version": self.version,
            "layout": None if p is None else [[t.name, t.shape] for t in p.layout.whole.tensors],
            "start": 0 if p is None else p.layout.start,
            "tables": {} if p is None else {n: [c.table.dim, c.table.scale] for n, c in p.tables.items()},
            "census": None if census is None else [census.rows, census.features, census.classes],
        }


def named(layout: Layout, theta: Array, tables: Mapping[str, Contents]) -> dict[str, Array]:
    """Return all of θ by tensor name; a table is two tensors, its keys in order and their rows."""
    tensors = layout.views(theta)
    for name, contents in tables.items():
        tensors |= dict(zip(tensor_names(name), contents.in_order(), strict=True))
    return tensors


def parse(data: memoryview) -> Snapshot:
    """Read a file whose checksum was found right; the arrays are writable views of `data` if that is writable.

    Raises:
        StateError: if it was written by a newer program, or is not a snapshot at all.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(bytes(data[8 : 8 + length]))
        metadata = header.pop("__metadata__")
        written = int(metadata["format"])
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise StateError(f"not a snapshot: {error!r}") from None
    if written > FORMAT:
        raise StateError(f"has format {written}, this program reads up to format {FORMAT}; use a newer one")
    try:
        return _from_record(json.loads(metadata["snapshot"]), header, data[8 + length :])
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"a snapshot that this program cannot read: {error}") from error


def _from_record(record: dict[str, Any], header: dict[str, Any], data: memoryview) -> Snapshot:
    arrays = {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], _DTYPES[entry["dtype"]])
        for name, entry in header.items()
    }
    job = Job.from_dict(record["job"])
    census = None
    if record["census"] is not None:
        rows, features, classes = record["census"]
        census = pb.Census(rows=rows, features=features, classes=classes)
    moments = None
    if census is not None and "moments/mean" in arrays:
        moments = Moments(census.rows, arrays["moments/mean"], arrays["moments/m2"])
    parameters = None
    if record["layout"] is not None:
        whole = Layout(record["layout"], job.train.dtype)
        # Snapshots of before θ could be cut have no start. Of several parts that begin there all are empty.
        start = record.get("start", 0)
        layout = next(part for part in whole.cut(job.server.partitions) if part.start == start)
        # The tensors lie back to back in the order of the layout, so that together they are the flat vector.
        offsets = [header[f"theta/{tensor.name}"]["data_offsets"] for tensor in layout.tensors]
        theta = np.empty(0, layout.dtype)
        if offsets:
            theta = np.frombuffer(data[offsets[0][0] : offsets[-1][1]], layout.dtype)
        tables = {
            name: _contents(Table(dim, scale), _under(f"table/{name}/", arrays))
            for name, (dim, scale) in record.get("tables", {}).items()
        }
        parameters = Parameters(layout, theta, _under("optimizer/", arrays), tables)
    return Snapshot(
        job_id=record["job_id"],
        job=job,
        engine=None if record["engine"] is None else EngineState.model_validate(record["engine"]),
        parameters=parameters,
        census=census,
        moments=moments,
        history=_under("history/", arrays),
        train=None if record["train"] is None else TrainSection.model_validate(record["train"]),
    )


def _contents(table: Table, arrays: Mapping[str, Array]) -> Contents:
    def of_rows(array: Array) -> Array:
        return array.reshape(-1, table.dim)

    state = {name: of_rows(array) for name, array in _under("state/", arrays).items()}
    return Contents(table, arrays["keys"], of_rows(arrays["rows"]), state, arrays.get("touched"))


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
