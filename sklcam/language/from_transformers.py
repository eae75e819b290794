"""Networks of images and texts from transformers: BLIP, encoder-decoders and ViLT."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from sklcam._validation import describe
from sklcam.language.speech import Speech, scores_of_tokens
from sklcam.networks.dry_run import generators_lock, replaced
from sklcam.networks.layer_search import find_target_layer
from sklcam.networks.layers import TargetLayer
from sklcam.networks.preprocessing import Preprocessing
from sklcam.networks.processors import read_processor


class TransformersSpeech(Speech):
    """A network from transformers, with its processor.

    Parameters
    ----------
    network : nn.Module
    processor : processor of transformers, or a tokenizer
    max_words : int
    """

    network: Any

    def __init__(self, network: nn.Module, processor: Any, max_words: int):
        super().__init__(network, max_words)
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if not callable(self.tokenizer):
            raise ValueError(
                f"A {type(network).__name__} needs its processor, or a tokenizer, to read texts: "
                f"AutoProcessor.from_pretrained(...); got {describe(processor)}."
            )
        self.image_processor = getattr(processor, "image_processor", None)
        self.padding = int(getattr(self.tokenizer, "pad_token_id", None) or 0)
        self._forward = network.forward  # before anything replaces it

    def preprocessing(self) -> Preprocessing | None:
        if self.image_processor is None:
            return None
        return read_processor(self.image_processor, type(self.image_processor).__name__)

    def tokens(self, words: list[str]) -> list[list[int]]:
        text = " ".join(words)
        if not getattr(self.tokenizer, "is_fast", False):
            return self._word_by_word(words, text)
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [0]
        for word in words[:-1]:
            starts.append(starts[-1] + len(word) + 1)
        found: list[list[int]] = [[] for _ in words]
        # A token may begin with the space before its word, or be only this space.
        for token, (start, stop) in zip(read["input_ids"], read["offset_mapping"], strict=True):
            first = stop - len(text[start:stop].lstrip())
            found[bisect_right(starts, first) - 1].append(token)
        return found

    def _word_by_word(self, words: list[str], text: str) -> list[list[int]]:
        found = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        whole = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if [token for tokens in found for token in tokens] != list(whole):
            raise ValueError(
                f"{type(self.tokenizer).__name__} does not say where its tokens are, so the "
                f"words of {text!r} that they belong to are unknown. Use the fast tokenizer."
            )
        return found

    def inputs(self, texts: list[str] | None, questions: list[str] | None) -> dict[str, Tensor]:
        found = super().inputs(texts, questions)
        self._check_length(found["tokens"].shape[1], "caption or answer")
        return found

    def _asked(self, questions: list[str]) -> dict[str, Tensor]:
        # Padded here, on the right: a tokenizer may pad on the left, which moves the words.
        rows = self.tokenizer(questions)["input_ids"]
        longest = max(map(len, rows))
        self._check_length(longest, "question")
        filled = [list(row) + [self.padding] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        return {"question": torch.tensor(filled), "question_mask": torch.tensor(mask)}

    def _check_length(self, n_tokens: int, what: str) -> None:
        most = self._max_tokens
        if most is not None and n_tokens > most:
            raise ValueError(
                f"The longest {what} has {n_tokens} tokens, but a {type(self.network).__name__} "
                f"reads at most {most}. Shorten it."
            )

    @property
    def _max_tokens(self) -> int | None:
        """The most tokens that the network reads of a text; None if it does not say."""
        config = self.network.config
        for part in ("text_config", "decoder"):
            config = getattr(config, part, config)
        return getattr(config, "max_position_embeddings", None)

    def _read(self, written: Tensor, start: int, end: int | None) -> list[str]:
        """Return the texts of rows of tokens, each from after its start to before its end."""
        texts = []
        for row in written.tolist():
            row = row[1:] if row[:1] == [start] else row
            row = row[: row.index(end)] if end in row else row
            texts.append(self.tokenizer.decode(row, skip_special_tokens=True).strip())
        return texts

    @property
    def _greedy(self) -> dict[str, Any]:
        n_tokens = min(self.max_words, self._max_tokens or self.max_words)
        return {"max_new_tokens": n_tokens, "num_beams": 1, "do_sample": False}


class Blip(TransformersSpeech):
    """BLIP that writes captions."""

    @property
    def _start(self) -> int:
        return int(self.network.config.text_config.bos_token_id)

    @property
    def _end(self) -> int:
        return int(self.network.config.text_config.sep_token_id)

    def target_layer(self, images: Tensor) -> TargetLayer:
        last = len(self.network.vision_model.encoder.layers) - 1
        patch = int(self.network.config.vision_config.patch_size)
        grid = (images.shape[-2] // patch, images.shape[-1] // patch)
        name = f"vision_model.encoder.layers.{last}.layer_norm1"
        size = tuple(images.shape[2:])
        return TargetLayer(name, "tokens", grid=grid, n_prefix=1, image_size=size)

    def columns(self, image: Tensor, **others: Tensor) -> Tensor:
        tokens, words = others["tokens"], others["words"]
        before = shifted(tokens, self._start)
        logits = self._forward(pixel_values=image, input_ids=before).logits
        return scores_of_tokens(logits, tokens, words)

    def write(self, images: Tensor, questions: list[str] | None = None) -> list[str]:
        written = self.network.generate(pixel_values=images, **self._greedy)
        return self._read(written, self._start, self._end)


class BlipOfQuestions(Blip):
    """BLIP that answers questions, in words."""

    def inputs(self, texts: list[str] | None, questions: list[str] | None) -> dict[str, Tensor]:
        assert questions is not None
        return {**super().inputs(texts, None), **self._asked(questions)}

    def sample(self) -> dict[str, Tensor]:
        return {**super().sample(), **self._asked(["what"])}

    def columns(self, image: Tensor, **others: Tensor) -> Tensor:
        tokens, words = others["tokens"], others["words"]
        before = shifted(tokens, self._start)
        found, order = [], []
        for rows, states in self._understood(image, others["question"], others["question_mask"]):
            given = {"input_ids": before[rows], "encoder_hidden_states": states}
            logits = self.network.text_decoder(**given).logits
            found.append(scores_of_tokens(logits, tokens[rows], words[rows]))
            order += rows
        return torch.cat(found)[torch.tensor(order, device=tokens.device).argsort()]

    def write(self, images: Tensor, questions: list[str] | None = None) -> list[str]:
        assert questions is not None
        asked = {name: each.to(images.device) for name, each in self._asked(questions).items()}
        texts = [""] * len(images)
        for rows, states in self._understood(images, asked["question"], asked["question_mask"]):
            written = self.network.text_decoder.generate(
                input_ids=asked["question"].new_full((len(rows), 1), self._start),
                eos_token_id=self._end,
                pad_token_id=self.network.config.text_config.pad_token_id,
                encoder_hidden_states=states,
                **self._greedy,
            )
            for row, text in zip(rows, self._read(written, self._start, self._end), strict=True):
                texts[row] = text
        return texts

    def _understood(
        self, image: Tensor, question: Tensor, mask: Tensor
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the states of questions, which have attended to the image, grouped by length.

        The decoder attends to all states that it is given, whatever a mask says. So it must not get
        the states of tokens that pad shorter questions.
        """
        seen = self.network.vision_model(pixel_values=image).last_hidden_state
        states = self.network.text_encoder(
            input_ids=question, attention_mask=mask, encoder_hidden_states=seen
        )[0]
        lengths = mask.sum(dim=1).tolist()
        for length in sorted({*lengths}):
            rows = [row for row, each in enumerate(lengths) if each == length]
            yield rows, states[rows, :length]


