"""Tables 1 and 2 and figures 2 to 4 of "Staying Consistent with GradCAM", on your own data.

    python benchmarks/consistency_tables.py --quick --data DIR --jobs 2
    python benchmarks/consistency_tables.py --docs --data DIR --results runs.jsonl --rst tables.rst
    python benchmarks/consistency_tables.py --full --data DIR --device cuda
    python benchmarks/consistency_tables.py --docs --data DIR --tables 2 --images chelsea.jpg

Table 1: a baseline (alpha = beta = 0) and a consistent classifier for each seed, on a schedule of
16 epochs with a larger rate than the paper's, and on the paper's schedule with ``--paper-seeds``.
``--choose`` compares settings on held-out images. The mean and deviation of the images' consistency
stand for figure 2. Beside them is the mean correlation of two images' maps: maps that do not depend
on the image are consistent, but explain nothing.

Table 2: alpha, beta and p vary one at a time, as in the paper, beside "auto" and a warm-up. The
table also has the warnings of the training. ``--images`` draws the maps of these classifiers,
figure 4.

Table 3, the paper's figure 3: how random settings, drawn log-uniformly, change the accuracy of the
baseline, for each architecture. ``--boxes`` draws it.

``--docs`` trains from pretrained weights on parts of the data, for machines without a GPU, and made
the tables in the docs; ``--quick`` does the same on smaller parts. ``--full`` is the paper's
setting, for a GPU. You can override any of their options; ``--weights none`` starts from random
weights.

DIR holds ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``, or is CUB-200-2011 or Caltech 101 as
published. Settings are compared on the last third of each class's training images, on which only
``--full`` trains; nothing is chosen on test images.

The measurements of each classifier are written to ``--results`` at once, and are not computed
again, so an interrupted program resumes. The 95 % intervals are by bootstrap over the test images,
for which the seeds' values are averaged first; deviations are over the seeds.

Reference: Sun, Phan, Nguyen, "Staying Consistent with GradCAM".
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from paper_tables import Claim, Results, Table, interval_of, options_of, parser_of, publish
from training_runs import MEASURES, Run, measured, spaced, told, trained

from sklcam.plotting import CAMDisplay, TradeoffBoxDisplay

BASELINE = "0,0,1"
TABLE_1 = {  # Caltech 101: accuracy, consistency and IAUC of the paper's baseline and classifier
    "resnet18": ((92.68, 69.67, 83), (92.50, 83.44, 82)),
    "resnet50": ((94.06, 69.35, 82), (91.41, 84.21, 85)),
    "convnext_tiny": ((94.06, 41.00, 88), (94.46, 87.97, 80)),
}
TABLE_2 = {  # ResNet-50 on CUB-200, accuracy
    "1,1e-6,0": 80.62,
    "1,1e-6,1": 81.71,
    "1,1e-6,2": 81.26,
    "10,1e-5,1": 0.50,
    "1,1e-5,1": 30.08,
    "0.1,1e-5,1": 81.91,
    "1,1e-7,1": 80.24,
}
USUAL = "1,1e-6,1"
OF_P = ("1,1e-6,0", USUAL, "1,1e-6,2")
FAILING = ("10,1e-5,1", "1,1e-5,1")
REMEDIES = ("auto,auto,1", "warmup:10:3,warmup:1e-5:3,1")  # settings that fail
WORKING = ("0.1,1e-5,1", USUAL, "1,1e-7,1", *REMEDIES)
FIGURE_3 = {"convnext_tiny": (-0.11, 0.67), "resnet18": (-0.32, 0.75), "resnet50": (2.59, 6.50)}
CHOICES = ("1,1e-6,1", "2,1e-6,1", "5,1e-6,1", "10,1e-6,1", "warmup:10:3,1e-6,1", "auto,auto,1")
SCHEDULE_OF_PAPER = {"lr": 1e-3, "step_size": 30}

DOCS = {
    **{"arch": ["efficientnet_lite0"], "classes": 50, "image_size": 128, "seeds": 3, "epochs": 16},
    **{"paper_epochs": 20, "paper_seeds": 1, "causal_images": 250, "causal_steps": 16},
    **{"grid_classes": 20, "grid_epochs": 8, "draws": 20, "draw_classes": 10, "draw_epochs": 4},
    **{"draw_arch": ["efficientnet_lite0", "efficientnet_lite1"], "hold_out": True},
}
QUICK = {
    **DOCS,
    **{"classes": 10, "seeds": 1, "epochs": 6, "paper_seeds": 0, "causal_images": 40},
    **{"grid_classes": 5, "grid_epochs": 3, "draws": 3, "draw_classes": 5, "draw_epochs": 2},
}
FULL = {
    **{"arch": ["resnet18", "resnet50", "convnext_tiny"], "classes": None, "image_size": 224},
    **{"seeds": 3, "epochs": 20, "paper_epochs": 20, "paper_seeds": 3, "causal_images": None},
    **{"causal_steps": 224, "grid_classes": None, "grid_epochs": 20, "draws": 50},
    **{"draw_arch": ["resnet18", "resnet50", "convnext_tiny"]},
    **{"draw_classes": None, "draw_epochs": 20, "hold_out": False},
}


HEADINGS = ["accuracy", "consistency", "IAUC", "complexity"]


def over_seeds(run: Run, n_seeds: int) -> list[Run]:
    return [replace(run, seed=run.seed + i) for i in range(n_seeds)]


def by_image(results: Results, runs: Sequence[Run], measure: str) -> np.ndarray:
    """Return one value per image, in per cent, averaged over runs that differ by their seed."""
    return 100 * np.mean([results[run][measure] for run in runs], axis=0)


def spread(results: Results, runs: Sequence[Run], measure: str) -> str:
    means = [100 * np.mean(results[run][measure]) for run in runs]
    deviation = f" ± {np.std(means, ddof=1):.1f}" if len(means) > 1 else ""
    return f"{np.mean(means):.1f}{deviation}"


def alike(results: Results, runs: Sequence[Run]) -> str:
    """Return the mean correlation of two images' maps, 1 if maps do not depend on images."""
    known = [results[run]["alike"] for run in runs if "alike" in results[run]]
    return f"{np.mean(known):.2f}" if known else ""


