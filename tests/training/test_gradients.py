"""Gradients that leave during the backward pass: when they do, and in which order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sklcam.training import _gradients
from sklcam.training._gradients import AveragedGradients


class Doubled:
    """Two processes, the other of which has the same gradients."""

    count = 2

    def __init__(self):
        self.sent = []

    def from_main(self, value):
        return value

    def sum_soon(self, flat):
        self.sent.append(flat.clone())
        flat *= 2
        return self

    def wait(self):
        pass


@pytest.fixture
def parameters(monkeypatch):
    monkeypatch.setattr(_gradients, "_BUCKET_BYTES", 8)  # of two numbers of float32
    return [nn.Parameter(torch.tensor([float(i)])) for i in range(1, 6)]


def take_back(parameters, *of_ways_back):
    """Run a backward pass for each list of parameters, which it reaches in this order."""
    for indices in of_ways_back:
        value = torch.zeros(())
        for i in reversed(indices):  # the last one used comes first in the backward pass
            value = value + parameters[i].sum() ** 2 / 2
        yield value.backward


def step(averaged, parameters, *of_ways_back):
    """Return how many buckets have left after each backward pass."""
    for parameter in parameters:
        parameter.grad = None
    n_left, sent = len(of_ways_back), []
    with averaged.during(parameters, lambda: n_left == 1):
        for go_back in take_back(parameters, *of_ways_back):
            go_back()
            n_left -= 1
            sent.append(averaged.n_sent)
        local = [None if each.grad is None else each.grad.clone() for each in parameters]
        averaged.finish()
    for parameter, gradient in zip(parameters, local, strict=True):
        expected = torch.zeros(1) if gradient is None else gradient
        assert torch.equal(parameter.grad, expected)  # the mean of two that are the same
    return sent


def test_buckets_leave_in_the_order_of_the_first_step(parameters):
    processes = Doubled()
    averaged = AveragedGradients(processes)
    assert step(averaged, parameters, [0, 1, 2, 3, 4]) == [0]
    assert len(processes.sent) == 3
    first = torch.cat(processes.sent)
    processes.sent.clear()
    assert step(averaged, parameters, [0, 1, 2, 3, 4]) == [3]
    assert torch.equal(torch.cat(processes.sent), first)


def test_nothing_leaves_before_the_last_backward_pass(parameters):
    averaged = AveragedGradients(Doubled())
    ways = ([0, 1, 2, 3, 4], [4, 3])
    assert step(averaged, parameters, *ways) == [0, 0]
    assert step(averaged, parameters, *ways) == [0, 1]  # 4 and 3, whose two gradients are added


def test_what_does_not_come_waits_for_the_end(parameters):
    averaged = AveragedGradients(Doubled())
    step(averaged, parameters, [0, 1, 2, 3])
    assert step(averaged, parameters, [2, 3]) == [0]  # 0 and 1 are in the bucket before
    assert step(averaged, parameters, [3, 2, 1, 0]) == [2]


def test_other_parameters_have_another_order(parameters):
    averaged = AveragedGradients(Doubled())
    step(averaged, parameters, [0, 1, 2, 3, 4])
    some = parameters[:4]
    assert step(averaged, some, [3, 2, 1, 0]) == [0]
    assert step(averaged, some, [3, 2, 1, 0]) == [2]


def test_types_do_not_share_a_bucket(parameters):
    parameters[1] = nn.Parameter(parameters[1].detach().double())
    processes = Doubled()
    averaged = AveragedGradients(processes)
    step(averaged, parameters, [0, 1, 2, 3, 4])
    assert sorted(str(flat.dtype) for flat in processes.sent) == [
        *["torch.float32"] * 2,
        "torch.float64",
    ]


def test_hooks_are_gone_afterwards(parameters):
    averaged = AveragedGradients(Doubled())
    with pytest.raises(ZeroDivisionError), averaged.during(parameters, lambda: True):
        _ = 1 / 0
    (parameters[0] * 2).sum().backward()
    assert averaged.n_sent == 0 and not parameters[0]._post_accumulate_grad_hooks


def test_a_gradient_that_comes_twice_in_one_backward_pass_is_refused(parameters):
    averaged = AveragedGradients(Doubled())
    with averaged.during(parameters, lambda: True):
        parameters[0].sum().backward()
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            parameters[0].sum().backward()
