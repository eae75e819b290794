"""The skorch net that trains on images, whatever it learns from them.

It makes images of any X, builds the network that a name stands for and finds the layer that is
explained, draws all its randomness from generators of its own, and resolves devices. What is
learned, a subclass says: by its loss, and by how many outputs the network needs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, Signature, signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    Options,
    StrOptions,
    validate_parameter_constraints,
)
from skorch import NeuralNet
from skorch.callbacks import EpochTimer, LRScheduler, PassthroughScoring, PrintLog, ProgressBar
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import unpack_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from sklcam._validation import check_size, suggestion
from sklcam.images.dataset import ImageDataset, n_images
from sklcam.images.labels import check_labels, encode_labels
from sklcam.images.normalization import normalize
from sklcam.images.views import ViewSampler
from sklcam.networks.construction import check_output, construct
from sklcam.networks.layer_search import find_target_layer
from sklcam.networks.layers import TargetLayer
from sklcam.networks.tape import record
from sklcam.networks.weights import load_weights
from sklcam.networks.zoo import build_model


class TrainingImages(ImageDataset, SkorchDataset):
    """Images with encoded labels, in the form that skorch's callbacks know how to take apart."""

    def __init__(self, X: Any, y: Any, **options: Any):
        ImageDataset.__init__(self, X, y, **options)
        self.X = X
        self.y = self.targets = y


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


