"""Captions and answers: against autograd by hand, on tiny networks of images and words."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch.nn import functional as F
from writers import (
    Answering,
    ShowAndTell,
    blip,
    tokenizer,
    vilt,
    vit_and_gpt2,
    words_of_gpt2,
    words_of_unigrams,
)

from sklcam import CaptionExplainer, ConceptNamer, VQAExplainer, load, open_maps, save
from sklcam.language import Words
from sklcam.language.from_transformers import EncoderDecoder
from sklcam.metrics import evaluate

PREPARED = {"image_size": 32, "resize": "stretch", "mean": 0.5, "std": 0.5, "verbose": 0}
RAW = {"normalize": False}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def by_hand(activations, score):
    """Grad-CAM, of tokens (n, 1 + 16, K) or a grid (n, K, u, v), not scaled."""
    (gradients,) = torch.autograd.grad(score, activations, retain_graph=True)
    if activations.ndim == 3:
        rows = [each[:, -16:].transpose(1, 2) for each in (activations, gradients)]
        grids = [each.unflatten(2, (4, 4)) for each in rows]
    else:
        grids = [activations, gradients]
    weights = grids[1].mean((2, 3), keepdim=True)
    small = (weights * grids[0]).sum(1, keepdim=True).relu()
    large = F.interpolate(small, (32, 32), mode="bilinear", align_corners=False)
    return large[0, 0].detach().numpy()


def kept_by(layer):
    """Return a list to which a layer's output goes, which takes part in the graph."""
    kept = []
    layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    return kept


def test_words_of_blip_are_explained_as_by_hand(texts, images):
    network = blip()
    explainer = CaptionExplainer(network, texts, **PREPARED).fit(images)
    assert explainer.target_layers_[0].name == "vision_model.encoder.layers.1.layer_norm1"
    captions = ["a red dog", "dogs"]  # the second is one word of two tokens, and shorter
    found = explainer.explain(images, captions, normalize=False)
    total = explainer.explain(images, captions, "caption", normalize=False)
    probabilities = explainer.log_probabilities(images, captions)
    kept = kept_by(network.vision_model.encoder.layers[1].layer_norm1)
    for i, tokens in enumerate([[6, 7, 8], [8, 9]]):
        logits = network(
            pixel_values=images[i : i + 1], input_ids=torch.tensor([[1, *tokens]])
        ).logits
        logs = logits[0].log_softmax(-1)
        each = torch.stack([logs[t, token] for t, token in enumerate(tokens)])
        words = each if i == 0 else each.sum()[None]
        assert len(found[i].maps) == len(words)
        np.testing.assert_allclose(probabilities[i], words.detach(), rtol=1e-4)
        for map_, word in zip(found[i].maps, words, strict=True):
            np.testing.assert_allclose(map_, by_hand(kept[-1], word), atol=1e-6, rtol=1e-3)
        expected = by_hand(kept[-1], each.sum())
        assert expected.max() > 1e-5
        np.testing.assert_allclose(found[i].total, expected, atol=1e-6, rtol=1e-3)
        np.testing.assert_allclose(total[i], expected, atol=1e-6, rtol=1e-3)
    assert found[1].words == ["dogs"]
    np.testing.assert_allclose(found[1].total, found[1]["dogs"], atol=1e-7)


def test_answers_that_blip_writes_are_explained_as_by_hand(texts, images):
    network = blip("BlipForQuestionAnswering")
    explainer = VQAExplainer(network, texts, **PREPARED).fit(images)
    X = {"image": images, "question": ["what is it", "what"]}
    found = explainer.explain(X, ["red dogs", "a"], normalize=False)
    words = explainer.explain({**X, "answer": ["red dogs", "a"]}, "words", normalize=False)
    kept = kept_by(network.vision_model.encoder.layers[1].layer_norm1)
    for i, (asked, tokens) in enumerate([([3, 10, 11, 12, 2], [7, 8, 9]), ([3, 10, 2], [6])]):
        seen = network.vision_model(pixel_values=images[i : i + 1]).last_hidden_state
        states = network.text_encoder(input_ids=torch.tensor([asked]), encoder_hidden_states=seen)[
            0
        ]
        logits = network.text_decoder(
            input_ids=torch.tensor([[1, *tokens]]), encoder_hidden_states=states
        ).logits
        logs = logits[0].log_softmax(-1)
        each = torch.stack([logs[t, token] for t, token in enumerate(tokens)])
        expected = by_hand(kept[-1], each.sum())
        assert expected.max() > 1e-6
        np.testing.assert_allclose(found[i], expected, atol=1e-7, rtol=1e-3)
        np.testing.assert_allclose(words[i].total, expected, atol=1e-7, rtol=1e-3)
        last = by_hand(kept[-1], each[1:].sum() if i == 0 else each[0])
        np.testing.assert_allclose(words[i].maps[-1], last, atol=1e-7, rtol=1e-3)


