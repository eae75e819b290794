"""Dry runs: what they find out, and that they leave no trace."""

from __future__ import annotations

import threading
from collections import OrderedDict

import pytest
import torch
from backbones import (
    SmallNet,
    small_vit,
)
from torch import Tensor, nn

from sklcam.networks import (
    build_model,
    check_output,
    find_target_layer,
)
from sklcam.networks.dry_run import exclusive, first_output, run_dry, uncompiled


class Fragile(SmallNet):
    """Counts its runs in a buffer, draws random numbers, and fails when told to."""

    def __init__(self, fails: bool) -> None:
        super().__init__(num_classes=3)
        self.fails = fails
        self.register_buffer("n_runs", torch.zeros(()))
        self.seen_training: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.n_runs = self.n_runs + 1
        self.norm.running_mean += torch.rand(4)
        self.seen_training.append(any(module.training for module in self.modules()))
        logits = super().forward(images)
        if self.fails:
            raise RuntimeError("the wrong size")
        return logits


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("dry_run", [check_output, find_target_layer])
def test_a_dry_run_leaves_everything_as_it_was(dry_run, fails):
    model = Fragile(fails)
    model.train()
    model.norm.eval()  # a frozen layer in a network that trains
    model.head.weight.requires_grad_(False)
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    modes = {name: module.training for name, module in model.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    identities = {name: id(buffer) for name, buffer in model.named_buffers()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)

    sample = torch.rand(1, 3, 8, 8, generator=torch.Generator())
    arguments = {"n_outputs": 3} if dry_run is check_output else {"sample": sample}
    if fails:
        with pytest.raises(ValueError, match="the wrong size"):
            dry_run(model, *([sample] if dry_run is check_output else []), **arguments)
    else:
        dry_run(model, *([sample] if dry_run is check_output else []), **arguments)

    assert set(model.seen_training) == {False}
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == identities
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.rand(3), expected)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))
    assert not model.head.weight.requires_grad
    assert model.conv1.weight.requires_grad
    assert torch.is_grad_enabled()


ONE, TWO = torch.zeros(1), torch.ones(1)


@pytest.mark.parametrize(
    ("output", "name"),
    [
        (ONE, None),
        ((ONE, TWO), None),
        ([TWO, ONE], 1),
        ({"logits": ONE, "hidden_states": TWO}, None),
        ({"loss": None, "out": ONE}, None),
        (OrderedDict(out=TWO, aux=ONE), "aux"),
        (OrderedDict(aux=TWO, out=ONE), None),
    ],
)
def test_the_output_that_counts(output, name):
    assert first_output(output, name) is ONE


@pytest.mark.parametrize(
    ("output", "name", "message"),
    [
        (
            {"main": ONE, "aux": TWO},
            None,
            r"a dict of \['aux', 'main'\], .* Name the entry with output_name=",
        ),
        (
            {"out": ONE},
            "logits",
            r"no entry output_name='logits'. The output is a dict of \['out'\]",
        ),
        ((ONE, TWO), 2, r"no entry output_name=2. The output is a tuple of 2"),
        (None, "out", "no entry output_name='out'"),
    ],
)
def test_outputs_of_which_none_is_known_to_count(output, name, message):
    with pytest.raises(ValueError, match=message):
        first_output(output, name)


def test_check_output_looks_at_the_output_that_counts():
    class Tuple(SmallNet):
        def forward(self, images):
            return super().forward(images), None

    class Dict(SmallNet):
        def forward(self, images):
            return {"logits": super().forward(images)}

    class Nothing(SmallNet):
        def forward(self, images):
            return {}

    sample = torch.zeros(1, 3, 8, 8)
    check_output(Tuple(), sample, n_outputs=10)
    check_output(Dict(), sample, n_outputs=10)
    with pytest.raises(ValueError, match=r"a dict of \[\]"):
        check_output(Nothing(), sample, n_outputs=10)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 8, 8\)"):
        check_output(nn.Identity(), sample, n_outputs=3)


