"""Mutates valid files and loads them, in a process that watches itself.

Run as ``python -m fuzzing FOLDER SEED N``, with the folders of the tests on the path; it prints a
summary as JSON. Every mutation has a right checksum. What loads is used as an estimator is:
printed, copied, asked for predictions and explanations, and trained on. Nothing may run, be
imported or be written because of a file, and loading may not take more memory than twice the
tensors and a constant.
"""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forging import Tensors, forged, nodes, opened
from sklearn.base import clone
from skorch.callbacks import EarlyStopping, EpochScoring, LRScheduler
from small_networks import SmallNet, digits

from sklcam import (
    CAMExplainer,
    CAMSegmenter,
    ConceptNamer,
    ConsistentCAMClassifier,
    EmbeddingCAMExplainer,
    EmbeddingNet,
    load,
    save,
)
from sklcam.cam import GradCAM
from sklcam.embeddings import TripletCAM
from sklcam.networks import build_model
from sklcam.persistence import MissingObjectsError, PersistenceError, known
from sklcam.training import Balanced, ViewSampler, WarmUp

CONSTANT = 64 * 2**20  # bytes that loading may take beside the tensors
SECONDS = 20

X, Y = digits(24)
IMAGES = {"images": X[:2], "tensors": torch.rand(2, 1, 16, 16), "colour": torch.rand(2, 3, 32, 32)}


def halved(epoch: int) -> float:
    return 0.5**epoch


OBJECTS = {"SmallNet": SmallNet, "halved": halved}


def estimators() -> dict[str, tuple[Any, str]]:
    """Return estimators of all kinds, and which images they take."""
    options = {"image_size": 16, "max_epochs": 1, "verbose": 0, "random_state": 0, "batch_size": 12}
    torch.manual_seed(0)
    clf = ConsistentCAMClassifier(SmallNet, **options).fit(X, Y)
    stop = [("stop", EarlyStopping("train_loss")), ("acc", EpochScoring("accuracy"))]
    adam = ConsistentCAMClassifier(
        SmallNet,
        optimizer=torch.optim.Adam,
        alpha=Balanced(0.2),
        callbacks=[*stop, LRScheduler("StepLR", step_size=1)],
        precision="fp16",
        **options,
    ).fit(X, np.array(["a", "b", "c"])[Y])
    unfitted = ConsistentCAMClassifier(
        "resnet18",
        alpha=WarmUp(1.0),
        beta=halved,
        views=ViewSampler(scale=(0.5, 1.0)),
        module__zero_init_residual=True,
        iterator_train__num_workers=2,
        **{**options, "random_state": np.random.RandomState(0)},
    )
    network = build_model("squeezenet1_1", n_classes=3)
    bare = EmbeddingCAMExplainer(SmallNet(), target_layer="4", verbose=0)
    bare.fit(IMAGES["tensors"].repeat(3, 1, 1, 1), [0, 1] * 3)
    triplets = EmbeddingCAMExplainer(SmallNet(), "self", target_layer="4", verbose=0).fit(
        IMAGES["tensors"]
    )
    images = torch.rand(6, 1, 16, 16)
    triplets.set_params(method=TripletCAM(random_state=0).fit(triplets, images, [0, 1] * 3))
    found = {
        "classifier": (clf, "images"),
        "adam": (adam, "images"),
        "unfitted": (unfitted, "images"),
        "by name": (CAMExplainer(network, image_size=64, verbose=0).fit(), "colour"),
        "around a classifier": (CAMExplainer(clf, GradCAM(relu=False), verbose=0).fit(), "images"),
        "proxies": (bare, "tensors"),
        "triplets": (triplets, "tensors"),
        "segmenter": (CAMSegmenter(clf).fit(X, Y), "images"),
        "names": (ConceptNamer().fit(bare, IMAGES["tensors"]), "tensors"),
    }
    if find_spec("pytorch_metric_learning"):
        net = EmbeddingNet(SmallNet, embedding_dim=4, **options).set_output(transform="default")
        found["embedding"] = (net.fit(X, Y), "images")
    return found


# Mutations

NUMBERS = [
    *(0, -1, 1, 2, 3, 7, 100, 255, 624, 625, 1024, 2**16, 2**31 - 1, 2**31, 2**32, 2**63, 2**64),
    *(10**30, -(2**63), 0.0, -0.0, 0.5, 1e-300, 1e308, -1.5, True, False),
]
TEXTS = [
    *("", "auto", "a", "cpu", "cuda:7", "meta", "gradcam", "layercam", "4", "0", "resnet18"),
    *("squeezenet1_1", "StepLR", "sys", "np", "train_loss", "pandas", "bf16", "low", "DEFAULT"),
    *("os.system", "sklcam_canary", "sklcam_canary.Net", "__import__('os').system('id')"),
    *("/dev/zero", "../../etc/passwd", "\ud800", "\0", "\x1b[31m", "<script>x</script>", "x" * 999),
    *("nan", "inf", "<U0", "<U9999999", "|O", "<f8", "<i8", "M8[D]", "|S0", "<f4,<i4", "?"),
]
KEYS = [
    *("__class__", "__dict__", "__reduce_ex__", "__deepcopy__", "__proto__", "__getstate__"),
    *("module_", "optimizer_", "initialized_", "history", "callbacks__lr_scheduler", "module__x"),
    *(
        "callbacks__lr_scheduler__policy",
        "callbacks__print_log__sink",
        "iterator_train__collate_fn",
    ),
    *("fit", "predict", "method", "weights", "module__weights", "device", "forward", "_modules"),
    *("known", "object", "made", "with", "tensor", "dict", "tuple", "array", "fused", "step", "lr"),
]


