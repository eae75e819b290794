"""Texts as tokens: the word that each token belongs to, in rows of equal length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import describe

# Takes the words of a text and returns the tokens of each word.
Tokenize = Callable[[list[str]], list[list[int]]]


def as_texts(texts: Any, name: str, n_images: int) -> list[str]:
    """Return texts as a list, one for each image.

    Parameters
    ----------
    texts : str, or sequence of str
        A single text is for all images.
    name : str
        What the texts are, for the message.
    n_images : int

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If the texts are not strings, one is blank, or there is not one for each image.
    """
    rows = [texts] * n_images if isinstance(texts, str) else texts
    if not isinstance(rows, Sequence | np.ndarray) or not all(isinstance(e, str) for e in rows):
        raise ValueError(f"{name} must be a list of str, one for each image; got {describe(rows)}.")
    if len(rows) != n_images:
        raise ValueError(f"There are {len(rows)} {name} for {n_images} images; give one for each.")
    for i, text in enumerate(rows):
        if not text.split():
            raise ValueError(f"{name}[{i}] is {str(text)!r}: there is no word to explain.")
    return [*map(str, rows)]


def bare(word: str) -> str:
    """Return a word without its case and its punctuation, to compare it with another."""
    kept = "".join(letter for letter in word.casefold() if letter.isalnum() or letter in "'-")
    return kept or word.casefold()


def encode(
    texts: Iterable[str], tokenize: Tokenize, padding: int, prompts: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Return texts as rows of tokens, and the word that each token belongs to.

    Parameters
    ----------
    texts : iterable of str
    tokenize : callable
    padding : int
        The token that pads rows, on the right.
    prompts : iterable of str or None, default=None
        A text that comes before each of the texts, and is not explained.

    Returns
    -------
    dict of str to Tensor of shape (n_texts, n_tokens), int64
        "tokens", and "words": the index of each token's word in its text, and -1 for the tokens of
        prompts and padding.
    """
    rows: list[tuple[list[int], list[int]]] = []
    for text, prompt in zip(texts, prompts or _blanks(), strict=False):
        before = [token for word in _tokens_of(prompt, tokenize) for token in word]
        tokens, words = before, [-1] * len(before)
        for place, own in enumerate(_tokens_of(text, tokenize)):
            tokens, words = tokens + own, words + [place] * len(own)
        rows.append((tokens, words))
    longest = max(len(tokens) for tokens, _ in rows)
    return {
        name: torch.tensor([row[part] + [filling] * (longest - len(row[part])) for row in rows])
        for part, (name, filling) in enumerate({"tokens": padding, "words": -1}.items())
    }


def _blanks() -> Iterable[str]:
    while True:
        yield ""


def _tokens_of(text: str, tokenize: Tokenize) -> list[list[int]]:
    words = text.split()
    if not words:
        return []
    found = [list(map(int, tokens)) for tokens in tokenize(words)]
    if len(found) != len(words) or not all(found):
        raise ValueError(
            f"The tokens of {text!r} must be a list for each of its {len(words)} words, with at "
            f"least one token each; got {found}."
        )
    return found
