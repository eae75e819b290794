"""Embedding nets: embeddings, labels, scores and parameters, and as scikit-learn's guests."""

from __future__ import annotations

import copy
import sys

import joblib
import numpy as np
import pytest
import torch
from embedding_nets import (
    BY_NAME,
    CLASSES,
    DIM,
    NAMES,
    Falling,
    Recorder,
    Spread,
    X,
    Y,
    embedder,
    outputs,
    prepared,
    weights,
)
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pytorch_metric_learning import losses, miners
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from small_networks import SmallNet, TupleNet
from torch.utils.data import Dataset


@pytest.fixture(scope="module")
def fitted():
    return embedder(max_epochs=2).fit(X, NAMES)


def at_length_one(embeddings):
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


# Embeddings


def test_embeddings_have_length_one_unless_told_otherwise(fitted):
    embeddings = fitted.transform(X)
    assert embeddings.shape == (60, DIM) and embeddings.dtype == np.float32
    assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert_allclose(embeddings, at_length_one(outputs(fitted)), atol=1e-6)
    raw = copy.deepcopy(fitted).set_params(normalize=False).transform(X)
    assert_allclose(raw, outputs(fitted), atol=1e-6)
    assert raw.dtype == np.float32
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1, atol=0.01)


@pytest.mark.parametrize("batch_size", [1, 7, 60, -1])
def test_other_images_in_the_batch_make_no_difference(batch_size, fitted):
    expected = at_length_one(outputs(fitted))
    net = copy.deepcopy(fitted).set_params(batch_size=batch_size)
    assert_allclose(net.transform(X), expected, atol=1e-5)
    assert_allclose(net.transform(X[::-1]), expected[::-1], atol=1e-5)
    assert_allclose(net.transform(X[5:6]), expected[5:6], atol=1e-5)


def test_a_network_with_auxiliary_outputs():
    net = embedder(TupleNet, target_layer="net.5").fit(X, NAMES)
    with torch.no_grad():
        expected = net.module_.eval()(prepared())[0].numpy()
    assert_allclose(net.transform(X), at_length_one(expected), atol=1e-6)


@pytest.mark.parametrize("form", ["uint8", "float", "tensor", "pictures", "paths"])
def test_images_in_any_form(form, tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(array) for array in arrays]
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    given = {
        "uint8": arrays,
        "float": arrays / 255,
        "tensor": torch.from_numpy(arrays).movedim(-1, 1),
        "pictures": pictures,
        "paths": paths,
    }[form]
    net = embedder().fit(given, NAMES[:12])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = ((torch.from_numpy(arrays) / 255 - mean) / std).movedim(-1, 1)
    with torch.no_grad():
        expected = net.module_.eval()(inputs).numpy()
    assert_allclose(net.transform(given), at_length_one(expected), atol=1e-5)


def test_image_size_as_a_pair():
    net = embedder(image_size=(12, 20)).fit(X, NAMES)
    with torch.no_grad():
        expected = net.module_.eval()(prepared(size=(12, 20))).numpy()
    assert_allclose(net.transform(X), at_length_one(expected), atol=1e-6)
    assert net.explain(X[:2]).shape == (2, 12, 20)


def test_a_dead_network_has_no_directions():
    class DeadNet(SmallNet):
        def forward(self, x):
            return 0 * super().forward(x)

    net = embedder(DeadNet).fit(X, NAMES)
    for ask in (net.transform, lambda images: net.score(images, NAMES)):
        with pytest.raises(ValueError, match=r"embeddings of .* are zero or not finite"):
            ask(X)
    assert_array_equal(net.set_params(normalize=False).transform(X), np.zeros((60, DIM)))


# Labels


@pytest.mark.parametrize("labels", [NAMES, list(NAMES), NAMES.astype(object), 10 - 3 * Y, Y == 1])
def test_labels_of_any_kind(labels):
    net = embedder(criterion=Recorder, sampler=None).fit(X, labels)
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    assert_array_equal(net.classes_, classes)
    assert sorted(np.concatenate(net.criterion_.labels)) == sorted(codes)


def test_classes_that_come_later():
    few = NAMES != "pear"
    net = embedder(criterion="proxy-anchor", classes=["pear", "fig", "apple"])
    net.fit(X[few], NAMES[few])
    assert_array_equal(net.classes_, CLASSES)
    assert net.proxies_.shape == (3, DIM)
    first = embedder().partial_fit(X[few], NAMES[few], classes=CLASSES)
    assert first.partial_fit(X, NAMES).criterion_.beta.shape == (3,)
    with pytest.raises(ValueError, match="differs from the classes of the first call"):
        first.partial_fit(X, NAMES, classes=["apple", "fig"])


