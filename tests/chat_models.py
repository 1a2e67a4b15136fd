"""Tiny random models that are told what to do, each with a tokenizer trained on the spot, saved as the hub has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from foreign import SIZE, TEXT, TEXTS, VISION
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

LLAVA_CHAT = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
IDEFICS_CHAT = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{{ ': ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LANGUAGE = TEXT | {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 1024}


def tokenizer(*special: str, eos: str = "</s>", **more: Any) -> Any:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokens = ["<pad>", "<s>", eos, *special]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=tokens, initial_alphabet=alphabet)
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token=eos, **more)


def ids(words: Any, vocabulary: int | None = None) -> dict[str, Any]:
    """With an EOS that a random model comes upon now and then."""
    return {
        "vocab_size": vocabulary or len(words), "pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }  # fmt: skip


def llava(directory: Path) -> None:
    words = tokenizer("<image>", extra_special_tokens={"image_token": "<image>"})
    config = hf.LlavaConfig(
        vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
        text_config=LANGUAGE | ids(words) | {"model_type": "llama"},
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(directory)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    hf.LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    ).save_pretrained(directory)  # fmt: skip


def paligemma(directory: Path) -> None:
    words = tokenizer("<image>", extra_special_tokens={"image_token": "<image>"})
    images = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    images.image_seq_length = (SIZE // 8) ** 2
    processor = hf.PaliGemmaProcessor(images, words)
    text = TEXT | {"model_type": "gemma", "intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
    config = hf.PaliGemmaConfig(
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=text | ids(words) | {"num_image_tokens": images.image_seq_length},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        **{name: value for name, value in ids(words).items() if name != "vocab_size"},
    )
    hf.PaliGemmaForConditionalGeneration(config).save_pretrained(directory)
    processor.save_pretrained(directory)


IDEFICS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<|im_start|>")
TILES = tuple(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))


def idefics3(directory: Path) -> None:
    words = tokenizer(*IDEFICS, *TILES)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIZE}, max_image_size={"longest_edge": SIZE})
    processor = hf.Idefics3Processor(images, words, image_seq_len=4, chat_template=IDEFICS_CHAT)
    _idefics(directory, words, hf.Idefics3Config, hf.Idefics3ForConditionalGeneration)
    processor.save_pretrained(directory)


def smolvlm(directory: Path) -> None:
    """Without its video half, as it is on a machine without torchvision and num2words: the files are those of the hub."""
    words = tokenizer(*IDEFICS, *TILES)
    images = SmolVLMImageProcessorPil(size={"longest_edge": 2 * SIZE}, max_image_size={"longest_edge": SIZE})
    _idefics(directory, words, hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration)
    _save_parts(directory, words, images, "SmolVLMProcessor", IDEFICS_CHAT, image_seq_len=4)


def _idefics(directory: Path, words: Any, config: Any, model: Any) -> None:
    made = config(
        vision_config={name: value for name, value in VISION.items() if name != "initializer_range"},
        text_config=LANGUAGE | ids(words) | {"model_type": "llama"},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    made = model(made)
    made.generation_config.eos_token_id = words.eos_token_id
    made.save_pretrained(directory)


def qwen2_vl(directory: Path) -> None:
    special = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>")
    words = tokenizer(*special, eos="<|im_end|>")
    images = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    )
    named = {
        f"{name}_token_id": words.convert_tokens_to_ids(token)
        for name, token in (("image", "<|image_pad|>"), ("video", "<|video_pad|>"), ("vision_start", "<|vision_start|>"),
                            ("vision_end", "<|vision_end|>"))
    }  # fmt: skip
    config = hf.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8},
        text_config=LANGUAGE | ids(words) | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        **named,
    )
    model = hf.Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(directory)
    _save_parts(directory, words, images, "Qwen2VLProcessor", QWEN_CHAT)


def _save_parts(directory: Path, words: Any, images: Any, processor: str, template: str, **settings: Any) -> None:
    words.save_pretrained(directory)
    images.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(template)
    (directory / "processor_config.json").write_text(json.dumps({"processor_class": processor, **settings}))


def florence2(directory: Path) -> None:
    words = tokenizer("<image>", extra_special_tokens={"image_token": "<image>"})
    images = CLIPImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_center_crop=False)
    images.image_seq_length = 17
    small = {"embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2], "depths": [1, 1]}
    config = hf.Florence2Config(
        vision_config=small | {
            "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True],
            "window_size": 4, "projection_dim": 32,
        },
        text_config={
            "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.3,
            "decoder_start_token_id": 2, "forced_eos_token_id": None, **ids(words),
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
        **{name: value for name, value in ids(words).items() if name != "vocab_size"},
    )  # fmt: skip
    model = hf.Florence2ForConditionalGeneration(config)
    model.generation_config.update(
        decoder_start_token_id=2, **{n: v for n, v in ids(words).items() if n != "vocab_size"}
    )
    model.save_pretrained(directory)
    hf.Florence2Processor(images, words).save_pretrained(directory)


def blip_2_t5(directory: Path) -> None:
    """BLIP-2 with a text model that has an encoder; its start token is that of the hub's Flan-T5 checkpoints."""
    words = tokenizer("<image>")
    config = hf.Blip2Config(
        vision_config=VISION,
        qformer_config=TEXT | {"vocab_size": 50, "intermediate_size": 64, "encoder_hidden_size": 32},
        text_config={
            "model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
            "decoder_start_token_id": 0, "initializer_factor": 4.0, "feed_forward_proj": "gated-gelu", **ids(words),
        },
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    hf.Blip2ForConditionalGeneration(config).save_pretrained(directory)
    images = BlipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    hf.Blip2Processor(images, words, num_query_tokens=4).save_pretrained(directory)


MADE: dict[str, Callable[[Path], None]] = {
    "llava": llava, "paligemma": paligemma, "idefics3": idefics3, "smolvlm": smolvlm, "qwen2_vl": qwen2_vl,
    "florence2": florence2, "blip-2-t5": blip_2_t5,
}  # fmt: skip


def make_chat(kind: str, directory: Path) -> Path:
    torch.manual_seed(1)
    directory.mkdir(parents=True, exist_ok=True)
    MADE[kind](directory)
    return directory
