"""English stems by Snowball's "Porter 2" algorithm, in the version that METEOR 1.5 has.

After the description at snowballstem.org/algorithms/english; that version has three words that begin with a fixed region
(`gener`, `commun`, `arsen`) and fewer exceptions than later ones, so a current library gives other stems. Words are lower-case.
"""

from __future__ import annotations

from functools import lru_cache

VOWELS = frozenset("aeiouy")
NOT_SHORT = VOWELS | frozenset("wxY")  # letters that a short syllable does not end in
VALID_LI = frozenset("cdeghkmnrt")
DOUBLES = ("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt")
REGIONS = ("arsen", "commun", "gener")
WHOLE = {
    "skis": "ski", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "idly": "idl", "gently": "gentl",
    "ugly": "ugli", "early": "earli", "only": "onli", "singly": "singl",
    **{word: word for word in ("andes", "atlas", "bias", "cosmos", "howe", "news", "sky")},
}  # fmt: skip
AFTER_1A = {"succeed", "proceed", "exceed", "canning", "inning", "earring", "herring", "outing"}
STEP_2 = {
    "tional": "tion", "enci": "ence", "anci": "ance", "abli": "able", "entli": "ent", "izer": "ize", "ization": "ize",
    "ational": "ate", "ation": "ate", "ator": "ate", "alism": "al", "aliti": "al", "alli": "al", "fulness": "ful",
    "ousli": "ous", "ousness": "ous", "iveness": "ive", "iviti": "ive", "biliti": "ble", "bli": "ble", "ogi": "og",
    "fulli": "ful", "lessli": "less", "li": "",
}  # fmt: skip
STEP_3 = {
    "tional": "tion", "ational": "ate", "alize": "al", "icate": "ic", "iciti": "ic", "ical": "ic", "ful": "", "ness": "",
    "ative": "",
}  # fmt: skip
STEP_4 = (
    "ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ism", "ate", "iti", "ous", "ive", "ize", "ion", "al",
    "er", "ic",
)  # fmt: skip


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a lower-case word."""
    if word in WHOLE:
        return WHOLE[word]
    if len(word) < 3:
        return word
    word = _marked(word.removeprefix("'"))
    r1, r2 = _regions(word)
    word = _step_1a(word)
    if word not in AFTER_1A:
        word = _step_1b(word, r1)
        if len(word) > 2 and word[-1] in "yY" and word[-2] not in VOWELS:
            word = word[:-1] + "i"
        word = _step_2(word, r1)
        word = _step_3(word, r1, r2)
        word = _step_4(word, r2)
        word = _step_5(word, r1, r2)
    return word.replace("Y", "y")


def _marked(word: str) -> str:
    """A y that is a consonant as Y: the first letter, and behind a vowel."""
    letters = list(word)
    for i, letter in enumerate(letters):
        if letter == "y" and (i == 0 or letters[i - 1] in VOWELS):
            letters[i] = "Y"
    return "".join(letters)


def _regions(word: str) -> tuple[int, int]:
    """Where R1 and R2 begin: behind the first consonant after a vowel, and the same again from there."""
    start = next((len(prefix) for prefix in REGIONS if word.startswith(prefix)), None)
    r1 = _behind(word, 0) if start is None else start
    return r1, _behind(word, r1)


def _behind(word: str, start: int) -> int:
    vowel = next((i for i in range(start, len(word)) if word[i] in VOWELS), len(word))
    return next((i + 1 for i in range(vowel + 1, len(word)) if word[i] not in VOWELS), len(word))


def _ending(word: str, endings: object) -> str | None:
    """The longest of some endings that a word has."""
    return max((e for e in endings if word.endswith(e)), key=len, default=None)  # type: ignore[attr-defined]


def _short(word: str) -> bool:
    """Whether it ends in a short syllable."""
    if len(word) > 2 and word[-1] not in NOT_SHORT and word[-2] in VOWELS and word[-3] not in VOWELS:
        return True
    return len(word) == 2 and word[1] not in VOWELS and word[0] in VOWELS


def _step_1a(word: str) -> str:
    word = word.removesuffix(_ending(word, ("'", "'s", "'s'")) or "")
    ending = _ending(word, ("sses", "ied", "ies", "us", "ss", "s"))
    if ending == "sses":
        return word[:-2]
    if ending in ("ied", "ies"):
        return word[:-2] if len(word) > 4 else word[:-1]
    if ending == "s" and not VOWELS.isdisjoint(word[:-2]):
        return word[:-1]
    return word


def _step_1b(word: str, r1: int) -> str:
    ending = _ending(word, ("eed", "eedly", "ed", "edly", "ing", "ingly"))
    if ending is None:
        return word
    rest = word.removesuffix(ending)
    if ending.startswith("eed"):
        return rest + "ee" if len(rest) >= r1 else word
    if VOWELS.isdisjoint(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if rest.endswith(DOUBLES):
        return rest[:-1]
    return rest + "e" if len(rest) == r1 and _short(rest) else rest


def _step_2(word: str, r1: int) -> str:
    ending = _ending(word, STEP_2)
    if ending is None:
        return word
    rest = word.removesuffix(ending)
    wrong = (ending == "ogi" and not rest.endswith("l")) or (ending == "li" and rest[-1:] not in VALID_LI)
    return word if len(rest) < r1 or wrong else rest + STEP_2[ending]


def _step_3(word: str, r1: int, r2: int) -> str:
    ending = _ending(word, STEP_3)
    if ending is None:
        return word
    rest = word.removesuffix(ending)
    return word if len(rest) < (max(r1, r2) if ending == "ative" else r1) else rest + STEP_3[ending]


def _step_4(word: str, r2: int) -> str:
    ending = _ending(word, STEP_4)
    if ending is None:
        return word
    rest = word.removesuffix(ending)
    return word if len(rest) < r2 or (ending == "ion" and rest[-1:] not in ("s", "t")) else rest


def _step_5(word: str, r1: int, r2: int) -> str:
    rest = word[:-1]
    if word.endswith("e"):
        return rest if len(rest) >= r2 or (len(rest) >= r1 and not _short(rest)) else word
    return rest if word.endswith("ll") and len(rest) >= r2 else word
