"""The classifier that trains with consistent explanations, as a skorch net.

Its predictions are in :mod:`sklcam.training._answering`, its steps in
:mod:`sklcam.training._stepping`, and what all nets on images share is in
:mod:`sklcam.training.net`.
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

from sklcam._callers import level_of_user
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

    It learns one class per image, several labels, or numbers; see ``task``. The loss is
    :math:`\mathcal{L}_{CE} + \alpha\,(1 - \mathrm{SSIM}(t(\Phi(x)), \Phi(t(x))))
    + \beta\,\lVert\Phi(x)\rVert_p`, where :math:`\Phi` is Grad-CAM without the ReLU (or the map
    given by ``phi``), and :math:`t` is a recorded crop and flip.

    Parameters
    ----------
    module : str, nn.Module class or instance, or callable, default="resnet18"
        A torchvision name, or a name with its source such as ``"timm/resnet50"``: see
        :func:`sklcam.networks.build_model`. Head and stem are adapted to the number of classes and
        channels. A class or callable is called with ``num_classes`` (or ``n_classes``) and
        ``in_channels`` if it takes them, and with ``module__...`` parameters. An instance is
        copied, never changed.
    weights : None, "DEFAULT", name of weights, or path, default=None
        The weights that training starts from. A path names a state dict, which is loaded without
        running code from the file, or, if ``module`` is a name, a folder; a head of another size is
        replaced.
    target_layer : str or TargetLayer, default="auto"
        Dotted name of the layer to explain; "auto" takes the usual one of a known family, and
        otherwise the last layer with a spatial output. A :class:`sklcam.networks.TargetLayer` says
        how a layer's tokens form a grid.
    task : {"auto", "multiclass", "binary", "multilabel", "regression"}, default="auto"
        The task to learn. "multiclass": one of several classes, with one output for each. "binary":
        one of two classes, with a single output, the logit of the second. "multilabel": any number
        of labels per image, with one output for each. "regression": numbers, given by the outputs
        directly. "auto" depends on ``y``: tables of 0 and 1, and collections of labels, are
        "multilabel"; labels are "binary" with ``criterion=nn.BCEWithLogitsLoss`` or ``nn.BCELoss``,
        or if there are two classes and the network has one output; otherwise they are "multiclass".
        Numbers are learned only if you ask for "regression", and a table with a single 1 in each
        row only if you ask for "multilabel". The map of an image, :math:`\Phi`, explains the
        prediction. This is the highest-scoring class; for a single logit z, the score z, or -z if
        the first class is predicted; for "multilabel" the highest-scoring label, as the paper does
        not say which of several; for "regression" the number itself, and there may be only one if
        the loss has terms on maps.
    alpha : float >= 0, "auto", Balanced or callable, default=1.0
        Weight of the inconsistency. With ``alpha=0`` and ``beta=0`` this is a plain classifier, at
        a plain classifier's cost. "auto" is a :class:`sklcam.training.Balanced`: the term's
        gradient is kept in proportion to that of cross-entropy. A callable takes the epoch, counted
        from 0 and continuing through ``partial_fit``, and returns the weight in that epoch, as
        :class:`sklcam.training.WarmUp` does.
    beta : float >= 0, "auto", Balanced or callable, default=1e-6
        Weight of the norm. The norm grows with the number of pixels: the paper's values of 1e-5 to
        1e-7 are for 224 x 224.
    p : float, 0 or >= 1, default=1
        The p of the norm; 0 counts the pixels that are not zero.
    terms : list of Term, default=()
        Further terms of the loss: :class:`sklcam.training.Term` objects, each with its own weight.
    agreement : {"ssim", "cgc", "mse"} or callable, default="ssim"
        How alpha's term compares the views of maps with the maps of views. "ssim" is one minus SSIM
        of maps in [0, 1]. "cgc" is :class:`sklcam.training.Contrastive`, which contrasts the images
        of a batch. "mse" is the mean squared difference of the same maps of length 1; this is at
        most two divided by the number of pixels, so give it ``alpha="auto"``. A callable takes
        both, in [0, 1] and of shape (n_images, height, width), and returns a tensor with one number
        per image; lower is better. It receives a whole batch, or a whole part of one, unless it has
        the attribute ``couples_images = False``.
    gamma : float >= 0, "auto", Balanced or callable, default=0.0
        Weight of the loss on annotated images, whose masks or boxes are given to :meth:`fit`: maps
        must lie on the object. With 0, and no other term that needs them, ``fit`` warns that masks
        and boxes are not used.
    mask_loss : {"energy", "rrr", "gradmask"}, default="energy"
        The loss on annotated images. "energy" is the share of the labelled class's map outside the
        object, :class:`sklcam.training.Energy`: it costs next to nothing. "rrr" and "gradmask" use
        the gradient at the pixels, and need several times the time and memory:
        :class:`sklcam.training.RightReasons`, and :class:`sklcam.training.GradMask`, which is for
        two classes.
    every : int, default=1
        Terms are part of every k-th step only, with k times their weight. The other steps are those
        of a plain classifier, so the cost of the terms is divided by k. Steps are counted across
        epochs and ``partial_fit``; a k above the number of steps that ``fit`` makes is an error.
    ce_on : {"image", "view", "all"}, default="image"
        Which images have a cross-entropy. "view": the terms' views as well. "all": as in CGC, the
        images themselves are not augmented; they, their views and, in a separate pass, augmented
        copies each have a cross-entropy. These are added up, and the history has the additional
        ones as ``train_ce_view`` and ``train_ce_augmented``.
    view_gradient : bool, default=True
        False treats the map of the view as a constant, so its pass needs no backward pass. In
        measurements on photographs, maps then became small rather than consistent.
    phi : {"gradcam", "hirescam", "layercam"} or GradientMethod, default="gradcam"
        The map that all terms use. A name means the map without the ReLU, as in the paper; an
        object of :mod:`sklcam.cam` such as ``HiResCAM()`` has the ReLU unless it is made with
        ``relu=False``. :meth:`explain`, displays and metrics have their own ``method``.
    view_target : {"predicted", "shared"}, default="predicted"
        The class explained on the view: the network's prediction for the view, or its prediction
        for the image.
    memory : {"normal", "low"}, default="normal"
        "low" keeps the activations of the images and those of their views in memory one after the
        other rather than together: a step needs about as much as plain training does, and runs the
        trunk once more. The gradient is the same. Everything before the target layer must reach the
        output through the target layer alone, as in all networks given by name.
    precision : {"fp32", "bf16", "fp16"}, default="fp32"
        The precision in which the network computes during training. Maps, the loss and the weights
        are always float32, and so is prediction: ``CAMExplainer(clf, precision="bf16")`` predicts
        and explains in half precision. With "fp16" the loss is scaled so that small gradients are
        not lost.
    channels_last : bool, default=False
        Whether images and weights lie in memory with the channels last; convolutions are often
        faster that way, especially in half precision.
    batch_accumulation : int, default=1
        How many parts a batch is divided into. They are processed one after the other before the
        optimizer's step, for batches that would not fit in memory otherwise. The gradient is that
        of the whole batch as long as images do not depend on each other; batch normalisation, and
        terms that couple images, see one part at a time.
    augment : "auto", None, ViewSampler or callable, default="auto"
        How training images are perturbed: "auto" is a crop and flip like the views', drawn
        independently of them, cut out of each original image and resized once. A callable, such as
        a torchvision transform, is called for each image separately: it takes and returns a float
        tensor (1, channels, image_size, image_size) in [0, 1]. Masks cannot follow it.
    views : ViewSampler or None, default=None
        The distribution of the views t; None is the paper's.
    image_size : int, (height, width), (depth, height, width) or None, default=224
        The size that images are resized to; at least 11, SSIM's window, with ``alpha > 0``. None is
        what the network's source says, else 224. Three sides are for volumes, which are not
        resized.
    resize : {"stretch", "center_crop"} or None, default="stretch"
        "stretch" resizes both sides to ``image_size``; "center_crop" keeps the proportions and cuts
        out the middle. None is what the network's source says, else "stretch".
    decode : {"exact", "fast"}, default="exact"
        "fast" reads large JPEG files at a fraction of their sides, at least twice what they are
        resized to: see :class:`~sklcam.images.Resizing`. Images that are cropped are read in full.
    mean, std : "auto", float or one float per channel, default="auto"
        Normalisation after scaling to [0, 1]; "auto" is what the network's source says, else 0 and
        1 for a network that normalises its images itself, as ``fit`` measures, else ImageNet's.
        Pixels are also interpolated as the source says, including in training crops.
    class_weight : dict, "balanced" or None, default=None
        How much the images of each class count in the criterion's loss; multiplied by
        ``sample_weight``, if given. A dict maps labels, or their names in ``class_names_``, to
        weights; a class that is not in it has a weight of 1. "balanced" gives all classes of ``y``
        the same total weight: n_images / (n_classes * images of the class) for each image. It
        cannot be used for "regression", nor for "multilabel", where ``criterion__pos_weight`` does
        this.
    freeze : "trunk", int or None, default=None
        "trunk" trains only the head: the last layer with weights, or several that have as many
        outputs as the network. Batch normalisation before it stays in evaluation mode. An int is
        the number of epochs for which the trunk is frozen, counted from the network's first one and
        through ``partial_fit``. Terms on maps can then change how the head weighs the trunk's
        channels, but not where the channels respond.
    recalibrate : "auto" or bool, default="auto"
        Whether ``fit`` ends by re-estimating batch normalisation's running statistics, on the
        training images as :meth:`predict` reads them. "auto" does so if they lag: if the network's
        output for its training images differs between evaluation and training mode. True always
        does, in :meth:`partial_fit` as well. Layers that were not in training mode are left alone.
    random_state : int, RandomState or None, default=None
        The source of all randomness in training; the global generators are not touched. An instance
        given as ``module`` keeps its own initial weights.
    device : str or torch.device, default="auto"
        "auto" is CUDA if available, else the CPU.
    criterion : class or instance of a loss, or "auto", default="auto"
        "auto" depends on the task: ``nn.CrossEntropyLoss``, ``nn.BCEWithLogitsLoss`` for "binary"
        and "multilabel", ``nn.MSELoss`` for "regression". ``criterion__weight`` weighs classes, and
        ``criterion__pos_weight`` weighs labels that are 1. Your own criterion is called with
        outputs and labels of the same shape, as floats; for "multiclass" it is called as
        cross-entropy is. For a network that ends in a sigmoid, use ``nn.BCELoss``.
    optimizer, lr, max_epochs, batch_size, train_split, iterator_train__shuffle
        As in skorch, with the paper's defaults: SGD with momentum 0.9 and weight decay 1e-4 (given
        by ``optimizer__...``), a learning rate of 1e-3, cut to a tenth every 30 epochs by the
        callback ``lr_scheduler`` (``callbacks__lr_scheduler__step_size=20`` makes it every 20; a
        scheduler among ``callbacks`` takes its place). There is no validation unless ``fit`` gets
        images for it, or ``train_split`` makes a split.
    classes : array-like or None, default=None
        All labels, in case ``y`` lacks some of them. For a table of 0 and 1 they name its columns,
        in order; for a regression, its numbers.
    **kwargs
        Any other parameter of :class:`skorch.NeuralNetClassifier`: ``callbacks``, ``verbose``,
        ``warm_start``, ``iterator_valid__num_workers`` and so on. With ``compile=True`` (and
        ``compile__...`` parameters) the network is compiled block by block up to the target layer,
        but not after it, as maps are differentiated twice.

    Attributes
    ----------
    task_ : {"multiclass", "binary", "multilabel", "regression"}
        The task that was learned.
    classes_ : ndarray of shape (n_classes,), or None for a regression
        The labels, sorted; for "multilabel", in the order of the columns if ``y`` is a table.
    class_names_ : ndarray of shape (n_classes,) or None
        The data set's names for the classes, if ``classes_`` holds their numbers. Displays and
        reports show the names, and ``target`` and ``class_weight`` may use them. Once they are
        known, labels may use them too: in ``validation``, :meth:`score`, :meth:`partial_fit` and
        :func:`~sklcam.metrics.evaluate`.
    module_ : nn.Module
        The trained network.
    target_layer_ : TargetLayer
        The layer that is explained.
    n_channels_ : int
        Channels of the images.
    preprocessing_ : Preprocessing
        How images are prepared, and which source says so.
    recalibrated_ : int
        How many images the running statistics were re-estimated on; 0 if they were not.
    history : skorch.history.History
        Per epoch ``train_loss`` and its unweighted parts: ``train_ce`` (cross-entropy; the
        criterion's loss of a regression is ``train_criterion``), ``train_inconsistency``
        (one minus SSIM), ``train_norm`` and ``train_<name>`` for further terms, each if it is in
        use, and ``valid_...`` for each if there is validation. A term on masks is a mean over the
        images that have one; ``train_<name>_annotated`` is their share of a batch, and a batch
        without any lacks the term. ``train_accuracy`` (for a regression ``train_r2``) is what
        :meth:`score` measures, on the predictions that the loss was computed from. Weights that
        balance themselves are ``train_alpha``, ``train_beta`` and ``train_<name>_weight``. An epoch
        has no column for a term that is in none of its steps, because of ``every`` or a weight of
        0; a column that some epochs lack cannot be monitored.
    history_frame_ : pandas.DataFrame
        The same as a table, a row for each epoch; pandas must be installed.

    Warns
    -----
    ConvergenceWarning
        In training, if a loss is NaN or infinite; and from
        :class:`sklcam.training.CollapseWarning`, if maps are constant or stuck in the corners, or
        accuracy is at chance.
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
        """Train from the start, or continue with ``warm_start=True``.

        Parameters
        ----------
        X : images
            uint8 or float arrays in [0, 1] of shape (n, height, width) or (n, height, width,
            channels); tensors (n, channels, height, width); lists or columns of file paths, PIL
            images or encoded images, of any sizes, read as they are needed; a torch or Hugging Face
            data set of images. See :class:`~sklcam.images.ImageDataset`. Volumes, for an
            ``image_size`` with three sides, are arrays or tensors (n, channels, depth, height,
            width), bytes or floats in [0, 1].
        y : array-like of shape (n_images,) or (n_images, n_outputs), or sequence of collections
            Labels of any kind. For several labels per image: a table of 0 and 1 (an array, a sparse
            matrix, or a DataFrame whose columns are the labels), or a set, list or tuple of labels
            for each image. For "regression", numbers. They may be left out for a data set that has
            ``targets``.
        sample_weight : array-like of shape (n_images,) or None, default=None
            How much each image counts in the criterion's loss, 0 or more: a batch's loss is the
            weighted mean of its images' losses, as with ``criterion__weight``. Terms on
            explanations and batch normalisation count all images equally.
        masks : array-like of shape (n_images, height, width), list of masks or None, default=None
            For terms that need them: the object in each image, at the image's own size; bool,
            integers that are 0 outside the object, or the share of each pixel that the object
            covers, in [0, 1]. None stands for an image without a mask. Masks are resized and
            augmented with their images.
        boxes : list of array-like of shape (n_boxes, 4) or None, default=None
            The objects as boxes (x1, y1, x2, y2): the outer edges, in pixels of the image as given.
            None, or an entry without boxes, stands for an image without one. If an entry is a dict
            of boxes by label, only those of the image's own label count. An image may have a mask
            or boxes, but not both.
        validation : (X_val, y_val), dict, data set or None, default=None
            Images to validate on after each epoch, and their labels, in any form of X and y, read
            as for prediction; a data set that has its labels may come alone. Labels must be among
            those of ``y``. Masks or boxes, in any form of ``masks`` and ``boxes``, are given by
            name, ``{"X": X_val, "y": y_val, "masks": masks_val, "boxes": boxes_val}``, so that
            terms on masks are recorded, such as ``valid_energy``. It cannot be combined with
            ``train_split``.
        **fit_params
            As in skorch.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X, y, masks, boxes, weights or a parameter is not valid, or the task cannot be
            determined. This is raised before any training.
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
        """Train for ``max_epochs`` more, without starting over.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        classes : array-like or None, default=None
            All labels, including those of later calls; needed in the first call if ``y`` lacks
            some.
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

    # Checks before training

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_terms(self.terms)  # before that of gamma is added
        ours = (Consistency(self.alpha, self.agreement), Sparsity(self.beta, self.p))
        check_terms((*ours, *self._further_terms))
        if self.compile and any("pixels" in term.needs for term in self._further_terms):
            raise ValueError(
                "compile=True compiles the layers before the target layer, and compiled code has "
                "no second derivative, which terms on gradients at the pixels need. Use "
                'mask_loss="energy", or leave compile at False.'
            )
        if self.ce_on == "all" and self.augment is None:
            raise ValueError(
                'ce_on="all" needs augmented images beside the plain ones, and augment is None. '
                'Set augment="auto".'
            )
        method_of(self.phi)
        check_scaling(self.precision, self.optimizer)
        if agreement_of(self.agreement).has_window:
            check_window(self.alpha, self.input_size)
        if self.channels_last and len(self.input_size) == 3:
            raise ValueError(
                "channels_last=True is a memory layout for pictures, and image_size is for "
                "volumes. Leave channels_last at False."
            )
        if isinstance(self.freeze, bool):
            raise ValueError(
                f'freeze={self.freeze} is neither "trunk" nor a number of epochs. Set one of '
                "these, or None to train everything."
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
                    "uses them.",
                    stacklevel=level_of_user(),
                )
            annotations = replace(annotations, masks=None, boxes=None)  # nothing would use them
        found = super()._check_training_data(X, y, annotations, known=known, classes=classes)
        if found[0].masks is not None and not found[0].masks.annotated.any():
            needing = [term.name for term in self._further_terms if "masks" in term.needs]
            warnings.warn(
                f"None of the {len(found[0])} images has a mask or a box, so nothing is learned "
                f"from {', '.join(needing)}.",
                stacklevel=level_of_user(),
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
                f"Terms on explanations need one number per image, and y has {len(names)}. Train "
                "a network for each column, or train without maps: alpha=0, beta=0, terms=()."
            )
        return found

    def _weigh_classes(self, labels: np.ndarray) -> np.ndarray | None:
        return criteria.weights_of_classes(
            self.class_weight, self._task, labels, self.classes_inferred_, self.class_names_
        )

    # Network, callbacks

    def initialize_module(self) -> ConsistentCAMClassifier:
        super().initialize_module()
        self.gradient_sizes_ = GradientSizes()  # an earlier network's do not apply
        if self.channels_last:
            self.module_.to(memory_format=torch.channels_last)
        return self

    def _default_schedule(self) -> LRScheduler:
        return LRScheduler("StepLR", step_size=30, gamma=0.1)

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        return [*super()._default_callbacks, ("collapse_warning", CollapseWarning())]
