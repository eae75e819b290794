"""What explainers of captions and answers refuse."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from refusals import NET, Row, of_parameters, rows_of
from sklearn.exceptions import NotFittedError
from torch import nn

from sklcam import CaptionExplainer, VQAExplainer, WordDisplay
from sklcam.cam import Saliency
from sklcam.language import Caption, LanguageNetwork, Word, WordMaps, Words
from sklcam.networks import Inputs

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Writer(LanguageNetwork):
    """The colours of an image, without an order."""

    vocabulary: ClassVar = ["<none>", "<end>", "a", "red", "green", "blue"]
    end = 1

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ReLU()

    def forward(self, images, tokens):
        seen = torch.cat([images.new_zeros(len(images), 3), self.features(images).mean((2, 3))], 1)
        return seen[:, None].expand(-1, tokens.shape[1], -1)


class Speechless(Writer):
    vocabulary: ClassVar = []
    end = None

    def tokens(self, words):
        return [[5] for _ in words]


class Silent(Writer):
    """It says nothing, and ends."""

    def forward(self, images, tokens):
        return super().forward(images, tokens) + torch.tensor([0.0, 9, 0, 0, 0, 0])


class Wordless(Writer):
    def tokens(self, words):
        return [[] for _ in words]


class Cheat(Writer):
    """Its score of a word is high where the word stands."""

    def forward(self, images, tokens):
        return super().forward(images, tokens) + nn.functional.one_hot(tokens, 6)


class CheatAtTheEnds(Cheat):
    def forward(self, images, tokens):
        honest = Writer.forward(self, images, tokens)
        is_inner = torch.tensor([False, *[True] * (tokens.shape[1] - 2), False])[:, None]
        return torch.where(is_inner, honest, super().forward(images, tokens))


class Flat(Writer):
    def forward(self, images, tokens):
        return super().forward(images, tokens)[:, 0]


class Answers(Writer):
    """Which colour there is most of, whatever the question."""

    answers: ClassVar = ["red", "green", "blue"]

    def forward(self, images, tokens):
        return self.features(images).mean((2, 3)) + 0 * tokens[:, :1]


class Tall(Answers):
    answers: ClassVar = ["red", "green"]


class Asking(nn.Module):
    """As a network of transformers is called."""


BlipForQuestionAnswering = type("BlipForQuestionAnswering", (Asking,), {})
BlipForConditionalGeneration = type("BlipForConditionalGeneration", (Asking,), {})


def captions(network=None, **options):
    network = Writer() if network is None else network
    explainer = CaptionExplainer(network, target_layer="features", verbose=0, **options)
    return explainer.fit(IMAGES)


def answers(network=None, **options):
    network = Answers() if network is None else network
    explainer = VQAExplainer(network, target_layer="features", verbose=0, **options)
    return explainer.fit(X)


X = {"image": IMAGES, "question": "a red"}
ONE = np.zeros((1, 8, 8))
FOUND = WordMaps("a", ["a"], ONE, ONE[0])
OUTPUT, WORDS = torch.zeros(2, 1, 2), {"words": torch.zeros(2, 1).long()}
REFUSALS: dict[str, list[Row]] = {
    "LanguageNetwork": [
        (
            "unknown",
            lambda: Writer().tokens(["gren"]),
            "'gren' is not in the .* similar words are 'green'",
        ),
        ("no vocabulary", lambda: Speechless().text([5]), "Speechless has no vocabulary"),
        ("no end", lambda: captions(Speechless()).predict(IMAGES), "which token ends a text"),
        ("no tokens", lambda: captions(Wordless()).explain(IMAGES, "a"), "at least one token each"),
        ("itself", lambda: captions(Cheat()), "Cheat looks at tokens that it should predict"),
        ("ends", lambda: captions(CheatAtTheEnds()), "looks at tokens that it should predict"),
        ("two axes", lambda: captions(Flat()), r"logits \(n_images, n_tokens, n_vocabulary\)"),
        ("answers", lambda: answers(Tall()), r"must return logits \(n_images, n_answers\)"),
        ("answers to none", lambda: captions(Answers()), "Explain it with a VQAExplainer"),
    ],
    "CaptionExplainer": [
        *of_parameters(
            lambda **changed: CaptionExplainer(**{"model": Writer(), **changed}),
            model=[None, "resnet18"],
            word_score=["x", None],
            max_words=[0, "a"],
        ),
        ("another", lambda: CaptionExplainer(NET).fit(), "SmallNet is not a known network"),
        (
            "answers",
            lambda: CaptionExplainer(BlipForQuestionAnswering()).fit(),
            "writes answers. Explain it with a VQAExplainer",
        ),
        (
            "no tokenizer",
            lambda: CaptionExplainer(BlipForConditionalGeneration()).fit(),
            "needs its processor, or a tokenizer, to read texts",
        ),
        (
            "not fitted",
            lambda: CaptionExplainer(Writer()).explain(IMAGES),
            "not fitted yet",
            NotFittedError,
        ),
        ("few", lambda: captions().explain(IMAGES, ["a"]), "There are 1 captions for 2 images"),
        ("no texts", lambda: captions().explain(IMAGES, 3), "captions must be a list of str"),
        ("blank", lambda: captions().explain(IMAGES, ["a", " "]), r"captions\[1\] is ' '"),
        ("silent", lambda: captions(Silent()).explain(IMAGES), "writes nothing for image 0"),
        (
            "twice",
            lambda: captions().explain({"image": IMAGES, "caption": "a"}, "a"),
            "X is a dict, which holds its own captions",
        ),
        (
            "likely, twice",
            lambda: captions().log_probabilities({"image": IMAGES, "caption": "a"}, "a"),
            "X is a dict, which holds its own captions",
        ),
        (
            "weights of all",
            lambda: captions().channel_weights({"image": IMAGES, "caption": "a"}, "words"),
            "or explain one word of each text, or the text as a whole",
        ),
        (
            "a question",
            lambda: captions().explain({"image": IMAGES, "question": "a"}),
            "X must be a dict of image and, optionally, caption; it has image, question",
        ),
        (
            "no such word",
            lambda: captions().explain(IMAGES, "a red", ["red", "green"]),
            "The word 'green' is not in the text 'a red'",
        ),
        (
            "few words",
            lambda: captions().explain(IMAGES, "a red", ["red"]),
            "There are 1 words for 2 images",
        ),
        (
            "finer",
            lambda: captions().explain(IMAGES, "a red", "caption", method="finercam"),
            r"has shape \(2, 2, 2\), not \(n_images, n_classes\)",
        ),
        (
            "images alone",
            lambda: captions().explain_inputs(IMAGES),
            "Writer needs images with texts, but got only images",
        ),
        ("probabilities", lambda: captions().predict_proba(IMAGES), "no classes to predict"),
        (
            "stream",
            lambda: captions().iter_explain(image for image in IMAGES),
            "X cannot be a stream, as each image has a text of its own",
        ),
    ],
    "VQAExplainer": [
        *of_parameters(
            lambda **changed: VQAExplainer(**{"model": Answers(), **changed}),
            model=[None],
            max_words=[0],
        ),
        (
            "captions",
            lambda: VQAExplainer(BlipForConditionalGeneration()).fit(),
            "writes captions. Explain it with a CaptionExplainer",
        ),
        (
            "no question",
            lambda: answers().explain(IMAGES),
            'X must be {"image": images, "question"',
        ),
        (
            "no image",
            lambda: answers().explain({"question": ["a"]}),
            "X must be a dict of image, question and, optionally, answer; it has question",
        ),
        ("unknown answer", lambda: answers().explain(X, "pink"), "pink"),
        (
            "answer in X",
            lambda: answers().explain({**X, "answer": "red"}),
            "chooses one of 3 answers. Give the one to explain as target=",
        ),
        (
            "twice",
            lambda: answers(Writer()).explain({**X, "answer": "red"}, ["red", "a"]),
            "X holds its own answers",
        ),
    ],
    "WordDisplay": [
        ("another", lambda: WordDisplay.from_estimator(NET, IMAGES), "is for a CaptionExplainer"),
        ("answers", lambda: WordDisplay.from_estimator(answers(), X), "draw it by CAMDisplay"),
        (
            "few",
            lambda: WordDisplay.from_predictions(IMAGES, [FOUND]),
            "There are 1 found for 2 images",
        ),
        (
            "few titles",
            lambda: WordDisplay.from_predictions(IMAGES, [FOUND, FOUND], titles=["a"]),
            "There are 1 titles for 2 images",
        ),
        (
            "maps",
            lambda: WordDisplay.from_predictions(IMAGES, [FOUND.maps, FOUND]),
            "found must be WordMaps, as explain returns them; got an ndarray",
        ),
        (
            "axes",
            lambda: WordDisplay.from_predictions(IMAGES[:1], [WordMaps("a", ["a"], ONE, ONE)]),
            r"a map 'found' is of shape \(1, 8, 8\)",
        ),
        (
            "layers",
            lambda: WordDisplay.from_estimator(captions(), IMAGES, kind="x"),
            "kind must be",
        ),
        (
            "channels",
            lambda: WordDisplay.from_estimator(
                captions(), IMAGES, method=Saliency(channels="keep")
            ),
            "A display draws one map",
        ),
    ],
    "Words": [
        (
            "no words",
            lambda: Words().scores(OUTPUT, Inputs(IMAGES)),
            "Use it with a CaptionExplainer",
        ),
    ],
    "Caption": [
        (
            "no words",
            lambda: Caption().scores(OUTPUT, Inputs(IMAGES)),
            "Use it with a CaptionExplainer",
        ),
    ],
    "Word": [
        ("a number", lambda: Word(3).check_images(2), "words must be a list of str"),
        ("absent", lambda: Word("dog").found_in(["a cat"]), "'dog' is not in the text 'a cat'"),
        (
            "no texts",
            lambda: Word("dog").scores(OUTPUT, Inputs(IMAGES, WORDS, "image")),
            "Word needs to know the texts",
        ),
    ],
}


@pytest.mark.parametrize(("call", "message", "error"), rows_of(REFUSALS))
def test_refused(call, message, error):
    with pytest.raises(error, match=message):
        call()
