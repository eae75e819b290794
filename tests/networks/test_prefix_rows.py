"""The backward pass of only a class token equals that of all tokens, and is shorter."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sklcam import CAMExplainer
from sklcam.cam import RecordedPass
from sklcam.cam.targets import Classes
from sklcam.networks import TargetLayer, record
from sklcam.networks.prefix_rows import shorter_backward

timm = pytest.importorskip("timm")


class MLP(nn.Sequential):
    def __init__(self, width: int = 8):
        super().__init__(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))


class Transformer(nn.Module):
    """One block on 2 x 2 patches; the head reads the class token, or the mean of all."""

    def __init__(self, mlp: nn.Module, width: int = 8):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.norm1 = nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.mlp, self.head = nn.LayerNorm(width), mlp, nn.Linear(width, 3)
        self.pools = False

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        query, key, value = self.qkv(self.norm1(x)).chunk(3, dim=2)
        x = x + self.project((query @ key.transpose(1, 2)).softmax(dim=2) @ value)
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(dim=1) if self.pools else x[:, 0])


LAYER = TargetLayer("norm1", layout="tokens", grid=(2, 2), n_prefix=1)


def plain_gradient(net: nn.Module, images: Tensor, column: int, layer: str = "norm1") -> Tensor:
    with record(net, net.get_submodule(layer)) as tape:
        scores = net(images)
        return torch.autograd.grad(scores[:, column].sum(), tape.activations)[0]


def ours(net: nn.Module, images: Tensor, column: int) -> Tensor:
    (gradient,) = RecordedPass(net, [LAYER], images, torch.full((len(images),), column)).gradients(
        0
    )
    return gradient


def images_of(n: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


# Behind the layer in the transformer: 4 of 5 rows, of three images.
SPARED = 2 * 3 * 4 * (8 * 8 + 8 * 16 + 16 * 8)


def n_operations(gradient: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        gradient()
    return counter.get_total_flops()


def test_backward_pass_is_that_of_the_class_token():
    net = Transformer(MLP()).double().eval()
    images = images_of().double()
    torch.testing.assert_close(ours(net, images, 1), plain_gradient(net, images, 1))
    plain = n_operations(lambda: plain_gradient(net, images, 1))
    assert n_operations(lambda: ours(net, images, 1)) == plain - SPARED


def test_head_that_reads_all_tokens():
    net = Transformer(MLP()).double().eval()
    net.pools = True
    images = images_of().double()
    assert torch.equal(ours(net, images, 0), plain_gradient(net, images, 0))
    plain = n_operations(lambda: plain_gradient(net, images, 0))
    assert n_operations(lambda: ours(net, images, 0)) == plain


class Reading(MLP):
    """What it keeps is read by others."""

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self[0](x)
        return self[2](self[1](self.hidden))


def test_tensor_that_a_part_keeps_and_the_head_reads():
    class Network(Transformer):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + self.mlp.hidden.mean(dim=(1, 2))[:, None] ** 2

    net = Network(Reading()).double().eval()
    images = images_of().double()
    assert torch.equal(ours(net, images, 0), plain_gradient(net, images, 0))


@pytest.mark.parametrize("place", ["before", "behind"])
def test_activation_in_place(place):
    relu = nn.ReLU(inplace=True)
    mlp = MLP()
    mlp = nn.Sequential(relu, mlp) if place == "before" else nn.Sequential(mlp[0], relu, mlp[2])
    net = Transformer(mlp).double().eval()
    images = images_of().double()
    torch.testing.assert_close(ours(net, images, 0), plain_gradient(net, images, 0))


def test_checkpoint_runs_a_part_again_as_it_ran():
    class Checkpointed(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    net = Transformer(Checkpointed()).double().eval()
    images = images_of().double()
    torch.testing.assert_close(ours(net, images, 0), plain_gradient(net, images, 0))


def test_linear_layer_under_vmap():
    class Each(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(super().forward)(x[None])[0]

    net = Transformer(Each()).double().eval()
    images = images_of().double()
    torch.testing.assert_close(ours(net, images, 0), plain_gradient(net, images, 0))


def test_second_derivatives_are_of_all_rows():
    torch.manual_seed(0)
    net = nn.Linear(4, 3, bias=False).double()
    tokens = torch.zeros(2, 10, 4, dtype=torch.float64, requires_grad=True)
    with shorter_backward(net, TargetLayer("0", layout="tokens", grid=(3, 3), n_prefix=1)):
        score = net(tokens).square().sum() / 2  # whose gradient is 0, and not that of the gradient
        (first,) = torch.autograd.grad(score, tokens, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), tokens)
    assert not first.any()
    hessian = net.weight.T @ net.weight
    torch.testing.assert_close(second, hessian.sum(0).expand(2, 10, 4))


def test_hooks_see_what_they_saw():
    net = Transformer(MLP()).double().eval()
    shapes = []
    net.mlp[0].register_forward_hook(lambda part, inputs, output: shapes.append(output.shape))
    net.mlp[0].register_full_backward_hook(
        lambda part, inputs, outputs: shapes.extend((inputs[0].shape, outputs[0].shape))
    )
    ours(net, images_of().double(), 0)
    assert shapes == [(3, 5, 16), (3, 5, 8), (3, 5, 16)]


def test_other_threads_have_gradients_of_their_weights():
    net = Transformer(MLP()).double().eval()
    with shorter_backward(net, LAYER), ThreadPoolExecutor(1) as pool:
        scores = pool.submit(net, images_of().double()).result()
    scores.sum().backward()
    assert net.mlp[0].weight.grad is not None


def test_several_columns_share_the_graph():
    net = Transformer(MLP()).double().eval()
    images = images_of().double()
    labels = torch.tensor([[0, 1], [1, 2], [2, 0]])
    recorded = RecordedPass(net, [LAYER], images, Classes(labels))
    for column in range(2):
        expected = torch.stack(
            [plain_gradient(net, images, int(labels[i, column]))[i] for i in range(3)]
        )
        torch.testing.assert_close(recorded.gradients(column)[0], expected)


def test_autocast_is_that_of_the_pass():
    net = Transformer(MLP()).eval()
    images = images_of()
    with torch.autocast("cpu", torch.bfloat16):
        recorded = RecordedPass(net, [LAYER], images, torch.zeros(3, dtype=torch.int64))
        expected = plain_gradient(net, images, 0)
    # The backward pass may run outside the block.
    (gradient,) = recorded.gradients(0)
    torch.testing.assert_close(gradient, expected, rtol=2**-6, atol=2**-8)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_maps_of_transformers_stay_the_same(name):
    net = timm.create_model(name, num_classes=4, img_size=48, depth=2, embed_dim=24, num_heads=2)
    net = net.eval().double()
    explainer = CAMExplainer(net, mean=0.5, std=0.5, batch_size=2).fit()
    (found,) = explainer.target_layers_
    layer, n_prefix = net.get_submodule(found.name), found.n_prefix
    for _ in range(2):
        images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
        with record(net, layer) as tape:
            scores, activations = net(images), tape.activations
        (gradient,) = torch.autograd.grad(scores[:, 1].sum(), activations)
        weights = gradient[:, n_prefix:].mean(dim=1, keepdim=True)
        grid = (weights * activations[:, n_prefix:].detach()).sum(dim=2).relu().reshape(2, 1, 3, 3)
        expected = nn.functional.interpolate(grid, size=48, mode="bilinear")[:, 0]
        target = torch.tensor([1, 1])
        maps, _ = explainer.explain_inputs(images, target, method="gradcam", normalize=False)
        assert expected.abs().amax() > 0
        torch.testing.assert_close(maps, expected)


def test_layers_without_tokens_before_the_places_are_left_alone():
    net = nn.Linear(2, 2)
    for options in ({"layout": "nhwc"}, {"layout": "tokens", "grid": (2, 2)}):
        with shorter_backward(net, TargetLayer("0", **options)):
            assert "forward" not in vars(net)
    with shorter_backward(net, LAYER):
        assert "forward" in vars(net)
    assert "forward" not in vars(net)
