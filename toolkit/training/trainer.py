"""A `Seq2SeqTrainer` for captioners: a few small overrides."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from accelerate.utils.memory import should_reduce_batch_size
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, Seq2SeqTrainer
from transformers.activations import NewGELUActivation
from transformers.modeling_outputs import BaseModelOutput

from toolkit.cache.labels import IGNORE_INDEX
from toolkit.captioning.generate import decode, is_supported, release
from toolkit.errors import RunError
from toolkit.models.lora import is_adapted, load_adapter_weights, plain_model
from toolkit.models.precision import PixelNormalizer
from toolkit.runtime.ending import allowing, deferring
from toolkit.runtime.progress import say
from toolkit.training.augment import augmented
from toolkit.training.averaging import WeightAverage
from toolkit.training.checkpoints import mark_whole, rotate
from toolkit.training.collator import LengthGroupedSampler, prefetch
from toolkit.training.distributed import agreeing, load_whole, whole_model, writing
from toolkit.training.features import encoder_features

SAVING = 120.0  # seconds that a checkpoint may take once the command has been told to stop


class CaptionTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer for batches of `CaptionCollator`: uint8 pixels, several captions an image, a summed loss.

    Trainer's `compute_loss_func` must be set to a function of (outputs, labels, num_items_in_batch).

    Args:
        sorted_together: how many batches `LengthGroupedSampler` sorts at a time.
        encoder_lr: peak learning rate of the encoder's weights; None for that of all others.
        average: of the weights; it is evaluated, and what the model has after training.
    """

    def __init__(
        self,
        *args: Any,
        normalizer: PixelNormalizer,
        generation: dict[str, Any],
        sorted_together: int = LengthGroupedSampler.WINDOW,
        encoder_lr: float | None = None,
        average: WeightAverage | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder_lr, self.average = encoder_lr, average
        super().__init__(*args, **kwargs)
        if average is not None:
            self.add_callback(average)
        # Trainer deletes older checkpoints before the new one is whole, and the last one at the end.
        self.checkpoints_kept, self.args.save_total_limit = self.args.save_total_limit, None
        self.sorted_together = sorted_together
        fuse_activations(self.model)
        self.kind = type(self.model)  # sharding makes another class of it
        self.normalizer = normalizer.to(self.args.device)
        # With FSDP every rank must generate as long as any does, since each holds a shard of the weights.
        self.generation = {**generation, "synced_gpus": self.is_fsdp_enabled}
        self.images: dict[str, int] = {}  # that fit into memory at once, where a whole batch did not
        self.earlier: list[Any] = []  # batches of this update that were gone through
        self._source: Iterator[Any] | None = None
        self._ahead: Generator[Any, None, None] | None = None
        self._start_window()

    # ---- data -----------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """Trainer's own length grouping draws from the global generator, so that a resumed epoch would have another order."""
        step = self.args.train_batch_size * self.args.world_size
        update = step * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(
            self.train_dataset, update, self.args.seed, self.sorted_together, step if self.args.world_size > 1 else 1
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of an update, made ahead by a thread; the time spent waiting for them is logged."""
        if epoch_iterator is not self._source:
            self._source, self._ahead = epoch_iterator, prefetch(epoch_iterator)
        with self._timed("data_s"):
            batches, tokens = super().get_batch_samples(self._ahead, num_batches, device)
        self.earlier = []
        self.window["images"] += sum(len(batch["labels"]) for batch in batches) * self.args.world_size
        self.window["tokens"] += tokens
        return batches, tokens

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with deferring(self.args.world_size == 1):  # `Saving` ends it, with a checkpoint
                found = super().train(*args, **kwargs)
                if self.average is not None and self.state.best_model_checkpoint is None:  # nothing was evaluated
                    self.average.put_into_model()
                return found
        finally:
            if self._ahead is not None:  # the thread that makes batches ends with training, however that ends
                self._ahead.close()

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Augments and normalises on the device: uint8 is a quarter of the bytes to copy. Stored features replace the
        encoder's output."""
        inputs = super()._prepare_inputs(inputs)
        if "features" in inputs:
            inputs["encoder_outputs"] = (encoder_features(inputs.pop("features"), self.model.dtype),)
        elif inputs["pixel_values"].dtype == torch.uint8:
            pixels = inputs["pixel_values"]
            if "augment" in inputs:  # only training's batches have it
                pixels = augmented(pixels, inputs.pop("augment"), self.normalizer.size)
            inputs["pixel_values"] = self.normalizer(pixels)
        return inputs

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Trainer's, with groups of their own for the encoder's weights if they have a rate of their own."""
        if self.optimizer is not None or self.encoder_lr is None:
            return super().create_optimizer(*args, **kwargs)
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        encoder = {id(weight) for weight in plain_model(self.model).encoder.parameters()}
        for group in list(optimizer.param_groups):
            theirs = [weight for weight in group["params"] if id(weight) in encoder]
            if theirs:
                group["params"] = [weight for weight in group["params"] if id(weight) not in encoder]
                optimizer.add_param_group({**group, "params": theirs, "lr": self.encoder_lr})
        return optimizer

    # ---- steps ----------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Trainer's, in smaller parts where memory runs out: the loss is a sum over tokens, so parts add up to it."""
        step = super().training_step

        def run(part: dict[str, Any]) -> torch.Tensor:
            return step(model, part, num_items_in_batch)

        def again() -> None:
            model.zero_grad()  # of a backward pass that was cut short
            for batch in self.earlier:
                self._in_parts("training", batch, run)

        loss = sum(self._in_parts("training", inputs, run, again))
        self.earlier.append(inputs)
        return torch.as_tensor(loss)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None, **gen_kwargs: Any
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Captions and loss of a batch.

        Returns:
            None for the loss: Trainer would average the means of batches, whatever their number of tokens.
            int64 (B, max_length) token rows, -100 after what was generated.
            float32 (B, 2): summed loss and number of target tokens of each image, which gather exactly.
        """
        rows, losses = zip(*self._in_parts("evaluation", inputs, lambda part: self._predict(model, part)), strict=True)
        return None, torch.cat(rows), torch.cat(losses)

    def _predict(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs)
        logits, features = output.logits, output.encoder_last_hidden_state
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
        ).view(labels.shape)
        counts = (labels != IGNORE_INDEX).sum(1)
        del logits, output
        return self._generate(model, features), torch.stack([losses.sum(1), counts.float()], dim=1)

    def _generate(self, model: Any, features: torch.Tensor) -> torch.Tensor:
        """Token rows, int64 (B, max_length), from encoder features: by toolkit's own decoder where it can do it."""
        model, settings = self.accelerator.unwrap_model(model), self.generation["generation_config"]
        padded = torch.full((len(features), settings.max_length), IGNORE_INDEX, device=features.device)
        with torch.no_grad(), self.accelerator.autocast():
            if self.is_fsdp_enabled or not is_supported(model, settings):
                tokens = model.generate(encoder_outputs=BaseModelOutput(features), **self.generation)
                padded[:, : tokens.shape[1]] = tokens
                return padded
            found = decode(model, settings, features=features)
        padded[:, 0] = settings.decoder_start_token_id
        for row, image in zip(padded, found, strict=True):
            row[1 : len(image.tokens[0]) + 1] = torch.tensor(image.tokens[0])
        return padded

    def _in_parts(
        self, what: str, inputs: dict[str, Any], run: Callable[[Any], Any], again: Callable[[], None] | None = None
    ) -> list[Any]:
        """`run` of a batch: whole, or in parts of as many images as fit into memory.

        Args:
            again: called before another try with smaller parts.

        Raises:
            RunError: not even one image fits.
        """
        images = min(self.images.get(what, len(inputs["labels"])), len(inputs["labels"]))

        def parts(images: int) -> list[Any]:
            total = len(inputs["labels"])
            return [run({k: v[i : i + images] for k, v in inputs.items()}) for i in range(0, total, images)]

        try:
            return parts(images)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if self.args.world_size > 1:  # the others have gone on to exchange gradients, and would wait for ours
                raise RunError(
                    f"rank {self.args.process_index}: out of memory in {what} with {images} images; use a smaller "
                    "--batch-size or --eval-batch-size, and more --gradient-accumulation-steps."
                ) from None
        # Not within `except`: the error holds on to everything that fills the memory.

        def halve() -> int:
            nonlocal images
            if images == 1:
                raise RunError(f"out of memory in {what} with a single image; use a smaller model or --precision bf16.")
            images //= 2
            return images

        def smaller(images: int) -> list[Any]:
            self.images[what] = images
            say(f"out of memory in {what}: going on with {images} images at a time, which changes no result")
            if again is not None:
                again()
            return parts(images)

        return find_executable_batch_size(smaller, halve(), halve)()

    # ---- what a run leaves behind ---------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Marked as whole before an older one is deleted: there is always one to resume from.

        Raises:
            RunError: it can't be written.
        """
        out = Path(self._get_output_dir(trial))
        with allowing(SAVING), self._timed("saving_s"):
            with agreeing(), writing(out):
                super()._save_checkpoint(model, trial)
                if self.average is not None and self.args.should_save:
                    self.average.write(out / f"checkpoint-{self.state.global_step}")
            with agreeing(), writing(out):  # all ranks have written what is theirs
                if self.args.should_save:
                    mark_whole(out / f"checkpoint-{self.state.global_step}")
            with agreeing(), writing(out):
                if self.args.should_save and self.checkpoints_kept is not None:
                    rotate(out, self.checkpoints_kept, self.state.best_global_step)

    def _init_training_state(
        self, max_steps: int, updates: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """The best checkpoint is looked for beside the resumed one: the folder may have moved."""
        found = super()._init_training_state(max_steps, updates, epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint is not None:
            best = Path(resume_from_checkpoint).with_name(f"checkpoint-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return found

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The rate that the schedule has at this step: the optimizer's is of the schedule that it was saved with, which
        is another one where a finished run is extended."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and isinstance(self.lr_scheduler, LambdaLR):
            step, rates = self.lr_scheduler.last_epoch, self.lr_scheduler.lr_lambdas
            for group, peak, rate in zip(self.optimizer.param_groups, self.lr_scheduler.base_lrs, rates, strict=True):
                group["lr"] = peak * rate(step)

    def _load_strictly(self, model: Any, checkpoint: str) -> None:
        """Every tensor of a checkpoint in its place, none missing; of an adapted model the adapter's."""
        if is_adapted(model):
            load_adapter_weights(model, checkpoint)
        elif self.is_fsdp_enabled:
            load_whole(model, self._strict_state(checkpoint))
        else:
            model.load_state_dict(self._strict_state(checkpoint), strict=True)

    def _strict_state(self, checkpoint: str) -> dict[str, torch.Tensor]:
        """A checkpoint's tensors under the names that the model has now; only `from_pretrained` converts them."""
        return self.kind.from_pretrained(checkpoint, dtype=self.model.dtype).state_dict()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's own loads with strict=False and silently leaves every encoder layer as it was."""
        self._load_strictly(model or self.model, resume_from_checkpoint)
        if self.average is not None:
            self.average.source = Path(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Trainer's own loads with strict=False here too."""
        self._load_strictly(self.model, self.state.best_model_checkpoint)
        if self.average is not None:
            self.average.put_into_model(Path(self.state.best_model_checkpoint))

    def trained_model(self) -> Any:
        """The model that training ended with, whole on rank 0. All ranks must call it."""
        return whole_model(self.model, self.kind) if self.is_fsdp_enabled else self.model

    # ---- where the time goes --------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        averaged = nullcontext() if self.average is None else self.average.swapped_in()
        with self._timed("evaluation_s"), deferring(False), averaged:
            try:
                return super().evaluate(*args, **kwargs)
            finally:
                release(self.model)  # training needs the memory

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with the time since the last row: images and tokens a second of training, and seconds of each."""
        if "eval_loss" not in logs:
            window, seconds = self.window, time.monotonic() - self.window_start
            images, tokens = window.pop("images"), float(window.pop("tokens"))
            training = max(seconds - window["evaluation_s"] - window["saving_s"], 1e-9)
            logs.update(seconds=seconds, **window)
            if images:  # there are none between the last step and the end
                logs.update(images_per_s=images / training, tokens_per_s=tokens / training)
            self._start_window()
        if "train_loss" in logs:  # Trainer's is this rank's since the last row
            mine = torch.tensor(logs["train_loss"], device=self.args.device)
            logs["train_loss"] = self.accelerator.gather(mine).mean().item()
        super().log(logs, start_time)

    def _start_window(self) -> None:
        self.window: dict[str, Any] = {"images": 0, "tokens": 0, "data_s": 0.0, "evaluation_s": 0.0, "saving_s": 0.0}
        self.window_start = time.monotonic()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.window[name] += time.monotonic() - started


def fuse_activations(model: torch.nn.Module) -> None:
    """GPT-2's GELU, which transformers takes eight passes over memory for, in one: the same formula, a tenth of a step.

    It has no weights, so that checkpoints and configs stay what they are.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


class Patience(EarlyStoppingCallback):
    """Early stopping that a resumed run repeats: the evaluation that ends training is not saved, but done again."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        super().on_evaluate(args, state, control, metrics, **kwargs)
        control.should_save = control.should_save and not control.should_training_stop
