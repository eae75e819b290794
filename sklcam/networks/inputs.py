"""Inputs: the arguments of a network.

Most networks take only images. Some take more, by name. :class:`Inputs` holds either, so that no
other code has to ask which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from sklcam._validation import describe
from sklcam.images.dataset import items_of
from sklcam.images.framed import FramedDataset, FramedImage
from sklcam.images.rows import take_rows
from sklcam.networks.dry_run import first_output, version_of

Rows = Tensor | slice | None

# Whether a network that has been called writes into its inputs, keyed by its training mode.
_writes: MutableMapping[nn.Module, dict[bool, bool]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch for a network: its images, and the other inputs of each image.

    Parameters
    ----------
    images : Tensor of shape (n_images, channels, height, width)
        Volumes are of shape (n_images, channels, depth, height, width).
    others : mapping of str to Tensor, default={}
        Further inputs by name, one row per image.
    name : str or None, default=None
        The images' own name, if the network takes its inputs by name.
    n_answers : int or None, default=None
        The number of rows that the network returns; None is one per image.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks import Inputs
    >>> patients = {"image": torch.zeros(2, 3, 8, 8), "age": torch.tensor([30, 40])}
    >>> inputs = Inputs.of(patients, "image")
    >>> inputs.take(torch.tensor([1])).arguments["age"]
    tensor([40])
    """

    images: Tensor
    others: Mapping[str, Tensor] = field(default_factory=dict)
    name: str | None = None
    n_answers: int | None = None

    @classmethod
    def of(cls, value: Tensor | Mapping[str, Tensor] | Inputs, name: str | None = None) -> Inputs:
        """Wrap the arguments of a network.

        Parameters
        ----------
        value : Tensor, mapping of str to Tensor, or Inputs
        name : str or None, default=None
            Which entry of a mapping is the image; see ``name_of_images``.

        Returns
        -------
        Inputs

        Raises
        ------
        ValueError
            If there are no images, or none with that name.
        """
        if isinstance(value, Inputs):
            return value
        others: dict[str, Tensor] = {}
        images: object = value
        if isinstance(value, Mapping):
            name = name_of_images(value, name)
            others = {key: entry for key, entry in value.items() if key != name}
            images = value[name]
        if not isinstance(images, Tensor) or images.ndim not in (4, 5) or 0 in images.shape:
            raise ValueError(
                "A network's images must be a Tensor of shape (n_images, channels, height, width), "
                "or (n_images, channels, depth, height, width) for volumes, without an empty axis; "
                f"got {describe(images)}."
            )
        return cls(images, others, name if isinstance(value, Mapping) else None)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the images; for volumes, depth, height and width."""
        return tuple(self.images.shape[2:])

    @property
    def arguments(self) -> Tensor | dict[str, Tensor]:
        """The images, or a dict of all inputs if the network takes them by name."""
        return self.images if self.name is None else {**self.others, self.name: self.images}

    def call(
        self,
        network: nn.Module,
        infer: Callable[[Any], Any] | None = None,
        *,
        output_name: str | int | None = None,
    ) -> Any:
        """Call a network with the inputs, by name if they have names. The inputs do not change.

        Parameters
        ----------
        network : nn.Module
        infer : callable or None, default=None
            The function that calls the network; it takes ``arguments``. None calls it directly.
        output_name : str, int or None, default=None
            Which output counts, if there are several. None takes the first of a tuple, or the
            "logits" of a mapping.

        Returns
        -------
        Tensor, or whatever the network returns
            The output that counts.

        Raises
        ------
        ValueError
            If the output does not have one row per image, the network writes into its inputs only
            in some passes, or it takes images with another number of channels.
        """
        known = _writes.setdefault(network, {})
        # A layer may work in place in training only, as dropout does.
        writes = known.get(network.training)
        given = self if writes is False else self._copied()
        versions, arguments = given._versions(), given.arguments
        try:
            if infer is not None:
                output = infer(arguments)
            else:
                output = network(**arguments) if isinstance(arguments, dict) else network(arguments)
        except TypeError as error:
            if self.name is None or "argument" not in str(error):
                raise
            raise ValueError(
                f"{type(network).__name__} does not take inputs with the names "
                f"{sorted([*self.others, self.name])}: {error}. Name them as its forward does."
            ) from error
        except RuntimeError as error:
            if "channels" not in str(error) and "unbatched" not in str(error):
                raise
            advice = advice_on_axes(network, self.images)
            if advice:
                raise ValueError(
                    f"{type(network).__name__} does not take images of "
                    f"{tuple(self.images.shape[1:])}: {advice}"
                ) from error
            raise ValueError(
                f"{type(network).__name__} does not take images of {tuple(self.images.shape[1:])}: "
                f"{error}. Tensors must have their channels first: X.permute(0, 3, 1, 2). Files "
                "and PIL images are read as RGB; make grey arrays RGB with "
                "np.repeat(X[..., np.newaxis], 3, axis=-1)."
            ) from error
        wrote = given._versions() != versions
        if writes is None:
            # Values are compared once, as a write through `.data` does not change the version.
            known[network.training] = wrote or not given._equals(self)
        elif wrote and not writes:
            raise ValueError(
                f"{type(network).__name__} has written into its input, which it did not do in an "
                "earlier pass, so the images have changed. Begin its forward with a copy, as in "
                "x = x.clone()."
            )
        output = first_output(output, output_name)
        n_rows = len(self) if self.n_answers is None else self.n_answers
        if isinstance(output, Tensor) and output.ndim and len(output) != n_rows:
            raise ValueError(
                f"{type(network).__name__} returned {len(output)} rows, of shape "
                f"{tuple(output.shape)}, for {n_rows} images. It must return one row per image."
            )
        return output

    def _copied(self) -> Inputs:
        copies = {key: value.clone() for key, value in self.others.items()}
        return Inputs(self.images.clone(), copies, self.name)

    def _versions(self) -> list[int | None]:
        return [version_of(tensor) for tensor in (self.images, *self.others.values())]

    def _equals(self, other: Inputs) -> bool:
        pairs = [(self.images, other.images)]
        pairs += [(value, other.others[key]) for key, value in self.others.items()]
        return all(one.is_meta or torch.equal(one, another) for one, another in pairs)

    def with_images(self, images: Tensor, rows: Rows = None) -> Inputs:
        """Return the same inputs with other images.

        Parameters
        ----------
        images : Tensor of shape (m, channels, height, width)
        rows : Tensor of shape (m,), slice or None, default=None
            The row whose other inputs go with each image; None if the order is the same.

        Returns
        -------
        Inputs
        """
        if not self.others or rows is None:
            return Inputs(images, self.others, self.name)
        others = {key: value[rows] for key, value in self.others.items()}
        return Inputs(images, others, self.name)

    def take(self, rows: Tensor | slice) -> Inputs:
        """Return some of the rows."""
        return self.with_images(self.images[rows], rows)

    def recordable(self) -> Inputs:
        """Return inputs that a graph can hold, with copies of those made in inference mode."""
        others = {key: recordable(value) for key, value in self.others.items()}
        return Inputs(recordable(self.images), others, self.name)


def name_of_images(inputs: Mapping[str, Any], name: str | None = None) -> str:
    """Return the name of the entry of a network's inputs that holds the images.

    Parameters
    ----------
    inputs : mapping of str to array-like or Tensor
        For example the output of a Hugging Face processor.
    name : str or None, default=None
        The name that the user gives. None is "pixel_values", as Hugging Face calls it, or the only
        entry with four or five axes.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no entry with that name, or none is named and several or none could be images.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks.inputs import name_of_images
    >>> name_of_images({"age": torch.zeros(2), "picture": torch.zeros(2, 3, 8, 8)})
    'picture'
    """
    if name is None and "pixel_values" in inputs:
        return "pixel_values"
    # Only entries with a shape are considered; lists are not converted.
    images = [key for key, value in inputs.items() if len(getattr(value, "shape", ())) in (4, 5)]
    name = images[0] if name is None and len(images) == 1 else name
    if name is None or name not in inputs:
        raise ValueError(
            f"The inputs are a dict of {sorted(map(str, inputs))}; image_input must name the one "
            f"that holds the images, and is {name!r}. If the network takes only images, pass "
            "X[name]."
        )
    return name


def stem_of(network: nn.Module) -> nn.Conv2d | nn.Conv3d | None:
    """Return the first convolution, which takes the images, whatever its name."""
    kinds = (nn.Conv2d, nn.Conv3d)
    return next((each for each in network.modules() if isinstance(each, kinds)), None)


def advice_on_axes(network: nn.Module, images: Tensor) -> str:
    """Say what to do if a network for volumes gets pictures, or the other way round.

    Parameters
    ----------
    network : nn.Module
    images : Tensor of shape (n_images, channels, ...)

    Returns
    -------
    str
        Empty if images and network match.
    """
    stem = stem_of(network)
    if isinstance(stem, nn.Conv3d) and images.ndim == 4:
        return (
            "its first convolution is a Conv3d, which takes volumes, as float tensors of shape "
            f"(n, C, D, H, W), here of C = {stem.in_channels} channel(s). If X holds volumes "
            "without an axis of channels, pass X[:, None]; if it is one volume, pass X[None]."
        )
    if isinstance(stem, nn.Conv2d) and images.ndim == 5:
        return (
            "its first convolution is a Conv2d, which takes pictures, (n, C, H, W), and X holds "
            "volumes, (n, C, D, H, W). Explain their slices, such as X[:, :, i]."
        )
    return ""


def recordable(tensor: Tensor) -> Tensor:
    """Return a tensor that a graph can hold: a copy of one that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


