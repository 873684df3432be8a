import numpy as np
import pytest

from paramserver.client.connection.client import Point
from paramserver.client.demo import closed_form, demo_job, round_ms
from paramserver.wire.errors import JobError


def test_the_closed_form_is_the_line_that_polyfit_finds() -> None:
    random = np.random.default_rng(0)
    x = random.uniform(size=(50, 1))
    y = 3 * x[:, 0] - 2 + random.standard_normal(50)
    slope, intercept = np.polyfit(x[:, 0], y, 1)
    assert closed_form(x, y) == pytest.approx({"w": slope, "b": intercept}, rel=1e-12)


def test_the_time_of_a_round_is_the_median_and_not_upset_by_a_pause() -> None:
    seconds = [0.0, 0.001, 0.002, 5.0, 5.001, 5.002]
    history = [Point(step, step, second, 1.0, 1) for step, second in enumerate(seconds, 1)]
    assert round_ms(history) == pytest.approx(1.0)
    assert round_ms(history[:1]) == 0


def test_an_unknown_mode_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(JobError, match=r"train\.mode.*'sinc'.*did you mean 'sync'"):
        demo_job("sinc")
