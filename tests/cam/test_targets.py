"""Targets: scores by hand, what they resolve to, and targets of one's own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sklcam import CAMExplainer
from sklcam.cam import Classes, Deferred, Directions, Target, TopK, target_scores
from sklcam.cam.asked import Score, as_target
from sklcam.cam.targets import Predicted
from sklcam.metrics import evaluate
from sklcam.networks import Inputs

LOGITS = torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0]])


def test_targets():
    logits = torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0]])
    assert target_scores(logits).tolist() == [5.0, 7.0]
    assert target_scores(logits, torch.tensor([2, 1])).tolist() == [2.0, 0.0]
    difference = target_scores(logits.requires_grad_(), lambda out: out[:, 0] - out[:, 1])
    assert difference.tolist() == [-4.0, 7.0]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([1]), r"shape \(1,\) for 2 images"),
        (lambda out: out.sum(), r"shape \(\)"),
        (lambda out: 3.0, "it returned <class 'float'>"),
        (lambda out: out.detach()[:, 0], "differentiable"),
    ],
)
def test_targets_that_do_not_fit(target, message):
    logits = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        target_scores(logits, target)


def test_an_output_that_is_not_class_scores_needs_a_callable():
    with pytest.raises(ValueError, match="callable target"):
        target_scores(torch.rand(2, 3, 4, 4))


# Resolved


@pytest.mark.parametrize(
    ("target", "indices", "several"),
    [
        (None, [[1], [0]], False),
        (TopK(1), [[1], [0]], True),
        (TopK(2), [[1, 2], [0, 2]], True),
        (torch.tensor([2, 1]), [[2], [1]], False),
        (torch.tensor([[0, 2], [1, 1]]), [[0, 2], [1, 1]], True),
    ],
)
def test_classes_are_fixed_by_the_output(target, indices, several):
    asked = as_target(target)
    resolved = asked.resolve(LOGITS)
    assert (asked.several, asked.k) == (resolved.several, resolved.k) == (several, len(indices[0]))
    assert resolved.indices.tolist() == indices
    # The same question of other images, which have another predicted class.
    expected = [[row[i] for i in own] for row, own in zip((-LOGITS).tolist(), indices, strict=True)]
    assert resolved.scores(-LOGITS).tolist() == expected
    assert resolved.names_classes
    assert target_scores(LOGITS, target).shape == ((2, len(indices[0])) if several else (2,))


def test_the_probability_is_that_of_the_first_class():
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3]])
    resolved = TopK(2).resolve(LOGITS)
    torch.testing.assert_close(resolved.probability(probabilities), torch.tensor([0.7, 0.6]))
    rows = torch.tensor([1, 1, 0])
    chosen = resolved.probability(probabilities[[0, 1, 1]], rows)
    torch.testing.assert_close(chosen, torch.tensor([0.1, 0.6, 0.1]))
    assert Directions(LOGITS).probability(probabilities) is None


def test_directions_by_hand():
    vectors = torch.tensor(
        [[[1.0, 0.0, 0.0], [0.0, 1.0, -1.0]], [[0.0, 0.0, 2.0], [1.0, 1.0, 1.0]]]
    )
    assert Directions(vectors).scores(LOGITS).tolist() == [[1.0, 3.0], [6.0, 10.0]]
    rows = torch.tensor([1, 0])
    assert Directions(vectors).scores(LOGITS, rows=rows).tolist() == [[4.0, 8.0], [7.0, -3.0]]
    alone = Directions(vectors[:, 0])
    assert not alone.several and alone.scores(LOGITS).tolist() == [[1.0], [6.0]]
    assert alone.take(slice(1, 2)).directions.tolist() == [[[0.0, 0.0, 2.0]]]


def test_directions_that_stand_for_classes():
    labelled = Directions(torch.eye(3)[[2, 0]], torch.tensor([2, 0])).take(slice(1, 2))
    resolved = labelled.resolve(LOGITS[1:])
    assert resolved.names_classes and resolved.indices.tolist() == [[0]]
    assert resolved.probability(torch.tensor([[0.6, 0.1, 0.3]])).tolist() == pytest.approx([0.6])
    assert not Directions(torch.eye(3)[[2, 0]]).names_classes


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Directions(torch.ones(2, 4)), r"of shape \(2, 3\); got shape \(2, 4\)"),
        (Directions(torch.ones(1, 2, 3)), r"got shape \(1, 2, 3\)"),
        (Classes(torch.tensor([[0, 1]])), r"got shape \(1, 2\) for 2 images"),
        (
            Classes(torch.tensor([0, 3])),
            "indices from 0 to 3, .* 3 classes. Give indices from 0 to 2",
        ),
        (TopK(4), r"TopK\(4\) asks for more classes than the network has: 3"),
    ],
)
def test_targets_of_another_output(target, message):
    with pytest.raises(ValueError, match=message):
        target.resolve(LOGITS)


def test_an_unresolved_target_asks_the_output_that_it_is_given():
    assert Predicted().scores(LOGITS).tolist() == [[5.0], [7.0]]
    assert TopK(2).scores(LOGITS).tolist() == [[5.0, 2.0], [7.0, 3.0]]


# Callables


def test_a_callable_of_two_arguments_gets_the_inputs_of_its_rows():
    def score(output, images):
        return output[:, 0] * images.mean((1, 2, 3))

    images = torch.tensor([1.0, 10.0])[:, None, None, None].expand(2, 1, 2, 2)
    target, inputs = Score(score), Inputs(images)
    assert target.scores(LOGITS, inputs).tolist() == [[1.0], [70.0]]
    rows = torch.tensor([1, 0, 1])
    assert target.scores(LOGITS[[0, 0, 1]], inputs, rows).tolist() == [[10.0], [1.0], [70.0]]
    with pytest.raises(ValueError, match="takes output and inputs, but no inputs were given"):
        target.scores(LOGITS)


def test_inputs_by_name_come_as_a_dict():
    inputs = Inputs(torch.zeros(2, 1, 2, 2), {"age": torch.tensor([3.0, 4.0])}, "image")
    target = Score(lambda output, given: output[:, 1] * given["age"])
    assert target.scores(LOGITS, inputs).tolist() == [[15.0], [0.0]]


@pytest.mark.parametrize(
    "function",
    [
        lambda output, scale=2.0: output[:, 0] * scale,
        lambda output, *, scale=2.0: output[:, 0] * scale,
        lambda *outputs: 2 * outputs[0][:, 0],
        partial(lambda output, scale: output[:, 0] * scale, scale=2.0),
    ],
)
def test_a_callable_that_can_do_without_inputs_is_given_none(function):
    target = Score(function)
    assert target.scores(LOGITS, Inputs(torch.zeros(2, 1, 2, 2))).tolist() == [[2.0], [14.0]]


# Of one's own, wherever targets are taken


class Pooled(nn.Module):
    """The mean of each channel; a network whose maps one can work out by hand."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        return self.layer(x).mean((2, 3))


