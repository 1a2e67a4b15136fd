"""Where a captioner looks for each word: its cross-attention over the image, as heat maps for a gallery."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutput

from toolkit.captioning.base import Captioner
from toolkit.data.pixels import PixelTransform
from toolkit.errors import ModelError
from toolkit.models.loading import OURS
from toolkit.models.twins import turn, twin_of
from toolkit.records import HeatMaps

MOST_BEFORE = (
    8  # tokens that an encoder may put before its patches: a class token, DeiT's second, DINO's four registers
)


class Grid(NamedTuple):
    """The patches of an encoder's output: `rows` x `columns` of them behind `before` other tokens."""

    rows: int
    columns: int
    before: int


def patch_grid(config: Any, height: int, width: int, tokens: int) -> Grid | None:
    """How an encoder's output lies over its pixels; None where it is no grid of patches.

    ViT and its like give a token a patch; Swin and its like halve the grid after each stage but the last.

    >>> # ViT-B/16 at 224 x 224, 197 tokens -> Grid(14, 14, before=1); Swin at 224 x 224, 49 tokens -> Grid(7, 7, before=0)

    Args:
        config: of the encoder.
        height, width: of the pixels.
        tokens: that the encoder gives for them.
    """
    patch = getattr(config, "patch_size", None)
    if patch is None:
        return None
    patch_height, patch_width = patch if isinstance(patch, (tuple, list)) else (patch, patch)
    stages = len(getattr(config, "depths", None) or [1])
    rows, columns = height // (patch_height * 2 ** (stages - 1)), width // (patch_width * 2 ** (stages - 1))
    before = tokens - rows * columns
    return Grid(rows, columns, before) if rows * columns > 0 and 0 <= before <= MOST_BEFORE else None


def word_spans(caption: str) -> list[tuple[int, int]]:
    """Where the words of a caption start and end, in characters.

    >>> word_spans("a red  dog.")
    [(0, 1), (2, 5), (7, 11)]
    """
    return [match.span() for match in re.finditer(r"\S+", caption)]


class Attention:
    """Explains captions of one captioner, batch by batch; see `toolkit.reports.gallery.Explainer`.

    Raises:
        ModelError: a captioner without cross-attention over a grid of patches.
    """

    def __init__(self, captioner: Captioner, name: str) -> None:
        self.captioner, self.name = captioner, name
        if captioner.kind != OURS:
            raise self._can_not(f"a model of type {captioner.kind} has no cross-attention that toolkit can read")
        if not isinstance(captioner.transform, PixelTransform):
            raise self._can_not("its image processor does not say which part of an image the model sees")
        if not captioner.tokenizer.is_fast:
            raise self._can_not("its tokenizer does not say which token belongs to which word")
        self.transform = captioner.transform
        blank = torch.zeros(1, *self.transform.shape, dtype=torch.uint8)
        _, height, width = self.transform.shape
        tokens = self._cross_attention(blank, torch.tensor([[self._start]])).shape[2]
        grid = patch_grid(captioner.model.config.encoder, height, width, tokens)
        if grid is None:
            raise self._can_not(
                f"its encoder's {tokens} tokens are not a grid of patches over {height} x {width} pixels"
            )
        self.grid = grid

    def _can_not(self, reason: str) -> ModelError:
        return ModelError(
            f"--attention: {self.name} can't show where it looks, because {reason}; leave --attention out."
        )

    @property
    def _start(self) -> int:
        return int(self.captioner.model.generation_config.decoder_start_token_id)

    def _cross_attention(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Mean over layers and heads: uint8 (n, C, H, W), int64 (n, T) -> float32 (n, T, encoder tokens) on the CPU."""
        model, device = self.captioner.model, self.captioner.device
        with torch.inference_mode(), turn(model):
            encoded = model.encoder(pixel_values=self.captioner.normalizer(pixels.to(device)).to(model.dtype))
            # eager: returns the attention weights, which fused kernels don't compute
            output = twin_of(model, "eager")(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded.last_hidden_state),
                decoder_input_ids=tokens.to(device),
                output_attentions=True,
                use_cache=False,
            )
        if not output.cross_attentions:
            raise self._can_not(f"its {model.config.decoder.model_type} decoder does not show its attention")
        return torch.stack([layer.float().mean(1) for layer in output.cross_attentions]).mean(0).cpu()

    def prepare(self, image: Image.Image) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        """An RGB image -> its pixels, and the part of the image that they show."""
        return self.transform(image), self.transform.box(*image.size)

    def explain(self, prepared: Sequence[Any], captions: Sequence[str]) -> list[HeatMaps | None]:
        """A map for each word of each caption, from one pass over its tokens; None where it has no word.

        A word's map is the mean of the decoder's attention at the steps that generate the word's tokens (whose input is the
        token before), scaled so that its smallest value is 0 and its largest 255.
        """
        with turn(self.captioner.model):
            encoded = self.captioner.tokenizer(
                list(captions), add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
            )
        longest = getattr(self.captioner.model.config.decoder, "max_position_embeddings", None) or 10**6
        rows = [ids[: longest - 2] for ids in encoded["input_ids"]]  # RoBERTa-likes count from 2
        tokens = torch.full((len(rows), max(map(len, rows)) + 1), self._start)  # tokens after the end have no effect
        for i, ids in enumerate(rows):
            tokens[i, 1 : len(ids) + 1] = torch.tensor(ids, dtype=torch.long)
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in prepared]))
        weights = self._cross_attention(pixels, tokens).numpy()[:, :, self.grid.before :]
        return [
            self._maps(weights[i], encoded["offset_mapping"][i][: len(ids)], captions[i], prepared[i][1])
            for i, ids in enumerate(rows)
        ]

    def _maps(
        self,
        weights: np.ndarray,
        offsets: Sequence[tuple[int, int]],
        caption: str,
        box: tuple[float, float, float, float],
    ) -> HeatMaps | None:
        """Args: weights: float32 (T, patches), of the step that gives each token first."""
        words, maps = [], []
        for start, stop in word_spans(caption):
            # A token's last character tells its word: byte-level tokens begin with the space before it.
            steps = [t for t, (_, end) in enumerate(offsets) if start < end <= stop]
            if steps:
                word = weights[steps].mean(0)
                low, high = word.min(), word.max()
                words.append((start, stop))
                maps.append(np.rint((word - low) / max(high - low, 1e-12) * 255).astype(np.uint8))
        if not words:
            return None
        return HeatMaps(tuple(words), np.stack(maps).reshape(-1, self.grid.rows, self.grid.columns), box)
