"""More than two systems: Holm's correction, one table, the same figures as pair by pair."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from toolkit.commands.evaluate import evaluate
from toolkit.errors import InputError
from toolkit.evaluation.significance import holm
from toolkit.options import EvaluateOptions
from toolkit.outputs.tables import read_captions


def rejected(p_values: list[float], level: float) -> list[bool]:
    """Holm's procedure as he wrote it: from the smallest p on, until one is above its share of the level."""
    found = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - rank):
            break
        found[i] = True
    return found


@pytest.mark.parametrize("seed", range(20))
def test_holm(seed: int) -> None:
    rng = random.Random(seed)
    p_values = [rng.random() ** 3 for _ in range(rng.randint(1, 8))]
    corrected = holm(p_values)
    for level in (0.001, 0.01, 0.05, 0.1, 0.3, 0.9):
        assert [p <= level for p in corrected] == rejected(p_values, level)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.8, 0.9]) == [1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@pytest.fixture
def systems(tmp_path: Path) -> tuple[Path, list[Path]]:
    """References of 60 images, and four sets of captions, the later the worse."""
    rng = random.Random(3)
    words = [f"w{i}" for i in range(40)]
    said = {f"{i}.jpg": [" ".join(rng.choices(words, k=9)) for _ in range(3)] for i in range(60)}
    (tmp_path / "r.csv").write_text("image,caption\n" + "".join(f"{i},{c}\n" for i, cs in said.items() for c in cs))
    files = []
    for k in range(4):
        rows = []
        for image, captions in said.items():
            kept = [w if rng.random() > 0.15 * k else rng.choice(words) for w in captions[0].split()]
            rows.append({"image": image, "caption": " ".join(kept)})
        files.append(tmp_path / f"h{k}.jsonl")
        files[-1].write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "r.csv", files


def test_several_systems(systems: tuple[Path, list[Path]], tmp_path: Path) -> None:
    references, (first, *others) = systems
    common = {"references": references, "split": "all", "metrics": "cider,bleu", "resamples": 200}
    found = evaluate(
        EvaluateOptions(first, against=tuple(others), page=tmp_path / "p.html", per_image=tmp_path / "t.csv", **common)
    )
    values = found.values
    pairs = [evaluate(EvaluateOptions(first, against=other, **common)).values for other in others]  # type: ignore[arg-type]
    assert values["against"] == values["comparisons"][0]
    assert [one["hypotheses"] for one in values["comparisons"]] == [str(other) for other in others]
    for metric in values["metrics"]:
        alone = [pair["against"]["differences"][metric] for pair in pairs]
        together = [one["differences"][metric] for one in values["comparisons"]]
        assert [d["p_holm"] for d in together] == holm([d["p"] for d in alone])
        assert [{**d, "p_holm": d["p"]} for d in together] == alone
    assert [len(pair["comparisons"]) for pair in pairs] == [1, 1, 1]
    cider = [one["differences"]["cider"]["score"] for one in values["comparisons"]]
    assert 0 > cider[0] > cider[1] > cider[2]

    header, row = (line.split("  ") for line in found.text.splitlines()[1:3])
    assert [cell.strip() for cell in header if cell.strip()] == [
        *(f"h{k}.jsonl" for k in range(4)), "difference 1", "p 1, Holm", "difference 2", "p 2, Holm", "difference 3", "p 3, Holm"
    ]  # fmt: skip
    assert len([cell for cell in row if cell.strip()]) == 11
    assert "\n  difference: each of the others less h0.jsonl; p-values by Holm's correction\n" in found.text
    page = (tmp_path / "p.html").read_text()
    assert page.count("(Holm)") == 3 * len(values["metrics"])
    assert 'class="said-by four"' in page
    with open(tmp_path / "t.csv", encoding="utf-8") as file:
        line = next(csv.DictReader(file))
    assert {"cider", "against_cider", "against_2_cider", "against_3_caption"} <= line.keys()
    table = read_captions(tmp_path / "t.csv")
    assert {str(table[name].dtype) for name in ("cider", "against_cider", "against_3_bleu_4")} == {"float64"}
    assert {str(table[name].dtype) for name in ("caption", "against_caption", "against_3_caption")} == {"string"}


def test_none_in_common(systems: tuple[Path, list[Path]], tmp_path: Path) -> None:
    references, (first, second, *_) = systems
    (tmp_path / "one.jsonl").write_text('{"image": "0.jpg", "caption": "w1"}')
    (tmp_path / "two.jsonl").write_text('{"image": "1.jpg", "caption": "w1"}')
    with pytest.raises(InputError, match=r"one.jsonl: has no image in common with .*h1.jsonl and .*two.jsonl; name"):
        evaluate(EvaluateOptions(tmp_path / "one.jsonl", references, "all", against=(second, tmp_path / "two.jsonl")))
    with pytest.raises(InputError, match=r"--against .*nothing: no such file"):
        evaluate(EvaluateOptions(first, references, "all", against=(second, tmp_path / "nothing")))
