"""One batch of images on its way through the metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import describe
from sklcam.cam.base import Method
from sklcam.cam.maps import sides
from sklcam.cam.targets import Target, TopK
from sklcam.explain.base import Explainer
from sklcam.explain.opened import Batch
from sklcam.images.views import ViewSampler
from sklcam.images.warps import Warp
from sklcam.metrics.annotations import Annotations, LazyTensors
from sklcam.metrics.plan import NO_PROBABILITY, OutputScore, Plan
from sklcam.metrics.quantities import EXPLAINED, QUANTITIES, RANKS
from sklcam.metrics.ranked import RankedClasses
from sklcam.metrics.registry import takes_spatial_dims
from sklcam.networks.inference import InferencePlan, plan_inference
from sklcam.networks.inputs import Inputs
from sklcam.networks.preprocessing import Preprocessing

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Confidence:
    """The score of the target, in [0, 1]: a probability, or a user's own score.

    Attributes
    ----------
    explainer : Explainer
    target : Target
        Resolved by the output.
    score : callable or None
    """

    explainer: Explainer
    target: Target
    score: OutputScore | None

    def __call__(self, output: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the scores (m,) of an output; rows say which image each was made from."""
        if self.score is None:
            probability = self.target.probability(self.explainer.probabilities(output), rows)
            if probability is None:
                raise ValueError(f"There is no confidence: {NO_PROBABILITY}")
            return probability
        scores = self.score(self.explainer.adapter.own(output))
        if not isinstance(scores, Tensor) or scores.shape != (len(output),):
            raise ValueError(
                f"score must return a Tensor of one number for each of {len(output)} images; it "
                f"returned {describe(scores)}."
            )
        return scores


@dataclass(frozen=True, eq=False)
class Perturbation:
    """The images of a batch, to be changed, and the confidence in the changed images.

    Attributes
    ----------
    images : Tensor of shape (n_images, channels, height, width)
    inputs : Inputs
        What goes with the images.
    confidence : Confidence
    inference : InferencePlan
    batch_size : int or None
        The largest number of changed images to run at a time; None leaves it open.
    seed : int
    """

    images: Tensor
    inputs: Inputs
    confidence: Confidence
    inference: InferencePlan
    batch_size: int | None
    seed: int

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return the confidence in changed images.

        Parameters
        ----------
        images : Tensor of shape (m, channels, height, width)
        rows : Tensor of shape (m,)
            Which image of the batch each was made from.

        Returns
        -------
        Tensor of shape (m,), in [0, 1]
        """
        n_images = len(images)
        if not self.inputs.others and images.stride(0) == 0:
            # A single image, expanded, such as the one that deletion ends at, runs once.
            images = images[:1].clone(memory_format=self.inference.memory_format)
        with self.inference.folded:
            output = self.confidence.explainer.output_of(self.inputs.with_images(images, rows))
        return self.confidence(output.expand(n_images, *output.shape[1:]), rows)

    def generator(self) -> torch.Generator:
        """Return a generator that draws the same numbers for every batch."""
        return torch.Generator().manual_seed(self.seed)


class Measurer:
    """Measures batch after batch, and keeps what one hands on to the next.

    Parameters
    ----------
    explainer : Explainer
    plan : Plan
    first_row : int, default=0
        How many images precede the first batch, in other processes.
    """

    def __init__(self, explainer: Explainer, plan: Plan, first_row: int = 0):
        self.explainer = explainer
        self.plan = plan
        self.first_row = first_row
        self._generator = torch.Generator().manual_seed(plan.seed)
        self._n_drawn = 0
        self._inference: InferencePlan | None = None
        self._made: dict[str, Any] = {}

    def draw_views(self, sampler: ViewSampler, rows: range, size: tuple[int, ...]) -> Warp:
        """Draw views of some images; those of earlier rows are drawn already, or never will be."""
        # The views of images that were left out are drawn and thrown away: so an image has the same
        # view whichever process measures it, and in whatever batches.
        n_skipped = rows.start - self._n_drawn
        if n_skipped:
            sampler(n_skipped, size=size, generator=self._generator)
        self._n_drawn = rows.stop
        return sampler(len(rows), size=size, generator=self._generator)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """Return what is made once for all batches, by name."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def inference_plan(self, inputs: Inputs, output: Tensor) -> InferencePlan:
        """Return the fastest way to run the network, which the first image shows."""
        if self._inference is None:
            # One image is enough: which convolutions can be folded does not depend on the others.
            first = inputs.take(slice(0, 1))
            self._inference = plan_inference(
                self.explainer.output_of,
                first.with_images,
                first.images,
                output[:1],
                is_half=self.explainer.adapter.autocast is not None,
            )
        return self._inference


