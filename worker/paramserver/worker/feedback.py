"""What the pushes of one shard have kept back so far, for the next one to make up for."""

from __future__ import annotations

import numpy as np

from paramserver.wire.layout import Array


class Feedback:
    """Error feedback, with the momentum that must be corrected for it.

        u ← m·u + g,   v ← v + u,   what is sent of v leaves v, and where it is sent u becomes 0

    With m = 0 that is the plain feedback of the error, v ← v + g. `size` is that of the gradient.

    Sources: Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", 2019, algorithm
    2; with momentum Lin et al., "Deep Gradient Compression", 2018, momentum correction and momentum factor masking.

    Warning: takes the memory of one gradient, with momentum of two, for every shard.
    """

    def __init__(self, size: int, momentum: float, qs: list[Array]) -> None:
        #: v: what is still to be sent, float32.
        self.rest: Array = np.zeros(size, np.float32)
        self._velocity: Array | None = np.zeros(size, np.float32) if momentum else None
        self._momentum = np.float32(momentum)
        #: Where PowerSGD starts its next step of power iteration.
        self.qs = qs
        #: The step whose gradient comes next.
        self.next_step = 0

    def add(self, gradient: Array) -> None:
        """Take the gradient of a step."""
        if self._velocity is None:
            self.rest += gradient
            return
        self._velocity *= self._momentum
        self._velocity += gradient
        self.rest += self._velocity

    def remove(self, sent: Array) -> None:
        """Take note of what is sent; 0 is what is not."""
        self.rest -= sent
        if self._velocity is not None:
            self._velocity[sent != 0] = 0
