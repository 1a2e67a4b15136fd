"""README.md of what is put on the hub: its metadata, in the hub's form, and text for people.

A model has a card already (model_card.py), which is kept; a cache and a file of captions get one here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.errors import InputError
from toolkit.options.push import HubOptions
from toolkit.reports.html import _templates

TAG = "captioning-toolkit"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"),
         (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip
# A name with a place of this machine before it, in a cell of a table, as Markdown escapes it.
_PLACE = re.compile(r"(?m)(?<=\| )/(?:[^|\n]*/)?(?=[^/|\n]+ \|$|[^/|\n]+ \()")


# Of a model's folder without one.
_PLAIN = """---
library_name: transformers
pipeline_tag: image-to-text
tags:
- image-captioning
---

# {title}

An image captioner.
"""
_EXPORTED = """---
library_name: transformers.js
pipeline_tag: image-to-text
tags:
- image-captioning
- onnx
---

# {title}

An image captioner as ONNX graphs, made with toolkit {version}.

```js
import {{ pipeline }} from '@huggingface/transformers';

const captioner = await pipeline('image-to-text', '{name}', {{ dtype: 'fp32' }});
const [{{ generated_text }}] = await captioner('photo.jpg');
```
"""


def model_card(text: str | None, name: str, hub: HubOptions, exported: bool = False) -> str:
    """The card of a model's folder as it is on the hub: with the metadata that was given, and under its name there.

    Args:
        text: README.md of the folder; None where it has none.
        name: on the hub, with its owner.
        exported: whether the model is graphs of `export`.
    """
    from huggingface_hub import ModelCard

    if text is None:
        form = _EXPORTED if exported else _PLAIN
        text = form.format(title=name.rpartition("/")[2], name=name, version=__version__)
    card = ModelCard(text, ignore_metadata_errors=True)
    data: Any = card.data
    _add(data, hub)
    if data.get("eval_results"):
        data.model_name = name.rpartition("/")[2]
    if hub.dataset:
        data.datasets = list(hub.dataset)
    for result in data.get("eval_results") or []:  # of the model's own validation
        if len(hub.dataset) == 1:
            result.dataset_type, result.dataset_name = hub.dataset[0], hub.dataset[0]
    body = re.sub(r"(from_pretrained\()\"\.\"", rf'\1"{name}"', card.text)
    body = body.replace("--model .\n", f"--model {name}\n").replace("--model .`", f"--model {name}`")
    card.text = _PLACE.sub("", body)
    return str(card)


def cache_card(name: str, manifest: dict[str, Any], hub: HubOptions) -> str:
    """Of a cache: `load_dataset(NAME)` reads its splits."""
    splits = {split: count for split, count in manifest["counts"]["splits"].items() if count}
    files = [{"split": split, "path": f"{split}/*.arrow"} for split in splits]
    return _dataset_card("cache_card.md", name, hub, sum(splits.values()), files, manifest=manifest)


def captions_card(name: str, file: Path, columns: Mapping[str, Sequence[Any]], features: Any, hub: HubOptions) -> str:
    """Of a file of captions.

    Args:
        columns: of the file, as `read_columns` gives them.
        features: of `datasets`, or None to leave them to it.
    """
    names = columns.get("image") or columns.get("image_id") or columns.get("file_name") or []
    rows = list(zip(names, columns.get("caption") or [], strict=False))
    told: dict[str, Any] = {"file": file.name, "rows": len(rows), "columns": list(columns)}
    told["samples"] = [(image, caption) for image, caption in rows if caption][:5]
    told["failed"] = sum(error is not None for error in columns.get("error") or [])
    files = [{"split": "train", "path": file.name}]
    return _dataset_card("captions_card.md", name, hub, len(rows), files, features, **told)


def kept_metadata(hub: HubOptions, there: str | None) -> HubOptions:
    """What was given for a card, and where nothing was, what the card that is there says: a licence stays.

    Args:
        there: its text; None where there is none.
    """
    from huggingface_hub import RepoCard

    if there is None:
        return hub
    data = RepoCard(there, ignore_metadata_errors=True).data
    found: dict[str, Any] = {
        "license": next(iter(_texts(data.get("license"))), None),
        "language": _texts(data.get("language")),
        "dataset": _texts(data.get("datasets") or data.get("source_datasets")),
    }
    missing = {name: value for name, value in found.items() if value and not getattr(hub, name)}
    try:
        return replace(hub, **missing)
    except InputError:  # somebody's own words, in a form that is none of ours
        return hub


def _texts(value: Any) -> tuple[str, ...]:
    """One text or a list of them, as YAML has them; no is False there."""
    return tuple(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


def _dataset_card(template: str, name: str, hub: HubOptions, size: int, files: list[dict[str, str]],
                  features: Any = None, **values: Any) -> str:  # fmt: skip
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        pretty_name=name.rpartition("/")[2],
        task_categories=["image-to-text"],
        size_categories=[next((told for most, told in SIZES if size < most), "n>1T")],
        source_datasets=list(hub.dataset) or None,
        tags=["image-captioning"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    if features is not None:
        data["dataset_info"] = {"features": features._to_yaml_list()}
    _add(data, hub)
    metadata = data.to_yaml()
    return str(_templates().get_template(template).render(version=__version__, metadata=metadata, name=name, **values))


def _add(data: Any, hub: HubOptions) -> None:
    """What was given on the command line; the rest of a card's metadata stays."""
    if hub.language:
        data.language = list(hub.language) if len(hub.language) > 1 else hub.language[0]
    if hub.license is not None:
        data.license = hub.license
    tags = data.get("tags") or []
    data.tags = [*tags, *({TAG} - set(tags))]
