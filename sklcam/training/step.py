"""A step of training or validation: the passes it makes, their loss, and what is recorded.

skorch decides when each part happens; this file says what happens. A step takes its batch whole or
in micro-batches. For each, it runs the network (:meth:`Step.forward`), explains the images and a
view of each and weighs the terms (:meth:`Step.explain`), and does the work that was postponed to
save memory (:meth:`Step.backward`). At the end it returns the numbers to read
(:meth:`Step.reading`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from skorch.history import History
from torch import Tensor, nn
from torch.amp import GradScaler

from sklcam._validation import describe
from sklcam.cam import GradCAM, GradientMethod, HiResCAM, LayerCAM
from sklcam.images.warps import Warp
from sklcam.networks.layers import TargetLayer
from sklcam.networks.precision import at_least_float32
from sklcam.networks.readouts import Readout
from sklcam.networks.tape import Tape, plain_attention, record, stopping_after
from sklcam.training._randomness import Draws
from sklcam.training._readings import Reading
from sklcam.training._statistics import kept, normalising
from sklcam.training.collapse import signs_of_collapse
from sklcam.training.objective import ConsistentCAMLoss, LossValues
from sklcam.training.terms import Explanations, Pixels

# With the ReLU, a network learns maps that are negative everywhere.
PHI = {
    "gradcam": GradCAM(relu=False),
    "hirescam": HiResCAM(relu=False),
    "layercam": LayerCAM(relu=False),
}


def method_of(phi: str | GradientMethod) -> GradientMethod:
    """Return the method that makes the maps to train on.

    Parameters
    ----------
    phi : {"gradcam", "hirescam", "layercam"} or GradientMethod

    Raises
    ------
    ValueError
        If it is neither, or a method that cannot be used in training.
    """
    method = PHI.get(phi) if isinstance(phi, str) else phi
    if not isinstance(method, GradientMethod):
        raise ValueError(
            f"phi must be one of {', '.join(PHI)}, or a sklcam.cam.GradientMethod such as "
            f"HiResCAM(); got {describe(phi)}."
        )
    method.check()
    if method.rule() is not None:
        raise ValueError(
            f"phi={method!r} modifies the backward pass through ReLUs, and the loss needs the "
            'unmodified one. Leave its gradient at "plain".'
        )
    return method


Seen = tuple[Tensor, Tensor | None, Tensor]  # scores, labels, maps


@dataclass(frozen=True)
class Postponed:
    """A view on which the trunk is trained once the images' graph is gone."""

    images: Tensor
    activations: Tensor
    states: list[Tensor]


@dataclass
class MicroBatch:
    """Images that go through the network together, and the result.

    Attributes
    ----------
    share : float
        The share of the batch's images that it holds.
    masks : Tensor of shape (n_images, height, width) or None
        NaN for images without one.
    weights : Tensor of shape (n_images,) or None
        The weights with which its images' losses are summed to its cross-entropy.
    augmented : Tensor of shape (n_images, channels, height, width) or None
        Augmented copies of the images, for which only a cross-entropy is computed.
    values : LossValues or None
    others : dict of str to Tensor
        Cross-entropies of anything but the images themselves: "view", "augmented".
    annotated : scalar Tensor or None
        The share of its images that have a mask, if terms use masks.
    seen : tuple of Tensor, or None
        Its scores, labels and maps, for :func:`~sklcam.training.signs_of_collapse`.
    postponed : Postponed or None
        What remains to be done for its gradient.
    """

    share: float = 1.0
    masks: Tensor | None = None
    weights: Tensor | None = None
    augmented: Tensor | None = None
    values: LossValues | None = None
    others: dict[str, Tensor] = field(default_factory=dict)
    annotated: Tensor | None = None
    seen: Seen | None = None
    postponed: Postponed | None = None

    def recorded(self, loss_name: str = "ce") -> dict[str, Tensor]:
        """Return the values for the history, by name, not multiplied by the share."""
        if self.values is None:
            return {}
        values = self.values
        others = {f"{loss_name}_{name}": value for name, value in self.others.items()}
        losses = {loss_name: values.cross_entropy, **others}
        annotated = {} if self.annotated is None else {"annotated": self.annotated}
        return {**losses, **values.terms, **values.weights, **annotated}

    def part_of(self, value: Tensor) -> Tensor:
        """Return how much a mean over these images adds to the batch's mean, detached."""
        return value.detach() if self.share == 1 else self.share * value.detach()

    def detach(self) -> Iterator[Tensor]:
        """Detach the recorded values from their graph; yield them, to be changed in place."""
        assert self.values is not None  # a backward pass came before

        total, cross_entropy, terms, weights = self.values
        self.values = LossValues(
            total.detach().clone(), cross_entropy.detach().clone(), _copied(terms), _copied(weights)
        )
        self.others = _copied(self.others)
        self.annotated = None if self.annotated is None else self.annotated.detach().clone()
        yield self.values.total
        yield from self.recorded().values()


