"""Adapters: one object that knows the kind of a network.

How a network is called, what its output means and how images are prepared for it depend on where it
comes from. :func:`adapt` decides this once, and all other code asks the adapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from skorch import NeuralNet, NeuralNetBinaryClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sklcam.images.dataset import ImageDataset
from sklcam.images.framed import FramedDataset, FramedItems, collate_framed, way_to_start
from sklcam.images.frames import Decode, Resizing
from sklcam.networks.dense import dense_task
from sklcam.networks.detectors import extent_within, join_detections
from sklcam.networks.dry_run import evaluating
from sklcam.networks.fetching import sent_to
from sklcam.networks.inputs import Inputs, NetworkTensors, is_network_input, stem_of
from sklcam.networks.layers import TargetLayer
from sklcam.networks.nested import Nesting, unnest
from sklcam.networks.own_normalization import with_own_normalization
from sklcam.networks.precision import at_least_float32
from sklcam.networks.preprocessing import Preprocessing
from sklcam.networks.readouts import Readout, Task, Unread, readout
from sklcam.networks.sources import origin_of
from sklcam.networks.tasks import Evidence, check_agrees, settle, task_of_config, task_of_criterion


@dataclass(frozen=True)
class Preparation:
    """How images are read, how they become a network's input, and which output counts.

    None and "auto" stand for the network's own way, if it has one.

    Parameters
    ----------
    image_size, resize, mean, std, batch_size, num_workers, output_name, decode
        See :class:`~sklcam.CAMExplainer`.

    Examples
    --------
    >>> from sklcam.networks import Preparation
    >>> Preparation(image_size=128, mean=0.5).changed()
    ['image_size', 'mean']
    """

    image_size: int | tuple[int, int] | None = None
    resize: Literal["stretch", "center_crop"] | None = None
    mean: Any = "auto"
    std: Any = "auto"
    batch_size: int = 32
    num_workers: int = 0
    output_name: str | int | None = None
    decode: Decode = "exact"

    def changed(self) -> list[str]:
        """Return the names of the parameters about the images that are not at their defaults."""

        def is_default(value: object) -> bool:
            return value is None or (isinstance(value, str) and value in ("auto", "exact"))

        about_images = ("image_size", "resize", "mean", "std", "output_name", "decode")
        return [name for name in about_images if not is_default(getattr(self, name))]


class Adapter(ABC):
    """A network, how it is called, and what its output means.

    Attributes
    ----------
    readout : Readout
        How the network's outputs are read. Until ``fit`` has decided, they are left as they are.
    task : str or None
        See :class:`~sklcam.CAMExplainer`; None for an embedding, or an output of another form.
    resize : Resizing
        How images are brought to the network's input size.
    input_size : tuple of int
        Height and width that images are resized to; for volumes, depth, height and width.
    labels : ndarray of shape (n_classes,) or None
        The labels of the columns that the readout makes, if the model knows them.
    target_layer : TargetLayer or None
        The layer to explain, if the model itself names one.
    gives_probabilities : bool
        Whether the network already returns probabilities, from a softmax or a sigmoid.
    autocast : torch.dtype or None
        The dtype that the network computes in under autocast; None if it uses its own.

    Examples
    --------
    The adapter of an explainer describes its network:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> adapter = CAMExplainer(network, target_layer="0", image_size=8).fit().adapter
    >>> adapter.task, adapter.input_size, adapter.resize.mode
    ('multiclass', (8, 8), 'stretch')
    >>> adapter.probabilities(torch.zeros(1, 4))
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    readout: Readout = Unread()
    is_settled: bool = True  # False if fit has to find out what the output is
    labels: np.ndarray | None = None
    target_layer: TargetLayer | None = None
    autocast: torch.dtype | None = None

    @property
    def task(self) -> Task | None:
        return self.readout.task

    @property
    def gives_probabilities(self) -> bool:
        return self.readout.is_probability

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network whose layers are recorded; NotFittedError if there is none yet."""

    # Images

    @abstractmethod
    def preprocessing(self, n_channels: int = 3) -> Preprocessing:
        """Return how images of this many channels become the network's input, and who says so."""

    def remember(self, preprocessing: Preprocessing) -> None:  # noqa: B027  a net knows its own
        """Use a saved preprocessing, as its file does not hold the sources that it came from."""

    def look_at_inputs(self, sample: Inputs) -> None:  # noqa: B027  a net has done so in fit
        """Find out if the network normalises images itself, unless their preparation is known."""

    @property
    def resize(self) -> Resizing:
        return self.preprocessing().resizing

    @property
    def input_size(self) -> tuple[int, ...]:
        return self.preprocessing().image_size

    @abstractmethod
    def dataset(self, X: Any) -> FramedDataset:
        """Check X and return it as a data set at the network's input size."""

    @abstractmethod
    def loader(self, items: FramedItems) -> Iterable[Any]:
        """Return an iterable that reads the items in batches, collated by ``collate_framed``."""

    @abstractmethod
    def prepare(self, images: Tensor, dataset: FramedDataset) -> Tensor:
        """Bring a batch of a data set to the device, in the form that the network takes."""

    def blank(self) -> Tensor:
        """Return a blank image in the form that the network takes, for a dry run."""
        stem = stem_of(self.network)
        device, dtype = _where(self.network)
        n_channels = 3 if stem is None else stem.in_channels
        return torch.zeros(1, n_channels, *self.input_size, device=device, dtype=dtype)

    # The network

    def extent(self, size: tuple[int, ...]) -> tuple[float, float]:
        """Return the fractions of a layer's field that images of a size fill, from the top left."""
        return 1.0, 1.0

    @abstractmethod
    def forward(self, inputs: Inputs) -> Tensor:
        """Run the network, in whatever mode it is in.

        Returns
        -------
        Tensor
            The columns that the readout makes of the output, or of the first of several.
        """

    def evaluating(self) -> AbstractContextManager[None]:
        """Set the network to evaluation mode, and restore the mode of each module afterwards."""
        return evaluating(self.network)

    # What outputs mean

    def settle(self, evidence: Evidence) -> None:
        """Decide how outputs are read. Called once, in ``fit``; some models know it themselves."""
        check_agrees(evidence, self.task)

    def own(self, columns: Tensor) -> Tensor:
        """Return the network's own output, from which the columns were made."""
        return self.readout.own(columns)

    def probabilities(self, columns: Tensor) -> Tensor:
        """Turn columns (n_images, n_classes) into probabilities of the same shape."""
        return self.readout.probabilities(columns)

    def decide(self, columns: Tensor) -> Tensor:
        """Return the predictions, as ``Readout.decide`` does."""
        answers = self.probabilities(columns) if self.readout.has_probabilities else columns
        return self.readout.decide(answers)


