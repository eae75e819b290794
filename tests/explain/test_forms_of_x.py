"""Every form of X that users have, through all that takes X: as the same images in an array."""

from __future__ import annotations

from pathlib import Path

import datasets
import joblib
import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, train_test_split
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import ValidSplit
from skorch.helper import predefined_split
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import BatchFeature

import sklcam
from sklcam import CAMDisplay, CAMExplainer, ConsistentCAMClassifier, EmbeddingCAMExplainer
from sklcam.embeddings import TripletCAM
from sklcam.images import ImageDataset
from sklcam.metrics import evaluate, get_scorer

matplotlib.use("Agg")
N = 8
ARRAYS = np.random.default_rng(0).integers(0, 256, (N, 12, 12, 3), dtype=np.uint8)
Y = np.array([0, 1] * (N // 2))


class Net(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, num_classes)

    def forward(self, images):
        return self.head(self.act(self.conv(images)).mean((2, 3)))


class Listed(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for i, array in enumerate(ARRAYS):
        Image.fromarray(array).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(N)]


def in_bytes(paths):
    return [Path(path).read_bytes() for path in paths]


def hugging_face(paths):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    columns = {"image": paths, "label": Y.tolist()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


FORMS = {
    "series": lambda paths: pd.Series(paths, index=range(N)[::-1]),
    "frame": lambda paths: pd.DataFrame({"path": paths}),
    "arrow": lambda paths: pa.chunked_array([in_bytes(paths[:3]), in_bytes(paths[3:])]),
    "bytes": in_bytes,
    "dicts": lambda paths: Listed([{"image": Image.open(each), "age": 3} for each in paths]),
    "Hugging Face": lambda paths: ImageDataset(hugging_face(paths), image_column="image"),
}


def network():
    torch.manual_seed(0)
    return Net()


def explainer(**options):
    return CAMExplainer(network(), target_layer="act", image_size=12, verbose=0, **options).fit()


def classifier(**options):
    options = {"max_epochs": 1, "batch_size": 4, "verbose": 0, "random_state": 0, **options}
    return ConsistentCAMClassifier(Net, target_layer="act", image_size=12, **options)


@pytest.fixture(scope="module")
def fitted():
    return classifier().fit(ARRAYS, Y)


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def X(request, paths):
    return request.param(paths)


def test_explainers(X, paths):
    ours = explainer()
    np.testing.assert_array_equal(ours.explain(X), ours.explain(ARRAYS))
    np.testing.assert_array_equal(np.concatenate([*ours.iter_explain(X)]), ours.explain(ARRAYS))
    np.testing.assert_array_equal(ours.predict_proba(X), ours.predict_proba(ARRAYS))


def test_training_and_prediction(X, fitted):
    trained = clone(fitted).fit(X, Y)
    np.testing.assert_array_equal(trained.predict_proba(X), fitted.predict_proba(ARRAYS))
    assert trained.score(X, Y) == fitted.score(ARRAYS, Y)
    np.testing.assert_array_equal(trained.explain(X), fitted.explain(ARRAYS))


def test_validation(X):
    options = {"train_split": ValidSplit(2, stratified=True)}
    losses = [classifier(**options).fit(each, Y).history[-1, "valid_loss"] for each in (X, ARRAYS)]
    assert losses[0] == losses[1]


def test_validation_data_of_its_own(paths):
    stored, labels = hugging_face(paths), np.array([*"ab"])[Y]
    in_labels = SkorchDataset(pd.Series(paths), labels)
    expected = classifier(train_split=predefined_split(in_labels)).fit(ARRAYS, labels)
    for data in (ImageDataset(paths, labels), Subset(ImageDataset(paths, labels), range(N))):
        trained = classifier(train_split=predefined_split(data)).fit(ARRAYS, labels)
        assert trained.history[-1, "valid_loss"] == expected.history[-1, "valid_loss"]
    for data in (stored, ImageDataset(stored), Subset(stored, range(N))):
        trained = classifier(train_split=predefined_split(data)).fit(ARRAYS, Y)
        assert trained.history[-1, "valid_loss"] == expected.history[-1, "valid_loss"]


def test_parts_of_image_data_sets_are_resized_once(paths):
    images = ImageDataset(paths, image_size=5)
    ours = explainer()
    for part in (Subset(images, [6, 2]), Subset(Subset(images, [2, 6]), [1, 0]), images[[6, 2]]):
        assert ImageDataset(part).original_size(0) == (12, 12)
        np.testing.assert_array_equal(ours.explain(part), ours.explain(ARRAYS[[6, 2]]))
    # Their floats are pixels, as those of the whole are, and no network's input.
    pixels = ImageDataset((ARRAYS / np.float32(255)), image_size=12)
    expected = ours.explain(pixels)
    np.testing.assert_array_equal(ours.explain(Subset(pixels, range(N))), expected)


def test_searches_and_splits(X, fitted):
    folds = KFold(2)
    ours = cross_val_score(classifier(), X, Y, cv=folds, error_score="raise")
    assert ours.tolist() == cross_val_score(classifier(), ARRAYS, Y, cv=folds).tolist()
    search = GridSearchCV(
        classifier(), {"alpha": [0.0, 1.0]}, scoring=get_scorer("sparsity"), cv=2, refit=False
    )
    results = [search.fit(each, Y).cv_results_["mean_test_score"] for each in (X, ARRAYS)]
    np.testing.assert_array_equal(*results)
    assert np.isfinite(results[0]).all()
    _, held_out = train_test_split(X, test_size=3, shuffle=False)
    np.testing.assert_array_equal(fitted.predict_proba(held_out), fitted.predict_proba(ARRAYS[-3:]))


def test_metrics(X):
    ours = explainer()
    results = [
        evaluate(ours, each, Y, metrics=("average_drop", "accuracy"), progress=False)
        for each in (X, ARRAYS)
    ]
    for name in ("average_drop", "accuracy"):
        np.testing.assert_array_equal(results[0][name], results[1][name])


def test_displays_and_reports(X, tmp_path):
    ours = explainer()
    displays = [CAMDisplay.from_estimator(ours, each) for each in (X, ARRAYS)]
    np.testing.assert_array_equal(displays[0].images, displays[1].images)
    sklcam.report(ours, X, Y, path=tmp_path / "page.html", metrics="sparsity", verbose=0)
    is_of_paths = isinstance(X, pd.Series | pd.DataFrame)
    assert (">3.png<" in (tmp_path / "page.html").read_text()) == is_of_paths


def test_embeddings(X):
    ours, theirs = (
        EmbeddingCAMExplainer(network(), target_layer="act", image_size=12, verbose=0).fit(each, Y)
        for each in (X, ARRAYS)
    )
    np.testing.assert_array_equal(ours.proxies_, theirs.proxies_)
    expected = theirs.explain_pairs(ARRAYS, ARRAYS[::-1])
    found = ours.explain_pairs(X, ARRAYS[::-1])
    for maps, others in zip(found, expected, strict=True):
        np.testing.assert_array_equal(maps, others)
    neighbors = ours.explain_neighbors(ARRAYS, X, k=2)
    others = ours.explain_neighbors(ARRAYS, ARRAYS, k=2)
    np.testing.assert_array_equal(neighbors.neighbor_maps, others.neighbor_maps)
    if not isinstance(X, pd.Series | pd.DataFrame):  # of texts, which may be labels
        np.testing.assert_array_equal(ours.explain(ARRAYS, X), ours.explain(ARRAYS, ARRAYS))
    learned = [TripletCAM(n_triplets=2, random_state=0).fit(ours, each, Y) for each in (X, ARRAYS)]
    np.testing.assert_array_equal(learned[0].weights_, learned[1].weights_)


def test_files_of_image_data_sets(X, tmp_path):
    joblib.dump(ImageDataset(X, Y, image_size=12), tmp_path / "images")
    read = joblib.load(tmp_path / "images")
    np.testing.assert_array_equal(read.original_image(5).movedim(0, -1), ARRAYS[5])
    assert read.targets.tolist() == Y.tolist()


def test_labels_of_hugging_face_stand_for_y(paths, fitted):
    stored = hugging_face(paths)
    for X in (stored, ImageDataset(stored)):
        trained = clone(fitted).fit(X)
        np.testing.assert_array_equal(trained.predict_proba(X), fitted.predict_proba(ARRAYS))
        assert trained.score(X) == fitted.score(ARRAYS, Y)
        assert (
            "accuracy" in evaluate(explainer(), X, metrics=("accuracy",), progress=False).summary()
        )
    with pytest.raises(ValueError, match=r"only torch data sets .* one ClassLabel column"):
        clone(fitted).fit(stored["image"])


def test_tensors_in_dicts_are_a_bare_network_s_own_input():
    tensors = torch.randn(4, 3, 12, 12)
    ours = explainer()
    expected = ours.explain(tensors)
    items = [{"pixel_values": tensor, "label": 1} for tensor in tensors]
    of_one = [{"pixel_values": tensor[None]} for tensor in tensors]  # as a processor makes it
    returned = [BatchFeature({"pixel_values": tensor[None].numpy()}) for tensor in tensors]
    pairs = [(each, 1) for each in items]
    for form in (Listed(items), items, Listed(pairs), Listed(of_one), Listed(returned)):
        np.testing.assert_array_equal(ours.explain(form), expected)
