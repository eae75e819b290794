"""``CAMExplainer`` explains any trained network without changing it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from numbers import Integral, Real
from os import PathLike
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import RegressorTags
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet
from torch import Tensor, nn

from sklcam._validation import check_size
from sklcam.cam import Method, get_method
from sklcam.explain.base import AnyMethod, Explainer
from sklcam.explain.checks import ExplanationCheck
from sklcam.explain.detected import check_detected, detections
from sklcam.explain.naming import name_outputs
from sklcam.explain.opened import OpenedImages
from sklcam.explain.refused import not_a_tensor, why_refused
from sklcam.images.labels import label_names
from sklcam.networks.adapters import Adapter, Preparation, adapt
from sklcam.networks.construction import build_model
from sklcam.networks.dense import find_dense_layer
from sklcam.networks.dry_run import generators_lock
from sklcam.networks.fetching import fetch_all
from sklcam.networks.inputs import Inputs
from sklcam.networks.layer_search import check_positions, find_target_layer
from sklcam.networks.layers import TargetLayer
from sklcam.networks.mixed_precision import in_precision
from sklcam.networks.nested import Nesting, unnest
from sklcam.networks.output_ranges import OutputRanges
from sklcam.networks.precision import PRECISIONS, Precision
from sklcam.networks.readouts import Task, readout
from sklcam.networks.sources import origin_of
from sklcam.networks.tasks import Evidence


def _has_probabilities(explainer: CAMExplainer) -> bool:
    return getattr(explainer, "task_", explainer.task) not in ("regression", "detection")


class CAMExplainer(ClassifierMixin, Explainer, BaseEstimator):
    """Explain a trained network by any method, without changing the network.

    After each call, even one that raised an error, the network's mode, hooks, gradients and flags
    are what they were before. It stays on its device and in its precision.

    Parameters
    ----------
    model : nn.Module, fitted estimator or str
        A network that takes images and returns logits of shape (n_images, n_classes), or another
        output that ``task`` and ``output`` describe. A fitted skorch net around such a network, a
        fitted :class:`~sklcam.ConsistentCAMClassifier`, or a search or a ``FrozenEstimator`` around
        these. Or a name such as ``"timm/resnet50"``, from which :meth:`fit` builds the network with
        :func:`sklcam.networks.build_model`.
    method : str, Method or class of methods, default="gradcam"
        One of :func:`sklcam.cam.available`, or a method object with its own options.
    target_layer : str, TargetLayer or list of them, default="auto"
        Dotted name of the layer to explain. "auto" takes the usual layer of a known family, and
        otherwise the last layer that is a grid of places, found by
        :func:`sklcam.networks.find_target_layer`. One pass makes the maps of all layers.
    weights : str, path or None, default=None
        The weights of a network given by name. ``"DEFAULT"`` loads the published weights, with
        their head. None leaves the weights random.
    task : {"auto", "multiclass", "binary", "multilabel", "regression", "segmentation", "detection"}
        The network's task. "multiclass" is one of several classes, by a softmax. "binary" is one of
        two classes, by a single output for the second; its negative explains the first.
        "multilabel" is any number of labels, each with its own sigmoid. "regression" is numbers,
        which are explained themselves. "segmentation" is one of several classes for each pixel;
        :class:`sklcam.cam.Pixels` selects pixels. "detection" is objects, by torchvision's
        detectors; :class:`sklcam.cam.Box` selects objects.

        "auto", the default, takes the task from a skorch net's criterion or a Hugging Face
        network's ``problem_type``. It is "segmentation" or "detection" for networks of torchvision
        and Hugging Face made for these, and "multilabel" ("binary" for a single output) for a
        network that ends in a sigmoid. Otherwise the labels in :meth:`fit` decide, or else it is
        "multiclass". A network with a single output is refused if none of these applies.
    output : {"auto", "logits", "probabilities"}, default="auto"
        What the network returns for classes. "auto" recognises a final sigmoid, and rows that add
        up to 1 in the sample that ``fit`` runs.
    layer_fusion : {"mean", "max"} or None, default="mean"
        How the maps of several layers are fused: each is scaled to [0, 1], then their mean or
        maximum is taken. None keeps them apart, on an axis of their own.
    reshape : callable or None, default=None
        For layers whose output is not a grid, such as the tokens of a transformer that is not
        torchvision's: takes the output and returns it as (n_images, K, u, v), differentiably.
    image_input : str or None, default=None
        For networks with several inputs, whose X is a dict of arrays or tensors as in skorch: the
        key of the image. None is ``"pixel_values"``, or the only input with four axes.
    output_name : str, int or None, default=None
        For networks with several outputs: the key or position of the output to use. None is the
        first of a tuple; in a mapping, ``"logits"`` or its only tensor.
    classes : array-like or None, default=None
        The label of each output, in order. For a single output, the labels of both classes; for a
        regression, the names of its numbers. None is the model's ``classes_``, the labels of ``y``
        in :meth:`fit`, or 0, 1, ....
    image_size : int, (height, width) or None, default=None
        The size that images are resized to. None is the size of the model's source, else 224.
    resize : {"stretch", "center_crop"} or None, default=None
        "stretch" resizes both sides to ``image_size``. "center_crop" keeps the proportions and cuts
        out the middle. None does as the model's source says (it may scale beyond ``image_size``
        first), else "stretch".
    decode : {"exact", "fast"}, default="exact"
        "fast" reads large JPEG files at a fraction of their size, which is still at least twice the
        size that they are resized to: see :class:`~sklcam.images.Resizing`.
    mean, std : "auto", float or one float per channel, default="auto"
        Normalisation after scaling to [0, 1]. "auto" takes the values of the model's source, else 0
        and 1 for a network that normalises its images itself, as ``fit`` measures, else ImageNet's.
    batch_size : int, default=32
        The number of images that go through the network at a time.
    num_workers : int, default=0
        The number of processes that read and resize images.
    precision : {"fp32", "bf16", "fp16"}, default="fp32"
        The precision in which a network with float32 weights computes. "bf16" and "fp16" run its
        passes under torch's autocast. Maps, probabilities and metrics stay float32. "fp32" leaves a
        network in the precision of its weights. A classifier trained in another precision predicts
        in float32 unless this says otherwise.
    verbose : int, default=1
        0 silences the progress bar.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,) or None
        The label of each class, as ``predict`` returns it: 0, 1, ... unless ``classes``, the model
        or ``y`` in :meth:`fit` says otherwise. None if there are no classes: for a regression, or
        if the output is not (n_images, n_classes).
    task_ : str or None
        The network's task, one of the values of ``task``. None if its output is not (n_images,
        n_outputs).
    output_names_ : ndarray of shape (n_outputs,) or None
        The names that ``target`` may use: the classes, or the numbers of a regression.
    class_names_ : ndarray of shape (n_classes,) or None
        The names of the classes 0, 1, ... in the model's source, or else in the data set given to
        :meth:`fit`, if their number is right. Displays and reports show them, and ``target`` and
        ``y`` take them in place of ``classes_``. ``class_names_[predict(X)]`` gives the names of
        the predictions.
    model_ : nn.Module or fitted estimator
        The model. For a name, the network that was built.
    preprocessing_ : Preprocessing
        How images are prepared, and the source of this: timm's configuration, a Hugging Face image
        processor, torchvision's weights, the parameters, or nothing.
    target_layers_ : list of TargetLayer
        The layers to explain.
    gives_probabilities_ : bool
        Whether a bare module already returns probabilities, as one that ends in a softmax does.

    Notes
    -----
    For a bare module or a plain skorch net, float tensors, and data sets that yield them, are the
    network's own input and stay untouched, in any range. Arrays, file paths and PIL images are
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
        "model": [str, nn.Module, NeuralNet, *get_args(Nesting)],
        "method": [str, Method, type],
        "target_layer": [str, TargetLayer, list, tuple],
        "weights": [None, str, HasMethods(["__fspath__"])],
        "task": [StrOptions({"auto", *get_args(Task)})],
        "output": [StrOptions({"auto", "logits", "probabilities"})],
        "layer_fusion": [StrOptions({"mean", "max"}), None],
        "reshape": [None, callable],
        "image_input": [None, str],
        "output_name": [None, str, Integral],
        "classes": [None, "array-like"],
        "image_size": [None, Interval(Integral, 1, None, closed="left"), tuple, list],
        "resize": [None, StrOptions({"stretch", "center_crop"})],
        "decode": [StrOptions({"exact", "fast"})],
        "mean": [StrOptions({"auto"}), Real, "array-like"],
        "std": [StrOptions({"auto"}), Real, "array-like"],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "num_workers": [Interval(Integral, 0, None, closed="left")],
        "precision": [StrOptions({*PRECISIONS})],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model: Any,
        method: AnyMethod = "gradcam",
        target_layer: str | TargetLayer | Sequence[str | TargetLayer] = "auto",
        *,
        weights: str | PathLike[str] | None = None,
        task: Task | Literal["auto"] = "auto",
        output: Literal["auto", "logits", "probabilities"] = "auto",
        layer_fusion: Literal["mean", "max"] | None = "mean",
        reshape: Callable[[Tensor], Tensor] | None = None,
        image_input: str | None = None,
        output_name: str | int | None = None,
        classes: Any = None,
        image_size: int | tuple[int, int] | None = None,
        resize: Literal["stretch", "center_crop"] | None = None,
        decode: Literal["exact", "fast"] = "exact",
        mean: Any = "auto",
        std: Any = "auto",
        batch_size: int = 32,
        num_workers: int = 0,
        precision: Precision = "fp32",
        verbose: int = 1,
    ):
        self.model = model
        self.method = method
        self.target_layer = target_layer
        self.weights = weights
        self.task = task
        self.output = output
        self.layer_fusion = layer_fusion
        self.reshape = reshape
        self.image_input = image_input
        self.output_name = output_name
        self.classes = classes
        self.image_size = image_size
        self.resize = resize
        self.decode = decode
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.precision = precision
        self.verbose = verbose

    def check_parameters(self) -> None:
        """Raise a ValueError for invalid parameters. :meth:`fit` calls this itself."""
        self._validate_params()

    def fit(self, X: Any = None, y: Any = None) -> CAMExplainer:
        """Find the layers and the classes. Nothing is learned.

        Parameters
        ----------
        X : images or None, default=None
            Images for a dry run, of which one is enough. They are needed if a dry run on a blank
            image of ``image_size`` is not possible, such as for networks with several inputs.
        y : array-like of labels, label sets, numbers or None, default=None
            All labels, if the model does not know them. For several labels per image: a table of 0
            and 1, or a set of labels for each image. Numbers such as 0.5 mean a regression.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If the model is an estimator that has not been fitted.
        ValueError
            If a parameter does not fit the model, if the task of the network is unknown, or if the
            network or its device does not compute in ``precision``.
        """
        self.check_parameters()
        get_method(self.method).check()
        self.model_ = self._find_model()
        adapter = self._adapt()
        _ = adapter.input_size  # an error if it is not a size
        network = adapter.network
        if any(parameter.is_meta for parameter in network.parameters()):
            raise ValueError(
                "The network is on the meta device, where tensors have no values. Load its weights."
            )
        sample = self._sample(X, adapter)
        with OutputRanges() as ranges:
            # Some models know how to read their output.
            output = adapter.own(self._dry_run(adapter, sample, given=X is not None))
        adapter.look_at_inputs(sample)
        self._adapter = adapter
        self._settle(
            Evidence(
                output,
                is_sigmoid=ranges.are_probabilities(output),
                is_log_sigmoid=ranges.are_logarithms(output),
                task=self.task,
                form=self.output,
                y=y,
                classes=self.classes,
            )
        )
        self.preprocessing_ = adapter.preprocessing(sample.images.shape[1])
        self.gives_probabilities_ = adapter.gives_probabilities
        self.output_names_ = self._find_names(output, y)
        self.classes_ = None if self.task_ == "regression" else self.output_names_
        self.class_names_ = self._find_class_names(X, y)
        self.target_layers_ = self._find_layers(sample.recordable())
        self._adapter = in_precision(adapter, self.precision, sample)
        return self

    def _find_model(self) -> Any:
        if not isinstance(self.model, str):
            if self.weights is not None:
                raise ValueError(
                    f"weights={str(self.weights)!r} is for a network given by name, but the model "
                    f"is a {type(self.model).__name__} with weights of its own. Leave weights at "
                    "None."
                )
            return self.model
        if self.weights is None:
            warnings.warn(
                f"{self.model} has random weights (weights=None): its maps say nothing about "
                'images. weights="DEFAULT" loads the published ones.',
                stacklevel=3,
            )
        size = None if self.image_size is None else check_size(self.image_size, "image_size")
        with generators_lock, torch.random.fork_rng([]):
            return build_model(self.model, image_size=size, weights=self.weights).eval()

    def _find_class_names(self, X: Any, y: Any) -> np.ndarray | None:
        """Return the class names of the source or the data set, or None if these are the labels."""
        if self.classes_ is None or self.classes is not None:
            return None
        inner = unnest(self.model_)[0]
        if self._adapter.labels is not None:
            return inner.class_names_ if isinstance(inner, Explainer) else None
        names = origin_of(self._adapter.network).class_names or label_names(X, y) or ()
        is_numbered = np.array_equal(self.classes_, np.arange(len(names)))
        return np.array(names) if names and is_numbered else None

    def _adapt(self) -> Adapter:
        return adapt(self.model_, self._preparation())

    def _preparation(self) -> Preparation:
        return Preparation(**{field.name: vars(self)[field.name] for field in fields(Preparation)})

    def _sample(self, X: Any, adapter: Adapter) -> Inputs:
        """Return the network's input for one image."""
        if X is not None:
            opened = OpenedImages(adapter, X, self.image_input)
            return next(opened.subset(range(1)).batches()).inputs
        if self.image_input is not None:
            raise ValueError(
                "A network with several inputs cannot be tried on a blank image. Give fit an X."
            )
        return Inputs(adapter.blank())

    def _dry_run(self, adapter: Adapter, sample: Inputs, *, given: bool) -> Tensor:
        try:
            with torch.inference_mode(False), torch.no_grad(), adapter.evaluating():
                output = adapter.forward(sample)
        except Exception as error:
            refusal = why_refused(adapter.network, sample, error, given=given)
            if refusal is None:
                raise
            raise refusal from error
        if not isinstance(output, Tensor):
            raise not_a_tensor(adapter.network, output)
        return output

    def _settle(self, evidence: Evidence) -> None:
        self._adapter.settle(evidence)
        self.task_ = self._adapter.task

    def _find_names(self, output: Tensor, y: Any) -> np.ndarray | None:
        """Return a name for each column of the output."""
        known = self._adapter.labels if self.classes is None else self.classes
        if self.task_ == "detection" and known is not None:
            check_detected(known, self._adapter.network)
        if self.task_ in (None, "detection"):
            return None if known is None else np.asarray(known)
        n_columns = self._adapter.readout.columns(output).shape[1]
        return name_outputs(known, y, task=self._adapter.task, n_columns=n_columns)

    def _find_layers(self, sample: Inputs) -> list[TargetLayer]:
        given, adapter = self.target_layer, self._adapter
        wanted = [given] if isinstance(given, str | TargetLayer) else list(given)
        if not wanted:
            raise ValueError("target_layer is an empty list. Name at least one layer.")
        method = get_method(self.method)
        if adapter.target_layer is not None and wanted == ["auto"]:
            layers = [adapter.target_layer]
        else:
            try:
                with adapter.evaluating():
                    layers = [self._find_layer(name, sample) for name in wanted]
            except ValueError:
                if method.uses_layers or wanted != ["auto"]:
                    raise
                return []  # for some networks, only methods at the pixels work
        names = [layer.name for layer in layers]
        if len(set(names)) < len(names):
            raise ValueError(f"target_layer names a layer twice: {names}. Name each layer once.")
        layers = [replace(layer, reshape=self.reshape or layer.reshape) for layer in layers]
        # Detections in noise say nothing about a layer, whatever the weights.
        if method.uses_layers and method.graph is not None and self.task_ != "detection":
            forward = self._forward_like(sample)
            for layer in layers:
                check_positions(adapter.network, layer, sample.images, forward)
        return layers

    def _find_layer(self, name: str | TargetLayer, sample: Inputs) -> TargetLayer:
        if self.reshape is not None and isinstance(name, str) and name != "auto":
            name = TargetLayer(name, reshape=self.reshape)  # reshape gives the layout
        is_dense = self.task_ in ("segmentation", "detection")
        find = find_dense_layer if is_dense else find_target_layer
        return find(
            self._adapter.network, name, sample=sample.images, forward=self._forward_like(sample)
        )

    def _forward_like(self, sample: Inputs) -> Callable[[Tensor], Tensor]:
        """Return a function that calls the network with other images and the rest of a sample."""

        def forward(images: Tensor) -> Tensor:
            rows = torch.zeros(len(images), dtype=torch.int64)
            return self._adapter.forward(sample.with_images(images, rows))

        return forward

    @property
    def adapter(self) -> Adapter:
        check_is_fitted(self, "target_layers_")
        if "_adapter" not in vars(self):  # loaded from a file, which does not hold adapters
            self._adapter = self._adapt()
            self._restore_readout()
            self._adapter.remember(self.preprocessing_)
            self._adapter = in_precision(self._adapter, self.precision)
        return self._adapter

    def _restore_readout(self) -> None:
        if not self._adapter.is_settled:  # the model itself does not settle it
            self._adapter.readout = readout(self.task_, is_probability=self.gives_probabilities_)

    @property
    def output_names(self) -> np.ndarray | None:
        return self.output_names_ if self.classes_ is None else self.classes_

    @property
    def target_layers(self) -> list[TargetLayer]:
        return self.as_explainer().target_layers_

    # Prediction

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]  # scikit-learn is untyped
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class.

        Parameters
        ----------
        X : images

        Returns
        -------
        ndarray of shape (n_images, n_classes), in [0, 1]
            The probabilities, in the order of ``classes_``. A skorch net's own nonlinearity makes
            them. Otherwise they are the softmax of the output (the sigmoid for "binary" and
            "multilabel"), or the output itself if it already holds probabilities. Rows add up to 1,
            except for "multilabel". For "segmentation", the shape is (n_images, n_classes, height,
            width), at the output's size.
        """
        return fetch_all(map(self.probabilities, self._iter_outputs(X)))

    def _iter_outputs(self, X: Any) -> Iterator[Tensor]:
        check = ExplanationCheck()
        for batch in self.open(X).batches():
            output = self.output_of(batch.inputs)
            if output.ndim != 2 and self.task_ is None:
                raise ValueError(
                    f"The network's output has shape {tuple(output.shape)}, not (n_images, "
                    "n_classes), so there are no classes to predict. If the network classifies "
                    'pixels, set task="segmentation".'
                )
            check.add(output, "outputs of the network", n_axes=output.ndim - 1, blank=False)
            yield output
        check.warn()

    def predict(self, X: Any) -> Any:
        """Return the prediction for each image.

        Parameters
        ----------
        X : images

        Returns
        -------
        ndarray of shape (n_images,) or (n_images, n_outputs)
            The most probable label, one of ``classes_``. It is a number if only ``class_names_``
            has names. For "multilabel", 0 and 1: labels with a probability above 0.5 are 1. For
            "regression", the numbers, of shape (n_images,) if there is one per image. For
            "segmentation", the label of each pixel, (n_images, height, width), at the output's
            size. For "detection", a list of dicts, one per image: "boxes" (k, 4), x1, y1, x2, y2 in
            pixels of the original image, "scores" (k,), and "labels" (k,), from ``classes_`` if it
            is not None.
        """
        if self.adapter.task == "detection":
            return detections(self, X)
        decisions = fetch_all(map(self.decide, self._iter_outputs(X)))
        return self.adapter.readout.labels(decisions, self.output_names)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy on X, or :math:`R^2` for a regression.

        Parameters
        ----------
        X : images
        y : array-like of shape (n_images,) or (n_images, n_outputs), or label sets
            The true labels. They may be left out for a data set that has ``targets``. For
            "multilabel", a table of 0 and 1, or a set of labels for each image. For "regression",
            numbers.
        sample_weight : array-like of shape (n_images,) or None, default=None

        Returns
        -------
        float
            In [0, 1], except for "regression". For "multilabel", the fraction of images whose
            labels are all correct.
        """
        if self.adapter.task in ("segmentation", "detection"):
            raise ValueError(
                f"score compares one prediction per image with its label, but the task is "
                f"{self.adapter.task!r}. Compare predict(X) with the truth yourself, for example "
                "with sklearn.metrics.jaccard_score."
            )
        expected = self.expected_labels(X, y, "score")
        measure = r2_score if self.task_ == "regression" else accuracy_score
        return float(measure(expected, self.predict(X), sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        task = getattr(self, "task_", self.task)
        if task == "regression":
            tags.estimator_type, tags.classifier_tags = "regressor", None
            tags.regressor_tags = RegressorTags()
        elif task in ("auto", "multilabel"):
            tags.classifier_tags.multi_label = True
        return tags

    def __sklearn_clone__(self) -> CAMExplainer:
        options = self.get_params(deep=False)
        return type(self)(
            **{
                name: value if name == "model" else clone(value, safe=False)
                for name, value in options.items()
            }
        )
