"""batch-caption --clip-score and --rerank clip: a column in every format, and which caption comes first."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from clip_models import Plain, save_clip

from toolkit.commands.batch_caption import batch_caption
from toolkit.errors import InputError
from toolkit.models.clip import Clip
from toolkit.options import BatchCaptionOptions
from toolkit.options.fields import from_flat
from toolkit.outputs.tables import read_captions
from toolkit.records import CaptionResult


@pytest.fixture(scope="module")
def clip_dir(made_once: Callable) -> Path:
    return made_once("clip/model", save_clip)


@pytest.fixture
def run(pictures: Callable[[int], Path], model_dir: Path, clip_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """Three captions each of three images and of a file that is none."""
    folder = pictures(3)

    def run(output: str = "out.jsonl", **more: Any) -> Any:
        given = {"num_beams": 3, "num_captions": 3, "max_length": 12, "num_workers": 1, "clip_score": str(clip_dir)}
        values = {"paths": (str(folder),), "model": str(model_dir), "output": tmp_path / output, **given, **more}
        return batch_caption(from_flat(BatchCaptionOptions, values))

    return run


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["image"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def test_rerank(run: Callable[..., Any], clip_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, pictures = Plain(clip_dir), tmp_path / "pictures"
    summary = run(prefix="photo: ")
    given = rows_of(tmp_path / "out.jsonl")
    assert list(given["0.jpg"])[-3:] == ["captions", "clip_score", "clip_scores"]
    assert (given["bad.jpg"]["clip_score"], given["bad.jpg"]["error"]) == (None, "not an image")
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        said = [caption.removeprefix("photo: ") for caption in given[name]["captions"]]
        expected = [plain.clip_score(pictures / name, caption) for caption in said]
        assert given[name]["clip_scores"] == pytest.approx(expected, abs=1e-4)
        assert given[name]["clip_score"] == given[name]["clip_scores"][0]
    means = [row["clip_score"] for row in given.values() if row["error"] is None]
    assert summary.values["clip_score"]["mean"] == pytest.approx(sum(means) / 3)
    # Another CLIP setting captions nothing again, encodes nothing again, and the first caption is the one that fits best.
    monkeypatch.setattr(Clip, "_encode_images", None)
    again = run(prefix="photo: ", rerank="clip")
    assert again.values["new"] == 0
    best = rows_of(tmp_path / "out.jsonl")
    changed = 0
    for name in ("0.jpg", "1.jpg", "2.jpg"):
        order = sorted(range(3), key=lambda k: -given[name]["clip_scores"][k])
        assert best[name]["captions"] == [given[name]["captions"][k] for k in order]
        assert best[name]["caption"] == best[name]["captions"][0]
        assert best[name]["clip_score"] == max(given[name]["clip_scores"])
        assert best[name]["score"] <= given[name]["score"]  # of the caption that comes first now
        changed += order[0] != 0
    assert again.values["reranked"] == changed > 0
    without = run(prefix="photo: ", clip_score=None)
    assert "clip_score" not in rows_of(tmp_path / "out.jsonl")["0.jpg"]
    assert "clip_score" not in without.values


def test_every_format(run: Callable[..., Any], tmp_path: Path) -> None:
    run()
    told = {name: row for name, row in rows_of(tmp_path / "out.jsonl").items() if row["error"] is None}
    for output in ("out.csv", "out.parquet"):
        run(output)
        table = read_captions(tmp_path / output).set_index("image")
        for name, row in told.items():
            assert table.loc[name, "clip_score"] == row["clip_score"]
            assert table.loc[name, "clip_scores"] == row["clip_scores"]
        assert table["clip_score"].isna().tolist() == [False] * 3 + [True]
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        assert {"clip_score", "clip_scores"} <= set(next(csv.reader(file)))
    assert {"clip_score", "clip_scores"} <= set(pq.read_schema(tmp_path / "out.parquet").names)
    run("out.json")
    entries = json.loads((tmp_path / "out.json").read_text())
    assert [e["clip_score"] for e in entries] == [s for row in told.values() for s in row["clip_scores"]]
    run("pictures", format="imagefolder")
    metadata = map(json.loads, (tmp_path / "pictures" / "metadata.jsonl").read_text().splitlines())
    assert [row["clip_score"] for row in metadata] == [row["clip_scores"] for row in told.values()]
    run("texts", format="txt", rerank="clip") if (tmp_path / "texts").mkdir() is None else None
    lines = (tmp_path / "texts" / "0.txt").read_text().splitlines()
    order = sorted(range(3), key=lambda k: -told["0.jpg"]["clip_scores"][k])
    assert lines == [told["0.jpg"]["captions"][k] for k in order]


def test_one_caption_and_the_gallery(run: Callable[..., Any], tmp_path: Path) -> None:
    run(num_captions=1, num_beams=1, gallery=tmp_path / "page.html")
    rows = rows_of(tmp_path / "out.jsonl")
    assert "clip_scores" not in rows["0.jpg"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    cards = re.findall(r'^\{"name".*\},?$', page, re.M)
    told = {card["name"]: card.get("clip") for card in (json.loads(line.rstrip(",")) for line in cards)}
    assert told == {name: row["clip_score"] for name, row in rows.items()}


def test_what_is_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"^--rerank clip: needs a CLIP model; name one with --clip-score\.$"):
        run(clip_score=None, rerank="clip")
    with pytest.raises(InputError, match=r"^--rerank clip: chooses among several captions; add --num-captions\.$"):
        run(num_captions=1, rerank="clip")
    with pytest.raises(InputError, match=r"^--rerank clip: .* the model's folder asks for one; add --num-captions\.$"):
        run(num_captions=None, rerank="clip")
    with pytest.raises(InputError, match=r"^--clip-score .*: has no place in --format txt"):
        run("texts", format="txt")


def test_journal_rows() -> None:
    """Of several captions what is known of each is kept; rows from before it was are read as they are."""
    captions, ends = ("a", "b"), (True, False)
    one = CaptionResult("a.jpg", "a", captions, -0.5, True, scores=(-0.5, -0.7), ends=ends)
    assert CaptionResult.from_row(json.loads(json.dumps(one.to_row(kept=True)))) == one
    turned = one.ordered([1, 0])
    assert (turned.caption, turned.score, turned.ended, turned.captions) == ("b", -0.7, False, ("b", "a"))
    former = CaptionResult.from_row(one.to_row())
    assert (former.scores, former.ordered([1, 0]).score, former.ordered([0, 1]).score) == ((), None, -0.5)
