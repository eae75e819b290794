"""
What channels see, in words and in colours
==========================================

A network trained on ImageNet looks at photographs of a cat, a cup of coffee, a motorcycle and a
person. Boxes around these give its channels names, the names describe its decisions, and channels
that fire together are drawn in colours.
"""

import numpy as np
import skimage.data
from matplotlib import pyplot as plt
from PIL import Image

from sklcam import CAMExplainer, ConceptNamer
from sklcam.concepts import ConceptMaps
from sklcam.plotting import ConceptCropsDisplay, ConceptMapsDisplay

# %%
# Photographs, and where things are
# ---------------------------------
#
# The photographs come with scikit-image. Their boxes, x1, y1, x2, y2, were drawn by hand. Cropped
# and flipped views make up for the small number of photographs; other views are kept to judge the
# names.

SIZE, N_VIEWS = 160, 8
rng = np.random.default_rng(0)
photographs = {
    "cat": (skimage.data.chelsea(), (95, 10, 420, 300)),
    "coffee": (skimage.data.coffee(), (130, 45, 480, 345)),
    "motorcycle": (skimage.data.stereo_motorcycle()[0], (100, 60, 650, 460)),
    "person": (skimage.data.astronaut(), (30, 0, 410, 512)),
}


def views(n_views):
    """Return views of all photographs, and for each of them a dict with the box in it."""
    images, boxes = [], []
    for name, (photograph, box) in photographs.items():
        height, width = photograph.shape[:2]
        for _ in range(n_views):
            side = int(min(height, width) * rng.uniform(0.7, 1))
            top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
            part = photograph[top : top + side, left : left + side]
            corners = (np.array(box) - [left, top, left, top]).clip(0, side) * SIZE / side
            if rng.random() < 0.5:
                part, corners = (
                    part[:, ::-1],
                    np.array([SIZE, 0, SIZE, 0]) + corners * [-1, 1, -1, 1],
                )
                corners = corners[[2, 1, 0, 3]]
            images.append(np.asarray(Image.fromarray(part).resize((SIZE, SIZE))))
            boxes.append({name: corners[None]})
    return np.stack(images), boxes


X, boxes = views(N_VIEWS)
X_test, boxes_test = views(4)
explainer = CAMExplainer(
    "efficientnet_lite0", weights="DEFAULT", resize="stretch", image_size=SIZE, verbose=0
).fit()

# %%
# Names
# -----
#
# A channel's score for a concept is the area under the ROC curve of its activation, over all
# places.

namer = ConceptNamer(0.75).fit(explainer, X, boxes_by_concept=boxes)
named = [name for name in namer.names_ if name is not None]
print(f"{len(named)} of {len(namer.names_)} channels have a name")
print(
    f"on other views they score {namer.score(explainer, X_test, boxes_by_concept=boxes_test):.2f}"
)

shuffled = [boxes_test[i] for i in rng.permutation(len(boxes_test))]
judged = namer.score(explainer, X_test, boxes_by_concept=shuffled)
print(f"and with the boxes of another view {judged:.2f}, where 0.5 is chance")

# %%
# These are the best channel of each concept, and the places where it fires the most:

best = [int(np.nanargmax(namer.scores_[:, i])) for i in range(len(namer.concepts_))]
ConceptCropsDisplay.from_estimator(explainer, X, namer, best)

# %%
# Decisions in these names
# ------------------------
#
# Each photograph is represented by one view. The weights are the channels' shares of the mean of
# the image's map.

one_each = X_test[::4]
reasons = explainer.explain_in_words(one_each, namer, k=20, weigh="contribution")
print(reasons)

# %%
# Concepts without names
# ----------------------
#
# The layer's activations over all views are factored into non-negative factors, which show things
# and their surroundings.

concepts = ConceptMaps(6, max_iter=600, random_state=0).fit(explainer, X)
print(f"six concepts explain {concepts.explained_:.0%} of the squared activations")
ConceptMapsDisplay.from_estimator(explainer, one_each, concepts)
plt.show()