# Three channels of 1 x 2: means of 3, 2, 1 and of 1, 2, 6.
IMAGES = torch.tensor(
    [[[[0.0, 6.0]], [[4.0, 0.0]], [[0.0, 2.0]]], [[[2.0, 0.0]], [[0.0, 4.0]], [[8.0, 4.0]]]]
)


def explainer(**options):
    return CAMExplainer(Pooled(), target_layer="layer", verbose=0, **options).fit(IMAGES)


class Margin(Target):
    """By how much the class that is predicted leads the next one."""

    def scores(self, output, inputs=None, rows=None):
        first, second = output.topk(2, dim=1).values.unbind(1)
        return (first - second)[:, None]


class BestAndWorst(Deferred):
    """The highest class and the lowest one, each with a map."""

    several, k, names_classes = True, 2, True

    def resolve(self, output, inputs=None):
        return Classes(torch.stack([output.argmax(1), output.argmin(1)], dim=1))


class Bright(Target):
    """The first output for a bright image, the second for a dark one."""

    def scores(self, output, inputs=None, rows=None):
        bright = inputs.images.mean((1, 2, 3)) > 3
        bright = bright if rows is None else bright[rows]
        return torch.where(bright, output[:, 0], output[:, 1])[:, None]


class Share(Target):
    """The share of each image's own class, with a probability."""

    names_classes = True

    def __init__(self, classes):
        self.classes = classes

    def take(self, rows):
        return Share(self.classes[rows])

    def own(self, values, rows):
        classes = self.classes if rows is None else self.classes[rows]
        return values.gather(1, classes[:, None])

    def scores(self, output, inputs=None, rows=None):
        return self.own(output / output.sum(1, keepdim=True), rows)

    def probability(self, probabilities, rows=None):
        return self.own(probabilities, rows)[:, 0]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_maps_of_targets_of_ones_own(batch_size):
    ours = explainer(batch_size=batch_size)

    def maps(target):
        return (2 * ours.explain(IMAGES, target, normalize=False)).tolist()

    # The gradient of a mean of two is 1/2: twice the map is the first channel less the second, in
    # the second image the third channel less the second.
    assert maps(Margin()) == [[[0.0, 6.0]], [[8.0, 0.0]]]
    # Of classes 0 and 2, and of 2 and 0.
    assert maps(BestAndWorst()) == [[[[0.0, 6.0]], [[0.0, 2.0]]], [[[8.0, 4.0]], [[2.0, 0.0]]]]
    # Mean values of 2 and 3: both are dark. With 1 more, the second one is bright.
    assert maps(Bright()) == [[[4.0, 0.0]], [[0.0, 4.0]]]
    brighter = ours.explain(IMAGES + 1, Bright(), normalize=False)
    assert (2 * brighter).tolist() == [[[5.0, 1.0]], [[3.0, 1.0]]]


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "occlusion", "layercam", "saliency"])
def test_every_kind_of_method_takes_them(method):
    ours = explainer()
    for target, classes in ((BestAndWorst(), [[0, 2], [2, 0]]), (Bright(), [1, 1])):
        expected = ours.explain(IMAGES, classes, method=method, normalize=False)
        found = ours.explain(IMAGES, target, method=method, normalize=False)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_metrics_take_them(batch_size):
    """The drop of the own class's softmax, where the image is seen through the map."""
    classes = torch.tensor([0, 1])
    ours = explainer(batch_size=batch_size)
    result = evaluate(ours, IMAGES, target=Share(classes), metrics="average_drop", progress=False)
    maps = torch.from_numpy(ours.explain(IMAGES, Share(classes)))
    # d/dm of m_c / sum m is (sum - m_c) / sum^2 for c itself and -m_c / sum^2 for all others.
    means = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 6.0]])
    weights = torch.tensor([[3.0, -3.0, -3.0], [-2.0, 7.0, -2.0]])
    raw = (weights[:, :, None, None] * IMAGES).sum(1).relu()
    expected = raw / raw.amax((1, 2), keepdim=True)  # each has a pixel that is 0
    torch.testing.assert_close(maps, expected)
    seen = (IMAGES * expected[:, None]).mean((2, 3)).softmax(1)[[0, 1], classes]
    full = means.softmax(1)[[0, 1], classes]
    drop = ((full - seen).clamp(min=0) / full).numpy()
    np.testing.assert_allclose(result["average_drop"], drop, rtol=1e-5)


class Wrong(Target):
    def __init__(self, make):
        self.make = make

    def scores(self, output, inputs=None, rows=None):
        return self.make(output)


class Misnamed(Deferred):
    def resolve(self, output, inputs=None):
        return Classes(output.topk(2, dim=1).indices)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Wrong(lambda output: output[:, 0]), r"Wrong.scores .* shape \(2, 1\); .* shape \(2,\)"),
        (Wrong(lambda output: output), r"Wrong.scores .* shape \(2, 1\); .* shape \(2, 3\)"),
        (Wrong(lambda output: 3), "Wrong.scores must return a tensor .* it returned <class 'int'>"),
        (
            Wrong(lambda output: output.detach()[:, :1]),
            "differentiable with respect to the network's output",
        ),
        (Misnamed(), "Misnamed has several=False and k=1, but resolves .* several=True and k=2"),
    ],
)
def test_what_is_wrong_with_them_is_said(target, message):
    with pytest.raises(ValueError, match=message):
        explainer().explain(IMAGES, target)
