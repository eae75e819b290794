"""The page's card for each image, made batch by batch while the images are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklcam.embeddings import EmbeddingCAMExplainer
from sklcam.explain.checks import remark
from sklcam.explain.predictions import NO_ANSWER, Prediction, names_of_outputs, predictions
from sklcam.images.pictures import to_picture
from sklcam.metrics import Measurement, ssim_consistency
from sklcam.plotting.pages import fitting_uri, image_uri, map_uri, mask_uri, thumbnail_size


@dataclass
class Seen:
    """What the page needs from a batch.

    Attributes
    ----------
    cards : list of dict
        For each shown image, the part of its card for one model and method.
    pictures : list of dict
        The images themselves, with their boxes and masks; empty if they were seen before.
    predicted : list of str or None
        The predicted class of every image, as text.
    n_silent, n_broken : int
        How many maps are blank, and how many have values that are not finite.
    strangers : list of float
        The similarity of the view of each map to the map of another image's view.
    shares : list of float
        The share of each image that its boxes or its mask cover.
    embeddings : ndarray of shape (n_shown, embedding_dim) or None
        Normalised, to find the images' neighbours.
    """

    cards: list[dict[str, Any]]
    pictures: list[dict[str, Any]]
    predicted: list[str | None]
    n_silent: int
    n_broken: int
    strangers: list[float]
    shares: list[float]
    embeddings: np.ndarray | None


@dataclass
class Look:
    """Observes the batches of an evaluation, so that no image is read or explained again.

    Only images that the network gets wrong are explained once more, for the true class.

    Parameters
    ----------
    shown : frozenset of int
        The rows of the images that are shown.
    longest : int
        Pixels of a thumbnail's longer side.
    most : int
        The most characters that an enlarged image may have as a data URI.
    knows_truth : bool
        Whether each image has one true class.
    has_pictures : bool, default=True
        Whether to draw the images themselves, too.
    """

    shown: frozenset[int]
    longest: int
    most: int
    knows_truth: bool
    has_pictures: bool = True
    _rows: range | None = field(default=None, init=False)

    def __call__(self, measurement: Measurement) -> Seen:
        is_first = self._rows != measurement.rows  # several methods see a batch in turn
        self._rows = measurement.rows
        places = [i for i, row in enumerate(measurement.rows) if row in self.shown]
        maps = measurement["maps"]
        predicted = [
            Prediction(NO_ANSWER, None, NO_ANSWER) if each.label == NO_ANSWER else each
            for each in predictions(measurement.explainer, measurement.output)
        ]
        explained = _explained(measurement)
        truths = self._truths(measurement, places) if self.knows_truth and places else {}
        cards = [
            {
                "map": self._map(measurement, maps[i], i),
                "truth": truths.get(i),
                "predicted": predicted[i].label,
                "probability": predicted[i].probability,
                "written": predicted[i].text,
                "explained": explained[i] if explained else None,
                "remark": remark(maps[i].float().cpu().numpy()),
            }
            for i in places
        ]
        wants_pictures = self.has_pictures and is_first
        return Seen(
            cards,
            [self._picture(measurement, i) for i in places] if wants_pictures else [],
            [each.label for each in predicted],
            int((maps.flatten(1).amax(dim=1) <= 0).sum()),
            int((~maps.flatten(1).isfinite().all(dim=1)).sum()),
            _strangers(measurement),
            _shares(measurement),
            _embeddings(measurement, places) if is_first else None,
        )

    def _size(self, measurement: Measurement, i: int) -> tuple[int, int]:
        height, width = measurement.batch.sizes[i]
        return thumbnail_size(height, width, self.longest)

    def _map(self, measurement: Measurement, map_: Tensor, i: int) -> str:
        resize = measurement.explainer.adapter.resize
        return map_uri(map_, self._size(measurement, i), resize=resize, transparent=True)

    def _picture(self, measurement: Measurement, i: int) -> dict[str, Any]:
        originals = measurement.batch.originals
        assert originals is not None  # requested when X was opened
        picture = to_picture(originals[i])
        height, width = size = self._size(measurement, i)
        given = measurement.annotations
        boxes: list[list[float]] = []
        mask = None
        if given.boxes is not None:
            sides = torch.tensor([picture.shape[1], picture.shape[0]] * 2)
            boxes = (measurement["boxes"][i].cpu() / sides).clamp(0, 1).tolist()
        if given.masks is not None:
            mask = mask_uri(measurement["masks"][i].cpu().numpy() > 0, size)
        return {
            "image": image_uri(picture, size),
            "large": fitting_uri(picture, max(size), self.most),
            "height": height,
            "width": width,
            "boxes": boxes,
            "mask": mask,
        }

    def _truths(self, measurement: Measurement, places: list[int]) -> dict[int, str]:
        """Return maps of the true class for images whose wrong prediction is explained."""
        explained, explainer = measurement.target.indices, measurement.explainer
        if explained is None:
            return {}
        decided = explainer.decide(measurement.output)
        true = measurement.true_classes
        is_wrong = ((true >= 0) & (decided != true) & (explained[:, 0] == decided)).tolist()
        wrong = [i for i in places if is_wrong[i]]
        if not wrong:
            return {}
        rows = torch.tensor(wrong).to(true.device)
        inputs = measurement.batch.inputs.take(rows)
        (maps,), _, _ = explainer.explain_batch(
            inputs, true[rows], methods=[measurement.plan.method]
        )
        return {i: self._map(measurement, map_, i) for i, map_ in zip(wrong, maps, strict=True)}


def _explained(measurement: Measurement) -> list[str]:
    """Return the explained class of each image; an empty list if no class was chosen."""
    chosen, explainer = measurement.question.indices, measurement.explainer
    classes = names_of_outputs(explainer)
    return [classes[i] for i in chosen[:, 0].tolist()] if chosen is not None and classes else []


def _strangers(measurement: Measurement) -> list[float]:
    """Return how similar the maps of different images are: the similarity by chance."""
    if "view_of_maps" not in measurement.plan.quantities or len(measurement.rows) < 2:
        return []
    similarity = ssim_consistency(
        measurement["view_of_maps"],
        measurement["maps_of_view"].roll(1, dims=0),
        measurement["valid_in_view"],
    )
    return similarity[similarity.isfinite()].tolist()


def _shares(measurement: Measurement) -> list[float]:
    """Return the share of each image that is in its boxes or its mask."""
    if "masks" not in measurement.plan.quantities:
        return []
    return [float((mask > 0).float().mean()) for mask in measurement["masks"]]


def _embeddings(measurement: Measurement, places: list[int]) -> np.ndarray | None:
    if not isinstance(measurement.explainer, EmbeddingCAMExplainer):
        return None
    found = torch.nn.functional.normalize(measurement.output[places].float(), dim=1)
    return found.cpu().numpy()


def merged(seen: Mapping[str, list[Seen]]) -> list[dict[str, Any]]:
    """Return a card for each shown image, with a part for each model and method.

    Parameters
    ----------
    seen : mapping of str to list of Seen
        The batches of each column; those of the first have the images themselves.
    """
    pictures = [each for batch in next(iter(seen.values())) for each in batch.pictures]
    columns = [[card for batch in batches for card in batch.cards] for batches in seen.values()]
    return [
        {**picture, "columns": list(cards)}
        for picture, *cards in zip(pictures, *columns, strict=True)
    ]
