"""Dry runs: passes that examine a network, and leave it as they found it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, MutableMapping, Set
from contextlib import ExitStack, contextmanager
from itertools import count
from threading import Lock, RLock, local
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sklcam._validation import check_count, check_tensor, describe


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside a compiled one, and any other as it is."""
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, nn.Module):
        raise ValueError(f"model must be an nn.Module; got {describe(model)}.")
    return inner


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None in inference mode, which keeps no count."""
    return None if tensor.is_inference() else tensor._version


def check_explainable(model: nn.Module) -> None:
    """Raise a ValueError for a network whose layers have neither hooks nor gradients."""
    instead = "the floating-point nn.Module that it was made from"
    kinds = [type(part).__module__ for part in model.modules()]
    if isinstance(model, torch.jit.ScriptModule):
        what = "is traced or scripted, so its layers call no hooks"
    elif any(".quantized" in kind for kind in kinds):
        what = "is quantized, so its layers have no gradients"
    elif any(parameter.is_inference() for parameter in model.parameters()):
        what = "was made in torch.inference_mode(), so it has no gradients"
        instead = "a copy.deepcopy of it, made outside that mode"
    else:
        return
    raise ValueError(f"The network ({type(model).__name__}) {what}. Use {instead}.")


# The lock of each module, with its age, as all threads share modes, hooks and buffers. And for
# each network the locks of its parts, with the parts' ids, as looking up each one takes a while.
_AgedLock = tuple[int, Any]
_locks: MutableMapping[nn.Module, _AgedLock] = WeakKeyDictionary()
_locks_of: MutableMapping[nn.Module, tuple[list[int], list[_AgedLock]]] = WeakKeyDictionary()
_ages, _locks_lock = count(), Lock()
_mine = local()  # the networks that this thread evaluates, which are already locked and uncompiled

# Held while torch's global generators, which belong to the process, are swapped. It is acquired
# after the locks of a network.
generators_lock = RLock()


def _is_evaluated(model: nn.Module) -> bool:
    return any(model is network for network in vars(_mine).get("networks", ()))


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Keep other threads from a network, and from any that share a part with it, in the block."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"module must be an nn.Module; got {describe(model)}.")
    if _is_evaluated(model):
        yield
        return
    parts = [*map(id, model.modules())]
    with _locks_lock:
        known, locks = _locks_of.get(model, ([], []))
        if known != parts:
            fresh = (next(_ages), RLock())
            # By age, so that no two threads wait for each other.
            locks = sorted({_locks.setdefault(part, fresh) for part in model.modules()})
            _locks_of[model] = parts, locks
    with ExitStack() as stack:
        for _, lock in locks:
            stack.enter_context(lock)
        yield


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Set an attribute of an instance in the block, and restore what was there before."""
    own, missing = vars(owner), object()
    was = own.get(name, missing)
    own[name] = value
    try:
        yield
    finally:
        if was is missing:
            del own[name]
        else:
            own[name] = was


@contextmanager
def uncompiled(model: nn.Module, around: Set[nn.Module] | None = None) -> Iterator[None]:
    """Run the original code of a network's compiled parts, or only of those around some layers.

    Compiled code ignores hooks that were registered later, ignores function modes, and keeps no
    graph for a second backward pass.
    """
    with ExitStack() as stack:
        for part in () if _is_evaluated(model) else model.modules():
            is_wrapped = "_orig_mod" in part._modules  # by torch.compile(part)
            if not is_wrapped and vars(part).get("_compiled_call_impl") is None:  # part.compile()
                continue
            if around is None or not around.isdisjoint(part.modules()):
                inner = part._orig_mod if is_wrapped else None
                name = "forward" if is_wrapped else "_compiled_call_impl"
                stack.enter_context(replaced(part, name, inner))
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a network to evaluation mode for this thread alone, and restore all modes afterwards."""
    with exclusive(model), uncompiled(model):
        modes = [(part, part.training) for part in model.modules()]
        _mine.networks = [*vars(_mine).get("networks", ()), model]
        try:
            model.eval()
            yield
        finally:
            _mine.networks.pop()
            for part, training in modes:
                part.training = training  # not by train(), which a network may override


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients, and restore modes, buffers and random state afterwards."""
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with (
        evaluating(model),
        generators_lock,
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
    ):
        buffers = [
            (module, name, buffer, buffer.clone(), version_of(buffer))
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if not is_lazy(buffer)  # the first pass decides its values
        ]
        try:
            yield
        finally:
            for module, name, buffer, value, version in buffers:
                if version is None or version != version_of(buffer):
                    buffer.copy_(value)
                setattr(module, name, buffer)


