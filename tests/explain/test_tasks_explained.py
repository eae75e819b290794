"""Tasks: one logit, several labels, numbers, in whatever is asked of an explainer."""

from __future__ import annotations

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import is_classifier, is_regressor
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNet, NeuralNetBinaryClassifier, NeuralNetClassifier, NeuralNetRegressor
from torch import nn

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.cam import ExcitationBackprop, Positive, TopK
from sklcam.explain import ExplanationWarning
from sklcam.explain.predictions import predictions
from sklcam.metrics import available, evaluate, get_scorer
from sklcam.networks.tasks import Evidence, settle

torch.manual_seed(0)
IMAGES = torch.rand(6, 3, 16, 16)
CONFIDENT = ("adcc", "average_increase", "iauc", "dauc", "road", "arcc")


class Net(nn.Module):
    """Two convolutions, their mean, and one linear layer."""

    def __init__(self, n_outputs=1, last=None, flat=False, seed=0):
        super().__init__()
        self.act = nn.ReLU()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 6, 3, padding=1)
            self.fc = nn.Linear(6, n_outputs)
        with torch.no_grad():
            self.fc.weight *= 20
            self.fc.bias -= self.forward_logits(IMAGES).median(dim=0).values
        self.last, self.flat = last or nn.Identity(), flat

    def maps(self, x):
        return self.act(self.second(self.conv(x).relu()))

    def forward_logits(self, x):
        return self.fc(self.maps(x).mean(dim=(2, 3)))

    def forward(self, x):
        output = self.last(self.forward_logits(x))
        return output[:, 0] if self.flat else output


