"""The judge of ``networks.py``: whether a layer's maps show places, by criteria written out here.

It does not use sklcam's own search. If a layer is not right, it raises a `NotRight` that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from networks_zoo import Case
from torch import Tensor, nn
from torch.nn import functional as F

from sklcam import CAMExplainer
from sklcam.cam import GradCAM
from sklcam.networks import TargetLayer

TOLERANCE = 2e-3  # bound on differences of maps in [0, 1]
CONTRAST = 1.0  # how much more a quadrant responds to its own change than to others
CORRELATION = 0.5  # of a position's row (column) with that of the place that it responds to
MOST_PARTS = 6  # parts an image is cut into, along a side; four for larger grids
LATE, HALF = 0.75, 0.5
N_FIRST = 3  # images that often suffice


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    output = network(images)
    if isinstance(output, tuple | list):
        output = output[0]
    return getattr(output, "logits", output)


# The layer, looked at from outside


def own_grid(layer: TargetLayer, output: Tensor, start: int | None = None) -> Tensor:
    """Bring a layer's output to (n, K, u, v), from the layout that the explainer reports."""
    if layer.reshape is not None:
        return layer.reshape(output)
    if layer.layout == "nchw":
        return output
    if layer.layout == "nhwc":
        return torch.movedim(output, -1, 1)
    assert layer.grid is not None
    u, v = layer.grid
    start = layer.n_prefix if start is None else start
    tokens = output[:, start : start + u * v]
    return torch.stack([tokens[:, i * v : (i + 1) * v] for i in range(u)], 1).movedim(-1, 1)


def tensor_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


Hook = Callable[[nn.Module, Any, Any], Any]


@contextmanager
def hooked(network: nn.Module, layer: TargetLayer, hook: Hook) -> Iterator[None]:
    """Call a hook after the run of the explained layer."""
    module = network.get_submodule(layer.name)
    wanted = 0 if layer.run is None else layer.run
    if wanted < 0:
        raise ValueError("runs from the end are not counted here")
    n_runs = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal n_runs
        n_runs += 1
        return hook(module, inputs, output) if n_runs == wanted + 1 else None

    handle = module.register_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()


def activations_of(network: nn.Module, layer: TargetLayer, images: Tensor, size: int) -> Tensor:
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(tensor_of(output).detach().clone())

    for batch in images.split(size):
        with torch.no_grad(), hooked(network, layer, keep):
            network(batch)
        if len(found[-1]) != len(batch):
            raise NotRight(f"{len(found[-1])} rows for {len(batch)} images")
    return torch.cat(found)


class NotRight(Exception):
    """A layer is not right; the message says what it lacks."""


def maps_by_autograd(
    network: nn.Module, layer: TargetLayer, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Grad-CAM without the ReLU, (n, u, v), and the gradients (n, K, u, v)."""
    leaves: list[Tensor] = []

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        leaf = tensor_of(output).detach().clone().requires_grad_()
        leaves.append(leaf)
        return leaf.clone() if isinstance(output, Tensor) else (leaf.clone(), *output[1:])

    with torch.enable_grad(), hooked(network, layer, replace):
        score = logits_of(network, images).amax(dim=1).sum()
        if not score.requires_grad:
            raise NotRight("the score does not depend on the layer")
        (gradient,) = torch.autograd.grad(score, leaves[0], allow_unused=True)
    if gradient is None:
        raise NotRight("the score does not depend on the layer")
    activations, gradients = own_grid(layer, leaves[0].detach()), own_grid(layer, gradient)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * activations).sum(dim=1), gradients


def finished(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps to the size of the images, and scale each to [0, 1]."""
    maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), torch.zeros_like(maps))


def check_maps(explainer: CAMExplainer, raw: Tensor, images: Tensor) -> float:
    size = (images.shape[-2], images.shape[-1])
    most = 0.0
    for relu in (True, False):
        given = torch.as_tensor(explainer.explain(images, method=GradCAM(relu=relu)))
        expected = finished(raw.relu() if relu else raw, size).cpu()
        if given.shape != expected.shape:
            raise NotRight(f"maps of shape {tuple(given.shape)}")
        most = max(most, float((given - expected).abs().max()))
    if not most <= TOLERANCE:
        raise NotRight(f"maps differ by {most:.0e} from those by autograd")
    return most


# Place


