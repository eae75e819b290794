"""The protocols of the Grad-CAM paper: errors of top-k localisation, rejection, human attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluations import counted, measure
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.stats import spearmanr
from torch import nn

from sklcam import CAMExplainer, EmbeddingCAMExplainer
from sklcam.cam import GradCAM, Saliency
from sklcam.metrics import (
    Metric,
    evaluate,
    get_scorer,
    heatmap_ratio,
    localization_error,
    pointing_game_with_rejection,
    rejection_threshold,
)
from sklcam.metrics.annotations import check_covers
from sklcam.metrics.ranked import RankedClasses, ranked_localization_error
from sklcam.metrics.rejection import _best_threshold

TOP1, TOP5 = "top1_localization_error", "top5_localization_error"
REJECT = "pointing_game_reject"


class Channels(nn.Module):
    """Class c scores the mean of channel c: its Grad-CAM map is the channel, over the area."""

    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, images):
        return self.same(images).mean((2, 3))


def explainer(X, n_classes=6, **options):
    options = {"classes": [*"abcdefgh"[:n_classes]], "verbose": 0, "batch_size": 2, **options}
    return CAMExplainer(Channels(), target_layer="same", **options).fit(X[:1])


def scene(*squares, n_classes=6, size=8):
    """An image (n_classes, 8, 8): of each (class, x1, y1, x2, y2, value) a bright square."""
    image = torch.zeros(n_classes, size, size)
    for index, x1, y1, x2, y2, value in squares:
        image[index, y1:y2, x1:x2] = value
    return image


# Scores are sums of the channels, over 64: which classes are how likely can be read off.
SCENES = torch.stack([
    # a is the first of all, and where it is; all others are behind it.
    scene((0, 0, 0, 4, 4, 8.0), (1, 6, 6, 8, 8, 1.0), (2, 5, 0, 6, 1, 1.0)),
    # b is the first, c the second: c is right, and where it is.
    scene((1, 0, 0, 4, 4, 8.0), (2, 4, 4, 8, 8, 4.0)),
    # c is right and the first, but looks elsewhere.
    scene((2, 0, 0, 2, 2, 8.0), (0, 4, 4, 6, 6, 1.0)),
    # f is right, and the last of six.
    scene(*((i, 0, 0, 4, 4, 6.0 - i) for i in range(6))),
])  # fmt: skip
LABELS = [*"accf"]
BOXES = [[[0, 0, 4, 4]], [[4, 4, 8, 7]], [[4, 4, 8, 8]], [[0, 0, 4, 4]]]


def test_localization_errors_by_hand():
    result = measure(
        explainer(SCENES), SCENES, LABELS, metrics=[TOP1, TOP5], boxes=BOXES, metric_params={}
    )
    assert_array_equal(result[TOP1], [0, 1, 1, 1])
    assert_array_equal(result[TOP5], [0, 0, 1, 1])
    assert result.means() == {TOP1: 0.75, TOP5: 0.5}


def test_localization_errors_are_those_of_the_function():
    """Boxes of all five maps, as ILSVRC has it, on maps of noise."""
    images = torch.rand(30, 7, 9, 9, generator=torch.Generator().manual_seed(0)) ** 4
    numbers = np.random.default_rng(0)
    labels, corners = numbers.integers(0, 7, 30), numbers.integers(0, 4, (30, 2))
    boxes = [[[x, y, x + 6, y + 5]] for x, y in corners.tolist()]
    estimator = explainer(images, n_classes=7, classes=range(7))
    output = images.mean((2, 3))
    predicted = output.topk(5, dim=1).indices
    maps = estimator.explain(images, predicted.numpy(), normalize=False)
    for threshold in (0.02, 0.15):
        found = [
            [_box(maps[i, j], threshold) for j in range(5)] for i in range(30)
        ]  # fmt: skip
        truth = [torch.tensor(of_image, dtype=torch.float32) for of_image in boxes]
        options = {"metrics": [TOP1, TOP5], "boxes": boxes}
        params = {name: {"threshold": threshold, "iou_threshold": 0.3} for name in (TOP1, TOP5)}
        result = measure(estimator, images, labels, metric_params=params, **options)
        for name, k in ((TOP1, 1), (TOP5, 5)):
            expected = localization_error(
                torch.tensor(found)[:, :k], predicted[:, :k], truth, torch.tensor(labels),
                iou_threshold=0.3,
            )  # fmt: skip
            assert_array_equal(result[name], expected)
        assert threshold > 0.1 or 0 < result[TOP5].mean() < result[TOP1].mean()


def _box(map_, threshold):
    """The box around the largest part, by scikit-image."""
    from skimage.measure import label, regionprops

    parts = label(map_ >= threshold * map_.max(), connectivity=1)
    largest = max(regionprops(parts), key=lambda part: part.area)
    y1, x1, y2, x2 = largest.bbox
    return [float(x1), float(y1), float(x2), float(y2)]


def test_one_pass_explains_all_classes():
    estimator = explainer(SCENES, batch_size=4)
    options = {"y": LABELS, "boxes": BOXES, "metric_params": {REJECT: {"threshold": 0.01}}}
    with counted(estimator.model) as passes:
        measure(estimator, SCENES, metrics=[TOP1, TOP5, REJECT], **options)
    assert passes == [4]


def test_boxes_lie_in_the_frame_of_each_image():
    images = [Image.new("RGB", size) for size in ((40, 20), (16, 64))]
    for image in images:
        width, height = image.size
        image.paste((255, 0, 0), (0, 0, width // 2, height // 2))
    model = nn.Sequential(Channels(), nn.Identity())
    estimator = CAMExplainer(
        model, target_layer="0.same", image_size=8, mean=0, std=1, classes=["red", "g", "b"],
        verbose=0,
    ).fit(images)  # fmt: skip
    boxes = [[[0, 0, 20, 10]], [[0, 0, 8, 32]]]
    options = {"metrics": [TOP1], "metric_params": {TOP1: {"iou_threshold": 0.7}}}
    right = measure(estimator, images, ["red", "red"], boxes=boxes, **options)
    assert_array_equal(right[TOP1], [0, 0])
    swapped = measure(estimator, images, ["red", "red"], boxes=boxes[::-1], **options)
    assert_array_equal(swapped[TOP1], [1, 1])
    wrong = measure(estimator, images, ["g", "red"], boxes=boxes, **options)
    assert_array_equal(wrong[TOP1], [1, 0])


def test_several_boxes_and_none():
    boxes = [[[6, 6, 8, 8], [0, 0, 4, 4]], [], [], [[0, 0, 1, 1]]]
    result = measure(explainer(SCENES), SCENES, LABELS, metrics=TOP5, boxes=boxes, metric_params={})
    assert_array_equal(result[TOP5], [0, 1, 1, 1])


# Objects of several classes


BY_CLASS = [
    {"a": [[0, 0, 4, 4]], "b": [[6, 6, 8, 8]]},
    {"c": [[4, 4, 8, 8]]},
    {"c": [[4, 4, 8, 8]], "a": [[4, 4, 6, 6]]},
    {"grape": [[0, 0, 8, 8]]},
]


def test_boxes_by_class():
    """Without y the classes with boxes are the true ones; with it, that class alone."""
    estimator, options = explainer(SCENES), {"boxes": BY_CLASS, "metric_params": {}}
    result = measure(estimator, SCENES, metrics=[TOP1, TOP5], **options)
    assert_array_equal(result[TOP1], [0, 1, 1, 1])
    assert_array_equal(result[TOP5], [0, 0, 0, 1])
    labelled = measure(estimator, SCENES, [*"bccc"], metrics=[TOP5], **options)
    assert_array_equal(labelled[TOP5], [0, 0, 1, 1])


def test_one_class_is_compared_with_its_own_boxes():
    estimator = explainer(SCENES)
    for target in ([*"abab"], None):
        result = measure(
            estimator, SCENES, metrics=["heatmap_ratio", "pointing_game"], target=target,
            boxes=BY_CLASS, metric_params={},
        )  # fmt: skip
        asked = target or [*"abca"]  # those that are predicted
        maps = torch.tensor(estimator.explain(SCENES, asked, normalize=False))
        masks = torch.zeros(4, 8, 8)
        for mask, label, of_image in zip(masks, asked, BY_CLASS, strict=True):
            for x1, y1, x2, y2 in of_image.get(label, []):
                mask[y1:y2, x1:x2] = 1
        assert_allclose(result["heatmap_ratio"], heatmap_ratio(maps, masks))
    as_masks = [
        {label: mask.numpy() > 0 for label in [name]}
        for name, mask in zip(asked, masks, strict=True)
    ]
    same = measure(estimator, SCENES, metrics="heatmap_ratio", masks=as_masks, metric_params={})
    assert_allclose(same["heatmap_ratio"], result["heatmap_ratio"])


def test_the_game_with_rejection_is_that_of_the_function():
    images = torch.rand(20, 6, 8, 8, generator=torch.Generator().manual_seed(0)) ** 6
    estimator = explainer(images)
    numbers = np.random.default_rng(1)
    masks = [
        {label: numbers.random((8, 8)) < 0.5 for label in numbers.permutation([*"abcdef"])[:4]}
        for _ in range(20)
    ]
    ranked = images.mean((2, 3)).topk(5, dim=1).indices.numpy()
    labels = np.array([*"abcdef"])[ranked]
    maps = torch.tensor(estimator.explain(images, labels, normalize=False))
    truth = torch.stack([
        torch.stack([torch.tensor(of.get(label, np.zeros((8, 8), bool))) for label in row])
        for of, row in zip(masks, labels.tolist(), strict=True)
    ])  # fmt: skip
    for threshold, tolerance in ((0.005, 0), (0.0095, 0), (0.0095, 1)):
        options = {"threshold": threshold, "tolerance": tolerance}
        expected = pointing_game_with_rejection(maps, truth, **options).mean(dim=1)
        result = measure(
            estimator, images, metrics=REJECT, masks=masks, metric_params={REJECT: options}
        )
        assert_allclose(result[REJECT], expected)
        scorer = get_scorer(REJECT, **options)
        assert scorer(estimator, images, masks=masks) == pytest.approx(expected.mean())
    # The best of all thresholds, tried one by one between all maxima.
    peaks = maps.amax((2, 3)).flatten().sort().values
    tried = [peaks[0] - 1, *((peaks[:-1] + peaks[1:]) / 2), peaks[-1] + 1]
    best = max(
        pointing_game_with_rejection(maps, truth, threshold=float(cut)).mean() for cut in tried
    )
    chosen = rejection_threshold(estimator, images, masks=masks)
    found = pointing_game_with_rejection(maps, truth, threshold=chosen).mean()
    assert peaks[0] < chosen < peaks[-1]  # some are rejected, and some are not
    assert found == pytest.approx(best) and 0.3 < best < 1


def test_the_game_where_images_have_one_class():
    """The others of the five are not there: to win, they must be rejected."""
    result = measure(
        explainer(SCENES), SCENES, LABELS, metrics=REJECT, boxes=BOXES,
        metric_params={REJECT: {"threshold": 3.0 / 64}},
    )  # fmt: skip
    # Peaks of the five: 8 1 1 0 0 (a is there), 8 4 0 0 0 (c is), 8 1 0 0 0 (c, elsewhere), and
    # 6 5 4 3 2 (f is not among them).
    assert_allclose(result[REJECT], [1, 4 / 5, 4 / 5, 1 / 5])


# Maps of others


def test_references_by_hand():
    """Das et al.: both on a grid of 14 x 14, and Spearman's correlation of the ranks."""
    numbers = np.random.default_rng(0)
    images = [
        Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in ((28, 42), (56, 28), (28, 28), (28, 28))
    ]
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), Channels())
    estimator = CAMExplainer(
        model, target_layer="1", image_size=32, batch_size=3, verbose=0
    ).fit(images)  # fmt: skip
    shapes = [(28, 42), (112, 56), (14, 14), (7, 7)]
    references = [numbers.random(shape) for shape in shapes]
    maps = estimator.explain(images, normalize=False, frame="image")

    def cells(map_, side):
        height, width = map_.shape
        return map_.reshape(side, height // side, side, width // side).mean((1, 3)).ravel()

    expected = [
        spearmanr(cells(map_, side), cells(reference, side)).statistic
        for map_, reference, side in zip(maps, references, (14, 14, 14, 7), strict=True)
    ]
    options = {"metrics": "reference_correlation", "metric_params": {}}
    result = measure(estimator, images, references=references, **options)
    assert_allclose(result["reference_correlation"], expected, atol=1e-6)

    class Lazy:
        """It knows one at a time, as one that reads files does."""

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return references[range(4)[int(i)]]

    for n_jobs in (None, 2):
        lazy = evaluate(
            estimator, images, metrics="reference_correlation", references=Lazy4(references),
            n_jobs=n_jobs, progress=False,
        )  # fmt: skip
        assert_allclose(lazy["reference_correlation"], expected, atol=1e-6)
    assert_allclose(
        measure(estimator, images, references=Lazy(), **options)["reference_correlation"], expected,
        atol=1e-6,
    )  # fmt: skip
    itself = measure(estimator, images, references=maps, **options)
    assert_allclose(itself["reference_correlation"], 1)
    scorer = get_scorer("reference_correlation")
    assert scorer(estimator, images, references=references) == pytest.approx(np.mean(expected))


class Lazy4:
    """A list that is not one, and pickles."""

    def __init__(self, entries):
        self.entries = entries

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, i):
        return self.entries[range(len(self))[int(i)]]


