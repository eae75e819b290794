"""What the tests of reports write, and how they read a page."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
from small_networks import digits

X, Y = digits()
HOSTILE = ["<script>alert(1)</script>", '"quo\'te" onload=alert(1)', "a & b \u2028</script>{{ 1 }}"]
NAMES = np.array(HOSTILE)[Y]
QUICK = ("accuracy", "complexity", "consistency", "sparsity")


class Page(HTMLParser):
    """A page's elements, its tables and the texts of its cards, by the standard library."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.rows, self.cards, self.scripts = [], [], [], []
        self._inside = []
        self.feed(path.read_text(encoding="utf-8"))
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self._inside.append(tag)
        if tag == "article":
            self.cards.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")
        if tag in ("meta", "img", "input"):
            self._inside.pop()

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag  # what is opened is closed

    def handle_data(self, text):
        if "article" in self._inside:
            self.cards[-1] += text
        if self._inside and self._inside[-1] in ("td", "th"):
            self.rows[-1][-1] += text
        if "script" in self._inside:
            self.scripts[-1] += text

    def all(self, tag):
        return [attributes for of, attributes in self.elements if of == tag]
