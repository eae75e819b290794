"""What sklcam.images accepts and refuses, whatever comes: properties, against plain numpy.

Anything is either accepted, and gives tensors of the documented shape, type and values, or refused
by a ValueError or TypeError that says what came.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset

from sklcam.images import ImageDataset, check_images, map_to_frame, n_images, normalize


def reproducible(n: int) -> settings:
    """The same examples in each run, as many as take a few seconds."""
    return settings(deadline=None, derandomize=True, database=None, max_examples=n)


MOST_DTYPES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", ">f4", ">i2", ">f8"),
    *("datetime64[s]", "timedelta64[s]", "S3", "U3", "object"),
)
# Half of them images, so that both sides of the door are seen often.
DTYPES = st.sampled_from(["uint8", "float16", "float32", "float64", ">f4"]) | st.sampled_from(
    MOST_DTYPES
)
SHAPES = st.lists(st.integers(1, 6), min_size=3, max_size=4) | st.lists(
    st.integers(0, 6), max_size=5
)
KINDS = st.sampled_from(["inside", "inside", "rounded", "beyond", "nan", "infinite"])
LAYOUTS = st.sampled_from(["C", "Fortran", "reversed", "every second", "read-only", "transposed"])


def filled(shape: tuple[int, ...], dtype: np.dtype, kind: str, seed: int) -> np.ndarray:
    """An array of a type, its floats in [0, 1] but for what the kind says of one of them."""
    random = np.random.default_rng(seed)
    if dtype.kind == "f":
        array = random.random(shape).astype(dtype)
        if array.size:
            odd = {"rounded": 1 + 5e-7, "beyond": 1.5, "nan": np.nan, "infinite": -np.inf}
            array.flat[random.integers(array.size)] = odd.get(kind, 0.5)
        return array
    if dtype.kind in "iu":
        return random.integers(0, 100, shape).astype(dtype)
    return np.zeros(shape, dtype)


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same values in another memory layout, as far as there are axes."""
    if layout == "Fortran":
        return np.asfortranarray(array)
    if layout == "reversed" and array.ndim:
        return np.ascontiguousarray(array[::-1])[::-1]
    if layout == "every second" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if layout == "transposed" and array.ndim > 1:
        return np.ascontiguousarray(array.swapaxes(0, -1)).swapaxes(0, -1)
    array = array.copy()
    array.flags.writeable = layout != "read-only"
    return array


@st.composite
def arrays(draw) -> tuple[np.ndarray, str]:
    shape, dtype, kind = tuple(draw(SHAPES)), np.dtype(draw(DTYPES)), draw(KINDS)
    array = filled(shape, dtype, kind, draw(st.integers(0, 2**16)))
    return laid_out(array, draw(LAYOUTS)), kind


def tells_its_channels(shape: tuple[int, ...], usual: str) -> bool:
    """Whether images of this shape have their channels where they usually are."""
    first, middle, last = shape
    if max(shape) <= 4 or middle == (last if usual == "first" else first) == 1:
        return True
    likely = {"first": first <= 4, "last": last <= 4}
    if not any(likely.values()):
        likely = {"first": first < min(middle, last), "last": last < min(first, middle)}
    return likely == {"first": usual == "first", "last": usual == "last"}


def is_batch(array: np.ndarray, kind: str) -> bool:
    """Whether an array holds images, by the words of the documentation."""
    if array.ndim not in (3, 4) or 0 in array.shape:
        return False
    if array.ndim == 4 and not tells_its_channels(array.shape[1:], "last"):
        return False
    if array.ndim == 3 and array.shape[2] <= 4 < array.shape[1]:  # one image, without a batch
        return False
    if array.dtype.kind == "f":
        return kind in ("inside", "rounded")
    return array.dtype == np.uint8


def by_hand(image: np.ndarray) -> np.ndarray:
    """One image as it must come out at its own size: channels first, floats clamped."""
    image = image[np.newaxis] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    if image.dtype == np.uint8:
        return image
    return np.clip(image.astype(np.float32), 0, 1)


def assert_refused(X: Any, *words: str) -> None:
    """That X is refused by all doors, with a message that names one of these.

    Of five axes it may be volumes, which a door of pictures refuses.
    """
    doors = [lambda X: ImageDataset(X, image_size=4)]
    doors += [check_images] if getattr(X, "ndim", 0) != 5 else []
    for door in doors:
        with pytest.raises((ValueError, TypeError)) as caught:
            door(X)
        message = str(caught.value)
        assert any(word in message for word in words), message