def test_a_constant_reference_says_nothing():
    references = [np.ones((8, 8)), np.eye(8), np.eye(8, dtype=bool), np.zeros((8, 8), int)]
    result = measure(
        explainer(SCENES), SCENES, metrics="reference_correlation", references=references,
        metric_params={},
    )  # fmt: skip
    assert_array_equal(result["reference_correlation"][[0, 3]], 0)
    assert (result["reference_correlation"][1:3] != 0).all()


# What is not


class Silent(Channels):
    """It answers NaN where an image is marked."""

    def forward(self, images):
        return super().forward(images) * (0.5 - images[:, 5:, 7, 7]).sqrt()


def test_networks_that_answer_nothing_are_neither_right_nor_wrong():
    images = SCENES.clone()
    images[1, 5, 7, 7] = 1
    estimator = CAMExplainer(
        Silent(), target_layer="same", classes=[*"abcdef"], batch_size=2, verbose=0
    ).fit(images[:1])
    with pytest.warns(UserWarning, match="NaN"):
        result = measure(
            estimator, images, LABELS, metrics=[TOP1, TOP5, REJECT], boxes=BOXES,
            metric_params={REJECT: {"threshold": 0.01}},
        )  # fmt: skip
    for values in result.values():
        assert_array_equal(np.isnan(values), [False, True, False, False])
    with pytest.raises(ValueError, match="maps have NaN, so no threshold can be chosen"):
        rejection_threshold(estimator, images, LABELS, boxes=BOXES)