def test_what_blip_writes_is_what_its_own_generate_writes(texts, images):
    network = blip()
    explainer = CaptionExplainer(network, texts, max_words=5, **PREPARED).fit(images)
    rows = network.generate(images, max_new_tokens=5, do_sample=False, num_beams=1)
    expected = [texts.decode(row[1:], skip_special_tokens=True) for row in rows]
    assert explainer.predict(images) == expected
    assert all(expected)
    assert [found.text for found in explainer.explain(images)] == expected


def test_an_answer_does_not_depend_on_the_other_questions(texts, images):
    network = blip("BlipForQuestionAnswering")
    explainer = VQAExplainer(network, texts, max_words=4, **PREPARED).fit(images)
    questions = ["what", "what is it what is it"]
    together = explainer.predict({"image": images, "question": questions})
    asked = texts(questions[:1], return_tensors="pt")["input_ids"]
    own = network.generate(asked, images[:1], max_new_tokens=4, do_sample=False)
    assert together[0] == texts.decode(own[0, 1:], skip_special_tokens=True)
    assert explainer.score({"image": images, "question": questions}, together) == 1


@pytest.mark.parametrize("network", [vilt, lambda: blip("BlipForQuestionAnswering")])
def test_questions_are_filled_up_on_the_right_whatever_the_tokenizer_does(
    texts, images, network, monkeypatch
):
    X = {"image": images, "question": ["what", "what is it what is it"]}
    explainer = VQAExplainer(network(), texts, **PREPARED).fit(X)
    target = "yes" if explainer.classes_ is not None else "red"
    alone = [
        explainer.explain({name: each[i : i + 1] for name, each in X.items()}, target, **RAW)[0]
        for i in range(2)
    ]
    monkeypatch.setattr(texts, "padding_side", "left")
    np.testing.assert_allclose(explainer.explain(X, target, **RAW), alone, atol=1e-6)
    with pytest.raises(ValueError, match="longest question has"):
        explainer.explain({**X, "question": "is it " * 30}, target)


def test_captions_longer_than_the_network_reads_are_refused(texts, images):
    explainer = CaptionExplainer(blip(), texts, **PREPARED).fit(images)
    assert len(explainer.explain(images, "a " * 16)[0]) == 16
    with pytest.raises(ValueError, match=r"has 17 tokens.* reads at most 16"):
        explainer.explain(images, "a " * 17)


def test_vilt_is_explained_in_its_patches_order(texts, images):
    network = vilt()
    explainer = VQAExplainer(network, texts, batch_size=1, **PREPARED).fit(images)
    X = {"image": images, "question": ["what is it", "a dog"]}
    state = torch.get_rng_state()
    found = explainer.explain(X, "yes", normalize=False)
    assert torch.equal(torch.get_rng_state(), state)  # which the network draws from
    np.testing.assert_array_equal(found, explainer.explain(X, "yes", normalize=False))
    explainer.set_params(batch_size=2).fit(images)  # with questions filled up to one length
    np.testing.assert_allclose(found, explainer.explain(X, "yes", normalize=False), atol=1e-6)

    answers = explainer.predict_proba(X)
    places, embed = [], network.vilt.embeddings.visual_embed

    def noted(*args, **options):
        embedded = embed(*args, **options)
        places.append(embedded[2][0][0])
        return embedded

    network.vilt.embeddings.visual_embed = noted
    kept = kept_by(network.vilt.encoder.layer[1].layernorm_before)
    for i, question in enumerate(X["question"]):
        read = texts(question, return_tensors="pt")
        logits = network(**read, pixel_values=images[i : i + 1]).logits
        np.testing.assert_allclose(answers[i], logits[0].detach().sigmoid(), atol=1e-5)
        (gradients,) = torch.autograd.grad(logits[0, 1], kept[-1])
        grids = []
        for tokens in (kept[-1], gradients):
            grid = torch.zeros(1, 16, 4, 4)
            grid[0, :, places[-1][:, 0], places[-1][:, 1]] = tokens[0, -16:].T.detach()
            grids.append(grid)
        small = (grids[1].mean((2, 3), keepdim=True) * grids[0]).sum(1, keepdim=True).relu()
        expected = F.interpolate(small, (32, 32), mode="bilinear", align_corners=False)[0, 0]
        assert expected.max() > 1e-6
        np.testing.assert_allclose(found[i], expected, atol=1e-6, rtol=1e-3)


