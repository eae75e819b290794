"""Which outputs are probabilities, by the functions that made them."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from small_networks import SmallNet
from torch import nn
from torch.nn import functional as F

from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.networks.output_ranges import OutputRanges, is_distribution


def stable(z):
    return torch.where(z >= 0, 1 / (1 + torch.exp(-z)), z.exp() / (1 + z.exp()))


def in_place(z):
    return z.neg().exp_().add_(1).reciprocal_()


# By function of the logits z; all but the last are the sigmoid of z.
SIGMOIDS = {
    "torch's": torch.sigmoid,
    "expit": torch.special.expit,
    "by hand": lambda z: 1 / (1 + torch.exp(-z)),
    "power": lambda z: (1 + (-z).exp()) ** -1,
    "ones": lambda z: torch.ones_like(z) / (1 + torch.exp(-z)),
    "in place": in_place,
    "tanh": lambda z: (torch.tanh(z / 2) + 1) / 2,
    "half tanh": lambda z: 0.5 + 0.5 * (z / 2).tanh(),
    "share": lambda z: z.exp() / (1 + z.exp()),
    "stable": stable,
    "exp of the logarithm": lambda z: F.logsigmoid(z).exp(),
    "exp of softplus": lambda z: torch.exp(-F.softplus(-z)),
    "the rest": lambda z: 1 - torch.sigmoid(-z),
    "softmax of two": lambda z: torch.stack([torch.zeros_like(z), z], -1).softmax(-1)[..., 1],
    "copies": lambda z: torch.cat([z.sigmoid()[:, :1], 1 - (-z[:, 1:]).sigmoid()], dim=1),
}
OTHER_PROBABILITIES = {
    "hard": F.hardsigmoid,
    "relu6": lambda z: F.relu6(z + 3) / 6,
    "probit": lambda z: 0.5 * (1 + torch.erf(z)),
    "noisy or": lambda z: 1 - torch.prod(1 - torch.stack([z.sigmoid(), z.sigmoid()]), 0),
    "ensemble": lambda z: 0.5 * z.sigmoid() + 0.5 * (2 * z).sigmoid(),
    "average": lambda z: (z.sigmoid() + (2 * z).sigmoid()) / 2,
    "smoothed": lambda z: 0.98 * z.sigmoid() + 0.01,
}
OTHERS = {
    "logits": lambda z: z,
    "shifted": lambda z: z / 10 + 0.5,
    "bounded": torch.tanh,
    "clamped": lambda z: z.clamp(0, 1),
    "gate": lambda z: z * z.sigmoid(),
    "half": lambda z: z.sigmoid() / 2,
    "sum": lambda z: z.sigmoid() + z.sigmoid(),
    "scaled": lambda z: 10 * z.sigmoid(),
    "logit": lambda z: torch.logit(z.sigmoid()),
    "another share": lambda z: z.exp() / (2 + z.exp()),
    "softmax": lambda z: z.softmax(1),
    "softmax by hand": lambda z: z.exp() / z.exp().sum(1, keepdim=True),
    "one and the rest": lambda z: torch.cat([z.sigmoid()[:, :1], 1 - z.sigmoid()[:, :1]], 1),
    "the sigmoid of both": lambda z: torch.cat([z[:, :1], -z[:, :1]], 1).sigmoid(),
    "log softmax": lambda z: z.log_softmax(1),
    "two sigmoids that add up": lambda z: torch.cat(
        [z[:, :1].sigmoid(), 1 / (1 + torch.exp(z[:, :1]))], 1
    ),
    "written over": lambda z: z.sigmoid().copy_(z),
    "less three": lambda z: torch.sub(z.sigmoid() + 1, 1, alpha=3),
    "cost": lambda z: -torch.log(z.sigmoid()),
}
LOGARITHMS = {
    "torch's": F.logsigmoid,
    "of a sigmoid": lambda z: torch.log(z.sigmoid()),
    "clamped": lambda z: torch.log(z.sigmoid().clamp(1e-9)),
    "softplus": lambda z: -F.softplus(-z),
    "by hand": lambda z: -torch.log(1 + torch.exp(-z)),
}
SCORES = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))


def ranges_of(function):
    with torch.no_grad(), OutputRanges() as ranges:
        output = function(SCORES)
    return ranges.are_probabilities(output), ranges.are_logarithms(output)


@pytest.mark.parametrize("case", [*SIGMOIDS, *OTHER_PROBABILITIES])
def test_probabilities(case):
    assert ranges_of({**SIGMOIDS, **OTHER_PROBABILITIES}[case]) == (True, False)


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_none(case):
    assert ranges_of(OTHERS[case]) == (False, False)


@pytest.mark.parametrize("case", LOGARITHMS)
def test_logarithms(case):
    assert ranges_of(LOGARITHMS[case]) == (False, True)


def test_rows_that_add_up_to_1():
    assert is_distribution(torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    for other in ([[0.25, 0.7]], [[1.5, -0.5]], [[1.0], [1.0]]):
        assert not is_distribution(torch.tensor(other))
    # Of eight bits a third is 0.334, three times which is 1.002.
    assert is_distribution(torch.full((2, 3), 1 / 3, dtype=torch.bfloat16))
    assert not is_distribution(torch.full((2, 3), 0.334))


class Ending(nn.Module):
    def __init__(self, function, num_classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.function = SmallNet(num_classes), function

    def forward(self, x):
        return self.function(self.body(x))


IMAGES = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", SIGMOIDS)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_sigmoids_by_hand_are_read_as_torchs(case, n_outputs):
    network = Ending(SIGMOIDS[case], n_outputs).eval()
    ours = CAMExplainer(network, target_layer="body.0", image_size=12, verbose=0).fit(IMAGES)
    assert ours.task_ == ("binary" if n_outputs == 1 else "multilabel")
    with torch.no_grad():
        expected = network.body(IMAGES).sigmoid()
    found = ours.predict_proba(IMAGES)
    assert_allclose(found[:, -n_outputs:], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", LOGARITHMS)
def test_logarithms_are_refused_unless_they_are_wanted(case):
    options = {"target_layer": "body.0", "image_size": 12, "verbose": 0, "task": "multilabel"}
    network = Ending(LOGARITHMS[case]).eval()
    with pytest.raises(ValueError, match=r'logarithms? of a sigmoid.*output="logits"'):
        CAMExplainer(network, **options).fit(IMAGES)
    ours = CAMExplainer(network, output="logits", **options).fit(IMAGES)
    with torch.no_grad():
        assert_allclose(ours.predict_proba(IMAGES), network(IMAGES).sigmoid(), rtol=1e-5)


def trained(function, n_outputs, **options):
    module = Ending(function, n_outputs)
    common = {"alpha": 0, "beta": 0, "image_size": 12, "max_epochs": 1, "verbose": 0}
    common |= {"train_split": None, "augment": None, "target_layer": "body.0"}
    return ConsistentCAMClassifier(module, **common, **options)


PICTURES = IMAGES.repeat_interleave(2, 0)[:9].permute(0, 2, 3, 1).numpy()
Y = np.arange(9) % 3


@pytest.mark.parametrize("case", ["softmax", "softmax by hand"])
def test_training_does_not_take_the_softmax_twice(case):
    function = OTHERS[case]
    with pytest.raises(ValueError, match=r"ends in a softmax, and CrossEntropyLoss.*NLLLoss"):
        trained(function, 3).fit(PICTURES, Y)
    with pytest.raises(ValueError, match=r"ends in a softmax, and CrossEntropyLoss"):
        trained(function, 3, criterion=nn.CrossEntropyLoss(label_smoothing=0.1)).fit(PICTURES, Y)
    cured = trained(function, 3, criterion=nn.NLLLoss, random_state=0).fit(PICTURES, Y)
    plain = trained(lambda z: z, 3, random_state=0).fit(PICTURES, Y)
    assert_allclose(cured.predict_proba(PICTURES), plain.predict_proba(PICTURES), atol=1e-5)
    # Of the logarithm the softmax is the same again.
    trained(OTHERS["log softmax"], 3).fit(PICTURES, Y)


@pytest.mark.parametrize("case", ["torch's", "by hand", "tanh"])
def test_training_does_not_take_the_softmax_of_sigmoids(case):
    with pytest.raises(ValueError, match=r"ends in a sigmoid, and CrossEntropyLoss.*multilabel"):
        trained(SIGMOIDS[case], 3).fit(PICTURES, Y)


@pytest.mark.parametrize("case", ["by hand", "tanh", "stable"])
def test_training_knows_sigmoids_by_hand(case):
    with pytest.raises(ValueError, match=r"ends in a sigmoid.*torch\.nn\.BCELoss"):
        trained(SIGMOIDS[case], 3, task="multilabel").fit(PICTURES, np.eye(3)[Y])
    options = {"task": "multilabel", "random_state": 0}
    cured = trained(SIGMOIDS[case], 3, criterion=nn.BCELoss, **options).fit(PICTURES, np.eye(3)[Y])
    plain = trained(lambda z: z, 3, **options).fit(PICTURES, np.eye(3)[Y])
    assert_allclose(cured.predict_proba(PICTURES), plain.predict_proba(PICTURES), atol=1e-5)


@pytest.mark.parametrize("case", LOGARITHMS)
def test_training_takes_no_logarithms(case):
    with pytest.raises(ValueError, match="the logarithm of a sigmoid, which BCEWithLogitsLoss"):
        trained(LOGARITHMS[case], 3, task="multilabel").fit(PICTURES, np.eye(3)[Y])
