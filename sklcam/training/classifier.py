"""The classifier that trains with consistent explanations, as a skorch net.

Each override is the narrowest of skorch's hooks that does the job: :meth:`train_step` and
:meth:`validation_step` open the tape, :meth:`get_loss` adds the terms on the explanations. What all
nets on images share is in :mod:`sklcam.training.net`; everything else is skorch's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler
from skorch.dataset import unpack_data
from skorch.utils import to_numpy
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from sklcam.cam import GradCAM
from sklcam.cam.maps import at_least_float32
from sklcam.explain.base import ExplainerMixin
from sklcam.images.labels import check_labels, encode_labels
from sklcam.images.views import ViewSampler
from sklcam.networks.layers import TargetLayer
from sklcam.networks.tape import Tape, blocks_of_trunk, is_bypassed, record, stopping_after
from sklcam.training.collapse import CollapseWarning, signs_of_collapse
from sklcam.training.net import ImageNeuralNet
from sklcam.training.objective import ConsistentCAMLoss, LossTerms, check_p
from sklcam.training.weights import Balanced, GradientSizes, Weight, check_weight

_TERMS = ("ce", "consistency", "sparsity", "alpha", "beta")  # in the order of LossTerms
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ConsistentCAMClassifier(ImageNeuralNet, ExplainerMixin, NeuralNetClassifier):
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
        What training starts from. A path is that of a state dict, loaded without running code from
        the file; a head of another size is replaced.
    target_layer : str or TargetLayer, default="auto"
        Dotted name of the layer that is explained; "auto" is the usual one of a known family, and
        otherwise the last layer with a spatial output. A :class:`sklcam.networks.TargetLayer` says
        how a layer's tokens form a grid.
    alpha : float >= 0, "auto", Balanced or callable, default=1.0
        Weight of the inconsistency. With ``alpha=0`` and ``beta=0`` this is a plain classifier, at
        a plain classifier's cost. "auto" is :class:`sklcam.training.Balanced`: the term's gradient is
        kept in proportion to that of cross-entropy. A callable takes the epoch, counted from 0 and
        on through ``partial_fit``, and returns the weight in it; :class:`sklcam.training.WarmUp` is
        one.
    beta : float >= 0, "auto", Balanced or callable, default=1e-6
        Weight of the norm. The norm grows with the number of pixels: the paper's 1e-5 to 1e-7 are
        for 224 x 224.
    p : float, 0 or >= 1, default=1
        Which norm.
    view_target : {"predicted", "shared"}, default="predicted"
        The class explained on the view: the network's prediction there, or that on the image.
    memory : {"normal", "low"}, default="normal"
        "low" keeps the activations of the images and those of their views in memory one after the
        other, not together: a step holds about what plain training holds, and runs the trunk once
        more. The gradient is the same. All that the target layer is made of must reach the output
        by way of the target layer alone, as in all networks with a name.
    precision : {"fp32", "bf16", "fp16"}, default="fp32"
        What the network computes in while it is trained; the maps, what is made of them, the loss
        and the weights are float32 in any case, and so is prediction. With "fp16" the loss is
        scaled so that small gradients are not lost.
    channels_last : bool, default=False
        Whether images and weights lie in memory with the channels last, which convolutions are
        often faster in, above all in half precision.
    batch_accumulation : int, default=1
        In how many parts a batch is taken, one after the other, before the optimizer's step: a
        batch that fits in memory in no other way. The gradient is that of the whole batch, where
        images do not see each other; batch normalisation sees a part at a time.
    augment : "auto", None, ViewSampler or callable, default="auto"
        How training images are perturbed: "auto" is a crop and flip as the views', independent of
        them. A callable takes and returns a float tensor (n_images, channels, height, width) in
        [0, 1].
    views : ViewSampler or None, default=None
        The distribution of the views t; None is that of the paper.
    image_size : int or (height, width), default=224
        What images are resized to; at least 11 with ``alpha > 0``, the window of SSIM.
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
        ``compile__...`` parameters) what makes the target layer's activations is compiled, block by
        block, and what follows it is not, as maps are differentiated twice.

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
        Per epoch ``train_loss`` and its unweighted terms ``train_ce``, ``train_consistency`` (one
        minus SSIM) and ``train_sparsity``, as far as they are in use, and ``valid_...`` of each
        where there is a validation split. ``train_alpha`` and ``train_beta`` are the weights that
        balance the terms, where they are "auto".

    Warns
    -----
    ConvergenceWarning
        In training, by :class:`sklcam.training.CollapseWarning`, if maps are constant, or stuck in
        the corners, or accuracy is at chance; it says what to change.

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
        "view_target": [StrOptions({"predicted", "shared"})],
        "views": [None, ViewSampler],
        "memory": [StrOptions({"normal", "low"})],
        "precision": [StrOptions(set(_PRECISIONS))],
        "channels_last": ["boolean"],
        "batch_accumulation": [Interval(Integral, 1, None, closed="left")],
    }
    _loss_terms: ClassVar[tuple[str, ...]] = ("loss", *_TERMS)

    callbacks_: list[tuple[str, Any]]
    tape_: Tape | None
    parts_: list[Part]
    scaler_: GradScaler
    gradient_sizes_: GradientSizes
    in_step_: bool = False

    def __init__(
        self,
        module: Any = "resnet18",
        *,
        weights: Any = None,
        target_layer: str | TargetLayer = "auto",
        alpha: Weight | Callable[[int], Weight] = 1.0,
        beta: Weight | Callable[[int], Weight] = 1e-6,
        p: float = 1,
        view_target: str = "predicted",
        memory: str = "normal",
        precision: str = "fp32",
        channels_last: bool = False,
        batch_accumulation: int = 1,
        augment: Any = "auto",
        views: ViewSampler | None = None,
        image_size: int | tuple[int, int] = 224,
        resize: str = "stretch",
        mean: Any = "auto",
        std: Any = "auto",
        random_state: Any = None,
        device: Any = "auto",
        criterion: Any = nn.CrossEntropyLoss,
        optimizer: Any = torch.optim.SGD,
        lr: float = 1e-3,
        max_epochs: int = 20,
        batch_size: int = 32,
        train_split: Any = None,
        iterator_train__shuffle: bool = True,
        classes: Any = None,
        **kwargs: Any,
    ):
        self.weights = weights
        self.target_layer = target_layer
        self.alpha = alpha
        self.beta = beta
        self.p = p
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

    def torch_compile(self, module: nn.Module, name: str) -> nn.Module:
        if not self.compile or not self._trains_on_maps():
            return super().torch_compile(module, name)
        if name != "module":  # the criterion: compiled, it may be differentiated only once
            return module
        sample = torch.zeros(1, self.n_channels_, *self._input_size(), device=self.device)
        layer = self.target_layer_.of(module)
        for block in blocks_of_trunk(module.eval(), layer, sample):
            block.compile(**self.get_params_for("compile"))
        return module

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        with self._double_differentiable_attention(), self._compiling():
            return super().fit_loop(X, y, epochs, **kwargs)

    # Checks, at the door

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_p(self.p)
        if self.precision == "fp16" and self.optimizer is torch.optim.LBFGS:
            raise ValueError(
                'precision="fp16" scales the loss of a step, and LBFGS takes several to decide on '
                'one; use "bf16" or another optimizer.'
            )
        if self.alpha and min(self._input_size()) < 11:
            raise ValueError(
                f"alpha > 0 compares maps by SSIM, in windows of 11 pixels; got image_size="
                f"{self.image_size}. Use a larger image_size: small images are resized to it."
            )

    def _n_outputs(self) -> int:
        return len(self.classes_)

    def initialize_module(self) -> ConsistentCAMClassifier:
        super().initialize_module()
        self.gradient_sizes_ = GradientSizes()
        if self.channels_last:
            self.module_.to(memory_format=torch.channels_last)
        return self

    def _trains_on_maps(self) -> bool:
        return bool(self.alpha or self.beta)

    # Optimizer and callbacks

    def get_params_for_optimizer(
        self, prefix: str, named_parameters: Any
    ) -> tuple[Any, dict[str, Any]]:
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        if self.optimizer is torch.optim.SGD:
            kwargs = {"momentum": 0.9, "weight_decay": 1e-4, **kwargs}
        return args, kwargs

    def _default_schedule(self) -> LRScheduler:
        return LRScheduler("StepLR", step_size=30, gamma=0.1)

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        return [*super()._default_callbacks, ("collapse_warning", CollapseWarning())]

    def initialize_callbacks(self) -> ConsistentCAMClassifier:
        super().initialize_callbacks()
        self.callbacks_ = [(name, self._decoding(callback)) for name, callback in self.callbacks_]
        return self

    def _decoding(self, callback: Any) -> Any:
        """Let a scoring callback compare labels with labels: batches hold class indices."""
        is_scorer = getattr(callback, "target_extractor", None) is to_numpy
        if not is_scorer or not hasattr(self, "classes_"):  # set_params comes here before fit
            return callback
        callback = copy.copy(callback)
        callback.target_extractor = LabelDecoder(self.classes_)
        return callback

    # Training

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        super().on_train_begin(net, **kwargs)
        if isinstance(self.module_, DistributedDataParallel):
            raise RuntimeError(
                "The network is wrapped to be trained by several processes, and its target layer "
                "out of reach; use sklcam.training.AcceleratedCAMClassifier."
            )
        if not hasattr(self, "scaler_") or self.scaler_.is_enabled() != (self.precision == "fp16"):
            device = torch.device(self.device or "cpu").type
            self.scaler_ = GradScaler(device, enabled=self.precision == "fp16")
        if self.memory == "low" and self.alpha:
            self._check_bottleneck()

    def _check_bottleneck(self) -> None:
        layer = self.target_layer_
        sample = torch.zeros(1, self.n_channels_, *self._input_size(), device=self.device)
        if is_bypassed(self.module_.eval(), layer.of(self.module_), sample):
            raise ValueError(
                f'memory="low" takes the gradient of a view through the target layer alone, but '
                f"{layer.name!r} is bypassed on the way to the output; name a later target_layer, "
                'or use memory="normal".'
            )

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        super().on_epoch_begin(net, **kwargs)
        # Every epoch is validated on the same views, so that the epochs can be compared.
        self.valid_generator_ = torch.Generator().manual_seed(self.random_states_["seed"])

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        super().on_train_end(net, **kwargs)
        self.__dict__.pop("valid_generator_", None)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        whole = self.parts_ = [Part()]
        with self._taped(trunk=True):
            step = super().train_step(batch, **fit_params)
        if self.parts_ is whole:
            self._check_replaced_step()
        self._record_terms("train")
        return step

    def _check_replaced_step(self) -> None:
        """Raise an error if another class's train_step_single cannot do what is asked for."""
        lost = {
            'memory="low"': any(part.postponed for part in self.parts_),
            "batch_accumulation": self.batch_accumulation > 1,
            'precision="fp16"': self.scaler_.is_enabled(),
        }
        for name in (name for name, is_lost in lost.items() if is_lost):
            raise RuntimeError(
                f"{name} needs its own train_step_single; another class has replaced it. With "
                "accelerate, use sklcam.training.AcceleratedCAMClassifier."
            )

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Add up the gradient of a batch, part by part."""
        images, y = unpack_data(batch)
        n_parts = min(self.batch_accumulation, len(images))
        self.parts_, steps = [], []
        for some, labels in zip(images.tensor_split(n_parts), y.tensor_split(n_parts), strict=True):
            self.parts_.append(Part(len(some) / len(images)))
            steps.append(super().train_step_single((some, labels), **fit_params))
            self._train_postponed(self.parts_[-1])
        self._complete_gradient()
        for name in self._optimizers:  # so that callbacks see gradients as they are
            self.scaler_.unscale_(getattr(self, f"{name}_"))
        terms = [part.share * part.terms.total.detach() for part in self.parts_ if part.terms]
        return {
            "loss": torch.stack(terms).sum(),
            "y_pred": torch.cat([step["y_pred"].detach() for step in steps]),
        }

    def _complete_gradient(self) -> None:
        """Do nothing: the batch is whole. Processes that share one put their gradients together."""

    def _step_optimizer(self, step_fn: Any) -> None:
        if not self.scaler_.is_enabled():
            super()._step_optimizer(step_fn)
            return
        step_fn()
        for name in self._optimizers:
            self.scaler_.step(getattr(self, f"{name}_"))
        self.scaler_.update()

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.precision == "fp32" or not self.in_step_:
            return super().infer(x, **fit_params)
        with torch.autocast(x.device.type, _PRECISIONS[self.precision]):
            return at_least_float32(super().infer(x, **fit_params))

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        self.parts_ = [Part()]
        with self._taped(trunk=False):
            step = super().validation_step(batch, **fit_params)
        self._record_terms("valid")
        return {name: value.detach() for name, value in step.items()}

    def get_loss(
        self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        cross_entropy = super().get_loss(y_pred, y_true, X=X, training=training)
        alpha, beta = self._weight("alpha"), self._weight("beta")
        loss = ConsistentCAMLoss(alpha, beta, self.p, self.gradient_sizes_)
        tape = getattr(self, "tape_", None)
        explained: dict[str, Any] = {}
        if tape is not None and (alpha or beta):
            explained = self._maps(tape, y_pred, X, training, compare=bool(alpha))
        terms = loss(cross_entropy, **explained)
        part = self.parts_[-1]
        part.terms = terms
        if training and explained:
            part.signs = signs_of_collapse(y_pred, y_true, explained["maps"])
        total = part.share * terms.total
        return self.scaler_.scale(total) if training else total

    def _weight(self, name: str) -> Weight:
        """Return alpha or beta in this epoch."""
        weight = getattr(self, name)
        if isinstance(weight, Balanced) or not callable(weight):
            return weight
        epoch = max(0, len(self.history) - 1)
        found = weight(epoch)
        check_weight(f"What {name} returns for epoch {epoch}", found)
        return found

    def _maps(
        self, tape: Tape, logits: Tensor, images: Tensor, training: bool, *, compare: bool
    ) -> dict[str, Any]:
        """Explain the images and, to compare them, a view of each."""
        predicted = logits.argmax(dim=1)
        size = (images.shape[-2], images.shape[-1])
        explained = {
            "maps": self._explain_recorded(tape, logits, predicted, training),
            "size": size,
            "activations": tape.activations if training else None,
            "scale": self.scaler_.scale if self.scaler_.is_enabled() else None,
        }
        if not compare:
            return explained
        generator = getattr(self, "generator_" if training else "valid_generator_", None)
        sampler = self.views or ViewSampler()
        views = sampler(len(images), size=size, generator=generator).to(images.device)
        view_images = views(images)
        postpone = training and self.memory == "low"
        states = self._generator_states() if postpone else None
        with _statistics_kept(self.module_), tape.cut() if postpone else nullcontext():
            view_logits = self.infer(view_images)
        if states is not None:
            self.parts_[-1].postponed = Postponed(view_images, tape.activations, states)
        shown = predicted if self.view_target == "shared" else view_logits.argmax(dim=1)
        maps_of_view = self._explain_recorded(tape, view_logits, shown, training)
        return {**explained, "maps_of_view": maps_of_view, "views": views}

    def _explain_recorded(
        self, tape: Tape, logits: Tensor, classes: Tensor, create_graph: bool
    ) -> Tensor:
        scores, to_grid = logits.gather(1, classes[:, None])[:, 0], self.target_layer_.to_grid
        if tape.activations.dtype == torch.float16:
            # A score's gradient at one of many positions is too small for it. Maps are scaled.
            scores = scores * to_grid(tape.activations).shape[-2:].numel()
        phi = GradCAM(relu=False)
        return phi(scores, tape.activations, to_grid=to_grid, create_graph=create_graph)

    @contextmanager
    def _taped(self, *, trunk: bool) -> Iterator[None]:
        """Record the target layer for the length of a step, if the loss looks at maps."""
        recording: AbstractContextManager[Tape | None] = nullcontext()
        if self._trains_on_maps():
            recording = record(self.module_, self.target_layer_.of(self.module_), trunk=trunk)
        with recording as self.tape_:
            self.in_step_ = True
            try:
                yield
            finally:
                self.tape_, self.in_step_ = None, False

    def _train_postponed(self, part: Part) -> None:
        """Take the gradient of a view's activations back through the trunk, in a pass of its own.

        By now the graph of the images is gone. The pass sees the batch statistics and draws the
        dropout masks that the first one did.
        """
        postponed, part.postponed = part.postponed, None
        if postponed is None:
            return
        with (
            _statistics_kept(self.module_),
            self._generators_at(postponed.states),
            stopping_after(self.target_layer_.of(self.module_)),
        ):
            self.infer(postponed.images)
        assert self.tape_ is not None  # train_step has opened it
        activations = self.tape_.activations
        if activations.grad_fn is not None:  # something before the layer is trained
            activations.backward(postponed.activations.grad)

    def _record_terms(self, phase: str) -> None:
        # Once the step is done, so that reading the numbers does not hold up its backward pass.
        parts, self.parts_ = self.parts_, []
        sums = {}
        for i, name in enumerate(_TERMS, 1):
            values = [(part.share, part.terms[i]) for part in parts if part.terms is not None]
            known = [share * value.detach() for share, value in values if value is not None]
            if known:
                sums[f"{phase}_{name}"] = torch.stack(known).sum()
        for name in parts[0].signs:
            known = [part.share * part.signs[name] for part in parts]
            sums[f"{phase}_{name}"] = torch.stack(known).sum()
        # Together: each reading makes the host wait for the device.
        values_read = torch.stack([*sums.values()]).tolist() if sums else []
        for name, value in zip(sums, values_read, strict=True):
            self.history.record_batch(name, value)

    def _compiling(self) -> AbstractContextManager[Any]:
        # Blocks share their code, and each is compiled for itself: in training and evaluation, with
        # a graph and without, with statistics that are updated and that are not.
        if not self.compile:
            return nullcontext()
        return torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096)

    def _double_differentiable_attention(self) -> AbstractContextManager[Any]:
        # The fused kernels of attention have no second derivative.
        return sdpa_kernel(SDPBackend.MATH) if self._trains_on_maps() else nullcontext()

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
        return super().predict_proba(X)

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
        probabilities = self.predict_proba(X)
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
        encode_labels(y, self.classes_)
        return super().score(X, y, sample_weight)

    def probabilities(self, output: Tensor) -> Tensor:
        return self._get_predict_nonlinearity()(output)


@dataclass(frozen=True)
class Postponed:
    """A view whose trunk is trained once the images' graph is gone."""

    images: Tensor
    activations: Tensor
    states: list[Tensor]


@dataclass
class Part:
    """One part of a batch: its share of the images, its terms, what is left to do for it.

    And how its maps look, for :class:`CollapseWarning`.
    """

    share: float = 1.0
    terms: LossTerms | None = None
    postponed: Postponed | None = None
    signs: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Normalise by the batch as ever, but leave batch normalisation's running statistics alone.

    They are for prediction, so they must be those of images: a view is a crop of a crop, which no
    image to be predicted is.
    """
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


class LabelDecoder:
    """Turn class indices back into labels, for skorch's scoring callbacks."""

    def __init__(self, classes: np.ndarray):
        self.classes = classes

    def __call__(self, indices: Any) -> np.ndarray:
        return self.classes[to_numpy(indices)]
