"""Many forward passes, faster: folded batch normalisation, and memory in channels_last.

In evaluation mode a batch normalisation is one more scaling of the weights of the convolution
before it. Methods that run a network on hundreds of changed images save its passes over memory. The
network itself is not changed: the folded weights live beside it, and are swapped in by functions,
for as long as a context is open.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class _Folded:
    """What a convolution is to be computed with, instead of its own."""

    weight: Tensor
    bias: Tensor

    def to(self, dtype: torch.dtype) -> _Folded:
        """Return the same in another dtype."""
        return _Folded(self.weight.to(dtype), self.bias.to(dtype))


class LearnPairs(TorchFunctionMode):
    """Watch one forward pass for convolutions whose output goes to a batch normalisation alone.

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
        # By the identity of the convolution's weight, which the network keeps alive.
        self._convolutions: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._normalizations: dict[int, tuple[Tensor, Tensor]] = {}
        self._spoilt: set[int] = set()
        self._outputs: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def folded(
        self, memory_format: torch.memory_format = torch.contiguous_format
    ) -> FoldedConvolutions:
        """Return the context in which the pairs that were found are one function each.

        Weights of two dimensions are kept in the memory format, which should be that of the images:
        each run would have to rearrange them otherwise.
        """
        pairs = {
            key: _fold(*self._convolutions[key], *normalization, memory_format)
            for key, normalization in self._normalizations.items()
            if key not in self._spoilt
        }
        return FoldedConvolutions(pairs)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _CONVOLUTIONS and len(args) > 1:
            self._spoil((args[0],))
            self._add_convolution(result, *args[1:3], **kwargs)
        elif func is F.batch_norm and self._is_first_use(args):
            self._add_normalization(*args, **kwargs)
        elif func not in _QUESTIONS and not _is_plain_property(func, result):
            self._spoil((*args, *kwargs.values()))  # another use
        return result

    def _add_convolution(
        self, output: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> None:
        key = id(weight)
        if key in self._convolutions:  # used twice
            self._spoilt.add(key)
        self._convolutions[key] = weight.detach(), None if bias is None else bias.detach()
        self._outputs[id(output)] = weakref.ref(output), key

    def _key_of(self, tensor: Any) -> int | None:
        reference, key = self._outputs.get(id(tensor), (None, None))
        return key if reference is not None and reference() is tensor else None

    def _is_first_use(self, args: tuple[Any, ...]) -> bool:
        key = self._key_of(args[0]) if args else None
        return key is not None and key not in self._normalizations

    def _add_normalization(
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
        key = self._key_of(x)
        assert key is not None
        if training or running_mean is None or running_var is None:
            self._spoilt.add(key)
            return
        scale = (running_var.detach() + eps).rsqrt()
        scale = scale if weight is None else scale * weight.detach()
        shift = -running_mean.detach() * scale
        self._normalizations[key] = scale, shift if bias is None else shift + bias.detach()

    def _spoil(self, values: Any) -> None:
        for value in values:
            if isinstance(value, tuple | list):
                self._spoil(value)
            elif isinstance(value, Tensor):
                key = self._key_of(value)
                if key is not None:
                    self._spoilt.add(key)


def _fold(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    memory_format: torch.memory_format,
) -> _Folded:
    shift = shift if bias is None else shift + bias * scale
    folded = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    if folded.ndim == 4:
        folded = folded.contiguous(memory_format=memory_format)
    return _Folded(folded, shift).to(weight.dtype)


class FoldedConvolutions(TorchFunctionMode):
    """Compute pairs of convolution and batch normalisation as one; see :class:`LearnPairs`."""

    def __init__(self, pairs: dict[int, _Folded]):
        super().__init__()
        self._pairs = pairs
        self._cast: dict[tuple[int, torch.dtype], _Folded] = {}
        self._outputs: dict[int, weakref.ref[Tensor]] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def __exit__(self, *error: Any) -> None:
        TorchFunctionMode.__exit__(self, *error)
        self._outputs.clear()

    def _pair_of(self, weight: Tensor) -> _Folded | None:
        """Return the pair in the dtype that it is computed in: autocast would cast at each use."""
        key, kind = id(weight), weight.device.type
        pair = self._pairs.get(key)
        if pair is None or weight.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
            return pair
        dtype = torch.get_autocast_dtype(kind)
        if (key, dtype) not in self._cast:
            self._cast[key, dtype] = pair.to(dtype)
        return self._cast[key, dtype]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CONVOLUTIONS and len(args) > 1:
            pair = self._pair_of(args[1])
            if pair is not None:
                kwargs = {name: value for name, value in kwargs.items() if name != "bias"}
                output = func(args[0], pair.weight, pair.bias, *args[3:], **kwargs)
                self._outputs[id(output)] = weakref.ref(output)
                return output
        elif func is F.batch_norm and args:
            reference = self._outputs.pop(id(args[0]), None)
            if reference is not None and reference() is args[0]:
                return args[0]
        return func(*args, **kwargs)


_CONVOLUTIONS = frozenset({F.conv1d, F.conv2d, F.conv3d})
# About the shape and kind of a tensor, not about its values.
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
) -> FoldedConvolutions | None:
    """Return a network's folded convolutions, if it has any and they compute what it does.

    Parameters
    ----------
    forward : callable
        Runs the network, in evaluation mode.
    inputs
        For the network.
    expected : Tensor
        What the network returns for them.
    memory_format : torch.memory_format, default=torch.contiguous_format
        That of the images.

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
    tolerance = 1e-3 if output.dtype in (torch.float32, torch.float64) else 0.05
    scale = expected.abs().amax().item()
    is_same = torch.allclose(output, expected.detach(), rtol=tolerance, atol=tolerance * scale)
    return folded if is_same else None


@dataclass(frozen=True)
class InferencePlan:
    """How a network runs the fastest when it runs often.

    Attributes
    ----------
    memory_format : torch.memory_format
        That images are best given in.
    folded : context manager
        Runs are to be made within it.
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
) -> InferencePlan:
    """Find out how a network runs the fastest, by one or two passes of one image.

    Parameters
    ----------
    forward : callable
        Runs the network, in evaluation mode.
    with_image : callable
        Puts an image into the network's inputs.
    image : Tensor of shape (1, channels, height, width)
    expected : Tensor
        What the network returns for it.

    Returns
    -------
    InferencePlan
        In channels_last, unless the network does not take that, as it views its tensors as if they
        lay otherwise.
    """
    for memory_format in (torch.channels_last, torch.contiguous_format):
        try:
            inputs = with_image(image.contiguous(memory_format=memory_format))
            folding = learn_folding(forward, inputs, expected, memory_format)
        except RuntimeError as error:
            if memory_format == torch.contiguous_format or is_out_of_memory(error):
                raise
        else:
            break
    return InferencePlan(memory_format, nullcontext() if folding is None else folding)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says no more than that the batch was too large."""
    return isinstance(error, torch.OutOfMemoryError)
