"""What a classifier takes as X and searches over, and what it explains of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifiers import NAMES, X, Y, classifier, weights
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.helper import SliceDataset
from small_networks import DropoutNet
from torch import nn

from sklcam.cam import min_max, upsample
from sklcam.images import ImageDataset
from sklcam.metrics import get_scorer


@pytest.fixture(scope="module")
def fitted():
    return classifier(max_epochs=2).fit(X, NAMES)


# What X may be


class Images(torch.utils.data.Dataset):
    targets = Y

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return torch.from_numpy(X[i : i + 1]).float(), int(Y[i])


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    names = []
    for i, image in enumerate(X):
        pixels = np.kron((255 * image).astype(np.uint8), np.ones((2 + i % 2, 2), np.uint8))
        names.append(folder / f"{i}.png")
        Image.fromarray(pixels).convert("RGB").save(names[-1])
    return names


@pytest.mark.parametrize(
    "make",
    [
        lambda paths: X,
        lambda paths: (255 * X).astype(np.uint8)[..., None],
        lambda paths: torch.from_numpy(X).float()[:, None],
        lambda paths: paths,
        lambda paths: [str(path) for path in paths],
        lambda paths: np.array([str(path) for path in paths]),
        lambda paths: [Image.open(path) for path in paths],
        lambda paths: Images(),
        lambda paths: SliceDataset(Images()),
    ],
    ids=["float", "uint8", "tensor", "paths", "strings", "array", "pil", "dataset", "slice"],
)
def test_every_form_of_images(make, paths):
    images = make(paths)
    clf = classifier().fit(images, NAMES)
    assert clf.predict(images).shape == (60,)
    maps = clf.explain(images)
    assert maps.shape == (60, 16, 16) and maps.dtype == np.float32
    assert np.isfinite(get_scorer("consistency")(clf, images))


def test_what_is_said_of_images_goes_with_them():
    """Arrays with their channels first train, predict, explain and are searched as those last."""
    first = ImageDataset(np.repeat(X[:, None], 4, 1)[..., ::-1], channels="first")
    last = np.repeat(X[..., None], 4, -1)[:, :, ::-1]
    ours, theirs = classifier().fit(first, Y), classifier().fit(last, Y)
    assert ours.n_channels_ == 4
    assert_array_equal(ours.predict_proba(first), theirs.predict_proba(last))
    assert_array_equal(ours.explain(first[:5]), theirs.explain(last[:5]))
    ours, theirs = (
        GridSearchCV(classifier(), {"lr": [0.01, 0.05]}, cv=2, error_score="raise").fit(images, Y)
        for images in (first, last)
    )
    assert_array_equal(*(of.cv_results_["split1_test_score"] for of in (ours, theirs)))


def test_a_data_set_brings_its_labels():
    clf = classifier().fit(Images())
    same = classifier().fit(X.astype(np.float32), Y)
    torch.testing.assert_close(weights(clf), weights(same))
    assert clf.score(Images()) == same.score(X, Y)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_searches_over_paths_and_arrays(paths, n_jobs):
    scoring = {"accuracy": "accuracy", "consistency": get_scorer("consistency")}
    results = []
    for images in (paths, np.array(paths, dtype=object)):
        search = GridSearchCV(
            classifier(),
            {"alpha": [0, 1], "p": [0, 2]},
            scoring=scoring,
            refit="consistency",
            cv=2,
            n_jobs=n_jobs,
            error_score="raise",
        ).fit(images, NAMES)
        results.append(search.cv_results_["mean_test_consistency"])
    assert np.isfinite(results).all()
    assert_array_equal(*results)
    assert search.best_estimator_.explain(paths[:2]).shape == (2, 16, 16)


@pytest.fixture
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def test_one_and_two_jobs_agree(one_thread):
    """To the bit, as joblib gives each job one thread."""

    def run(n_jobs):
        return cross_validate(
            classifier(DropoutNet), X, NAMES, cv=2, n_jobs=n_jobs, scoring=get_scorer("consistency")
        )["test_score"]

    assert_array_equal(run(None), run(2))


def test_halving_search_and_pipeline():
    steps = make_pipeline(FunctionTransformer(np.flip, kw_args={"axis": 1}), classifier())
    search = HalvingGridSearchCV(
        steps,
        {"consistentcamclassifier__beta": [0, 1e-6, 1e-5]},
        cv=2,
        min_resources=20,
        random_state=0,
        error_score="raise",
    ).fit(X, NAMES)
    assert search.predict(X).shape == (60,)


# Explanations


def test_explain_is_gradcam_of_the_predicted_class(fitted):
    inputs = torch.cat(list(fitted.iter_inputs(X)))
    model = fitted.module_.eval()
    with torch.no_grad():
        activations = nn.Sequential(*list(model)[:6])(inputs)
        predicted = model(inputs).argmax(1)
    weight = model[8].weight.detach()[predicted]
    raw = torch.einsum("nk,nkuv->nuv", weight, activations).relu() / 64
    assert_allclose(fitted.explain(X), min_max(upsample(raw, (16, 16))), atol=1e-5)
    unscaled = fitted.explain(X, normalize=False)
    assert_allclose(unscaled, upsample(raw, (16, 16)), atol=1e-6)


def test_explain_other_targets(fitted):
    by_label = fitted.explain(X, target=NAMES)
    assert_array_equal(by_label, fitted.explain(X, target=list(NAMES)))
    one = fitted.explain(X, target="two")
    assert_array_equal(one, fitted.explain(X, target=["two"] * 60))
    assert_array_equal(one, fitted.explain(X, target=lambda out: out[:, 2]))
    predicted = fitted.predict(X)
    assert_array_equal(fitted.explain(X), fitted.explain(X, target=predicted))
    assert not np.array_equal(one, fitted.explain(X))


def test_iter_explain_and_out_give_the_same_maps(fitted, tmp_path):
    maps = fitted.explain(X, target=NAMES)
    batches = list(fitted.iter_explain(X, target=NAMES))
    assert [len(batch) for batch in batches] == [20, 20, 20]
    assert_array_equal(np.concatenate(batches), maps)
    out = np.lib.format.open_memmap(tmp_path / "maps.npy", "w+", np.float32, maps.shape)
    assert fitted.explain(X, target=NAMES, out=out) is out
    out.flush()
    assert_array_equal(np.load(tmp_path / "maps.npy"), maps)


def test_explaining_reads_one_batch_at_a_time(fitted):
    class Counting(Images):
        read = 0

        def __getitem__(self, i):
            Counting.read += 1
            return super().__getitem__(i)

    batches = fitted.iter_explain(Counting())
    opened = Counting.read  # one image, to see its channels
    assert opened <= 1
    next(batches)
    assert Counting.read - opened == 20


def test_maps_in_the_images_own_frame(fitted, paths):
    clf = classifier().fit(paths, NAMES)
    maps = clf.explain(paths, frame="image")
    sizes = [Image.open(path).size for path in paths]
    assert [map_.shape for map_ in maps] == [(height, width) for width, height in sizes]
    assert len({map_.shape for map_ in maps}) == 2
    arrays = fitted.explain(X, frame="image")
    assert arrays.shape == (60, 8, 8) and arrays.dtype == np.float32


def test_explaining_leaves_gradients_and_hooks_alone(fitted):
    before = weights(fitted)
    fitted.module_.zero_grad()
    fitted.explain(X)
    assert all(parameter.grad is None for parameter in fitted.module_.parameters())
    assert all(parameter.requires_grad for parameter in fitted.module_.parameters())
    assert torch.equal(before, weights(fitted))
    with torch.inference_mode():
        assert_array_equal(fitted.explain(X[:3]), fitted.explain(X)[:3])
