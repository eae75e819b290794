"""Everything runs on a device: with one's own tensors, without float64, and hardly ever waited for.

The results are those of the host, as the pretended device computes there.
"""

from __future__ import annotations

import json
import pickle
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pretend_device import MixedDevices, NoFloat64, PretendDevice, moved
from skorch.dataset import ValidSplit
from small_networks import OF_ATTENTION, SmallNet, digits
from torch import nn

import sklcam
from sklcam import (
    CAMExplainer,
    CAMSegmenter,
    CaptionExplainer,
    ConsistentCAMClassifier,
    EmbeddingCAMExplainer,
    EmbeddingNet,
    VQAExplainer,
    study,
)
from sklcam.cam import GradCAM, TopK, get_method
from sklcam.cam import available as methods
from sklcam.concepts import ConceptMaps, find_shortcuts
from sklcam.language import LanguageNetwork
from sklcam.metrics import available as metrics
from sklcam.metrics import (
    box_from_map,
    box_masks,
    causal_curves,
    evaluate,
    get_metric,
    road,
    seeds_iou,
    structural_similarity,
)
from sklcam.plotting import CAMDisplay, ConsistencyDisplay, FailuresDisplay, LocalizationDisplay
from sklcam.training import Balanced, WarmUp, objective

SIZE, N = 12, 6
IMAGES = torch.rand(N, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
LABELS = np.array([0, 1, 2, 0, 1, 2])
BOXES = torch.tensor([[[1.0, 2, 9, 9]]] * N)
MASKS = torch.rand(N, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) > 0.5
# Of maps that differ, which have to be found; or of a network that is folded for many passes.
PASSES = {
    *{"scorecam", "sscam", "iscam", "ablationcam", "rise"},
    *{"fasterscorecam", "groupcam", "reciprocam"},
}
CURVES = {
    **{"iauc": {"n_steps": 4}, "road": {"percentiles": (50,)}},
    **{"pointing_game_reject": {"threshold": 0.01}, "topk_intersection": {"k": 20}},
}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def device():
    with PretendDevice() as entered:
        yield entered


def network(num_classes=3):
    torch.manual_seed(0)
    return SmallNet(num_classes=num_classes, width=4).eval()


def explainer(model, images=IMAGES, *, of=CAMExplainer, y=None, **options):
    options = {"target_layer": "5", "verbose": 0, "batch_size": 2, **options}
    return of(model, **options).fit(images, y)


def method_of(name):
    method = get_method(name)
    few = {"random_state": 0, "n_samples": 2}
    return method.set_params(**{k: v for k, v in few.items() if k in method.get_params()})


# The device itself


def test_what_a_device_refuses(device):
    ours, others = torch.ones(2, device="pretend"), torch.ones(2)
    assert ours.device.type == "pretend" and (ours + 1).tolist() == [2, 2]
    for mixture in (lambda: ours + others, lambda: torch.cat([ours, others])):
        with pytest.raises(MixedDevices):
            mixture()
    for made in (ours.double, lambda: torch.ones(2, dtype=torch.float64).to("pretend")):
        with pytest.raises(NoFloat64):
            made()
    assert ours.cpu().double().dtype == torch.float64


def test_what_a_device_is_waited_for(device):
    ours = torch.arange(3.0, device="pretend")
    waiting = [
        ours.cpu,
        ours.sum().item,
        lambda: bool(ours.any()),
        lambda: ours[ours > 1],
        lambda: ours[torch.tensor([0])],
        lambda: ours.nonzero(),
        lambda: torch.empty(3).copy_(ours),
    ]
    for i, wait in enumerate(waiting):
        wait()
        assert device.waits.total() == i + 1
    launches = device.launches
    for _ in range(2):
        torch.where(ours > 1, ours, 0.0).mean().add_(1)
    assert device.waits.total() == len(waiting) and device.launches > launches


# Methods


@pytest.mark.parametrize("name", sorted({*methods()} - OF_ATTENTION))
def test_methods(name, device):
    method = method_of(name)
    ours = explainer(moved(network()))
    device.waits.clear()
    maps = ours.explain(IMAGES, method=method)
    n_batches = N // 2
    # The maps of each batch, and whether any is blank; more where what comes next hangs on values.
    assert device.waits.total() <= 1 + n_batches * (12 if name in PASSES else 4), device.waits
    if method.rule() is None and name not in PASSES | {"occlusion", "cam"}:
        assert device.waits.total() <= 1 + n_batches, device.waits
    expected = explainer(network()).explain(IMAGES, method=method)
    assert_allclose(maps, expected, atol=1e-6)


@pytest.mark.parametrize("target", [None, LABELS, torch.tensor(LABELS), TopK(2), 1])
def test_targets(target, device):
    ours = explainer(moved(network()))
    given = target.to("pretend") if isinstance(target, torch.Tensor) else target
    maps = ours.explain(IMAGES.to("pretend"), given)
    assert_allclose(maps, explainer(network()).explain(IMAGES, target), atol=1e-6)


def test_several_layers_and_frames(device):
    options = {"target_layer": ["2", "5"], "layer_fusion": "max"}
    ours, host = (explainer(model, **options) for model in (moved(network()), network()))
    assert_allclose(ours.explain(IMAGES), host.explain(IMAGES), atol=1e-6)
    single = explainer(moved(network()))
    assert len(single.explain(IMAGES, frame="image")) == N
    assert single.channel_weights(IMAGES).shape == (N, 4)
    assert single.predict(IMAGES).shape == (N,)


def test_channels_are_named(device):
    halves = {"top": MASKS, "rest": ~MASKS}
    ours, host = explainer(moved(network())), explainer(network())
    named = [sklcam.ConceptNamer(0.5).fit(each, IMAGES, halves) for each in (ours, host)]
    assert_allclose(*(each.scores_ for each in named), atol=1e-6)
    assert_allclose(*(each.strongest_boxes_ for each in named))
    words = [each.explain_in_words(IMAGES, named[1], k=2) for each in (ours, host)]
    assert_allclose(*(each.positive_weights for each in words), atol=1e-6)


def test_concepts_without_names(device):
    ours, host = explainer(moved(network())), explainer(network())
    device.waits.clear()
    found = [ConceptMaps(2, random_state=0).fit(each, IMAGES) for each in (ours, host)]
    n_weights = 1 + len(network().state_dict())  # of which the network's short name is made
    assert device.waits.total() <= N // 2 + n_weights, device.waits  # the cells of each batch
    assert_allclose(*(each.components_ for each in found), atol=1e-5)
    device.waits.clear()
    maps = [found[1].transform(each, IMAGES) for each in (ours, host)]
    assert device.waits.total() <= N // 2 + n_weights, device.waits
    assert_allclose(*maps, atol=1e-5)


def test_shortcuts(device):
    ours, host = explainer(moved(network())), explainer(network())
    device.waits.clear()
    options = {"min_size": 2, "random_state": 0}
    found = [find_shortcuts(each, IMAGES, LABELS, **options) for each in (ours, host)]
    # Images are read twice: in three batches, and in one for each of three clusters.
    assert device.waits.total() <= 3 * (N // 2 + 3), device.waits
    assert len(found[0]) == len(found[1]) > 0
    for here, there in zip(*found, strict=True):
        assert (here.label, here.rows.tolist()) == (there.label, there.rows.tolist())
        for name in ("map", "region", "separation", "likeness", "drop"):
            assert_allclose(getattr(here, name), getattr(there, name), atol=1e-5)


# Words


class Writer(LanguageNetwork):
    """Writes of an image what its channels and the last word say."""

    vocabulary: ClassVar[list[str]] = ["<none>", "<end>", "a", "dark", "bright"]
    end = 1

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.words = nn.Embedding(5, 4, padding_idx=0)
        self.head = nn.Linear(4, 5)

    def forward(self, images, tokens):
        start = self.features(images).mean((2, 3))[:, None]
        return self.head(start * torch.cat([start, self.words(tokens[:, :-1])], dim=1))


class Answerer(Writer):
    """Answers a question by the channels that its words choose."""

    answers: ClassVar[list[str]] = ["no", "yes", "maybe", "one", "two"]

    def forward(self, images, tokens):
        return self.head(self.features(images).mean((2, 3)) * self.words(tokens).sum(1))


def test_captions(device):
    ours, host = (
        explainer(model, of=CaptionExplainer, target_layer="features")
        for model in (moved(Writer().eval()), Writer().eval())
    )
    captions = ["a bright", "dark", "a dark"] * 2
    device.waits.clear()
    found, expected = (each.explain(IMAGES, captions) for each in (ours, host))
    assert device.waits.total() <= 1 + 2 * N // 2, device.waits
    for here, there in zip(found, expected, strict=True):
        assert here.words == there.words
        assert_allclose(here.maps, there.maps, atol=1e-6)
        assert_allclose(here.total, there.total, atol=1e-6)
    likely = (each.log_probabilities(IMAGES, captions) for each in (ours, host))
    assert_allclose(*map(np.concatenate, likely), atol=1e-6)
    assert ours.predict(IMAGES) == host.predict(IMAGES)


@pytest.mark.parametrize("target", [None, "yes"])
def test_answers(target, device):
    asked = {"image": IMAGES, "question": ["a dark", "bright", "a bright"] * 2}
    ours, host = (
        explainer(model, asked, of=VQAExplainer, target_layer="features")
        for model in (moved(Answerer().eval()), Answerer().eval())
    )
    device.waits.clear()
    maps = ours.explain(asked, target)
    assert device.waits.total() <= 1 + 2 * N // 2, device.waits
    assert_allclose(maps, host.explain(asked, target), atol=1e-6)
    assert (ours.predict(asked) == host.predict(asked)).all()


# Metrics


@pytest.mark.parametrize("name", metrics())
def test_metrics(name, device):
    options = {"metrics": name, "metric_params": CURVES, "progress": False}
    if name == "reference_correlation":
        options["references"] = MASKS.float()
    ours, images = explainer(moved(network(5))), IMAGES
    if name.startswith("cose"):  # whose views change colours, and need to know what is white
        images = IMAGES.sigmoid().permute(0, 2, 3, 1).numpy()
    device.waits.clear()
    result = evaluate(ours, images, LABELS, boxes=BOXES, **options)
    needs = get_metric(name).needs
    if "framed_maps" in needs:  # image by image, in frames of different sizes
        most = 8 + N * (1 if "boxes" in needs else 0)
    elif name == "top5_localization_error":  # boxes of several maps an image
        most = 8 + 2 * N
    elif name.startswith("cose"):  # in each batch two transformations of torchvision's wait
        most = 24
    else:
        most = {"rank_correlation": 20, "pointing_game_reject": 16}.get(name, 12)
    assert device.waits.total() <= most, device.waits
    expected = evaluate(explainer(network(5)), images, LABELS, boxes=BOXES, **options)
    for values, of_host in zip(result.values(), expected.values(), strict=True):
        assert_allclose(values, of_host, atol=1e-6)


OF_NO_VALUES = ["complexity", "sparsity", "adcc", "consistency", "coherency"]
OF_NO_VALUES += ["accuracy", "consistency_kept", "consistency_changed"]


@pytest.mark.parametrize("name", OF_NO_VALUES)
def test_metrics_of_maps_wait_for_nothing_but_the_end(name, device):
    ours, waits = explainer(moved(network())), []
    for n in (2, N):
        device.waits.clear()
        evaluate(ours, IMAGES[:n], LABELS[:n], metrics=name, progress=False)
        waits.append(device.waits.total())
    assert waits[0] == waits[1], device.waits


def test_annotations_on_the_device(device):
    names = ("heatmap_ratio", "inside_outside_ratio", "pointing_game", "localization_accuracy")
    options = {"metrics": names, "progress": False}
    y = torch.tensor(LABELS)
    expected = evaluate(
        explainer(network()), IMAGES, y, target=y, boxes=BOXES, masks=MASKS, **options
    )
    ours, y = explainer(moved(network())), y.to("pretend")
    for form in (lambda of: of.to("pretend"), lambda of: [*of.to("pretend")]):
        for dtype in (torch.bool, torch.uint8, torch.float32, torch.bfloat16):
            given = {"boxes": form(BOXES), "masks": form(MASKS.to(dtype))}
            result = evaluate(ours, IMAGES.to("pretend"), y, target=y, **given, **options)
            for name in names:
                assert_allclose(result[name], expected[name], atol=1e-6)


def test_label_maps(device):
    options, y = {"saliency": "saliency", "overlap": "unknown"}, [{0, 1, 2}] * N
    segmenter = CAMSegmenter(explainer(network()), **options).fit(IMAGES, y)
    expected = segmenter.predict(IMAGES, y)
    images = IMAGES.to("pretend")
    ours = CAMSegmenter(explainer(network().to("pretend"), images), **options).fit(images, y)
    device.waits.clear()
    found = ours.predict(images, y)
    # Seeds are fetched image by image, and of each batch the classes that it has.
    assert device.waits.total() <= 3 + N + 2 * N // 2, device.waits
    assert (found == expected).mean() > 0.99 and len(np.unique(found)) > 2  # but for rounding
    truth = torch.from_numpy(expected.astype(int) % 255).to("pretend")
    assert ours.score(images, truth, y) == pytest.approx(segmenter.score(IMAGES, truth.cpu(), y))


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_functions_of_maps(precision, device):
    maps = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours, found = maps.to("pretend"), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        similar = structural_similarity(ours, ours.flip(1)).cpu()
    finally:
        torch.set_float32_matmul_precision(found)
    assert_allclose(similar, structural_similarity(maps, maps.flip(1)), atol=1e-5)
    assert_allclose(box_from_map(ours).cpu(), box_from_map(maps))
    assert box_masks(BOXES.to("pretend"), (SIZE, SIZE)).device.type == "pretend"
    truth = (maps > 0.5).long()
    iou = seeds_iou(ours[:, None], truth.to("pretend"))
    assert_allclose(iou.cpu(), seeds_iou(maps[:, None], truth))

    def share(images, rows):
        return images.mean((1, 2, 3))

    curves = causal_curves(share, ours[:, None], ours, n_steps=4)
    assert_allclose(curves.insertion.cpu(), causal_curves(share, maps[:, None], maps, n_steps=4)[1])
    values = road(share, ours[:, None], ours, noise=0)
    assert_allclose(values.cpu(), road(share, maps[:, None], maps, noise=0), atol=1e-6)


# Training

X, Y = digits(12)
TRAINING = {
    "normal": {},
    "low": {"memory": "low"},
    "accumulated": {"batch_accumulation": 2},
    "low and accumulated": {"memory": "low", "batch_accumulation": 2},
    "automatic": {"alpha": "auto", "beta": "auto"},
    "balanced": {"alpha": Balanced(0.3)},
    "warmed up": {"alpha": WarmUp(1.0, epochs=2)},
    "shared target": {"view_target": "shared"},
    "p=0": {"p": 0},
    "p=2": {"p": 2},
    "without views": {"alpha": 0},
    "baseline": {"alpha": 0, "beta": 0},
    "without augmentation": {"augment": None},
    "validated": {"train_split": ValidSplit(3, stratified=True)},
    "channels last": {"channels_last": True},
    "Adam": {"optimizer": torch.optim.Adam},
    "weights of classes": {"criterion__weight": [1.0, 2.0, 3.0], "batch_accumulation": 2},
}


def classifier(device, **options):
    options = {"image_size": SIZE, "max_epochs": 1, "batch_size": 4, "lr": 0.05, **options}
    return ConsistentCAMClassifier(
        SmallNet, target_layer="5", device=device, random_state=0, verbose=0, **options
    )


@pytest.fixture
def undivided(monkeypatch):
    """Let the host take the maps of a batch in one part, as a device does."""
    monkeypatch.setattr(objective, "_N_PARTS_ON_CPU", 1)


@pytest.mark.usefixtures("undivided")
@pytest.mark.parametrize("options", TRAINING.values(), ids=TRAINING)
def test_training(options, device):
    ours = classifier("pretend", **options).fit(X, Y)
    # Each batch's loss and its terms, for the history, all together; and the dry run.
    n_batches = 3 if "train_split" not in options else 2
    # At the end batch normalisation's statistics are looked at, and maybe re-estimated; and of an
    # epoch's predictions, in training and in validation, one score each is read.
    assert device.waits.total() <= n_batches + 4 + 4 + 2, device.waits
    host = classifier("cpu", **options).fit(X, Y)
    for name, value in host.module_.state_dict().items():
        assert_allclose(ours.module_.state_dict()[name].cpu(), value, atol=1e-6, err_msg=name)


@pytest.mark.usefixtures("undivided")
def test_weights_of_images(device):
    weights = np.arange(12.0)
    ours, host = (classifier(where).fit(X, Y, weights) for where in ("pretend", "cpu"))
    assert device.waits.total() <= 3 + 4 + 4, device.waits
    assert_allclose(ours.history[:, "train_ce"], host.history[:, "train_ce"], atol=1e-6)


def test_training_goes_on_with_what_was_kept_on_the_host(device):
    ours = classifier("pretend", alpha="auto").fit(X, Y)
    sizes = ours.gradient_sizes_
    kept = pickle.loads(pickle.dumps(sizes))
    assert {each.device.type for each in kept.averages.values()} == {"cpu"}
    kept.to("pretend")  # as processes do, which average them together with gradients
    assert {each.device.type for each in kept.averages.values()} == {"pretend"}
    for term, average in sizes.averages.items():
        assert_allclose(kept.averages[term].cpu(), average.cpu())
    ours.gradient_sizes_ = pickle.loads(pickle.dumps(sizes))
    ours.partial_fit(X, Y)
    assert np.isfinite(ours.history[-1, "train_loss"])


@pytest.mark.usefixtures("undivided")
def test_a_trained_network(device):
    ours, host = (classifier(where).fit(X, Y) for where in ("pretend", "cpu"))
    device.waits.clear()
    assert_allclose(ours.predict_proba(X), host.predict_proba(X), atol=1e-6)
    assert device.waits.total() <= 1 + 3, device.waits  # batches
    assert ours.score(X, Y) == host.score(X, Y)
    assert_allclose(ours.explain(X), host.explain(X), atol=1e-6)


# Embeddings


def embedder(model):
    return explainer(model, of=EmbeddingCAMExplainer, y=LABELS)


@pytest.mark.parametrize("target", [None, LABELS, "self", IMAGES[:1]])
def test_embeddings(target, device):
    ours, host = embedder(moved(network(5))), embedder(network(5))
    assert_allclose(ours.explain(IMAGES, target), host.explain(IMAGES, target), atol=1e-6)
    assert_allclose(ours.transform(IMAGES), host.transform(IMAGES), atol=1e-6)
    assert (ours.predict(IMAGES) == host.predict(IMAGES)).all()


def test_neighbours_and_metrics_of_embeddings(device):
    ours, host = embedder(moved(network(5))), embedder(network(5))
    found = ours.explain_neighbors(IMAGES[:3], IMAGES, 2)
    assert (found.indices == host.explain_neighbors(IMAGES[:3], IMAGES, 2).indices).all()
    options = {"metrics": ("adcc", "accuracy", "consistency"), "progress": False}
    result, expected = (evaluate(of, IMAGES, LABELS, **options) for of in (ours, host))
    for name in options["metrics"]:
        assert_allclose(result[name], expected[name], atol=1e-6)


def test_an_embedding_net(device):
    pytest.importorskip("pytorch_metric_learning")
    options = {
        "image_size": SIZE,
        "max_epochs": 1,
        "batch_size": 6,
        "verbose": 0,
        "random_state": 0,
    }
    net = EmbeddingNet(SmallNet, embedding_dim=4, device="pretend", **options).fit(X, Y)
    assert net.transform(X).shape == (12, 4) and np.isfinite(net.explain(X)).all()


# What shows them


def test_displays_and_the_report(device, tmp_path):
    pytest.importorskip("matplotlib")
    ours = explainer(moved(network()))
    CAMDisplay.from_estimator(ours, IMAGES, methods=["gradcam", GradCAM(relu=False)])
    LocalizationDisplay.from_estimator(ours, IMAGES, BOXES.to("pretend"))
    ConsistencyDisplay.from_estimator(ours, IMAGES)
    FailuresDisplay.from_estimator(ours, IMAGES, LABELS)
    pytest.importorskip("jinja2")
    result = sklcam.report(ours, IMAGES, LABELS, path=tmp_path / "page.html", verbose=0)
    assert np.isfinite(result["adcc"]).all()


def test_studies(device, tmp_path):
    models = {"here": explainer(network()), "there": explainer(moved(network()))}
    for name, model in models.items():
        options = {"pairs": [0, 1], "path": tmp_path / f"{name}.html", "random_state": 0}
        study.build(model, IMAGES, **options)
    labels = models["here"].predict(IMAGES)
    key = study.build(models, IMAGES, labels, tmp_path / "both.html", kind="reliability",
                      better="here", random_state=0)  # fmt: skip
    assert key["accuracy"] == {"here": 1, "there": 1}
    embedder = explainer(moved(network(4)), of=EmbeddingCAMExplainer, y=LABELS)
    study.build(embedder, IMAGES, pairs=[0, 2], path=tmp_path / "proxies.html")
    here, there = (
        json.loads((tmp_path / f"{name}.key.json").read_text())["items"] for name in models
    )
    assert [one.get("truth") for one in here.values()] == [
        one.get("truth") for one in there.values()
    ]


def test_a_file_holds_what_is_on_the_device(device, tmp_path):
    ours = explainer(moved(network()))
    sklcam.save(ours, tmp_path / "net.sklcam")
    loaded = sklcam.load(tmp_path / "net.sklcam", objects={"SmallNet": SmallNet(width=4)})
    assert_allclose(loaded.explain(IMAGES), explainer(network()).explain(IMAGES), atol=1e-6)


def test_modules_are_moved_as_they_are():
    module = moved(nn.BatchNorm2d(2))
    assert {of.device.type for of in module.state_dict().values()} == {"pretend"}
    assert [name for name, _ in module.named_parameters()] == ["weight", "bias"]
