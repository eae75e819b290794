"""A training step queues its work on the device and never waits for it."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

import pytest
import torch
from small_networks import DropoutNet, SmallNet, digits
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sklcam import ConsistentCAMClassifier
from sklcam.images import ImageDataset

X, Y = digits(24)
SIZE = 16

SETTINGS = [
    {},
    {"memory": "low"},
    {"batch_accumulation": 2},
    {"memory": "low", "batch_accumulation": 2},
    {"channels_last": True},
]
TERMS = [{"p": p, "view_target": target} for p in (0, 1, 2) for target in ("predicted", "shared")]
HALF = [{"precision": "bf16", **setting} for setting in SETTINGS]
ALL = [*({**one, **two} for one in SETTINGS for two in TERMS), *HALF]

# What has to know values before it can go on: the host reads them, or the shape hangs on them.
NEEDS_VALUES = {
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "allclose",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "unique_consecutive",
    "unique_dim",
    "unique_dim_consecutive",
}
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Waits(RuntimeError):
    """The host would have to wait for the device."""


class NoWaiting(TorchDispatchMode):
    """Refuses operations that need values, on any device, and notes which ones ran."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen.add(name)
        if name in NEEDS_VALUES or (name == "repeat_interleave" and "Tensor" in func._overloadname):
            raise Waits(str(func))
        if name in INDEXES:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            if masks:
                raise Waits(f"{func} by a mask")
        return func(*args, **(kwargs or {}))


class NoBlockingCopies(NoWaiting):
    """Refuses blocking copies between the host and the device, and mixtures of their tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if name == "_to_copy" and kwargs.get("device") is not None:
            devices.add(kwargs["device"].type)
        if len(devices) > 1:
            is_copy = name in ("_to_copy", "copy_")
            to_host = name == "copy_" and args[0].device.type == "cpu"
            to_host |= name == "_to_copy" and kwargs["device"].type == "cpu"
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
            if is_copy and (to_host or blocking):
                raise Waits(f"{func}, to the {'host' if to_host else 'device'}")
            # Arithmetic takes a number that is a tensor on the host along with its arguments.
            if not is_copy and any(t.ndim for t in tensors if t.device.type == "cpu"):
                raise Waits(f"{func} on tensors of host and device")
        if devices <= {"cpu"}:  # the host's own business
            return func(*args, **kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


def stepping(module=DropoutNet, device="cpu", **options):
    """Return a classifier that has not been trained, and a function that trains a step."""
    clf = ConsistentCAMClassifier(
        module,
        **{
            "image_size": SIZE,
            "target_layer": "5",
            "beta": 1e-3,
            "max_epochs": 0,
            "verbose": 0,
            "random_state": 0,
            "device": device,
            **options,
        },
    ).fit(X, Y)
    images = ImageDataset(X, image_size=SIZE)
    batch = torch.stack([image for image, _ in images]), torch.from_numpy(Y)
    if device == "cuda":
        batch = tuple(tensor.pin_memory() for tensor in batch)
    clf.history.new_epoch()
    clf.history.new_batch()
    with clf._own_randomness():
        clf.train_step(batch)  # the first finds out, once, if the network writes into its input
    clf.history.new_batch()

    def step(*modes):
        with clf._own_randomness(), ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            return clf.train_step(batch)

    return clf, step


def without_records(monkeypatch):
    """Leave the numbers of a step unread, which is done once, when all of it is queued."""
    monkeypatch.setattr(ConsistentCAMClassifier, "_read", lambda self, step, phase, loss: loss)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_a_step_needs_no_values(options, monkeypatch):
    without_records(monkeypatch)
    _, step = stepping(**options)
    mode = NoWaiting()
    loss = step(mode)["loss"]
    assert torch.isfinite(loss)
    assert {"convolution", "convolution_backward", "native_batch_norm_backward"} <= mode.seen
    assert {"grid_sampler_2d", "grid_sampler_2d_backward"} <= mode.seen  # the map's view


# Tensors on the meta device have no values at all: what would read one fails by itself. And they
# are elsewhere than the host, so that copies can be told from the rest.
@pytest.mark.parametrize("options", [*TERMS, *SETTINGS], ids=str)
def test_a_step_copies_without_blocking(options, monkeypatch):
    without_records(monkeypatch)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # has no "meta"
    monkeypatch.setattr("sklcam.training.net.check_device", lambda device: None)  # refuses "meta"
    _, step = stepping(device="meta", **options)
    mode = NoBlockingCopies()
    assert step(mode)["loss"].device.type == "meta"
    assert {"_to_copy", "convolution_backward"} <= mode.seen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", ALL, ids=str)
def test_a_step_on_cuda_does_not_make_the_host_wait(options, monkeypatch):
    without_records(monkeypatch)
    _, step = stepping(device="cuda", **options)
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step()["loss"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)


class Reading(TorchFunctionMode):
    """Notes what reads a tensor's values."""

    READ = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.READ:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"memory": "low", "batch_accumulation": 3}, {"alpha": 0}])
def test_the_terms_of_a_step_are_read_together(options):
    clf, step = stepping(**options)
    mode = Reading()
    loss = step(mode)["loss"].item()
    assert mode.seen == ["tolist"]
    row = clf.history[-1, "batches", -1]
    total = row["train_ce"] + row.get("train_inconsistency", 0) + 1e-3 * row["train_norm"]
    assert total == pytest.approx(loss, rel=1e-5)


# The modes see what they are there for


class ReadsOnTheWayBack(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * (gradient.sum() * 0 + 1).item()


WAITING = {
    "item": lambda x: x * x.sum().item(),
    "bool": lambda x: x if x.sum() > 0 else x * 2,
    "mask": lambda x: x + x[x > 0].sum(),
    "assignment": lambda x: x.clone().index_put_((x > 0,), x.new_zeros(())),
    "nonzero": lambda x: x + len(x.nonzero()),
    "unique": lambda x: x + x.detach().unique().sum(),
    "equal": lambda x: x + torch.equal(x, x),
    "backward": ReadsOnTheWayBack.apply,
}


class WaitingNet(SmallNet):
    does = staticmethod(torch.clone)

    def forward(self, x):
        return super().forward(self.does(self[0](x))[:, :1] if self.training else x)


@pytest.mark.parametrize("does", WAITING)
def test_what_waits_is_found(does, monkeypatch):
    without_records(monkeypatch)
    _, step = stepping(WaitingNet)
    monkeypatch.setattr(WaitingNet, "does", staticmethod(WAITING[does]))
    step()
    with pytest.raises(Waits):
        step(NoWaiting())


@pytest.mark.parametrize(
    "does",
    [
        lambda x: x.to("meta"),
        lambda x: torch.empty(3, device="meta").copy_(x),
        lambda x: x.to("meta", non_blocking=True).cpu(),
        lambda x: torch.where(x > 0, x.to("meta", non_blocking=True), 0.0),
    ],
)
def test_what_blocks_is_found(does):
    with NoBlockingCopies(), pytest.raises(Waits):
        does(torch.zeros(3))
