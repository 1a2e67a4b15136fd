"""The command: what it writes, that others can use it, resuming, and refusing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from waiting import wait_for

from toolkit.commands.finetune import finetune
from toolkit.errors import InputError, ModelError, OutputError
from toolkit.options import FinetuneOptions, GenerationOptions
from toolkit.training.checkpoints import last_checkpoint

QUICK = {"epochs": 2, "batch_size": 8}


def test_the_model_folder(model_dir: Path) -> None:
    names = {p.name for p in model_dir.iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "preprocessor_config.json", "README.md", "training.jsonl", "report.html", "checkpoints", "options.json",
    }  # fmt: skip
    assert not any(name.endswith(".tmp") for name in names)
    generation = json.loads((model_dir / "generation_config.json").read_text())
    assert generation["num_beams"] == 4
    assert generation["max_length"] == 50
    assert generation["no_repeat_ngram_size"] == 3
    assert generation["length_penalty"] == 2.0
    assert generation["early_stopping"] is False
    ids = {generation[f"{name}_token_id"] for name in ("eos", "pad", "bos", "decoder_start")}
    assert ids == {0}
    card = ModelCard.load(model_dir / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-to-text")
    assert card.data.base_model is None
    assert "VisionEncoderDecoderModel.from_pretrained" in card.text
    rows = [json.loads(line) for line in (model_dir / "training.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "eval_loss" in row]
    assert [row["epoch"] for row in evaluations] == [1, 2]
    assert set(evaluations[0]) >= {
        "eval_cider",
        "eval_bleu_4",
        "eval_rouge_l",
        "eval_ended",
        "eval_loops",
        "eval_distinct",
        "warnings",
        "captions",
    }
    report = (model_dir / "report.html").read_text()
    assert "polyline" in report
    for part in ("compute", "waiting for data", "evaluation", "checkpoints"):
        assert f"</i>{part} <b>" in report
    assert "http" not in report.replace("http-equiv", "")
    finished = json.loads((model_dir / "finetune.json").read_text())
    best = min(evaluations, key=lambda row: row["eval_loss"])
    assert finished["validation"]["cider"] == best["eval_cider"]
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {name: round(100 * finished["validation"][name], 2) for name in ("cider", "bleu_4", "rouge_l")}
    best_weights = load_file(model_dir / "checkpoints" / f"checkpoint-{finished['best_step']}" / "model.safetensors")
    saved = load_file(model_dir / "model.safetensors")
    assert all(torch.equal(saved[name], best_weights[name]) for name in saved)


WITHOUT_TOOLKIT = """
import json, sys
sys.modules["toolkit"] = None  # as if it were not installed
from pathlib import Path
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel
folder, images = sys.argv[1], sorted(Path(sys.argv[2]).iterdir())[:6]
model = VisionEncoderDecoderModel.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
pixels = processor([Image.open(p).convert("RGB") for p in images], return_tensors="pt").pixel_values
texts = tokenizer.batch_decode(model.generate(pixels), skip_special_tokens=True)
print(json.dumps({p.name: t.strip() for p, t in zip(images, texts)}))
"""


def test_it_loads_without_toolkit_and_gives_the_same_captions(
    model_dir: Path, sample_dir: Path, tmp_path: Path
) -> None:
    from toolkit.commands.batch_caption import batch_caption
    from toolkit.options import BatchCaptionOptions

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TOOLKIT, str(model_dir), str(sample_dir / "Images")],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    theirs = json.loads(done.stdout.splitlines()[-1])
    paths = tuple(str(sample_dir / "Images" / name) for name in theirs)
    batch_caption(BatchCaptionOptions(paths=paths, model=str(model_dir), output=tmp_path / "c.jsonl"))
    ours = {row["image"]: row["caption"] for row in map(json.loads, (tmp_path / "c.jsonl").read_text().splitlines())}
    assert ours == theirs


def test_evaluate_gives_the_figures_of_training(model_dir: Path, cache_dir: Path) -> None:
    from toolkit.commands.evaluate import evaluate
    from toolkit.options import EvaluateOptions

    options = EvaluateOptions(model=str(model_dir), references=cache_dir, split="validation", resamples=10)
    metrics = evaluate(options).values["metrics"]
    during = json.loads((model_dir / "finetune.json").read_text())["validation"]
    for name in ("cider", "bleu_4", "rouge_l"):
        assert metrics[name]["score"] == pytest.approx(during[name], abs=1e-9)


def test_same_seed_same_weights(model_dir: Path, cache_dir: Path, tmp_path: Path) -> None:
    finetune(FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "again", **QUICK))
    assert (tmp_path / "again/model.safetensors").read_bytes() == (model_dir / "model.safetensors").read_bytes()
    finetune(FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "other", seed=1, **QUICK))
    assert (tmp_path / "other/model.safetensors").read_bytes() != (model_dir / "model.safetensors").read_bytes()


def test_a_finished_run_is_left_alone(model_dir: Path, cache_dir: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in model_dir.rglob("*")}
    summary = finetune(FinetuneOptions(cache=cache_dir, output_dir=model_dir, **QUICK))
    assert "finished already" in summary.text
    assert {p: p.stat().st_mtime_ns for p in model_dir.rglob("*")} == before
    with pytest.raises(OutputError, match=r"other settings \(--lr 0.00[0-9]+, now 0.5\)"):
        finetune(FinetuneOptions(cache=cache_dir, output_dir=model_dir, lr=0.5, **QUICK))
    assert {p: p.stat().st_mtime_ns for p in model_dir.rglob("*")} == before


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        signal.SIGTERM,
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(
    how: int, model_dir: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after the first checkpoint; every tensor of the finished model is compared."""
    out, partial = tmp_path / "model", tmp_path / "model.partial"
    command = [sys.executable, "-m", "toolkit", "finetune", str(cache_dir), "--output-dir", str(out),
               "--epochs", "2", "--batch-size", "8"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: last_checkpoint(partial / "checkpoints"), process)
    process.send_signal(how)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode != 0, "it was over before it could be stopped"
    if how != signal.SIGKILL:
        assert "run the same command again" in errors.splitlines()[-1]
        assert "Traceback" not in errors
    assert not (out / "finetune.json").exists()
    finetune(FinetuneOptions(cache=cache_dir, output_dir=out, **QUICK))
    assert "resuming from" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == (model_dir / "model.safetensors").read_bytes()
    logs = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in logs if "eval_loss" in row] == [1, 2]


