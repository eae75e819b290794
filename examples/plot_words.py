"""
Words and answers on their objects
==================================

A network that writes captions has a map for each word, and one that answers questions has one for
each answer. Two small ones are trained here, which see by the same convolutions, on pictures of
several shapes: it is known where each is, and no picture can be explained without its words.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw
from torch import nn

from sklcam import CAMDisplay, CaptionExplainer, VQAExplainer, WordDisplay
from sklcam.cam import RandomCAM
from sklcam.language import LanguageNetwork
from sklcam.metrics import evaluate

# %%
# Pictures
# --------
#
# Three shapes of different colours, each in a quarter of its own. The caption goes through them by
# colour, in the order below.

SIDE, N_PICTURES, EPOCHS, BATCH = 48, 1500, 12, 64
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220)}
COLOURS["yellow"] = (230, 210, 40)
SHAPES = ["circle", "square", "triangle"]
generator = np.random.default_rng(0)


def a_picture():
    """Return a picture, and of each colour in it the shape and its box."""
    noise = generator.integers(90, 166, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pencil, objects = ImageDraw.Draw(picture), {}
    quarters, numbers = generator.permutation(4)[:3], sorted(generator.permutation(4)[:3])
    for quarter, number in zip(quarters, numbers, strict=True):
        side = generator.integers(12, 18)
        left, top = generator.integers(2, 23 - side, size=2) + 24 * np.array(divmod(quarter, 2))
        right, bottom = left + side, top + side
        shape, (colour, fill) = SHAPES[generator.integers(3)], [*COLOURS.items()][number]
        if shape == "circle":
            pencil.ellipse((left, top, right - 1, bottom - 1), fill=fill)
        elif shape == "square":
            pencil.rectangle((left, top, right - 1, bottom - 1), fill=fill)
        else:
            corners = ((left, bottom - 1), (right - 1, bottom - 1), (left + side // 2, top))
            pencil.polygon(corners, fill=fill)
        objects[colour] = shape, (left, top, right, bottom)
    return np.array(picture), objects


def caption(objects):
    return " and ".join(f"a {colour} {shape}" for colour, (shape, _) in objects.items())


def question(colour):
    return f"what shape is the {colour} one?"


# %%
# Two networks of one's own
# -------------------------
#
# As in the paper's time: convolutions, an LSTM, and the product of what both say. Where in a
# picture something is does not come through to the words, as the mean is taken over all places.

VOCABULARY = ["<none>", "<end>", "a", "and", "what", "shape", "is", "the", "one", *COLOURS, *SHAPES]


class WithWords(LanguageNetwork):
    vocabulary, end = VOCABULARY, 1

    def __init__(self, sight, n_outputs):
        super().__init__()
        self.sight, self.words = sight, nn.Embedding(len(VOCABULARY), 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, n_outputs))

    def forward(self, images, tokens):
        return self.read(self.sight(images).mean((2, 3)), tokens)


class Writing(WithWords):
    def read(self, seen, tokens):
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        states, _ = self.lstm(self.words(before))
        return self.head(seen[:, None] * states)  # (n_images, n_tokens, n_vocabulary)


class Answering(WithWords):
    answers = SHAPES

    def read(self, seen, tokens):
        _, (state, _) = self.lstm(self.words(tokens))
        return self.head(seen * state[0])  # (n_images, n_answers)


def convolved(width, wider, stride=1):
    layer = nn.Conv2d(width, wider, 3, stride, padding=1, bias=False)
    return [layer, nn.BatchNorm2d(wider), nn.ReLU()]


torch.manual_seed(0)
sight = nn.Sequential(
    *convolved(3, 32, stride=2), *convolved(32, 48), nn.MaxPool2d(2), *convolved(48, 64)
)
writing, answering = Writing(sight, len(VOCABULARY)), Answering(sight, len(SHAPES))

# %%
# Training takes half a minute on one core.

pictures, all_objects = zip(*(a_picture() for _ in range(N_PICTURES)), strict=True)
images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255 - 0.5
captions, questions, answers = [], [], []
for objects in all_objects:
    captions.append([t for (t,) in writing.tokens(caption(objects).split())] + [writing.end])
    asked = [answering.tokens(question(colour).split()) for colour in objects]
    questions.append([[t for (t,) in words] for words in asked])
    answers.append([SHAPES.index(shape) for shape, _ in objects.values()])
captions, questions, answers = map(torch.tensor, (captions, questions, answers))

parameters = [*{*writing.parameters(), *answering.parameters()}]
optimizer, n_steps = torch.optim.Adam(parameters), EPOCHS * -(-N_PICTURES // BATCH)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=n_steps)
for _ in range(EPOCHS):
    for rows in torch.randperm(N_PICTURES).split(BATCH):
        seen = sight(images[rows]).mean((2, 3))
        words = writing.read(seen, captions[rows])
        said = answering.read(seen.repeat_interleave(3, dim=0), questions[rows].flatten(0, 1))
        loss = nn.functional.cross_entropy(words.flatten(0, 1), captions[rows].flatten())
        loss = loss + nn.functional.cross_entropy(said, answers[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

# %%
# A map a word
# ------------
#
# New pictures, and the captions that are written of them. Most shapes and colours have their map on
# their own object. Colours are said in a fixed order, so that one also hangs on which others there
# are not; and a shape that is there twice lights up twice. "a" and "and" are left out: they follow
# from the words before them, and their maps would be scaled to [0, 1] as well.

pictures, all_objects = zip(*(a_picture() for _ in range(200)), strict=True)
pictures = np.stack(pictures)
options = {"image_size": SIDE, "mean": 0.5, "std": 1, "verbose": 0}
explainer = CaptionExplainer(writing.eval(), **options).fit(pictures)
written = explainer.predict(pictures)
right = [text == caption(objects) for text, objects in zip(written, all_objects, strict=True)]
print(f"captions that are right from the first to the last word: {np.mean(right):.0%}")

WordDisplay.from_estimator(explainer, pictures[:3], words=[*COLOURS, *SHAPES])

# %%
# How likely each word is says which depend on the picture: those that do not are sure.

for word, logarithm in zip(
    written[0].split(), explainer.log_probabilities(pictures[:1])[0], strict=True
):
    print(f"{word:10}{np.exp(logarithm):6.2f}")

# %%
# A map a question
# ----------------
#
# The same picture is asked three things. Nothing but a word of the question changes.

asking = VQAExplainer(answering.eval(), **options)
colours = [*all_objects[0]]
X = {"image": pictures[[0, 0, 0]], "question": [question(colour) for colour in colours]}
found = asking.fit(X).predict(X)
titles = [f"{colour}: {answer}" for colour, answer in zip(colours, found, strict=True)]
maps = asking.explain(X, method=["gradcam", "guidedgradcam"])
CAMDisplay.from_predictions(X["image"], maps, titles=titles)

# %%
# By numbers
# ----------
#
# The mean of a map inside an object's box over its mean outside, for the question about the object
# and for one about another. The paper has 3.3 for Grad-CAM and 6.4 for Guided Grad-CAM, of captions
# and boxes of regions. A random map has weights drawn for the same channels: it stands out from
# where nothing is, whatever is asked.

own, other = ([[*objects][i] for objects in all_objects] for i in (0, 1))
boxes = [[objects[colour][1]] for objects, colour in zip(all_objects, own, strict=True)]
truth = [objects[colour][0] for objects, colour in zip(all_objects, own, strict=True)]
asked = {"image": pictures, "question": [*map(question, own)]}
print(f"right answers: {asking.score(asked, truth):.0%}")

random = {f"random {seed}": RandomCAM(random_state=seed) for seed in range(5)}
methods = {"gradcam": "gradcam", "guidedgradcam": "guidedgradcam", **random}
shown = {"metrics": ["inside_outside_ratio"], "boxes": boxes, "method": methods, "progress": False}
ratios = {}
for name, words in (("its question", own), ("another", other)):
    measured = evaluate(asking, {"image": pictures, "question": [*map(question, words)]}, **shown)
    of_methods = {each: np.nanmean(m["inside_outside_ratio"]) for each, m in measured.items()}
    of_random = [of_methods.pop(seed) for seed in random]
    ratios[name] = {**of_methods, "random (mean of 5)": np.mean(of_random)}
print(f"{'':20}{'its question':>14}{'another':>10}")
for method, ratio in ratios["its question"].items():
    print(f"{method:20}{ratio:14.2f}{ratios['another'][method]:10.2f}")

# %%
# Words of captions, in the same way: that of the first shape, and of its colour. The paper's other
# number of words is how often a map's highest pixel lies in the object that the word names, 30 %
# for nouns on photographs of many things.

written_of = {"image": pictures, "caption": [*map(caption, all_objects)]}
for name, words in (("its shape", truth), ("its colour", own)):
    options = {**shown, "metrics": ["inside_outside_ratio", "pointing_game"], "method": "gradcam"}
    measured = evaluate(explainer, written_of, target=words, **options)
    ratio, hits = np.nanmean(measured["inside_outside_ratio"]), np.mean(measured["pointing_game"])
    print(f"{name:20}{ratio:14.2f}{hits:10.0%}")
random_hits = [
    np.mean(
        evaluate(explainer, written_of, target=truth, **{**options, "method": method})[
            "pointing_game"
        ]
    )
    for method in random.values()
]
print(f"{'random maps':34}{np.mean(random_hits):10.0%}")

plt.show()
