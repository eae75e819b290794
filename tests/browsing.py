"""What tests of pages in a real browser share; the fixtures are in conftest.py."""

from __future__ import annotations

import shutil
from contextlib import suppress

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def assert_becomes(page, read, expected):
    """Wait until what is read on the page is as expected: a busy browser is late to do as asked."""
    errors = pytest.importorskip("playwright.sync_api")
    with suppress(errors.TimeoutError):  # what is there instead says more
        page.wait_for_function(
            f"expected => JSON.stringify({read}) === JSON.stringify(expected)", arg=expected
        )
    assert page.evaluate(read) == expected


# WCAG's ratio of an element's colour and the first ground behind it.
CONTRAST = """element => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(element);
  const text = light(element.closest("svg") ? style.fill : style.color);
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") {
    behind = behind.parentElement;
  }
  const ground = light(getComputedStyle(behind).backgroundColor);
  return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
}"""
