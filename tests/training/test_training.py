"""The trainer against a naive loop and a stock trainer, and the traps of transformers 5 (facts S1-S4)."""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from ranked import ENVIRONMENT
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    ViTConfig,
    ViTModel,
    default_data_collator,
)
from transformers.activations import NewGELUActivation

import toolkit.training.trainer
from toolkit.cache.schema import caption_view, open_cache
from toolkit.data.pixels import PixelTransform
from toolkit.errors import RunError
from toolkit.models.loading import build_captioner
from toolkit.models.precision import PixelNormalizer
from toolkit.models.special_tokens import generation_config
from toolkit.options import GenerationOptions
from toolkit.records import SpecialTokens
from toolkit.training.callbacks import CaptionMetrics, caption_warnings
from toolkit.training.checkpoints import last_checkpoint
from toolkit.training.collator import CaptionCollator, CaptionDataset, caption_loss
from toolkit.training.selfcheck import check_training
from toolkit.training.trainer import CaptionTrainer, Patience, fuse_activations


class Parts:
    """What a test needs of a cache."""

    def __init__(self, cache_dir: Path) -> None:
        self.cache = open_cache(cache_dir)
        labels = self.cache.manifest["labels"]
        self.vocab_size = labels["vocab_size"]
        self.tokens = self.cache.special_tokens
        config = json.loads((cache_dir / "image_processor" / "preprocessor_config.json").read_text())
        self.normalizer = PixelNormalizer(PixelTransform.from_processor_config(config))
        self.collator = CaptionCollator(self.tokens)

    def model(self, seed: int = 0) -> Any:
        model = build_captioner("", "", "tiny", self.vocab_size, self.tokens, seed)
        model.accepts_loss_kwargs = False
        return model

    def trainer(self, model: Any, out: Path, **arguments: Any) -> CaptionTrainer:
        settings = generation_config(GenerationOptions(num_beams=2, max_length=24), self.tokens)
        arguments = {"max_steps": 3, "per_device_train_batch_size": 8, "save_strategy": "no", **arguments}
        return CaptionTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=str(out),
                learning_rate=1e-3,
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                seed=3,
                remove_unused_columns=False,
                label_names=["labels"],
                predict_with_generate=True,
                **arguments,
            ),
            train_dataset=CaptionDataset(self.cache["train"]),
            eval_dataset=CaptionDataset(self.cache["validation"]),
            data_collator=self.collator,
            compute_loss_func=lambda outputs, labels, num_items_in_batch=None: caption_loss(
                outputs.logits, labels, num_items_in_batch
            ),
            compute_metrics=CaptionMetrics(
                self.cache["validation"].column("captions"), lambda rows: [str(r.tolist()) for r in rows], self.tokens
            ),
            normalizer=self.normalizer,
            generation={"generation_config": settings},
        )


@pytest.fixture(scope="module")
def parts(cache_dir: Path) -> Parts:
    return Parts(cache_dir)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


class Ragged(CaptionDataset):
    """The first image with one caption, the second with two, and so on up to five, and again."""

    def _drawn(self, index: int, labels: np.ndarray) -> np.ndarray:
        return labels[: 1 + index % 5]


# Adam takes the same step for gradients of any size, and clipping hides how large they were: neither is used where a
# factor must not go unseen.
PLAIN = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


def three_updates(parts: Parts, out: Path, size: int, steps: int = 1, **arguments: Any) -> dict[str, torch.Tensor]:
    """The weights after them; an update is of `size` images times `steps` times the ranks."""
    model = parts.model()
    arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, **PLAIN, **arguments}
    trainer = parts.trainer(model, out, **arguments)
    trainer.train_dataset = Ragged(parts.cache["train"])
    trainer.train()
    return weights(model)


def test_accumulation_changes_nothing(parts: Parts, tmp_path: Path) -> None:
    """8 images at once, or 2 four times: the same update (S3), however ragged the captions."""
    ends = [three_updates(parts, tmp_path / str(size), size, steps) for size, steps in ((8, 1), (2, 4))]
    assert difference(*ends) < 1e-3 * difference(ends[0], weights(parts.model()))


