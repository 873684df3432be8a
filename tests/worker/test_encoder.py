"""What pushes keep back, against the recursions of the papers written out value by value."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.server.decoder import Decoder
from paramserver.wire.codecs.topk import largest
from paramserver.wire.errors import TaskError, TensorError
from paramserver.wire.job import Job
from paramserver.wire.layout import Layout
from paramserver.worker.encoder import Encoder, Piece
from paramserver.worker.partitions import send_pieces

Array = np.ndarray[Any, Any]

#: More than one chunk and more than one block.
CHUNK = 1 << 16
LAYOUT = Layout([("w", (300, 250)), ("b", (500,))], "float32")


def job(**wire: Any) -> Job:
    return Job.from_dict({"task": {"use": "t"}, "data": {"source": "d"}, "wire": wire})


def gradients(count: int, layout: Layout = LAYOUT) -> list[Array]:
    rng = np.random.default_rng(2)
    return [rng.normal(size=layout.size).astype(np.float32) for _ in range(count)]


def received(asked: Job, pieces: list[Piece], step: int, layout: Layout = LAYOUT, chunk: int = CHUNK) -> Array:
    """Return what a server reads out of the pieces."""
    decoder, chunks, next_offset = Decoder(asked, layout), [], 0
    assert sum(piece.nbytes for _, piece in pieces) == decoder.nbytes(step)
    for offset, piece in pieces:
        assert offset == next_offset
        values, finite = decoder.read(memoryview(piece.tobytes()), offset, step, chunk)
        assert finite
        chunks.append(values)
        next_offset += values.size
    assert next_offset == decoder.size(step)
    return np.concatenate(decoder.whole(chunks, step))


ALL = [
    {"push": "bf16"},
    {"push": "fp16", "pull": "bf16"},
    {"push": "int8"},
    {"push": "topk", "exact_every": 4},
    {"push": "topk", "momentum": 0.5, "exact_every": 4},
    {"push": "sign", "exact_every": 3},
    {"push": "powersgd", "exact_every": 5},
]


@pytest.mark.parametrize("wire", ALL, ids=str)
def test_the_server_reads_what_is_laid_down_in_shared_memory(wire: dict[str, Any]) -> None:
    asked = job(**wire)
    sender, sharer = Encoder(asked, LAYOUT, [CHUNK]), Encoder(asked, LAYOUT, [CHUNK])
    for step, gradient in enumerate(gradients(7)):
        slot = gradient.copy()
        sharer.encode(slot, 3, step, in_place=True)
        found = received(asked, sender.encode(gradient.copy(), 3, step)[0], step)
        np.testing.assert_array_equal(found, slot)
        assert not np.array_equal(found, gradient)


@pytest.mark.parametrize("wire", ALL, ids=str)
def test_pieces_made_when_they_are_asked_for_are_the_same(wire: dict[str, Any]) -> None:
    at_once, one_by_one = Encoder(job(**wire), LAYOUT, [CHUNK]), Encoder(job(**wire), LAYOUT, [CHUNK])
    for step, gradient in enumerate(gradients(5)):
        [expected] = at_once.encode(gradient.copy(), 3, step)
        [coming] = one_by_one.pieces(gradient.copy(), 3, step)
        assert len(coming) == len(expected)
        for (start, piece), (offset, same) in zip(coming, expected, strict=True):
            assert start == offset
            np.testing.assert_array_equal(piece, same)


@pytest.mark.parametrize("wire", [{"push": "bf16"}, {"push": "sign", "exact_every": 3}], ids=str)
def test_the_last_piece_is_sent_as_the_last(wire: dict[str, Any]) -> None:
    sent: list[list[bytes]] = []

    class Line:
        async def send_all(self, messages: list[bytes]) -> None:
            sent.append(list(messages))

    told: list[tuple[int, bool]] = []

    def framed(start: int, piece: Array, is_last: bool) -> bytes:
        told.append((start, is_last))
        return piece.tobytes()

    [pieces] = Encoder(job(**wire), LAYOUT, [CHUNK]).pieces(gradients(1)[0], 0, 0)
    line: Any = Line()
    asyncio.run(send_pieces(line, pieces, framed))
    assert told == [(0, False), (CHUNK, True)]
    # What lies in one place is sent before the next one is made.
    assert [len(messages) for messages in sent] == ([2] if isinstance(pieces, list) else [1, 1])


def test_pieces_of_one_server_without_memory_lie_in_one_place() -> None:
    [coming] = Encoder(job(push="bf16"), LAYOUT, [CHUNK]).pieces(gradients(1)[0], 0, 0)
    first, second = (piece for _, piece in coming)
    assert np.shares_memory(first, second)


def test_what_cannot_be_encoded_is_found_before_any_of_several_servers_has_its_part() -> None:
    asked = Job.from_dict(job(push="bf16").model_dump() | {"server": {"partitions": 2}})
    gradient = gradients(1)[0]
    gradient[75_003] = np.nan
    with pytest.raises(TaskError, match="holds nan"):
        Encoder(asked, LAYOUT, [CHUNK, CHUNK]).pieces(gradient, 2, 9)


@pytest.mark.parametrize("wire", [w for w in ALL if "exact_every" in w and "momentum" not in w], ids=str)
def test_what_arrives_over_a_window_is_the_sum_of_its_gradients(wire: dict[str, Any]) -> None:
    asked = job(**wire)
    encoder, every = Encoder(asked, LAYOUT, [CHUNK]), wire["exact_every"]
    for window in range(2):
        total = np.zeros(LAYOUT.size)
        taken = gradients(every)
        for number, gradient in enumerate(taken):
            step = window * every + number
            total += received(asked, encoder.encode(gradient.copy(), 0, step)[0], step)
        np.testing.assert_allclose(total, np.sum(taken, axis=0, dtype=np.float64), atol=1e-4)
        assert not encoder._kept


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_topk_is_deep_gradient_compression(momentum: float) -> None:
    layout, every = Layout([("w", (40,))], "float32"), 4
    asked = job(push="topk", density=0.1, momentum=momentum, exact_every=every)
    encoder = Encoder(asked, layout, [CHUNK])
    u, v = [0.0] * 40, [0.0] * 40
    for step, gradient in enumerate(gradients(11, layout)):
        found = received(asked, encoder.encode(gradient.copy(), 0, step)[0], step, layout)
        for i in range(40):
            u[i] = momentum * u[i] + float(gradient[i])
            v[i] += u[i]
        sent = range(40) if step % every == every - 1 else largest(np.array(v), 4)
        expected = np.zeros(40)
        for i in sent:
            expected[i], u[i], v[i] = v[i], 0.0, 0.0
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sign_and_powersgd_feed_the_error_back() -> None:
    for wire in ({"push": "sign"}, {"push": "powersgd"}):
        asked = job(**wire)
        encoder, error = Encoder(asked, LAYOUT, [CHUNK]), np.zeros(LAYOUT.size, np.float32)
        for step, gradient in enumerate(gradients(5)):
            fresh = Encoder(asked, LAYOUT, [CHUNK])
            if encoder._kept:
                fresh._kept[0] = type(encoder._kept[0])(LAYOUT.size, 0.0, encoder._kept[0].qs)
                fresh._kept[0].next_step = step
            error += gradient
            expected = received(asked, fresh.encode(error.copy(), 0, step)[0], step)
            found = received(asked, encoder.encode(gradient.copy(), 0, step)[0], step)
            np.testing.assert_array_equal(found, expected)
            error -= found


def test_a_shard_that_comes_from_elsewhere_begins_with_nothing() -> None:
    asked = job(push="topk", exact_every=4)
    first, *others = gradients(4)
    encoder = Encoder(asked, LAYOUT, [CHUNK])
    for step in (0, 1):
        encoder.encode(first.copy(), 0, step)
    # Step 2 was computed by somebody else, or this one is taken back to the beginning of the window.
    for step in (3, 0, 4):
        found = received(asked, encoder.encode(others[0].copy(), 0, step)[0], step)
        expected = received(asked, Encoder(asked, LAYOUT, [CHUNK]).encode(others[0].copy(), 0, step)[0], step)
        np.testing.assert_array_equal(found, expected)


def test_in_rounds_the_memory_of_shards_that_others_compute_is_freed() -> None:
    encoder = Encoder(job(push="sign", exact_every=4), LAYOUT, [CHUNK])
    for shard, step in ((0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)):
        encoder.encode(gradients(1)[0], shard, step)
    assert set(encoder._kept) == {1}


@pytest.mark.parametrize("wire", ALL, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_tensor(wire: dict[str, Any], value: float) -> None:
    gradient = gradients(1)[0]
    encoder = Encoder(job(**wire), LAYOUT, [CHUNK])
    gradient[75_003] = value
    with pytest.raises(TaskError, match=rf"shard 2, step 9: gradient 'b' holds {value}; 1 of 500 values"):
        encoder.encode(gradient, 2, 9)


def test_what_a_codec_cannot_hold_is_refused_with_its_place() -> None:
    gradient = gradients(1)[0]
    gradient[75_003] = 70000
    with pytest.raises(TaskError, match=r"shard 2, step 9: the gradient's sum .* is 70000 at element 3 of 'b', beyond"):
        Encoder(job(push="fp16"), LAYOUT, [CHUNK]).encode(gradient, 2, 9)


@pytest.mark.parametrize("wire", [{"push": "topk", "momentum": 0.9, "exact_every": 4}, {"push": "powersgd"}], ids=str)
def test_what_grows_too_large_in_what_is_kept_back_is_refused(wire: dict[str, Any]) -> None:
    gradient = np.full(LAYOUT.size, 3e38, np.float32)
    encoder = Encoder(job(**wire), LAYOUT, [CHUNK])

    def push_three() -> None:
        for step in (8, 9, 10):
            encoder.encode(gradient.copy(), 2, step)

    with pytest.raises(TaskError, match=r"the gradient's sum .* at element \d+ of '.', beyond"):
        push_three()


@settings(max_examples=60)
@given(st.sampled_from(ALL), st.integers(0, 6), st.data())
def test_no_bytes_make_the_decoder_fail_otherwise_than_it_says(wire: dict[str, Any], step: int, drawn: Any) -> None:
    layout = Layout([("w", (30, 20)), ("b", (9,))], "float32")
    decoder = Decoder(job(**wire), layout)
    length = drawn.draw(st.sampled_from([decoder.nbytes(step), decoder.nbytes(step) - 4, 0, 1, 5000]))
    payload = np.random.default_rng(drawn.draw(st.integers(0, 99))).bytes(length)
    offset = drawn.draw(st.sampled_from([0, 1, layout.size, 2**63]))
    try:
        values, finite = decoder.read(memoryview(payload), offset, step, CHUNK)
        if finite and offset == 0 and values.size == decoder.size(step):
            whole = decoder.whole([values], step)
            assert np.isfinite(np.concatenate(whole)).all()
    except TensorError:
        pass