def assert_gives(X: Any, expected: list[np.ndarray]) -> None:
    """That X is accepted, and gives these images at their own sizes."""
    check_images(X)
    assert n_images(X) == len(expected)
    for i, image in enumerate(expected):
        images = ImageDataset(X, image_size=image.shape[1:])
        pixels, label = images[i]
        assert images.original_size(i) == image.shape[1:]
        assert len(pixels) == images.n_channels == len(image)
        assert pixels.dtype == (torch.uint8 if image.dtype == np.uint8 else torch.float32)
        assert pixels.is_contiguous()
        assert label == 0
        np.testing.assert_array_equal(pixels.numpy(), image)
        (batch,) = images.__getitems__([i])
        assert torch.equal(batch[0], pixels)
        np.testing.assert_allclose(
            np.clip(images.original_image(i).numpy(), 0, 255 if image.dtype == np.uint8 else 1),
            image,
        )


@reproducible(400)
@given(arrays())
def test_arrays_are_images_or_refused(array_and_kind):
    array, kind = array_and_kind
    before = array.copy()
    if is_batch(array, kind):
        assert_gives(array, [by_hand(image) for image in array])
    else:
        assert_refused(
            array,
            *(str(array.dtype), str(array.shape), f"{array.ndim}-dimensional", "X is empty"),
            *("NaN or infinite", "range from", "not a file path", "do not exist"),
        )
    np.testing.assert_array_equal(array, before)


TORCH_DTYPES = (
    *(torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64),
)


@reproducible(300)
@given(
    st.lists(st.integers(1, 6), min_size=4, max_size=4) | st.lists(st.integers(0, 6), max_size=5),
    st.sampled_from(TORCH_DTYPES[:5]) | st.sampled_from(TORCH_DTYPES),
    KINDS,
    st.booleans(),
)
def test_tensors_are_images_or_refused(shape, dtype, kind, strided):
    values = filled(tuple(shape), np.dtype("float32"), kind, 0)
    tensor = torch.from_numpy(values)
    is_float = dtype.is_floating_point
    tensor = tensor.to(dtype) if is_float else (tensor.nan_to_num(0, 0, 0) * 9).to(dtype)
    if strided and tensor.ndim:
        tensor = tensor.repeat_interleave(2, dim=-1)[..., ::2]
    fits = len(shape) == 4 and 0 not in shape and tells_its_channels(tuple(shape[1:]), "first")
    # In half precision, what is a hair beyond 1 is 1.
    if fits and (dtype == torch.uint8 or (is_float and kind in ("inside", "rounded"))):
        expected = tensor.numpy() if dtype == torch.uint8 else tensor.float().clamp(0, 1).numpy()
        assert_gives(tensor, list(expected))
    else:
        words = ("tables are not images", "X is empty", "-dimensional", str(tuple(shape)))
        assert_refused(tensor, str(dtype), "NaN or infinite", "range from", *words)


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
DEEP_MODES = ("I;16", "I;16B", "I;16L")
REFUSED_MODES = ("I", "F")


def picture(mode: str, width: int, height: int, seed: int) -> Image.Image:
    """A PIL image of noise."""
    random = np.random.default_rng(seed)
    n_bytes = len(Image.new(mode, (width, height)).tobytes())
    data = random.integers(0, 100, n_bytes, dtype=np.uint8).tobytes()
    return Image.frombytes(mode, (width, height), data)


def picture_by_hand(image: Image.Image) -> np.ndarray:
    """What a picture must come out as: Pillow's RGB on white, or shares of 65535 for 16 bits."""
    if image.mode in DEEP_MODES:
        order = ">u2" if image.mode == "I;16B" else "<u2"
        grey = np.frombuffer(image.tobytes(), order).reshape(image.height, image.width)
        return np.stack([grey.astype(np.float32) / np.float32(65535)] * 3)
    if image.mode in ("LA", "PA", "RGBA"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.moveaxis(np.array(image.convert("RGB")), -1, 0)


PICTURES = st.builds(
    picture,
    st.sampled_from(MODES + DEEP_MODES + REFUSED_MODES),
    *(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99)),
)


