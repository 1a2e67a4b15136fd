"""The notebook's way, written afresh for transformers 5, so that it can be timed beside toolkit's.

As the recipe does it: one row per caption; each JPEG is decoded and processed again for each of its captions, one by
one, into float32; captions are padded to 50 and masked where the token is pad (so EOS is never taught); rows, not
images, are split; a stock Seq2SeqTrainer with default_data_collator; `generate` one image at a time.

    python scripts/notebook_baseline.py DIR --model tiny --rows 500 --max-steps 20 --generate 16

DIR holds captions.txt and Images/. Prints one JSON object with images/s of each stage.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    GPT2Config,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    default_data_collator,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from toolkit.models.loading import silence_transformers
from toolkit.models.presets import TINY_DECODER, TINY_ENCODER, train_tokenizer


def read_rows(directory: Path, limit: int | None) -> list[tuple[Path, str]]:
    """(image file, caption), a row per caption."""
    with open(directory / "captions.txt", newline="", encoding="utf-8") as file:
        rows = [(directory / "Images" / row["image"], row["caption"]) for row in csv.DictReader(file)]
    return rows[:limit]


class NotebookDataset(torch.utils.data.Dataset):
    """Decodes and processes the image of a caption each time that the caption is asked for."""

    def __init__(self, rows: list[tuple[Path, str]], processor: Any, tokenizer: Any, max_length: int = 50) -> None:
        self.rows, self.processor, self.tokenizer, self.max_length = rows, processor, tokenizer, max_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        path, caption = self.rows[index]
        image = Image.open(path).convert("RGB")
        pixels = self.processor(image, return_tensors="pt").pixel_values[0]
        ids = self.tokenizer(caption, padding="max_length", max_length=self.max_length, truncation=True).input_ids
        pad = self.tokenizer.pad_token_id
        return {"pixel_values": pixels, "labels": torch.tensor([-100 if i == pad else i for i in ids])}


def build(size: str, captions: list[str]) -> tuple[VisionEncoderDecoderModel, Any, Any]:
    """The same model as toolkit's: the tiny preset, or ViT-B/16 and GPT-2 sizes with random weights."""
    tokenizer = train_tokenizer(captions)
    if size == "tiny":
        encoder, decoder = ViTConfig(**TINY_ENCODER), GPT2Config(vocab_size=len(tokenizer), **TINY_DECODER)
        processor = ViTImageProcessorPil(size={"height": encoder.image_size, "width": encoder.image_size})
    else:
        encoder, decoder = ViTConfig(), GPT2Config()
        processor = ViTImageProcessorPil()
    torch.manual_seed(0)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = VisionEncoderDecoderModel(config=config)
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = settings.decoder_start_token_id = settings.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", choices=("tiny", "base"), default="tiny")
    parser.add_argument("--rows", type=int, help="captions used; all without it")
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--generate", type=int, default=16, help="images captioned")
    parser.add_argument("--max-new-tokens", type=int, default=20)
    arguments = parser.parse_args()
    silence_transformers()

    rows = read_rows(arguments.directory, arguments.rows)
    random.Random(42).shuffle(rows)
    cut = int(len(rows) * 0.9)
    model, tokenizer, processor = build(arguments.model, [caption for _, caption in rows])
    train, validation = (NotebookDataset(part, processor, tokenizer) for part in (rows[:cut], rows[cut:]))

    started = time.perf_counter()
    read = min(len(train), 200)
    for i in range(read):
        train[i]
    read_seconds = time.perf_counter() - started

    with tempfile.TemporaryDirectory() as folder:
        trainer = Seq2SeqTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=folder,
                max_steps=arguments.max_steps,
                per_device_train_batch_size=arguments.batch_size,
                learning_rate=5e-5,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=default_data_collator,
        )
        started = time.perf_counter()
        trainer.train()
        train_seconds = time.perf_counter() - started

    model.eval()
    started = time.perf_counter()
    captions = []
    for path, _ in rows[: arguments.generate]:
        pixels = processor(Image.open(path).convert("RGB"), return_tensors="pt").pixel_values.to(model.device)
        tokens = model.generate(
            pixels, max_new_tokens=arguments.max_new_tokens, num_beams=4, no_repeat_ngram_size=3, length_penalty=2.0
        )
        captions.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    generate_seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "read_captions_per_s": round(read / read_seconds, 2),
                "train_captions_per_s": round(arguments.max_steps * arguments.batch_size / train_seconds, 2),
                "generate_images_per_s": round(len(captions) / generate_seconds, 3),
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "last_caption": captions[-1] if captions else None,
            }
        )
    )


if __name__ == "__main__":
    main()
