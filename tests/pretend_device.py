"""A device that is only pretended: its tensors say that they are there, and are on the host.

What only a real device would show is an error here, or is counted: tensors of two devices in one
operation, float64, which some devices do not have, and what makes the host wait for the device.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretend"

# What needs values, so that the host reads them, or the shape depends on them.
_NEEDS_VALUES = {
    "_local_scalar_dense",
    "_unique2",
    "allclose",
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
_INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_COPIES = {"_to_copy", "copy_", "set_"}
# What a device is not asked to do anything for: other looks at a tensor, and room for one.
_LOOKS = {
    *("alias", "as_strided", "chunk", "detach", "diagonal", "expand", "movedim", "permute"),
    *("select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind"),
    *("unfold", "unsqueeze", "view", "_reshape_alias", "_unsafe_view", "lift_fresh", "set_"),
    *("empty", "empty_like", "empty_strided", "new_empty"),
}


class _Backend(_DummyBackendModule):
    """What PyTorch asks of a device beside its operations."""

    def is_available(self):
        return False  # or DataParallel would take it for a GPU, in any test of this process

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device=0):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=0):
        pass

    def manual_seed(self, seed):
        pass


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())


class _HostGenerator(torch.Generator):
    """Draws on the host, whichever device is asked for."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if _is_ours(device) else device)


class MixedDevices(RuntimeError):
    """Tensors of two devices met in one operation."""


class NoFloat64(RuntimeError):
    """A tensor of float64 was made on the device."""


class OnDevice(torch.Tensor):
    """A tensor of the host that says it is on the device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):  # which PyTorch does without an operation
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.held})"

    def __deepcopy__(self, memo):
        copied = OnDevice(self.held.detach().clone(), self.requires_grad)
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)

    def __reduce_ex__(self, protocol):
        return OnDevice, (self.held.detach(), self.requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, None)


class PretendDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on the device and moved there.

    Attributes
    ----------
    launches : int
        Operations that a device would have been given; other looks at a tensor are none.
    waits : Counter of str
        Where the library made the host wait, and how often.
    """

    def __init__(self):
        super().__init__()
        self.launches = 0
        self.waits = Counter()

    def __enter__(self):
        self._generator, torch.Generator = torch.Generator, _HostGenerator
        return super().__enter__()

    def __exit__(self, *error):
        torch.Generator = self._generator
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, self)

    def wait(self, name: str) -> None:
        """Note a wait, at the innermost line of the library."""
        frames = [f for f in traceback.extract_stack() if "/sklcam/" in f.filename]
        place = (
            f"{frames[-1].filename.rpartition('/sklcam/')[2]}:{frames[-1].lineno}" if frames else ""
        )
        self.waits[f"{name} {place}"] += 1


def moved(module: nn.Module) -> nn.Module:
    """Move a network to the device, in place; it need not be entered."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                held = OnDevice(parameter.detach().clone())
                part._parameters[name] = nn.Parameter(held, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer.clone())
    return module


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any], counter: PretendDevice | None) -> Any:
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    wanted = kwargs.get("device")
    if not ours and not _is_ours(wanted):
        return func(*args, **kwargs)
    is_result_ours = _is_ours(wanted) if wanted is not None else bool(ours)
    if name not in _COPIES:
        _check_same_device(func, name, args, tensors)
    if counter is not None:
        counter.launches += name not in _LOOKS
        if _waits(name, args, ours, is_result_ours):
            counter.wait(name)
    held_args, held_kwargs = tree_map(
        lambda leaf: leaf.held if isinstance(leaf, OnDevice) else leaf, (args, kwargs)
    )
    if _is_ours(held_kwargs.get("device")):
        held_kwargs["device"] = torch.device("cpu")
    held_kwargs.pop("pin_memory", None)
    result = func(*held_args, **held_kwargs)
    known = {id(tensor.held): tensor for tensor in ours}

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in known:  # of an operation in place
            return known[id(leaf)]
        if leaf.dtype == torch.float64:
            raise NoFloat64(f"{func} made a tensor of float64 on the device.")
        return OnDevice(leaf)

    if name == "copy_":
        return args[0]
    return tree_map(wrapped, result) if is_result_ours else result


def _check_same_device(func: Any, name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raise an error for a mixture; as on CUDA, numbers go anywhere, and the host may index."""
    if name in _INDEXES and isinstance(args[0], OnDevice):
        indices = {id(index) for index in args[1] if index is not None}
        tensors = [tensor for tensor in tensors if id(tensor) not in indices]
    devices = {
        tensor.device.type for tensor in tensors if tensor.ndim or isinstance(tensor, OnDevice)
    }
    if len(devices) > 1:
        raise MixedDevices(f"{func} got tensors on {' and '.join(sorted(devices))}.")


def _waits(name: str, args: Any, ours: list[torch.Tensor], is_result_ours: bool) -> bool:
    if not ours:
        return False
    if name in _INDEXES:
        indices = [index for index in args[1] if index is not None]
        return any(
            index.dtype in (torch.bool, torch.uint8) or not isinstance(index, OnDevice)
            for index in indices
        )
    if name == "copy_":
        return isinstance(args[1], OnDevice) and not isinstance(args[0], OnDevice)
    return name in _NEEDS_VALUES or (name == "_to_copy" and not is_result_ours)