def test_vilt_chooses_answers_each_with_its_sigmoid(texts, images):
    network = vilt()
    explainer = VQAExplainer(network, texts, **PREPARED).fit(images)
    X = {"image": images, "question": ["what is it", "a dog"]}
    assert explainer.classes_.tolist() == ["no", "yes", "two dogs"]
    read = [texts(question, return_tensors="pt") for question in X["question"]]
    logits = torch.cat(
        [network(**r, pixel_values=images[i : i + 1]).logits for i, r in enumerate(read)]
    )
    np.testing.assert_allclose(explainer.predict_proba(X), logits.sigmoid().detach(), atol=1e-5)
    assert explainer.predict(X).tolist() == explainer.classes_[logits.argmax(1)].tolist()
    assert explainer.explain(X).shape == (2, 32, 32)


def test_words_of_a_network_of_ones_own_are_explained_as_by_hand(images):
    network = ShowAndTell().eval()
    explainer = CaptionExplainer(network, verbose=0).fit(images)
    assert explainer.target_layers_[0].name == "features"
    captions = ["a red square", "green"]
    kept = kept_by(network.features[1])
    for word_score, sign in (("log_probability", 1), ("logit", 0)):
        explainer.set_params(word_score=word_score)
        found = explainer.explain(images, captions, normalize=False)
        for i, tokens in enumerate([[2, 3, 5], [4]]):
            logits = network(images[i : i + 1], torch.tensor([tokens]))[0]
            scores = logits.log_softmax(-1) if sign else logits
            for t, token in enumerate(tokens):
                expected = by_hand(kept[-1], scores[t, token])
                np.testing.assert_allclose(found[i].maps[t], expected, atol=1e-8, rtol=1e-3)


def test_a_network_of_ones_own_writes_the_likeliest_words(images):
    network = ShowAndTell().eval()
    explainer = CaptionExplainer(network, max_words=4, verbose=0).fit(images)
    for image, text in zip(images, explainer.predict(images), strict=True):
        tokens = []
        for _ in range(4):
            logits = network(image[None], torch.tensor([[*tokens, 0]]))[0, -1]
            tokens.append(int(logits.argmax()))
        tokens = tokens[: tokens.index(1)] if 1 in tokens else tokens
        assert text == " ".join(network.vocabulary[token] for token in tokens)


def test_answers_of_a_network_of_ones_own_are_explained_as_by_hand(images):
    network = Answering().eval()
    X = {"image": images, "question": ["what is red", "green"]}
    explainer = VQAExplainer(network, verbose=0).fit(X)
    found = explainer.explain(X, ["star", "circle"], normalize=False)
    kept = kept_by(network.features[1])
    for i, (question, answer) in enumerate([([1, 2, 3], 2), ([4], 0)]):
        logits = network(images[i : i + 1], torch.tensor([question]))
        np.testing.assert_allclose(found[i], by_hand(kept[-1], logits[0, answer]), atol=1e-7)
    assert explainer.score(X, explainer.predict(X)) == 1


def test_a_question_can_be_what_comes_before_the_answer(images):
    network = ShowAndTell().eval()
    X = {"image": images, "question": ["a", "a red"], "answer": ["red square", "square"]}
    explainer = VQAExplainer(network, verbose=0).fit(X)
    found = explainer.explain(X, "words", normalize=False)
    whole = CaptionExplainer(network, verbose=0).fit(images)
    for own, expected in zip(
        found, whole.explain(images, "a red square", normalize=False), strict=True
    ):
        for word, map_ in own:
            np.testing.assert_allclose(map_, expected[word], atol=1e-8)


