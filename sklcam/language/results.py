"""The maps of a caption in an image: one per word, and one for the whole text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sklcam.language.texts import bare


@dataclass(frozen=True, eq=False)
class WordMaps:
    """The maps of a text's words, for one image.

    Iterating yields each word with its map; ``found["dog"]`` is the map of a word.

    Attributes
    ----------
    text : str
        The caption, or the answer.
    words : list of str
        The words of the text, which is split at whitespace.
    maps : ndarray of shape (n_words, height, width)
        The map of each word, in [0, 1] if normalised.
    total : ndarray of shape (height, width)
        The map of the text as a whole, whose score is the sum of its words'.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.language import WordMaps
    >>> found = WordMaps("A dog.", ["A", "dog."], np.eye(2)[:, None], np.ones((1, 2)))
    >>> found["dog"]
    array([[0., 1.]])
    >>> [word for word, _ in found]
    ['A', 'dog.']
    """

    text: str
    words: list[str]
    maps: np.ndarray
    total: np.ndarray

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        return iter(zip(self.words, self.maps, strict=True))

    def only(self, words: Sequence[str]) -> WordMaps:
        """Return the maps of only some of the text's words.

        Parameters
        ----------
        words : sequence of str
            Case and punctuation are ignored, and so are words that the text does not have.

        Returns
        -------
        WordMaps
        """
        asked = {bare(word) for word in words}
        kept = [i for i, word in enumerate(self.words) if bare(word) in asked]
        return replace(self, words=[self.words[i] for i in kept], maps=self.maps[kept])

    def __getitem__(self, word: int | str) -> np.ndarray:
        if isinstance(word, str):
            known = [bare(each) for each in self.words]
            if bare(word) not in known:
                raise KeyError(f"The word {word!r} is not in the text {self.text!r}.")
            word = known.index(bare(word))
        return np.asarray(self.maps[word])
