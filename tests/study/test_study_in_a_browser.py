"""Raters whose answers are known, on the page in a real browser: by mouse, by keys, in two goes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from browsing import CONTRAST, assert_becomes
from studies import HOSTILE, IMAGES, data_of, explainer

from sklcam import study

ASKED = "document.getElementById('question').dataset.item"
FOCUS = "document.activeElement.id"


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("classes") / "study.html"
    options = {"method": ["gradcam", "saliency"], "n_questions": 4, "attention_checks": 2}
    key = study.build(explainer(), IMAGES, None, path, pairs=["cat", "dog"], random_state=0,
                      **options)  # fmt: skip
    return path, key


@pytest.fixture(scope="module")
def of_models(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "study.html"
    models = {"old": explainer(0), "new": explainer(3)}
    y = models["new"].predict(IMAGES)
    key = study.build(models, IMAGES, y, path, kind="reliability", n_questions=4,
                      attention_checks=2, random_state=0)  # fmt: skip
    assert key["better"] == "new"
    return path, key


def seen_by(page):
    """The question that is asked, and the value of each answer from the left to the right."""
    return page.evaluate(
        f"[{ASKED}, Array.from(document.querySelectorAll('#options input'), x => +x.value)]"
    )


def wait_for_the_next(page, name):
    """Wait until something else is asked; mostly it is by now, and asking for that is quicker."""
    is_past = f"{ASKED} !== name || !document.getElementById('end').hidden"
    if not page.evaluate(f"name => {is_past}", name):
        page.wait_for_function(f"name => {is_past}", arg=name)


def click(page, place):
    page.locator("#options label").nth(place).click()
    page.click("#next")


def press(page, place):
    page.keyboard.press(str(place + 1))
    page.keyboard.press("Enter")


def rate(page, choose, act=click, code=""):
    """Answer all questions by a function of the page, the question and its answers' values."""
    page.fill("#code", code)
    page.click("#begin")
    while page.locator("#question").is_visible():
        name, values = seen_by(page)
        act(page, choose(page, name, values))
        wait_for_the_next(page, name)
    return saved(page)


def saved(page):
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename.endswith(".json")
    with open(download.value.path(), encoding="utf-8") as file:
        return json.load(file)


def test_raters_of_classes_are_analysed_to_what_they_did(visit, of_classes):
    path, key = of_classes
    items = key["items"]
    rng = np.random.default_rng(0)
    chance = {name: int(rng.integers(2)) for name in items}

    orders = {}

    def right(page, name, values):
        orders[name] = values
        return values.index(items[name]["truth"])

    def wrong_of_pixels(page, name, values):
        is_wrong = items[name].get("method") == "saliency"
        return values.index(items[name]["truth"] ^ is_wrong)

    def by_chance(page, name, values):
        return values.index(items[name]["truth"] if items[name].get("check") else chance[name])

    def inattentive(page, name, values):
        return values.index(1 - items[name]["truth"])

    answers = [
        rate(visit(path), right, code="Ann"),
        rate(visit(path), wrong_of_pixels, press, code="Bob & <Co>"),
        rate(visit(path), by_chance, press),
        rate(visit(path), inattentive, press, code="Dee"),
    ]
    assert len(answers[2]["rater"]) == 16  # drawn, as nobody had given one
    raters = ["Ann", "Bob & <Co>", answers[2]["rater"]]
    result = study.analyse(answers, key)
    assert result.raters == raters and result.failed == {"Dee": 2} and not result.incomplete
    hits = {
        method: sum(chance[name] == one["truth"] for name, one in items.items()
                    if one.get("method") == method)
        for method in ("gradcam", "saliency")
    }  # fmt: skip
    assert result.methods["gradcam"].mean == (2 + 2 + hits["gradcam"]) / 6
    assert result.methods["saliency"].mean == (2 + 0 + hits["saliency"]) / 6
    assert all(0 <= seconds < 60 for seconds in result.seconds.values())
    swapped = {one["item"]: one["swapped"] for one in answers[0]["answers"]}
    assert orders == {name: [1, 0] if swapped[name] else [0, 1] for name in items}
    # Each rater has an order and sides of their own.
    assert len({each["seed"] for each in answers}) == 4
    assert len({tuple(each["order"]) for each in answers}) > 1
    assert all(sorted(each["order"]) == sorted(items) for each in answers)
    swaps = [[one["swapped"] for one in each["answers"]] for each in answers]
    assert 0 < sum(map(sum, swaps)) < sum(map(len, swaps))


