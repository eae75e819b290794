"""The page in a real browser: sorting, filters, keys, colours."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from browsing import CONTRAST, assert_becomes
from pages import HOSTILE, NAMES, QUICK, X

import sklcam

ORDER = "Array.from(document.querySelectorAll('#cards > .card'), card => +card.dataset.index)"
FOCUSED_CARD = "document.activeElement.closest('.card')?.dataset.index"


def text_of(selector):
    return f"document.querySelector('{selector}').innerText"


def style_of(selector, name):
    return f"getComputedStyle(document.querySelector('{selector}')).{name}"


def test_browser_shows_hostile_labels_as_text(visit, written):
    page = visit(written[0])
    assert_becomes(page, ORDER, list(range(60)))
    shown = page.locator(".card .true b").all_text_contents()
    assert shown == NAMES.tolist()
    assert page.locator("#true option").all_text_contents() == ["all", *sorted(HOSTILE)]
    widths = "Array.from(document.querySelectorAll('#cards img'), image => image.naturalWidth)"
    assert_becomes(page, widths, [8] * 120)


@pytest.mark.parametrize("name", ["consistency", "sparsity", "complexity"])
def test_browser_sorts_as_numpy_does(visit, written, name):
    path, result = written
    page = visit(path)
    page.select_option("#sort", name)
    assert_becomes(page, ORDER, np.argsort(result[name], kind="stable").tolist())
    page.select_option("#order", "down")
    assert_becomes(page, ORDER, np.argsort(-result[name], kind="stable").tolist())
    assert page.locator(".card .current dt").all_text_contents() == [name] * 60
    page.select_option("#sort", "")
    assert_becomes(page, ORDER, list(range(60))[::-1])


def test_browser_sorts_by_how_sure_an_error_was(visit, written, fitted):
    page = visit(written[0])
    chances = fitted.predict_proba(X).max(axis=1)
    is_wrong = fitted.predict(X) != NAMES
    wrong, right = np.flatnonzero(is_wrong), np.flatnonzero(~is_wrong).tolist()
    assert len(wrong) > 3 and right
    surest = wrong[np.argsort(-chances[wrong], kind="stable")].tolist()
    page.select_option("#sort", label="confidence in errors")
    assert page.input_value("#order") == "down"
    assert_becomes(page, ORDER, surest + right)
    page.select_option("#order", "up")
    assert_becomes(page, ORDER, surest[::-1] + right)
    page.select_option("#right", "false")
    assert_becomes(page, ORDER, surest[::-1])
    page.select_option("#sort", "sparsity")
    assert page.locator(".card .current dt").all_text_contents() == ["sparsity"] * len(wrong)


def test_browser_filters(visit, written, fitted):
    page = visit(written[0])
    predicted = fitted.predict(X)
    page.select_option("#true", label=HOSTILE[0])
    assert_becomes(page, ORDER, np.flatnonzero(HOSTILE[0] == NAMES).tolist())
    page.select_option("#true", "")
    page.select_option("#right", "false")
    assert_becomes(page, ORDER, np.flatnonzero(predicted != NAMES).tolist())
    page.select_option("#right", "true")
    seen = Counter(predicted).most_common(1)[0][0]
    page.select_option("#predicted", label=seen)
    kept = np.flatnonzero((predicted == NAMES) & (predicted == seen))
    assert_becomes(page, ORDER, kept.tolist())
    assert f"{len(kept)} of {len(kept)} images (60 without filters)" in page.inner_text("#status")


def test_browser_slider_changes_the_opacity(visit, written):
    page = visit(written[0])
    opacity, grey = style_of(".map", "opacity"), style_of(".image", "filter")
    assert_becomes(page, opacity, "0.5")
    assert_becomes(page, grey, "grayscale(1)")
    page.fill("#opacity", "80")
    assert_becomes(page, opacity, "0.8")
    page.fill("#opacity", "0")
    assert_becomes(page, opacity, "0")
    assert_becomes(page, grey, "grayscale(0)")
    page.focus("#opacity")
    page.keyboard.press("ArrowRight")
    assert_becomes(page, opacity, "0.05")
    assert_becomes(page, grey, "grayscale(1)")
    page.uncheck("#grey")
    assert_becomes(page, grey, "grayscale(0)")


def test_browser_shows_why_an_image_is_wrong(visit, written, fitted):
    page = visit(written[0])
    predicted = fitted.predict(X)
    wrong = int(np.flatnonzero(predicted != NAMES)[0])
    right = int(np.flatnonzero(predicted == NAMES)[0])
    page.evaluate("i => document.querySelectorAll('.card .picture')[i].click()", wrong)
    page.wait_for_selector("#detail-name")
    captions = page.locator("#detail figcaption").all_text_contents()
    assert captions == [f"Why {predicted[wrong]}?", f"Why {NAMES[wrong]}?"]
    sources = page.locator("#detail .map").evaluate_all("all => all.map(each => each.src)")
    truth = page.locator(".card").nth(wrong).get_attribute("data-truth")
    assert sources[1] == truth and sources[0] != truth
    page.keyboard.press("Escape")
    page.evaluate("i => document.querySelectorAll('.card .picture')[i].click()", right)
    page.wait_for_selector("#detail-name")
    assert page.locator("#detail figcaption").count() == 0
    assert page.locator("#detail .map").count() == 1


def test_browser_works_by_keyboard(visit, written):
    page = visit(written[0])
    reached = []
    for _ in range(12):
        before = page.evaluate_handle("document.activeElement")
        page.keyboard.press("Tab")
        page.wait_for_function("before => document.activeElement !== before", arg=before)
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.className")
        )
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid"
    wanted = ["sort", "order", "true", "predicted", "right", "opacity", "grey", "picture"]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
    page.locator(".picture").nth(0).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail-name")
    assert_becomes(page, text_of("#detail-name"), "image 0")
    assert page.inner_text("#place") == "1 of 60"
    page.keyboard.press("ArrowLeft")  # there is none before
    for name in ("image 1", "image 2"):
        page.keyboard.press("ArrowRight")
        assert_becomes(page, text_of("#detail-name"), name)
    assert page.locator("#detail .values div:visible").count() == len(QUICK)
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    # The browser gives the focus back where it was, and the page moves it on just after.
    assert_becomes(page, FOCUSED_CARD, "2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_browser_is_readable(visit, written, scheme, width):
    page = visit(written[0], viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("body", ".note", ".right", ".wrong", "svg text", ".labels b", ".true"):
        assert page.eval_on_selector(selector, CONTRAST) >= 4.5, selector


def test_browser_renders_many_images_a_part_at_a_time(visit, fitted, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = X[rng.integers(0, 60, 500)], NAMES[rng.integers(0, 60, 500)]
    path = tmp_path / "many.html"
    result = sklcam.report(fitted, images, labels, path, metrics="sparsity", verbose=0)
    page = visit(path)
    assert_becomes(page, ORDER, list(range(60)))
    # By its key, as a click can miss: cards that come into view change their height, and it moves.
    page.press("#more", "Enter")
    assert_becomes(page, ORDER, list(range(120)))
    assert_becomes(page, FOCUSED_CARD, "60")
    page.select_option("#sort", "sparsity")
    order = np.argsort(result["sparsity"], kind="stable")
    assert_becomes(page, ORDER, order[:60].tolist())
    page.select_option("#true", label=HOSTILE[1])
    order = order[labels[order] == HOSTILE[1]].tolist()
    assert_becomes(page, ORDER, order[:60])
    assert f"60 of {len(order)} images" in page.inner_text("#status")
    for n_shown in range(120, len(order) + 60, 60):
        page.press("#more", "Enter")
        assert_becomes(page, ORDER, order[:n_shown])
    page.wait_for_selector("#more", state="hidden")