def few(n=3):
    return explainer(SCENES[:, :n], n_classes=n)


ONE_EACH = [np.eye(8)] * 4


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (TOP1, {"boxes": BOXES}, f"{TOP1} needs y"),
        (TOP5, {"y": LABELS}, f"{TOP5} needs boxes"),
        (TOP5, {"y": LABELS, "masks": ONE_EACH}, f"{TOP5} needs boxes"),
        (REJECT, {"y": LABELS}, f"{REJECT} needs boxes or masks"),
        (REJECT, {"masks": ONE_EACH}, f"{REJECT} needs y"),
        (TOP5, {"y": [*"zzzz"], "boxes": BOXES}, "None of the labels in y is a class"),
        (
            TOP5,
            {"boxes": [{"apple": [[0, 0, 1, 1]]}] * 4},
            r"None of the labels of boxes is a class of the estimator: they are \['apple'\]",
        ),
        (
            TOP5,
            {"boxes": [*BY_CLASS[:3], [[0, 0, 1, 1]]]},
            r"boxes\[3\] is a list, .*in dicts, for",
        ),
        (TOP5, {"boxes": [{"a": [[3, 3, 1, 1]]}] * 4}, r"boxes\[0\]: A box is .* x1 < x2"),
        (
            TOP5,
            {"boxes": [*BY_CLASS[:3], {"a": [[8, 0, 9, 1]]}]},
            r"boxes\[3\] has no box in its image of 8 x 8 pixels",
        ),
        (
            TOP5,
            {"y": LABELS, "boxes": {"a": BOXES}},
            "boxes must be a sequence with an entry for each of 4",
        ),
        (TOP5, {"y": LABELS, "boxes": BOXES[:2]}, "boxes has 2 entries for 4 images"),
        (
            "heatmap_ratio",
            {"boxes": BY_CLASS, "target": lambda output: output[:, 0]},
            "heatmap_ratio: boxes and masks by class need targets that are classes",
        ),
        (
            "reference_correlation",
            {},
            "needs references. Give a map to compare with for each image",
        ),
        (
            "rank_correlation",
            {"references": ONE_EACH},
            "none of the metrics uses it. 'reference_correlation' would",
        ),
        ("reference_correlation", {"references": ONE_EACH[:3]}, "references has 3 entries for 4"),
        (
            "reference_correlation",
            {"references": [*ONE_EACH[:3], np.ones((8, 8, 3))]},
            r"references\[3\] must be a map of numbers, .*\(8, 8, 3\)",
        ),
        (
            "reference_correlation",
            {"references": [*ONE_EACH[:3], np.full((8, 8), np.nan)]},
            r"references\[3\] has numbers that are not finite",
        ),
        (
            "reference_correlation",
            {"references": ["1.png"] * 4},
            r"references\[0\] must be a map of numbers",
        ),
        (
            "reference_correlation",
            {"references": np.ones((4, 8, 12))},
            r"references\[0\] is of 8 x 12 pixels, and its image of 8 x 8",
        ),
    ],
)
def test_what_protocols_refuse(metric, options, message):
    given = {"metric_params": {REJECT: {"threshold": 0.1}} if metric == REJECT else {}, **options}
    with pytest.raises(ValueError, match=message):
        measure(explainer(SCENES), SCENES, metrics=metric, **given)


