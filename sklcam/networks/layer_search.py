"""Find the layer to explain: the usual one of a family, or the last one that outputs a grid.

Nothing is guessed: the layers of an unknown network are probed. If that does not decide, an error
lists the candidates.
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

# A layer in the first part of a network shows little of what the network does.
_LEAST_DEPTH = 0.5
_N_SHOWN = 5
# The output of these is a grid of more than the images, or of less.
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
        A dotted name; a `TargetLayer`, which is used as it is; or "auto". This is the usual layer
        of a known family. In any other network it is the last layer that runs once, through which
        everything reaches the output, and which returns a grid of places with a gradient at several
        of them. In a transformer whose last block passes on only a class token, this is the first
        normalisation in that block.
    sample : float Tensor of shape (1, channels, height, width) or None, default=None
        Or (1, channels, depth, height, width), for a network for volumes. Needed to probe a network
        that is not of a known family, or differs from it (wrapped, with hooks or with parts of its
        own): its layers are observed while parts of noise images of that shape change. The network
        does not change.
    forward : callable or None, default=None
        Calls the network with images and returns its output, for a network that takes more than
        images. None calls the network itself.

    Returns
    -------
    TargetLayer

    Raises
    ------
    ValueError
        If there is no such layer or none can be decided on; if its output is not a grid of the
        whole images as they are, or its layout cannot be found; if a sample is needed and not
        given; or if the layers cannot be observed, as the network is traced, scripted, quantized,
        or made in inference mode.

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
            "of a known family. Give a sample to probe them with, or name a layer and the layout "
            f'of its output, as in TargetLayer({name or "features.3"!r}, layout="nchw").'
        )
    search = _Search(model, sample, forward)
    return search.last() if name is None else search.named(name)


def check_positions(
    model: nn.Module, layer: TargetLayer, sample: Tensor, forward: Forward | None = None
) -> None:
    """Raise a ValueError if all maps of a layer would be constant, with one position or blank.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
    sample, forward
        As in :func:`find_target_layer`.

    Raises
    ------
    ValueError
        If the layer has a single position for such images, if at most one of its positions has a
        gradient, or if no gradient is available, as reentrant checkpoints follow the layer.
    """
    n_positions, n_alive = count_positions(model, layer, *_ready(model, sample, forward))
    size = " x ".join(map(str, sample.shape[2:]))
    if n_positions == 1:
        raise ValueError(
            f"The target layer {layer.name!r} has a single position for images of {size} pixels, "
            "so every map would be constant. Use a larger image_size or an earlier target_layer."
        )
    if n_alive is not None and n_alive < 2:
        raise ValueError(
            f"The target layer {layer.name!r} {_dead(n_alive, n_positions)}, so every map "
            "would be blank. Name an earlier one, such as the first normalisation of the last "
            "block of a transformer that passes on a class token."
        )


def layer_instead(model: nn.Module, layer: TargetLayer, sample: Tensor) -> str | None:
    """Name a layer to use in place of a bypassed one: one that everything passes through.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
    sample : float Tensor of shape (1, channels, height, width)

    Returns
    -------
    str or None
        The nearest layer behind the given one, or else before it, whose output has the same shape
        and a gradient at several positions. None if there is none.

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
    """Return the sample on the network's device, and the function that calls the network."""
    first = next(model.parameters(), None)
    sample = sample if first is None else sample.to(first.device)
    return sample, forward or (lambda images: first_output(model(images)))


def _known_layer(model: nn.Module, name: str) -> str:
    known = [layer for layer, _ in model.named_modules(remove_duplicate=False) if layer]
    found = name.removeprefix("_orig_mod.")  # the prefix of layers in a compiled network
    if found in known:
        return found
    raise ValueError(
        f"{type(model).__name__} has no layer {name!r}. {suggestion(found, known)} "
        "model.named_modules() lists all layers."
    )


def _network_around(model: nn.Module, name: str) -> tuple[str, nn.Module, Family | None]:
    """Return the prefix, the network and the family of the innermost known network at a layer."""
    parts = name.split(".")
    # From the inside out, as a known network may be part of another.
    for depth in range(len(parts) - 1, -1, -1):
        network = model.get_submodule(".".join(parts[:depth]))
        family = find_family(network)
        if family is not None:
            return "".join(f"{part}." for part in parts[:depth]), network, family
    return "", model, None


