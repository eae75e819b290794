"""Networks that do what few do: each is explained right, or refused by an error that says why."""

from __future__ import annotations

import copy
import sys
import threading

import numpy as np
import pytest
import torch
from small_networks import OF_ATTENTION
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sklcam import CAMExplainer, ConsistentCAMClassifier, EmbeddingCAMExplainer
from sklcam.cam import Method, available
from sklcam.metrics import evaluate
from sklcam.networks import TargetLayer

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
# Without those that draw random numbers.
METHODS = sorted({*available()} - {"randomcam", "rise", "sscam"} - OF_ATTENTION)


class Net(nn.Module):
    """A convolution, whose ReLU is explained, pooled: its Grad-CAM has a closed form."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
        self.fc = nn.Linear(6, 3)

    def features(self, x):
        return self.act(self.conv(x))

    def head(self, features):
        return self.fc(features.mean((2, 3)))

    def forward(self, x):
        return self.head(self.features(x))

    @torch.no_grad()
    def closed_form(self, x, index=0, size=(16, 16)):
        """Weights of the class over the number of positions, summed over the channels."""
        maps = torch.einsum("k,nkuv->nuv", self.fc.weight[index], self.features(x)).relu()
        return F.interpolate(maps[:, None], size=size, mode="bilinear")[:, 0] / maps[0].numel()


def explainer(network, layer="act", **options):
    return CAMExplainer(network, target_layer=layer, verbose=0, **options).fit(X)


def raw(network, layer="act", X=X, **options):
    return explainer(network, layer, **options).explain(X, target=0, normalize=False)


# Rows


class Folded(nn.Module):
    """Averages over an image and its mirror image, which it puts into the batch."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        first, second = self.net(torch.cat([x, x.flip(-1)])).chunk(2)
        return (first + second) / 2


@pytest.mark.parametrize("batch_size", [2, 4])
@pytest.mark.parametrize("method", ["gradcam", "layercam", "scorecam", "ablationcam", "fakecam"])
def test_a_layer_whose_rows_are_not_the_images_is_refused(method, batch_size):
    explained = explainer(Folded().eval(), TargetLayer("net.act"), batch_size=batch_size)
    for explain in (
        lambda: explained.explain(X, target=0, method=method),
        lambda: list(explained.iter_explain(X, target=0, method=method)),
        lambda: explained.explain_inputs(X, method=method),
    ):
        if method == "fakecam":  # looks at no layer
            explain()
            continue
        with pytest.raises(ValueError, match=r"'net.act' returns \d rows, .* for \d images"):
            explain()


def test_a_named_layer_whose_rows_are_not_the_images_is_refused_in_fit():
    with pytest.raises(ValueError, match=r"'net.act' returns shape .* with one row per image"):
        explainer(Folded().eval(), "net.act")


def test_a_reshape_says_which_rows_are_the_images():
    network = Folded().eval()
    layer = TargetLayer("net.act", reshape=lambda output: output.chunk(2)[0])
    # Half of the score is the image's own, the other half its mirror image's.
    np.testing.assert_allclose(raw(network, layer), network.net.closed_form(X) / 2, atol=1e-7)


def test_auto_passes_over_layers_whose_rows_are_not_the_images():
    with pytest.raises(ValueError, match=r"'net.act', .* returns 2 rows for one image"):
        explainer(Folded().eval(), "auto")


def test_a_network_with_other_rows_than_images_is_refused():
    network = nn.Sequential(Net(), nn.Flatten(0), nn.Unflatten(0, (-1, 1)))
    with pytest.raises(ValueError, match=r"Sequential returned 3 rows, .* for 1 images"):
        CAMExplainer(network.eval(), target_layer="0.act").fit(X)


@pytest.mark.parametrize("options", [{"drop_last": True}, {"sampler": range(3)}])
def test_a_loader_that_leaves_out_images_is_noticed(monkeypatch, options):
    explained = explainer(Net().eval(), batch_size=3)
    loader = explained.adapter.loader

    def shortened(items):
        made = loader(items)
        return torch.utils.data.DataLoader(
            items, batch_size=3, collate_fn=made.collate_fn, **options
        )

    monkeypatch.setattr(explained.adapter, "loader", shortened)
    for call in (explained.explain, explained.predict, lambda X: list(explained.iter_explain(X))):
        with pytest.raises(ValueError, match=r"The loader yielded 3 of 4 images"):
            call(X)


# Layers that run twice


