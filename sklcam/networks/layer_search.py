"""Which layer of a network to explain: its family's, or the last whose output is a grid of places.

Nothing is guessed: of a network that is not known, layers are probed. What cannot be settled is an
error that lists the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from sklcam._validation import check_tensor, describe, suggestion
from sklcam.networks.dry_run import check_explainable, first_output, run_dry, unwrap
from sklcam.networks.extent import other_extent
from sklcam.networks.families import Family, find_family
from sklcam.networks.layers import TargetLayer, channels_first, channels_last
from sklcam.networks.placement import misplacement, quadrants_elsewhere
from sklcam.networks.probing import (
    Forward,
    Traced,
    count_positions,
    is_passed_at,
    is_sequence_first,
    layouts_of,
    noise,
    taking_noise,
    trace,
)
from sklcam.networks.reentrant import REENTRANT, ReentrantCheckpoint
from sklcam.networks.zeros import zeros_filled, zeros_of

# A layer that ends in the first part of a network sees little of what the network does.
_LEAST_DEPTH = 0.5
_N_SHOWN = 5
# What these give is a grid of more than the images, or of less.
_PADDING = (
    *(nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
    *(nn.ConstantPad3d, nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d),
)


def find_target_layer(
    model: nn.Module,
    target_layer: str | TargetLayer = "auto",
    *,
    sample: Tensor | None = None,
    forward: Forward | None = None,
) -> TargetLayer:
    """Find the layer to explain, by name or by the network's family.

    Parameters
    ----------
    model : nn.Module
        A network of a known family, or any other.
    target_layer : str or TargetLayer, default="auto"
        A dotted name; a `TargetLayer`, which is taken as it is; or "auto": the usual layer of a
        known family, and for any other network the last that runs once, holds all that reaches the
        output, and is a grid of places, of which more than one has a gradient. Of a transformer
        whose last block hands on a class token alone, that is the first normalisation in it.
    sample : float Tensor of shape (1, channels, height, width) or None, default=None
        Or (1, channels, depth, height, width), for a network of volumes. Networks need it that are
        not of a known family, or not as that builds them (wrapped, with hooks or with parts of
        their own), to be probed: their layers are looked at while parts of images of noise of that
        shape change. The network is left as it was found.
    forward : callable or None, default=None
        How the network is called with images, for one that takes more than these; it returns the
        output. None is the network itself.

    Returns
    -------
    TargetLayer

    Raises
    ------
    ValueError
        If there is no such layer, none can be settled on, it is not a grid of places of the whole
        images as they are or its layout cannot be told, or a sample is needed to find out; or if
        the network is one whose layers cannot be looked into: traced, scripted, quantized, or made
        in inference mode.

    Examples
    --------
    >>> from sklcam.networks import build_model, find_target_layer
    >>> find_target_layer(build_model("squeezenet1_1", n_classes=3))
    TargetLayer(name='features.12', layout='nchw', grid=None, n_prefix=0, reshape=None, run=None)
    """
    model = unwrap(model)
    check_explainable(model)
    if sample is not None:
        depth = ["depth"] if isinstance(sample, Tensor) and sample.ndim == 5 else []
        check_tensor("sample", sample, "1", "channels", *depth, "height", "width")
    if isinstance(target_layer, TargetLayer):
        return replace(target_layer, name=_known_layer(model, target_layer.name))
    if not isinstance(target_layer, str):
        raise ValueError(
            "target_layer must be a layer's dotted name, such as 'features.3', a TargetLayer or "
            f"'auto'; got {describe(target_layer)}."
        )
    name = None if target_layer == "auto" else _known_layer(model, target_layer)
    family = find_family(model)
    if family is not None and family.is_plain(model):
        return family.usual_layer(model) if name is None else family.target_layer(model, name)
    if sample is None:
        raise ValueError(
            f"The layers of {type(model).__name__} are not known, as it is not the plain network "
            "of a known family: give a sample to try them on, or "
            "say how the output of one lies, as in "
            f'TargetLayer({name or "features.3"!r}, layout="nchw").'
        )
    search = _Search(model, sample, forward)
    return search.last() if name is None else search.named(name)


def check_positions(
    model: nn.Module, layer: TargetLayer, sample: Tensor, forward: Forward | None = None
) -> None:
    """Raise a ValueError if all maps of a layer would be constant: of one position, or blank.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
    sample, forward
        As in :func:`find_target_layer`.

    Raises
    ------
    ValueError
        If the layer has a single position for such images, the output has a gradient at none, or
        one, of its positions, or there is none to be had, of a layer before parts that run by
        reentrant checkpoints.
    """
    n_positions, n_alive = count_positions(model, layer, *_ready(model, sample, forward))
    size = " x ".join(map(str, sample.shape[2:]))
    if n_positions == 1:
        raise ValueError(
            f"The target layer {layer.name!r} has a single position for images of {size} pixels, "
            "so every map is constant; use a larger image_size or an earlier target_layer."
        )
    if n_alive is not None and n_alive < 2:
        raise ValueError(
            f"The target layer {layer.name!r} {_dead(n_alive, n_positions)}, so that every map "
            "would be blank; name an earlier one, such as the first normalisation of the last "
            "block of a transformer that passes on a class token."
        )


def layer_instead(model: nn.Module, layer: TargetLayer, sample: Tensor) -> str | None:
    """Name a layer like a bypassed one that everything passes, and that has a map.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
    sample : float Tensor of shape (1, channels, height, width)

    Returns
    -------
    str or None
        The nearest of those behind the layer, or else of those before it, whose output has the
        layer's shape and a gradient at several positions. None if there is none.

    Raises
    ------
    AttributeError
        If the layer is not part of the network.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks import TargetLayer, build_model
    >>> from sklcam.networks.layer_search import layer_instead
    >>> net = build_model("resnet18", n_classes=2).eval()
    >>> layer_instead(net, TargetLayer("layer4.1.conv2"), torch.zeros(1, 3, 64, 64))
    'layer4.1'
    """
    part = layer.of(model)
    sample, forward = _ready(model, sample, None)
    traced = trace(model, sample, forward)
    ran = [each.module for each in traced.traced]
    if part not in ran:
        return None
    own = ran.index(part)
    for each in [*traced.traced[own + 1 :], *reversed(traced.traced[:own])]:
        if each.shape != traced.traced[own].shape or traced.is_passed(each):
            continue
        like = replace(layer, name=each.name, run=None)
        _, n_alive = count_positions(model, like, sample, forward)
        if n_alive is not None and n_alive > 1:
            return each.name
    return None


def _dead(n_alive: int, n_positions: int) -> str:
    return f"has a gradient at {n_alive} of its {n_positions} positions"


def _ready(model: nn.Module, sample: Tensor, forward: Forward | None) -> tuple[Tensor, Forward]:
    """Return a sample where the network is, and what calls it."""
    first = next(model.parameters(), None)
    sample = sample if first is None else sample.to(first.device)
    return sample, forward or (lambda images: first_output(model(images)))


def _known_layer(model: nn.Module, name: str) -> str:
    known = [layer for layer, _ in model.named_modules(remove_duplicate=False) if layer]
    found = name.removeprefix("_orig_mod.")  # so a compiled network calls its layers
    if found in known:
        return found
    raise ValueError(
        f"{type(model).__name__} has no layer {name!r}. {suggestion(found, known)} "
        "model.named_modules() lists all."
    )


def _network_around(model: nn.Module, name: str) -> tuple[str, nn.Module, Family | None]:
    """Return the innermost network of a known family that holds a layer, and its layers' prefix."""
    parts = name.split(".")
    # From the inside, as a known network may be a part of another.
    for depth in range(len(parts) - 1, -1, -1):
        network = model.get_submodule(".".join(parts[:depth]))
        family = find_family(network)
        if family is not None:
            return "".join(f"{part}." for part in parts[:depth]), network, family
    return "", model, None


