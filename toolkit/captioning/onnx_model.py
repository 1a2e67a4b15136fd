"""A captioner of two ONNX graphs, and its steps: what `generate` decodes with in place of a model of torch's.

    pixels -> encoder graph -> features -> decoder graph, a step for each token -> logits

The searches are those of beam_search.py, so that every setting works here that works there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, VisionEncoderDecoderConfig

from toolkit.errors import ModelError
from toolkit.models.onnx_graphs import DECODER, ENCODER, QUANTIZED, open_session
from toolkit.runtime.hashing import Hasher

FOLDER = "onnx"  # within an exported model, as transformers.js has it
SUFFIXES = {"fp32": "", "int8": QUANTIZED}


def precisions(folder: Path) -> list[str]:
    """In which precisions an exported model's graphs are there."""
    return [
        precision
        for precision, suffix in SUFFIXES.items()
        if all((folder / FOLDER / f"{name}{suffix}.onnx").is_file() for name in (ENCODER, DECODER))
    ]


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a captioner as ONNX graphs, and no weights of torch's."""
    return bool(precisions(folder)) and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin"))


class OnnxModel:
    """What decoding asks of a model: where its tensors are, its settings, and its two halves."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, folder: Path, precision: str) -> None:
        """
        Raises:
            ModelError: a file is damaged, or not of `toolkit export`.
        """
        self.folder, self.precision = folder, precision
        self.config = VisionEncoderDecoderConfig.from_pretrained(folder)
        self.generation_config = GenerationConfig.from_pretrained(folder)
        self.files = [folder / FOLDER / f"{name}{SUFFIXES[precision]}.onnx" for name in (ENCODER, DECODER)]
        self.encoder, self.decoder = map(open_session, self.files)
        found = {node.name: node.shape for node in self.decoder.get_inputs()}
        self.past_names = [
            f"past_key_values.{i}.{kind}" for i in range(self.config.decoder.n_layer) for kind in ("key", "value")
        ]
        wanted = {"input_ids", "encoder_hidden_states", *self.past_names}
        if set(found) != wanted or len(found["encoder_hidden_states"]) != 4:
            raise ModelError(f"{self.files[1]}: not a graph that `toolkit export` writes; export the model with it.")

    def hash_weights(self) -> Hasher:
        digest = Hasher()
        for path in self.files:
            digest.update_from(path)
        return digest

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (n, C, H, W) to features (n, 2 * layers * heads, S, d)."""
        return torch.from_numpy(self.encoder.run(None, {"pixel_values": np.ascontiguousarray(pixels.numpy())})[0])


class OnnxSteps:
    """The decoder's state for the images of a batch, with the interface of `kv_cache.Steps`.

    Attributes:
        active: images in use, in the first slots.
        past: keys and values of self-attention, layer by layer, (images * rows, heads, P, d).
        origin: for each slot the image in `past` and `features` that is in it.
    """

    def __init__(self, model: OnnxModel, rows: int) -> None:
        self.model, self.rows, self.active = model, rows, 0
        self.past: list[torch.Tensor] = []
        self.origin: list[int] = []
        self.wide = 1  # rows of each image in `past`

    def admit(self, features: torch.Tensor, start: int, prefix: Sequence[int] = ()) -> torch.Tensor:
        """Adds images, and decodes their start token and the prefix once for all rows, which are still the same.

        Returns:
            Logits of the first token after these, (n, 1, vocabulary).
        """
        config = self.model.config.decoder
        self.features, self.active, self.origin, self.wide = features, len(features), list(range(len(features))), 1
        empty = torch.zeros(len(features), config.n_head, 0, config.n_embd // config.n_head)
        self.past = [empty] * (2 * config.n_layer)
        tokens = torch.tensor([[start, *prefix]]).expand(len(features), -1)
        return self._run(tokens)[:, None]

    def step(
        self, tokens: torch.Tensor, parents: torch.Tensor | None, positions: int, skipped: int = 0
    ) -> torch.Tensor:
        """Logits of the next token for each row of the first slots: (images, rows, vocabulary).

        Args:
            tokens: int64 (images, rows), the last token of each row.
            parents: int64 (images, rows), the row that each row continues; None if each continues itself.
        """
        images, origin = len(tokens), torch.tensor(self.origin[: len(tokens)])
        rows = torch.arange(self.rows) if parents is None else parents
        rows = torch.zeros(images, self.rows, dtype=torch.int64) if self.wide == 1 else rows.expand(images, -1)
        index = (origin[:, None] * self.wide + rows).flatten()
        if not torch.equal(index, torch.arange(len(self.past[0]))):
            self.past = [kept[index] for kept in self.past]
        if not torch.equal(origin, torch.arange(len(self.features))):
            self.features = self.features[origin]
        self.origin, self.wide = list(range(images)), self.rows
        return self._run(tokens.reshape(-1, 1)).view(images, self.rows, -1)

    def _run(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits behind the last token, (rows, vocabulary); the past is that of the next call."""
        feeds = dict(zip(self.model.past_names, (kept.numpy() for kept in self.past), strict=True))
        feeds["input_ids"] = np.ascontiguousarray(tokens.numpy())
        feeds["encoder_hidden_states"] = self.features.numpy()
        logits, *present = self.model.decoder.run(None, feeds)
        self.past = [torch.from_numpy(kept) for kept in present]
        return torch.from_numpy(logits)[:, -1]

    def move(self, source: int, target: int) -> None:
        """Puts the image in slot `source` into slot `target`; copied in the next step."""
        self.origin[target] = self.origin[source]
