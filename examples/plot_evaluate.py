"""
Explanations by numbers
=======================

Which method explains this network best, and does consistent training help? Digits are hidden in
noise, so that it is known where the network should look, and every explanation is measured: by
what the network says when it sees only what the map shows, by where the map points, and by whether
it stays put when the image is cropped and flipped.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.model_selection import train_test_split
from torch import nn

from sklcam import CausalCurveDisplay, ConsistencyDisplay, ConsistentCAMClassifier
from sklcam.datasets import load_digits
from sklcam.metrics import compare, evaluate
from sklcam.training import ViewSampler

torch.set_num_threads(1)  # on images this small, threads would wait for each other

# %%
# Digits somewhere
# ----------------
#
# Each digit lies anywhere in a picture of 40 x 40 pixels of faint noise, twice as large as it came.
# Its box is known: ``(x1, y1, x2, y2)``, in pixels of the picture.

digits = load_digits(n_class=3)
generator = np.random.default_rng(0)
corners = generator.integers(0, 40 - 16, size=(len(digits.data), 2))
X = generator.uniform(0, 0.5, size=(len(digits.data), 40, 40)).astype(np.float32)
for picture, digit, (left, top) in zip(X, digits.data, corners, strict=True):
    picture[top : top + 16, left : left + 16] += digit.repeat(2, axis=0).repeat(2, axis=1)
X = X.clip(0, 1)
boxes = np.concatenate([corners, corners + 16], axis=1)[:, None]  # one box a picture

X_train, X_test, y_train, y_test, _, boxes_test = train_test_split(
    X, digits.target, boxes, test_size=80, random_state=0, stratify=digits.target
)

# %%
# Two networks
# ------------
#
# One is trained on labels alone, the other for consistent explanations too.


def small_net(num_classes, in_channels):
    layers = []
    for n_in, n_out in ((in_channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)
    )


def train(alpha):
    classifier = ConsistentCAMClassifier(
        small_net,
        target_layer="10",  # the last ReLU, of 10 x 10
        alpha=alpha,
        beta=0,
        image_size=40,
        views=ViewSampler(scale=(0.5, 1.0), flip=0.0),
        augment=None,
        lr=0.1,
        max_epochs=20,
        batch_size=32,
        random_state=0,
        verbose=0,
    )
    return classifier.fit(X_train, y_train)


plain, consistent = train(alpha=0), train(alpha=0.1)

# %%
# Every method by every number
# ----------------------------
#
# One call measures all that is asked for, in one pass over the pictures. Fake-CAM and the uniform
# map explain nothing: a number by which they do well does not measure explanations by itself.

metrics = ("accuracy", "adcc", "iauc", "dauc", "heatmap_ratio", "pointing_game", "consistency")
methods = ("gradcam", "gradcam++", "layercam", "scorecam", "uniform", "fakecam")


def measure(classifier, method):
    return evaluate(
        classifier,
        X_test,
        y_test,
        metrics=metrics,
        method=method,
        boxes=boxes_test,
        metric_params={"iauc": {"n_steps": 20}},
        progress=False,
    )


results = {method: measure(plain, method) for method in methods}
print(results["gradcam"].summary())

# %%
# Fake-CAM hides one pixel and is best by average drop. ADCC sees through it, as its complexity is
# the highest there is; so does everything that asks where the map is. Lines are 95 % intervals.

shown = {
    "average_drop": "average drop (lower)",
    "adcc": "ADCC (higher)",
    "iauc": "insertion AUC (higher)",
    "dauc": "deletion AUC (lower)",
    "heatmap_ratio": "share in the box (higher)",
    "pointing_game": "pointing game (higher)",
}
figure, axes = plt.subplots(2, 3, figsize=(10, 4.5), sharey=True, layout="constrained")
summaries = {method: result.summary() for method, result in results.items()}
for place, (name, title) in zip(axes.flat, shown.items(), strict=True):
    for row, method in enumerate(methods):
        figures = summaries[method][name]
        colour = "0.6" if method in ("uniform", "fakecam") else "C0"
        place.plot([figures.low, figures.high], [row, row], color=colour, linewidth=2)
        place.plot(figures.mean, row, "o", color=colour)
    place.set_title(title, fontsize=10)
    place.set_xlim(-0.03, 1.03)
    place.grid(axis="x", alpha=0.3)
axes[0, 0].set_yticks(range(len(methods)), methods)
axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)  # the first on top

# %%
# Behind two of the numbers are curves: the network's confidence while the brightest pixels of the
# map come to a blurred picture, or go from the whole one.

CausalCurveDisplay.from_estimator(
    plain, X_test, methods=["gradcam", "scorecam", "uniform"], n_steps=40, band=False
)

# %%
# Is one network explained better?
# --------------------------------
#
# The same pictures were measured on both, so that they can be compared picture by picture. Where
# the interval holds 0, the difference may be chance. The consistent network's maps stay put more
# often; whether that costs something here, and whether another ``alpha`` costs less, is for a
# search to say, which takes all of these numbers as scorers.

result_of_consistent = measure(consistent, "gradcam")
print(compare(result_of_consistent, results["gradcam"]))

# %%
# A mean hides how a number is spread. Every picture's consistency:

ConsistencyDisplay.from_predictions(
    {
        "plain": results["gradcam"]["consistency"],
        "consistent": result_of_consistent["consistency"],
    }
)
plt.show()