@reproducible(200)
@given(st.lists(PICTURES, min_size=1, max_size=3))
def test_pictures_of_all_modes_are_rgb_or_refused(pictures):
    refused = [image.mode for image in pictures if image.mode in REFUSED_MODES]
    if refused:
        assert_refused(pictures, f"mode {refused[0]!r}")
    else:
        assert_gives(pictures, [picture_by_hand(image) for image in pictures])


FILE_KINDS = ("png", "bmp", "missing", "folder", "text", "empty", "cut off")


def file_of(kind: str, folder: Path, number: int) -> tuple[Path, np.ndarray | None]:
    """A file, and the pixels in it if there are some."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = folder / f"{number}.{kind if kind in ('png', 'bmp') else 'jpg'}"
    if kind in ("png", "bmp", "cut off"):
        Image.fromarray(pixels).save(path)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-300])
    if kind == "folder":
        path.mkdir()
    if kind in ("text", "empty"):
        path.write_bytes(b"this is no image" if kind == "text" else b"")
    return path, np.moveaxis(pixels, -1, 0) if kind in ("png", "bmp") else None


@reproducible(60)
@given(st.lists(st.sampled_from(FILE_KINDS), min_size=1, max_size=3), st.booleans())
def test_files_are_read_or_refused_by_their_names(kinds, as_text):
    with tempfile.TemporaryDirectory() as folder:
        files = [file_of(kind, Path(folder), number) for number, kind in enumerate(kinds)]
        X = [str(path) if as_text else path for path, _ in files]
        absent = [i for i, kind in enumerate(kinds) if kind in ("missing", "folder")]
        if absent:
            assert_refused(X, f"{len(absent)} of the {len(X)} file(s) in X do not exist")
            return
        images = ImageDataset(X, image_size=(9, 7))
        for i, (path, pixels) in enumerate(files):
            if pixels is not None:
                np.testing.assert_array_equal(images[i][0].numpy(), pixels)
            else:
                with pytest.raises(ValueError, match=rf"{path.name}' cannot be read as an image"):
                    images[i]


ITEMS = st.one_of(
    PICTURES,
    st.none(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.binary(max_size=3),
    st.just("no/such/file.png"),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
    arrays().map(lambda pair: pair[0]),
    st.just(torch.zeros(3, 4, 4)),
)


@reproducible(300)
@given(st.lists(ITEMS, max_size=4) | ITEMS, st.sampled_from([list, tuple, None]))
def test_anything_else_is_refused_in_words(items, container):
    X = container(items) if container and isinstance(items, list) else items
    are_pictures = isinstance(X, (list, tuple)) and all(isinstance(x, Image.Image) for x in X)
    assume(not (are_pictures and X) and not isinstance(X, np.ndarray))
    assert_refused(
        X,
        *("X is ", "X[", "not a file path", "do not exist", "pass np.stack", "pass torch.stack"),
        *("cannot be read as an image", "mode 'I'", "mode 'F'", "tables are not images"),
    )


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


@reproducible(200)
@given(st.lists(st.tuples(ITEMS, st.booleans()), min_size=1, max_size=3))
def test_items_of_data_sets_are_images_or_refused_by_their_number(items):
    data = Items([(item, 7) if labelled else item for item, labelled in items])
    images, message = tried(lambda: ImageDataset(data, image_size=(3, 5)))
    if images is None:
        assert "X[0]" in message
        return
    for i in range(len(data)):
        item, message = tried(lambda i=i: images[i])
        if item is None:
            assert f"X[{i}]" in message
        else:
            image, _ = item
            assert image.shape == (images.n_channels, 3, 5)
            assert image.dtype == torch.uint8 or (image.min() >= 0 and image.max() <= 1)


def tried(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, or None and the message of its refusal."""
    try:
        return call(), ""
    except (ValueError, TypeError) as error:
        return None, str(error)