class FirstPass:
    """The pass of a batch that predictions, targets and maps come from, for all that is measured.

    Parameters
    ----------
    explainer : Explainer
    batch : Batch
    question : Target
        The target that is asked for, not yet resolved.
    plans : sequence of Plan
        All plans that are measured on the batch.
    """

    def __init__(self, explainer: Explainer, batch: Batch, question: Target, plans: Sequence[Plan]):
        self._explainer = explainer
        self._inputs = batch.inputs
        self._question = question
        # Quantities that are made in the same way share their maps. Methods are told apart by
        # identity: those with equal parameters may still draw different noise.
        self._ways = {
            (id(method), scaled): (method, scaled)
            for plan in plans
            for method, scaled in plan.explained.values()
        }

    @cached_property
    def _made(self) -> tuple[dict[tuple[int, bool], Tensor], Tensor, Target]:
        if not self._ways:  # only the output is asked for
            output = self._explainer.output_of(self._inputs)
            return {}, output, self._question.resolve(output, self._inputs)
        methods, scaled = zip(*self._ways.values(), strict=True)
        maps, output, target = self._explainer.explain_batch(
            self._inputs, self._question, methods=methods, normalize=scaled
        )
        return dict(zip(self._ways, maps, strict=True)), output, target

    def maps(self, plan: Plan) -> dict[str, Tensor]:
        """Return the maps that a plan asks for, by the names of the quantities."""
        made = self._made[0]
        return {name: made[id(method), flag] for name, (method, flag) in plan.explained.items()}

    @property
    def output(self) -> Tensor:
        """The network's output."""
        return self._made[1]

    @property
    def target(self) -> Target:
        """The target, as the output resolved it."""
        return self._made[2]


