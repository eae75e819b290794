"""The sentences, the strip and the confusions, against what is counted by hand."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from pages import NAMES, Page, X
from torch import nn

import sklcam
from sklcam.metrics import Evaluation, available
from sklcam.reporting import names
from sklcam.reporting.words import Facts, comparison, sentences

BUILT_IN = available()  # before another test registers its own


class Reader(nn.Module):
    """Says which of three channels is the brightest, in an 8 x 8 map that is the channels."""

    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, images):
        return self.same(images).mean(dim=(2, 3)) * 9


@pytest.fixture(scope="module")
def readings():
    """Six images, a spot each: of 0, 1, 2, 0 taken for 2, 1 taken for 0, and 2 that is blank."""
    images = torch.zeros(6, 3, 32, 32)
    for i, channel in enumerate((0, 1, 2, 2, 0)):
        images[i, channel, 4 * i : 4 * i + 8, 8:16] = 0.5 + 0.1 * i
    labels = np.array([0, 1, 2, 0, 1, 2])
    boxes = [torch.tensor([[8, 4 * i, 16, 4 * i + 8]]) for i in range(6)]
    boxes[4] = torch.tensor([[0, 0, 4, 4]])  # where nothing is
    return images, labels, boxes


@pytest.fixture(scope="module")
def page(readings, tmp_path_factory):
    images, labels, boxes = readings
    explainer = sklcam.CAMExplainer(Reader(), target_layer="same", verbose=0).fit(images)
    path = tmp_path_factory.mktemp("words") / "page.html"
    metrics = ("accuracy", "complexity", "pointing_game")
    with pytest.warns(UserWarning, match="1 of 6 maps are blank"):
        sklcam.report(explainer, images, labels, path, metrics=metrics, boxes=boxes, verbose=0)
    return Page(path), path.read_text(encoding="utf-8").replace("\xa0", " ")


def test_first_comes_what_it_is_about(page):
    text = page[1]
    before = text.index("In words")
    for part in (
        "<h1>Explanations of Reader</h1>",
        "6 images: 0 2, 1 2, 2 2",
        "Reader, explained by GradCAM at the layer same, maps of 32 × 32 places (CAMExplainer)",
    ):
        assert 0 < text.index(part) < before
    assert re.search(r"<p>\d{4}-\d\d-\d\d · 6 images", text)


def test_sentences_count_what_is_seen(page):
    text = page[1]
    # Blank, the last output is all zeros: class 0, which is wrong.
    assert "The network is right on 3 of 6 images (50 %); always answering 0" in text
    assert "would be right for 33 %." in text
    covered = np.mean([64 / 1024] * 5 + [0])  # spots of one brightness, and nothing
    assert f"covers {100 * covered:.1f} % of its image (marking everything would be 100 %)." in text
    # Spots 0 to 3 are where they should be; boxes cover 64 pixels, that of image 4 only 16.
    assert "on the object in 67 % of the images; a random point, in " in text
    share = (5 * 64 + 16) / 6 / 1024
    assert f"a random point, in {100 * share:.1f} %." in text
    assert "1 of 6 maps is blank" in text
    assert text.index("The network is right") < text.index("<table")


def test_blank_maps_have_no_numbers(page):
    blank = page[0].cards[5]
    assert "no positive evidence" in blank
    assert "accuracy" in blank and "area covered" not in blank and "brightest" not in blank
    assert "area covered" in page[0].cards[0]


def test_confusions_are_counted(page):
    rows = [cells for cells in page[0].rows if cells[0] in "012" and len(cells) == 4]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["0", "1", "", "1"],
        ["1", "1", "1", ""],
        ["2", "1", "", "1"],
    ]
    links = [each["href"] for each in page[0].all("a") if "predicted" in each["href"]]
    assert len(links) == 6 and "#true=0&predicted=0.2" in links


def test_strip_has_the_worst_and_the_surest_errors(page):
    text = page[1]
    wrong = text[text.index("Most confident errors") :]
    wrong = wrong[: wrong.index("</ul>")]
    # The brighter a spot, the surer it is; of the blank image all classes are as likely.
    assert re.findall(r"#image=(\d)", wrong) == ["4", "3", "5"]
    assert "Best explained, by brightest point on the object" in text


def test_of_many_classes_the_most_frequent_confusions_are_listed(tmp_path):
    labels = np.arange(40) % 20
    seen = np.where(labels == 3, 4, labels)
    seen[5] = 9  # one of the two of class 5
    images = torch.zeros(40, 20, 8, 8)
    images[torch.arange(40), torch.tensor(seen)] = torch.eye(8)
    explainer = sklcam.CAMExplainer(Reader(), target_layer="same", verbose=0).fit(images)
    path = tmp_path / "page.html"
    sklcam.report(explainer, images, labels, path, metrics="sparsity", verbose=0)
    text = path.read_text(encoding="utf-8")
    listed = re.findall(r"<li><a href=\"(.*?)\">(\d+ × .*?)</a></li>", text)
    # Class 3 is never predicted, so that those after it stand a place earlier among what is.
    assert listed == [
        ("#true=3&amp;predicted=0.3", "2 × 3, taken for 4"),
        ("#true=5&amp;predicted=0.8", "1 × 5, taken for 9"),
    ]
    assert "true \\ predicted" not in text


def test_every_metric_has_a_plain_name():
    assert {name for name in BUILT_IN if name not in names._METRICS} == set()
    assert len(set(names._METRICS.values())) == len(names._METRICS)


def facts(**values):
    n = len(next(iter(values.values())))
    numbers = Evaluation(**{name: np.array(each) for name, each in values.items()})
    return Facts(numbers, None, [None] * n, 0, 0, float("nan"), float("nan"))


def test_nothing_is_said_of_what_was_not_measured():
    assert sentences(facts(sparsity=[0.5, 0.7])) == []
    assert sentences(facts(consistency=[0.5, 0.7])) == [
        "Maps of an image and its crops and flips have a similarity of 0.60 (1 is identical)."
    ]
    assert sentences(facts(consistency=[0.5, np.nan])) == []


def test_maps_of_different_images_are_what_consistency_is_compared_with(fitted, tmp_path):
    """The maps of views, against those of other images' views, as the metric compares them."""
    path = tmp_path / "page.html"
    sklcam.report(fitted, X[:24], NAMES[:24], path, metrics="consistency", verbose=0)
    text = path.read_text(encoding="utf-8")
    (same, others) = re.search(
        r"similarity of (\S+) \(1 .* different images, (\S+)\.<", text
    ).groups()
    assert float(others) < float(same)