@cache
def names() -> list[str]:
    return [*known._values(), *known._kinds(), *TEXTS]


def form(random: random.Random, tensors: Tensors) -> Any:
    """Return a value of a random form."""
    tensor = random.choice([*tensors, "none"])
    number, text, name = (random.choice(pool) for pool in (NUMBERS, TEXTS, names()))
    return random.choice(
        [
            *(number, number, text, name, None, [], {}, [number, text], {text: number}),
            {"float": random.choice(["nan", "inf", "-inf", text])},
            {"tuple": [number, number]},
            {"dict": [[text, number]]},
            {"dict": [[number, text], [{"tuple": [1]}, 2]]},
            {"array": tensor},
            {"dates": tensor, "dtype": random.choice(["<M8[D]", text])},
            {"items": [text, number], "dtype": random.choice(["<U1", "|O", text])},
            {"tensor": tensor},
            {"random_state": [tensor, number, 0, 0.0]},
            {"known": name},
            {"made": name, "with": {}, "learned": {"dict": []}},
            {"made": name, "with": {random.choice(KEYS): number}, "learned": {"dict": []}},
            {"object": random.choice([*OBJECTS, "Other", text])},
            {"known": name, "object": "SmallNet"},
        ]
    )


def mutate(random: random.Random, content: dict[str, Any], tensors: Tensors) -> None:
    places = nodes(content["estimator"])
    around, key = random.choice(places)
    other, other_key = random.choice(places)
    what = random.randrange(17)
    if what < 3:
        around[key] = form(random, tensors)
    elif what > 13:  # a number near the one that is there
        numbers = [(a, k) for a, k in places if type(a[k]) in (int, float)]
        around, key = random.choice(numbers)
        around[key] = random.choice([around[key] * 2, around[key] + 1, random.choice(NUMBERS)])
    elif what == 4:
        around[key], other[other_key] = other[other_key], around[key]
    elif what == 5:
        around[key] = copy.deepcopy(other[other_key])
    elif what == 6:
        del around[key]
    elif what == 7 and isinstance(around, dict):
        around[random.choice(KEYS)] = form(random, tensors)
    elif what == 8 and isinstance(around, dict):
        around[random.choice(KEYS)] = around.pop(key)
    elif what == 3:  # a name for another
        named = [(a, k) for a, k in places if k in ("known", "made", "object", "tensor", "array")]
        around, key = random.choice(named)
        pool = [*tensors] if key in ("tensor", "array") else names()
        around[key] = random.choice(pool or names())
    elif tensors:
        mutate_tensor(random, tensors)


def mutate_tensor(random: random.Random, tensors: Tensors) -> None:
    name, other = random.choice([*tensors]), random.choice([*tensors])
    value = tensors[name]
    what = random.randrange(14)
    if what == 0:
        tensors[name], tensors[other] = tensors[other], value
    elif what == 1:
        tensors[name] = value.flatten()
    elif what == 2:
        del tensors[name]
    elif what == 3:
        tensors[name] = value.new_zeros(random.choice([(), (0,), (1,), (0, 3), (3, 0, 2)]))
    elif what == 4:
        kinds = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16]
        kinds += [torch.float64, torch.complex64, torch.float8_e4m3fn]
        tensors[name] = value.float().to(random.choice(kinds))
    elif what == 5:
        tensors[random.choice(["new", other])] = value.clone()
    elif value.dtype == torch.uint8 and value.numel():  # a generator's state
        value = value.clone()
        at = random.randrange(value.numel()) if what > 6 else random.randrange(8, 24)
        value[at] = random.randrange(256)
        tensors[name] = value
    elif value.is_floating_point():
        fill = random.choice([0.0, float("nan"), float("inf"), 1e30, -1.0])
        tensors[name] = value * 1.01 if what > 6 else torch.full_like(value, fill)
    elif value.numel():
        tensors[name] = (value.long() + random.choice([1, -1, 2**40])).to(value.dtype)


# Use, watched

_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.remove", "os.rename", "os.mkdir"),
    *("subprocess.Popen", "pty.spawn", "os.fork", "shutil.rmtree"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "code.__new__"),
)
_seen: list[str] | None = None  # while a file is in use
_importing: list[str] = []
_is_loading = False


