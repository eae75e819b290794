"""
Why these two are alike
=======================

A gallery is searched by the distance between embeddings, and the neighbours of a query are
explained on both sides: where the query is like its neighbour, and where the neighbour is like the
query. Every picture shows pieces of two photographs, so it is known what two pictures share, and
where.
"""

from itertools import combinations

import numpy as np
import skimage.data
from matplotlib import pyplot as plt
from sklearn.datasets import load_sample_images

from sklcam import EmbeddingCAMExplainer, EmbeddingNet, RetrievalDisplay

# %%
# Pictures
# --------
#
# The photographs come with scikit-image and scikit-learn, and the weights of the network come as a
# package, the extra ``pretrained``. Pieces are tiles that do not overlap. The network is trained on
# some of them, and searches among pictures that show two of the others.

SIDE, OF_EACH = 96, 20
china, flower = load_sample_images().images
photographs = {
    "astronaut": skimage.data.astronaut(),
    "coffee": skimage.data.coffee(),
    "flower": flower,
    "motorcycle": skimage.data.stereo_motorcycle()[0],
    "rocket": skimage.data.rocket(),
    "temple": china,
}
generator = np.random.default_rng(0)


def pieces_of(photograph):
    rows, columns = (length // SIDE for length in photograph.shape[:2])
    whole = photograph[: rows * SIDE, : columns * SIDE]
    tiles = whole.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    return generator.permutation(tiles)[:OF_EACH]


pieces = {name: pieces_of(photograph) for name, photograph in photographs.items()}
for_training = {name: of[:10] for name, of in pieces.items()}
X = np.concatenate(list(for_training.values()))
y = np.repeat(list(for_training), [len(of) for of in for_training.values()])

others = {name: iter(of[10:]) for name, of in pieces.items()}  # each is used once
names, pictures = [], []
for pair in list(combinations(pieces, 2)) * 2:
    left, right = generator.permutation(pair)
    names.append(f"{left} and {right}")
    pictures.append(np.concatenate([next(others[left]), next(others[right])], axis=1))
order = generator.permutation(len(names))
names, pictures = np.array(names)[order], np.stack(pictures)[order]

# %%
# The search
# ----------
#
# The network learns embeddings of single pieces. All of them have something in common, and so do
# any two pictures. ``contrast=True`` subtracts this, and leaves what these two share and others do
# not.

net = EmbeddingNet(
    "efficientnet_lite0",
    weights="DEFAULT",
    embedding_dim=64,
    image_size=SIDE,
    augment=None,
    lr=1e-3,
    batch_size=16,
    max_epochs=4,
    recalibrate=True,
    random_state=0,
    verbose=0,
).fit(X, y)

prepared = net.preprocessing_
explainer = EmbeddingCAMExplainer(
    net.module_,
    contrast=True,
    image_size=(SIDE, 2 * SIDE),
    mean=prepared.mean,
    std=prepared.std,
    verbose=0,
)
explainer.fit(np.concatenate([X, X], axis=2), y)  # in the gallery's format
queries, rest = slice(0, 4), slice(4, None)
found = explainer.explain_neighbors(pictures[queries], pictures[rest], k=3)

# %%
# How often does a neighbour share a photograph with its query? Six in ten of all pairs of pictures
# do, so that is chance.


def share_a_photograph(name, other):
    return not set(name.split(" and ")).isdisjoint(other.split(" and "))


every = explainer.explain_neighbors(pictures, pictures, k=2)
nearest = every.indices[:, 1]  # the first is the picture itself
shared = [share_a_photograph(*of) for of in zip(names, names[nearest], strict=True)]
print(f"the nearest neighbour shares a photograph: {np.mean(shared):.2f}")

# %%
# If a neighbour shares just one photograph, it is known in which half of the query that is. How
# much of the map is there? One half would be chance.

shares = []
for i, other in enumerate(nearest):
    common = [name in names[other].split(" and ") for name in names[i].split(" and ")]
    if sum(common) == 1:
        map_ = every.query_maps[i, 1]
        half = slice(0, SIDE) if common[0] else slice(SIDE, None)
        shares.append(map_[:, half].sum() / map_.sum())
print(f"share of {len(shares)} maps in the half that both have: {np.nanmean(shares):.2f}")

# %%
# Both sides
# ----------
#
# Below each image, its map shows where it is like the others. A neighbour is right if it shares a
# photograph.

RetrievalDisplay.from_predictions(
    pictures[queries],
    pictures[rest],
    found,
    query_labels=names[queries],
    gallery_labels=names[rest],
    is_right=share_a_photograph,
)
plt.show()