class Twice(nn.Module):
    """Averages over an image and its mirror image, in two passes of the same layers."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return (self.net(x) + 3 * self.net(x.flip(-1))) / 4


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "scorecam", "ablationcam"])
def test_a_layer_that_runs_twice_is_refused_by_name(method):
    with pytest.raises(ValueError, match=r"'net.act' runs several times in a pass.*run=-1"):
        explainer(Twice().eval(), "net.act", method=method)
    with pytest.raises(ValueError, match=r"'net.act' runs 2 time\(s\) in a pass.*run=-1"):
        explainer(Twice().eval(), TargetLayer("net.act"), method=method).explain(X)


@pytest.mark.parametrize("run", [0, 1, -1, -2])
def test_a_run_of_a_layer_is_explained(run):
    network = Twice().eval()
    is_last = run in (1, -1)
    expected = network.net.closed_form(X.flip(-1) if is_last else X) * (0.75 if is_last else 0.25)
    ours = raw(network, TargetLayer("net.act", run=run))
    np.testing.assert_allclose(ours, expected, atol=1e-7)


def test_a_run_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"'net.act' runs 2 time\(s\).*run=2 is not one of"):
        explainer(Twice().eval(), TargetLayer("net.act", run=2))
    with pytest.raises(ValueError, match=r"'act' runs 1 time\(s\).*run=1 is not one of"):
        explainer(Net().eval(), TargetLayer("act", run=1))


def test_auto_says_that_every_layer_runs_twice():
    with pytest.raises(ValueError, match=r"Every layer of Twice.*TargetLayer\('net.act', run=0\)"):
        explainer(Twice().eval(), "auto")


class Chain(nn.Module):
    """One layer, applied three times in a row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

    def after(self, x, run):
        for _ in range(2 - run):
            x = self.conv(x.tanh())
        return self.fc(x.tanh().mean((2, 3)))

    def forward(self, x):
        return self.after(self.conv(x), 0)


@pytest.mark.parametrize("run", [0, 1, 2, -1, -2, -3])
def test_gradients_pass_the_later_runs_of_a_layer(run):
    network, run_index = Chain().eval(), run % 3
    activations = network.conv(X)
    for _ in range(run_index):
        activations = network.conv(activations.tanh())
    activations = activations.detach().requires_grad_()
    scores = network.after(activations, run_index)[:, 0]
    (gradients,) = torch.autograd.grad(scores.sum(), activations)
    expected = (gradients.mean((2, 3), keepdim=True) * activations.detach()).sum(1).relu()
    np.testing.assert_allclose(raw(network, TargetLayer("conv", run=run)), expected, atol=1e-6)


# Networks that write into their input


class Writing(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.net, self.write = Net(), write

    def forward(self, x):
        return self.net(self.write(x))


TWICE_RED = torch.tensor([2.0, 1.0, 1.0]).view(3, 1, 1)
WRITES = {
    "sub_": (lambda x: x.sub_(0.5).div_(0.25), lambda x: (x - 0.5) / 0.25),
    "ReLU": (nn.ReLU(inplace=True), nn.ReLU()),
    "a part": (lambda x: (x[:, :1].mul_(2), x)[1], lambda x: x * TWICE_RED),
    "data": (lambda x: (x.data.mul_(2), x)[1], lambda x: x * 2),
}  # fmt: skip
PIXELS = {"saliency", "guidedbackprop", "guidedgradcam", "deconvnet"}  # autograd sees no .data


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, m) for name in WRITES for m in METHODS if name != "data" or m not in PIXELS],
)
def test_networks_that_write_into_their_input_equal_those_that_do_not(name, method):
    writing, plain = (explainer(Writing(write).eval(), "net.act") for write in WRITES[name])
    images = X.clone()
    images[0].neg_()
    given = images.clone()
    options = {"target": 0, "method": method, "normalize": False}
    ours = writing.explain(images, **options)
    np.testing.assert_allclose(ours, plain.explain(images, **options), rtol=1e-4, atol=1e-6)
    writing.explain_inputs(images, method=method)
    assert torch.equal(images, given)


def test_metrics_of_networks_that_write_into_their_input():
    names = ("adcc", "iauc", "dauc", "consistency", "road")
    ours, plain = (
        evaluate(explainer(Writing(write).eval(), "net.act"), X, metrics=names)
        for write in WRITES["sub_"]
    )
    for name in names:
        np.testing.assert_allclose(ours[name], plain[name], rtol=1e-4, atol=1e-5)


def test_a_network_that_begins_to_write_into_its_input_is_noticed():
    network = Writing(lambda x: x).eval()
    explained = explainer(network, "net.act")
    network.write = WRITES["sub_"][0]
    with pytest.raises(ValueError, match=r"Writing has written into its input.*x\.clone\(\)"):
        explained.explain(X)


