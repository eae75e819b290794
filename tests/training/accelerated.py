"""What the tests train in several processes; run as a script, it is one of them.

RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 ... python accelerated.py FOLDER
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from skorch.callbacks import Checkpoint, Initializer
from skorch.dataset import ValidSplit
from small_networks import Gradients, digits
from torch import nn

from sklcam.cam import HiResCAM
from sklcam.training import AcceleratedCAMClassifier, Term, ViewSampler, Warp, _gradients

X, Y = digits()  # 60 images
SMALL = X
LARGE = X.repeat(2, axis=1).repeat(2, axis=2)  # of the network's input size
INK = LARGE > 0.5
MASKS = [None if i % 3 == 1 else mask for i, mask in enumerate(INK)]
RANK = int(os.environ.get("RANK", 0))


class Plain(nn.Sequential):
    """Images do not see each other, and nothing is random; in float64."""

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(
            nn.Conv2d(in_channels, 6, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(6, 6, 3, padding=1, stride=2),
            nn.Tanh(),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, num_classes),
        )
        self.double()

    def forward(self, x):
        return super().forward(x.double())


class Noisy(Plain):
    """Batch normalisation and dropout, before the target layer and after it."""

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.insert(1, nn.BatchNorm2d(6))
        self.insert(2, nn.Dropout2d(0.3))
        self.insert(8, nn.Dropout(0.3))
        self.double()


class PartlyUsed(Plain):
    """A parameter that the main process alone uses, and one that none does."""

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(num_classes, in_channels)
        self.main = nn.Parameter(torch.ones(num_classes, dtype=torch.float64))
        self.idle = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x):
        logits = super().forward(x)
        return logits + self.main if RANK == 0 else logits


class Overflowing(nn.Sequential):
    """The third gradient overflows, in the second process alone."""

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(
            nn.Conv2d(in_channels, 4, 3),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, num_classes),
        )
        self.n_backward = 0
        self[-1].bias.register_hook(self.overflow)

    def overflow(self, gradient):
        self.n_backward += 1
        return gradient * torch.inf if RANK == 1 and self.n_backward == 3 else gradient


@dataclass(frozen=True)
class Inside(Term):
    """How dark the map is in the mask; 0 / 0 where there is none."""

    weight: object = 1.0
    name = "inside"
    needs = frozenset({"masks"})

    def values(self, explained):
        inside = (explained.masks * explained.scaled).sum((1, 2))
        return 1 - inside / explained.masks.sum((1, 2))


class OneView(ViewSampler):
    """The same crop and flip for every image."""

    def __call__(self, n_images, **kwargs):
        boxes = torch.tensor([[0.2, 0.1, 0.7, 0.8]]).expand(n_images, 4)
        return Warp.from_crops(boxes, flip=torch.ones(n_images, dtype=torch.bool))


class RecordingViews(ViewSampler):
    """Keeps the views that are drawn."""

    drawn: tuple = ()

    def __call__(self, n_images, **kwargs):
        warp = super().__call__(n_images, **kwargs)
        type(self).drawn += (warp.matrix,)
        return warp


class Seen:
    """As an augmentation: changes nothing, keeps what it gets."""

    def __init__(self):
        self.images = []

    def __call__(self, images):
        pixels = images.double().flatten(1)
        self.images.append((pixels @ torch.arange(pixels.shape[1]).double().cos()).float())
        return images


# Exact in single precision, and so are their sums.
WEIGHTS = np.array([0.0, 0.25, 1.0, 0.5])[np.arange(len(Y)) % 4]
FIXED = {
    "module": Plain,
    "image_size": 16,
    "target_layer": "3",
    "alpha": 0.7,
    "beta": 1e-3,
    "augment": None,
    "views": OneView(),
    "max_epochs": 2,
    "lr": 0.05,
    "verbose": 0,
    "random_state": 0,
    "iterator_train__shuffle": False,
}
# Those that must equal one process on the whole batch.
MODES = {
    "normal": {},
    "low memory": {"memory": "low"},
    "in parts": {"batch_accumulation": 2},
    "low memory, in parts": {"memory": "low", "batch_accumulation": 2},
    "shared target, p = 2": {"view_target": "shared", "p": 2},
    "no terms": {"alpha": 0, "beta": 0},
    "adam": {"optimizer": torch.optim.Adam, "lr": 1e-3},
    "masks": {"terms": [Inside()], "alpha": 0},
    "weights": {"weights": WEIGHTS},
    "weights, in parts": {"weights": WEIGHTS, "batch_accumulation": 2},
    "weights of classes": {"criterion__weight": [1.0, 4.0, 0.5]},
    "lbfgs": {"optimizer": torch.optim.LBFGS, "lr": 0.1, "max_epochs": 1},
}
CONTRASTIVE = {**FIXED, "agreement": "cgc", "phi": HiResCAM()}
RANDOM = {
    **FIXED,
    "module": Noisy,
    "target_layer": "6",
    "augment": "auto",
    "views": None,
    "random_state": None,
    "iterator_train__shuffle": True,
    "batch_size": 10,
}


def gradients_of(make, weights=None, **options):
    """Train; return the classifier and the gradient of each step."""
    images, masks = (LARGE, MASKS) if "terms" in options else (X, None)
    clf = make(**options, callbacks=[("gradients", Gradients())])
    clf.fit(images, Y, weights, masks=masks)
    return clf, torch.stack(dict(clf.callbacks_)["gradients"].seen)


def ends(clf):
    """What the processes must agree on."""
    rows = [
        {
            key: row[key]
            for key in row
            if key.endswith(("loss", "ce", "inconsistency", "norm", "inside"))
        }
        for row in clf.history
    ]
    state = {**clf.module_.state_dict(), **clf.gradient_sizes_.averages}
    return {"state": state, "history": rows}


def count_buckets(finish):
    """Gradients of these small networks are sent in several buckets, and those are counted."""
    _gradients._BUCKET_BYTES = 1000

    def counted(self):
        BEFORE_THE_END.append(self.n_sent)
        finish(self)

    return counted


BEFORE_THE_END: list[int] = []  # how many buckets had left by the end of the backward pass


def train_all(folder):
    found = {"sent": {}}
    _gradients.AveragedGradients.finish = count_buckets(_gradients.AveragedGradients.finish)
    for name, options in MODES.items():
        BEFORE_THE_END.clear()
        clf, gradients = gradients_of(
            AcceleratedCAMClassifier, **{**FIXED, "batch_size": 10, **options}
        )
        found[name] = {**ends(clf), "gradients": gradients}
        found["sent"][name] = [*BEFORE_THE_END]

    seen = Seen()
    clf = AcceleratedCAMClassifier(**{**RANDOM, "augment": seen, "views": RecordingViews()})
    found["random"] = {
        **ends(clf.fit(X, Y)),
        "images": torch.cat(seen.images),
        "views": torch.cat(RecordingViews.drawn),
        "global": clf.random_states_["global"],
    }
    for name, options in {
        "low and random": {"memory": "low"},
        "uneven": {"batch_size": 11},
        "balanced": {"alpha": "auto", "beta": "auto"},
        "set by a callback": {"callbacks": [Initializer("*", fn=_redraw)]},
    }.items():
        found[name] = ends(AcceleratedCAMClassifier(**{**RANDOM, **options}).fit(X, Y))

    split = {**RANDOM, "train_split": ValidSplit(0.25)}
    checkpoint = Checkpoint(dirname=folder / "best", monitor="valid_loss_best", load_best=True)
    clf = AcceleratedCAMClassifier(**{**split, "callbacks": [checkpoint]}).fit(X, Y)
    found["validated"] = ends(clf)

    clf = AcceleratedCAMClassifier(**{**FIXED, "module": PartlyUsed, "batch_size": 10}).fit(X, Y)
    found["partly used"] = {**ends(clf), "idle": clf.module_.idle.grad is None}

    options = {**FIXED, "module": Overflowing, "target_layer": "1", "precision": "fp16"}
    clf = AcceleratedCAMClassifier(**{**options, "batch_size": 10}).fit(X, Y)
    found["overflowing"] = {**ends(clf), "scale": clf.scaler_.get_scale()}

    clf = AcceleratedCAMClassifier(**{**FIXED, "batch_size": 10, "verbose": 1}).fit(X, Y)
    if clf.accelerator_.is_main_process:  # what follows training is each process's own affair
        found["alone"] = torch.as_tensor(clf.explain(X)), clf.score(X, Y)
        clf.save_params(f_params=folder / "alone.pt")
    clf.save_params(f_params=folder / f"by {RANK}.pt")

    options = {**CONTRASTIVE, "batch_size": 10}
    clf, gradients = gradients_of(AcceleratedCAMClassifier, **options)
    found["contrastive"] = {**ends(clf), "gradients": gradients}

    try:
        AcceleratedCAMClassifier(**RANDOM).fit(X, (Y + RANK) % 3)
    except ValueError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"{RANK}.pt")


def _redraw(parameter):
    nn.init.normal_(parameter, std=0.3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
