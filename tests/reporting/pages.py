"""What the tests of reports write, and how they read a page."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
from small_networks import SmallNet, digits

from sklcam import ConsistentCAMClassifier

X, Y = digits()
HOSTILE = ["<script>alert(1)</script>", '"quo\'te" onload=alert(1)', "a & b \u2028</script>{{ 1 }}"]
NAMES = np.array(HOSTILE)[Y]
QUICK = ("accuracy", "complexity", "consistency", "sparsity")


def trained(**options):
    """A classifier of the images, with these options instead of its own."""
    usual = {"alpha": 0, "beta": 0, "image_size": 16, "lr": 0.1, "max_epochs": 3}
    usual |= {"random_state": 0, "verbose": 0, "augment": None}
    return ConsistentCAMClassifier(SmallNet, **usual | options).fit(X, NAMES)


class Page(HTMLParser):
    """A page's elements, its tables and the texts of its cards, by the standard library."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.rows, self.cards, self.scripts = [], [], [], []
        self.cards_images, self.told = [], []
        self._inside = []
        self.feed(path.read_text(encoding="utf-8"))
        data = json.loads(self.scripts[0])
        self.metrics, self.data, self.near = data["metrics"], data["images"], data["near"]
        self.large = json.loads(self.scripts[1])

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self._inside.append(tag)
        if tag == "article":
            self.cards.append("")
        if tag == "img" and "article" in self._inside:
            self.cards_images.append(attributes)
        if tag == "p":
            self.told.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")
        if tag in ("meta", "img", "input", "br"):
            self._inside.pop()

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag  # what is opened is closed

    def handle_data(self, text):
        if "article" in self._inside:
            self.cards[-1] += text
        if "td" in self._inside or "th" in self._inside:
            self.rows[-1][-1] += text
        if "p" in self._inside:
            self.told[-1] += text
        if "script" in self._inside:
            self.scripts[-1] += text

    def value(self, i, metric, column=0):
        """What the script knows of an image."""
        return self.data[i]["values"][column][self.metrics.index(metric)]

    def row(self, name):
        """The cells of a metric's row, without what it means."""
        (cells,) = (cells for cells in self.rows if cells[0].split(" ")[0] == name)
        return cells

    def stacks(self):
        """The image and the map of each card, in order."""
        images = [each["src"] for each in self.cards_images if "image" in each["class"]]
        maps = [each["src"] for each in self.cards_images if each["class"] == "map"]
        return images, maps

    def all(self, tag):
        return [attributes for of, attributes in self.elements if of == tag]
