"""Tests of sklcam.datasets, on tiny folders in the formats of the real ones, painted by hand."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits as load_table
from sklearn.model_selection import train_test_split
from small_networks import SmallNet
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from sklcam import CAMExplainer
from sklcam.datasets import (
    LazyMask,
    find_images,
    load_boxes_csv,
    load_caltech101,
    load_class_folders,
    load_cub200,
    load_digits,
    load_imagenet,
    load_voc,
)
from sklcam.images import ImageDataset, dataset_labels
from sklcam.metrics import box_masks, evaluate

# The object of the painted images: rows 2 to 4 and columns 3 to 9, in 12 columns and 8 rows.
SIZE, ROWS, COLUMNS = (8, 12), slice(2, 5), slice(3, 10)
EDGES = [[3.0, 2.0, 10.0, 5.0]]
PAINTED = np.zeros(SIZE, dtype=bool)
PAINTED[ROWS, COLUMNS] = True
WHOLE = [[0.0, 0.0, 12.0, 8.0]]


def save_image(path: Path, pixels=PAINTED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.where(pixels, np.uint8(255), np.uint8(0))
    Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def is_painted(boxes, mask=None):
    """The box covers the painted pixels, all of them and no others, and so does the mask."""
    assert boxes.dtype == np.float64
    assert boxes.tolist() == EDGES
    assert_array_equal(box_masks([torch.tensor(boxes)], SIZE)[0], PAINTED)
    if mask is not None:
        assert np.asarray(mask).dtype == bool
        assert_array_equal(np.asarray(mask), PAINTED)
    return True


def names(paths):
    return ["/".join(Path(path).parts[-2:]) for path in paths]


# Digits


def test_digits_are_images_of_the_table():
    X, y = load_table(return_X_y=True)
    digits = load_digits()
    assert digits.data.shape == (1797, 8, 8)
    assert digits.data.dtype == np.float32
    assert_array_equal(digits.data.reshape(-1, 64) * 16, X)
    assert_array_equal(digits.target, y)
    assert digits.boxes is None
    assert digits.masks is None
    few = load_digits(n_class=2)
    assert few.target_names.tolist() == [0, 1]
    assert len(few.data) == len(few.target) == np.isin(y, [0, 1]).sum()
    ImageDataset(few.data, few.target)


# Class folders


@pytest.fixture
def pets(tmp_path):
    """Images, and what is none, for two classes."""
    root = tmp_path / "pets"
    for name in ("dog/b.PNG", "dog/a.jpeg", "cat/deep/down/1.bmp", "cat/2.jpg", "dog/.hidden.png"):
        save_image(root / name)
    write(root / "dog" / "notes.txt", "good")
    write(root / "README.md", "pets")
    save_image(root / ".cache" / "thumb.png")
    save_image(root / "cat" / ".cache" / "thumb.png")
    return root


def test_class_folders(pets):
    loaded = load_class_folders(pets)
    assert names(loaded.data) == ["cat/2.jpg", "down/1.bmp", "dog/a.jpeg", "dog/b.PNG"]
    assert all(type(path) is str for path in loaded.data)
    assert loaded.target.tolist() == ["cat", "cat", "dog", "dog"]
    assert loaded.target_names.tolist() == ["cat", "dog"]
    assert loaded.boxes is None
    assert loaded.masks is None
    assert str(pets) in loaded.DESCR
    assert ImageDataset(loaded.data, loaded.target, image_size=8)[3][1] == "dog"


def test_images_in_a_folder(pets):
    save_image(pets / "first.png")
    found = find_images(pets)
    assert found == [*load_class_folders(pets).data, str(pets / "first.png")]


@pytest.mark.parametrize("labels", [("cat", "dog"), ("",)])
@pytest.mark.parametrize(
    "splits",
    [
        *(("train", "val"), ("Train", "test", "valid"), ("test",), ("training_set", "test_set")),
        *(("train2017", "val2017", "annotations"), ("dev", "eval"), ("TRAINING", "validation")),
    ],
)
def test_folders_of_splits_are_not_classes(splits, labels, tmp_path):
    """Read as classes, they would train a classifier that tells training from test images."""
    for split in splits:
        for label in labels:
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / label / "1.png")
    with pytest.raises(ValueError, match=r"holds the splits .*, which are not classes.*Load each"):
        load_class_folders(tmp_path)
    files = ImageFolder(str(tmp_path))
    for X in (files, Subset(files, [0])):
        with pytest.raises(ValueError, match=r"folders of splits, .*Make a data set of each"):
            dataset_labels(X)
    if labels != ("",):
        assert load_class_folders(tmp_path / splits[0]).target.tolist() == ["cat", "dog"]
        assert dataset_labels(ImageFolder(str(tmp_path / splits[0]))).tolist() == [0, 1]


def test_a_class_may_be_called_train(tmp_path):
    for label in ("bus", "train", "tester"):
        (tmp_path / label / "side").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / label / "side" / "1.png")
    assert load_class_folders(tmp_path).target.tolist() == ["bus", "tester", "train"]


@pytest.mark.parametrize("beside", [True, False])
def test_boxes_of_class_folders(pets, beside):
    """Paths count from the CSV file's folder or from the root; other splits' rows do not matter."""
    save_image(pets.parent / "other" / "dog" / "z.png")
    prefix = "pets/" if beside else ""
    table = write(
        pets.parent / "boxes.csv",
        "x1,y1,x2,y2,path,score\n"
        f"3,2,10,5,{prefix}dog/b.PNG,1\n"
        "0,0,1,1,other/dog/z.png,1\n"
        "\n"
        f"0,0,1.5,1,{prefix}cat/deep/down/1.bmp,1\n"
        f"2,2,4,4,{prefix}cat/deep/down/1.bmp,1\n",
    )
    boxes = load_class_folders(pets, boxes=table).boxes
    assert [of_image.tolist() for of_image in boxes[:3]] == [
        [],
        [[0, 0, 1.5, 1], [2, 2, 4, 4]],
        [],
    ]
    assert boxes[0].shape == (0, 4)
    assert is_painted(boxes[3])


def test_boxes_of_class_folders_that_are_links_or_relative(pets, monkeypatch):
    table = write(pets.parent / "boxes.csv", "path,x1,y1,x2,y2\npets/dog/b.PNG,3,2,10,5\n")
    link = pets.parent / "link"
    link.symlink_to(pets, target_is_directory=True)
    assert is_painted(load_class_folders(link, boxes=table).boxes[3])
    monkeypatch.chdir(pets)
    assert is_painted(load_class_folders(".", boxes="../boxes.csv").boxes[3])
    for folder in (pets, link):
        row = f"path,x1,y1,x2,y2\n{folder}/dog/b.PNG,3,2,10,5\n"
        absolute = write(pets.parent / "sub" / "boxes.csv", row)
        assert is_painted(load_class_folders(pets, boxes=absolute).boxes[3])
        assert is_painted(load_class_folders(link, boxes=absolute).boxes[3])


def test_boxes_with_labels_are_those_of_the_images_class(pets):
    rows = "dog/b.PNG,cat,0,0,1,1\ndog/b.PNG,dog,3,2,10,5\ncat/2.jpg,,3,2,10,5\n"
    table = write(pets / "boxes.csv", "path,label,x1,y1,x2,y2\n" + rows)
    boxes = load_class_folders(pets, boxes=table).boxes
    assert is_painted(boxes[3])
    assert is_painted(boxes[0])
    write(table, "path,label,x1,y1,x2,y2\ndog/b.PNG,cat,0,0,1,1\n")
    with pytest.raises(ValueError, match=r"b\.PNG is of class 'dog', .* boxes are of: cat"):
        load_class_folders(pets, boxes=table)


def test_boxes_csv_has_an_entry_for_each_image_and_label(tmp_path):
    for name in ("b", "a"):
        save_image(tmp_path / "images" / f"{name}.png")
    rows = [
        "images/b.png,pear,0,0,2,2",
        "images/b.png,apple,3,2,10,5",
        "images/a.png,apple,1,1,2,2",
        "images/b.png,pear,4,4,6.5,6",
    ]
    table = write(tmp_path / "boxes.csv", "\ufeffpath,label,x1,y1,x2,y2\r\n" + "\r\n".join(rows))
    fruits = load_boxes_csv(str(table))
    assert names(fruits.data) == ["images/b.png", "images/b.png", "images/a.png"]
    assert fruits.target.tolist() == ["pear", "apple", "apple"]
    assert fruits.target_names.tolist() == ["apple", "pear"]
    assert fruits.boxes[0].tolist() == [[0, 0, 2, 2], [4, 4, 6.5, 6]]
    assert is_painted(fruits.boxes[1])
    assert len(ImageDataset(fruits.data)) == 3


# Caltech 101

ANNOTATED = {"Faces": "Faces_2", "Motorbikes": "Motorbikes_16", "ant": "ant"}


@pytest.fixture
def caltech(tmp_path):
    """Five images a class; MATLAB's coordinates, from 1 and with the last pixel."""
    for label in ("BACKGROUND_Google", *ANNOTATED):
        for i in range(1, 6):
            save_image(tmp_path / "101_ObjectCategories" / label / f"image_{i:04d}.jpg")
            if label in ANNOTATED:
                save_outline(tmp_path / "Annotations" / ANNOTATED[label], i)
    return tmp_path