@reproducible(150)
@given(
    st.one_of(
        st.integers(-3, 9),
        st.floats(),
        st.text(max_size=2),
        st.booleans(),
        st.none(),
        st.lists(st.integers(-1, 9) | st.floats(1, 9) | st.booleans(), max_size=3),
        st.tuples(st.integers(-1, 9), st.integers(-1, 9)),
    )
)
def test_sizes_are_one_or_two_positive_ints(size):
    sides = [size, size] if type(size) is int else size
    fits = isinstance(sides, (list, tuple)) and len(sides) == 2
    X = np.zeros((1, 4, 6), dtype=np.uint8)
    if fits and all(type(side) is int and side > 0 for side in sides):
        assert ImageDataset(X, image_size=size)[0][0].shape == (1, *sides)
        assert map_to_frame(torch.zeros(2, 3, 3), size).shape == (2, *sides)
    else:
        is_triple = isinstance(size, list) and len(size) == 3  # that of volumes
        words = "must be" if is_triple else "must be a positive int or a pair"
        with pytest.raises(ValueError, match=f"image_size {words}"):
            ImageDataset(X, image_size=size)
        with pytest.raises(ValueError, match="size must be a positive int or a pair"):
            map_to_frame(torch.zeros(2, 3, 3), size)


SIDES = st.integers(1, 24)


@reproducible(150)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 99))
def test_stretching_forth_and_back_keeps_a_plane(height, width, to_height, to_width, seed):
    """A constant map is itself in any frame, and no map leaves its range."""
    map_ = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
    there = map_to_frame(map_, (to_height, to_width))
    assert there.shape == (to_height, to_width)
    assert map_.min() - 1e-6 <= there.min()
    assert there.max() <= map_.max() + 1e-6
    back = map_to_frame(torch.full((to_height, to_width), 0.7), (height, width))
    torch.testing.assert_close(back, torch.full((height, width), 0.7))
    assert torch.equal(map_to_frame(map_, (height, width)), map_)


@reproducible(150)
@given(SIDES, SIDES, SIDES, SIDES)
def test_a_map_of_a_centre_crop_lies_where_the_image_was_seen(height, width, rows, columns):
    """Of an image whose pixels are ones, the crop's map of ones covers what the crop had."""
    put_back = map_to_frame(torch.ones(rows, columns), (height, width), resize="center_crop")
    assert put_back.shape == (height, width)
    seen = put_back > 0
    torch.testing.assert_close(put_back[seen], torch.ones(int(seen.sum())))
    # The crop has the network's proportions, is as large as fits, and lies in the middle: its
    # edges in pixels of the image, known to a pixel of the scaled image and half of one of this.
    scale = max(rows / height, columns / width)
    if not seen.any():  # it lies between the centres of two rows, or of two columns
        assert min(rows, columns) / scale <= 1
        return
    for axis, (side, length) in enumerate(((height, rows), (width, columns))):
        first, last = side / 2 - length / scale / 2, side / 2 + length / scale / 2
        centres = torch.arange(side) + 0.5
        along = seen.any(dim=1 - axis)
        slack = 1.5 / scale
        assert along[(centres > first + slack) & (centres < last - slack)].all()
        assert not along[(centres < first - slack) | (centres > last + slack)].any()


@reproducible(150)
@given(
    st.integers(1, 4),
    st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.float64]),
    st.lists(st.floats(-2, 2), min_size=1, max_size=4),
    st.lists(st.floats(-0.5, 2), min_size=1, max_size=4),
)
def test_normalising_is_arithmetic_or_refused(n_channels, dtype, mean, std):
    batch = torch.from_numpy(filled((2, n_channels, 3, 2), np.dtype("float64"), "inside", 0))
    batch = (batch * 255).to(dtype) if dtype == torch.uint8 else batch.to(dtype)
    precision = np.float32 if dtype == torch.uint8 else batch.numpy().dtype
    fit = all(len(of) in (1, n_channels) for of in (mean, std))
    if not fit or min(np.array(std, precision)) <= 0:
        with pytest.raises(ValueError, match=r"has \d values, but|std must be finite and positive"):
            normalize(batch, mean, std)
        return
    floats = batch.double().numpy() / (255 if dtype == torch.uint8 else 1)
    first, second = (np.reshape(np.array(of, precision), (-1, 1, 1)) for of in (mean, std))
    assume(second.min() > 1e-3)  # what is divided by less is large, and half precision ends early
    expected = (floats - first.astype(float)) / second.astype(float)
    found = normalize(batch, mean, std)
    assert found.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    close = {"rtol": 4e-3, "atol": 4e-3 / second.min()} if dtype == torch.float16 else {}
    close = close or {"rtol": 1e-5, "atol": 1e-6 / second.min()}
    np.testing.assert_allclose(found.double().numpy(), expected, **close)
