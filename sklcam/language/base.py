"""The base of the explainers of texts: a network of images and texts, and X with its texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from sklcam._validation import describe
from sklcam.cam import Deconvnet, GuidedBackprop, GuidedGradCAM, Method, Target
from sklcam.explain.base import AnyMethod, ExplainedBatch
from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.explain.opened import Batch
from sklcam.language.adapter import LanguageAdapter, OpenedTexts, TextBatch, speech_of
from sklcam.language.network import LanguageNetwork
from sklcam.language.results import WordMaps
from sklcam.language.targets import Caption, Score, Word, Words
from sklcam.networks.adapters import Preparation
from sklcam.networks.inputs import Inputs
from sklcam.networks.layers import TargetLayer
from sklcam.networks.precision import Precision
from sklcam.networks.tasks import Evidence


class LanguageExplainer(CAMExplainer):
    """The part that :class:`CaptionExplainer` and :class:`VQAExplainer` share."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **CAMExplainer._parameter_constraints,
        "model": [nn.Module],
        "processor": "no_validation",  # type: ignore[dict-item]  # fit says what a network needs
        "word_score": [StrOptions({"auto", "log_probability", "logit"})],
        "max_words": [Interval(Integral, 1, None, closed="left")],
    }
    # Such networks leave no choice here.
    weights = classes = image_input = output_name = None
    task: Any = "auto"
    output: Any = "auto"
    # Whether it takes questions, and its name for the texts that are explained.
    asks: ClassVar[bool] = False
    texts_name: ClassVar[str] = "caption"

    def __init__(
        self,
        model: nn.Module,
        processor: Any = None,
        method: AnyMethod = "gradcam",
        target_layer: str | TargetLayer | Sequence[str | TargetLayer] = "auto",
        *,
        word_score: Literal["auto", "log_probability", "logit"] = "auto",
        max_words: int = 20,
        layer_fusion: Literal["mean", "max"] | None = "mean",
        reshape: Callable[[Tensor], Tensor] | None = None,
        image_size: int | tuple[int, int] | None = None,
        resize: Literal["stretch", "center_crop"] | None = None,
        decode: Literal["exact", "fast"] = "exact",
        mean: Any = "auto",
        std: Any = "auto",
        batch_size: int = 32,
        num_workers: int = 0,
        precision: Precision = "fp32",
        verbose: int = 1,
    ):
        self.model = model
        self.processor = processor
        self.method = method
        self.target_layer = target_layer
        self.word_score = word_score
        self.max_words = max_words
        self.layer_fusion = layer_fusion
        self.reshape = reshape
        self.image_size = image_size
        self.resize = resize
        self.decode = decode
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.precision = precision
        self.verbose = verbose

    # Fitting

    def _preparation(self) -> Preparation:
        given = {field.name: getattr(self, field.name) for field in fields(Preparation)}
        return Preparation(**given)

    def _adapt(self) -> LanguageAdapter:
        self._speech = speech_of(self.model, self.processor, self.max_words, asks=self.asks)
        self._speech.habits = vars(self).get("_habits_", {})
        return LanguageAdapter(self._speech, self._preparation())

    def _sample(self, X: Any, adapter: Any) -> Inputs:
        images = adapter.blank()
        if X is not None:
            pictures = X["image"] if isinstance(X, Mapping) and "image" in X else X
            images = super()._sample(pictures, adapter).images
        with torch.inference_mode(False), torch.no_grad(), adapter.evaluating():
            self._habits_ = self._speech.habits = self._speech.look(images)
        others = {name: each.to(images.device) for name, each in self._speech.sample().items()}
        return Inputs(images, others, "image")

    def _settle(self, evidence: Evidence) -> None:
        if self._speech.answers is not None:
            super()._settle(evidence)
        else:
            self.task_ = None  # tokens are not classes

    def _find_names(self, output: Tensor, y: Any) -> np.ndarray | None:
        return None if self._speech.answers is None else super()._find_names(output, y)

    def _find_layers(self, sample: Inputs) -> list[TargetLayer]:
        if self.target_layer == "auto":
            with self._adapter.evaluating():
                self._adapter.target_layer = self._speech.target_layer(sample.images)
        return super()._find_layers(sample)

    @property
    def writes(self) -> bool:
        """Whether the network writes texts, rather than choosing one of several answers."""
        _ = self.adapter
        return self._speech.answers is None

    # X and targets

    def open(
        self, X: Any, *, originals: bool = False, num_workers: int | None = None
    ) -> OpenedTexts:
        """Check X, and make it ready to be read batch by batch.

        Parameters
        ----------
        X, originals, num_workers
            See :meth:`sklcam.CAMExplainer.open`; X as :meth:`explain` takes it.

        Returns
        -------
        OpenedImages

        Raises
        ------
        ValueError
            If X does not hold images and texts in a form that can be read.
        """
        if isinstance(X, OpenedTexts):
            return X
        return OpenedTexts(
            self.adapter,
            self._speech,
            X,
            asks=self.asks,
            given=self.texts_name,
            originals=originals,
            num_workers=num_workers,
        )

    def iter_streamed(self, X: Any, target: Any = None, **options: Any) -> NoReturn:
        raise ValueError(
            f"X cannot be a stream, as each image has a text of its own; got {describe(X)}. Give a "
            "list or a data set of images."
        )

    def as_method(self, method: AnyMethod | None) -> Method:
        chosen = super().as_method(method)
        is_of_relus = isinstance(chosen, GuidedBackprop | GuidedGradCAM | Deconvnet)
        # In a network of the user's own, ReLUs may be functions.
        is_own = isinstance(self.model, LanguageNetwork)
        if is_of_relus and not is_own and not _has_relu(self.model):
            raise ValueError(
                f"{type(chosen).__name__} changes the backward pass through ReLUs, but a "
                f"{type(self.model).__name__} has no ReLU. Choose another method, such as GradCAM."
            )
        return chosen

    def as_target(self, target: Any, n_images: int) -> Target:
        if not self.writes:
            return super().as_target(target, n_images)
        score: Score = "logit" if self.word_score == "logit" else "log_probability"
        if isinstance(target, str) and target == "words":
            target = Words(score)
        elif target is None or (isinstance(target, str) and target == self.texts_name):
            target = Caption(score)
        elif isinstance(target, str | list | tuple | np.ndarray):
            target = Word(target if isinstance(target, str) else [*target], score)
        return super().as_target(target, n_images)

    def question_of(self, question: Target, batch: Batch) -> Target:
        asked = super().question_of(question, batch)
        texts = getattr(batch, "texts", None)
        return asked.found_in(texts) if isinstance(asked, Word) and texts is not None else asked

    def predict_texts(self, X: Any) -> list[str]:
        """Return the text that the network writes for each image.

        Parameters
        ----------
        X : images, or mapping

        Returns
        -------
        list of str
        """
        opened = self.open(X)
        texts: list[str] = []
        with self._bar(len(opened), "predict") as bar:
            for batch in opened.pictures().batches():
                texts += opened.written(batch)
                bar.update(len(batch))
        return texts

    def log_probabilities_of(self, X: Any) -> list[np.ndarray]:
        """Return the log-probability of each word of X's texts, given the words before it.

        Parameters
        ----------
        X : images, or mapping

        Returns
        -------
        list of ndarray of shape (n_words,), at most 0
        """
        found: list[np.ndarray] = []
        for batch in self.open(X).batches():
            output, target = self.output_of(batch.inputs), Words()
            rows = target.resolve(output, batch.inputs).scores(output, batch.inputs).cpu().numpy()
            assert isinstance(batch, TextBatch) and batch.texts is not None
            counts = [len(text.split()) for text in batch.texts]
            found += [row[1 : 1 + count] for row, count in zip(rows, counts, strict=True)]
        return found

    def explain_words(self, X: Any, target: Any, **options: Any) -> Any:
        """Return what :meth:`explain` returns for a network that writes.

        Parameters
        ----------
        X : images, or mapping
        target : None, str, list of str, Target or callable
        **options
            See :meth:`sklcam.CAMExplainer.explain`.

        Returns
        -------
        list of WordMaps, or what ``CAMExplainer.explain`` returns
        """
        is_words = target == "words" if isinstance(target, str) else isinstance(target, Words)
        if not is_words:
            return super().explain(X, target, **options)
        opened = self.open(X, num_workers=options.pop("num_workers", None))
        found = super().explain(opened, target, **options)
        if isinstance(found, dict):
            return {name: self._by_word(opened, maps) for name, maps in found.items()}
        return self._by_word(opened, found)

    def by_word(self, explained: ExplainedBatch) -> list[WordMaps]:
        """Return the maps of a batch by word, each at the size of its image.

        Parameters
        ----------
        explained : ExplainedBatch
            By one method, for the target :class:`~sklcam.language.Words`.

        Returns
        -------
        list of WordMaps
        """
        batch, counts = explained.batch, explained.target.counts
        assert isinstance(batch, TextBatch) and batch.texts is not None and counts is not None
        found = []
        for maps, count, text, size in zip(
            explained.maps[0], counts, batch.texts, batch.sizes, strict=True
        ):
            own = self.to_frame(maps[:count], size).float().cpu().numpy()
            found.append(WordMaps(text, text.split(), own[1:], own[0]))
        return found

    @staticmethod
    def _by_word(opened: OpenedTexts, maps: Any) -> list[WordMaps]:
        texts = opened.all_texts()
        return [
            WordMaps(text, text.split(), own[1:], own[0])
            for text, own in zip(texts, maps, strict=True)
        ]


def _has_relu(network: nn.Module) -> bool:
    return any(isinstance(part, nn.ReLU) for part in network.modules())