@dataclass(frozen=True)
class Parts:
    """The parts of an image, rows x columns, and a layer's responses to a change of each."""

    rows: int
    columns: int

    @classmethod
    def for_grid(cls, u: int, v: int) -> Parts:
        """Return one part per position, or four along larger sides; more along sides of 1 and 3."""
        few = {1: 2, 3: 4}
        return cls(*(few.get(n, n) if n <= MOST_PARTS else 4 for n in (u, v)))

    def changed(self, image: Tensor, other: Tensor) -> Tensor:
        """Return copies of an image (1, ...), each with one part from another image."""
        height, width = image.shape[-2:]
        copies = image.repeat(self.rows * self.columns, 1, 1, 1)
        for i in range(self.rows):
            for j in range(self.columns):
                rows = slice(i * height // self.rows, (i + 1) * height // self.rows)
                columns = slice(j * width // self.columns, (j + 1) * width // self.columns)
                copies[i * self.columns + j, :, rows, columns] = other[0, :, rows, columns]
        return copies

    def overlap(self, u: int, v: int) -> Tensor:
        """Return the share of each grid position that lies in each part, (parts, u, v)."""
        rows, columns = shares(self.rows, u), shares(self.columns, v)
        return torch.einsum("iu,jv->ijuv", rows, columns).flatten(0, 1)

    def centres(self) -> tuple[Tensor, Tensor]:
        rows = (torch.arange(self.rows) + 0.5) / self.rows
        columns = (torch.arange(self.columns) + 0.5) / self.columns
        return (
            rows[:, None].expand(-1, self.columns).flatten(),
            columns.expand(self.rows, -1).flatten(),
        )


def shares(n_parts: int, n_cells: int) -> Tensor:
    """Return the share of each cell that lies in each part along a side, (parts, cells)."""
    starts, cells = torch.arange(n_parts) / n_parts, torch.arange(n_cells) / n_cells
    ends, cell_ends = starts + 1 / n_parts, cells + 1 / n_cells
    common = torch.minimum(ends[:, None], cell_ends) - torch.maximum(starts[:, None], cells)
    return common.clamp(min=0) * n_cells


def responses_of(rows: Tensor, layer: TargetLayer, start: int | None = None) -> Tensor:
    """Return the responses of positions, (parts, u, v); row 0 is for the unchanged image."""
    grid = own_grid(layer, rows, start).double()
    change = grid[1:] - grid[:1]
    # What all positions share says nothing about place, for example if attention is uniform.
    change = change - change.mean(dim=(2, 3), keepdim=True)
    return change.norm(dim=1).cpu()


def balanced(table: Tensor) -> Tensor:
    """Scale the rows and columns of a positive table until each has a mean of 1."""
    table = table.clamp(min=1e-12 * float(table.max()) + 1e-300)
    for _ in range(50):
        table = table / table.mean(dim=1, keepdim=True)
        table = table / table.mean(dim=0, keepdim=True)
    return table


def contrast_of(responses: Tensor, parts: Parts) -> float:
    """Return how much more quadrants respond to their own change than to changes elsewhere."""
    _, u, v = responses.shape
    to_parts = Parts(2, 2).overlap(parts.rows, parts.columns).flatten(1)  # (4, parts)
    to_cells = Parts(2, 2).overlap(u, v).flatten(1)  # (4, cells)
    table = balanced(to_parts @ responses.float().flatten(1) @ to_cells.T)
    own = torch.eye(4, dtype=torch.bool)
    others = table.masked_fill(own, 0)
    return float((table.diagonal() / torch.maximum(others.amax(0), others.amax(1))).min())


def correlations_of(responses: Tensor, parts: Parts) -> tuple[float, float]:
    """Return correlations of place in the grid and the image: the least along, the most across."""
    _, u, v = responses.shape
    table = balanced(responses.flatten(1))
    weights = table**4 / (table**4).sum(dim=0)  # of each position, over the parts
    sources = torch.stack([centre.double() @ weights for centre in parts.centres()])
    cells = torch.stack(
        [
            torch.arange(u, dtype=torch.float64)[:, None].expand(u, v).flatten(),
            torch.arange(v, dtype=torch.float64).expand(u, v).flatten(),
        ]
    )
    matrix = torch.corrcoef(torch.cat([sources, cells]))[:2, 2:].nan_to_num()
    return float(matrix.diagonal().min()), float(matrix.fliplr().diagonal().abs().max())


def agreement_of(responses: Tensor, parts: Parts) -> float:
    """Return the share of all responses that is in place, if parts and positions count alike."""
    _, u, v = responses.shape
    table = balanced(responses.flatten(1))
    own = parts.overlap(u, v).flatten(1)
    return float((table / table.sum(dim=0) * own).sum(dim=0).mean())


def check_place(
    network: nn.Module, layer: TargetLayer, images: Tensor, batch_size: int
) -> dict[str, float]:
    """Check that a grid responds where images change; try more images while it does not."""
    u, v = own_grid(layer, activations_of(network, layer, images[:1], 1)).shape[-2:]
    parts = Parts.for_grid(u, v)
    responses: dict[int | None, Tensor] = {}
    for i, (image, other) in enumerate(zip(images, images.roll(1, dims=0), strict=True), 1):
        batch = torch.cat([image[None], parts.changed(image[None], other[None])])
        rows = activations_of(network, layer, batch, batch_size)
        starts: list[int | None] = [None]
        if layer.reshape is None and layer.layout == "tokens":
            starts += [n for n in range(rows.shape[1] - u * v + 1) if n != layer.n_prefix]
        for start in starts:
            found = responses_of(rows, layer, start)
            scale = found.mean().clamp(min=torch.finfo(torch.float64).tiny)
            responses[start] = responses.get(start, torch.zeros(())) + found / scale
        if i < N_FIRST:
            continue
        figures, lacks = figures_of_place(responses, parts)
        if not lacks:
            return figures
    raise NotRight("; ".join(lacks) + ": " + text_of(figures))


def figures_of_place(
    responses: dict[int | None, Tensor], parts: Parts
) -> tuple[dict[str, float], list[str]]:
    """Return a grid's figures, and what it lacks; responses are by first token."""
    own = responses[None]
    along, across = correlations_of(own, parts)
    figures = {
        "contrast": contrast_of(own, parts),
        "along": along,
        "across": across,
        "agreement": agreement_of(own, parts),
    }
    lacks = []
    if not figures["contrast"] > CONTRAST:
        lacks.append("quadrants do not respond in place")
    if not along - across > CORRELATION:
        lacks.append("rows and columns do not correspond to those of the image")
    for start, shifted in responses.items():
        if start is not None and agreement_of(shifted, parts) > figures["agreement"]:
            lacks.append(f"the grid begins with token {start} rather")
    return figures, lacks


def text_of(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.2g}" for name, value in figures.items())


def check_rows(network: nn.Module, layer: TargetLayer, images: Tensor) -> None:
    """Check that each row of the layer depends only on its image, whatever image is beside it."""
    one = activations_of(network, layer, images[[0, 1]], 2)
    other = activations_of(network, layer, images[[0, 2]], 2)
    scale = float((one[0] - one[1]).abs().max())
    if float((one[0] - other[0]).abs().max()) > 1e-3 * scale:
        raise NotRight("a row does not belong to an image")


# Depth, and what bypasses the layer


def check_whole(network: nn.Module, layer: TargetLayer, images: Tensor) -> float:
    """Put another image's activations into the layer, and expect the other image's output."""
    image, other = images[:1], images[1:2]
    with torch.no_grad():
        expected, plain = logits_of(network, other), logits_of(network, image)

    def rest(of_input: bool) -> float:
        found: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(tensor_of(output).clone())

        def put(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor_of(output).copy_(found[0])

        def keep_input(module: nn.Module, inputs: Any) -> None:
            found.append(inputs[0].clone())

        def put_input(module: nn.Module, inputs: Any) -> None:
            inputs[0].copy_(found[0])  # in place, so that a bypass gets it, too

        module = network.get_submodule(layer.name)
        with torch.no_grad():
            for images, step in ((other, 0), (image, 1)):
                with ExitStack() as stack:
                    if of_input:
                        hook = module.register_forward_pre_hook((keep_input, put_input)[step])
                        stack.callback(hook.remove)
                    else:
                        stack.enter_context(hooked(network, layer, (keep, put)[step]))
                    output = logits_of(network, images)
        return float((output - expected).norm() / (plain - expected).norm())

    left = rest(of_input=False)
    if left > 1e-3 and "norm" in type(network.get_submodule(layer.name)).__name__.lower():
        left = min(left, rest(of_input=True))
    if not left <= 1e-3:
        raise NotRight(f"inside a branch: {left:.0%} of the change of the output bypasses it")
    return left


def check_depth(
    network: nn.Module, layer: TargetLayer, image: Tensor, case: Case, grid: tuple[int, int]
) -> float:
    leaves = {m for m in network.modules() if not any(True for _ in m.children())}
    target, n_done, at = network.get_submodule(layer.name), 0, 0

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal n_done, at
        n_done += module in leaves
        if module is target:
            at = n_done

    with ExitStack() as stack:
        for module in {*leaves, target}:
            stack.callback(module.register_forward_hook(note).remove)
        with torch.no_grad():
            network(image)
    depth = at / n_done
    reduction = case.reduction(network)
    is_last_stage = reduction is not None and grid[0] <= -(-image.shape[-2] // reduction)
    if not (depth >= LATE or (is_last_stage and depth >= HALF)):
        raise NotRight(f"ends after {depth:.0%} of the network")
    return depth


def check_alive(gradients: Tensor) -> float:
    sizes = gradients.norm(dim=1)
    alive = float((sizes > 1e-6 * sizes.amax(dim=(1, 2), keepdim=True)).double().mean())
    if not alive > 0.5:
        raise NotRight(f"{alive:.0%} of the positions have a gradient")
    return alive


def inspect(
    network: nn.Module,
    layer: TargetLayer,
    images: Tensor,
    case: Case,
    batch_size: int,
    explainer: CAMExplainer | None = None,
) -> tuple[tuple[int, int], dict[str, float]]:
    """Return the grid and the figures of a layer; a NotRight says what it lacks."""
    check_rows(network, layer, images)
    shape = own_grid(layer, activations_of(network, layer, images[:1], 1)).shape
    if len(shape) != 4:
        raise NotRight(f"{len(shape)} axes")
    raw, gradients = maps_by_autograd(network, layer, images[:2])
    u, v = raw.shape[-2:]
    if min(u, v) < 2:
        raise NotRight(f"a grid of {u} x {v}")
    figures = {"alive": check_alive(gradients)}
    figures |= check_place(network, layer, images, batch_size)
    figures["depth"] = check_depth(network, layer, images[:1], case, (u, v))
    figures["whole"] = check_whole(network, layer, images)
    if explainer is not None:
        figures["maps"] = check_maps(explainer, raw, images[:2])
    return (u, v), figures
