"""Reports of several models and methods: the same images side by side, and how they differ."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from pages import NAMES, Page, X, trained
from PIL import Image
from sklearn.utils import check_random_state
from small_networks import SmallNet

import sklcam
from sklcam import CAMExplainer, EmbeddingCAMExplainer
from sklcam._validation import draw_seed
from sklcam.metrics import compare, evaluate
from sklcam.plotting.pages import fitting_uri, mask_uri
from sklcam.reporting.words import comparison, figure

METRICS = ("accuracy", "sparsity", "consistency")


@pytest.fixture(scope="module")
def other():
    return trained(lr=0.01, max_epochs=1, random_state=1)


@pytest.fixture(scope="module")
def two(fitted, other, tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "page.html"
    models = {"short": other, "long": fitted}
    # A generator of seeds, which would give the second model other views.
    seeds = np.random.RandomState(3)
    found = sklcam.report(models, X, NAMES, path, metrics=METRICS, random_state=seeds, verbose=0)
    return path, found


def test_models_see_the_same_images_and_views(fitted, other, two):
    path, found = two
    assert list(found) == ["short", "long"]
    seed = draw_seed(check_random_state(np.random.RandomState(3)))
    for name, model in (("short", other), ("long", fitted)):
        expected = evaluate(model, X, NAMES, metrics=METRICS, random_state=seed, progress=False)
        for metric, values in expected.items():
            np.testing.assert_array_equal(found[name][metric], values)
    page = Page(path)
    assert len(page.cards) == len(X)
    for i in (0, 31):
        assert page.value(i, "sparsity", 1) == found["long"]["sparsity"][i]
        assert page.data[i]["right"] == [
            other.predict(X[[i]])[0] == NAMES[i],
            fitted.predict(X[[i]])[0] == NAMES[i],
        ]


def test_differences_are_those_of_compare(two):
    path, found = two
    rows = [cells for cells in Page(path).rows if len(cells) == 7][1:]
    expected = compare(found["long"], found["short"])
    assert [cells[0].split(" ")[0] for cells in rows] == list(expected)
    words = []
    for cells, (name, row) in zip(rows, expected.items(), strict=True):
        assert cells[2] == figure(found["short"][name].mean())
        assert cells[3] == figure(found["long"][name].mean())
        assert cells[4:6] == [figure(row.mean), f"{figure(row.low)} to {figure(row.high)}"]
        if row.low <= 0 <= row.high:
            word = "no clear difference"
        else:  # higher is better in all of these
            word = "better" if row.mean > 0 else "worse"
        assert cells[6] == word
        words.append(word)
    assert len(set(words)) > 1
    verdicts = dict(zip(expected, words, strict=True))
    assert f"<p>{comparison(verdicts, 'short')}</p>" in path.read_text(encoding="utf-8")


def test_methods_share_the_passes(tmp_path):
    network = SmallNet()
    explainer = CAMExplainer(network, image_size=16, verbose=0).fit()
    passes = []
    network[0].register_forward_hook(lambda module, inputs, _: passes.append(len(inputs[0])))
    path = tmp_path / "page.html"
    found = sklcam.report(
        {"small": explainer},
        X[:6],
        path=path,
        methods=["gradcam", "gradcam++"],
        metrics="sparsity",
        verbose=0,
    )
    assert list(found) == ["small, gradcam", "small, gradcam++"]
    assert sum(passes) == 6
    text = path.read_text(encoding="utf-8")
    assert text.count('<p class="of">small, gradcam++</p>') == 6
    # One map of each method for each image.
    images, maps = Page(path).stacks()
    assert len(images) == len(maps) == 12 and images[0] == images[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": {}}, "Give several estimators by name"),
        ({"estimator": {1: None}}, "Give several estimators by name"),
        ({"method": "gradcam", "methods": ["gradcam"]}, "Got both method= and methods="),
        ({"budget": -1}, "budget must be"),
    ],
)
def test_what_cannot_stand_side_by_side(tmp_path, fitted, change, message):
    given = {"estimator": fitted, "X": X[:4], "path": tmp_path / "page.html", "verbose": 0}
    with pytest.raises(ValueError, match=message):
        sklcam.report(**given | change)
    assert not list(tmp_path.iterdir())


# Enlarged images


@pytest.fixture(scope="module")
def photographs():
    rng = np.random.default_rng(0)
    smooth = rng.uniform(0, 255, (3, 5, 8, 3)).astype(np.uint8)
    return [Image.fromarray(each).resize((800, 500), Image.Resampling.BICUBIC) for each in smooth]


@pytest.mark.parametrize("budget", [12, 0.06, 0])
def test_enlarged_images_keep_to_the_budget(tmp_path, photographs, budget):
    explainer = CAMExplainer(SmallNet(in_channels=3), image_size=16, verbose=0).fit()
    path = tmp_path / "page.html"
    options = {"thumbnail": 64, "budget": budget, "metrics": "sparsity", "verbose": 0}
    sklcam.report(explainer, photographs, path=path, **options)
    large = Page(path).large
    assert sum(len(each or "") for each in large) <= budget * 1e6
    if budget == 12:
        assert all(sized(each) == "800x500" for each in large)
    if budget == 0.06:
        widths = [int(sized(each).split("x")[0]) for each in large]
        assert all(77 < width < 800 for width in widths)
    if budget == 0:
        assert large == [None] * 3


def sized(uri):
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    return f"{image.width}x{image.height}"


def test_images_that_are_small_are_not_written_twice():
    assert fitting_uri(np.zeros((60, 64)), longest=64, most=10**6) is None
    assert fitting_uri(np.zeros((60, 90)), longest=64, most=10**6) is not None
    assert sized(fitting_uri(np.zeros((3000, 20)), longest=64, most=10**6)) == "20x2048"


def test_boxes_and_masks_are_on_the_page(tmp_path, photographs):
    explainer = CAMExplainer(SmallNet(in_channels=3), image_size=16, verbose=0).fit()
    path = tmp_path / "page.html"
    boxes = [
        torch.tensor([[80, 50, 400, 250]]),
        torch.tensor([[-9, 0, 900, 500]]),
        torch.empty(0, 4),
    ]
    options = {"metrics": "sparsity", "verbose": 0}
    sklcam.report(explainer, photographs, path=path, boxes=boxes, **options)
    page = Page(path)
    assert page.data[0]["boxes"] == [pytest.approx([0.1, 0.1, 0.5, 0.5])]
    assert page.data[1]["boxes"] == [[0, 0, 1, 1]] and page.data[2]["boxes"] == []
    masks = np.zeros((3, 500, 800), dtype=bool)
    masks[:, 100:300, 100:300] = True
    sklcam.report(explainer, photographs, path=path, masks=[*masks], **options)
    assert sum(each.get("class") == "mask" for each in Page(path).all("img")) == 3


def test_the_outline_of_a_mask():
    mask = np.zeros((6, 7), dtype=bool)
    mask[1:5, 2:6] = True
    drawn = Image.open(io.BytesIO(base64.b64decode(mask_uri(mask, (6, 7)).split(",")[1])))
    expected = mask.astype(int)
    expected[2:4, 3:5] = 0
    np.testing.assert_array_equal(np.asarray(drawn), expected)
    assert drawn.info["transparency"] == 0


def test_each_network_has_its_own_neighbours(tmp_path, fitted):
    path = tmp_path / "page.html"
    models = {"classifier": fitted}
    for name in "ab":
        torch.manual_seed(ord(name))
        models[name] = EmbeddingCAMExplainer(
            SmallNet(4), image_size=16, proxy="self", verbose=0
        ).fit(X)
    sklcam.report(models, X[:12], path=path, metrics="sparsity", verbose=0)
    page = Page(path)
    assert page.near == ["a", "b"]
    for k, name in enumerate("ab"):
        embeddings = models[name].transform(X[:12])
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        cosines = embeddings @ embeddings.T - 3 * np.eye(12)
        assert [image["near"][k][0] for image in page.data] == cosines.argmax(axis=1).tolist()


def test_embeddings_have_their_neighbours(tmp_path):
    torch.manual_seed(0)
    explainer = EmbeddingCAMExplainer(SmallNet(4), image_size=16, proxy="self", verbose=0).fit(X)
    path = tmp_path / "page.html"
    sklcam.report(explainer, X[:20], path=path, metrics="sparsity", verbose=0)
    embeddings = explainer.transform(X[:20])
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = embeddings @ embeddings.T - 3 * np.eye(20)
    for i, image in enumerate(Page(path).data):
        (near,) = image["near"]
        assert len(near) == 5 and i not in near
        found = cosines[i][near]
        np.testing.assert_allclose(found, np.sort(cosines[i])[::-1][:5], atol=1e-5)
