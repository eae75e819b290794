"""The program that counts how often the intervals of studies hold the truth, on two studies."""

from __future__ import annotations

import numpy as np
import pytest


def test_the_truth_is_that_of_many_answers():
    import study_intervals

    answers, _ = study_intervals.simulated(150, 150, np.random.default_rng(0))
    values = [one["value"] for each in answers for one in each["answers"]]
    # By what raters and images deviate, it is known to about 0.02.
    assert np.mean(values) == pytest.approx(study_intervals.share_of_right_answers(), abs=0.04)


def test_figures_are_printed(capsys):
    import study_intervals

    study_intervals.main(["--n-studies", "2", "--sizes", "3x4"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "3 raters, 4 images" and len(lines) == 6
    names = ("both", "raters", "images", "single answers")
    assert all(line.strip().startswith(name) for line, name in zip(lines[2:], names, strict=True))