def test_too_few_classes_and_no_threshold():
    with pytest.raises(
        ValueError, match=f"{TOP5}: the 5 highest-scoring classes .* the estimator has 3"
    ):
        measure(few(), SCENES[:, :3], [*"aaaa"], metrics=TOP5, boxes=BOXES, metric_params={})
    message = f"{REJECT} has no default for threshold.* rejection_threshold"
    with pytest.raises(ValueError, match=message):
        measure(explainer(SCENES), SCENES, LABELS, metrics=REJECT, boxes=BOXES, metric_params={})

    def above(maps, *, level):
        return (maps > level).float().mean((1, 2))

    own = Metric("above", above, ("maps",), options={"level": lambda name, value: None})
    with pytest.raises(ValueError, match=r"above has no default for level\. Choose it"):
        measure(explainer(SCENES), SCENES, metrics=own, metric_params={})


def test_several_labels_an_image():
    """Whose boxes they are must be said: by class."""
    estimator = explainer(SCENES, task="multilabel")
    y = [{"a", "b"}, {"c"}, {"c", "a"}, {"f"}]
    options = {"metrics": [TOP1, TOP5], "metric_params": {}}
    with pytest.raises(
        ValueError, match=r"images have several labels\. Give boxes or masks by clas"
    ):
        measure(estimator, SCENES, y, boxes=BOXES, **options)
    result = measure(estimator, SCENES, y, boxes=BY_CLASS, **options)
    assert_array_equal(result[TOP1], [0, 1, 1, 1])
    assert_array_equal(result[TOP5], [0, 0, 0, 1])


