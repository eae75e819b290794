"""Consistent maps of transformers beside those of convolutions: same data, same budget.

    python benchmarks/architectures.py --docs --figure docs/images/architectures.png
    python benchmarks/architectures.py --full --data DIR --device cuda --results runs.jsonl

Sun et al. leave transformers to future work. Here each of four networks (a ResNet, a ConvNeXt, a
ViT and a Swin) is trained without the terms and with them, with AdamW, on the same images in the
same order, for the same number of epochs, and with several seeds. Accuracy and the consistency of
maps are measured on test images.

Without ``--data``, the images are scikit-learn's digits at 32 pixels, on which a transformer can be
trained from random weights, and the networks are small versions with maps of 8 x 8 places.
``--full`` fine-tunes the usual networks from pretrained weights on a folder of ``train/<class>``
and ``test/<class>``. Measurements are written to ``--results`` at once, so an interrupted program
resumes.

Reference: Sun, Phan, Nguyen, "Staying Consistent with GradCAM".
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper_tables import Claim, Results, Table, interval_of, options_of, parser_of, publish
from sklearn.model_selection import train_test_split
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from training_runs import Run, classifier_options, images_of, likeness

from sklcam import ConsistentCAMClassifier
from sklcam.cam import GradCAM
from sklcam.datasets import load_digits
from sklcam.metrics import evaluate
from sklcam.training import ViewSampler

DIGITS = "digits"
BASELINE = "0,0,1"
OF_DIGITS = ("0.1,6e-7,1", "1,6e-6,1")  # alpha, beta, p
OF_PHOTOGRAPHS = ("2,1e-6,1",)
PER_IMAGE = ("accuracy", "consistency", "complexity")
PRETRAINED = {
    "ResNet": "resnet18",
    "ConvNeXt": "convnext_tiny",
    "ViT": "timm/vit_small_patch16_224",
    "Swin": "timm/swin_tiny_patch4_window7_224",
}
DOCS = {"image_size": 32, "seeds": 3, "epochs": 16, "lr": 1e-3, "batch_size": 32}
QUICK = {**DOCS, "seeds": 1, "epochs": 6}
FULL = {"image_size": 224, "seeds": 3, "epochs": 20, "lr": 1e-4, "batch_size": 32}


# Networks for 32 pixels, each with maps of 8 x 8 places.


def small_resnet(num_classes: int, in_channels: int) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    network = ResNet(
        BasicBlock,
        **{"layers": (2, 2, 2, 2), "channels": (32, 64, 64, 64), "output_stride": 8},
        **{"num_classes": num_classes, "in_chans": in_channels},
    )
    network.conv1 = nn.Conv2d(in_channels, 64, 3, stride=2, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def small_convnext(num_classes: int, in_channels: int) -> nn.Module:
    network = ConvNeXt([CNBlockConfig(64, None, 6)], num_classes=num_classes)
    network.features[0][0] = nn.Conv2d(in_channels, 64, 4, stride=4)
    return network


def small_vit(num_classes: int, in_channels: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        **{"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4},
        **{"num_classes": num_classes, "in_chans": in_channels},
    )


def small_swin(num_classes: int, in_channels: int) -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        **{"img_size": 32, "patch_size": 2, "embed_dim": 32, "depths": (2, 4)},
        **{"num_heads": (2, 4), "window_size": 4},
        **{"num_classes": num_classes, "in_chans": in_channels},
    )


SMALL: dict[str, Callable[[int, int], nn.Module]] = {
    "ResNet": small_resnet,
    "ConvNeXt": small_convnext,
    "ViT": small_vit,
    "Swin": small_swin,
}


# Training and measuring


@dataclass(frozen=True)
class NetworkRun(Run):
    """A classifier of one of the four kinds of network."""

    n_images: int | None = None  # the first of the digits in each part

    @property
    def key(self) -> str:
        known = {**asdict(self), "data": Path(self.data).name, "program": "architectures"}
        del known["device"]
        if self.n_images is None:
            del known["n_images"]
        return json.dumps(known, sort_keys=True)


def views_of(run: NetworkRun) -> ViewSampler:
    """Return the views. A small crop of a digit of 8 x 8 pixels would show nothing."""
    return ViewSampler(scale=(0.3, 1.0)) if run.data == DIGITS else ViewSampler()


def options_for(run: NetworkRun) -> dict[str, Any]:
    """Return the options of a run's classifier."""
    options = {
        **classifier_options(run),
        "optimizer": torch.optim.AdamW,
        "optimizer__weight_decay": 0.05,
        "views": views_of(run),
    }
    if run.data == DIGITS:
        # A mirrored digit is another shape.
        options["augment"] = ViewSampler(scale=(0.6, 1.0), flip=0.0)
        options["module"] = SMALL[run.arch]
    else:
        options["module"] = PRETRAINED[run.arch]
    return options


def data_of(run: NetworkRun, part: str) -> tuple[np.ndarray, np.ndarray]:
    if run.data != DIGITS:
        return images_of(run, part)
    digits = load_digits()
    X_train, X_test, y_train, y_test = train_test_split(
        digits.data, digits.target, stratify=digits.target, random_state=0
    )
    X, y = (X_train, y_train) if part == "train" else (X_test, y_test)
    return X[: run.n_images], y[: run.n_images]


