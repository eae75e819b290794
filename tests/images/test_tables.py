"""Forms that users have images in, against Pillow's reading of the same files."""

from __future__ import annotations

import base64
import io
import pickle
import re
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from image_forms import CountingDataset, noise, save
from PIL import Image, ImageOps
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples
from torch.utils.data import Subset

import sklcam.images
from sklcam.images import ImageDataset, dataset_labels, n_images
from sklcam.images.rows import take_rows

N = 6
FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Files of several sizes, kinds and orientations."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("files")
    kinds = [(8, 9, 3), (9, 9, 4), (10, 9), (11, 9, 3), (12, 9, 3), (13, 9, 3)]
    files = [save(noise(rng, *shape), folder / f"{i}.png") for i, shape in enumerate(kinds)]
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its right side
    Image.open(files[3]).save(files[3], exif=turned)
    return [*map(str, files)]


def by_pillow(path):
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image))[..., :3]


def in_bytes(paths):
    return [Path(path).read_bytes() for path in paths]


def pictures(paths):
    return [Image.open(path) for path in paths]


def structs(paths):
    return [{"bytes": data, "path": None} for data in in_bytes(paths)]


def hugging_face(paths, **columns):
    columns = {"image": paths, "label": [0, 1] * (N // 2), **columns}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def of_arrow(values):
    return pd.Series(values, dtype=pd.ArrowDtype(pa.array(values).type))


COLUMNS = {
    "series": lambda paths: pd.Series(paths, index=[*"uvwxyz"]),
    "series backwards": lambda paths: pd.Series(paths, index=range(N)[::-1]),
    "series of Path": lambda paths: pd.Series([*map(Path, paths)]),
    "series of categories": lambda paths: pd.Series(paths, dtype="category"),
    "series of arrow": lambda paths: of_arrow(in_bytes(paths)),
    "series of pictures": lambda paths: pd.Series(pictures(paths)),
    "series of structs": lambda paths: pd.Series(structs(paths)),
    "index": pd.Index,
    "frame": lambda paths: pd.DataFrame({"path": paths}),
    "arrow": pa.array,
    "arrow of words": lambda paths: pa.array(paths).dictionary_encode(),
    "arrow of bytes": lambda paths: pa.array(in_bytes(paths)),
    "arrow of large bytes": lambda paths: pa.array(in_bytes(paths), pa.large_binary()),
    "arrow of structs": lambda paths: pa.array(structs(paths)),
    "arrow in chunks": lambda paths: pa.chunked_array([paths[:2], paths[2:]]),
    "arrow table": lambda paths: pa.table({"image": in_bytes(paths)}),
    "record batch": lambda paths: pa.record_batch({"image": in_bytes(paths)}),
}
LISTS = {
    "bytes": in_bytes,
    "bytearrays": lambda paths: [*map(bytearray, in_bytes(paths))],
    "files in memory": lambda paths: [*map(io.BytesIO, in_bytes(paths))],
    "structs": structs,
    "structs of paths": lambda paths: [{"path": path} for path in paths],
    "many kinds": lambda paths: np.array(
        [
            paths[0],
            Path(paths[1]),
            Path(paths[2]).read_bytes(),
            Image.open(paths[3]),
            io.BytesIO(Path(paths[4]).read_bytes()),
            {"bytes": Path(paths[5]).read_bytes()},
        ],
        dtype=object,
    ),
    "an array of one column": lambda paths: np.array(paths)[:, None],
    "dicts": lambda paths: [{"image": each, "label": 0} for each in pictures(paths)],
}
HUGGING_FACE = {
    "of paths": hugging_face,
    "of bytes": lambda paths: hugging_face(in_bytes(paths)),
    "as tensors": lambda paths: hugging_face(paths).with_format("torch"),
    "as arrays": lambda paths: hugging_face(paths).with_format("numpy"),
    "as frames": lambda paths: hugging_face(paths).with_format("pandas"),
    "as other columns": lambda paths: hugging_face(paths).with_format("torch", columns=["label"]),
    "undecoded": lambda paths: hugging_face(paths).cast_column(
        "image", datasets.Image(decode=False)
    ),
    "selected": lambda paths: hugging_face(paths[::-1]).select(range(N)[::-1]),
    "column": lambda paths: hugging_face(paths)["image"],
    "of plain bytes": lambda paths: datasets.Dataset.from_dict(
        {"data": in_bytes(paths), "file": paths}
    ),
    "of texts": lambda paths: datasets.Dataset.from_dict({"path": paths}),
}
DATA_SETS = {
    "of pairs, as a list": lambda paths: [*zip(pictures(paths), "abcdef", strict=True)],
    "of dicts": lambda paths: CountingDataset(
        [{"image": each, "label": 0, "box": torch.zeros(4)} for each in pictures(paths)]
    ),
    "of dicts and labels": lambda paths: CountingDataset(
        [({"scan": each}, 1) for each in in_bytes(paths)]
    ),
    "of paths": lambda paths: CountingDataset([(path, 1) for path in paths]),
    "a part of one": lambda paths: Subset(hugging_face(paths), range(N)),
}
FORMS = {**COLUMNS, **LISTS, **HUGGING_FACE, **DATA_SETS}


def check(images, paths):
    assert len(images) == len(paths)
    for i, path in enumerate(paths):
        expected = by_pillow(path)
        assert images.original_size(i) == expected.shape[:2]
        np.testing.assert_array_equal(images.original_image(i).movedim(0, -1), expected)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_images_are_read_as_pillow_reads_the_files(form, paths):
    X = form(paths)
    assert n_images(X) == N
    images = ImageDataset(X, image_size=4)
    check(images, paths)
    check(images[[4, 1]], [paths[4], paths[1]])
    check(pickle.loads(pickle.dumps(images)), paths)
    for rows in (np.array([3, 0]), range(1, 3)):
        check(ImageDataset(take_rows(X, rows)), [paths[i] for i in rows])


@pytest.mark.parametrize("form", ["series", "frame", "bytes", "structs", "pictures"])
def test_columns_of_polars(form, paths):
    polars = pytest.importorskip("polars")
    X = {
        "series": lambda: polars.Series(paths),
        "frame": lambda: polars.DataFrame({"path": paths}),
        "bytes": lambda: polars.Series(in_bytes(paths)),
        "structs": lambda: polars.Series(structs(paths)),
        "pictures": lambda: polars.Series(pictures(paths), dtype=polars.Object),
    }[form]()
    check(ImageDataset(X), paths)
    check(ImageDataset(take_rows(X, np.array([3, 0]))), [paths[3], paths[0]])
    with pytest.raises(ValueError, match="Row 1 of X has no image, as it is null"):
        ImageDataset(polars.Series(["a", None]))
    table = polars.DataFrame({"path": paths, "note": paths[::-1]})
    check(ImageDataset(table, image_column="path"), paths)
    with pytest.raises(ValueError, match=r"polars\.DataFrame with the columns 'path', 'note'"):
        ImageDataset(table)


# Of an index and of a record batch, scikit-learn takes no rows.
SPLIT = {key: FORMS[key] for key in FORMS if key not in ("index", "record batch")}


@pytest.mark.parametrize("form", SPLIT.values(), ids=SPLIT)
def test_scikit_learn_splits_them(form, paths):
    X = form(paths)
    # What has a shape is indexed as an array is, which Hugging Face's data sets do not know.
    X = ImageDataset(X) if isinstance(X, datasets.Dataset) else X
    assert _num_samples(X) == N
    check(ImageDataset(_safe_indexing(X, np.array([5, 2]))), [paths[5], paths[2]])


# Which column, which entry


@pytest.mark.parametrize(
    "table",
    [
        lambda paths: pd.DataFrame({"id": range(N), "photo": paths}, index=[*"abcdef"]),
        lambda paths: pa.table({"id": range(N), "photo": in_bytes(paths)}),
        lambda paths: datasets.Dataset.from_dict({"photo": paths, "note": paths[::-1]}),
        lambda paths: CountingDataset([{"photo": path, "note": "x"} for path in paths]),
        lambda paths: [{"photo": path, "note": "x"} for path in paths],
        lambda paths: datasets.Dataset.from_dict({"path": paths}).with_transform(
            lambda rows: {"photo": pictures(rows["path"]), "mask": pictures(rows["path"])}
        ),
    ],
)
def test_the_column_may_be_named(table, paths):
    X = table(paths)
    check(ImageDataset(X, image_column="photo"), paths)
    with pytest.raises(ValueError, match=r"photo.*image_column"):
        ImageDataset(X)
    with pytest.raises(ValueError, match=r"has .*'?photo.*|no entry 'nought'; it has photo"):
        ImageDataset(X, image_column="nought")


def test_columns_are_for_what_has_some():
    message = "image_column='a' is for tables and data sets of dicts, but X is"
    for X in (np.zeros((2, 8, 8)), ["cat.png"], torch.zeros(1, 3, 8, 8)):
        with pytest.raises(ValueError, match=message):
            ImageDataset(X, image_column="a")
    with pytest.raises(ValueError, match=r"X\[0\] is a Tensor .* and has no entry 'a'"):
        ImageDataset(CountingDataset([torch.zeros(3, 8, 8)]), image_column="a")


def test_transforms_of_hugging_face_are_applied(paths):
    def inverted(rows):
        return {"pixels": [255 - np.array(each.convert("RGB")) for each in rows["image"]]}

    images = ImageDataset(hugging_face(paths[4:], label=[0, 1]).with_transform(inverted))
    for i, path in enumerate(paths[4:]):
        read = images.original_image(i).movedim(0, -1)
        np.testing.assert_array_equal(read, 255 - by_pillow(path))


def test_modes_of_hugging_face_are_theirs(paths):
    grey = hugging_face(paths).cast_column("image", datasets.Image(mode="L"))
    read = ImageDataset(grey).original_image(4)
    expected = np.array(Image.open(paths[4]).convert("L"))
    np.testing.assert_array_equal(read, np.stack([expected] * 3))


def test_arrays_of_hugging_face():
    X = np.random.default_rng(0).random((3, 8, 9, 3), dtype=np.float32)
    features = datasets.Features({"pixels": datasets.Array3D((8, 9, 3), "float32")})
    stored = datasets.Dataset.from_dict({"pixels": X}, features=features)
    for form in (stored, stored.with_format("pandas"), stored["pixels"]):
        images = ImageDataset(form, image_size=(8, 9))
        assert torch.equal(images[1][0], torch.from_numpy(X[1]).movedim(-1, 0))
    first = datasets.Dataset.from_dict({"x": X.transpose(0, 3, 1, 2)}).with_format("torch")
    assert torch.equal(ImageDataset(first).original_image(2), torch.from_numpy(X[2]).movedim(-1, 0))


def test_an_item_is_read_once():
    dataset = CountingDataset([{"image": torch.rand(3, 4, 4), "age": 3} for _ in range(3)])
    images = ImageDataset(dataset, image_size=4)
    assert dataset.reads == [0]
    images[2]
    assert dataset.reads == [0, 2]


def test_rows_of_hugging_face_are_read_when_asked_for(paths, monkeypatch):
    stored = hugging_face(in_bytes(paths))
    stored.set_format("arrow")
    reads = []
    read = datasets.Dataset._getitem
    monkeypatch.setattr(
        datasets.Dataset,
        "_getitem",
        lambda self, key, **options: reads.append(key) or read(self, key, **options),
    )
    images = ImageDataset(stored)
    del reads[:]
    images.original_image(3)
    assert reads == [3]


# Labels


def test_labels_of_hugging_face(paths):
    X = hugging_face(paths)
    expected = [0, 1, 0, 1, 0, 1]
    for form in (X, X.with_format("torch"), Subset(X, range(N)), ImageDataset(X)):
        assert dataset_labels(form).tolist() == expected
    assert dataset_labels(ImageDataset(X)[[3, 0]]).tolist() == [1, 0]
    assert dataset_labels(ImageDataset(X, y=[*"abcdef"])[[3, 0]]).tolist() == ["d", "a"]
    assert dataset_labels(X.select([1, 2])).tolist() == [1, 0]


def test_labels_of_which_it_is_not_clear_that_they_are_meant(paths):
    X = hugging_face(paths)
    two = X.add_column("other", [0] * N).cast_column("other", FEATURES["label"])
    without = hugging_face(paths, label=[0, 1, -1, 0, 1, 0])
    unknown = hugging_face(paths, label=[0, 1, None, 0, 1, 0])
    transformed = X.with_transform(lambda rows: {"image": rows["image"]})
    plain = datasets.Dataset.from_dict({"image": paths, "label": [0] * N})
    of_dicts = CountingDataset([{"image": Image.new("L", (4, 4)), "label": 0}])
    for each in (two, without, unknown, transformed, plain, of_dicts, X["image"]):
        assert dataset_labels(each) is None


# What cannot be taken


class Arraylike:
    """As arrays of other libraries are."""

    shape, dtype = (2, 4, 4), np.dtype(np.float32)

    def __array__(self, dtype=None, copy=None):
        return np.zeros(self.shape, self.dtype)

    def __getitem__(self, i):
        return np.asarray(self)[i]

    def __len__(self):
        return 2


PNG = io.BytesIO()
Image.new("L", (4, 4)).save(PNG, "png")
TEXT = base64.b64encode(PNG.getvalue()).decode()


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (
            pd.DataFrame({"a": ["x"], "b": ["y"]}),
            r"pandas.DataFrame with the columns 'a', 'b'. Pass",
        ),
        (
            pa.table({"a": ["x"], "b": ["y"]}),
            r"pyarrow.Table with the columns 'a', 'b'.*X\[column\]",
        ),
        (pd.DataFrame(), "with the columns nothing"),
        (pd.Series([], dtype=object), "X is empty"),
        (pa.array([], pa.string()), "X is empty"),
        (datasets.Dataset.from_dict({"a": []}), "X is empty"),
        (
            pd.Series(["a", None], index=["u", "v"]),
            r"1 of the 2 rows .* is row 1 \(index 'v'\).*nan",
        ),
        (pd.Series(["a", pd.NA, pd.NA], dtype="string"), "2 of the 3 rows .* row 1 .*dropna"),
        (pd.DataFrame({"a": [b"x", None]}), r"row 1 \(index 1\), which holds None"),
        (pa.array(["a", None]), "Row 1 of X has no image, as it is null"),
        (pa.chunked_array([["a"], [None]]), "Row 1 of X"),
        (pd.Series([1.0, 2.0]), r"X\[0\] is a float, 1.0, not a file path"),
        (pa.array([1, 2]), "pyarrow.Int64Array of int64; it may hold file paths, or encoded"),
        (datasets.Dataset.from_dict({"a": ["x", None]}), "Row 1 of X has no image"),
        (
            datasets.Dataset.from_dict({"a": ["x"], "b": [1]}),
            r"Hugging Face data set with the columns 'a', 'b', of which none hold images. Name",
        ),
        (
            datasets.Dataset.from_dict({"a": [PNG.getvalue()], "b": [PNG.getvalue()]}),
            r"of which 'a', 'b' hold images",
        ),
        (
            datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": ["x"]})}),
            r"the splits 'train' of a data set: pass one, X\[split\]",
        ),
        ([None, "a"], r"X\[0\] is None, not a file path.* leave such rows out"),
        ([float("nan")], r"X\[0\] is a float, nan, .* leave such rows out"),
        ([[0.5, 0.5]], r"X\[0\] is a list.* np.asarray\(X\)"),
        (
            [io.BufferedReader(io.BytesIO())],
            r"is a BufferedReader.* pass its path, or the result of its read",
        ),
        (io.BufferedReader(io.BytesIO()), r"X is an open file .*pass its path"),
        (
            [np.zeros((2, 4, 4, 3))],
            r"list of batches .* \(2, 4, 4, 3\): pass np.concatenate\(X\)",
        ),
        ([torch.zeros(2, 3, 4, 4)] * 2, r"a list of batches.*torch.cat\(X\)\. .*iter\(X\)"),
        (Arraylike(), r"X is a .*Arraylike: pass np.asarray\(X\) if its entries are pixels"),
        (PNG, r"X is _io.BytesIO with one image: wrap it in a list"),
        (PNG.getvalue(), "X is bytes with one image: wrap it in a list"),
        ({}.keys(), r"X is a dict_keys: pass list\(X\)"),
        (str(Path(__file__).parent), r"a folder: use sklcam.datasets.load_class_folders .*glob"),
        (Path(__file__).parent, "load_class_folders"),
        ("https://a.b/cat.png", "it is a URL: download it"),
        ("photos/*.jpg", r"it is a pattern: pass sorted\(glob.glob\(pattern\)\)"),
        ("photos.zip", "not an image: pass the paths of its files, once it is unpacked"),
        ("photos.tar.gz", "once it is unpacked"),
        ("photos.csv", "pandas.read_csv"),
        ("photos.npy", r"numpy.load\(path\)"),
        ("photos.parquet", "from_parquet"),
        (TEXT, "it is base64"),
    ],
)
def test_what_cannot_be_taken_says_what_would_do(X, message):
    for refuse in (n_images, ImageDataset):
        with pytest.raises(ValueError, match=message):
            refuse(X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([TEXT], r"do not exist; the first is .*; it is base64: pass base64.b64decode"),
        ([f"data:image/png;base64,{TEXT}" * 9], r"\.\.\..*'; it is base64"),
        ([TEXT.encode()], r"X\[0\], of \d+ bytes, cannot be read.*base64.b64decode"),
        ([b"cat.png"], r"7 bytes, cannot be read .* a path, pass it as a str, os.fsdecode"),
        ([b""], r"X\[0\], of 0 bytes, cannot be read"),
        (["https://a.b/c.png"], "it is a URL"),
        ([{"bytes": None, "path": "/no.png"}], "first is '/no.png'"),
        (
            CountingDataset([{"image": Image.new("L", (4, 4)), "mask": Image.new("L", (4, 4))}]),
            r"X\[0\] is a dict of 'image' .*, 'mask' .*, where 2 entries are images. Name",
        ),
        (CountingDataset([{"path": "a", "label": 1}]), "where no entries are images"),
        (CountingDataset([{}]), "a dict of nothing"),
        (CountingDataset([b"no image"]), r"X\[0\] cannot be read as an image"),
    ],
)
def test_what_only_the_content_shows(X, message):
    with pytest.raises(ValueError, match=message):
        ImageDataset(X)


def test_rows_without_an_image_are_named_when_some_are_selected(paths):
    stored = hugging_face([*in_bytes(paths[:3]), None, *in_bytes(paths[4:])])
    with pytest.raises(ValueError, match="Row 1 of X has no image"):
        ImageDataset(stored.select([2, 3]))
    check(ImageDataset(stored.select([2, 4])), [paths[2], paths[4]])


def test_an_entry_that_an_item_lacks_is_named():
    image = Image.new("L", (4, 4))
    images = ImageDataset(CountingDataset([{"image": image}, {"photo": image}]))
    with pytest.raises(ValueError, match=r"X\[1\] has no entry 'image'; it has photo"):
        images[1]


def test_an_archive_that_is_called_an_image(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.png", "w") as archive:
        archive.writestr("a.txt", "a")
    images = ImageDataset([tmp_path / "a.png"])
    with pytest.raises(ValueError, match=r"a\.png' cannot be read .* an archive"):
        images[0]


def test_none_of_the_libraries_is_imported():
    sources = Path(sklcam.images.__file__).parent.glob("*.py")
    imports = re.compile(r"^\s*(import|from) (pandas|pyarrow|datasets|polars)\b", re.MULTILINE)
    assert not [path for path in sources if imports.search(path.read_text())]