def change(results: Results, new: Sequence[Run], old: Sequence[Run], measure: str) -> str:
    value, low, high = interval_of(
        lambda a, b: a.mean() - b.mean(),
        by_image(results, new, measure),
        by_image(results, old, measure),
    )
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


# Table 1


def table_1(base: Run, options: argparse.Namespace, results: Results) -> Table:
    """Return accuracy, consistency, its deviation (figure 2) and IAUC, of the baseline and ours."""
    schedules = {
        "the paper's": (paper_schedule(base, options), options.paper_setting, options.paper_seeds),
        "ours": (base, options.setting, options.seeds),
    }
    pairs = {
        (arch, name): [
            over_seeds(replace(run, arch=arch, setting=setting), n_seeds)
            for setting in (BASELINE, setting)
        ]
        for arch in options.arch
        for name, (run, setting, n_seeds) in schedules.items()
        if n_seeds
    }
    results.complete(
        [run for pair in pairs.values() for side in pair for run in side], options.jobs
    )
    table = Table(
        "Table 1",
        [
            "network",
            "schedule",
            "alpha, beta, p",
            *HEADINGS,
            "deviation of SSIM",
            "likeness of maps",
        ],
    )
    for (arch, name), (old, new) in pairs.items():
        for runs in (old, new):
            deviation = by_image(results, runs, "consistency").std()
            figures = (spread(results, runs, measure) for measure in MEASURES)
            table.add(
                arch,
                name,
                spaced(runs[0].setting),
                *figures,
                f"{deviation:.1f}",
                alike(results, runs),
            )
        table.add(arch, name, "change", *(change(results, new, old, m) for m in MEASURES), "", "")
        for side, of in zip(("baseline", "theirs"), TABLE_1.get(arch, ()), strict=False):
            table.add(
                arch, "paper, Caltech 101", side, *(f"{value:.1f}" for value in of), "", "", ""
            )
        table.claims += claims_of_table_1(
            results, f"{arch}, {'our' if name == 'ours' else name} schedule", old, new
        )
    return table


def claims_of_table_1(
    results: Results, what: str, old: Sequence[Run], new: Sequence[Run]
) -> list[Claim]:
    of = {m: [by_image(results, runs, m) for runs in (new, old)] for m in MEASURES}
    return [
        Claim(
            f"Consistency rises ({what})",
            *interval_of(lambda a, b: a.mean() - b.mean(), *of["consistency"]),
        ),
        Claim(
            f"Consistency varies less between images ({what})",
            *interval_of(lambda a, b: b.std() - a.std(), *of["consistency"]),
        ),
        Claim(
            f"Accuracy falls by less than one point ({what}; shown: one point plus the change)",
            *interval_of(lambda a, b: 1 + a.mean() - b.mean(), *of["accuracy"]),
        ),
    ]