# Threads


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("share", ["explainer", "network", "part"])
@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "guidedbackprop"])
def test_threads_explain_as_one_does(share, method):
    stem = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    network = nn.Sequential(stem, Net()).train()
    state = copy.deepcopy(network.state_dict())
    first = explainer(network, "1.act", batch_size=2)
    others = {
        "explainer": lambda: first,
        "network": lambda: explainer(network, "1.act", batch_size=2),
        "part": lambda: explainer(Wrapped(network).train(), "net.1.act", batch_size=2),
    }
    explainers = [first, others[share](), first]
    inputs = [X, X.flip(-1), X.flip(-2)]
    expected = [each.explain(x, method=method) for each, x in zip(explainers, inputs, strict=True)]
    found: list = []

    def work(i):
        for _ in range(4):
            try:
                maps = explainers[i].explain(inputs[i], method=method)
                found.append(bool(np.allclose(maps, expected[i], atol=1e-5)))
            except Exception as error:
                found.append(error)

    was = torch.backends.mha.get_fastpath_enabled()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert found == [True] * 12
    assert torch.backends.mha.get_fastpath_enabled() is was
    assert all(module.training for module in network.modules())
    for module in network.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


# Gradients that end


class Probe(Net):
    def forward(self, x):
        with torch.no_grad():
            features = self.features(x)
        return self.head(features)


class WithoutGradients(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("kind", [Net, Probe, WithoutGradients])
@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("batch_size", [4, 1])
def test_parts_without_gradients_before_the_layer_do_not_matter(kind, is_frozen, batch_size):
    network = kind().eval().requires_grad_(not is_frozen)
    ours = raw(network, batch_size=batch_size)
    np.testing.assert_allclose(ours, network.closed_form(X), atol=1e-7)


class Detached(Net):
    def forward(self, x):
        return self.head(self.features(x).detach())


class Reentrant(Net):
    def forward(self, x):
        return self.head(checkpoint(self.features, x, use_reentrant=True))


class OtherFirst(Net):
    def forward(self, x):
        return x.mean((2, 3)), super().forward(x)


@pytest.mark.filterwarnings("ignore:.*requires_grad=True")
@pytest.mark.parametrize("kind", [Detached, Reentrant, OtherFirst])
@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam"])
def test_gradients_that_end_behind_the_layer_are_refused(kind, is_frozen, method):
    network = kind().eval().requires_grad_(not is_frozen)
    explained = explainer(network)
    with pytest.raises(ValueError, match=r"back to the target layer 'act'.*use_reentrant=False"):
        explained.explain(X, target=0, method=method)
    assert explained.explain(X, target=0, method="scorecam").shape == (4, 16, 16)
    assert explained.explain(X, target=0, method="occlusion").shape == (4, 16, 16)


@pytest.mark.parametrize("kind", [Probe, Detached])
def test_pixel_methods_need_gradients_up_to_the_images(kind):
    with pytest.raises(ValueError, match=r"No gradient leads from the scores back to the images"):
        explainer(kind().eval()).explain(X, target=0, method="saliency")


def test_checkpointing_that_is_not_reentrant_makes_no_difference():
    class Checkpointed(Net):
        def forward(self, x):
            return self.head(checkpoint(self.features, x, use_reentrant=False))

    network = Checkpointed().eval()
    np.testing.assert_allclose(raw(network), network.closed_form(X), atol=1e-7)


# float16


@pytest.mark.parametrize("weight", [2e-3, 30.0])
def test_gradients_of_float16_neither_vanish_nor_overflow(weight):
    network = Net().eval()
    with torch.no_grad():
        network.fc.weight[0] = weight * torch.tensor([1.0, -0.5, 0.25, 0.5, 1.0, 2.0])
    images = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(1))
    expected = network.fc.weight[:1].detach() / 192**2
    explained = CAMExplainer(network.half(), target_layer="act", verbose=0).fit(images)
    ours = torch.from_numpy(explained.channel_weights(images, target=0))
    torch.testing.assert_close(ours, expected, rtol=0.01, atol=0)


# Compiled networks, and those that cannot be looked into


def compiled(network, how):
    if how == "module":
        return torch.compile(network, backend="eager")
    if how == "part":
        network.act = torch.compile(network.act, backend="eager")
        network.conv.compile(backend="eager")
    if how == "in place":
        network.compile(backend="eager")
    if how == "layer":
        network.act.compile(backend="eager")
    return network


