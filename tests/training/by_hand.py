"""A step of training written out, for networks that are differentiated as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerated import Plain
from small_networks import Gradients
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.training import Term, consistency_loss

SIZE = (16, 16)
FIXED = {
    "image_size": 16,
    "target_layer": "3",
    "alpha": 0,
    "beta": 0,
    "augment": None,
    "max_epochs": 1,
    "batch_size": 60,
    "lr": 0.05,
    "verbose": 0,
    "random_state": 0,
    "device": "cpu",
    "iterator_train__shuffle": False,
}


@dataclass(frozen=True)
class Area(Term):
    """How much of the image its mask takes, whatever the map."""

    weight: float = 1.0
    name = "area"
    needs = frozenset({"masks"})

    def values(self, explained):
        return explained.masks.mean((1, 2)) + 0 * explained.maps.sum((1, 2))


def classifier(module=Plain, **options):
    return ConsistentCAMClassifier(module, **{**FIXED, **options})


def first_gradient(X, y, fitting=None, **options):
    """Train a step; return the classifier, and the gradient of the step."""
    clf = classifier(callbacks=[("gradients", Gradients())], **options)
    clf.fit(X, y, **(fitting or {}))
    return clf, dict(clf.callbacks_)["gradients"].seen[0]


def untrained(X, y, **options):
    """The network that a classifier begins with, and its images."""
    clf = classifier(**{**options, "max_epochs": 0}).fit(X, y)
    return clf.module_, torch.cat(list(clf.iter_inputs(X)))


def gradient_of(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    parameters = zip(found, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parameters])


METHODS = {
    "gradcam": lambda a, g: torch.einsum("nk,nkuv->nuv", g.mean((2, 3)), a),
    "hirescam": lambda a, g: (g * a).sum(1),
    "layercam": lambda a, g: (g.clamp(min=0) * a).sum(1),
    "squares": lambda a, g: (g * a * a).sum(1),
}


def explained(model, images, classes=None, method="gradcam"):
    """Logits and raw maps, of the predicted classes or of others."""
    kept = []
    handle = model[3].register_forward_hook(lambda _, __, out: kept.append(out))
    logits = model(images)
    handle.remove()
    classes = logits.argmax(1) if classes is None else classes
    score = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, kept[0], create_graph=True)
    return logits, METHODS[method](kept[0], gradient)


def resized(raw):
    return nn.functional.interpolate(raw[:, None], SIZE, mode="bilinear")[:, 0]


def scaled(raw):
    raw = resized(raw)
    low, high = raw.amin((1, 2), True), raw.amax((1, 2), True)
    return (raw - low) / (high - low)


def inconsistency(raw, raw_of_view, warp):
    return consistency_loss(warp(scaled(raw)), scaled(raw_of_view))


class Masks(Term):
    """Keeps the masks that it gets."""

    name = "masks"
    needs = frozenset({"masks"})

    def __init__(self):
        self.seen = []

    def values(self, explained):
        self.seen.append(explained.masks)
        return explained.maps.mean((1, 2))

    def __deepcopy__(self, memo):
        return self
