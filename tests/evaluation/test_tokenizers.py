"""Words in every language: sacrebleu's tokenisers, which one `auto` takes, and every place where words are counted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from toolkit.commands.evaluate import evaluate
from toolkit.commands.inspect import inspect
from toolkit.errors import InputError
from toolkit.evaluation.health import health
from toolkit.evaluation.metrics import score
from toolkit.evaluation.tokenizers import TOKENIZERS, char_tokenize, choose_tokenizer, intl_tokenize
from toolkit.options import EvaluateOptions, InspectOptions
from toolkit.options.fields import TOKENIZE
from toolkit.reports.facts import stats

ENGLISH = ["A brown dog runs .", "Über den Wolken , café", "Two dogs' tails"]
CHINESE = ["一只棕色的狗在草地上奔跑。", "两个孩子在海边玩沙子", "一只猫坐在窗台上"]
JAPANESE = ["茶色い犬が草原を走っている。", "二人の子供が海辺で遊んでいる", "窓辺に座っている猫"]
THAI = ["สุนัขสีน้ำตาลกำลังวิ่งบนสนามหญ้า", "เด็กสองคนเล่นทรายที่ชายหาด"]
KOREAN = ["갈색 개가 잔디밭에서 달리고 있다.", "두 아이가 해변에서 놀고 있다", "고양이 한 마리가 창가에 앉아 있다"]
RUSSIAN = ["Собака бежит по траве.", "Двое детей играют на пляже", "Кошка сидит на окне"]
HINDI = ["कुत्ता घास पर दौड़ रहा है।", "दो बच्चे खेल रहे हैं"]
ARABIC = ["الكلب يجري على العشب", "طفلان يلعبان على الشاطئ"]
SCRIPTS = [ENGLISH, CHINESE, JAPANESE, THAI, KOREAN, RUSSIAN, HINDI, ARABIC]


def drawn(number: int) -> list[str]:
    """Sentences in eight scripts: words of these captions, and marks, digits and symbols between and inside them."""
    rng = random.Random(1)
    marks = [
        *".,;:!?\"'()-%$€£+=<>|^~`@#*/\\_…–—«»„“”‘’·•°©™√½²①٪،؟。、！？「」।〜￥→😀",
        "...",
        "1,5",
        "3.14",
        "20.",
        "x2",
        "№5",
    ]
    marks += ["١٬٥", "५०", "\u00a0", "\u3000", "\t", "\u200b", "\u0301", "ǅ", "İ", "ß"]
    found = []
    for n in range(number):
        words = [word for caption in SCRIPTS[n % len(SCRIPTS)] for word in caption.split()]
        pieces = [rng.choice(words if rng.random() < 0.65 else marks) for _ in range(rng.randint(0, 14))]
        found.append("".join(piece + rng.choice(("", " ", " ", "  ")) for piece in pieces))
    return found


def test_equal_to_sacrebleus() -> None:
    """The tokenisers, and all that its BLEU does before it counts."""
    sacrebleu = pytest.importorskip("sacrebleu.metrics")
    intl = pytest.importorskip("sacrebleu.tokenizers.tokenizer_intl").TokenizerV14International()
    char = pytest.importorskip("sacrebleu.tokenizers.tokenizer_char").TokenizerChar()
    bleus = {name: sacrebleu.BLEU(tokenize=name, lowercase=True) for name in ("intl", "char")}
    sentences = drawn(8000)
    assert len(set(sentences)) > 7000
    for sentence in sentences:
        lower = sentence.lower().rstrip()
        assert intl_tokenize(sentence) == intl(lower).split()
        assert char_tokenize(sentence) == char(lower).split()
        for name, bleu in bleus.items():
            assert TOKENIZERS[name].words(sentence) == bleu._preprocess_segment(sentence).split()


def test_words() -> None:
    assert intl_tokenize("Ein Hund, 1,5 m.") == ["ein", "hund", ",", "1,5", "m", "."]
    assert intl_tokenize("갈색 개가 달린다.") == ["갈색", "개가", "달린다", "."]
    assert char_tokenize("갈색 개가.") == ["갈", "색", "개", "가", "."]
    assert char_tokenize("一只 狗。A") == ["一", "只", "狗", "。", "a"]
    assert (intl_tokenize(" "), char_tokenize(" \u3000"), intl_tokenize("")) == ([], [], [])
    assert {"auto", *TOKENIZERS} == set(TOKENIZE)


@pytest.mark.parametrize(
    ("name", "captions"), [("intl", KOREAN), ("char", KOREAN), ("char", CHINESE), ("intl", RUSSIAN)]
)
def test_bleu_is_sacrebleus(name: str, captions: list[str]) -> None:
    """A second way to the same figure, where no n-gram count is zero: sacrebleu and pycocoevalcap smooth differently."""
    sacrebleu = pytest.importorskip("sacrebleu.metrics")
    references = {str(n): [captions[n], captions[n - 1]] for n in range(3)}
    hypotheses = {
        "0": captions[0],
        "1": captions[1].replace(" ", "  ") + "!",
        "2": captions[2].replace(captions[2].split()[0], ""),
    }
    hypotheses["2"] = hypotheses["2"] or captions[2][:5]
    bleu = sacrebleu.BLEU(tokenize=name, lowercase=True, smooth_method="none")
    expected = bleu.corpus_score(
        list(hypotheses.values()), list(map(list, zip(*references.values(), strict=True)))
    ).score
    ours = score(hypotheses, references, ["bleu"], tokenize=TOKENIZERS[name].words).corpus["bleu_4"]
    assert 100 * ours == pytest.approx(expected, rel=1e-8)
    assert 0 < expected < 100


def test_korean_particles() -> None:
    """ "The dog" as subject and as topic: two words by spaces, five of six characters the same."""
    said, found = {"a": ["갈색 개가 달린다"]}, {"a": "갈색 개는 달린다"}
    by = {
        name: score(found, said, ["bleu", "rouge_l"], tokenize=TOKENIZERS[name].words).corpus
        for name in ("intl", "char")
    }
    assert by["intl"]["bleu_1"] == pytest.approx(2 / 3)
    assert by["char"]["bleu_1"] == pytest.approx(6 / 7)
    assert by["char"]["rouge_l"] == pytest.approx(6 / 7)


# ---- auto -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why", "captions"),
    [
        ("ptb", "are in Latin letters", ENGLISH),
        ("ptb", "are in Latin letters", []),
        ("ptb", "are in Latin letters", ["Le chien n'était pas là", "Con chó màu nâu chạy trên cỏ"]),
        ("char", "are in Chinese, without spaces between words", CHINESE),
        ("char", "are in Chinese, without spaces between words", ["一只狗", "红色圆"]),  # short, but not cut either
        ("char", "are in Japanese, without spaces between words", JAPANESE),
        ("char", "are in Thai, without spaces between words", THAI),
        ("char", "are in Chinese, without spaces between words", [*CHINESE, *["A brown dog runs ."] * len(CHINESE)]),
        ("ptb", "are in Latin letters", [*CHINESE, *["A brown dog runs on the grass ."] * 40 * len(CHINESE)]),
        ("intl", "are mostly in Hangul letters", KOREAN),
        ("intl", "are mostly in Cyrillic letters", RUSSIAN),
        ("intl", "are mostly in Devanagari letters", HINDI),
        ("intl", "are mostly in Arabic letters", ARABIC),
        ("ptb", "are in Latin letters", [*ENGLISH, RUSSIAN[0]]),
        # Cut into words by somebody.
        ("intl", "are mostly in Chinese letters", ["一只 棕色 的 狗 在 草地 上 奔跑 。"]),
        ("intl", "are mostly in Thai letters", ["สุนัข สีน้ำตาล กำลัง วิ่ง บน สนามหญ้า"]),
    ],
)
def test_auto(name: str, why: str, captions: list[str]) -> None:
    choice = choose_tokenizer("auto", captions)
    assert choice.tokenizer.name == name
    assert choice.sentence == f"--tokenize auto is {name}, because the reference captions {why}"
    assert choice.notes() == ([] if name == "ptb" else [choice.sentence])


def test_a_tokenizer_that_is_named() -> None:
    for name in TOKENIZERS:
        assert choose_tokenizer(name, KOREAN).sentence is None
        assert choose_tokenizer(name, KOREAN).tokenizer is TOKENIZERS[name]
    assert choose_tokenizer("char", CHINESE).notes() == []
    for name in ("ptb", "intl"):
        (note,) = choose_tokenizer(name, CHINESE).notes()
        assert note.startswith(
            f"captions are in Chinese, without spaces between words, so --tokenize {name} takes a whole"
        )
        assert note.endswith("; use --tokenize char")


def test_loops_and_words_of_health() -> None:
    looping = ["一只狗在草地上跑" * 3, CHINESE[0]]
    assert health(looping).loops == 0  # one word each
    found = health(looping, tokenizer=TOKENIZERS["char"], train_captions=["一只狗在草地上跑 " * 3])
    assert (found.loops, found.length["max"], found.vocabulary, found.novel) == (0.5, 24, 13, 0.5)
    assert found.sentence("character").startswith("18.5 characters per caption (")
    assert health(["갈색 개가 달리고 있다"] * 2, tokenizer=TOKENIZERS["intl"]).distinct == 0.5
    assert health(["a b c d a b c d a b c d"], tokenizer=TOKENIZERS["intl"]).loops == 1


# ---- commands -------------------------------------------------------------------------------------------------------


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


def test_inspect(chinese: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (chinese / "captions.txt", chinese / "cache"):
        for kept in (100_000, 3):  # more captions than are waited for
            monkeypatch.setattr(stats, "CHOOSE_BY", kept)
            found = inspect(InspectOptions(path))
            captions = found.values["captions"]
            assert captions["tokenize"] == "char"
            assert captions["words"] == {"min": 8, "median": 10, "max": 12}
            assert captions["vocabulary"] == len(set("".join(CHINESE)) - {"。"})
            assert captions["frequent"][0] == ["在", 24]
            (note,) = [note for note in found.values["notes"] if note.startswith("words are counted")]
            assert (
                note
                == "words are counted by --tokenize char, because the captions are in Chinese, without spaces between words"
            )
            assert "\n  in characters     8 to 12, median 10\n" in found.text
            assert f"\n  characters        {captions['vocabulary']} different: 在 24, 一 16, " in found.text


def test_inspect_counts_other_words() -> None:
    found = stats.CaptionStats()
    found.add([[KOREAN[0]], [HINDI[0]], RUSSIAN])
    values = found.values()
    assert (values["tokenize"], values["words"]) == ("intl", {"min": 4, "median": 5, "max": 6})
    assert ["कुत्ता", 1] in values["frequent"]
    assert "." not in dict(values["frequent"])


def judged(chinese: Path, folder: Path, **more: Any) -> Any:
    rows = [{"image": f"{n}.png", "caption": CHINESE[n % 3]} for n in range(12)]
    (folder / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return evaluate(EvaluateOptions(folder / "h.jsonl", chinese / "captions.txt", split="all", **more))


def test_evaluate(chinese: Path, tmp_path: Path) -> None:
    found = judged(chinese, tmp_path, page=tmp_path / "page.html", human=True, against=tmp_path / "h.jsonl")
    references = {str(n): [CHINESE[n % 3], CHINESE[(n + 1) % 3]] for n in range(12)}
    hypotheses = {str(n): CHINESE[n % 3] for n in range(12)}
    expected = score(hypotheses, references, tokenize=list).corpus  # no spaces there: a list of its characters
    assert {name: metric["score"] for name, metric in found.values["metrics"].items()} == pytest.approx(expected)
    assert "|tok:char,lc|" in found.values["signature"]
    note = "--tokenize auto is char, because the reference captions are in Chinese, without spaces between words"
    assert note in found.values["notes"]
    assert f"\nnote: {note}" in found.text
    assert "\nh.jsonl: 10.3 characters per caption" in found.text
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert note in page
    assert "Characters per caption" in page
    assert found.values["human"]["human"]["bleu_1"] < 0.5  # the two references of an image share few characters


def test_evaluate_by_a_tokenizer_that_does_not_fit(chinese: Path, tmp_path: Path) -> None:
    found = judged(chinese, tmp_path, tokenize="ptb")
    assert "|tok:ptb-corenlp-3.4.1|" in found.values["signature"]
    assert any(note.endswith("mean nothing; use --tokenize char") for note in found.values["notes"])
    with pytest.raises(
        InputError, match=r"^--metrics meteor: knows only English, .* auto is char, because .*; leave one"
    ):
        judged(chinese, tmp_path, metrics="meteor,bleu")
    with pytest.raises(
        InputError, match=r"^--metrics spice: knows only English, .* but --tokenize is intl; leave one of"
    ):
        judged(chinese, tmp_path, metrics="spice", tokenize="intl")
    with pytest.raises(InputError, match=r"^--tokenize zh: choose one of auto, ptb, intl, char\.$"):
        judged(chinese, tmp_path, tokenize="zh")


def test_english_is_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """auto is ptb, to the byte, and says so on stderr alone."""
    (tmp_path / "r.csv").write_text("image,caption\na.jpg,A dog can't run.\na.jpg,dogs\nb.jpg,Plan B.\n")
    (tmp_path / "h.jsonl").write_text('{"image": "a.jpg", "caption": "a dog"}\n{"image": "b.jpg", "caption": "plan"}\n')
    runs = [
        evaluate(EvaluateOptions(tmp_path / "h.jsonl", tmp_path / "r.csv", split="all", tokenize=name))
        for name in ("auto", "ptb")
    ]
    assert runs[0] == runs[1]
    said = capsys.readouterr()
    assert said.err.count("--tokenize auto is ptb, because the reference captions are in Latin letters") == 1
    assert said.out == ""


def test_finetune(chinese: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """auto holds through a run; one of before the option goes on with ptb; another tokeniser is another run."""
    from dataclasses import replace

    from toolkit.commands.finetune import finetune
    from toolkit.errors import OutputError
    from toolkit.options import FinetuneOptions

    options = FinetuneOptions(chinese / "cache", output_dir=tmp_path / "model", max_steps=1)
    found = finetune(options)
    note = "--tokenize auto is char, because the reference captions are in Chinese, without spaces between words"
    assert f"note: {note}" in capsys.readouterr().err
    assert f"\n  note: {note}" in found.text
    assert note in found.values["notes"]
    assert note in (tmp_path / "model/README.md").read_text(encoding="utf-8")
    file = tmp_path / "model/options.json"
    written = json.loads(file.read_text())
    assert (written["options"]["tokenize"], written["tokenizer"]) == ("auto", "char")
    assert "finished already" in finetune(replace(options, tokenize="char")).text
    with pytest.raises(OutputError, match=r"holds a run with other settings \(--tokenize auto, now intl\)"):
        finetune(replace(options, tokenize="intl"))

    del written["options"]["tokenize"], written["tokenizer"]
    file.write_text(json.dumps(written))
    assert "finished already" in finetune(options).text
    assert "finished already" in finetune(replace(options, tokenize="ptb")).text
    with pytest.raises(OutputError, match=r"\(--tokenize auto, now char\)"):
        finetune(replace(options, tokenize="char"))
    longer = finetune(replace(options, max_steps=2))
    assert any("so --tokenize ptb takes a whole clause" in note for note in longer.values["notes"])
    assert json.loads(file.read_text())["tokenizer"] == "ptb"