class ImageNeuralNet(NeuralNet):
    """A skorch net whose X are images.

    A subclass sets the parameters of :attr:`_parameter_constraints` in its ``__init__``, and says
    in :meth:`_n_outputs` how wide the network's output is.

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
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "module": [str, nn.Module, type, callable],
        "weights": [None, str, HasMethods(["__fspath__"])],
        "target_layer": [str, TargetLayer],
        "augment": [StrOptions({"auto"}), None, callable],
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "resize": [StrOptions({"stretch", "center_crop"})],
        "mean": [StrOptions({"auto"}), Real, "array-like"],
        "std": [StrOptions({"auto"}), Real, "array-like"],
        "random_state": ["random_state"],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), Options(Integral, {-1})],
        "optimizer": [callable],
        "criterion": [callable],
        "train_split": [callable, None],
        "callbacks": [list, StrOptions({"disable"}), None],
    }
    _loss_terms: ClassVar[tuple[str, ...]] = ("loss",)
    _outputs_are: ClassVar[str] = "classes"
    _module_like: ClassVar[tuple[str, ...]] = ("module", "criterion")

    classes_inferred_: np.ndarray
    n_channels_: int
    target_layer_: TargetLayer

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            vars(cls)["__init__"].__signature__ = _full_signature(cls)

    # skorch's own lists the layers. scikit-learn's shows what differs from the defaults, and looks
    # for these, as its HTML does, in the signature.
    __repr__ = BaseEstimator.__repr__

    def _get_params_html(self, deep: bool = True, *args: Any, **kwargs: Any) -> Any:
        # Deep, it would list each parameter of skorch's own callbacks as set by the user.
        return super()._get_params_html(False, *args, **kwargs)

    def _n_outputs(self) -> int:
        """Return how many outputs the network must have, once the classes are known."""
        raise NotImplementedError

    def _trains_on_maps(self) -> bool:
        """Whether the loss looks at explanations."""
        return False

    # Fitting

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Self:
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

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> Self:
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

    def initialize(self) -> Self:
        """Build the network, the optimizer and the callbacks; ``fit`` does so by itself.

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

    def initialize_virtual_params(self) -> None:
        # The first of skorch's steps of initialization, also where a mixin replaces initialize.
        super().initialize_virtual_params()
        self.random_states_ = self._seed()

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        with self._own_randomness():
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
        known = set(signature(type(self).__init__).parameters)
        for name in sorted(self._params_to_validate - known):
            if not name.startswith((*self.prefixes_, *self._module_like, "optimizer")):
                raise ValueError(
                    f"{type(self).__name__} has no parameter {name!r}. "
                    f"{suggestion(name, known - {'self', 'kwargs'})}"
                )
        check_size(self.image_size, "image_size")
        _check_device(vars(self)["device"])

    def _check_training_data(
        self, X: Any, y: Any, *, known: bool, classes: Any
    ) -> tuple[TrainingImages, np.ndarray]:
        """Check X and y, learn classes and channels unless they are known, encode y."""
        n_images(X)  # an error if X is empty or no images at all
        y = check_labels(X, y)
        learned = np.asarray(self.classes_) if known else _learn_classes(y, classes)
        if known and classes is not None and not np.array_equal(np.unique(classes), learned):
            raise ValueError(
                f"classes={np.unique(classes).tolist()} is not the same as on the first call: "
                f"{learned.tolist()}."
            )
        options = self._image_options()
        options["n_channels"] = self.n_channels_ if known else None
        data = TrainingImages(X, encode_labels(y, learned), **options)
        self._normalize(torch.zeros(1, data.n_channels, 1, 1))  # an error if this does not fit
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
        if valid is not None and not isinstance(_without_subsets(valid), ImageDataset):
            valid = self._prepare_validation(valid)  # a predefined split
        return train, valid

    def _prepare_validation(self, data: Any) -> TrainingImages:
        X, y = (data.X, data.y) if isinstance(data, SkorchDataset) else (data, None)
        y = encode_labels(check_labels(X, y), self.classes_)
        return TrainingImages(X, y, **self._image_options())

    def get_iterator(self, dataset: Any, training: bool = False) -> Iterable[Any]:
        iterator = super().get_iterator(dataset, training=training)
        if not training and isinstance(iterator, DataLoader) and iterator.generator is None:
            # A loader draws a seed for its workers even if it has none and does not shuffle.
            iterator.generator = torch.Generator().manual_seed(0)
        return self._pinning(iterator, training)

    def _pinning(self, iterator: Iterable[Any], training: bool) -> Iterable[Any]:
        """Let a loader pin its batches if they go to a GPU, unless a parameter says whether to."""
        given = self.get_params_for("iterator_train" if training else "iterator_valid")
        if isinstance(iterator, DataLoader) and "pin_memory" not in given and self._cuda_devices():
            images = _without_subsets(iterator.dataset)
            if isinstance(images, ImageDataset) and images.device.type == "cpu":
                iterator.pin_memory = True
        return iterator

    def _prepare(self, images: Tensor) -> Tensor:
        """Bring a batch to the device, as floats in [0, 1]."""
        return normalize(self._on_device(images), 0.0, 1.0)

    def _on_device(self, values: Any) -> Any:
        if self.device is None or not isinstance(values, Tensor):
            return values
        # A blocking copy would make the host wait for all work queued on the device.
        return values.to(self.device, non_blocking=values.device.type == "cpu")

    def _normalize(self, images: Tensor) -> Tensor:
        return normalize(images, self.mean, self.std)

    # Network, callbacks

    def initialize_module(self) -> Self:
        if not hasattr(self, "n_channels_"):
            raise NotFittedError(
                f"This {type(self).__name__} does not know its classes and channels yet; call fit, "
                "or partial_fit with classes=, before initialize or load_params."
            )
        with self._own_randomness():
            module = self._build_module()
        sample = torch.zeros(1, self.n_channels_, *self._input_size())
        check_output(module, sample, self._n_outputs(), of=self._outputs_are)
        self.target_layer_ = find_target_layer(module, self.target_layer, sample=sample)
        self._check_grid(module, sample)
        self.module_ = module
        return self

    def _check_grid(self, module: nn.Module, sample: Tensor) -> None:
        """Refuse to train on maps of a single position; warn where they are only looked at."""
        layer = self.target_layer_
        with record(module.eval(), layer.of(module)) as tape:
            module(sample)
            activations = tape.activations
        message = single_position(layer, activations, self._input_size())
        if message and self._trains_on_maps():
            raise ValueError(message)
        if message:
            warnings.warn(message, stacklevel=2)

    def _module_options(self) -> dict[str, Any]:
        return self.get_params_for("module")

    def _build_module(self) -> nn.Module:
        options = self._module_options()
        sizes = {"n_classes": self._n_outputs(), "in_channels": self.n_channels_}
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
        return check_size(self.image_size, "image_size")

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        losses = [
            PassthroughScoring(f"{phase}_{term}", on_train=phase == "train")
            for phase in ("train", "valid")
            for term in self._loss_terms
        ]
        scheduled = any(_is_scheduler(callback) for callback in self._given_callbacks())
        return [
            ("epoch_timer", EpochTimer()),
            *((loss.name, loss) for loss in losses),
            ("lr_scheduler", None if scheduled else self._default_schedule()),
            ("progress_bar", SilentableProgressBar()),
            ("print_log", PrintLog()),
        ]

    def _default_schedule(self) -> LRScheduler | None:
        return None

    def _given_callbacks(self) -> Sequence[Any]:
        given = vars(self).get("callbacks")
        return given if isinstance(given, list | tuple) else ()

    # Steps

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        images, y = unpack_data(batch)
        images = self._normalize(self._augment(self._prepare(images)))
        return super().train_step((images, self._on_device(y)), **fit_params)

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        images, y = unpack_data(batch)
        images = self._normalize(self._prepare(images))
        return super().validation_step((images, self._on_device(y)), **fit_params)

    def evaluation_step(self, batch: Any, training: bool = False) -> Any:
        self.check_is_fitted()
        images, y = unpack_data(batch)
        return super().evaluation_step((self._normalize(self._prepare(images)), y), training)

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        output = super().infer(x, **fit_params)
        # Some networks return their auxiliary outputs too; the first one is the prediction.
        return output[0] if isinstance(output, tuple) else output

    def _augment(self, images: Tensor) -> Tensor:
        if self.augment is None:
            return images
        sampler = ViewSampler() if isinstance(self.augment, str) else self.augment
        if not isinstance(sampler, ViewSampler):
            return _check_augmented(sampler(images), images)
        size = (images.shape[-2], images.shape[-1])
        generator = getattr(self, "generator_", None)  # there while fitting
        return sampler(len(images), size=size, generator=generator)(images)

    # Randomness: the estimator's own generators, swapped in for as long as they are needed

    def _seed(self) -> dict[str, Any]:
        return self._seeded(self._draw_seed())

    def _draw_seed(self) -> int:
        seed = self.random_state
        if seed is None:
            seed = np.random.SeedSequence().generate_state(1, np.uint32)[0]
        elif not isinstance(seed, Integral):
            seed = seed.randint(2**31 - 1)
        return int(seed)

    def _seeded(self, seed: int) -> dict[str, Any]:
        (views_seed,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        with torch.random.fork_rng(self._cuda_devices()):
            torch.manual_seed(seed)
            on_cpu, *on_cuda = self._generator_states()
            return {
                "seed": seed,
                "global": on_cpu,
                "cuda": on_cuda,
                "views": torch.Generator().manual_seed(int(views_seed) >> 1).get_state(),
            }

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        states = self.random_states_
        with self._generators_at([states["global"], *states["cuda"]]):
            self.generator_ = torch.Generator()
            self.generator_.set_state(states["views"])
            try:
                yield
            finally:
                on_cpu, *on_cuda = self._generator_states()
                self.random_states_ = {
                    "seed": states["seed"],
                    "global": on_cpu,
                    "cuda": on_cuda,
                    "views": self.generator_.get_state(),
                }
                del self.generator_

    def _generator_states(self) -> list[Tensor]:
        """Return where torch's generators are: the CPU's and those of the devices in use."""
        devices = self._cuda_devices()
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]

    @contextmanager
    def _generators_at(self, states: list[Tensor]) -> Iterator[None]:
        """Let the block draw what was drawn from there, and go on afterwards as if it had not."""
        devices = self._cuda_devices()
        with torch.random.fork_rng(devices):
            torch.set_rng_state(states[0])
            for device, state in zip(devices, states[1:], strict=False):  # it may have moved since
                torch.cuda.set_rng_state(state, device)
            yield

    def _cuda_devices(self) -> list[torch.device]:
        device = torch.device(self.device) if self.device is not None else torch.device("cpu")
        return [device] if device.type == "cuda" else []

    # Inference

    def _image_dataset(self, X: Any) -> ImageDataset:
        return ImageDataset(X, **self._image_options())

    def _iter_dataset(self, dataset: ImageDataset) -> Iterator[Tensor]:
        for batch in self.get_iterator(dataset, training=False):
            images, _ = unpack_data(batch)
            yield self._normalize(self._prepare(images))

    def _forward(self, inputs: Tensor) -> Tensor:
        self._set_training(False)
        return self.infer(inputs)

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
        if name in self._module_like:  # parameters, also where they are instances
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
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


