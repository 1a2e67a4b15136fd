"""Every command line of README and docs: its options go together, and it runs as it is printed.

The first is tested by `--print-options`, which checks options as the command itself does. For the second (`make test-slow`)
each page has a folder with what its lines speak of: drawn scenes, tiny models, captions. Few updates and the tiny preset are
set in the environment, not in the lines.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from chat_models import make_chat
from clip_models import save_clip
from datasets import Image as Images
from datasets import load_from_disk
from encoders import tiny_encoder
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from toolkit import cli
from toolkit.commands.batch_caption import batch_caption
from toolkit.commands.preprocess import preprocess
from toolkit.data.reviews import Action, Review, review_of
from toolkit.options import BatchCaptionOptions, PreprocessOptions

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(rf"\btoolkit (?={'|'.join(cli.COMMANDS)})")
# What can't be run here, and what runs it instead.
NOT_RUN = {
    r"s3://|--source hub": "tests/runtime/test_stores.py and test_caption_sources.py, on stores and hubs of their own",
    r"--endpoint": "tests/commands/test_caption_server.py, on a server of its own",
    r"toolkit push|--push-to-hub": "tests/commands/test_push.py, on a hub of its own",
    r"--ray-address|srun|accelerate launch|--nproc-per-node [48]": "needs a cluster or GPUs",
    r"toolkit review(?!.*--export)": "serves until it is stopped: tests/reviewing",
    r"toolkit demo|curl ": "make test runs the demo; a named pipe is in tests/commands/test_caption.py",
}


def lines_of(page: Path) -> list[str]:
    """The command lines of its indented and fenced blocks, without comments; an optional part is given."""
    found, fenced = [], False
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif (fenced or line.startswith("    ")) and COMMAND.search(line):
            line = re.sub(r"\s+#.*| \.\.\.$", "", re.sub(r"\[([^]]*)\]", r"\1", line))
            found.append(re.sub(r"\s+", " ", line).strip())
    return found


LINES = [(page, line) for page in PAGES for line in lines_of(page)]


def test_there_are_lines() -> None:
    assert len(LINES) > 45
    assert LINES[0] == (ROOT / "README.md", "toolkit preprocess")
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, line) for _, line in LINES)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_go_together(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_API_KEY", "a key")
    for line in lines_of(page):
        words = shlex.split(COMMAND.split(line, 1)[1].split(" | ")[0])
        words = [
            word.replace("S", "1") if before == "--seed" else word
            for before, word in zip(["", *words], words, strict=False)
        ]
        monkeypatch.setattr(sys, "argv", ["toolkit", *words, "--print-options"])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 0, f"{line}\n{capsys.readouterr().err}"


@pytest.fixture
def world(sample_dir: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the docs name."""
    world = tmp_path / "here"
    shutil.copytree(sample_dir, world)
    monkeypatch.chdir(world)
    photos = sorted((world / "Images").iterdir())
    for folder in ("DIR", "photos", "VALIDATION"):
        (world / folder).mkdir()
        for photo in photos:
            shutil.copy(photo, world / folder)
    shutil.copy(photos[0], "IMAGE...")
    shutil.copy(photos[0], "a.jpg")
    Image.open(photos[1]).save("b.png")
    (world / "shards").mkdir()
    for split in ("train", "test"):
        with tarfile.open(f"shards/{split}-00000.tar", "w") as tar:
            tar.add("a.jpg")
    for name in ("model", "PATH", "nlpconnect/vit-gpt2-image-captioning"):
        shutil.copytree(model_dir, name)
    tiny_encoder("vit").save_pretrained("DIR-or-hub-name")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained("DIR-or-hub-name")
    make_chat("smolvlm", world / "MODEL")
    save_clip(world / "openai/clip-vit-base-patch32")
    preprocess(PreprocessOptions(preset="tiny"))
    cache = world / "cache/dataset"
    for name in ("mine", "coco"):
        shutil.copytree(cache, cache.with_name(name))
    for part in cache.iterdir():  # `cache` is one too
        (shutil.copytree if part.is_dir() else shutil.copy)(part, world / "cache" / part.name)
    saved = load_from_disk(f"{cache}").remove_columns(["pixel_values", "labels", "captions"])
    saved = saved.map(lambda row: {"image": (world / "Images" / row["path"]).read_bytes()}).cast_column(
        "image", Images()
    )
    saved.save_to_disk("saved")
    saved["train"].to_parquet("data.parquet")
    batch_caption(BatchCaptionOptions(paths=("Images",)))
    shutil.copy("captions.jsonl", "fp32.jsonl")
    shutil.copy("captions.jsonl", "photos")
    edit = Action(photos[0].name, "edit", "a red ring on the left", None)
    for reviewed in (cache, world / "captions.jsonl"):
        Review(review_of(reviewed)).append([edit])
    return world


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if lines_of(page)], ids=lambda page: page.name)
def test_commands_run(page: Path, world: Path, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    limits = {"TOOLKIT_FINETUNE_MAX_STEPS": "2", "HOME": f"{tmp_path}", "PATH": path}
    for line in lines_of(page):
        if any(re.search(pattern, line) for pattern in NOT_RUN):
            continue
        preset = {} if "--encoder" in line else {"TOOLKIT_PREPROCESS_PRESET": "tiny"}
        line = line.replace("--seed S", "--seed 1")
        if "toolkit finetune" in line or line == "toolkit sample DIR":  # each as the first run into its folder
            out = re.findall(r"--output-dir (\S+)|sample (DIR)", line) or ["model"]
            shutil.rmtree(world / "".join(out[0]), ignore_errors=True)
        env = {**os.environ, **limits, **preset}
        done = subprocess.run(["bash", "-c", line], cwd=world, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
