"""Names by masks: scores against scikit-learn's, names that are known, and what destroys them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from seen import NAMES, Seeing, boxes_of, by_concept, seeing, squares
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from sklcam import CAMExplainer, ConceptNamer, load, model_card, save
from sklcam.concepts._ranking import StreamedAUROC, bins_of
from sklcam.concepts._strongest import Strongest
from sklcam.explain import ExplanationWarning
from sklcam.images import Resizing


class Overflowing(nn.Module):
    """Makes the second channel's bright places infinite."""

    def forward(self, x):
        bright = torch.tensor([False, True, False])[:, None, None] & (x > 0.5)
        return torch.where(bright, torch.inf, x)


def areas_by_scikit_learn(values, covered):
    """A cell counts as inside by the share that is covered, and as outside by the rest."""
    values, covered = values.ravel(), covered.ravel()
    is_inside = np.repeat([True, False], len(values))
    return roc_auc_score(
        is_inside, np.tile(values, 2), sample_weight=np.concatenate([covered, 1 - covered])
    )


def test_bins_are_in_the_order_of_the_values():
    sizes = np.geomspace(2**-23, 2**15, 3000)
    values = torch.tensor([*-sizes[::-1], 0.0, *sizes], dtype=torch.float32)
    bins = bins_of(values)
    assert (bins.diff() >= 0).all() and bins.unique().numel() > 1200
    assert bins_of(torch.tensor([-0.0, 0.0, 1e-9])).unique().numel() == 1
    assert bins_of(torch.tensor([-1.0, -(2**-23), 0, 2**-23, 1.0, 2.0])).unique().numel() == 6


def test_areas_of_what_bins_tell_apart_are_exact():
    rng = np.random.default_rng(0)
    values = rng.choice([-2.0, -0.5, 0, 0, 0, 0.25, 1, 4], size=(6, 2, 3, 3)).astype(np.float32)
    covered = rng.random((6, 2, 3, 3), dtype=np.float32)
    counted = StreamedAUROC(2, 2, torch.device("cpu"))
    for rows in (slice(0, 4), slice(4, 6)):
        parts = (values[rows], covered[rows], np.ones((6, 3, 3), np.float32)[rows])
        counted.add(*map(torch.from_numpy, parts))
    areas, _ = counted.result()
    expected = [
        [areas_by_scikit_learn(values[:, k], covered[:, c]) for c in range(2)] for k in range(2)
    ]
    assert_allclose(areas, expected, atol=1e-6)


def test_bins_move_areas_by_less_than_they_say():
    rng = np.random.default_rng(1)
    inside = rng.random((200, 1, 3, 3)) < 0.3
    values = (rng.normal(size=inside.shape) + inside).astype(np.float32)
    counted = StreamedAUROC(1, 1, torch.device("cpu"))
    counted.add(torch.from_numpy(values), torch.from_numpy(inside).float(), torch.ones(200, 3, 3))
    (area,), (uncertainty,) = (each[0] for each in counted.result())
    assert abs(area - roc_auc_score(inside.ravel(), values.ravel())) <= uncertainty < 0.01


def test_small_shares_count_beside_many_cells():
    # In a sum of float32 a 128th is lost beside 2**18, as 1 is beside 2**24.
    counted, size = StreamedAUROC(1, 1, torch.device("cpu")), (1, 1, 512, 512)
    nowhere, everywhere = torch.zeros(size), torch.ones(size)
    counted.add(0 * everywhere, nowhere, everywhere[:, 0])
    counted.add(0 * everywhere, nowhere, everywhere[:, 0] / 128)
    counted.add(2 * everywhere, nowhere, everywhere[:, 0])
    counted.add(everywhere, everywhere, everywhere[:, 0])
    assert counted.result()[0].item() == pytest.approx(129 / 257, abs=1e-9)


def test_scores_are_the_areas_at_twice_the_layers_grid():
    images, masks = squares(12)
    namer = ConceptNamer().fit(seeing(), images, by_concept(masks))
    values = interpolate(avg_pool2d(images, 4), scale_factor=2, mode="bilinear").numpy()
    covered = avg_pool2d(masks.float(), 2).numpy()
    expected = [
        [areas_by_scikit_learn(values[:, k], covered[:, c]) for c in range(3)] for k in range(3)
    ]
    assert (np.abs(namer.scores_ - expected) <= namer.uncertainty_ + 1e-6).all()
    assert namer.names_.tolist() == list(NAMES) == namer.concepts_
    assert namer.layer_ == "features"