def _without_subsets(data: Any) -> Any:
    while isinstance(data, Subset):
        data = data.dataset
    return data


def _check_device(device: Any) -> None:
    """Raise a ValueError unless a network can be trained there; "auto" can."""
    if device is None or (isinstance(device, str) and device == "auto"):
        return
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f'device must be "auto" or a device of torch, such as "cuda:0"; got {device!r}.'
        ) from None
    if found.type == "meta":
        raise ValueError('device="meta" holds no values to train; "auto" takes what there is.')
    n_devices = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= n_devices:
        raise ValueError(
            f'device={device!r} is not here: torch finds {n_devices} CUDA devices. "auto" takes '
            "what there is."
        )


def single_position(
    layer: TargetLayer, activations: Tensor, image_size: tuple[int, int]
) -> str | None:
    """Return what is wrong with a layer's activations if they are those of a single position."""
    rows, columns = layer.to_grid(activations).shape[-2:]
    if rows * columns > 1:
        return None
    return (
        f"The target layer {layer.name!r} has a single position for images of {image_size[0]} x "
        f"{image_size[1]} pixels, so that every map is constant; use a larger image_size or an "
        "earlier target_layer."
    )


def _is_scheduler(callback: Any) -> bool:
    callback = callback[1] if isinstance(callback, tuple) else callback
    is_class = isinstance(callback, type) and issubclass(callback, LRScheduler)
    return is_class or isinstance(callback, LRScheduler)


