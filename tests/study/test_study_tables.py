"""The paper's table 2, of results whose numbers are known."""

from __future__ import annotations

import math

import pandas as pd
from studies import answers_of, item, key_of

from sklcam import study


def results():
    items = {"a": item(0), "b": item(0, method="saliency")}
    of_classes = study.analyse([answers_of("Ann", {"a": 0, "b": 1})], key_of(items))
    pair = {"image": 0, "method": "gradcam", "models": ["old", "new"]}
    of_models = study.analyse(
        [answers_of("Ann", {"a": 1})], key_of({"a": pair}, "reliability", better="new")
    )
    return of_classes, of_models


def test_the_table_is_as_the_papers():
    made = study.table(*results(), rank_correlation={"gradcam": 0.2612, "saliency": 0.168})
    heads = ["Method", "Human classification accuracy", "Relative reliability", "Rank correlation"]
    lines = str(made).splitlines()
    assert [part.strip() for part in lines[0].split("  ") if part] == heads
    assert lines[1].split() == [
        "gradcam",
        "100.00",
        "(100.00",
        "to",
        "100.00)",
        "+1.00",
        "(+1.00",
        "to",
        "+1.00)",
        "0.261",
    ]
    assert " ".join(lines[2].split()) == "saliency 0.00 (0.00 to 0.00) – 0.168"
    frame = pd.DataFrame(made).set_index("method")
    assert frame.loc["gradcam", "human_accuracy"] == 1
    assert math.isnan(frame.loc["saliency", "relative_reliability"])
    assert frame.loc["gradcam", "relative_reliability_low"] == 1


def test_columns_of_one_study():
    of_classes, of_models = results()
    assert [*study.table(of_models)[0]] == [
        "method", "relative_reliability", "relative_reliability_low", "relative_reliability_high"
    ]  # fmt: skip
    assert len(study.table(of_classes)) == 2
    assert str(study.StudyTable()) == ""