def test_batches_make_no_difference():
    images, masks = squares(11)
    found = [
        ConceptNamer(n_crops=3).fit(seeing(batch_size=size), images, by_concept(masks))
        for size in (2, 11)
    ]
    for name in ("scores_", "uncertainty_", "strongest_rows_", "strongest_boxes_"):
        assert_allclose(*(getattr(each, name) for each in found), atol=1e-6)


def test_boxes_by_image_are_masks_by_concept():
    images, masks = squares(9)
    by_boxes = ConceptNamer().fit(seeing(), images, boxes_by_concept=boxes_of(masks))
    assert by_boxes.concepts_ == sorted(NAMES)
    by_masks = ConceptNamer().fit(seeing(), images, by_concept(masks))
    order = [NAMES.index(name) for name in by_boxes.concepts_]
    assert_allclose(by_boxes.scores_, by_masks.scores_[:, order], atol=1e-6)
    of_images = [
        {name: mask for name, mask in zip(NAMES, own, strict=True) if mask.any()} for own in masks
    ]
    again = ConceptNamer().fit(seeing(), images, of_images)
    assert_allclose(again.scores_, by_boxes.scores_, atol=1e-6)


def test_names_hold_on_other_images_and_permuted_labels_destroy_them():
    images, masks = squares(150)
    others, masks_of_others = squares(150, seed=1)
    explainer = seeing()
    namer = ConceptNamer().fit(explainer, images, by_concept(masks))
    assert namer.score(explainer, others, by_concept(masks_of_others)) > 0.95
    # The masks of another image, whose square is elsewhere and mostly of another colour.
    wrong = masks_of_others[torch.from_numpy(np.random.default_rng(0).permutation(150))]
    assert namer.score(explainer, others, by_concept(wrong)) == pytest.approx(0.5, abs=0.1)
    mixed = masks[torch.from_numpy(np.random.default_rng(1).permutation(150))]
    unnamed = ConceptNamer().fit(explainer, images, by_concept(mixed))
    assert unnamed.names_.tolist() == [None] * 3


def test_words_are_those_of_the_channels_that_weigh_the_most():
    images, masks = squares(6)
    explainer = seeing()
    namer = ConceptNamer().fit(explainer, images, by_concept(masks))
    words = explainer.explain_in_words(images, namer, k=2)
    channels = explainer.strongest_channels(images, k=2)
    assert_array_equal(words.positive, channels.positive)
    assert_array_equal(words.negative, channels.negative)
    assert_allclose(words.positive_weights, channels.positive_weights)
    # By hand: a logit is the mean of its own channel, less half of that of the one before; and the
    # gradient of a mean over 16 cells is a sixteenth.
    for i, said in enumerate(words):
        own = i % 3
        assert said.label == str(own)
        assert said.positive == {NAMES[own]: pytest.approx(1 / 16)}
        assert said.negative == {NAMES[own - 1]: pytest.approx(-1 / 32)}
    # The second channel for and against weighs nothing: it speaks for neither.
    assert words.positive_names[:, 1].tolist() == [None] * 6
    assert str(words).splitlines()[1] == "1, 1: for green (0.062); against red (-0.031)"


def test_contributions_are_weights_times_mean_activations():
    images, masks = squares(6)
    explainer = seeing(weights=[[1.0, 2.0, -1.0]] * 3)
    namer = ConceptNamer().fit(explainer, images, by_concept(masks))
    words = explainer.explain_in_words(images, namer, target=0, k=1, weigh="contribution")
    expected = images.mean((2, 3)) * torch.tensor([1.0, 2.0, -1.0]) / 16
    assert_array_equal(words.positive[:, 0], expected.argmax(dim=1))
    assert_allclose(words.positive_weights[:, 0], expected.amax(dim=1), rtol=1e-5)
    assert_allclose(words.negative_weights[:, 0], expected.amin(dim=1), rtol=1e-5)
    assert len({*words.positive_names[:, 0]}) == 2
    assert {*explainer.explain_in_words(images, namer, 0, k=1).positive_names[:, 0]} == {"green"}


def test_crops_show_what_a_channel_sees():
    images, masks = squares(9)
    explainer = seeing()
    namer = ConceptNamer(n_crops=3).fit(explainer, images)
    assert namer.names_.tolist() == [None] * 3 and namer.scores_.shape == (3, 0)
    for channel in range(3):
        found = namer.crops(explainer, images, channel, k=3)
        assert {*found.rows} == {channel, channel + 3, channel + 6}
        assert (np.diff(found.activations) <= 0).all()
        for row, box, crop in zip(found.rows, found.boxes, found.images, strict=True):
            left, top, right, bottom = map(int, box)
            assert crop.shape == (bottom - top, right - left, 3)
            inside = masks[row, channel, top:bottom, left:right]
            assert inside.sum() > 0.5 * 64  # of the square


