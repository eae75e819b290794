"""Pages of studies: what is asked, what is shown, and what the page does not tell."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from small_networks import SmallNet
from studies import HOSTILE, IMAGES, answers_of, data_of, explainer, pixels_of, text_of

from sklcam import CAMExplainer, study
from sklcam.plotting.pages import viridis

METHODS = ["gradcam", "saliency", "layercam"]


def built(folder, who=None, y=None, *, X=IMAGES, pairs=None, kind="class", **options):
    if kind == "class" and y is None and pairs is None:
        pairs = ["cat", "dog"]
    key = study.build(
        explainer() if who is None else who,
        X,
        y,
        folder / "study.html",
        kind=kind,
        pairs=pairs,
        **{"random_state": 0, **options},
    )
    shown = {one["id"]: one for one in data_of(folder / "study.html")["items"]}
    return key, shown


def asked(key):
    return {name: item for name, item in key["items"].items() if not item.get("check")}


# Which class is shown?


def test_each_picture_is_the_map_of_its_class_over_its_image(tmp_path):
    key, shown = built(tmp_path, method=METHODS)
    who = explainer()
    for name, item in asked(key).items():
        assert item["options"][item["truth"]] == item["class"]
        assert shown[name]["options"] == item["options"]
        row = IMAGES[item["image"]]
        (map_,) = who.explain(row[None], [item["class"]], method=item["method"])
        grey = np.round(row[0].numpy() * 255)[..., None]
        expected = 0.5 * grey + 0.5 * viridis()[np.round(map_ * 255).astype(int)]
        (uri,) = shown[name]["images"]
        assert np.abs(pixels_of(uri) - expected).max() <= 2  # a level of the map is one of a colour


def test_maps_alone_are_in_their_colours(tmp_path):
    key, shown = built(tmp_path, show="map", n_questions=1)
    ((name, item),) = asked(key).items()
    (map_,) = explainer().explain(IMAGES[item["image"]][None], [item["class"]])
    assert np.abs(pixels_of(shown[name]["images"][0]) / 255 - map_).max() < 0.51 / 255


def test_all_methods_and_models_are_asked_about_as_often(tmp_path):
    models = {"one": explainer(0), "two": explainer(1)}
    key, _ = built(tmp_path, models, method=METHODS, n_questions=60)
    kinds = Counter((item["model"], item["method"]) for item in asked(key).values())
    assert kinds == {(model, method): 10 for model in models for method in METHODS}
    of_kind = {
        kind: sorted(
            (item["image"], item["class"])
            for item in asked(key).values()
            if (item["model"], item["method"]) == kind
        )
        for kind in kinds
    }
    assert all(pairs == of_kind["one", "gradcam"] for pairs in of_kind.values())
    # Both classes of each image, as in the paper.
    assert Counter(image for image, _ in of_kind["one", "gradcam"]).most_common(1)[0][1] == 2
    for kind in kinds:  # the right answer is in either place as often
        truths = [
            item["truth"] for item in asked(key).values() if (item["model"], item["method"]) == kind
        ]
        assert sum(truths) == 5


@pytest.mark.parametrize("form", ["sets", "sets of names", "indicator", "multilabel"])
def test_images_with_exactly_two_labels_are_asked_about(tmp_path, form):
    sets = [{"cat"}, {"dog", "cat"}, {"emu", "dog"}, {"cat", "dog", "emu"}] * 3
    y = [[int(name in row) for name in ("cat", "dog", "emu")] for row in sets]
    who = explainer(task="multilabel") if form == "multilabel" else explainer()
    if form == "sets of names":  # as of data sets whose labels are numbers
        who = explainer(classes=range(3))
        who.class_names_ = np.array(["cat", "dog", "emu"])
    key, _ = built(tmp_path, who, sets if form.startswith("sets") else np.array(y))
    found = {(item["image"], *sorted(item["options"])) for item in asked(key).values()}
    assert found == {(i, *sorted(sets[i])) for i in range(12) if len(sets[i]) == 2}
    assert len(asked(key)) == 12


def test_pairs_are_of_all_images_or_of_each(tmp_path):
    pairs = [["cat", "dog"], ["emu", "dog"], ["cat", "emu"]] * 4
    key, _ = built(tmp_path, pairs=pairs)
    for item in asked(key).values():
        assert sorted(item["options"]) == sorted(pairs[item["image"]])
        assert item["class"] in pairs[item["image"]]
    key, _ = built(tmp_path, pairs=["cat", "emu"], class_names={"emu": "a tall bird"})
    assert {tuple(sorted(item["options"])) for item in asked(key).values()} == {
        ("a tall bird", "cat")
    }


# Which model is more reliable?


def test_models_are_compared_on_images_that_both_predict_right(tmp_path):
    models = {"old": explainer(0), "new": explainer(3)}
    predicted = {name: model.predict(IMAGES) for name, model in models.items()}
    y = predicted["new"].copy()
    y[:2] = np.where(y[:2] == "emu", "cat", "emu")
    right = {name: predicted[name] == y for name in models}
    expected = np.flatnonzero(right["old"] & right["new"])
    assert 2 < len(expected) < right["new"].sum() == 10 and right["old"].sum() < 10
    key, shown = built(tmp_path, models, y, kind="reliability", method=METHODS)
    assert key["accuracy"] == {name: right[name].mean() for name in models}
    assert key["better"] == "new"
    for method in METHODS:
        of = [item for item in asked(key).values() if item["method"] == method]
        assert sorted(item["image"] for item in of) == expected.tolist()
        n_first = sum(item["models"][0] == "old" for item in of)
        assert abs(2 * n_first - len(of)) <= 1
    for name, item in asked(key).items():
        assert f"“{y[item['image']]}”" in shown[name]["asked"] and item["class"] == y[item["image"]]
        row = IMAGES[item["image"]]
        for model, uri in zip(item["models"], shown[name]["images"], strict=True):
            (map_,) = models[model].explain(row[None], [item["class"]], method=item["method"])
            colours = viridis()[np.round(map_ * 255).astype(int)]
            expected_pixels = 0.5 * np.round(row[0].numpy() * 255)[..., None] + 0.5 * colours
            assert np.abs(pixels_of(uri) - expected_pixels).max() <= 2


def test_the_better_model_may_be_named(tmp_path):
    models, y = {"a": explainer(0), "b": explainer(0)}, explainer(0).predict(IMAGES)
    key, _ = built(tmp_path, models, y, kind="reliability", better="b")
    assert key["better"] == "b" and key["accuracy"] == {"a": 1, "b": 1}


@pytest.mark.parametrize(("names", "better"), [((1, 2), 1), ((1, 2), 2), (("", "b"), "")])
def test_whoever_prefers_the_better_model_is_counted_for_it(names, better, tmp_path):
    models, y = {name: explainer(0) for name in names}, explainer(0).predict(IMAGES)
    key, _ = built(tmp_path, models, y, kind="reliability", better=better)
    values = {
        name: -2 if item["models"][0] == str(better) else 2 for name, item in asked(key).items()
    }
    assert {*values.values()} == {-2, 2}  # it is on either side
    result = study.analyse(answers_of("Ann", values, key["study"]), key)
    assert result.methods["gradcam"].mean == 2


# What the page does not tell


def test_the_page_does_not_hold_the_key(tmp_path):
    models = {"first network": explainer(0), "second network": explainer(1)}
    key, shown = built(
        tmp_path,
        models,
        method={"by weights": "gradcam", "by pixels": "saliency"},
        names=[f"photo {i}.png" for i in range(12)],
    )
    text = text_of(tmp_path / "study.html")
    for secret in (
        "network",
        "by weights",
        "by pixels",
        "gradcam",
        "saliency",
        "photo ",
        "truth",
    ):
        assert secret not in text
    assert set().union(*shown.values()) == {"id", "images", "asked", "options", "note"}
    assert [*shown] == sorted(shown) and shown.keys() == key["items"].keys()
    assert all(re.fullmatch("[0-9a-f]{12}", name) for name in shown)
    # Neither do the places: kinds of questions are mixed.
    order = [item.get("method", "check") for item in key["items"].values()]
    assert sum(one != two for one, two in pairwise(order)) > len(order) / 3
    assert key["items"] and {item["name"] for item in asked(key).values()} <= {
        f"photo {i}.png" for i in range(12)
    }
    assert json.loads((tmp_path / "study.key.json").read_text(encoding="utf-8")) == key


def test_checks_say_what_to_choose(tmp_path):
    key, shown = built(tmp_path, attention_checks=6)
    checks = {name: item for name, item in key["items"].items() if item.get("check")}
    assert len(checks) == 6 and sum(item["truth"] for item in checks.values()) == 3
    for name, item in checks.items():
        wanted = shown[name]["options"][item["truth"]]
        assert shown[name]["note"] == f"There is no picture here. Please choose “{wanted}”."
        assert "images" not in shown[name]
    models, y = {"a": explainer(0), "b": explainer(0)}, explainer(0).predict(IMAGES)
    key, shown = built(tmp_path, models, y, kind="reliability", better="a", attention_checks=4)
    notes = {
        item["truth"]: shown[name]["note"]
        for name, item in key["items"].items()
        if item.get("check")
    }
    sides = {-2: "Model 1, clearly", -1: "Model 1, slightly", 1: "Model 2, slightly"}
    sides[2] = "Model 2, clearly"
    assert len(notes) >= 2 and all(f"“{sides[truth]}”" in note for truth, note in notes.items())
    key, _ = built(tmp_path, attention_checks=0)
    assert asked(key) == key["items"]


def test_the_same_seed_makes_the_same_page_and_other_pictures_another_study(tmp_path):
    key, _ = built(tmp_path)
    text = (tmp_path / "study.html").read_text(encoding="utf-8")
    assert built(tmp_path)[0] == key
    assert (tmp_path / "study.html").read_text(encoding="utf-8") == text
    others = [built(tmp_path, random_state=1)[0], built(tmp_path, alpha=0.6)[0]]
    assert others[1]["items"] == key["items"]  # and yet
    assert len({key["study"], *(other["study"] for other in others)}) == 3


def test_nothing_is_loaded_and_labels_are_text(tmp_path):
    who = explainer(classes=HOSTILE)
    built(tmp_path, who, pairs=HOSTILE[::2], title=HOSTILE[0], introduction="one\n\n<b>two</b>")
    text = text_of(tmp_path / "study.html")
    assert text.count("<script") == text.count("</script>") == 2 and "<b>two" not in text
    assert "<p>one</p>\n<p>&lt;b&gt;two&lt;/b&gt;</p>" in text
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch|XMLHttp|innerHTML", text)
    assert not re.search(r"<[^>]* (on\w+|style|src|href)=", re.sub(r"<script.*?</script>", "", text,
                                                                   flags=re.DOTALL))  # fmt: skip
    (policy,) = re.findall(r'Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy and "script-src 'sha256-" in policy
    shown = {word for item in data_of(tmp_path / "study.html")["items"] for word in item["options"]}
    assert shown == {HOSTILE[0], HOSTILE[2]}


def test_page_and_key_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    for name in ("study.html", "study.key.json"):
        (tmp_path / name).write_text("old")

    def fail(text):
        raise RuntimeError("on purpose")

    monkeypatch.setattr("sklcam.study.building.digest", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        built(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "study.html": "old",
        "study.key.json": "old",
    }


def test_names_of_files_that_are_no_text_are_kept(tmp_path):
    names = ["caf\xe9.png", "a\udcff.png", *map(str, range(10))]
    key, _ = built(tmp_path, names=names)
    written = (tmp_path / "study.key.json").read_text(encoding="utf-8")
    assert json.loads(written) == key and "caf\xe9.png" in written
    assert {item["name"] for item in asked(key).values()} == {*names}


def test_images_are_thumbnails_of_their_own_size(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (2, 90, 60, 3), dtype=np.uint8)
    who = CAMExplainer(SmallNet(in_channels=3), image_size=24, verbose=0).fit()
    _, shown = built(tmp_path, who, X=images, pairs=[0, 1], thumbnail=45, attention_checks=0)
    assert {pixels_of(item["images"][0]).shape for item in shown.values()} == {(45, 30, 3)}
    assert all(torch.equal(before, after) for before, after in zip(IMAGES, IMAGES, strict=True))
