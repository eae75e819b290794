"""Sanity checks: a loop over copies of the network, Quantus, and maps whose answer is known."""

from __future__ import annotations

import copy
from threading import Lock

import numpy as np
import pytest
import torch
from evaluations import IMAGES, N, explainer
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from small_networks import SmallNet
from torch import nn

from sklcam import CAMExplainer, ConsistentCAMClassifier, EmbeddingCAMExplainer
from sklcam.cam import GradCAM, Method
from sklcam.explain import ExplanationWarning
from sklcam.metrics import SanityCheck, randomizable, sanity_check
from sklcam.metrics.cose import randomized

METHOD = GradCAM(relu=False)  # whose maps are never constant here
SEED = int(np.random.RandomState(0).randint(2**31 - 1))  # of random_state=0
LAYERS = ["8", "4", "1", "0"]  # with weights, from the output backwards


def trained(n_classes=3, seed=1):
    """A network of which no layer, nor its statistics, is as it was made."""
    torch.manual_seed(seed)
    network = SmallNet(n_classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5).add_(0.05 * torch.randn_like(parameter))
        network[1].running_mean.add_(0.1)
    return network.eval()


def state_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def checked(around=None, X=IMAGES, **options):
    around = explainer(trained()) if around is None else around
    return sanity_check(around, X, **{"method": METHOD, "progress": False, **options})


def maps_of(network, classes, **options):
    return explainer(network).explain(IMAGES, classes, **{"method": METHOD, **options})


def likeness(first, second, kind):
    pairs = zip(first, second, strict=True)
    if kind == "rank_correlation":
        return [spearmanr(np.abs(a).ravel(), np.abs(b).ravel())[0] for a, b in pairs]
    options = {"data_range": 1, "gaussian_weights": True, "use_sample_covariance": False}
    return [structural_similarity(a, b, **options) for a, b in pairs]


def loop(network, mode, kind, groups, seed=SEED):
    """Each step from a fresh copy, which takes the layers' state from a random network."""
    random = randomized(network, seed).state_dict()
    scaled = kind == "ssim"
    classes = explainer(network).predict(IMAGES)
    original = maps_of(network, classes, normalize=scaled)
    found = []
    for step in range(len(groups)):
        changed = groups[: step + 1] if mode == "cascading" else [groups[step]]
        layers = [layer for group in changed for layer in group]
        state = state_of(network)
        state |= {name: random[name] for name in state if name.split(".")[0] in layers}
        other = copy.deepcopy(network)
        other.load_state_dict(state)
        found.append(likeness(original, maps_of(other, classes, normalize=scaled), kind))
    return np.array(found).T


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_steps_by_hand(mode):
    network = trained()
    check = checked(explainer(network, batch_size=3), mode=mode, layers=None)
    assert check.layers == [(layer,) for layer in LAYERS] and check.steps == LAYERS
    for kind in ("rank_correlation", "ssim"):
        (found,) = check.randomized[kind].values()
        expected = loop(network, mode, kind, [[layer] for layer in LAYERS])
        assert_allclose(found, expected, atol=2e-4)
    assert np.ptp(found, axis=1).min() > 0.01


def test_layers_in_steps():
    network = trained()
    check = checked(explainer(network), layers=2)
    assert check.layers == [("8", "4"), ("1", "0")] and check.steps == ["4", "0"]
    (found,) = check.randomized["rank_correlation"].values()
    expected = loop(network, "cascading", "rank_correlation", check.layers)
    assert_allclose(found, expected, atol=2e-4)
    named = checked(explainer(network), layers=["0", "8"])
    assert named.layers == [("8",), ("0",)]  # in the order of their use
    one = checked(explainer(network), layers=2, mode="independent")
    assert one.steps == ["8 to 4", "1 to 0"]


