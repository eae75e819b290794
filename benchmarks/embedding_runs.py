"""Train embedding networks, and measure how well their explanations find objects.

The contents of a folder of images decide the protocol; see ``embedding_localization.py``.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_grad_cam
import torch
from sklearn.utils import Bunch
from skorch.callbacks import Callback
from torch import Tensor, nn
from train_step import seconds

from sklcam import EmbeddingCAMExplainer, EmbeddingNet
from sklcam.datasets import load_boxes_csv, load_caltech101, load_class_folders, load_cub200
from sklcam.embeddings import TripletCAM
from sklcam.images import ImageDataset
from sklcam.metrics import (
    box_from_map,
    box_masks,
    heatmap_ratio,
    localization_accuracy,
    pointing_game,
    recall_at_k,
)
from sklcam.networks import build_model

UNIFORM, CENTRE = "uniform", "centre"
CHEN, SINGLE, MEAN, CONTRAST = "Chen et al.", "single point", "mean proxy", "contrast"
ALL, TOP = "all channels", "top 50"
CHANNELS = {ALL: None, TOP: 50}
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
AT_A_TIME = 256  # images whose maps are held at a time


# Images


class Images:
    """Images and the objects in them, decoded on first use."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[str] | np.ndarray,
        boxes: Sequence[np.ndarray] | None = None,
        masks: Sequence[Any] | None = None,
    ):
        self.paths, self.labels = list(paths), np.asarray(labels)
        self._boxes, self._masks = boxes, masks
        self._decoded: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def has_masks(self) -> bool:
        return self._masks is not None

    def at(self, size: int) -> np.ndarray:
        """Return the images as uint8 (n_images, size, size, 3)."""
        if size not in self._decoded:
            images = ImageDataset(self.paths, image_size=size)
            self._decoded[size] = np.stack(
                [images[i][0].permute(1, 2, 0).numpy() for i in range(len(self))]
            )
        return self._decoded[size]

    def boxes(self, size: int) -> list[Tensor]:
        """Return each image's boxes in pixels of the images at that size."""
        images = ImageDataset(self.paths, image_size=size)
        scaled = []
        for i, of_image in enumerate(self._boxes or ()):
            height, width = images.original_size(i)
            factors = np.array([size / width, size / height] * 2)
            scaled.append(torch.from_numpy(np.asarray(of_image) * factors))
        return scaled

    def masks(self, size: int, rows: slice) -> Tensor:
        """Return masks of the images at that size: the object's share of each pixel."""
        masks = [torch.from_numpy(np.asarray(mask, dtype=np.float32)) for mask in self._masks[rows]]
        shrink = partial(nn.functional.adaptive_avg_pool2d, output_size=size)
        return torch.cat([shrink(mask[None]) for mask in masks])


@lru_cache
def read(data: str, train_share: float) -> Bunch:
    folder = Path(data)
    if (folder / "boxes.csv").is_file():
        return closed_set(folder, train_share)
    found = sorted(folder.glob("*_boxes.csv"))
    return open_set(folder, found[0]) if found else published(folder)


def closed_set(folder: Path, train_share: float) -> Bunch:
    """Return images of one class each, split with a fixed seed, and the mixed scenes."""
    table = load_boxes_csv(folder / "boxes.csv")
    n_classes = {path: table.data.count(path) for path in set(table.data)}
    alone = [i for i, path in enumerate(table.data) if n_classes[path] == 1]
    mixed = [i for i, path in enumerate(table.data) if n_classes[path] > 1]
    alone = np.random.default_rng(0).permutation(alone).tolist()
    cut = round(train_share * len(alone))

    def part(rows: list[int]) -> Images:
        boxes = [table.boxes[i] for i in rows]
        return Images([table.data[i] for i in rows], table.target[rows], boxes)

    train, explained = part(alone[:cut]), part(alone[cut:])
    # Seen and unseen classes are the same here, and proxies are made of the training images.
    scenes = part(mixed) if mixed else None
    return Bunch(train=train, proxies=train, explained=explained, judged=explained, scenes=scenes)


def open_set(folder: Path, boxes_file: Path) -> Bunch:
    """Return half of the classes for training, test images of the others, and one with boxes."""
    unseen = boxes_file.name.removesuffix("_boxes.csv")
    parts = {name: load_class_folders(folder / name) for name in ("train", "test")}
    classes = [name for name in parts["train"].target_names if name != unseen]

    def part(subset: str, names: Sequence[str]) -> Images:
        chosen = np.isin(parts[subset].target, names)
        return Images(np.array(parts[subset].data)[chosen], parts[subset].target[chosen])

    boxed = [load_class_folders(folder / name, boxes=boxes_file) for name in parts]
    corners = {p: b for of in boxed for p, b in zip(of.data, of.boxes, strict=True) if len(b)}
    explained = Images(list(corners), [unseen] * len(corners), list(corners.values()))
    against = part("test", classes[1::2])
    return Bunch(
        train=part("train", classes[::2]),
        proxies=Images([*against.paths, *explained.paths], [*against.labels, *explained.labels]),
        explained=explained,
        judged=part("test", [*classes[1::2], unseen]),
        scenes=None,
    )


