"""What ``metrics.py`` compares: each library's way to the same values, and why they may differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from unittest.mock import patch

import numpy as np
import pytorch_grad_cam
import pytorch_grad_cam.metrics.arcc
import pytorch_grad_cam.metrics.cam_mult_image
import pytorch_grad_cam.metrics.road
import torch
import torchcam.methods
import torchcam.metrics
from explain_contenders import Explained, finish
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
)
from torch import Tensor, nn

from sklcam.cam import GradCAM
from sklcam.metrics import (
    deletion_curve,
    evaluate,
    impute,
    pointing_game,
    sparsity,
    structural_similarity,
)

SIGNED = GradCAM(relu=False)  # few pixels tie, so percentiles are exact
PERCENTILES = (20, 40, 60, 80)
PASSES = (10, 32)  # batch sizes of plain forward passes
FEW = 2  # affordable number of images if many pixels are filled in
ADCC = ("coherency", "complexity", "average_drop", "adcc")
METHODS = {  # methods with one gradient that both sides define as the papers do
    "gradcam": torchcam.methods.GradCAM,
    "xgradcam": torchcam.methods.XGradCAM,
    "layercam": torchcam.methods.LayerCAM,
}
ARCC = ("complexity", "coherency", "road", "arcc")


class Grey(nn.Module):
    """A network for images with one channel.

    Quantus spreads a map over the channels and counts each channel of a pixel as a pixel of its
    own. So its ROAD fails on images with three channels, and its pixel flipping separates a pixel's
    colours.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.expand(-1, 3, -1, -1))


@dataclass(frozen=True)
class Case(Explained):
    """The input of every contender; peers take the images in batches."""

    batch_size: int
    n_steps: int

    @property
    def device(self) -> str:
        return self.images.device.type

    def batches(self) -> Sequence[Tensor]:
        return self.images.split(self.batch_size)

    # Given in advance, if only a metric of ready-made maps is measured

    @cached_property
    def maps(self) -> Tensor:
        return self.explainer.explain_inputs(self.images, method="gradcam")[0]

    @cached_property
    def places(self) -> Tensor:
        """Each pixel's rank, from 0 for the most salient."""
        maps, _ = self.explainer.explain_inputs(self.images, method=SIGNED)
        order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
        return order.argsort(dim=1).view(maps.shape)

    @cached_property
    def untied(self) -> Tensor:
        """Maps with this order and without ties, which others break in no fixed order."""
        return 1 - self.places / self.places[0].numel()

    @cached_property
    def masks(self) -> Tensor:
        """Masks of imaginary objects: where images are bright and where they are dark, in turns."""
        masks = self.untied > 0.5
        masks[1::2] = ~masks[1::2]
        return masks

    @cached_property
    def grey(self) -> nn.Module:
        return Grey(self.network).eval()

    @cached_property
    def grey_images(self) -> Tensor:
        return self.images.mean(dim=1, keepdim=True)

    @cached_property
    def grey_classes(self) -> Tensor:
        with torch.no_grad():
            return self.grey(self.grey_images).argmax(dim=1)


Measure = Callable[[Case], Tensor]


@dataclass(frozen=True)
class Peer:
    """Another library's way to the same values, a row for each image.

    ``why`` says how it deviates; ``equal`` returns a context in which it does not. If ``averages``,
    a row is the mean over a batch, and agreement is checked one image at a time.
    """

    library: str
    measure: Measure
    why: str = ""
    equal: Callable[[Case], AbstractContextManager] | None = None
    averages: bool = False


@dataclass(frozen=True)
class Spec:
    """One comparison, and how many images are affordable; None is all."""

    ours: Measure
    peers: tuple[Peer, ...]
    floors: dict[str, Measure] = field(default_factory=dict)  # a lower bound for ours
    n_images: int | None = None


def evaluated(case: Case, *, names: Sequence[str], **options: object) -> Tensor:
    result = evaluate(case.explainer, case.images, metrics=names, progress=False, **options)
    return torch.as_tensor(np.column_stack([result[name] for name in names]))


def predicted(network: nn.Module, images: Tensor) -> list[int]:
    with torch.no_grad():
        return network(images).argmax(dim=1).tolist()


# ADCC, by the authors' recipe


