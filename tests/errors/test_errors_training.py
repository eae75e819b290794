"""What training refuses: the classifiers, the loss and its terms, and views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import (
    COLOUR,
    IMAGES,
    INF,
    LOGITS,
    MAPS,
    MORE,
    NAN,
    OPTIONS,
    VALUES,
    VIEWS,
    Row,
    X,
    Y,
    classifier,
    fitted,
    of_explaining,
    of_maps,
    of_pairs,
    of_parameters,
    of_training,
    of_unfitted,
    rows_of,
)
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Checkpoint, EarlyStopping, LRScheduler
from skorch.dataset import ValidSplit
from small_networks import SmallNet

from sklcam.cam import GradCAM
from sklcam.training import (
    EMA,
    AcceleratedCAMClassifier,
    Balanced,
    CollapseWarning,
    Consistency,
    ConsistentCAMLoss,
    Contrastive,
    Energy,
    Explanations,
    ForgetBatches,
    GradientSizes,
    Sparsity,
    ViewSampler,
    WarmUp,
    Warp,
    consistency_loss,
    signs_of_collapse,
    sparsity_loss,
)

SCALAR = torch.tensor(1.0)
HEAD_ALONE = torch.nn.Sequential(
    torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
)
NO_HEAD = torch.nn.Sequential(
    torch.nn.Conv2d(1, 6, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d((1, 1)),
    torch.nn.Flatten(), torch.nn.Unflatten(1, (3, 2)), torch.nn.AvgPool1d(2), torch.nn.Flatten(),
)  # fmt: skip
ENDING_IN_SIGMOID = torch.nn.Sequential(*SmallNet(1), torch.nn.Sigmoid())
EXPLAINS = (
    *("predict", "predict_proba", "score", "explain", "iter_explain", "iter_inputs"),
    *("channel_weights", "strongest_channels"),
)


def loss(*maps, cross_entropy=SCALAR, size=None, activations=None, **options):
    warp = VIEWS if len(maps) == 2 else None
    explained = Explanations(*maps, warp=warp, size=size) if maps else None
    return ConsistentCAMLoss(**options)(cross_entropy, explained, activations=activations)


class OneNumber(torch.nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__(reduction="sum")


def early(monitor):
    return EarlyStopping(monitor=monitor)


CLASSIFIER: list[Row] = [
    *of_training(classifier),
    *of_parameters(
        classifier,
        alpha=[-1, "x", None, NAN],
        beta=[-1, INF],
        p=[None, "1"],
        agreement=["l1", 3],
        gamma=[-1, "x"],
        mask_loss=["x"],
        every=[0, 1.5],
        ce_on=["views"],
        view_gradient=[1],
        phi=["scorecam", 3],
        view_target=["x"],
        task=["several"],
        memory=["x"],
        precision=["fp8"],
        channels_last=[1],
        batch_accumulation=[0],
        views=[3],
        class_weight=["equal", [1, 2]],
        freeze=["head", 0, 1.5],
    ),
    (
        "a map's backward pass",
        lambda: classifier(phi=GradCAM(gradient="guided")).fit(X, Y),
        "modifies the backward pass through ReLUs, .* Leave its gradient at",
    ),
    ("p=0.5", lambda: classifier(p=0.5).fit(X, Y), "p must be 0 or at least 1; got 0.5"),
    ("weights", lambda: classifier().fit(X, Y, [1.0]), "sample_weight must be one number for each"),
    (
        "weights of classes",
        lambda: classifier(criterion__weight=[1.0] * 9).fit(X, Y),
        "criterion__weight must be one weight for each of .* classes",
    ),
    (
        "channels_last of volumes",
        lambda: classifier(alpha=0, image_size=(8, 8, 8), channels_last=True).fit(X, Y),
        "channels_last=True is a memory layout for pictures, and image_size is for volumes",
    ),
    (
        "a criterion",
        lambda: classifier(criterion=torch.nn.KLDivLoss).fit(X, Y),
        "KLDivLoss does not take scores of shape .*, integers, as torch.nn.CrossEntropyLoss does",
    ),
    (
        "one of another task",
        lambda: classifier(criterion=torch.nn.MSELoss).fit(X, Y),
        "MSELoss is a loss for task='regression', and the task is 'multiclass'. Leave the",
    ),
    (
        "one of two classes",
        lambda: classifier(criterion=torch.nn.BCEWithLogitsLoss).fit(X, Y),
        'One output tells two classes apart, and there are 3: .* Use task="multiclass"',
    ),
    (
        "weights of two classes",
        lambda: classifier(task="binary", criterion__weight=[1.0, 2.0]).fit(X, Y > 0),
        "criterion__weight has 2 numbers for one output. To weigh two classes, .*pos_weight",
    ),
    (
        "numbers",
        lambda: classifier().fit(X, X.mean((1, 2))),
        'Unknown label type: continuous.* Set task="regression" to learn them',
    ),
    (
        "one-hot rows",
        lambda: classifier().fit(X, np.eye(3)[Y]),
        'exactly one label. For classes .* y.argmax.* set task="multilabel"',
    ),
    (
        "several numbers",
        lambda: classifier(task="regression").fit(X, X.mean(1)),
        "need one number per image, and y has 8. Train a network for each column, or .* alpha=0",
    ),
    (
        "names of numbers",
        lambda: classifier(task="regression", classes=["a", "b"]).fit(X, Y),
        r"y has 1 number\(s\) per image, and classes must name each of them once",
    ),
    (
        "one output",
        lambda: classifier(module=lambda: SmallNet(1)).fit(X, Y),
        'one output, which cannot tell 3 classes apart. Give it num_classes=3.*="regression"',
    ),
    (
        "labels of one",
        lambda: classifier(task="multilabel").fit(X, Y),
        "may have several labels, .*Give y as an array of 0 and 1 .* or as a set of labels",
    ),
    (
        "a sigmoid",
        lambda: classifier(task="binary", module=lambda: ENDING_IN_SIGMOID).fit(X, Y > 0),
        "ends in a sigmoid, and BCEWithLogitsLoss applies .* or give criterion=torch.nn.BCELoss",
    ),
    (
        "a stratified split",
        lambda: classifier(task="regression", train_split=ValidSplit(2, stratified=True)).fit(
            X, X.mean((1, 2))
        ),
        "train_split is stratified, .* Use ValidSplit",
    ),
    (
        "no validation",
        lambda: classifier(callbacks=[EarlyStopping()]).fit(X, Y),
        "monitors 'valid_loss', but there are no validation images. Call fit.*, set train_split",
    ),
    (
        "a slip in what is monitored",
        lambda: classifier(callbacks=[Checkpoint(monitor="valid_acc_best")]).fit(
            X, Y, validation=(X, Y)
        ),
        "Checkpoint monitors 'valid_acc_best', which is not recorded. Did you mean: .*"
        "valid_accuracy_best",
    ),
    (
        "a term that is not in use",
        lambda: classifier(alpha=0, callbacks=[early("train_inconsistency")]).fit(X, Y),
        "EarlyStopping monitors 'train_inconsistency', which is not recorded",
    ),
    (
        "a term that not every epoch has",
        lambda: classifier(
            every=2, batch_size=-1, max_epochs=2, callbacks=[early("train_norm")]
        ).fit(X, Y),
        "EarlyStopping monitors 'train_norm', which epoch 2 does not have: .* Set every to 1",
    ),
    (
        "terms of the first step alone",
        lambda: classifier(every=2, batch_size=-1, max_epochs=1).fit(X, Y),
        "every=2 makes terms part of one step in 2, and there are 1 in all, .* Set every to 1",
    ),
    (
        "an accuracy that should fall",
        lambda: classifier(callbacks=[early("train_accuracy")]).fit(X, Y),
        "'train_accuracy', where higher is better, .* Set lower_is_better=False",
    ),
    (
        "a rate that falls while accuracy rises",
        lambda: classifier(
            callbacks=[LRScheduler("ReduceLROnPlateau", monitor="train_accuracy")]
        ).fit(X, Y),
        "'train_accuracy', where higher is better, .* Set mode='max'",
    ),
    (
        "a folder to validate on",
        lambda: classifier().fit(X, Y, validation="valid"),
        "validation must be a pair .* got a str.*load_class_folders",
    ),
    (
        "no batch to validate on",
        lambda: classifier(iterator_valid__drop_last=True, batch_size=16).fit(
            X, Y, validation=(X[:9], Y[:9])
        ),
        "iterator_valid__drop_last=True drops all 9 images to validate on",
    ),
    (
        "a share to validate on",
        lambda: classifier().fit(X, Y, validation=0.2),
        "validation must be a pair .* set train_split=skorch.dataset.ValidSplit",
    ),
    (
        "images to validate on, without labels",
        lambda: classifier().fit(X, Y, validation=(X, None)),
        "validation: requires y to be passed",
    ),
    (
        "masks to validate on as a third entry",
        lambda: classifier().fit(X, Y, validation=(X, Y, X > 0)),
        "(?s)validation must be a pair .* got a tuple.* by name, validation={.*masks",
    ),
    (
        "weights of images to validate on",
        lambda: classifier().fit(X, Y, validation={"X": X, "y": Y, "sample_weight": Y}),
        "validation may be given by name, .* has no other entries; .* 'sample_weight'",
    ),
    (
        "images to validate on, none of which has a mask",
        lambda: classifier(gamma=1.0).fit(
            X, Y, masks=X > 0, validation={"X": X, "y": Y, "masks": [None] * len(X)}
        ),
        "validation: None of the images has a mask or a box",
    ),
    (
        "no pair to validate on",
        lambda: classifier().fit(X, Y, validation=[(X, Y)]),
        "validation must be a pair .* got a list",
    ),
    (
        "a class that training has not",
        lambda: classifier().fit(X, Y, validation=(X, Y + 1)),
        "validation: .* labels that were not seen in fit: .3",
    ),
    (
        "two ways to validate",
        lambda: classifier(train_split=ValidSplit(2)).fit(X, Y, validation=(X, Y)),
        "train_split=.* would hold out more from X. Leave one of the two out",
    ),
    (
        "images where a split is asked for",
        lambda: classifier(train_split=(X, Y)).fit(X, Y),
        r"train_split must be a splitter of X; got a tuple(?s:.*) fit\(X, y, validation=",
    ),
    (
        "a pair in the place of weights",
        lambda: classifier().fit(X, Y, (X, Y)),
        r"(?s)sample_weight must be .* by name, validation=\(X_val, y_val\)",
    ),
    (
        "validation as a parameter",
        lambda: classifier(validation=(X, Y)).fit(X, Y),
        r"no parameter 'validation'. Give validation images to fit",
    ),
    (
        "another library's early stopping",
        lambda: classifier(early_stopping=True).fit(X, Y),
        "no parameter 'early_stopping'. skorch stops early: callbacks=",
    ),
    (
        "another library's word",
        lambda: classifier().fit(X, Y, validation_data=(X, Y)),
        r"fit does not take validation_data. Give validation=\(X_val, y_val\)",
    ),
    (
        "a weight for no class",
        lambda: classifier(class_weight={7: 2.0}).fit(X, Y),
        "class_weight has a weight for 7, which is not a class. There are: 0, 1, 2",
    ),
    (
        "classes of no weight",
        lambda: classifier(class_weight={0: 0, 1: 0, 2: 0}).fit(X, Y),
        "With class_weight, all 12 images have a weight of 0, so there is no loss",
    ),
    (
        "classes of no weight to validate on",
        lambda: classifier(class_weight={1: 0}).fit(X, Y, validation=(X[Y == 1], Y[Y == 1])),
        "validation: With class_weight, all 4 images have a weight of 0",
    ),
    (
        "weights of classes by a loss that returns one number",
        lambda: classifier(class_weight="balanced", criterion=OneNumber).fit(X, Y),
        "Images are weighed by class_weight, each through its own loss, .* got OneNumber",
    ),
    (
        "weights of images by a loss that returns one number",
        lambda: classifier(criterion=OneNumber).fit(X, Y, sample_weight=Y + 1),
        "Images are weighed by sample_weight, each through its own loss",
    ),
    (
        "a weight below 0",
        lambda: classifier(class_weight={0: -1}).fit(X, Y),
        r"class_weight\[0\] must be .* got -1",
    ),
    (
        "weights of classes, of several labels",
        lambda: classifier(class_weight="balanced").fit(X, np.eye(3, dtype=int)[Y] | [1, 0, 0]),
        "the task is 'multilabel'. Give criterion__pos_weight",
    ),
    (
        "weights of classes, of numbers",
        lambda: classifier(class_weight="balanced", task="regression").fit(X, Y),
        "the task is 'regression'. Give sample_weight",
    ),
    (
        "frozen or not",
        lambda: classifier(freeze=True).fit(X, Y),
        "freeze=True is neither",
    ),
    (
        "nothing to freeze",
        lambda: classifier(module=lambda: HEAD_ALONE, freeze="trunk", alpha=0, beta=0).fit(X, Y),
        "freeze stops the training of .* with 3 output.* has nothing before it",
    ),
    (
        "no head to train",
        lambda: classifier(module=lambda: NO_HEAD, freeze=1, alpha=0, beta=0).fit(X, Y),
        "freeze stops the training of .* has no such layer at its end",
    ),
    (
        "a schedule",
        lambda: classifier(callbacks=[LRScheduler("OneCycleLR")]).fit(X, Y),
        "skorch knows no schedule by that name. Give the class",
    ),
    (
        "no masks",
        lambda: classifier(gamma=1).fit(X, Y),
        "The term 'energy' needs masks, and there are none. Give fit masks= or boxes=",
    ),
    (
        "boxes",
        lambda: classifier(gamma=1).fit(X, Y, boxes=3),
        "boxes must be a list with the boxes of each image",
    ),
    (
        "nothing augmented",
        lambda: classifier(ce_on="all", augment=None).fit(X, Y),
        'augment is None. Set augment="auto"',
    ),
    (
        "compiled",
        lambda: classifier(gamma=1, mask_loss="rrr", compile=True).fit(X, Y, masks=X),
        "compiled code has no second derivative",
    ),
    (
        "single images",
        lambda: classifier(agreement="cgc", batch_size=1).fit(X, Y),
        r"a batch of \d+ with .* leaves parts with one image. Raise batch_size",
    ),
    (
        "small images",
        lambda: classifier(image_size=10).fit(X, Y),
        "windows of 11 pixels; got image",
    ),
    (
        "a schedule's text",
        lambda: classifier(alpha=lambda _: "z").fit(X, Y),
        "The weight that alpha returns",
    ),
    (
        "augmented",
        lambda: classifier(augment=lambda i: 3).fit(X, Y),
        "augment must return a tensor",
    ),
    (
        "normalised",
        lambda: classifier(augment=lambda i: i * 2 - 1).fit(X, Y),
        "augment returned pixels from .* leave Normalize out",
    ),
    (
        "a loader",
        lambda: classifier(iterator_train=lambda data, **_: list(data)).fit(X, Y),
        "Images are augmented as they are read, by a torch DataLoader .* got a list",
    ),
    ("too early", lambda: classifier().initialize(), "does not know its classes", NotFittedError),
    ("no history", lambda: classifier().history_frame_, "not fitted yet; call fit", NotFittedError),
    ("new labels", lambda: fitted().partial_fit(X, Y + 5), r"not seen in fit: \[5, 6, 7\]"),
    ("colour", lambda: fitted().predict(COLOUR), r"X has 3 channel\(s\), but .* fitted on 1"),
    *of_unfitted(classifier, *EXPLAINS),
    *of_explaining(fitted, X),
]


REFUSALS: dict[str, list[Row]] = {
    # Estimators
    "ConsistentCAMClassifier": CLASSIFIER,
    "AcceleratedCAMClassifier": [
        (
            "a number",
            lambda: AcceleratedCAMClassifier(SmallNet, accelerator=3, image_size=16, verbose=0).fit(
                X, Y
            ),
            "accelerator",
        ),
        (
            "a device",
            lambda: AcceleratedCAMClassifier(SmallNet, **OPTIONS).fit(X, Y),
            "The accelerator chooses the device; got device='cpu'",
        ),
    ],
    # The loss
    "ConsistentCAMLoss": [
        ("alpha -1", lambda: ConsistentCAMLoss(alpha=-1), "alpha must be a finite number >= 0"),
        ("beta NaN", lambda: ConsistentCAMLoss(beta=NAN), "beta must be .* got nan"),
        ("agreement", lambda: ConsistentCAMLoss(agreement="l1"), "agreement must be one of ssim"),
        ("p a half", lambda: ConsistentCAMLoss(p=0.5), "p must be 0 or at least 1; got 0.5"),
        ("sizes", lambda: ConsistentCAMLoss(sizes=3), "sizes must be GradientSizes or None; got"),
        ("terms", lambda: ConsistentCAMLoss(terms=3), "terms must be a list of terms; got an int"),
        (
            "a term",
            lambda: ConsistentCAMLoss(terms=[3]),
            "terms must be .*Term objects; got an int, 3",
        ),
        ("twice", lambda: ConsistentCAMLoss(terms=[Sparsity()]), "already has a column 'norm'"),
        ("no maps", lambda: loss(), "alpha > 0 needs the explained images; got None"),
        ("no view", lambda: loss(MAPS), "alpha > 0 needs maps_of_view and warp"),
        ("no maps for beta", lambda: loss(alpha=0), "beta > 0 needs the explained images"),
        ("maps", lambda: ConsistentCAMLoss()(SCALAR, MAPS), "needs the explained images; got a T"),
        ("no loss", lambda: loss(MAPS, MAPS, cross_entropy=None), "cross_entropy must .* got None"),
        ("per image", lambda: loss(MAPS, MAPS, cross_entropy=VALUES), r"cross_entropy .* \(2,\)"),
        ("small", lambda: loss(MAPS, MAPS, size=(4, 4)), "window of 11 x 11 pixels; got maps of 4"),
        ("unmeasured", lambda: loss(MAPS, MAPS, alpha="auto"), "none have been measured yet"),
        ("a list", lambda: loss(MAPS, MAPS, activations=[1]), "activations must be .* got a list"),
    ],
    "Explanations": [
        ("arrays", lambda: Explanations(MAPS.numpy()), "maps must be .* got an ndarray"),
        (
            "one to two",
            lambda: Explanations(MAPS, MAPS[:1], VIEWS),
            "maps and maps_of_view must be of one shape",
        ),
        ("no warp", lambda: Explanations(MAPS, MAPS), "warp must be a Warp for each .* got None"),
        ("a word", lambda: Explanations(MAPS, MAPS, "x"), "warp must be .* got a str, 'x'"),
        ("warps", lambda: Explanations(MAPS, MAPS, Warp.identity(3)), "warp must .* got one for 3"),
        ("no maps of it", lambda: Explanations(MAPS, warp=VIEWS), "maps_of_view must .* got None"),
        ("masks", lambda: Explanations(MAPS, masks=MAPS > 0), "masks must be a floating-point Ten"),
        ("a mask", lambda: Explanations(MAPS, masks=MAPS[:1]), "There are 2 maps and 1 masks"),
        ("annotated", lambda: Explanations(MAPS, annotated=3), "annotated must be a Tensor"),
        (
            "of labels",
            lambda: Explanations(MAPS, of_labels=MAPS[:1]),
            "maps and of_labels must be of one shape",
        ),
        ("no size", lambda: Explanations(MAPS, size=(0, 3)), r"size must be .* got \(0, 3\)"),
    ],
    "Consistency": [
        (
            "small",
            lambda: Consistency().values(Explanations(MAPS[:, 2:], MAPS[:, 2:], VIEWS)),
            "got maps of 10 x 12",
        ),
        ("a word", lambda: Consistency(agreement="l1"), "agreement must be one of ssim, .* 'l1'"),
        ("a class", lambda: Consistency(agreement=Contrastive), "agreement must be one of ssim"),
    ],
    "Energy": [
        (
            "several labels",
            lambda: classifier(gamma=1, task="multilabel").fit(X, np.eye(3)[Y], masks=X),
            "needs the map of an image's own label, .* Give one label per image",
        ),
        ("weight", lambda: classifier(terms=[Energy(-1)]).fit(X, Y), "energy_weight must be"),
    ],
    "RightReasons": [
        (
            "numbers",
            lambda: classifier(gamma=1, mask_loss="rrr", task="regression").fit(X, Y, masks=X),
            "classes that exclude each other, .* task is 'regression'",
        ),
    ],
    "GradMask": [
        (
            "three classes",
            lambda: classifier(gamma=1, mask_loss="gradmask").fit(X, Y, masks=X),
            'GradMask contrasts two classes, and there are 3. Use "rrr"',
        ),
    ],
    "Contrastive": [
        ("tau 0", lambda: Contrastive(0), "tau must be a finite number .* got 0"),
        ("a word", lambda: Contrastive("a"), "tau must be a finite number .* got 'a'"),
        *of_pairs(Contrastive(), "view_of_maps", "maps_of_view"),
    ],
    "Sparsity": [("p a half", lambda: Sparsity(p=0.5), "p must be 0 or at least 1; got 0.5")],
    "WarmUp": [
        ("no weight", lambda: WarmUp(None), "weight must be a finite number >= 0; got None"),
        ("negative", lambda: WarmUp(-1), "weight must be a finite number >= 0; got -1"),
        ("no epochs", lambda: WarmUp(1, epochs=0), "epochs must be an int >= 1; got 0"),
        ("wait", lambda: WarmUp(1, wait="a"), "wait must be an int >= 0; got 'a'"),
    ],
    "Balanced": [
        ("nothing", lambda: Balanced(0), "ratio must be a finite number > 0; got 0"),
        ("a word", lambda: Balanced("a"), "ratio must be a finite number > 0; got 'a'"),
        ("infinite", lambda: Balanced(INF), "ratio must be a finite number > 0; got inf"),
    ],
    "GradientSizes": [
        ("1", lambda: GradientSizes(1), "decay must be a number from 0 to below 1; got 1"),
        ("2", lambda: GradientSizes(2), "decay must be a number from 0 to below 1; got 2"),
        ("a word", lambda: GradientSizes("a"), "decay must be a number from 0 to below 1; got 'a'"),
    ],
    "consistency_loss": [
        *of_pairs(consistency_loss, "view_of_maps", "maps_of_view"),
        ("small", lambda: consistency_loss(MAPS[:, 2:], MAPS[:, 2:]), "got maps of 10 x 12"),
    ],
    "sparsity_loss": [
        *of_maps(sparsity_loss),
        ("p a half", lambda: sparsity_loss(MAPS, 0.5), "p must be 0 or at least 1; got 0.5"),
        ("p None", lambda: sparsity_loss(MAPS, None), "p must be 0 or at least 1; got None"),
    ],
    "CollapseWarning": [
        ("0", lambda: CollapseWarning(patience=0).initialize(), "patience must be an int >= 1; go"),
        (
            "no share",
            lambda: CollapseWarning(share=0).initialize(),
            "share must be a number above 0 to 1; got 0",
        ),
        ("2", lambda: CollapseWarning(share=2).initialize(), "share must be a number above 0 to 1"),
    ],
    "ForgetBatches": [
        (
            "the last alone",
            lambda: ForgetBatches(1).initialize(),
            "keep must be an int >= 2; got 1",
        ),
        ("all", lambda: ForgetBatches(None).initialize(), "keep must be an int >= 2; got None"),
    ],
    "EMA": [
        ("1", lambda: EMA(decay=1).initialize(), "decay must be .* got 1"),
        ("a word", lambda: EMA("slow").initialize(), "decay must be .* got 'slow'"),
    ],
    "signs_of_collapse": [
        ("None", lambda: signs_of_collapse(None, Y, MAPS), "logits must be .* got None"),
        ("arrays", lambda: signs_of_collapse(LOGITS, Y[:2], MAPS), "classes must be .* an ndarray"),
        ("floats", lambda: signs_of_collapse(LOGITS, VALUES, MAPS), "classes must be indices"),
        ("a label", lambda: signs_of_collapse(LOGITS, torch.tensor([0]), MAPS), "got 2, 1 and 2"),
        ("maps", lambda: signs_of_collapse(LOGITS, torch.tensor([0, 1]), IMAGES), "maps must be"),
    ],
    # Views
    "Warp": [
        ("None", lambda: Warp(None), "matrices of views must be .* got None"),
        ("one matrix", lambda: Warp(torch.eye(2, 3)), r"matrices of views must be .* \(2, 3\)"),
        ("integers", lambda: Warp(torch.ones(2, 2, 3).int()), "matrices of views must be .*int32"),
        ("-1 images", lambda: Warp.identity(-1), "n_images must be an int >= 0; got -1"),
        ("no boxes", lambda: Warp.from_crops(None, VALUES > 0), "boxes must be .* got None"),
        (
            "triples",
            lambda: Warp.from_crops(torch.rand(2, 3), VALUES > 0),
            r"boxes must .*\(2, 3\)",
        ),
        ("chances", lambda: Warp.from_crops(torch.rand(2, 4), VALUES), "flip of .* and bool; got"),
        ("a flip more", lambda: Warp.from_crops(torch.rand(2, 4), MORE > 0), r"flip of .*\(3,\)"),
        ("no images", lambda: VIEWS(None), "images must be a Tensor .* got None"),
        ("arrays", lambda: VIEWS(MAPS.numpy()), "images must be a Tensor .* got an ndarray"),
        ("a table", lambda: VIEWS(LOGITS), r"images must be a Tensor .* shape \(2, 3\)"),
        ("one of two", lambda: VIEWS(MAPS[:1]), "Got 1 images for 2 views. Give one view per"),
        ("no angles", lambda: Warp.from_rotations(30, (4, 4)), "degrees must be .* got an int, 30"),
        ("a side", lambda: Warp.from_rotations(VALUES, (4, 0)), r"size must be .* got \(4, 0\)"),
        ("shifts", lambda: Warp.from_shifts(torch.rand(2, 4)), r"shifts must be .*\(2, 4\)"),
        ("no shifts", lambda: Warp.from_shifts(None), "shifts must be .* got None"),
        ("then None", lambda: VIEWS.then(None), "then needs a Warp of 2 images .* got None"),
        ("a line", lambda: Warp(torch.zeros(2, 2, 3)).inverse(), "a line or a point .* no inverse"),
        ("no size", lambda: VIEWS.valid(None), "size must be .* got None"),
    ],
    "ViewSampler": [
        ("angles", lambda: ViewSampler(rotation=200), "rotation, in degrees, .* 180; got 200"),
        ("shift", lambda: ViewSampler(translation=2), "translation, a share .* 1; got 2"),
        ("dark", lambda: ViewSampler(brightness=-1), "brightness must be .* got -1"),
        ("no contrast", lambda: ViewSampler(contrast=None), "contrast must be .* got None"),
        ("color", lambda: ViewSampler(color=NAN), "color must be .* got nan"),
        ("sharpness", lambda: ViewSampler(sharpness=INF), "sharpness must be .* got inf"),
        ("blur", lambda: ViewSampler(blur=(0, 1)), r"blur must be .* got \(0, 1\)"),
        ("grey", lambda: ViewSampler(grey=1.5), "grey, a probability, .* 1; got 1.5"),
        ("scale beyond", lambda: ViewSampler(scale=(0, 2)), r"within \(0, 1\]; got \(0, 2\)"),
        ("a scale", lambda: ViewSampler(scale=0.5), r"range within \(0, 1\]; got 0.5"),
        ("three", lambda: ViewSampler(scale=(0.1, 0.2, 0.3)), r"scale must be .*0.3\)"),
        ("ratio 0", lambda: ViewSampler(ratio=(0, 1)), "ratio must be a range of positive numbers"),
        ("no ratio", lambda: ViewSampler(ratio=None), "ratio must be .* got None"),
        ("infinite", lambda: ViewSampler(ratio=(1, INF)), "ratio must be .* inf"),
        ("flip 2", lambda: ViewSampler(flip=2), "flip, a probability, must be .* 0 to 1; got 2"),
        ("flip NaN", lambda: ViewSampler(flip=NAN), "flip, a probability, must be .* got nan"),
        (
            "-1 views",
            lambda: ViewSampler()(-1, size=(4, 4)),
            "n_images must be an int >= 0; got -1",
        ),
        ("no pixels", lambda: ViewSampler()(2, size=(0, 4)), r"size must be .* got \(0, 4\)"),
        ("a seed", lambda: ViewSampler()(2, size=(4, 4), generator=3), "generator must be a torch"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()


def test_a_device_that_is_not_here_is_refused_by_number():
    beyond = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=f"device='{beyond}' is not available"):
        classifier(device=beyond).fit(X, Y)


def test_words_of_skorch_stay_allowed():
    for callbacks in ([], None, "disable"):
        classifier(callbacks=callbacks, max_epochs=0).fit(X, Y)
    classifier(batch_size=-1, max_epochs=0).fit(X, Y)
