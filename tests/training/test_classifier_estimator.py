"""The classifier as an estimator: errors at the door, copies, files, interruptions, checks."""

from __future__ import annotations

import copy
import inspect
import io
import json
import pickle
import re
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
import torch
from classifiers import NAMES, X, Y, classifier, weights
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data
from skorch import NeuralNet
from skorch.callbacks import Checkpoint
from small_networks import InterruptedNet, RowsAsImages, SmallNet
from torch import nn

from sklcam import ConsistentCAMClassifier, EmbeddingNet
from sklcam.metrics import get_scorer
from sklcam.training import AcceleratedCAMClassifier


@pytest.fixture(scope="module")
def fitted():
    return classifier(max_epochs=2).fit(X, NAMES)


# Errors


def with_nan():
    broken = X.copy()
    broken[7, 3, 3] = np.nan
    return broken


def of_mixed_sizes():
    arrays = np.empty(60, dtype=object)
    arrays[:] = [image[: 4 + i % 2] for i, image in enumerate(X)]
    return arrays


BAD_IMAGES = {
    "empty": (X[:0], "0 images|no images|empty"),
    "nan": (with_nan(), "(?s)NaN.*7|7.*NaN"),
    "range": (X * 255, "255"),
    "mixed sizes": (of_mixed_sizes(), "size"),
    "table": (X.reshape(60, 64), "2-D|two|table"),
    "integers": ((X * 255).astype(int), "uint8"),
    "missing file": (["no/such/file.png"] * 60, "no/such/file.png"),
    "one path": ("file.png", "list"),
    "nothing": (None, "None"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_refused_before_any_work(case, fitted):
    images, message = BAD_IMAGES[case]
    clf = classifier()
    with pytest.raises(ValueError, match=message):
        clf.fit(images, NAMES[: len(images)] if case == "empty" else NAMES)
    assert not clf.initialized_
    for method in (fitted.predict, fitted.predict_proba, fitted.explain, fitted.iter_explain):
        with pytest.raises(ValueError, match=message):
            method(images)


def test_another_number_of_channels_is_refused(fitted):
    colour = np.repeat(X[..., None], 3, axis=3)
    for method in (fitted.predict, fitted.explain, fitted.iter_inputs):
        with pytest.raises(ValueError, match=r"3 channel.*1"):
            method(colour)
    with pytest.raises(ValueError, match=r"3 channel.*1"):
        copy.deepcopy(fitted).partial_fit(colour, NAMES)


def test_a_class_seen_at_prediction_only(fitted):
    strange = np.array(["zebra", *NAMES[1:]])
    with pytest.raises(ValueError, match=r"not seen in fit: \['zebra'\]"):
        fitted.score(X, strange)
    with pytest.raises(ValueError, match="zebra"):
        fitted.explain(X, target=strange)
    with pytest.raises(ValueError, match="shape \\(3,\\) for 60 images"):
        fitted.explain(X, target=NAMES[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"module": "resnet18", "weights": "no_such_weights"}, "no_such_weights"),
        ({"target_layer": "6"}, "several positions"),
        ({"module": "resnet18", "image_size": 32}, "single position"),
        ({"module": lambda: SmallNet(7)}, "7"),
        ({"iterator_train_shuffle": True}, "iterator_train__shuffle"),
    ],
)
def test_networks_that_do_not_fit_the_data(options, message):
    with pytest.raises(ValueError, match=message):
        classifier(**options).fit(X, Y)


def test_maps_of_one_position_are_a_warning_where_they_are_not_trained_on():
    with pytest.warns(UserWarning, match="single position"):
        classifier("resnet18", image_size=32, alpha=0, beta=0, max_epochs=0).fit(X, Y)


def test_an_unfitted_classifier_says_so():
    clf = classifier()
    calls = [
        lambda: clf.predict(X),
        lambda: clf.predict_proba(X),
        lambda: clf.score(X, Y),
        lambda: clf.explain(X),
        lambda: clf.iter_explain(X),
        lambda: clf.iter_inputs(X),
        lambda: get_scorer("consistency")(clf, X),
        clf.initialize,
    ]
    for call in calls:
        with pytest.raises(NotFittedError):
            call()


def test_maps_are_not_written_to_a_file_that_is_read_only(fitted, tmp_path):
    np.save(tmp_path / "maps.npy", np.empty((60, 16, 16), np.float32))
    with pytest.raises(ValueError, match="read-only"):
        fitted.explain(X, out=np.load(tmp_path / "maps.npy", mmap_mode="r"))


