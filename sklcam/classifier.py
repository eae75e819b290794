"""The classifier that trains with consistent explanations, as a skorch net.

Each override is the narrowest of skorch's hooks that does the job: :meth:`get_dataset` makes images
of any X, :meth:`train_step` and :meth:`validation_step` open the tape, :meth:`get_loss` adds the
terms on the explanations. Everything else is skorch's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from skorch import NeuralNetClassifier
from skorch.callbacks import EpochTimer, LRScheduler, PassthroughScoring, PrintLog, ProgressBar
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import unpack_data
from skorch.utils import to_device, to_numpy
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Subset

from sklcam.cam import GradCAM, min_max, target_scores, upsample
from sklcam.explainer import ExplainerMixin, encode_labels
from sklcam.images import (
    ImageDataset,
    dataset_labels,
    default_statistics,
    n_images,
    normalize,
)
from sklcam.loss import ConsistentCAMLoss, LossTerms, check_p
from sklcam.models import (
    TargetLayer,
    build_model,
    check_output,
    construct,
    find_target_layer,
    load_weights,
)
from sklcam.tape import Tape, record
from sklcam.views import ViewSampler

_TERMS = ("ce", "consistency", "sparsity")


class TrainingImages(ImageDataset, SkorchDataset):
    """Images with encoded labels, in the form that skorch's callbacks know how to take apart."""

    def __init__(self, X: Any, y: Any, **options: Any):
        ImageDataset.__init__(self, X, y, **options)
        self.X, self.y = X, y


class SilentableProgressBar(ProgressBar):
    """skorch's progress bar, which ``verbose=0`` silences as it does the log."""

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        if net.verbose:
            super().on_epoch_begin(net, **kwargs)

    def on_batch_end(self, net: Any, **kwargs: Any) -> None:
        if net.verbose:
            super().on_batch_end(net, **kwargs)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        if net.verbose:
            super().on_epoch_end(net, **kwargs)