def paper_schedule(base: Run, options: argparse.Namespace) -> Run:
    return replace(base, **SCHEDULE_OF_PAPER, epochs=options.paper_epochs)


def choose(base: Run, options: argparse.Namespace, results: Results) -> Table:
    """Compare settings on held-out images; choose a consistent one that costs at most a point."""
    base = replace(base, held_out=True, measured_on="held out")
    runs = {
        (arch, setting): over_seeds(replace(base, arch=arch, setting=setting), options.seeds)
        for arch in options.arch
        for setting in (BASELINE, *options.choices)
    }
    results.complete([run for seeds in runs.values() for run in seeds], options.jobs)
    table = Table(
        "Settings, on held-out images", ["network", "alpha, beta, p", *HEADINGS, "likeness of maps"]
    )
    for (arch, _), seeds in runs.items():
        figures = (spread(results, seeds, measure) for measure in MEASURES)
        table.add(arch, spaced(seeds[0].setting), *figures, alike(results, seeds))
    return table


# Table 2 and figure 4


def table_2(base: Run, options: argparse.Namespace, results: Results) -> Table:
    """Return accuracy and maps while alpha, beta and p change one at a time."""
    base = replace(base, arch=options.arch[0], n_classes=options.grid_classes)
    base = replace(base, epochs=options.grid_epochs)
    runs = {setting: replace(base, setting=setting) for setting in (BASELINE, *options.settings)}
    results.complete(runs.values(), options.jobs)
    table = Table(
        f"Table 2: {base.arch}",
        [
            "alpha, beta, p",
            "accuracy, paper",
            *HEADINGS,
            "maps highest in a corner",
            "likeness of maps",
            "warnings",
        ],
    )
    for setting, run in runs.items():
        found = results[run]
        table.add(
            spaced(setting),
            f"{TABLE_2[setting]:.1f}" if setting in TABLE_2 else "",
            *(spread(results, [run], measure) for measure in MEASURES),
            f"{100 * found['corners']:.0f}",
            alike(results, [run]),
            ", ".join(found["warned of"]) or "none",
        )
    accuracy = {setting: by_image(results, [run], "accuracy") for setting, run in runs.items()}
    table.claims = claims_of_table_2(accuracy)
    if options.images:
        draw_maps({spaced(run.setting): trained(run) for run in runs.values()}, options)
    return table


def claims_of_table_2(accuracy: Mapping[str, np.ndarray]) -> list[Claim]:
    """Return the paper's claims about the settings that were measured."""
    baseline, usual, claims = accuracy[BASELINE], accuracy.get(USUAL), []
    for setting in accuracy:
        text = f"alpha, beta, p = {spaced(setting)}"
        if setting in FAILING and usual is not None:
            text = f"{text} fails: less than half the accuracy of {spaced(USUAL)}"
            found = interval_of(lambda a, b: b.mean() / 2 - a.mean(), accuracy[setting], usual)
            claims.append(Claim(text, *found))
        elif setting in WORKING:
            text = f"{text} costs less than two points of accuracy"
            found = interval_of(lambda a, b: 2 + a.mean() - b.mean(), accuracy[setting], baseline)
            claims.append(Claim(text, *found))
    by_p = [accuracy[setting] for setting in OF_P if setting in accuracy]
    if len(by_p) == len(OF_P):
        text = "p changes the accuracy by less than two points (shown: two minus the difference)"
        found = interval_of(lambda *of: 2 - np.ptp([each.mean() for each in of]), *by_p)
        claims.append(Claim(text, *found))
    return claims


def draw_maps(classifiers: dict, options: argparse.Namespace) -> None:
    display = CAMDisplay.from_estimator(classifiers, [str(path) for path in options.images])
    display.figure_.savefig(options.maps, dpi=100, bbox_inches="tight")
    plt.close(display.figure_)


# Figure 3


