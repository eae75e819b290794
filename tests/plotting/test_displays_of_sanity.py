"""The display of sanity checks, against the check's own numbers."""

from __future__ import annotations

import numpy as np
import pytest
from displayed import X
from numpy.testing import assert_allclose

from sklcam.metrics import SanityCheck, sanity_check
from sklcam.plotting import SanityCheckDisplay


def check_of(mode="cascading", n_steps=3):
    kept = {"a": np.full((5, n_steps), 0.9), "_b": np.full((5, n_steps), 0.1)}
    others = {"a": np.full(5, 0.2), "_b": np.array([0.2, 0.4, np.nan, 0.2, 0.4])}
    layers = [(f"layer{i}", "") for i in range(n_steps)]
    return SanityCheck(mode, layers, {"ssim": kept}, {"ssim": others}, {}, {})


def test_a_cascade_begins_with_the_trained_network():
    display = SanityCheckDisplay.from_predictions(check_of(), likeness="ssim")
    assert_allclose(display.lines_[0].get_ydata(), [1, 0.9, 0.9, 0.9])
    assert_allclose(display.lines_[1].get_ydata(), [1, 0.1, 0.1, 0.1])
    assert_allclose([line.get_ydata()[0] for line in display.other_lines_], [0.2, 0.3])
    written = [text.get_text() for text in display.legend_.get_texts()]
    assert written == ["a: insensitive to the weights", "_b: sensitive to the weights"]
    ticks = [text.get_text() for text in display.ax_.get_xticklabels()]
    assert ticks == ["trained", "the network", "the network", "the network"]


def test_single_steps_do_not():
    display = SanityCheckDisplay.from_predictions(check_of("independent"), likeness="ssim")
    assert_allclose(display.lines_[0].get_ydata(), [0.9] * 3)


def test_many_steps_are_not_all_named():
    display = SanityCheckDisplay.from_predictions(check_of(n_steps=200), likeness="ssim")
    assert len(display.ax_.get_xticks()) <= 24


def test_names_and_verdicts_leave_room_for_the_curves():
    check = check_of()
    check.layers[:] = [(f"encoder.blocks.{i}.depthwise_convolution",) for i in range(3)]
    for values in (check.randomized["ssim"], check.other_images["ssim"]):
        values["guided backpropagation"] = values["a"]
    check.other_classes["ssim"] = check.other_images["ssim"]
    display = SanityCheckDisplay.from_predictions(check, likeness="ssim")
    display.figure_.canvas.draw()
    assert display.ax_.get_position().height > 0.45
    assert not any("\n" in text.get_text() for text in display.legend_.get_texts())


def test_it_draws_what_is_measured(fitted):
    options = {"layers": 2, "mode": "independent", "random_state": 3}
    display = SanityCheckDisplay.from_estimator(fitted, X[:6], methods=["gradcam"], **options)
    check = sanity_check(fitted, X[:6], method=["gradcam"], progress=False, **options)
    assert display.check.steps == check.steps
    curve = check.curves()["gradcam"]
    assert_allclose(display.lines_[0].get_ydata(), curve["mean"], atol=1e-6)
    band = display.ax_.collections[0].get_paths()[0].vertices[:, 1]
    for end in ("low", "high"):
        for value in curve[end]:
            assert np.abs(band - value).min() < 1e-6


def test_wrong_options_before_any_work():
    with pytest.raises(TypeError, match="SanityCheckDisplay has no option 'kind'"):
        SanityCheckDisplay.from_estimator(None, None, kind="bars")
