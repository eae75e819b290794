"""The classifier that trains with consistent explanations, as a skorch net.

How it answers is in :mod:`sklcam.training._answering`, how it makes its steps in
:mod:`sklcam.training._stepping`; what all nets on images share, in :mod:`sklcam.training.net`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions
from skorch.callbacks import LRScheduler
from torch import Tensor

from sklcam.cam import GradientMethod
from sklcam.images.dataset import n_images
from sklcam.images.labels import given_labels
from sklcam.images.views import ViewSampler
from sklcam.networks.layers import TargetLayer
from sklcam.networks.precision import PRECISIONS
from sklcam.training import _criteria as criteria
from sklcam.training._answering import AnsweringNet
from sklcam.training._checks import check_scaling, check_window
from sklcam.training._data import (
    Annotations,
    Boxes,
    Classes,
    Masks,
    TrainingImages,
    boxes_of_labels,
)
from sklcam.training.agreement import AGREEMENTS, Comparison, agreement_of, check_negatives
from sklcam.training.collapse import CollapseWarning
from sklcam.training.mask_terms import MASK_LOSSES, MaskLoss, check_defined
from sklcam.training.net import ImageNeuralNet, Module
from sklcam.training.step import PHI, method_of
from sklcam.training.tasks import TASKS, Criterion
from sklcam.training.terms import Consistency, Sparsity, Term, check_terms, needs_masks
from sklcam.training.weights import Balanced, GradientSizes, Schedule, Weight


class ConsistentCAMClassifier(AnsweringNet):
    r"""Image classifier whose Grad-CAM maps are trained to follow crops and flips.

    It learns one class an image, or several labels, or numbers; see ``task``. The loss is
    :math:`\mathcal{L}_{CE} + \alpha\,(1 - \mathrm{SSIM}(t(\Phi(x)), \Phi(t(x))))
    + \beta\,\lVert\Phi(x)\rVert_p`, where :math:`\Phi` is Grad-CAM without the ReLU, or what
    ``phi`` says, and :math:`t` a recorded crop and flip.

    Parameters
    ----------
    module : str, nn.Module class or instance, or callable, default="resnet18"
        A name, of torchvision or with its source, such as ``"timm/resnet50"``: see
        :func:`sklcam.networks.build_model`. Head and stem are fitted to the classes and channels. A
        class or callable is given ``num_classes`` (or ``n_classes``) and ``in_channels`` if it
        takes them, and ``module__...`` parameters. An instance is copied, never changed.
    weights : None, "DEFAULT", name of weights, or path, default=None
        The weights that training starts from. A path is that of a state dict, loaded without
        running code from the file, or of a folder, for a name; a head of another size is replaced.
    target_layer : str or TargetLayer, default="auto"
        Dotted name of the layer that is explained; "auto" is the usual one of a known family, and
        otherwise the last layer with a spatial output. A :class:`sklcam.networks.TargetLayer` says
        how a layer's tokens form a grid.
    task : {"auto", "multiclass", "binary", "multilabel", "regression"}, default="auto"
        What is learned. "multiclass": one of several classes, with an output each. "binary": one of
        two, by a single output, the logit of the second class. "multilabel": any number of labels
        an image, with an output each. "regression": numbers, which the outputs are.

        "auto" goes by ``y``: tables of 0 and 1, and collections of labels, are "multilabel"; labels
        are "binary" with ``criterion=nn.BCEWithLogitsLoss`` or ``nn.BCELoss``, or if the network
        has one output and there are two; otherwise they are "multiclass". Numbers are learned only
        if "regression" is asked for, and a table of a single 1 a row only if "multilabel" is.

        The map of an image, :math:`\Phi`, explains what is predicted: the highest-scoring class; of
        one logit z the score z, or -z if the first class is predicted; the highest-scoring label,
        as the paper does not say which of several; the number itself, of which there may be only
        one if maps are trained on.
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
    agreement : {"ssim", "cgc", "mse"} or callable, default="ssim"
        How alpha's term compares the views of maps with the maps of views. "ssim" is one minus SSIM
        of maps in [0, 1]. "cgc" is :class:`sklcam.training.Contrastive`, which tells images of a
        batch from each other, and "mse" the mean over the pixels of the square of the difference of
        its maps of length 1, which is at most two by their number: give it ``alpha="auto"``. A
        callable takes both, in [0, 1] and of shape (n_images, height, width), and returns a tensor
        of a number an image, the lower the better. It is given a batch, or its part, as a whole,
        unless it has an attribute ``couples_images = False``.
    gamma : float >= 0, "auto", Balanced or callable, default=0.0
        Weight of the loss on annotated images, whose masks or boxes are given to :meth:`fit`: what
        is explained must lie in the object. With 0, and no other term that needs them, ``fit``
        warns of masks and boxes that it is given.
    mask_loss : {"energy", "rrr", "gradmask"}, default="energy"
        Which. "energy" is the share of the map of the labelled class that lies outside,
        :class:`sklcam.training.Energy`: it costs next to nothing. "rrr" and "gradmask" are of the
        gradient at the pixels, and need a multiple of the time and memory:
        :class:`sklcam.training.RightReasons`, and :class:`sklcam.training.GradMask`, which is for
        two classes.
    every : int, default=1
        Terms are part of each k-th step only, with k times their weight. The other steps are those
        of a plain classifier, so that the cost of terms goes down by k. Steps are counted through
        epochs and ``partial_fit``; more than ``fit`` makes is an error.
    ce_on : {"image", "view", "all"}, default="image"
        Of what there is a cross-entropy. "view": of the views of terms, too. "all": as CGC has it,
        images are taken as they are, not augmented; there is a cross-entropy of them, of their
        views, and, in a pass of its own, of augmented images. They are added up, and the history
        has the others as ``train_ce_view`` and ``train_ce_augmented``.
    view_gradient : bool, default=True
        False takes the map of the view for a constant: its pass costs no way back. As measured
        on photographs, maps become small rather than consistent.
    phi : {"gradcam", "hirescam", "layercam"} or GradientMethod, default="gradcam"
        The map that all terms are about. By name it is without the ReLU, as the paper's; an object
        of :mod:`sklcam.cam` such as ``HiResCAM()`` has it, unless it is made with ``relu=False``.
        :meth:`explain`, displays and metrics have a ``method`` of their own.
    view_target : {"predicted", "shared"}, default="predicted"
        The class explained on the view: the network's prediction there, or that on the image.
    memory : {"normal", "low"}, default="normal"
        "low" keeps the activations of the images and those of their views in memory one after the
        other, not together: a step holds about as much as plain training does, and runs the trunk
        once more. The gradient is the same. All that the target layer is made of must reach the
        output by way of the target layer alone, as in all networks with a name.
    precision : {"fp32", "bf16", "fp16"}, default="fp32"
        The type of numbers that the network computes in while it is trained. Maps, the loss and the
        weights are float32 in any case, and so is prediction:
        ``CAMExplainer(clf, precision="bf16")`` predicts and explains in half precision. With "fp16"
        the loss is scaled so that small gradients are not lost.
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
    image_size : int, (height, width), (depth, height, width) or None, default=224
        The size that images are resized to; at least 11 with ``alpha > 0``, the window of SSIM.
        None is what the network's source says, else 224. Three sides are those of volumes, which
        are not resized.
    resize : {"stretch", "center_crop"} or None, default="stretch"
        Both sides to ``image_size``, or the proportions kept and the middle cut out. None is what
        the network's source says, else "stretch".
    decode : {"exact", "fast"}, default="exact"
        "fast" reads large JPEG files at a fraction of their sides, at least twice what they are
        resized to: see :class:`~sklcam.images.Resizing`. What is cropped is read as it is.
    mean, std : "auto", float or one float a channel, default="auto"
        Normalisation after scaling to [0, 1]; "auto" is what the network's source says, else 0 and
        1 for a network that normalises its images itself, as ``fit`` measures, else ImageNet's.
        Pixels are interpolated as the source says, too, also in training crops.
    class_weight : dict, "balanced" or None, default=None
        How much the images of each class count in the criterion's loss, beside ``sample_weight``,
        by which it is multiplied. A dict holds weights by labels, or by their names in
        ``class_names_``; a class that is not in it has a weight of 1. "balanced" gives all classes
        of ``y`` the same weight together, n_images / (n_classes * images of the class). Not for
        "multilabel", where ``criterion__pos_weight`` does it, and regressions.
    freeze : "trunk", int or None, default=None
        "trunk" trains the head alone: the last layer with weights, or several that have as many
        outputs as the network. Batch normalisation before it stays as in evaluation. An int is for
        how many epochs, from the network's first one and on through ``partial_fit``. Terms on maps
        can change then how the head weighs the trunk's channels, and not where these respond.
    recalibrate : "auto" or bool, default="auto"
        Whether ``fit`` ends with re-estimating batch normalisation's running statistics, on the
        training images as :meth:`predict` reads them. "auto" is where they lag: where the network
        says something else of its training images in evaluation than in training mode. True is
        always, also in :meth:`partial_fit`. Layers that were not in training mode are left alone.
    random_state : int, RandomState or None, default=None
        Where all randomness of training comes from; the global generators are not touched.
        The first weights of an instance given as ``module`` are its own.
    device : str or torch.device, default="auto"
        "auto" is CUDA where there is one, else the CPU.
    criterion : class or instance of a loss, or "auto", default="auto"
        "auto" is that of the task: ``nn.CrossEntropyLoss``, ``nn.BCEWithLogitsLoss`` for "binary"
        and "multilabel", ``nn.MSELoss`` for "regression". ``criterion__weight`` weighs classes, and
        ``criterion__pos_weight`` what is labelled 1. One of your own is called with outputs and
        labels of one shape, floats, but for "multiclass" as cross-entropy is. A network that ends
        in a sigmoid goes with ``nn.BCELoss``.
    optimizer, lr, max_epochs, batch_size, train_split, iterator_train__shuffle
        As in skorch, with the paper's defaults: SGD with momentum 0.9 and weight decay 1e-4 (given
        by ``optimizer__...``), a learning rate of 1e-3, cut to a tenth every 30 epochs by the
        callback ``lr_scheduler`` (``callbacks__lr_scheduler__step_size=20`` is every 20; a
        scheduler among ``callbacks`` takes its place). There is no validation unless
        ``fit`` is given images for it, or ``train_split`` makes a split.
    classes : array-like or None, default=None
        The labels, where ``y`` may not hold them all. Those of a table of 0 and 1 name its columns,
        in their order; those of a regression, its numbers.
    **kwargs
        Any other parameter of :class:`skorch.NeuralNetClassifier`: ``callbacks``, ``verbose``,
        ``warm_start``, ``iterator_valid__num_workers`` and so on. With ``compile=True`` (and
        ``compile__...`` parameters) the network is compiled up to the target layer, block by block,
        and not from there on, as maps are differentiated twice.

    Attributes
    ----------
    task_ : {"multiclass", "binary", "multilabel", "regression"}
        What was learned.
    classes_ : ndarray of shape (n_classes,), or None for a regression
        The labels, sorted; for "multilabel" in the order of columns, where these have one.
    class_names_ : ndarray of shape (n_classes,) or None
        What the data set calls its classes, if ``classes_`` are its numbers for them: displays and
        reports show it, and ``target``, ``class_weight`` and, once they are known, labels take it,
        in ``validation``, :meth:`score`, :meth:`partial_fit` and :func:`~sklcam.metrics.evaluate`.
    module_ : nn.Module
        The trained network.
    target_layer_ : TargetLayer
        The layer that is explained.
    n_channels_ : int
        Channels of the images.
    preprocessing_ : Preprocessing
        How images are prepared, and who says so.
    recalibrated_ : int
        On how many images the running statistics were re-estimated; 0 if they were not.
    history : skorch.history.History
        Per epoch ``train_loss`` and its unweighted parts: ``train_ce`` (cross-entropy; the
        criterion's loss of a regression is ``train_criterion``), ``train_inconsistency``
        (one minus SSIM), ``train_norm`` and ``train_<name>`` of further terms, as far as they are
        in use, and ``valid_...`` of each where there is validation. Terms on masks are means over
        the images that have one, in a batch ``train_<name>_annotated`` of them, and left out where
        none has. ``train_accuracy`` (for a
        regression ``train_r2``) is what :meth:`score` measures, of the predictions that the loss
        was of. Weights that balance themselves are ``train_alpha``, ``train_beta`` and
        ``train_<name>_weight``. An epoch has no column of a term that is in none of its steps, by
        ``every`` or a weight that is 0 in it; what not all epochs have cannot be monitored.
    history_frame_ : pandas.DataFrame
        The same as a table, a row for each epoch; pandas must be installed.

    Warns
    -----
    ConvergenceWarning
        In training, if a loss is NaN or infinite; and by :class:`sklcam.training.CollapseWarning`,
        if maps are constant or stuck in the corners, or accuracy is at chance.
    LaggingStatisticsWarning
        If batch normalisation's running statistics lag, see ``recalibrate``.

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
        "task": [StrOptions({"auto", *TASKS})],
        "criterion": [StrOptions({"auto"}), callable],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"}), Balanced, callable],
        "beta": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"}), Balanced, callable],
        "p": [Real],
        "terms": [list, tuple],
        "gamma": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"}), Balanced, callable],
        "mask_loss": [StrOptions(set(MASK_LOSSES))],
        "every": [Interval(Integral, 1, None, closed="left")],
        "ce_on": [StrOptions({"image", "view", "all"})],
        "view_gradient": ["boolean"],
        "agreement": [StrOptions(set(AGREEMENTS)), callable],
        "phi": [StrOptions(set(PHI)), GradientMethod],
        "view_target": [StrOptions({"predicted", "shared"})],
        "views": [None, ViewSampler],
        "memory": [StrOptions({"normal", "low"})],
        "precision": [StrOptions(set(PRECISIONS))],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "freeze": [StrOptions({"trunk"}), Interval(Integral, 1, None, closed="left"), None],
        "channels_last": ["boolean"],
        "batch_accumulation": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        module: Module = "resnet18",
        *,
        weights: str | PathLike[str] | None = None,
        target_layer: str | TargetLayer = "auto",
        task: str = "auto",
        alpha: Weight | Schedule = 1.0,
        beta: Weight | Schedule = 1e-6,
        p: float = 1,
        terms: Sequence[Term] = (),
        gamma: Weight | Schedule = 0.0,
        mask_loss: MaskLoss = "energy",
        every: int = 1,
        ce_on: str = "image",
        view_gradient: bool = True,
        agreement: str | Comparison = "ssim",
        phi: str | GradientMethod = "gradcam",
        view_target: str = "predicted",
        memory: str = "normal",
        precision: str = "fp32",
        channels_last: bool = False,
        batch_accumulation: int = 1,
        augment: str | ViewSampler | Callable[[Tensor], Tensor] | None = "auto",
        views: ViewSampler | None = None,
        image_size: int | tuple[int, ...] | None = 224,
        resize: str | None = "stretch",
        decode: str = "exact",
        mean: str | float | Sequence[float] = "auto",
        std: str | float | Sequence[float] = "auto",
        class_weight: str | Mapping[Any, float] | None = None,
        freeze: str | int | None = None,
        recalibrate: str | bool = "auto",
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = "auto",
        criterion: Criterion = "auto",
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
        self.task = task
        self.alpha = alpha
        self.beta = beta
        self.p = p
        self.terms = terms
        self.gamma = gamma
        self.mask_loss = mask_loss
        self.every = every
        self.ce_on = ce_on
        self.view_gradient = view_gradient
        self.agreement = agreement
        self.phi = phi
        self.view_target = view_target
        self.memory = memory
        self.precision = precision
        self.channels_last = channels_last
        self.batch_accumulation = batch_accumulation
        self.augment = augment
        self.views = views
        self.image_size = image_size
        self.resize = resize
        self.decode = decode
        self.mean = mean
        self.std = std
        self.class_weight = class_weight
        self.freeze = freeze
        self.recalibrate = recalibrate
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
        boxes: Boxes = None,
        validation: Any = None,
        **fit_params: Any,
    ) -> Self:
        """Train from the start (or on, with ``warm_start=True``).

        Parameters
        ----------
        X : images
            uint8 or float arrays in [0, 1] of shape (n, height, width) or (n, height, width,
            channels); tensors (n, channels, height, width); lists or columns of file paths, PIL
            images or encoded images, of any sizes, read as they are needed; a torch or Hugging Face
            data set of images. See :class:`~sklcam.images.ImageDataset`. Volumes, where
            ``image_size`` has three sides, are arrays or tensors (n, channels, depth, height,
            width), bytes or floats in [0, 1].
        y : array-like of shape (n_images,) or (n_images, n_outputs), or sequence of collections
            Labels of any kind. Of several an image: a table of 0 and 1 (an array, a sparse matrix,
            or a DataFrame whose columns are the labels), or a set, list or tuple of labels for each
            image. For "regression", numbers. May be left out for a data set that has ``targets``.
        sample_weight : array-like of shape (n_images,) or None, default=None
            How much each image counts in the criterion's loss, 0 or more: a batch's is the weighted
            mean of its images' own, as with ``criterion__weight``. Terms of explanations and batch
            normalisation count all images alike.
        masks : array-like of shape (n_images, height, width), list of masks or None, default=None
            For terms that need them: the object in each image, at the image's own size; bool, 0 and
            anything else as integers, or shares of pixels in [0, 1]. None in the place of a mask is
            an image without one. Masks are resized and augmented as their images are.
        boxes : list of array-like of shape (n_boxes, 4) or None, default=None
            The same by boxes (x1, y1, x2, y2), the outer edges, in pixels of the image as it is
            given. None, or no box, is an image without. In dicts by label, those of the image's own
            count. Images may have masks or boxes, but none has both.
        validation : (X_val, y_val), dict, data set or None, default=None
            Images to validate on after each epoch, and their labels, in any form of X and y, read
            as for prediction; a data set that has its labels may come alone. Labels are those of
            ``y``. Masks or boxes, in any form of ``masks`` and ``boxes``, come with them by name,
            ``{"X": X_val, "y": y_val, "masks": masks_val, "boxes": boxes_val}``, and let terms on
            masks be recorded, as ``valid_energy``. Not together with ``train_split``.
        **fit_params
            As in skorch.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X, y, masks, boxes, weights or a parameter does not fit, or the task cannot be
            settled; before any training.
        """
        annotations = Annotations(masks, boxes, sample_weight, validation=validation)
        return self._fit(X, y, fit_params, annotations)

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        classes: Classes = None,
        sample_weight: ArrayLike | None = None,
        *,
        masks: Masks = None,
        boxes: Boxes = None,
        validation: Any = None,
        **fit_params: Any,
    ) -> Self:
        """Train for ``max_epochs`` more, without starting anew.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        classes : array-like or None, default=None
            All labels that will ever come; needed in the first call where ``y`` lacks some.
        sample_weight, masks, boxes, validation
            As in :meth:`fit`.
        **fit_params
            As in skorch.

        Returns
        -------
        self
        """
        annotations = Annotations(masks, boxes, sample_weight, validation=validation)
        return self._partial_fit(X, y, classes, fit_params, annotations)

    # Checks, at the door

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_terms(self.terms)  # those of gamma come to them
        ours = (Consistency(self.alpha, self.agreement), Sparsity(self.beta, self.p))
        check_terms((*ours, *self._further_terms))
        if self.compile and any("pixels" in term.needs for term in self._further_terms):
            raise ValueError(
                "compile=True compiles what precedes the target layer, and compiled code has no "
                'second derivative, which terms at the pixels take: use mask_loss="energy", or '
                "leave compile at False."
            )
        if self.ce_on == "all" and self.augment is None:
            raise ValueError(
                'ce_on="all" has a cross-entropy of augmented images beside those as they are; set '
                'augment="auto".'
            )
        method_of(self.phi)
        check_scaling(self.precision, self.optimizer)
        if agreement_of(self.agreement).has_window:
            check_window(self.alpha, self.input_size)
        if self.channels_last and len(self.input_size) == 3:
            raise ValueError(
                "channels_last=True is an order of pictures in memory, and image_size is that of "
                "volumes; leave it at False."
            )
        if isinstance(self.freeze, bool):
            raise ValueError(
                f'freeze={self.freeze} is neither "trunk" nor a number of epochs; None trains all.'
            )

    def _check_training_data(
        self, X: Any, y: Any, annotations: Annotations, *, known: bool, classes: Classes
    ) -> tuple[TrainingImages, np.ndarray]:
        given = annotations.boxes if annotations.masks is None else annotations.masks
        if needs_masks(self._further_terms, given, self.augment, self.ce_on):
            boxes = boxes_of_labels(annotations.boxes, given_labels(X, y), n_images(X))
            annotations = replace(annotations, boxes=boxes)
        else:
            if given is not None:
                warnings.warn(
                    f"masks and boxes are not used: with gamma={self.gamma!r}, no term of the loss "
                    "looks at them.",
                    stacklevel=2,
                )
            annotations = replace(annotations, masks=None, boxes=None)  # read for nothing
        found = super()._check_training_data(X, y, annotations, known=known, classes=classes)
        if found[0].masks is not None and not found[0].masks.annotated.any():
            needing = [term.name for term in self._further_terms if "masks" in term.needs]
            warnings.warn(
                f"None of the {len(found[0])} images has a mask or a box, so that nothing is "
                f"learned of {', '.join(needing)}.",
                stacklevel=2,
            )
        if self.alpha:
            n_together = (
                len(found[0]) if self.batch_size < 0 else min(self.batch_size, len(found[0]))
            )
            check_negatives(self.agreement, n_together, self.batch_accumulation)
        options, names = self.get_params_for("criterion"), self.classes_inferred_
        weighs = {"sample_weight": annotations.sample_weight, "class_weight": self.class_weight}
        by = [name for name, given in weighs.items() if given is not None]
        criteria.check_criterion(self._criterion, options, self._task, names, weighs_images=by)
        check_defined(self._further_terms, self.task_, len(names))
        if len(names) > 1 and self.task_ == "regression" and self._trains_on_maps():
            raise ValueError(
                f"Terms on explanations are of one number an image, and y has {len(names)}. Train "
                "a network for each column, or leave maps out: alpha=0, beta=0, terms=()."
            )
        return found

    def _weigh_classes(self, labels: np.ndarray) -> np.ndarray | None:
        return criteria.weights_of_classes(
            self.class_weight, self._task, labels, self.classes_inferred_, self.class_names_
        )

    # Network, callbacks

    def initialize_module(self) -> ConsistentCAMClassifier:
        super().initialize_module()
        self.gradient_sizes_ = GradientSizes()  # an earlier network's say nothing of this one
        if self.channels_last:
            self.module_.to(memory_format=torch.channels_last)
        return self

    def _default_schedule(self) -> LRScheduler:
        return LRScheduler("StepLR", step_size=30, gamma=0.1)

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        return [*super()._default_callbacks, ("collapse_warning", CollapseWarning())]
