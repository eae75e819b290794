"""Dry runs: passes that are made to look at a network, and leave it as it was found."""

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
    """Return the network inside a compiled one; others as they are."""
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, nn.Module):
        raise ValueError(f"model must be an nn.Module; got {describe(model)}.")
    return inner


def version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None in inference mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


def check_explainable(model: nn.Module) -> None:
    """Raise a ValueError for a network whose layers have neither hooks nor gradients."""
    instead = "the nn.Module, in floating point, that it was made from"
    kinds = [type(part).__module__ for part in model.modules()]
    if isinstance(model, torch.jit.ScriptModule):
        what = "is traced or scripted, so its layers call no hooks"
    elif any(".quantized" in kind for kind in kinds):
        what = "is quantized, so its layers have no gradients"
    elif any(parameter.is_inference() for parameter in model.parameters()):
        what = "was made in torch.inference_mode(), so it has no gradients"
        instead = "a copy.deepcopy of it, made outside of that mode"
    else:
        return
    raise ValueError(f"The network ({type(model).__name__}) {what}; use {instead}.")


# The lock of each module, with its age: modes, hooks and buffers are shared by all threads. And for
# each network the locks of its parts, with the ids of these, as looking up each takes a while.
_AgedLock = tuple[int, Any]
_locks: MutableMapping[nn.Module, _AgedLock] = WeakKeyDictionary()
_locks_of: MutableMapping[nn.Module, tuple[list[int], list[_AgedLock]]] = WeakKeyDictionary()
_ages, _locks_lock = count(), Lock()
_mine = local()  # the networks that this thread evaluates: those are locked and uncompiled already

# Held while torch's global generators are swapped, which are the process's; after a network's own.
generators_lock = RLock()


def _is_evaluated(model: nn.Module) -> bool:
    return any(model is network for network in vars(_mine).get("networks", ()))


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Keep other threads from a network, and from those that share a part with it, in the block."""
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
    """Let an attribute of an instance stand before that of its class, or the one it had."""
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
    """Run a network's compiled parts, or those around some layers, by what they were made from.

    Compiled code calls no hooks that came after it, heeds no function modes, and keeps no graph
    that is gone through twice.
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
    """Set a network to evaluation mode for this thread alone; the modes are put back afterwards."""
    with exclusive(model), uncompiled(model):
        modes = [(part, part.training) for part in model.modules()]
        _mine.networks = [*vars(_mine).get("networks", ()), model]
        try:
            model.eval()
            yield
        finally:
            _mine.networks.pop()
            for part, training in modes:
                part.training = training  # not train(), which a network may have overridden


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; modes, buffers and random state are put back afterwards."""
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
            if not is_lazy(buffer)  # whose values the first pass decides
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
    """End a block where a network fails, as one that takes a single size may, with any error.

    A lack of memory says nothing of the network, and is raised.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return


def memory_of(tensor: Tensor) -> int:
    """Return what is the same for tensors that share their memory, as views do."""
    # Not the address of the numbers, which is public: on some devices there is none.
    return tensor.untyped_storage()._cdata


def first_output(output: Any, name: str | int | None = None) -> Any:
    """Return the output that counts: the one of that name, or else the one that is recognised.

    Parameters
    ----------
    output : object
        What a network returns.
    name : str, int or None, default=None
        The key or position of the output that counts. None is the first of a tuple or a list, as
        further ones are of auxiliary heads; of a mapping it is "logits", as Hugging Face's networks
        call it, "out", as torchvision's do, or its only tensor.

    Returns
    -------
    object
        A Tensor, or whatever else the network returns where no output can be found by that rule.

    Raises
    ------
    ValueError
        If there is no output of that name, or none is named and a mapping holds several.
    """
    if name is not None:
        try:
            return output[name]
        except (LookupError, TypeError):
            raise ValueError(
                f"The network's output has no entry output_name={name!r}: it is "
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
        f"Which output of the network counts cannot be told: it returns "
        f"{_describe_outputs(output)}; name the entry, output_name=..., or wrap the network in a "
        "module that returns a Tensor."
    )


def _describe_outputs(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {sorted(map(str, output))}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return describe(output)


def run_dry(model: nn.Module, sample: Tensor) -> Any:
    """Run a network on a sample; its first output, or a ValueError that says what is wrong."""
    model = unwrap(model)  # nothing is gained by compiling for a single run
    first = next(model.parameters(), None)
    try:
        with left_as_found(model):
            images = sample.clone() if first is None else sample.to(first.device, copy=True)
            return first_output(model(images))  # a copy, as some networks write into their input
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        channels, size = sample.shape[1], " x ".join(map(str, sample.shape[2:]))
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(
            f"{type(model).__name__} fails on images of {size} pixels and {channels} channel(s): "
            f"{reason} Try another image_size, or make sure that the network takes {channels} "
            "input channel(s)."
        ) from error


def check_output(
    model: nn.Module, sample: Tensor, n_outputs: int, *, name: str = "classes"
) -> None:
    """Check by one dry run that a network takes such images and has as many outputs as it should.

    The network's mode, hooks, buffers and gradients, and the random generators, are left as they
    were found.

    Parameters
    ----------
    model : nn.Module
        Its output, or the first entry of it, are the logits, or an embedding.
    sample : float Tensor of shape (n, channels, height, width)
        One image will do.
    n_outputs : int
        How many are expected.
    name : str, default="classes"
        What there should be as many of, for the message.

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
            f"module returned a {type(output).__name__} for {n_outputs} {name}; it must return a "
            f"Tensor of shape (n_images, {n_outputs}), or a tuple that begins with one."
        )
    if output.shape != (len(sample), n_outputs):
        raise ValueError(
            f"module returned shape {tuple(output.shape)} for {n_outputs} {name}, where "
            f"{(len(sample), n_outputs)} is wanted; give it num_classes={n_outputs}."
        )