def test_what_differs_is_told_in_a_sentence():
    verdicts = {
        "accuracy": "no clear difference",
        "adcc": "worse",
        "iauc": "better",
        "dauc": "better",
    }
    assert comparison(verdicts | {"road": "unknown"}, "a") == (
        "Compared with a: better in confidence under insertion and confidence under deletion; "
        "worse in overall score (ADCC); no clear difference in accuracy."
    )
    verdicts = dict.fromkeys(["accuracy", "adcc", "iauc"], "no clear difference")
    assert comparison(verdicts, "a") == (
        "Compared with a: no clear difference in accuracy, overall score (ADCC) and confidence "
        "under insertion."
    )
    assert comparison({"road": "unknown"}, "a") == ""


def test_confusions_count_images_that_are_not_shown(tmp_path, readings):
    explainer = sklcam.CAMExplainer(Reader(), target_layer="same", verbose=0).fit(readings[0])
    path = tmp_path / "page.html"
    options = {"metrics": ("accuracy", "sparsity"), "n_images": 1, "verbose": 0}
    sklcam.report(explainer, readings[0][:5], [0] * 5, path, **options)
    assert Page(path).rows[-2:] == [["true \\ predicted", "0", "1", "2"], ["0", "2", "1", "2"]]


def test_blank_maps_alone_are_neither_stable_nor_focused():
    result = Evaluation(complexity=np.zeros(2), average_drop=np.zeros(2), consistency=np.ones(2))
    blank = Facts(result, None, ["a", "a"], 2, 0, math.nan, math.nan)
    (line,) = sentences(blank)
    assert line.startswith("2 of 2 maps are blank")
