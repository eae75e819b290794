"""Label maps by SEC's rule, worked out pixel by pixel, and their score by scikit-learn's."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn import config_context
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import jaccard_score
from small_networks import SmallNet, digits
from torch import nn

from sklcam import CAMExplainer, CAMSegmenter, ConsistentCAMClassifier, load, save
from sklcam.cam import GradCAM, LayerCAM
from sklcam.persistence import MissingObjectsError
from sklcam.segmentation import cuts, grab_cut
from sklcam.segmentation.label_files import write_label_maps

N, SIDE = 5, 12
IMAGES = torch.rand(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
SETS = [{0, 1}, {2}, set(), {0, 1, 2}, {1}]
TABLE = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])


def network():
    torch.manual_seed(1)
    return SmallNet(in_channels=3, width=4).eval()


def explainer(model=None, **options):
    options = {"target_layer": "5", "verbose": 0, "batch_size": 2, **options}
    return CAMExplainer(network() if model is None else model, **options).fit(IMAGES)


def by_the_rule(maps, labels, *, saliency=None, threshold=0.2, background=0.1, disputed=False):
    """Seeds of one image, pixel by pixel, of maps (k, height, width) of its labels."""
    shares = [m.clip(0) / m.max() if m.max() > 0 else m * 0 for m in maps]
    saliency = np.max(shares, axis=0) if saliency is None else saliency
    areas = [(share >= threshold).sum() if share.any() else 0 for share in shares]
    n_least = int(np.ceil(background * saliency.size))
    last = np.sort(saliency, axis=None)[n_least - 1]
    found = np.full(saliency.shape, 255)
    for place in np.ndindex(saliency.shape):
        marks = [c for c, share in enumerate(shares) if share[place] >= threshold and share.any()]
        if marks and not (disputed and len(marks) > 1):
            found[place] = 1 + labels[min(marks, key=lambda c: areas[c])]
        elif not marks and saliency[place] <= last and saliency.min() < saliency.max():
            found[place] = 0
    return found


def raw_maps(ours, image, labels, **options):
    rows = image[None].repeat(len(labels), *[1] * image.ndim)
    return ours.explain(rows, [*labels], normalize=False, **options)


# Label maps


@pytest.mark.parametrize(
    "options", [{}, {"threshold": 0.6, "background": 0.3}, {"overlap": "unknown"}]
)
@pytest.mark.parametrize("salient", [False, True])
def test_label_maps_are_of_secs_rule(options, salient):
    ours = explainer()
    segmenter = CAMSegmenter(ours, saliency="saliency" if salient else None, **options)
    found = segmenter.fit(IMAGES, SETS).predict(IMAGES, SETS)
    assert found.dtype == np.uint8 and found.shape == (N, SIDE, SIDE)
    assert {0, 1, 2, 3, 255} == {*np.unique(found).tolist()}
    how = {**options, "disputed": options.get("overlap") == "unknown"}
    how.pop("overlap", None)
    for image, labels, of_image in zip(IMAGES, map(sorted, SETS), found, strict=True):
        if not labels:
            assert not of_image.any()  # an image of nothing is background
            continue
        if salient:
            how["saliency"] = raw_maps(ours, image, labels, method="saliency").max(axis=0)
        assert_array_equal(of_image, by_the_rule(raw_maps(ours, image, labels), labels, **how))


def test_labels_in_every_form_and_by_name():
    ours = explainer()
    expected = CAMSegmenter(ours).fit(IMAGES, SETS).predict(IMAGES, SETS)
    for y in (TABLE, pd.DataFrame(TABLE), [sorted(of) for of in SETS], torch.from_numpy(TABLE)):
        assert_array_equal(CAMSegmenter(ours).fit(IMAGES, y).predict(IMAGES, y), expected)
    named = explainer(classes=["red", "green", "blue"])
    sets = [{named.classes_[label] for label in of} for of in SETS]
    segmenter = CAMSegmenter(named).fit(IMAGES, sets)
    assert segmenter.classes_.tolist() == ["red", "green", "blue"]  # in the network's order
    assert_array_equal(segmenter.predict(IMAGES, sets), expected)
    ours.class_names_ = np.array(["red", "green", "blue"])  # of classes that are numbers
    for y in (SETS, sets):
        segmenter = CAMSegmenter(ours).fit(IMAGES, y)
        assert segmenter.classes_.tolist() == [0, 1, 2]
        assert_array_equal(segmenter.predict(IMAGES, y), expected)
    assert CAMSegmenter(ours).fit(IMAGES, ["red", "blue"] * 2 + ["red"]).classes_.tolist() == [0, 2]


def test_classes_are_those_of_y_and_the_likeliest_of_them_is_predicted():
    ours = explainer()
    segmenter = CAMSegmenter(ours).fit(IMAGES, [2, 0, 2, 0, 2])
    assert segmenter.classes_.tolist() == [0, 2]
    likeliest = ours.predict_proba(IMAGES)[:, [0, 2]].argmax(axis=1)
    assert ours.predict(IMAGES).tolist() != [0, 2][likeliest[0]]
    found = segmenter.predict(IMAGES)
    assert_array_equal(found, segmenter.predict(IMAGES, segmenter.classes_[likeliest]))
    assert {*np.unique(found)} <= {0, 1, 2, 255}


def test_of_several_labels_those_that_the_network_finds():
    model = network()
    model[-1].bias.data[:] = torch.tensor([5.0, -5.0, 5.0])
    ours = explainer(model, task="multilabel")
    segmenter = CAMSegmenter(ours).fit(IMAGES, SETS)
    assert (ours.predict(IMAGES) == [1, 0, 1]).all()
    assert_array_equal(segmenter.predict(IMAGES), segmenter.predict(IMAGES, [{0, 2}] * N))
    model[-1].bias.data[:] = -5.0
    assert not segmenter.predict(IMAGES).any()


def test_batches_and_further_passes_make_no_difference():
    by_two = CAMSegmenter(explainer(batch_size=2), saliency="guidedbackprop")
    at_once = CAMSegmenter(explainer(batch_size=9))
    found = by_two.fit(IMAGES, SETS).predict(IMAGES, SETS)
    objects = at_once.fit(IMAGES, SETS).predict(IMAGES, SETS)
    both = (found % 255 > 0) | (objects % 255 > 0)
    assert_array_equal(found[both], objects[both])  # saliency is for the background alone


def test_each_image_has_its_own_size_and_what_was_cut_off_is_unknown():
    ours = explainer(image_size=SIDE, resize="center_crop")
    pictures = [
        Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).resize(size)
        for image, size in zip(IMAGES, [(30, 12), (12, 20)], strict=False)
    ]
    segmenter = CAMSegmenter(ours, background=0.5).fit(pictures, [0, 1])
    wide, high = segmenter.predict(pictures, [0, 1])
    assert wide.shape == (12, 30) and high.shape == (20, 12)
    assert (wide[:, :9] == 255).all() and (wide[:, 21:] == 255).all()
    assert (high[:4] == 255).all() and (high[16:] == 255).all()
    # The share of the background is that of what was seen.
    maps = ours.explain(pictures, [0, 1], normalize=False, frame="image")
    assert_array_equal(wide[:, 9:21], by_the_rule(maps[0][None, :, 9:21], [0], background=0.5))


def test_blank_maps_tell_nothing():
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ours = CAMExplainer(model, target_layer="0", verbose=0).fit(IMAGES)
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, 0, 0] = 1.0
    segmenter = CAMSegmenter(ours).fit(image, [1])
    with pytest.warns(UserWarning, match="blank"):
        assert (segmenter.predict(image, [1]) == 255).all()


# Scores and the threshold


def truths():
    generator = np.random.default_rng(3)
    return generator.choice([0, 1, 2, 3, 255, -1], size=(N, SIDE, SIDE))


def test_score_is_scikit_learns():
    masks = truths()
    segmenter = CAMSegmenter(explainer()).fit(IMAGES, SETS)
    found, counted = segmenter.predict(IMAGES, SETS), (masks >= 0) & (masks != 255)
    expected = jaccard_score(masks[counted], found[counted], labels=range(4), average=None)
    assert segmenter.score(IMAGES, masks, SETS) == pytest.approx(expected.mean())
    # A class that is nowhere does not count.
    masks[masks == 3] = 255
    sets = [of - {2} for of in SETS]
    found, counted = segmenter.predict(IMAGES, sets), (masks >= 0) & (masks != 255)
    expected = jaccard_score(masks[counted], found[counted], labels=range(3), average=None)
    assert segmenter.score(IMAGES, masks, sets) == pytest.approx(expected.mean())


def test_the_threshold_is_that_of_the_best_score():
    masks, ours = truths(), explainer()
    segmenter = CAMSegmenter(ours, threshold="auto").fit(IMAGES, SETS, masks=masks)
    scores = {
        t: CAMSegmenter(ours, threshold=t).fit(IMAGES, SETS).score(IMAGES, masks, SETS)
        for t in segmenter.scores_
    }
    assert len(scores) == 14 and min(scores) == 0.05 and max(scores) == 0.7
    assert segmenter.scores_ == pytest.approx(scores)
    assert segmenter.threshold_ == max(scores, key=scores.get)
    assert segmenter.score(IMAGES, masks, SETS) == max(segmenter.scores_.values())


# Estimators


def test_what_is_not_fitted_is_fitted_as_a_copy():
    unfitted = CAMExplainer(network(), target_layer="5", verbose=0)
    segmenter = clone(CAMSegmenter(unfitted, threshold=0.3)).fit(IMAGES, SETS)
    assert segmenter.threshold_ == 0.3 and not hasattr(unfitted, "classes_")
    expected = CAMSegmenter(explainer(), threshold=0.3).fit(IMAGES, SETS).predict(IMAGES, SETS)
    assert_array_equal(segmenter.predict(IMAGES, SETS), expected)
    bare = CAMSegmenter(network(), threshold=0.3).fit(IMAGES, SETS)
    assert_array_equal(bare.predict(IMAGES, SETS), expected)


def test_a_classifier_learns_first():
    X, y = digits(12)
    options = {"image_size": 8, "max_epochs": 1, "verbose": 0, "random_state": 0, "alpha": 0}
    net = ConsistentCAMClassifier(SmallNet, beta=0, **options)
    segmenter = CAMSegmenter(net).fit(X, y)
    assert not hasattr(net, "module_") and segmenter.classes_.tolist() == [0, 1, 2]
    fitted = clone(net).fit(X, y)
    expected = CAMSegmenter(fitted).fit(X, y).predict(X, y)
    assert_array_equal(segmenter.predict(X, y), expected)


# Files


def shifted(image, labels):
    return np.roll(labels, 1, axis=0)


def test_a_saved_segmenter_brings_its_explainer(tmp_path):
    path, net = tmp_path / "segmenter.sklcam", network()
    pictures = IMAGES.permute(0, 2, 3, 1).numpy()
    options = {"target_layer": "5", "image_size": SIDE, "mean": 0.0, "std": 1.0, "verbose": 0}
    unfitted, fitted = CAMExplainer(net, **options), CAMExplainer(net, **options).fit(pictures)
    objects = {"SmallNet": network(), "SmallNet_": network(), "shifted": shifted}
    truth = CAMSegmenter(fitted, threshold=0.3).fit(IMAGES, SETS).predict(IMAGES, SETS).astype(int)
    # Bare networks do not say how pictures are prepared.
    forms = [(fitted, shifted), (FrozenEstimator(fitted), None), (net, None), (unfitted, None)]
    for form, refine in forms:
        X = pictures if refine else IMAGES
        segmenter = CAMSegmenter(
            form, method=GradCAM(relu=False), saliency=LayerCAM, threshold="auto", refine=refine
        )
        save(segmenter.fit(X, SETS, truth), path)
        loaded = load(path, objects=objects)
        assert (loaded.threshold_, loaded.scores_) == (segmenter.threshold_, segmenter.scores_)
        assert_array_equal(loaded.classes_, segmenter.classes_)
        assert_array_equal(loaded.predict(X, SETS), segmenter.predict(X, SETS))
        assert loaded.refine is refine and loaded.saliency is LayerCAM
        assert (loaded.explainer_ is loaded.explainer) is (form not in (net, unfitted))
        assert isinstance(loaded.explainer, type(net)) is (form is net)
        # Each network is there once; a fitted copy has its own.
        n_networks = path.read_bytes().count(b'.state.0.weight":{')
        assert n_networks == (2 if form is unfitted else 1)
        with pytest.raises(MissingObjectsError, match="SmallNet, shifted" if refine else "needs"):
            load(path)
    assert not hasattr(loaded.explainer, "model_") and loaded.explainer_.model is not net


def test_a_segmenter_is_saved_before_fit_and_around_a_classifier(tmp_path):
    path, objects = tmp_path / "segmenter.sklcam", {"SmallNet": SmallNet}
    save(CAMSegmenter(explainer(), refine="grabcut"), path)
    loaded = load(path, objects={"SmallNet": network()})
    assert loaded.refine == "grabcut" and not hasattr(loaded, "explainer_")
    X, y = digits(6)
    options = {"image_size": 16, "max_epochs": 1, "verbose": 0, "random_state": 0, "batch_size": 6}
    with config_context(enable_metadata_routing=True):
        segmenter = CAMSegmenter(ConsistentCAMClassifier(SmallNet, **options))
        segmenter.set_fit_request(masks=True).fit(X, y)
    save(segmenter, path)
    loaded = load(path, objects=objects)
    assert not loaded.explainer.initialized_
    assert_array_equal(loaded.predict(X), segmenter.predict(X))
    assert loaded._metadata_request.fit.requests == segmenter._metadata_request.fit.requests


def test_files_hold_the_labels(tmp_path):
    segmenter = CAMSegmenter(explainer(), ignore_label=9).fit(IMAGES, SETS)
    paths = segmenter.predict_to(IMAGES, tmp_path / "new", SETS)
    assert [path.rpartition("/")[2] for path in paths] == [f"00000{i}.png" for i in range(N)]
    read = [Image.open(path) for path in paths]
    assert {picture.mode for picture in read} == {"P"}
    expected = segmenter.predict(IMAGES, SETS)
    assert_array_equal(np.stack([np.asarray(picture) for picture in read]), expected)
    assert 9 in expected and 255 not in expected
    colours = np.array(read[0].getpalette()).reshape(-1, 3)[:4].tolist()
    assert colours == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]  # of PASCAL VOC


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a/x.jpg", "b/y.jpg"), ["x.png", "y.png"]),
        (("a/x.jpg", "b/x.jpg"), ["000000.png", "000001.png"]),
    ],
)
def test_files_are_called_as_the_images(names, expected, tmp_path):
    for name, image in zip(names, IMAGES, strict=False):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = (image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    files = [tmp_path / name for name in names]
    segmenter = CAMSegmenter(explainer(image_size=SIDE)).fit(files, [0, 1])
    paths = segmenter.predict_to(files, tmp_path, [0, 1])
    assert paths == [str(tmp_path / name) for name in expected]


# Refinement


def test_refinement_sees_the_picture_and_its_labels():
    pictures = (IMAGES.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    seen = []

    def inverted(image, labels):
        seen.append((image, labels))
        return np.where(labels == 255, 0, 255)

    ours = explainer(image_size=SIDE)
    plain = CAMSegmenter(ours).fit(pictures, SETS).predict(pictures, SETS)
    refined = CAMSegmenter(ours, refine=inverted, ignore_label=7).fit(pictures, SETS)
    assert_array_equal(refined.predict(pictures, SETS), np.where(plain == 255, 0, 7) * some())
    assert_array_equal(np.stack([image for image, _ in seen]), pictures[[0, 1, 3, 4]])
    assert_array_equal(np.stack([labels for _, labels in seen]), plain[[0, 1, 3, 4]])
    # Grey images have no third axis; floats are made bytes.
    grey = IMAGES[:1, 0].numpy()
    CAMSegmenter(one_channel(), refine=inverted).fit(grey, [0]).predict(grey, [0])
    assert_array_equal(seen[-1][0], np.rint(grey[0] * 255))


def some():
    return np.array([bool(of) for of in SETS])[:, None, None]


def one_channel():
    torch.manual_seed(0)
    return CAMExplainer(SmallNet(), target_layer="5", image_size=SIDE, mean=0, std=1, verbose=0)


def test_grab_cut_goes_to_the_edges():
    """A network that looks at red and blue, coarsely, and squares whose edges a cut finds."""
    model = nn.Sequential(
        nn.AvgPool2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip
    picture = np.full((48, 64, 3), 30, np.uint8)
    picture[10:30, 6:26] = (220, 20, 20)
    picture[20:40, 40:58] = (20, 20, 220)
    truth = np.zeros((1, 48, 64), int)
    truth[0, 10:30, 6:26], truth[0, 20:40, 40:58] = 1, 2
    options = {"image_size": (48, 64), "mean": 0.2, "std": 1, "verbose": 0}
    ours = CAMExplainer(model, target_layer="1", classes=["red", "green", "blue"], **options)
    y, X = [{"red", "blue"}], picture[None]
    coarse, fine = (
        CAMSegmenter(ours, refine=refine).fit(X, y).score(X, truth, y)
        for refine in (None, "grabcut")
    )
    assert coarse < 0.8 and fine == 1


@pytest.mark.parametrize("keep", [False, True])
def test_grab_cut_is_opencvs(keep):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
    labels = generator.choice([0, 1, 255], size=(20, 24))
    marks = np.array([cv2.GC_BGD, cv2.GC_FGD if keep else cv2.GC_PR_FGD, cv2.GC_PR_BGD])
    marks = marks[np.minimum(labels, 2)].astype(np.uint8)
    cv2.setRNGSeed(0)
    cv2.grabCut(image, marks, None, np.zeros((1, 65)), np.zeros((1, 65)), 2, cv2.GC_INIT_WITH_MASK)
    found = grab_cut(image, labels, keep_objects=keep, n_iterations=2)
    assert_array_equal(found, marks % 2)  # 1 is the object, 3 probably
    assert keep == (found[labels == 1] == 1).all()


def test_what_grab_cut_leaves_as_it_is():
    image = np.zeros((4, 5), np.uint8)
    for labels in (np.full((4, 5), 255), np.full((4, 5), 3), np.eye(4, 5, dtype=int) * 255):
        assert_array_equal(grab_cut(image, labels), labels)


def test_what_two_cuts_claim_is_unknown(monkeypatch):
    claims = {1: [True, True, False], 4: [False, True, False]}
    monkeypatch.setattr(cuts, "_cut", lambda image, labels, label, *_: np.array([claims[label]]))
    labels = np.array([[1, 4, 255]])
    assert grab_cut(np.zeros((1, 3), np.uint8), labels).tolist() == [[1, 255, 0]]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_label_maps([np.full((2, 2), 1, np.uint8)], tmp_path, ["a.png"])
    before = (tmp_path / "a.png").read_bytes()

    def half(self, file, **_):
        file.write(b"half of a picture")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="no space"):
        write_label_maps([np.full((2, 2), 2, np.uint8)], tmp_path, ["a.png"])
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