def watch(event: str, args: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    # A copy of a net is made by pickling it.
    if event in _FORBIDDEN or (event == "pickle.find_class" and _is_loading):
        _seen.append(f"{event} {args!r:.200}")
    elif event == "import":
        _importing.append(str(args[0]))
    elif event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        _seen.append(f"open {args!r:.200}")
    elif event == "exec" and not os.path.exists(args[0].co_filename):  # a module's is a file
        _seen.append(f"exec {args[0].co_filename}")


class Hung(BaseException):
    pass


def _hang(*_: Any) -> None:
    raise Hung


def peak(*, reset: bool = False) -> int | None:
    """Return the most memory that the process has had since the last reset, in bytes."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:  # not on Linux
        return None
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def use(estimator: Any, images: Any, *, trains: bool) -> bool:
    """Do with an estimator what one does with it; return whether it answers."""
    answers = True
    fitted = vars(estimator)
    for name in [name for name in fitted if name.endswith("num_workers")]:
        setattr(estimator, name, 0)  # they are bounded, and slow
    is_embedding = isinstance(estimator, EmbeddingNet | EmbeddingCAMExplainer)
    steps = [
        lambda: repr(estimator),
        lambda: estimator._repr_html_(),
        lambda: repr(clone(estimator)),
        lambda: repr(copy.deepcopy(estimator)),
        lambda: copy.copy(estimator),
        lambda: estimator.get_params(),
    ]
    if "module_" in fitted or "target_layers_" in fitted:
        answer = estimator.transform if is_embedding else estimator.predict
        steps += [lambda: answer(images), lambda: estimator.explain(images)]
    if "threshold_" in fitted:
        steps.append(lambda: estimator.predict(images))
    if trains and isinstance(estimator, ConsistentCAMClassifier) and "module_" in fitted:
        estimator.max_epochs = 1
        steps.append(lambda: estimator.partial_fit(X[:4], estimator.classes_[[0, 1, 0, 1]]))
    for step in steps:
        try:
            step()
        except Exception:
            answers = False
    return answers


def run(folder: Path, seed: int, n: int) -> dict[str, Any]:
    global _seen, _is_loading
    sources = []
    for label, (estimator, kind) in estimators().items():
        save(estimator, folder / f"{label}.sklcam")
        loaded = load(folder / f"{label}.sklcam", objects=OBJECTS)  # nothing passes by refusing
        is_fitted = label != "unfitted"
        assert use(loaded, IMAGES[kind], trains=is_fitted), label
        sources.append((label, *opened(folder / f"{label}.sklcam"), IMAGES[kind]))
    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, _hang)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    faults: list[str] = []
    most, slowest = 0, 0.0
    for i in range(seed, seed + n):
        dice = random.Random(i)
        label, content, tensors, images = dice.choice(sources)
        content, tensors = copy.deepcopy(content), dict(tensors)
        for _ in range(dice.choice([1, 1, 1, 2, 3])):
            try:
                mutate(dice, content, tensors)
            except (IndexError, KeyError, RuntimeError):
                continue  # nothing there to be changed
        if dice.random() < 0.7:  # what is asked for is listed, as `save` does
            content["objects"] = sorted({"SmallNet", *content["objects"]} & {*OBJECTS})
        try:
            path = forged(folder, content, tensors)
        except (PersistenceError, UnicodeError, RecursionError):
            counts["not written"] += 1
            continue
        (folder / "at").write_text(f"{i} {label}")
        n_bytes = sum(value.nbytes for value in tensors.values())
        text = path.read_bytes().decode("latin-1")
        before = peak(reset=True)
        _importing.clear()
        signal.alarm(SECONDS)
        estimator, start = None, time.monotonic()
        _seen, _is_loading = [], True
        try:
            estimator = load(path, objects=OBJECTS)
        except (PersistenceError, MissingObjectsError) as error:
            counts[type(error).__name__] += 1
            reasons[str(error.__cause__ or error)[:60]] += 1
        except (Exception, Hung):
            faults.append(f"{i} {label}: load: {traceback.format_exc(limit=-3)}")
        _is_loading = False
        slowest = max(slowest, time.monotonic() - start)
        after = peak()
        if before is not None and after is not None:
            taken = after - before - 2 * n_bytes
            most = max(most, taken)
            if taken > CONSTANT:
                faults.append(f"{i} {label}: {taken} bytes beside twice the tensors")
        counts["loaded"] += estimator is not None
        # Compiled, torch writes programs of its own.
        if estimator is not None and not vars(estimator).get("compile"):
            try:
                counts["answered"] += use(estimator, images, trains=dice.random() < 0.3)
            except Hung:
                counts["slow"] += 1
            except BaseException:
                faults.append(f"{i} {label}: use: {traceback.format_exc(limit=-3)}")
        signal.alarm(0)
        seen, _seen = _seen, None
        faults += [f"{i} {label}: {what}" for what in seen]
        faults += [f"{i} {label}: import {name}" for name in _importing if f'"{name}' in text]
    return {
        "counts": counts,
        "faults": faults,
        "memory": most,
        "slowest": slowest,
        "reasons": reasons.most_common(40),
    }


if __name__ == "__main__":
    import resource

    # In case a mutation gets through: the machine should outlive it.
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ["HOME"] = sys.argv[1]
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