def _signs_of(seen: list[Seen]) -> dict[str, Tensor]:
    """Measure the signs on a whole batch: a part would not show whether all maps are alike."""
    scores, labels, maps = zip(*seen, strict=True)
    classes = None if labels[0] is None else _together(labels)
    joined = _together(maps)
    return signs_of_collapse(_together(scores), classes, joined, spatial_dims=joined.ndim - 1)


def _together(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


@dataclass
class Step:
    """A batch on its way through a network, for training or for validation.

    Parameters
    ----------
    module : nn.Module
    layer : TargetLayer
    loss : ConsistentCAMLoss
        With the weights of the epoch.
    infer : callable
        Runs the network on images, in this step's precision.
    draws : Draws
    read : Readout
        Turns an output into scores (n_images, k), of which the highest is explained.
    loss_name : str, default="ce"
        What the history calls the loss beside the terms.
    scaler : GradScaler or None, default=None
        Scales the loss in training; None is for validation.
    precision : torch.dtype, default=torch.float32
    phi : GradientMethod, default=GradCAM(relu=False)
        Makes the maps.
    shares_target : bool, default=False
        Whether a view is explained for the class predicted on its image.
    postpones : bool, default=False
        Whether training on the view is left for a pass of its own, when the images' graph is gone.
    ce_on : {"image", "view", "all"}, default="image"
        Which images have a cross-entropy; with "all", augmented copies have one, too.
    view_gradient : bool, default=True
        Whether the loss is differentiated with respect to the maps of views.

    Attributes
    ----------
    micro_batches : list of MicroBatch
    """

    module: nn.Module
    layer: TargetLayer
    loss: ConsistentCAMLoss
    infer: Callable[[Tensor], Tensor]
    draws: Draws
    read: Readout
    loss_name: str = "ce"
    scaler: GradScaler | None = None
    precision: torch.dtype = torch.float32
    phi: GradientMethod = PHI["gradcam"]
    shares_target: bool = False
    postpones: bool = False
    ce_on: str = "image"
    view_gradient: bool = True

    micro_batches: list[MicroBatch] = field(default_factory=lambda: [MicroBatch()], init=False)
    _whole: MicroBatch = field(default_factory=MicroBatch, init=False)
    _total_weight: Tensor | None = field(default=None, init=False)
    _is_split: bool = field(default=False, init=False)
    _n_parts: int = field(default=1, init=False)
    _tape: Tape | None = field(default=None, init=False)
    _kept: ExitStack = field(default_factory=ExitStack, init=False)
    _loss_of: Callable[[Tensor], Tensor] | None = field(default=None, init=False)
    _signs: dict[str, Tensor] | None = field(default=None, init=False)

    @property
    def _is_training(self) -> bool:
        return self.scaler is not None

    @contextmanager
    def recording(self) -> Iterator[Step]:
        """Record the target layer in the block, if the loss uses maps."""
        with ExitStack() as stack:
            if self.loss.terms or (self._sees_view and self.postpones):
                # In training the loss must reach the trunk's parameters; in validation nothing is
                # trained.
                tape = record(self.module, self.layer, trunk=self._is_training)
                self._tape = stack.enter_context(tape)
            if self._needs_pixels:  # the trunk is differentiated twice, too
                stack.enter_context(plain_attention())
            try:
                yield self
            finally:
                self._tape = None
                self._kept.close()

    @property
    def _sees_view(self) -> bool:
        return "view" in self.loss.needs or self.ce_on != "image"

    @property
    def _needs_pixels(self) -> bool:
        return self._is_training and "pixels" in self.loss.needs

    def annotate(
        self,
        masks: Tensor | None,
        weights: Tensor | None,
        total: Tensor | None = None,
        augmented: Tensor | None = None,
    ) -> None:
        """Set what is known about the images of the batch, before it is split.

        Parameters
        ----------
        masks : Tensor of shape (n_images, height, width) or None
            NaN where an image has none.
        weights : Tensor of shape (n_images,) or None
            The share of each image's loss in the batch's cross-entropy.
        total : scalar Tensor or None, default=None
            The weight of the batch relative to others.
        augmented : Tensor of shape (n_images, channels, height, width) or None, default=None
            Augmented copies of the images.
        """
        self._whole = MicroBatch(masks=masks, weights=weights, augmented=augmented)
        self._total_weight = total
        self.micro_batches = [self._whole]

    def split(
        self, images: Tensor, labels: Tensor, n_parts: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batch in micro-batches of similar sizes; other methods use the latest one.

        An optimizer that asks for the gradient several times in a step starts over each time.
        """
        whole, self.micro_batches, self._is_split = self._whole, [], True
        self._n_parts = n_parts
        self._signs = None
        annotations = (
            [None] * n_parts if each is None else each.tensor_split(n_parts)
            for each in (whole.masks, whole.weights, whole.augmented)
        )
        parts = (images.tensor_split(n_parts), labels.tensor_split(n_parts), *annotations)
        for some, some_labels, masks, weights, augmented in zip(*parts, strict=True):
            share = len(some) / len(images)
            # Losses are multiplied by their micro-batch's share later.
            weights = None if weights is None else weights / share
            self.micro_batches.append(MicroBatch(share, masks, weights, augmented))
            if self._needs_pixels:
                some = some.detach().requires_grad_()
            yield some, some_labels

    def forward(self, run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Run the network in the step's precision; the output is at least float32.

        Parameters
        ----------
        run : callable
            Runs the network on images.
        images : Tensor of shape (n_images, channels, height, width)
        """
        if self.precision == torch.float32:
            return run(images)
        with torch.autocast(images.device.type, self.precision):
            return at_least_float32(run(images))

    def explain(
        self,
        output: Tensor,
        labels: Tensor | None,
        images: Tensor,
        loss_of: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Explain a micro-batch by its recorded pass, and return the loss to differentiate.

        Parameters
        ----------
        output : Tensor of shape (n_images, ...)
            The output of the last pass.
        labels : Tensor of shape (n_images,), int64, or None
            The classes, if each image has one.
        images : Tensor of shape (n_images, channels, height, width)
        loss_of : callable
            Returns the cross-entropy, or whatever the loss is, of the images' outputs: a scalar.

        Returns
        -------
        scalar Tensor
            Weighted by the micro-batch's share of the images, and scaled for half precision.
        """
        batch, self._loss_of = self.micro_batches[-1], loss_of
        cross_entropy = loss_of(output)
        if self.loss.terms or self._sees_view:
            # Kept until the backward pass is over, as checkpoints run layers again during it.
            # Running statistics are for prediction, so they must come from images: a view is a crop
            # of a crop, and prediction never sees one.
            self._kept.enter_context(kept(normalising(self.module).values()))
        if not self.loss.terms:
            if self._sees_view:
                self._view(images)
            batch.values = self.loss(cross_entropy)
        else:
            assert self._tape is not None
            activations = self._tape.activations  # of the images; a view's replace them
            scores = self.read.columns(output)
            explained = self._explained(scores, labels, images)
            batch.values = self.loss(
                cross_entropy,
                explained,
                activations=activations if self._is_training else None,
                scale=self._scale,
            )
            if self._is_training:
                # The unscaled maps: scaling would hide which ones are constant up to rounding.
                batch.seen = scores.detach(), labels, explained.maps.detach()
        for other in batch.others.values():
            batch.values = batch.values._replace(total=batch.values.total + other)
        total = batch.values.total if batch.share == 1 else batch.share * batch.values.total
        return total if self.scaler is None else self.scaler.scale(total)

    @property
    def _scale(self) -> Callable[[Tensor], Tensor] | None:
        is_scaled = self.scaler is not None and self.scaler.is_enabled()
        return self.scaler.scale if is_scaled else None  # type: ignore[union-attr]

    def _explained(self, scores: Tensor, labels: Tensor | None, images: Tensor) -> Explanations:
        """Explain the images and, for terms that compare, a view of each."""
        needs = self.loss.needs
        size = tuple(images.shape[2:])
        predicted = scores.argmax(dim=1)
        maps = self._maps(scores, predicted, keeps_graph="labels" in needs)
        # In a regression the labelled and the predicted target are the same: the number itself.
        labelled = predicted if labels is None else labels
        of_labels = self._maps(scores, labelled.long()) if "labels" in needs else None
        pixels = Pixels(images, scores, self.read, self._scale) if self._needs_pixels else None
        warp = maps_of_view = masks = annotated = None
        if self._sees_view:
            warp, output = self._view(images)
        if "view" in needs:
            scores_of_view = self.read.columns(output)
            shown = predicted if self.shares_target else scores_of_view.argmax(dim=1)
            maps_of_view = self._maps(scores_of_view, shown, is_trained=self._trains_on_view)
            maps_of_view = maps_of_view if self.view_gradient else maps_of_view.detach()
        else:
            warp = None
        if "masks" in needs and self.micro_batches[-1].masks is not None:
            masks = self.micro_batches[-1].masks
            annotated = ~masks[:, 0, 0].isnan()  # a mask is NaN everywhere or nowhere
            self.micro_batches[-1].annotated = annotated.to(maps.dtype).mean()
            masks = masks.nan_to_num().to(maps.dtype)
        return Explanations(
            maps, maps_of_view, warp, masks, annotated, size, of_labels, pixels, len(size)
        )

    @property
    def _trains_on_view(self) -> bool:
        return self.view_gradient or self.ce_on != "image"

    def _view(self, images: Tensor) -> tuple[Warp, Tensor]:
        """Run the network on a view of each image; return how it was warped, and the output."""
        images = images.detach()
        size = tuple(images.shape[2:])
        warp = self.draws.warp(len(images), size).to(images.device)
        output = self._run_view(self.draws.view(images, warp))
        if self.ce_on != "image":
            assert self._loss_of is not None
            self.micro_batches[-1].others["view"] = self._loss_of(output)
        return warp, output

    def _run_view(self, images: Tensor) -> Tensor:
        if not self._is_training or (self._trains_on_view and not self.postpones):
            return self.infer(images)
        assert self._tape is not None
        states = self.draws.states()  # for dropout, which the second pass must draw again
        with self._tape.cut():
            output = self.infer(images)
        if self._trains_on_view:
            self.micro_batches[-1].postponed = Postponed(images, self._tape.activations, states)
        return output

    def _maps(
        self,
        scores: Tensor,
        classes: Tensor,
        *,
        is_trained: bool = True,
        keeps_graph: bool = False,
    ) -> Tensor:
        """Explain classes by the last pass, whose graph is kept in training, or if asked for."""
        assert self._tape is not None
        activations = self._tape.activations
        to_grid = partial(self.layer.to_grid, n_images=len(scores))
        scores = scores.gather(1, classes[:, None]).squeeze(1)
        factor = 1
        if activations.dtype == torch.float16:
            # A score's gradient at one of many positions is too small for half precision.
            factor = min(to_grid(activations).shape[2:].numel(), 2**15)
            scores = scores * factor
        is_trained = is_trained and self._is_training
        maps = self.phi(
            scores,
            activations,
            to_grid=to_grid,
            create_graph=is_trained or keeps_graph,
            factor=factor,
        )
        if not is_trained:
            return maps.detach()
        if not maps.requires_grad:
            raise ValueError(
                f"phi={self.phi!r} returns maps that cannot be differentiated, so nothing would be "
                "learned from them. Remove detach() or torch.no_grad() from its combine."
            )
        return maps

    @property
    def is_last_backward(self) -> bool:
        """Whether the current backward pass is the last one of this step."""
        batch = self.micro_batches[-1]
        is_last_part = len(self.micro_batches) == self._n_parts
        return is_last_part and batch.postponed is None and batch.augmented is None

    def backward(self) -> None:
        """Do the training that was postponed; the images' graph is gone by now."""
        with self._kept:
            batch = self.micro_batches[-1]
            postponed, batch.postponed = batch.postponed, None
            if postponed is not None:
                self._train_on_view(postponed)
            augmented, batch.augmented = batch.augmented, None
            if augmented is not None:
                self._train_on_augmented(augmented)

    def _train_on_view(self, postponed: Postponed) -> None:
        """Backpropagate the gradient of a view's activations through the trunk.

        This pass sees the same batch statistics and draws the same dropout masks as the first one.
        """
        with (
            self.draws.at(postponed.states),
            stopping_after(self.layer.of(self.module)),
        ):
            self.infer(postponed.images)
        assert self._tape is not None
        activations = self._tape.activations
        if activations.grad_fn is not None:  # something before the layer is trained
            activations.backward(postponed.activations.grad)

    def _train_on_augmented(self, images: Tensor) -> None:
        batch = self.micro_batches[-1]
        assert self._loss_of is not None and batch.values is not None and self.scaler is not None
        loss = self._loss_of(self.infer(images))
        self.scaler.scale(batch.share * loss).backward()
        batch.others["augmented"] = loss.detach()
        batch.values = batch.values._replace(total=batch.values.total.detach() + loss.detach())

    def check_split(self, n_parts: int) -> None:
        """Raise an error if the settings need a step that another class has replaced.

        Parameters
        ----------
        n_parts : int
            How many parts the batch should have had.
        """
        if self._is_split:
            return
        lost = {
            'memory="low"': any(batch.postponed for batch in self.micro_batches),
            'ce_on="all"': any(batch.augmented is not None for batch in self.micro_batches),
            "batch_accumulation": n_parts > 1,
            'precision="fp16"': self._scale is not None,
        }
        for name in (name for name, is_lost in lost.items() if is_lost):
            raise RuntimeError(
                f"{name} needs the classifier's own train_step_single, and another class has "
                "replaced it. With accelerate, use sklcam.training.AcceleratedCAMClassifier."
            )

    @property
    def total(self) -> Tensor:
        """The loss of the whole batch, detached."""
        found = [each for each in self.micro_batches if each.values is not None]
        first, *others = (each.part_of(each.values.total) for each in found if each.values)
        return sum(others, start=first)

    @property
    def signs(self) -> dict[str, Tensor]:
        """The signs of a collapse in the maps of all its micro-batches."""
        if self._signs is None:
            seen = [batch.seen for batch in self.micro_batches if batch.seen is not None]
            self._signs = _signs_of(seen) if seen else {}
        return self._signs

    def detach(self) -> Iterator[Tensor]:
        """Detach the recorded values from their graph; yield them, to be changed in place."""
        for batch in self.micro_batches:
            yield from batch.detach()
        self._signs = _copied(self.signs)
        yield from self._signs.values()

    def reading(self, history: History, phase: str, loss: Tensor) -> Reading:
        """Return the numbers to read from the step: loss and terms, as ``<phase>_<name>``.

        Call it once the step is done, so that reading numbers does not hold up the backward pass.

        Parameters
        ----------
        history : History
            Its last batch is this one.
        phase : {"train", "valid"}
        loss : scalar Tensor
            The step's loss.
        """
        sums = {"": loss.detach()}
        for batch in self.micro_batches:
            for name, value in batch.recorded(self.loss_name).items():
                part = batch.part_of(value)
                key = f"{phase}_{name}"
                sums[key] = sums[key] + part if key in sums else part
        sums |= {f"{phase}_{name}": value for name, value in self.signs.items()}
        if self._total_weight is not None:
            sums[f"{phase}_weight"] = self._total_weight.float()
        of_masks = [f"{phase}_{term.name}" for term in self.loss.terms if "masks" in term.needs]
        row = history[-1]["batches"][-1]
        numbers = torch.stack([*sums.values()])
        return Reading(row, phase, (*sums,), numbers, of_masks)
