"""The steps of a net that trains on explanations: skorch's hooks, each passed on to a step.

Each override is the narrowest of skorch's hooks that does the job: :meth:`SteppingNet.train_step`
and :meth:`SteppingNet.validation_step` open a :class:`~sklcam.training.step.Step`,
:meth:`SteppingNet.infer` and :meth:`SteppingNet.get_loss` use it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Self

import torch
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.dataset import unpack_data
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from sklcam._callers import level_of_user
from sklcam.images.views import ViewSampler
from sklcam.networks.precision import PRECISIONS
from sklcam.training import _criteria as criteria
from sklcam.training._compiling import compile_trunk, differentiable_twice
from sklcam.training._data import share_annotated
from sklcam.training._networks import check_bottleneck, check_heads, check_kernels
from sklcam.training._randomness import Draws
from sklcam.training._readings import Readings
from sklcam.training._recording import Plan, lacking
from sklcam.training._statistics import share_of_probabilities
from sklcam.training.mask_terms import MASK_LOSSES
from sklcam.training.net import ImageNeuralNet
from sklcam.training.objective import ConsistentCAMLoss
from sklcam.training.step import Step, method_of
from sklcam.training.tasks import TASKS
from sklcam.training.terms import Consistency, Sparsity, Term
from sklcam.training.weights import GradientSizes


class SteppingNet(ImageNeuralNet):
    """A skorch net on images whose loss may use explanations."""

    scaler_: GradScaler
    gradient_sizes_: GradientSizes
    _step: Step | None = None  # the step in progress

    def _trains_on_maps(self) -> bool:
        return bool(self.alpha or self.beta or self._further_terms)

    @property
    def _further_terms(self) -> list[Term]:
        """The terms besides the paper's two."""
        of_masks = [MASK_LOSSES[self.mask_loss](self.gamma)] if self.gamma else []
        return [*of_masks, *self.terms]

    def _validates_masks(self) -> bool:
        needs = [term.needs for term in self._further_terms]
        return any("masks" in need and "pixels" not in need for need in needs)

    def _sees_views(self) -> bool:
        of_terms = any("view" in term.needs for term in self._further_terms)
        return bool(self.alpha or of_terms or self.ce_on != "image")

    @property
    def _keeps_images(self) -> bool:
        return bool(self.ce_on == "all")

    def torch_compile(self, module: nn.Module, name: str) -> nn.Module:
        if not self.compile or not self._trains_on_maps():
            return super().torch_compile(module, name)
        if name != "module":  # the criterion: compiled, it may be differentiated only once
            return module
        layer, options = self.target_layer_.of(module), self.get_params_for("compile")
        return compile_trunk(module, layer, self._sample(), options)

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        with self._differentiating():
            return super().fit_loop(X, y, epochs, **kwargs)

    def _parted(self, ours: Tensor, theirs: Tensor) -> Tensor:
        read = self.readout
        if not read.has_probabilities:
            return super()._parted(ours, theirs)
        probabilities = (read.probabilities(read.columns(each)) for each in (ours, theirs))
        return share_of_probabilities(*probabilities)

    def initialize_criterion(self) -> Self:
        options = self.get_params_for("criterion")
        self.criterion_ = self.initialized_instance(self._criterion, options)
        return self

    def get_params_for_optimizer(
        self, prefix: str, named_parameters: Any
    ) -> tuple[Any, dict[str, Any]]:
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        # As defaults of the signature, they would be passed to optimizers that do not take them.
        if self.optimizer is torch.optim.SGD:
            kwargs = {"momentum": 0.9, "weight_decay": 1e-4, **kwargs}
        return args, kwargs

    def _differentiating(self) -> AbstractContextManager[None]:
        return differentiable_twice(compiled=self.compile)

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_train_begin(net, **kwargs)
        if isinstance(self.module_, DistributedDataParallel):
            raise RuntimeError(
                "The network is wrapped for training by several processes, so its target layer "
                "is out of reach. Use sklcam.training.AcceleratedCAMClassifier."
            )
        # A scale once found is kept when training resumes.
        if not hasattr(self, "scaler_") or self.scaler_.is_enabled() != (self.precision == "fp16"):
            device = torch.device(self.device or "cpu").type
            self.scaler_ = GradScaler(device, enabled=self.precision == "fp16")
        check_heads(self.module_)
        if self._trains_on_maps():
            check_kernels(self.module_)
        if self.memory == "low" and self._sees_views():
            check_bottleneck(self.module_, self.target_layer_, self._sample())

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_epoch_begin(net, **kwargs)
        # Every epoch is validated on the same views, so that epochs can be compared.
        self.valid_generator_ = torch.Generator().manual_seed(self.random_states_["seed"])

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_train_end(net, **kwargs)
        self.__dict__.pop("valid_generator_", None)
        n_steps = self._n_steps_before()
        is_unused = self._is_whole and self._n_batches is None and 0 < n_steps < self.every
        if is_unused and self._trains_on_maps():
            warnings.warn(
                f"every={self.every} made terms part of the first step only, as there were "
                f"{n_steps} in all. Set a smaller one.",
                ConvergenceWarning,
                stacklevel=level_of_user(),
            )

    # The history

    def _names_in_history(self) -> Sequence[str]:
        terms = (Consistency(), Sparsity(), *self._further_terms)
        weights = [term.weight_name for term in terms]
        losses = sorted({task.loss_name for task in TASKS.values()})
        losses += [f"{loss}_{of}" for loss in losses for of in ("view", "augmented")]
        return ["loss", *losses, *(term.name for term in terms), *weights]

    def _unrecorded(self, train: Any, valid: Any) -> dict[str, str]:
        names = {task.loss_name for task in TASKS.values()}
        unused_copies = {"image": ("view", "augmented"), "view": ("augmented",)}.get(self.ce_on, ())
        losses = names - {self._task.loss_name}
        losses |= {f"{name}_{each}" for name in names for each in unused_copies}
        never = {f"{phase}_{name}": "" for phase in ("train", "valid") for name in losses}
        terms = (Consistency(self.alpha), Sparsity(self.beta), *self._further_terms)
        n_epochs = len(self.history)
        plan = Plan(
            epochs=range(n_epochs, n_epochs + self.max_epochs),
            n_before=self._n_steps_before(),
            n_steps=self._n_batches,
            every=self.every,
            annotated={"train": share_annotated(train), "valid": share_annotated(valid)},
        )
        if self._is_whole and self._trains_on_maps():
            plan.check_every()
        return {**never, **lacking(terms, plan)}

    def _n_steps_before(self) -> int:
        """Return how many training steps the epochs in the history had."""
        return sum(row.get("train_batch_count", 0) for row in self.history)

    # Steps

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        self._readings = Readings()
        try:
            with self._readings.of_an_epoch(self):
                super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        finally:
            del self._readings

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        # Other classes, such as skorch's AccelerateMixin, replace train_step_single but not this.
        with self._stepping(training=True) as step:
            found = super().train_step(batch, **fit_params)
        step.check_split(self.batch_accumulation)
        return {**found, "loss": self._read(step, "train", found["loss"])}

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        with self._stepping(training=False) as step:
            found = super().validation_step(batch, **fit_params)
        loss = self._read(step, "valid", found["loss"])
        # Callbacks keep the loss, and its graph would keep the activations.
        return {**{name: value.detach() for name, value in found.items()}, "loss": loss}

    def _read(self, step: Step, phase: str, loss: Tensor) -> Tensor:
        """Return the loss on the host for skorch, which reads it next; NaN if it comes later."""
        readings = vars(self).get("_readings") or Readings()
        read = readings.add(step.reading(self.history, phase, loss))
        return torch.tensor(read, dtype=loss.dtype)

    @contextmanager
    def _stepping(self, *, training: bool) -> Iterator[Step]:
        """Open a step for the block."""
        generator = getattr(self, "generator_" if training else "valid_generator_", None)
        # Created for each step, as weights follow the epoch and parameters may be set in between.
        loss = ConsistentCAMLoss(0, 0)
        if not training or self._n_steps() % self.every == 0:
            loss = ConsistentCAMLoss(
                self.alpha,
                self.beta,
                self.p,
                agreement=self.agreement,
                terms=self._further_terms,
                sizes=self.gradient_sizes_,
                epoch=max(0, len(self.history) - 1),
                factor=self.every if training else 1,
            )
        step = Step(
            self.module_,
            self.target_layer_,
            loss,
            self.infer,
            Draws(self, self.views or ViewSampler(), generator),
            read=self.readout,
            loss_name=self._task.loss_name,
            scaler=self.scaler_ if training else None,
            precision=PRECISIONS[self.precision],
            phi=method_of(self.phi),
            shares_target=self.view_target == "shared",
            postpones=self.memory == "low",
            ce_on=self.ce_on,
            view_gradient=self.view_gradient,
        )
        self._step = step
        try:
            with step.recording():
                yield step
        finally:
            self._step = None

    def _n_steps(self) -> int:
        """Return how many training steps came before this one."""
        *before, epoch = self.history or [{"batches": []}]
        n_before = sum(row.get("train_batch_count", 0) for row in before)
        return n_before + max(0, len(epoch["batches"]) - 1)

    def _annotate(self, y: Tensor, annotations: dict[str, Tensor]) -> None:
        assert self._step is not None
        weights, total = annotations.get("weights"), None
        if weights is None:
            weights = criteria.equal_weights(self.criterion_, y)
        if weights is not None:
            total = self._sum(criteria.weights_of_losses(self.criterion_, y, weights))
            weights = weights / total
        augmented = annotations.get("augmented")
        if augmented is not None:
            augmented = self._normalize(self._prepare(augmented))
        self._step.annotate(annotations.get("masks"), weights, total, augmented)

    def _sum(self, weights: Tensor) -> Tensor:
        # All images of a batch may have a weight of 0: its loss is then 0, not NaN.
        return weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Add up the gradient of a batch, one micro-batch after the other."""
        assert self._step is not None
        images, y = unpack_data(batch)
        outputs = []
        for some in self._step.split(images, y, min(self.batch_accumulation, len(images))):
            outputs.append(super().train_step_single(some, **fit_params)["y_pred"].detach())
            self._step.backward()
        self._complete_gradient()
        for name in self._optimizers:  # so that callbacks see gradients as they are
            self.scaler_.unscale_(getattr(self, f"{name}_"))
        y_pred = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return {"loss": self._step.total, "y_pred": y_pred}

    def _complete_gradient(self) -> None:
        """Do nothing: the batch is complete. Processes that share a batch combine theirs."""

    def _step_optimizer(self, step_fn: Callable[[], Tensor]) -> None:
        if not self.scaler_.is_enabled():
            super()._step_optimizer(step_fn)
            return
        # A scaler looks at the gradient to decide on a step: it takes no closure.
        step_fn()
        for name in self._optimizers:
            self.scaler_.step(getattr(self, f"{name}_"))
        self.scaler_.update()

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self._step is None:
            return super().infer(x, **fit_params)
        return self._step.forward(partial(super().infer, **fit_params), x)

    def get_loss(
        self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        loss_of = partial(self._get_loss, y_true=y_true, X=X, training=training)
        if self._step is None:  # skorch scores predictions, too, and they have no maps
            return loss_of(y_pred)
        labels = y_true if self._task.excludes else None
        return self._step.explain(y_pred, labels, X, loss_of)

    def _get_loss(self, y_pred: Tensor, y_true: Any, X: Any, training: bool) -> Tensor:
        """Return the criterion's loss for outputs, of images or of copies made from them."""
        weights = None if self._step is None else self._step.micro_batches[-1].weights
        comparable = self._task.comparable(y_pred, y_true)
        weighs = weights is not None
        with criteria.suited(self.criterion_, self._task, y_pred.dtype, weighs_images=weighs):
            loss = super().get_loss(*comparable, X=X, training=training)
        return loss if weights is None else (weights * criteria.per_image(loss)).sum()

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        params = super().get_params_for(prefix)
        return criteria.prepared(self._criterion, params) if prefix == "criterion" else params
