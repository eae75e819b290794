"""
Maps for the words of captions and for answers
==============================================

A network that writes captions has a map for each word, and a network that answers questions has a
map for each answer. This example trains two small networks on what a pretrained network sees in
pictures of four photographs each. It is known where each photograph is, and a map can only find it
through its word.
"""

import numpy as np
import skimage.data
import torch
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn

from sklcam import CAMDisplay, CAMExplainer, CaptionExplainer, VQAExplainer, WordDisplay
from sklcam.cam import RandomCAM
from sklcam.language import LanguageNetwork
from sklcam.metrics import evaluate

# %%
# Pictures
# --------
#
# The photographs come with scikit-image and scikit-learn. A picture has four of seven photographs,
# each with a new crop, and flipped or not. A caption names them in reading order. There are few
# photographs, and the networks know each of them: in a new picture, only the crops and the places
# are new.

SIDE, N_PICTURES, N_NEW, EPOCHS, BATCH = 80, 320, 60, 30, 32
PHOTOGRAPHS = {
    "person": skimage.data.astronaut()[:, 30:410],
    "cat": skimage.data.chelsea()[:, 95:420],
    "cup": skimage.data.coffee()[:, 100:500],
    "flower": load_sample_image("flower.jpg")[60:, 60:540],
    "motorcycle": skimage.data.stereo_motorcycle()[0][40:460, 90:660],
    "rocket": skimage.data.rocket()[:, 150:500],
    "temple": load_sample_image("china.jpg")[60:400, 40:],
}
NAMES, PLACES = [*PHOTOGRAPHS], ["top left", "top right", "bottom left", "bottom right"]
generator = np.random.default_rng(0)


def crop(photograph):
    height, width = (int(generator.uniform(0.7, 1) * side) for side in photograph.shape[:2])
    top = generator.integers(len(photograph) - height + 1)
    left = generator.integers(photograph.shape[1] - width + 1)
    part = photograph[top : top + height, left : left + width][:, :: generator.choice([-1, 1])]
    return np.asarray(Image.fromarray(part).resize((SIDE, SIDE)))


def pictures(n):
    """Return pictures, and the photographs in each, as indices into NAMES."""
    contents = np.array([generator.permutation(len(NAMES))[:4] for _ in range(n)])
    parts = [[crop(PHOTOGRAPHS[NAMES[i]]) for i in row] for row in contents]
    return np.stack(
        [np.vstack([np.hstack(row[:2]), np.hstack(row[2:])]) for row in parts]
    ), contents


def caption(content):
    return "a {} and a {} above a {} and a {}".format(*(NAMES[i] for i in content))


def question(place):
    return f"what is at the {PLACES[place]}"


# %%
# Two networks of our own
# -----------------------
#
# The features of a pretrained network, which stays as it is, go through a convolution that is
# trained. They are pooled to two by two places, so that words can tell what is where, and
# multiplied with the states of an LSTM.

VOCABULARY = ["<none>", "<end>", "a", "and", "above", "what", "is", "at", "the"]
VOCABULARY += ["top", "bottom", "left", "right", *NAMES]


class WithWords(LanguageNetwork):
    vocabulary, end = VOCABULARY, 1

    def __init__(self, trunk, sight, n_outputs):
        super().__init__()
        self.trunk, self.sight = trunk, sight
        self.words, self.lstm = nn.Embedding(len(VOCABULARY), 32), nn.LSTM(32, 64, batch_first=True)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 48, 64))
        self.head = nn.Linear(64, n_outputs)

    def forward(self, images, tokens):
        return self.read(self.sight(self.trunk.extract_features(images)), tokens)


class Writing(WithWords):
    def read(self, seen, tokens):
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        states, _ = self.lstm(self.words(before))
        return self.head(self.pool(seen)[:, None] * states)  # (n_images, n_tokens, n_vocabulary)


class Answering(WithWords):
    answers = NAMES

    def read(self, seen, tokens):
        _, (state, _) = self.lstm(self.words(tokens))
        return self.head(self.pool(seen) * state[0])  # (n_images, n_answers)


torch.manual_seed(0)
trunk = CAMExplainer("efficientnet_lite0", weights="DEFAULT", verbose=0).fit().model_
sight = nn.Sequential(nn.Conv2d(1280, 48, 1), nn.ReLU())
writing, answering = Writing(trunk, sight, len(VOCABULARY)), Answering(trunk, sight, len(NAMES))

# %%
# Training takes ten seconds on one core, most of it for computing the features of the pictures
# once.