@pytest.mark.parametrize(
    "method",
    ["guidedgradcam", "guidedbackprop", "scorecam", "ablationcam", "layercam", "occlusion"],
)
def test_any_method_explains_words(images, method):
    explainer = CaptionExplainer(ShowAndTell().eval(), verbose=0).fit(images)
    captions = ["a red square", "green"]
    found = explainer.explain(images, captions, method=method)
    assert [each.maps.shape for each in found] == [(3, 32, 32), (1, 32, 32)]
    # In a batch of its own, each is the same.
    (alone,) = explainer.explain(images[:1], captions[:1], method=method)
    np.testing.assert_allclose(alone.maps, found[0].maps, atol=1e-4)
    (red, _) = explainer.explain(images, captions, ["red", "green"], method=method)
    np.testing.assert_allclose(red, found[0]["red"], atol=1e-5)


def test_transformers_without_relu_have_no_guided_maps(texts, images):
    explainer = CaptionExplainer(blip(), texts, **PREPARED).fit(images)
    with pytest.raises(ValueError, match="has no ReLU"):
        explainer.explain(images, "a dog", method="guidedgradcam")


def test_words_are_measured_with_the_probability_of_what_is_explained(images):
    explainer = CaptionExplainer(ShowAndTell().eval(), verbose=0).fit(images)
    X = {"image": images, "caption": ["a red square", "green"]}
    boxes = [[[0, 0, 10, 10]], [[5, 5, 30, 30]]]
    metrics = ["inside_outside_ratio", "average_drop"]
    found = evaluate(explainer, X, target=["red", "green"], boxes=boxes, metrics=metrics)
    for i, (word, place) in enumerate([("red", 1), ("green", 0)]):
        maps = explainer.explain(images, X["caption"], ["red", "green"])
        raw = explainer.explain(images, X["caption"], ["red", "green"], normalize=False)
        x1, y1, x2, y2 = boxes[i][0]
        inside = np.zeros((32, 32), bool)
        inside[y1:y2, x1:x2] = True
        ratio = raw[i][inside].mean() / raw[i][~inside].mean()
        np.testing.assert_allclose(found["inside_outside_ratio"][i], ratio, rtol=1e-5)
        masked = images * torch.tensor(maps)[:, None]
        full, left = (
            np.exp(explainer.log_probabilities(each, X["caption"])[i][place])
            for each in (images, masked)
        )
        drop = max(0, full - left) / full
        np.testing.assert_allclose(found["average_drop"][i], drop, atol=1e-5)
        assert explainer.explain(images, X["caption"])[i][word].any()
    whole = evaluate(explainer, X, target="caption", metrics=["average_drop"])
    assert whole["average_drop"].shape == (2,)


def test_maps_of_words_take_options_of_explain(images):
    explainer = CaptionExplainer(ShowAndTell().eval(), batch_size=1, verbose=0).fit(images)
    captions = ["a red square", "green"]
    several = explainer.explain(images, captions, method=["gradcam", "layercam"])
    alone = explainer.explain(images, captions, Words(), method="layercam")
    np.testing.assert_array_equal(several["layercam"][0].maps, alone[0].maps)
    small = explainer.explain(images, captions, frame="layer", dtype="float16")
    assert small[0].maps.shape == (3, 32, 32)
    assert small[0].maps.dtype == "float16"
    for word, (name, map_) in enumerate(several["gradcam"][0]):
        assert name == captions[0].split()[word]
        np.testing.assert_array_equal(map_, several["gradcam"][0][name])
    with pytest.raises(KeyError, match="'blue' is not in the text"):
        several["gradcam"][0]["blue"]


def test_explainers_can_be_copied_pickled_and_saved(images, tmp_path):
    explainer = CaptionExplainer(ShowAndTell().eval(), verbose=0).fit(images)
    expected = explainer.explain(images, "a red square", "caption")
    save(explainer, tmp_path / "explainer.skl")
    loaded = load(tmp_path / "explainer.skl", objects={"ShowAndTell": ShowAndTell})
    pickled = pickle.loads(pickle.dumps(explainer))
    for copied in (clone(explainer).fit(images), pickled, loaded):
        np.testing.assert_array_equal(copied.explain(images, "a red square", "caption"), expected)


