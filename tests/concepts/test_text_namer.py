"""Names by texts: scores against scikit-learn's, by an encoder that is known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from seen import NAMES, seeing, squares
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from torch import nn

from sklcam import EmbeddingCAMExplainer, load, model_card, save
from sklcam.concepts import TextConceptNamer
from sklcam.embeddings import Text
from sklcam.persistence import MissingObjectsError, PersistenceError


def mean_colours(crops):
    return np.array([np.asarray(crop).mean((0, 1)) for crop in crops])


def colours_of(texts, names=NAMES):
    return np.eye(3)[[names.index(text) for text in texts]]


ENCODER = (mean_colours, colours_of)


def test_scores_are_areas_over_crops_of_other_channels():
    images, _ = squares(12)
    explainer = seeing()
    namer = TextConceptNamer(ENCODER, NAMES, n_crops=4).fit(explainer, images)
    crops = [namer.crops(explainer, images, channel, k=4).images for channel in range(3)]
    given = np.array([(crop * 255).round().mean((0, 1)) for own in crops for crop in own])
    cosines = given / np.linalg.norm(given, axis=1, keepdims=True)
    expected = [
        [roc_auc_score(np.arange(12) // 4 == channel, cosines[:, c]) for c in range(3)]
        for channel in range(3)
    ]
    assert_allclose(namer.scores_, expected)
    assert namer.names_.tolist() == list(NAMES)
    assert namer.score(explainer, squares(12, seed=1)[0]) == 1


def test_an_encoder_that_mixes_up_the_texts_is_found_out():
    images, _ = squares(30)
    rng = np.random.default_rng(0)
    noise = TextConceptNamer((lambda crops: rng.normal(size=(len(crops), 3)), colours_of), NAMES)
    scores = noise.fit(seeing(), images).scores_
    assert abs(scores - 0.5).max() < 0.35 and noise.names_.tolist() == [None] * 3
    swapped = (mean_colours, partial(colours_of, names=("green", "blue", "red")))
    named = TextConceptNamer(swapped, NAMES).fit(seeing(), images)
    assert named.names_.tolist() == ["green", "blue", "red"]


def test_crops_that_channels_share_are_embedded_once():
    images, _ = squares(9)
    seen = []

    def counting(crops):
        seen.append(len(crops))
        return mean_colours(crops)

    TextConceptNamer((counting, colours_of), NAMES, n_crops=9).fit(seeing(), images)
    assert sum(seen) <= 3 * 9 and seen == [sum(seen)]
    grey = images[:, :1].expand(-1, 3, -1, -1).contiguous()
    seen.clear()
    TextConceptNamer((counting, colours_of), NAMES, n_crops=9).fit(seeing(), grey)
    assert seen == [9]  # all three channels are the strongest at the same places


def test_channels_that_fire_nowhere_have_no_score():
    images, _ = squares(6)
    images[:, 2] = 0
    namer = TextConceptNamer(ENCODER, NAMES, 0.7, n_crops=2).fit(seeing(), images)
    assert np.isnan(namer.scores_[2]).all()
    assert namer.names_.tolist() == ["red", "green", None]


class Pair(nn.Module):
    """Embeds an image by its mean colour, and a text by the colour that it names."""

    def __init__(self):
        super().__init__()
        self.features = nn.ReLU()
        self.words = nn.Embedding.from_pretrained(torch.eye(3))

    def encode_image(self, images):
        return self.features(images).mean((2, 3))

    def encode_text(self, tokens):
        return self.words(tokens).mean(1)


def tokens_of(prompts):
    return torch.tensor([[NAMES.index(prompt)] for prompt in prompts])


def of_texts():
    options = {"target_layer": "features", "image_size": 16, "mean": 0.0, "std": 1.0, "verbose": 0}
    encoder = EmbeddingCAMExplainer(Pair(), Text(list(NAMES), tokens_of), **options)
    return encoder.fit(torch.rand(1, 3, 16, 16))


def test_an_explainer_with_texts_is_an_encoder():
    images, _ = squares(12)
    encoder = of_texts()
    namer = TextConceptNamer(encoder, n_crops=4)
    assert clone(namer).get_params()["n_crops"] == 4
    namer.fit(seeing(), images)
    assert namer.names_.tolist() == list(NAMES)
    with pytest.raises(ValueError, match="prompts of its own"):
        TextConceptNamer(encoder, NAMES).fit(seeing(), images)
    words = seeing().explain_in_words(images[:1], namer, k=1)
    assert words[0].positive == {"red": pytest.approx(1 / 16)}


def test_files_hold_names_and_their_encoder(tmp_path):
    images, _ = squares(12)
    path, explainer = tmp_path / "names.sklcam", seeing()
    ours = {"Pair": Pair, "tokens_of": tokens_of}
    functions = {"mean_colours": mean_colours, "colours_of": colours_of}
    for encoder, prompts, objects in ((of_texts(), None, ours), (ENCODER, NAMES, functions)):
        namer = TextConceptNamer(encoder, prompts, n_crops=4)
        save(namer.fit(explainer, images), path)
        loaded = load(path, objects=objects)
        assert loaded.names_.tolist() == list(NAMES) and loaded.prompts == prompts
        others = squares(12, seed=1)[0]
        assert loaded.score(explainer, others) == namer.score(explainer, others)
        assert loaded.fit(explainer, images).names_.tolist() == list(NAMES)
        assert all(f"{name!r}: {name}" in model_card(namer) for name in objects)
        with pytest.raises(MissingObjectsError, match=", ".join(sorted(objects))):
            load(path)
    with pytest.raises(PersistenceError, match="a class, Pair, where the file had an instance"):
        load(path, objects={**functions, "mean_colours": Pair})
