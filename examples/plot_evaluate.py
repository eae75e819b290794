"""
Explanations by numbers
=======================

Which method explains a network best? A network trained on ImageNet sees seven photographs, and
every explanation is measured: by what the network says if it sees only what the map shows, by how
quickly the map's brightest pixels bring the class back, and by where the map lies. Then two layers
are compared, also by whether their maps stay put when the photograph is cropped and flipped.
"""

import numpy as np
import skimage.data
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_images

from sklcam import CAMDisplay, CAMExplainer, CausalCurveDisplay, ConsistencyDisplay
from sklcam.metrics import compare, evaluate

# %%
# Photographs and boxes
# ---------------------
#
# The photographs come with scikit-image and scikit-learn, and the weights of the network come as a
# package, the extra ``pretrained``. The boxes, ``(x1, y1, x2, y2)`` in pixels of the photograph,
# were drawn by hand.

china, flower = load_sample_images().images
photographs = {
    "cat": (skimage.data.chelsea(), (20, 0, 385, 300)),
    "coffee": (skimage.data.coffee(), (80, 20, 490, 390)),
    "motorcycle": (skimage.data.stereo_motorcycle()[0], (90, 75, 690, 460)),
    "rocket": (skimage.data.rocket(), (305, 125, 340, 412)),
    "temple": (china, (70, 30, 370, 410)),
    "flower": (flower, (165, 85, 400, 365)),
    "tripod": (skimage.data.camera(), (225, 175, 400, 512)),
}
images = [Image.fromarray(pixels).convert("RGB") for pixels, _ in photographs.values()]
boxes = [[box] for _, box in photographs.values()]

explainer = CAMExplainer("efficientnet_lite0", weights="DEFAULT", verbose=0).fit()
for name, label in zip(photographs, explainer.predict(images), strict=True):
    print(f"{name:12}{explainer.class_names_[label]}")

# %%
# The explained class is the predicted one, right or wrong: where does the network see a moped?
#
# Every method by every number
# ----------------------------
#
# One call computes all metrics, in one pass over the photographs. Three of the methods explain
# nothing: a metric by which they do well does not measure explanations by itself.

metrics = ("adcc", "iauc", "dauc", "heatmap_ratio", "pointing_game")
controls = ("randomcam", "uniform", "fakecam")
methods = ("gradcam", "excitationbackprop", "saliency", *controls)


def measure(explainer, method, metrics=metrics):
    return evaluate(
        explainer,
        images,
        metrics=metrics,
        method=method,
        boxes=boxes,
        metric_params={"iauc": {"n_steps": 8}} if "iauc" in metrics else None,
        progress=False,
    )


results = {method: measure(explainer, method) for method in methods}
print(results["gradcam"].summary())

# %%
# The uniform map and Fake-CAM, which hides one pixel, are best by average drop. ADCC sees through
# them, because their complexity is the highest possible, and so do the metrics that ask where the
# map is. Lines are 95 % intervals, which are wide for seven photographs.

shown = {
    "average_drop": "average drop (lower)",
    "adcc": "ADCC (higher)",
    "iauc": "insertion AUC (higher)",
    "dauc": "deletion AUC (lower)",
    "heatmap_ratio": "share in the box (higher)",
    "pointing_game": "pointing game (higher)",
}
figure, axes = plt.subplots(2, 3, figsize=(10, 4.8), sharey=True, layout="constrained")
summaries = {method: result.summary() for method, result in results.items()}
for place, (name, title) in zip(axes.flat, shown.items(), strict=True):
    for row, method in enumerate(methods):
        figures = summaries[method][name]
        colour = "0.6" if method in controls else "C0"
        place.plot([figures.low, figures.high], [row, row], color=colour, linewidth=2)
        place.plot(figures.mean, row, "o", color=colour)
    place.set_title(title, fontsize=10)
    place.set_xlim(-0.03, 1.03)
    place.grid(axis="x", alpha=0.3)
axes[0, 0].set_yticks(range(len(methods)), methods)
axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)  # the first on top

# %%
# Two of the metrics come from curves: the network's confidence while the map's brightest pixels are
# added to a blurred picture, or removed from the whole one.

CausalCurveDisplay.from_estimator(
    explainer, images, methods=["gradcam", "saliency", "uniform"], n_steps=14, band=False
)

# %%
# Is one layer better?
# --------------------
#
# The last layer has 7 x 7 places. A layer in the middle of the network has 14 x 14, and a finer
# map. Grad-CAM has one weight per channel, whatever the place, which is not enough there; LayerCAM
# has a weight for each place.

finer = CAMExplainer(
    "efficientnet_lite0", weights="DEFAULT", target_layer="_blocks.10", verbose=0
).fit()
CAMDisplay.from_predictions(
    images[:4],
    {
        "Grad-CAM,\nlast layer": explainer.explain(images[:4]),
        "Grad-CAM,\n_blocks.10": finer.explain(images[:4]),
        "LayerCAM,\n_blocks.10": finer.explain(images[:4], method="layercam"),
    },
    cmap="magma",
    alpha=0.75,
    colorbar=False,
)

# %%
# Both layers were measured on the same photographs, so they can be compared photograph by
# photograph. If the interval contains 0, the difference may be chance. The finer maps show less,
# and the network loses more confidence through what they hide. Seven photographs cannot tell which
# maps have the larger share in the box.

fine = measure(finer, "layercam", metrics=("adcc", "heatmap_ratio"))
print(compare(fine, results["gradcam"]))

# %%
# Do the maps stay put? A mean hides the spread, so here are ten views of each photograph. The finer
# maps follow their photographs less.


def consistency(explainer, method):
    draws = [
        evaluate(
            explainer,
            images,
            metrics="consistency",
            metric_params={"consistency": {"method": method}},
            random_state=seed,
            progress=False,
        )["consistency"]
        for seed in range(10)
    ]
    return np.concatenate(draws)


ConsistencyDisplay.from_predictions(
    {
        "Grad-CAM, last layer": consistency(explainer, "gradcam"),
        "LayerCAM, _blocks.10": consistency(finer, "layercam"),
    }
)
plt.show()
