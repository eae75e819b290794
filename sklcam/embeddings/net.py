"""A skorch net that learns to embed images and can be explained by an EmbeddingCAMExplainer.

Losses, miners and samplers come from pytorch-metric-learning, which is imported when one is given
by name. This module adds what a scikit-learn estimator needs: they get the number of classes and
dimensions, draw from the estimator's own generators, and work in searches and in files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions
from skorch.utils import to_device
from torch import Tensor, nn
from torch.utils.data import Sampler

from sklcam.embeddings.explainer import EmbeddingCAMExplainer
from sklcam.embeddings.proxies import is_name
from sklcam.embeddings.targets import normalized
from sklcam.images.labels import check_labels, labels_for
from sklcam.metrics import recall_at_k
from sklcam.networks.construction import copy_instance, parameter_names
from sklcam.networks.layers import TargetLayer
from sklcam.training.net import ImageNeuralNet


@dataclass(frozen=True)
class _Part:
    """A part of pytorch-metric-learning: its class, its options, and for a loss its companions."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    miner: str | None = None
    sampler: str | None = None


_LOSSES = {
    "margin": _Part("MarginLoss", {"learn_beta": True}, "distance-weighted", "m-per-class"),
    "triplet": _Part("TripletMarginLoss", {"margin": 0.2}, "semihard", "m-per-class"),
    "proxy-anchor": _Part("ProxyAnchorLoss"),
    "proxy-nca++": _Part("ProxyNCALoss", {"softmax_scale": 9}, None, "m-per-class"),
}
_MINERS = {
    "distance-weighted": _Part("DistanceWeightedMiner"),
    "semihard": _Part("TripletMarginMiner", {"margin": 0.2, "type_of_triplets": "semihard"}),
}
_SAMPLERS = {"m-per-class": _Part("MPerClassSampler", {"m": 4})}