CHECKPOINT = {
    "model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
    "training_args.bin", "whole.json",
}  # fmt: skip


def test_a_half_written_or_half_deleted_checkpoint_is_skipped(model_dir: Path, tmp_path: Path) -> None:
    """Each file of a real one missing, or cut to half."""
    whole = last_checkpoint(model_dir / "checkpoints")
    assert whole is not None
    assert {path.name for path in whole.iterdir()} >= CHECKPOINT
    shutil.copytree(model_dir / "checkpoints", tmp_path, dirs_exist_ok=True)
    for step in (100, 200):
        shutil.copytree(whole, tmp_path / f"checkpoint-{step}")
    for file in sorted((tmp_path / "checkpoint-200").iterdir()):
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-200"
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100", f"{file.name} is cut short"
        file.unlink()
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100", f"{file.name} is missing"
        file.write_bytes(content)


KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
from toolkit.commands.finetune import finetune
from toolkit.options import FinetuneOptions
from toolkit.training.trainer import CaptionTrainer
before, calls = CaptionTrainer._save_rng_state, []
def killed(self, directory):
    calls.append(directory)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    before(self, directory)
CaptionTrainer._save_rng_state = killed
finetune(FinetuneOptions(cache=Path(sys.argv[1]), output_dir=Path(sys.argv[2]), epochs=2, batch_size=8))
"""


def test_killed_while_a_checkpoint_is_written(
    model_dir: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, partial = tmp_path / "model", tmp_path / "model.partial"
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(cache_dir), str(out)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    half = max((partial / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    assert (half / "optimizer.pt").exists()
    first = last_checkpoint(partial / "checkpoints")
    assert first is not None
    assert first != half
    other = FinetuneOptions(cache=cache_dir, output_dir=out, epochs=3, batch_size=8, seed=7)
    with pytest.raises(OutputError, match=r"other settings \(--epochs 2, now 3; --seed 42, now 7\)"):
        finetune(other)
    finetune(FinetuneOptions(cache=cache_dir, output_dir=out, **QUICK))
    assert f"resuming from {first}" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == (model_dir / "model.safetensors").read_bytes()


STOPPED_WHILE_SAVING = """
import os, signal, sys, time
from toolkit import cli
from toolkit.runtime import ending
from toolkit.training.trainer import CaptionTrainer
before, calls, ending.SAME = CaptionTrainer._save_rng_state, [], 0.0
def stopped(self, directory):
    calls.append(directory)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep({seconds})
    before(self, directory)
