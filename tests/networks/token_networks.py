"""Transformers of a few tokens, which say their class in one way or another."""

from __future__ import annotations

import torch
from torch import nn


class Blocks(nn.Module):
    """Patches as tokens, behind some that are none, through blocks that mix them a little."""

    def __init__(self, n_prefix=0, n_blocks=2, readout="mean", suffix=False, width=8, patch=4):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.extra = nn.Parameter(torch.randn(1, n_prefix, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(n_blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)
        self.readout, self.suffix = readout, suffix

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        extra = self.extra.expand(len(x), -1, -1)
        parts = (tokens, extra) if self.suffix else (extra, tokens)
        tokens = self.norm(self.blocks(torch.cat(parts, dim=1)))
        return self.head(tokens.mean(1) if self.readout == "mean" else tokens[:, 0])


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width), nn.Linear(width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.softmax = nn.Linear(width, 3 * width), nn.Softmax(dim=-1)

    def forward(self, x):
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)  # of a single head
        return (self.softmax(q @ k.transpose(-2, -1)) @ v)[:, 0]