class NotedLSTM(torch.nn.LSTM):
    """Notes in which mode it runs, as cuDNN goes back through none in evaluation mode."""

    modes: ClassVar[list] = []

    def forward(self, *args):
        self.modes.append((self.training, self.dropout))
        return super().forward(*args)


def test_lstms_run_as_in_training_and_without_dropout(images):
    network = ShowAndTell().eval()
    expected = CaptionExplainer(network, verbose=0).fit(images).explain(images, "a red square")
    network.lstm = NotedLSTM(8, 8, 2, batch_first=True, dropout=0.5).eval()
    explainer = CaptionExplainer(network, verbose=0).fit(images)
    NotedLSTM.modes.clear()
    first, again = (explainer.explain(images, "a red square", "caption") for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert {*NotedLSTM.modes} == {(True, 0.0)}
    assert (network.lstm.training, network.lstm.dropout) == (False, 0.5)
    assert expected[0].maps.any()


def test_maps_of_captions_are_written_to_a_folder(images, tmp_path):
    explainer = CaptionExplainer(ShowAndTell().eval(), verbose=0).fit(images)
    X = {"image": images, "caption": ["a red square", "green"]}
    explainer.explain_to(X, tmp_path / "maps", "caption")
    expected = explainer.explain(X, target="caption")
    np.testing.assert_array_equal(open_maps(tmp_path / "maps"), expected)
    explainer.explain_to(X, tmp_path / "maps", "caption")  # nothing is left to do
    with pytest.raises(ValueError, match="maps"):  # those of other captions are others
        explainer.explain_to({**X, "caption": ["a", "green"]}, tmp_path / "maps", "caption")


def test_an_encoder_and_a_decoder_of_transformers_are_explained_as_by_hand(images, tmp_path):
    network, texts = vit_and_gpt2(), words_of_gpt2(tmp_path)
    explainer = CaptionExplainer(network, texts, max_words=4, **PREPARED).fit(images)
    assert explainer.target_layers_[0].name.startswith("encoder.")
    found = explainer.explain(images, "a red dogs", normalize=False)
    tokens = texts("a red dogs")["input_ids"]
    assert len(tokens) == 4
    kept = kept_by(network.get_submodule(explainer.target_layers_[0].name))
    for i, image in enumerate(images):
        ids = torch.tensor([[0, *tokens[:-1]]])
        logs = network(pixel_values=image[None], decoder_input_ids=ids).logits[0].log_softmax(-1)
        each = torch.stack([logs[t, token] for t, token in enumerate(tokens)])
        for map_, score in zip(found[i].maps, [each[0], each[1], each[2:].sum()], strict=True):
            expected = by_hand(kept[-1], score)
            np.testing.assert_allclose(map_, expected, atol=1e-6, rtol=1e-3)
            assert expected.any()
    assert len(explainer.predict(images)) == 2


def test_images_are_prepared_as_the_processor_prepares_them(texts):
    from transformers import BlipImageProcessor

    own = BlipImageProcessor(size={"height": 32, "width": 32})
    processor = SimpleNamespace(tokenizer=texts, image_processor=own)
    explainer = CaptionExplainer(blip(), processor, verbose=0).fit()
    assert explainer.preprocessing_.source == "BlipImageProcessor"
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    (batch,) = explainer.open({"image": pictures, "caption": "a"}).batches()
    expected = own([*pictures], return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(batch.inputs.images, expected, atol=1e-5)


def test_words_are_explained_by_the_names_of_channels(images):
    network = ShowAndTell().eval()
    explainer = CaptionExplainer(network, verbose=0).fit(images)
    masks = [
        {"left": np.arange(32) < 16 * np.ones((32, 1))},
        {"top": np.arange(32)[:, None] < 9 * np.ones(32)},
    ]
    namer = ConceptNamer(0.0, n_crops=1).fit(explainer, images, masks)
    X = {"image": images, "caption": ["a red", "green"]}
    found = explainer.explain_in_words(X, namer, ["red", "green"], k=2)
    kept = kept_by(network.features[1])
    for i, tokens in enumerate([[2, 3], [4]]):
        scores = network(images[i : i + 1], torch.tensor([tokens]))[0].log_softmax(-1)
        (gradients,) = torch.autograd.grad(scores[len(tokens) - 1, tokens[-1]], kept[-1])
        weights = gradients[0].mean((1, 2))
        order = weights.argsort(descending=True)
        assert found.positive[i].tolist() == order[:2].tolist()
        np.testing.assert_allclose(found.positive_weights[i], weights[order[:2]], rtol=1e-4)
        assert found.negative[i].tolist() == order.flip(0)[:2].tolist()


def test_texts_begin_by_the_tokens_that_the_network_begins_by(images, tmp_path):
    network, texts = vit_and_gpt2(), words_of_gpt2(tmp_path)
    # As of networks whose labels were a tokenizer's, with its own first token.
    network.generation_config.forced_bos_token_id, network.generation_config.eos_token_id = 0, 8
    explainer = CaptionExplainer(network, texts, **PREPARED).fit(images)
    tokens = texts("a red dog")["input_ids"]
    ids = torch.tensor([[0, 0, *tokens[:-1]]]).expand(2, -1)
    logs = network(pixel_values=images, decoder_input_ids=ids).logits.log_softmax(-1).detach()
    save(explainer, tmp_path / "explainer.skl")
    brought = {"VisionEncoderDecoderModel": network, type(texts).__name__: texts}
    for each in (explainer, load(tmp_path / "explainer.skl", objects=brought)):
        found = each.log_probabilities(images, "a red dog")
        np.testing.assert_allclose(found, logs[:, [1, 2, 3], tokens], rtol=1e-4)


def test_networks_write_no_more_than_they_read(texts, images):
    explainer = VQAExplainer(blip("BlipForQuestionAnswering"), texts, **PREPARED).fit()
    X = {"image": images, "question": "what"}
    assert all(len(text.split()) <= 16 for text in explainer.predict(X))  # max_words is 20


def test_guided_maps_of_a_network_whose_question_goes_through_an_lstm(images):
    network = Answering().eval()
    network.words, lstm = torch.nn.Embedding(5, 8), torch.nn.LSTM(8, 8, batch_first=True)
    network.lstm = lstm
    question = torch.tensor([[1, 2, 3]])

    def forward(images, tokens):
        asked = lstm(network.words(tokens))[1][0][0]
        return network.head(network.features(images).mean((2, 3)) * asked)

    network.forward = forward
    X = {"image": images, "question": "what is red"}
    explainer = VQAExplainer(network, method="guidedbackprop", verbose=0).fit(X)
    found = explainer.explain(X, "star", normalize=False)
    for i, image in enumerate(images):
        pixels = image[None].clone().requires_grad_()
        before = network.features[0](pixels)
        after = before.relu()
        score = network.head(after.mean((2, 3)) * lstm(network.words(question))[1][0][0])[0, 2]
        (gradient,) = torch.autograd.grad(score, after, retain_graph=True)
        guided = gradient.clamp(min=0) * (before > 0)
        (gradient,) = torch.autograd.grad(before, pixels, guided)
        np.testing.assert_allclose(found[i], gradient[0].abs().amax(0), atol=1e-7)
        assert found[i].any()


def test_a_blank_that_is_a_token_belongs_to_the_word_behind_it():
    texts = words_of_unigrams()
    found = EncoderDecoder(torch.nn.Identity(), texts, 1).tokens(["a", ".", "dogs."])
    pieces = [texts.convert_ids_to_tokens(tokens) for tokens in found]
    assert pieces == [["▁a"], ["▁", "."], ["▁dog", "s", "."]]


def test_questions_may_differ_in_length_where_padding_changes_nothing(images, tmp_path):
    network = Answering().eval()
    X = {"image": images, "question": ["what is red", "red"]}
    explainer = VQAExplainer(network, verbose=0).fit(X)
    together = explainer.predict_proba(X)
    counting = torch.nn.EmbeddingBag(5, 8, mode="sum")  # what fills up, too
    counting.weight.data[1:] = network.words.weight.data[1:]
    network.words = counting
    explainer.fit(X)
    save(explainer, tmp_path / "explainer.skl")
    for each in (explainer, load(tmp_path / "explainer.skl", objects={"Answering": Answering})):
        with pytest.raises(
            ValueError, match="Answering answers differently if a question is padded"
        ):
            each.predict_proba(X)
    explainer.set_params(batch_size=1).fit(X)
    np.testing.assert_allclose(explainer.predict_proba(X), together, atol=1e-6)
