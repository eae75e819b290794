"""Where concepts are in images, as a user gives it: masks or boxes, by concept or by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor

from sklcam._validation import describe
from sklcam.metrics.masks import as_array, as_mask, box_masks, check_boxes


class Annotated:
    """Masks of concepts, made when an image is read.

    Parameters
    ----------
    masks, boxes : mapping of concepts to an entry per image, sequence of mappings, or None
        One of the two: see :meth:`ConceptNamer.fit`.
    n_images : int

    Attributes
    ----------
    concepts : list
        In the order of the mapping; for a sequence of mappings, sorted by their text.
    """

    def __init__(self, masks: Any, boxes: Any, n_images: int):
        if masks is not None and boxes is not None:
            raise ValueError(
                "masks_by_concept and boxes_by_concept are both given, but either says where the "
                "concepts are. Give only one."
            )
        self._is_boxes = boxes is not None
        self._name = "boxes_by_concept" if self._is_boxes else "masks_by_concept"
        self._given = boxes if self._is_boxes else masks
        self._n_images = n_images
        self.concepts = self._find_concepts()

    def _find_concepts(self) -> list[Any]:
        given = self._given
        if given is None:
            return []
        if isinstance(given, Mapping):
            for concept, entries in given.items():
                self._check_length(f"{self._name}[{concept!r}]", entries)
            found = list(given)
        else:
            self._check_length(self._name, given)
            for i, entry in enumerate(given):
                if not isinstance(entry, Mapping):
                    raise ValueError(
                        f"{self._name} must be a mapping of each concept to one entry per image, "
                        "or a mapping for each image; "
                        f"{self._name}[{i}] is {describe(entry)}."
                    )
            found = sorted({concept for entry in given for concept in entry}, key=str)
        if not found:
            raise ValueError(f"{self._name} names no concept.")
        return found

    def _check_length(self, name: str, entries: Any) -> None:
        if not isinstance(entries, Sized) or isinstance(entries, Mapping | str):
            raise ValueError(
                f"{name} must have an entry for each of {self._n_images} images; got "
                f"{describe(entries)}."
            )
        if len(entries) != self._n_images:
            raise ValueError(f"{name} has {len(entries)} entries for {self._n_images} images.")

    def of_image(self, row: int, size: Sequence[int]) -> Tensor:
        """Return the masks of all concepts in an image.

        Parameters
        ----------
        row : int
        size : (height, width)
            The size of the image.

        Returns
        -------
        Tensor of shape (n_concepts, height, width), float32 in [0, 1]
            On the CPU.
        """
        return torch.stack([self._mask(concept, row, size) for concept in self.concepts])

    def _mask(self, concept: Any, row: int, size: Sequence[int]) -> Tensor:
        if isinstance(self._given, Mapping):
            entry, name = self._given[concept][row], f"{self._name}[{concept!r}][{row}]"
        else:
            entry, name = self._given[row].get(concept), f"{self._name}[{row}][{concept!r}]"
        height, width = size
        if entry is None:
            return torch.zeros(height, width)
        try:
            if self._is_boxes:
                corners = check_boxes(as_array(entry))
                return box_masks([corners], (height, width))[0].float()
            mask = as_mask(entry)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if mask.shape != (height, width):
            raise ValueError(
                f"{name} is of shape {tuple(mask.shape)}, but its image has {height} x {width} "
                "pixels. Give a mask of the image's own size."
            )
        return mask.float().cpu()
