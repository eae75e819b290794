"""What the tests of displays draw, and how they look at it."""

from __future__ import annotations

import numpy as np
from small_networks import SmallNet, digits

from sklcam import ConsistentCAMClassifier
from sklcam.training import ViewSampler

X, Y = digits()
NAMES = np.array(["zero", "one", "two"])[Y]
VIEWS = ViewSampler(scale=(0.3, 1.0))
AWKWARD = ["$x", "a_b $c$ <d> & \\alpha", "Größe ✓ " + "very long " * 20, "_hidden"]


class SmallEmbedding(SmallNet):
    def __init__(self, embedding_dim, in_channels):
        super().__init__(embedding_dim, in_channels)


def small(**parameters):
    options = {"alpha": 0, "beta": 0, "image_size": 16, "lr": 0.1, "max_epochs": 2}
    options |= {"random_state": 0, "verbose": 0, "augment": None}
    return ConsistentCAMClassifier(SmallNet, **options | parameters)


def titles(axes):
    return [place.get_title() for place in np.ravel(axes)]


def rectangles(place):
    """The boxes drawn, each once: (x1, y1, x2, y2)."""
    found = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in place.patches]
    return [(x, y, x + w, y + h) for x, y, w, h in dict.fromkeys(found)]


def luminance(colors):
    """Relative luminance of sRGB (WCAG), worked from its definition."""
    rgb = np.asarray(colors)[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]
