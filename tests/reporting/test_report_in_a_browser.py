"""The page in a real browser: sorting, filters, keys, colours."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from browsing import CONTRAST, assert_becomes
from pages import HOSTILE, NAMES, QUICK, X, trained

import sklcam
from sklcam.reporting.names import plain_name

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
    page.select_option("#sort", label=plain_name(name))
    assert_becomes(page, ORDER, np.argsort(result[name], kind="stable").tolist())
    page.select_option("#order", "down")
    assert_becomes(page, ORDER, np.argsort(-result[name], kind="stable").tolist())
    assert page.locator(".card .current dt").all_text_contents() == [plain_name(name)] * 60
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
    page.select_option("#right", "wrong")
    assert_becomes(page, ORDER, surest[::-1])
    page.select_option("#sort", label="concentration on few pixels")
    assert page.locator(".card .current dt").all_text_contents() == [
        "concentration on few pixels"
    ] * len(wrong)


def test_browser_filters(visit, written, fitted):
    page = visit(written[0])
    predicted = fitted.predict(X)
    page.select_option("#true", label=HOSTILE[0])
    assert_becomes(page, ORDER, np.flatnonzero(HOSTILE[0] == NAMES).tolist())
    page.select_option("#true", "")
    page.select_option("#right", "wrong")
    assert_becomes(page, ORDER, np.flatnonzero(predicted != NAMES).tolist())
    page.select_option("#right", "right")
    seen = Counter(predicted).most_common(1)[0][0]
    page.select_option("#predicted", label=seen)
    kept = np.flatnonzero((predicted == NAMES) & (predicted == seen))
    assert_becomes(page, ORDER, kept.tolist())
    assert f"{len(kept)} of {len(kept)} images (60 without filters)" in page.inner_text("#status")


def test_browser_slider_changes_the_opacity(visit, written):
    page = visit(written[0])
    opacity, grey = style_of(".map", "opacity"), style_of(".image", "filter")
    assert_becomes(page, opacity, "1")
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
    assert captions == ["The image", f"Why {predicted[wrong]}?", f"Why {NAMES[wrong]}?"]
    sources = page.locator("#detail .map").evaluate_all("all => all.map(each => each.src)")
    truth = page.locator(".card").nth(wrong).locator(".side").get_attribute("data-truth")
    assert len(sources) == 2 and sources[1] == truth and sources[0] != truth
    page.keyboard.press("Escape")
    page.evaluate("i => document.querySelectorAll('.card .picture')[i].click()", right)
    assert_becomes(page, text_of("#detail-name"), f"image {right}")
    captions = page.locator("#detail figcaption").all_text_contents()
    assert captions == ["The image", f"Why {predicted[right]}?"]
    assert page.locator("#detail .map").count() == 1


def test_browser_works_by_keyboard(visit, written):
    page = visit(written[0])
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # past the summary, to the images
    reached = []
    for _ in range(9):
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


HASH = "decodeURIComponent(location.hash)"


def test_browser_keeps_what_is_asked_in_the_address(visit, written, fitted):
    page = visit(written[0])
    page.select_option("#sort", label="concentration on few pixels")
    page.select_option("#order", "down")
    page.select_option("#right", "wrong")
    wanted = page.evaluate(ORDER)
    assert 0 < len(wanted) < 60
    address = page.evaluate("location.href")
    page.locator("#cards .picture").nth(1).press("Enter")
    assert_becomes(page, text_of("#detail-name"), f"image {wanted[1]}")
    assert page.evaluate(HASH).endswith(f"right=wrong&image={wanted[1]}")
    sent = page.evaluate("location.href")
    page.keyboard.press("ArrowRight")
    assert_becomes(page, text_of("#detail-name"), f"image {wanted[2]}")
    page.go_back()  # to where the first of them was opened
    page.wait_for_selector("#detail", state="hidden")
    assert page.evaluate("location.href") == address
    assert_becomes(page, ORDER, wanted)
    # Whoever gets the address sees the same.
    page.goto("about:blank")
    page.goto(sent)
    assert_becomes(page, text_of("#detail-name"), f"image {wanted[1]}")
    page.keyboard.press("Escape")
    assert_becomes(page, "location.href", address)
    assert_becomes(page, ORDER, wanted)
    assert page.input_value("#right") == "wrong" and page.input_value("#order") == "down"


@pytest.mark.parametrize(
    "address", ["#sort=v9.9&true=x&right=no&image=70", "#image=-1", "#a", "#="]
)
def test_browser_bears_any_address(visit, written, address):
    page = visit(written[0])
    page.goto(written[0].as_uri() + address)
    assert_becomes(page, ORDER, list(range(60)))
    assert not page.locator("#detail").is_visible()


def test_browser_filters_by_the_confusion_matrix(visit, written, fitted):
    page = visit(written[0])
    predicted = fitted.predict(X)
    i = int(np.flatnonzero(predicted != NAMES)[0])
    same = (predicted == predicted[i]) & (NAMES[i] == NAMES)
    label = f"Show the {same.sum()} of {NAMES[i]} predicted as {predicted[i]}"
    page.locator(".confusion a").and_(page.get_by_label(label, exact=True)).press("Enter")
    assert_becomes(page, ORDER, np.flatnonzero(same).tolist())
    page.go_back()
    assert_becomes(page, ORDER, list(range(60)))


def test_browser_enlarges_to_the_window(visit, written):
    size = {"width": 1600, "height": 900}
    page = visit(written[0], viewport=size)
    page.locator(".strip a").first.press("Enter")
    page.wait_for_selector("#detail-name")
    frames = page.locator("#detail .stack").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect()).map(r => [r.x, r.right, r.bottom])"
    )
    assert len(frames) >= 2  # the image itself, and its map
    assert frames[0][1] <= frames[1][0] and frames[-1][1] <= 1600 and frames[-1][2] <= 900
    wide = sum(right - x for x, right, _ in frames)
    assert wide > 0.7 * 1600
    page.uncheck("#detail .grey")
    assert_becomes(
        page,
        style_of("#detail .map ~ .image, #detail .image:not(.plain)", "filter"),
        "grayscale(0)",
    )
    page.press("#close", "Enter")
    page.wait_for_selector("#detail", state="hidden")
    assert_becomes(page, HASH, "")


def test_browser_stacks_wide_pictures(visit, fitted, tmp_path):
    wide = np.tile(X[:1], (1, 4, 32))
    path = tmp_path / "page.html"
    sklcam.report(fitted, wide, path=path, metrics="sparsity", verbose=0)
    page = visit(path, viewport={"width": 1600, "height": 900})
    page.locator("#cards .picture").first.press("Enter")
    page.wait_for_selector("#detail-name")
    frames = """all => all.map(each => each.getBoundingClientRect())
        .map(r => [r.y, r.bottom, r.width])"""
    (top, bottom, width), (below, _, _) = page.locator("#detail .stack").evaluate_all(frames)
    assert top < bottom <= below and width > 0.7 * 1600


def test_browser_compares_models(visit, fitted, tmp_path):
    longer = trained(max_epochs=9, random_state=1)
    path = tmp_path / "page.html"
    boxes = [np.array([[1, 1, 4, 6]])] * 60
    found = sklcam.report(
        {"short": fitted, "long": longer}, X, NAMES, path, metrics=QUICK, boxes=boxes, verbose=0
    )
    page = visit(path)
    page.select_option("#sort", value=f"d1.{QUICK.index('sparsity')}")
    gains = found["long"]["sparsity"] - found["short"]["sparsity"]
    order = np.argsort(gains, kind="stable")
    assert_becomes(page, ORDER, order.tolist())
    right = {"short": fitted.predict(X) == NAMES, "long": longer.predict(X) == NAMES}
    page.select_option("#right", label="only long is right")
    kept = right["long"] & ~right["short"]
    assert kept.any() and not kept.all()
    assert_becomes(page, ORDER, order[kept[order]].tolist())
    page.locator("#cards .picture").first.press("Enter")
    page.wait_for_selector("#detail-name")
    captions = page.locator("#detail figcaption").all_text_contents()
    first = int(order[kept[order]][0])
    assert captions == [
        "The image",
        f"short: Why {fitted.predict(X[[first]])[0]}?",
        f"short: Why {NAMES[first]}?",
        f"long: Why {NAMES[first]}?",
    ]
    box = page.evaluate(
        """() => { const [inner, outer] = ["box", "stack"].map(
             name => document.querySelector(`#detail .${name}`).getBoundingClientRect());
           return [(inner.x - outer.x) / outer.width, inner.width / outer.width,
                   (inner.y - outer.y) / outer.height, inner.height / outer.height] }"""
    )
    np.testing.assert_allclose(box, [1 / 8, 3 / 8, 1 / 8, 5 / 8], atol=0.01)


def test_browser_prints_images_without_controls(visit, written):
    page = visit(written[0])
    page.emulate_media(media="print")
    for selector in (".controls", ".more", "details", ".skip"):
        assert page.eval_on_selector(selector, "each => getComputedStyle(each).display") == "none"
    assert page.locator("#cards > .card").count() == 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_browser_is_readable(visit, written, scheme, width):
    page = visit(written[0], viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in (
        "body",
        ".note",
        ".right",
        ".wrong",
        "svg text",
        ".meaning",
        ".labels b",
        ".said",
    ):
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
    page.select_option("#sort", label="concentration on few pixels")
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
