"""Speech: how the different kinds of networks of images and texts are used.

One object per kind of network says how words become tokens, what the network is called with, how it
scores a text, and what it writes by itself. The explainers use this object, whatever the kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sklcam.language.network import LanguageNetwork
from sklcam.language.texts import encode
from sklcam.networks.dry_run import replaced
from sklcam.networks.layers import TargetLayer
from sklcam.networks.precision import at_least_float32
from sklcam.networks.preprocessing import Preprocessing


class Speech(ABC):
    """A network of images and texts, and how it is used.

    Parameters
    ----------
    network : nn.Module
    max_words : int
        The most tokens that a predicted text may have.

    Attributes
    ----------
    padding : int
        The token that pads texts.
    answers : sequence of str, or None
        The answer of each output, if the network chooses one of several answers.
    habits : dict of str to object
        What only trying the network can show: see :meth:`look`.
    """

    padding: int = 0
    answers: Sequence[str] | None = None

    def __init__(self, network: nn.Module, max_words: int):
        self.network = network
        self.max_words = max_words
        self.habits: dict[str, Any] = {}

    @abstractmethod
    def tokens(self, words: list[str]) -> list[list[int]]:
        """Return the tokens of each word of a text."""

    @abstractmethod
    def columns(self, image: Tensor, **others: Tensor) -> Tensor:
        """Return the scores to explain: (n_images, n_tokens, 2), or logits (n_images, n_answers).

        Takes what :meth:`inputs` returns, and stands in for the network's ``forward``.
        """

    @abstractmethod
    def write(self, images: Tensor, questions: list[str] | None = None) -> list[str]:
        """Return the texts that the network writes for images."""

    def inputs(self, texts: list[str] | None, questions: list[str] | None) -> dict[str, Tensor]:
        """Return what the network gets in addition to its images.

        Parameters
        ----------
        texts : list of str or None
            The texts to explain; None if the target is a class.
        questions : list of str or None

        Returns
        -------
        dict of str to Tensor of shape (n_images, n)
        """
        assert texts is not None
        return encode(texts, self.tokens, self.padding, questions)

    def sample(self) -> dict[str, Tensor]:
        """Return some inputs for one image, with tokens that need not make sense."""
        some = torch.full((1, 3), 1 if self.padding == 0 else 0)
        return {"tokens": some, "words": torch.tensor([[0, 1, 2]])}

    def look(self, image: Tensor) -> dict[str, Any]:
        """Return the ``habits`` that an image (1, channels, height, width) shows."""
        return {}

    def probabilities(self, columns: Tensor) -> Tensor:
        """Return the probabilities of tokens, (n_images, n_tokens), or of answers."""
        if self.answers is not None:
            return at_least_float32(columns).softmax(dim=1)
        return columns[..., 1].exp()

    def preprocessing(self) -> Preprocessing | None:
        """Return how images are prepared; None leaves this to the network's source."""
        return None

    def target_layer(self, images: Tensor) -> TargetLayer | None:
        """Return the layer that is explained by default; None if it must be searched for."""
        return None


def scores_of_tokens(logits: Tensor, tokens: Tensor, words: Tensor) -> Tensor:
    """Return the logit and the log-probability of each token; 0 for tokens not to be explained.

    Parameters
    ----------
    logits : Tensor of shape (n_images, n_tokens, n_vocabulary)
        At each position, the logits of the token there.
    tokens : Tensor of shape (n_images, n_tokens), int64
    words : Tensor of the same shape, int64
        The word that each token belongs to; -1 for a token that is not to be explained.

    Returns
    -------
    Tensor of shape (n_images, n_tokens, 2), float32 or better
    """
    logits = at_least_float32(logits)
    own = logits.gather(2, tokens[..., None])[..., 0]
    pair = torch.stack([own, own - logits.logsumexp(dim=2)], dim=2)
    return pair.masked_fill(words[..., None] < 0, 0)