class EncoderDecoder(TransformersSpeech):
    """A ``VisionEncoderDecoderModel``, such as a ViT with GPT-2."""

    @property
    def _start(self) -> int:
        places = (self.network.generation_config, self.network.config, self.network.config.decoder)
        for place in places:
            for name in ("decoder_start_token_id", "bos_token_id"):
                if getattr(place, name, None) is not None:
                    return int(getattr(place, name))
        raise ValueError(
            "The network's configuration does not say with which token a text starts. Set its "
            "decoder_start_token_id."
        )

    @property
    def _end(self) -> int | None:
        end = self.network.generation_config.eos_token_id
        return end if isinstance(end, int) else None

    def target_layer(self, images: Tensor) -> TargetLayer:
        encoder = self.network.encoder

        def forward(images: Tensor) -> Tensor:
            return encoder(pixel_values=images).last_hidden_state.mean(dim=1)

        found = find_target_layer(encoder, "auto", sample=images, forward=forward)
        return replace(found, name=f"encoder.{found.name}")

    def look(self, image: Tensor) -> dict[str, Any]:
        """Return the tokens with which each text begins, after the start.

        If the labels of training had such tokens, as tokenizers add them, the network writes them.
        """
        few = {**self._greedy, "max_new_tokens": 3}
        row = self.network.generate(pixel_values=image, **few)[0].tolist()[1:]
        known = {getattr(self.tokenizer, f"{name}_token_id", None) for name in ("bos", "cls")}
        known -= {self._end}
        return {"opening": [*takewhile(known.__contains__, row)]}

    def columns(self, image: Tensor, **others: Tensor) -> Tensor:
        tokens, words = others["tokens"], others["words"]
        before = shifted(tokens, self._start)
        tokens_before = self.habits.get("opening", [])
        opening = before.new_tensor(tokens_before).expand(len(before), -1)
        before = torch.cat([before[:, :1], opening, before[:, 1:]], dim=1)
        logits = self._forward(pixel_values=image, decoder_input_ids=before).logits
        logits = logits[:, len(tokens_before) :]
        return scores_of_tokens(logits, tokens, words)

    def write(self, images: Tensor, questions: list[str] | None = None) -> list[str]:
        written = self.network.generate(pixel_values=images, **self._greedy)
        return self._read(written, self._start, self._end)