class Two(nn.Module):
    """The same network with its logit written as two."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        z = self.net.forward_logits(x)
        return torch.cat([-z / 2, z / 2], dim=1)


def by_hand(net, images, column, sign=1, last=None):
    """Grad-CAM of one output, by autograd, at the second convolution: (n, 16, 16)."""
    activations = net.second(net.conv(images).relu()).detach().requires_grad_()
    output = net.fc(activations.relu().mean(dim=(2, 3)))
    output = output if last is None else last(output)
    (gradients,) = torch.autograd.grad(sign * output[:, column].sum(), activations)
    return (gradients.mean((2, 3), keepdim=True) * activations).sum(1).relu().detach().numpy()


def explainer(net, layer="second", **options):
    model = net.eval() if isinstance(net, nn.Module) else net
    return CAMExplainer(model, target_layer=layer, verbose=0, **options).fit(IMAGES)


BINARY = {
    "logit": lambda: explainer(Net(), task="binary"),
    "flat logit": lambda: explainer(Net(flat=True), task="binary"),
    "sigmoid": lambda: explainer(Net(last=nn.Sigmoid())),
    "declared": lambda: explainer(Net(last=Expit()), task="binary", output="probabilities"),
    "labels": lambda: CAMExplainer(Net().eval(), target_layer="second", verbose=0).fit(
        IMAGES, [0, 1, 1, 0, 1, 0]
    ),
    "classes": lambda: explainer(Net(), classes=[0, 1]),
    "skorch": lambda: explainer(skorch_net(Net(flat=True), NeuralNetBinaryClassifier)),
    "skorch, BCE": lambda: explainer(
        skorch_net(Net(last=nn.Sigmoid()), NeuralNet, criterion=nn.BCELoss)
    ),
}


class Expit(nn.Module):
    def forward(self, z):
        return 1 / (1 + (-z).exp())


def skorch_net(module, kind, **options):
    net = kind(module, verbose=0, train_split=None, **options).initialize()
    net.module_.eval()
    return net


@pytest.mark.parametrize("make", BINARY.values(), ids=BINARY)
def test_one_output_written_with_two_gives_equal_numbers(make):
    one, two = make(), explainer(Two(Net()), layer="net.second")
    assert (one.task_, two.task_) == ("binary", "multiclass")
    assert one.classes_.tolist() == [0, 1]
    z = Net().forward_logits(IMAGES)[:, 0].detach()
    p = torch.sigmoid(z).numpy()
    assert_allclose(one.predict_proba(IMAGES), np.stack([1 - p, p], axis=1), atol=1e-6)
    assert_array_equal(one.predict(IMAGES), (z > 0).long())
    assert 0 < one.predict(IMAGES).sum() < len(IMAGES)
    for target in (None, 0, 1, one.predict(IMAGES), np.tile([0, 1], (6, 1)), TopK(2)):
        assert_allclose(
            one.explain(IMAGES, target), two.explain(IMAGES, target), atol=1e-4, err_msg=str(target)
        )


@pytest.mark.parametrize("target", [None, 0, 1])
def test_every_metric_of_one_logit_is_that_of_two(target):
    boxes = [[[2, 2, 9, 12]]] * 6
    y = [0, 1, 1, 0, 1, 0]
    five = {"top5_localization_error", "pointing_game_reject"}  # of five classes
    transformed = {"cose", "cose_consistency", "cose_sensitivity"}  # takes pictures
    metrics = sorted({*available()} - five - transformed - {"reference_correlation"})
    params = {"topk_intersection": {"k": 20}}
    asked = {"target": target, "boxes": boxes, "progress": False}
    found = [
        evaluate(each, IMAGES, y, metrics=metrics, metric_params=params, **asked)
        for each in (BINARY["logit"](), explainer(Two(Net()), layer="net.second"))
    ]
    assert set(found[0]) >= {*CONFIDENT, "accuracy", "consistency", "rank_correlation"}
    for name, values in found[0].items():
        # One logit is twice as large as each of two, and so are the maps, which this is of.
        factor = 2 if name == "local_lipschitz" else 1
        assert_allclose(values, factor * found[1][name], atol=2e-4, err_msg=name)
    if target == 1:
        assert found[0]["iauc"].std() > 1e-4  # which a softmax of one output would make 1


@pytest.mark.parametrize("target", [0, 1])
def test_the_first_class_is_explained_by_the_negative_logit(target):
    net = Net()
    ours = explainer(net, layer="second", task="binary")
    found = ours.explain(IMAGES, target, normalize=False)
    assert_allclose(found, by_hand(net, IMAGES, 0, 2 * target - 1), atol=1e-6)
    assert found.any()


@pytest.mark.parametrize("method", ["cam", ExcitationBackprop(), ExcitationBackprop(False)])
@pytest.mark.parametrize("target", [0, 1])
def test_methods_that_read_the_head_itself_see_the_first_class_of_a_logit(method, target):
    one = explainer(Net(), layer="act", task="binary")

    class Pair(Net):
        def __init__(self):
            super().__init__()
            one = self.fc
            self.fc = nn.Linear(6, 2)
            self.fc.weight.data = torch.cat([-one.weight, one.weight]).detach()
            self.fc.bias.data = torch.cat([-one.bias, one.bias]).detach()

    two = explainer(Pair(), layer="act")
    found = one.explain(IMAGES, target, method=method)
    assert_allclose(found, two.explain(IMAGES, target, method=method), atol=1e-4)
    assert found.any()


@pytest.mark.parametrize("flat", [False, True])
def test_callables_see_the_networks_own_output(flat):
    net = Net(flat=flat)
    ours = explainer(net, task="binary")
    seen = []

    def negative(output):
        seen.append(tuple(output.shape[1:]))
        return -output.reshape(len(output))

    found = ours.explain(IMAGES, negative, normalize=False)
    assert_allclose(found, by_hand(net, IMAGES, 0, -1), atol=1e-6)

    def squeezed(output):
        seen.append(tuple(output.shape[1:]))
        return output.reshape(len(output)).sigmoid()

    scored = evaluate(ours, IMAGES, metrics="iauc", target=1, score=squeezed, progress=False)
    plain = evaluate(ours, IMAGES, metrics="iauc", target=1, progress=False)
    assert_allclose(scored["iauc"], plain["iauc"], atol=1e-6)
    assert {*seen} == {() if flat else (1,)}


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (Net(), {}, r'one output, and nothing says what.*task="binary".*task="regression"'),
        (Net(), {"task": "multiclass"}, r"softmax, which is always 1 for one output"),
        (Net(3), {"task": "binary"}, r"needs a network with one output; this one has 3"),
        (Net(), {"task": "binary", "output": "probabilities"}, r"numbers from .* which are not"),
        (Net(3, nn.Sigmoid()), {"task": "multiclass"}, r"ends in a sigmoid, and a softmax"),
        (Net(2), {"task": "regression", "output": "logits"}, r"is for classes"),
        (Net(), {"task": "binary", "classes": ["no", "yes", "so"]}, r"one output for two classes"),
        (
            nn.Conv2d(3, 2, 1),
            {"task": "multilabel"},
            r"network's output has shape \(1, 2, 16, 16\)",
        ),
        (skorch_net(Net(3), NeuralNetClassifier), {"task": "multilabel"}, r"trained for 'multicla"),
        (
            skorch_net(Net(3), NeuralNetClassifier),
            {"output": "logits"},
            r"criterion already says what it returns",
        ),
    ],
)
def test_what_cannot_be_is_refused(net, options, message):
    with pytest.raises(ValueError, match=message):
        explainer(net, layer="auto" if isinstance(net, nn.Conv2d) else "second", **options)


class Config:
    def __init__(self, problem_type):
        self.problem_type = problem_type


@pytest.mark.parametrize(
    ("n_outputs", "evidence", "said", "expected"),
    [
        (3, {}, None, "multiclass"),
        (3, {"y": [[0, 1, 1], [0, 0, 0]]}, None, "multilabel"),
        (3, {"y": [{"a"}, {"a", "b", "c"}]}, None, "multilabel"),
        (1, {"y": [0.5, 1.25]}, None, "regression"),
        (2, {"y": [[0.5, 3.0], [1.5, 2.0]]}, None, "regression"),
        (1, {"y": ["no", "yes"]}, None, "binary"),
        (3, {"is_sigmoid": True}, None, "multilabel"),
        (1, {"is_sigmoid": True}, None, "binary"),
        (3, {}, "multi_label_classification", "multilabel"),
        (1, {}, "regression", "regression"),
        (2, {"task": "multilabel"}, "single_label_classification", "multilabel"),
    ],
)
def test_what_tells_the_task(n_outputs, evidence, said, expected):
    net = Net(n_outputs)
    net.config = Config(said)
    if said is not None:
        assert explainer(net, **evidence).task_ == expected
    else:
        assert settle(Evidence(torch.zeros(1, n_outputs), **evidence), None).task == expected


class Half(nn.Module):
    def forward(self, z):
        return z.half().sigmoid().float()


class Heads(nn.Module):
    def forward(self, z):
        return torch.cat([z[:, :1].sigmoid(), z[:, 1:].sigmoid()], dim=1)


class Gated(nn.Module):
    def forward(self, z):
        return z * z.sigmoid()


class Stretched(nn.Module):
    def forward(self, z):
        return z.sigmoid().mul_(8).sub_(4)


@pytest.mark.parametrize(
    ("last", "task"),
    [
        (nn.Sigmoid(), "multilabel"),
        (nn.Hardsigmoid(), "multilabel"),
        (Half(), "multilabel"),
        (Heads(), "multilabel"),
        (Gated(), "multiclass"),
        (Stretched(), "multiclass"),
        (nn.Softmax(dim=1), "multiclass"),
    ],
)
def test_a_last_sigmoid_is_recognised(last, task):
    ours = explainer(Net(3, last))
    assert ours.task_ == task
    expected = Net(3, last)(IMAGES).detach()
    is_sigmoid = task == "multilabel" or isinstance(last, nn.Softmax)
    expected = expected if is_sigmoid else expected.softmax(dim=1)
    assert_allclose(ours.predict_proba(IMAGES), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("last", "y", "message"),
    [
        (nn.Sigmoid(), [0, 1, 2, 0, 1, 2], r'y has one label per image.*task="multilabel"'),
        (nn.Softmax(dim=1), [[1, 0, 1]] * 6, r"add up to 1, as those of classes that exclude"),
    ],
)
def test_labels_that_contradict_the_network(last, y, message):
    with pytest.raises(ValueError, match=message):
        CAMExplainer(Net(3, last).eval(), target_layer="second", verbose=0).fit(IMAGES, y)


class Squeezed(Net):
    def forward(self, x):
        return super().forward(x).squeeze()


def test_an_output_that_loses_its_axes():
    """As the last batch of one image does, and the sample that fit takes."""
    squeezed, whole = Squeezed(), explainer(Net(), task="binary")
    ours = explainer(squeezed, task="binary", batch_size=5)
    assert_allclose(ours.predict_proba(IMAGES), whole.predict_proba(IMAGES), atol=1e-6)
    assert_allclose(ours.explain(IMAGES), whole.explain(IMAGES), atol=1e-5)


def test_rows_of_pixels_have_no_task():
    """Whatever the criterion says: a callable says what is explained."""
    model = skorch_net(nn.Conv2d(3, 2, 1), NeuralNet, criterion=nn.CrossEntropyLoss)
    ours = CAMExplainer(model, method="saliency", verbose=0).fit(IMAGES)
    assert (ours.task_, ours.classes_) == (None, None)
    maps = ours.explain(IMAGES, lambda output: output[:, 0].mean(dim=(1, 2)))
    assert maps.shape == (6, 16, 16)


def test_a_criterion_of_ones_own_is_not_taken_for_a_known_one():
    class Own(nn.Module):
        def forward(self, output, y):
            return output.sum()

    nets = [skorch_net(Net(n), NeuralNet, criterion=Own) for n in (1, 3)]
    with pytest.raises(ValueError, match=r"one output, and nothing says what"):
        explainer(nets[0])
    assert explainer(nets[0], task="regression").task_ == "regression"
    ours = explainer(nets[1], task="multilabel", output="logits")
    assert_allclose(ours.predict_proba(IMAGES), Net(3)(IMAGES).sigmoid().detach(), atol=1e-6)


def test_tasks_behind_the_steps_of_a_pipeline():
    halved = FunctionTransformer(lambda X: X / 2)
    net = skorch_net(Net(flat=True), NeuralNetBinaryClassifier)
    pipeline = Pipeline([("halve", halved), ("net", net)])
    ours = explainer(pipeline)
    plain = explainer(net)
    assert ours.task_ == "binary"
    assert_allclose(ours.predict_proba(IMAGES), plain.predict_proba(IMAGES / 2), atol=1e-6)
    assert_allclose(ours.explain(IMAGES, 0), plain.explain(IMAGES / 2, 0), atol=1e-5)


class Trained(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression"])
def test_estimators_that_were_trained_here(task):
    X = np.asarray(IMAGES.permute(0, 2, 3, 1))
    y = {
        "binary": np.array(["a", "b"] * 3),
        "multilabel": [{"a"}, {"b"}, {"a", "b"}, set(), {"c"}, {"c", "a"}],
        "regression": np.linspace(0, 1, 6),
    }[task]
    clf = ConsistentCAMClassifier(
        Trained, task=task, target_layer="second", image_size=16, mean=0, std=1, max_epochs=0,
        alpha=0, beta=0, verbose=0, random_state=0,
    ).fit(X, y)  # fmt: skip
    ours, net = CAMExplainer(clf, verbose=0).fit(), clf.module_.eval()
    assert ours.task_ == task
    assert_array_equal(ours.predict(X), clf.predict(X))
    assert ours.score(X, y) == pytest.approx(clf.score(X, y))
    explained = {"binary": ("a", 0, -1), "multilabel": ("b", 1, 1), "regression": (None, 0, 1)}
    target, column, sign = explained[task]
    for each in (ours, clf):
        found = each.explain(X, target, normalize=False)
        assert_allclose(found, by_hand(net, IMAGES, column, sign), atol=1e-4)
    if task != "regression":
        assert_allclose(ours.predict_proba(X), clf.predict_proba(X), atol=1e-6)
        found = evaluate(clf, X, y, metrics=("accuracy", "dauc"), progress=False)
        assert found["accuracy"].mean() == pytest.approx(clf.score(X, y))
    with pytest.raises(ValueError, match=r"task='multiclass', but the model was trained for"):
        CAMExplainer(clf, task="multiclass").fit()


def test_a_table_of_one_label_an_image_is_remarked_on():
    with pytest.warns(UserWarning, match=r"exactly one label.*argmax"):
        assert settle(Evidence(torch.zeros(1, 3), y=np.eye(3)), None).task == "multilabel"


SKORCH = {
    "multilabel": lambda: skorch_net(Net(3), NeuralNetClassifier, criterion=nn.BCEWithLogitsLoss),
    "regression": lambda: skorch_net(Net(1), NeuralNetRegressor),
    "multiclass": lambda: skorch_net(Net(3), NeuralNet, criterion=nn.CrossEntropyLoss),
}


@pytest.mark.parametrize("task", SKORCH)
def test_a_criterion_tells_the_task(task):
    assert explainer(SKORCH[task]()).task_ == task


# Several labels

LABELS = ["car", "dog", "tree"]


def multilabel(**options):
    return explainer(Net(3, seed=1), task="multilabel", classes=LABELS, **options)


def test_several_labels_have_probabilities_and_predictions_of_their_own():
    ours = multilabel()
    p = torch.sigmoid(Net(3, seed=1)(IMAGES)).detach().numpy()
    assert_allclose(ours.predict_proba(IMAGES), p, atol=1e-6)
    assert_array_equal(ours.predict(IMAGES), (p > 0.5).astype(int))
    y = (p > 0.5).astype(int)
    y[0] = 1 - y[0]
    sets = [{LABELS[j] for j in np.flatnonzero(row)} for row in y]
    assert ours.score(IMAGES, y) == ours.score(IMAGES, sets) == accuracy_score(y, p > 0.5)
    found = evaluate(ours, IMAGES, sets, metrics="accuracy", progress=False)
    assert found["accuracy"].tolist() == [0, 1, 1, 1, 1, 1]


def test_targets_of_several_labels():
    net = Net(3, seed=1)
    ours = multilabel()
    scores = net(IMAGES).detach()
    by_class = np.stack([by_hand(net, IMAGES, j) for j in range(3)], axis=1)
    highest = scores.argmax(dim=1).numpy()
    plain = {"normalize": False}
    assert_allclose(ours.explain(IMAGES, **plain), by_class[range(6), highest], atol=1e-5)
    assert_allclose(ours.explain(IMAGES, "dog", **plain), by_class[:, 1], atol=1e-5)
    several = ours.explain(IMAGES, [["tree", "car"]] * 6, **plain)
    assert_allclose(several, by_class[:, [2, 0]], atol=1e-5)


def test_all_positive_labels_in_one_map():
    net, ours = Net(3, seed=1), multilabel()
    ours.predict(IMAGES)
    activations = net.second(net.conv(IMAGES).relu()).detach().requires_grad_()
    output = net.fc(activations.relu().mean(dim=(2, 3)))
    (gradients,) = torch.autograd.grad((output * (output > 0)).sum(), activations)
    expected = (gradients.mean((2, 3), keepdim=True) * activations).sum(1).relu().detach().numpy()
    assert 0 < (output > 0).sum() < output.numel()
    found = ours.explain(IMAGES, "positive", normalize=False)
    assert_allclose(found, expected, atol=1e-5)
    assert_array_equal(ours.explain(IMAGES, Positive(), normalize=False), found)
    for ask in (BINARY["logit"]().explain, explainer(Net(3)).explain):
        with pytest.raises(ValueError, match=r"multilabel networks|not seen in fit"):
            ask(IMAGES, Positive())
    with pytest.raises(ValueError, match=r"adcc.*needs|Give score="):
        evaluate(ours, IMAGES, metrics="adcc", target="positive", progress=False)
    named = explainer(Net(3), task="multilabel", classes=["negative", "positive", "other"])
    with pytest.raises(ValueError, match=r"one label has this name too"):
        named.explain(IMAGES, "positive")


def test_an_image_without_a_label_has_a_blank_map_and_a_warning():
    net = Net(3)
    net.fc.bias.data -= 1000
    ours = explainer(net, task="multilabel")
    with pytest.warns(ExplanationWarning, match=r"6 of 6 maps are blank"):
        assert not ours.explain(IMAGES, "positive").any()
    shown = predictions(ours, ours.output_of(IMAGES))
    assert {each.text for each in shown} == {"no label"}


def test_the_confidence_in_a_label_is_its_own_sigmoid():
    net, ours = Net(3, seed=1), multilabel()
    maps = torch.from_numpy(ours.explain(IMAGES, "dog"))
    with torch.no_grad():
        full = net(IMAGES)[:, 1].sigmoid()
        masked = net(IMAGES * maps[:, None])[:, 1].sigmoid()
    found = evaluate(
        ours, IMAGES, metrics=("average_drop", "average_increase"), target="dog", progress=False
    )
    assert_allclose(found["average_drop"], ((full - masked).clamp(min=0) / full), atol=1e-5)
    assert_array_equal(found["average_increase"], (masked > full).float())


def test_localization_takes_the_explained_label_for_right_if_the_image_has_it():
    ours = multilabel()
    y = np.ones((6, 3), dtype=int)
    y[:3, :] = 0
    boxes = [[[0, 0, 16, 16]]] * 6
    right = evaluate(
        ours, IMAGES, y, metrics="localization_accuracy", boxes=boxes, progress=False,
        metric_params={"localization_accuracy": {"iou_threshold": 0.0}},
    )["localization_accuracy"]  # fmt: skip
    assert right.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("as_sets", [False, True])
def test_scorers_in_a_search(as_sets):
    p = torch.sigmoid(Net(3, seed=1)(IMAGES)).detach().numpy()
    y = (p > 0.5).astype(int)
    if as_sets:
        y = np.array([{LABELS[j] for j in np.flatnonzero(row)} for row in y], dtype=object)
    search = GridSearchCV(
        CAMExplainer(Net(3, seed=1).eval(), target_layer="second", task="multilabel",
                     classes=LABELS, verbose=0),
        {"method": ["gradcam", "hirescam"]},
        scoring={"accuracy": get_scorer("accuracy"), "adcc": get_scorer("adcc")},
        refit="adcc",
        cv=[(np.arange(6), np.arange(6))],
        error_score="raise",
    ).fit(IMAGES, y)  # fmt: skip
    assert search.cv_results_["mean_test_accuracy"].tolist() == [1, 1]
    assert np.isfinite(search.cv_results_["mean_test_adcc"]).all()


def test_labels_tell_evaluate_what_a_module_is():
    net = Net(3, seed=1).eval()
    y = (net(IMAGES) > 0).long().numpy()
    assert evaluate(net, IMAGES, y, metrics="accuracy", progress=False)["accuracy"].all()
    with pytest.raises(ValueError, match=r"one label per image.*task=\"multilabel\""):
        explainer(Net(3)).score(IMAGES, y)


# Numbers


def test_a_number_is_explained_as_it_is():
    net = Net(flat=True)
    ours = explainer(net, task="regression")
    assert ours.classes_ is None
    assert is_regressor(ours)
    assert not is_classifier(ours)
    assert is_classifier(explainer(Net(3)))
    z = net(IMAGES).detach().numpy()
    assert_allclose(ours.predict(IMAGES), z, atol=1e-6)
    assert not hasattr(ours, "predict_proba")
    y = z + np.arange(6) * 0.01
    assert ours.score(IMAGES, y) == pytest.approx(r2_score(y, z))
    assert_allclose(ours.explain(IMAGES, normalize=False), by_hand(net, IMAGES, 0), atol=1e-6)
    with pytest.raises(ValueError, match=r"adcc.*returns numbers.*score="):
        evaluate(ours, IMAGES, metrics="adcc", progress=False)
    with pytest.raises(ValueError, match=r"accuracy needs classes"):
        evaluate(ours, IMAGES, y, metrics="accuracy", progress=False)
    scored = evaluate(ours, IMAGES, metrics="dauc", score=torch.sigmoid, progress=False)
    assert_allclose(
        scored["dauc"],
        evaluate(BINARY["logit"](), IMAGES, metrics="dauc", target=1, progress=False)["dauc"],
        atol=1e-5,
    )


def test_one_of_several_numbers_is_named():
    net = Net(2)
    ours = explainer(net, task="regression", classes=["width", "height"])
    assert ours.predict(IMAGES).shape == (6, 2)
    expected = by_hand(net, IMAGES, 1)
    assert_allclose(ours.explain(IMAGES, "height", normalize=False), expected, atol=1e-6)
    unnamed = explainer(net, task="regression")
    assert_allclose(unnamed.explain(IMAGES, 1, normalize=False), expected, atol=1e-6)
    for target, message in ((None, r"2 numbers.*target="), (TopK(1), r"outputs are not ranked")):
        with pytest.raises(ValueError, match=message):
            ours.explain(IMAGES, target)
    with pytest.raises(ValueError, match=r"y has 1 number\(s\) per image, but the network has 2"):
        CAMExplainer(net, target_layer="second", verbose=0).fit(IMAGES, [0.5, 1.5])


# What is written, and kept

ALL = {
    "binary": BINARY["flat logit"],
    "multilabel": multilabel,
    "regression": lambda: explainer(Net(2), task="regression", classes=["x", "y"]),
}


@pytest.mark.parametrize("task", ALL)
def test_what_is_written_beside_an_image(task):
    ours = ALL[task]()
    output = ours.output_of(IMAGES)
    shown = [each.text for each in predictions(ours, output)]
    if task == "binary":
        p = ours.predict_proba(IMAGES)
        expected = [f"{row.argmax()} ({row.max():.2f})" for row in p]
    elif task == "multilabel":
        expected = [
            ", ".join(f"{LABELS[j]} ({row[j]:.2f})" for j in np.argsort(-row) if row[j] > 0.5)
            or "no label"
            for row in ours.predict_proba(IMAGES)
        ]
    else:
        expected = [f"x {row[0]:.4g}, y {row[1]:.4g}" for row in ours.predict(IMAGES)]
    assert shown == expected


@pytest.mark.parametrize("task", ALL)
@pytest.mark.parametrize("way", ["joblib", "sklcam"])
def test_tasks_survive_files(task, way, tmp_path):
    ours, path = ALL[task](), tmp_path / "explainer"
    if way == "joblib":
        joblib.dump(ours, path)
        loaded = joblib.load(path)
    else:
        sklcam.save(ours, path)
        loaded = sklcam.load(path, objects={"Net": ours.model})
    assert loaded.task_ == task
    target = "y" if task == "regression" else None
    assert_array_equal(loaded.explain(IMAGES, target), ours.explain(IMAGES, target))
    assert_array_equal(loaded.predict(IMAGES), ours.predict(IMAGES))
    flat = loaded.explain(IMAGES, lambda output: output.reshape(6, -1)[:, 0], normalize=False)
    assert flat.any()


@pytest.mark.parametrize("task", ALL)
def test_a_report_of_each_task(task, tmp_path):
    pytest.importorskip("jinja2")
    ours, path = ALL[task](), tmp_path / "report.html"
    y = ours.predict(IMAGES)
    options = {"target": "x"} if task == "regression" else {}
    sklcam.report(ours, IMAGES, y, path, verbose=0, thumbnail=32, **options)
    page = path.read_text(encoding="utf-8")
    assert page.count('<article class="card"') == 6
    assert page.count("✓ right") == (0 if task == "regression" else 6)
    assert "predicted:" in page


@pytest.mark.parametrize("task", ALL)
def test_a_display_of_each_task(task):
    pytest.importorskip("matplotlib").use("agg")
    ours = ALL[task]()
    options = {"target": "x"} if task == "regression" else {}
    y = ours.predict(IMAGES[:2])
    display = sklcam.CAMDisplay.from_estimator(ours, IMAGES[:2], y, **options)
    titles = " ".join(place.get_title() for place in display.axes_.flat)
    shown = predictions(ours, ours.output_of(IMAGES[:2]))
    assert all(each.text.split(",")[0].split(" ")[0] in titles for each in shown)
    true = {"binary": "true: 1", "multilabel": "true: ", "regression": "true: x "}[task]
    assert true in titles
    assert "[" not in titles


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6),
        lambda z: z.sigmoid().nan_to_num(),
        lambda z: torch.stack([z.sigmoid(), (2 * z).sigmoid()]).mean(0),
        lambda z: z.sigmoid()[:, [0]],
    ],
)
def test_what_keeps_probabilities_keeps_them_known(function):
    network = Net(last=Applied(function)).eval()
    ours = CAMExplainer(network, verbose=0).fit(IMAGES)
    assert ours.task_ == "binary"
    expected = network(IMAGES).detach().numpy()
    assert_allclose(ours.predict_proba(IMAGES)[:, 1:], expected, atol=1e-6)


def test_sets_are_no_targets_and_rows_of_integers_no_task():
    network = Net(2).eval()
    ours = CAMExplainer(network, verbose=0, task="multilabel", classes=["a", "b"]).fit(IMAGES)
    with pytest.raises(ValueError, match=r'cannot hold sets of labels; .* target="positive"'):
        ours.explain(IMAGES, target=[{"a"}, {"a", "b"}, {"b"}, {"a"}, {"a"}, {"b"}])
    with pytest.raises(ValueError, match=r"rows of integers.* Give sets, .* task=\"regression\""):
        CAMExplainer(network, verbose=0).fit(IMAGES, [[3, 5], [5, 3], [3, 3]] * 2)


def test_numbers_of_a_regression_go_by_name_and_by_place():
    network = Net(2).eval()
    ours = CAMExplainer(network, verbose=0, task="regression", classes=["width", "height"])
    ours.fit(IMAGES)
    assert_array_equal(ours.explain(IMAGES, target=1), ours.explain(IMAGES, target="height"))
    assert_array_equal(
        ours.explain(IMAGES, target=[0, 1] * 3),
        ours.explain(IMAGES, target=["width", "height"] * 3),
    )
