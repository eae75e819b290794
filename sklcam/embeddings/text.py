"""Prompts as proxies: what in an image speaks for a text, for networks that embed both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from sklcam._validation import describe
from sklcam.embeddings.targets import normalized
from sklcam.networks.adapters import Adapter, AdapterAround
from sklcam.networks.dry_run import replaced
from sklcam.networks.inputs import Inputs


class Text(BaseEstimator):
    r"""Prompts, whose embeddings take the place of proxies in an ``EmbeddingCAMExplainer``.

    .. math:: L_t = y \cdot \frac{p_t}{\lVert p_t \rVert}

    where y is the image's embedding and :math:`p_t` the prompt's. For networks of images and
    texts: networks of ``transformers`` with ``get_image_features`` and ``get_text_features``, such
    as CLIP and SigLIP, and networks of ``open_clip``, with ``encode_image`` and ``encode_text``.

    Parameters
    ----------
    prompts : str or list of str
        The explainer's ``classes_``, unless its ``classes`` says otherwise.
    tokenizer : callable or None, default=None
        The network's own: a tokenizer or processor of ``transformers``, or what
        ``open_clip.get_tokenizer`` returns.
    embeddings : array-like of shape (n_prompts, dim) or None, default=None
        The prompts' embeddings, if already computed; then no tokenizer is needed.

    Notes
    -----
    As for all proxies, the score is the inner product with the unnormalised embedding of the image.
    The cosine, which such networks were trained on, also has a gradient that shortens the
    embedding. With ``contrast=True``, what all prompts share drops out. ``predict`` and
    ``predict_proba`` use the cosines, the latter without the network's temperature. The texts go
    through the network once, in ``fit`` or when ``explain`` gets a ``Text`` as its target. They are
    padded to the longest one; for SigLIP to the full length, as in its training.

    References
    ----------
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
    2021. The score: Bachhawat, "Generalizing GradCAM for Embedding Networks", section 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import EmbeddingCAMExplainer
    >>> from sklcam.embeddings import Text
    >>> class Pair(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.features = nn.ReLU()
    ...         self.words = nn.Embedding(3, 2, _weight=torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    ...     def encode_image(self, images):
    ...         return self.features(images).mean((2, 3))
    ...     def encode_text(self, tokens):
    ...         return self.words(tokens).mean(1)
    >>> def tokenizer(prompts):
    ...     return torch.tensor([[["left", "right"].index(prompt)] for prompt in prompts])
    >>> text = Text(["left", "right"], tokenizer)
    >>> explainer = EmbeddingCAMExplainer(Pair(), text, target_layer="features", verbose=0)
    >>> image = torch.tensor([[[[2.0, 0.0]], [[0.0, 3.0]]]])
    >>> explainer.fit(image).predict(image)
    array(['right'], dtype='<U5')
    >>> explainer.explain(image, target="left")
    array([[[1., 0.]]], dtype=float32)
    """

    def __init__(
        self,
        prompts: str | Sequence[str],
        tokenizer: Callable[..., Any] | None = None,
        embeddings: Any = None,
    ):
        self.prompts = prompts
        self.tokenizer = tokenizer
        self.embeddings = embeddings

    def names(self) -> list[str]:
        """Return the prompts as a list; raise a ValueError if there are none."""
        names = [self.prompts] if isinstance(self.prompts, str) else self.prompts
        is_list = isinstance(names, Sequence | np.ndarray) and len(names)
        if not is_list or not all(isinstance(each, str) for each in names):
            raise ValueError(
                f"prompts of Text must be one string or several; got {describe(self.prompts)}."
            )
        return [*map(str, names)]

    def embed(self, adapter: Adapter) -> np.ndarray:
        """Return the embeddings of the prompts, of length 1.

        Parameters
        ----------
        adapter : Adapter
            The adapter of a network of images and texts.

        Returns
        -------
        ndarray of shape (n_prompts, dim), float32

        Raises
        ------
        ValueError
            If there are no prompts, no tokenizer for them, or an embedding is zero.
        """
        names = self.names()
        if self.embeddings is not None:
            given = self.embeddings
            found = torch.as_tensor(np.asarray(given.cpu() if isinstance(given, Tensor) else given))
        else:
            with torch.inference_mode(False), torch.no_grad(), adapter.evaluating():
                found = _embedded(adapter.network, names, self.tokenizer)
        if found.ndim != 2 or len(found) != len(names):
            raise ValueError(
                f"Text must have one embedding, (n_prompts, dim), for each of {len(names)} "
                f"prompts; got {describe(found)}."
            )
        return normalized(found.detach()).float().cpu().numpy()


class ImageTower(AdapterAround):
    """An adapter that calls a network of images and texts with only images."""

    def __init__(self, inner: Adapter):
        super().__init__(inner)
        if _of_transformers(inner.network) is None and _of_open_clip(inner.network) is None:
            raise ValueError(
                f"Text is for networks of images and texts; a {type(inner.network).__name__} has "
                "neither get_image_features and get_text_features, as networks of transformers do, "
                "nor encode_image and encode_text, as networks of open_clip do."
            )

    def _encoding(self) -> AbstractContextManager[None]:
        """Return a context in which calling the network embeds images."""
        by_name = _of_transformers(self.network)
        by_place: Any = _of_open_clip(self.network)

        def embed(*images: Tensor, **named: Tensor) -> Tensor:
            if by_name is None:
                return _features(by_place(*images, **named))
            return _features(by_name(**named) if named else by_name(pixel_values=images[0]))

        # The network itself is called, so that its hooks run.
        return replaced(self.network, "forward", embed)

    def look_at_inputs(self, sample: Inputs) -> None:
        with self._encoding():
            super().look_at_inputs(sample)

    def forward(self, inputs: Inputs) -> Tensor:
        with self._encoding():
            return super().forward(inputs)


def _of_transformers(network: nn.Module) -> Callable[..., Any] | None:
    found = getattr(network, "get_image_features", None)
    return found if callable(getattr(network, "get_text_features", None)) else None


def _of_open_clip(network: nn.Module) -> Callable[..., Any] | None:
    found = getattr(network, "encode_image", None)
    return found if callable(getattr(network, "encode_text", None)) else None


def _features(output: Any) -> Tensor:
    # Later versions of transformers return more than the embedding, as ``pooler_output``.
    found = getattr(output, "pooler_output", output)
    if not isinstance(found, Tensor):
        raise ValueError(f"The network's embedding must be a Tensor; got {describe(found)}.")
    return found


def _embedded(network: nn.Module, names: list[str], tokenizer: Callable[..., Any] | None) -> Tensor:
    if tokenizer is None:
        raise ValueError(
            "Text needs the network's tokenizer, or embeddings= of its prompts: "
            "Text(prompts, tokenizer)."
        )
    device = next(network.parameters()).device
    if _of_transformers(network) is None:
        encode: Any = network.encode_text
        return _features(encode(tokenizer(names).to(device)))
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # that of a processor
    kind = str(getattr(getattr(network, "config", None), "model_type", ""))
    padding = "max_length" if kind.startswith("siglip") else True
    tokens = tokenizer(names, padding=padding, truncation=True, return_tensors="pt")
    encode = network.get_text_features
    return _features(encode(**{name: each.to(device) for name, each in tokens.items()}))