CaptionTrainer._save_rng_state = stopped
sys.argv = ["toolkit", "finetune", sys.argv[1], "--output-dir", sys.argv[2], "--epochs", "3", "--batch-size", "8"]
cli.main()
"""


@pytest.mark.parametrize("second", [pytest.param(False, marks=pytest.mark.slow), True])
def test_stopped_while_a_checkpoint_is_written(second: bool, cache_dir: Path, tmp_path: Path) -> None:
    """It is finished first; a second signal ends the command at once, and the checkpoint before it serves."""
    partial = tmp_path / "model.partial"
    script = STOPPED_WHILE_SAVING.format(seconds=1000 if second else 0.1)
    command = [sys.executable, "-c", script, str(cache_dir), str(tmp_path / "model")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if second:
        wait_for((partial / "checkpoints" / "checkpoint-10" / "optimizer.pt").exists, process)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert ("Stopped at once" if second else "stopped") in errors.splitlines()[-1]
    assert "run the same command again to go on" in errors.splitlines()[-1]
    last = last_checkpoint(partial / "checkpoints")
    assert last is not None
    assert last.name == ("checkpoint-5" if second else "checkpoint-10")
    finetune(FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "model", epochs=3, batch_size=8))


def test_captions_drawn_an_epoch_are_seeded(cache_dir: Path) -> None:
    from toolkit.cache.schema import open_cache
    from toolkit.training.collator import CaptionDataset

    reader = open_cache(cache_dir)["train"]
    one, other = (CaptionDataset(reader, captions_per_image=2, seed=1) for _ in range(2))
    assert [one[3]["labels"].tolist()] == [other[3]["labels"].tolist()]
    assert len(one[3]["labels"]) == 2
    first = [one[i]["labels"].tolist() for i in range(10)]
    one.set_epoch(1)
    assert [one[i]["labels"].tolist() for i in range(10)] != first


def test_report_to(cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "model", max_steps=2, report_to="tensorboard")
    monkeypatch.setattr("toolkit.training.reporters.get_available_reporting_integrations", lambda: ["wandb"])
    for given, sentence in (
        ("tensorboard", "--report-to tensorboard: tensorboard is not installed; pip install tensorboard, or leave it out."),
        ("wandb, tensorboard", "--report-to tensorboard: tensorboard is not installed; pip install tensorboard, or leave it out."),
        ("wandbb", "--report-to wandbb: transformers has no such reporter; did you mean wandb?"),
        ("my own", "--report-to my own: transformers has no such reporter; choose from azure_ml, "),
    ):  # fmt: skip
        with pytest.raises(InputError) as error:
            finetune(replace(options, report_to=given))
        assert str(error.value).startswith(sentence)
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finetune(options)
    (events,) = (tmp_path / "model").rglob("events.out.tfevents.*")
    log = EventAccumulator(str(events)).Reload()
    rows = [json.loads(line) for line in (tmp_path / "model" / "training.jsonl").read_text().splitlines()]
    written = next(row["eval_cider"] for row in rows if "eval_cider" in row)
    assert [round(event.value, 5) for event in log.Scalars("eval/cider")] == [round(written, 5)]


def test_mistakes(cache_dir: Path, tmp_path: Path) -> None:
    options = FinetuneOptions(cache=cache_dir, output_dir=tmp_path / "model", **QUICK)
    with pytest.raises(InputError, match="no such folder"):
        finetune(replace(options, cache=tmp_path / "none"))
    with pytest.raises(InputError, match="not a cache"):
        finetune(replace(options, cache=tmp_path))
    shutil.copytree(cache_dir, tmp_path / "newer")
    manifest = json.loads((tmp_path / "newer" / "manifest.json").read_text())
    (tmp_path / "newer" / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99"):
        finetune(replace(options, cache=tmp_path / "newer"))
    with pytest.raises(ModelError, match="has 64 positions"):
        finetune(replace(options, generation=GenerationOptions(max_length=500)))
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file; name another folder"):
        finetune(replace(options, output_dir=tmp_path / "file"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    with pytest.raises(OutputError, match="holds files that no run wrote"):
        finetune(replace(options, output_dir=tmp_path / "mine"))
    assert os.listdir(tmp_path / "mine") == ["notes"]


def test_an_encoder_that_does_not_fit(cache_dir: Path, tmp_path: Path) -> None:
    """The cache's images are 64 x 64 and its labels up to 50 long."""
    from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel

    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=96,
                       patch_size=16)).save_pretrained(tmp_path / "vit")  # fmt: skip
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=384)).save_pretrained(tmp_path / "gpt2")
    shutil.copytree(cache_dir, tmp_path / "cache")
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    made = {**manifest["options"], "preset": None, "encoder": str(tmp_path / "vit"), "decoder": str(tmp_path / "gpt2")}
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps({**manifest, "options": made}))
    with pytest.raises(ModelError, match="encoder wants 96x96"):
        finetune(FinetuneOptions(cache=tmp_path / "cache", output_dir=tmp_path / "model", **QUICK))
    assert not (tmp_path / "model").exists()