class AdapterAround(Adapter):
    """An adapter that delegates everything to another one; subclasses change a part of it."""

    def __init__(self, inner: Adapter):
        self.inner = inner
        self.labels, self.target_layer = inner.labels, inner.target_layer
        self.is_settled = inner.is_settled

    @property
    def readout(self) -> Readout:
        return self.inner.readout

    @readout.setter
    def readout(self, readout: Readout) -> None:
        self.inner.readout = readout

    @property
    def network(self) -> nn.Module:
        return self.inner.network

    def preprocessing(self, n_channels: int = 3) -> Preprocessing:
        return self.inner.preprocessing(n_channels)

    def remember(self, preprocessing: Preprocessing) -> None:
        self.inner.remember(preprocessing)

    def look_at_inputs(self, sample: Inputs) -> None:
        self.inner.look_at_inputs(sample)

    def dataset(self, X: Any) -> FramedDataset:
        return self.inner.dataset(X)

    def loader(self, items: FramedItems) -> Iterable[Any]:
        return self.inner.loader(items)

    def prepare(self, images: Tensor, dataset: FramedDataset) -> Tensor:
        return self.inner.prepare(images, dataset)

    def blank(self) -> Tensor:
        return self.inner.blank()

    def extent(self, size: tuple[int, ...]) -> tuple[float, float]:
        return self.inner.extent(size)

    def forward(self, inputs: Inputs) -> Tensor:
        return self.inner.forward(inputs)

    def settle(self, evidence: Evidence) -> None:
        self.inner.settle(evidence)

    def probabilities(self, columns: Tensor) -> Tensor:
        return self.inner.probabilities(columns)

    def decide(self, columns: Tensor) -> Tensor:
        return self.inner.decide(columns)


class LastStep(AdapterAround):
    """The last step of a pipeline: X goes through the earlier steps first."""

    def __init__(self, inner: Adapter, transformers: Sequence[Any]):
        super().__init__(inner)
        self.transformers = transformers

    def dataset(self, X: Any) -> FramedDataset:
        for transformer in self.transformers:
            X = transformer.transform(X)
        return super().dataset(X)


