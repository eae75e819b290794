"""Targets of texts: each word's score, and their sum."""

from __future__ import annotations

from abc import abstractmethod
from copy import copy
from typing import Literal, Self

import torch
from torch import Tensor

from sklcam.cam.targets import Target
from sklcam.language.texts import as_texts, bare
from sklcam.networks.inputs import Inputs, Rows

Score = Literal["log_probability", "logit"]
_PLACE_OF = {"logit": 0, "log_probability": 1}


class TextTarget(Target):
    """A target for texts, by the two scores of each token, (n_images, n_tokens, 2).

    Parameters
    ----------
    score : {"log_probability", "logit"}, default="log_probability"
    """

    def __init__(self, score: Score = "log_probability"):
        self.score = score

    def _of_tokens(self, output: Tensor, counted: Tensor) -> Tensor:
        """Return the score of each token that counts, (n_images, n_tokens), else 0."""
        return output[..., _PLACE_OF[self.score]].masked_fill(~counted, 0)


class Words(TextTarget):
    """Target: a text as a whole, and then each of its words.

    The first score of an image is the sum of the others.

    Parameters
    ----------
    score : {"log_probability", "logit"}, default="log_probability"

    Examples
    --------
    >>> import torch
    >>> from sklcam.language import Words
    >>> from sklcam.networks import Inputs
    >>> logits, log_probabilities = torch.zeros(1, 3), torch.tensor([[-1.0, -2.0, -4.0]])
    >>> output = torch.stack([logits, log_probabilities], dim=2)
    >>> words = torch.tensor([[0, 1, 1]])  # the second has two tokens
    >>> inputs = Inputs(torch.zeros(1, 3, 8, 8), {"words": words}, "image")
    >>> Words().resolve(output, inputs).scores(output, inputs)
    tensor([[-7., -1., -6.]])
    """

    several = ragged = True

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Words:
        resolved = Words(self.score)
        resolved.counts = (words_of(inputs).amax(dim=1) + 2).tolist()
        resolved.k = max(resolved.counts)
        return resolved

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        if self.counts is None:
            return self.resolve(output, inputs).scores(output, inputs, rows)
        words = words_of(inputs)
        words = words if rows is None else words[rows]
        values = self._of_tokens(output, words >= 0)
        sums = values.new_zeros(len(values), self.k - 1)
        sums = sums.scatter_add(1, words.clamp(min=0), values)
        return torch.cat([sums.sum(dim=1, keepdim=True), sums], dim=1)


class OneScore(TextTarget):
    """A target for texts with one score: the sum over the tokens that count."""

    _counted: Tensor | None = None  # (n_images, n_tokens), once it is resolved

    @abstractmethod
    def counted(self, words: Tensor) -> Tensor:
        """Return which tokens count, (n_images, n_tokens), given the word of each."""

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Self:
        resolved = copy(self)
        resolved._counted = self.counted(words_of(inputs))
        return resolved

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        counted = self.counted(words_of(inputs)) if self._counted is None else self._counted
        counted = counted if rows is None else counted[rows]
        return self._of_tokens(output, counted).sum(dim=1, keepdim=True)

    def probability(self, probabilities: Tensor, rows: Rows = None) -> Tensor | None:
        """Return the probability of the target, as the product of its tokens' probabilities."""
        if self._counted is None:
            return None
        counted = self._counted if rows is None else self._counted[rows]
        return probabilities.masked_fill(~counted, 1).prod(dim=1)


class Caption(OneScore):
    """Target: a text as a whole, the sum of its words' scores.

    Parameters
    ----------
    score : {"log_probability", "logit"}, default="log_probability"

    Examples
    --------
    >>> import torch
    >>> from sklcam.language import Caption
    >>> from sklcam.networks import Inputs
    >>> output = torch.tensor([[[2.0, -1.0], [3.0, -2.0]]])
    >>> inputs = Inputs(torch.zeros(1, 3, 8, 8), {"words": torch.tensor([[0, 1]])}, "image")
    >>> Caption().scores(output, inputs), Caption("logit").scores(output, inputs)
    (tensor([[-3.]]), tensor([[5.]]))
    """

    names_classes = True  # so it has a probability

    def counted(self, words: Tensor) -> Tensor:
        return words >= 0


class Word(OneScore):
    """Target: one word of each text, where it first occurs.

    Parameters
    ----------
    words : str or list of str
        One for all images, or one for each. Case and punctuation are ignored.
    score : {"log_probability", "logit"}, default="log_probability"

    Examples
    --------
    >>> import torch
    >>> from sklcam.language import Word
    >>> from sklcam.networks import Inputs
    >>> output = torch.tensor([[[2.0, -1.0], [3.0, -2.0]]])
    >>> inputs = Inputs(torch.zeros(1, 3, 8, 8), {"words": torch.tensor([[0, 1]])}, "image")
    >>> Word("dog").found_in(["A dog."]).scores(output, inputs)
    tensor([[-2.]])
    """

    names_classes = True  # so it has a probability

    def __init__(self, words: str | list[str], score: Score = "log_probability"):
        super().__init__(score)
        self.words = words
        self._places: Tensor | None = None

    def check_images(self, n_images: int) -> None:
        as_texts(self.words, "words", n_images)

    def take(self, rows: slice) -> Word:
        return self if isinstance(self.words, str) else Word(self.words[rows], self.score)

    def found_in(self, texts: list[str]) -> Word:
        """Return the target with the place of each word in its text.

        Parameters
        ----------
        texts : list of str

        Returns
        -------
        Word

        Raises
        ------
        ValueError
            If a text does not contain its word.
        """
        found = Word(as_texts(self.words, "words", len(texts)), self.score)
        places = []
        for word, text in zip(found.words, texts, strict=True):
            known = [bare(each) for each in text.split()]
            if bare(word) not in known:
                raise ValueError(f"The word {word!r} is not in the text {text!r}.")
            places.append(known.index(bare(word)))
        found._places = torch.tensor(places)
        return found

    def counted(self, words: Tensor) -> Tensor:
        if self._places is None:
            raise ValueError("Word needs to know the texts. Use it with a CaptionExplainer.")
        return words == self._places.to(words.device)[:, None]


def words_of(inputs: Inputs | None) -> Tensor:
    """Return the word that each token belongs to; raise a ValueError if the inputs have none."""
    if inputs is None or "words" not in inputs.others:
        raise ValueError(
            "The network gets no words here, but a target for texts needs them. Use it with a "
            "CaptionExplainer, or with a VQAExplainer whose network writes its answers."
        )
    return inputs.others["words"]