def save_outline(folder, i):
    folder.mkdir(parents=True, exist_ok=True)
    corners = [
        [0, 6, 6, 0, 0],
        [0, 0, 2, 2, 0],
    ]  # x, y; 7 columns and 3 rows, from the box's corner
    path = folder / f"annotation_{i:04d}.mat"
    savemat(
        path,
        {"box_coord": np.uint8([[3, 5, 4, 10]]), "obj_contour": np.array(corners, dtype=float)},
    )
    return path


def test_caltech_boxes_and_masks(caltech):
    loaded = load_caltech101(caltech, subset="all")
    assert names(loaded.data)[:2] == ["Faces/image_0001.jpg", "Faces/image_0002.jpg"]
    assert loaded.target.tolist() == ["Faces"] * 5 + ["Motorbikes"] * 5 + ["ant"] * 5
    assert loaded.target_names.tolist() == ["Faces", "Motorbikes", "ant"]
    assert all(map(is_painted, loaded.boxes, loaded.masks))
    assert "Fei-Fei" in loaded.DESCR


def test_caltech_outlines_that_are_no_rectangles(caltech):
    # A triangle with its right angle at the lower left, on half pixels that round to even numbers.
    path = caltech / "Annotations" / "ant" / "annotation_0001.mat"
    corners = np.array([[0.4, 4.3, -0.4], [-0.3, 3.7, 4.2]])
    savemat(path, {"box_coord": [[2.0, 6.0, 3.0, 7.0]], "obj_contour": corners})
    ant = load_caltech101(caltech, subset="all")
    i = names(ant.data).index("ant/image_0001.jpg")
    expected = np.zeros(SIZE, dtype=bool)
    for k in range(5):
        expected[1 + k, 2 : 3 + k] = True
    assert_array_equal(np.asarray(ant.masks[i]), expected)
    assert ant.boxes[i].tolist() == [[2, 1, 7, 6]]


