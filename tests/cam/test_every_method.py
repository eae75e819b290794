"""What every method promises: finite maps, one image at a time, and a network left as it was."""

from __future__ import annotations

import gc
import random
import warnings
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from rounding import tolerance
from sklearn.utils import check_random_state
from small_networks import OF_ATTENTION, SmallNet
from torch import nn

from sklcam import CAMExplainer
from sklcam.cam import TopK, available, get_method, min_max, upsample
from sklcam.explain import ExplanationWarning
from sklcam.networks import TargetLayer

SIZE = 12
CONTROLS = {"uniform", "fakecam"}
DIFFERENCES = {"occlusion"}
RANDOM = {"randomcam", "rise", "smoothgradcam++", "sscam"}


def method_of(name: str, **options):
    """A method with its random numbers fixed, and few of them."""
    method = get_method(name)
    known = {"random_state": 0, "n_samples": 2, "batch_size": 8} | options
    return method.set_params(**{k: v for k, v in known.items() if k in method.get_params()})


@pytest.fixture
def model() -> nn.Module:
    """One channel in; layer 5 is a ReLU behind which are global pooling and one linear layer."""
    torch.manual_seed(0)
    return SmallNet(num_classes=4, in_channels=1, width=6).double().eval()


def noise_images(n: int) -> torch.Tensor:
    return torch.randn(n, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(n)).double()


def explain(name, model, images, target=None, normalize=False, **options) -> np.ndarray:
    layer = TargetLayer("5")  # some of these networks do not answer, whatever image they are given
    explainer = CAMExplainer(model, method_of(name), layer, verbose=0, **options).fit(images)
    return explainer.explain(images, target, normalize=normalize)


METHODS = sorted({*available()} - OF_ATTENTION)
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ExplanationWarning)  # black images have blank maps
        yield


# Finite maps


@every_method
@pytest.mark.parametrize("normalize", [True, False])
def test_black_images(name, model, normalize):
    maps = explain(name, model, torch.zeros(2, 1, SIZE, SIZE).double(), normalize=normalize)
    assert maps.shape == (2, SIZE, SIZE) and maps.dtype == np.float32
    assert np.isfinite(maps).all()


@every_method
def test_maps_at_the_layer_are_those_of_the_input_before_they_are_upsampled(name, model):
    images, layer = noise_images(2), TargetLayer("5")
    explainer = CAMExplainer(model, method_of(name), layer, verbose=0).fit(images)
    if not explainer.method.at_layer:
        return
    grids = torch.tensor(explainer.explain(images, 0, frame="layer", normalize=False))
    assert grids.shape == (2, SIZE // 2, SIZE // 2)
    expected = explainer.explain(images, 0, normalize=False)
    np.testing.assert_allclose(upsample(grids, (SIZE, SIZE)), expected, rtol=1e-5, atol=1e-6)
    scaled = torch.tensor(explainer.explain(images, 0, frame="layer"))
    again = min_max(upsample(scaled, (SIZE, SIZE)))
    np.testing.assert_allclose(again, explainer.explain(images, 0), atol=1e-5)


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name, model, dtype):
    model, images = model.float(), noise_images(3).float()
    exact = explain(name, model, images)
    with torch.autocast("cpu", dtype=dtype):
        raw, scaled = explain(name, model, images), explain(name, model, images, normalize=True)
    assert np.isfinite(raw).all() and np.isfinite(scaled).all()
    assert scaled.min() >= 0 and scaled.max() <= 1
    assert np.abs(raw - exact).max() <= 0.2 * np.abs(exact).max()


@every_method
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_passes_in_half_precision(name, model, precision):
    """Unlike under autocast, backward passes and maps are outside it."""
    model, images = model.float(), noise_images(3).float()
    exact, maps = explain(name, model, images), explain(name, model, images, precision=precision)
    assert maps.dtype == np.float32 and np.isfinite(maps).all()
    assert np.abs(maps - exact).max() <= 0.2 * np.abs(exact).max()


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision(name, model, dtype):
    images = noise_images(2)
    exact, maps = (explain(name, model.to(t), images.to(t)) for t in (torch.float32, dtype))
    assert maps.dtype == np.float32 and np.isfinite(maps).all()
    assert np.abs(maps - exact).max() <= 0.2 * np.abs(exact).max()