class Vilt(TransformersSpeech):
    """ViLT that answers questions, with one of several answers."""

    def __init__(self, network: nn.Module, processor: Any, max_words: int):
        super().__init__(network, processor, max_words)
        names = self.network.config.id2label
        self.answers = [str(names[i]) for i in range(len(names))]

    def inputs(self, texts: list[str] | None, questions: list[str] | None) -> dict[str, Tensor]:
        assert questions is not None
        return self._asked(questions)

    def sample(self) -> dict[str, Tensor]:
        return self._asked(["what"])

    def target_layer(self, images: Tensor) -> TargetLayer:
        config, (height, width) = self.network.config, images.shape[2:]
        grid = (height // config.patch_size, width // config.patch_size)
        if 0 <= config.max_image_length < grid[0] * grid[1]:
            raise ValueError(
                f"In each pass, the network draws {config.max_image_length} of the "
                f"{grid[0] * grid[1]} patches of an image at random, which form no grid. Set its "
                "config.max_image_length = -1."
            )
        last = len(self.network.vilt.encoder.layer) - 1
        name = f"vilt.encoder.layer.{last}.layernorm_before"
        return TargetLayer(name, reshape=LastTokens(grid), image_size=(height, width))

    def columns(self, image: Tensor, **others: Tensor) -> Tensor:
        with self._in_order():
            return self._forward(
                input_ids=others["question"],
                attention_mask=others["question_mask"],
                pixel_values=image,
            ).logits

    def _in_order(self) -> AbstractContextManager[None]:
        """Return a context in which patches keep their order, which the network would shuffle.

        Their positions are added to them before that, so the output is the same.
        """
        embeddings = self.network.vilt.embeddings
        shuffle: Callable[..., Any] = embeddings.visual_embed

        def in_order(*args: Any, **options: Any) -> Any:
            with generators_lock, torch.random.fork_rng([]):
                tokens, mask, (places, grid) = shuffle(*args, **options)
            order = (places[..., 0] * grid[1] + places[..., 1]).argsort(dim=1)
            rows = torch.arange(len(tokens), device=tokens.device)[:, None]
            tokens = torch.cat([tokens[:, :1], tokens[:, 1:][rows, order]], dim=1)
            mask = torch.cat([mask[:, :1], mask[:, 1:][rows, order]], dim=1)
            return tokens, mask, (places[rows, order], grid)

        return replaced(embeddings, "visual_embed", in_order)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()  # it is trained this way, each answer by itself

    def write(self, images: Tensor, questions: list[str] | None = None) -> list[str]:
        raise NotImplementedError  # its answers are classes


@dataclass(frozen=True)
class LastTokens:
    """Makes a grid (n, K, u, v) of the last tokens (n, n_tokens, K), after those of a text."""

    grid: tuple[int, int]

    def __call__(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, -self.grid[0] * self.grid[1] :]
        return patches.transpose(1, 2).unflatten(2, self.grid)


def shifted(tokens: Tensor, start: int) -> Tensor:
    """Return the token before each one, (n_texts, n_tokens); before the first, there is a start."""
    return torch.cat([tokens.new_full((len(tokens), 1), start), tokens[:, :-1]], dim=1)


# Networks that write captions, and networks that answer questions.
OF_CAPTIONS: dict[str, type[TransformersSpeech]] = {
    "BlipForConditionalGeneration": Blip,
    "VisionEncoderDecoderModel": EncoderDecoder,
}
OF_QUESTIONS: dict[str, type[TransformersSpeech]] = {
    "BlipForQuestionAnswering": BlipOfQuestions,
    "ViltForQuestionAnswering": Vilt,
}