def test_caltech_splits(caltech):
    def load(**options):
        loaded = load_caltech101(caltech, n_train=3, **options)
        return set(names(loaded.data)), loaded

    train, test, everything = (load(subset=subset)[0] for subset in ("train", "test", "all"))
    assert not train & test
    assert train | test == everything
    assert [len(train), len(test)] == [9, 6]
    assert all(sum(label in name for name in train) == 3 for label in ANNOTATED)
    assert len(load(subset="test", n_test=1)[0]) == 3
    assert load(subset="test", n_test=1)[0] < test
    assert load(subset="test", n_test=None)[0] == test
    assert load()[0] == train
    assert {frozenset(load(random_state=seed)[0]) for seed in range(5)} > {frozenset(train)}
    # Each class is drawn by itself.
    with_background, loaded = load(include_background=True)
    assert with_background - train == {n for n in with_background if "BACKGROUND" in n}
    assert len(with_background) == 12
    assert loaded.data == sorted(loaded.data)
    assert loaded.boxes[0].shape == (0, 4)
    assert not np.asarray(loaded.masks[0]).any()
    assert np.asarray(loaded.masks[0]).shape == SIZE
    assert len({tuple(sorted(n[-8:] for n in train if label in n)) for label in ANNOTATED}) > 1


def test_caltech_without_annotations_and_in_a_folder_of_torchvisions(tmp_path):
    for i in range(2):
        save_image(tmp_path / "caltech101" / "101_ObjectCategories" / "ant" / f"image_000{i}.jpg")
    loaded = load_caltech101(tmp_path, n_train=1)
    assert len(loaded.data) == 1
    assert loaded.boxes is None
    assert loaded.masks is None


# CUB-200-2011


@pytest.fixture
def cub(tmp_path):
    root = tmp_path / "CUB_200_2011"
    images = ["001.Albatross/Alba_1.jpg", "002.Bird two/B_2.jpg", "001.Albatross/Alba_3.jpg"]
    tables = {
        "images": [f"{i + 1} {name}" for i, name in enumerate(images)],
        "classes": ["1 001.Albatross", "2 002.Bird two", "3 003.Unseen"],
        "image_class_labels": ["1 1", "2 2", "3 1"],
        "train_test_split": ["1 0", "2 1", "3 1"],
        "bounding_boxes": ["1 3.0 2.0 7.0 3.0", "2 0.0 0.0 12.0 8.0", "3 3.0 2.0 7.0 3.0"],
    }
    for name, lines in tables.items():
        write(root / f"{name}.txt", "\n".join(lines) + "\n")
    for name in images:
        save_image(root / "images" / name)
    return root


def segment(folder, mode="L"):
    """Means over five annotators: three of five make the object."""
    pixels = np.where(PAINTED, 153, 102).astype(np.uint8)
    for name in ("001.Albatross/Alba_1", "002.Bird two/B_2", "001.Albatross/Alba_3"):
        path = folder / "segmentations" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path)


@pytest.mark.parametrize("at", ["itself", "above"])
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_cub(cub, at, mode):
    segment(cub if at == "itself" else cub.parent, mode)
    train = load_cub200(cub if at == "itself" else cub.parent)
    assert names(train.data) == ["002.Bird two/B_2.jpg", "001.Albatross/Alba_3.jpg"]
    assert train.target.tolist() == ["002.Bird two", "001.Albatross"]
    assert train.target_names.tolist() == ["001.Albatross", "002.Bird two", "003.Unseen"]
    assert train.boxes[0].tolist() == WHOLE
    assert is_painted(train.boxes[1], train.masks[1])
    assert names(load_cub200(cub, subset="test").data) == ["001.Albatross/Alba_1.jpg"]
    assert len(load_cub200(cub, subset="all").data) == 3
    assert len(ImageDataset(train.data)) == 2


def test_cub_without_segmentations(cub):
    assert load_cub200(cub).masks is None


def test_from_128_on_a_pixel_is_the_birds(cub):
    segment(cub)
    pixels = np.full(SIZE, 127, dtype=np.uint8)
    pixels[0, 0] = 128
    Image.fromarray(pixels).save(cub / "segmentations" / "001.Albatross" / "Alba_1.png")
    mask = np.asarray(load_cub200(cub, subset="test").masks[0])
    assert mask[0, 0] and mask.sum() == 1


# XML: PASCAL VOC and ImageNet


def xml(*objects, size=(12, 8)):
    """An annotation of objects (name, box, difficult), with parts that have names and boxes."""
    text = "".join(
        f"<object><name>{name}</name><pose>Left</pose><difficult>{difficult}</difficult>"
        + "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>".format(
            *box
        )
        + "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
        "</bndbox></part></object>"
        for name, box, difficult in objects
    )
    width, height = size
    return (
        f"<annotation><filename>x</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>3</depth></size>{text}</annotation>"
    )


FROM_1, FROM_0 = (4, 3, 10, 5), (3, 2, 9, 4)  # the painted object, the last pixel included


@pytest.fixture
def voc(tmp_path):
    home = tmp_path / "VOCdevkit" / "VOC2012"
    annotations = {
        "2007_1": [
            ("person", (1, 1, 12, 8), 0),
            ("dog", FROM_1, 0),
            ("dog", (1, 1, 2, 2), 0),
            ("dog", (5, 5, 6, 6), 1),
        ],
        "2007_2": [("cat", FROM_1, 1), ("bird", FROM_1, 0)],
        "2007_3": [("cat", FROM_1, 1)],
    }
    for name, objects in annotations.items():
        write(home / "Annotations" / f"{name}.xml", xml(*objects))
        save_image(home / "JPEGImages" / f"{name}.jpg")
    write(home / "ImageSets" / "Main" / "val.txt", "2007_2\n2007_1\n2007_3\n")
    write(home / "ImageSets" / "Main" / "train.txt", "2007_1\n")
    write(home / "ImageSets" / "Segmentation" / "val.txt", "2007_1\n2007_2\n")
    return tmp_path


def save_segmentation(root, name, number):
    """The painted object in a ring of void, as a palette."""
    pixels = np.zeros(SIZE, dtype=np.uint8)
    pixels[1:6, 2:11] = 255
    pixels[PAINTED] = number
    image = Image.fromarray(pixels)
    image.putpalette(list(range(256)) * 3)
    path = root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    assert Image.open(path).mode == "P"


def test_voc_has_an_entry_for_each_image_and_class(voc):
    loaded = load_voc(voc)
    assert names(loaded.data) == [f"JPEGImages/2007_{i}.jpg" for i in (2, 1, 1)]
    assert loaded.target.tolist() == ["bird", "dog", "person"]
    assert loaded.target_names.shape == (20,)
    assert is_painted(loaded.boxes[0])
    assert loaded.boxes[1].tolist() == [*EDGES, [0, 0, 2, 2]]
    assert loaded.boxes[2].tolist() == WHOLE
    assert loaded.masks is None
    assert load_voc(voc, subset="train").target.tolist() == ["dog", "person"]


def test_voc_with_difficult_objects(voc):
    loaded = load_voc(voc, difficult=True)
    assert loaded.target.tolist() == ["bird", "cat", "dog", "person", "cat"]
    assert loaded.boxes[2].tolist() == [*EDGES, [0, 0, 2, 2], [4, 4, 6, 6]]


def test_voc_segmentations(voc):
    save_segmentation(voc, "2007_2", 3)
    save_segmentation(voc, "2007_1", 12)
    loaded = load_voc(voc, segmentation=True)
    assert loaded.target.tolist() == ["dog", "person", "bird"]
    assert is_painted(loaded.boxes[2], loaded.masks[2])
    assert_array_equal(np.asarray(loaded.masks[0]), PAINTED)
    assert not np.asarray(loaded.masks[1]).any()


def test_classes_of_voc_have_the_numbers_of_its_development_kit(voc):
    numbers = {"aeroplane": 1, "car": 7, "dog": 12, "person": 15, "tvmonitor": 20}
    home = voc / "VOCdevkit" / "VOC2012"
    for label, number in numbers.items():
        save_segmentation(voc, "2007_1", number)
        write(home / "Annotations" / "2007_1.xml", xml((label, FROM_1, 0)))
        write(home / "ImageSets" / "Segmentation" / "train.txt", "2007_1\n")
        loaded = load_voc(voc, subset="train", segmentation=True)
        assert is_painted(loaded.boxes[0], loaded.masks[0])


@pytest.mark.parametrize("place", ["VOCdevkit", ".", "VOCdevkit/VOC2012"])
def test_voc_is_found_from_within(voc, place):
    assert len(load_voc(voc / place).data) == 3


@pytest.mark.parametrize("layout", ["folders", "kaggle", "kaggle above", "own annotations"])
def test_imagenet(tmp_path, layout):
    base = tmp_path / "ILSVRC" if layout.startswith("kaggle") else tmp_path
    images = base / "Data" / "CLS-LOC" / "train" if "kaggle" in layout else base / "train"
    marked = tmp_path / "boxes" if layout == "own annotations" else base / "Annotations/CLS-LOC"
    marked = marked if layout == "own annotations" else marked / "train"
    for name in ("n02/n02_2", "n01/n01_1", "n02/n02_1"):
        save_image((images / name).with_suffix(".JPEG"))
    write(marked / "n02" / "n02_1.xml", xml(("n02", FROM_0, 0), ("n02", (0, 0, 11, 7), 0)))
    write(marked / "n01" / "n01_1.xml", xml(("n01", FROM_0, 0)))
    options = {"annotations": marked} if layout == "own annotations" else {}
    loaded = load_imagenet(base if layout == "kaggle" else tmp_path, subset="train", **options)
    assert names(loaded.data) == ["n01/n01_1.JPEG", "n02/n02_1.JPEG", "n02/n02_2.JPEG"]
    assert loaded.target.tolist() == ["n01", "n02", "n02"]
    assert is_painted(loaded.boxes[0])
    assert loaded.boxes[1].tolist() == EDGES + WHOLE
    assert loaded.boxes[2].shape == (0, 4)


def test_imagenet_with_the_same_names_in_several_classes(tmp_path):
    for label in ("n01", "n02", "n03"):
        save_image(tmp_path / "val" / label / "1.JPEG")
    for label, box in (("n01", FROM_0), ("n03", (0, 0, 11, 7))):
        write(tmp_path / "Annotations/CLS-LOC/val" / label / "1.xml", xml((label, box, 0)))
    boxes = load_imagenet(tmp_path).boxes
    assert [of_image.tolist() for of_image in boxes] == [EDGES, [], WHOLE]


def test_imagenet_with_all_validation_images_in_one_folder(tmp_path):
    for i, label in enumerate(["n09", "n05"]):
        save_image(tmp_path / "val" / f"ILSVRC2012_val_{i}.JPEG")
        file = tmp_path / "Annotations" / "CLS-LOC" / "val" / f"ILSVRC2012_val_{i}.xml"
        write(file, xml((label, FROM_0, 0)))
    loaded = load_imagenet(tmp_path)
    assert loaded.target.tolist() == ["n09", "n05"]
    assert loaded.target_names.tolist() == ["n05", "n09"]
    assert all(map(is_painted, loaded.boxes))


def test_imagenet_without_xml_has_no_boxes(tmp_path):
    save_image(tmp_path / "val" / "n01" / "1.JPEG")
    assert load_imagenet(tmp_path).boxes is None


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        ((9, 4, 3, 2), (12, 8), EDGES),  # the corners swapped
        ((9, 2, 3, 4), (0, 0), EDGES),  # no size given
        ((-3, 4, 20, 8), (12, 8), [[0, 4, 12, 8]]),  # beyond the image
        ((12, 0, 14, 3), (12, 8), []),  # outside
        ((5, 5, 5, 5), (12, 8), [[5, 5, 6, 6]]),  # one pixel
    ],
)
def test_odd_boxes_of_imagenet(tmp_path, box, size, expected):
    save_image(tmp_path / "val" / "n01" / "1.JPEG")
    write(tmp_path / "Annotations/CLS-LOC/val/1.xml", xml(("n01", box, 0), size=size))
    assert load_imagenet(tmp_path).boxes[0].tolist() == expected


# Masks


def test_masks_are_read_when_asked_for_and_not_before(cub):
    segment(cub)
    birds = load_cub200(cub, subset="all")
    (cub / "segmentations" / "002.Bird two" / "B_2.png").unlink()
    assert isinstance(birds.masks, np.ndarray)
    assert birds.masks.dtype == object
    assert all(isinstance(mask, LazyMask) for mask in birds.masks[0:3])
    copy = pickle.loads(pickle.dumps(birds))
    for masks in (birds.masks, copy.masks, birds.masks[[0, 1]], birds.masks[:2]):
        assert_array_equal(np.asarray(masks[0]), PAINTED)
        with pytest.raises(FileNotFoundError, match=r"B_2\.png"):
            np.asarray(masks[1])
    np.testing.assert_array_equal(np.asarray(birds.masks[2], dtype=float).sum(), PAINTED.sum())


def test_outlines_are_read_when_asked_for(caltech):
    loaded = load_caltech101(caltech, subset="all")
    (caltech / "Annotations" / "ant" / "annotation_0005.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"annotation_0005\.mat"):
        np.asarray(loaded.masks[-1])
    assert np.asarray(loaded.masks[-2]).any()


def test_splits_of_scikit_learn_keep_images_boxes_and_masks_together(caltech):
    home = caltech / "101_ObjectCategories" / "ant"
    save_image(home / "image_0004.jpg", np.zeros((20, 30), dtype=np.uint8))
    loaded = load_caltech101(caltech, subset="all")
    parts = train_test_split(
        loaded.data, loaded.target, loaded.masks, loaded.boxes, random_state=0, test_size=0.4
    )
    for data, target, masks, boxes in (parts[::2], parts[1::2]):
        assert masks.dtype == object
        assert len(data) == len(boxes) == len(target) == len(masks)
        for path, label, mask in zip(data, target, masks, strict=True):
            assert Path(path).parent.name == label
            with Image.open(path) as image:
                assert np.asarray(mask).shape == (image.height, image.width)


# From the files to the metrics


@pytest.fixture
def explained(cub):
    """A network, and what it is measured on; the second box is of the whole image."""
    segment(cub)
    birds = load_cub200(cub, subset="all")
    torch.manual_seed(0)
    network = SmallNet(num_classes=3, in_channels=3).eval()
    options = {"target_layer": "5", "image_size": 16, "verbose": 0}
    explainer = CAMExplainer(network, classes=birds.target_names, **options).fit(birds.data)
    return explainer, birds


@pytest.mark.parametrize("truth", ["boxes", "masks"])
def test_an_even_map_has_a_boxs_share_of_the_image_in_it(explained, truth):
    explainer, birds = explained
    options = {"target": birds.target, "method": "uniform", "progress": False, truth: birds[truth]}
    result = evaluate(explainer, birds.data, metrics="heatmap_ratio", **options)
    share = 21 / 96
    whole = 1 if truth == "boxes" else share
    assert result["heatmap_ratio"] == pytest.approx([share, whole, share], abs=1e-6)


@pytest.mark.parametrize("truth", ["boxes", "masks"])
def test_the_pointing_game_in_the_frame_of_the_image(explained, truth):
    explainer, birds = explained
    options = {"target": birds.target, "method": "gradcam", "progress": False}
    maps = explainer.explain(birds.data, target=birds.target, method="gradcam", frame="image")
    inside = np.array([PAINTED, np.ones(SIZE) if truth == "boxes" else PAINTED, PAINTED])
    hits = [mask.flat[map_.argmax()] for map_, mask in zip(maps, inside, strict=True)]
    result = evaluate(
        explainer, birds.data, metrics="pointing_game", **options, **{truth: birds[truth]}
    )
    assert result["pointing_game"].tolist() == hits
    assert hits == [True, truth == "boxes", True]


# Downloads


class Recorder:
    """Stands for a data set of torchvision: notes the call, and makes what it would leave."""

    def __init__(self, make):
        self.calls, self.make = [], make

    def __call__(self, *args, **options):
        self.calls.append((args, options))
        self.make()


def test_caltech_is_downloaded_where_it_is_missing(tmp_path, monkeypatch):
    folder = tmp_path / "caltech101" / "101_ObjectCategories" / "ant"
    recorder = Recorder(lambda: [save_image(folder / f"image_000{i}.jpg") for i in range(2)])
    monkeypatch.setattr("torchvision.datasets.Caltech101", recorder)
    for _ in range(2):
        assert len(load_caltech101(tmp_path, n_train=1, download=True).data) == 1
    options = {"target_type": ["category", "annotation"], "download": True}
    assert recorder.calls == [((tmp_path,), options)]


def test_voc_is_downloaded_where_it_is_missing(voc, monkeypatch):
    main = voc / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    recorder = Recorder(lambda: write(main / "trainval.txt", "2007_1"))
    monkeypatch.setattr("torchvision.datasets.VOCDetection", recorder)
    load_voc(voc, download=True)
    assert recorder.calls == []
    for _ in range(2):
        assert len(load_voc(voc, subset="trainval", download=True).data) == 2
    assert recorder.calls == [((voc,), {"year": "2012", "image_set": "trainval", "download": True})]


# Errors at the door


def test_a_class_without_images_is_named(pets):
    write(pets / "emu" / "notes.txt", "none yet")
    with pytest.raises(ValueError, match=r"pets/emu has no files .*\.jpg.* Add images to it, or"):
        load_class_folders(pets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,x1,y1,x2\n", r"must name the columns path, .*y2 .* it has path, x1, y1, x2\."),
        ("", "in its first line; it has none"),
        ("dog/b.PNG,1,2,3,4\n", "must name the columns"),
        ("path,x1,y1,x2,y2\n\ndog/b.PNG,1,2,three,4\n", "line 3: a box must be four numbers; .*th"),
        ("path,x1,y1,x2,y2\ndog/b.PNG,1,2,1,4\n", "csv, line 2: .* x1 < x2 and y1 < y2; got"),
        ("path,x1,y1,x2,y2\ndog/b.PNG,1,2,3,1\n", "line 2: .* y1 < y2; got"),
        ("path,x1,y1,x2,y2\ndog/b.PNG,1,2,inf,4\n", "line 2: .* y1 < y2; got"),
        ("path,x1,y1,x2,y2\ndog/b.PNG,nan,2,3,4\n", "line 2: .* y1 < y2; got"),
        ("path,x1,y1,x2,y2\ndog/b.PNG,1,2,3\n", "must have 5 entries, one per column"),
        ("path,x1,y1,x2,y2\ndog/b.PNG,1,2,3,4,5\n", "line 2: the line must have 5 entries"),
        ("path,x1,y1,x2,y2\ndog/emu.png,1,2,3,4\n", r"line 2: there is no image 'dog/emu\.png'"),
        ("path,x1,y1,x2,y2\ndog/notes.txt,1,2,3,4\n", "line 2: there is no image"),
        ("path,x1,y1,x2,y2\n../nowhere.png,1,2,3,4\n", "line 2: there is no image"),
    ],
)
def test_wrong_csv_files(pets, text, message):
    table = write(pets / "boxes.csv", text)
    with pytest.raises(ValueError, match=message):
        load_class_folders(pets, boxes=table)


def test_wrong_labelled_csv_files(tmp_path):
    table = write(tmp_path / "boxes.csv", "path,x1,y1,x2,y2\n")
    with pytest.raises(ValueError, match="must name the columns path, label, x1"):
        load_boxes_csv(table)
    table.write_bytes(b"\x91")
    with pytest.raises(ValueError, match="cannot be read as a CSV"):
        load_boxes_csv(table)
    write(table, "path,label,x1,y1,x2,y2\n")
    with pytest.raises(ValueError, match="no images in this data set"):
        load_boxes_csv(table)
    write(table, "path,label,x1,y1,x2,y2\na.png,cat,1,2,3,4\n")
    with pytest.raises(FileNotFoundError, match=r"line 2: there is no file .*a\.png"):
        load_boxes_csv(table)
    write(table, "path,label,x1,y1,x2,y2\na.png,,1,2,3,4\n")
    with pytest.raises(ValueError, match="line 2: the label is empty"):
        load_boxes_csv(table)


@pytest.mark.parametrize("n_train", [0, 5, 30])
def test_caltech_classes_must_have_images_left_for_testing(caltech, n_train):
    with pytest.raises(ValueError, match=rf"from 1 to 4, as 'Faces' has 5 images .*got {n_train}"):
        load_caltech101(caltech, n_train=n_train)


def test_wrong_annotations_of_caltech(caltech):
    path = caltech / "Annotations" / "Faces_2" / "annotation_0002.mat"
    for content in ({"box_coord": [[1, 2, 3]], "obj_contour": np.ones((2, 3))}, {"other": 1}):
        savemat(path, content)
        with pytest.raises(ValueError, match=r"_0002\.mat must hold box_coord, .* obj_contour"):
            load_caltech101(caltech, subset="all")
    savemat(path, {"box_coord": [[5, 3, 4, 10]], "obj_contour": np.ones((2, 3))})
    with pytest.raises(ValueError, match=r"_0002\.mat: a box must be .* y1 < y2"):
        load_caltech101(caltech, subset="all")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"image_0002\.jpg has no annotation .*Faces_2"):
        load_caltech101(caltech, subset="all")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bounding_boxes", "1 3 2 7 3\n", r"bounding_boxes\.txt has no line for '2'"),
        ("bounding_boxes", "1 3 2 7\n2 1 1 1\n3 0 0 0 0\n", "image 2: a box must be four numbers"),
        ("bounding_boxes", "2 1 1 0 2\n", "image 2: a box must be .* x1 < x2"),
        ("classes", "1 001.Albatross\n", r"classes\.txt has no line for '2'"),
        ("train_test_split", "1 0\n2 1\n", r"train_test_split\.txt has no line for '3'"),
    ],
)
def test_files_of_cub_that_do_not_fit(cub, name, text, message):
    write(cub / f"{name}.txt", text)
    with pytest.raises(ValueError, match=message):
        load_cub200(cub)


def test_files_of_cub_that_are_missing(cub):
    (cub / "classes.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"(?s)has no classes\.txt\. The expected layout is:.*images/"
    ):
        load_cub200(cub)


GOOD = xml(("dog", FROM_1, 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD[:-5], r"2007_1\.xml cannot be read as XML"),
        (GOOD.replace("<name>dog</name>", ""), r"2007_1\.xml: an <object> has no <name>"),
        (GOOD.replace("ymax", "bottom"), r"xml: <object> must have a number in <bndbox/ymax>"),
        (GOOD.replace(">10<", ">ten<"), r"<bndbox/xmax>; got 'ten'"),
        (GOOD.replace(">12<", ">wide<"), r"<annotation> must have a number in <size/width>"),
        (GOOD.replace("dog", "unicorn"), r"2007_1\.xml must be one of aeroplane, .*'unicorn'"),
    ],
)
def test_wrong_xml_files(voc, text, message):
    write(voc / "VOCdevkit" / "VOC2012" / "Annotations" / "2007_1.xml", text)
    with pytest.raises(ValueError, match=message):
        load_voc(voc, subset="train")


def test_fields_that_xml_files_may_lack(voc):
    text = GOOD.replace("<difficult>0</difficult>", "").replace("<width>12</width>", "")
    write(voc / "VOCdevkit" / "VOC2012" / "Annotations" / "2007_1.xml", text)
    assert is_painted(load_voc(voc, subset="train").boxes[0])


def test_files_of_voc_that_are_missing(voc):
    with pytest.raises(FileNotFoundError, match=r"ImageSets/Main/trainval\.txt"):
        load_voc(voc, subset="trainval")
    (voc / "VOCdevkit" / "VOC2012" / "Annotations" / "2007_1.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"2007_1\.xml"):
        load_voc(voc)


def test_wrong_folders_of_imagenet(tmp_path):
    save_image(tmp_path / "val" / "1.JPEG")
    with pytest.raises(ValueError, match=r"class of .*1\.JPEG is not known, .*no XML file"):
        load_imagenet(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty" / "val" / "1.xml", xml(("n01", FROM_0, 0)))
    with pytest.raises(FileNotFoundError, match=r"(?s)empty has no XML file for any .*\[<wnid>/\]"):
        load_imagenet(tmp_path, annotations=tmp_path / "empty")
    save_image(tmp_path / "val" / "n01" / "2.JPEG")
    write(tmp_path / "boxes" / "2.xml", xml(("n02", FROM_0, 0)))
    with pytest.raises(ValueError, match=r"2\.JPEG is of class 'n01', but .* of: n02"):
        load_imagenet(tmp_path, annotations=tmp_path / "boxes")
