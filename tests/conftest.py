"""What all tests share: one thread, as the networks are tiny, and a browser.

What they claim holds for any number of threads, among which sums are split: SKLCAM_TEST_THREADS=2
runs them with two.
"""

from __future__ import annotations

import os

import pytest
import torch
from browsing import CHROMIUM, FLAGS

torch.set_num_threads(int(os.environ.get("SKLCAM_TEST_THREADS", "1")))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Open a page; at the end nothing may have gone wrong on it, and nothing been asked for."""
    pages, wrong = [], []

    def open_page(path, **options):
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url),
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not wrong
