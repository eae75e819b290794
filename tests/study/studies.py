"""What the tests of studies ask, and how they read a page and answer it."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import torch
from PIL import Image
from small_networks import SmallNet

from sklcam import CAMExplainer

HOSTILE = ["<script>alert(1)</script>", '"quo\'te" onload=alert(1)', "a & b \u2028</script>{{ 1 }}"]
IMAGES = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def explainer(seed=0, classes=("cat", "dog", "emu"), **options):
    torch.manual_seed(seed)
    network = SmallNet().eval()
    with torch.no_grad():  # so that it does not call all images the same
        network[-1].bias -= network(IMAGES).mean(dim=0)
    return CAMExplainer(network, classes=list(classes), verbose=0, **options).fit(IMAGES)


def text_of(path):
    """The text of a page without its pictures."""
    return re.sub(r"data:image/[^\"]*", "", path.read_text(encoding="utf-8"))


def data_of(path):
    found = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(found[1])


def pixels_of(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))), dtype=float)


def item(i, truth=0, method="gradcam", image=None, model=""):
    image = i if image is None else image
    return {"image": image, "truth": truth, "method": method, "model": model}


def key_of(items, kind="class", **head):
    methods = [*dict.fromkeys(one["method"] for one in items.values() if "method" in one)]
    head = {"format": "sklcam-study-key", "version": 1, "study": "s", "kind": kind, **head}
    return {**head, "methods": methods, "items": items}


def answers_of(rater, values, study="s", swapped=(), **changes):
    answers = [
        {"item": name, "value": value, "swapped": name in swapped, "seconds": 2.0}
        for name, value in values.items()
    ]
    head = {"format": "sklcam-study-answers", "version": 1, "study": study}
    return {**head, "rater": rater, "answers": answers, **changes}
