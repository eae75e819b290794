"""Preprocessing: what a network's source says about its images and its classes.

The files of the sources, such as ``from_timm.py``, read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from sklcam._validation import check_sides
from sklcam.images.frames import Resizing
from sklcam.images.normalization import default_statistics, denormalize, normalize
from sklcam.images.warps import Warp
from sklcam.networks.precision import at_least_float32

_BY_DEFAULT = (
    "ImageNet's mean and standard deviation, by default: {} does not say how its images are "
    "prepared. Set it with mean=, std=, image_size= and resize="
)

_PLAIN = Resizing()


@dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input, and who says so.

    Parameters
    ----------
    image_size : tuple of (int, int), default=(224, 224)
        Height and width of the input; for volumes, depth, height and width.
    resizing : Resizing, default=Resizing()
        How images are brought to this size.
    mean, std : "auto", float or one float per channel, default="auto"
        Normalisation of pixels in [0, 1].
    channel_order : {"rgb", "bgr"}, default="rgb"
        The order in which the network takes the channels, once they are normalised.
    source : str
        Where this was read from.
    is_settled : bool, default=True
        False if the source prepares images in a way that these parameters cannot express.

    Raises
    ------
    ValueError
        If the size or the order is not valid.

    Examples
    --------
    >>> from sklcam.networks import Preprocessing
    >>> Preprocessing(source="the paper").with_given(mean=0.5).source
    'the paper; mean as given'
    """

    image_size: tuple[int, ...] = (224, 224)
    resizing: Resizing = _PLAIN
    mean: Any = "auto"
    std: Any = "auto"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    source: str = _BY_DEFAULT.format("the network")
    is_settled: bool = True

    def __post_init__(self) -> None:
        check_sides(self.image_size, "image_size")
        if not isinstance(self.resizing, Resizing) or self.channel_order not in ("rgb", "bgr"):
            raise ValueError(
                'resizing must be a Resizing, and channel_order "rgb" or "bgr"; got '
                f"{self.resizing!r} and {self.channel_order!r}."
            )

    @classmethod
    def by_default(cls, shown: str, image_size: tuple[int, int] | None = None) -> Preprocessing:
        """Return the default for a network of this name that does not say how it takes images."""
        return cls(image_size or (224, 224), source=_BY_DEFAULT.format(shown))

    @classmethod
    def unsettled(cls, shown: str) -> Preprocessing:
        """Return a placeholder for a source whose way to prepare images cannot be followed."""
        return cls(source=shown, is_settled=False)

    def with_given(
        self,
        *,
        image_size: int | Sequence[int] | None = None,
        resize: str | None = None,
        mean: Any = "auto",
        std: Any = "auto",
        decode: str = "exact",
    ) -> Preprocessing:
        """Return a copy in which each value that a user gives replaces the source's.

        Parameters
        ----------
        image_size, resize, mean, std, decode
            See :class:`~sklcam.CAMExplainer`. None, "auto" and "exact" change nothing.

        Returns
        -------
        Preprocessing

        Raises
        ------
        ValueError
            If ``image_size`` is not a valid size.
        """
        changes: dict[str, Any] = {}
        if image_size is not None:
            changes["image_size"] = check_sides(image_size, "image_size")
        if resize is not None:
            changes["resizing"] = Resizing(resize, interpolation=self.resizing.interpolation)  # type: ignore[arg-type]
        for name, value in {"mean": mean, "std": std}.items():
            if not (isinstance(value, str) and value == "auto"):
                changes[name] = value
        names = [{"resizing": "resize"}.get(name, name) for name in changes]
        given = f"; {', '.join(names)} as given" if names else ""
        is_settled = self.is_settled or len(changes) == 4  # nothing is left for the source
        if decode != "exact":
            changes["resizing"] = replace(changes.get("resizing", self.resizing), decode=decode)
        return replace(self, **changes, source=self.source + given, is_settled=is_settled)

    def of_channels(self, n_channels: int) -> Preprocessing:
        """Return a copy with the mean and the standard deviation as numbers.

        Parameters
        ----------
        n_channels : int
            Channels of the images. The source's statistics for another number of channels are
            averaged, as ImageNet's are.

        Returns
        -------
        Preprocessing
        """
        usual = default_statistics(n_channels)
        mean, std = (
            _for_channels(default if isinstance(given, str) else given, n_channels)
            for default, given in zip(usual, (self.mean, self.std), strict=True)
        )
        return replace(self, mean=mean, std=std)

    def normalize(self, images: Tensor) -> Tensor:
        """Scale images of the input's size to [0, 1], and normalise each channel.

        Parameters
        ----------
        images : Tensor of shape (n_images, n_channels, height, width), uint8, or float in [0, 1]

        Returns
        -------
        Tensor of the same shape, floating point
        """
        if not self.is_settled:
            raise ValueError(
                f"{self.source} does more than resize, crop and normalise images. Give all four of "
                "image_size, resize, mean and std, or pass the processor's own output as X: "
                'processor(images, return_tensors="pt").'
            )
        images = normalize(images, self.mean, self.std)
        return images if self.channel_order == "rgb" else images.flip(1)

    def on_pixels(self, inputs: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Change the pixels of normalised images.

        Parameters
        ----------
        inputs : Tensor of shape (n_images, n_channels, height, width)
            As :meth:`normalize` returns them.
        change : callable
            Takes and returns images in [0, 1], with channels in the order of the original images.

        Returns
        -------
        Tensor of the same shape and dtype, normalised
        """
        pixels = at_least_float32(inputs)
        pixels = pixels if self.channel_order == "rgb" else pixels.flip(1)
        # Only rounding leaves the range.
        pixels = denormalize(pixels, self.mean, self.std).clamp(0, 1)
        return self.normalize(change(pixels)).to(inputs.dtype)

    def view(self, inputs: Tensor, warp: Warp) -> Tensor:
        """Return the views of normalised images.

        Parameters
        ----------
        inputs : Tensor of shape (n_images, n_channels, height, width)
        warp : Warp
            Its changes of colour apply to the pixels before normalisation.

        Returns
        -------
        Tensor of the same shape and dtype, normalised
        """
        # Moving pixels commutes with normalisation, so only changes of colour need to undo it.
        if warp.photometry is None:
            return warp(inputs)
        return self.on_pixels(warp(inputs), warp.photometry)


def _for_channels(statistic: Any, n_channels: int) -> Any:
    # A user's statistics are checked where they are used; only a source's may differ in number.
    if not isinstance(statistic, tuple) or len(statistic) in (1, n_channels):
        return statistic
    return (sum(statistic) / len(statistic),) * n_channels


@dataclass(frozen=True)
class Origin:
    """What is known about a network from its source.

    Parameters
    ----------
    preprocessing : Preprocessing
    class_names : tuple of str or None, default=None
        The name of each output.

    Examples
    --------
    >>> from sklcam.networks import Origin
    >>> Origin(class_names=("cat", "dog")).is_known  # names are known, the preparation is not
    False
    """

    preprocessing: Preprocessing = Preprocessing()
    class_names: tuple[str, ...] | None = None

    @property
    def is_known(self) -> bool:
        """Whether the network says anything about its images."""
        return not self.preprocessing.source.startswith(_BY_DEFAULT[:40])
