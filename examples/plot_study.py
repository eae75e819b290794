"""
People as judges
================

Which of two things does a map point out? The Grad-CAM paper asked people, and so can you: the
library writes a page for them, and analyses their answers. Here a program stands in for twelve
people.
"""

# %%
# Pictures of two things
# ----------------------
#
# Three photographs, which come with scikit-image, make six pictures of two things each. The network
# is trained on ImageNet; its weights come as a package, the extra ``pretrained``.

import json
import tempfile
from pathlib import Path

import numpy as np
import skimage.data
from matplotlib import pyplot as plt
from PIL import Image

from sklcam import CAMDisplay, CAMExplainer, study

SIDE = 112
photographs = {
    "tabby": skimage.data.chelsea()[:, 75:375],
    "espresso": skimage.data.coffee()[:, 100:500],
    "missile": skimage.data.rocket()[:400, 150:550],
}
halves = {
    label: np.asarray(Image.fromarray(photograph).resize((SIDE, SIDE)))
    for label, photograph in photographs.items()
}
pairs = [(left, right) for left in halves for right in halves if left != right]
X = np.stack([np.concatenate([halves[left], halves[right]], axis=1) for left, right in pairs])
explainer = CAMExplainer(
    "efficientnet_lite0",
    weights="DEFAULT",
    image_size=(SIDE, 2 * SIDE),
    resize="stretch",
    verbose=0,
).fit()

# %%
# The page
# --------
#
# The page shows maps by three methods, for each of the two classes in each picture. ``study.html``
# is for the raters, and opens in any browser, from a disk. ``study.key.json`` has the right
# answers, and is not for them.

METHODS = ["gradcam", "guidedbackprop", "guidedgradcam"]
class_names = {"tabby": "the cat", "espresso": "the coffee", "missile": "the rocket"}
folder = Path(tempfile.mkdtemp())
key = study.build(
    explainer,
    X,
    path=folder / "study.html",
    pairs=pairs,
    method=METHODS,
    class_names=class_names,
    n_questions=36,
    random_state=0,
)
for file in sorted(folder.iterdir()):
    print(f"{file.name:15} {file.stat().st_size / 1024:4.0f} kB")

# %%
# These are three of the maps, all for the same class. Which of the two classes is it?

maps = explainer.explain(X, pairs, method=METHODS)  # of both classes of each picture
CAMDisplay.from_predictions(
    X[:1], {name: of[:1, 1] for name, of in maps.items()}, kind="overlay", colorbar=False
)

# %%
# A program instead of people
# ---------------------------
#
# The program looks at which half of a picture has more of the map, and is unsure if both halves
# have much the same. The last of the twelve raters does not read, and chooses at random.


def share_of(item):
    """Return the share of a map that lies where its class is: in the left half, or the right."""
    side = pairs[item["image"]].index(label_of[item["class"]])
    map_ = maps[item["method"]][item["image"], side]
    return np.split(map_, 2, axis=1)[side].sum() / map_.sum()


label_of = {words: label for label, words in class_names.items()}
asked = {name: item for name, item in key["items"].items() if not item.get("check")}
shares = {name: share_of(item) for name, item in asked.items()}


def answers_of(rater, reads, generator):
    """Return what a rater hands in, in the form of the files that the page saves."""
    answers = []
    for name, item in key["items"].items():
        sees = 1.0 if item.get("check") else 1 / (1 + np.exp(-12 * (shares[name] - 0.5)))
        is_right = generator.random() < (sees if reads else 0.5)
        value = item["truth"] if is_right else 1 - item["truth"]
        answers.append({"item": name, "value": value, "seconds": 3.0})
    head = {"format": "sklcam-study-answers", "version": 1, "study": key["study"]}
    return {**head, "rater": rater, "answers": answers}


generator = np.random.default_rng(0)
for i in range(12):
    found = answers_of(f"rater {i}", i < 11, generator)
    (folder / f"answers-{i}.json").write_text(json.dumps(found))

# %%
# What they say
# -------------
#
# Intervals are over raters and images at once. Guided backpropagation draws both things, whichever
# class it explains, so raters have to guess. If it is weighted by Grad-CAM, they can tell, as in
# the paper. The rater who did not read failed the checks, and does not count.

result = study.analyse(sorted(folder.glob("answers-*.json")), folder / "study.key.json")
print(result)

# %%
difference = result.difference("guidedgradcam", "guidedbackprop")
print(f"{difference.mean:+.1%} ({difference.low:+.1%} to {difference.high:+.1%})")

# %%
# This is the form of the paper's table 2, whose other columns come from a second study and from
# metrics.

print(study.table(result))

# %%
figure, place = plt.subplots(figsize=(6, 2.2), layout="constrained")
for i, row in enumerate(result.methods.values()):
    place.plot([row.low, row.high], [i, i], color="#0072B2")
    place.plot(row.mean, i, "o", color="#0072B2")
place.axvline(0.5, linestyle="--", color="#555555")
place.set(yticks=range(len(METHODS)), yticklabels=METHODS, xlabel="right answers")
place.set(xlim=(0, 1.02), ylim=(len(METHODS) - 0.5, -0.5))