def test_raters_of_models_are_analysed_to_what_they_saw(visit, of_models):
    path, key = of_models
    uris = {one["id"]: one.get("images") for one in data_of(path)["items"]}

    def as_told(page):
        told = page.inner_text("#check").split("“")[1].split("”")[0]
        return page.locator("#options span").all_inner_texts().index(told)

    def better_is_right(page, name):
        """Whether the picture at the right is the better model's, which the key alone tells."""
        sources = page.evaluate("Array.from(document.querySelectorAll('#shown img'), x => x.src)")
        assert sorted(sources) == sorted(uris[name])
        return key["items"][name]["models"][uris[name].index(sources[1])] == "new"

    def knowing(page, name, values):
        if key["items"][name].get("check"):
            return as_told(page)
        return 4 if better_is_right(page, name) else 1  # clearly there, and slightly here

    seen = []

    def left(page, name, values):
        if key["items"][name].get("check"):
            return as_told(page)
        seen.append(-2 if better_is_right(page, name) else 2)
        return 0

    answers = [rate(visit(path), knowing, press, "Ann"), rate(visit(path), left, code="Bob")]
    alone = study.analyse(answers[:1], key).methods["gradcam"]
    assert alone.n == 4 and alone.shares[2] + alone.shares[1] == 1
    both = study.analyse(answers, key)
    assert both.methods["gradcam"].mean == pytest.approx((4 * alone.mean + sum(seen)) / 8)
    assert study.analyse(answers[1:], key).first == 1


def test_everything_can_be_done_by_keyboard(visit, of_classes):
    path, key = of_classes
    page = visit(path)
    page.keyboard.press("Tab")
    assert_becomes(page, FOCUS, "code")
    page.keyboard.type("Ann")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert_becomes(page, FOCUS, "asked")
    first, values = seen_by(page)
    page.keyboard.press("Enter")  # without an answer nothing happens
    page.keyboard.press("7")  # nor by a key that is no answer
    assert_becomes(page, ASKED, first)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    wait_for_the_next(page, first)
    # Tab goes to the answers, an arrow chooses, and Enter goes on from there, too.
    second, _ = seen_by(page)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert_becomes(page, "document.querySelectorAll('#options input')[1].checked", True)
    page.keyboard.press("Enter")
    wait_for_the_next(page, second)
    # Back to the first, whose answer is still there and is changed.
    for name in (second, first):
        page.focus("#back")
        page.keyboard.press("Enter")
        assert_becomes(page, ASKED, name)
    assert_becomes(page, "document.querySelectorAll('#options input')[1].checked", True)
    page.keyboard.press("1")
    page.focus("#stop")
    page.keyboard.press("Enter")
    assert_becomes(page, FOCUS, "thanks")
    found = saved(page)
    assert [one["item"] for one in found["answers"]] == [first, second]
    assert found["answers"][0]["value"] == values[0] and found["rater"] == "Ann"
    result = study.analyse(found, key, max_failed=2)  # one may have been a check
    assert result.incomplete == {"Ann": len(key["items"]) - 2}


def come_back(page, wanted):
    """Open the page again; a busy browser may have to be asked twice for what it has just kept."""
    for _ in range(5):
        page.reload()
        if page.inner_text("#begin") == wanted:
            return
    assert page.inner_text("#begin") == wanted