def published(folder: Path) -> Bunch:
    """Return the first half of the classes to train on, and all images of the others."""
    is_cub = any((home / "images.txt").is_file() for home in (folder, folder / "CUB_200_2011"))
    found = (load_cub200 if is_cub else load_caltech101)(folder, subset="all")
    if found.boxes is None:
        raise SystemExit(f"{folder} has no boxes. Caltech 101 needs its folder Annotations.")
    seen = found.target_names[: len(found.target_names) // 2]
    is_seen = np.isin(found.target, seen)

    def part(rows: list[int]) -> Images:
        boxes = [found.boxes[i] for i in rows]
        masks = None if found.masks is None else found.masks[rows]
        return Images([found.data[i] for i in rows], found.target[rows], boxes, masks)

    train = part(np.flatnonzero(is_seen).tolist())
    others = part([i for i in np.flatnonzero(~is_seen).tolist() if len(found.boxes[i])])
    return Bunch(train=train, proxies=others, explained=others, judged=others, scenes=None)


# Networks


@dataclass(frozen=True)
class Run:
    """One network: what it is trained on, and how. Without an initialisation, it is not trained."""

    init: int | None
    data: str  # a folder
    train_share: float
    arch: str
    weights: str | None
    criterion: str
    embedding_dim: int
    image_size: int
    images_seen: int
    lr: float
    batch_size: int
    peer_images: int
    rounds: int
    device: str

    @property
    def key(self) -> str:
        """Name the run, independent of where it is computed and where its images are."""
        known = {**asdict(self), "data": Path(self.data).name}
        for name in ("device", "peer_images", "rounds"):
            del known[name]
        if self.init is None:
            for name in ("criterion", "embedding_dim", "images_seen", "lr"):
                del known[name]
        return json.dumps(known, sort_keys=True)


class ChannelsLast(Callback):
    """Store activations channels last, which makes convolutions twice as fast on CPUs."""

    def on_train_begin(self, net: EmbeddingNet, **kwargs: Any) -> None:
        net.module_.to(memory_format=torch.channels_last)


def explainer_of(run: Run, data: Bunch) -> EmbeddingCAMExplainer:
    """Return an explainer, with proxies, of a network that is trained or as it is."""
    shared = {"batch_size": run.batch_size, "verbose": 0}
    if run.init is None:
        torch.manual_seed(0)
        network = without_head(build_model(run.arch, n_classes=None, weights=run.weights))
        network = network.to(run.device, memory_format=torch.channels_last)
        explainer = EmbeddingCAMExplainer(
            network, image_size=run.image_size, resize="stretch", **shared
        )
    else:
        explainer = EmbeddingCAMExplainer(trained(run, data), **shared)
    return explainer.fit(data.proxies.at(run.image_size), data.proxies.labels)


def trained(run: Run, data: Bunch) -> EmbeddingNet:
    net = EmbeddingNet(
        run.arch,
        weights=run.weights,
        embedding_dim=run.embedding_dim,
        criterion=run.criterion,
        image_size=run.image_size,
        lr=run.lr,
        max_epochs=max(1, round(run.images_seen / len(data.train))),
        batch_size=run.batch_size,
        callbacks=[("channels_last", ChannelsLast())],
        device=run.device,
        random_state=run.init,
        verbose=0,
    )
    return net.fit(data.train.at(run.image_size), data.train.labels)


def without_head(network: nn.Module) -> nn.Module:
    """Let a classifier return the input of its last linear layer."""
    *_, name = (name for name, part in network.named_modules() if isinstance(part, nn.Linear))
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network


# Measures


def measured(run: Run) -> tuple[Run, dict[str, Any]]:
    """Return a run's measures by method and channels: lists with one value per image."""
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lagging statistics are re-estimated
        data, size = read(run.data, run.train_share), run.image_size
        explainer = explainer_of(run, data)
        chen = TripletCAM(random_state=run.init or 0)
        chen.fit(explainer, data.train.at(size), data.train.labels)
        rows = {name: {ALL: judged(always(map), data, size)} for name, map in blind(size).items()}
        for channels, top in CHANNELS.items():
            ways = ways_of(copy.copy(explainer).set_params(top_channels=top), chen)
            for name, explain in ways.items():
                rows.setdefault(name, {})[channels] = judged(explain, data, size)
        return run, {
            "recall": recall_at_k(explainer.transform(data.judged.at(size)), data.judged.labels),
            "rows": rows,
            "pointing": pointing(ways_of(explainer, chen), data.scenes, size),
            "peer": compared_with_peer(explainer, data.explained.at(size)[: run.peer_images], run),
            "seconds": round(time.monotonic() - started),
        }


def blind(size: int) -> dict[str, np.ndarray]:
    """Return maps that are the same for any image: a uniform map, and a map of the centre.

    Photographs have their object in the middle. The map of the centre is a normal distribution
    whose deviation is a quarter of the side.
    """
    bump = np.exp(-8 * ((np.arange(size) + 0.5) / size - 0.5) ** 2)
    maps = {UNIFORM: np.ones((size, size)), CENTRE: np.outer(bump, bump)}
    return {name: of.astype(np.float32) for name, of in maps.items()}


def always(map: np.ndarray) -> Callable[..., Any]:
    return lambda X, y: np.repeat(map[None], len(X), axis=0)


def ways_of(explainer: EmbeddingCAMExplainer, chen: TripletCAM) -> dict[str, Callable[..., Any]]:
    """Return what explains images with known labels. A single point takes no labels."""
    # Shares and thresholds are of the raw map, as scaling would subtract its minimum.
    contrast = copy.copy(explainer).set_params(contrast=True)  # with the same proxies
    return {
        CHEN: lambda X, y: explainer.explain(X, "self", method=chen, normalize=False),
        SINGLE: lambda X, y: explainer.explain(X, "self", normalize=False),
        MEAN: lambda X, y: explainer.explain(X, y, normalize=False),
        CONTRAST: lambda X, y: contrast.explain(X, y, normalize=False),
    }


def judged(explain: Callable[..., Any], data: Bunch, size: int) -> dict[str, list[Any]]:
    """Return the share of maps in boxes and masks, and whether boxes fit, by threshold."""
    explained, boxes = data.explained, data.explained.boxes(size)
    found: dict[str, list[Any]] = {"box": [], "mask": [], "fits": [[] for _ in THRESHOLDS]}
    for start in range(0, len(explained), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        maps = torch.from_numpy(explain(explained.at(size)[part], explained.labels[part]))
        shares = {"box": box_masks(boxes[part], (size, size))}
        if explained.has_masks:
            shares["mask"] = explained.masks(size, part)
        for name, masks in shares.items():
            ratios = heatmap_ratio(maps, masks.float()).tolist()
            found[name] += [round(ratio, 4) for ratio in ratios]
        for fits, threshold in zip(found["fits"], THRESHOLDS, strict=True):
            fits += localization_accuracy(box_from_map(maps, threshold), boxes[part]).int().tolist()
    return found


def pointing(
    ways: dict[str, Callable[..., Any]], scenes: Images | None, size: int
) -> dict[str, list[float]]:
    """Return whether a map is highest in a box of its class, in images with other classes.

    Chance is the share of the image that the boxes cover.
    """
    if scenes is None:
        return {}
    images, masks = scenes.at(size), box_masks(scenes.boxes(size), (size, size))
    found = {"chance": masks.mean(dim=(1, 2)).tolist()}
    for name, explain in ways.items():
        maps = torch.from_numpy(explain(images, scenes.labels))
        found[name] = pointing_game(maps, masks).tolist()
    return found


# The peer


class LastRun(pytorch_grad_cam.GradCAM):
    """The peer, at the last run of a layer that runs several times; its default is the first."""

    def compute_cam_per_layer(self, *args: Any) -> Any:
        kept = self.activations_and_grads
        kept.activations, kept.gradients = kept.activations[-1:], kept.gradients[-1:]
        return super().compute_cam_per_layer(*args)


def compared_with_peer(
    explainer: EmbeddingCAMExplainer, images: np.ndarray, run: Run
) -> dict[str, Any]:
    """Return how far maps are from pytorch-grad-cam's, and its time divided by ours."""
    (inputs,) = explainer.iter_inputs(images)
    network = explainer.adapter.network.eval()
    layer = explainer.target_layers_[0].of(network)
    proxy = torch.from_numpy(explainer.proxies_[0]).to(inputs.device)

    def ours() -> Tensor:
        target = torch.zeros(len(inputs), dtype=torch.long)
        return explainer.explain_inputs(inputs, target)[0]

    def theirs() -> Tensor:
        # The paper's score, in the form that pytorch-grad-cam takes.
        targets = [lambda embedding: embedding @ proxy] * len(inputs)
        with LastRun(model=network, target_layers=[layer]) as cam:
            return torch.from_numpy(cam(input_tensor=inputs, targets=targets))

    return {
        "difference": (ours().cpu() - theirs()).abs().max().item(),
        "times": [
            seconds(theirs, run.device) / seconds(ours, run.device) for _ in range(run.rounds)
        ],
    }
