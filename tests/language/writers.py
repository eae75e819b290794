"""Small networks of images and words, with random weights, and a tokenizer of few words."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sklcam.language import LanguageNetwork

WORDS = [
    "[PAD]",
    "[DEC]",
    "[SEP]",
    "[CLS]",
    "[UNK]",
    "[MASK]",
    "a",
    "red",
    "dog",
    "##s",
    "what",
    "is",
    "it",
]


def tokenizer(folder: Path):
    """Return a tokenizer of BERT's kind, by which "dogs" is two tokens."""
    from transformers import BertTokenizer

    path = folder / "vocab.txt"
    path.write_text("\n".join(WORDS))
    return BertTokenizer(str(path))


def blip(name: str = "BlipForConditionalGeneration") -> nn.Module:
    """Return a small BLIP of random weights."""
    import transformers

    text = {
        "vocab_size": len(WORDS), "hidden_size": 16, "encoder_hidden_size": 16,
        "intermediate_size": 16, "projection_dim": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 1,
        "pad_token_id": 0, "eos_token_id": 2, "sep_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.BlipConfig(text_config=text, vision_config=vision)
    return _noisy(getattr(transformers, name)(config))


def vilt() -> nn.Module:
    """Return a small ViLT of random weights, for three answers."""
    import transformers

    torch.manual_seed(0)
    config = transformers.ViltConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, image_size=32, patch_size=8, max_position_embeddings=16,
        id2label={0: "no", 1: "yes", 2: "two dogs"},
    )  # fmt: skip
    return _noisy(transformers.ViltForQuestionAnswering(config))


def _noisy(network: nn.Module) -> nn.Module:
    """Return a network whose weights are large enough that what it sees makes a difference."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.eval()


class ShowAndTell(LanguageNetwork):
    """A convolution and an LSTM that starts from its mean."""

    vocabulary = ["<none>", "<end>", "a", "red", "green", "square"]
    end = 1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.words = nn.Embedding(6, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 6)

    def forward(self, images, tokens):
        start = self.features(images).mean((2, 3))[:, None]
        states, _ = self.lstm(torch.cat([start, self.words(tokens[:, :-1])], dim=1))
        return self.head(states)


class Answering(LanguageNetwork):
    """A convolution whose channels a bag of words chooses."""

    vocabulary = ["<none>", "what", "is", "red", "green"]
    answers = ["circle", "square", "star"]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.words = nn.EmbeddingBag(5, 8, mode="sum", padding_idx=0)
        self.head = nn.Linear(8, 3)

    def forward(self, images, tokens):
        return self.head(self.features(images).mean((2, 3)) * self.words(tokens).tanh())


def vit_and_gpt2() -> nn.Module:
    """Return a small ViT that a small GPT-2 writes of, with random weights."""
    import transformers

    torch.manual_seed(0)
    vision = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8,
    )  # fmt: skip
    text = transformers.GPT2Config(
        vocab_size=len(PIECES), n_positions=16, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.pad_token_id = 0, 0
    network = _noisy(transformers.VisionEncoderDecoderModel(config))
    network.generation_config.decoder_start_token_id = 0
    network.generation_config.eos_token_id = 0
    network.generation_config.pad_token_id = 0
    return network


# As GPT-2 has them: a token begins with the blank before its word, "Ġ", and "dogs" is two.
PIECES = ["<|endoftext|>", "a", "Ġ", "r", "e", "d", "o", "g", "s", "Ġr", "Ġre", "Ġred", "Ġd", "Ġdo"]
PIECES += ["Ġdog"]
MERGES = [("Ġ", "r"), ("Ġr", "e"), ("Ġre", "d"), ("Ġ", "d"), ("Ġd", "o"), ("Ġdo", "g")]


def words_of_gpt2(folder: Path):
    """Return a tokenizer of GPT-2's kind."""
    import json

    from transformers import GPT2TokenizerFast

    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(PIECES)}))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in MERGES))
    return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


def words_of_unigrams():
    """Return a tokenizer of SentencePiece's kind: "▁" is a blank, and may be a token alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "▁", "▁a", "▁dog", "s", "."]
    model = models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
