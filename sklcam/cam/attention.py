"""Methods that use a vision transformer's attention: which tokens each token draws on."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, MutableMapping
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from sklcam._validation import check_number
from sklcam.cam.base import Method
from sklcam.cam.recorded import RecordedPass
from sklcam.networks.attention import AttentionRecord, Block
from sklcam.networks.attention_origin import OriginRecord
from sklcam.networks.first_rows import READ_ALL_ROWS, FirstRows
from sklcam.networks.layers import TargetLayer
from sklcam.networks.precision import at_least_float32
from sklcam.networks.tape import differentiate


class _AttentionMethod(Method):
    """A method that computes a relevance for each token. The tokens of places form the map."""

    def rule(self) -> AttentionRecord:
        return AttentionRecord()

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        record = recorded.rule
        assert isinstance(record, AttentionRecord)
        layer = _tokens_of(type(self).__name__, recorded, record)
        _check_chain(type(self).__name__, recorded, record)
        if self.graph == "images" and not record.is_differentiable:
            raise ValueError(
                f"{type(self).__name__} needs the gradient of all attention, but some of the "
                f"attention in {type(recorded.network).__name__} has no graph. The forward may end "
                "the graph by detach(), torch.no_grad() or checkpoint(use_reentrant=True). Remove "
                "that, or use Rollout."
            )
        relevances = at_least_float32(self.relevances(recorded, record))
        assert layer.grid is not None
        maps = relevances[..., layer.n_prefix :].unflatten(-1, layer.grid)
        return [maps] * len(recorded.layers)  # the same map for each, so all layers count alike

    @abstractmethod
    def relevances(self, recorded: RecordedPass, record: AttentionRecord) -> Tensor:
        """Return the relevance of each token for each score, (n_images, k, n_tokens)."""


class Rollout(_AttentionMethod):
    r"""Attention rollout: the layers' attention, multiplied from the output down to the patches.

    .. math:: \tilde A_l = \tfrac12 W_l + \tfrac12 I, \qquad R = \tilde A_L \cdots \tilde A_1

    :math:`W_l` is the attention of layer l with its heads fused; the rows of :math:`\tilde A_l` add
    up to 1. The map is the row of :math:`R` for the token that the network reads. If it reads
    several, as a distilled network or one that pools its patches does, the map is the mean of their
    rows. The gradient shows which tokens it reads. The map does not depend on the class.

    Rollout is defined for transformers in which all attention is between all tokens of an image,
    one layer after the other. Attention within windows, from other tokens to these, or in parallel
    branches is refused, as is attention that is computed in a way that cannot be seen.

    The query, key and value of a token must be computed only from that token. Attention to as many
    learned queries or to tokens of another branch is refused, and so are tokens that are mixed or
    moved in between. The gradients of one image show this.

    Parameters
    ----------
    fusion : {"mean", "min", "max"}, default="mean"
        How the heads of a layer are fused into one. The paper takes the mean.
    discard : float in [0, 1), default=0.0
        The share of a layer's fused weights, the lowest ones, to set to 0. Others use 0.9.

    References
    ----------
    Abnar, Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, eq. 1. Minimum, maximum
    and discarding: Gildenblat, "Exploring Explainability for Vision Transformers", 2020.

    Examples
    --------
    >>> import torch
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import Rollout
    >>> from sklcam.networks import build_model
    >>> network = build_model("timm/test_vit", n_classes=3, image_size=64).eval()
    >>> images = torch.rand(2, 3, 64, 64)
    >>> explainer = CAMExplainer(network, method=Rollout(fusion="max"), verbose=0).fit(images)
    >>> explainer.explain(images).shape
    (2, 64, 64)
    """

    graph = "head"

    def __init__(self, fusion: Literal["mean", "min", "max"] = "mean", discard: float = 0.0):
        self.fusion = fusion
        self.discard = discard

    def check(self) -> None:
        if self.fusion not in ("mean", "min", "max"):
            raise ValueError(f'fusion must be "mean", "min" or "max"; got {self.fusion!r}.')
        check_number("discard", self.discard, 0, 1, closed="left")

    def rule(self) -> AttentionRecord:
        return AttentionRecord(self._fuse)  # only the fused weights are kept

    def _fuse(self, weights: Tensor) -> Tensor:
        weights = at_least_float32(weights)
        if weights.ndim < 4 or self.fusion == "mean":
            return weights.mean(dim=1)
        return weights.amin(dim=1) if self.fusion == "min" else weights.amax(dim=1)

    def relevances(self, recorded: RecordedPass, record: AttentionRecord) -> Tensor:
        rows = _rows_read(recorded, record)
        for weights in reversed(record.weights):
            if self.discard:
                weights = _without_lowest(weights, self.discard)
            # Rows of W + I, divided by their sums: 2, or less where weights were discarded.
            rows = rows / (weights.sum(dim=2) + 1)
            rows = rows + _times(rows, weights)
        return rows[:, None].expand(-1, recorded.scores.shape[1], -1)


class AttentionRelevance(_AttentionMethod):
    r"""The relevance of Chefer et al.: attention weighted by its gradient, accumulated over layers.

    .. math:: \bar A_l = \mathrm{E}_h\Big[\Big(\frac{\partial y_c}{\partial A_l} \odot
              A_l\Big)^+\Big], \qquad R \leftarrow R + \bar A_l R, \quad R_0 = I

    This is the rule for self-attention in "Generic Attention-model Explainability". The map is the
    row of :math:`R - I` for the token that the network reads, or the mean of the rows if it reads
    several. The gradient shows which tokens it reads. The identity adds nothing to the patches in
    the row of a class token; to the rows of patches it adds only their start value, which is the
    same for all patches.

    The method is defined for transformers in which all attention is between all tokens of an image,
    one layer after the other. Attention within windows, from other tokens to these, or in parallel
    branches is refused, as is attention that is computed in a way that cannot be seen.

    The query, key and value of a token must be computed only from that token. Attention to as many
    learned queries or to tokens of another branch is refused, and so are tokens that are mixed or
    moved in between. The gradients of one image show this.

    References
    ----------
    Chefer, Gur, Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and
    Encoder-Decoder Transformers", ICCV 2021, eq. 5-6.

    Examples
    --------
    >>> import torch
    >>> from sklcam import CAMExplainer
    >>> from sklcam.networks import build_model
    >>> network = build_model("timm/test_vit", n_classes=3, image_size=64).eval()
    >>> images = torch.rand(2, 3, 64, 64)
    >>> explainer = CAMExplainer(network, method="attentionrelevance", verbose=0).fit(images)
    >>> explainer.explain(images, target=0).shape
    (2, 64, 64)
    """

    graph = "images"

    def relevances(self, recorded: RecordedPass, record: AttentionRecord) -> Tensor:
        (found,) = recorded.for_each_score(lambda column: [self._of(column, recorded, record)])
        return found

    def _of(self, column: int, recorded: RecordedPass, record: AttentionRecord) -> Tensor:
        gradients = _differentiate(recorded.scores, column, record.weights)
        read = _shares(gradients[-1].ne(0).any(dim=3).any(dim=1), gradients[-1])
        gained = torch.zeros_like(read)  # R - I: next to the identity it would be lost to rounding
        for weights, gradient in zip(reversed(record.weights), reversed(gradients), strict=True):
            relevant = (gradient * weights.detach()).relu().mean(dim=1)
            gained = gained + _times(read + gained, relevant)
        return gained


class LeGrad(_AttentionMethod):
    r"""LeGrad: by how much each layer's score would rise with more attention to a place.

    .. math:: E_l = \frac{1}{h n} \sum_{h, i} \Big(\frac{\partial s_l}{\partial
              A_{l, h, i, \cdot}}\Big)^+, \qquad L = \frac{1}{L} \sum_l E_l

    :math:`s_l` is the score that the network's own head, with its pooling, computes from the tokens
    that leave layer l. The mean is over the h heads and the n rows of its attention.

    LeGrad is defined for transformers in which all attention is between all tokens of an image, and
    in which each layer is one module whose tokens are the next layer's only input. Other networks
    are refused, as is attention that is computed in a way that cannot be seen.

    The query, key and value of a token must be computed only from that token. Attention to as many
    learned queries or to tokens of another branch is refused, and so are tokens that are mixed or
    moved in between. The gradients of one image show this.

    Notes
    -----
    If the scores depend only on the tokens before the places, such as a class token, the graph
    holds only these tokens, and the head runs once more for all layers together. If the head reads
    other tokens too, as for a mean of all tokens, the graph holds all tokens, and the head runs
    once per layer. The gradient and the output show which case it is. In the second case, the first
    batch takes an extra pass.

    The authors' code for CLIP differs: it takes the mean over all tokens where the network reads
    one, and it uses two layers by default.

    References
    ----------
    Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature
    Formation Sensitivity", ICCV 2025, section 3.

    Examples
    --------
    >>> import torch
    >>> from sklcam import CAMExplainer
    >>> from sklcam.networks import build_model
    >>> network = build_model("timm/test_vit", n_classes=3, image_size=64).eval()
    >>> images = torch.rand(2, 3, 64, 64)
    >>> explainer = CAMExplainer(network, method="legrad", verbose=0).fit(images)
    >>> explainer.explain(images, target=0).shape
    (2, 64, 64)
    """

    graph = "images"

    def rule(self) -> AttentionRecord:
        return AttentionRecord(layerwise=True)

    def relevances(self, recorded: RecordedPass, record: AttentionRecord) -> Tensor:
        if record.first_rows is not None:
            found = _by_first_rows(recorded, record, record.first_rows)
            if found is not None:
                return found
            # The head reads other tokens too, for example to pool patches. From now on the graph
            # holds all tokens for this network.
            READ_ALL_ROWS.add(recorded.network)
            recorded = recorded.on(recorded.images.detach())
        *blocks, last = _blocks_of(recorded, record)
        tokens = last.tokens.detach().requires_grad_()
        if not _begins_at(tokens, _scores_behind(recorded, last, tokens), record):
            raise _no_blocks(recorded)
        scores = [_scores_behind(recorded, last, block.tokens) for block in blocks]
        scores.append(recorded.scores)
        (found,) = recorded.for_each_score(
            lambda column: [
                _mean_over_layers(
                    _sensitivity(of_layer, column, *sums)
                    for of_layer, sums in zip(scores, record.sums, strict=True)
                )
            ]
        )
        return found


def _tokens_of(name: str, recorded: RecordedPass, record: AttentionRecord) -> TargetLayer:
    """Return the layer of tokens, or raise a ValueError unless attention joins all its tokens."""
    if record.kernels:
        raise ValueError(
            f"{name} needs the weights of all attention, but {type(recorded.network).__name__} "
            f"computes some of it by {', '.join(dict.fromkeys(record.kernels))}, which does not "
            "return weights. Compute it by F.scaled_dot_product_attention, or use another method, "
            "such as Grad-CAM."
        )
    if not record.shapes:
        raise ValueError(
            f"{name} needs attention weights, but {type(recorded.network).__name__} has no "
            "attention, or computes it by a kernel that does not return weights. Use another "
            "method, such as Grad-CAM."
        )
    layer = recorded.layers[0]
    if any(each.layout != "tokens" or each.reshape is not None for each in recorded.layers):
        raise ValueError(
            f"{name} needs a target layer of tokens, but {layer.name!r} has the layout "
            f"{layer.layout!r}. Say which tokens are which places, as in TargetLayer("
            f'{layer.name!r}, layout="tokens", grid=(rows, columns), n_prefix=1), or leave '
            'target_layer at "auto". Networks with attention within windows have no such layer.'
        )
    assert layer.grid is not None
    n_tokens = layer.n_prefix + math.prod(layer.grid)
    for shape in record.shapes:
        if len(shape) != 4 or shape[0] != recorded.n_images or shape[2:] != (n_tokens, n_tokens):
            raise ValueError(
                f"{name} is defined for attention between all tokens of an image, here of shape "
                f"({recorded.n_images}, heads, {n_tokens}, {n_tokens}), but this network also has "
                f"attention of shape {shape}, for example within windows or in a pooling by "
                "attention. Use another method, such as Grad-CAM."
            )
    # Attention between all tokens, or between the patches before other tokens join them.
    counts = range(n_tokens - layer.n_prefix, n_tokens + 1)
    if any(shape[-2] == shape[-1] in counts for shape in record.unread):
        raise ValueError(
            f"{name} needs the weights of all attention, but {type(recorded.network).__name__} "
            "computes some of it in an unknown way. Compute it by F.scaled_dot_product_attention, "
            "by nn.MultiheadAttention, or as the product of an unchanged softmax over the keys and "
            "the values. Otherwise use another method, such as Grad-CAM."
        )
    return layer


# Scores are multiplied by this where gradients may underflow. A power of two changes no digits.
_SCALE = 2.0**12

# The number of runs of attention in each network that has passed _check_chain.
_CHAINS: MutableMapping[nn.Module, int] = WeakKeyDictionary()


def _check_chain(name: str, recorded: RecordedPass, record: AttentionRecord) -> None:
    """Raise a ValueError unless attention is within one sequence, layer after layer."""
    network, n_runs = recorded.network, len(record.shapes)
    if _CHAINS.get(network) == n_runs:
        return
    seen = OriginRecord()  # the graph of one image, from the output to the image, shows it
    is_of_one = seen.is_of_one_sequence(recorded.look_at_first_image(seen))
    if not seen.is_a_chain():
        raise ValueError(
            f"{name} needs layers of attention that follow one another, but in "
            f"{type(network).__name__} some run in parallel, as in an ensemble or in parallel "
            "blocks. Explain a single network of an ensemble, or use another method, such as "
            "Grad-CAM."
        )
    if not is_of_one:  # some attention may have no graph
        anyway = _look_anyway(recorded)
        is_of_one = is_of_one if anyway is None else anyway
    if is_of_one is None:
        raise ValueError(
            f"{name} must know which tokens attend to which, but in {type(network).__name__} some "
            "attention has no graph that leads to the images. The network may end the graph by "
            "NumPy, integers or .data before its attention. Remove that, or use another method, "
            "such as Grad-CAM."
        )
    if not is_of_one:
        raise ValueError(
            f"{name} is defined for self-attention, in which the query, key and value of each "
            f"token are computed from this token only. In {type(network).__name__} some are not, "
            "as in cross-attention to learned queries or between two streams of tokens, or where "
            "tokens are mixed or moved between query and key. Use another method, such as Grad-CAM."
        )
    _CHAINS[network] = n_runs


def _look_anyway(recorded: RecordedPass) -> bool | None:
    seen = OriginRecord(anyway=True)
    try:
        return seen.is_of_one_sequence(recorded.look_at_first_image(seen))
    except (RuntimeError, TypeError):  # of operations that take only tensors without a graph
        return None


def _rows_read(recorded: RecordedPass, record: AttentionRecord) -> Tensor:
    """Return equal shares, adding up to 1, for the tokens that the score reads: (n, n_tokens)."""
    if record.result is not None:  # (n, heads, tokens, ...)
        scale = torch.full_like(recorded.scores, _SCALE)  # so that nothing underflows in float16
        (gradients,) = differentiate(
            recorded.scores, [record.result], ["the last attention"], chosen=scale
        )
        return _shares(gradients.ne(0).any(dim=3).any(dim=1), gradients)
    # The target layer comes after all attention. From there on, tokens do not mix.
    gradients = recorded.gradients(0)[0]
    return _shares(gradients.ne(0).any(dim=2), gradients)


def _shares(is_read: Tensor, like: Tensor) -> Tensor:
    shares = is_read.to(at_least_float32(like).dtype)
    return shares / shares.sum(dim=1, keepdim=True).clamp(min=1)


def _times(rows: Tensor, matrices: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):
        return (rows[:, None] @ matrices)[:, 0]


def _without_lowest(weights: Tensor, share: float) -> Tensor:
    flat = weights.flatten(1)
    lowest = flat.topk(int(flat.shape[1] * share), dim=1, largest=False).indices
    return flat.scatter(1, lowest, 0.0).view_as(weights)


def _differentiate(
    scores: Tensor, column: int, weights: list[Tensor], *, keep: bool = False
) -> list[Tensor]:
    chosen = torch.zeros_like(scores)
    chosen[:, column] = 1
    names = [f"the attention of layer {i}" for i in range(len(weights))]
    keep = keep or column < scores.shape[1] - 1
    is_narrow = any(each.dtype == torch.float16 for each in weights)
    try:
        if is_narrow:  # the gradient of one of many weights may underflow in float16
            scaled = differentiate(scores, weights, names, chosen=chosen * _SCALE, keep_graph=True)
        found = differentiate(scores, weights, names, chosen=chosen, keep_graph=keep)
    except CheckpointError as error:
        raise ValueError(
            "torch.utils.checkpoint runs parts of the network again in the backward pass, where "
            "their attention cannot be recorded. Turn checkpointing off to explain, for example "
            "by set_grad_checkpointing(False) of timm's networks, or use Rollout."
        ) from error
    if is_narrow:
        # Where the scaled gradient overflows, the plain one is large enough.
        found = [
            torch.where(large.isfinite(), large.float() / _SCALE, small.float())
            for large, small in zip(scaled, found, strict=True)
        ]
    return [at_least_float32(each) for each in found]


def _scores_behind(recorded: RecordedPass, last: Block, tokens: Tensor) -> Tensor:
    """Return the scores if the last block had returned other tokens."""
    with torch.enable_grad():
        return recorded.score(recorded.output_behind(last.trunk, last.like(tokens)))


def _by_first_rows(
    recorded: RecordedPass, record: AttentionRecord, first: FirstRows
) -> Tensor | None:
    """Compute LeGrad from only the tokens before the places, or return None if others are read."""
    blocks = _blocks_of(recorded, record)
    *_, last = blocks
    tokens = [block.tokens for block in blocks]
    # The head runs on the tokens of all layers in one batch, as if each layer were an image.
    stacked = torch.cat([each.detach() for each in tokens]).requires_grad_()
    images = torch.arange(recorded.n_images, device=stacked.device).repeat(len(blocks))
    try:
        output = recorded.output_behind(last.trunk, last.like(stacked), images)
        with torch.enable_grad():
            scores = torch.cat([recorded.score(each) for each in output.split(recorded.n_images)])
    except Exception:  # a network may raise anything for fewer tokens or more rows than it expects
        return None
    if not (
        _is_near(output[-recorded.n_images :], recorded.output, is_half=recorded.is_half)
        and _begins_at(stacked, scores, record)
    ):
        return None
    weights = torch.arange(1, recorded.scores.shape[1] + 1, device=stacked.device) * _SCALE
    with torch.enable_grad():
        of_all_rows = (recorded.scores * weights).sum(dim=1, keepdim=True)
    # This lets first.miss_others() tell whether other rows are read.
    _differentiate(of_all_rows, 0, [record.sums[-1][0]], keep=True)

    def of_column(column: int) -> list[Tensor]:
        (directions,) = _differentiate(scores, column, [stacked], keep=True)
        with torch.enable_grad():
            along = [
                (each * direction).sum(dim=(1, 2))[:, None]
                for each, direction in zip(tokens, directions.chunk(len(blocks)), strict=True)
            ]
        return [
            _mean_over_layers(
                _sensitivity(each, 0, *sums) for each, sums in zip(along, record.sums, strict=True)
            )
        ]

    (found,) = recorded.for_each_score(of_column)
    return None if first.miss_others() else found


def _is_near(found: Tensor, expected: Tensor, *, is_half: bool) -> bool:
    # If other rows mattered, all digits would change. Kernels depend on the number of rows, which
    # changes only the last digits.
    tolerance = (0.1 if is_half else 0.01) * expected.abs().amax()
    return found.shape == expected.shape and bool(((found - expected).abs() <= tolerance).all())


def _begins_at(tokens: Tensor, scores: Tensor, record: AttentionRecord) -> bool:
    """Whether scores depend on attention only through the last layer's tokens."""
    if not scores.requires_grad:
        return False
    sums = [each for each, _ in record.sums]
    found = torch.autograd.grad(
        scores, [tokens, *sums], torch.ones_like(scores), retain_graph=True, allow_unused=True
    )
    return found[0] is not None and all(each is None for each in found[1:])


