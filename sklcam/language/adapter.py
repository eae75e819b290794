"""The adapter of a network of images and texts, and X with its texts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklcam._validation import describe
from sklcam.explain.opened import Batch, OpenedImages
from sklcam.language.from_transformers import OF_CAPTIONS, OF_QUESTIONS
from sklcam.language.network import LanguageNetwork
from sklcam.language.speech import OwnSpeech, Speech
from sklcam.language.texts import as_texts
from sklcam.networks.adapters import Adapter, ModuleAdapter, Preparation
from sklcam.networks.dry_run import replaced, unwrap
from sklcam.networks.inputs import Inputs
from sklcam.networks.tasks import Evidence


class LanguageAdapter(ModuleAdapter):
    """A network of images and texts, which returns the scores of tokens or of answers.

    Parameters
    ----------
    speech : Speech
    preparation : Preparation
    """

    def __init__(self, speech: Speech, preparation: Preparation):
        super().__init__(speech.network, preparation)
        self.speech = speech
        self._preprocessing = speech.preprocessing()
        self._is_known = self._preprocessing is not None
        if speech.answers is not None:
            self.labels = np.asarray(speech.answers)

    def _speaking(self) -> AbstractContextManager[None]:
        # The network itself is called, so that its hooks run.
        return replaced(self.network, "forward", self.speech.columns)

    def forward(self, inputs: Inputs) -> Tensor:
        if not inputs.others:
            raise ValueError(
                f"{type(self.network).__name__} needs images with texts, but got only images. Take "
                "the inputs of open(X).batches()."
            )
        with self._speaking():
            return super().forward(inputs)

    def look_at_inputs(self, sample: Inputs) -> None:
        if not self._is_known:  # by the processor
            super().look_at_inputs(sample)

    def settle(self, evidence: Evidence) -> None:
        if self.speech.answers is not None:  # tokens are not classes
            super().settle(evidence)

    def probabilities(self, columns: Tensor) -> Tensor:
        return self.speech.probabilities(columns)


def speech_of(network: nn.Module, processor: Any, max_words: int, *, asks: bool) -> Speech:
    """Return how a network is used.

    Parameters
    ----------
    network : nn.Module
    processor : processor or tokenizer of transformers, or None
    max_words : int
    asks : bool
        Whether it answers questions.

    Returns
    -------
    Speech

    Raises
    ------
    ValueError
        If the kind of network is unknown, or needs the other explainer.
    """
    network = unwrap(network)
    if isinstance(network, LanguageNetwork):
        if network.answers and not asks:
            raise ValueError(
                f"{type(network).__name__} answers questions. Explain it with a VQAExplainer."
            )
        return OwnSpeech(network, max_words)
    kinds = {each.__name__ for each in type(network).__mro__}
    known, others = (OF_QUESTIONS, OF_CAPTIONS) if asks else (OF_CAPTIONS, OF_QUESTIONS)
    for name, kind in known.items():
        if name in kinds:
            return kind(network, processor, max_words)
    if kinds & others.keys():
        what, instead = ("captions", "Caption") if asks else ("answers", "VQA")
        raise ValueError(
            f"A {type(network).__name__} writes {what}. Explain it with a {instead}Explainer."
        )
    raise ValueError(
        f"{type(network).__name__} is not a known network of images and texts. Give "
        f"{' or '.join(known)} from transformers, or write a LanguageNetwork around yours, "
        "which takes two methods."
    )


@dataclass(frozen=True, eq=False)
class TextBatch(Batch):
    """A batch of images with their texts.

    Attributes
    ----------
    texts : list of str or None
        The texts that are explained; None if the target is a class.
    """

    texts: list[str] | None = None


class OpenedTexts(OpenedImages):
    """Images, and the texts that go with them; the network writes texts that are not given.

    Parameters
    ----------
    adapter : Adapter
    speech : Speech
    X : images, or mapping of "image" and the kinds of texts to their values
    asks : bool
        Whether there must be a "question".
    given : str
        The name of the texts that are explained: "caption" or "answer".
    **reading
        See :class:`OpenedImages`.
    """

    def __init__(
        self, adapter: Adapter, speech: Speech, X: Any, *, asks: bool, given: str, **reading: Any
    ):
        X = _checked(X, asks, given)
        super().__init__(adapter, X["image"], **reading)
        self._speech, self._language = speech, adapter
        self._written: dict[int, str] = {}
        n_images = len(self)
        self.questions = as_texts(X["question"], "questions", n_images) if asks else None
        self.texts = as_texts(X[given], f"{given}s", n_images) if given in X else None
        if self.texts is not None and speech.answers is not None:
            raise ValueError(
                f"The network chooses one of {len(speech.answers)} answers. Give the one to "
                f"explain as target=, and leave {given!r} out of X."
            )

    @property
    def other_inputs(self) -> Mapping[str, Any]:
        texts = {"question": self.questions, "text": self.texts}
        return {name: np.array(rows) for name, rows in texts.items() if rows is not None}

    def pictures(self) -> OpenedImages:
        """Return only the images."""
        part = object.__new__(OpenedImages)
        vars(part).update(vars(self))
        return part

    def all_texts(self) -> list[str]:
        """Return the texts of all images, once their batches have been read."""
        texts = self._written if self.texts is None else self.texts
        return [texts[row] for row in self._rows]

    def written(self, batch: Batch) -> list[str]:
        """Return the texts that the network writes for the images of a batch."""
        questions = self._some(self.questions, batch)
        with torch.inference_mode(False), torch.no_grad(), self._language.evaluating():
            return self._speech.write(batch.inputs.images, questions)

    def _some(self, texts: list[str] | None, batch: Batch) -> list[str] | None:
        if texts is None:
            return None
        return [texts[self._rows[row]] for row in range(batch.start, batch.stop)]

    def _batch(self, read: Any, start: int) -> TextBatch:
        batch = super()._batch(read, start)
        images, texts = batch.inputs.images, self._some(self.texts, batch)
        if texts is None and self._speech.answers is None:
            texts = self.written(batch)
            for row, text in enumerate(texts, start):
                if not text.split():
                    raise ValueError(
                        f"The network writes nothing for image {row}, so there is no word to "
                        "explain. Give the texts."
                    )
                self._written[self._rows[row]] = text
        others = self._speech.inputs(texts, self._some(self.questions, batch))
        others = {name: each.to(images.device) for name, each in others.items()}
        return TextBatch(**{**vars(batch), "inputs": Inputs(images, others, "image")}, texts=texts)


def _checked(X: Any, asks: bool, given: str) -> Mapping[str, Any]:
    """Return X as a mapping with all that is needed, or raise a ValueError."""
    if not isinstance(X, Mapping):
        if asks:
            raise ValueError(
                'X must be {"image": images, "question": questions}, one question per image; '
                f"got {describe(X)}."
            )
        return {"image": X}
    needed = {"image", "question"} if asks else {"image"}
    unknown = X.keys() - needed - {given}
    if not needed <= X.keys() or unknown:
        raise ValueError(
            f"X must be a dict of {', '.join(sorted(needed))} and, optionally, {given}; it has "
            f"{', '.join(sorted(map(str, X)))}."
        )
    return X
