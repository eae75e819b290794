"""What evaluating explanations costs, compared with other libraries that measure the same.

The program runs sklcam's metrics in turns with those of pytorch-grad-cam, torchcam, Quantus and
scikit-image, in one process, on the same images and the same network. Numbers must agree image by
image, or the program stops. If a library measures something else, the reason is printed, and
agreement is checked on what the two have in common.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --only adcc insertion_deletion --rounds 5
    python benchmarks/metrics.py --data DIR --weights resnet18.pt --n-steps 56 --device cuda

No library has ADCC, so the authors' recipe stands for it: one image at a time, a pass, a map, a
pass of the image times its map, and the map of that. The maps are those of the peers.

"passes" are only forward passes of the network as it is, under ``torch.inference_mode()``: 2
n_steps + 1 for each image, which insertion and deletion would take if they shared none.

Quantus (``pip install quantus``) and scikit-image are left out if they are not installed.
Everything else is what ``explain.py`` needs, and networks and images are the same as there.
"""

from __future__ import annotations

import argparse
import copy
import platform
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import fill
from typing import NoReturn

import numpy as np
import torch
from explain import Bar, timed_rounds
from metrics_contenders import FEW, SPECS, Case, Peer, Spec
from timed_networks import SEED, images_of, noise_images, prepared_network, trained_network
from torch import Tensor, nn

from sklcam import CAMExplainer

TOLERANCE = 1e-4  # bound on the largest difference of two values of one image
INDENT = " " * 6

BARS = (
    Bar(("resnet18",), "adcc", "pytorch-grad-cam / sklcam", 3.0),
    Bar(("resnet18",), "adcc", "torchcam / sklcam", 3.0),
    Bar(("resnet18",), "adcc_of_methods", "torchcam / sklcam", 3.0),
    Bar(("resnet18",), "insertion_deletion", "torchcam / sklcam", 1.3),
    Bar(("resnet18",), "insertion_deletion", "sklcam / passes of 32", 1.15, at_most=True),
    # The equations may take 30 % of the time.
    Bar(("resnet18",), "road", "sklcam / the rest", 1.43, at_most=True),
)


DISTRIBUTIONS = {
    "pytorch-grad-cam": "grad-cam",
    "torchcam": "torchcam",
    "Quantus": "quantus",
    "scikit-image": "scikit-image",
}


# Measuring and reporting


def agreement(case: Case, peer: Peer, own: Tensor) -> str:
    """Say how far apart the values are, and stop if they should agree."""
    checked = replace(case, batch_size=1) if peer.averages else case
    found = largest_difference(own, peer.measure(checked))
    because = f": {peer.why}" if peer.why else ""
    if found <= TOLERANCE:
        return f"values agree to {found:.0e}{because}"
    if peer.equal is None:
        stop(peer, found)
    with peer.equal(checked):
        rest = largest_difference(own, peer.measure(checked))
    if not rest <= TOLERANCE:
        stop(peer, rest)
    return f"values differ by {found:.0e}{because}; without that, they agree to {rest:.0e}"


def largest_difference(own: Tensor, theirs: Tensor) -> float:
    if own.shape != theirs.shape:
        raise SystemExit(f"{tuple(own.shape)} values against {tuple(theirs.shape)}.")
    return float((own.cpu().double() - theirs.cpu().double()).abs().max())


def stop(peer: Peer, found: float) -> NoReturn:
    raise SystemExit(
        f"sklcam and {peer.library} disagree: values differ by {found:.1e}, "
        f"but at most {TOLERANCE:.0e} is allowed."
    )