def test_answers_outlive_the_page(visit, of_classes):
    path, key = of_classes
    page = visit(path)
    page.click("#begin")
    order = []
    for _ in range(3):
        order.append(seen_by(page)[0])
        press(page, 0)
        wait_for_the_next(page, order[-1])
    fourth = seen_by(page)[0]
    come_back(page, "Continue with question 4")
    page.click("#anew")  # answers that are not saved are lost by a second click alone
    assert page.inner_text("#removed").startswith("3 answers are not saved yet")
    assert page.inner_text("#begin") == "Continue with question 4"
    page.click("#begin")
    assert_becomes(page, ASKED, fourth)
    assert page.inner_text("#place") == f"Question 4 of {len(key['items'])}"
    assert page.evaluate("document.getElementById('progress').value") == 3
    page.click("#stop")
    found = saved(page)
    assert [one["item"] for one in found["answers"]] == order
    # Someone else begins with nothing.
    page.click("#another")
    assert page.inner_text("#begin") == "Begin" and page.input_value("#code") == ""
    page.reload()
    page.click("#begin")
    assert page.evaluate("document.getElementById('progress').value") == 0
    name = seen_by(page)[0]
    press(page, 0)
    wait_for_the_next(page, name)
    come_back(page, "Continue with question 2")
    page.click("#anew")
    page.click("#anew")
    assert page.evaluate("document.getElementById('progress').value") == 0
    page.click("#stop")
    other = saved(page)
    assert other["answers"] == [] and other["rater"] != found["rater"]


def test_where_nothing_can_be_kept_the_page_says_so_and_warns(visit, of_classes, browser):
    page = visit(of_classes[0])
    leaving = """(() => {
      const event = new Event("beforeunload", { cancelable: true });
      window.dispatchEvent(event);
      return event.defaultPrevented;
    })()"""
    page.click("#begin")
    press(page, 0)
    assert_becomes(page, "document.getElementById('place').textContent.slice(0, 10)", "Question 2")
    assert not page.evaluate(leaving)
    page.add_init_script(
        "Storage.prototype.setItem = () => { throw new DOMException('full'); };"
        "Storage.prototype.getItem = () => null;"
    )
    page.reload()
    assert "cannot be kept" in page.inner_text("#kept")
    page.click("#begin")
    assert not page.evaluate(leaving)
    press(page, 0)
    assert_becomes(page, "document.getElementById('place').textContent.slice(0, 10)", "Question 2")
    assert page.evaluate(leaving)
    page.click("#stop")
    saved(page)
    assert not page.evaluate(leaving)


def test_hostile_labels_are_text(visit, tmp_path):
    path = tmp_path / "study.html"
    who = explainer(classes=HOSTILE)
    study.build(who, IMAGES, None, path, pairs=HOSTILE[:2], title=HOSTILE[2], n_questions=1,
                attention_checks=1, random_state=0)  # fmt: skip
    page = visit(path)
    assert page.title().replace("\u2028", " ") == HOSTILE[2].replace("\u2028", " ")
    page.click("#begin")
    assert sorted(page.locator("#options span").all_text_contents()) == sorted(HOSTILE[:2])


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (1280, "light")])
def test_study_is_readable(visit, of_models, scheme, width):
    page = visit(of_models[0], viewport={"width": width, "height": 800}, color_scheme=scheme)

    def check(*selectors):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for selector in selectors:
            assert page.eval_on_selector(selector, CONTRAST) >= 4.5, selector

    check("#start li", ".code", "#begin")
    page.click("#begin")
    check("#place", "#asked", "#options span", "#options kbd", "#back", "#stop", "#keys")
    page.keyboard.press("1")
    check("#options label:has(:checked) span", "#next")
    while page.locator("#check").count() == 0:
        name = seen_by(page)[0]
        press(page, 0)
        wait_for_the_next(page, name)
    check("#check")
    page.click("#stop")
    check("#summary", "#save", "#return")