class ConsistentCAMClassifier(ExplainerMixin, NeuralNetClassifier):
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
        otherwise the last layer with a spatial output. A :class:`sklcam.models.TargetLayer` says
        how a layer's tokens form a grid.
    alpha : float >= 0, default=1.0
        Weight of the inconsistency. With ``alpha=0`` and ``beta=0`` this is a plain classifier, at
        a plain classifier's cost.
    beta : float >= 0, default=1e-6
        Weight of the norm. The norm grows with the number of pixels: the paper's 1e-5 to 1e-7 are
        for 224 x 224.
    p : float, 0 or >= 1, default=1
        Which norm.
    view_target : {"predicted", "shared"}, default="predicted"
        The class explained on the view: the network's prediction there, or that on the image.
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
        ``warm_start``, ``iterator_valid__num_workers`` and so on.

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
        where there is a validation split.

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

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "module": [str, nn.Module, type, callable],
        "weights": [None, str, HasMethods(["__fspath__"])],
        "target_layer": [str, TargetLayer],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "beta": [Interval(Real, 0, None, closed="left")],
        "p": [Real],
        "view_target": [StrOptions({"predicted", "shared"})],
        "augment": [StrOptions({"auto"}), None, callable],
        "views": [None, ViewSampler],
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "resize": [StrOptions({"stretch", "center_crop"})],
        "mean": [StrOptions({"auto"}), Real, "array-like"],
        "std": [StrOptions({"auto"}), Real, "array-like"],
        "random_state": ["random_state"],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="left")],
    }

    n_channels_: int
    callbacks_: list[tuple[str, Any]]
    tape_: Tape | None
    terms_: LossTerms | None

    def __init__(
        self,
        module: Any = "resnet18",
        *,
        weights: Any = None,
        target_layer: str | TargetLayer = "auto",
        alpha: float = 1.0,
        beta: float = 1e-6,
        p: float = 1,
        view_target: str = "predicted",
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

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> ConsistentCAMClassifier:
        """Train from the start (or on, with ``warm_start=True``).

        Parameters
        ----------
        X : images
            uint8 or float arrays in [0, 1] of shape (n, height, width) or (n, height, width,
            channels); tensors (n, channels, height, width); lists of file paths or PIL images, of
            any sizes, read as they are needed; a torch data set of images.
        y : array-like of shape (n_images,)
            Labels of any kind. May be left out for a data set that has ``targets``.
        **fit_params
            As in skorch.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X, y or a parameter does not fit; before any training.
        """
        self._check_parameters()
        goes_on = self.warm_start and self.initialized_
        data, y = self._check_training_data(X, y, known=goes_on, classes=self.classes)
        with self._unfitted_by_errors(unless=goes_on):
            return super().fit(data, y, **fit_params)

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any
    ) -> ConsistentCAMClassifier:
        """Train for ``max_epochs`` more, without starting anew.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        classes : array-like or None, default=None
            All labels that will ever come; needed in the first call where ``y`` lacks some.
        **fit_params
            As in skorch.

        Returns
        -------
        self
        """
        if isinstance(X, TrainingImages):  # fit has checked them
            return super().partial_fit(X, y, **fit_params)
        self._check_parameters()
        goes_on = self.initialized_
        data, y = self._check_training_data(X, y, known=goes_on, classes=classes)
        with self._unfitted_by_errors(unless=goes_on):
            return super().partial_fit(data, y, **fit_params)

    def initialize(self) -> ConsistentCAMClassifier:
        """Build the network, the optimizer and the callbacks; ``fit`` does so by itself.

        Raises
        ------
        NotFittedError
            If the classes are not known yet.
        """
        self.random_states_ = self._seed()
        return super().initialize()

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        with self._own_randomness(), self._double_differentiable_attention():
            return super().fit_loop(X, y, epochs, **kwargs)

    @contextmanager
    def _unfitted_by_errors(self, *, unless: bool) -> Iterator[None]:
        """Keep a network that failed in its first fit from passing for a fitted one."""
        try:
            yield
        except Exception:
            if not unless:
                self.initialized_ = False
                for name in ("module_", "criterion_", "optimizer_"):
                    self.__dict__.pop(name, None)
            raise

    # Checks, at the door

    def _check_parameters(self) -> None:
        own = {name: vars(self)[name] for name in self._parameter_constraints}
        validate_parameter_constraints(
            self._parameter_constraints, own, caller_name=type(self).__name__
        )
        check_p(self.p)
        if self.compile and (self.alpha or self.beta):
            raise ValueError(
                "compile=True does not record activations; use it with alpha=0 and beta=0 only."
            )
        if self.alpha and min(self._input_size()) < 11:
            raise ValueError(
                f"alpha > 0 compares maps by SSIM, in windows of 11 pixels; got image_size="
                f"{self.image_size}. Use a larger image_size: small images are resized to it."
            )

    def _check_training_data(
        self, X: Any, y: Any, *, known: bool, classes: Any
    ) -> tuple[TrainingImages, np.ndarray]:
        """Check X and y, learn classes and channels unless they are known, encode y."""
        n_images(X)  # an error if X is empty or no images at all
        y = _check_labels(X, y)
        learned = np.asarray(self.classes_) if known else _learn_classes(y, classes)
        if known and classes is not None and not np.array_equal(np.unique(classes), learned):
            raise ValueError(
                f"classes={np.unique(classes).tolist()} is not the same as on the first call: "
                f"{learned.tolist()}."
            )
        options = self._image_options()
        options["n_channels"] = self.n_channels_ if known else None
        data = TrainingImages(X, encode_labels(y, learned), **options)
        self.classes_inferred_, self.n_channels_ = learned, data.n_channels
        return data, y

    def _image_options(self) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "resize": self.resize,
            "n_channels": getattr(self, "n_channels_", None),
        }

    def check_data(self, X: Any, y: Any = None) -> None:
        """Do nothing: data is checked where it enters."""

    # Data

    def get_dataset(self, X: Any, y: Any = None) -> ImageDataset:
        if isinstance(X, ImageDataset):
            return X
        return ImageDataset(X, y, **self._image_options())

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:
        train, valid = super().get_split_datasets(X, y, **fit_params)
        inner = valid
        while isinstance(inner, Subset):
            inner = inner.dataset
        if valid is not None and not isinstance(inner, ImageDataset):  # a predefined split
            valid = self._prepare_validation(valid)
        return train, valid

    def _prepare_validation(self, data: Any) -> TrainingImages:
        X, y = (data.X, data.y) if isinstance(data, SkorchDataset) else (data, None)
        y = encode_labels(_check_labels(X, y), self.classes_)
        return TrainingImages(X, y, **self._image_options())

    def get_iterator(self, dataset: Any, training: bool = False) -> Iterable:
        iterator = super().get_iterator(dataset, training=training)
        if not training and isinstance(iterator, DataLoader) and iterator.generator is None:
            # A loader draws a seed for its workers even if it has none and does not shuffle.
            iterator.generator = torch.Generator().manual_seed(0)
        return iterator

    def _prepare(self, images: Tensor) -> Tensor:
        """Bring a batch to the device, as floats in [0, 1]."""
        return normalize(to_device(images, self.device), 0.0, 1.0)

    def _normalize(self, images: Tensor) -> Tensor:
        mean, std = default_statistics(images.shape[1])
        return normalize(
            images,
            mean if isinstance(self.mean, str) else self.mean,
            std if isinstance(self.std, str) else self.std,
        )

    # Network, criterion, optimizer, callbacks

    def initialize_module(self) -> ConsistentCAMClassifier:
        if not hasattr(self, "n_channels_"):
            raise NotFittedError(
                f"This {type(self).__name__} does not know its classes and channels yet; call fit, "
                "or partial_fit with classes=, before initialize or load_params."
            )
        with self._own_randomness():
            module = self._build_module()
        sample = torch.zeros(1, self.n_channels_, *self._input_size())
        check_output(module, sample, len(self.classes_))
        self.target_layer_ = find_target_layer(module, self.target_layer, sample=sample)
        self._check_grid(module, sample)
        self.module_ = module
        return self

    def _check_grid(self, module: nn.Module, sample: Tensor) -> None:
        """Refuse to train on maps of a single position; warn where they are only looked at."""
        layer = self.target_layer_
        with record(module.eval(), layer.of(module)) as tape:
            module(sample)
            rows, columns = layer.to_grid(tape.activations).shape[-2:]
        if rows * columns > 1:
            return
        message = (
            f"The target layer {layer.name!r} has a single position for images of "
            f"{sample.shape[-2]} x {sample.shape[-1]} pixels, so that every map is constant; use a "
            "larger image_size or an earlier target_layer."
        )
        if self.alpha or self.beta:
            raise ValueError(message)
        warnings.warn(message, stacklevel=2)

    def _build_module(self) -> nn.Module:
        options = self.get_params_for("module")
        sizes = {"n_classes": len(self.classes_), "in_channels": self.n_channels_}
        if isinstance(self.module, str):
            size = self._input_size()
            return build_model(
                self.module, image_size=size, weights=self.weights, **sizes, **options
            )
        module = construct(self.module, **sizes, **options)
        if self.weights is None:
            return module
        if not Path(self.weights).is_file():
            raise ValueError(
                f"weights={str(self.weights)!r} is not a file. Torchvision's weights go with a "
                "torchvision name; a module of your own takes the path of a state dict."
            )
        return load_weights(module, self.weights)

    def _input_size(self) -> tuple[int, int]:
        if isinstance(self.image_size, tuple | list):
            height, width = self.image_size
            return int(height), int(width)
        return int(self.image_size), int(self.image_size)

    def get_params_for_optimizer(self, prefix: str, named_parameters: Any) -> tuple[Any, dict]:
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        if self.optimizer is torch.optim.SGD:
            kwargs = {"momentum": 0.9, "weight_decay": 1e-4, **kwargs}
        return args, kwargs

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        losses = [
            PassthroughScoring(f"{phase}_{term}", on_train=phase == "train")
            for phase in ("train", "valid")
            for term in ("loss", *_TERMS)
        ]
        scheduled = any(_is_scheduler(callback) for callback in self._given_callbacks())
        schedule = None if scheduled else LRScheduler("StepLR", step_size=30, gamma=0.1)
        return [
            ("epoch_timer", EpochTimer()),
            *((loss.name, loss) for loss in losses),
            ("lr_scheduler", schedule),
            ("progress_bar", SilentableProgressBar()),
            ("print_log", PrintLog()),
        ]

    def _given_callbacks(self) -> Sequence[Any]:
        given = vars(self).get("callbacks")
        return given if isinstance(given, list | tuple) else ()

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

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        super().on_epoch_begin(net, **kwargs)
        # Every epoch is validated on the same views, so that the epochs can be compared.
        self.valid_generator_ = torch.Generator().manual_seed(self.random_states_["seed"])

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        super().on_train_end(net, **kwargs)
        self.__dict__.pop("valid_generator_", None)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        images, y = unpack_data(batch)
        images = self._normalize(self._augment(self._prepare(images)))
        with self._taped(trunk=True):
            step = super().train_step((images, y), **fit_params)
        self._record_terms("train")
        return step

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        images, y = unpack_data(batch)
        images = self._normalize(self._prepare(images))
        with self._taped(trunk=False):
            step = super().validation_step((images, y), **fit_params)
        self._record_terms("valid")
        return {name: value.detach() for name, value in step.items()}

    def evaluation_step(self, batch: Any, training: bool = False) -> Any:
        self.check_is_fitted()
        images, y = unpack_data(batch)
        return super().evaluation_step((self._normalize(self._prepare(images)), y), training)

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        output = super().infer(x, **fit_params)
        # Some networks return their auxiliary outputs too; the first one is the prediction.
        return output[0] if isinstance(output, tuple) else output

    def get_loss(
        self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        cross_entropy = super().get_loss(y_pred, y_true, X=X, training=training)
        loss = ConsistentCAMLoss(self.alpha, self.beta, self.p)
        tape = getattr(self, "tape_", None)
        maps = () if tape is None else self._maps(tape, y_pred, X, training)
        self.terms_ = terms = loss(cross_entropy, *maps)
        return terms.total

    def _maps(
        self, tape: Tape, logits: Tensor, images: Tensor, training: bool
    ) -> tuple[Tensor | None, ...]:
        """Explain the images and, where the loss compares them, a view of each."""
        predicted = logits.argmax(dim=1)
        maps = self._explain_recorded(tape, logits, predicted, images, training)
        if not self.alpha:
            return maps, None, None
        generator = getattr(self, "generator_" if training else "valid_generator_", None)
        sampler = self.views or ViewSampler()
        view = sampler(len(images), size=(images.shape[-2], images.shape[-1]), generator=generator)
        view = view.to(images.device)
        view_images = view(images)
        with _statistics_kept(self.module_):
            view_logits = self.infer(view_images)
        shown = predicted if self.view_target == "shared" else view_logits.argmax(dim=1)
        maps_of_view = self._explain_recorded(tape, view_logits, shown, view_images, training)
        return maps, view(maps), maps_of_view

    def _explain_recorded(
        self, tape: Tape, logits: Tensor, classes: Tensor, images: Tensor, create_graph: bool
    ) -> Tensor:
        maps = GradCAM(relu=False)(
            target_scores(logits, classes),
            tape.activations,
            to_grid=self.target_layer_.to_grid,
            create_graph=create_graph,
        )
        return min_max(upsample(maps, (images.shape[-2], images.shape[-1])))

    def _augment(self, images: Tensor) -> Tensor:
        if self.augment is None:
            return images
        sampler = ViewSampler() if isinstance(self.augment, str) else self.augment
        if not isinstance(sampler, ViewSampler):
            return _check_augmented(sampler(images), images)
        size = (images.shape[-2], images.shape[-1])
        generator = getattr(self, "generator_", None)  # there while fitting
        return sampler(len(images), size=size, generator=generator)(images)

    @contextmanager
    def _taped(self, *, trunk: bool) -> Iterator[None]:
        """Record the target layer for the length of a step, if the loss looks at maps."""
        recording: AbstractContextManager[Tape | None] = nullcontext()
        if self.alpha or self.beta:
            recording = record(self.module_, self.target_layer_.of(self.module_), trunk=trunk)
        with recording as self.tape_:
            try:
                yield
            finally:
                self.tape_ = None

    def _record_terms(self, phase: str) -> None:
        # Once the step is done, so that reading the numbers does not hold up its backward pass.
        terms, self.terms_ = self.terms_, None
        assert terms is not None  # get_loss has just set it
        for name, value in zip(_TERMS, terms[1:], strict=True):
            if value is not None:
                self.history.record_batch(f"{phase}_{name}", value.item())

    def _double_differentiable_attention(self) -> AbstractContextManager:
        # The fused kernels of attention have no second derivative.
        return sdpa_kernel(SDPBackend.MATH) if self.alpha or self.beta else nullcontext()

    # Randomness: the estimator's own generators, swapped in for as long as they are needed

    def _seed(self) -> dict[str, Any]:
        seed = self.random_state
        if seed is None:
            seed = np.random.SeedSequence().generate_state(1, np.uint32)[0]
        elif not isinstance(seed, Integral):
            seed = seed.randint(2**31 - 1)
        seed = int(seed)
        (views_seed,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        with torch.random.fork_rng(self._cuda_devices()):
            torch.manual_seed(seed)
            return {
                "seed": seed,
                "global": torch.get_rng_state(),
                "cuda": [torch.cuda.get_rng_state(device) for device in self._cuda_devices()],
                "views": torch.Generator().manual_seed(int(views_seed) >> 1).get_state(),
            }

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        states = self.random_states_
        devices = self._cuda_devices()
        with torch.random.fork_rng(devices):
            torch.set_rng_state(states["global"])
            for device, state in zip(devices, states["cuda"], strict=False):
                torch.cuda.set_rng_state(state, device)
            self.generator_ = torch.Generator()
            self.generator_.set_state(states["views"])
            try:
                yield
            finally:
                self.random_states_ = {
                    "seed": states["seed"],
                    "global": torch.get_rng_state(),
                    "cuda": [torch.cuda.get_rng_state(device) for device in devices],
                    "views": self.generator_.get_state(),
                }
                del self.generator_

    def _cuda_devices(self) -> list[torch.device]:
        device = torch.device(self.device) if self.device is not None else torch.device("cpu")
        return [device] if device.type == "cuda" else []

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
        y = _check_labels(X, y)
        encode_labels(y, self.classes_)
        return super().score(X, y, sample_weight)

    def _image_dataset(self, X: Any) -> ImageDataset:
        return ImageDataset(X, **self._image_options())

    def _iter_dataset(self, dataset: ImageDataset) -> Iterator[Tensor]:
        for batch in self.get_iterator(dataset, training=False):
            images, _ = unpack_data(batch)
            yield self._normalize(self._prepare(images))

    def _forward(self, inputs: Tensor) -> Tensor:
        self._set_training(False)
        return self.infer(inputs)

    def probabilities(self, output: Tensor) -> Tensor:
        return self._get_predict_nonlinearity()(output)

    def _network(self) -> nn.Module:
        self.check_is_fitted()
        return self.module_

    # Parameters, devices, copies

    @property
    def classes_(self) -> np.ndarray:
        """The labels, sorted."""
        return self.classes_inferred_

    @property
    def device(self) -> Any:
        """The device in use: "auto" is resolved when it is read."""
        device = vars(self)["device"]
        if isinstance(device, str) and device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return device

    @device.setter
    def device(self, device: Any) -> None:
        self.__dict__["device"] = device

    def get_params(self, deep: bool = True, **kwargs: Any) -> dict[str, Any]:
        """Return the parameters, as scikit-learn does.

        Parameters
        ----------
        deep : bool, default=True

        Returns
        -------
        dict
        """
        params = super().get_params(deep=deep, **kwargs)
        params["device"] = vars(self)["device"]
        return {name: value for name, value in params.items() if not name.startswith("_")}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("module", "criterion"):  # parameters, also where they are instances
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def load_params(self, *args: Any, **kwargs: Any) -> None:
        stored = vars(self)["device"]
        try:
            super().load_params(*args, **kwargs)
        finally:
            if isinstance(stored, str) and stored == "auto":  # skorch writes what it resolved to
                self.__dict__["device"] = stored

    def __setstate__(self, state: dict[str, Any]) -> None:
        stored = state["device"]
        is_auto = isinstance(stored, str) and stored == "auto"
        if is_auto:
            state = {**state, "device": "cuda" if torch.cuda.is_available() else "cpu"}
        super().__setstate__(state)
        if is_auto:
            self.__dict__["device"] = "auto"

    def __deepcopy__(self, memo: dict[int, Any]) -> ConsistentCAMClassifier:
        # Not by way of pickling, which refuses functions and classes defined on the spot.
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return duplicate

    def __sklearn_is_fitted__(self) -> bool:
        return "module_" in vars(self)  # skorch 1.3 forgets to say so once it is

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


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


def _is_scheduler(callback: Any) -> bool:
    callback = callback[1] if isinstance(callback, tuple) else callback
    is_class = isinstance(callback, type) and issubclass(callback, LRScheduler)
    return is_class or isinstance(callback, LRScheduler)


def _check_labels(X: Any, y: Any) -> np.ndarray:
    y = dataset_labels(X) if y is None else y
    if y is None:
        raise ValueError(
            "requires y to be passed, but the target y is None: give one label per image (only a "
            "torch data set that has .targets brings its own)."
        )
    if isinstance(y, Tensor):
        y = y.detach().cpu().numpy()
    labels = column_or_1d(y, warn=True)
    check_classification_targets(labels)
    return labels


def _learn_classes(y: np.ndarray, classes: Any) -> np.ndarray:
    learned = np.unique(y if classes is None else np.asarray(classes))
    if len(learned) < 2:
        raise ValueError(
            f"A classifier needs at least two classes; got one class: {learned.tolist()}."
        )
    return learned


def _check_augmented(augmented: Any, images: Tensor) -> Tensor:
    if not isinstance(augmented, Tensor) or augmented.shape[:2] != images.shape[:2]:
        came = tuple(augmented.shape) if isinstance(augmented, Tensor) else type(augmented)
        raise ValueError(
            f"augment must return a tensor of as many images and channels as it was given, "
            f"{tuple(images.shape)}; it returned {came}."
        )
    return augmented
