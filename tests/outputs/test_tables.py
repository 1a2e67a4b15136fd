"""`read_captions`: one table from every form, equal to what pyarrow, json and csv read."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from toolkit import read_captions
from toolkit.commands.evaluate import evaluate
from toolkit.errors import InputError
from toolkit.options import EvaluateOptions
from toolkit.outputs.writers import write_coco, write_csv, write_jsonl, write_parquet
from toolkit.records import CaptionResult

# Names and captions that tables take for something else.
RESULTS = [
    CaptionResult("007", "null", ("null", 'so, "NA"\nand'), -0.1234567890123456789, True, None, 640, 480, False),
    CaptionResult("b/é.jpg", "nan", ("nan", "1e5"), -2.5e-17, False, None, 3, 2**31 - 1, True),
    CaptionResult("empty.jpg", "", ("", "x"), -0.1, True, None, 1, 1, True),
    CaptionResult("bad.jpg", error="not an image"),
]
ONE_EACH = [
    CaptionResult(r.image, r.caption, r.captions[:1], r.score, r.ended, r.error, r.width, r.height) for r in RESULTS
]


def written(folder: Path, form: str, results: list[CaptionResult], several: bool) -> Path:
    path = folder / f"captions.{form}"
    if form == "jsonl":
        write_jsonl(path, (result.to_row() for result in results))
    else:
        {"csv": write_csv, "parquet": write_parquet}[form](path, iter(results), several)
    return path


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of Python values, None for what is missing."""
    rows = frame.astype(object).to_dict("records")
    return [{k: v if isinstance(v, list) or not pd.isna(v) else None for k, v in row.items()} for row in rows]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("several", [False, True])
def test_every_form_is_the_same_table(form: str, several: bool, tmp_path: Path) -> None:
    results = RESULTS if several else ONE_EACH
    frame = read_captions(written(tmp_path, form, results, several))
    columns = ["image", "caption", "captions", "score", "ended", "weak", "error", "width", "height"]
    assert list(frame.columns) == [c for c in columns if several or c not in ("captions", "weak")]
    assert plain(frame) == [{name: result.to_row().get(name) for name in frame.columns} for result in results]
    dtypes = {str(name): str(dtype) for name, dtype in frame.dtypes.items()}
    assert {dtypes[name] for name in ("image", "caption", "error")} == {"string"}
    assert (dtypes["score"], dtypes["ended"], dtypes["width"]) == ("float64", "boolean", "Int64")


def test_as_pyarrow_and_json_read_it(tmp_path: Path) -> None:
    table = pq.read_table(written(tmp_path, "parquet", RESULTS, True))
    assert plain(read_captions(str(tmp_path / "captions.parquet"))) == table.to_pylist()
    lines = written(tmp_path, "jsonl", ONE_EACH, False).read_text(encoding="utf-8").splitlines()
    assert plain(read_captions(tmp_path / "captions.jsonl")) == [json.loads(line) for line in lines]


def test_coco_results_and_columns_of_others(tmp_path: Path) -> None:
    write_coco(
        tmp_path / "c.json", [CaptionResult("000000391895.jpg", "a", ("a", "b")), CaptionResult("x.jpg", "c", ("c",))]
    )
    frame = read_captions(tmp_path / "c.json")
    assert frame.values.tolist() == [["391895", "a"], ["391895", "b"], ["x.jpg", "c"]]
    (tmp_path / "own.csv").write_text("note;image;caption\n001;a.jpg;a dog\n;b.jpg;\n")
    assert read_captions(tmp_path / "own.csv").values.tolist() == [["a.jpg", "a dog", "001"], ["b.jpg", "", ""]]
    (tmp_path / "own.jsonl").write_text(
        '{"file_name": "a", "text": ["x", "y"]}\n{"file_name": "b", "text": "z", "n": 1}\n'
    )
    assert plain(read_captions(tmp_path / "own.jsonl")) == [
        {"file_name": "a", "text": ["x", "y"], "n": None}, {"file_name": "b", "text": "z", "n": 1}
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_metrics_of_each_image(form: str, sample_dir: Path, tmp_path: Path) -> None:
    """To the last digit, and their mean is what evaluate prints."""
    rows = [json.loads(line) for line in (sample_dir / "scenes.jsonl").read_text().splitlines()][:6]
    hypotheses = tmp_path / "c.jsonl"
    hypotheses.write_text(
        "".join(json.dumps({"image": row["image"], "caption": "a red circle"}) + "\n" for row in rows)
    )
    table = tmp_path / f"m.{form}"
    empty = tmp_path / "empty.jsonl"
    empty.write_text(hypotheses.read_text().replace("a red circle", ""))
    others = {"against": (hypotheses, empty), "per_image": table}
    summary = evaluate(
        EvaluateOptions(hypotheses=hypotheses, references=sample_dir, split="all", resamples=10, **others)  # type: ignore
    )
    frame = read_captions(table)
    if form == "parquet":
        assert plain(frame.sort_index(axis=1)) == plain(pq.read_table(table).to_pandas().sort_index(axis=1))
    else:
        with open(table, encoding="utf-8", newline="") as file:
            by_hand = list(csv.DictReader(file))
        assert [float(row["cider"]) for row in by_hand] == frame["cider"].tolist()
        assert [row["image"] for row in by_hand] == frame["image"].tolist()
    assert {str(frame[f"{prefix}cider"].dtype) for prefix in ("", "against_", "against_2_")} == {"float64"}
    assert set(frame["against_2_caption"]) == {""}
    assert frame["cider"].mean() == pytest.approx(summary.values["metrics"]["cider"]["score"], abs=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a", "caption": "b", "score": "high"}\n', "score is 'high' in a row, but must be a number; correct"),
        ('{"image": "a", "caption": "b", "width": 1.5}\n', "width is '1.5' in a row, but must be a whole number; correct"),
        ("image,caption,ended\na,b,perhaps\n", "ended is 'perhaps' in a row, but must be true or false; correct"),
        ('{"image": "a", "caption": ["b"]}\n', "caption is .* in a row, but must be text; correct"),
        ('{"image": "a", "caption": "b", "captions": 3}\n', "captions is '3' in a row, but must be a list of captions"),
        ('{"image": "a"}\n', "has the columns image, but captions need"),
        ("a,b\n1,2\n", "has the columns a, b, but captions need"),
        ("[1]", "a row is 1, but each row needs"),
        ("", "the file is empty"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_captions(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {message}"):
        read_captions(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        read_captions(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match="is a folder; name a file of captions"):
        read_captions(tmp_path)