@every_method
def test_a_constant_map_is_zero(name, model):
    with torch.no_grad():  # the target layer no longer depends on the image
        model[4].weight.zero_()
        model[4].bias.fill_(0.7)
    # A difference of equals, of two scores or of what two classes win, is zero but for rounding,
    # which scaling would make a map of.
    maps = explain(name, model, noise_images(2), normalize=name not in DIFFERENCES)
    if name in CONTROLS:
        assert maps.max() == 1
    elif name == "rise":  # the mean of its masks, which are random, times what is always said
        masks = np.concatenate([*method_of(name).masks((SIZE, SIZE), 99, torch.device("cpu"))])
        mean = min_max(torch.from_numpy(masks.mean(axis=0))).numpy()
        np.testing.assert_allclose(maps, np.stack([mean, mean]), atol=1e-6)
    elif name in DIFFERENCES:
        assert np.abs(maps).max() <= tolerance(1, float)
    else:
        assert not maps.any()


@pytest.mark.parametrize(
    "name",
    ["ablationcam", "cam", "counterfactual", "gradcam", "gradcam++", "hirescam", "layercam",
     "smoothgradcam++", "xgradcam"],
)  # fmt: skip
@pytest.mark.parametrize("normalize", [True, False])
def test_a_map_that_is_all_negative_is_zero(name, model, normalize):
    with torch.no_grad():  # the target layer's activations all speak against every class
        model[8].weight.abs_()
        if name != "counterfactual":  # or, where that is what is shown, for it
            model[8].weight.neg_()
    assert not explain(name, model, noise_images(3), normalize=normalize).any()


# One image at a time


