"""A recorded pass: gradients, maps and other images by hand, and passes that are shared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sklcam.cam import (
    AblationCAM,
    FakeCAM,
    GradCAM,
    GroupCAM,
    GuidedBackprop,
    LayerCAM,
    RecordedPass,
    Saliency,
    ScoreCAM,
    TopK,
    Uniform,
)
from sklcam.cam.passes import record_for, sharing_a_pass
from sklcam.networks import Inputs, TargetLayer


class Weighted(nn.Module):
    """Each channel times 1, 2, ..., then the sum of squares: scores that are not linear."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()
        self.n_runs = 0

    def forward(self, x):
        self.n_runs += 1
        activations = self.layer(x * torch.arange(1.0, 1 + x.shape[1])[:, None, None])
        return activations.square().sum((2, 3)) / 2


IMAGES = torch.tensor([[[[1.0, -2.0]], [[0.0, 3.0]]], [[[4.0, 0.0]], [[-1.0, 1.0]]]])
ACTIVATIONS = IMAGES * torch.tensor([1.0, 2.0])[:, None, None]
LAYER = TargetLayer("layer")


def recorded(target=None, **options):
    return RecordedPass(Weighted(), [LAYER], IMAGES, target, **options)


# One pass


def test_what_it_holds():
    ours = recorded(torch.tensor([1, 0]))
    assert ours.output.tolist() == [[2.5, 18.0], [8.0, 4.0]]
    assert ours.scores.tolist() == [[18.0], [8.0]]
    assert torch.equal(ours.grid(0), ACTIVATIONS)
    assert (ours.n_images, ours.size, ours.network.n_runs) == (2, (1, 2), 1)


def test_gradients_by_hand():
    """The gradient of half a square is the activation, in its own channel alone."""
    ours = recorded(TopK(2))
    for column, channels in ((0, [1, 0]), (1, [0, 1])):
        expected = torch.zeros_like(IMAGES)
        for image, channel in enumerate(channels):
            expected[image, channel] = ACTIVATIONS[image, channel]
        (grid,) = ours.gradient_grids(column)
        assert torch.equal(grid, expected)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(ours.scores.sum(), ours.activations)  # freed with the last column
    assert ours.gradients(0)[0] is ours.gradients(0)[0]  # taken once


def test_gradients_of_the_images_by_hand():
    ours = recorded(torch.tensor([1, 1]), graph="images")
    expected = torch.zeros_like(IMAGES)
    expected[:, 1] = 2 * ACTIVATIONS[:, 1]  # through the factor of the channel
    assert torch.equal(ours.image_gradients(0), expected)
    assert not IMAGES.requires_grad


def test_scores_are_stacked_for_each_layer():
    ours = recorded(TopK(2))
    (stacked,) = ours.for_each_score(lambda column: [torch.full((2, 3), float(column))])
    assert stacked.tolist() == [[[0.0] * 3, [1.0] * 3]] * 2


@pytest.mark.parametrize(
    ("top_channels", "expected"),
    [(None, [[[[1.0, 4.0]]], [[[4.0, 0.0]]]]), (1, [[[[1.0, 0.0]]], [[[2.0, 0.0]]]])],
)
def test_weighted_maps_by_hand(top_channels, expected):
    """Weights of 1 and 1, and of 1/2 and -1: the first channel weighs the most."""
    weights = torch.tensor([[[1.0, 1.0]], [[0.5, -1.0]]])
    (maps,) = recorded(top_channels=top_channels).weighted_maps([weights], relu=True)
    assert maps.tolist() == expected


def test_other_images_are_asked_the_same():
    ours = recorded()  # classes 1 and 0
    other = ours.on(IMAGES.flip(1))
    assert torch.equal(other.target.indices, ours.target.indices)
    assert other.scores.tolist() == [[5.0 * 2], [1.0]]
    rows = torch.tensor([1, 1, 0])
    output = ours.run(IMAGES[[0, 1, 1]], rows)
    assert not output.requires_grad
    assert ours.score(output, rows).tolist() == [[2.5], [8.0], [4.0]]


def test_a_pass_is_resumed_at_the_layer():
    ours = recorded(torch.tensor([1, 0]), resumable=True)
    dark = torch.stack([torch.zeros(2, 1, 2), torch.ones(2, 1, 2)])
    assert ours.resume(0, dark, 0).tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert ours.resume(0, dark, 1, from_start=True).tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_other_inputs_go_with_their_rows():
    class Scaled(Weighted):
        def forward(self, image, factor):
            return super().forward(image) * factor[:, None]

    inputs = Inputs(IMAGES, {"factor": torch.tensor([2.0, 10.0])}, "image")
    ours = RecordedPass(Scaled(), [LAYER], inputs, torch.tensor([1, 0]))
    assert ours.scores.tolist() == [[36.0], [80.0]]
    assert ours.run(IMAGES[[1, 1]], torch.tensor([1, 0])).tolist() == [[80.0, 40.0], [16.0, 8.0]]


# Passes that are shared


@pytest.mark.parametrize(
    ("methods", "groups"),
    [
        ([GradCAM()], [[0]]),
        ([ScoreCAM(), GradCAM(), Saliency()], [[1, 2, 0]]),
        ([GuidedBackprop(), GradCAM(), GradCAM(gradient="guided"), LayerCAM()], [[1, 3], [0], [2]]),
        ([GuidedBackprop(), GuidedBackprop()], [[0], [1]]),
    ],
)
def test_methods_with_a_rule_stand_alone(methods, groups):
    assert sharing_a_pass(methods) == groups


@pytest.mark.parametrize(
    ("methods", "has_head", "has_images", "n_layers"),
    [
        ([Uniform(), FakeCAM()], False, False, 0),
        ([AblationCAM(), ScoreCAM()], False, False, 1),
        ([AblationCAM(), GradCAM()], True, False, 1),
        ([Saliency()], True, True, 0),
        ([Saliency(), GradCAM()], True, True, 1),
        ([GroupCAM(), Saliency()], True, True, 1),
    ],
)
def test_a_pass_has_the_graph_that_its_methods_need(methods, has_head, has_images, n_layers):
    ours = record_for(methods, Weighted(), [LAYER], IMAGES)
    assert ours.scores.requires_grad is has_head
    assert ours.images.requires_grad is has_images
    assert len(ours.layers) == n_layers
    # All of them can be made of it, in any order; the graph for one alone is freed at once.
    for method in [*methods, *reversed(methods)] if len(methods) > 1 else methods:
        (maps,) = method.explain(ours)
        assert maps.shape[:2] == (2, 1)


def test_methods_are_checked_before_the_pass():
    network = Weighted()
    with pytest.raises(ValueError, match="pooling"):
        record_for([LayerCAM(), GradCAM(pooling="median")], network, [LAYER], IMAGES)
    assert network.n_runs == 0
