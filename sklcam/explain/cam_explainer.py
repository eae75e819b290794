"""``CAMExplainer``: explanations of any trained network, as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet, NeuralNetBinaryClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sklcam._validation import check_size
from sklcam.cam import Method, get_method
from sklcam.cam.maps import at_least_float32
from sklcam.explain.base import AnyMethod, ExplainerMixin, _recordable
from sklcam.images.dataset import ImageDataset
from sklcam.images.labels import labels_for
from sklcam.images.normalization import normalize
from sklcam.networks.inference import is_out_of_memory
from sklcam.networks.inputs import (
    NetworkInputs,
    SeveralInputs,
    is_network_input,
)
from sklcam.networks.layer_search import find_target_layer
from sklcam.networks.layers import TargetLayer
from sklcam.networks.tape import record
from sklcam.training.net import ImageNeuralNet, single_position


class CAMExplainer(ClassifierMixin, ExplainerMixin, BaseEstimator):
    """Explain a trained classifier by any method, as it is.

    The network is used, and never changed: its mode, hooks, gradients and flags are after each call
    what they were before, also after an error. It stays on its device, in its precision.

    Parameters
    ----------
    model : nn.Module or fitted estimator
        A network that takes images and returns logits of shape (n_images, n_classes); a fitted
        skorch net around one; or a fitted :class:`~sklcam.ConsistentCAMClassifier`. Of several
        outputs in a tuple, the first one counts.
    method : str, Method or class of methods, default="gradcam"
        One of :func:`sklcam.cam.available`, or a method object with options of its own.
    target_layer : str, TargetLayer or list of them, default="auto"
        Dotted name of the layer that is explained; "auto" is the usual one of a known family, and
        otherwise the last layer with a spatial output. Of several layers, one pass makes all maps.
    layer_fusion : {"mean", "max"} or None, default="mean"
        How the maps of several layers become one: each scaled to [0, 1], then their mean or
        maximum; None keeps them apart, on an axis of their own.
    reshape : callable or None, default=None
        For layers whose output is no grid, such as the tokens of a transformer outside torchvision:
        takes the output and returns it as (n_images, K, u, v), differentiably.
    image_input : str or None, default=None
        For networks of several inputs, whose X is a dict of arrays or tensors, as in skorch: which
        of them is the image.
    classes : array-like or None, default=None
        The label of each output, in their order. None is the model's ``classes_``, the labels of
        ``y`` in :meth:`fit`, or 0, 1, ....
    image_size : int, (height, width) or None, default=None
        What images are resized to; None is the model's own if it has one, else 224.
    resize : {"stretch", "center_crop"} or None, default=None
        Both sides to ``image_size``, or the proportions kept and the middle cut out; None is the
        model's own, else "stretch".
    mean, std : "auto", float or one float a channel, default="auto"
        Normalisation after scaling to [0, 1]; "auto" is the model's own, else ImageNet's.
    batch_size : int, default=32
        Images that go through the network at a time.
    num_workers : int, default=0
        Processes that read and resize images.
    verbose : int, default=1
        0 silences the progress bar.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,) or None
        The label of each output; None if the output is not (n_images, n_classes).
    target_layers_ : list of TargetLayer
        The layers that are explained.

    Notes
    -----
    Around a bare module or a plain skorch net, float tensors, and data sets that yield them, are
    the network's input and go there untouched, in any range. Arrays, file paths and PIL images are
    resized, scaled to [0, 1] and normalised, as ``image_size``, ``mean`` and ``std`` say. A
    ConsistentCAMClassifier prepares all its images itself.

    Copies made by :func:`sklearn.base.clone` share the model.

    Examples
    --------
    >>> import torch
    >>> from sklcam import CAMExplainer
    >>> from sklcam.networks import build_model
    >>> network = build_model("resnet18", n_classes=5)
    >>> images = torch.randn(2, 3, 64, 64)
    >>> explainer = CAMExplainer(network, method="gradcam++").fit(images)
    >>> explainer.target_layers_[0].name
    'layer4'
    >>> explainer.explain(images).shape
    (2, 64, 64)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "model": [nn.Module, NeuralNet],
        "method": [str, Method, type],
        "target_layer": [str, TargetLayer, list, tuple],
        "layer_fusion": [StrOptions({"mean", "max"}), None],
        "reshape": [None, callable],
        "image_input": [None, str],
        "classes": [None, "array-like"],
        "image_size": [None, Interval(Integral, 1, None, closed="left"), tuple, list],
        "resize": [None, StrOptions({"stretch", "center_crop"})],
        "mean": [StrOptions({"auto"}), Real, "array-like"],
        "std": [StrOptions({"auto"}), Real, "array-like"],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "num_workers": [Interval(Integral, 0, None, closed="left")],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model: Any,
        method: AnyMethod = "gradcam",
        target_layer: str | TargetLayer | Sequence[str | TargetLayer] = "auto",
        *,
        layer_fusion: Literal["mean", "max"] | None = "mean",
        reshape: Callable[[Tensor], Tensor] | None = None,
        image_input: str | None = None,
        classes: Any = None,
        image_size: int | tuple[int, int] | None = None,
        resize: Literal["stretch", "center_crop"] | None = None,
        mean: Any = "auto",
        std: Any = "auto",
        batch_size: int = 32,
        num_workers: int = 0,
        verbose: int = 1,
    ):
        self.model = model
        self.method = method
        self.target_layer = target_layer
        self.layer_fusion = layer_fusion
        self.reshape = reshape
        self.image_input = image_input
        self.classes = classes
        self.image_size = image_size
        self.resize = resize
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.verbose = verbose

    def fit(self, X: Any = None, y: Any = None) -> CAMExplainer:
        """Find the layers and the classes; nothing is learned.

        Parameters
        ----------
        X : images or None, default=None
            One image is enough. Needed where a dry run on a blank image of ``image_size`` does not
            do, such as for networks of several inputs.
        y : array-like of labels or None, default=None
            All labels, where the model does not know them.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If the model is an estimator that has not been fitted.
        ValueError
            If a parameter does not fit the model.
        """
        own = {name: vars(self)[name] for name in self._parameter_constraints}
        validate_parameter_constraints(
            self._parameter_constraints, own, caller_name=type(self).__name__
        )
        get_method(self.method).check()
        self._check_own_preparation()
        self._input_size()
        network = self._module()
        if _where(network)[0].type == "meta":
            raise ValueError(
                "The network is on the meta device, where tensors have no values; load its weights."
            )
        sample = self._sample(X, network)
        output = self._dry_run(sample, given=X is not None)
        self.classes_ = self._find_classes(output, y)
        self.target_layers_ = self._find_layers(network, sample)
        if get_method(self.method).uses_layers:
            self._warn_of_single_positions(network, sample)
        return self

    def _check_own_preparation(self) -> None:
        if not isinstance(self.model, ImageNeuralNet):
            return
        given = {"image_size": self.image_size, "resize": self.resize}
        statistics = {"mean": self.mean, "std": self.std}
        given |= {name: None if isinstance(v, str) else v for name, v in statistics.items()}
        wrong = [name for name, value in given.items() if value is not None]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: a {type(self.model).__name__} prepares images as it was "
                "trained; leave this at its default."
            )

    def _module(self) -> nn.Module:
        if isinstance(self.model, nn.Module):
            return self.model
        if not getattr(self.model, "initialized_", False) or not hasattr(self.model, "module_"):
            raise NotFittedError(
                f"CAMExplainer explains trained models; fit the {type(self.model).__name__} first."
            )
        return self.model.module_

    def _sample(self, X: Any, network: nn.Module) -> Any:
        """Return the network's input for one image."""
        if X is not None:
            dataset = self._image_dataset(X)
            return _first_image(next(iter(self._iter_dataset(dataset, batch_size=1))))
        if self.image_input is not None:
            raise ValueError(
                "A network of several inputs cannot be tried on a blank; give fit an X."
            )
        if isinstance(self.model, ImageNeuralNet):
            size, n_channels = self.model._input_size(), self.model.n_channels_
        else:
            stem = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
            size, n_channels = self._input_size(), 3 if stem is None else stem.in_channels
        device, dtype = _where(network)
        return torch.zeros(1, n_channels, *size, device=device, dtype=dtype)

    def _dry_run(self, sample: Any, *, given: bool) -> Tensor:
        try:
            with torch.inference_mode(False), torch.no_grad(), self._evaluating():
                output = self._forward(sample)
        except Exception as error:
            is_refused = isinstance(error, RuntimeError) and not is_out_of_memory(error)
            if given and not (is_refused and isinstance(sample, Tensor)):
                raise
            shape = tuple(sample.shape[1:])
            message = f"The network does not take images of {shape}: {error}"
            if not given:
                message = (
                    f"The network does not take a blank image of {shape}; give fit an X of the "
                    "kind that it takes."
                )
            raise ValueError(message) from error
        if not isinstance(output, Tensor):
            raise ValueError(
                f"The network returns a {type(output).__name__}; it must return a Tensor, or a "
                "tuple that starts with one: wrap it in a module that does."
            )
        return output

    def _find_classes(self, output: Tensor, y: Any) -> np.ndarray | None:
        known = self.classes
        if known is None and not isinstance(self.model, nn.Module):
            try:
                known = self.model.classes_
            except AttributeError:
                known = None
        if output.ndim != 2:
            return None if known is None else np.asarray(known)
        n_classes = output.shape[1]
        numbers = np.arange(n_classes)
        if known is None and y is not None and not np.isin(y, numbers).all():
            known = np.unique(y)
        classes = numbers if known is None else np.asarray(known)
        if classes.shape != (n_classes,) or len(np.unique(classes)) != n_classes:
            raise ValueError(
                f"The network has {n_classes} outputs, and there are {len(np.unique(classes))} "
                "labels for them; give classes= the label of each output, in their order."
            )
        return classes

    def _find_layers(self, network: nn.Module, sample: Any) -> list[TargetLayer]:
        wanted: list[Any] = [self.target_layer]
        if isinstance(self.target_layer, list | tuple):
            wanted = list(self.target_layer)
        if not wanted:
            raise ValueError("target_layer is an empty list; name at least one layer.")
        for name in wanted:
            if not isinstance(name, str | TargetLayer):
                raise ValueError(
                    "target_layer takes a layer's dotted name, such as 'features.3', or a "
                    f"TargetLayer; got a {type(name).__name__}."
                )
        if isinstance(self.model, ImageNeuralNet) and wanted == ["auto"]:
            layers = [self.model.target_layer_]
        else:
            image = sample if isinstance(sample, Tensor) else None
            with self._evaluating():
                layers = [find_target_layer(network, name, sample=image) for name in wanted]
        names = [layer.name for layer in layers]
        if len(set(names)) < len(names):
            raise ValueError(f"target_layer names a layer twice: {names}.")
        return [replace(layer, reshape=self.reshape or layer.reshape) for layer in layers]

    def _warn_of_single_positions(self, network: nn.Module, sample: Any) -> None:
        layers = [(layer, layer.of(network)) for layer in self.target_layers_]
        height, width = self.images_of(sample).shape[-2:]
        with record(network, *(part for _, part in layers)) as tape, self._evaluating():
            self._forward(_recordable(sample))
            found = [single_position(of, tape.of(part), (height, width)) for of, part in layers]
        for message in filter(None, found):
            warnings.warn(message, stacklevel=3)

    # What the mixin asks for

    def _network(self) -> nn.Module:
        check_is_fitted(self, "target_layers_")
        return self._module()

    def _target_layers(self) -> list[TargetLayer]:
        return self.target_layers_

    def _default_method(self) -> AnyMethod:
        return self.method

    def _layer_fusion(self) -> str | None:
        return self.layer_fusion

    def _name_of_image(self) -> str | None:
        return self.image_input

    def _frame_resize(self) -> str:
        return self.resize or getattr(self.model, "resize", None) or "stretch"

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self._module().modules()]
        self._module().eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def _forward(self, inputs: Any) -> Tensor:
        if isinstance(self.model, nn.Module):
            output = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs)
        else:
            output = self.model.infer(inputs)
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(self.model, NeuralNetBinaryClassifier):
            return self._two_columns(output.reshape(len(output), 1))
        return output

    def _two_columns(self, second: Tensor) -> Tensor:
        """Return a binary net's output, which is the second class's alone, as both classes'."""
        if self._gives_probability():
            return torch.cat([1 - second, second], dim=1)
        # Of one logit, two whose softmax is its sigmoid.
        return second * second.new_tensor([-0.5, 0.5])

    def _gives_probability(self) -> bool:
        return isinstance(self.model.criterion_, nn.BCELoss)

    def _input_size(self) -> tuple[int, int]:
        return check_size(224 if self.image_size is None else self.image_size, "image_size")

    def _image_dataset(self, X: Any) -> Any:
        if isinstance(X, Mapping):
            if self.image_input not in X:
                raise ValueError(
                    f"X is a dict of inputs {sorted(map(str, X))}; image_input must name the one "
                    f"that is the image, and is {self.image_input!r}."
                )
            images = self._image_dataset(X[self.image_input])
            others = {name: value for name, value in X.items() if name != self.image_input}
            return SeveralInputs(images, others)
        if isinstance(self.model, ImageNeuralNet):
            return self.model._image_dataset(X)
        if is_network_input(X):
            return NetworkInputs(X)
        return ImageDataset(X, image_size=self._input_size(), resize=self.resize or "stretch")

    def _iter_dataset(self, dataset: Any, batch_size: int | None = None) -> Iterator[Any]:
        if isinstance(dataset, SeveralInputs):
            start = 0
            for images in self._iter_dataset(dataset.images, batch_size):
                stop = start + len(images)
                others = dataset.others(start, stop, images)
                yield {str(self.image_input): images, **others}
                start = stop
            return
        if isinstance(self.model, ImageNeuralNet):
            yield from self.model._iter_dataset(dataset)
            return
        device, dtype = _where(self._module())
        loader = DataLoader(
            dataset,
            batch_size=batch_size or self.batch_size,
            num_workers=self.num_workers,
            # A loader draws a seed even if it has no use for it: not from the global generator.
            generator=torch.Generator().manual_seed(0),
        )
        for images, _ in loader:
            images = images.to(device)
            if not isinstance(dataset, NetworkInputs):
                images = self._normalize(images)
            yield images.to(dtype)

    def _normalize(self, images: Tensor) -> Tensor:
        return normalize(images, self.mean, self.std)

    # Prediction

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class.

        Parameters
        ----------
        X : images

        Returns
        -------
        ndarray of shape (n_images, n_classes), in [0, 1]
            In the order of ``classes_``. By the net's own nonlinearity for a skorch net; otherwise
            the softmax of the output, or the output itself where its rows are probabilities.
        """
        self._network()
        batches = []
        for inputs in self.iter_inputs(X):
            with torch.inference_mode(False), torch.no_grad(), self._evaluating():
                output = self._forward(inputs)
                if output.ndim != 2:
                    raise ValueError(
                        f"The network's output has shape {tuple(output.shape)}, not (n_images, "
                        "n_classes): there are no classes to predict."
                    )
                batches.append(self.probabilities(output).cpu().numpy())
        return np.concatenate(batches)

    def probabilities(self, output: Tensor) -> Tensor:
        """Turn the network's output into probabilities.

        Parameters
        ----------
        output : Tensor of shape (n_images, n_classes)

        Returns
        -------
        Tensor of shape (n_images, n_classes), in [0, 1]
        """
        output = at_least_float32(output)
        if isinstance(self.model, NeuralNetBinaryClassifier):
            second = output[:, 1] if self._gives_probability() else output[:, 1] - output[:, 0]
            return self.model._get_predict_nonlinearity()(second)
        if isinstance(self.model, NeuralNet):
            return self.model._get_predict_nonlinearity()(output)
        sums_to_one = (output.sum(dim=1) - 1).abs() < 1e-3
        if bool((sums_to_one & (output >= 0).all(dim=1)).all()):
            return output
        return output.softmax(dim=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each image.

        Parameters
        ----------
        X : images

        Returns
        -------
        ndarray of shape (n_images,)
        """
        probabilities = self.predict_proba(X)
        if isinstance(self.model, NeuralNetBinaryClassifier):
            return self.classes_[(probabilities[:, 1] > self.model.threshold).astype(int)]
        return self.classes_[probabilities.argmax(axis=1)]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy on X.

        Parameters
        ----------
        X : images
        y : array-like of shape (n_images,)
            May be left out for a data set that has ``targets``.
        sample_weight : array-like of shape (n_images,) or None, default=None

        Returns
        -------
        float, in [0, 1]
        """
        y = labels_for(X, y, "score")
        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))

    def __sklearn_clone__(self) -> CAMExplainer:
        options = {name: value for name, value in vars(self).items() if not name.endswith("_")}
        return type(self)(
            **{
                name: value if name == "model" else clone(value, safe=False)
                for name, value in options.items()
            }
        )


def _first_image(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[:1]
    return {name: value[:1] for name, value in inputs.items()}


def _where(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and the precision that a network computes in."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.get_default_dtype()