class Shared(nn.Module):
    """Uses what it declares in another order, one layer twice, and one not at all."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.auxiliary = nn.Linear(6, 3)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.norm = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1))
        self.tied = nn.Linear(6, 3)
        self.tied.weight = self.head.weight

    def forward(self, x):
        x = (self.stem(x) * self.scale).relu()
        x = self.twice(self.norm(self.twice(x).relu())).relu()
        return self.head(x.mean((2, 3))) + 0 * self.tied.bias


def test_layers_are_in_the_order_of_their_last_use():
    torch.manual_seed(0)
    network = Shared().eval()
    before = state_of(network)
    check = checked(CAMExplainer(network, target_layer="norm", verbose=0).fit(IMAGES), layers=None)
    # The network itself has the scale; the tied weights are those of the head.
    assert check.steps == ["tied", "head", "twice", "norm", "", "stem"]
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())


def test_attention_whose_projection_is_never_called():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    class Tokens(nn.Sequential):
        def forward(self, x):
            tokens = self[0](x).flatten(2).transpose(1, 2)
            return self[2](self[1](tokens).mean(1))

    network = Tokens(nn.Conv2d(1, 16, 4, 4), layer, nn.Linear(16, 3)).eval()
    steps = checked(CAMExplainer(network, target_layer="0").fit(IMAGES), layers=None).steps
    assert steps == ["2", "1.linear2", "1.linear1", "1.self_attn.out_proj", "1.self_attn", "0"]


def test_likeness_of_the_layers_is_quantus(monkeypatch):
    """With Quantus' draw of the weights: each layer from the same seed."""
    quantus = pytest.importorskip("quantus")
    network, seed = trained(), 42

    def as_quantus(given, _):
        found = copy.deepcopy(given)
        for module in found.modules():
            if hasattr(module, "reset_parameters"):
                torch.manual_seed(seed + 1)
                module.reset_parameters()
        return found

    def explained(model, inputs, targets, **_):
        found = explainer(model).explain(
            torch.tensor(inputs), targets, method=METHOD, normalize=False
        )
        return np.abs(found)[:, None]

    monkeypatch.setattr(randomizable, "randomized", as_quantus)
    classes = explainer(network).predict(IMAGES)
    for mode, order in (("cascading", "top_down"), ("independent", "independent")):
        metric = quantus.MPRT(
            layer_order=order, seed=seed, normalise=False, abs=False, disable_warnings=True,
            similarity_func=quantus.similarity_func.correlation_spearman,
        )  # fmt: skip
        with torch.random.fork_rng():
            scores = metric(
                copy.deepcopy(network), IMAGES.numpy(), classes, explain_func=explained,
                softmax=False, device="cpu",
            )  # fmt: skip
        check = checked(explainer(network), mode=mode, layers=None)
        (found,) = check.randomized["rank_correlation"].values()
        for i, layer in enumerate(LAYERS):
            assert_allclose(found[:, i], scores[layer], atol=2e-4)


def test_the_other_class_is_quantus():
    """Of two classes there is but one other."""
    quantus = pytest.importorskip("quantus")
    network = trained(n_classes=2, seed=3)
    found = checked(explainer(network)).other_classes["rank_correlation"][repr(METHOD)]

    def explained(model, inputs, targets, **_):
        maps = explainer(model).explain(
            torch.tensor(inputs), targets, method=METHOD, normalize=False
        )
        return np.abs(maps)[:, None]

    metric = quantus.RandomLogit(
        num_classes=2, normalise=False, abs=False, disable_warnings=True,
        similarity_func=quantus.similarity_func.correlation_spearman,
    )  # fmt: skip
    scores = metric(
        network, IMAGES.numpy(), explainer(network).predict(IMAGES), explain_func=explained,
        softmax=False, device="cpu",
    )  # fmt: skip
    assert_allclose(found, scores, atol=2e-4)


def test_another_class_is_drawn_for_each_image():
    network = trained(n_classes=9)
    around, other = explainer(network), explainer(network, batch_size=2)
    found, again = (checked(each).other_classes["ssim"][repr(METHOD)] for each in (around, other))
    assert_allclose(found, again, atol=1e-5)
    classes = around.predict(IMAGES)
    expected = []
    for step in range(1, 9):
        others = maps_of(network, (classes + step) % 9)
        expected.append(likeness(maps_of(network, classes), others, "ssim"))
    distance = np.abs(np.array(expected) - found)
    assert distance.min(axis=0).max() < 1e-4 and len(set(distance.argmin(axis=0))) > 2


def test_other_images_are_others():
    network = trained()
    check = checked(explainer(network))
    maps = maps_of(network, explainer(network).predict(IMAGES), normalize=False)
    all_pairs = np.array([likeness([each] * N, maps, "rank_correlation") for each in maps])
    found = check.other_images["rank_correlation"][repr(METHOD)]
    # Five of the six others: all but one of them.
    for i in range(N):
        others = np.delete(all_pairs[i], i)
        without_one = [np.delete(others, j).mean() for j in range(N - 1)]
        assert np.abs(np.array(without_one) - found[i]).min() < 2e-4


# Maps whose answer is known