class _Search:
    """The layers of a network, what one pass shows of them, and why some are unsuitable."""

    def __init__(self, model: nn.Module, sample: Tensor, forward: Forward | None):
        self._model = model
        self._sample, forward = _ready(model, sample, forward)
        self._n_axes = sample.ndim - 2  # axes of places
        self._forward = taking_noise(model, self._sample, forward)
        self._reasons: dict[str, str] = {}  # keyed by the layer and its shape
        self._layers: dict[Traced, TargetLayer | None] = {}  # the layers that were read
        self._sequence: Traced | None = None  # see _last_sequence
        try:
            self._trace = trace(model, self._sample, self._forward)
            # Without those in a branch, such as attention windows, and those that are not clear.
            folded = self._trace.folded if self._trace.images is not None else []
            self._folded = [each for each in folded if self._trace.holds_all(each)]
        except (RuntimeError, AssertionError):
            run_dry(model, sample)  # raises a clearer error if the images are the cause
            raise

    def named(self, name: str) -> TargetLayer:
        """Return a layer as a grid; raise a ValueError if it is not clearly one."""
        part = self._model.get_submodule(name)
        traced = next((each for each in self._trace.traced if each.module is part), None)
        if traced is None and any(
            self._model.get_submodule(each) is part for each in self._trace.repeated
        ):
            raise ValueError(
                f"The target layer {name!r} runs several times in a pass. Name the run to explain "
                f"and the layout of its output, as in TargetLayer({name!r}, run=-1) for the last "
                "run."
            )
        if traced is None:
            gave = self._trace.others.get(part)
            raise ValueError(
                f"The target layer {name!r} "
                f"{'does not run' if gave is None else f'returns {gave}'} for a sample of shape "
                f"{tuple(self._sample.shape)}. Use larger images, or name another layer, whose "
                f"output is a Tensor of three or {'four' if self._n_axes == 2 else 'five'} axes, "
                "with one row per image and several positions."
            )
        layer = self._read(traced)
        if layer is None:
            ((which, reason),) = self._reasons.items()
            raise ValueError(f"The target layer {which} {reason}. {self._advice(traced)}")
        return replace(layer, name=name)

    def last(self) -> TargetLayer:
        """Return the last suitable layer; raise a ValueError that lists candidates if none is."""
        self._sequence = self._last_sequence()
        usual = self._usual()
        if usual is not None:
            return usual
        groups: dict[int, list[Traced]] = {}
        for traced in reversed(self._trace.traced):
            groups.setdefault(id(traced.output), []).append(traced)
        dead: set[str] = set()  # the names of layers without a gradient at several positions
        early: Traced | None = None
        for group in groups.values():
            # The outermost of all layers that return this tensor, which is the last to end.
            traced = min(group, key=lambda each: each.passes_on)
            if not self._trace.holds_all(traced):
                self._refuse(traced, "does not hold everything that reaches the output")
            elif any(each.depth >= traced.depth for each in self._folded):
                self._refuse(traced, "comes before the network makes several images of each one")
            elif any(isinstance(each.module, _PADDING) for each in group):
                self._refuse(traced, "is padding around the images' own grid")
            elif self._is_before_sequence(traced):
                self._refuse(traced, "comes before tokens with the images on their second axis")
            elif traced.depth < _LEAST_DEPTH and not self._begins_block(traced, dead):
                if early is None and self._is_alive(traced):
                    early = traced
                self._refuse(traced, _EARLY)  # unless it is dead
            # Gradients are checked first: they cost less, and most later layers have none.
            elif not self._is_alive(traced):
                dead.update(each.name for each in group)
            else:
                layer = self._read(traced)
                # All tokens with a gradient may be class tokens.
                if layer is not None and self._is_alive(traced, layer):
                    # The input of a normalisation would be better, if it is a module's output.
                    if id(traced.given) in groups and self._is_passed(traced, layer):
                        continue
                    return layer
                if layer is None and self._is_pooled(traced):
                    continue
                # A layer before it may be known, but be too early. Yet two or three tokens that are
                # not a grid are all class tokens.
                is_open = self._reasons[_shown(traced)].endswith(_UNSETTLED)
                if is_open and not (len(traced.shape) == 3 and traced.shape[1] < 4):
                    break
        raise ValueError(self._nothing_found(early or next(iter(groups.values()), [None])[0]))

    def _begins_block(self, traced: Traced, dead: set[str]) -> bool:
        """Whether this is the normalisation that begins a block behind which no place counts.

        An example is a transformer with a single block that passes on a class token: the layer is
        early in the network, but everything of places lies before it.
        """
        around, _, _ = traced.name.rpartition(".")
        while traced.normalizes and around:
            block = next((each for each in self._trace.traced if each.name == around), None)
            if block is not None and self._trace.holds_all(block):
                return around in dead
            around, _, _ = around.rpartition(".")
        return False

    def _is_alive(self, traced: Traced, layer: TargetLayer | None = None) -> bool:
        """Whether several positions have a gradient, on whatever axes they are."""
        reading = layer or TargetLayer(traced.name, reshape=_as_columns)
        try:
            n_positions, n_alive = count_positions(
                self._model, reading, self._sample, self._forward
            )
        except ReentrantCheckpoint:  # methods without gradients can still use the layer
            return True
        if n_alive is None or n_alive > 1:
            return True
        self._refuse(traced, _dead(n_alive, n_positions))
        return False

    def _read(self, traced: Traced) -> TargetLayer | None:
        """Return a layer as a grid, if it is one in only one way and shows the images in place."""
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
        what = f"can be read as {read}" if layouts else "does not change where images change"
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
        """Whether the input of a normalisation also reaches the output around it."""
        if not self._trace.is_passed(traced):
            return False
        if not is_passed_at(self._model, layer, self._sample, self._forward):
            return False
        self._refuse(traced, "is bypassed: its input also reaches the output around it")
        return True

    def _is_pooled(self, traced: Traced) -> bool:
        """Whether it has the fixed size of a pooling's output, without the images' proportions."""
        return any(
            isinstance(each.module, _POOLINGS) and each.shape == traced.shape
            for each in self._trace.traced
        )

    def _draw(self) -> Callable[[int], Tensor]:
        generator = torch.Generator().manual_seed(2)
        return lambda scale: noise(self._sample, 2, generator, scale)

    def _known(self, name: str) -> TargetLayer | None:
        """Return a layer as the known network around it reads it; None if there is none."""
        prefix, network, family = _network_around(self._model, name)
        if family is None:
            return None
        layer = family.target_layer(network, name.removeprefix(prefix))
        return replace(layer, name=name)

    def _usual(self) -> TargetLayer | None:
        """Return the usual layer of a known network inside this one, if it is suitable."""
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
        """Return the last module whose output is tokens (tokens, images, channels)."""
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
        """Return a sentence that says how to request a refused layer, or another one."""
        if not self._reasons.get(_shown(traced), _UNSETTLED).endswith(_UNSETTLED):
            return f"To explain one nevertheless, name it: target_layer={traced.name!r}."
        axes = channels_first if self._trace.is_nchw(traced) else channels_last
        layout = f'layout="{axes(self._n_axes)}"'
        if len(traced.shape) == 3:
            sides = "rows, columns" if self._n_axes == 2 else "slices, rows, columns"
            layout = f'layout="tokens", grid=({sides}), n_prefix=1'
        return (
            f"Name one and the layout of its output, as in TargetLayer({traced.name!r}, {layout})."
        )

    def _nothing_found(self, likely: Traced | None) -> str:
        name, shape = type(self._model).__name__, tuple(self._sample.shape)
        is_open = any(reason.endswith(_UNSETTLED) for reason in self._reasons.values())
        if self._trace.is_reentrant and not is_open:
            return f"No layer of {name} can be explained by its gradients: {REENTRANT}"
        if self._sequence is not None:
            raise ValueError(
                f"Which layer of {name} to explain cannot be decided. The last candidate, "
                f"{_shown(self._sequence)} {_SEQUENCE}"
            )
        folded = [
            f"{_shown(each)} returns {each.shape[0]} rows for one image"
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
                f"Which layer of {name} to explain cannot be decided. Candidates, last first: "
                f"{listed}. {advice}"
            )
        if self._trace.repeated:
            again = self._trace.repeated[-1]
            return (
                f"Every layer of {name} with a spatial output runs several times in a pass. Name "
                f"the run to explain, as in TargetLayer({again!r}, run=0) for the first or run=-1 "
                "for the last."
            )
        return (
            f"No layer of {name} returns a Tensor (n, K, {'' if self._n_axes == 2 else 'd, '}u, v) "
            f"with more than one position for a sample of shape {shape}. Grad-CAM needs a layer "
            "with a spatial output: name one, or give a TargetLayer if its axes are different."
        )


_EARLY = "is in the first half of the network, which target_layer= can still name"
_OF_ROWS = (
    "The network makes several images of each one, such as views or tiles, so its rows are not a "
    "single grid of places. Explain the network that each of them goes through, or name a "
    "TargetLayer whose reshape returns one row (K, u, v) per image."
)
_SEQUENCE = (
    "has the shape (tokens, images, channels), so it has no row for each image. Make it (images, "
    "tokens, channels), as batch_first=True does in torch.nn's transformers, or name an earlier "
    "layer with target_layer=."
)
_POOLINGS = (
    *(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    *(nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
)
_UNSETTLED = ", so its positions cannot be identified"


def _shown(traced: Traced) -> str:
    return f"{traced.name!r}, of shape {traced.shape},"


def _counts(shape: tuple[int, ...]) -> set[int]:
    """Return how many positions an output of this shape may have."""
    return {shape[1]} if len(shape) == 3 else {math.prod(shape[1:-1]), math.prod(shape[2:])}


def _as_columns(output: Tensor) -> Tensor:
    return output.transpose(1, 2)[..., None] if output.ndim == 3 else output
