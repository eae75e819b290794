"""Networks that normalise their images themselves, against the same ones without it."""

import warnings

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torchvision import models
from torchvision.transforms import Normalize, v2

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.networks import Preprocessing
from sklcam.networks.own_normalization import with_own_normalization

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)


class Buffers(nn.Module):
    def __init__(self, mean=MEAN, std=STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


class Do(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Pixels(nn.Module):
    """The ``image`` of two inputs is normalised, the other has layers of its own before."""

    def __init__(self):
        super().__init__()
        self.of_age, self.body = nn.Linear(1, 3), body()

    def forward(self, age, image):
        return self.of_age(age) + self.body((image - 0.5) / 0.25)


def body(n_channels=3):
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(nn.Conv2d(n_channels, 4, 3), nn.ReLU(), *head)


def tokens():
    torch.manual_seed(0)
    patches = (nn.Unfold(4, stride=4), Do(lambda x: x.transpose(1, 2)), nn.Linear(48, 5))
    return nn.Sequential(*patches, Do(lambda x: x.mean(1)))


def bytes_mean(x):
    return x - torch.tensor([123.68, 116.78, 103.94]).view(3, 1, 1)


def enlarged(x):
    return nn.functional.interpolate(x, (40, 31), mode="bilinear", antialias=True)


# What comes before a network, and the mean and std by which its images are to be prepared.
OWN = {
    "torchvision": ((Normalize(MEAN, STD),), 0, 1),
    "v2": ((v2.Normalize(MEAN, STD),), 0, 1),
    "buffers": ((Buffers(),), 0, 1),
    "from -1 to 1": ((Do(lambda x: 2 * x - 1),), 0, 1),
    "in place": ((Do(lambda x: x.clone().sub_(0.5).div_(0.5)),), 0, 1),
    "after resizing": ((Do(enlarged), Buffers()), 0, 1),
    "before padding": ((Buffers(), nn.ZeroPad2d(2)), 0, 1),
    "from 0 to 255 in the network": ((Do(lambda x: bytes_mean(255 * x)),), 0, 1),
    "from 0 to 255, without a mean": ((Do(lambda x: 255 * x),), 0, 1),
    "of bytes": ((Do(lambda x: x / 255),), 0, 1 / 255),
    "of bytes, their mean": ((Do(bytes_mean),), 0, 1 / 255),
    "of bytes, both": ((Buffers((123.68, 116.78, 103.94), (58.4, 57.1, 57.4)),), 0, 1 / 255),
}
# Of these nothing is known, as of a network of convolutions alone.
OTHERS = {
    "nothing": (),
    "batch normalisation": (nn.BatchNorm2d(3),),
    "instance normalisation": (nn.InstanceNorm2d(3),),
    "by its own image": (Do(lambda x: (x - x.mean()) / x.std()),),
    "a curve from -1 to 1": (Do(lambda x: 2 * x.sqrt() - 1),),
    "order of channels": (Do(lambda x: x.flip(1)),),
    "padding": (nn.ZeroPad2d(3),),
    "resizing": (Do(enlarged),),
}


def explainer(network, **options):
    options = {"target_layer": [*dict(network.named_modules())][-1], **options}
    return CAMExplainer(network, image_size=24, verbose=0, **options)


@pytest.mark.parametrize("case", OWN)
def test_images_are_not_normalised_twice(case):
    before, mean, std = OWN[case]
    network = nn.Sequential(*before, *body()).eval()
    ours = CAMExplainer(network, target_layer=f"{len(before) + 1}", image_size=24, verbose=0).fit()
    pixels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = network((pixels - mean) / std).softmax(dim=1)
    assert_allclose(ours.predict_proba(PICTURES), expected, rtol=1e-5, atol=1e-6)
    assert (ours.preprocessing_.mean, ours.preprocessing_.std) == (mean, std)
    assert "itself" in ours.preprocessing_.source
    # What a user gives still wins.
    given = CAMExplainer(network, target_layer="2", image_size=24, mean=0.3, std=0.2).fit()
    assert (given.preprocessing_.mean, given.preprocessing_.std) == (0.3, 0.2)


@pytest.mark.parametrize("case", OTHERS)
def test_the_default_stays_where_nothing_is_seen(case):
    network = nn.Sequential(*OTHERS[case], *body()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = with_own_normalization(Preprocessing(), network, torch.zeros(1, 3, 24, 24))
    assert said == Preprocessing()


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_networks_that_convert_normalised_images(name):
    options = {"transform_input": True, "init_weights": False, "aux_logits": False}
    network = getattr(models, name)(**options).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = with_own_normalization(Preprocessing(), network, torch.zeros(1, 3, 80, 80))
    assert said == Preprocessing()


def converted_first(x):
    """Convert the first channel alone as torchvision's ``transform_input`` does."""
    return torch.cat([x[:, :1] * 0.229 / 0.5 + (0.485 - 0.5) / 0.5, 2 * x[:, 1:]], dim=1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 1) / 2,
        lambda x: 2 * x,
        lambda x: -x,
        lambda x: (x - 0.5) / 1.5,
        converted_first,
    ],
    ids=["half", "twice", "not", "wider than images", "one channel"],
)
def test_what_cannot_be_told_is_asked_for(function):
    network = nn.Sequential(Do(function), *body())
    with pytest.warns(UserWarning, match=r"before its first layer.*Give mean= and std="):
        explainer(network, target_layer="2").fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer(network, target_layer="2", mean=0.5, std=0.5).fit()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_any_precision(dtype):
    network = nn.Sequential(Normalize(MEAN, STD), *body()).to(dtype).eval()
    like = torch.zeros(1, 3, 24, 24, dtype=dtype)
    assert with_own_normalization(Preprocessing(), network, like).std == 1
    plain = with_own_normalization(Preprocessing(), body().to(dtype), like)
    assert plain == Preprocessing()


def test_tokens_and_grey_images():
    network = nn.Sequential(Normalize(MEAN, STD), tokens())
    said = with_own_normalization(Preprocessing(), network, torch.zeros(1, 3, 24, 24))
    assert said.source.endswith("mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225")
    grey = nn.Sequential(Normalize((0.1307,), (0.3081,)), *body(1))
    said = with_own_normalization(Preprocessing(), grey, torch.zeros(1, 1, 24, 24))
    assert said.source.endswith("mean 0.131, std 0.308")


def test_among_other_inputs():
    X = {"age": torch.ones(4, 1), "image": PICTURES}
    ours = explainer(Pixels(), target_layer="body.1", image_input="image").fit(X)
    assert "itself: mean 0.5, std 0.25" in ours.preprocessing_.source


def test_a_network_is_left_as_it_was_found():
    network = nn.Sequential(nn.Dropout(), Normalize(MEAN, STD), nn.BatchNorm2d(3), *body()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    explainer(network, target_layer="4").fit()
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


class Trained(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.norm, self.conv = Normalize(MEAN, STD), nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(self.conv(self.norm(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("way", ["joblib", "sklcam"])
def test_training_and_files(way, tmp_path):
    options = {"image_size": 24, "max_epochs": 1, "verbose": 0, "target_layer": "conv"}
    net = ConsistentCAMClassifier(Trained, alpha=0, beta=0, random_state=0, **options)
    net.set_params(train_split=None, augment=None)
    net.fit(PICTURES, [0, 1, 0, 1])
    assert (net.preprocessing_.mean, net.preprocessing_.std) == (0, 1)
    pixels = torch.from_numpy(PICTURES).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = net.module_.eval()(pixels).softmax(dim=1)
    assert_allclose(net.predict_proba(PICTURES), expected, rtol=1e-5)
    for model in (net, explainer(net.module_, target_layer="conv").fit()):
        path = tmp_path / type(model).__name__
        (joblib.dump if way == "joblib" else sklcam.save)(model, path)
        if way == "joblib":
            loaded = joblib.load(path)
        else:
            loaded = sklcam.load(path, objects={"Trained": Trained, "module": Trained})
        assert loaded.preprocessing_ == model.preprocessing_
        assert_allclose(loaded.predict_proba(PICTURES), expected, rtol=1e-5)
