"""What a stock `Seq2SeqTrainer` lacks to train captioners right: five small overrides, and a check before the start."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, Seq2SeqTrainer, TrainerCallback

from toolkit.batches import caption_loss
from toolkit.cache import Cache
from toolkit.decoding import caption_lengths
from toolkit.errors import RunError
from toolkit.labels import IGNORE_INDEX
from toolkit.metrics import score
from toolkit.modeling import PixelNormalizer, SpecialTokens
from toolkit.progress import Progress, say


class CaptionTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer for batches of `CaptionCollator`: uint8 pixels, several captions an image, a summed loss.

    Trainer's `compute_loss_func` must be set to a function of (outputs, labels, num_items_in_batch).
    """

    def __init__(self, *args: Any, normalizer: PixelNormalizer, generation: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.normalizer = normalizer.to(self.args.device)
        self.generation = generation

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Normalises on the device: a quarter of the bytes cross the bus."""
        inputs = super()._prepare_inputs(inputs)
        if inputs["pixel_values"].dtype == torch.uint8:
            inputs["pixel_values"] = self.normalizer(inputs["pixel_values"])
        return inputs

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None, **gen_kwargs: Any
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Captions and loss of a batch.

        Returns:
            None for the loss: Trainer would average the means of batches, whatever their number of tokens.
            int64 (B, max_length) token rows, -100 after what was generated.
            float32 (B, 2): summed loss and number of target tokens of each image, which gather exactly.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        images = inputs["pixel_values"].shape[0]
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
        ).view(labels.shape)
        counts = (labels != IGNORE_INDEX).sum(1)
        with torch.no_grad(), self.compute_loss_context_manager():
            tokens = self.accelerator.unwrap_model(model).generate(
                pixel_values=inputs["pixel_values"], **self.generation
            )
        padded = tokens.new_full((images, self.generation["generation_config"].max_length), IGNORE_INDEX)
        padded[:, : tokens.shape[1]] = tokens
        return None, padded, torch.stack([losses.sum(1), counts.float()], dim=1)

    def _strict_state(self, checkpoint: str) -> dict[str, torch.Tensor]:
        """A checkpoint's tensors under the names that the model has now; only `from_pretrained` converts them."""
        return type(self.model).from_pretrained(checkpoint, dtype=self.model.dtype).state_dict()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's own loads with strict=False and silently leaves every encoder layer as it was (facts §7 S2)."""
        (model or self.model).load_state_dict(self._strict_state(resume_from_checkpoint), strict=True)

    def _load_best_model(self) -> None:
        """The same trap as `_load_from_checkpoint`."""
        self.model.load_state_dict(self._strict_state(self.state.best_model_checkpoint), strict=True)


def caption_metrics(
    references: Sequence[Sequence[str]], decode: Callable[[Any], list[str]], tokens: SpecialTokens
) -> Callable[[EvalPrediction], dict[str, Any]]:
    """Trainer's `compute_metrics`: what was generated, scored against the captions of the same images, in order."""

    def compute(prediction: EvalPrediction) -> dict[str, Any]:
        rows = torch.as_tensor(np.asarray(prediction.predictions))[: len(references), 1:]
        ended = caption_lengths(rows, tokens)[1].numpy()
        captions = decode(rows.masked_fill(rows == IGNORE_INDEX, tokens.pad))
        loss, count = np.asarray(prediction.label_ids, dtype=np.float64)[: len(references)].sum(axis=0)
        ids = [str(i) for i in range(len(references))]
        scores = score(dict(zip(ids, captions, strict=True)), dict(zip(ids, references, strict=True)))
        wanted = {name: scores.corpus[name] for name in ("cider", "bleu_4", "rouge_l")}
        compute.captions = captions  # type: ignore[attr-defined]
        return {
            "loss": loss / count,
            **wanted,
            "ended": float(ended.mean()),
            "distinct": len(set(captions)) / len(captions),
        }

    return compute


class TrainingLog(TrainerCallback):
    """training.jsonl, a row per log and per evaluation, and progress for people.

    Args:
        metrics: the function of `caption_metrics`, whose `captions` are those of the last evaluation.
    """

    SAMPLES = 8  # validation images whose captions are followed through training

    def __init__(self, path: Path, metrics: Any) -> None:
        self.path = path
        self.metrics = metrics
        self.progress: Progress | None = None

    def rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def _write(self, row: dict[str, Any], mode: str = "a") -> None:
        with open(self.path, mode, encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = [
            row for row in self.rows() if row["step"] <= state.global_step
        ]  # what a killed run did beyond is redone
        self.path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
        self.progress = Progress("finetune", state.max_steps - state.global_step, "steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        row = {"step": state.global_step, "epoch": round(state.epoch or 0, 4), **(logs or {})}
        if "eval_loss" in row:
            row["captions"] = self.metrics.captions[: self.SAMPLES]
            names = ("loss", "cider", "bleu_4", "rouge_l", "ended", "distinct")
            figures = ", ".join(f"{name} {row[f'eval_{name}']:.3f}" for name in names)
            say(f'  epoch {row["epoch"]:g}: {figures}; "{row["captions"][0]}"')
        self._write(row)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)

    def best(self, step: int | None) -> dict[str, float]:
        """The figures of the evaluation at this step; empty where there was none."""
        rows = [row for row in self.rows() if "eval_loss" in row and step in (None, row["step"])]
        names = ("loss", "cider", "bleu_4", "rouge_l", "ended", "distinct")
        return {name: rows[-1][f"eval_{name}"] for name in names} if rows else {}

    def samples(self, cache: Cache) -> list[dict[str, Any]]:
        """The followed validation images: pixels, their captions, and what was said of them at each evaluation."""
        reader = cache["validation"]
        references, ids = reader.column("captions"), reader.column("image_id")
        evaluations = [row for row in self.rows() if "eval_loss" in row]
        return [
            {
                "image_id": ids[i],
                "pixels": reader[i]["pixel_values"],
                "references": references[i],
                "captions": [(row["epoch"], row["captions"][i]) for row in evaluations],
            }
            for i in range(min(self.SAMPLES, len(reader)))
        ]


def check_training(
    model: Any, batch: dict[str, torch.Tensor], normalizer: PixelNormalizer, tokens: SpecialTokens, fresh: bool
) -> float:
    """Tries a batch before hours are spent on it; takes a second or two.

    Args:
        batch: of `CaptionCollator`, a few images are enough.
        fresh: the decoder has random weights, so its loss must be near ln(vocabulary).

    Returns:
        The loss of the batch, in nats a token.

    Raises:
        RunError: a caption has no EOS to learn, labels are shifted other than once, the loss differs from the plain
            per-caption one, is not finite or not where it starts, or the decoder does not see the image.
    """
    labels, inputs, positions = (batch[name] for name in ("labels", "decoder_input_ids", "decoder_position_ids"))
    used = labels != IGNORE_INDEX
    starts = used & (positions == positions[0, 0])
    ends = used & ~(used & ~starts).roll(-1, 1)
    if not bool((labels[ends] == tokens.eos).all()) or int(ends.sum()) != int(starts.sum()):
        raise RunError(
            "self-check: not every caption's labels end with one EOS; rebuild the cache with `toolkit preprocess`."
        )
    expected = torch.where(starts, tokens.start, labels.roll(1, 1))
    if not torch.equal(inputs[used], expected[used]):
        raise RunError("self-check: decoder inputs are not the labels shifted right once; this is a bug of toolkit's.")
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    pixels = normalizer(batch["pixel_values"].to(device))
    decoder_inputs = {name: value.to(device) for name, value in batch.items() if name.startswith("decoder_")}
    with torch.inference_mode():
        logits = model(pixel_values=pixels, **decoder_inputs).logits
        blind = model(pixel_values=torch.zeros_like(pixels), **decoder_inputs).logits
        loss = caption_loss(logits, labels.to(device)).item()
        # transformers' own loss on one caption alone, which shifts the labels itself: the last one of an image, which
        # has others before it.
        last = slice(int(starts[0].nonzero()[-1]), int(ends[0].nonzero()[-1]) + 1)
        theirs = model(pixel_values=pixels[:1], labels=labels[:1, last].to(device)).loss.item()
        ours = caption_loss(logits[:1, last], labels[:1, last].to(device)).item()
    model.train(was_training)
    if not math.isfinite(loss):
        raise RunError(f"self-check: the loss of a first batch is {loss}; try --precision fp32, or another decoder.")
    if abs(ours - theirs) > 1e-3 * max(1.0, abs(theirs)):
        raise RunError(
            f"self-check: the loss of a caption is {ours:.4f} here and {theirs:.4f} in transformers; either the decoder "
            "can't keep several captions in a row apart (GPT-2- and BERT-likes can), or this release shifts labels twice."
        )
    if fresh and abs(loss - math.log(logits.shape[-1])) > 0.15 * math.log(logits.shape[-1]):
        raise RunError(
            f"self-check: an untrained decoder's loss is {loss:.3f}, not near ln({logits.shape[-1]}) = "
            f"{math.log(logits.shape[-1]):.3f}; its weights are not as fresh as they should be."
        )
    if torch.equal(logits, blind):
        raise RunError(
            "self-check: the decoder gives the same output for any image; name a --decoder with cross-attention."
        )
    return loss
