"""The report: its numbers against evaluate's, and what is on the page."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from pages import HOSTILE, NAMES, QUICK, Page, X, Y
from PIL import Image
from sklearn.exceptions import NotFittedError
from skorch import NeuralNetBinaryClassifier
from small_networks import ImageAndVector, SmallNet
from torch import nn
from torch.utils.data import Dataset

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier, EmbeddingCAMExplainer, EmbeddingNet
from sklcam.explain import ExplanationWarning
from sklcam.metrics import Metric, available, evaluate, get_metric, row_meaning
from sklcam.plotting.pages import viridis
from sklcam.reporting._histogram import histogram


class SmallEmbedding(SmallNet):
    def __init__(self, embedding_dim, in_channels):
        super().__init__(embedding_dim, in_channels)


# What is on the page


def test_numbers_are_those_of_evaluate(fitted, written):
    path, result = written
    expected = evaluate(fitted, X, NAMES, metrics=QUICK, progress=False)
    page = Page(path)
    assert list(result) == list(expected)
    for name, values in expected.items():
        assert_array_equal(result[name], values)
        assert_array_equal([page.value(i, name) for i in range(len(X))], values)
    for name, row in expected.summary().items():
        cells = page.row(name)
        assert cells[0] == f"{name} {row_meaning(name)}"
        assert cells[1].startswith("higher" if get_metric(name).higher_is_better else "lower")
        assert cells[2:5] == [
            f"{row.mean:.3f}",
            f"{row.std:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
        ]
    assert len(page.all("svg")) == len(expected) - 1  # a histogram of right and wrong says nothing


@pytest.mark.parametrize(
    ("asked", "steps"), [({}, 28), ({"iauc": {"n_steps": 5, "relu": False}}, 5)]
)
def test_without_metrics_insertion_takes_few_steps(tmp_path, fitted, asked, steps):
    result = sklcam.report(
        fitted, X[:6], NAMES[:6], tmp_path / "page.html", metric_params=asked, verbose=0
    )
    assert set(result) >= {"accuracy", "adcc", "consistency", "iauc", "dauc"}
    params = {"iauc": {"n_steps": steps, **asked.get("iauc", {})}}
    for name in ("iauc", "dauc"):
        expected = evaluate(fitted, X[:6], metrics=name, metric_params=params, progress=False)
        assert_array_equal(result[name], expected[name])


def test_one_card_per_image_with_labels_as_text(fitted, written):
    page = Page(written[0])
    assert len(page.cards) == len(page.data) == len(X)
    predicted = fitted.predict(X)
    chances = fitted.predict_proba(X).max(axis=1)
    for i, text in enumerate(page.cards):
        assert f"true: {NAMES[i]}" in text
        assert f"predicted: {predicted[i]} ({chances[i]:.2f})" in text
        assert "explained:" not in text  # that is told of classes that were asked for
        assert ("right" in text) == (predicted[i] == NAMES[i])
        assert page.data[i]["right"] == [predicted[i] == NAMES[i]]
        error = None if predicted[i] == NAMES[i] else pytest.approx(chances[i])
        assert page.data[i]["error"] == [error]
    assert len(page.scripts) == 3  # none of a label's
    assert "confidence in errors" in page_text(written[0])


def test_nothing_is_loaded_from_anywhere(written):
    path, _ = written
    page = Page(path)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"// .*", "", page_text(path)))
    loading = {"src", "href", "srcset", "data", "action", "poster", "background", "style"}
    for tag, attributes in page.elements:
        for name in loading & set(attributes):
            if name == "style":
                assert "url" not in attributes[name]
            else:
                assert attributes[name].startswith(("data:image/", "#")), tag
        assert not any(name.startswith("on") for name in attributes)
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert (
        policy.startswith("default-src 'none'; img-src data:;") and "script-src 'sha256-" in policy
    )


def page_text(path):
    return re.sub(r"data:image/[^\"]*", "", path.read_text(encoding="utf-8"))


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_images_and_maps_are_small_and_of_one_shape(tmp_path, fitted):
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for height, width in ((300, 200), (90, 500), (20, 10))
    ]
    network = SmallNet(in_channels=3)
    explainer = CAMExplainer(network, image_size=24, resize="center_crop", verbose=0).fit()
    path = tmp_path / "page.html"
    sklcam.report(explainer, pictures, path=path, metrics="complexity", thumbnail=100, verbose=0)
    page = Page(path)
    sizes = [(100, 67), (18, 100), (20, 10)]
    for i, (height, width) in enumerate(sizes):
        image, map_ = (opened(sources[i]) for sources in page.stacks())
        assert image.size == map_.size == (width, height)
        assert image.format == ("PNG" if i == 2 else "JPEG")
        assert_array_equal(np.asarray(map_.getpalette()).reshape(-1, 3), viridis())
        assert map_.info["transparency"] == bytes(range(256))  # a map is as opaque as it is high
    images, maps = page.stacks()
    assert_array_equal(np.asarray(opened(images[2])), np.asarray(pictures[2]))
    # The corner of a tall image was cut off: the network did not see it.
    assert np.asarray(opened(maps[0]))[0, 0] == 0


def test_maps_are_those_of_explain(fitted, written):
    maps = fitted.explain(X, frame="image")
    shown, drawn = Page(written[0]).stacks()
    for i in (0, 7, 59):
        levels = np.asarray(opened(drawn[i]))
        assert np.abs(levels / 255 - maps[i]).max() < 0.51 / 255
        pixels = np.asarray(opened(shown[i]))
        assert np.abs(pixels / 255 - X[i]).max() < 0.51 / 255


def sides_of(page):
    return [each for each in page.all("div") if each.get("class") == "side"]


def test_wrong_images_have_the_map_of_the_true_class(fitted, written):
    cards = sides_of(Page(written[0]))
    is_wrong = fitted.predict(X) != NAMES
    assert ["data-truth" in card for card in cards] == is_wrong.tolist()
    maps = fitted.explain(X, target=NAMES, frame="image")
    for i in np.flatnonzero(is_wrong)[:3]:
        levels = np.asarray(opened(cards[i]["data-truth"]))
        assert np.abs(levels / 255 - maps[i]).max() < 0.51 / 255


def test_only_a_prediction_that_is_explained_has_the_map_of_the_truth(tmp_path, fitted):
    path = tmp_path / "page.html"
    sklcam.report(fitted, X, NAMES, path, metrics="sparsity", target=HOSTILE[0], verbose=0)
    predicted = fitted.predict(X)
    expected = (predicted != NAMES) & (predicted == HOSTILE[0])
    assert ["data-truth" in card for card in sides_of(Page(path))] == expected.tolist()


def test_a_network_by_name_is_called_by_it(tmp_path):
    with pytest.warns(UserWarning, match="random weights"):
        explainer = CAMExplainer("squeezenet1_1", image_size=64, verbose=0).fit()
    path = tmp_path / "page.html"
    colours = np.repeat(X[:1, ..., None], 3, axis=-1)
    sklcam.report(explainer, colours, path=path, metrics="sparsity", verbose=0)
    assert "<title>Explanations of squeezenet1_1</title>" in path.read_text(encoding="utf-8")


def test_histograms_count_all():
    values = np.array([0.0, 0.5, 1.0, np.nan, np.inf])
    bins = histogram(values)
    assert sum(bins.counts) == 3 and bins.n_missing == 2 and (bins.low, bins.high) == (0, 1)
    assert histogram(np.full(3, 7.0)).position(7.0) == 0.5
    assert sum(histogram(np.array([np.nan])).counts) == 0


def test_every_registered_metric_is_explained():
    assert all(row_meaning(name) for name in [*available(), "mean_adcc"])


def test_some_images_are_shown_and_all_are_measured(tmp_path, fitted):
    path = tmp_path / "page.html"
    target = np.array(HOSTILE)[(Y + 1) % 3]
    result = sklcam.report(
        fitted, X, NAMES, path, metrics=QUICK, target=target, n_images=7, verbose=0
    )
    shown = np.linspace(0, 59, 7).round().astype(int)
    page = Page(path)
    assert len(page.cards) == 7 and len(result["sparsity"]) == 60
    for place, i in enumerate(shown):
        assert f"image {i}" in page.cards[place]
        assert f"explained: {target[i]}" in page.cards[place]
        assert page.value(place, "sparsity") == result["sparsity"][i]


def test_files_are_called_by_their_names_alone(tmp_path, fitted):
    folder = tmp_path / "secret folder"
    folder.mkdir()
    files = [folder / "a & <b>.png", folder / "c.png"]
    for file in files:
        Image.fromarray((X[0] * 255).astype(np.uint8)).save(file)
    explainer = CAMExplainer(SmallNet(in_channels=3), image_size=16, verbose=0).fit()
    path = tmp_path / "page.html"
    sklcam.report(explainer, files, path=path, metrics="sparsity", verbose=0)
    page = Page(path)
    assert [re.search(r"\S.*", text)[0] for text in page.cards] == ["a & <b>.png", "c.png"]
    assert "secret folder" not in page_text(path)
    sklcam.report(
        explainer, files, path=path, metrics="sparsity", names=["</script>", "x"], verbose=0
    )
    assert "</script>" in Page(path).cards[0] and len(Page(path).scripts) == 3


def test_a_metric_of_ones_own_with_values_that_are_not_finite(tmp_path, fitted):
    def odd(maps):
        values = maps.mean(dim=(1, 2))
        values[:2] = torch.tensor([np.nan, np.inf])
        return values

    metric = Metric("odd", odd, needs=("maps",), higher_is_better=False, meaning="how <odd> it is")
    path = tmp_path / "page.html"
    sklcam.report(fitted, X[:5], path=path, metrics=[metric, "adcc"], verbose=0)
    page = Page(path)
    assert [page.value(i, "odd") is None for i in range(5)] == [True] * 2 + [False] * 3
    assert "2 not finite" in path.read_text(encoding="utf-8")
    missing = "2 of 5 images have no finite value, so there is no mean"
    assert page.row("odd")[:2] == [f"odd how <odd> it is {missing}", "lower ↓"]
    assert page.row("average_drop")[1] == "lower ↓" and page.row("mean_adcc")[1] == "higher ↑"


# One look at the images


class Counted(Dataset):
    """Images that count how often each of them is read."""

    def __init__(self, images):
        self.images, self.reads = images, Counter()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.reads[i] += 1
        return self.images[i], 0


@pytest.mark.parametrize(
    ("metrics", "n_passes"), [("sparsity", 1), (("accuracy", "sparsity"), 1), ("adcc", 2)]
)
@pytest.mark.parametrize("n_shown", [None, 5])
def test_each_image_is_read_once_and_explained_once(tmp_path, metrics, n_passes, n_shown):
    torch.manual_seed(0)
    network = SmallNet()
    explainer = CAMExplainer(network, image_size=16, batch_size=5, verbose=0).fit()
    data, passes = Counted(X[:12]), []
    network[0].register_forward_hook(lambda module, inputs, _: passes.append(len(inputs[0])))
    path = tmp_path / "page.html"
    sklcam.report(explainer, data, Y[:12], path, metrics=metrics, n_images=n_shown, verbose=0)
    assert len(Page(path).cards) == (n_shown or 12)
    assert [data.reads[i] for i in range(1, 12)] == [1] * 11
    assert data.reads[0] <= 3  # two looks find out what kind of images they are
    n_wrong = sum(image["right"] == [False] for image in Page(path).data)
    assert n_wrong  # which are explained again, for the true class
    assert sum(passes) == n_passes * 12 + n_wrong


def test_in_processes_the_page_is_the_same(tmp_path, fitted):
    options = {"metrics": ("sparsity", "consistency"), "n_images": 9, "verbose": 0}
    for name, n_jobs in (("one", None), ("two", 2)):
        sklcam.report(fitted, X[:12], NAMES[:12], tmp_path / name, n_jobs=n_jobs, **options)
    # In other batches maps differ by their rounding, and a pixel of a thumbnail by a level.
    one, two = (Page(tmp_path / name) for name in ("one", "two"))
    assert one.cards == two.cards
    for image, other in zip(one.all("img"), two.all("img"), strict=True):
        levels, others = (np.asarray(opened(each["src"]), int) for each in (image, other))
        assert np.abs(levels - others).max() <= 1


# Whose report it may be


def test_networks_embeddings_and_several_inputs(tmp_path):
    path = tmp_path / "page.html"
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = np.repeat(["left", "right"], 3)

    result = sklcam.report(SmallNet(), images * 4 - 2, path=path, metrics="sparsity", verbose=0)
    assert list(result) == ["sparsity"] and len(Page(path).cards) == 6

    proxies = EmbeddingCAMExplainer(SmallNet(4), verbose=0).fit(images, labels)
    result = sklcam.report(proxies, images, labels, path, metrics=QUICK, n_images=4, verbose=0)
    page = Page(path)
    predicted = proxies.predict(images)[[0, 2, 3, 5]]
    for of, text in zip(predicted, page.cards, strict=True):
        assert f"predicted: {of}\n" in text  # no probability
    assert "confidence in errors" not in page_text(path)

    result = sklcam.report(EmbeddingCAMExplainer(SmallNet(4), "self", verbose=0).fit(), images,
                           labels, path, verbose=0)  # fmt: skip
    assert list(result) == ["complexity", "sparsity", "consistency"]
    assert "predicted" not in Page(path).cards[0] and "true: left" in Page(path).cards[0]
    with pytest.raises(ValueError, match="a target that is not a class"):
        sklcam.report(
            EmbeddingCAMExplainer(SmallNet(4), "self", verbose=0).fit(),
            images, path=path, metrics="adcc", verbose=0,
        )  # fmt: skip

    several = {"image": images, "vector": torch.rand(6, 2)}
    explainer = CAMExplainer(
        ImageAndVector(), target_layer="conv", image_input="image", verbose=0
    ).fit(several)
    sklcam.report(explainer, several, path=path, metrics="sparsity", n_images=3, verbose=0)
    assert len(Page(path).cards) == 3


def test_labels_are_compared_by_value(tmp_path):
    path = tmp_path / "page.html"
    explainer = CAMExplainer(SmallNet(), image_size=16, verbose=0).fit()
    predicted = explainer.predict(X)
    sklcam.report(explainer, X, predicted.astype(float), path, metrics="accuracy", verbose=0)
    page = Page(path)
    assert all(image["right"] == [True] for image in page.data)
    assert f"true: {predicted[0]}\n" in page.cards[0]
    others = np.array([predicted[0], *NAMES[1:]], dtype=object)  # but one of other classes
    sklcam.report(explainer, X, others, path, metrics="accuracy", verbose=0)
    assert [image["right"] for image in Page(path).data] == [[True]] + [[False]] * 59


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_binary_nets_threshold_decides(tmp_path, share):
    """A net of one output predicts the second class where its probability is over a threshold."""
    torch.manual_seed(0)
    of_two = Y < 2
    images = torch.from_numpy(X[of_two].astype(np.float32))[:, None]
    net = NeuralNetBinaryClassifier(SmallNet, module__num_classes=1, max_epochs=2, verbose=0)
    net.fit(images, Y[of_two].astype(np.float32))
    second = torch.sigmoid(net.forward(images).ravel()).detach().numpy()
    ranked = np.sort(second)
    middle = int(share * len(ranked))
    net.threshold = float(ranked[middle - 1 : middle + 1].mean())
    expected = (second > net.threshold).astype(int)
    assert 0 < expected.sum() < len(expected)
    assert share == 0.5 or (expected != (second > 0.5)).any()  # the likelier class is another

    explainer = CAMExplainer(net, target_layer="5", verbose=0).fit(images)
    path = tmp_path / "page.html"
    labels = Y[of_two]
    sklcam.report(explainer, images, labels, path, metrics=("accuracy", "sparsity"), verbose=0)
    page = Page(path)
    for i, predicted in enumerate(expected):
        chance = second[i] if predicted else 1 - second[i]
        assert f"predicted: {predicted} ({chance:.2f})" in page.cards[i]
        assert page.data[i]["right"] == [predicted == labels[i]]
        error = None if predicted == labels[i] else pytest.approx(chance)
        assert page.data[i]["error"] == [error]
        assert page.value(i, "accuracy") == (predicted == labels[i])


def test_embedding_nets(tmp_path):
    pytest.importorskip("pytorch_metric_learning")
    net = EmbeddingNet(SmallEmbedding, embedding_dim=4, image_size=16, max_epochs=1, verbose=0)
    path = tmp_path / "page.html"
    sklcam.report(net.fit(X, Y), X[:4], path=path, verbose=0)
    assert len(Page(path).cards) == 4


def test_bars_are_silenced(tmp_path, fitted, capsys):
    path = tmp_path / "page.html"
    sklcam.report(fitted, X[:4], path=path, metrics="sparsity", verbose=0)
    assert capsys.readouterr() == ("", "")
    sklcam.report(fitted, X[:4], path=path, metrics="sparsity", verbose=1)
    assert "evaluate: " in capsys.readouterr().err


# Errors, before any work


@pytest.fixture
def no_work(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("work was done")

    monkeypatch.setattr(CAMExplainer, "explain_batch", fail)
    monkeypatch.setattr(ConsistentCAMClassifier, "explain_batch", fail)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": None}, ValueError, "needs path="),
        ({"path": "."}, IsADirectoryError, "is a folder"),
        ({"path": "missing/page.html"}, FileNotFoundError, "no folder"),
        ({"y": NAMES[:5]}, ValueError, "y has 5 entries for 60 images"),
        ({"names": ["a"]}, ValueError, "names must have one entry for each of 60 images; got 1"),
        ({"names": "a" * 60}, ValueError, "names must have one entry .* got a str"),
        ({"target": 7}, ValueError, "labels that were not seen"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be"),
        ({"random_state": "a"}, ValueError, "'a' cannot be used to seed"),
        ({"X": X[:0]}, ValueError, "empty"),
        ({"metrics": "adc"}, ValueError, "no metric 'adc'"),
        ({"metrics": ()}, ValueError, "metrics is empty"),
        ({"metrics": "pointing_game"}, ValueError, "needs boxes or masks"),
        ({"method": "grad"}, ValueError, "grad"),
        ({"n_images": 0}, ValueError, "n_images must be an int >= 1"),
        ({"n_images": True}, ValueError, "n_images must be"),
        ({"thumbnail": 5000}, ValueError, "thumbnail must be an int from 32 to 1024"),
        ({"thumbnail": None}, ValueError, "thumbnail must be"),
        ({"batchsize": 3}, TypeError, "batchsize"),
    ],
)
def test_errors_at_the_door(tmp_path, monkeypatch, fitted, no_work, options, error, message):
    monkeypatch.chdir(tmp_path)
    given = {"X": X, "y": None, "path": "page.html", "verbose": 0} | options
    with pytest.raises(error, match=message):
        sklcam.report(fitted, **given)
    assert not list(tmp_path.iterdir())


def test_estimators_that_cannot_be_reported(tmp_path, no_work):
    path = tmp_path / "page.html"
    with pytest.raises(NotFittedError):
        sklcam.report(ConsistentCAMClassifier(SmallNet), X, Y, path)
    with pytest.raises(NotFittedError):
        sklcam.report(CAMExplainer(SmallNet()), X, Y, path)
    with pytest.raises(ValueError, match="estimator must be"):
        sklcam.report("resnet18", X, Y, path)
    assert not path.exists()


def test_missing_jinja_names_the_extra(tmp_path, fitted, no_work, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"sklcam\[report\]"):
        sklcam.report(fitted, X, path=tmp_path / "page.html")


def test_the_page_is_written_whole_or_not_at_all(tmp_path, fitted, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patched:
        patched.setattr("sklcam.reporting.cards.map_uri", fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            sklcam.report(fitted, X, path=path, metrics="sparsity", verbose=0)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    sklcam.report(fitted, X, path=path, metrics="sparsity", verbose=0)
    assert Page(path).cards and list(tmp_path.iterdir()) == [path]


class Odd(nn.Module):
    """Speaks against all classes where it is dark, and has no answer where it is white."""

    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, images):
        means = self.same(images).mean(dim=(2, 3))
        means = means * torch.where(means > 0.9, torch.nan, 1.0)
        return torch.cat([means, -means], dim=1)


def test_maps_that_say_nothing_say_so(tmp_path):
    images = torch.rand(3, 1, 8, 8) / 2
    images[1], images[2] = 0, 1
    explainer = sklcam.CAMExplainer(Odd(), target_layer="same", verbose=0).fit(images[:1])
    path = tmp_path / "page.html"
    with pytest.warns(ExplanationWarning, match="1 of 3 maps.* NaN.* 1 of 3 maps are blank"):
        sklcam.report(explainer, images, [1, 0, 0], path, metrics="complexity", target=0, verbose=0)
    errors = [image["error"][0] for image in Page(path).data]
    assert errors[0] > 0.5 and errors[1:] == [None, None]  # of NaN nothing is known
    page = path.read_text(encoding="utf-8")
    cards = page.split('<article class="card"')[1:]
    told = [("no positive evidence" in card, "not finite" in card) for card in cards]
    assert told == [(False, False), (True, False), (False, True)]
    assert "1 of 3 maps is blank" in page and "1 of 3 maps is not finite" in page
    assert "complexity" in page and "nan" not in page.partition("</table>")[0]


@pytest.mark.parametrize(
    "names",
    [pd.Series([*"abc"], index=[7, 3, 9]), {0: "a", "image 1": "b", 2: "c"}, np.array([*"abc"])],
    ids=["series", "mapping", "array"],
)
def test_names_come_in_any_form(names, tmp_path, fitted):
    path = tmp_path / "page.html"
    sklcam.report(fitted, X[:3], path=path, names=names, metrics="sparsity", verbose=0)
    page = path.read_text(encoding="utf-8")
    assert all(f"<h3>{name}</h3>" in page for name in "abc")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (set("abc"), "names must have one entry for each of 3 images; got a"),
        ({0: "a", "image 1": "b", "c": "c"}, "without a name for image 2: neither 2 nor 'image 2'"),
    ],
)
def test_names_that_do_not_fit_are_refused_before_any_work(names, message, tmp_path):
    seen = []

    class Counting(Odd):
        def forward(self, images):
            seen.append(len(images))
            return super().forward(images)

    images = torch.rand(3, 1, 8, 8)
    explainer = sklcam.CAMExplainer(Counting(), target_layer="same", verbose=0).fit(images)
    seen.clear()
    with pytest.raises(ValueError, match=message):
        sklcam.report(explainer, images, path=tmp_path / "page.html", names=names, verbose=0)
    assert not seen and not list(tmp_path.iterdir())
