"""Files that mean harm: each test is a way in that was tried, and the rule that closes it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forging import content_of, forged, nodes
from small_networks import SmallNet, digits
from torch import nn

from sklcam import (
    CAMExplainer,
    CAMSegmenter,
    ConceptNamer,
    ConsistentCAMClassifier,
    EmbeddingNet,
    load,
    save,
)
from sklcam.networks import build_model
from sklcam.persistence import MissingObjectsError, PersistenceError, known

X, Y = digits(24)
OBJECTS = {"SmallNet": SmallNet}
OPTIONS = {"image_size": 16, "max_epochs": 1, "verbose": 0, "random_state": 0, "batch_size": 12}
PRINT = {"known": "print"}


def made(name: str, /, **parameters: Any) -> dict[str, Any]:
    return {"made": name, "with": parameters, "learned": {"dict": []}}


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("contents")
    adam = ConsistentCAMClassifier(SmallNet, optimizer=torch.optim.Adam, **OPTIONS)
    network = build_model("squeezenet1_1", n_classes=3)
    explainer = CAMExplainer(network, image_size=64, verbose=0).fit()
    estimators = {
        "fitted": ConsistentCAMClassifier(SmallNet, **OPTIONS).fit(X, Y),
        "adam": adam.fit(X, Y),
        "unfitted": ConsistentCAMClassifier("resnet18", **OPTIONS),
        "embedding": EmbeddingNet("resnet18", **OPTIONS),
        "explainer": explainer,
        "swin": CAMExplainer(build_model("swin_t", n_classes=2), image_size=32),
        "segmenter": CAMSegmenter(explainer).fit(torch.rand(2, 3, 64, 64), [0, 1]),
        "names": ConceptNamer().fit(explainer, torch.rand(2, 3, 64, 64)),
    }
    return {name: content_of(each, folder) for name, each in estimators.items()}


class File:
    """The content of a file that is about to be forged."""

    def __init__(self, content: dict[str, Any], tensors: dict[str, torch.Tensor]):
        self.content = copy.deepcopy(content)
        self.tensors = dict(tensors)
        self.estimator = self.content["estimator"]
        self.parameters = self.estimator["parameters"]

    @property
    def learned(self) -> Pairs:
        return Pairs(self.estimator["learned"])

    @property
    def optimizer(self) -> Pairs:
        return self.learned["optimizer"]


class Pairs:
    """A dict of a file, which has its pairs in a list."""

    def __init__(self, node: dict[str, Any]):
        self.pairs = node["dict"]

    def __getitem__(self, key: Any) -> Any:
        value = next(value for name, value in self.pairs if name == key)
        return Pairs(value) if isinstance(value, dict) and "dict" in value else value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs[:] = [pair for pair in self.pairs if pair[0] != key] + [[key, value]]


@pytest.fixture
def attempt(contents, tmp_path):
    def attempt(kind: str, change, objects=OBJECTS) -> Any:
        file = File(*contents[kind])
        change(file)
        return load(forged(tmp_path, file.content, file.tensors), objects=objects)

    return attempt


def refused(attempt, kind: str, change, match: str) -> None:
    attempt(kind, lambda file: None)  # what was changed is what is refused
    with pytest.raises(PersistenceError, match=match):
        attempt(kind, change)


# Names of attributes


@pytest.mark.parametrize(
    "name",
    [
        *("__reduce_ex__", "__deepcopy__", "__class__", "__sklearn_clone__", "__dict__", "fit"),
        *("module_", "initialized_", "virtual_params_", "history", "_modules", "predict", "kwargs"),
        *("callbacks__", "callbacks____", "module__x_", "module___x", "nothing__x", "Module__x"),
        *("callbacks__a__b__c", "module__a.b", "", "__", "self", "criterion__\x00"),
    ],
)
def test_parameters_are_those_of_the_constructor(name, attempt):
    for kind in ("unfitted", "fitted", "explainer", "segmenter", "names"):
        refused(attempt, kind, lambda f: f.parameters.update({name: 3}), "has no parameter")


@pytest.mark.parametrize("name", ["__deepcopy__", "on_epoch_end", "policy_", "_x", "initialize"])
def test_options_of_a_schedule_shadow_nothing(name, attempt):
    node = made("LRScheduler", policy="StepLR", **{name: 1})
    refused(attempt, "unfitted", lambda f: f.parameters.update(callbacks=[node]), "cannot be made")


@pytest.mark.parametrize("name", ["__class__", "predict", "module_", "target_layers_", "_adapter"])
def test_only_what_is_learned_is_set(name, attempt):
    for kind in ("fitted", "explainer", "segmenter", "names"):
        refused(attempt, kind, lambda f: f.learned.__setitem__(name, 3), "is not learned")
    node = {"dict": [[name, 3]]}
    refused(
        attempt,
        "fitted",
        lambda f: f.learned["callbacks"].__setitem__("lr_scheduler", node),
        "is not learned",
    )
    tree = {**made("TripletCAM"), "learned": node}
    refused(attempt, "explainer", lambda f: f.parameters.update(method=tree), "does not learn")


# Names of objects


EVIL = [
    *("os:system", "os.system", "posix.system", "builtins.eval", "eval", "exec", "__import__"),
    *("open", "getattr", "subprocess.Popen", "pickle.loads", "torch.load", "torch.hub.load"),
    *("torch.nn.Module", "torch.nn.Linear", "torch.optim.os", "torch.jit.load", "Checkpoint"),
    *("LoadInitState", "TrainEndCheckpoint", "GridSearchCV", "sklcam.load", "load", "sys", "np"),
    *("", ".", "torch.optim.", "torch.nn", "SmallNet", "print\n", "StepLR.__init__"),
]


@pytest.mark.parametrize("name", EVIL)
def test_what_is_not_in_the_table_is_not_found(name, attempt):
    for place in ("optimizer", "criterion", "dataset", "iterator_train", "augment", "train_split"):
        for node in ({"known": name}, made(name), made(name, x=1)):
            with pytest.raises(PersistenceError, match=r"may name|cannot be made"):
                attempt("unfitted", lambda f, at=place, to=node: f.parameters.update({at: to}))
    with pytest.raises(PersistenceError, match="not an estimator"):
        attempt("unfitted", lambda f: f.estimator.update(estimator=name))


def test_a_name_has_its_place(attempt):
    """A class or function of the table stands only where it is used as what it is."""
    places = ("optimizer", "criterion", "dataset", "iterator_train", "iterator_valid", "method")
    for name, (_, allowed) in known._values().items():
        for place in {*places, "module", "lr", "augment", "predict_nonlinearity"} - {*allowed}:
            kind = "explainer" if place == "method" else "unfitted"
            with pytest.raises(PersistenceError, match=r"may name|neither a name nor a label"):
                attempt(kind, lambda f, at=place, to=name: f.parameters.update({at: {"known": to}}))


def test_the_table_has_only_what_keeps_its_parameters():
    """What it holds is looked at here by name, so that nothing is added in passing."""
    functions = {n for n, (each, _) in known._values().items() if not isinstance(each, type)}
    assert functions == {"print", "noop", "to_numpy", "freeze_parameter", "unfreeze_parameter"}
    for name, kind in known._kinds().items():
        module = kind.__module__.partition(".")[0]
        assert module in ("skorch", "sklearn", "sklcam"), name
        assert not issubclass(kind, nn.Module), name
        assert not {"Checkpoint", "LoadInitState"} & {each.__name__ for each in kind.__mro__}


@pytest.mark.parametrize("policy", ["sys", "np", "torch", "Callback", "LRScheduler", "", "__doc__"])
def test_schedules_are_named_from_the_table(policy, attempt):
    """skorch looks a policy up among all that its module has imported."""
    key = "callbacks__lr_scheduler__policy"
    for kind in ("unfitted", "fitted"):
        refused(attempt, kind, lambda f: f.parameters.update({key: policy}), "not a schedule")
    node = made("LRScheduler", policy=policy)
    refused(attempt, "unfitted", lambda f: f.parameters.update(callbacks=[node]), "not a schedule")


def test_learned_values_have_no_names(attempt):
    for node in (PRINT, {"object": "SmallNet"}, made("KFold"), {"random_state": []}):
        for name in ("classes_inferred_", "history", "optimizer", "random_states_"):
            refused(
                attempt,
                "fitted",
                lambda f, name=name, node=node: f.learned.__setitem__(name, [node]),
                "where this form is not allowed",
            )


@pytest.mark.parametrize("name", ["compile__options", "torch_load_kwargs"])
def test_what_could_name_programs_is_for_the_reader(name, attempt):
    for value in ({"dict": [["cpp.cxx", "evil"]]}, [1], "text"):
        refused(
            attempt,
            "unfitted",
            lambda f, v=value: f.parameters.update({name: v}),
            "may name a program",
        )
    assert vars(attempt("unfitted", lambda f: f.parameters.update({name: None})))[name] is None


# Labels


@pytest.mark.parametrize(
    "label",
    [
        "x}); import os; os.system('id') #",
        *("\x1b[31m", "a b", "a.b", "", "1a", "ä", "x" * 65, "a\n"),
        *(None, 3, ["SmallNet"], {}),
    ],
)
def test_labels_can_be_copied_out_of_the_message(label, attempt):
    def change(file):
        file.content["objects"] = [label]

    refused(attempt, "unfitted", change, "not a label")
    node = {"object": label}
    refused(attempt, "unfitted", lambda f: f.parameters.update(augment=node), "not a label")


def test_a_label_that_is_not_listed_is_missing_still(attempt):
    with pytest.raises(MissingObjectsError, match="'Other': Other"):
        attempt("unfitted", lambda f: f.parameters.update(augment={"object": "Other"}))


def test_a_value_has_one_form(attempt):
    both = [
        {"known": "print", "object": "SmallNet"},
        {"tensor": "x", "more": 1},
        {"tuple": [], "dict": []},
        {},
        {"@name": "os:system"},
        {"__reduce__": ["os.system", "id"]},
    ]
    for node in both:
        refused(
            attempt,
            "unfitted",
            lambda f, n=node: f.parameters.update(augment=n),
            "where this form is not allowed",
        )


def test_a_network_may_have_a_parameter_called_object(tmp_path):
    class Odd(nn.Sequential):
        def __init__(self):
            super().__init__(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.object = nn.Parameter(torch.ones(2))

    save(CAMExplainer(Odd()), tmp_path / "a")
    assert load(tmp_path / "a", objects={"Odd": Odd}).model.object.tolist() == [1, 1]


# Networks by name


@pytest.mark.parametrize("name", ["weights", "n_classes", "in_channels", "image_size", "name"])
def test_options_of_a_builder_are_its_own(name, attempt, contents):
    """`weights` would read files and download."""

    def with_option(value):
        def change(file):
            pairs = file.parameters["model"]["network"]["dict"]
            pairs[:] = [pair for pair in pairs if pair[0] != name] + [[name, value]]

        return change

    key = f"module__{name}"
    if name == "weights":
        for value in ("DEFAULT", "/dev/zero", "IMAGENET1K_V1"):
            refused(attempt, "explainer", with_option(value), "not an option")
    else:
        for value in ("x", [1], None, -1, True):
            refused(attempt, "explainer", with_option(value), "cannot be loaded")
    if name == "name":  # from where a file would be read, or fetched
        for value in ("hf-hub:a/b", "timm/local-dir:/etc", "timm//etc", "transformers/a/b"):
            refused(attempt, "explainer", with_option(value), "not a network that a file may name")
        refused(attempt, "explainer", with_option("transformers/vit"), "has no configuration")

    def fitted_by_name(file):
        file.parameters.update({"module": "resnet18", key: "DEFAULT"})

    refused(attempt, "fitted", fitted_by_name, r"not an option|image_size must")


def test_builders_do_not_loop_for_a_file(attempt):
    blocks = {"tuple": [{"tuple": [1, 16, 10**9, 1]}]}
    for value in (blocks, {"tuple": [0] * 9}, 2**20, -(2**20), "x", {"float": "inf"}, [1]):

        def change(file, value=value):
            file.parameters["model"]["network"]["dict"] += [["inverted_residual_setting", value]]

        refused(attempt, "explainer", change, "option")


def test_nothing_is_built_that_the_tensors_do_not_fit(attempt, monkeypatch):
    built = []
    allocate = nn.init.kaiming_uniform_

    def spy(tensor, *args, **kwargs):
        built.append(tensor.device.type)
        return allocate(tensor, *args, **kwargs)

    monkeypatch.setattr(nn.init, "kaiming_uniform_", spy)

    def wide(file):
        file.parameters["module__width"] = 2**14

    with pytest.raises(PersistenceError, match="must be of shape"):
        attempt("fitted", wide)
    pairs = [["name", "vit_h_14"], ["n_classes", 3], ["in_channels", 3]]
    pairs += [["image_size", {"tuple": [14 * 512, 14 * 512]}]]

    def huge(file):
        file.parameters["model"]["network"] = {"dict": pairs}

    with pytest.raises(PersistenceError, match="names of tensors differ"):
        attempt("explainer", huge)
    assert set(built) <= {"meta"}


@pytest.mark.skipif(find_spec("pytorch_metric_learning") is None, reason="needs the extra")
@pytest.mark.parametrize("name", ["embedding_dim", "criterion__num_classes"])
def test_nor_a_loss(name, attempt, contents, tmp_path, monkeypatch):
    """Some are made by torch.Tensor(n, m), which the context of a device does not reach."""
    net = EmbeddingNet(SmallNet, embedding_dim=4, criterion="proxy-anchor", **OPTIONS)
    monkeypatch.setitem(contents, "proxies", content_of(net.fit(X, Y), tmp_path))
    attempt("proxies", lambda file: None)
    with pytest.raises(PersistenceError, match="must be of shape"):
        attempt("proxies", lambda file: file.parameters.update({name: 10**12}))


@pytest.mark.parametrize("value", [-1, 2**40])
def test_tables_of_indices_are_not_the_files(value, attempt, contents):
    """On a GPU, an index beyond its table stops the process."""
    name = next(n for n in contents["swin"][1] if n.endswith("relative_position_index"))

    def change(file):
        file.tensors[name] = torch.full_like(file.tensors[name], value)

    refused(attempt, "swin", change, "a table that is not learned")


def test_an_explainer_is_not_around_explainers(attempt):
    def nested(file, times=1):
        for _ in range(times):
            file.parameters["model"] = copy.deepcopy(file.estimator)

    refused(attempt, "explainer", nested, r"in place of the network|cannot be loaded")

    def deep(file):
        text = json.dumps(file.estimator)
        for _ in range(200):
            text = f'{{"parameters": {{"model": {text}}}}}'
        file.content["estimator"] = json.loads(text)

    refused(attempt, "unfitted", deep, "cannot be loaded")


# Numbers that are taken as they are


@pytest.mark.parametrize(
    ("left", "following"),
    [(624, 624), (2, 624), (624, 2), (0, 0), (625, 0), (-1, 1), (1, 625), (1, 2**63)],
)
def test_generators_do_not_read_beyond_their_words(left, following, attempt):
    def change(file):
        for name in ("global", "views"):
            state = file.tensors[f"random_states_.{name}"].numpy().copy()
            state[8:12] = np.array([left], np.int32).view(np.uint8)
            state[16:24] = np.array([following], np.uint64).view(np.uint8)
            file.tensors[f"random_states_.{name}"] = torch.from_numpy(state)

    refused(attempt, "fitted", change, r"generator|mt19937")


def test_all_states_of_a_generator_are_taken():
    from sklcam.persistence.states import check_generator

    generator = torch.Generator().manual_seed(0)
    for _ in range(1400):  # more than twice its words
        check_generator(generator.get_state())
        torch.rand(1, generator=generator)


@pytest.mark.parametrize(
    ("position", "key", "has_gauss"),
    [
        *((n, torch.arange(624), 0) for n in (-1, 625, 700, 10**9, 2**63, 1.0, "1", None)),
        (0, torch.zeros(624), 0),
        (0, torch.arange(623), 0),
        (0, torch.arange(625), 0),
        (0, torch.arange(624).view(2, 312), 0),
        (0, torch.arange(624), 2),
        (0, torch.arange(624), "yes"),
    ],
)
def test_random_states(position, key, has_gauss, attempt):
    """NumPy checks neither; it reads beyond the key, or draws for ever."""

    def change(file):
        file.parameters["random_state"] = {"random_state": ["key", position, has_gauss, 0.0]}
        file.tensors["key"] = key.to(torch.uint32)

    refused(attempt, "unfitted", change, "cannot be loaded")

    def right(file):
        file.parameters["random_state"] = {"random_state": ["key", 624, 0, 0.0]}
        file.tensors["key"] = torch.arange(624).to(torch.uint32)

    assert attempt("unfitted", right).random_state.randint(10) in range(10)


@pytest.mark.parametrize("state", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("shape", [(), (1,), (71,), (8, 1, 3, 2), (0,), (8, 1, 3, 3, 1)])
def test_fused_optimizers_get_states_of_their_size(state, shape, attempt):
    """Their kernels go through as many numbers as a parameter has."""

    def change(file):
        file.parameters["optimizer__fused"] = True
        groups = file.optimizer["param_groups"]
        Pairs(groups[0])["fused"] = True
        wanted = (2,) if state == "step" and shape == () else shape
        file.tensors[f"optimizer.state.0.{state}"] = torch.zeros(wanted)

    refused(attempt, "adam", change, "does not fit")


@pytest.mark.parametrize(
    "option",
    [
        *(("fused", True), ("foreach", True), ("capturable", True), ("differentiable", True)),
        *(("maximize", True), ("lr", "x"), ("lr", None), ("lr", True), ("betas", {"tuple": [0.9]})),
        *(("more", "text"), ("params", [0, 0, 0, 0, 0, 0, 0, 0]), ("betas", 0.9)),
    ],
)
def test_options_of_an_optimizer_are_those_of_its_parameters(option, attempt):
    def change(file):
        Pairs(file.optimizer["param_groups"][0])[option[0]] = option[1]

    refused(attempt, "adam", change, "the optimizer's options do not belong to it")


def test_states_of_parameters_that_are_not_there(attempt):
    def change(file):
        file.optimizer["state"][99] = {"dict": [["step", 1.0]]}

    refused(attempt, "adam", change, "cannot be loaded")


def test_a_tensor_is_used_once_and_none_is_left_over(attempt):
    """Or a small file could make many times as much of its numbers."""

    def twice(file):
        state = file.learned["modules"]["module_"]["state"]
        state["4.bias"] = state["0.bias"]

    refused(attempt, "fitted", twice, "uses it twice")

    def more(file):
        file.tensors["more"] = torch.zeros(3)

    refused(attempt, "fitted", more, "tensors that nothing uses")


@pytest.mark.parametrize(
    "dtype",
    ["<U0", "<U99999999", "U", "|S4", "<f8", "x", "f4,i4", "(2,)U3", "U3" * 9, None, ["<U1"], ""],
)
def test_arrays_of_strings_are_as_large_as_they_say(dtype, attempt):
    """All strings of an array take as much room as the longest."""
    node = {"items": ["x" * 10_000, "a"], "dtype": dtype}
    refused(attempt, "unfitted", lambda f: f.parameters.update(classes=node), "cannot be loaded")
    many = [{"items": ["a"], "dtype": "<U4000000"}] * 5
    refused(attempt, "unfitted", lambda f: f.parameters.update(classes=many), "too much memory")
    node = {**node, "dtype": "<U10000"}
    assert attempt("unfitted", lambda f: f.parameters.update(classes=node)).classes.shape == (2,)


def test_arrays_hold_plain_values(attempt):
    for item in (PRINT, {"object": "SmallNet"}, [1], {"tuple": [1]}, {"dict": []}):
        node = {"items": [item, 1], "dtype": "|O"}
        refused(
            attempt,
            "unfitted",
            lambda f, n=node: f.parameters.update(classes=n),
            "cannot be loaded",
        )
    for dtype in ("<i8", "|O", "M8[nonsense]", "<U1", 3):
        node = {"dates": "days", "dtype": dtype}

        def change(file, node=node):
            file.parameters["classes"] = node
            file.tensors["days"] = torch.arange(3)

        refused(attempt, "unfitted", change, "cannot be loaded")


def test_keys_that_could_collide(attempt):
    """The hashes of tuples and of large ints are known beforehand."""
    for key in ({"tuple": [1, 2]}, 2**70, [1], {"dict": []}, {"float": "x"}):
        node = {"dict": [[key, 1]]}
        refused(
            attempt, "unfitted", lambda f, n=node: f.parameters.update(lr=n), "cannot be loaded"
        )
    twice = {"dict": [["a", 1], ["a", 2]]}
    refused(attempt, "unfitted", lambda f: f.parameters.update(lr=twice), "or has it twice")


def test_values_are_not_nested_without_end(attempt):
    node: Any = 1
    for _ in range(30):
        node = {"tuple": [node]}
    refused(attempt, "unfitted", lambda f: f.parameters.update(classes=node), "nested more than")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("image_size", n) for n in (10**9, [2**14, 2**14], 0, -1, True, "large", 2**70)),
        *(("iterator_train__num_workers", n) for n in (129, -1, 1.5, True, None, "many")),
        *(("device", n) for n in ("meta", "privateuseone", "cpu:x", "", ["cpu"], "xla")),
    ],
)
def test_numbers_that_would_take_much(name, value, attempt):
    refused(attempt, "unfitted", lambda f: f.parameters.update({name: value}), "cannot be loaded")


def test_parameters_of_a_fitted_estimator_are_checked(attempt):
    for kind, name in (("fitted", "resize"), ("fitted", "max_epochs"), ("explainer", "batch_size")):
        refused(attempt, kind, lambda f, n=name: f.parameters.update({n: "x"}), "must be")


# Text


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.content.update(versions={"torch": "\x1b]0;x\x07"}),
        lambda f: f.content.update(versions={"torch": "1" * 5000}),
        lambda f: f.content.update(format_version="\x1b[31m" + "x" * 10**6),
        lambda f: f.parameters.update({"\x1b[31m": 1}),
        lambda f: f.parameters.update(augment={"known": "\x1b[31m"}),
        lambda f: f.parameters.update(augment={"\x1b[31m": "\x1b[31m"}),
        lambda f: f.estimator.update(estimator="\x1b[31m" * 1000),
        lambda f: f.parameters.update(classes={"tensor": "\x1b[31m"}),
        lambda f: f.parameters.update(device="\x1b[31m"),
    ],
)
def test_texts_of_a_file_do_not_reach_the_terminal(change, attempt):
    with pytest.raises(PersistenceError) as caught:
        attempt("unfitted", change)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["<script>x()</script>", "\ud800", "\x1b[31m", "a" * 10**5, "\0"])
def test_strings_are_shown_as_text(text, attempt):
    loaded = attempt("unfitted", lambda f: f.parameters.update(resize=text))
    assert "<script>x" not in loaded._repr_html_()
    assert "\x1b" not in repr(loaded)
    with pytest.raises((ValueError, TypeError)):
        loaded.fit(X, Y)


# Content that does not fit


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.content.update(estimator=None),
        lambda f: f.content.update(estimator=[]),
        lambda f: f.content.update(estimator={"dict": []}),
        lambda f: f.content.pop("estimator"),
        lambda f: f.content.pop("versions"),
        lambda f: f.content.pop("objects"),
        lambda f: f.content.update(versions=[3]),
        lambda f: f.content.update(versions={"torch": None}),
        lambda f: f.content.update(format="other"),
        lambda f: f.content.update(format_version=1),
        lambda f: f.content.update(format_version="2"),
        lambda f: f.content.update(format_version=True),
        lambda f: f.estimator.pop("layers"),
        lambda f: f.estimator.update(more=1),
        lambda f: f.learned["modules"].pairs.pop(),
        lambda f: f.learned["modules"]["module_"]["state"].pairs.pop(),
        lambda f: f.learned["modules"]["module_"]["state"].__setitem__("extra", 1),
        lambda f: f.learned["modules"]["module_"]["state"].__setitem__("0.bias", 1),
        lambda f: f.learned["modules"]["module_"].__setitem__("frozen", 3),
        lambda f: f.estimator.update(learned=None),
        lambda f: f.estimator.update(layers=[]),
        lambda f: f.estimator.update(layers=["4"]),
        lambda f: f.estimator.update(layers=[made("TargetLayer", name="")]),
        lambda f: f.estimator.update(layers=[made("KFold")]),
        lambda f: f.estimator.update(output="evil"),
        lambda f: f.estimator.update(requests={"fit": {"x; y": True}}),
        lambda f: f.estimator.update(requests={"__class__": {}}),
        lambda f: f.estimator.update(requests={"fit": {"a": [1]}}),
        lambda f: f.estimator.update(requests=[1]),
        lambda f: f.optimizer.__setitem__("state", {"dict": [[0, 1]]}),
        lambda f: f.optimizer.__setitem__("param_groups", []),
        lambda f: f.learned.__setitem__("optimizer", {"dict": []}),
        lambda f: f.learned.__setitem__("scaler", {"dict": [["scale", "x"]]}),
        lambda f: f.learned["callbacks"].__setitem__("none", {"dict": []}),
        lambda f: f.learned.__setitem__("n_channels_", 4),
        lambda f: f.learned.__setitem__("n_channels_", True),
        lambda f: f.learned.__setitem__("n_channels_", "many"),
        lambda f: f.learned.__setitem__("task_", "evil"),
        lambda f: f.learned.__setitem__("task_", "binary"),  # of three classes
        lambda f: f.learned.__setitem__("task_", 3),
        lambda f: f.learned.__setitem__("task_", None),
        lambda f: f.learned.__setitem__("history", 3),
        lambda f: f.learned.__setitem__("history", [3]),
        lambda f: f.learned.__setitem__(
            "history", [{"dict": [["batches", [{"dict": [["a", 1]]}]]]}]
        ),
        lambda f: f.learned["random_states_"].__setitem__("seed", 1.5),
        lambda f: f.learned["random_states_"].__setitem__("views", [1]),
        lambda f: f.parameters.update(unknown=3),
        lambda f: f.parameters.update(module__width=16),
        lambda f: f.tensors.update({"modules.module_.state.0.weight": torch.zeros(8, 1, 3, 2)}),
        lambda f: f.tensors.update({"modules.module_.state.0.weight": torch.zeros(8, 1, 9)}),
        lambda f: f.tensors.update({"modules.module_.state.0.weight": torch.zeros(8, 1, 3, 3) > 0}),
        lambda f: f.tensors.update({"modules.module_.state.0.weight": torch.zeros(72)}),
        lambda f: f.tensors.update(classes_inferred_=torch.zeros(3, 1)),
        lambda f: f.tensors.update(classes_inferred_=torch.arange(4)),
        lambda f: f.tensors.pop("modules.module_.state.0.weight"),
        lambda f: f.tensors.clear(),
    ],
)
def test_content_that_does_not_fit(change, attempt):
    refused(attempt, "fitted", change, "cannot be loaded")


def test_files_of_the_first_format_are_refused(tmp_path):
    """Their content named what to call: no part of it is read."""
    old = {
        "format": "sklcam",
        "format_version": 1,
        "versions": {},
        "estimator": {"@net": {"class": "skorch.net:NeuralNet", "params": {}, "fitted": None}},
    }
    with pytest.raises(PersistenceError, match="its format has version 1"):
        load(forged(tmp_path, old))


def test_a_segmenter_is_around_an_explainer(attempt):
    def around(file, node):
        file.parameters["explainer"] = node

    nodes_tried = (PRINT, "resnet18", {"object": "SmallNet"}, {"tuple": []}, [], None)
    for node in nodes_tried:
        refused(attempt, "segmenter", lambda f, node=node: around(f, node), "cannot be loaded")
    refused(
        attempt,
        "segmenter",
        lambda f: around(f, copy.deepcopy(f.estimator)),
        "an explainer has the wrong type|uses it twice",
    )
    node = made("Adam", lr=0.1)
    refused(attempt, "names", lambda f: f.estimator.update(built=node), "cannot be loaded")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *(("segmenter", "threshold_", value) for value in (1, None, True, "auto")),
        *(("names", "concepts_", value) for value in (["more"], "names", PRINT)),
        *(("names", "layer_", value) for value in (3, None, {"dict": []})),
    ],
)
def test_what_uses_explainers_has_found_is_of_its_kind(kind, name, value, attempt):
    refused(attempt, kind, lambda f: f.learned.__setitem__(name, value), "cannot be loaded")


def test_what_was_found_is_complete_and_of_one_size(attempt, contents):
    for name in (pair[0] for pair in contents["names"][0]["estimator"]["learned"]["dict"]):

        def without(file, name=name):
            pairs = file.learned.pairs
            pairs[:] = [pair for pair in pairs if pair[0] != name]

        refused(attempt, "names", without, "lacks some of")

    for name in (each for each in contents["names"][1] if each.endswith("_")):

        def shorter(file, name=name):
            file.tensors[name] = file.tensors[name][1:].contiguous()

        refused(attempt, "names", shorter, "is of shape")


# Each place of a file, with each thing that could run


def test_nothing_is_imported_or_called_anywhere(contents, tmp_path, monkeypatch):
    """All places of a file, in turn, name a module that would tell that it was imported."""
    (tmp_path / "tell_tale.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = ["tell_tale", "tell_tale.Net", "tell_tale:Net", "__import__('tell_tale')"]
    content, tensors = contents["unfitted"]
    for i in range(len(nodes(content["estimator"]))):
        changed = copy.deepcopy(content)
        around, key = nodes(changed["estimator"])[i]
        for name in names:
            for node in (name, {"known": name}, {"object": name}, made(name), {"tensor": name}):
                around[key] = node
                try:
                    loaded = load(forged(tmp_path, changed, tensors))
                except PersistenceError:
                    continue
                copy.deepcopy(loaded)
                repr(loaded)
    assert "tell_tale" not in sys.modules


# A fuzzer that knows the format


def fuzz(folder: Path, first: int, n: int) -> dict[str, Any]:
    here = Path(__file__).parent
    command = [sys.executable, "-m", "fuzzing", str(folder), str(first), str(n)]
    environment = {"PYTHONPATH": f"{here.parents[1]}:{here.parent}:{here}", "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=60 + n, check=False
    )
    at = folder / "at"
    last = at.read_text() if at.exists() else "the start"
    assert child.returncode == 0, f"ended at {last}:\n{child.stderr[-2000:]}"
    return json.loads(child.stdout.splitlines()[-1])


def check(result: dict[str, Any], n: int) -> None:
    counts = result["counts"]
    assert result["faults"] == []
    assert (
        sum(counts.get(k, 0) for k in ("loaded", "PersistenceError", "MissingObjectsError"))
        > 0.9 * n
    )
    # Refusing everything is not safety: what is only another number loads, and answers.
    assert counts["loaded"] > 0.15 * n
    assert counts["answered"] > 0.8 * counts["loaded"]
    assert result["slowest"] < 15


def test_mutated_files(tmp_path):
    check(fuzz(tmp_path, 0, 300), 300)


@pytest.mark.slow
def test_ten_thousand_mutated_files(tmp_path):
    check(fuzz(tmp_path, 1000, 10_000), 10_000)


DEEDS = """
import os, pickle, sys
from pathlib import Path
import numpy, torch
import fuzzing