@pytest.mark.parametrize("how", ["module", "part", "in place", "layer"])
@pytest.mark.parametrize("method", ["gradcam", "scorecam", "ablationcam", "guidedbackprop"])
def test_compiled_networks_are_explained_as_what_they_were_made_from(how, method):
    network = Net().eval()
    expected = explainer(network).explain(X, target=[0, 1, 2, 0], method=method, normalize=False)
    changed = compiled(copy.deepcopy(network), how)
    with torch.no_grad():
        logits = changed(X)  # compiled before there are hooks
    ours = explainer(changed).explain(X, target=[0, 1, 2, 0], method=method, normalize=False)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(changed(X), logits)
    torch._dynamo.reset()


def quantized(network):
    return torch.ao.quantization.quantize_dynamic(network, {nn.Linear})


@pytest.mark.filterwarnings("ignore")  # torch is about to part with them
@pytest.mark.parametrize(
    "make",
    [lambda net: torch.jit.script(net.act), lambda net: torch.jit.trace(net, X), quantized],
    ids=["scripted", "traced", "quantized"],
)
def test_networks_that_cannot_be_looked_into_are_refused_at_the_door(make):
    with pytest.raises(ValueError, match=r"The network .* Use the floating-point nn.Module"):
        CAMExplainer(make(Net().eval()), target_layer="act").fit(X)


def test_networks_made_in_inference_mode_are_refused_at_the_door():
    with torch.inference_mode():
        network = Net().eval()
    with pytest.raises(ValueError, match=r"made in torch.inference_mode\(\).*deepcopy"):
        CAMExplainer(network, target_layer="act").fit(X)
    np.testing.assert_allclose(raw(copy.deepcopy(network)), Net().closed_form(X), atol=1e-7)


# Callers in inference mode


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [None, 1, [0, 1, 2, 0], [[0, 1]] * 4])
def test_callers_in_inference_mode(method, target):
    network = Net().eval()
    options = {"target": target, "method": method, "normalize": False}
    expected = explainer(network).explain(X, **options)
    with torch.inference_mode():
        ours = explainer(network).explain(X.clone(), **options)
        assert torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(ours, expected)


def test_embeddings_explained_in_inference_mode():
    network, labels, references = Net().eval(), [0, 1, 0, 1], X.flip(0)

    def results():
        explained = EmbeddingCAMExplainer(network, target_layer="act", verbose=0)
        explained.fit(X, labels)
        return [
            explained.explain(X),
            explained.explain(X, target=[1, 0, 1, 0]),
            explained.explain(X, target="self"),
            explained.explain(X, target=references),
            explained.channel_weights(X),
            explained.transform(X),
            explained.predict(X),
        ]

    expected = results()
    with torch.inference_mode():
        ours = results()
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_metrics_in_inference_mode():
    network, names = Net().eval(), ("adcc", "iauc", "consistency")
    expected = evaluate(explainer(network), X, metrics=names)
    with torch.inference_mode():
        ours = evaluate(explainer(network), X, metrics=names)
    for name in names:
        np.testing.assert_array_equal(ours[name], expected[name])


# Outputs


@pytest.mark.parametrize("kind", [tuple, list])
def test_the_first_of_several_outputs_is_explained(kind):
    class Several(Net):
        def forward(self, x):
            return kind([super().forward(x), x])

    network = Several().eval()
    np.testing.assert_allclose(raw(network), network.closed_form(X), atol=1e-7)
    assert explainer(network).predict_proba(X).shape == (4, 3)


# Methods, loaders


@pytest.mark.parametrize("shape", [(3, 1, 16, 16), (4, 16, 16), (4, 2, 16, 16)])
def test_a_method_with_other_maps_than_images_is_refused(shape):
    class Odd(Method):
        def explain(self, recorded):
            return [torch.zeros(shape)]

    with pytest.raises(ValueError, match=r"Odd.explain must return maps .* shape \(4, 1\); got"):
        explainer(Net().eval()).explain(X, method=Odd())


def test_a_loader_that_shuffles_is_refused():
    images = np.random.RandomState(0).rand(6, 16, 16, 3)
    options = {"image_size": 16, "max_epochs": 1, "device": "cpu", "verbose": 0}
    net = ConsistentCAMClassifier(Net, iterator_valid__shuffle=True, **options)
    net.fit(images, [0, 1, 2] * 2)
    for explain in (net.explain, CAMExplainer(net).fit().explain):
        with pytest.raises(ValueError, match="iterator_valid shuffles"):
            explain(images)
