"""How images come to the network: as bytes, by workers or without, pinned where that helps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from small_networks import DropoutNet, SmallNet, digits
from torch.utils.data import Dataset, Subset

from sklcam import ConsistentCAMClassifier, EmbeddingNet
from sklcam.training.net import TrainingImages

GREY, Y = digits(24)
BYTES = np.repeat((GREY * 255).astype(np.uint8)[..., None], 3, axis=3)
FLOATS = BYTES.astype(np.float32) / 255


class PilImages(Dataset):
    """A data set as torchvision's are."""

    targets = Y

    def __len__(self):
        return len(Y)

    def __getitem__(self, i):
        return Image.fromarray(BYTES[i]), Y[i]


class Batches(Callback):
    """Notes what the loaders hand out, before the network makes anything of it."""

    def __init__(self):
        self.seen = []

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        images, labels = batch
        self.seen.append((training, images.dtype, images.device.type, labels.device.type))


def classifier(module=SmallNet, **options):
    defaults = {
        "image_size": 16,
        "target_layer": "5",
        "beta": 1e-3,
        "max_epochs": 1,
        "batch_size": 8,
        "lr": 0.05,
        "verbose": 0,
        "random_state": 0,
        "device": "cpu",
    }
    return ConsistentCAMClassifier(module, **{**defaults, **options})


def in_form(form, folder):
    if form == "paths":
        paths = [folder / f"{i}.png" for i in range(len(BYTES))]
        for path, pixels in zip(paths, BYTES, strict=True):
            Image.fromarray(pixels).save(path)
        return paths
    return {
        "bytes": BYTES,
        "tensor": torch.from_numpy(BYTES).permute(0, 3, 1, 2),
        "pil": [Image.fromarray(pixels) for pixels in BYTES],
        "dataset": PilImages(),
        "floats": FLOATS,
        "float tensor": torch.from_numpy(FLOATS).permute(0, 3, 1, 2).double(),
    }[form]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "form", ["bytes", "tensor", "pil", "paths", "dataset", "floats", "float tensor"]
)
def test_bytes_travel_as_bytes(form, num_workers, tmp_path):
    workers = {"iterator_train__num_workers": num_workers, "iterator_valid__num_workers": 0}
    options = {**workers, "train_split": ValidSplit(3), "callbacks": [("batches", Batches())]}
    clf = classifier(**options).fit(in_form(form, tmp_path), Y)
    dtype = torch.float32 if "float" in form else torch.uint8
    expected = {(training, dtype, "cpu", "cpu") for training in (True, False)}
    assert set(dict(clf.callbacks_)["batches"].seen) == expected


@pytest.mark.parametrize("form", ["bytes", "paths", "floats"])
def test_workers_change_nothing(form, tmp_path):
    X = in_form(form, tmp_path)
    alone, helped = (
        classifier(
            DropoutNet,
            max_epochs=3,
            train_split=ValidSplit(3),
            iterator_train__num_workers=n,
            iterator_valid__num_workers=n,
        ).fit(X, Y)
        for n in (0, 2)
    )
    for ours, theirs in zip(alone.module_.parameters(), helped.module_.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for key in ("train_loss", "train_inconsistency", "valid_loss"):
        assert alone.history[:, key] == helped.history[:, key]


ELSEWHERE = torch.empty(4, 3, 16, 16, dtype=torch.uint8, device="meta")
PINNED = {"iterator_train__pin_memory": True, "iterator_valid__pin_memory": True}
PAGED = {"iterator_train__pin_memory": False, "iterator_valid__pin_memory": False}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("device", "X", "options", "pins"),
    [
        ("cpu", BYTES, {}, False),
        ("cpu", BYTES, PINNED, True),
        ("cuda", BYTES, {}, True),
        ("cuda", PilImages(), {}, True),
        ("cuda:1", BYTES, {}, True),
        ("cuda", BYTES, PAGED, False),
        ("cuda", ELSEWHERE, {}, False),  # only memory of the host can be pinned
        ("cuda", list(ELSEWHERE), {}, False),
        (None, BYTES, {}, False),
    ],
)
def test_batches_for_a_gpu_are_pinned_unless_one_says_otherwise(device, X, options, pins, training):
    X = _Items(X) if isinstance(X, list) else X
    images = TrainingImages(X, np.arange(len(X)) % 2, image_size=16)
    clf = classifier(device=device, **options)
    for data in (images, Subset(images, [0, 1])):
        assert clf.get_iterator(data, training=training).pin_memory is pins
    pairs = EmbeddingNet("resnet18", device=device, image_size=16, verbose=0, **options)
    assert pairs.get_iterator(images, training=training).pin_memory is pins


class _Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i], 0