def test_a_broken_file_names_its_path(tmp_path, fitted):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        Image.fromarray((255 * X[i]).astype(np.uint8)).save(path)
    clf = classifier().fit(paths, NAMES[:6])
    paths[4].write_bytes(paths[4].read_bytes()[:40])
    for method in (clf.predict, clf.explain):
        with pytest.raises(ValueError, match=r"4\.png"):
            method(paths)


# What a failure leaves


class FailingWhenTrained(SmallNet):
    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            raise RuntimeError("failed on purpose")
        return super().forward(x)


def test_an_error_in_the_network_leaves_an_unfitted_classifier():
    clf = classifier(FailingWhenTrained)
    for train in (clf.fit, clf.partial_fit):
        with pytest.raises(RuntimeError, match="on purpose"):
            train(X, Y)
        with pytest.raises(NotFittedError):
            clf.predict(X)
    assert classifier().fit(X, Y).predict(X).shape == (60,)


def test_bad_input_leaves_a_fitted_classifier_as_it_was(fitted):
    clf = copy.deepcopy(fitted)
    before = clf.predict_proba(X)
    with pytest.raises(ValueError, match="one class"):
        clf.fit(X, np.zeros(60))
    assert_array_equal(clf.predict_proba(X), before)
    assert_array_equal(clf.classes_, fitted.classes_)


def test_ctrl_c_stops_training_and_keeps_a_usable_classifier():
    clf = classifier(InterruptedNet, max_epochs=10).fit(X, NAMES)
    assert len(clf.history) == 2  # six passes an epoch: interrupted in the second one
    assert clf.predict(X).shape == (60,)
    assert clf.explain(X).shape == (60, 16, 16)
    assert all(not module._forward_hooks for module in clf.module_.modules())
    pickle.loads(pickle.dumps(clf)).predict(X)


# Parameters and copies


def test_parameters_survive_clone_and_set_params():
    own = {"alpha": 0.3, "beta": 1e-4, "p": 2, "image_size": 24, "optimizer__momentum": 0.5}
    clf = clone(classifier(**own, module__width=4))
    params = clf.get_params()
    assert {name: params[name] for name in own} == own and params["module__width"] == 4
    assert not any(name.startswith("_") for name in params)
    clf.set_params(alpha=0.7, device="auto", lr=0.2)
    assert (clf.alpha, clf.get_params()["device"], clf.lr) == (0.7, "auto", 0.2)
    assert clf.device in ("cpu", "cuda")
    assert clone(clf).get_params()["device"] == "auto"


@pytest.mark.parametrize("kind", [ConsistentCAMClassifier, AcceleratedCAMClassifier, EmbeddingNet])
def test_what_is_shown_is_what_was_set(kind):
    assert repr(kind()) == f"{kind.__name__}()"
    set_here = {"compile": True, "lr": 0.5, "random_state": 3}  # skorch's, both's and ours
    net = kind(**set_here, optimizer__momentum=0.9)
    shown = re.sub(r"\s+", " ", repr(net))
    assert shown == (
        f"{kind.__name__}(compile=True, lr=0.5, optimizer__momentum=0.9, random_state=3)"
    )
    rows = re.findall(r'<tr class="user-set">.*?class="param">(.*?)</td>', net._repr_html_(), re.S)
    if rows:  # scikit-learn shows the parameters since 1.7
        assert {re.sub("<.*", "", row, flags=re.S).strip() for row in rows} == {
            *set_here,
            "optimizer__momentum",
        }


def test_the_signature_spells_out_what_is_passed_on():
    ours = inspect.signature(ConsistentCAMClassifier).parameters
    skorchs = inspect.signature(NeuralNet).parameters
    assert set(skorchs) <= set(ours) and ours["lr"].default == 1e-3
    assert ours["use_caching"].default == skorchs["use_caching"].default
    more = set(inspect.signature(AcceleratedCAMClassifier).parameters) - set(ours)
    assert more == {"accelerator"}

    class Closed(ConsistentCAMClassifier):
        def __init__(self, alpha=2.0):
            super().__init__(alpha=alpha)

    class Unchanged(ConsistentCAMClassifier):
        pass

    assert list(inspect.signature(Closed).parameters) == ["alpha"]
    assert list(inspect.signature(Unchanged).parameters) == list(ours)


def test_clone_of_a_fitted_classifier_is_unfitted(fitted):
    fresh = clone(fitted)
    assert not hasattr(fresh, "module_") and not hasattr(fresh, "classes_inferred_")
    assert fresh.fit(X, NAMES).score(X, NAMES) == fitted.score(X, NAMES)