@pytest.mark.parametrize(("name", "side"), [("alexnet", 32), ("inception_v3", 64)])
def test_too_small_images_are_named(name, side):
    with torch.device("meta"):
        model = build_model(name, n_classes=2)
        with pytest.raises(ValueError, match=rf"{side} x {side} pixels") as caught:
            check_output(model, torch.empty(1, 3, side, side), n_outputs=2)
    assert type(model).__name__ in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_wrong_channels_and_sizes_are_named():
    with pytest.raises(ValueError, match=r"SmallNet.*8 x 8 pixels and 1 channel"):
        check_output(SmallNet(), torch.zeros(1, 1, 8, 8), n_outputs=10)
    with pytest.raises(ValueError, match=r"VisionTransformer.*24 x 24 pixels"):
        check_output(small_vit(16), torch.zeros(1, 3, 24, 24), n_outputs=3)


class Frozen(SmallNet):
    """Never to be trained again, as its author has it."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


def test_modes_are_put_back_though_the_network_says_otherwise():
    model = Frozen()
    assert model.training  # nobody has called train() yet
    check_output(model, torch.zeros(1, 3, 8, 8), n_outputs=10)
    assert all(module.training for module in model.modules())


# Threads


def waits_for(model, other) -> bool:
    """Whether another thread waits to use one network until a first one is let go."""
    entered = threading.Event()

    def enter():
        with exclusive(other):
            entered.set()

    thread = threading.Thread(target=enter)
    with exclusive(model), exclusive(model):  # its own thread does not wait
        thread.start()
        has_waited = not entered.wait(0.2)
    thread.join()
    assert entered.is_set()
    return has_waited


def test_threads_wait_for_networks_that_share_a_part():
    first, second, third = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    assert waits_for(first, first)
    assert not waits_for(first, second)
    both = nn.Sequential(first, second)  # each has a lock of its own by now
    assert waits_for(both, second)
    assert waits_for(second, both)
    assert waits_for(both, nn.Sequential(first, third))
    assert not waits_for(second, third)


def test_threads_do_not_wait_for_each_other_for_ever():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    for model in (first, second):
        with exclusive(model):
            pass
    pairs = [nn.Sequential(first, second), nn.Sequential(second, first)]

    def work(model):
        for _ in range(500):
            with exclusive(model):
                pass

    threads = [threading.Thread(target=work, args=(pair,), daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_dry_runs_in_threads_leave_the_generator_where_it_was():
    models = [nn.Sequential(Drawing()) for _ in range(3)]
    before = torch.get_rng_state()

    def work(model):
        for _ in range(30):
            run_dry(model, torch.zeros(1, 1, 2, 2))

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), before)


class Drawing(nn.Module):
    def forward(self, x):
        return x + torch.rand(300, 300).mean()


# Compiled parts


@pytest.mark.parametrize("around", [False, True])
def test_compiled_parts_call_hooks_as_long_as_they_are_uncompiled(around):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    model[1].compile(backend="eager")
    model[2] = torch.compile(model[2], backend="eager")
    x, ran = torch.rand(1, 2), []
    model(x)
    layers = [model[1][0], model[2]._orig_mod]
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: ran.append(layer))
    was = [dict(vars(part)) for part in model.modules()]
    with uncompiled(model, around={layers[0]} if around else None):
        model(x)
    assert ran == layers[: 1 if around else 2]
    assert [dict(vars(part)) for part in model.modules()] == was
    torch._dynamo.reset()


class Large(SmallNet):
    """Has memory for one image alone."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 1:
            raise torch.OutOfMemoryError("no memory is left")
        return super().forward(images)


def test_a_lack_of_memory_says_nothing_of_a_layer():
    sample = torch.zeros(1, 3, 32, 32)
    with pytest.raises(torch.OutOfMemoryError, match="no memory is left"):
        find_target_layer(Large(num_classes=3), sample=sample)