class EmbeddingNet(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ImageNeuralNet):
    """A scikit-learn transformer that embeds images of the same class near each other.

    The network ends in a linear layer with ``embedding_dim`` outputs. Losses compare the embeddings
    normalised to length 1, and :meth:`transform` returns these; the network in ``module_`` returns
    them unnormalised, which is what :class:`~sklcam.EmbeddingCAMExplainer` explains.

    Parameters
    ----------
    module : str, nn.Module class or instance, or callable, default="resnet18"
        A name that :class:`~sklcam.ConsistentCAMClassifier` takes. A class or callable is given
        ``embedding_dim``, ``num_classes`` or ``n_classes`` (with the same value), and
        ``in_channels``, if it takes them, and ``module__...`` parameters. An instance is copied,
        never changed.
    embedding_dim : int, default=128
        Dimensions of the embedding.
    criterion : str, class or instance of a loss, default="margin"
        "margin" is the margin loss with a boundary that is learned for each class [1]_; "triplet"
        that of FaceNet [2]_; "proxy-anchor" [3]_; "proxy-nca++" the probabilities and the
        temperature of [4]_. Or any loss of pytorch-metric-learning, or one that is called in the
        same way: ``loss(embeddings, labels)``, and with a miner ``loss(embeddings, labels,
        tuples)``. A class is given ``num_classes`` and ``embedding_size``, if it takes them, and
        ``criterion__...`` parameters.
    miner : str, class or instance of a miner, or None, default="auto"
        "distance-weighted" [1]_, "semihard" [2]_, or any miner of pytorch-metric-learning, with
        ``miner__...`` parameters. "auto" follows the criterion: "distance-weighted" for "margin",
        "semihard" for "triplet", else none.
    sampler : str, class or callable, or None, default="auto"
        How batches are put together. "m-per-class" takes 4 images (``sampler__m``) of each class in
        turn, so every batch has pairs; a class or callable takes the labels, as an ndarray of int,
        and ``sampler__...`` parameters. None shuffles. "auto" is None for "proxy-anchor", which
        needs no pairs, and otherwise "m-per-class".
    weights, target_layer, augment, image_size, resize, decode, mean, std, recalibrate
        See :class:`~sklcam.ConsistentCAMClassifier`.
    random_state, device
        See :class:`~sklcam.ConsistentCAMClassifier`.
    normalize : bool, default=True
        Whether :meth:`transform` normalises embeddings to length 1.
    proxy_lr : float or None, default=None
        Learning rate of the loss's own parameters, such as proxies and boundaries; None is 10 times
        ``lr``, which with the default ``lr`` is the 1e-2 of [3]_.
    optimizer, lr, max_epochs, batch_size, train_split, iterator_train__shuffle
        As in skorch; the defaults are AdamW and a rate of 1e-3, for training from scratch. With
        pretrained ``weights``, 1e-4 is usual.
    classes : array-like or None, default=None
        All labels, for when ``y`` may not hold every one.
    **kwargs
        Any other parameter of :class:`skorch.NeuralNet`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    module_ : nn.Module
        The trained network.
    criterion_, miner_ : nn.Module
        The loss with what it has learned, and the miner or None.
    target_layer_ : TargetLayer
        The layer that is explained.
    n_channels_ : int
        Channels of the images.
    recalibrated_ : int
        How many images the running statistics were re-estimated on; 0 if they were not.
    history : skorch.history.History
        Per epoch ``train_loss``, and ``valid_loss`` if there is a validation split.
    history_frame_ : pandas.DataFrame
        The same as a table, a row for each epoch; pandas must be installed.

    References
    ----------
    .. [1] Wu, Manmatha, Smola, Krähenbühl, "Sampling Matters in Deep Embedding Learning", ICCV
       2017.
    .. [2] Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015.
    .. [3] Kim, Kim, Cho, Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020.
    .. [4] Teh, DeVries, Taylor, "ProxyNCA++", ECCV 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklcam import EmbeddingCAMExplainer, EmbeddingNet
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> X = (X / 16).reshape(-1, 8, 8)
    >>> net = EmbeddingNet("resnet18", embedding_dim=16, image_size=64, max_epochs=1, verbose=0,
    ...                    random_state=0)
    >>> net.fit(X[:96], y[:96]).transform(X[96:100]).shape
    (4, 16)
    >>> explainer = EmbeddingCAMExplainer(net, verbose=0).fit(X[:96], y[:96])
    >>> explainer.explain(X[96:100]).shape  # of the nearest class
    (4, 64, 64)
    >>> pipeline = make_pipeline(net, KNeighborsClassifier())
    >>> pipeline.fit(X[:96], y[:96]).predict(X[96:100]).shape
    (4,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ImageNeuralNet._parameter_constraints,
        "embedding_dim": [Interval(Integral, 1, None, closed="left")],
        "criterion": [StrOptions(set(_LOSSES)), nn.Module, type, callable],
        "miner": [StrOptions({"auto", *_MINERS}), nn.Module, type, callable, None],
        "sampler": [StrOptions({"auto", *_SAMPLERS}), type, callable, None],
        "normalize": ["boolean"],
        "proxy_lr": [None, Interval(Real, 0, None, closed="left")],
    }
    _outputs_are: ClassVar[str] = "embedding dimensions"
    _module_like: ClassVar[tuple[str, ...]] = (*ImageNeuralNet._module_like, "miner")
    _late: ClassVar[tuple[str, ...]] = (*ImageNeuralNet._late, "sampler")
    prefixes_: ClassVar[list[str]] = [*ImageNeuralNet.prefixes_, "sampler"]

    criterion_: nn.Module
    miner_: nn.Module | None

    def __init__(
        self,
        module: Any = "resnet18",
        *,
        embedding_dim: int = 128,
        criterion: Any = "margin",
        miner: Any = "auto",
        sampler: Any = "auto",
        weights: Any = None,
        target_layer: str | TargetLayer = "auto",
        normalize: bool = True,
        augment: Any = "auto",
        image_size: int | tuple[int, int] | None = 224,
        resize: str | None = "stretch",
        decode: str = "exact",
        mean: Any = "auto",
        std: Any = "auto",
        recalibrate: str | bool = "auto",
        random_state: Any = None,
        device: Any = "auto",
        optimizer: Any = torch.optim.AdamW,
        lr: float = 1e-3,
        proxy_lr: float | None = None,
        max_epochs: int = 20,
        batch_size: int = 32,
        train_split: Any = None,
        iterator_train__shuffle: bool = True,
        classes: Any = None,
        **kwargs: Any,
    ):
        self.embedding_dim = embedding_dim
        self.miner = miner
        self.sampler = sampler
        self.weights = weights
        self.target_layer = target_layer
        self.normalize = normalize
        self.augment = augment
        self.image_size = image_size
        self.resize = resize
        self.decode = decode
        self.mean = mean
        self.std = std
        self.recalibrate = recalibrate
        self.random_state = random_state
        self.proxy_lr = proxy_lr
        self.classes = classes
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
            **kwargs,
        )

    # What is trained, and on what

    @property
    def n_outputs(self) -> int:
        return self.embedding_dim

    def _module_options(self) -> dict[str, Any]:
        options = super()._module_options()
        if callable(self.module) and "embedding_dim" in parameter_names(self.module):
            options.setdefault("embedding_dim", self.embedding_dim)
        return options

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if any(isinstance(part, str) for part in (self.criterion, *self._miner_and_sampler())):
            _metric_learning("losses")  # an error now rather than once images are read

    def _miner_and_sampler(self) -> tuple[Any, Any]:
        """Return the miner and the sampler; those left open are chosen to suit the criterion."""
        # An unknown loss may need pairs, so it gets some.
        loss = _Part("", sampler="m-per-class")
        if isinstance(self.criterion, str):
            loss = _LOSSES[self.criterion]
        miner = loss.miner if is_name(self.miner, "auto") else self.miner
        sampler = loss.sampler if is_name(self.sampler, "auto") else self.sampler
        return miner, sampler

    def initialize_criterion(self) -> EmbeddingNet:
        with self._own_randomness():
            self.criterion_ = self._make_criterion()
            self.miner_ = self._make_miner()
        self._n_features_out = self.embedding_dim  # of the network that has just been built
        return self

    def _make_criterion(self) -> nn.Module:
        options = self.get_params_for("criterion")
        if isinstance(self.criterion, nn.Module):
            return copy_instance(self.criterion, options, "criterion")
        loss, options = _by_name("losses", self.criterion, _LOSSES, options)
        sizes = {"num_classes": len(self.classes_), "embedding_size": self.embedding_dim}
        return loss(**_taken_by(loss, sizes, options), **options)

    def _make_miner(self) -> nn.Module | None:
        options = self.get_params_for("miner")
        miner, _ = self._miner_and_sampler()
        if isinstance(miner, nn.Module):
            return copy_instance(miner, options, "miner")
        miner, options = _by_name("miners", miner, _MINERS, options)
        return None if miner is None else miner(**options)

    def get_iterator(self, dataset: Any, training: bool = False) -> Iterable[Any]:
        options = self.get_params_for("iterator_train")
        make = None
        if training and not {"sampler", "batch_sampler"} & options.keys():  # of the user's own
            make = self._sampler_maker()
        if make is None:
            return super().get_iterator(dataset, training=training)
        sampler = OwnSampler(make, labels_for(dataset, None, "sampler"))
        options.pop("shuffle", None)
        if sampler.makes_batches:
            options.pop("batch_size", None)
            loader = self.iterator_train(dataset, batch_sampler=sampler, **options)
            return self._equipped(loader, training)
        options.setdefault("batch_size", self.batch_size)
        if options["batch_size"] == -1:
            options["batch_size"] = len(sampler)
        return self._equipped(self.iterator_train(dataset, sampler=sampler, **options), training)

    def _sampler_maker(self) -> Callable[[np.ndarray], Sampler[Any]] | None:
        """Return a function that makes a sampler from labels, or None."""
        options = self.get_params_for("sampler")
        _, sampler = self._miner_and_sampler()
        sampler, options = _by_name("samplers", sampler, _SAMPLERS, options)
        if sampler is None:
            return None

        def make(labels: np.ndarray) -> Sampler[Any]:
            # Unless told otherwise, a pass of pytorch-metric-learning's sampler has 100,000 images.
            n_of_a_turn = options.get("m", 1) * len(np.unique(labels))
            sizes = {"length_before_new_iter": max(len(labels), n_of_a_turn)}
            return sampler(labels, **_taken_by(sampler, sizes, options), **options)

        return make

    def get_params_for_optimizer(
        self, prefix: str, named_parameters: Any
    ) -> tuple[Any, dict[str, Any]]:
        args, kwargs = super().get_params_for_optimizer(prefix, named_parameters)
        (groups,) = args
        learned = {id(parameter) for parameter in self.criterion_.parameters()}
        if not learned or not self._groups_are_own():
            return args, kwargs
        parameters = [parameter for group in groups for parameter in group["params"]]
        groups = [
            {"params": [p for p in parameters if id(p) not in learned]},
            {"params": [p for p in parameters if id(p) in learned]},
        ]
        groups[1]["lr"] = self._proxy_rate(kwargs["lr"])
        if "weight_decay" in parameter_names(self.optimizer):
            groups[1]["weight_decay"] = 0  # a boundary has no reason to go to zero
        return (groups,), kwargs

    def _proxy_rate(self, lr: float) -> float:
        return 10 * lr if self.proxy_lr is None else self.proxy_lr

    def set_params(self, **kwargs: Any) -> EmbeddingNet:
        """Set parameters, as scikit-learn does; on a fitted net, they apply from the next step on.

        Parameters
        ----------
        **kwargs

        Returns
        -------
        self
        """
        super().set_params(**kwargs)
        groups = self.optimizer_.param_groups if self.initialized_ else []
        if {"lr", "proxy_lr"} & kwargs.keys() and len(groups) == 2 and self._groups_are_own():
            groups[1]["lr"] = self._proxy_rate(groups[0]["lr"])
        return self

    def _groups_are_own(self) -> bool:
        return "optimizer__param_groups" not in vars(self)

    def get_loss(
        self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        labels = to_device(y_true, self.device)
        if self.miner_ is None:
            return self.criterion_(y_pred, labels)
        return self.criterion_(y_pred, labels, self.miner_(y_pred, labels))

    def _parted(self, ours: Tensor, theirs: Tensor) -> Tensor:
        # Losses compare directions; lengths mean nothing.
        return super()._parted(*(nn.functional.normalize(each) for each in (ours, theirs)))

    # Embeddings

    def transform(self, X: Any) -> np.ndarray:
        """Return the embeddings of images.

        Parameters
        ----------
        X : images
            In any form that :meth:`fit` takes.

        Returns
        -------
        ndarray of shape (n_images, embedding_dim), float32
            Of length 1 with ``normalize``; otherwise as the network returns them.

        Raises
        ------
        ValueError
            If embeddings are zero or not finite, and so cannot be normalised.
        """
        return self._embed(X, normalize=self.normalize)

    def _embed(self, X: Any, *, normalize: bool) -> np.ndarray:
        self.check_is_fitted()
        batches = self.forward_iter(X)
        made = [normalized(batch) if normalize else batch for batch in batches]
        return torch.cat(made).float().numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Return recall at 1, leaving one out.

        Parameters
        ----------
        X : images
            In any form that :meth:`fit` takes, at least two.
        y : array-like of shape (n_images,)
            Labels, which need not be those of ``fit``. May be left out for a data set that has
            ``targets``.

        Returns
        -------
        float, in [0, 1]
            The share of images whose nearest other image has the same class. An image that is alone
            in its class counts as a miss.
        """
        self.check_is_fitted()
        labels = check_labels(X, y)
        return recall_at_k(self._embed(X, normalize=True), labels)

    def explain(self, X: Any, target: Any = None, **options: Any) -> Any:
        """Return one map per image: where it is like itself, or like another image.

        To explain classes, use :class:`~sklcam.EmbeddingCAMExplainer`, which learns their proxies.

        Parameters
        ----------
        X : images
            In any form that :meth:`fit` takes.
        target : images or None, default=None
            None is the image's own embedding. With reference images, one for each or one for all,
            maps show what makes an image like them.
        **options
            See :meth:`sklcam.CAMExplainer.explain`.

        Returns
        -------
        ndarray of shape (n_images, height, width), float32, in [0, 1]
        """
        return self.as_explainer().explain(X, target, **options)

    def as_explainer(self) -> EmbeddingCAMExplainer:
        """Return an explainer that explains images by their own embeddings.

        Returns
        -------
        EmbeddingCAMExplainer

        Raises
        ------
        NotFittedError
            If the net has not been fitted.
        """
        self.check_is_fitted()
        return EmbeddingCAMExplainer(self, proxy="self", verbose=self.verbose).fit()

    @property
    def proxies_(self) -> np.ndarray:
        """The proxies that the loss has learned, of shape (n_classes, embedding_dim), float32.

        In the order of ``classes_``. Losses without proxies have none.
        """
        if "criterion_" not in vars(self) or not hasattr(self.criterion_, "proxies"):
            raise AttributeError("proxies_ exists only after fitting with a loss that has proxies.")
        proxies: Any = self.criterion_.proxies
        return proxies.detach().float().cpu().numpy().copy()