class _Search:
    """The layers of a network, what is known of them after one pass, and why some will not do."""

    def __init__(self, model: nn.Module, sample: Tensor, forward: Forward | None):
        self._model = model
        self._sample, forward = _ready(model, sample, forward)
        self._n_axes = sample.ndim - 2  # of places
        self._forward = taking_noise(model, self._sample, forward)
        self._reasons: dict[str, str] = {}  # by the layer and its shape
        self._layers: dict[Traced, TargetLayer | None] = {}  # that were read
        self._sequence: Traced | None = None  # see _last_sequence
        try:
            self._trace = trace(model, self._sample, self._forward)
            # Not those in a branch, as the windows of attention, nor where that cannot be told.
            folded = self._trace.folded if self._trace.images is not None else []
            self._folded = [each for each in folded if self._trace.holds_all(each)]
        except (RuntimeError, AssertionError):
            run_dry(model, sample)  # says what is wrong with the images, if they are it
            raise

    def named(self, name: str) -> TargetLayer:
        """Return a layer as a grid; a ValueError if it is none, or that cannot be told."""
        part = self._model.get_submodule(name)
        traced = next((each for each in self._trace.traced if each.module is part), None)
        if traced is None and any(
            self._model.get_submodule(each) is part for each in self._trace.repeated
        ):
            raise ValueError(
                f"The target layer {name!r} runs several times in a pass; say which run is "
                f"explained, and how its output lies, as in TargetLayer({name!r}, run=-1) for the "
                "last."
            )
        if traced is None:
            gave = self._trace.others.get(part)
            raise ValueError(
                f"The target layer {name!r} "
                f"{'does not run' if gave is None else f'gives {gave}'} for a sample of shape "
                f"{tuple(self._sample.shape)}: name another, whose output is a Tensor of three or "
                f"{'four' if self._n_axes == 2 else 'five'} axes, with one row an image and "
                "several positions, or use larger images."
            )
        layer = self._read(traced)
        if layer is None:
            ((which, reason),) = self._reasons.items()
            raise ValueError(f"The target layer {which} {reason}. {self._advice(traced)}")
        return replace(layer, name=name)

    def last(self) -> TargetLayer:
        """Return the last layer that will do; a ValueError that lists candidates if none does."""
        self._sequence = self._last_sequence()
        usual = self._usual()
        if usual is not None:
            return usual
        groups: dict[int, list[Traced]] = {}
        for traced in reversed(self._trace.traced):
            groups.setdefault(id(traced.output), []).append(traced)
        dead: set[str] = set()  # the names of those of which no position has a gradient
        early: Traced | None = None
        for group in groups.values():
            # Of all that give this tensor the outermost, which is the last to end.
            traced = min(group, key=lambda each: each.passes_on)
            if not self._trace.holds_all(traced):
                self._refuse(traced, "is not all that reaches the output")
            elif any(each.depth >= traced.depth for each in self._folded):
                self._refuse(traced, "lies before where several are made of an image")
            elif any(isinstance(each.module, _PADDING) for each in group):
                self._refuse(traced, "is padding around the images' own grid")
            elif self._is_before_sequence(traced):
                self._refuse(traced, "lies before tokens of which images are the second axis")
            elif traced.depth < _LEAST_DEPTH and not self._begins_block(traced, dead):
                if early is None and self._is_alive(traced):
                    early = traced
                self._refuse(traced, _EARLY)  # unless it is dead
            # Gradients first: they cost less, and most layers behind the right one have none.
            elif not self._is_alive(traced):
                dead.update(each.name for each in group)
            else:
                layer = self._read(traced)
                # Of tokens that are alive, all may be of classes.
                if layer is not None and self._is_alive(traced, layer):
                    # What a normalisation is given would be better, if a module gives it.
                    if id(traced.given) in groups and self._is_passed(traced, layer):
                        continue
                    return layer
                if layer is None and self._is_pooled(traced):
                    continue
                # What lies before it may be known, and may be too early. But of two or three tokens
                # that are no grid, all are of classes.
                is_open = self._reasons[_shown(traced)].endswith(_UNSETTLED)
                if is_open and not (len(traced.shape) == 3 and traced.shape[1] < 4):
                    break
        raise ValueError(self._nothing_found(early or next(iter(groups.values()), [None])[0]))

    def _begins_block(self, traced: Traced, dead: set[str]) -> bool:
        """Whether it is the normalisation at the start of a block behind which no place counts.

        As of a transformer of a single block that hands on a class token: little lies before it,
        and all that is of places.
        """
        around, _, _ = traced.name.rpartition(".")
        while traced.normalizes and around:
            block = next((each for each in self._trace.traced if each.name == around), None)
            if block is not None and self._trace.holds_all(block):
                return around in dead
            around, _, _ = around.rpartition(".")
        return False

    def _is_alive(self, traced: Traced, layer: TargetLayer | None = None) -> bool:
        """Whether several positions have a gradient, whatever axes they are along if not known."""
        reading = layer or TargetLayer(traced.name, reshape=_as_columns)
        try:
            n_positions, n_alive = count_positions(
                self._model, reading, self._sample, self._forward
            )
        except ReentrantCheckpoint:  # which methods without gradients can do with
            return True
        if n_alive is None or n_alive > 1:
            return True
        self._refuse(traced, _dead(n_alive, n_positions))
        return False

    def _read(self, traced: Traced) -> TargetLayer | None:
        """Return a layer as a grid, if it is one in one way, and one of the images as they are."""
        if traced not in self._layers:
            self._layers[traced] = self._probe(traced)
        return self._layers[traced]

    def _probe(self, traced: Traced) -> TargetLayer | None:
        if self._trace.is_output(traced):
            self._refuse(traced, "is the output itself")
            return None
        found = self._place(traced)
        if isinstance(found, str) and zeros_of(self._model):
            with zeros_filled(self._model):
                found = self._place(traced)
        if isinstance(found, TargetLayer):
            return found
        self._refuse(traced, found + _UNSETTLED)
        return None

    def _place(self, traced: Traced) -> TargetLayer | str:
        """Return the layer as a grid of places, or say what it is instead."""
        known = self._known(traced.name)
        layouts = layouts_of(
            self._model,
            traced.name,
            self._sample,
            self._forward,
            is_nchw=self._trace.is_nchw(traced)
            or (known is not None and known.layout == channels_first(self._n_axes)),
        )
        if known in layouts:
            layouts = [known]
        if len(layouts) == 1:
            args = self._model, layouts[0]
            seen = misplacement(*args, self._draw(), self._forward)
            return seen or other_extent(*args, self._draw(), self._forward) or layouts[0]
        read = " or ".join(f'layout="{each.layout}", grid={each.grid}' for each in layouts)
        what = f"can be read as {read}" if layouts else "does not answer where images change"
        first = TargetLayer(traced.name, channels_first(self._n_axes))
        likely = known or (first if self._trace.is_nchw(traced) else None)
        if not layouts and likely is not None:
            args = self._model, likely
            seen = quadrants_elsewhere(*args, self._draw(), self._forward)
            if known is not None:
                seen = seen or misplacement(*args, self._draw(), self._forward)
            what += f": {seen}" if seen else ""
        return what

    def _is_passed(self, traced: Traced, layer: TargetLayer) -> bool:
        """Whether what a normalisation is given counts, at its positions, without it as well."""
        if not self._trace.is_passed(traced):
            return False
        if not is_passed_at(self._model, layer, self._sample, self._forward):
            return False
        self._refuse(traced, "is passed by: what it is given counts beside it")
        return True

    def _is_pooled(self, traced: Traced) -> bool:
        """Whether it is of a fixed size, the images' proportions lost, that a pooling made."""
        return any(
            isinstance(each.module, _POOLINGS) and each.shape == traced.shape
            for each in self._trace.traced
        )

    def _draw(self) -> Callable[[int], Tensor]:
        generator = torch.Generator().manual_seed(2)
        return lambda scale: noise(self._sample, 2, generator, scale)

    def _known(self, name: str) -> TargetLayer | None:
        """Return how a layer lies in the network of a known family around it, if in one."""
        prefix, network, family = _network_around(self._model, name)
        if family is None:
            return None
        layer = family.target_layer(network, name.removeprefix(prefix))
        return replace(layer, name=name)

    def _usual(self) -> TargetLayer | None:
        """Return the usual layer of a known network inside, if it holds all and is in place."""
        ran = {traced.name: traced for traced in self._trace.traced}
        if not ran:
            return None
        prefix, network, family = _network_around(self._model, [*ran][-1])
        if family is None:
            return None
        traced = ran.get(prefix + family.usual_layer(network).name)
        if traced is None or not self._trace.holds_all(traced) or self._is_before_sequence(traced):
            return None
        return self._read(traced)

    def _last_sequence(self) -> Traced | None:
        """Return the last module that gives tokens of places, images being the second axis."""
        seen = set()
        for each in reversed(self._trace.sequences):
            if each.shape in seen or not self._trace.holds_all(each):
                continue
            seen.add(each.shape)
            counts = {
                n
                for before in self._trace.traced
                if before.depth <= each.depth
                for n in _counts(before.shape)
            }
            if is_sequence_first(self._model, each, self._sample, self._forward, counts):
                return each
        return None

    def _is_before_sequence(self, traced: Traced) -> bool:
        return self._sequence is not None and self._sequence.depth >= traced.depth

    def _refuse(self, traced: Traced, reason: str) -> None:
        self._reasons.setdefault(_shown(traced), reason)

    def _advice(self, traced: Traced) -> str:
        """Say how to ask for a layer that was refused, or for another one."""
        if not self._reasons.get(_shown(traced), _UNSETTLED).endswith(_UNSETTLED):
            return f"To explain one all the same, name it: target_layer={traced.name!r}."
        axes = channels_first if self._trace.is_nchw(traced) else channels_last
        layout = f'layout="{axes(self._n_axes)}"'
        if len(traced.shape) == 3:
            sides = "rows, columns" if self._n_axes == 2 else "slices, rows, columns"
            layout = f'layout="tokens", grid=({sides}), n_prefix=1'
        return (
            f"Name one, and say how its output lies, as in TargetLayer({traced.name!r}, {layout})."
        )

    def _nothing_found(self, likely: Traced | None) -> str:
        name, shape = type(self._model).__name__, tuple(self._sample.shape)
        is_open = any(reason.endswith(_UNSETTLED) for reason in self._reasons.values())
        if self._trace.is_reentrant and not is_open:
            return f"No layer of {name} can be explained by its gradients: {REENTRANT}"
        if self._sequence is not None:
            raise ValueError(
                f"Which layer of {name} to explain cannot be settled. The last candidate, "
                f"{_shown(self._sequence)} {_SEQUENCE}"
            )
        folded = [
            f"{_shown(each)} gives {each.shape[0]} rows for one image"
            for each in reversed(self._folded)
        ]
        if folded or likely:
            shown = [f"{which} {why}" for which, why in self._reasons.items()][:_N_SHOWN]
            if likely is not None and self._reasons[_shown(likely)] == _EARLY:
                shown = [each for each in shown if not each.startswith(_shown(likely))]
                shown.insert(0, f"{_shown(likely)} {_EARLY}")
            listed = "; ".join([*folded[:_N_SHOWN], *shown][:_N_SHOWN])
            advice = _OF_ROWS if folded or likely is None else self._advice(likely)
            return (
                f"Which layer of {name} to explain cannot be settled. Candidates, the last first: "
                f"{listed}. {advice}"
            )
        if self._trace.repeated:
            again = self._trace.repeated[-1]
            return (
                f"Every layer of {name} with a spatial output runs several times in a pass, so "
                "that none is the one to explain; say which run is, as in "
                f"TargetLayer({again!r}, run=0) for the first or run=-1 for the last."
            )
        return (
            f"No layer of {name} gives a Tensor (n, K, {'' if self._n_axes == 2 else 'd, '}u, v) "
            f"with more than one position for a "
            f"sample of shape {shape}. Grad-CAM needs a layer with a spatial output: name it, as a "
            "TargetLayer where the axes are others."
        )


_EARLY = "ends in the first half of the network, which target_layer= may ask for all the same"
_OF_ROWS = (
    "The network makes several of each image, as views or tiles, whose rows are no one grid of "
    "places: explain the network that each of them goes through, or name a TargetLayer whose "
    "reshape returns one row (K, u, v) an image."
)
_SEQUENCE = (
    "is of shape (tokens, images, channels), which has no row for each image. Make it (images, "
    "tokens, channels), as batch_first=True does in torch.nn's transformers, or ask for an earlier "
    "layer by its name, target_layer=."
)
_POOLINGS = (
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
)
_UNSETTLED = ", so its positions cannot be identified"


def _shown(traced: Traced) -> str:
    return f"{traced.name!r}, of shape {traced.shape},"


def _counts(shape: tuple[int, ...]) -> set[int]:
    """Return how many positions an output of that shape may have."""
    return {shape[1]} if len(shape) == 3 else {math.prod(shape[1:-1]), math.prod(shape[2:])}


def _as_columns(output: Tensor) -> Tensor:
    return output.transpose(1, 2)[..., None] if output.ndim == 3 else output