def _sensitivity(scores: Tensor, column: int, result: Tensor, values: Tensor) -> Tensor:
    """Return how a layer's scores rise with the attention to each token, (n, n_tokens)."""
    # Autograd gives the gradient of the sums of values; the step from there to the weights is by
    # hand. Rows that are left out have no gradient.
    (rows,) = _differentiate(scores, column, [result], keep=True)
    with torch.autocast(rows.device.type, enabled=False):
        gradient = rows @ at_least_float32(values).transpose(2, 3)
    return gradient.relu().sum(dim=2).mean(dim=1) / values.shape[2]


def _mean_over_layers(found: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(found)).mean(dim=0)


def _blocks_of(recorded: RecordedPass, record: AttentionRecord) -> list[Block]:
    """Return the block of each layer, or raise a ValueError if a layer is not a block of tokens."""
    shape = recorded.activations[0].shape
    blocks = [block for block in record.blocks if block is not None and block.shape == shape]
    if len(blocks) < len(record.blocks):
        raise _no_blocks(recorded)
    return blocks


def _no_blocks(recorded: RecordedPass) -> ValueError:
    return ValueError(
        "LeGrad applies the head to the tokens that leave each layer, so each layer must be a "
        "module whose tokens are the next layer's only input. This is not so in "
        f"{type(recorded.network).__name__}. Use AttentionRelevance, which does not need this, or "
        "another method."
    )