class NetworkTensors(FramedDataset):
    """Float tensors, or a data set of them, that go to a network unchanged.

    Parameters
    ----------
    X : Tensor or data set
    are_volumes : bool, default=False
        Whether the network is for volumes. If so, an item of shape (1, a, b, c) is one volume.
    """

    def __init__(self, X: Any, *, are_volumes: bool = False):
        self.items = items_of(X)
        if self.items is not None:
            self.items.are_volumes = are_volumes
        self._X = X if self.items is None else self.items
        self.array = X if isinstance(X, Tensor) else None
        if len(X) == 0:
            raise ValueError("X is empty: at least one image is needed.")
        first = self._X[0]
        if first.ndim not in (3, 4):
            raise ValueError(
                "A network's images must be of shape (channels, height, width), or (channels, "
                "depth, height, width) for volumes; the first one of X has shape "
                f"{tuple(first.shape)}. If X is one image, pass X[None]."
            )
        if first.is_meta:
            raise ValueError(
                "X is on the meta device, where tensors have no values. Pass tensors with values."
            )
        self.n_channels = len(first)
        self.image_size = self.uniform_size = tuple(first.shape[1:])
        # A tensor is checked as a whole, once. The items of a data set are checked when read.
        if isinstance(X, Tensor) and not bool(torch.isfinite(X).all()):
            raise ValueError("X has values that are NaN or infinite. Replace them.")

    def __len__(self) -> int:
        return len(self._X)

    def read_batch(self, indices: Sequence[int], *, originals: bool = True) -> list[FramedImage]:
        """Return images, whose own size is also the network's input size."""
        images = [self._read(i) for i in indices]
        return [FramedImage(image, image, tuple(image.shape[1:])) for image in images]

    def _read(self, i: int) -> Tensor:
        image = self._X[i]
        if not isinstance(image, Tensor):
            raise ValueError(
                f"Item {i} of X is {describe(image)}, but the first one is a float tensor. Pass "
                "only float tensors, the network's own input, or only images."
            )
        if tuple(image.shape) != (self.n_channels, *self.image_size):
            raise ValueError(
                f"Item {i} of X has shape {tuple(image.shape)}, but the first one "
                f"{(self.n_channels, *self.image_size)}. Give all inputs of a network one shape."
            )
        if not isinstance(self._X, Tensor) and not bool(torch.isfinite(image).all()):
            raise ValueError(
                f"Item {i} of X has values that are NaN or infinite. Replace them, or leave the "
                "image out."
            )
        return image.detach()