X, contents = pictures(N_PICTURES)
captions = [[*writing.tokens(caption(row).split()), [writing.end]] for row in contents]
captions = torch.tensor(captions)[..., 0]
questions = torch.tensor([answering.tokens(question(i).split()) for i in range(4)])[..., 0]
contents = torch.from_numpy(contents)
images = (torch.from_numpy(X).permute(0, 3, 1, 2) - 127) / 128
with torch.no_grad():
    features = torch.cat([trunk.extract_features(part) for part in images.split(BATCH)])

of_both = {*writing.named_parameters(), *answering.named_parameters()}
learning = [parameter for name, parameter in of_both if not name.startswith("trunk")]
optimizer, n_steps = torch.optim.Adam(learning), EPOCHS * N_PICTURES // BATCH
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=n_steps)
for _ in range(EPOCHS):
    for rows in torch.randperm(N_PICTURES).split(BATCH):
        seen, places = sight(features[rows]), torch.randint(4, (len(rows),))
        words, said = writing.read(seen, captions[rows]), answering.read(seen, questions[places])
        loss = nn.functional.cross_entropy(words.flatten(0, 1), captions[rows].flatten())
        loss = loss + nn.functional.cross_entropy(said, contents[rows, places])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

# %%
# One map per word
# ----------------
#
# These are new pictures, with other crops of the same photographs, and the captions that the
# network writes for them. "a", "and" and "above" are left out: the network is sure of them whatever
# there is to see, but their maps would be scaled to [0, 1] as well. Grad-CAM takes the mean of the
# gradients over all places. These heads tell places apart, so the maps are by HiResCAM, which
# multiplies the gradient and the activation of each place.

X, contents = pictures(N_NEW)
captions = [caption(row) for row in contents]
options = {"image_size": 2 * SIDE, "mean": 127 / 255, "std": 128 / 255, "verbose": 0}
options["target_layer"] = "sight"
explainer = CaptionExplainer(writing.eval(), **options).fit(X)
written = explainer.predict(X)
right = np.mean([text == expected for text, expected in zip(written, captions, strict=True)])
print(f"captions that are right from the first to the last word: {right:.0%}")

WordDisplay.from_estimator(explainer, X[:3], words=NAMES, method="hirescam")

# %%
# One map per question
# --------------------
#
# Four questions are asked about the same picture. Only a word or two of the question change. Here
# are both methods: Grad-CAM may show one photograph although the question is about another.

asking = VQAExplainer(answering.eval(), **options)
asked = {"image": X[[0] * 4], "question": [question(place) for place in range(4)]}
answers = asking.fit(asked).predict(asked)
titles = [f"{place}: {answer}" for place, answer in zip(PLACES, answers, strict=True)]
maps = asking.explain(asked, method=["gradcam", "hirescam"])
CAMDisplay.from_predictions(asked["image"], maps, titles=titles)

# %%
# By numbers
# ----------
#
# The numbers are the mean of a map inside a photograph's quarter divided by its mean outside, and
# how often its highest pixel is inside. They are measured for the photograph's word, for the
# question about it, and for the question about the photograph diagonally opposite. Some maps have
# next to nothing outside, so the ratios are medians. A random map has random weights for the same
# channels. The paper has a mean of 3.3 for Grad-CAM, with captions and boxes of regions, and 30 %
# for nouns on photographs of many things.

places = generator.integers(4, size=N_NEW)
nouns = [NAMES[row[place]] for row, place in zip(contents, places, strict=True)]
corners = np.stack([places % 2, places // 2, places % 2 + 1, places // 2 + 1], axis=1)
about, across = ([question(place) for place in each] for each in (places, 3 - places))
random = {f"random {seed}": RandomCAM(random_state=seed) for seed in range(5)}
print(f"right answers: {asking.score({'image': X, 'question': about}, nouns):.0%}")
cases = {
    "its word": (explainer, {"caption": captions}, nouns),
    "its question": (asking, {"question": about}, None),
    "another question": (asking, {"question": across}, None),
}
print(f"{'median, and share':20}{'inside/outside':>16}{'highest inside':>16}")
for name, (each, texts, target) in cases.items():
    measured = evaluate(
        each,
        {"image": X, **texts},
        target=target,
        metrics=["inside_outside_ratio", "pointing_game"],
        method={"gradcam": "gradcam", "hirescam": "hirescam", **random},
        boxes=[[SIDE * corner] for corner in corners],
        progress=False,
    )
    found = {
        method: (np.nanmedian(of["inside_outside_ratio"]), np.mean(of["pointing_game"]))
        for method, of in measured.items()
    }
    drawn = np.mean([found.pop(method) for method in random], axis=0)
    print(name)
    for method, (ratio, hit) in {**found, "random": drawn}.items():
        print(f"  {method:18}{ratio:16.2f}{hit:16.0%}")

plt.show()
