"""A CLIP model: images and captions as unit vectors whose product says how well they fit.

    bytes of an image -> content hash -> kept? -> its vector
                                          no -> read_image, resize -> vision half -> kept

Vectors are kept (vectors.py) under a hash of all that decides them: weights, settings, tokenizer, image processor and
precision. So an image is encoded once, whatever is said of it later, and a caption once, whichever image it belongs to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from toolkit.data.images import read_image
from toolkit.data.pixels import PixelTransform, ProcessorTransform, transform_of
from toolkit.errors import ImageError, RunError
from toolkit.models.freezing import hash_weights
from toolkit.models.loading import load_clip_model, load_image_processor, load_tokenizer, silence_transformers
from toolkit.models.precision import DTYPES, PixelNormalizer, pick_device, resolve_precision
from toolkit.models.vectors import Picture, VectorStore
from toolkit.runtime.ahead import in_threads
from toolkit.runtime.hashing import hash_hex

HINT = "name a CLIP model: a folder with config.json, tokenizer and image processor, or a hub name"


@dataclass
class Clip:
    """A CLIP model with all that it takes, in evaluation mode on its device.

    Attributes:
        limit: tokens of its longest text, start and end included; longer ones are cut, and keep the end token.
        key: a hash of all that decides a vector.
    """

    name: str
    model: Any
    tokenizer: Any
    transform: PixelTransform | ProcessorTransform
    normalizer: nn.Module
    precision: str
    limit: int
    key: str
    store: VectorStore

    @property
    def signature(self) -> str:
        return f"{self.name},{self.key[:12]},{self.precision}"

    @property
    def _batch(self) -> int:
        return 256 if self.model.device.type == "cuda" else 32

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, D) of norm 1, in order.

        Raises:
            RunError: not even one fits in memory.
        """
        keys = [hash_hex("text", text) for text in texts]
        known = self.store.get(keys)
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        rest = sorted(fresh, key=lambda key: len(fresh[key]))  # texts of one length are not padded
        for start in range(0, len(rest), 1024):
            some = rest[start : start + 1024]
            found = dict(zip(some, self._encoded(self._encode_texts, [fresh[key] for key in some]), strict=True))
            self.store.put(found)
            known |= found
        width = self.model.config.projection_dim
        return np.stack([known[key] for key in keys]) if keys else np.zeros((0, width), np.float32)

    def images(self, pictures: Iterable[Picture], workers: int) -> Generator[np.ndarray | str, None, None]:
        """Of each in order: float32 (D,) of norm 1, or the reason why it can't be read.

        Args:
            workers: threads that read and resize, some batches ahead.

        Raises:
            RunError: not even one fits in memory.
        """
        with closing(in_threads(self._prepare, pictures, workers, ahead=4 * self._batch)) as source:
            while batch := list(islice(source, self._batch)):
                fresh = {one.content: one.pixels for one in batch if one.pixels is not None}
                new = dict(zip(fresh, self._encoded(self._encode_images, list(fresh.values())), strict=True))
                self.store.put(new)
                for one in batch:
                    yield one.error or (new[one.content] if one.vector is None else one.vector)

    def _prepare(self, picture: Picture) -> _Prepared:
        try:
            content, data = picture.content, None
            if content is None:
                data = picture.read()
                content = hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else _hash_image(data)
            kept = self.store.get([content]).get(content)
            if kept is not None:
                return _Prepared(content, vector=kept)
            image = read_image(picture.read() if data is None else data)
            return _Prepared(content, pixels=np.ascontiguousarray(self.transform(image)))
        except ImageError as error:
            return _Prepared("", error=str(error))

    def _encoded(self, encode: Callable[[list[Any]], torch.Tensor], items: list[Any]) -> Iterator[np.ndarray]:
        """float32 (D,) of norm 1 for each item; a batch that does not fit in memory is done again in halves."""
        done, size = 0, self._batch
        while done < len(items):
            batch = items[done : done + size]
            try:
                with torch.inference_mode():
                    found = encode(batch).float()
                    found = (found / found.norm(dim=-1, keepdim=True)).cpu().numpy()
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise RunError(f"{self.name}: one image or text does not fit in the device's memory.") from None
                size = len(batch) // 2
                continue
            yield from found
            done += len(batch)

    def _encode_images(self, pixels: list[np.ndarray]) -> torch.Tensor:
        inputs = self.normalizer(torch.from_numpy(np.stack(pixels)).to(self.model.device))  # (n, 3, H, W)
        return self.model.get_image_features(pixel_values=inputs.to(self.model.dtype)).pooler_output

    def _encode_texts(self, texts: list[str]) -> torch.Tensor:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self.limit, return_tensors="pt")
        ids, mask = inputs["input_ids"].to(self.model.device), inputs["attention_mask"].to(self.model.device)
        return self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output


class _Prepared(NamedTuple):
    content: str
    pixels: np.ndarray | None = None
    vector: np.ndarray | None = None
    error: str | None = None


def _hash_image(image: Image.Image) -> str:
    return hash_hex(f"{image.mode} {image.size}", image.tobytes())


def load_clip(name: str, option: str, device: str = "auto", precision: str = "auto") -> Clip:
    """A CLIP model from a folder or the hub, with its tokenizer and its image processor on Pillow.

    Args:
        option: that it was named with.
        precision: as a captioner's; int8, which is for captioners, is fp32 here.

    Raises:
        ModelError: no such folder or name, no CLIP model, or no such device.
    """
    silence_transformers()
    model = load_clip_model(name, option, HINT)
    tokenizer = load_tokenizer(name, option, HINT)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    processor = load_image_processor(name, option, HINT)
    settings = json.loads(processor.to_json_string())
    transform = transform_of(processor, settings, f"{option} {name}")
    where = pick_device(device)
    precision = "fp32" if precision == "int8" else resolve_precision(precision, where)
    limit = int(model.config.text_config.max_position_embeddings)
    key = _key(model, tokenizer, asdict(transform) if isinstance(transform, PixelTransform) else settings, precision)
    model.to(device=where, dtype=DTYPES[precision]).eval()
    normalizer = PixelNormalizer(transform) if isinstance(transform, PixelTransform) else nn.Identity()
    return Clip(name, model, tokenizer, transform, normalizer.to(where), precision, limit, key, VectorStore(key))


def _key(model: Any, tokenizer: Any, pixels: Mapping[str, Any], precision: str) -> str:
    said = ("transformers_version", "architectures", "dtype", "torch_dtype")
    dump = partial(json.dumps, sort_keys=True, default=str)
    config = {k: v for k, v in model.config.to_dict().items() if k not in said and not k.startswith("_")}
    words = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else dump(tokenizer.get_vocab())
    return hash_weights(model.state_dict(), dump(config), words, dump(pixels), precision).hex()