def absent(path):
    raise KeyError

deeds = {
    "open": lambda path: open(f"{path}.new", "w").close(),
    "system": lambda path: os.system("true"),
    "memory": lambda path: numpy.ones(2**25),
    "pickle": lambda path: pickle.loads(pickle.dumps(torch.nn.ReLU)),
    "exec": lambda path: exec("x = 1"),
    "import": lambda path: __import__("resnet18"),
    "error": absent,
    "nothing": lambda path: None,
}

def load(path, objects, load=fuzzing.load, deed=deeds[sys.argv[2]]):
    found = load(path, objects=objects)
    if fuzzing._seen is not None:
        deed(path)
    return found

fuzzing.load = load
print("FAULTS", len(fuzzing.run(Path(sys.argv[1]), 0, 25)["faults"]))
"""


@pytest.mark.parametrize(
    "deed", ["open", "system", "memory", "pickle", "exec", "import", "error", "nothing"]
)
@pytest.mark.slow
def test_the_fuzzer_sees_what_files_must_not_do(deed, tmp_path):
    """If `load` opened, imported, ran or allocated something, it would be noticed."""
    here = Path(__file__).parent
    environment = {"PYTHONPATH": f"{here.parents[1]}:{here.parent}:{here}", "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DEEDS, str(tmp_path), deed],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    n_faults = int(child.stdout.split("FAULTS")[-1])
    assert n_faults == 0 if deed == "nothing" else n_faults > 2
