"""Captions without spaces between words are told wherever words are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from toolkit.evaluation.spacing import Spacing

CHINESE = ["一只棕色的狗在草地上奔跑。", "两个孩子在海边玩沙子", "一只猫坐在窗台上"]
JAPANESE = ["茶色い犬が草原を走っている。", "二人の子供が海辺で遊んでいる", "窓辺に座っている猫"]
THAI = ["สุนัขสีน้ำตาลกำลังวิ่งบนสนามหญ้า", "เด็กสองคนเล่นทรายที่ชายหาด"]


@pytest.mark.parametrize(("language", "captions"), [("Chinese", CHINESE), ("Japanese", JAPANESE), ("Thai", THAI)])
def test_languages_without_spaces(language: str, captions: list[str]) -> None:
    note = Spacing(captions).note()
    assert note is not None
    assert note.startswith(f"captions are in {language}, without spaces between words")
    assert Spacing([*captions, *["A brown dog runs ."] * len(captions)]).note() == note  # half of them
    assert Spacing([*captions, *["A brown dog runs on the grass ."] * 40 * len(captions)]).note() is None


@pytest.mark.parametrize(
    "captions",
    [
        [],
        ["A brown dog runs .", "Über den Wolken , café"],
        ["갈색 개가 잔디밭에서 달리고 있다", "두 아이가 해변에서 놀고 있다"],  # Korean has spaces
        ["一只 棕色 的 狗 在 草地 上 奔跑 。", "茶色い 犬 が 草原 を 走って いる"],  # cut by somebody
        ["สุนัข สีน้ำตาล กำลัง วิ่ง บน สนามหญ้า"],
        ["कुत्ता घास पर दौड़ रहा है", "Собака бежит по траве", "الكلب يجري على العشب"],
    ],
)
def test_languages_with_spaces(captions: list[str]) -> None:
    assert Spacing(captions).note() is None


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 images with Chinese captions, and a cache of them."""
    from toolkit.commands.preprocess import preprocess
    from toolkit.options import PreprocessOptions

    root = tmp_path_factory.mktemp("chinese")
    (root / "Images").mkdir()
    lines = ["image,caption"]
    for n in range(12):
        Image.new("RGB", (32, 32), (n * 20, 0, 0)).save(root / f"Images/{n}.png")
        lines += [f"{n}.png,{CHINESE[n % 3]}", f"{n}.png,{CHINESE[(n + 1) % 3]}"]
    (root / "captions.txt").write_text("\n".join(lines), encoding="utf-8")
    preprocess(
        PreprocessOptions(
            root / "captions.txt", root / "Images", root / "cache", preset="tiny", num_workers=1, val_fraction=0.4
        )
    )
    return root


def test_inspect(chinese: Path) -> None:
    from toolkit.commands.inspect import inspect
    from toolkit.options import InspectOptions

    for path in (chinese / "captions.txt", chinese / "cache"):
        found = inspect(InspectOptions(path))
        assert [note for note in found.values["notes"] if note.startswith("captions are in Chinese")]
        assert "\n  note              captions are in Chinese" in found.text


def test_evaluate(chinese: Path, tmp_path: Path) -> None:
    import json

    from toolkit.commands.evaluate import evaluate
    from toolkit.options import EvaluateOptions

    rows = [{"image": f"{n}.png", "caption": CHINESE[n % 3]} for n in range(12)]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = EvaluateOptions(
        hypotheses=tmp_path / "h.jsonl", references=chinese / "captions.txt", split="all", page=tmp_path / "page.html"
    )
    found = evaluate(options)
    assert "\nnote: captions are in Chinese" in found.text
    assert [note for note in found.values["notes"] if note.startswith("captions are in Chinese")]
    assert "captions are in Chinese" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_finetune(chinese: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from toolkit.commands.finetune import finetune
    from toolkit.options import FinetuneOptions

    found = finetune(FinetuneOptions(chinese / "cache", output_dir=tmp_path / "model", max_steps=1))
    assert "note: captions are in Chinese" in capsys.readouterr().err
    assert "\n  note: captions are in Chinese" in found.text
    assert [note for note in found.values["notes"] if note.startswith("captions are in Chinese")]
    assert "captions are in Chinese" in (tmp_path / "model/README.md").read_text(encoding="utf-8")
