"""The skorch net that trains on images, for any task.

It reads images from any form of X, builds a network from its name and finds the layer to explain.
A subclass determines what is learned: by its loss, and by the number of outputs that it needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from inspect import signature
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    Options,
    StrOptions,
    validate_parameter_constraints,
)
from skorch.dataset import unpack_data
from torch import Tensor, nn

from sklcam._callers import level_of_user
from sklcam.images.dataset import n_images
from sklcam.images.labels import given_labels, known_labels, label_names, names_of_classes
from sklcam.images.views import ViewSampler
from sklcam.networks.construction import build_model, construct
from sklcam.networks.dry_run import check_output, exclusive, generators_lock, left_as_found
from sklcam.networks.inputs import Inputs
from sklcam.networks.layer_search import check_positions, find_target_layer
from sklcam.networks.layers import TargetLayer
from sklcam.networks.own_normalization import with_own_normalization
from sklcam.networks.preprocessing import Origin
from sklcam.networks.readouts import Readout, readout
from sklcam.networks.sources import origin_of, origin_of_module
from sklcam.networks.weights import load_weights
from sklcam.training import _checks as checks
from sklcam.training._augmentation import Perturbation
from sklcam.training._data import (
    Annotations,
    Classes,
    TrainingImages,
    Validation,
    as_validation,
    with_annotations_beside,
)
from sklcam.training._devices import check_device
from sklcam.training._logging import LoggingNet
from sklcam.training._parameters import parameter_instead
from sklcam.training.adapter import NetAdapter

Module = str | nn.Module | Callable[..., nn.Module]
Batches = Iterable[Any] | None
StepFunction = Callable[..., dict[str, Tensor]]

_NOTHING_ELSE = Annotations()  # nothing beside images and labels


class ImageNeuralNet(LoggingNet):
    """A skorch net whose X are images.

    A subclass sets the parameters of ``_parameter_constraints`` in its ``__init__``, and says in
    ``n_outputs`` how wide the network's output is.

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
    origin_ : Origin
        What is known about the network from its source.
    preprocessing_ : Preprocessing
        How images become the network's input, and which source says so.
    class_names_ : ndarray of shape (n_classes,) or None
        The data set's names for the classes.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "module": [str, nn.Module, type, callable],
        "weights": [None, str, HasMethods(["__fspath__"])],
        "target_layer": [str, TargetLayer],
        "augment": [StrOptions({"auto"}), None, callable],
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "resize": [StrOptions({"stretch", "center_crop"}), None],
        "decode": [StrOptions({"exact", "fast"})],
        "mean": [StrOptions({"auto"}), Real, "array-like"],
        "std": [StrOptions({"auto"}), Real, "array-like"],
        "random_state": ["random_state"],
        "recalibrate": [StrOptions({"auto"}), "boolean"],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), Options(Integral, {-1})],
        "optimizer": [callable],
        "criterion": [callable],
        "train_split": [callable, None],
        "callbacks": [list, StrOptions({"disable"}), None],
    }
    _outputs_are: ClassVar[str] = "classes"

    classes_inferred_: np.ndarray
    n_channels_: int
    origin_: Origin
    recipe_: dict[str, Any] | None  # by which a network with a name is built, wherever it is
    target_layer_: TargetLayer
    weights: str | PathLike[str] | None

    @property
    def n_outputs(self) -> int:
        """How many outputs the network must have, once the classes are known."""
        raise NotImplementedError

    def _trains_on_maps(self) -> bool:
        """Whether the loss uses explanations."""
        return False

    def _validates_masks(self) -> bool:
        """Whether the loss on validation images uses masks."""
        return False

    # Fitting

    def fit(self, X: Any, y: Any = None, *, validation: Any = None, **fit_params: Any) -> Self:
        """Train from the start, or continue with ``warm_start=True``.

        Parameters
        ----------
        X : images
            uint8 or float arrays in [0, 1] of shape (n, height, width) or (n, height, width,
            channels); tensors (n, channels, height, width); lists or columns of file paths, PIL
            images or encoded images, of any sizes, read as they are needed; a torch or Hugging Face
            data set of images. See :class:`~sklcam.images.ImageDataset`.
        y : array-like of shape (n_images,)
            Labels of any kind. They may be left out for a data set that holds them: see
            :func:`~sklcam.images.dataset_labels`.
        validation : (X_val, y_val), dict, data set or None, default=None
            Images to validate on after each epoch, and their labels, in any form of X and y, or as
            ``{"X": X_val, "y": y_val}``; a data set that has its labels may come alone.
        **fit_params
            As in skorch.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X, y or a parameter is not valid. This is raised before any training.
        """
        annotations = Annotations(validation=validation)
        return self._fit(X, y, self._without_weights(fit_params), annotations)

    def _without_weights(self, fit_params: dict[str, Any]) -> dict[str, Any]:
        if fit_params.pop("sample_weight", None) is not None:
            raise ValueError(
                f"{type(self).__name__} does not take sample_weight, as its loss is not a mean "
                "over images. To draw some images more often, give an iterator_train__sampler."
            )
        return fit_params

    def _fit(
        self,
        X: Any,
        y: Any,
        fit_params: dict[str, Any],
        annotations: Annotations = _NOTHING_ELSE,
    ) -> Self:
        continues = self.warm_start and self.initialized_
        checks.check_fit_params(fit_params)
        with self._training_on(X, y, annotations, known=continues, classes=self.classes) as (
            data,
            labels,
        ):
            self._is_whole = not continues
            super().fit(data, labels, **fit_params)
            self._finish(is_whole=True)
        return self

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        classes: Classes = None,
        *,
        validation: Any = None,
        **fit_params: Any,
    ) -> Self:
        """Train for ``max_epochs`` more, without starting over.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        classes : array-like or None, default=None
            All labels, including those of later calls; needed in the first call if ``y`` lacks
            some.
        validation
            As in :meth:`fit`.
        **fit_params
            As in skorch.

        Returns
        -------
        self
        """
        annotations = Annotations(validation=validation)
        return self._partial_fit(X, y, classes, self._without_weights(fit_params), annotations)

    def _partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Classes,
        fit_params: dict[str, Any],
        annotations: Annotations = _NOTHING_ELSE,
    ) -> Self:
        if isinstance(X, TrainingImages):  # skorch's fit comes here with what ours has checked
            return super().partial_fit(X, y, **fit_params)
        checks.check_fit_params(fit_params)
        with self._training_on(X, y, annotations, known=self.initialized_, classes=classes) as (
            data,
            labels,
        ):
            super().partial_fit(data, labels, **fit_params)
            self._finish(is_whole=False)
        return self

    @contextmanager
    def _training_on(
        self, X: Any, y: Any, annotations: Annotations, *, known: bool, classes: Classes
    ) -> Iterator[tuple[TrainingImages, np.ndarray]]:
        """Check everything that is given, then let the block train on it.

        A network that fails in its first fit must not pass for a fitted one.
        """
        before = vars(self).copy()
        try:
            if not known:
                self._look_up_origin()
            self._check_parameters()
            validates = checks.check_validates(annotations.validation, self.train_split)
            checks.check_callbacks(self._given_callbacks(), validates=validates)
            training = self._check_training_data(X, y, annotations, known=known, classes=classes)
        except Exception:  # an earlier fit's classes go with its network
            self.__dict__ = before
            raise
        try:
            with ExitStack() as stack:
                # Torch's generators and flags belong to the process, so fits in threads take turns.
                # The network is locked first, in the same order as explainers lock both.
                if known:
                    stack.enter_context(exclusive(self.module_))
                stack.enter_context(generators_lock)
                stack.enter_context(torch.inference_mode(False))  # the mode has no gradients
                yield training
        except Exception:
            if not known:
                self.initialized_ = False
                for name in ("module_", "criterion_", "optimizer_"):
                    self.__dict__.pop(name, None)
            raise
        finally:
            for name in ("_watch", "_is_whole"):
                self.__dict__.pop(name, None)

    def initialize(self) -> Self:
        """Build the network, the optimizer and the callbacks; ``fit`` does this by itself.

        Raises
        ------
        NotFittedError
            If the classes are not known yet.
        """
        return super().initialize()

    def check_is_fitted(self, attributes: Any = None, *args: Any, **kwargs: Any) -> None:
        """Raise a NotFittedError before ``fit``.

        Parameters
        ----------
        attributes, *args, **kwargs
            As in skorch.
        """
        if not args:
            kwargs.setdefault("msg", "This %(name)s is not fitted yet; call fit first.")
        super().check_is_fitted(attributes, *args, **kwargs)

    @property
    def class_names_(self) -> np.ndarray | None:
        """The data set's names for the classes, if the labels are numbers."""
        names = self.origin_.class_names if "classes_inferred_" in vars(self) else None
        is_theirs = names is not None and len(names) == len(self.classes_inferred_)
        return np.array(names) if is_theirs else None

    def _look_up_origin(self) -> None:
        """Find out what is known about the network before it is built."""
        options = self.get_params_for("module")
        self.origin_ = origin_of_module(self.module, self.weights, options.get("config"))

    # Checks before training

    def _check_parameters(self) -> None:
        checks.check_train_split(self.train_split)
        own = {name: vars(self)[name] for name in self._parameter_constraints}
        validate_parameter_constraints(
            self._parameter_constraints, own, caller_name=type(self).__name__
        )
        # skorch finds misspelt parameters too, but only after images are read and a network is
        # built.
        known = set(signature(type(self).__init__).parameters)
        for name in sorted(self._params_to_validate - known):
            if not name.startswith((*self.prefixes_, *self._module_like, "optimizer")):
                raise ValueError(
                    f"{type(self).__name__} has no parameter {name!r}. "
                    f"{parameter_instead(name, known)}"
                )
        checks.check_axes(self.input_size, self.module, self.augment)  # input_size is checked too
        sampler = type(self.augment)
        if issubclass(sampler, ViewSampler) and sampler.__call__ is not ViewSampler.__call__:
            raise ValueError(
                "augment crops images while they are read, which needs a plain ViewSampler; got "
                f"a {sampler.__name__}, which has its own __call__."
            )
        check_device(vars(self)["device"])

    def _check_training_data(
        self, X: Any, y: Any, annotations: Annotations, *, known: bool, classes: Classes
    ) -> tuple[TrainingImages, np.ndarray]:
        """Check X and y, learn classes and channels unless known, and encode y."""
        n_images(X, self.input_size)  # an error if X is empty or not images
        names = label_names(X, y)
        if known:
            y = known_labels(X, y, self.classes_inferred_, self.class_names_)
        else:
            y = given_labels(X, y)
            self._settle_task(y)
        y = self._task.read(y)
        if not known:
            self.classes_inferred_ = self._task.learn(y, classes)
            # The source's names belong to the classes of its own weights.
            names = names_of_classes(names, self.classes_inferred_) if self._task.excludes else None
            self.origin_ = replace(self.origin_, class_names=names)
        elif classes is not None:
            learned = self._task.learn(y, classes)
            if not np.array_equal(learned, self.classes_inferred_):
                raise ValueError(
                    f"classes={learned.tolist()} differs from the classes of the first call, "
                    f"{self.classes_inferred_.tolist()}. Leave classes out, or give the same ones."
                )
        options = self.image_options()
        options["n_channels"] = self.n_channels_ if known else None
        labels = self._task.encode(y, self.classes_inferred_)
        self._class_weights = self._weigh_classes(labels)
        annotations = replace(annotations, class_weights=self._class_weights)
        data = TrainingImages(X, labels, annotations, **options)
        self._normalize(torch.zeros(1, data.n_channels, 1, 1))  # mean and std must fit
        self.n_channels_ = data.n_channels
        if annotations.validation is not None:
            given = as_validation(annotations.validation)
            if not self._validates_masks():
                checks.warn_of_masks(given)
                given = Validation(given.X, given.y)
            with checks.naming("validation"):
                data.validation = self._prepare_validation(*given)
        # Splits use the labels as given; several labels per image may have any form.
        return data, labels if labels.ndim > 1 else y

    def _weigh_classes(self, labels: np.ndarray) -> np.ndarray | None:
        """Return the weight of each class, unless all are equal."""
        return None

    def _settle_task(self, y: Any) -> None:
        """Do nothing: the task is one class per image."""

    # Network, callbacks

    def initialize_module(self) -> Self:
        if not hasattr(self, "n_channels_"):
            raise NotFittedError(
                f"This {type(self).__name__} does not know its classes and channels yet. Call fit, "
                "or partial_fit with classes=, before initialize or load_params."
            )
        if self._is_restoring:  # what fit found out is known
            self.module_ = self._build_module()
            return self
        with self._own_randomness():
            module = self._build_module()
        sample = torch.zeros(1, self.n_channels_, *self.input_size)
        self._check_output(module, sample)
        self._look_at_inputs(module, sample)
        self.target_layer_ = find_target_layer(module, self.target_layer, sample=sample)
        self._check_grid(module, sample)
        self.module_ = module
        return self

    def _look_at_inputs(self, module: nn.Module, sample: Tensor) -> None:
        """Find out whether the network normalises images itself, if no source says how."""
        if self.origin_.is_known or not (isinstance(self.mean, str) or isinstance(self.std, str)):
            return
        with left_as_found(module):
            preprocessing = with_own_normalization(self.origin_.preprocessing, module, sample)
        self.origin_ = replace(self.origin_, preprocessing=preprocessing)

    def _check_output(self, module: nn.Module, sample: Tensor) -> None:
        check_output(module, sample, self.n_outputs, name=self._outputs_are)

    def restore(self, attributes: Mapping[str, Any]) -> Self:
        """Initialize as ``fit`` did, from what it learned.

        The caller still has to replace the network's weights. Nothing is downloaded or tried out,
        and no seed is drawn.

        Parameters
        ----------
        attributes : mapping of str to object
            The fitted attributes, by name.

        Returns
        -------
        self
        """
        self.__dict__.update(attributes)
        self._check_parameters()
        weights, self.weights, self._is_restoring = self.weights, None, True
        try:
            with generators_lock, torch.random.fork_rng(self._cuda_devices()):
                self.initialize()
        finally:
            self.weights = weights
            del self._is_restoring
        self.__dict__.update(attributes)  # initialize may have drawn numbers
        return self

    def _check_grid(self, module: nn.Module, sample: Tensor) -> None:
        """Refuse to train on maps that are all constant; otherwise only warn about them."""
        try:
            check_positions(module, self.target_layer_, sample)
        except ValueError as error:
            if self._trains_on_maps():
                raise
            warnings.warn(str(error), stacklevel=level_of_user())

    def _module_options(self) -> dict[str, Any]:
        return self.get_params_for("module")

    def _build_module(self) -> nn.Module:
        options = self._module_options()
        sizes = {"n_classes": self.n_outputs, "in_channels": self.n_channels_}
        if isinstance(self.module, str):
            if self._is_restoring and self.recipe_ is not None:
                return build_model(**self.recipe_)
            height, width = self.input_size
            module = build_model(
                self.module, image_size=(height, width), weights=self.weights, **sizes, **options
            )
            self.recipe_ = module.built_as  # type: ignore[assignment]
            return module
        module, self.recipe_ = construct(self.module, **sizes, **options), None
        if not self.origin_.is_known:  # images are opened by now, but not normalised
            found = origin_of(module).preprocessing
            preprocessing = replace(self.origin_.preprocessing, mean=found.mean, std=found.std)
            preprocessing = replace(
                preprocessing, channel_order=found.channel_order, source=found.source
            )
            self.origin_ = replace(self.origin_, preprocessing=preprocessing)
        if self.weights is None:
            return module
        if not Path(self.weights).is_file():
            raise ValueError(
                f"weights={str(self.weights)!r} is not a file. Torchvision's weights need a "
                "torchvision name; your own module takes the path of a state dict."
            )
        return load_weights(module, self.weights)

    # Steps

    def run_single_epoch(
        self,
        iterator: Iterable[Any] | None,
        training: bool,
        prefix: str,
        step_fn: StepFunction,
        **fit_params: Any,
    ) -> None:
        batches = None if iterator is None else with_annotations_beside(iterator)
        if not (training and self._has_transform):
            super().run_single_epoch(batches, training, prefix, step_fn, **fit_params)
            return
        self._perturbation = Perturbation(self.augment)
        try:
            super().run_single_epoch(batches, training, prefix, step_fn, **fit_params)
            self._perturbation.check()
        finally:
            del self._perturbation

    @property
    def _has_transform(self) -> bool:
        return callable(self.augment) and not isinstance(self.augment, ViewSampler)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        return super().train_step(self._ready(batch, training=True), **fit_params)

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        return super().validation_step(self._ready(batch, training=False), **fit_params)

    def _ready(self, batch: Any, *, training: bool) -> tuple[Tensor, Any]:
        """Return images as the network takes them, and labels, on the device."""
        given, y = unpack_data(batch)
        annotations = getattr(batch, "annotations", {})
        images, y = self._prepare(given), self._on_device(y)
        if training and self._has_transform:
            images = images.clone() if images is given else images  # augment may write into it
            perturb = getattr(self, "_perturbation", None) or Perturbation(self.augment)
            if self._keeps_images:
                annotations = {**annotations, "augmented": perturb(images)}
            else:
                images = perturb(images)
        self._annotate(y, {name: self._on_device(each) for name, each in annotations.items()})
        return self._normalize(images), y

    def _annotate(self, y: Tensor, annotations: dict[str, Tensor]) -> None:
        """Do nothing with a batch's annotations: they exist only if given to ``fit``."""

    def evaluation_step(self, batch: Any, training: bool = False) -> Any:
        self.check_is_fitted()
        images, y, *_ = batch  # annotations are for training
        with exclusive(self.module_):  # another thread may explain it and restore its mode
            return super().evaluation_step((self._normalize(self._prepare(images)), y), training)

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        # Some networks write into their input, and some return auxiliary outputs after the first.
        output = Inputs(x).call(self.module_, partial(super().infer, **fit_params))
        if self.module_.training and torch.is_grad_enabled() and not output.requires_grad:
            checks.check_learns(self.module_)
        return output.reshape(1) if output.ndim == 0 else output  # one image, squeezed

    # Inference

    def as_adapter(self) -> NetAdapter:
        """Return the adapter through which explainers see this net."""
        return NetAdapter(self)

    @property
    def adapter(self) -> NetAdapter:
        """The adapter through which explainers see this net, once it is fitted."""
        self.check_is_fitted()
        return NetAdapter(self)

    @property
    def readout(self) -> Readout:
        """How the network's output is read."""
        return readout(self._task.name)

    # What scikit-learn asks

    @property
    def classes_(self) -> np.ndarray:
        """The labels, sorted."""
        return self.classes_inferred_

    def __sklearn_is_fitted__(self) -> bool:
        return "module_" in vars(self)  # skorch 1.3 does not report it

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags
