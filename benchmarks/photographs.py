"""The pretrained network on photographs: its predictions, and its maps with the loss.

    python benchmarks/photographs.py --named --data DIR --fruits DIR
    python benchmarks/photographs.py --data DIR --output docs/images/photographs.png

``--named`` counts how often the network's five most likely classes are right, on photographs whose
class is plain: those of Caltech 101 and of fruit whose class is also in ImageNet.

Without ``--named``, the network is fine-tuned twice on some classes of Caltech 101, on labels alone
and with the consistency loss. Both networks explain the photographs that come with scikit-image and
scikit-learn, which they have not seen. The maps of photographs and of their views are drawn, and
measured over many views; accuracy and consistency are measured on the test images of Caltech 101.
The correlation between the maps of two photographs is the control: maps that are the same for all
images are consistent, but explain nothing.

DIR holds ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``, or is Caltech 101 as published. The
folder of fruit holds ``boxes.csv``, with ``path`` and ``label``, and ``images``.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from training_runs import likeness, weight

from sklcam import CAMExplainer, ConsistentCAMClassifier, ViewPairDisplay
from sklcam.cam import GradCAM
from sklcam.datasets import load_caltech101, load_class_folders
from sklcam.metrics import evaluate

# Classes of Caltech 101 whose objects are, more or less, in the photographs.
CLASSES = ("Faces", "Motorbikes", "cougar_face", "cup", "pagoda", "sunflower")
# Classes of Caltech 101 and of fruit that ImageNet has: by the same name, by another name, or as
# kinds that cover nearly all of the images. It does not have apples and pagodas.
NAMES = {
    "accordion": ("accordion",),
    "airplanes": ("airliner", "warplane"),
    "ant": ("ant",),
    "banana": ("banana",),
    "barrel": ("barrel", "rain barrel"),
    "beaver": ("beaver",),
    "binocular": ("binoculars",),
    "cannon": ("cannon",),
    "cellphone": ("cellular telephone",),
    "cougar_body": ("cougar",),
    "cougar_face": ("cougar",),
    "crayfish": ("crayfish",),
    "cup": ("cup", "coffee mug"),
    "dalmatian": ("dalmatian",),
    "dragonfly": ("dragonfly",),
    "electric_guitar": ("electric guitar",),
    "elephant": ("African elephant", "Indian elephant", "tusker"),
    "flamingo": ("flamingo",),
    "flamingo_head": ("flamingo",),
    "grand_piano": ("grand piano",),
    "lamp": ("table lamp",),
    "laptop": ("laptop", "notebook"),
    "Leopards": ("leopard",),
    "llama": ("llama",),
    "lobster": ("American lobster", "spiny lobster"),
    "nautilus": ("chambered nautilus",),
    "orange": ("orange",),
    "panda": ("giant panda",),
    "pizza": ("pizza",),
    "platypus": ("platypus",),
    "revolver": ("revolver",),
    "rooster": ("cock",),
    "saxophone": ("sax",),
    "schooner": ("schooner",),
    "scorpion": ("scorpion",),
    "soccer_ball": ("soccer ball",),
    "starfish": ("starfish",),
    "stop_sign": ("street sign",),
    "strawberry": ("strawberry",),
    "tick": ("tick",),
    "trilobite": ("trilobite",),
    "umbrella": ("umbrella",),
}


def photographs() -> list[Image.Image]:
    """Return the photographs that come with packages."""
    china, flower = load_sample_images().images
    images = (
        *(skimage.data.chelsea(), skimage.data.coffee(), skimage.data.stereo_motorcycle()[0]),
        *(china, flower, skimage.data.astronaut()),
    )
    return [Image.fromarray(image) for image in images]


def parts(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the paths and labels of "train" and "test"."""
    if (folder / "train").is_dir():
        bunches = {part: load_class_folders(folder / part) for part in ("train", "test")}
    else:
        bunches = {part: load_caltech101(folder, subset=part) for part in ("train", "test")}
    return {part: (np.asarray(b.data), np.asarray(b.target)) for part, b in bunches.items()}


def print_names(options: argparse.Namespace) -> None:
    """Print how often one of a class's names is the top prediction, or among the top five."""
    X, y = parts(options.data)["test"]
    if options.fruits:
        with (options.fruits / "boxes.csv").open() as file:
            found = [(row["path"], row["label"]) for row in csv.DictReader(file)]
        of = {path: {label for other, label in found if other == path} for path, _ in found}
        of_one = [(path, label) for path, (label, *rest) in of.items() if not rest]
        X = np.append(X, [str(options.fruits / path) for path, _ in of_one])
        y = np.append(y, [label for _, label in of_one])
    known = {name.lower(): names for name, names in NAMES.items()}
    labels = np.array([label.lower() for label in y])
    asked = np.isin(labels, list(known))
    explainer = CAMExplainer(options.arch, weights="DEFAULT", batch_size=options.batch_size).fit()
    wrong = {name for names in NAMES.values() for name in names} - {*explainer.class_names_}
    assert not wrong, f"ImageNet has no {', '.join(wrong)}"
    top = np.argsort(-explainer.predict_proba(list(X[asked])), axis=1)[:, :5]
    hits = np.array(
        [
            np.isin(names, known[label])
            for names, label in zip(explainer.class_names_[top], labels[asked], strict=True)
        ]
    )
    print(f"{'':18}{'images':>8}{'top-1':>8}{'top-5':>8}")
    for label in [*sorted(set(labels[asked])), "all"]:
        rows = hits if label == "all" else hits[labels[asked] == label]
        print(
            f"{label:18}{len(rows):8}{rows[:, 0].mean():8.2f}{rows.any(axis=1).mean():8.2f}",
            flush=True,
        )


def fine_tuned(options: argparse.Namespace) -> dict[str, ConsistentCAMClassifier]:
    """Return the network trained without and with the loss, on the same images."""
    X, y = parts(options.data)["train"]
    chosen = np.isin(y, options.classes)
    classifiers = {}
    for name, (alpha, beta) in {"without": ("0", 0), "with": (options.alpha, options.beta)}.items():
        clf = ConsistentCAMClassifier(
            options.arch,
            weights="DEFAULT",
            alpha=weight(alpha),
            beta=beta * (224 / options.image_size) ** 2,  # the norm grows with the area
            image_size=options.image_size,
            resize="center_crop",
            lr=options.lr,
            max_epochs=options.epochs,
            batch_size=options.batch_size,
            callbacks__lr_scheduler__step_size=max(1, 2 * options.epochs // 3),
            device=options.device,
            random_state=0,
            verbose=0,
        )
        classifiers[name] = clf.fit(X[chosen], y[chosen])
        print(f"{name} the loss: {clf.history[-1, 'dur']:.0f} s per epoch", flush=True)
    return classifiers


def measured(clf: ConsistentCAMClassifier, options: argparse.Namespace) -> dict[str, float]:
    """Return a classifier's numbers on test images and on the photographs."""
    X, y = parts(options.data)["test"]
    chosen = np.isin(y, options.classes)
    of_test = evaluate(
        clf, X[chosen], y[chosen], metrics=("accuracy", "consistency"), progress=False
    )
    of_photographs = [
        evaluate(clf, photographs(), metrics="consistency", random_state=seed, progress=False)
        for seed in range(options.views)
    ]
    return {
        "accuracy": of_test["accuracy"].mean(),
        "consistency": of_test["consistency"].mean(),
        "on the photographs": np.mean([each["consistency"].mean() for each in of_photographs]),
        "likeness of maps": likeness(
            [torch.from_numpy(clf.explain(photographs(), method=GradCAM(relu=False)))]
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fruits", type=Path)
    parser.add_argument("--named", action="store_true", help="count how often the names are right")
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--classes", nargs="+", default=CLASSES)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument(
        "--alpha", default="warmup:10:5", help='a number, "auto" or "warmup:WEIGHT:EPOCHS"'
    )
    parser.add_argument("--beta", type=float, default=1e-6, help="for images of 224 pixels")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--views", type=int, default=10, help="views of each photograph")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=Path("photographs.png"))
    options = parser.parse_args(arguments)
    if options.named:
        print_names(options)
        return
    classifiers = fine_tuned(options)
    measures = {name: measured(clf, options) for name, clf in classifiers.items()}
    print(" " * 10 + "".join(f"{measure:>21}" for measure in measures["with"]))
    for name, row in measures.items():
        print(f"{name:10}" + "".join(f"{value:21.3f}" for value in row.values()))
    display = ViewPairDisplay.from_estimator(
        {
            f"{name} the loss: consistency {row['on the photographs']:.2f}": classifiers[name]
            for name, row in measures.items()
        },
        photographs(),
        cmap="magma",
    )
    display.figure_.savefig(options.output, dpi=100)
    Image.open(options.output).convert("RGB").quantize(256).save(options.output)
    plt.close(display.figure_)
    print(f"\nThe picture is in {options.output}")


if __name__ == "__main__":
    main()