def measured(run: NetworkRun) -> tuple[NetworkRun, dict[str, Any]]:
    started = time.monotonic()
    X, y = data_of(run, "test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf = ConsistentCAMClassifier(**options_for(run)).fit(*data_of(run, "train"))
        views = {"consistency": {"views": views_of(run)}}
        values = evaluate(clf, X, y, metrics=PER_IMAGE, metric_params=views, progress=False)
        maps = torch.from_numpy(clf.explain(X, method=GradCAM(relu=False)))
    collapsed = dict(clf.callbacks_)["collapse_warning"].collapsed_
    return run, {
        **{name: [round(float(value), 5) for value in values[name]] for name in PER_IMAGE},
        "alike": round(likeness([maps]), 5),
        "warned of": sorted(collapsed),
        "parameters": sum(each.numel() for each in clf.module_.parameters()),
        "seconds": round(time.monotonic() - started, 1),
    }


def told(run: NetworkRun, measures: Mapping[str, Any]) -> str:
    means = "  ".join(f"{name} {100 * np.mean(measures[name]):.1f}" for name in PER_IMAGE)
    return (
        f"{run.arch}, {run.setting}, seed {run.seed}:  {means}  alike {measures['alike']:.2f}   "
        f"({measures['seconds']:.0f} s)"
    )


# The table and the figure


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def table_of(runs: Mapping[tuple[str, str], Sequence[NetworkRun]], results: Results) -> Table:
    table = Table(
        "Baseline and the two terms, mean and deviation over seeds, in per cent",
        ["network", "alpha, beta, p", *PER_IMAGE, "likeness of maps", "warnings"],
    )
    for (network, setting), seeds in runs.items():
        figures = [
            spread([100 * np.mean(results[run][name]) for run in seeds]) for name in PER_IMAGE
        ]
        alike = f"{np.mean([results[run]['alike'] for run in seeds]):.2f}"
        warned = sorted({what for run in seeds for what in results[run]["warned of"]})
        named = network if setting == BASELINE else ""
        cells = [setting.replace(",", ", "), *figures, alike, ", ".join(warned) or "none"]
        table.add(named, *cells)
    for (network, setting), after in runs.items():
        if setting == BASELINE:
            continue
        before = runs[network, BASELINE]
        for measure, what in (
            ("consistency", "consistency rises"),
            ("accuracy", "accuracy falls by less than a point (shown: one point plus the change)"),
        ):
            of = [
                100 * np.mean([results[run][measure] for run in each], axis=0)
                for each in (after, before)
            ]
            margin = 0 if measure == "consistency" else 1
            found = interval_of(lambda a, b, margin=margin: margin + a.mean() - b.mean(), *of)
            text = f"{network}, alpha = {setting.split(',')[0]}: {what}"
            table.claims.append(Claim(text, *found, n_images=len(of[0])))
    return table


def draw(
    runs: Mapping[tuple[str, str], Sequence[NetworkRun]], results: Results, file: Path
) -> None:
    """Draw an arrow for each network and seed, from the baseline to the result with the terms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    names = list(dict.fromkeys(name for name, _ in runs))
    for color, network in zip(plt.colormaps["tab10"].colors, names, strict=False):
        settings = [setting for name, setting in runs if name == network and setting != BASELINE]
        pairs = [
            pair
            for setting in settings
            for pair in zip(runs[network, BASELINE], runs[network, setting], strict=True)
        ]
        for first, last in pairs:
            start, end = (
                [100 * np.mean(results[run][name]) for name in ("consistency", "accuracy")]
                for run in (first, last)
            )
            arrow = {"arrowstyle": "->", "color": color, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", end, start, arrowprops=arrow)
            axes.plot(*start, "o", color=color, markerfacecolor="white")
            axes.plot(*end, "o", color=color, label=network if last is pairs[0][1] else None)
    axes.set_xlabel("consistency in per cent")
    axes.set_ylabel("accuracy in per cent")
    axes.legend(title="hollow: baseline", frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, FULL, DOCS)
    parser.add_argument(
        "--data", help="a folder of train/<class> and test/<class>; default: digits"
    )
    parser.add_argument("--classes", type=int, help="the first classes of the folder, by name")
    parser.add_argument("--images", type=int, help="the first digits of each part")
    parser.add_argument("--arch", nargs="+", choices=SMALL, default=list(SMALL))
    parser.add_argument(
        "--settings", nargs="+", help="alpha,beta,p of each setting; beta for 224 pixels"
    )
    parser.add_argument("--lr", type=float)
    parser.add_argument("--jobs", type=int, default=1, help="classifiers trained at a time")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="a file of all measurements, which the program extends",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the results to this file")
    for name in ("image_size", "seeds", "epochs", "batch_size"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    options = options_of(parser, arguments)
    if options.data is None and options.image_size != 32:
        parser.error("the networks for the digits take 32 pixels: leave --image-size out")
    settings = options.settings or (OF_DIGITS if options.data is None else OF_PHOTOGRAPHS)
    base = NetworkRun(
        arch=options.arch[0],
        weights=None if options.data is None else "DEFAULT",
        data=options.data or DIGITS,
        n_classes=options.classes,
        image_size=options.image_size,
        held_out=False,
        measured_on="test",
        setting=BASELINE,
        seed=0,
        lr=options.lr,
        epochs=options.epochs,
        step_size=max(1, 3 * options.epochs // 4),
        batch_size=options.batch_size,
        device=options.device,
        n_images=options.images,
    )
    runs = {
        (arch, each): [
            replace(base, arch=arch, setting=each, seed=seed) for seed in range(options.seeds)
        ]
        for arch in options.arch
        for each in (BASELINE, *settings)
    }
    results: Results[NetworkRun] = Results(options.results, measured, told)
    results.complete(
        [run for seeds in zip(*runs.values(), strict=True) for run in seeds], options.jobs
    )
    publish([table_of(runs, results)], options, "Sun et al., transformers")
    if options.figure is not None:
        draw(runs, results, options.figure)


if __name__ == "__main__":
    main()
