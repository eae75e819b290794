"""Faster series of forward passes, by folded batch normalisation and channels_last memory.

In evaluation mode, a batch normalisation only scales and shifts the output of a convolution.
Folding both into one convolution saves passes over memory in methods that run a network on hundreds
of changed images. The network itself does not change: the folded weights are kept beside it and
replace the original ones while a context is open.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sklcam.networks.precision import at_least_float32


@dataclass(frozen=True, eq=False)
class _Folded:
    """The weight and bias of a convolution that includes the normalisation behind it."""

    weight: Tensor
    bias: Tensor

    def to(self, dtype: torch.dtype) -> _Folded:
        return _Folded(self.weight.to(dtype), self.bias.to(dtype))


@dataclass(eq=False)
class _Pair:
    """A convolution, and the normalisation that takes its output."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None
    shift: Tensor | None = None
    has_another_use: bool = False

    def normalize(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        """Record the arguments of ``batch_norm``."""
        if training or running_mean is None or running_var is None:
            self.has_another_use = True
            return
        scale = (running_var.detach() + eps).rsqrt()
        self.scale = scale if weight is None else scale * weight.detach()
        shift = -running_mean.detach() * self.scale
        self.shift = shift if bias is None else shift + bias.detach()

    def fold(self, memory_format: torch.memory_format) -> _Folded | None:
        """Return both as one convolution; None if the convolution's output has another use."""
        if self.has_another_use or self.scale is None or self.shift is None:
            return None
        shift = self.shift if self.bias is None else self.shift + self.bias * self.scale
        folded = self.weight * self.scale.view(-1, *[1] * (self.weight.ndim - 1))
        if folded.ndim == 4:
            folded = folded.contiguous(memory_format=memory_format)
        return _Folded(folded, shift).to(self.weight.dtype)


class LearnPairs(TorchFunctionMode):
    """Find, in one forward pass, convolutions whose output goes to a batch normalisation alone.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks.inference import LearnPairs
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> images = torch.rand(2, 3, 8, 8)
    >>> with torch.no_grad(), LearnPairs() as pairs:
    ...     expected = net(images)
    >>> with torch.no_grad(), pairs.folded():
    ...     folded = net(images)
    >>> torch.allclose(folded, expected, atol=1e-6)
    True
    """

    def __init__(self) -> None:
        super().__init__()
        # Keyed by the convolution's weight. A weight that each pass makes anew soon disappears.
        self._pairs: MutableMapping[Tensor, _Pair] = WeakTensorKeyDictionary()
        self._outputs: MutableMapping[Tensor, _Pair] = WeakTensorKeyDictionary()

    def folded(
        self, memory_format: torch.memory_format = torch.contiguous_format
    ) -> FoldedConvolutions:
        """Return the context in which each pair that was found runs as one function.

        Weights of two-dimensional convolutions are kept in the memory format, which should be that
        of the images. Otherwise each run would have to rearrange them.
        """
        folded: MutableMapping[Tensor, _Folded] = WeakTensorKeyDictionary()
        for weight, pair in self._pairs.items():
            one = pair.fold(memory_format)
            if one is not None:
                folded[weight] = one
        return FoldedConvolutions(folded)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _CONVOLUTIONS and len(args) > 1:
            self._mark_used(args[:1])
            self._add_convolution(result, *args[1:3], **kwargs)
        elif func is F.batch_norm and self._is_first_use(args):
            self._outputs[args[0]].normalize(*args, **kwargs)
        elif func not in _QUESTIONS and not _is_plain_property(func, result):
            self._mark_used((*args, *kwargs.values()))
        return result

    def _add_convolution(
        self, output: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> None:
        pair = _Pair(weight.detach(), None if bias is None else bias.detach())
        pair.has_another_use = weight in self._pairs  # this is its second run
        self._pairs[weight] = self._outputs[output] = pair

    def _is_first_use(self, args: tuple[Any, ...]) -> bool:
        pair = self._outputs.get(args[0]) if args else None
        return pair is not None and pair.scale is None

    def _mark_used(self, values: Any) -> None:
        for value in values:
            if isinstance(value, tuple | list):
                self._mark_used(value)
            elif isinstance(value, Tensor) and value in self._outputs:
                self._outputs[value].has_another_use = True


class FoldedConvolutions(TorchFunctionMode):
    """Run each pair of convolution and batch normalisation as one; see :class:`LearnPairs`."""

    def __init__(self, pairs: MutableMapping[Tensor, _Folded]):
        super().__init__()
        self._pairs = pairs  # by the convolution's own weight
        self._cast: dict[tuple[_Folded, torch.dtype], _Folded] = {}
        self._outputs: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()

    def __len__(self) -> int:
        return len(self._pairs)

    def __exit__(self, *error: Any) -> None:
        TorchFunctionMode.__exit__(self, *error)
        self._outputs.clear()

    def _pair_of(self, weight: Tensor) -> _Folded | None:
        """Return the pair in its compute dtype, as autocast would otherwise cast it at each use."""
        pair, device = self._pairs.get(weight), weight.device.type
        if pair is None or weight.dtype == torch.float64 or not torch.is_autocast_enabled(device):
            return pair
        dtype = torch.get_autocast_dtype(device)
        if (pair, dtype) not in self._cast:
            self._cast[pair, dtype] = pair.to(dtype)
        return self._cast[pair, dtype]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS and len(args) > 1:
            pair = self._pair_of(args[1])
            if pair is not None:
                kwargs = {name: value for name, value in kwargs.items() if name != "bias"}
                output = func(args[0], pair.weight, pair.bias, *args[3:], **kwargs)
                self._outputs[output] = True
                return output
        elif func is F.batch_norm and args and self._outputs.pop(args[0], False):
            return args[0]  # the weights already include it
        return func(*args, **kwargs)


_CONVOLUTIONS = frozenset({F.conv1d, F.conv2d, F.conv3d})
# These ask for the shape or dtype of a tensor, not for its values.
_QUESTIONS = frozenset(
    {
        Tensor.dim, Tensor.ndimension, Tensor.size, Tensor.stride, Tensor.numel, Tensor.nelement,
        Tensor.__len__, Tensor.is_floating_point, Tensor.is_complex, Tensor.is_contiguous,
        Tensor.get_device, torch.is_floating_point, torch.is_complex, torch.numel,
    }
)  # fmt: skip


def _is_plain_property(func: Callable[..., Any], result: Any) -> bool:
    return getattr(func, "__name__", "") == "__get__" and not isinstance(result, Tensor)


def learn_folding(
    forward: Callable[[Any], Tensor],
    inputs: Any,
    expected: Tensor,
    memory_format: torch.memory_format = torch.contiguous_format,
    *,
    is_half: bool = False,
) -> FoldedConvolutions | None:
    """Return a network's folded convolutions, if it has any and they do not change its output.

    Parameters
    ----------
    forward : callable
        Runs the network, in evaluation mode.
    inputs
        The inputs for the network.
    expected : Tensor
        The network's output for these inputs.
    memory_format : torch.memory_format, default=torch.contiguous_format
        The memory format of the images.
    is_half : bool, default=False
        Whether the network computes in half precision, if the dtype of its output does not show it.

    Returns
    -------
    FoldedConvolutions or None
    """
    with torch.no_grad():
        with LearnPairs() as pairs:
            forward(inputs)
        folded = pairs.folded(memory_format)
        if not len(folded):
            return None
        with folded:
            output = forward(inputs)
    # Rounding differs, and half precision has three digits, so only larger differences count.
    is_half = is_half or output.dtype not in (torch.float32, torch.float64)
    tolerance = 0.05 if is_half else 1e-3
    scale = expected.abs().amax().item()
    if scale != scale:  # NaN says nothing about the folding, and is not an error here
        return None
    # The expected output may come from outside the autocast that this runs in.
    output = at_least_float32(output)
    expected = expected.detach().to(output.dtype)
    is_same = torch.allclose(output, expected, rtol=tolerance, atol=tolerance * scale)
    return folded if is_same else None


@dataclass(frozen=True)
class InferencePlan:
    """The fastest way to run a network many times.

    Attributes
    ----------
    memory_format : torch.memory_format
        The format for the images.
    folded : context manager
        The context to run the network in.
    """

    memory_format: torch.memory_format
    folded: AbstractContextManager[Any]

    def arrange(self, images: Tensor) -> Tensor:
        """Return images (n_images, channels, height, width) in the memory format."""
        return images.contiguous(memory_format=self.memory_format)


def plan_inference(
    forward: Callable[[Any], Tensor],
    with_image: Callable[[Tensor], Any],
    image: Tensor,
    expected: Tensor,
    *,
    is_half: bool = False,
) -> InferencePlan:
    """Find the fastest way to run a network many times, with a few passes of one image.

    Parameters
    ----------
    forward : callable
        Runs the network, in evaluation mode.
    with_image : callable
        Puts an image into the network's inputs.
    image : Tensor of shape (1, channels, height, width)
    expected : Tensor
        The network's output for the image.
    is_half : bool, default=False
        See :func:`learn_folding`.

    Returns
    -------
    InferencePlan
        In channels_last, unless the network fails with it, for example because it uses ``view``.
    """
    for memory_format in (torch.channels_last, torch.contiguous_format):
        try:
            inputs = with_image(image.contiguous(memory_format=memory_format))
            folding = learn_folding(forward, inputs, expected, memory_format, is_half=is_half)
        except RuntimeError as error:
            if memory_format == torch.contiguous_format or is_out_of_memory(error):
                raise
        else:
            break
    return InferencePlan(memory_format, nullcontext() if folding is None else folding)


# With at least 4 images of 224 x 224 pixels, no convolutional family that was tried is slower in
# channels_last on a CPU, and most are faster. As each pass also rearranges the weights, ResNet-18
# is slower with 2 images, and by a fifth with one.
_PIXELS_TO_REARRANGE = 4 * 224**2


def is_faster_in_channels_last(images: Tensor) -> bool:
    """Whether most convolutional networks are faster with these images in channels_last."""
    # On other devices this depends on the precision, so the images stay as they are.
    n_pixels = images.numel() // images.shape[1]
    is_picture = images.ndim == 4  # the format does not allow a third axis of places
    return is_picture and images.device.type == "cpu" and n_pixels >= _PIXELS_TO_REARRANGE


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error only means that the batch was too large."""
    return isinstance(error, torch.OutOfMemoryError)