class Measurement:
    """One batch of images, and everything that is measured on it: ``measurement[name]``.

    A name is that of a metric, for its values (n_images,), or of a quantity: see :class:`Metric`.
    Each is computed once, when it is first asked for. :class:`Evaluator` makes measurements and
    hands them to observers.

    Attributes
    ----------
    batch : Batch
        The inputs, the sizes of the images and, if asked for, the images at their own sizes.
    rows : range
        Which rows of X the images are.
    explainer : Explainer
    plan : Plan
    question : Target
        The target that was asked for.
    annotations : Annotations

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.metrics import Evaluator
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", batch_size=2, verbose=0).fit()
    >>> images = torch.rand(3, 2, 8, 8)
    >>> evaluator = Evaluator(explainer, images, metrics="sparsity", needs=["maps"])
    >>> def look(measurement):
    ...     return measurement.rows, tuple(measurement["maps"].shape)
    >>> evaluator.run(observe=look)[1]
    [(range(0, 2), (2, 8, 8)), (range(2, 3), (1, 8, 8))]
    """

    batch: Batch
    annotations: Annotations

    def __init__(
        self,
        measurer: Measurer,
        batch: Batch,
        question: Target,
        annotations: Annotations,
        first: FirstPass | None = None,
    ):
        self.batch = batch
        self.question = question
        self.annotations = annotations
        self.explainer = measurer.explainer
        self.plan = measurer.plan
        self.rows = range(measurer.first_row + batch.start, measurer.first_row + batch.stop)
        self._measurer = measurer
        self._first = first or FirstPass(self.explainer, batch, question, [self.plan])
        self._found: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            self._found[name] = self._compute(name)
        return self._found[name]

    def _compute(self, name: str) -> Any:
        if name in QUANTITIES:
            return QUANTITIES[name].compute(self)
        if name not in self.plan.metrics:
            raise KeyError(f"{name!r} is neither a quantity nor a metric of this evaluation.")
        metric = self.plan.metrics[name]
        options = dict(self.options(name))
        if takes_spatial_dims(metric):
            options["spatial_dims"] = len(self.batch.inputs.size)
        values = metric.function(*(self[need] for need in metric.needs), **options)
        if not isinstance(values, Tensor) or values.shape != (len(self.batch),):
            raise ValueError(
                f"The metric {name!r} must return a Tensor of one number for each of "
                f"{len(self.batch)} images; it returned {describe(values)}."
            )
        return values

    def options(self, name: str) -> dict[str, Any]:
        """Return the options of a quantity or of a metric's function."""
        return self.plan.options.get(name, {})

    # The first pass

    def explained(self, name: str) -> Tensor:
        """Return maps of the first pass; a ValueError if the plan did not ask for them."""
        maps = self._first.maps(self.plan)
        if name not in maps:
            raise ValueError(
                f"{name!r} comes from the first pass of a batch. Ask for it beforehand, in needs=."
            )
        return maps[name]

    def map_peaks(self) -> Tensor:
        """Return the largest absolute value of each map, NaN if the map has NaN, (n_images,)."""
        maps = next(self.explained(name) for name in EXPLAINED if name in self.plan.explained)
        return torch.maximum(maps.amax(dim=sides(maps)), -maps.amin(dim=sides(maps)))

    @property
    def output(self) -> Tensor:
        """The network's output."""
        return self._first.output

    def own_output(self) -> Tensor:
        """Return the output as the network returns it: a single logit, where it is one."""
        return self.explainer.adapter.own(self.output)

    @property
    def target(self) -> Target:
        """The target as the network's output resolved it, for changed images as well."""
        return self._first.target

    # Other passes

    def explain(
        self, inputs: Inputs, target: Target, method: Method, *, normalize: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return the maps of other inputs, and the network's output for them."""
        (maps,), output, _ = self.explainer.explain_batch(
            inputs, target, methods=[method], normalize=normalize
        )
        return maps, output

    @cached_property
    def masked(self) -> tuple[Tensor | None, Tensor]:
        """The maps of the images times their maps, if they are needed, and the output for them."""
        inputs, maps = self.batch.inputs, self["maps"]
        masked = inputs.with_images(inputs.images * maps[:, None].to(inputs.images.dtype))
        if "maps_of_masked" not in self.plan.quantities:
            # The confidence alone needs no backward pass.
            return None, self.explainer.output_of(masked)
        method, _ = self.plan.explained["maps"]
        return self.explain(masked, self.target, method)

    def explained_labels(self) -> list[Any]:
        """Return the label of each image's explained class."""
        if self.target.indices is None:
            raise ValueError(
                "Boxes and masks by class are for targets that are classes. Give those of the "
                "explained object, without a label."
            )
        return self._labels_of(self.target.indices[:, 0])

    def _labels_of(self, indices: Tensor) -> list[Any]:
        return np.asarray(self.explainer.classes_)[indices.cpu().numpy()].tolist()

    def ranked(self, k: int) -> RankedClasses:
        """Return the k classes that score the highest, and their maps; one pass makes them all."""
        maps, indices, is_nan = self._ranked
        maps, indices = maps[:, :k], indices[:, :k]
        explainer, sizes = self.explainer, self.batch.sizes
        return RankedClasses(
            LazyTensors(lambda i: explainer.to_frame(maps[i], sizes[i]), len(sizes)),
            self._labels_of(indices),
            indices.cpu().numpy(),
            is_nan | maps.isnan().flatten(1).any(dim=1),
        )

    @cached_property
    def _ranked(self) -> tuple[Tensor, Tensor, Tensor]:
        """The maps, after the ReLU, and indices of as many classes as any metric asks for."""
        asked = TopK(max(k for name, k in RANKS.items() if name in self.plan.quantities))
        (maps,), output, target = self.explainer.explain_batch(
            self.batch.inputs, asked, methods=[self.plan.method], normalize=False
        )
        assert target.indices is not None
        return maps.clamp(min=0), target.indices, output.flatten(1).isnan().any(dim=1)

    @cached_property
    def confidence(self) -> Confidence:
        """How the confidence is read off an output."""
        return Confidence(self.explainer, self.target, self.plan.score)

    def draw_views(self, sampler: ViewSampler) -> Warp:
        """Draw a view for each of the images."""
        images = self.batch.inputs.images
        warp = self._measurer.draw_views(sampler, self.rows, self.batch.inputs.size)
        return warp.to(images.device)

    def predicted(self, output: Tensor) -> np.ndarray:
        """Return the labels that an output of the network predicts."""
        explainer = self.explainer
        decided = explainer.decide(output).cpu().numpy()
        return explainer.adapter.readout.labels(decided, np.asarray(explainer.classes_))

    def is_right(self, output: Tensor, target: Target) -> Tensor:
        """Return whether the predicted class, or the explained one of several, is a true one.

        Parameters
        ----------
        output : Tensor
            The network's output, for these images or for changed ones.
        target : Target
            The target as this output resolved it.

        Returns
        -------
        Tensor of shape (n_images,), bool
        """
        labels, indices = self["labels"], target.indices
        if labels.ndim == 1 or indices is None:
            return self.is_predicted_right(output)
        true = torch.from_numpy(labels).to(indices.device, non_blocking=True)
        return true.gather(1, indices[:, :1])[:, 0] > 0

    def is_predicted_right(self, output: Tensor) -> Tensor:
        """Return whether an output predicts the true labels, all of them, (n_images,), bool."""
        labels = self["labels"]
        if labels.ndim == 1 and (decided := self._decided(output)) is not None:
            return decided == self.true_classes
        right = self.predicted(output) == labels
        return torch.as_tensor(right.reshape(len(right), -1).all(axis=1))

    def is_predicted_alike(self, output: Tensor) -> Tensor:
        """Return whether the output for changed images predicts the same as the images' own.

        Parameters
        ----------
        output : Tensor

        Returns
        -------
        Tensor of shape (n_images,), bool, on the device of the output
        """
        decided, own = self._decided(output), self._decided(self.output)
        if decided is not None and own is not None:
            return decided == own
        same = self["predictions"] == self.predicted(output)
        return torch.as_tensor(same.reshape(len(same), -1).all(axis=1)).to(output.device)

    # By index, labels can be compared where the outputs are: the host need not wait for them.

    def _decided(self, output: Tensor) -> Tensor | None:
        """Return the index of the predicted class, (n_images,); None if there is no single one."""
        decided = self.explainer.decide(output)
        is_index = decided.ndim == 1 and not decided.is_floating_point()
        return decided if is_index and self.explainer.classes_ is not None else None

    @cached_property
    def true_classes(self) -> Tensor:
        """The index of each image's single true class; -1 if the network does not know it."""
        classes = np.asarray(self.explainer.classes_).tolist()
        known = {label: i for i, label in enumerate(classes)}
        indices = [known.get(label, -1) for label in self["labels"].tolist()]
        return torch.tensor(indices).to(self.output.device, non_blocking=True)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """Return what is made once for all batches, by name."""
        return self._measurer.once(name, make)

    @property
    def preprocessing(self) -> Preprocessing:
        """How the images became the network's input."""
        return self.explainer.adapter.preprocessing(self.batch.inputs.images.shape[1])

    def perturbation(self) -> Perturbation:
        """Return the images to be changed, and a fast way to run the network on them."""
        inputs, plan = self.batch.inputs, self.plan
        inference = self._measurer.inference_plan(inputs, self.output)
        images = inference.arrange(inputs.images)
        return Perturbation(images, inputs, self.confidence, inference, plan.batch_size, plan.seed)
