"""The classifier that trains with consistent explanations, as a skorch net.

Each override is the narrowest of skorch's hooks that does the job: :meth:`train_step` and
:meth:`validation_step` open a :class:`~sklcam.training.step.Step`, :meth:`infer` and
:meth:`get_loss` ask it. What all nets on images share is in :mod:`sklcam.training.net`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions
from skorch import NeuralNet, NeuralNetClassifier
from skorch.callbacks import LRScheduler
from skorch.dataset import unpack_data
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from sklcam.explain.base import Explainer
from sklcam.explain.checks import checked
from sklcam.images.labels import check_labels, encode_labels
from sklcam.images.views import ViewSampler
from sklcam.networks.layers import TargetLayer
from sklcam.training import _criteria as criteria
from sklcam.training._checks import check_scaling, check_window
from sklcam.training._compiling import compile_trunk, differentiable_twice
from sklcam.training._data import Annotations, Classes, Masks, TrainingImages
from sklcam.training._randomness import Draws
from sklcam.training.callbacks import CollapseWarning, decoding
from sklcam.training.net import ImageNeuralNet, Module
from sklcam.training.objective import ConsistentCAMLoss
from sklcam.training.step import PRECISIONS, Step, check_bottleneck
from sklcam.training.terms import Consistency, Sparsity, Term, check_terms, needs_masks
from sklcam.training.weights import Balanced, GradientSizes, Schedule, Weight


class ConsistentCAMClassifier(ImageNeuralNet, Explainer, NeuralNetClassifier):
    r"""Image classifier whose Grad-CAM maps are trained to follow crops and flips.

    The loss is :math:`\mathcal{L}_{CE} + \alpha\,(1 - \mathrm{SSIM}(t(\Phi(x)), \Phi(t(x))))
    + \beta\,\lVert\Phi(x)\rVert_p`, where :math:`\Phi` is Grad-CAM without the ReLU and :math:`t` a
    recorded crop and flip.

    Parameters
    ----------
    module : str, nn.Module class or instance, or callable, default="resnet18"
        A torchvision name, whose head and stem are fitted to the classes and channels. A class or
        callable is given ``num_classes`` (or ``n_classes``) and ``in_channels`` if it takes them,
        and ``module__...`` parameters. An instance is copied, never changed.
    weights : None, "DEFAULT", name of torchvision weights, or path, default=None
        The weights that training starts from. A path is that of a state dict, loaded without
        running code from the file; a head of another size is replaced.
    target_layer : str or TargetLayer, default="auto"
        Dotted name of the layer that is explained; "auto" is the usual one of a known family, and
        otherwise the last layer with a spatial output. A :class:`sklcam.networks.TargetLayer` says
        how a layer's tokens form a grid.
    alpha : float >= 0, "auto", Balanced or callable, default=1.0
        Weight of the inconsistency. With ``alpha=0`` and ``beta=0`` this is a plain classifier, at
        a plain classifier's cost. "auto" is a :class:`sklcam.training.Balanced`: the term's
        gradient is kept in proportion to that of cross-entropy. A callable takes the epoch, counted
        from 0 and on through ``partial_fit``, and returns the weight in it, as
        :class:`sklcam.training.WarmUp` does.
    beta : float >= 0, "auto", Balanced or callable, default=1e-6
        Weight of the norm. The norm grows with the number of pixels: the paper's 1e-5 to 1e-7 are
        for 224 x 224.
    p : float, 0 or >= 1, default=1
        Which norm.
    terms : list of Term, default=()
        Further terms of the loss: objects of :class:`sklcam.training.Term`, each with a weight of
        its own.
    view_target : {"predicted", "shared"}, default="predicted"
        The class explained on the view: the network's prediction there, or that on the image.
    memory : {"normal", "low"}, default="normal"
        "low" keeps the activations of the images and those of their views in memory one after the
        other, not together: a step holds about as much as plain training does, and runs the trunk
        once more. The gradient is the same. All that the target layer is made of must reach the
        output by way of the target layer alone, as in all networks with a name.
    precision : {"fp32", "bf16", "fp16"}, default="fp32"
        The type of numbers that the network computes in while it is trained. Maps, the loss and the
        weights are float32 in any case, and so is prediction. With "fp16" the loss is scaled so
        that small gradients are not lost.
    channels_last : bool, default=False
        Whether images and weights lie in memory with the channels last, which convolutions are
        often faster in, above all in half precision.
    batch_accumulation : int, default=1
        In how many parts a batch is taken, one after the other, before the optimizer's step, for a
        batch that fits in memory in no other way. The gradient is that of the whole batch, where
        images do not see each other; batch normalisation, and terms that couple images, see a part
        at a time.
    augment : "auto", None, ViewSampler or callable, default="auto"
        How training images are perturbed: "auto" is a crop and flip as the views', independent of
        them, cut out of each image as it was and resized once. A callable, such as a transform of
        torchvision's, is given each image by itself: it takes and returns a float tensor
        (1, channels, image_size, image_size) in [0, 1]. Masks cannot follow it.
    views : ViewSampler or None, default=None
        The distribution of the views t; None is that of the paper.
    image_size : int or (height, width), default=224
        The size that images are resized to; at least 11 with ``alpha > 0``, the window of SSIM.
    resize : {"stretch", "center_crop"}, default="stretch"
        Both sides to ``image_size``, or the proportions kept and the middle cut out.
    mean, std : "auto", float or one float a channel, default="auto"
        Normalisation after scaling to [0, 1]; "auto" is ImageNet's.
    random_state : int, RandomState or None, default=None
        Where all randomness of training comes from; the global generators are not touched.
        The first weights of an instance given as ``module`` are its own.
    device : str or torch.device, default="auto"
        "auto" is CUDA where there is one, else the CPU.
    criterion, optimizer, lr, max_epochs, batch_size, train_split, iterator_train__shuffle
        As in skorch, with the paper's defaults: SGD with momentum 0.9 and weight decay 1e-4 (given
        by ``optimizer__...``), a learning rate of 1e-3, cut to a tenth every 30 epochs by the
        callback ``lr_scheduler`` (``callbacks__lr_scheduler__step_size=20`` is every 20; a
        scheduler among ``callbacks`` takes its place). There is no validation split unless
        ``train_split`` makes one.
    classes : array-like or None, default=None
        The labels, where ``y`` may not hold them all.
    **kwargs
        Any other parameter of :class:`skorch.NeuralNetClassifier`: ``callbacks``, ``verbose``,
        ``warm_start``, ``iterator_valid__num_workers`` and so on. With ``compile=True`` (and
        ``compile__...`` parameters) the network is compiled up to the target layer, block by block,
        and not from there on, as maps are differentiated twice.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    module_ : nn.Module
        The trained network.
    target_layer_ : TargetLayer
        The layer that is explained.
    n_channels_ : int
        Channels of the images.
    history : skorch.history.History
        Per epoch ``train_loss`` and its unweighted parts: ``train_ce``, ``train_inconsistency``
        (one minus SSIM), ``train_norm`` and ``train_<name>`` of further terms, as far as they are
        in use, and ``valid_...`` of each where there is a validation split. Weights that balance
        themselves are ``train_alpha``, ``train_beta`` and ``train_<name>_weight``.

    Warns
    -----
    ConvergenceWarning
        In training, if a loss is NaN or infinite; and by :class:`sklcam.training.CollapseWarning`,
        if maps are constant or stuck in the corners, or accuracy is at chance.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM".

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklcam import ConsistentCAMClassifier
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> X = (X / 16).reshape(-1, 8, 8)
    >>> clf = ConsistentCAMClassifier("resnet18", image_size=64, lr=0.05, max_epochs=2,
    ...                               verbose=0, random_state=0)
    >>> clf = clf.fit(X[:128], y[:128])
    >>> clf.predict(X[128:132]).shape
    (4,)
    >>> maps = clf.explain(X[128:132])
    >>> maps.shape, maps.dtype
    ((4, 64, 64), dtype('float32'))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ImageNeuralNet._parameter_constraints,
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"}), Balanced, callable],
        "beta": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"}), Balanced, callable],
        "p": [Real],
        "terms": [list, tuple],
        "view_target": [StrOptions({"predicted", "shared"})],
        "views": [None, ViewSampler],
        "memory": [StrOptions({"normal", "low"})],
        "precision": [StrOptions(set(PRECISIONS))],
        "channels_last": ["boolean"],
        "batch_accumulation": [Interval(Integral, 1, None, closed="left")],
    }

    callbacks_: list[tuple[str, Any]]
    scaler_: GradScaler
    gradient_sizes_: GradientSizes
    _step: Step | None = None  # the one that is being made

    def __init__(
        self,
        module: Module = "resnet18",
        *,
        weights: str | PathLike[str] | None = None,
        target_layer: str | TargetLayer = "auto",
        alpha: Weight | Schedule = 1.0,
        beta: Weight | Schedule = 1e-6,
        p: float = 1,
        terms: Sequence[Term] = (),
        view_target: str = "predicted",
        memory: str = "normal",
        precision: str = "fp32",
        channels_last: bool = False,
        batch_accumulation: int = 1,
        augment: str | ViewSampler | Callable[[Tensor], Tensor] | None = "auto",
        views: ViewSampler | None = None,
        image_size: int | tuple[int, int] = 224,
        resize: str = "stretch",
        mean: str | float | Sequence[float] = "auto",
        std: str | float | Sequence[float] = "auto",
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = "auto",
        criterion: nn.Module | Callable[..., nn.Module] = nn.CrossEntropyLoss,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        lr: float = 1e-3,
        max_epochs: int = 20,
        batch_size: int = 32,
        train_split: Callable[..., Any] | None = None,
        iterator_train__shuffle: bool = True,
        classes: Classes = None,
        **kwargs: Any,
    ):
        self.weights = weights
        self.target_layer = target_layer
        self.alpha = alpha
        self.beta = beta
        self.p = p
        self.terms = terms
        self.view_target = view_target
        self.memory = memory
        self.precision = precision
        self.channels_last = channels_last
        self.batch_accumulation = batch_accumulation
        self.augment = augment
        self.views = views
        self.image_size = image_size
        self.resize = resize
        self.mean = mean
        self.std = std
        self.random_state = random_state
        super().__init__(
            module,
            device=device,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            train_split=train_split,
            iterator_train__shuffle=iterator_train__shuffle,
            classes=classes,
            **kwargs,
        )

    # Fitting

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        *,
        masks: Masks = None,
        **fit_params: Any,
    ) -> Self:
        """Train from the start (or on, with ``warm_start=True``).

        Parameters
        ----------
        X : images
            uint8 or float arrays in [0, 1] of shape (n, height, width) or (n, height, width,
            channels); tensors (n, channels, height, width); lists of file paths or PIL images, of
            any sizes, read as they are needed; a torch data set of images.
        y : array-like of shape (n_images,)
            Labels of any kind. May be left out for a data set that has ``targets``.
        sample_weight : array-like of shape (n_images,) or None, default=None
            How much each image counts in the cross-entropy, 0 or more: a batch's is the weighted
            mean of its images' own, as with ``criterion__weight``. Terms of explanations and batch
            normalisation count all images alike.
        masks : array-like of shape (n_images, height, width), list of masks or None, default=None
            For terms that need them: the object in each image, at the image's own size; bool, 0 and
            anything else as integers, or shares of pixels in [0, 1]. None in the place of a mask is
            an image without one. Masks are resized and augmented as their images are.
        **fit_params
            As in skorch.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X, y, masks, weights or a parameter does not fit; before any training.
        """
        return self._fit(X, y, fit_params, Annotations(masks, sample_weight))

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        classes: Classes = None,
        sample_weight: ArrayLike | None = None,
        *,
        masks: Masks = None,
        **fit_params: Any,
    ) -> Self:
        """Train for ``max_epochs`` more, without starting anew.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        classes : array-like or None, default=None
            All labels that will ever come; needed in the first call where ``y`` lacks some.
        sample_weight, masks
            As in :meth:`fit`.
        **fit_params
            As in skorch.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, classes, fit_params, Annotations(masks, sample_weight))

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

    def _differentiating(self) -> AbstractContextManager[None]:
        return differentiable_twice(compiled=self.compile, on_maps=self._trains_on_maps())

    # Checks, at the door

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_terms((Consistency(self.alpha), Sparsity(self.beta, self.p), *self.terms))
        check_scaling(self.precision, self.optimizer)
        check_window(self.alpha, self.input_size)

    def _check_training_data(
        self, X: Any, y: Any, annotations: Annotations, *, known: bool, classes: Classes
    ) -> tuple[TrainingImages, np.ndarray]:
        if not needs_masks(self.terms, annotations.masks, self.augment):
            annotations = replace(annotations, masks=None)  # they would be read for nothing
        found = super()._check_training_data(X, y, annotations, known=known, classes=classes)
        options, weighs = self.get_params_for("criterion"), annotations.sample_weight is not None
        criteria.check_criterion(self.criterion, options, self.classes_, weighs_images=weighs)
        return found

    @property
    def n_outputs(self) -> int:
        return len(self.classes_)

    def initialize_module(self) -> ConsistentCAMClassifier:
        super().initialize_module()
        self.gradient_sizes_ = GradientSizes()  # an earlier network's say nothing of this one
        if self.channels_last:
            self.module_.to(memory_format=torch.channels_last)
        return self

    def _trains_on_maps(self) -> bool:
        return bool(self.alpha or self.beta or self.terms)

    def _compares_views(self) -> bool:
        return bool(self.alpha or any("view" in term.needs for term in self.terms))

    # Optimizer and callbacks

    def get_params_for_optimizer(
        self, prefix: str, named_parameters: Any
    ) -> tuple[Any, dict[str, Any]]:
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        # As defaults of the signature, they would be handed to optimizers that do not take them.
        if self.optimizer is torch.optim.SGD:
            kwargs = {"momentum": 0.9, "weight_decay": 1e-4, **kwargs}
        return args, kwargs

    def _default_schedule(self) -> LRScheduler:
        return LRScheduler("StepLR", step_size=30, gamma=0.1)

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        return [*super()._default_callbacks, ("collapse_warning", CollapseWarning())]

    def _names_in_history(self) -> Sequence[str]:
        terms = (Consistency(), Sparsity(), *self.terms)
        weights = [term.weight_name for term in terms]
        return ["loss", "ce", *(term.name for term in terms), *weights]

    def initialize_callbacks(self) -> ConsistentCAMClassifier:
        super().initialize_callbacks()
        if hasattr(self, "classes_"):  # set_params comes here before fit
            found = self.callbacks_
            self.callbacks_ = [(name, decoding(each, self.classes_)) for name, each in found]
        return self

    # Training

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_train_begin(net, **kwargs)
        if isinstance(self.module_, DistributedDataParallel):
            raise RuntimeError(
                "The network is wrapped to be trained by several processes, and its target layer "
                "out of reach; use sklcam.training.AcceleratedCAMClassifier."
            )
        # A scale that was found goes on where training does.
        if not hasattr(self, "scaler_") or self.scaler_.is_enabled() != (self.precision == "fp16"):
            device = torch.device(self.device or "cpu").type
            self.scaler_ = GradScaler(device, enabled=self.precision == "fp16")
        if self.memory == "low" and self._compares_views():
            check_bottleneck(self.module_, self.target_layer_, self._sample())

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_epoch_begin(net, **kwargs)
        # Every epoch is validated on the same views, so that the epochs can be compared.
        self.valid_generator_ = torch.Generator().manual_seed(self.random_states_["seed"])

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_train_end(net, **kwargs)
        self.__dict__.pop("valid_generator_", None)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        # Other classes, such as skorch's AccelerateMixin, replace train_step_single but not this.
        with self._stepping(training=True) as step:
            found = super().train_step(batch, **fit_params)
        step.check_split(self.batch_accumulation)
        step.record(self.history, "train")
        return found

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        with self._stepping(training=False) as step:
            found = super().validation_step(batch, **fit_params)
        step.record(self.history, "valid")
        # Callbacks keep it, and its graph would keep the activations.
        return {name: value.detach() for name, value in found.items()}

    @contextmanager
    def _stepping(self, *, training: bool) -> Iterator[Step]:
        """Make one step in the block."""
        generator = getattr(self, "generator_" if training else "valid_generator_", None)
        # Made anew for each step, as weights follow the epoch and parameters may be set in between.
        loss = ConsistentCAMLoss(
            self.alpha,
            self.beta,
            self.p,
            terms=self.terms,
            sizes=self.gradient_sizes_,
            epoch=max(0, len(self.history) - 1),
        )
        step = Step(
            self.module_,
            self.target_layer_,
            loss,
            self.infer,
            Draws(self, self.views or ViewSampler(), generator),
            scaler=self.scaler_ if training else None,
            precision=PRECISIONS[self.precision],
            shares_target=self.view_target == "shared",
            postpones=self.memory == "low",
        )
        self._step = step
        try:
            with step.recording():
                yield step
        finally:
            self._step = None

    def _annotate(self, y: Tensor, annotations: dict[str, Tensor]) -> None:
        assert self._step is not None
        weights, total = annotations.get("weights"), None
        if weights is None:
            weights = criteria.equal_weights(self.criterion_, y)
        if weights is not None:
            total = self._sum(criteria.weights_of_losses(self.criterion_, y, weights))
            weights = weights / total
        self._step.annotate(annotations.get("masks"), weights, total)

    def _sum(self, weights: Tensor) -> Tensor:
        # All of a batch may weigh nothing: its loss is 0, not NaN.
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
        return {"loss": self._step.total, "y_pred": torch.cat(outputs)}

    def _complete_gradient(self) -> None:
        """Do nothing: the batch is whole. Processes that share one put their gradients together."""

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
        weights = None if self._step is None else self._step.micro_batches[-1].weights
        with criteria.suited(self.criterion_, y_pred.dtype, per_image=weights is not None):
            cross_entropy = super().get_loss(y_pred, y_true, X=X, training=training)
        if self._step is None:  # skorch scores predictions, too, and they have no maps
            return cross_entropy
        if weights is not None:
            cross_entropy = (weights * cross_entropy).sum()
        return self._step.explain(cross_entropy, y_pred, y_true, X)

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        params = super().get_params_for(prefix)
        return criteria.prepared(self.criterion, params) if prefix == "criterion" else params

    # Prediction and explanation

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class.

        Parameters
        ----------
        X : images
            In any form that :meth:`fit` takes.

        Returns
        -------
        ndarray of shape (n_images, n_classes), in [0, 1]
            In the order of ``classes_``.
        """
        self.check_is_fitted()
        return checked(super().predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each image.

        Parameters
        ----------
        X : images
            In any form that :meth:`fit` takes.

        Returns
        -------
        ndarray of shape (n_images,)
        """
        probabilities = self.predict_proba(X)  # before classes_ is read: an error if not fitted
        return self.classes_[probabilities.argmax(axis=1)]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy on X.

        Parameters
        ----------
        X : images
            In any form that :meth:`fit` takes.
        y : array-like of shape (n_images,)
            May be left out for a data set that has ``targets``.
        sample_weight : array-like of shape (n_images,) or None, default=None

        Returns
        -------
        float, in [0, 1]

        Raises
        ------
        ValueError
            If y holds labels that ``fit`` has not seen.
        """
        self.check_is_fitted()
        y = check_labels(X, y)
        encode_labels(y, self.classes_)  # an error if there are others
        return super().score(X, y, sample_weight)