class Edges(Method):
    uses_layers = False

    def explain(self, recorded):
        return [torch.gradient(recorded.images, dim=3)[0].abs().amax(1, keepdim=True)]


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_an_edge_detector_is_insensitive(mode):
    methods = {"edges": Edges(), "fake": "fakecam", "even": "uniform"}
    check = checked(method=methods, mode=mode)
    verdict = check.verdict()
    assert_allclose(check.randomized["rank_correlation"]["edges"], 1)
    assert verdict["edges"] == "insensitive to the weights; insensitive to the class"
    assert verdict["fake"] == "its maps are the same for all images"
    assert verdict["even"] == "its maps are constant, and say nothing"


def of(kept, others, **options):
    kept, others = (np.asarray(each, dtype=float) for each in (kept, others))
    tables = {"rank_correlation": {"m": kept}}, {"rank_correlation": {"m": others}}
    return SanityCheck("cascading", [("a",)] * kept.shape[1], *tables, {}, **options)


def test_the_rule_of_the_verdict():
    assert of([[0.7], [0.7], [0.7]], [0.2] * 3).verdict()["m"] == "insensitive to the weights"
    assert of([[0.5], [0.5], [0.5]], [0.2] * 3).verdict()["m"] == "sensitive to the weights"
    assert of([[0.5, 0.9], [0.5, 0.9]], [0.2] * 2).verdict()["m"].startswith("insensitive")
    told = of([[0.9], [0.2], [0.6]], [0.2] * 3).verdict()["m"]
    assert told == "sensitivity to the weights cannot be told from 3 images"
    assert of([[0.3]] * 3, [0.96] * 3).verdict()["m"] == "its maps are the same for all images"
    nan = np.nan
    assert of([[0.5], [nan]], [0.2, nan]).verdict()["m"] == "sensitive to the weights"
    with pytest.raises(ValueError, match=r"likeness must be one of \['rank_correlation'\]"):
        of([[0.5]], [0.2]).verdict("ssim")


def test_curves_have_intervals():
    rng = np.random.default_rng(0)
    kept = rng.normal(0.4, 0.1, (50, 3))
    kept[0] = np.nan
    curve = of(kept, np.zeros(50)).curves()["m"]
    assert_allclose(curve["mean"], np.nanmean(kept, axis=0))
    error = np.nanstd(kept, axis=0) / 7
    assert_allclose(curve["high"] - curve["low"], 2 * 1.96 * error, rtol=0.1)
    wide = of(kept, np.zeros(50)).curves(level=0.99)["m"]
    assert (wide["low"] < curve["low"]).all()


def test_constant_maps_are_left_out_and_those_that_become_so_are_0():
    images = IMAGES.clone()
    images[2] = 0
    network = trained()
    for tensor in (network[0].bias, network[1].running_mean, network[1].bias, network[4].bias):
        nn.init.zeros_(tensor)  # of a black image nothing is left
    with pytest.warns(ExplanationWarning, match="1 of 7 maps are blank"):
        check = checked(explainer(network), images, method="layercam")
    for kind in ("rank_correlation", "ssim"):
        found = check.randomized[kind]["layercam"]
        assert np.isnan(found[2]).all() and np.isnan(check.other_images[kind]["layercam"][2])
        assert np.isfinite(check.other_images[kind]["layercam"][[0, 1, 3, 4, 5, 6]]).all()
    n_zero = (check.randomized["ssim"]["layercam"] == 0).sum()
    assert n_zero == check.n_vanished["layercam"]


def test_maps_that_vanish_are_told():
    shown = repr(of(np.zeros((4, 2)), [0.2] * 4, n_vanished={"m": 8}))
    assert shown.endswith("m: 8 of 8 maps are constant with random weights; each counts as 0")
    assert "count" not in repr(of(np.zeros((4, 2)), [0.2] * 4, n_vanished={"m": 0}))


class Dead(Method):
    """Blank where the network's last layer is not as it was."""

    uses_layers = False

    def explain(self, recorded):
        is_trained = torch.equal(recorded.network[8].bias, trained()[8].bias)
        return [recorded.images[:, :1] * is_trained]


def test_maps_that_vanish_have_lost_all_likeness():
    check = checked(method={"dead": Dead()})
    for kind in ("rank_correlation", "ssim"):
        assert not check.randomized[kind]["dead"].any()
    assert check.n_vanished == {"dead": N * 4}
    assert check.verdict()["dead"].startswith("sensitive to the weights")


# The network stays as it is


def test_the_network_is_not_touched():
    network = trained()
    network.train()
    network[0].weight.requires_grad_(False)
    network[4].weight.grad = torch.ones_like(network[4].weight)
    before, modes = state_of(network), [module.training for module in network.modules()]
    rng = torch.get_rng_state()
    checked(explainer(network), method=["gradcam", "guidedbackprop"])
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert not network[0].weight.requires_grad and (network[4].weight.grad == 1).all()
    assert torch.equal(torch.get_rng_state(), rng) and not network[5]._forward_hooks