RANK = """
import sys, os
from pathlib import Path
import torch
sys.path.append(sys.argv[3])
from test_training import Parts, three_updates
end = three_updates(Parts(Path(sys.argv[1])), Path(sys.argv[2]), 2, 2, use_cpu=True, ddp_backend="gloo")
torch.save(end, Path(sys.argv[2]) / f"rank-{os.environ['RANK']}.pt")
"""


def test_ranks_change_nothing(parts: Parts, cache_dir: Path, tmp_path: Path) -> None:
    """Two processes that accumulate twice 2 images each, against 8 images at once."""
    (tmp_path / "rank.py").write_text(RANK)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "rank.py"),
         str(cache_dir), str(tmp_path), str(Path(__file__).parent)],
        env=ENVIRONMENT, check=True, timeout=120,
        capture_output=True,
    )  # fmt: skip
    one, other = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    assert difference(one, other) == 0.0
    alone = three_updates(parts, tmp_path / "alone", 8)
    assert difference(one, alone) < 1e-3 * difference(alone, weights(parts.model()))


def test_one_update_equals_a_naive_loop(parts: Parts, tmp_path: Path) -> None:
    """Plain torch, one caption at a time, transformers' own loss, SGD by hand."""
    model = parts.model()
    naive = copy.deepcopy(model)
    trainer = parts.trainer(
        model, tmp_path, max_steps=1, lr_scheduler_type="constant", optim="sgd", weight_decay=0.0, logging_steps=1
    )
    seen: list[Any] = []
    trainer.data_collator = lambda items: seen.append(items) or parts.collator(items)
    trainer.train()
    total, count = torch.zeros(()), 0
    for item in seen[0]:
        pixels = parts.normalizer(torch.from_numpy(np.array(item["pixel_values"])))[None]
        for labels in torch.from_numpy(np.array(item["labels"])).long():
            n = int((labels != -100).sum())
            total = total + naive(pixel_values=pixels, labels=labels[None]).loss * n
            count += n
    (total / count).backward()
    logged = next(row for row in trainer.state.log_history if "grad_norm" in row)
    assert abs(logged["loss"] - (total / count).item()) < 1e-5
    norm = torch.nn.utils.clip_grad_norm_(naive.parameters(), 1.0)
    assert abs(logged["grad_norm"] - norm.item()) < 1e-4
    torch.optim.SGD([p for p in naive.parameters() if p.grad is not None], lr=1e-3).step()
    assert difference(weights(model), weights(naive)) < 1e-7
    assert difference(weights(model), weights(parts.model())) > 1e-5


class FirstSix(CaptionDataset):
    def __len__(self) -> int:
        return 6

    def tokens(self) -> np.ndarray:
        return super().tokens()[:6]


def test_stock_trainer_reaches_the_same_loss(parts: Parts, cache_dir: Path, tmp_path: Path) -> None:
    """A stock Seq2SeqTrainer with default_data_collator on caption_view, all captions in one batch: equal losses."""
    view = caption_view(datasets.load_from_disk(str(cache_dir))["train"].select(range(6)))
    stock_model, model = parts.model(), parts.model()
    arguments = {"max_steps": 4, "logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant"}
    stock = Seq2SeqTrainer(
        model=stock_model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / "stock"),
            learning_rate=1e-3,
            report_to="none",
            disable_tqdm=True,
            seed=3,
            per_device_train_batch_size=len(view),
            remove_unused_columns=False,
            **arguments,
        ),
        train_dataset=view,
        data_collator=default_data_collator,
    )
    stock.train()
    ours = parts.trainer(model, tmp_path / "ours", per_device_train_batch_size=6, **arguments)
    ours.train_dataset = FirstSix(parts.cache["train"])
    ours.train()
    theirs, mine = ([row["loss"] for row in t.state.log_history if "loss" in row] for t in (stock, ours))
    assert len(theirs) == len(mine) == 4
    np.testing.assert_allclose(mine, theirs, atol=2e-5)
    assert mine[-1] < mine[0]


