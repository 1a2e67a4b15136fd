"""Small models from scratch: the tiny preset, the decoders with random weights, and the tokenizer trained for them."""

from __future__ import annotations

from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
)

from toolkit.options.preprocess import NEW_DECODERS as POSITIONS
from toolkit.options.preprocess import TINY_POSITIONS

# The tiny preset: learns toolkit's own drawn scenes from scratch in minutes on two cores (tests/commands/test_demo.py).
TINY_IMAGE_SIZE = 64
TINY_VOCAB_SIZE = 384
# The usual initializer_range of 0.02 belongs to models 768 wide; at 128 it is 1 / sqrt(128), or nothing moves for long.
TINY_ENCODER = {
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512,
    "image_size": TINY_IMAGE_SIZE, "patch_size": 16, "initializer_range": 0.07,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TINY_DECODER = {
    "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": TINY_POSITIONS, "initializer_range": 0.07,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip

# `preprocess --decoder NAME`: what a decoder with random weights has beside its vocabulary (docs/finetuning.md).
NEW_DECODERS = {
    "tiny": TINY_DECODER,
    "small": {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": POSITIONS["small"], "initializer_range": 0.05},
}
# A token that is rarer in the train captions is not learnt well; its parts are.
LEAST_OCCURRENCES = 10
LARGEST_VOCABULARY = 16384


def tiny_image_processor() -> Any:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE})


def train_tokenizer(captions: Any, vocab_size: int | None = TINY_VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the captions (an iterable of strings); deterministic for the same captions.

    Args:
        vocab_size: at most; None for as many tokens as have `LEAST_OCCURRENCES` in the captions.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size or LARGEST_VOCABULARY,
        min_frequency=0 if vocab_size else LEAST_OCCURRENCES,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, pad_token=end, model_max_length=1024
    )