def test_embeddings_rank_their_nearest_proxies():
    images = SCENES[:3]
    estimator = EmbeddingCAMExplainer(Channels(), target_layer="same", verbose=0).fit(
        torch.stack([scene((i, 0, 0, 8, 8, 1.0)) for i in range(6)]), [*"abcdef"]
    )
    result = measure(
        estimator, images, [*"acc"], metrics=[TOP1, TOP5], boxes=BOXES[:3], metric_params={}
    )
    assert_array_equal(result[TOP1], [0, 1, 1])
    assert_array_equal(result[TOP5], [0, 0, 1])


def test_the_methods_own_relu_goes_first():
    """Evidence against a class makes no box."""
    result = measure(
        explainer(SCENES), SCENES - 0.01, LABELS, metrics=[TOP1], boxes=BOXES, metric_params={},
        method=GradCAM(relu=False),
    )  # fmt: skip
    assert_array_equal(result[TOP1], [0, 1, 1, 1])


def test_thresholds_of_boxes_by_hand():
    """A box is of what is above 0.15 of a map's maximum, and has to share half of the truth's."""
    halo, slice_ = torch.full((1, 8, 8), 0.2), torch.zeros(1, 8, 8)
    halo[:, 2:6, 2:6] = 1  # a quarter of it
    slice_[:, :3] = 1  # three eighths of it
    ranked = RankedClasses(
        [halo, slice_], [["a"], ["a"]], np.zeros((2, 1), int), torch.zeros(2, dtype=torch.bool)
    )
    whole = [lambda label: torch.tensor([[0.0, 0.0, 8.0, 8.0]])] * 2
    assert ranked_localization_error(ranked, whole).tolist() == [0, 1]


