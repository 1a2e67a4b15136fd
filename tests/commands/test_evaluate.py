"""evaluate: figures against pycocoevalcap's own, every form of captions and references, matching, comparison, mistakes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.cache.schema import open_cache
from toolkit.commands.evaluate import evaluate
from toolkit.data.annotations import read_annotations
from toolkit.errors import InputError, ModelError, OutputError, ToolkitError
from toolkit.evaluation import metrics
from toolkit.evaluation.metrics import score
from toolkit.evaluation.significance import compare, intervals
from toolkit.options import EvaluateOptions, GenerationOptions
from toolkit.records import ImageRecord

SAID = {
    "a.jpg": ["a dog runs on grass", "a brown dog runs", "the dog is on the grass", "dog running outside"],
    "b.jpg": ["two children play with a ball", "children playing", "two kids and a red ball"],
    "c.jpg": ["a man rides a horse", "a man on a brown horse", "a rider and a horse"],
    "d.jpg": ["a plate of food on a table", "food on a plate"],
}
FOUND = {
    "a.jpg": "a dog runs on the grass",
    "b.jpg": "two kids play ball",
    "c.jpg": "a man on a horse",
    "d.jpg": "a cat",
}


def coco(path: Path, said: dict[str, list[str]] = SAID) -> Path:
    """A COCO captions file with ids 100, 101, ..."""
    ids = {name: 100 + i for i, name in enumerate(said)}
    images = [{"id": i, "file_name": name} for name, i in ids.items()]
    rows = [{"image_id": ids[name], "caption": c} for name, captions in said.items() for c in captions]
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    return path


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(captions: dict[str, str] = FOUND, **more: Any) -> list[dict[str, Any]]:
    return [{"image": name, "caption": caption, **more} for name, caption in captions.items()]


def run(hypotheses: Path, references: Path, **more: Any) -> dict[str, Any]:
    return evaluate(EvaluateOptions(hypotheses=hypotheses, references=references, **more)).values


def figures(values: dict[str, Any]) -> dict[str, float]:
    return {name: figure["score"] for name, figure in values["metrics"].items()}


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    return jsonl(tmp_path / "captions.jsonl", rows(ended=True)), coco(tmp_path / "coco.json")


# ---- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_pycocoevalcaps(small: tuple[Path, Path]) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    results = {name: [caption] for name, caption in FOUND.items()}
    expected = {f"bleu_{n + 1}": v for n, v in enumerate(bleu.compute_score(SAID, results, verbose=0)[0])}
    expected |= {"rouge_l": rouge.compute_score(SAID, results)[0], "cider": cider.compute_score(SAID, results)[0]}
    values = run(*small)
    assert figures(values) == pytest.approx(expected, abs=1e-12)
    assert values["images"] == 4
    assert values["health"]["ended"] == 1.0
    assert "|split:all|images:4/4|refs:12|missing:0,skip|" in values["signature"]


def test_idf_of_another_corpus(small: tuple[Path, Path], tmp_path: Path, cache_dir: Path) -> None:
    other = coco(tmp_path / "other.json", {f"{i}.jpg": [f"a dog {i}", "a ball"] for i in range(9)})
    expected = score(FOUND, SAID, ["cider"], {f"{i}": [f"a dog {i}", "a ball"] for i in range(9)}).corpus["cider"]
    values = run(*small, idf=str(other), metrics="cider")
    assert figures(values) == pytest.approx({"cider": expected}, abs=1e-12)
    assert f"idf:all of {other.as_posix()}(9 images," in values["signature"]
    assert f"idf:the train split of {cache_dir.as_posix()}(" in run(*small, idf=str(cache_dir))["signature"]


def test_one_image_and_one_reference(tmp_path: Path) -> None:
    references = coco(tmp_path / "coco.json", {"a.jpg": ["a dog runs"]})
    hypotheses = jsonl(tmp_path / "h.jsonl", rows({"a.jpg": "a dog runs"}))
    with pytest.raises(InputError, match=r"--human: no image of all of .*coco.json has two references"):
        run(hypotheses, references, human=True)
    values = run(hypotheses, references, page=tmp_path / "p.html")
    assert figures(values)["bleu_4"] == pytest.approx(
        score({"a": "a dog runs"}, {"a": ["a dog runs"]}).corpus["bleu_4"]
    )
    assert figures(values)["cider"] == 0
    assert values["metrics"]["rouge_l"] == {"score": 1.0, "low": 1.0, "high": 1.0}
    assert values["human"] is None
    assert any("CIDEr of a single image is 0" in note for note in values["notes"])


def test_empty_hypothesis_and_missing(tmp_path: Path) -> None:
    references = coco(tmp_path / "coco.json")
    given = [*rows({"a.jpg": "", "b.jpg": FOUND["b.jpg"]}), {"image": "c.jpg", "caption": None, "error": "truncated"}]
    hypotheses = jsonl(tmp_path / "h.jsonl", given)
    skipped = run(hypotheses, references)
    assert skipped["images"] == 2
    assert skipped["health"]["empty"] == 0.5
    kept = {name: SAID[name] for name in ("a.jpg", "b.jpg")}
    assert figures(skipped) == score({"a.jpg": "", "b.jpg": FOUND["b.jpg"]}, kept).corpus
    assert skipped["matching"]["missing"] == {"count": 1, "examples": ["103"]}
    assert skipped["matching"]["unreadable"] == {"count": 1, "examples": ["102"]}
    assert "images whose row is an error: 1 (102: truncated)" in skipped["notes"]
    assert any(note.startswith("2 images without a caption are left out") for note in skipped["notes"])
    assert "|images:2/4|refs:7|missing:2,skip|" in skipped["signature"]
    counted = run(hypotheses, references, missing="empty")
    assert figures(counted) == score({**dict.fromkeys(SAID, ""), "b.jpg": FOUND["b.jpg"]}, SAID).corpus
    assert "missing:2,empty" in counted["signature"]


def test_people_against_each_other(tmp_path: Path) -> None:
    said = {name: captions[:3] for name, captions in SAID.items() if len(captions) > 2}
    references = coco(tmp_path / "coco.json", {**said, "d.jpg": ["a table"]})
    values = run(jsonl(tmp_path / "h.jsonl", rows()), references, human=True)
    rounds = []
    for k in range(3):
        others = {name: captions[:k] + captions[k + 1 :] for name, captions in said.items()}
        rounds.append(score({name: captions[k] for name, captions in said.items()}, others).corpus)
    assert values["human"]["human"] == pytest.approx({m: np.mean([r[m] for r in rounds]) for m in rounds[0]})
    assert (values["human"]["images"], values["human"]["rounds"]) == (3, 3)


# ---- forms ----------------------------------------------------------------------------------------------------------


def csv_file(path: Path, columns: dict[str, list[Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def texts(folder: Path, captions: dict[str, str], whole_name: bool) -> Path:
    for name, caption in captions.items():
        file = folder / ((name if whole_name else name.rsplit(".", 1)[0]) + ".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(caption + "\n", encoding="utf-8")
    return folder


def metadata(folder: Path, captions: dict[str, str]) -> Path:
    folder.mkdir()
    return jsonl(folder / "metadata.jsonl", [{"file_name": n, "text": c} for n, c in captions.items()])


HYPOTHESES: dict[str, tuple[str, Callable[[Path, dict[str, str]], Path]]] = {
    "jsonl": ("jsonl", lambda p, c: jsonl(p / "h.jsonl", rows(c, score=-0.1, ended=True, error=None))),
    "one line": ("jsonl", lambda p, c: jsonl(p / "h", [row | {"captions": [row["caption"], "y"]} for row in rows(c)])),
    "csv": ("csv", lambda p, c: csv_file(p / "h.csv", {"image": list(c), "caption": list(c.values()), "error": [""] * len(c)})),
    "parquet": ("parquet", lambda p, c: (pq.write_table(pa.table({"image": list(c), "caption": list(c.values())}), p / "h"), p / "h")[1]),
    "coco by name": ("coco", lambda p, c: _json(p / "h.json", [{"image_id": n, "caption": t} for n, t in c.items()])),
    "coco by stem": ("coco", lambda p, c: _json(p / "h.json", [{"image_id": n[:-4], "caption": t} for n, t in c.items()])),
    "metadata": ("imagefolder", lambda p, c: metadata(p / "f", c)),
    "imagefolder": ("imagefolder", lambda p, c: metadata(p / "f", c).parent),
    "txt": ("txt", lambda p, c: texts(p / "t", c, False)),
    "txt, whole names": ("txt", lambda p, c: texts(p / "t", c, True)),
    "other folder": ("jsonl", lambda p, c: jsonl(p / "h.jsonl", rows({f"./Images/{n}": t for n, t in c.items()}))),
}  # fmt: skip


def _json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture(scope="session")
def test_captions(cache_dir: Path) -> dict[str, str]:
    """For each test image of the cache a caption that fits more or less, with a comma, a quote and a line break."""
    test = open_cache(cache_dir)["test"]
    said = test.column("captions")
    odd = ['a "thing", maybe', said[0][1].upper()]
    return dict(zip(test.column("path"), [*odd, *(s[1] for s in said[1:])], strict=False))


@pytest.fixture(scope="session")
def expected(cache_dir: Path, test_captions: dict[str, str]) -> dict[str, float]:
    test = open_cache(cache_dir)["test"]
    return score(test_captions, dict(zip(test.column("path"), test.column("captions"), strict=True))).corpus


@pytest.mark.parametrize("form", HYPOTHESES)
def test_every_form_of_hypotheses(
    form: str, tmp_path: Path, cache_dir: Path, test_captions: dict[str, str], expected: dict[str, float]
) -> None:
    format, write = HYPOTHESES[form]
    values = run(write(tmp_path, test_captions), cache_dir)
    assert values["format"] == format
    assert figures(values) == pytest.approx(expected, abs=1e-12)
    assert sum(values["matching"]["by"].values()) == len(test_captions)
    assert values["notes"] == []
    assert values["health"]["novel"] is not None


def karpathy(path: Path, records: list[ImageRecord]) -> Path:
    split = {"train": "train", "validation": "val", "test": "test"}
    images = [
        {"filename": r.path, "split": split[r.split or ""], "sentences": [{"raw": c} for c in r.captions]}
        for r in records
    ]
    return _json(path, {"images": images})


REFERENCES: dict[str, Callable[[Path, list[ImageRecord], Path], Path]] = {
    "captions.txt": lambda p, records, sample: sample / "captions.txt",
    "folder": lambda p, records, sample: sample,
    "karpathy": lambda p, records, sample: karpathy(p / "dataset.json", records),
    "coco": lambda p, records, sample: coco(p / "coco.json", {r.path: list(r.captions) for r in records if r.split == "test"}),
    "parquet": lambda p, records, sample: (pq.write_table(pa.table({"image": [r.path for r in records], "captions": [list(r.captions) for r in records], "split": [r.split for r in records]}), p / "r.parquet"), p / "r.parquet")[1],
    "lavis": lambda p, records, sample: jsonl(p / "r.jsonl", [{"image": r.path, "caption": list(r.captions), "split": r.split} for r in records]),
    "imagefolder": lambda p, records, sample: jsonl(p / "metadata.jsonl", [{"file_name": r.path, "captions": list(r.captions), "split": r.split} for r in records]).parent,
}  # fmt: skip


@pytest.mark.parametrize("form", REFERENCES)
def test_every_form_of_references(
    form: str, tmp_path: Path, sample_dir: Path, test_captions: dict[str, str], expected: dict[str, float]
) -> None:
    records = list(read_annotations(sample_dir / "captions.txt", sample_dir / "Images").records)
    (tmp_path / "r").mkdir()
    references = REFERENCES[form](tmp_path / "r", records, sample_dir)
    page = tmp_path / "page.html"
    values = run(jsonl(tmp_path / "h.jsonl", rows(test_captions)), references, images=sample_dir / "Images", page=page)
    assert figures(values) == pytest.approx(expected, abs=1e-12)
    assert values["split"] == ("all" if form == "coco" else "test")
    assert page.read_text().count("data:image/jpeg") == len(test_captions)


def test_names_that_lead_to_no_file_are_found_for_the_page(
    tmp_path: Path, sample_dir: Path, test_captions: dict[str, str]
) -> None:
    """As preprocess and inspect find them: here without a folder that is not there."""
    records = read_annotations(sample_dir / "captions.txt", sample_dir / "Images").records
    said = [{"image": f"C:\\data\\{r.path}", "caption": list(r.captions), "split": r.split} for r in records]
    page = tmp_path / "page.html"
    references, images = jsonl(tmp_path / "r.jsonl", said), sample_dir / "Images"
    values = run(jsonl(tmp_path / "h.jsonl", rows(test_captions)), references, images=images, page=page)
    assert values["notes"][0].startswith(f"image names found without the folder C:/data/: {len(said)} (C:\\data\\")
    assert page.read_text().count("data:image/jpeg") == len(test_captions)


def test_a_model(cache_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "figures.parquet"
    values = run(
        None, cache_dir, model=str(model_dir), generation=GenerationOptions(max_length=8), per_image=table, batch_size=3
    )
    assert values["images"] == len(open_cache(cache_dir)["test"])
    assert values["matching"]["missing"]["count"] == 0
    assert values["health"]["ended"] is not None
    again = run(table, cache_dir)  # the file holds the captions, too
    assert figures(again) == pytest.approx(figures(values))
    assert again["signature"] == values["signature"]
    with pytest.raises(InputError, match="captions the pixels of a cache"):
        run(None, coco(tmp_path / "coco.json"), model=str(model_dir))
    changed = tmp_path / "model"
    changed.mkdir()
    for file in model_dir.iterdir():
        if file.is_file():
            (changed / file.name).symlink_to(file)
    (changed / "preprocessor_config.json").unlink()
    config = json.loads((model_dir / "preprocessor_config.json").read_text())
    _json(changed / "preprocessor_config.json", {**config, "size": {"height": 32, "width": 32}})
    with pytest.raises(ModelError, match=r"prepares images differently from .* \(size\)"):
        run(None, cache_dir, model=str(changed))


# ---- matching -------------------------------------------------------------------------------------------------------


def test_what_does_not_match_is_reported(tmp_path: Path) -> None:
    said = {name: captions for name, captions in SAID.items() if name != "d.jpg"}
    images = [{"filepath": "x", "filename": name, "split": "test", "sentences": [{"raw": c} for c in captions]}
              for name, captions in said.items()]  # fmt: skip
    images += [{"filepath": p, "filename": n, "split": "train", "sentences": [{"raw": "a bird"}]}
               for p, n in (("x", "t.jpg"), ("x", "twin.jpg"), ("y", "twin.jpg"), ("y", "a.jpg"))]  # fmt: skip
    references = _json(tmp_path / "dataset.json", {"images": images})
    given = {"x/a.jpg": "a dog", "b.jpg": "a ball", "x/t.jpg": "a bird", "twin.jpg": "a twin", "z.jpg": "a zebra"}
    hypotheses = jsonl(tmp_path / "h.jsonl", [*rows(given), {"image": "x/a.jpg", "caption": "a second dog"}])
    values = run(hypotheses, references)
    matching = values["matching"]
    assert matching["by"] == {"image id": 1, "base name": 1}
    found = {name: matching[name]["examples"] for name in ("missing", "elsewhere", "unknown", "ambiguous", "repeated")}
    assert found == {
        "missing": ["x/c.jpg"], "elsewhere": ["x/t.jpg"], "unknown": ["z.jpg"], "ambiguous": ["twin.jpg"],
        "repeated": ["x/a.jpg"],
    }  # fmt: skip
    kept = {"a": SAID["a.jpg"], "b": SAID["b.jpg"]}
    assert figures(values) == score({"a": "a dog", "b": "a ball"}, kept).corpus
    assert len(values["notes"]) == 6  # one each, and that images are left out
    twice = jsonl(tmp_path / "i.jsonl", rows({"p/b.jpg": "a ball", "q/b.jpg": "no ball", "x/c.jpg": "a horse"}))
    assert run(twice, references)["matching"]["ambiguous"]["examples"] == ["p/b.jpg", "q/b.jpg"]


def test_numbers_for_ids(tmp_path: Path) -> None:
    results = _json(tmp_path / "r.json", [{"image_id": 100 + i, "caption": c} for i, c in enumerate(FOUND.values())])
    values = run(results, coco(tmp_path / "coco.json"))
    assert values["matching"]["by"] == {"image id": 4}
    assert figures(values) == score(FOUND, SAID).corpus


# ---- significance ---------------------------------------------------------------------------------------------------


def test_against_itself(small: tuple[Path, Path]) -> None:
    values = run(*small, against=small[0])
    for difference in values["against"]["differences"].values():
        assert difference == {"score": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "p_holm": 1.0}
    assert values["against"]["metrics"] == values["metrics"]


def test_comparison_tells_better_from_chance() -> None:
    rng = np.random.default_rng(3)
    words = [f"w{i}" for i in range(40)]
    said = {f"{i:03d}": [" ".join(rng.choice(words, 8)) for _ in range(3)] for i in range(300)}
    good = {i: captions[0] if k % 3 else "w1 w2" for k, (i, captions) in enumerate(said.items())}
    alike = {i: captions[0] if (k + 1) % 3 else "w1 w2" for k, (i, captions) in enumerate(said.items())}
    worse = {i: captions[0] if not k % 3 else "w1 w2" for k, (i, captions) in enumerate(said.items())}
    scores = [score(captions, said) for captions in (good, alike, worse)]
    assert all(d.p is not None and d.p > 0.05 for d in compare(scores[0], scores[1]).values())
    for difference in compare(scores[0], scores[2]).values():
        assert difference.p == pytest.approx(1 / 1001)
        assert difference.high is not None
        assert difference.score < 0 > difference.high
    figures = intervals(scores[:1])[0]
    for name, figure in figures.items():
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < scores[0].corpus[name] == figure.score < figure.high
    # a mean's interval is that of the normal distribution
    each = scores[0].per_image["rouge_l"]
    width = 2 * 1.96 * each.std() / len(each) ** 0.5
    rouge = figures["rouge_l"]
    assert (rouge.high or 0) - (rouge.low or 0) == pytest.approx(width, rel=0.1)


def test_resampling_is_seeded_and_its_blocks_do_not_matter(
    small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run(*small, against=small[0])
    assert one == run(*small, against=small[0])
    assert one["metrics"] != run(*small, seed=1)["metrics"]
    monkeypatch.setattr("toolkit.evaluation.significance.BLOCK", 40)
    for name, figure in run(*small, against=small[0])["metrics"].items():
        assert figure == pytest.approx(one["metrics"][name])


def test_missing_ones_are_left_out_of_both_sides(small: tuple[Path, Path], tmp_path: Path) -> None:
    other = jsonl(tmp_path / "other.jsonl", rows()[:3])
    values = run(*small, against=other)
    assert values["images"] == 3
    assert "missing:0+1,skip" in values["signature"]
    kept = {name: SAID[name] for name in list(SAID)[:3]}
    assert figures(values) == score({name: FOUND[name] for name in kept}, kept).corpus


@pytest.mark.slow
def test_hundred_thousand_images(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    from bench_metrics import captions

    hypotheses, said = captions(100_000, 5)
    references = coco(tmp_path / "coco.json", said)
    values = run(jsonl(tmp_path / "h.jsonl", rows(hypotheses)), references, page=tmp_path / "p.html")
    assert values["images"] == 100_000
    figure = values["metrics"]["cider"]
    assert figure["high"] - figure["low"] < 0.02


# ---- outputs --------------------------------------------------------------------------------------------------------


def test_per_image(small: tuple[Path, Path], tmp_path: Path) -> None:
    other = jsonl(tmp_path / "other.jsonl", rows(dict.fromkeys(SAID, "a dog")))
    for name in ("t.csv", "t.parquet"):
        run(*small, against=other, per_image=tmp_path / name)
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    with open(tmp_path / "t.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [row["image"] for row in table] == list(SAID)
    assert [{k: str(v) for k, v in row.items()} for row in table] == lines
    expected = score(FOUND, SAID).per_image
    for name, values in expected.items():
        assert [row[name] for row in table] == values.tolist()
    assert {row["against_caption"] for row in table} == {"a dog"}
    assert table[0]["signature"].startswith("toolkit:")


def test_page_escapes_and_needs_no_network(tmp_path: Path, cache_dir: Path, test_captions: dict[str, str]) -> None:
    evil = dict.fromkeys(test_captions, "<script>alert(1)</script> & \"'")
    hypotheses = jsonl(tmp_path / "<b>h.jsonl", rows(evil))
    other = jsonl(tmp_path / "other.jsonl", rows(test_captions))
    run(hypotheses, cache_dir, against=other, human=True, page=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<script") == 1  # our own
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;&#39;" in text
    assert "<b>h" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == 2 * 6 + 3


def test_table_for_people_is_times_100(small: tuple[Path, Path]) -> None:
    summary = evaluate(EvaluateOptions(hypotheses=small[0], references=small[1], human=True))
    assert f"ROUGE-L  {100 * figures(summary.values)['rouge_l']:.1f} [" in summary.text
    assert "metrics x 100" in summary.text
    assert summary.values["signature"] in summary.text


def test_command_without_torch(small: tuple[Path, Path]) -> None:
    code = (
        "import sys, toolkit.commands.evaluate as e, toolkit.options as o; from pathlib import Path\n"
        "e.evaluate(o.EvaluateOptions(hypotheses=Path(sys.argv[1]), references=Path(sys.argv[2])))\n"
        "print('torch' in sys.modules, 'datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, small)], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.jsonl", None, "; write captions with `toolkit batch-caption`"),
        ("h.jsonl", "", "the file is empty"),
        ("h.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"image": "b', "line 2 is broken JSON"),
        ("h.jsonl", '{"image": "a.jpg", "score": 1}\n', 'each row needs "image" or "image_id", and "caption"'),
        ("h.jsonl", '{"image": "a.jpg", "caption": 5}\n', 'each row needs "image" or "image_id", and "caption"'),
        ("h.jsonl", '{"image": "y.jpg", "caption": "x"}\n', "whose images have names like a.jpg or b.jpg, not y.jpg"),
        ("h.jsonl", '{"image": "a.jpg", "caption": null, "error": "truncated"}\n', "is an error"),
        ("h.json", "[]", "contains no captions"),
        ("h.json", '[{"image_id": true, "caption": "x"}]', "each row needs"),
        ("h.json", '{\n"images": []}', "not captions: expected"),
        ("h.csv", "image,text that is none\na.jpg,x\n", "has the columns image, text that is none"),
        ("h.csv", "image,caption\na.jpg,x,y\n", "line 2 has 3 fields but the header has 2"),
        ("h.csv", "image,caption\na.jpg,\xff\n", "is not UTF-8"),
        ("h.parquet", "PAR1 and nothing else", "not a readable Parquet file"),
        ("folder", "", "neither metadata.jsonl nor .txt files"),
    ],
)
def test_wrong_hypotheses(name: str, content: str | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as error:
        run(path, coco(tmp_path / "coco.json"))
    message = str(error.value)
    assert sentence in message
    assert path.as_posix() in message
    assert "\n" not in message
    assert message.endswith(".")


def test_other_mistakes(small: tuple[Path, Path], tmp_path: Path, cache_dir: Path, sample_dir: Path) -> None:
    train = open_cache(cache_dir)["train"].column("path")
    of_train = jsonl(tmp_path / "train.jsonl", rows(dict.fromkeys(train, "x")))
    no_c = jsonl(tmp_path / "c.jsonl", rows({"c.jpg": "x"}))
    no_d = jsonl(tmp_path / "d.jsonl", rows({"d.jpg": "x"}))
    empty = _json(tmp_path / "empty.json", {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []})
    cases: list[tuple[str, type[ToolkitError], dict[str, Any]]] = [
        (r"but none to the test split of .*; caption that split, or name another --split", InputError,
         {"hypotheses": of_train, "references": cache_dir}),
        (r"has no image in common with .*d.jsonl", InputError, {"hypotheses": no_c, "against": no_d}),
        (r"--against .*nothing: no such file", InputError, {"against": tmp_path / "nothing"}),
        (r"--references .*nothing: no such file or folder", InputError, {"references": tmp_path / "nothing"}),
        (r"--references .*empty.json: names no image", InputError, {"references": empty}),
        (r"--idf train: .* has no train split", InputError, {"idf": "train"}),
        (r"--idf nothing: no such file", InputError, {"idf": "nothing"}),
        (r"--images nothing: no such folder", InputError, {"images": Path("nothing")}),
        (r"--images .*: only applies to annotations, but .* is a cache; leave it out", InputError,
         {"images": tmp_path, "references": cache_dir}),
        (r"--format coco: only applies to annotations, but .* is a cache; leave it out", InputError,
         {"format": "coco", "references": cache_dir}),
        (r"--page .*nothing/p.html: there is no folder", OutputError, {"page": tmp_path / "nothing" / "p.html"}),
        (r"--model nothing: captions the split itself; leave out --hypotheses", InputError, {"model": "nothing"}),
        (r"--metrics blue: name some of", InputError, {"metrics": "blue"}),
        (r"--per-image x.txt: name a file", InputError, {"per_image": Path("x.txt")}),
        (r"--split dev: choose one of", InputError, {"split": "dev"}),
    ]  # fmt: skip
    for sentence, kind, changed in cases:
        with pytest.raises(kind, match=sentence) as error:
            evaluate(EvaluateOptions(**{"hypotheses": small[0], "references": small[1], **changed}))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="has no test split, only train; name one of these with --split"):
        run(
            small[0],
            _json(
                tmp_path / "t.json", {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "x"}]}]}
            ),
        )


def test_options_know_the_metrics() -> None:
    from toolkit.options.evaluate import METRICS as option_names

    assert option_names == metrics.METRICS


def test_references_by_named_columns(cache_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text('{"image": "a.jpg", "caption": "a dog runs"}\n')
    (tmp_path / "r.csv").write_text("pic,words\na.jpg,a dog runs\na.jpg,a dog is running\n")
    values = run(tmp_path / "h.jsonl", tmp_path / "r.csv", image_column="pic", caption_column=("words",), split="all")
    assert values["metrics"]["bleu_1"]["score"] == pytest.approx(1)
    with pytest.raises(
        InputError, match=r"^--caption-column words: .* is a cache, whose columns are known; leave the "
    ):
        run(tmp_path / "h.jsonl", cache_dir, caption_column=("words",))