class OwnSpeech(Speech):
    """A :class:`LanguageNetwork`, and how it is used.

    Parameters
    ----------
    network : LanguageNetwork
    max_words : int
    """

    network: LanguageNetwork

    def __init__(self, network: LanguageNetwork, max_words: int):
        super().__init__(network, max_words)
        self.padding = network.padding
        self.answers = [*network.answers] or None
        self._forward = network.forward  # before anything replaces it

    def tokens(self, words: list[str]) -> list[list[int]]:
        return self.network.tokens(words)

    def inputs(self, texts: list[str] | None, questions: list[str] | None) -> dict[str, Tensor]:
        if texts is not None:
            return super().inputs(texts, questions)
        assert questions is not None
        found = encode(questions, self.tokens, self.padding)
        self._check_padding(found["words"] >= 0)
        return {"question": found["tokens"]}

    def _check_padding(self, is_word: Tensor) -> None:
        if self.habits.get("sees_padding") and not is_word.all():
            raise ValueError(
                f"{type(self.network).__name__} answers differently if a question is padded with "
                f"{self.padding} on the right, as the shorter questions of a batch are. Make "
                "forward ignore the padding, such as by pack_padded_sequence before an LSTM, or "
                "set batch_size=1."
            )

    def sample(self) -> dict[str, Tensor]:
        found = super().sample()
        return {"question": found["tokens"]} if self.answers is not None else found

    def look(self, image: Tensor) -> dict[str, Any]:
        if self.answers is None:
            self._check_order(image)
            return {}
        return {"sees_padding": self._sees_padding(image)}

    def _sees_padding(self, image: Tensor) -> bool:
        """Return whether padding a question changes the answer."""
        tokens = torch.full((1, 3), 1 if self.padding == 0 else 0, device=image.device)
        tokens[:, 2] = self.padding
        short, filled = (self._columns(image, {"question": t}) for t in (tokens[:, :2], tokens))
        return not _alike(short, filled)

    def _check_order(self, image: Tensor) -> None:
        """Raise a ValueError if the network looks at the token that it should predict."""
        # Each row but the first changes a different token, and the logits up to there must stay.
        tokens = torch.full((4, 3), 1 if self.padding == 0 else 0, device=image.device)
        tokens[1:].fill_diagonal_(self.padding)
        logits = self._forward(image.expand(4, -1, -1, -1), tokens)
        if not all(_alike(logits[0, :n], logits[n, :n]) for n in (1, 2, 3)):
            raise ValueError(
                f"{type(self.network).__name__} looks at tokens that it should predict: its logits "
                "at a position change with the token there, or with a later one. Compute the "
                "logits of the token at a position from the image and the tokens before it, such "
                "as from a start followed by tokens[:, :-1]."
            )

    def columns(self, image: Tensor, **others: Tensor) -> Tensor:
        with _differentiable_rnns(self.network):
            return self._columns(image, others)

    def _columns(self, image: Tensor, others: dict[str, Tensor]) -> Tensor:
        if self.answers is not None:
            logits = self._forward(image, others["question"])
            _check_logits(logits, (len(image), len(self.answers)), "(n_images, n_answers)")
            return logits
        tokens, words = others["tokens"], others["words"]
        logits = self._forward(image, tokens)
        _check_logits(logits, (len(tokens), tokens.shape[1]), "(n_images, n_tokens, n_vocabulary)")
        return scores_of_tokens(logits, tokens, words)

    def write(self, images: Tensor, questions: list[str] | None = None) -> list[str]:
        end = self.network.end
        if end is None:
            raise ValueError(
                f"{type(self.network).__name__} does not say which token ends a text. Set its end, "
                "or give the texts to explain."
            )
        asked = [""] * len(images) if questions is None else questions
        rows = [[t for word in self._tokens_of(question) for t in word] for question in asked]
        written: list[list[int]] = [[] for _ in rows]
        is_open = [True] * len(rows)
        for _ in range(self.max_words):
            following = self._following([a + b for a, b in zip(rows, written, strict=True)], images)
            for i, token in enumerate(following):
                is_open[i] &= token != end
                if is_open[i]:
                    written[i].append(token)
            if not any(is_open):
                break
        return [self.network.text(tokens) for tokens in written]

    def _tokens_of(self, text: str) -> list[list[int]]:
        return self.tokens(text.split()) if text.split() else []

    def _following(self, rows: list[list[int]], images: Tensor) -> list[int]:
        """Return the likeliest token after each row."""
        longest = max(map(len, rows)) + 1
        filled = [row + [self.padding] * (longest - len(row)) for row in rows]
        tokens = torch.tensor(filled).to(images.device)
        logits = self._forward(images, tokens)
        places = torch.tensor([len(row) for row in rows]).to(images.device)
        at_end = logits.gather(1, places[:, None, None].expand(-1, 1, logits.shape[2]))[:, 0]
        return at_end.argmax(dim=1).tolist()


@contextmanager
def _differentiable_rnns(network: nn.Module) -> Iterator[None]:
    """Allow a backward pass through recurrent layers, which cuDNN refuses in evaluation mode.

    Without dropout, they compute the same in training mode.
    """
    with ExitStack() as stack:
        for part in network.modules():
            if isinstance(part, nn.RNNBase):
                stack.enter_context(replaced(part, "dropout", 0.0))
                stack.enter_context(replaced(part, "training", True))
        yield


def _check_logits(logits: Any, shape: tuple[int, int], axes: str) -> None:
    n_axes = axes.count(",") + 1
    if not isinstance(logits, Tensor) or logits.ndim != n_axes or logits.shape[:2] != shape:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"forward of a LanguageNetwork must return logits {axes}, here {shape[0]} x {shape[1]}"
            f"{' x n_vocabulary' if n_axes == 3 else ''}; it returned {found}."
        )


def _alike(one: Tensor, another: Tensor) -> bool:
    one, another = at_least_float32(one), at_least_float32(another)
    return torch.allclose(one, another, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