def test_maps_of_one_maximum_are_rejected_together():
    # Of three alike, an absent class first: to keep them wins two games, to reject them one.
    peaks, present = np.ones(3), np.array([False, True, True])
    assert _best_threshold(peaks, present, present) == 1
    above = np.nextafter(np.float32(1), np.float32(2))
    assert _best_threshold(peaks, ~present, ~present) == above
    # Float32 has no number between these two neighbours.
    kept = np.array([False, True])
    assert np.float32(_best_threshold(np.array([1, float(above)]), kept, kept)) == above


def test_references_have_the_proportions_of_their_images():
    for shape in ((100, 200), (50, 100), (50, 101), (7, 7)):
        check_covers(torch.zeros(shape), (100, 200), 0)
    for shape in ((200, 100), (50, 103), (49, 101)):  # more than a pixel off
        with pytest.raises(ValueError, match=r"references\[3\] is of .* in its proportions"):
            check_covers(torch.zeros(shape), (100, 200), 3)


@pytest.mark.parametrize("name", [TOP1, TOP5])
def test_maps_of_channels_have_no_box(name):
    with pytest.raises(ValueError, match="Leave channels"):
        evaluate(
            explainer(SCENES),
            SCENES,
            LABELS,
            metrics=name,
            boxes=BOXES,
            method=Saliency(channels="keep"),
            progress=False,
        )
