"""``CaptionExplainer`` and ``VQAExplainer``: where a network looked for its words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from sklearn.metrics import accuracy_score

from sklcam.language.base import LanguageExplainer
from sklcam.language.texts import as_texts, bare


class CaptionExplainer(LanguageExplainer):
    r"""Explain a network that writes captions: where it looked for each word.

    .. math:: L_j = \sum_{t \in j} \log p(w_t \mid x, w_1, \ldots, w_{t-1})

    is the score of word j: the log-probability of its tokens, given the image and the words before
    it. The score of the caption is the sum of its words' scores. From there on, every method works
    as it does on classifiers. The network is never changed.

    Parameters
    ----------
    model : nn.Module
        ``BlipForConditionalGeneration`` or ``VisionEncoderDecoderModel`` of transformers, or a
        :class:`~sklcam.language.LanguageNetwork` of your own, such as a CNN with an LSTM.
    processor : processor or tokenizer of transformers, or None
        The network's own; its image processor says how images are prepared. None is for a network
        of your own.
    method : str, Method or class of methods, default="gradcam"
        Any of :func:`sklcam.cam.available`.
    target_layer : str, TargetLayer or list of them, default="auto"
        See :class:`~sklcam.CAMExplainer`; "auto" is a layer of the image encoder.
    word_score : {"auto", "log_probability", "logit"}, default="auto"
        What the score of a word is made of. "log_probability", which is "auto", compares the word
        with all others in its place; "logit" does not.
    max_words : int, default=20
        The largest number of tokens in a caption that the network writes.
    layer_fusion, reshape, image_size, resize, decode, mean, std, batch_size, num_workers
        See :class:`~sklcam.CAMExplainer`.
    precision, verbose
        See :class:`~sklcam.CAMExplainer`.

    Attributes
    ----------
    target_layers_ : list of TargetLayer
    preprocessing_ : Preprocessing
        How images are prepared, and who says so.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2019, section 8.1: the log-probability of a caption, and of
    single words in it.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CaptionExplainer
    >>> from sklcam.language import LanguageNetwork
    >>> class FromColors(LanguageNetwork):  # a word is likely where its colour is
    ...     vocabulary, end = ["<none>", "<end>", "red", "green"], 1
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.features = nn.ReLU()
    ...     def forward(self, images, tokens):
    ...         red, green = self.features(images).mean((2, 3)).unbind(1)
    ...         logits = torch.stack([0 * red, 0 * red, red, green], dim=1)
    ...         return logits[:, None].expand(-1, tokens.shape[1], -1)
    >>> explainer = CaptionExplainer(FromColors(), target_layer="features", verbose=0)
    >>> image = torch.tensor([[[[9.0, 0.0]], [[0.0, 8.0]]]])
    >>> (found,) = explainer.fit(image).explain(image, ["red green"])
    >>> found["red"], found["green"]
    (array([[1., 0.]], dtype=float32), array([[0., 1.]], dtype=float32))
    """

    asks: ClassVar[bool] = False
    texts_name: ClassVar[str] = "caption"

    def predict(self, X: Any) -> list[str]:
        """Return the network's caption for each image, with the likeliest token at each step.

        Parameters
        ----------
        X : images

        Returns
        -------
        list of str
        """
        return self.predict_texts(X)

    def explain(  # type: ignore[override]  # a caption is a part of X
        self, X: Any, captions: Any = None, target: Any = "words", **options: Any
    ) -> Any:
        """Return where the network looked for the words of captions.

        Parameters
        ----------
        X : images
            In any form of :class:`~sklcam.CAMExplainer`; or a dict of "image" and "caption", as
            ``evaluate`` takes it.
        captions : str, list of str or None, default=None
            One for each image, or one for all; None takes the captions that the network writes.
        target : {"words", "caption"}, list of str, Target or callable, default="words"
            "words" gives a map per word, and one for their sum; "caption" gives only the latter. A
            list has one word per image, which must be in the image's caption.
        **options
            ``method``, ``normalize``, ``frame``, ``out``, ``dtype`` and ``num_workers`` of
            :meth:`sklcam.CAMExplainer.explain`.

        Returns
        -------
        list of WordMaps, or ndarray of shape (n_images, height, width), float32
            An array if there is one map per image. For several methods, a dict of these, by name.

        Raises
        ------
        ValueError
            If there is not one caption or one word per image, or a word is unknown or not in its
            caption.
        """
        return self.explain_words(_with_captions(X, captions), target, **options)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the mean log-probability of captions.

        Parameters
        ----------
        X : images
        y : list of str
            The captions.
        sample_weight : array-like of shape (n_images,) or None, default=None

        Returns
        -------
        float, at most 0
        """
        found = self.log_probabilities(X, y)
        return float(np.average([each.sum() for each in found], weights=sample_weight))

    def log_probabilities(self, X: Any, captions: Any = None) -> list[np.ndarray]:
        """Return the log-probability of each word of captions, given the words before it.

        Parameters
        ----------
        X : images
        captions : str, list of str or None, default=None
            None takes the captions that the network writes.

        Returns
        -------
        list of ndarray of shape (n_words,), at most 0
        """
        return self.log_probabilities_of(_with_captions(X, captions))