@runtime_checkable
class Adaptable(Protocol):
    """An estimator with an adapter of its own."""

    def as_adapter(self) -> Adapter: ...


def adapt(model: nn.Module | NeuralNet | Adaptable | Nesting, preparation: Preparation) -> Adapter:
    """Return the adapter for a model. No other code asks what kind of model it is.

    Parameters
    ----------
    model : nn.Module, skorch net, estimator of this library, or one of these nested
    preparation : Preparation

    Returns
    -------
    Adapter

    Raises
    ------
    ValueError
        If this model prepares images itself and the preparation changes a default.

    Examples
    --------
    >>> from torch import nn
    >>> from sklcam.networks.adapters import Preparation, adapt
    >>> type(adapt(nn.Identity(), Preparation())).__name__
    'ModuleAdapter'
    """
    model, transformers = unnest(model)
    if transformers:
        return LastStep(adapt(model, preparation), transformers)
    if isinstance(model, Adaptable):
        if preparation.changed():
            raise ValueError(
                f"{', '.join(preparation.changed())} cannot be set for a {type(model).__name__}, "
                "which prepares images as in its training. Leave each at its default."
            )
        return model.as_adapter()
    if isinstance(model, NeuralNet):
        return SkorchAdapter(model, preparation)
    if dense_task(model) == "detection":
        return DetectorAdapter(model, preparation)
    return ModuleAdapter(model, preparation)


class ModuleAdapter(Adapter):
    """A bare network. Float tensors go in as they are; other images are prepared for it."""

    is_settled = False

    def __init__(self, model: nn.Module, preparation: Preparation):
        self.model = model
        self.preparation = preparation
        self._preprocessing: Preprocessing | None = None
        self._is_remembered = False

    @property
    def network(self) -> nn.Module:
        return self.model

    def preprocessing(self, n_channels: int = 3) -> Preprocessing:
        if self._preprocessing is None:
            self._preprocessing = origin_of(self.network).preprocessing
        known, given = self._preprocessing.of_channels(n_channels), self.preparation
        if self._is_remembered:
            return known
        return known.with_given(
            image_size=given.image_size,
            resize=given.resize,
            mean=given.mean,
            std=given.std,
            decode=given.decode,
        )

    def remember(self, preprocessing: Preprocessing) -> None:
        self._preprocessing, self._is_remembered = preprocessing, True

    def look_at_inputs(self, sample: Inputs) -> None:
        origin, given = origin_of(self.network), self.preparation
        is_given = not any(isinstance(each, str) for each in (given.mean, given.std))
        if origin.is_known or self._is_remembered or is_given:
            return

        def forward(images: Tensor) -> object:
            return self.forward(sample.with_images(images, torch.zeros(1, dtype=torch.int64)))

        with self.evaluating():
            self._preprocessing = with_own_normalization(
                origin.preprocessing, forward, sample.images[:1]
            )

    def dataset(self, X: Any) -> FramedDataset:
        if is_network_input(X):
            return NetworkTensors(X, are_volumes=isinstance(stem_of(self.network), nn.Conv3d))
        return ImageDataset(X, image_size=self.input_size, resize=self.resize)

    def loader(self, items: FramedItems) -> Iterable[Any]:
        return DataLoader(
            items,
            batch_size=self.preparation.batch_size,
            num_workers=self.preparation.num_workers,
            collate_fn=collate_framed,
            multiprocessing_context=way_to_start(self.preparation.num_workers),
            # A loader always draws a seed; this keeps the global generator untouched.
            generator=torch.Generator().manual_seed(0),
        )

    def prepare(self, images: Tensor, dataset: FramedDataset) -> Tensor:
        device, dtype = _where(self.network)
        # Sent before the conversion, as bytes take a quarter of the memory of floats.
        images = sent_to(device, images)
        if not isinstance(dataset, NetworkTensors):
            images = self.preprocessing(images.shape[1]).normalize(images)
        return images.to(dtype)

    def forward(self, inputs: Inputs) -> Tensor:
        name = self.preparation.output_name
        return self.readout.columns(inputs.call(self.network, output_name=name))

    def settle(self, evidence: Evidence) -> None:
        self.readout = settle(evidence, task_of_config(self.network) or dense_task(self.network))


