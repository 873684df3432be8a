"""Which codec a job's tensors travel in. Both sides import it: the encoder's choice is the decoder's expectation."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from paramserver.wire.codecs.bfloat16 import BFloat16
from paramserver.wire.codecs.codec import Codec, Halves, Origin
from paramserver.wire.codecs.float16 import Float16
from paramserver.wire.codecs.int8 import Int8
from paramserver.wire.codecs.sign import Sign
from paramserver.wire.codecs.topk import TopK
from paramserver.wire.errors import TensorError
from paramserver.wire.job import Job, WireSection
from paramserver.wire.layout import Array, Layout

__all__ = [
    "Codec",
    "Halves",
    "Origin",
    "add_up",
    "chunk_elements",
    "covering",
    "decode_chunk",
    "halves",
    "pull_codec",
    "push_codec",
]


def pull_codec(wire: WireSection) -> Codec | None:
    """Return the codec of the parameters on their way to a worker; None if they travel as they are."""
    return halves(wire.pull)


def push_codec(wire: WireSection) -> Codec | None:
    """Return the codec of the contributions' chunks; None if they travel as they are, or whole by `PowerSGD`.

    Where pushes keep something back, those that are exact travel as they are.
    """
    match wire.push:
        case "int8":
            return Int8()
        case "topk":
            return TopK(wire.density)
        case "sign":
            return Sign()
    return halves(wire.push)


@lru_cache
def halves(name: str) -> Halves | None:
    """Return the codec of this name if it makes halves of values; None if it is another one, or none."""
    match name:
        case "bf16":
            return BFloat16()
        case "fp16":
            return Float16()
    return None


#: Which halves `Halves.look` returns as what.
_HALVES_OF = {np.dtype(np.uint16): "bf16", np.dtype(np.float16): "fp16"}


def add_up(values: Array, out: Array, is_first: bool) -> None:
    """Write values, which may be halves, to `out`, or add them to what is there unless they are the first."""
    codec = halves(_HALVES_OF.get(values.dtype, ""))
    if codec is not None:
        codec.add_up(values, out, is_first)
    elif is_first:
        np.copyto(out, values)
    else:
        np.add(out, values, out=out)


def covering(part: Layout, codec: Codec | None) -> slice:
    """Return the range of the whole vector that has to travel to whoever holds this part of it.

    Blocks are the same for any number of servers; one that two of them share travels to both.
    """
    start, stop = part.start, part.start + part.size
    if codec is None or not part.size:
        return slice(start, stop)
    return slice(start // codec.block * codec.block, min(-(-stop // codec.block) * codec.block, part.whole.size))


def chunk_elements(job: Job, chunk_bytes: int) -> int:
    """Return how many values make a chunk: of pushes and pulls alike, and twice as many where both are halves."""
    elements = chunk_bytes // np.dtype(job.train.dtype).itemsize
    return 2 * elements if {job.wire.push, job.wire.pull} <= {"bf16", "fp16"} else elements


def decode_chunk(
    codec: Codec, payload: memoryview, count: int, as_they_came: Halves | None = None
) -> tuple[Array, bool]:
    """Return a chunk of `count` values that a peer sent, and whether all are finite; then `as_they_came`, if so asked.

    Raises:
        TensorError: if the payload does not hold so many.
    """
    if count < 1 or payload.nbytes != codec.nbytes(count):
        raise TensorError(f"a chunk of {payload.nbytes} bytes came where {count} values are expected")
    if as_they_came is not None:
        values, finite = as_they_came.look(payload)
        if finite:
            return values, True
    out = np.empty(count, np.float32)
    return out, codec.decode(payload, out)
