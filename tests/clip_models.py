"""A tiny CLIP model with random weights and a tokenizer trained on the spot, and a plain computation with both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = [
    "A photo depicts a dog runs on the grass", "two children play with a red ball", "a man rides a brown horse",
    "a plate of food on a table", "large blue circles and small green squares above a yellow triangle",
]  # fmt: skip
LIMIT = 60  # tokens


def save_clip(directory: Path, seed: int = 1, legacy: bool = False) -> Path:
    """`legacy`: with the EOS id of OpenAI's own files, 2, by which transformers finds the end of a text in another way."""
    torch.manual_seed(seed)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # all of it, so that no text has an unknown token
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=200, min_frequency=2, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator([line.lower() for line in WORDS], trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(one + other for one, other in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    start, end = len(vocab), len(vocab) + 1
    vocab |= {"<|startoftext|>": start, "<|endoftext|>": end}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LIMIT)
    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(vocab), "max_position_embeddings": LIMIT, "bos_token_id": start,
                     "eos_token_id": 2 if legacy else end, "pad_token_id": end},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip
    model = CLIPModel(config).eval()
    with torch.no_grad():  # random weights of the usual size say nearly the same of everything
        for weight in model.parameters():
            weight.mul_(3 if weight.dim() > 1 else 1)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(directory)
    return directory


class Plain:
    """The authors' program, line by line, on this model: one image and one caption at a time, in numpy."""

    def __init__(self, directory: Path) -> None:
        self.model = CLIPModel.from_pretrained(directory).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.processor = CLIPImageProcessorPil.from_pretrained(directory)

    def text(self, caption: str) -> np.ndarray:
        ids = self.tokenizer("A photo depicts " + caption)["input_ids"]
        if len(ids) > LIMIT:  # clip.tokenize(truncate=True)
            ids = [*ids[: LIMIT - 1], ids[-1]]
        with torch.no_grad():
            states = self.model.text_model(input_ids=torch.tensor([ids])).last_hidden_state
            return self.model.text_projection(states[0, -1]).numpy()  # at the end token

    def image(self, path: Path) -> np.ndarray:
        pixels = self.processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)[0].numpy()

    def clip_score(self, path: Path, caption: str, w: float = 2.5) -> float:
        image, text = self.image(path), self.text(caption)
        image, text = image / np.sqrt(np.sum(image**2)), text / np.sqrt(np.sum(text**2))
        return float(w * np.clip(np.sum(image * text), 0, None))

    def ref_clip_score(self, path: Path, caption: str, references: list[str], w: float = 2.5) -> float:
        text = self.text(caption)
        text = text / np.sqrt(np.sum(text**2))
        said = np.vstack([self.text(reference) for reference in references])
        said = said / np.sqrt(np.sum(said**2, axis=1, keepdims=True))
        one, other = self.clip_score(path, caption, w), max(float(np.max(text.dot(said.T))), 0.0)
        return 2 * one * other / (one + other) if one + other else 0.0