@contextmanager
def tolerating() -> Iterator[None]:
    """Leave the block quietly on an error, such as that of a network with a fixed image size.

    A lack of memory says nothing about the network, and is raised.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return


def memory_of(tensor: Tensor) -> int:
    """Return an identifier that is equal for tensors that share their memory, as views do."""
    # Not data_ptr(), as data has no address on some devices.
    return tensor.untyped_storage()._cdata


def first_output(output: Any, name: str | int | None = None) -> Any:
    """Return the output that counts: the one with the given name, or the usual one.

    Parameters
    ----------
    output : object
        The return value of a network.
    name : str, int or None, default=None
        The key or position of the output that counts. None takes the first of a tuple or a list, as
        the others belong to auxiliary heads. From a mapping it takes "logits", as Hugging Face's
        networks call it, "out", as torchvision's do, or the only tensor.

    Returns
    -------
    object
        A Tensor, or whatever else the network returns if this rule finds no output.

    Raises
    ------
    ValueError
        If there is no output with that name, or none is named and a mapping holds several.
    """
    if name is not None:
        try:
            return output[name]
        except (LookupError, TypeError):
            raise ValueError(
                f"The network's output has no entry output_name={name!r}. The output is "
                f"{_describe_outputs(output)}."
            ) from None
    if isinstance(output, tuple | list):
        return output[0] if len(output) else output
    if not isinstance(output, Mapping):
        return output
    tensors = {key: value for key, value in output.items() if isinstance(value, Tensor)}
    for usual in ("logits", "out"):
        if usual in tensors:
            return tensors[usual]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise ValueError(
        f"The network returns {_describe_outputs(output)}, and it is unclear which entry counts. "
        "Name the entry with output_name=, or wrap the network in a module that returns a Tensor."
    )


def _describe_outputs(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {sorted(map(str, output))}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return describe(output)


def run_dry(model: nn.Module, sample: Tensor) -> Any:
    """Return a network's first output for a sample, or raise a ValueError that says what failed."""
    model = unwrap(model)  # compiling does not pay for a single run
    first = next(model.parameters(), None)
    try:
        with left_as_found(model):
            images = sample.clone() if first is None else sample.to(first.device, copy=True)
            return first_output(model(images))  # of a copy, as some networks write into their input
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        channels, size = sample.shape[1], " x ".join(map(str, sample.shape[2:]))
        reason = textwrap.shorten(str(error), 300, placeholder=" ...").rstrip(".")
        raise ValueError(
            f"{type(model).__name__} fails on images of {size} pixels and {channels} channel(s): "
            f"{reason}. Try another image_size, or use a network that takes {channels} input "
            "channel(s)."
        ) from error


def check_output(
    model: nn.Module, sample: Tensor, n_outputs: int, *, name: str = "classes"
) -> None:
    """Check by one dry run that a network takes such images and has the expected outputs.

    The network's mode, hooks, buffers and gradients, and the random generators, stay as they were.

    Parameters
    ----------
    model : nn.Module
        A network whose output, or the first entry of it, is the logits or an embedding.
    sample : float Tensor of shape (n, channels, height, width)
        One image is enough.
    n_outputs : int
        The expected number of outputs.
    name : str, default="classes"
        The noun that the message uses for the outputs.

    Raises
    ------
    ValueError
        If the network fails on the sample, or returns anything but a Tensor of shape
        (n, n_outputs).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks import check_output
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    >>> check_output(model, torch.zeros(1, 3, 2, 2), 3)
    """
    depth = ["depth"] if isinstance(sample, Tensor) and sample.ndim == 5 else []
    check_tensor("sample", sample, "n_images", "channels", *depth, "height", "width")
    check_count("n_outputs", n_outputs)
    output = run_dry(model, sample)
    if not isinstance(output, Tensor):
        raise ValueError(
            f"module returned a {type(output).__name__} for {n_outputs} {name}. It must return a "
            f"Tensor of shape (n_images, {n_outputs}), or a tuple that begins with one."
        )
    if output.shape != (len(sample), n_outputs):
        raise ValueError(
            f"module returned shape {tuple(output.shape)} for {n_outputs} {name}; expected "
            f"{(len(sample), n_outputs)}. Give it num_classes={n_outputs}."
        )
