"""One batch of images, and all that metrics ask about it.

What several metrics need is computed once: the maps and the prediction in one forward pass, the map
and the prediction of the masked image in another, one set of insertion and deletion curves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from sklcam._validation import describe
from sklcam.cam import GradCAM, Method, Occlusion
from sklcam.images.views import ViewSampler, Warp
from sklcam.metrics import (
    causal,
    composites,
    concentration,
    confidence,
    energy,
    faithfulness,
    imputation,
    localization,
    pointing,
)
from sklcam.metrics.consistency import coherency, is_constant, ssim_consistency
from sklcam.metrics.masks import as_mask, box_masks
from sklcam.networks.inference import InferencePlan, plan_inference

# What follows the curves that are asked for, and the option that it has no use for.
_CURVES: dict[frozenset[str], tuple[Callable[..., Any], str | None]] = {
    frozenset({"iauc", "dauc"}): (causal.causal_curves, None),
    frozenset({"iauc"}): (causal.insertion_curve, "end"),
    frozenset({"dauc"}): (causal.deletion_curve, "start"),
}


@dataclass
class Options:
    """What is the same for all batches."""

    method: Any
    metrics: frozenset[str]
    params: dict[str, dict[str, Any]]
    score: Callable[[Tensor], Tensor] | None
    batch_size: int | None
    seed: int

    def of(self, metric: str) -> dict[str, Any]:
        return self.params.get(metric, {})


class Shared:
    """What batches hand on to the next: the views' generator, and how the network runs fast.

    Parameters
    ----------
    options : Options
    n_before : int
        How many images precede the first batch: their views are drawn and left aside.
    """

    def __init__(self, options: Options, n_before: int):
        self.n_constant = 0  # images whose consistency is 0 as a map is constant
        self._generator = torch.Generator().manual_seed(options.seed)
        self._n_before = n_before
        self._inference_plan: InferencePlan | None = None

    def views(self, sampler: ViewSampler, n_images: int, size: tuple[int, int]) -> Warp:
        """Draw the next images' views."""
        if self._n_before:
            sampler(self._n_before, size=size, generator=self._generator)
            self._n_before = 0
        return sampler(n_images, size=size, generator=self._generator)

    def inference_plan(self, learn: Callable[[], InferencePlan]) -> InferencePlan:
        """Return how the network runs the fastest, which is learnt once."""
        if self._inference_plan is None:
            self._inference_plan = learn()
        return self._inference_plan