class OwnSampler(Sampler[Any]):
    """A sampler that draws from torch's generator, which the estimator seeds.

    Samplers of pytorch-metric-learning draw from NumPy's global generator and continue where the
    last epoch stopped. Here each epoch starts from a fresh sampler, so two epochs and then two more
    equal four.

    Parameters
    ----------
    make : callable
        Takes labels and returns a sampler.
    labels : ndarray of shape (n_images,), int

    Attributes
    ----------
    makes_batches : bool
        Whether it yields batches of indices rather than indices.
    """

    def __init__(self, make: Callable[[np.ndarray], Sampler[Any]], labels: np.ndarray):
        with _numpy_random(0):
            self._fresh: Any = make(labels)
            # Only its output tells which kind it is; a copy is read, so that nothing is used up.
            first = next(iter(copy.deepcopy(self._fresh)), 0)
        self.makes_batches = not isinstance(first, Integral)

    def __iter__(self) -> Iterator[Any]:
        # A whole epoch at once: a generator would draw after the seed had been put back.
        with _numpy_random(int(torch.randint(2**31 - 1, ()))):
            return iter(list(copy.deepcopy(self._fresh)))

    def __len__(self) -> int:
        return len(self._fresh)


@contextmanager
def _numpy_random(seed: int) -> Iterator[None]:
    """Let pytorch-metric-learning draw from a generator of its own."""
    try:
        functions: Any = import_module("pytorch_metric_learning.utils.common_functions")
    except ImportError:  # then the sampler is not one of theirs
        yield
        return
    found = functions.NUMPY_RANDOM
    functions.NUMPY_RANDOM = np.random.RandomState(seed)
    try:
        yield
    finally:
        functions.NUMPY_RANDOM = found


def _by_name(
    module: str, part: Any, known: dict[str, _Part], options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return a part and its options; a name is looked up, and given options override its own."""
    if not isinstance(part, str):
        return part, options
    found = known[part]
    return _metric_learning(module, found.name), {**found.options, **options}


def _metric_learning(module: str, name: str | None = None) -> Any:
    """Return a module of pytorch-metric-learning, or something in it."""
    try:
        found = import_module(f"pytorch_metric_learning.{module}")
    except ImportError as error:
        raise ImportError(
            "Losses, miners and samplers given by name come from pytorch-metric-learning. "
            'Install it with: pip install "sklcam[metric-learning]"'
        ) from error
    return found if name is None else getattr(found, name)


def _taken_by(
    function: Callable[..., Any], values: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Return the values that a function has parameters for and that were not given."""
    names = parameter_names(function)
    # If a class passes **kwargs on, its parents have names for them.
    for parent in getattr(function, "__mro__", ()):
        names |= parameter_names(parent)
    return {key: value for key, value in values.items() if key in names and key not in given}