@every_method
@pytest.mark.parametrize("n_images", [1, 3, 4])
def test_the_map_of_an_image_does_not_depend_on_its_batch(name, model, n_images):
    images = noise_images(n_images)
    together = explain(name, model, images)
    alone = np.concatenate([explain(name, model, image[None]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-9)
    in_twos = explain(name, model, images, batch_size=2)
    np.testing.assert_allclose(in_twos, together, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_methods_follow_their_seed(name, model):
    images = noise_images(2)
    # Behind layer 5 the network is linear, and its gradient is the same for every noisy image.
    explainer = CAMExplainer(model, target_layer="4", verbose=0).fit(images)
    first, again, other = (
        explainer.explain(images, method=method_of(name, random_state=seed), normalize=False)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    from_generator = method_of(name, random_state=np.random.RandomState(0))
    assert explainer.explain(images, method=from_generator).shape == first.shape


# Targets


@every_method
def test_several_classes_from_one_pass(name, model):
    images = noise_images(3)
    classes = model(images).topk(2).indices
    several = explain(name, model, images, TopK(2))
    assert several.shape == (3, 2, SIZE, SIZE)
    np.testing.assert_array_equal(several, explain(name, model, images, classes))
    for column in range(2):
        one = explain(name, model, images, classes[:, column])
        np.testing.assert_allclose(several[:, column], one, rtol=1e-6, atol=1e-9)
    predicted = explain(name, model, images)
    np.testing.assert_allclose(several[:, 0], predicted, rtol=1e-6, atol=1e-9)


@every_method
def test_a_callable_target(name, model):
    images = noise_images(3)
    refusals = {
        "cam": "callable target",
        "finercam": "contrasts a class with other",
    }  # of what is no class
    if name in refusals:
        with pytest.raises(ValueError, match=refusals[name]):
            explain(name, model, images, lambda output: output[:, 2])
        return
    by_label = explain(name, model, images, 2)
    if name == "groupcam":  # whose gradient is of the logit, and whose gain of the probability
        return
    of_probabilities = name in {"reciprocam", "rise"}
    as_asked = partial(torch.softmax, dim=1) if of_probabilities else lambda output: output
    by_callable = explain(name, model, images, lambda output: as_asked(output)[:, 2])
    np.testing.assert_allclose(by_callable, by_label, rtol=1e-6, atol=1e-9)


# A network left as it was


def state_of(model):
    """Whatever a method might leave behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "values": [value.sum().item() for value in model.state_dict().values()],
        "versions": [value._version for value in model.state_dict().values()],
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "function modes": torch.overrides._get_current_function_mode_stack(),
        "fused attention": torch.backends.mha.get_fastpath_enabled(),
    }


def unusual(model):
    """In training mode but for one part, with a frozen parameter."""
    model.train()
    model[1].eval()
    next(model.parameters()).requires_grad_(False)
    return model


def random_states():
    of_numpy = check_random_state(None).get_state()
    return torch.get_rng_state().tolist(), of_numpy[1].tolist(), of_numpy[2:], random.getstate()


@every_method
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_network_is_left_as_it_was(name, model, context):
    images = noise_images(2)
    expected = explain(name, model, images)
    before, kept = state_of(unusual(model)), images.clone()
    numbers = random_states()
    with context():
        maps = explain(name, model, images)
    assert state_of(model) == before
    assert torch.equal(images, kept) and not images.requires_grad
    assert random_states() == numbers
    np.testing.assert_allclose(maps, expected, rtol=1e-6, atol=1e-9)  # in evaluation mode


class Failing(nn.Module):
    """Fails in its n-th pass, and from there on."""

    n_left = float("inf")
    n_passes = 0

    def forward(self, x):
        self.n_passes += 1
        self.n_left -= 1
        if self.n_left < 0:
            raise RuntimeError("failed on purpose")
        return x * 1


@every_method
@pytest.mark.parametrize("place", [0, 6, 9], ids=["before", "behind", "at the end"])
@pytest.mark.parametrize("n_passes", [0, 1, 2])
def test_the_network_is_left_as_it_was_after_an_error(name, model, place, n_passes):
    images = noise_images(2)
    failing = Failing()
    model.insert(place, failing)
    layer = "6" if place == 0 else "5"
    explainer = CAMExplainer(unusual(model), method_of(name), layer, verbose=0).fit(images)
    failing.n_passes = 0
    expected = explainer.explain(images)
    n_needed, before = failing.n_passes, state_of(model)
    failing.n_left, failed = n_passes, False
    try:
        explainer.explain(images)
    except RuntimeError as error:
        failed = "failed on purpose" in str(error)
    # No error is swallowed, and none comes once the method has what it needs.
    assert failed == (n_passes < n_needed)
    assert state_of(model) == before
    failing.n_left = float("inf")
    np.testing.assert_array_equal(explainer.explain(images), expected)


class Watched(nn.Module):
    """Keeps weak references to what goes through it."""

    def __init__(self):
        super().__init__()
        self.seen: list[weakref.ref] = []

    def forward(self, x):
        y = x * 1
        self.seen.extend((weakref.ref(x), weakref.ref(y)))
        return y


def watch(model) -> list[weakref.ref]:
    """Watch the image, the target layer's activations and the logits of a SmallNet."""
    watched = Watched(), Watched(), Watched()
    for place, module in zip((0, 7, 11), watched, strict=True):
        model.insert(place, module)
    watched[1].seen = watched[2].seen = watched[0].seen
    return watched[0].seen


@every_method
def test_no_graph_survives_a_call(name, model):
    """Nor does one wait for the garbage collector, which may come late on an accelerator."""
    seen = watch(model)
    images = noise_images(2)
    explainer = CAMExplainer(model, method_of(name), "6", verbose=0).fit(images)
    if name == "cam":
        explainer.set_params(target_layer="7").fit(images)
    seen.clear()
    gc.disable()
    try:
        maps, output = explainer.explain_inputs(images, TopK(2))
        alive = [reference() for reference in seen if reference() is not None]
    finally:
        gc.enable()
    assert len(seen) >= 6
    # The images are ours, and the output is handed over, but not its graph.
    assert all(tensor is images for tensor in alive)
    assert not maps.requires_grad and not output.requires_grad


@every_method
def test_no_graph_survives_an_error(name, model):
    seen = watch(model)
    images = noise_images(2)
    explainer = CAMExplainer(model, method_of(name), "6", verbose=0).fit(images)
    failing = Failing()
    model.append(failing)
    failing.n_left = 0
    seen.clear()
    gc.freeze()  # what there was before is not looked through
    with pytest.raises(RuntimeError, match="on purpose"):
        explainer.explain(images)
    gc.collect()
    gc.unfreeze()
    assert len(seen) >= 6
    assert all(reference() is None for reference in seen)