class Batch:
    """One batch, and what metrics ask about it; each answer is computed once, when asked for."""

    def __init__(
        self,
        estimator: Any,
        inputs: Any,
        target: Any,
        truth: dict[str, Any],
        options: Options,
        shared: Shared,
    ):
        self.estimator = estimator
        self.inputs = inputs
        self.target = target
        self.truth = truth
        self.options = options
        self.shared = shared
        self.images = inputs.images

    @cached_property
    def _explained(self) -> tuple[dict[str, Tensor], Tensor, Any]:
        """The maps that are needed of the images, from one forward pass, and the output."""
        methods = {}
        if self.options.metrics != {"consistency"}:
            methods["maps"] = self.options.method
        if "consistency" in self.options.metrics:
            methods["consistency"] = _view_method(self.options.of("consistency"))
        if not self.options.of("iauc").get("relu", True):
            methods["without_relu"] = without_relu(self.options.method)
        maps, output, resolved = self.estimator.explain_batch(
            self.inputs, self.target, methods=list(methods.values())
        )
        return dict(zip(methods, maps, strict=True)), output, resolved

    @property
    def maps(self) -> Tensor:
        return self._explained[0]["maps"]

    @property
    def output(self) -> Tensor:
        return self._explained[1]

    @cached_property
    def fixed_target(self) -> Any:
        """The target, with the predicted class for None: what is explained of other images too."""
        return self._explained[2]

    def confidence(self, output: Tensor, rows: Any = slice(None)) -> Tensor:
        """Return the score of what is explained, in [0, 1]."""
        if self.options.score is not None:
            scores = self.options.score(output)
            if not isinstance(scores, Tensor) or scores.shape != (len(output),):
                raise ValueError(
                    f"score must return a Tensor of one number for each of {len(output)} images; "
                    f"it returned {describe(scores)}."
                )
            return scores
        probabilities = self.estimator.probabilities(output)
        return self.fixed_target.probability(probabilities, rows)

    @cached_property
    def full(self) -> Tensor:
        return self.confidence(self.output)

    @cached_property
    def _masked(self) -> tuple[Tensor | None, Tensor]:
        """The map of the masked image, if it is needed, and the network's output for it."""
        images = self.images * self.maps[:, None].to(self.images.dtype)
        inputs = self.inputs.with_images(images)
        if not {"coherency", "adcc", "arcc"} & self.options.metrics:
            return None, self.estimator.output_of(inputs)
        return self.estimator.explain_inputs(inputs, self.fixed_target, method=self.options.method)

    def score(self, images: Tensor, rows: Tensor) -> Tensor:
        """Run the network on other images, as the causal metrics do many times."""
        n_images = len(images)
        if not self.inputs.others and images.stride(0) == 0:
            # It is one image, expanded: it runs once.
            images = images[:1].clone(memory_format=self._inference_plan.memory_format)
        inputs = self.inputs.with_images(images, rows)
        with self._inference_plan.folded:
            output = self.estimator.output_of(inputs)
        return self.confidence(output.expand(n_images, *output.shape[1:]), rows)

    @property
    def _inference_plan(self) -> InferencePlan:
        first = torch.zeros(1, dtype=torch.long, device=self.images.device)
        return self.shared.inference_plan(
            lambda: plan_inference(
                self.estimator.output_of,
                lambda image: self.inputs.with_images(image, first),
                self.images[:1],
                self.output[:1],
            )
        )

    @property
    def _images_to_change(self) -> Tensor:
        return self._inference_plan.arrange(self.images)

    @cached_property
    def average_drop(self) -> Tensor:
        return confidence.average_drop(self.full, self.confidence(self._masked[1]))

    @cached_property
    def average_increase(self) -> Tensor:
        return confidence.average_increase(self.full, self.confidence(self._masked[1]))

    @cached_property
    def coherency(self) -> Tensor:
        maps = self._masked[0]
        assert maps is not None
        return coherency(self.maps, maps)

    @cached_property
    def complexity(self) -> Tensor:
        return concentration.complexity(self.maps)

    @cached_property
    def sparsity(self) -> Tensor:
        return concentration.sparsity(self.maps)

    @cached_property
    def adcc(self) -> Tensor:
        return composites.adcc(self.coherency, self.complexity, self.average_drop)

    @cached_property
    def arcc(self) -> Tensor:
        return composites.arcc(self.coherency, self.complexity, self.road)

    @cached_property
    def road(self) -> Tensor:
        return imputation.road(
            self.score,
            self._images_to_change,
            self.maps,
            generator=torch.Generator().manual_seed(self.options.seed),
            batch_size=self.options.batch_size,
            **self.options.of("road"),
        )

    @cached_property
    def curves(self) -> Any:
        """Insertion, deletion or both, as is asked for."""
        asked = self.options.metrics & {"iauc", "dauc"}
        follow, unused = _CURVES[frozenset(asked)]
        options = self.options.of("iauc")
        options = {name: of for name, of in options.items() if name not in ("relu", unused)}
        maps = self._explained[0]
        return follow(
            self.score,
            self._images_to_change,
            maps.get("without_relu", maps["maps"]),
            full=self.full,
            batch_size=self.options.batch_size,
            **options,
        )

    @cached_property
    def iauc(self) -> Tensor:
        return causal.insertion_auc(self.curves)

    @cached_property
    def dauc(self) -> Tensor:
        return causal.deletion_auc(self.curves)

    @cached_property
    def consistency(self) -> Tensor:
        options = self.options.of("consistency")
        size = (self.images.shape[-2], self.images.shape[-1])
        sampler = options.get("views") or ViewSampler()
        view = self.shared.views(sampler, len(self.images), size).to(self.images.device)
        inputs = self.inputs.with_images(view(self.images))
        maps = self._explained[0]["consistency"]
        maps_of_view, _ = self.estimator.explain_inputs(
            inputs, self.target, method=_view_method(options)
        )
        self.shared.n_constant += int((is_constant(maps) | is_constant(maps_of_view)).sum())
        return ssim_consistency(view(maps), maps_of_view)

    @cached_property
    def rank_correlation(self) -> Tensor:
        occlusion = self.options.of("rank_correlation").get("occlusion", Occlusion(relu=False))
        references, _ = self.estimator.explain_inputs(
            self.inputs, self.fixed_target, method=occlusion, normalize=False
        )
        _, stride = occlusion.patch_and_stride(*self.images.shape[-2:])
        return faithfulness.rank_correlation(self.maps, references, cell=stride)

    @cached_property
    def accuracy(self) -> Tensor:
        predicted = self.estimator.decide(self.output).cpu().numpy()
        predicted = self.estimator.classes_[predicted]
        return torch.as_tensor(predicted == self.truth["y"])

    # With the truth, in the frame of each image

    def _per_image(self, measure: Callable[[Tensor, Any], Tensor], kind: str) -> Tensor:
        values = []
        for map_, truth, size in zip(self.maps, self.truth[kind], self.truth["sizes"], strict=True):
            framed = self.estimator.to_frame(map_, size)[None]
            values.append(measure(framed, truth)[0])
        return torch.stack(values)

    def _against_mask(self, measure: Callable[..., Tensor], name: str) -> Tensor:
        options = self.options.of(name)

        def of_image(map_: Tensor, truth: Any) -> Tensor:
            if self.truth["masks"] is None:
                boxes = torch.as_tensor(np.asarray(truth, dtype=np.float32))
                mask = box_masks([boxes], (map_.shape[-2], map_.shape[-1]))
            else:
                mask = as_mask(truth)[None]
            return measure(map_, mask.to(map_.device), **options)

        return self._per_image(of_image, "boxes" if self.truth["masks"] is None else "masks")

    @cached_property
    def heatmap_ratio(self) -> Tensor:
        return self._against_mask(energy.heatmap_ratio, "heatmap_ratio")

    @cached_property
    def inside_outside_ratio(self) -> Tensor:
        return self._against_mask(energy.inside_outside_ratio, "inside_outside_ratio")

    @cached_property
    def pointing_game(self) -> Tensor:
        return self._against_mask(pointing.pointing_game, "pointing_game")

    @cached_property
    def localization_accuracy(self) -> Tensor:
        options = dict(self.options.of("localization_accuracy"))
        threshold = options.pop("threshold", 0.15)

        def of_image(map_: Tensor, truth: Any) -> Tensor:
            boxes = torch.as_tensor(np.asarray(truth, dtype=np.float32))
            found = localization.box_from_map(map_, threshold)
            return localization.localization_accuracy(found, [boxes], **options)

        return self._per_image(of_image, "boxes")


def _view_method(options: Mapping[str, Any]) -> Any:
    return options.get("method") or GradCAM(relu=False)


def without_relu(method: Method) -> Method:
    """Return the method with its ReLU left out; an error if it has none to leave out."""
    if "relu" not in method.get_params(deep=False):
        raise ValueError(f"{method!r} has no relu to leave out.")
    return clone(method).set_params(relu=False)
