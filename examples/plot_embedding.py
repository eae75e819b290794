"""
An embedding network, and classes it has never seen
===================================================

A network was trained to tell four photographs apart by the distances between their pieces. Now it
is shown pieces of two others. It has no output for them, as it has none for any class, but a few
images of a class make a proxy, and maps can explain what speaks for a proxy. The pieces lie on
gravel, so it is known where the network should look.
"""

import numpy as np
import skimage.data
import torch
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_images

from sklcam import CAMDisplay, EmbeddingCAMExplainer, EmbeddingNet, LocalizationDisplay
from sklcam.embeddings import TripletCAM
from sklcam.metrics import box_masks, heatmap_ratio, pointing_game

# %%
# Pieces on gravel
# ----------------
#
# The photographs come with scikit-image and scikit-learn, and the weights of the network come as a
# package, the extra ``pretrained``. Pieces are tiles of 96 x 96 pixels that do not overlap, shrunk
# to two thirds of their size. Each lies at a random place in a picture of 128 x 128 pixels, and its
# box is known.

SIDE, TILE, PIECE, OF_EACH = 128, 96, 64, 20
china, flower = load_sample_images().images
photographs = {
    "astronaut": skimage.data.astronaut(),
    "coffee": skimage.data.coffee(),
    "flower": flower,
    "rocket": skimage.data.rocket(),
    "motorcycle": skimage.data.stereo_motorcycle()[0],
    "temple": china,
}
gravel = skimage.data.gravel()
generator = np.random.default_rng(0)


def pieces_of(photograph):
    rows, columns = (length // TILE for length in photograph.shape[:2])
    places = generator.permutation(rows * columns)[:OF_EACH]
    corners = [(TILE * (place % columns), TILE * (place // columns)) for place in places]
    return [
        np.asarray(
            Image.fromarray(photograph).resize(
                (PIECE, PIECE), box=(left, top, left + TILE, top + TILE)
            )
        )
        for left, top in corners
    ]


def on_gravel(*pieces_and_corners):
    """Return a picture of gravel with pieces on it."""
    row, column = generator.integers(0, len(gravel) - SIDE, size=2)
    picture = gravel[row : row + SIDE, column : column + SIDE, None].repeat(3, axis=2)
    for piece, (left, top) in pieces_and_corners:
        picture[top : top + PIECE, left : left + PIECE] = piece
    return picture


pieces = {name: pieces_of(photograph) for name, photograph in photographs.items()}
y = np.repeat(list(pieces), [len(of) for of in pieces.values()])
corners = generator.integers(0, SIDE - PIECE, size=(len(y), 2))
every_piece = [piece for of in pieces.values() for piece in of]
X = np.stack([on_gravel(of) for of in zip(every_piece, corners, strict=True)])
boxes = np.concatenate([corners, corners + PIECE], axis=1)
unseen = np.isin(y, ["motorcycle", "temple"])
seen = ~unseen

# %%
# Training
# --------
#
# The default is the margin loss, with distance-weighted sampling of triplets. The score is recall
# at 1: how often the nearest other picture has a piece of the same photograph. Here it is measured
# on photographs that the network has not been trained on. Chance is one half.

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
)
net.fit(X[seen], y[seen])
print(f"recall at 1 on unseen photographs: {net.score(X[unseen], y[unseen]):.2f}")

# %%
# Proxies for new classes
# -----------------------
#
# Eight pieces of each unseen photograph make its proxy, the mean of their embeddings. The other
# pieces are explained for the proxy of their own photograph, or for their own embedding, which
# takes no labels. The baseline by Chen et al. takes the weights of the nearest training picture.
#
# With ``contrast=True``, the mean of the proxies is subtracted first, and the question becomes why
# it is this photograph and not the other. That helps if proxies are alike; these two are not.

few = np.concatenate([np.flatnonzero(y == name)[:8] for name in ("motorcycle", "temple")])
rest = np.setdiff1d(np.flatnonzero(unseen), few)
explainer = EmbeddingCAMExplainer(net, verbose=0).fit(X[few], y[few])
contrast = EmbeddingCAMExplainer(net, contrast=True, verbose=0).fit(X[few], y[few])
print(f"cosine of the proxies: {explainer.proxies_[0] @ explainer.proxies_[1]:.2f}")

chen = TripletCAM(random_state=0).fit(explainer, X[seen], y[seen])
# Raw maps are measured: scaling to [0, 1] would subtract their minimum.
own = {"normalize": False}
maps = {
    "Chen et al.": explainer.explain(X[rest], target="self", method=chen, **own),
    "single point": explainer.explain(X[rest], target="self", **own),
    "mean proxy": explainer.explain(X[rest], target=y[rest], **own),
    "contrast": contrast.explain(X[rest], target=y[rest], **own),
}

# %%
# How much of each map lies on the piece? The uniform map shows what looking nowhere would reach. If
# nothing speaks for the target, the map is blank, as the warning says, and has no ratio.

masks = box_masks([torch.from_numpy(box[None]).float() for box in boxes[rest]], (SIDE, SIDE))
print(f"{'uniform':12}  ratio {masks.mean():.2f}")
for name, of in maps.items():
    ratio = heatmap_ratio(torch.from_numpy(of), masks).nanmean()
    hits = pointing_game(torch.from_numpy(of), masks).float().mean()
    print(f"{name:12}  ratio {ratio:.2f}, points at the piece {hits:.2f}")

# %%
# The box of a map surrounds its largest connected part. These are four pictures of each of the two
# photographs, not chosen by their maps.

shown = np.concatenate([np.flatnonzero(y[rest] == name)[:4] for name in ("motorcycle", "temple")])
LocalizationDisplay.from_predictions(
    X[rest][shown],
    maps["mean proxy"][shown],
    boxes[rest][shown][:, None],
    labels=y[rest][shown],
    threshold=0.5,
    n_columns=4,
)

# %%
# Two pieces, two questions
# -------------------------
#
# A picture with pieces of both photographs has one embedding, but its maps for the two proxies
# differ.

pairs = np.stack(
    [
        on_gravel((pieces["motorcycle"][i], (0, 0)), (pieces["temple"][i], (64, 64)))
        for i in range(8, 12)
    ]
)
CAMDisplay.from_predictions(
    pairs,
    {f"for “{name}”": contrast.explain(pairs, target=name) for name in ("motorcycle", "temple")},
)
plt.show()