class OtherInputs:
    """The inputs other than the image, each with one entry per image.

    Parameters
    ----------
    values : mapping of str to array-like
        The inputs by name. Also an attribute.
    n_images : int

    Raises
    ------
    ValueError
        If an input does not have one entry per image.
    """

    def __init__(self, values: Mapping[str, Any], n_images: int):
        self.values = dict(values)
        for name, value in self.values.items():
            if np.shape(value)[:1] != (n_images,):
                raise ValueError(
                    f"Input {name!r} must have one entry for each of the {n_images} images; it "
                    f"has shape {tuple(np.shape(value))}."
                )

    def take(self, rows: np.ndarray | range, images: Tensor) -> dict[str, Tensor]:
        """Return the inputs of some images, on the images' device; floats in the images' dtype."""
        tensors = {
            name: torch.as_tensor(take_rows(value, rows), device=images.device)
            for name, value in self.values.items()
        }
        return {
            name: tensor.to(images.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }


def is_network_input(X: Any) -> bool:
    """Whether X is float tensors, or a data set of them."""
    if isinstance(X, Tensor):
        return X.is_floating_point()
    try:
        items = items_of(X)
        first = None if items is None else items[0]
    except Exception:
        return False  # ImageDataset says what is wrong with X
    return isinstance(first, Tensor) and first.is_floating_point()