def test_a_module_instance_is_copied_never_trained():
    module = SmallNet(3, 1)
    before = copy.deepcopy(module.state_dict())
    clf = classifier(module).fit(X, Y)
    assert clf.module_ is not module
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    first = weights(clf)
    assert torch.equal(first, weights(clf.fit(X, Y)))  # starts anew, from the same instance
    fresh = classifier()
    fresh.set_params(module=module)  # an instance as a parameter, before fit
    assert torch.equal(first, weights(fresh.fit(X, Y)))
    fresh.set_params(criterion=nn.CrossEntropyLoss(label_smoothing=0.1)).fit(X, Y)
    assert fresh.criterion_.label_smoothing == 0.1


@pytest.mark.parametrize("make", [
    lambda clf: pickle.loads(pickle.dumps(clf)),
    copy.deepcopy,
    copy.copy,
], ids=["pickle", "deepcopy", "copy"])  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_copies_predict_and_explain_alike(make, device):
    clf = classifier(device=device, max_epochs=2).fit(X, NAMES)
    twin = make(clf)
    assert_array_equal(twin.predict(X), clf.predict(X))
    assert_array_equal(twin.explain(X), clf.explain(X))
    assert twin.get_params()["device"] == device
    assert twin.history.to_list() == clf.history.to_list()
    unfitted = make(classifier(device=device))
    assert_array_equal(unfitted.fit(X, NAMES).explain(X), classifier().fit(X, NAMES).explain(X))


def test_a_copy_trains_on_as_the_original_would(fitted):
    twin, other = pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)
    assert torch.equal(weights(twin.partial_fit(X, NAMES)), weights(other.partial_fit(X, NAMES)))


def test_deepcopy_of_what_does_not_pickle():
    clf = classifier(augment=lambda images: images).fit(X, Y)
    assert_array_equal(copy.deepcopy(clf).predict(X), clf.predict(X))


def test_joblib_file_loads_in_another_process(fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "classifier.joblib")
    np.save(tmp_path / "X.npy", X)
    script = (
        "import sys, joblib, numpy as np, torch; torch.set_num_threads(1);"
        "clf = joblib.load(sys.argv[1]); np.save(sys.argv[3], clf.explain(np.load(sys.argv[2])))"
    )
    names = [str(tmp_path / name) for name in ("classifier.joblib", "X.npy", "maps.npy")]
    here = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", script, *names], check=True, env=here)
    assert_allclose(np.load(names[2]), fitted.explain(X), atol=1e-5)


