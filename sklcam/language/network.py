"""``LanguageNetwork``: a network of images and words of your own, such as a CNN with an LSTM."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from difflib import get_close_matches

from torch import Tensor, nn

from sklcam.language.texts import bare


class LanguageNetwork(nn.Module):
    r"""A network of images and words of your own, for captions or for questions.

    A subclass says how words become tokens, in :meth:`tokens`, and how they score, in
    :meth:`forward`. With a ``vocabulary``, only :meth:`forward` is left to write.

    Attributes
    ----------
    vocabulary : sequence of str, default=()
        The word of each token, if each word is one token.
    answers : sequence of str, default=()
        The answer of each output, if the network chooses one of several answers.
    padding : int, default=0
        The token that pads shorter texts, on the right. It stands for no word.
    end : int or None, default=None
        The token that ends a caption; it is needed to predict one.

    Examples
    --------
    A convolution, whose mean starts an LSTM that writes captions:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CaptionExplainer
    >>> from sklcam.language import LanguageNetwork
    >>> class ShowAndTell(LanguageNetwork):
    ...     vocabulary = ["<none>", "<end>", "a", "red", "square"]
    ...     end = 1
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    ...         self.words = nn.Embedding(5, 8)
    ...         self.lstm = nn.LSTM(8, 8, batch_first=True)
    ...         self.head = nn.Linear(8, 5)
    ...     def forward(self, images, tokens):
    ...         start = self.features(images).mean((2, 3))[:, None]
    ...         states, _ = self.lstm(torch.cat([start, self.words(tokens[:, :-1])], dim=1))
    ...         return self.head(states)
    >>> images = torch.rand(2, 3, 16, 16)
    >>> explainer = CaptionExplainer(ShowAndTell(), verbose=0).fit(images)
    >>> found = explainer.explain(images, ["a red square", "a square"])
    >>> found[0].words, found[0].maps.shape
    (['a', 'red', 'square'], (3, 16, 16))
    """

    vocabulary: Sequence[str] = ()
    answers: Sequence[str] = ()
    padding: int = 0
    end: int | None = None

    def tokens(self, words: list[str]) -> list[list[int]]:
        """Return the tokens of each word of a text: their places in the ``vocabulary``.

        A word that is not there as it stands is looked up without case and punctuation.

        Parameters
        ----------
        words : list of str
            The words of the text, which is split at whitespace.

        Returns
        -------
        list of list of int
            The tokens of each word, one or several.

        Raises
        ------
        ValueError
            If a word is not in the ``vocabulary``.
        """
        places = {word: place for place, word in enumerate(self.vocabulary)}
        for word in words:
            places.setdefault(word, places.get(bare(word), -1))
            if places[word] < 0:
                near = get_close_matches(word, self.vocabulary, n=3)
                hint = f"; similar words are {', '.join(map(repr, near))}" if near else ""
                raise ValueError(
                    f"{word!r} is not in the vocabulary of {type(self).__name__}, which has "
                    f"{len(self.vocabulary)} words{hint}. Texts are split at whitespace; write "
                    "tokens(words) to split them in another way."
                )
        return [[places[word]] for word in words]

    def text(self, tokens: list[int]) -> str:
        """Return the text of tokens.

        Parameters
        ----------
        tokens : list of int
            Without the tokens that end or pad a text.

        Returns
        -------
        str
        """
        if not self.vocabulary:
            raise ValueError(
                f"{type(self).__name__} has no vocabulary, so tokens have no text. Give it one, "
                "or write text(tokens)."
            )
        return " ".join(self.vocabulary[token] for token in tokens)

    @abstractmethod
    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return the scores of words, or of answers.

        Parameters
        ----------
        images : Tensor of shape (n_images, channels, height, width)
        tokens : Tensor of shape (n_images, n_tokens), int64
            The captions or questions, padded on the right by ``padding``, which must not change an
            answer.

        Returns
        -------
        Tensor of shape (n_images, n_tokens, n_vocabulary) or (n_images, n_answers)
            For captions, at each position the logits of the token there, computed from the image
            and the tokens *before* that position. For questions, the logits of the answers. If a
            network returns three axes for a question, its answer is the text that it writes after
            the question.
        """
        raise NotImplementedError