def test_from_encoder_decoder_crash_is_avoided(tmp_path: Path) -> None:
    """S1: an ordinary GPT-2 config.json has no `is_decoder`."""
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32,
                       patch_size=16)).save_pretrained(tmp_path / "vit")  # fmt: skip
    decoder = GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=1, n_head=2, vocab_size=100, n_positions=32))
    decoder.save_pretrained(tmp_path / "gpt2")
    settings = json.loads((tmp_path / "gpt2" / "config.json").read_text())
    for name in ("is_decoder", "add_cross_attention"):
        settings.pop(name, None)
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(settings))
    model = build_captioner(
        str(tmp_path / "vit"), str(tmp_path / "gpt2"), None, 110, SpecialTokens(100, 101, 102), seed=0
    )
    assert model.decoder.get_input_embeddings().weight.shape == (110, 48)  # grown to the tokenizer
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2")
    kept = model.decoder.get_input_embeddings().weight[:100]
    assert torch.equal(kept, saved.get_input_embeddings().weight)
    assert model.config.decoder.add_cross_attention
    assert hasattr(model, "enc_to_dec_proj")  # 32 wide to 48 wide
    logits = model(pixel_values=torch.randn(2, 3, 32, 32), decoder_input_ids=torch.tensor([[100], [100]])).logits
    assert logits.shape == (2, 1, 110)


@pytest.mark.parametrize("stop", [6, 10])
def test_resume_restores_everything_bit_for_bit(parts: Parts, tmp_path: Path, stop: int) -> None:
    """S2: stock Trainer leaves the encoder's layers as they were. Of 12 steps, 5 an epoch: stopped within one, or between.

    With dropout, and captions drawn anew each epoch; every tensor of model and optimizer is compared.
    """

    def run(out: Path, seed: int, checkpoint: Path | None) -> tuple[dict[str, torch.Tensor], Any, list[Any]]:
        model = parts.model(seed)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        trainer = parts.trainer(model, out, max_steps=12, save_strategy="steps", save_steps=stop)
        trainer.train_dataset = CaptionDataset(parts.cache["train"], captions_per_image=2, seed=3)
        seen: list[Any] = []
        trainer.data_collator = lambda items: (
            seen.append([i["labels"].tolist() for i in items]) or parts.collator(items)
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return weights(model), trainer.optimizer.state_dict()["state"], seen

    straight, optimizer, batches = run(tmp_path / "a", 0, None)
    resumed, optimizer_resumed, batches_resumed = run(tmp_path / "b", 5, tmp_path / "a" / f"checkpoint-{stop}")
    assert difference(straight, resumed) == 0.0
    assert optimizer.keys() == optimizer_resumed.keys()
    for key, state in optimizer.items():
        assert all(torch.equal(value, optimizer_resumed[key][name]) for name, value in state.items())
    assert batches_resumed[: 12 - stop] == batches[stop:12]
    drawn = [sorted(map(str, chain.from_iterable(batches[i : i + 5]))) for i in (0, 5)]
    assert drawn[0] != drawn[1], "other captions in another epoch"


def test_best_checkpoint_is_really_loaded(parts: Parts, tmp_path: Path) -> None:
    """S2 again: `load_best_model_at_end` after a later, worse checkpoint."""
    model = parts.model()
    trainer = parts.trainer(
        model, tmp_path, max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_score", greater_is_better=False,
    )  # fmt: skip
    score = iter([1.0, 2.0])
    trainer.compute_metrics = lambda prediction: {"score": next(score)}
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    saved = type(model).from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert difference(weights(model), saved) == 0.0
    last = type(model).from_pretrained(tmp_path / "checkpoint-4").state_dict()
    assert difference(weights(model), last) > 0


def test_early_stopping_is_the_same_after_a_resume(parts: Parts, tmp_path: Path) -> None:
    """Stock Trainer starts counting anew. Scores get worse from the second evaluation on; the third one is too much."""

    def run(out: Path, checkpoint: str | None = None) -> CaptionTrainer:
        trainer = parts.trainer(
            parts.model(), out, max_steps=6, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1,
            load_best_model_at_end=True, metric_for_best_model="eval_score", greater_is_better=False,
            restore_callback_states_from_checkpoint=True,
        )  # fmt: skip
        trainer.compute_metrics = lambda prediction: {"score": trainer.state.global_step}
        trainer.add_callback(Patience(2))
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    straight = run(tmp_path / "a")
    assert straight.state.global_step == 3
    # The end is not saved, so that a run that is killed right after it comes to it again.
    assert not (tmp_path / "a" / "checkpoint-3").exists()
    resumed = run(tmp_path / "b", str(tmp_path / "a" / "checkpoint-2"))
    assert resumed.state.global_step == 3
    assert difference(weights(straight.model), weights(resumed.model)) == 0.0


MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB."


def short_of_memory(model: Any, fits: int, spare: int = 0) -> list[int]:
    """Makes a model raise for batches of more images than `fits`, once `spare` forward passes are over; the sizes tried."""
    forward, tried = model.forward, []

    def limited(*args: Any, **inputs: Any) -> Any:
        tried.append(len(inputs["decoder_input_ids"]))
        if tried[-1] > fits and len(tried) > spare:
            raise torch.OutOfMemoryError(MEMORY)
        return forward(*args, **inputs)

    model.forward = limited
    return tried


@pytest.mark.parametrize("spare", [0, 1])
def test_out_of_memory_halves_the_images_and_keeps_the_update(
    parts: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str], spare: int
) -> None:
    """In the first accumulated batch, or the second, when the first has left its gradients already."""
    ends, tried = [], [0]
    for limit in (False, True):
        model = parts.model()
        if limit:
            tried = short_of_memory(model, 3, spare)
        trainer = parts.trainer(model, tmp_path, gradient_accumulation_steps=2, **PLAIN)
        trainer.train()
        ends.append(weights(model))
    assert tried[:4] == ([8, 4, 2, 2] if spare == 0 else [8, 8, 4, 2])
    assert tried.count(8) == spare + 1, "what does not fit is not tried at each step"
    assert difference(*ends) < 1e-3 * difference(ends[0], weights(parts.model()))
    assert "out of memory in training: going on with 2 images at a time" in capsys.readouterr().err


