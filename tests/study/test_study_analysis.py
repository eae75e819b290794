"""What answers say: by hand, by enumeration, and of raters who do not count."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from studies import answers_of, item, key_of

from sklcam import study


def test_shares_of_right_answers_by_hand():
    items = {
        "a": item(0, truth=0),
        "b": item(1, truth=1),
        "c": item(0, truth=1, method="saliency"),
        "d": item(1, truth=1, method="saliency"),
    }
    answers = [
        answers_of("Ann", {"a": 0, "b": 1, "c": 1, "d": 0}),  # 2 of 2, 1 of 2
        answers_of("Bob", {"a": 0, "b": 0, "c": 0, "d": 0}),  # 1 of 2, 0 of 2
        answers_of("Cid", {"a": 0, "c": 1}),  # 1 of 1, 1 of 1
    ]
    result = study.analyse(answers, key_of(items))
    gradcam, saliency = result.methods["gradcam"], result.methods["saliency"]
    assert gradcam.mean == 4 / 5 and saliency.mean == 2 / 5
    assert (gradcam.n, gradcam.n_raters, gradcam.n_images) == (5, 3, 2)
    assert gradcam.shares == {0: 1 / 5, 1: 4 / 5} and saliency.shares == {0: 3 / 5, 1: 2 / 5}
    assert result.difference("gradcam", "saliency").mean == pytest.approx(2 / 5)
    assert result.raters == ["Ann", "Bob", "Cid"] and result.incomplete == {"Cid": 2}
    assert result.failed == {} and result.models == {} and result.better is None
    assert result.seconds == {"Ann": 2, "Bob": 2, "Cid": 2}


def test_ratings_are_of_the_better_model_wherever_it_was():
    pair = {"image": 0, "method": "gradcam"}
    items = {
        "a": {**pair, "models": ["old", "new"]},
        "b": {**pair, "models": ["new", "old"], "image": 1},
        "c": {**pair, "models": ["new", "old"], "method": "saliency"},
    }
    answers = [
        answers_of("Ann", {"a": 2, "b": -1, "c": 1}),
        answers_of("Bob", {"a": 1, "b": 0, "c": -2}),
    ]
    result = study.analyse(answers, key_of(items, "reliability", better="new"))
    assert result.better == "new"
    assert result.methods["gradcam"].mean == (2 + 1 + 1 + 0) / 4
    assert result.methods["gradcam"].shares == {-2: 0, -1: 0, 0: 0.25, 1: 0.5, 2: 0.25}
    assert result.methods["saliency"].mean == (-1 + 2) / 2
    other = study.analyse(answers, key_of(items, "reliability", better="old"))
    assert other.methods["gradcam"].mean == -1


def test_models_have_rows_of_their_own():
    items = {"a": item(0, model="one"), "b": item(0, model="two")}
    result = study.analyse([answers_of("Ann", {"a": 0, "b": 1})], key_of(items))
    assert result.methods["gradcam"].mean == 0.5
    assert [result.models[name]["gradcam"].mean for name in ("one", "two")] == [1, 0]


# Intervals


VALUES = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1]])  # three raters, three images
THERE = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1]], dtype=bool)


def enumerated(resample, score):
    """The score in every resample, each as likely as any other."""
    draws = [*itertools.product(range(3), repeat=3)]
    raters = draws if resample in ("both", "raters") else [(0, 1, 2)]
    images = draws if resample in ("both", "images") else [(0, 1, 2)]
    found = []
    for some, others in itertools.product(raters, images):
        values, there = (table[np.ix_(some, others)] for table in (VALUES, THERE))
        if there.any():
            found.append(score(values[there]))
    return np.array(found)


@pytest.mark.parametrize("resample", ["both", "raters", "images"])
def test_intervals_are_those_of_all_resamples(resample):
    key = key_of({name: item(i, truth=1) for i, name in enumerate("abc")})
    answers = [
        answers_of(
            rater, {n: int(v) for n, v, is_in in zip("abc", row, some, strict=True) if is_in}
        )
        for rater, row, some in zip(("Ann", "Bob", "Cid"), VALUES, THERE, strict=True)
    ]
    found = study.analyse(answers, key, resample=resample, level=0.8, n_resamples=20_000)
    exact = enumerated(resample, np.mean)
    for q, end in ((10, "low"), (90, "high")):
        # A quantile of a few values: that of the resamples lies between its neighbours' levels.
        around = np.quantile(exact, [q / 100 - 0.01, q / 100 + 0.01])
        assert around[0] <= found.methods["gradcam"][end] <= around[1]
    assert found.level == 0.8 and found.resample == resample


def test_differences_are_of_the_same_resamples():
    """Raters differ much, and methods by the same for all: the difference has no spread."""
    items = {f"a{i}": item(i, 1) for i in range(4)} | {f"b{i}": item(i, 1, "x") for i in range(4)}
    answers = []
    for n_right in (1, 2, 3):  # of four by one method, and one more by the other
        values = {f"a{i}": int(i <= n_right) for i in range(4)}
        answers.append(answers_of(str(n_right), values | {f"b{i}": int(i < n_right)
                                                           for i in range(4)}))  # fmt: skip
    result = study.analyse(answers, key_of(items), resample="raters")
    row = result.difference("gradcam", "x")
    assert [row.mean, row.low, row.high] == pytest.approx([0.25] * 3)
    assert result.methods["x"].high - result.methods["x"].low > 0.2


def test_of_one_rater_the_interval_over_raters_has_no_width():
    key = key_of({name: item(i, truth=1) for i, name in enumerate("abcd")})
    answers = answers_of("Ann", {"a": 1, "b": 1, "c": 0, "d": 1})
    row = study.analyse(answers, key, resample="raters").methods["gradcam"]
    assert (row.low, row.mean, row.high) == (0.75, 0.75, 0.75)
    assert study.analyse(answers, key).methods["gradcam"].low < 0.75


# Raters


CHECKED = key_of(
    {"a": item(0, truth=1), **{f"c{i}": {"check": True, "truth": 1} for i in range(3)}}
)


def test_raters_who_fail_checks_are_left_out_and_listed():
    passed = {"c0": 1, "c1": 1, "c2": 1}
    answers = [
        answers_of("Ann", {"a": 1, **passed}),
        answers_of("Bob", {"a": 0, **passed, "c1": 0}),
        answers_of("Cid", {"a": 0, **passed, "c1": 0, "c2": 0}),
        answers_of("Dee", {"a": 1, "c0": 1}),  # stopped early, and has failed none
    ]
    result = study.analyse(answers, CHECKED)
    assert result.raters == ["Ann", "Dee"] and result.failed == {"Bob": 1, "Cid": 2}
    assert result.methods["gradcam"].mean == 1 and result.incomplete == {"Dee": 2}
    assert "Bob 1, Cid 2" in str(result) and "Dee 2" in str(result)
    lenient = study.analyse(answers, CHECKED, max_failed=1)
    assert lenient.failed == {"Cid": 2} and lenient.methods["gradcam"].mean == 2 / 3


def test_who_answers_nothing_is_no_rater_and_widens_no_interval():
    items = {name: item(i) for i, name in enumerate("abcd")}
    some = [answers_of("Ann", {"a": 0, "b": 1, "c": 0}), answers_of("Bob", {"a": 0, "d": 1})]
    nobody = answers_of("Cid", {})
    with_nobody = study.analyse([*some, nobody], key_of(items))
    assert with_nobody.raters == ["Ann", "Bob"] and with_nobody.incomplete["Cid"] == 4
    assert with_nobody.methods == study.analyse(some, key_of(items)).methods
    checked = study.analyse([answers_of("Ann", {"a": 1}), answers_of("Bob", {"c0": 1})], CHECKED)
    assert checked.raters == ["Ann"]  # checks alone say nothing of maps


def test_who_chooses_places_is_seen():
    items = {name: item(i) for i, name in enumerate("abcd")}
    answers = [answers_of("Ann", {"a": 0, "b": 0, "c": 1, "d": 1}, swapped="cd")]
    assert study.analyse(answers, key_of(items)).first == 1
    answers = [answers_of("Ann", {"a": 0, "b": 0, "c": 1, "d": 1}, swapped="ac")]
    assert study.analyse(answers, key_of(items)).first == 0.5
    pair = {"image": 0, "method": "gradcam", "models": ["old", "new"]}
    answers = [answers_of("Ann", {"a": -2, "b": 2, "c": 0}, swapped="b")]
    key = key_of(dict.fromkeys("abc", pair), "reliability", better="new")
    assert study.analyse(answers, key).first == 1


def test_agreement_is_krippendorffs_alpha_of_what_was_chosen():
    """Of two raters and three questions by hand: D_o = 2 of 6 pairs, D_e = 3 * 3 * 2 of 30."""
    items = {name: item(i, truth=i % 2) for i, name in enumerate("abc")}
    answers = [
        answers_of("Ann", {"a": 0, "b": 1, "c": 0}),
        answers_of("Bob", {"a": 0, "b": 1, "c": 1}),
    ]
    found = study.analyse(answers, key_of(items)).agreement
    assert found == pytest.approx(1 - (2 / 6) / (18 / 30))


# Files


def test_files_and_dicts_are_alike(tmp_path):
    answers = [answers_of("Änn", {"a": 1}), answers_of("Bob", {"a": 0})]
    files = []
    for i, each in enumerate([*answers, CHECKED]):
        files.append(tmp_path / f"{i}.json")
        files[-1].write_text(json.dumps(each, ensure_ascii=False), encoding="utf-8")
    result = study.analyse(files[:2], str(files[2]))
    assert str(result) == str(study.analyse(answers, CHECKED))
    alone = study.analyse(files[0], CHECKED)
    assert alone.raters == ["Änn"] and alone.methods["gradcam"].mean == 1


def test_files_may_begin_with_the_mark_of_an_editor(tmp_path):
    path = tmp_path / "answers.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(answers_of("Zo\xeb", {"a": 1})).encode())
    result = study.analyse(path, key_of({"a": item(0, truth=1)}))
    assert result.raters == ["Zo\xeb"] and result.methods["gradcam"].mean == 1


def test_a_method_without_answers_is_nan():
    items = {"a": item(0), "b": item(0, method="saliency")}
    result = study.analyse([answers_of("Ann", {"a": 0})], key_of(items))
    assert np.isnan(result.methods["saliency"].mean) and result.methods["saliency"].n == 0
    assert result.methods["gradcam"].mean == 1
