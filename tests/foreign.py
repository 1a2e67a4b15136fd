"""Tiny random captioners of other makes, each with a tokenizer trained on the spot, saved as the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

TEXTS = ["a dog runs over the green hill", "a red bird sits on a small tree", "two children play with a ball"]
SIZE = 32
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": SIZE,
    "patch_size": 8, "initializer_range": 0.3,
}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}


def bert_tokenizer(*more: str) -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *more]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def blip(directory: Path) -> None:
    tokenizer = bert_tokenizer("[DEC]")
    text = TEXT | {
        "vocab_size": len(tokenizer), "encoder_hidden_size": 32, "intermediate_size": 64, "pad_token_id": 0,
        "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"), "eos_token_id": 2, "sep_token_id": 3,
    }  # fmt: skip
    config = hf.BlipConfig(text_config=text, vision_config=VISION)
    hf.BlipForConditionalGeneration(config).save_pretrained(directory)
    hf.BlipProcessor(BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}), tokenizer).save_pretrained(directory)


def git(directory: Path) -> None:
    tokenizer = bert_tokenizer()
    config = hf.GitConfig(
        vision_config=VISION, vocab_size=len(tokenizer), intermediate_size=64, bos_token_id=2, eos_token_id=3, **TEXT
    )
    hf.GitForCausalLM(config).save_pretrained(directory)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    hf.GitProcessor(images, tokenizer).save_pretrained(directory)


def blip_2(directory: Path) -> None:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "</s>", "<image>"]
    raw.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="</s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    config = hf.Blip2Config(
        vision_config=VISION,
        qformer_config=TEXT | {"vocab_size": 50, "intermediate_size": 64, "encoder_hidden_size": 32},
        text_config={
            "model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64,
            "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "init_std": 0.3,
        },
        num_query_tokens=4,
        image_token_index=2,
    )  # fmt: skip
    hf.Blip2ForConditionalGeneration(config).save_pretrained(directory)
    images = BlipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    hf.Blip2Processor(images, tokenizer, num_query_tokens=4).save_pretrained(directory)


MAKES = {"blip": blip, "git": git, "blip-2": blip_2}


def make(kind: str, directory: Path) -> Path:
    torch.manual_seed(0)
    MAKES[kind](directory)
    return directory