def measure(name: str, case: Case, spec: Spec, options: argparse.Namespace) -> None:
    peers = [peer for peer in spec.peers if installed(peer.library)]
    for peer in spec.peers:
        if peer not in peers:
            print(f"\n{name}: {peer.library} is not installed, and is left out")
    if not peers:
        return
    own = spec.ours(case)
    notes = {peer.library: agreement(case, peer, own) for peer in peers}
    contenders = {"sklcam": spec.ours} | {peer.library: peer.measure for peer in peers}
    times = timed_rounds(contenders | spec.floors, case, options.rounds, options)
    print(
        f"\n{options.arch}, {name}, images: {len(case.images)}, rounds: {options.rounds}\n"
        f"  sklcam takes {np.median(times['sklcam']):.3f} s; its values are {own.min():.3f} .. "
        f"{own.max():.3f}"
    )
    for peer in peers:
        report(options.arch, name, times, peer.library, "sklcam")
        print(fill(notes[peer.library], 100, initial_indent=INDENT, subsequent_indent=INDENT))
    floors = [*spec.floors]
    if len(floors) > 1:
        times["fastest passes"] = min((times[floor] for floor in floors), key=np.median)
        floors.append("fastest passes")
    for floor in floors:
        report(options.arch, name, times, "sklcam", floor)


def installed(library: str) -> str | None:
    """Return a library's version, or None if there is none."""
    try:
        return version(DISTRIBUTIONS[library])
    except PackageNotFoundError:
        return None


def report(arch: str, name: str, times: dict[str, np.ndarray], one: str, other: str) -> None:
    title, ratio = f"{one} / {other}", times[one] / times[other]
    median = float(np.median(ratio))
    verdicts = [
        bar.verdict(median)
        for bar in BARS
        if arch in bar.archs and (bar.method, bar.ratio) == (name, title)
    ]
    spread = f"{median:8.2f} [{ratio.min():.2f} .. {ratio.max():.2f}]"
    print("   ".join([f"  {title:30}{spread}", *verdicts]), flush=True)


def prepared_case(network: nn.Module, images: Tensor, options: argparse.Namespace) -> Case:
    """Return a case with its own network, as peers leave traces."""
    own = copy.deepcopy(network)
    explainer = CAMExplainer(
        own, image_size=options.image_size, batch_size=options.batch_size, verbose=0
    ).fit(images[:1])
    return Case(own, explainer, images, options.batch_size, options.n_steps)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--weights", type=Path, help="state dict of a trained network")
    parser.add_argument("--data", type=Path, help="folder of images; default: noise")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--n-images", type=int, default=16, help=f"ROAD and ARCC: at most {FEW}")
    parser.add_argument("--n-steps", type=int, default=14, help="steps of insertion and deletion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(SPECS), choices=SPECS, metavar="NAME")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU time of this process, if others use the machine",
    )
    options = parser.parse_args()
    if options.image_size**2 % options.n_steps:
        parser.error(
            "--n-steps must divide the number of pixels, because others round their steps up"
        )
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def print_setting(options: argparse.Namespace) -> None:
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    versions = [f"{name} {installed(name) or 'missing'}" for name in DISTRIBUTIONS]
    images = "noise" if options.data is None else f"images of {options.data}"
    print(
        f"torch {torch.__version__} on {options.device} ({hardware}), {torch.get_num_threads()} "
        f"threads; {', '.join(versions)}\n"
        f"batches of {options.batch_size}, {images}, image size {options.image_size}, "
        f"{options.n_steps} steps; the bars are for 224 pixels on two cores of a CPU\n"
        f"{'CPU ' if options.cpu_time else ''}time: median [min .. max] over the rounds, each "
        "ratio within its round"
    )


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore")  # Quantus warns about each step that changes little
    print_setting(options)
    if options.weights is None:
        network = prepared_network(options.arch, options.image_size, options.device)
    else:
        network = trained_network(options.arch, options.weights, options.device)
    images = noise_images(options.n_images, options.image_size, SEED)
    if options.data is not None:
        images = images_of(options.data, options.n_images, options.image_size)
    images = images.to(options.device)
    for name in options.only:
        spec = SPECS[name]
        measure(name, prepared_case(network, images[: spec.n_images], options), spec, options)


if __name__ == "__main__":
    main()