class DetectorAdapter(ModuleAdapter):
    """A detector of torchvision, which resizes and normalises images itself.

    Images therefore keep their own size, which must be the same for all of them, unless
    ``image_size`` sets another.
    """

    def preprocessing(self, n_channels: int = 3) -> Preprocessing:
        if self._preprocessing is None:
            known = origin_of(self.network).preprocessing
            self._preprocessing = replace(
                known, mean=0.0, std=1.0, source="the detector's own transform"
            )
        return super().preprocessing(n_channels)

    def look_at_inputs(self, sample: Inputs) -> None:
        pass  # its transform is known

    def dataset(self, X: Any) -> FramedDataset:
        if is_network_input(X) or self.preparation.image_size is not None:
            return super().dataset(X)
        images = ImageDataset(X)
        size = images.original_size(0) if len(images) == 1 else images.uniform_size
        if size is None:
            raise ValueError(
                "The images have several sizes or unknown ones, and a detector, which resizes "
                "images itself, takes batches of a single size. Give image_size=, or explain the "
                "images of each size separately, as arrays."
            )
        return ImageDataset(X, image_size=size, resize=self.resize)

    def extent(self, size: tuple[int, ...]) -> tuple[float, float]:
        return extent_within(self.network, size)

    def forward(self, inputs: Inputs) -> Tensor:
        def detect(images: Tensor) -> Tensor:
            return join_detections(self.network([*images]))

        found: Tensor = inputs.call(self.network, detect)
        return found

    def settle(self, evidence: Evidence) -> None:
        check_agrees(evidence, "detection")
        self.readout = readout("detection")


def nonlinearity_of(net: NeuralNet) -> Callable[[Tensor], Tensor]:
    """Return the function that turns a skorch net's output into probabilities.

    Parameters
    ----------
    net : NeuralNet
        A fitted net.
    """
    # Skorch chooses it by the criterion, in a method without a public name.
    found: Callable[[Tensor], Tensor] = net._get_predict_nonlinearity()
    return found


class SkorchAdapter(ModuleAdapter):
    """A fitted skorch net: called by its ``infer``, read by its own nonlinearity."""

    model: NeuralNet

    @property
    def network(self) -> nn.Module:
        if not getattr(self.model, "initialized_", False) or not hasattr(self.model, "module_"):
            raise NotFittedError(
                f"The {type(self.model).__name__} is not fitted. Fit it before it is explained."
            )
        return self.model.module_

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        if self.task in ("multilabel", "regression"):  # skorch mistakes the values of y for classes
            given = getattr(self.model, "classes", None)
            return None if given is None else np.asarray(given)
        try:
            return np.asarray(self.model.classes_)
        except AttributeError:  # regressors have no classes, nor do nets without labels
            return None

    def forward(self, inputs: Inputs) -> Tensor:
        name = self.preparation.output_name
        output = inputs.call(self.network, self.model.infer, output_name=name)
        return self.readout.columns(output)

    def settle(self, evidence: Evidence) -> None:
        self.readout = self._settled(evidence)

    def _settled(self, evidence: Evidence) -> Readout:
        model = self.model
        task, is_probability = task_of_criterion(getattr(model, "criterion_", None), evidence)
        if task is None and isinstance(model, NeuralNetBinaryClassifier):
            return settle(evidence, "binary")
        # If the output is one row of numbers per image, the criterion tells what they mean.
        is_softmax_of_one = task == "multiclass" and evidence.n_outputs == 1
        if task is None or not evidence.n_outputs or is_softmax_of_one:
            return settle(evidence, task)
        check_agrees(evidence, task)
        if model.predict_nonlinearity is None:  # the output is already the prediction
            is_probability = task != "regression"
        return readout(task, is_probability=is_probability)

    def probabilities(self, columns: Tensor) -> Tensor:
        own_way = self.model.predict_nonlinearity
        if self.task == "regression" or not (callable(own_way) or self.task == "multiclass"):
            return super().probabilities(columns)
        found = nonlinearity_of(self.model)(at_least_float32(self.own(columns)))
        if self.task == "binary" and found.numel() == len(found):
            found = found.reshape(-1, 1)
            return torch.cat([1 - found, found], dim=1)
        return found

    def decide(self, columns: Tensor) -> Tensor:
        if self.task == "binary" and isinstance(self.model, NeuralNetBinaryClassifier):
            return (self.probabilities(columns)[:, 1] > self.model.threshold).long()
        return super().decide(columns)


def _where(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and the dtype that a network computes in."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.get_default_dtype()