def adcc_by_recipe(
    network: nn.Module, image: Tensor, explain: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Return the terms and the value for one image, (1, channels, height, width)."""
    with torch.no_grad():
        full, target = network(image).softmax(dim=1)[0].max(dim=0)
    first = explain(image, int(target))
    with torch.no_grad():
        confidence = network(image * first).softmax(dim=1)[0, target]
    second = explain(image * first, int(target))
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    coherency = ((1 + correlation) / 2).nan_to_num(0)  # the authors' value if a map is constant
    complexity = first.abs().mean()
    drop = (full - confidence).clamp(min=0) / full
    adcc = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
    return torch.stack([coherency, complexity, drop, adcc])


def pytorch_grad_cam_adcc(case: Case) -> Tensor:
    with pytorch_grad_cam.GradCAM(model=case.network, target_layers=[case.layer]) as cam:

        def explain(image: Tensor, target: int) -> Tensor:
            maps = cam(input_tensor=image, targets=[ClassifierOutputTarget(target)])
            return torch.from_numpy(maps).to(image.device)

        return by_recipe(case, explain)


def torchcam_adcc(case: Case, kind: type = torchcam.methods.GradCAM) -> Tensor:
    with kind(case.network, case.layer) as extractor:

        def explain(image: Tensor, target: int) -> Tensor:
            (maps,) = extractor(target, case.network(image), normalized=False)
            return finish(maps, case.size)

        return by_recipe(case, explain)


def our_adcc_of_methods(case: Case) -> Tensor:
    results = evaluate(case.explainer, case.images, metrics=ADCC, method=[*METHODS], progress=False)
    return torch.as_tensor(
        np.column_stack([result[name] for result in results.values() for name in ADCC])
    )


def torchcam_adcc_of_methods(case: Case) -> Tensor:
    return torch.cat([torchcam_adcc(case, kind) for kind in METHODS.values()], dim=1)


def by_recipe(case: Case, explain: Callable[[Tensor, int], Tensor]) -> Tensor:
    return torch.stack([adcc_by_recipe(case.network, one, explain) for one in case.images.split(1)])


# Insertion and deletion


def our_areas(case: Case) -> Tensor:
    zeros = {"n_steps": case.n_steps, "start": torch.zeros_like, "end": torch.zeros_like}
    return evaluated(case, names=("iauc", "dauc"), metric_params={"iauc": zeros})


def torchcam_areas(case: Case) -> Tensor:
    kind = partial(torchcam.metrics.DeletionInsertionMetric, steps=case.n_steps)
    return torchcam_metric(case, kind=kind, names=("insertion_auc", "deletion_auc"))


def torchcam_confidence(case: Case) -> Tensor:
    kind = torchcam.metrics.ClassificationMetric
    return torchcam_metric(case, kind=kind, names=("avg_drop", "conf_increase"))


class OfLogits(torchcam.methods.GradCAM):
    """Explain the logits by Grad-CAM; torchcam's metrics would explain the probability."""

    def probabilities(self, logits: Tensor) -> Tensor:
        self.logits = logits
        return logits.softmax(dim=1)

    def __call__(self, class_idx: object, scores: Tensor, **options: object) -> list[Tensor]:
        return super().__call__(class_idx, self.logits, **options)


def torchcam_metric(case: Case, *, kind: Callable, names: Sequence[str]) -> Tensor:
    """Return the means over each batch."""
    rows = []
    with OfLogits(case.network, case.layer) as extractor:
        metric = kind(extractor, extractor.probabilities)
        for batch in case.batches():
            metric.reset()
            metric.update(batch)
            rows.append([metric.summary()[name] for name in names])
    return torch.tensor(rows)


def same_maps(case: Case) -> AbstractContextManager:
    """Give torchcam sklcam's maps, batch after batch."""
    maps = iter(case.maps.split(case.batch_size))
    return patch.object(torchcam.metrics, "_resize_cam", lambda cam, size: next(maps))


def passes(case: Case, *, size: int) -> Tensor:
    """Run as many images through the network as our metric does, and nothing else."""
    n_passes = len(case.images) * (2 * case.n_steps + 1)
    batch = case.images[torch.arange(size) % len(case.images)]
    with torch.inference_mode():
        for start in range(0, n_passes, size):
            output = case.network(batch[: n_passes - start])
    return output


# Confidence


def pytorch_grad_cam_confidence(case: Case) -> Tensor:
    metric = pytorch_grad_cam.metrics.cam_mult_image.CamMultImageConfidenceChange()
    rows = []
    with pytorch_grad_cam.GradCAM(model=case.network, target_layers=[case.layer]) as cam:
        for batch in case.batches():
            maps = cam(input_tensor=batch, targets=None)
            full, labels = cam.outputs.detach().softmax(dim=1).max(dim=1)
            change = metric(batch, maps, softmax_targets(labels.tolist()), case.network)
            drop = np.maximum(-change, 0) / full.cpu().numpy()
            rows.append(np.column_stack([drop, change > 0]))
    return torch.as_tensor(np.concatenate(rows))


def scaled_last(case: Case) -> AbstractContextManager:
    """Have torchcam scale maps to [0, 1] after it has upsampled them, too."""
    return patch.object(torchcam.metrics, "_resize_cam", finish)


def softmax_targets(classes: Sequence[int]) -> list[ClassifierOutputSoftmaxTarget]:
    return [ClassifierOutputSoftmaxTarget(label) for label in classes]


# ROAD and ARCC: no noise on either side, and maps of sklcam for everyone


def our_filling(case: Case, *, names: Sequence[str]) -> Tensor:
    return evaluated(case, names=names, method=SIGNED, metric_params={"road": {"noise": 0}})


def without_solving(case: Case) -> Tensor:
    """Measure ROAD with zeros for removed pixels."""

    def filling(images: Tensor) -> Callable:
        return lambda removed, drawn: [images * ~mask[:, None] for mask in removed]

    with patch("sklcam.metrics.imputation._Filling", filling):
        return our_filling(case, names=("road",))


class WithoutNoise(pytorch_grad_cam.metrics.road.NoisyLinearImputer):
    def __init__(self) -> None:
        super().__init__(noise=0)


def signed_maps(case: Case, input_tensor: Tensor, targets: Sequence) -> np.ndarray:
    """Return sklcam's maps, in the form that pytorch-grad-cam's metrics take."""
    labels = torch.tensor([target.category for target in targets], device=input_tensor.device)
    maps, _ = case.explainer.explain_inputs(input_tensor, labels, method=SIGNED)
    return maps.cpu().numpy()


def pytorch_grad_cam_rows(case: Case, metric: Callable) -> Tensor:
    rows = []
    with patch.object(pytorch_grad_cam.metrics.road, "NoisyLinearImputer", WithoutNoise):
        for batch in case.batches():
            targets = softmax_targets(predicted(case.network, batch))
            maps = signed_maps(case, batch, targets)
            rows.append(metric(batch, maps, targets, case.network).reshape(len(batch), -1))
    return torch.as_tensor(np.concatenate(rows))


def pytorch_grad_cam_road(case: Case) -> Tensor:
    metric = pytorch_grad_cam.metrics.road.ROADCombined(percentiles=list(PERCENTILES))
    return pytorch_grad_cam_rows(case, metric)


def pytorch_grad_cam_arcc(case: Case) -> Tensor:
    arcc = pytorch_grad_cam.metrics.arcc.ARCC(partial(signed_maps, case), list(PERCENTILES))
    terms: dict[str, np.ndarray] = {}
    for name in ARCC[:-1]:
        setattr(arcc, name, partial(keep, terms, name, getattr(arcc, name)))

    def terms_and_value(*job: object) -> np.ndarray:
        value = arcc(*job)
        return np.column_stack([*(terms[name] for name in ARCC[:-1]), value])

    return pytorch_grad_cam_rows(case, terms_and_value)


def keep(kept: dict[str, np.ndarray], name: str, term: Callable, *job: object) -> np.ndarray:
    kept[name] = term(*job)
    return kept[name]


# Quantus: metrics of ready-made maps, and of grey images if the network is needed


def quantus_scores(name: str, case: Case, maps: Tensor, **options: object) -> Tensor:
    import quantus

    metric = getattr(quantus, name)(normalise=False, disable_warnings=True, **options)
    scores = metric(
        model=case.grey,
        x_batch=as_numpy(case.grey_images),
        y_batch=as_numpy(case.grey_classes),
        a_batch=as_numpy(maps[:, None]),
        s_batch=as_numpy(case.masks[:, None]),
        channel_first=True,
        softmax=True,
        device=case.device,
        batch_size=max(case.batch_size, FEW),  # its ROAD returns the first batch alone
    )
    values = list(scores.values()) if isinstance(scores, dict) else scores
    return torch.tensor(np.array(values, dtype=float))


def as_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy().copy()  # it changes maps in place


def our_share_recognised(case: Case) -> Tensor:
    """Return the share of images that keep their class with salient pixels filled in."""
    n_pixels = case.places[0].numel()
    shares = []
    for percentage in PERCENTILES:
        filled = impute(case.grey_images, case.places < int(n_pixels * percentage / 100), noise=0)
        with torch.no_grad():
            found = [case.grey(batch).argmax(dim=1) for batch in filled.split(case.batch_size)]
        shares.append((torch.cat(found) == case.grey_classes).float().mean())
    return torch.stack(shares)[None]


def quantus_road(case: Case) -> Tensor:
    options = {"percentages": list(PERCENTILES), "noise": 0.0}
    return quantus_scores("ROAD", case, case.untied, **options)[None]


def our_imputation(case: Case) -> Tensor:
    half = case.places[0].numel() // 2
    return impute(case.images, case.places < half, noise=0).flatten(1)


def quantus_imputation(case: Case) -> Tensor:
    from quantus.functions.perturb_func import noisy_linear_imputation

    half = case.places[0].numel() // 2
    removed = [np.flatnonzero(as_numpy(places < half)) for places in case.places]
    pairs = zip(as_numpy(case.images), removed, strict=True)
    filled = [noisy_linear_imputation(image, lost, noise=0.0) for image, lost in pairs]
    return torch.tensor(np.stack(filled)).flatten(1)


def our_deletion(case: Case) -> Tensor:
    def score(images: Tensor, rows: Tensor) -> Tensor:
        with torch.inference_mode():
            probabilities = case.grey(images).softmax(dim=1)
        return probabilities.gather(1, case.grey_classes[rows][:, None])[:, 0]

    curve = deletion_curve(score, case.grey_images, case.untied, n_steps=case.n_steps)
    return curve.deletion[:, 1:]  # Quantus leaves the whole image out


def quantus_deletion(case: Case) -> Tensor:
    n_features = case.places[0].numel() // case.n_steps
    options = {"features_in_step": n_features, "perturb_baseline": 0.0}
    return quantus_scores("PixelFlipping", case, case.untied, **options)


def our_pointing_game(case: Case) -> Tensor:
    return pointing_game(case.untied, case.masks)[:, None]


def quantus_pointing_game(case: Case) -> Tensor:
    return quantus_scores("PointingGame", case, case.untied)[:, None]


def our_sparsity(case: Case) -> Tensor:
    return sparsity(case.maps)[:, None]


def quantus_sparseness(case: Case) -> Tensor:
    return quantus_scores("Sparseness", case, case.maps)[:, None]


# SSIM of each map with the map of the next image


def our_ssim(case: Case) -> Tensor:
    return structural_similarity(case.maps, case.maps.roll(1, dims=0))[:, None]


def scikit_image_ssim(case: Case) -> Tensor:
    from skimage.metrics import structural_similarity as ssim

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    maps = as_numpy(case.maps)
    others = np.roll(maps, 1, axis=0)
    pairs = zip(maps, others, strict=True)
    return torch.tensor([[ssim(a, b, data_range=1.0, **options)] for a, b in pairs])


# Who is compared in what

RECIPE = "it has no ADCC; this is the authors' recipe with its maps"
AREAS = (
    "it has one baseline for both curves, zeros here, on maps of logits; it scales maps before "
    "upsampling, and rounding may change the order of pixels"
)
DROP = "its drop is absolute, and divided by the confidence here"
PEAKS = "on maps of logits; it scales them before upsampling, so they peak below 1"
FILLED = "without noise, on sklcam's maps without ReLU"
RECOGNISED = (
    "its ROAD is the accuracy without the most salient pixels, not what that does to the score "
    "minus what the least salient do; here the accuracy uses sklcam's impute, on grey images "
    "without noise"
)
FLIPPED = "the deletion curve without its first point, on grey images"
SPARSE = (
    "this is its Sparseness; its Complexity is the entropy of the map, and sklcam's the mean, so "
    "these are not compared"
)
SPECS = {
    "adcc": Spec(
        partial(evaluated, names=ADCC),
        (
            Peer("pytorch-grad-cam", pytorch_grad_cam_adcc, RECIPE),
            Peer("torchcam", torchcam_adcc, RECIPE),
        ),
    ),
    "adcc_of_methods": Spec(
        our_adcc_of_methods, (Peer("torchcam", torchcam_adcc_of_methods, RECIPE),)
    ),
    "insertion_deletion": Spec(
        our_areas,
        (Peer("torchcam", torchcam_areas, AREAS, same_maps, averages=True),),
        floors={f"passes of {size}": partial(passes, size=size) for size in PASSES},
    ),
    "confidence": Spec(
        partial(evaluated, names=("average_drop", "average_increase")),
        (
            Peer("pytorch-grad-cam", pytorch_grad_cam_confidence, DROP),
            Peer("torchcam", torchcam_confidence, PEAKS, scaled_last, averages=True),
        ),
    ),
    "road": Spec(
        partial(our_filling, names=("road",)),
        (Peer("pytorch-grad-cam", pytorch_grad_cam_road, FILLED),),
        floors={"the rest": without_solving},
        n_images=FEW,
    ),
    "arcc": Spec(
        partial(our_filling, names=ARCC),
        (Peer("pytorch-grad-cam", pytorch_grad_cam_arcc, FILLED),),
        n_images=FEW,
    ),
    "road_accuracy": Spec(
        our_share_recognised, (Peer("Quantus", quantus_road, RECOGNISED),), n_images=FEW
    ),
    "imputation": Spec(
        our_imputation, (Peer("Quantus", quantus_imputation, "half of the pixels"),), n_images=FEW
    ),
    "pixel_flipping": Spec(our_deletion, (Peer("Quantus", quantus_deletion, FLIPPED),)),
    "pointing_game": Spec(our_pointing_game, (Peer("Quantus", quantus_pointing_game),)),
    "sparsity": Spec(our_sparsity, (Peer("Quantus", quantus_sparseness, SPARSE),)),
    "ssim": Spec(our_ssim, (Peer("scikit-image", scikit_image_ssim),)),
}
