"""Words of captions: against what pycocoevalcap's tokenizer gave (tests/data/metrics/tokens.jsonl), and against it."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from toolkit.evaluation.ptb import ptb_tokenize, ptb_tokenize_lines

ROOT = Path(__file__).parents[2]
STORED = [json.loads(line) for line in (ROOT / "tests/data/metrics/tokens.jsonl").read_text("utf-8").splitlines()]


def test_stored() -> None:
    """2,027 captions and oddities with the words that the jar gave."""
    wrong = [(caption, words, ptb_tokenize(caption)) for caption, words in STORED]
    assert [row for row in wrong if " ".join(row[2]) != row[1]] == []


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("", []),
        ("  \n ", []),
        ("A dog runs .", ["a", "dog", "runs"]),
        ("A man's dog doesn't bark.", ["a", "man", "'s", "dog", "does", "n't", "bark"]),
        ("It’s Bob’s; he can’t", ["it", "'s", "bob", "'s", "he", "ca", "n't"]),
        ("I cannot, gonna", ["i", "can", "not", "gon", "na"]),
        ("a well-known T-shirt -- red", ["a", "well-known", "t-shirt", "red"]),
        ("1,000 dogs at 5:30pm (1/2)", ["1,000", "dogs", "at", "5:30", "pm", "-lrb-", "1/2", "-rrb-"]),
        ("1 1/2 cups", ["1\xa01/2", "cups"]),
        ("Mr. Dog on Main St. at 5 p.m.", ["mr.", "dog", "on", "main", "st.", "at", "5", "p.m."]),
        ("He said \"no\" and 'yes'", ["he", "said", "no", "and", "yes"]),
        ("café 😀 ❤️ naïve", ["café", "❤", "naïve"]),
        ("$5 €5 £5 5¢", ["$", "5", "$", "5", "#", "5", "5", "cents"]),
        ("wow!! #cute @home <unk>", ["wow", "!!", "#cute", "@home", "<unk>"]),
        ("the '90s rock 'n' roll", ["the", "'90s", "rock", "'n'", "roll"]),
        ("a line\nand another\r\nor\u2028three", ["a", "line", "and", "another", "or", "three"]),
    ],
)
def test_words(caption: str, words: list[str]) -> None:
    assert ptb_tokenize(caption) == words


def test_next_line() -> None:
    """Two abbreviations depend on the next caption, as all captions are one text there."""
    assert ptb_tokenize_lines(["Plan B.", "A dog", "plan B.", "a dog", "No.", "5 dogs", "no."]) == [
        ["plan", "b"], ["a", "dog"], ["plan", "b."], ["a", "dog"], ["no."], ["5", "dogs"], ["no"],
    ]  # fmt: skip
    assert ptb_tokenize_lines(["Plan B.", "", " The dog"]) == [["plan", "b"], [], ["the", "dog"]]
    assert ptb_tokenize_lines([]) == []


def test_long_and_hostile() -> None:
    """Time is linear enough: no rule backtracks through a long word."""
    for piece in (
        "a",
        "a-",
        "a.",
        "a,",
        "a'",
        "a_",
        "a/",
        "1 ",
        "1-",
        "&eacute;",
        "<a ",
        "@",
        "a@",
        "(",
        "'n",
        "http://",
        "é",
    ):
        ptb_tokenize(piece * 400)
        ptb_tokenize(piece * 400 + "!")
    assert ptb_tokenize("\ud800dog \x00cat") == ["dog", "cat"]


NOUNS = [
    "man",
    "woman",
    "dog",
    "cat",
    "boy",
    "girl",
    "bike",
    "street",
    "car",
    "T-shirt",
    "skateboard",
    "Frisbee",
    "X-ray",
    "hot-dog",
    "2-year-old",
    "St.-Bernard",
    "Dr.",
    "Mr.",
    "Smith",
    "U.S.",
    "flag",
    "747",
    "McDonald's",
    "café",
    "jalapeño",
    "Coca-Cola",
    "ATV",
    "SUV",
    "o'clock",
    "jack-o'-lantern",
    "AT&T",
    "H&M",
    "iPhone5",
    "D.C.",
    "7-Eleven",
    "No.",
    "5",
    "jersey",
    "Ph.D.",
    "student",
    "5th",
    "Ave.",
    "e-mail",
    "PC's",
    "CDs",
    "1950s",
    "'57",
    "4x4",
    "yin-yang",
    "L.A.",
    "Washington",
    "3-D",
    "J.Crew",
    "O'Brien",
]
OTHERS = [
    "red",
    "blue",
    "well-dressed",
    "black-and-white",
    "3-legged",
    "(small)",
    '"big"',
    "'old'",
    "“fancy”",
    "‘tiny’",
    "50%",
    "6'",
    "6'2\"",
    '12"',
    "20ft",
    "1/2",
    "1",
    "1/2",
    "1,000",
    "3.5",
    "½",
    "$5",
    "£3",
    "€20",
    "5¢",
    "man-made",
    "rock-'n'-roll",
    "is",
    "aren't",
    "can't",
    "cannot",
    "gonna",
    "wanna",
    "gotta",
    "sittin'",
    "they're",
    "he's",
    "she'll",
    "I'd",
    "we've",
    "it’s",
    "that's",
    "y'all",
    "let's",
    "couldn't've",
    "on",
    "in",
    "w/",
    "w/o",
    "and/or",
    "&",
    "and,",
    "or;",
    "at:",
    "5:30",
    "pm,",
    "5",
    "p.m.",
    "12/25/2012",
    "1:15a.m.",
    "9-5",
    "vs.",
    "a.k.a.",
    "e.g.",
    "etc.",
    "–",
    "—",
    "--",
    "-",
    "...",
    "…",
    "near,",
    "in-between",
    "a",
    "the",
    "an",
    "two",
]
ENDS = [
    "",
    ".",
    "!",
    "?",
    " .",
    "...",
    "!!",
    '."',
    ".'",
    ".)",
    "…",
    ";",
    ", etc.",
    " :)",
    "😀",
    " ❤️",
    "*",
    " #cute",
    " ",
    "”",
]


def drawn(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(rng.choice((NOUNS, OTHERS))) for _ in range(rng.randint(2, 12))) + rng.choice(ENDS)
        for _ in range(count)
    ]


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_against_the_jar() -> None:
    """12,000 captions and all stored ones in one run of pycocoevalcap's tokenizer."""
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    captions = [*drawn(12_000, seed=0), *re.split(r"(?<=[.!?]) (?=[A-Z])", text), *(row[0] for row in STORED), "dog"]
    expected = tokenizer.tokenize({0: [{"caption": caption} for caption in captions]})[0]
    pairs = zip(captions, expected, map(" ".join, ptb_tokenize_lines(captions)), strict=True)
    assert [row for row in pairs if row[1].split(" ") != row[2].split(" ")] == []