def _learn_classes(y: np.ndarray, classes: Any) -> np.ndarray:
    learned = np.unique(y if classes is None else np.asarray(classes))
    if len(learned) < 2:
        raise ValueError(f"Training needs at least two classes; got one class: {learned.tolist()}.")
    return learned


def _check_augmented(augmented: Any, images: Tensor) -> Tensor:
    if not isinstance(augmented, Tensor) or augmented.shape[:2] != images.shape[:2]:
        came = tuple(augmented.shape) if isinstance(augmented, Tensor) else type(augmented)
        raise ValueError(
            f"augment must return a tensor of as many images and channels as it was given, "
            f"{tuple(images.shape)}; it returned {came}."
        )
    return augmented


def _full_signature(cls: type) -> Signature:
    """Return the signature of a class's ``__init__``, with what it passes on spelt out."""
    own = signature(vars(cls)["__init__"])
    parameters = dict(own.parameters)
    *_, last = own.parameters
    if parameters[last].kind is not Parameter.VAR_KEYWORD:
        return own
    rest = parameters.pop(last)
    for base in cls.__mro__[1:]:
        for name, parameter in signature(base).parameters.items():
            if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY):
                parameters.setdefault(name, parameter.replace(kind=Parameter.KEYWORD_ONLY))
    return own.replace(parameters=[*parameters.values(), rest])