def test_crops_of_files_that_are_cropped_lie_where_the_network_looked():
    # Images of 20 x 40, of which the middle, 20 x 20, becomes 16 x 16: 4 x 4 cells of 5 pixels.
    strongest = Strongest(1, Resizing("center_crop"))
    values = torch.zeros(1, 1, 4, 4)
    values[0, 0, 0, 3] = 1
    strongest.add(values, 7, [(20, 40)], (16, 16))
    rows, activations, boxes = strongest.result()
    assert rows.tolist() == [[7]] and activations.tolist() == [[1]]
    # The cell's columns are 25 to 30 and its neighbours' 20 to 30; its rows and theirs 0 to 10.
    assert_allclose(boxes[0, 0], [20, 0, 30, 10], atol=0.7)  # the crop lies at whole pixels


def test_channels_that_are_not_finite_have_no_name():
    images, masks = squares(6)
    explainer = seeing()
    explainer.model.features.append(Overflowing())
    with pytest.warns(ExplanationWarning, match="NaN or infinite"):
        namer = ConceptNamer().fit(explainer, images, by_concept(masks))
    assert namer.names_.tolist() == ["red", None, "blue"]
    assert np.isnan(namer.scores_[1]).all()


def test_channels_have_names_whatever_the_network_returns():
    images, masks = squares(6)
    classes = ConceptNamer().fit(seeing(), images, by_concept(masks))
    numbers = CAMExplainer(seeing().model, target_layer="features", task="regression", verbose=0)
    namer = ConceptNamer().fit(numbers.fit(images), images, by_concept(masks))
    assert_array_equal(namer.scores_, classes.scores_)
    (said, *_) = numbers.explain_in_words(images, namer, target=1, k=1)
    assert said.positive == {"green": pytest.approx(1 / 16)}


def test_it_is_an_estimator():
    images, masks = squares(6)
    explainer = seeing()
    namer = ConceptNamer(0.9, n_crops=2)
    assert clone(namer).get_params() == {"threshold": 0.9, "n_crops": 2}
    assert namer.fit(explainer, images, by_concept(masks)) is namer
    again = pickle.loads(pickle.dumps(namer))
    judged = [each.score(explainer, images, by_concept(masks)) for each in (namer, again)]
    assert judged[0] == judged[1]


def test_files_hold_names(tmp_path):
    images, masks = squares(9)
    explainer = seeing()
    concepts = {np.str_("red"): masks[:, 0].numpy(), 2: masks[:, 1].numpy()}
    namer = ConceptNamer(0.6, n_crops=2).fit(explainer, images, concepts)
    save(namer, tmp_path / "names.sklcam")
    loaded = load(tmp_path / "names.sklcam")
    assert loaded.get_params() == namer.get_params()
    assert loaded.names_.tolist() == ["red", 2, None] and loaded.concepts_ == ["red", 2]
    for name in ("scores_", "uncertainty_", "strongest_activations_"):
        assert_array_equal(getattr(loaded, name), getattr(namer, name))
    words = [explainer.explain_in_words(images, each, k=1) for each in (namer, loaded)]
    assert str(words[0]) == str(words[1])
    crops = [each.crops(explainer, images, 0, k=2) for each in (namer, loaded)]
    assert_array_equal(crops[0].boxes, crops[1].boxes)
    assert "| threshold | 0.6 |" in model_card(loaded) and "`, fitted." in model_card(loaded)
    save(ConceptNamer(0.6), tmp_path / "none.sklcam")
    assert not hasattr(load(tmp_path / "none.sklcam"), "names_")


def test_names_are_those_of_a_network_that_was_saved_too(tmp_path):
    images, masks = squares(9)
    explainer = seeing()
    namer = ConceptNamer().fit(explainer, images, by_concept(masks))
    save(explainer, tmp_path / "net.sklcam")
    save(namer, tmp_path / "names.sklcam")
    again = load(tmp_path / "net.sklcam", objects={"Seeing": Seeing})
    words = again.explain_in_words(images, load(tmp_path / "names.sklcam"), k=1)
    assert str(words) == str(explainer.explain_in_words(images, namer, k=1))
