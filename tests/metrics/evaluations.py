"""A small network, images with labels and boxes, and all metrics worked out by hand."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from numpy.testing import assert_allclose
from scipy.stats import hmean, pearsonr, spearmanr
from small_networks import SmallNet

from sklcam import CAMExplainer
from sklcam.cam import GradCAM, Occlusion
from sklcam.metrics import (
    available,
    box_from_map,
    box_iou,
    box_masks,
    causal_curves,
    deletion_auc,
    evaluate,
    heatmap_ratio,
    insertion_auc,
    inside_outside_ratio,
    pointing_game,
    road,
    sparsity,
    ssim_consistency,
)
from sklcam.training import ViewSampler

N, N_STEPS = 7, 8


IMAGES = torch.randn(N, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 3


LABELS = [0, 2, 1, 1, 0, 2, 2]


BOXES = [[[i, 1.5, i + 5, 9]] for i in range(N - 1)] + [[[0, 0, 4, 4], [3, 8, 20, 20]]]


PARAMS = {"iauc": {"n_steps": N_STEPS}, "road": {"noise": 0, "percentiles": (30, 60)}}


OF_CONFIDENCE = ("adcc", "arcc", "average_increase", "iauc", "dauc", "road", "consistency")


# Five classes, maps of others, and images that can be transformed, are for tests of their own.
OF_OTHERS = (
    "topk_intersection",  # of more pixels than the images have
    *("top5_localization_error", "pointing_game_reject", "reference_correlation"),
    *("cose", "cose_consistency", "cose_sensitivity"),
)


ALL = tuple(name for name in available() if name not in OF_OTHERS)


def network(module=SmallNet, **options):
    torch.manual_seed(1)
    return module(**options).eval()


def explainer(model=None, *, X=IMAGES, batch_size=4, **options):
    model = network() if model is None else model
    options = {"target_layer": "5", "verbose": 0, "batch_size": batch_size, **options}
    return CAMExplainer(model, **options).fit(X)


def measure(estimator, X=IMAGES, y=None, metrics=OF_CONFIDENCE, **options):
    options = {"metric_params": PARAMS, "progress": False, **options}
    return evaluate(estimator, X, y, metrics=metrics, **options)


@contextmanager
def counted(model):
    """The number of images in each forward pass."""
    passes = []

    def count(module, args, kwargs):
        passes.append(len([*args, *kwargs.values()][0]))

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    yield passes
    handle.remove()


def constant(map_):
    return bool(map_.min() == map_.max())


def correlation(of, first, second):
    if constant(first) or constant(second):
        return 0
    return of(first.ravel(), second.ravel()).statistic


@torch.no_grad()
def by_hand(model, inputs, classes=None, method="gradcam", seed=0, run=None):
    """All that needs no truth, from maps of ``explain`` and softmax scores in plain torch."""
    model.eval()
    run = run or (lambda images, rows: model(images))
    every = torch.arange(len(inputs))
    fixed = run(inputs, every).argmax(1) if classes is None else torch.tensor(classes)

    def explain(images, target=None, **options):
        options = {"method": method, **options}
        return torch.tensor(explainer(model, X=inputs).explain(images, target, **options))

    def score(images, rows):
        return run(images, rows).softmax(1)[torch.arange(len(rows)), fixed[rows]]

    maps = explain(inputs, fixed)
    masked = inputs * maps[:, None]
    full, drop = score(inputs, every), score(masked, every)
    values = {
        "average_drop": (full - drop).clamp(min=0) / full,
        "average_increase": drop > full,
        "complexity": maps.mean((1, 2)),
        "sparsity": sparsity(explain(inputs, fixed, normalize=False)),
    }
    pairs = zip(maps, explain(masked, fixed), strict=True)
    values["coherency"] = np.array([correlation(pearsonr, *p) / 2 + 0.5 for p in pairs])
    values["coherency"][[constant(of) for of in maps]] = 0
    terms = values["coherency"], 1 - values["complexity"]
    values["adcc"] = hmean([*terms, 1 - values["average_drop"]])
    curves = causal_curves(score, inputs, maps, n_steps=N_STEPS)
    values["iauc"], values["dauc"] = insertion_auc(curves), deletion_auc(curves)
    values["road"] = road(score, inputs, maps, **PARAMS["road"])
    values["arcc"] = hmean([*terms, (2 * values["road"]).clamp(0, 1)])
    drawn = np.random.RandomState(seed).randint(2**31 - 1)
    generator = torch.Generator().manual_seed(int(drawn))
    view = ViewSampler()(len(inputs), size=(16, 16), generator=generator)
    # What is explained of a view is its own prediction, unless a class was asked for.
    target = None if classes is None else fixed
    without, of_view = (
        explain(images, target, method=GradCAM(relu=False)) for images in (inputs, view(inputs))
    )
    values["consistency"] = ssim_consistency(view(without), of_view)
    occlusion = explain(inputs, fixed, method=Occlusion(relu=False), normalize=False)
    pairs = zip(maps, occlusion, strict=True)
    values["rank_correlation"] = np.array([correlation(spearmanr, *p) for p in pairs])
    return values


def of_truth(framed, boxes, threshold=0.15, right=None):
    """The metrics of localisation, image by image, each map in its own image's frame.

    The maps are not scaled. Where the predicted class is explained and labels are known, a box
    counts if the class is right, too.
    """
    values = {name: [] for name in ("heatmap_ratio", "inside_outside_ratio", "pointing_game")}
    values["localization_accuracy"] = []
    for map_, of_image in zip(framed, boxes, strict=True):
        map_, of_image = torch.tensor(map_)[None], torch.tensor(of_image, dtype=torch.float32)
        mask = box_masks([of_image], map_.shape[1:])
        values["heatmap_ratio"].append(heatmap_ratio(map_, mask).item())
        values["inside_outside_ratio"].append(inside_outside_ratio(map_, mask).item())
        values["pointing_game"].append(pointing_game(map_, mask).item())
        ious = box_iou(box_from_map(map_, threshold), of_image)
        values["localization_accuracy"].append(float(ious.max() >= 0.5))
    if right is not None:
        values["localization_accuracy"] = np.multiply(values["localization_accuracy"], right)
    return values


def assert_same(result, expected, atol=2e-5, names=None):
    for name in names or expected:
        assert_allclose(result[name], expected[name], atol=atol, rtol=1e-4, err_msg=name)