class Interrupting(Method):
    """Stops where the first layer has changed."""

    uses_layers = False
    seen: tuple = ()

    def explain(self, recorded):
        weight = recorded.network[8].weight
        if type(self).seen and not torch.equal(weight, type(self).seen[0]):
            raise KeyboardInterrupt
        type(self).seen = (weight.clone(),)
        return [recorded.images[:, :1]]


def test_nor_when_it_is_interrupted():
    network = trained()
    before = state_of(network)
    Interrupting.seen = ()
    with pytest.raises(KeyboardInterrupt):
        checked(explainer(network), method=Interrupting())
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())


def test_a_network_that_cannot_be_copied_is_refused():
    network = trained()
    network.lock = Lock()
    with pytest.raises(ValueError, match="cannot be copied, and its own weights must not change"):
        checked(explainer(network))


@pytest.mark.parametrize("fails", [lambda scale: None, lambda: 1 / 0], ids=["argument", "error"])
def test_a_layer_that_cannot_be_made_random_is_named(fails):
    network = trained()
    network.reset_parameters = fails
    before = state_of(network)
    with pytest.raises(ValueError, match="reset_parameters should make a layer random, but"):
        checked(explainer(network))
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())


def test_weights_that_nobody_sees_in_use_are_refused(monkeypatch):
    class Blind(randomizable._Uses):
        def __init__(self, tensors):
            super().__init__({name: each for name, each in tensors.items() if name[0] != "4"})

    monkeypatch.setattr(randomizable, "_Uses", Blind)
    with pytest.raises(ValueError, match="is not visible when the network uses the weights of 4"):
        checked()


# Estimators, targets, batches


def test_batches_and_seeds():
    one, other = (checked(explainer(trained(), batch_size=size)) for size in (7, 2))
    for name in ("randomized", "other_images", "other_classes"):
        for kind, table in getattr(one, name).items():
            for method, values in table.items():
                assert_allclose(values, getattr(other, name)[kind][method], atol=1e-4)
    again, seeded = checked(), checked(random_state=1)
    kinds = [each.randomized["ssim"][repr(METHOD)] for each in (one, again, seeded)]
    assert_array_equal(
        kinds[0], checked(explainer(trained(), batch_size=7)).randomized["ssim"][repr(METHOD)]
    )
    assert not np.allclose(kinds[1], kinds[2], atol=1e-3)


def test_what_is_explained_stays():
    """The class is that which the trained network predicts, or that which is asked for."""
    network = trained()
    classes = explainer(network).predict(IMAGES)
    given, own = checked(explainer(network), target=classes), checked(explainer(network))
    assert_allclose(given.randomized["ssim"][repr(METHOD)], own.randomized["ssim"][repr(METHOD)])
    score = checked(explainer(network), target=lambda output: output[:, 0])
    first = checked(explainer(network), target=0)
    assert_allclose(score.randomized["ssim"][repr(METHOD)], first.randomized["ssim"][repr(METHOD)])
    assert not score.other_classes and "class" not in score.verdict()[repr(METHOD)]


def test_estimators():
    X, y = np.random.default_rng(0).random((8, 16, 16), dtype=np.float32), np.arange(8) % 2
    clf = ConsistentCAMClassifier(
        SmallNet, target_layer="5", image_size=16, max_epochs=1, verbose=0, random_state=0,
        alpha=0, beta=0, device="cpu",
    ).fit(X, y)  # fmt: skip
    proxies = EmbeddingCAMExplainer(SmallNet(4), target_layer="5", image_size=16, verbose=0).fit(
        X, y
    )
    for around in (clf, proxies):
        check = sanity_check(around, X, progress=False)
        assert check.methods == ["gradcam"] and len(check.layers) >= 3
        assert "gradcam" in repr(check) and "weights" in repr(check)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "both"}, 'mode must be "cascading" or "independent"; got \'both\''),
        ({"layers": 0}, "layers, the number of steps .* got 0"),
        ({"layers": "8"}, "layers, the number of steps .* got '8'"),
        ({"layers": ["9"]}, "no module '9'"),
        ({"layers": ["7"]}, "7 has no weights that the output depends on"),
        ({"layers": [8]}, "layers must be names of modules"),
        ({"X": IMAGES[:1]}, "compares maps of different images. Give at least two"),
        ({"X": IMAGES[..., :10]}, "window of 11 x 11 pixels"),
        ({"target": [[0, 1]] * N}, "explains one class per image"),
        ({"method": "nothing"}, "no method 'nothing'"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        checked(**changes)