def test_a_class_that_was_not_announced():
    few = NAMES != "pear"
    net = embedder().partial_fit(X[few], NAMES[few])
    with pytest.raises(ValueError, match=r"not seen in fit: \['pear'\]"):
        net.partial_fit(X, NAMES)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "requires y to be passed, but the target y is None"),
        (NAMES[:50], "50"),
        (np.zeros(60), "one class"),
        (np.linspace(0, 1, 60), "Unknown label type|continuous"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    net = embedder()
    with pytest.raises(ValueError, match=message):
        net.fit(X, labels)
    with pytest.raises(NotFittedError):
        net.transform(X)


def test_a_data_set_brings_its_labels(fitted):
    class Images(Dataset):
        targets = NAMES

        def __len__(self):
            return 60

        def __getitem__(self, i):
            return torch.from_numpy(X[i : i + 1]).float(), NAMES[i]

    net = embedder(max_epochs=2).fit(Images())
    assert_array_equal(net.classes_, CLASSES)
    assert_allclose(net.transform(Images()), fitted.transform(X), atol=1e-6)
    assert net.score(Images()) == fitted.score(X, NAMES)


# Score


@pytest.mark.parametrize("labels", [NAMES, np.arange(60) % 7, Y + 3 * (np.arange(60) % 2)])
def test_score_is_recall_leaving_one_out(labels, fitted):
    neighbors = NearestNeighbors(n_neighbors=1).fit(at_length_one(outputs(fitted)))
    nearest = neighbors.kneighbors(return_distance=False)[:, 0]
    expected = np.mean(labels[nearest] == labels)
    assert 0 < expected < 1
    assert fitted.score(X, labels) == pytest.approx(expected)
    raw = copy.deepcopy(fitted).set_params(normalize=False)
    assert raw.score(X, labels) == pytest.approx(expected)


def test_score_needs_labels(fitted):
    with pytest.raises(ValueError, match="requires y to be passed"):
        fitted.score(X)
    with pytest.raises(ValueError, match=r"\(60, 4\), and labels of shape \(50,\)"):
        fitted.score(X, NAMES[:50])


def test_an_unfitted_net_says_so():
    net = embedder()
    calls = [net.transform, net.explain, lambda X: net.score(X, NAMES)]
    for call in calls:
        with pytest.raises(NotFittedError):
            call(X)
    with pytest.raises(NotFittedError):
        net.initialize()
    with pytest.raises(AttributeError, match="after fitting with a loss that has proxies"):
        embedder(criterion="proxy-anchor").proxies_  # noqa: B018


def textures(n, seed):
    """Faint stripes across, stripes along and a chequerboard, under noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((8, 8))
    patterns = np.stack([rows % 2, columns % 2, (rows + columns) % 2])
    labels = np.arange(n) % 3
    brightness = rng.uniform(0, 0.5, (n, 1, 1))
    return 0.1 * patterns[labels] + brightness + 0.2 * rng.random((n, 8, 8)), labels


@pytest.mark.parametrize("criterion", BY_NAME)
def test_training_brings_classes_together(criterion):
    options = {"image_size": 8, "batch_size": 24, "augment": None, "proxy_lr": 0.1}
    images, labels = textures(120, seed=0)
    before, after = (
        embedder(criterion=criterion, max_epochs=n, **options)
        .fit(images, labels)
        .score(*textures(60, seed=1))
        for n in (0, 30)
    )
    assert after > before + 0.15 and after > 0.85


# Networks of one's own


class Wanting(SmallNet):
    """Takes all that it may be given."""

    def __init__(self, embedding_dim, num_classes, n_classes, in_channels, width=8):
        super().__init__(embedding_dim, in_channels, width)
        self.given = (embedding_dim, num_classes, n_classes, in_channels, width)


def test_a_class_of_networks_is_given_what_it_takes():
    assert embedder(Wanting).fit(X, NAMES).module_.given == (DIM, DIM, DIM, 1, 8)
    colour = np.repeat(X[..., None], 3, axis=3)
    net = embedder(Wanting, embedding_dim=6, module__width=5).fit(colour, NAMES)
    assert net.module_.given == (6, 6, 6, 3, 5)
    assert net.n_channels_ == 3


def test_a_callable_that_takes_the_dimensions():
    net = embedder(lambda embedding_dim: SmallNet(embedding_dim), embedding_dim=5).fit(X, NAMES)
    assert net.transform(X).shape == (60, 5)


@pytest.mark.parametrize("module", [lambda: SmallNet(7), SmallNet(7)])
def test_a_network_of_another_width_is_refused(module):
    with pytest.raises(ValueError, match=r"\(1, 7\) for 4 embedding dimensions"):
        embedder(module).fit(X, NAMES)
    assert embedder(module, embedding_dim=7).fit(X, NAMES).transform(X).shape == (60, 7)


def test_an_instance_of_a_network_is_copied_never_trained():
    module = SmallNet(DIM)
    before = copy.deepcopy(module.state_dict())
    net = embedder(module).fit(X, NAMES)
    assert net.module_ is not module
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    first = weights(net)
    assert not torch.equal(first, torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(first, weights(net.fit(X, NAMES)))


def test_a_network_by_name():
    net = embedder("squeezenet1_1", image_size=64, max_epochs=0).fit(X[:6], NAMES[:6])
    assert net.transform(X[:2]).shape == (2, DIM)


# Parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"embedding_dim": 2.5}, "embedding_dim"),
        ({"criterion": "contrastive"}, "criterion.*margin"),
        ({"criterion": None}, "criterion"),
        ({"miner": "hard"}, "miner.*semihard"),
        ({"miner": 3}, "miner"),
        ({"sampler": "balanced"}, "sampler.*m-per-class"),
        ({"normalize": "l2"}, "normalize"),
        ({"proxy_lr": -1.0}, "proxy_lr"),
        ({"random_state": "zero"}, "random_state"),
        ({"image_size": 0}, "image_size"),
        ({"sampler_m": 2}, "sampler__m"),
        ({"embeding_dim": 2}, "has no parameter .embeding_dim.. Did you mean: embedding_dim"),
    ],
)
def test_parameters_that_do_not_fit(options, message):
    net = embedder(**options)
    with pytest.raises(ValueError, match=message):
        net.fit(X, NAMES)
    with pytest.raises(NotFittedError):
        net.transform(X)


@pytest.mark.parametrize("part", ["criterion", "miner", "sampler"])
def test_parameters_that_the_parts_do_not_know(part):
    with pytest.raises(TypeError, match="strange"):
        embedder(**{f"{part}__strange": 1}).fit(X, NAMES)


def test_parameters_survive_clone_and_set_params():
    own = {"embedding_dim": 3, "criterion": "triplet", "miner": "distance-weighted"}
    own |= {"sampler": None, "normalize": False, "proxy_lr": 0.5, "classes": CLASSES}
    dotted = {"criterion__margin": 0.3, "miner__cutoff": 0.4, "sampler__m": 2, "module__width": 4}
    net = clone(embedder(**own, **dotted))
    params = net.get_params()
    assert {name: params[name] for name in own | dotted} == own | dotted
    assert not any(name.startswith("_") for name in params)
    net.set_params(embedding_dim=5, criterion="margin", criterion__margin=0.1, miner__cutoff=0.2)
    net.fit(X, NAMES)
    assert (net.criterion_.margin, net.miner_.cutoff) == (0.1, 0.2)
    assert net.transform(X).shape == (60, 5)
    again = clone(net)
    assert not hasattr(again, "module_")
    assert again.get_params()["miner__cutoff"] == 0.2
    assert torch.equal(weights(again.fit(X, NAMES)), weights(net))


def test_clone_keeps_instances_as_they_were():
    loss, miner = losses.ProxyAnchorLoss(3, DIM), miners.MultiSimilarityMiner(epsilon=0.3)
    net = embedder(criterion=loss, miner=miner).fit(X, NAMES)
    assert net.get_params()["criterion"] is loss and net.get_params()["miner"] is miner
    twin = clone(net)
    assert torch.equal(twin.criterion.proxies, loss.proxies)
    assert torch.equal(weights(twin.fit(X, NAMES)), weights(net))


# As a transformer


def test_fit_transform(fitted):
    assert_array_equal(embedder(max_epochs=2).fit_transform(X, NAMES), fitted.transform(X))


def test_before_a_classifier_of_neighbours(fitted):
    pipeline = make_pipeline(embedder(max_epochs=2), KNeighborsClassifier(3)).fit(
        X[:40], NAMES[:40]
    )
    net = embedder(max_epochs=2).fit(X[:40], NAMES[:40])
    by_hand = KNeighborsClassifier(3).fit(at_length_one(outputs(net, X[:40])), NAMES[:40])
    expected = by_hand.predict(at_length_one(outputs(net, X[40:])))
    assert_array_equal(pipeline.predict(X[40:]), expected)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("embedding_dim", [1, 5]),
        ("criterion", ["triplet", "proxy-anchor"]),
        ("criterion__margin", [0.1, 1.0]),
        ("miner__cutoff", [0.1, 1.2]),
        ("sampler__m", [2, 4]),
    ],
)
def test_search_inside_a_pipeline(name, values):
    pipeline = make_pipeline(embedder(), KNeighborsClassifier(3))
    search = GridSearchCV(pipeline, {f"embeddingnet__{name}": values}, cv=2).fit(X, NAMES)
    expected = [
        cross_val_score(
            make_pipeline(embedder(**{name: value}), KNeighborsClassifier(3)), X, NAMES, cv=2
        ).mean()
        for value in values
    ]
    assert_allclose(search.cv_results_["mean_test_score"], expected)
    best = search.best_estimator_[0]
    assert getattr(best, name) == values[int(np.argmax(expected))]
    fresh = embedder(**{name: getattr(best, name)}).fit(X, NAMES)
    assert torch.equal(weights(best), weights(fresh))


def test_search_by_its_own_score():
    search = GridSearchCV(embedder(), {"embedding_dim": [2, 6]}, cv=2).fit(X, NAMES)
    scores = [cross_val_score(embedder(embedding_dim=dim), X, NAMES, cv=2).mean() for dim in (2, 6)]
    assert_allclose(search.cv_results_["mean_test_score"], scores)


def test_names_and_frames(fitted):
    names = [f"embeddingnet{i}" for i in range(DIM)]
    assert fitted.get_feature_names_out().tolist() == names
    frame = embedder(max_epochs=2).set_output(transform="pandas").fit(X, NAMES).transform(X)
    assert frame.columns.tolist() == names
    assert len(embedder(embedding_dim=7).fit(X, NAMES).get_feature_names_out()) == 7
    assert_array_equal(frame.to_numpy(), fitted.transform(X))


def test_names_are_those_of_the_network_that_was_built(fitted):
    with pytest.raises(NotFittedError):
        embedder().get_feature_names_out()
    net = copy.deepcopy(fitted).set_params(embedding_dim=7)
    assert len(net.get_feature_names_out()) == net.transform(X[:2]).shape[1] == DIM


# Copies and files


def through_a_file(net, folder):
    joblib.dump(net, folder / "net.joblib")
    return joblib.load(folder / "net.joblib")


@pytest.mark.parametrize("make", [through_a_file, lambda net, _: copy.deepcopy(net)])
@pytest.mark.parametrize("criterion", BY_NAME)
def test_copies_embed_and_train_on_alike(make, criterion, tmp_path):
    net = embedder(criterion=criterion).fit(X, NAMES)
    twin = make(net, tmp_path)
    assert_array_equal(twin.transform(X), net.transform(X))
    assert_array_equal(twin.explain(X[:5]), net.explain(X[:5]))
    assert hasattr(twin, "proxies_") == criterion.startswith("proxy")
    before = net.transform(X)
    twin.partial_fit(X, NAMES)
    assert_array_equal(net.transform(X), before)
    assert torch.equal(weights(twin), weights(net.partial_fit(X, NAMES)))
    for ours, theirs in zip(twin.criterion_.parameters(), net.criterion_.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# Without pytorch-metric-learning


@pytest.fixture
def not_installed(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pytorch_metric_learning")]:
        monkeypatch.setitem(sys.modules, name, None)


class Unread(Dataset):
    targets = NAMES

    def __len__(self):
        return 60

    def __getitem__(self, i):
        raise AssertionError("an image was read")


@pytest.mark.parametrize(
    "options",
    [
        *({"criterion": name, "sampler": None} for name in BY_NAME),
        {"criterion": Recorder, "miner": "semihard", "sampler": None},
        {"criterion": Recorder, "sampler": "m-per-class"},
    ],
)
@pytest.mark.usefixtures("not_installed")
def test_parts_by_name_say_what_to_install(options):
    net = embedder(**options)
    for train in (net.fit, net.partial_fit):
        with pytest.raises(ImportError, match=r'pip install "sklcam\[metric-learning\]"'):
            train(Unread())


@pytest.mark.parametrize("sampler", [None, Falling])
@pytest.mark.usefixtures("not_installed")
def test_parts_of_ones_own_need_nothing(sampler):
    net = embedder(criterion=Spread, miner=None, sampler=sampler).fit(X, NAMES)
    assert_allclose(net.transform(X), at_length_one(outputs(net)), atol=1e-6)
    assert net.explain(X[:2]).shape == (2, 16, 16)