def _with_captions(X: Any, captions: Any) -> Any:
    """Return X as a dict if captions are given, which X must not hold itself."""
    if captions is None:
        return X
    if isinstance(X, Mapping):
        raise ValueError("X is a dict, which holds its own captions. Leave captions= out.")
    return {"image": X, "caption": captions}


class VQAExplainer(LanguageExplainer):
    r"""Explain a network that answers questions about images: where it looked for its answer.

    For a network that chooses one of several answers, the score of an answer is its logit
    :math:`y_c`, as in the paper. For one that writes its answers, it is the log-probability of the
    answer given the image and the question, as for the captions of a
    :class:`~sklcam.CaptionExplainer`.

    Parameters
    ----------
    model : nn.Module
        ``ViltForQuestionAnswering`` or ``BlipForQuestionAnswering`` of transformers, or a
        :class:`~sklcam.language.LanguageNetwork` of your own.
    processor, method, target_layer, word_score, max_words
        See :class:`~sklcam.CaptionExplainer`. ``word_score`` is for networks that write.
    layer_fusion, reshape, image_size, resize, decode, mean, std, batch_size, num_workers
        See :class:`~sklcam.CAMExplainer`.
    precision, verbose
        See :class:`~sklcam.CAMExplainer`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_answers,) or None
        The answers; None for a network that writes them.
    target_layers_ : list of TargetLayer
    preprocessing_ : Preprocessing
        How images are prepared, and who says so.

    Notes
    -----
    ViLT shuffles the patches of an image in each pass, after their positions have been added to
    them. Here they keep their order, and the output is the same.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2019, section 8.2.

    Examples
    --------
    The question chooses the channel that the network looks at:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import VQAExplainer
    >>> from sklcam.language import LanguageNetwork
    >>> class IsThere(LanguageNetwork):
    ...     vocabulary, answers = ["<none>", "red", "green"], ["no", "yes"]
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.features = nn.ReLU()
    ...     def forward(self, images, tokens):
    ...         seen = self.features(images).mean((2, 3)).gather(1, tokens[:, :1] - 1)
    ...         return torch.cat([1 - seen, seen], dim=1)
    >>> explainer = VQAExplainer(IsThere(), target_layer="features", verbose=0)
    >>> images = torch.tensor([[[[9.0, 0.0]], [[0.0, 8.0]]]]).expand(2, -1, -1, -1)
    >>> X = {"image": images, "question": ["red", "green"]}
    >>> explainer.fit(X).predict(X)
    array(['yes', 'yes'], dtype='<U3')
    >>> explainer.explain(X, "yes")
    array([[[1., 0.]],
    <BLANKLINE>
           [[0., 1.]]], dtype=float32)
    """

    asks: ClassVar[bool] = True
    texts_name: ClassVar[str] = "answer"

    def predict(self, X: Any) -> Any:
        """Return the answers to questions.

        Parameters
        ----------
        X : dict of "image" and "question"

        Returns
        -------
        ndarray of shape (n_images,), or list of str for a network that writes
        """
        return self.predict_texts(X) if self.writes else super().predict(X)

    def explain(self, X: Any, target: Any = None, **options: Any) -> Any:
        """Return where the network looked for answers.

        Parameters
        ----------
        X : dict of "image" and "question"
            Images in any form of :class:`~sklcam.CAMExplainer`, and a question for each.
        target : None, answers, Target or callable, default=None
            None is the network's own answer. Give one answer for all images, or one for each. For a
            network that chooses, answers are from its ``classes_``. For one that writes, they may
            be any text, and "words" gives a map for each word of its own answer, or of X's
            "answer".
        **options
            See :meth:`CaptionExplainer.explain`.

        Returns
        -------
        ndarray of shape (n_images, height, width), float32, or list of WordMaps
            As :meth:`CaptionExplainer.explain` does.

        Raises
        ------
        ValueError
            If there is not one question or one answer per image, or an answer is unknown.
        """
        if not self.writes:
            return super().explain(X, target, **options)
        is_answers = isinstance(target, list | tuple | np.ndarray) or (
            isinstance(target, str) and target not in ("words", "answer")
        )
        if is_answers and isinstance(X, Mapping):
            if "answer" in X:
                raise ValueError('X holds its own answers. Leave target= out, or give "words".')
            X, target = {**X, "answer": target}, "answer"
        return self.explain_words(X, target, **options)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the share of answers that are right.

        Parameters
        ----------
        X : dict of "image" and "question"
        y : list of str
            The right answers. For a network that writes, case and punctuation are ignored.
        sample_weight : array-like of shape (n_images,) or None, default=None

        Returns
        -------
        float in [0, 1]
        """
        if not self.writes:
            return super().score(X, y, sample_weight)
        found = self.predict(X)
        expected = as_texts(y, "answers", len(found))
        pairs = [[" ".join(map(bare, text.split())) for text in each] for each in (expected, found)]
        return float(accuracy_score(*pairs, sample_weight=sample_weight))