@pytest.mark.parametrize("stored", ["cuda", "auto"])
def test_a_file_written_on_cuda_loads_without_it(fitted, stored, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    clf = copy.deepcopy(fitted)
    vars(clf)["device"] = stored
    original_state, original_tag = NeuralNet.__getstate__, torch.serialization.location_tag

    def state_as_on_cuda(self):  # the network's tensors are tagged with where they lie
        monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        try:
            return original_state(self)
        finally:
            monkeypatch.setattr(torch.serialization, "location_tag", original_tag)

    monkeypatch.setattr(NeuralNet, "__getstate__", state_as_on_cuda)
    data = pickle.dumps(clf)
    assert b"cuda:0" in data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skorch says that it moved the network
        loaded = pickle.loads(data)
    assert str(loaded.device) == "cpu"
    assert str(loaded.get_params()["device"]) == ("auto" if stored == "auto" else "cpu")
    assert_array_equal(loaded.predict(X), fitted.predict(X))


def test_checkpoints_and_parameter_files(tmp_path):
    checkpoint = Checkpoint(dirname=tmp_path, monitor=None, f_pickle="whole.pkl")
    clf = classifier(device="auto", max_epochs=2, callbacks=[checkpoint]).fit(X, NAMES)
    fresh = classifier(device="auto", max_epochs=0).fit(X, NAMES)
    fresh.load_params(checkpoint=checkpoint)
    assert_array_equal(fresh.predict_proba(X), clf.predict_proba(X))
    assert fresh.get_params()["device"] == "auto"
    with open(tmp_path / "whole.pkl", "rb") as file:
        assert_array_equal(pickle.load(file).predict(X), clf.predict(X))
    json.dumps(clf.history.to_list())
    buffer = io.BytesIO()
    clf.save_params(f_params=buffer)
    with pytest.raises(NotFittedError):
        classifier().load_params(f_params=io.BytesIO(buffer.getvalue()))


def test_weights_from_a_file(tmp_path, fitted):
    torch.save(fitted.module_.state_dict(), tmp_path / "weights.pt")
    clf = classifier(weights=tmp_path / "weights.pt", max_epochs=0).fit(X, NAMES)
    assert_array_equal(clf.predict_proba(X), fitted.predict_proba(X))
    other = classifier(weights=str(tmp_path / "weights.pt"), max_epochs=0).fit(X[Y < 2], Y[Y < 2])
    assert other.predict_proba(X).shape == (60, 2)
    assert torch.equal(other.module_[0].weight, fitted.module_[0].weight)


def test_setting_the_module_after_fit_rebuilds_it(fitted):
    clf = copy.deepcopy(fitted).set_params(module__width=5)
    assert clf.module_[0].out_channels == 5
    assert clf.explain(X[:2]).shape == (2, 16, 16)


def test_image_size_as_a_pair_and_center_crop():
    clf = classifier(image_size=(12, 20), resize="center_crop").fit(X, Y)
    assert clf.explain(X).shape == (60, 12, 20)
    assert clf.explain(X, frame="image").shape == (60, 8, 8)


def test_own_statistics():
    plain = torch.cat(list(classifier(max_epochs=0, mean=0.0, std=1.0).fit(X, Y).iter_inputs(X)))
    scaled = torch.cat(
        list(classifier(max_epochs=0, mean=[0.5], std=[2.0]).fit(X, Y).iter_inputs(X))
    )
    torch.testing.assert_close(scaled, (plain - 0.5) / 2)
    assert plain.min() >= 0 and plain.max() <= 1


def test_a_validation_split_may_be_given_as_a_data_set_of_ones_own():
    from skorch.helper import predefined_split

    class Valid(torch.utils.data.Dataset):
        targets = NAMES[:20]

        def __len__(self):
            return 20

        def __getitem__(self, i):
            return torch.from_numpy(X[i : i + 1]).float(), NAMES[i]

    clf = classifier(train_split=predefined_split(Valid())).fit(X, NAMES)
    assert np.isfinite(clf.history[-1, "valid_loss"])


def test_workers_read_the_images():
    clf = classifier(iterator_train__num_workers=2, iterator_valid__num_workers=2).fit(X, Y)
    assert_array_equal(clf.predict(X), classifier().fit(X, Y).predict(X))


# scikit-learn's own checks, on a subclass that takes a row of a table for a flat image


class RowsClassifier(ConsistentCAMClassifier):
    """Each row becomes an image of 12 x 12 equal pixels with a channel a feature."""

    def __init__(self, module=RowsAsImages, *, target_layer="mix", image_size=12, alpha=0, beta=0,
                 augment=None, mean=0.0, std=1.0, lr=0.05, max_epochs=40, verbose=0, device="cpu",
                 **kwargs):  # fmt: skip
        super().__init__(
            module, target_layer=target_layer, image_size=image_size, alpha=alpha, beta=beta,
            augment=augment, mean=mean, std=std, lr=lr, max_epochs=max_epochs, verbose=verbose,
            device=device, **kwargs,
        )  # fmt: skip

    def fit(self, X, y=None, **fit_params):
        return super().fit(self._images(X, reset=True), y, **fit_params)

    def partial_fit(self, X, y=None, classes=None, **fit_params):
        if not isinstance(X, torch.utils.data.Dataset):
            X = self._images(X, reset=not self.initialized_)
        return super().partial_fit(X, y, classes=classes, **fit_params)

    def predict_proba(self, X):
        self.check_is_fitted()
        return super().predict_proba(self._images(X, reset=False))

    def score(self, X, y=None, sample_weight=None):
        return accuracy_score(y, self.predict(X), sample_weight=sample_weight)

    def _images(self, X, reset):
        rows = validate_data(self, X, reset=reset, dtype=np.float32)
        return torch.sigmoid(torch.from_numpy(rows.copy()))[:, :, None, None]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = False
        return tags


EXPECTED_FAILURES = {
    "check_no_attributes_set_in_init": "skorch sets up its history and parameters in __init__",
    "check_do_not_raise_errors_in_init_or_set_params": "skorch builds callbacks when they are set",
}


@parametrize_with_checks(
    [RowsClassifier(random_state=0)],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_scikit_learns_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The target layer .* single position")
        check(estimator)


@parametrize_with_checks([ConsistentCAMClassifier()])
def test_scikit_learns_checks_for_images(estimator, check):
    check(estimator)