def test_out_of_memory_half_way_back(parts: Parts, tmp_path: Path) -> None:
    """The decoder has its gradients already when the encoder's don't fit: they are not counted twice."""
    ends = []
    for limit in (False, True):
        model = parts.model()
        sizes: list[int] = []

        def fail(module: Any, gradients: Any, limit: bool = limit, sizes: list[int] = sizes) -> None:
            sizes.append(len(gradients[0]))
            if limit and sizes[-1] > 4:
                raise torch.OutOfMemoryError(MEMORY)

        model.encoder.layernorm.register_full_backward_pre_hook(fail)
        parts.trainer(model, tmp_path, gradient_accumulation_steps=2, **PLAIN).train()
        assert sizes[:3] == ([8, 4, 4] if limit else [8, 8, 8])
        ends.append(weights(model))
    assert difference(*ends) < 1e-3 * difference(ends[0], weights(parts.model()))


def predict(trainer: CaptionTrainer, parts: Parts) -> Any:
    trainer.compute_metrics = None
    return trainer.predict(CaptionDataset(parts.cache["train"]))


def test_predictions_are_those_of_generate(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = parts.model()
    ours = predict(parts.trainer(model, tmp_path), parts)
    monkeypatch.setattr(toolkit.training.trainer, "is_supported", lambda *_: False)
    stock = predict(parts.trainer(model, tmp_path), parts)
    pad = model.generation_config.pad_token_id
    rows = [np.where(found.predictions == -100, pad, found.predictions) for found in (ours, stock)]
    np.testing.assert_array_equal(*rows)
    np.testing.assert_array_equal(ours.label_ids, stock.label_ids)


def test_out_of_memory_in_evaluation_and_for_good(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = parts.model()
    plain = predict(parts.trainer(model, tmp_path), parts)
    tried = short_of_memory(model, 4)
    real = toolkit.training.trainer.decode

    def short(model: Any, settings: Any, features: torch.Tensor) -> Any:
        tried.append(2 * len(features))  # beams
        if tried[-1] > 4:
            raise torch.OutOfMemoryError(MEMORY)
        return real(model, settings, features=features)

    monkeypatch.setattr(toolkit.training.trainer, "decode", short)
    trainer = parts.trainer(model, tmp_path)
    halved = predict(trainer, parts)
    assert tried[:4] == [8, 4, 8, 2], "8 images, 4, 4 with 2 beams each, 2"
    assert trainer.images == {"evaluation": 2}
    np.testing.assert_array_equal(halved.predictions, plain.predictions)
    np.testing.assert_allclose(halved.label_ids, plain.label_ids, rtol=1e-5)
    short_of_memory(model, 0)
    with pytest.raises(RunError, match="with a single image"):
        trainer.train()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_fused_activations_are_the_same(parts: Parts) -> None:
    one = parts.model().double().eval()
    other = copy.deepcopy(one)
    fuse_activations(other)
    assert not [m for m in other.modules() if isinstance(m, NewGELUActivation)]
    assert [m for m in one.modules() if isinstance(m, NewGELUActivation)]
    assert other.state_dict().keys() == one.state_dict().keys()
    pixels, labels = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.randint(0, 300, (2, 9))
    for model in (one, other):
        model(pixel_values=pixels, labels=labels).loss.backward()
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12, msg=name)


def test_where_the_time_goes(parts: Parts, tmp_path: Path) -> None:
    trainer = parts.trainer(parts.model(), tmp_path, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=2,
                            save_strategy="steps", save_steps=4)  # fmt: skip
    trainer.train()
    rows = [row for row in trainer.state.log_history if "seconds" in row]
    assert [row["step"] for row in rows] == [2, 4, 4], "each log, and the end"
    assert all(row["seconds"] >= row["data_s"] + row["evaluation_s"] + row["saving_s"] > 0 for row in rows)
    assert [row["evaluation_s"] > 0 for row in rows] == [False, True, True], "what came after a log is in the next"
    assert [row["saving_s"] > 0 for row in rows] == [False, False, True]
    tokens = images = 0
    assert "images_per_s" not in rows[2]
    for row in rows[:2]:
        seconds = row["seconds"] - row["evaluation_s"] - row["saving_s"]
        images += row["images_per_s"] * seconds
        tokens += row["tokens_per_s"] * seconds
    assert round(images) == 4 * 8
    assert abs(tokens / images - trainer.train_dataset.tokens().mean()) < 20


def test_captions_that_are_wrong_at_a_glance_are_said() -> None:
    fine = {"ended": 1.0, "loops": 0.0}
    assert caption_warnings(["a dog", "a cat", "a dog"], {"ended": 0.9, "loops": 0.05})[0].startswith("2 of 3 ")
    assert caption_warnings(["a dog", "a cat", "a dog", "two cats"], fine) == []
    assert caption_warnings(["a dog"], fine) == []
    ramble, loop = caption_warnings(["a", "b", "c"], {"ended": 0.25, "loops": 0.5})
    assert ramble.startswith("75% of the validation captions run on")
    assert loop.startswith("50% of the validation captions repeat")


@pytest.mark.parametrize("writer", ["_save_rng_state", "_save", "_save_optimizer_and_scheduler"])
def test_a_checkpoint_that_cannot_be_written(
    parts: Parts, tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may not grow beyond 1 KB from the second checkpoint on, as on a full disk."""
    trainer = parts.trainer(parts.model(), tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1)
    write, calls, limits = getattr(CaptionTrainer, writer), [], resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
        try:
            write(trainer, *args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(trainer, writer, full)
    with pytest.raises(RunError, match=r"a checkpoint can't be written \(.+\); make room"):
        trainer.train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_collator_gives_decoder_inputs_of_the_labels_shape(parts: Parts) -> None:
    """S4: Trainer pops `labels` for a compute_loss_func; generate drops inputs only where shapes agree."""
    data = CaptionDataset(parts.cache["train"])
    batch = parts.collator([data[0], data[1]])
    assert batch["labels"].shape == batch["decoder_input_ids"].shape
    assert batch["pixel_values"].dtype == torch.uint8
    assert (batch["decoder_input_ids"] != -100).all()


def test_evaluation_loss_is_weighted_by_tokens(parts: Parts, tmp_path: Path) -> None:
    model = parts.model().eval()
    validation = CaptionDataset(parts.cache["validation"])
    results = [
        parts.trainer(model, tmp_path, per_device_eval_batch_size=size).evaluate()["eval_loss"] for size in (1, 2, 64)
    ]
    total, count = 0.0, 0
    with torch.no_grad():
        for item in validation:
            pixels = parts.normalizer(torch.from_numpy(np.array(item["pixel_values"])))[None]
            for labels in torch.from_numpy(np.array(item["labels"])).long():
                n = int((labels != -100).sum())
                total += model(pixel_values=pixels, labels=labels[None]).loss.item() * n
                count += n
    np.testing.assert_allclose(results, total / count, rtol=1e-5)


@pytest.fixture
def first_batch(parts: Parts) -> dict[str, torch.Tensor]:
    data = CaptionDataset(parts.cache["train"])
    return parts.collator([data[0], data[1]])


def test_self_check_passes(parts: Parts, first_batch: dict[str, torch.Tensor]) -> None:
    loss = check_training(parts.model(), first_batch, parts.normalizer, parts.tokens, fresh=True)
    assert abs(loss - np.log(parts.vocab_size)) < 0.15 * np.log(parts.vocab_size)


def break_eos(batch: dict[str, torch.Tensor], model: Any) -> None:
    batch["labels"][0, (batch["labels"][0] != -100).sum() - 1] = -100


def break_an_eos_between(batch: dict[str, torch.Tensor], model: Any) -> None:
    second = batch["decoder_position_ids"][0].eq(0).nonzero()[1]
    batch["labels"][0, second - 1] += 1


def break_mask(batch: dict[str, torch.Tensor], model: Any) -> None:
    batch["decoder_attention_mask"][:] = torch.ones_like(batch["decoder_attention_mask"]).tril()


def break_positions(batch: dict[str, torch.Tensor], model: Any) -> None:
    """As a decoder that counts positions its own way."""
    forward = model.decoder.forward
    model.decoder.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)


def break_shift(batch: dict[str, torch.Tensor], model: Any) -> None:
    batch["decoder_input_ids"] = batch["decoder_input_ids"].roll(1, 1)


def break_weights(batch: dict[str, torch.Tensor], model: Any) -> None:
    with torch.no_grad():
        model.decoder.transformer.ln_f.weight.fill_(float("nan"))


def break_freshness(batch: dict[str, torch.Tensor], model: Any) -> None:
    with torch.no_grad():
        model.decoder.transformer.ln_f.weight.fill_(100.0)


def break_sight(batch: dict[str, torch.Tensor], model: Any) -> None:
    with torch.no_grad():
        for block in model.decoder.transformer.h:
            block.crossattention.c_proj.weight.zero_()


def break_double_shift(batch: dict[str, torch.Tensor], model: Any) -> None:
    """As transformers 4.50 to 4.57: the model shifts labels that were shifted already."""
    forward = model.forward

    def shifted_twice(*args: Any, labels: Any = None, **kwargs: Any) -> Any:
        return forward(*args, labels=None if labels is None else labels.roll(-1, 1), **kwargs)

    model.forward = shifted_twice


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_eos, "end with one EOS"),
        (break_an_eos_between, "end with one EOS"),
        (break_mask, "several captions"),
        (break_positions, "several captions"),
        (break_shift, "shifted right once"),
        (break_weights, "is nan"),
        (break_freshness, "its weights are not random"),
        (break_sight, "same output for any image"),
        (break_double_shift, "shifts labels"),
    ],
)
def test_self_check_stops_with_a_sentence(
    parts: Parts, first_batch: dict[str, torch.Tensor], spoil: Any, message: str
) -> None:
    model = parts.model()
    spoil(first_batch, model)
    with pytest.raises(RunError, match=message):
        check_training(model, first_batch, parts.normalizer, parts.tokens, fresh=True)
