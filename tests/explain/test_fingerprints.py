"""What maps depend on, in words: the same for the same thing, and other words for another."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image
from small_networks import SmallNet
from torch import nn

from sklcam import CAMExplainer
from sklcam.cam import GradCAM, LayerCAM, ScoreCAM, TopK
from sklcam.explain.fingerprints import dependencies, described, weights_of
from sklcam.metrics import sparsity


def times(number):
    return lambda output: output * number


def first(output, rows=None):
    return output[:, 0]


def second(output, rows=None):
    return output[:, 1]


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, output):
        return output[:, 0] * self.factor

    def method(self, output):
        return output


@dataclass
class Settings:
    value: object


class Endless:
    def __init__(self):
        self.own = self


DIFFERENT = {
    "None": lambda: None,
    "false": lambda: False,
    "0": lambda: 0,
    "a text": lambda: "0",
    "no text": lambda: "",
    "a list": lambda: ["0"],
    "a list of two": lambda: ["0", "0"],
    "a dict": lambda: {"a": 1},
    "another dict": lambda: {"a": 2},
    "bytes": lambda: b"0",
    "a path": lambda: Path("cat.png"),
    "int64": lambda: np.arange(3),
    "int32": lambda: np.arange(3, dtype=np.int32),
    "a row": lambda: np.arange(3)[None],
    "other numbers": lambda: np.arange(1, 4),
    "a tensor of float32": lambda: torch.arange(3.0),
    "a tensor of bfloat16": lambda: torch.arange(3.0).bfloat16(),
    "names": lambda: np.array(["cat", "dog"]),
    "objects": lambda: np.array(["cat", 3], dtype=object),
    "a picture": lambda: Image.new("L", (2, 2), 3),
    "a darker one": lambda: Image.new("L", (2, 2), 2),
    "a function": lambda: first,
    "another function": lambda: second,
    "twice": lambda: times(2),
    "three times": lambda: times(3),
    "a lambda": lambda: lambda output: output[:, 0],
    "another lambda": lambda: lambda output: output[:, 1],
    "bound": lambda: partial(first, rows=1),
    "bound to another": lambda: partial(first, rows=2),
    "an object": lambda: Scaled(1.0),
    "another object": lambda: Scaled(2.0),
    "a method of it": lambda: Scaled(1.0).method,
    "a method of the other": lambda: Scaled(2.0).method,
    "a class": lambda: Scaled,
    "a function of ours": lambda: sparsity,
    "gradcam": lambda: GradCAM(),
    "gradcam without the ReLU": lambda: GradCAM(relu=False),
    "layercam": lambda: LayerCAM(),
    "scorecam": lambda: ScoreCAM(),
    "top 2": lambda: TopK(2),
    "top 3": lambda: TopK(3),
    "settings": lambda: Settings((1, 2)),
    "other settings": lambda: Settings((1, 3)),
    "a seed": lambda: RandomState(0),
    "another seed": lambda: RandomState(1),
    "a long list": lambda: [*range(1000)],
    "a longer list": lambda: [*range(1001)],
    "one with other ends": lambda: [*range(999), 0],
}


def network(seed=0):
    torch.manual_seed(seed)
    return SmallNet()


def test_different_things_have_different_words():
    told = {name: described(make()) for name, make in DIFFERENT.items()}
    for one, other in combinations(told, 2):
        assert (told[one], type(told[one])) != (told[other], type(told[other])), (one, other)


@pytest.mark.parametrize("name", DIFFERENT)
def test_the_same_thing_has_the_same_words(name):
    assert described(DIFFERENT[name]()) == described(DIFFERENT[name]())
    assert isinstance(described(DIFFERENT[name]()), str | int | None)
    assert "0x" not in str(described(DIFFERENT[name]()))  # where it lies in memory


@pytest.mark.slow
def test_words_are_the_same_in_another_process():
    names = ["a function", "a lambda", "three times", "a dict", "gradcam without the ReLU", "top 2"]
    code = (
        "import test_fingerprints as own; "
        f"print([own.described(own.DIFFERENT[name]()) for name in {names}])"
    )
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script = f"import sys; sys.path[:0] = {folders}; {code}"
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    ).stdout
    import test_fingerprints as own

    assert told.strip() == str([own.described(own.DIFFERENT[name]()) for name in names])


def test_a_network_is_known_by_all_its_numbers():
    same, other = network(), network()
    assert weights_of(same) == weights_of(other) == weights_of(copy.deepcopy(same).train())
    assert described([same]) == described([other])
    for name, value in other.state_dict().items():
        changed = copy.deepcopy(other)
        changed.state_dict()[name].view(-1)[-1].add_(1)
        assert weights_of(changed) != weights_of(same), name
        assert value.shape == same.state_dict()[name].shape
    assert weights_of(network().bfloat16()) != weights_of(same)


def test_what_holds_itself_comes_to_an_end():
    assert described(Endless()) == described(Endless())


# What a folder of maps goes on with


def known(X, model=None, **options):
    """Return what maps of some images depend on."""
    model = network() if model is None else model
    options = {"target_layer": "5", "batch_size": 2, "verbose": 0, **options}
    explainer = CAMExplainer(model, **options).fit(X)
    return dependencies(explainer, explainer.open(X), None)


def differences(first, second):
    return {name for name in first if first[name] != second[name]}


@pytest.mark.parametrize("kind", ["network's own", "bytes"])
def test_each_image_of_an_array_counts(kind):
    X = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    if kind == "bytes":
        X = (X[:, 0] * 255).to(torch.uint8).numpy()
    before = known(X)
    assert not differences(before, known(copy.deepcopy(X)))
    for row in range(40):
        others = copy.deepcopy(X)
        others[row, ..., 3] = 0
        assert differences(before, known(others)) == {"images"}, row


def test_what_a_file_holds_counts(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((16, 16), 80 * i, np.uint8)).save(path)
    pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    colours = nn.Sequential(nn.Conv2d(3, 4, 3), *pooled, nn.Linear(4, 3))
    of_files = {"target_layer": "1", "image_size": 16, "mean": 0.5, "std": 0.5}
    before = known(paths, colours, **of_files)
    assert not differences(before, known(paths, copy.deepcopy(colours), **of_files))
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(paths[1])
    assert differences(before, known(paths, colours, **of_files)) == {"images"}


@pytest.mark.parametrize("held", [[0], {"cat": [0]}, {0}])
def test_what_a_function_looks_up_in_lists_and_dicts_counts(held, monkeypatch):
    told = []
    for value in (held, copy.deepcopy(held)):
        monkeypatch.setitem(globals(), "LOOKED_UP", value)
        told.append(described(lambda output: output[LOOKED_UP]))  # noqa: F821
    assert told[0] == told[1]
    {list: lambda: held.append(1), dict: lambda: held["cat"].append(1), set: lambda: held.add(1)}[
        type(held)
    ]()
    monkeypatch.setitem(globals(), "LOOKED_UP", held)
    assert described(lambda output: output[LOOKED_UP]) not in told  # noqa: F821


def test_layers_without_weights_count():
    X = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    before, other = known(X), network()
    place = next(i for i, layer in enumerate(other) if isinstance(layer, nn.ReLU))
    other[place] = nn.LeakyReLU(0.1)
    leaky = known(X, other)
    assert differences(before, leaky) == {"layers of the network"}
    other[place] = nn.LeakyReLU(0.2)
    assert differences(leaky, known(X, other)) == {"layers of the network"}
    assert not differences(before, known(X, network().train()))