def table_3(base: Run, options: argparse.Namespace, results: Results) -> Table:
    """Return how random settings change the accuracy of the baseline."""
    base = replace(base, n_classes=options.draw_classes, epochs=options.draw_epochs)
    rng = np.random.default_rng(0)
    drawn = [
        f"{10 ** rng.uniform(-1, 0.5):.3g},{10 ** rng.uniform(-7, -5):.3g},{rng.integers(3)}"
        for _ in range(options.draws)
    ]
    runs = {
        (arch, setting): replace(base, arch=arch, setting=setting)
        for arch in options.draw_arch
        for setting in (BASELINE, *drawn)
    }
    results.complete(runs.values(), options.jobs)
    table = Table(
        f"Figure 3: {options.draws} settings drawn at random",
        ["network", "change in accuracy", "lowest, median, highest", "consistency", "paper"],
    )
    changes = {}
    for arch in options.draw_arch:
        old = by_image(results, [runs[arch, BASELINE]], "accuracy")
        means = [100 * np.mean(results[runs[arch, s]]["accuracy"]) - old.mean() for s in drawn]
        changes[arch] = np.array(means)
        new = by_image(results, [runs[arch, setting] for setting in drawn], "accuracy")
        value, low, high = interval_of(lambda a, b: a.mean() - b.mean(), new, old)
        consistent = [100 * np.mean(results[runs[arch, s]]["consistency"]) for s in drawn]
        before = by_image(results, [runs[arch, BASELINE]], "consistency").mean()
        theirs = FIGURE_3.get(arch)
        table.add(
            arch,
            f"{value:+.1f} ({low:+.1f} to {high:+.1f}), deviation {np.std(means, ddof=1):.1f}",
            ", ".join(f"{v:+.1f}" for v in np.percentile(means, (0, 50, 100))),
            f"{before:.1f} before, {np.mean(consistent):.1f} ± {np.std(consistent, ddof=1):.1f}",
            "" if theirs is None else f"{theirs[0]:+.1f}, deviation {theirs[1]:.1f}",
        )
        table.claims.append(
            Claim(
                f"Random settings cost less than one point of accuracy on average ({arch}; "
                "shown: one point plus the change)",
                *(1 + bound for bound in (value, low, high)),
            )
        )
    if options.boxes is not None:
        display = TradeoffBoxDisplay(
            values=changes, name="accuracy, points", by="module", is_difference=True
        ).plot()
        display.figure_.savefig(options.boxes, dpi=100, bbox_inches="tight")
        plt.close(display.figure_)
    return table


TABLES = {"1": table_1, "2": table_2, "3": table_3}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, FULL, DOCS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--choose", action="store_true", help="compare settings, and stop")
    parser.add_argument("--choices", nargs="+", default=CHOICES, metavar="ALPHA,BETA,P")
    parser.add_argument(
        "--setting",
        default="2,1e-6,1",
        help="alpha,beta,p for our schedule; --choose compares some",
    )
    parser.add_argument("--paper-setting", default=USUAL)
    parser.add_argument(
        "--settings",
        nargs="+",
        default=(*TABLE_2, *REMEDIES),
        metavar="ALPHA,BETA,P",
        help="settings of table 2",
    )
    parser.add_argument("--weights", default="DEFAULT", help='"none" for random weights')
    parser.add_argument("--target-layer", default="auto")
    parser.add_argument("--view-target", default="predicted", choices=("predicted", "shared"))
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--step-size", type=int, default=12, help="epochs between steps of lr")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=1, help="classifiers trained at a time")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="a file of all measurements, which the program extends",
    )
    parser.add_argument("--images", type=Path, nargs="+", help="whose maps figure 4 shows")
    parser.add_argument("--maps", type=Path, default=Path("figure_4.png"), metavar="FILE")
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="draws figure 3")
    for name, value in QUICK.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            parser.add_argument(option, nargs="+")
        elif isinstance(value, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(option, type=int)
    options = options_of(parser, arguments)

    base = Run(
        arch=options.arch[0],
        weights=None if options.weights == "none" else options.weights,
        data=str(options.data),
        n_classes=options.classes,
        image_size=options.image_size,
        held_out=options.hold_out,
        measured_on="test",
        setting=BASELINE,
        seed=options.first_seed,
        lr=options.lr,
        epochs=options.epochs,
        step_size=options.step_size,
        batch_size=options.batch_size,
        target_layer=options.target_layer,
        view_target=options.view_target,
        n_causal=options.causal_images,
        n_steps=options.causal_steps,
        device=options.device,
    )
    results = Results(options.results, measured, told)
    if options.choose:
        publish([choose(base, options, results)], options, "Sun et al.")
        return
    tables = [TABLES[name](base, options, results) for name in options.tables]
    publish(tables, options, "Sun et al.")


if __name__ == "__main__":
    main()
