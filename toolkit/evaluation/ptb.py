r"""Captions to words as the COCO evaluation does it, without Java.

`ptb_tokenize` gives what pycocoevalcap 1.2's `PTBTokenizer` gives: Stanford CoreNLP 3.4.1's tokenizer with
`-preserveLines -lowerCase`, minus pycocoevalcap's list of punctuation. The rules below reproduce its output:
at each place the rule with the longest match wins, and of two equally long ones the earlier. Its surprising outputs are
kept:

- brackets stay as `-lrb-`, `-rrb-`, `-lcb-`, ... (the list has them in capitals, the words are lower-case by then);
- `!!`, `?!`, `**`, `__` and five or more hyphens stay; `!`, `?`, `*` alone: only the first two go;
- GBP becomes `#`, EUR becomes `$`, a cent sign `cents`; emoji outside the basic plane vanish;
- `1 1/2` and telephone numbers are one word with a no-break space in it (BLEU and CIDEr then split it, ROUGE does not).

Known differences: web and mail addresses with unusual characters; abbreviations with a letter directly after their
full stop ("Jr.a"); markup with quoted attributes; letters that Unicode got after 2012 (they vanish there) where Python's
tables are newer than 2021; a clitic as the very last word of the whole text ("'s" is then cut in two there). A caption
with a carriage return or another line separator but a line feed shifts all later captions by one there, so that they
count for other images; here it is a space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

Tokenize = Callable[[str], list[str]]  # a caption -> its words

# What pycocoevalcap removes (ptbtokenizer.py: PUNCTUATIONS); its brackets never match lower-case words.
_PUNCTUATION = frozenset(["", "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# where a word depends on what is beyond a space: 1 1/2, (555) 5555, fig. 5, vitamin C. The, <a b>
_CONTEXT = re.compile(r"<|[0-9)]\s+[0-9]|\.(?:\s+[0-9]|(?:(?<=[^A-Za-z][A-Za-z]\.)|(?<=^[A-Za-z]\.))\s+[A-Z])")


def ptb_tokenize(caption: str) -> list[str]:
    """Words of an English caption, lower-case, without punctuation: "A man's dog." -> ["a", "man", "'s", "dog"]."""
    if _CONTEXT.search(caption):
        return list(_scan(caption))
    words: list[str] = []
    for chunk in caption.split():
        words += _chunk(chunk)
    return words


def ptb_tokenize_lines(captions: Sequence[str]) -> list[list[str]]:
    """Words of captions as pycocoevalcap gives them for a whole corpus in this order.

    It hands all captions over as one text, a line each, and looks past the end of a line in two cases: "plan B." keeps
    its full stop unless the next caption begins with "A", "The" and so on, "No." keeps it only before a digit. All other
    captions are as `ptb_tokenize` gives them, which knows no next caption.
    """
    words = [ptb_tokenize(caption) for caption in captions]
    for i, caption in enumerate(captions):
        if caption.rstrip().endswith(".") and _OPEN_END.search(caption):
            rest = next((j for j in range(i + 1, len(captions)) if captions[j].strip()), i)
            words[i] = _scan("\n".join(captions[i : rest + 1]), len(caption))
    return words


@lru_cache(maxsize=1 << 16)
def _chunk(chunk: str) -> tuple[str, ...]:
    plain = chunk.isascii() and chunk.isalpha() and chunk.lower() not in _HALVES
    return (chunk.lower(),) if plain else tuple(_scan(chunk))


def _scan(text: str, end: int | None = None) -> list[str]:
    """All rules at every place: the slow way, some 0.1 ms for a caption. Words begin before `end`."""
    if text.isascii():
        rules = _rules(False)
    else:
        text = text.translate(_SAME)
        rules = _rules(True)
    words: list[str] = []
    at, end = 0, len(text) if end is None else end
    while at < end:
        if text[at].isspace():
            at += 1
            continue
        reach, word, kind = 0, text[at], "char"
        for match, name in rules:
            found = match(text, at)
            if found and found.end() - at > reach:
                reach, word, kind = found.end() - at, found[found.lastindex or 0], name
        at += len(word)
        word = _WRITE[kind](word).lower() if kind in _WRITE else word.lower()
        if word not in _PUNCTUATION:
            words.append(word)
    return words


# --- what is written for what is read -------------------------------------------------------------------------------

# cannot -> can not, and so on, unless something else reaches farther
_HALVES = {"cannot": 3, "gonna": 3, "wanna": 3, "gotta": 3, "lemme": 3, "gimme": 3}
# Windows' characters in the places of control characters; line separators
_SAME = str.maketrans("\x80\x85\x91\x92\x93\x94\x96\x97\u2028\u2029", "€…‘’“”–—  ")
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-"})
_CHARACTERS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    '"': "",
    "£": "#",
    "€": "$",
    "¤": "$",
    "₠": "$",
    "¢": "cents",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "⅓": "1/3",
    "⅔": "2/3",
    **dict.fromkeys("…–—―\u00ad\u2010\u2011\u066b\u066c", ""),
}
_QUOTES = str.maketrans(
    {**dict.fromkeys("‘‛‹", "`"), **dict.fromkeys("’›", "'"), **dict.fromkeys("“«", "``"), **dict.fromkeys("”»", "''")}
)
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}


def _character(word: str) -> str:
    if word in _CHARACTERS:
        return _CHARACTERS[word]
    return word if (word.isascii() and word > " ") or word in _symbols() else ""


_WRITE = {
    "char": _character,
    "drop": lambda word: "",
    "entity": lambda word: _ENTITIES.get(word.lower(), ""),
    "letters": lambda word: word.replace("\u00ad", ""),
    "clitic": lambda word: re.sub("(?i)’|&apos;", "'", word).replace("‘", "`"),
    "capitals": lambda word: re.sub("(?i)&amp;", "&", word),
    "spaced": lambda word: re.sub(r"[ \xa0]", "\xa0", word).translate(_BRACKETS),
    "smiley": lambda word: word.translate(_BRACKETS),
    "quotes": lambda word: word.translate(_QUOTES),
    "markup": lambda word: re.sub(r"\s", "\xa0", word),
}

# --- characters beyond ASCII, as hexadecimal ranges ------------------------------------------------------------------

# continue a word, but not a number
_MARK_RANGES = """2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7 615-61a
64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955 962-963 981-983 9bc
9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03
c3e-c56 d3e-d44 d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd"""
# are a word each; whatever is in no class vanishes and parts words
_SYMBOL_RANGES = """a1 a5-a9 ac ae-b4 b6-b9 bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60c 614 61b 61e-61f 66a 66d 6d4
700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2016-2017 201a-2023 2030-2038 203b 203e-2042 2044 2070 2074-207e 2080-208e 20a4
2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f
2155-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"""
# letters and digits of today's Unicode that vanish
_NEWER_RANGES = """37f 528-52f 560 588 5ef 860-86a 870-887 889-88e 8a1 8ad-8c9 978 980 9fc af9 c34 c5a c5d c80 cdd d04 d54-d56 d5f
de6-def e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5 13f8-13fd 16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0
19c8-19c9 1b4c 1c80-1c88 1c90-1cba 1cbd-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf 9fcd-9fff
a698-a69d a78f a794-a79f a7ab-a7ca a7d0-a7d1 a7d3 a7d5-a7d9 a7f2-a7f7 a8fd-a8fe a9e0-a9e4 a9e6-a9fe aa7e-aa7f
ab30-ab5a ab5c-ab69 ab70-abbf"""


def _characters(ranges: str) -> str:
    """The characters of "61-63 78": "abcx"."""
    bounds = [[int(bound, 16) for bound in part.split("-")] for part in ranges.split()]
    return "".join(chr(code) for pair in bounds for code in range(pair[0], pair[-1] + 1))


def _class(characters: str) -> str:
    """The inside of a regular expression's [...] for sorted characters: "abcx" -> "a-cx-x"."""
    starts = [c for c, before in zip(characters, " " + characters, strict=False) if ord(c) != ord(before) + 1]
    ends = [c for c, after in zip(characters, characters[1:] + " ", strict=True) if ord(c) != ord(after) - 1]
    return "".join(f"{start}-{end}" for start, end in zip(starts, ends, strict=True))


@cache
def _letters() -> str:
    newer = frozenset(_characters(_NEWER_RANGES))
    every = map(chr, range(0x80, 0x10000))
    return _class("".join(c for c in every if unicodedata.category(c) in _LETTER_CATEGORIES and c not in newer))


@cache
def _symbols() -> frozenset[str]:
    return frozenset(_characters(_SYMBOL_RANGES))


_LETTER_CATEGORIES = frozenset(["Lu", "Ll", "Lt", "Lm", "Lo", "Nd"])

# --- lists, as alternatives of a regular expression --------------------------------------------------------------------

# abbreviations: their full stop belongs to them
_ABBREVIATIONS = (
    "adj|adm|adv|ala?|alex|apr|ariz|ass(?:n|oc|t)|attys?|aug|ave|bhd|bldg|blvd|brig|bros|calif|capt|cf|cie|cmdr|co|colo?|"
    "comdr|conn|corp|cos|cpl|ct|dak|dec|dep?t|det|drs?|elec|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|govs?|hon|in[cd]|"
    "insp|intl|invt|jan|jos|jr|jul|jun|kans?|ky|lieut|ltd?|maj|mar|md|messrs|mfg|mich|minn|mlle|mme|mo|mont?|mrs?|ms|msgr|"
    "mt|mtg|natl|neb|nev|nov|oct|okla|penn|pfc|ph|plc|pptes?|pptys?|pres|profs?|ptes?|ptys?|pvt|rd|reps?|rev|rt|sens?|"
    "sept?|seq|sfc|sgt|spc|sq|sr|st|ste|supts?|sys|tel|tenn|thu|thurs|treas|tues?|univ|va|vs|vt|wed|wis|wisc|wm|wyo"
)
_CAPITALISED = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"  # abbreviations only as here or all in capitals
_BEFORE_NUMBERS = "art|ca|figs?|nos?|op|pp|prop"  # abbreviations only before a digit
# begin a sentence when capitalised: before them the full stop of "vitamin C." ends one
_STARTERS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now|Once|One|"
    "Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)
# of files: "5.py" is a word, "5.dog" is three
_EXTENSIONS = "bat|bmp|c|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip"

_OPEN_END = re.compile(rf"(?:(?:^|[^A-Za-z])[A-Za-z]|(?i:{_BEFORE_NUMBERS}))\.\s*$")


@cache
def _rules(unicode: bool) -> list[tuple]:
    """(match function, how to write it), in order of preference. A group is the word; what follows it is only seen."""
    letters = "A-Za-z" + (_letters() if unicode else "")
    w = f"[{letters}0-9]"
    hyphen = "[-‐‑]" if unicode else "-"
    soft = "\u00ad" if unicode else ""
    marks = _class(_characters(_MARK_RANGES)) if unicode else ""
    accent = "&[aeiouAEIOU](?i:acute|grave|uml);"
    word = f"(?:[{letters}0-9{soft}]|{accent})"
    any_letter = f"(?:[{letters}{soft}{marks}]|{accent})"
    running = f"(?:[{letters}0-9{soft}{marks}]|{accent})"
    apostrophe = "(?:['’]|(?i:&apos;))"
    end = f"(?!{w})"
    clitic = "(?:(?:'|(?i:&apos;))(?i:s|d|m|ll|re|ve)(?![A-Za-z])|’(?i:s|d|m|ll|re|ve))"
    initials = r"[A-Za-z](?:\.[A-Za-z])+"
    joined = f"{word}+(?:_{word}+)*"
    part = f"(?:[dDoOlL]{apostrophe}{w}{{2,}}|{joined})"
    atom = rf"(?:{initials}\.|{part})"
    hyphened = f"(?:{part}|[A-Za-z0-9][A-Za-z0-9.,]*){hyphen}{part}(?:{hyphen}{part})*"
    dotted = rf"[{letters}{marks}][{letters}0-9{marks}]*(?:\.[{letters}{marks}][{letters}0-9{marks}]*)+"
    slash = r"(?:\\?/)"
    slashed = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    not_in_url = r"\s\"<>|()"
    last_in_url = not_in_url + r".!?,{}\-"
    path = f"/[^{not_in_url}]+[^{last_in_url}]"
    fraction = "(?:\\\\?/|⁄)"
    tag = "[A-Za-z][A-Za-z0-9:._-]*"
    face = "[-^x=~<>']"
    rules = [
        # half a word; the other half is a word of its own
        *((f"((?i:{whole[:cut]}))(?i:{whole[cut:]}){end}", "") for whole, cut in _HALVES.items()),
        ("('[tT])(?i:is|was)", ""),
        # clitics
        (f"([A-Za-z{soft}]*[A-MO-Za-mo-z])(?i:n(?:['’`‘]|&apos;)t)", "letters"),
        ("(?i:n(?:['’`‘]|&apos;)t)", "clitic"),
        (f"({running}+){clitic}", "letters"),
        (clitic, "clitic"),
        # words with an apostrophe
        ("['’][nN]['’]", ""),
        (r"'[nN](?=\s|$)|’[nN]", ""),
        ("['’](?i:em|till?|cause)", ""),
        (r"['’][0-9][0-9](?:s|(?=\s|$))", ""),
        (f"((?i:[yj]['’]))[{letters}]", ""),
        (f"(?i:[djl])['’]|(?i:ol)['’]{end}", ""),
        ("(?i:cap['’]n|c['’]mon|c['’]est|o['’]o|e'er|li['’]l|ev['’]ry|d['’]ye|ne['’]er|o['’]er)", ""),
        (f"[dDoOlL]['’`‘]{w}{{2,}}|[A-HJ-XZn]['’`‘][{letters}]{{2,}}", ""),
        (f"[{letters}]+[aeiouyAEIOUY]['’`‘][aeiouAEIOU][A-Za-z]*", ""),
        # the web
        (f'<{tag}(?:[ ]+{tag}(?:="[^"]*")?)*[ ]?/?>|</{tag}[ ]?>|<[!?][A-Za-z-][^>]*>', "markup"),
        (f"(?i:https?)://[^{not_in_url}]+[^{last_in_url}]", ""),
        (rf"(?i:www)\.(?:[A-Za-z0-9-]+\.)+[A-Za-z]{{2,4}}(?:{path})?", ""),
        (rf"(?:[{letters}~*+%#&]+\.)+(?i:com|net|org|edu)(?:{path})?", ""),
        (rf"<?[A-Za-z0-9][^{not_in_url}{{}}]*@(?:[^{not_in_url}.{{}}]+\.)*[^{not_in_url}.{{}}]+>?", ""),
        (f"@[A-Za-z_][A-Za-z0-9_]*|#[{letters}]+", ""),
        # names of things
        (f"{atom}(?:{hyphen}{atom})+", "letters"),
        (hyphened, "letters"),
        (rf"(?i:ph\.d\.)|{initials}\.?|[A-Za-z]\.", ""),
        (f"((?i:co|corp|etc|inc|jr|ltd)[.])[{letters}]", ""),
        (rf"([A-Za-z])\.\s+(?:{_STARTERS}|{_STARTERS.upper()})(?:\s|$)", ""),
        (rf"(?i:{_ABBREVIATIONS})\.|(?:{_CAPITALISED}|{_CAPITALISED.upper()})\.", ""),
        (rf"((?i:{_BEFORE_NUMBERS})\.)\s?[0-9]", ""),
        (rf"((?:{hyphened}|{dotted}|{joined})\.)[,;:]", "letters"),
        (rf"((?i:anti|pro)-)(?![{letters}0-9])", ""),
        ("[A-Z]+(?:(?:(?i:&amp;)|[&+])[A-Z]+)+", "capitals"),
        ("[A-Z]+\\$", ""),
        (r"[Cc]\+\+|[CcFf]#", ""),
        (rf"{w}+(?:\.{w}+)*\.(?i:{_EXTENSIONS}){end}", ""),
        (dotted + f"(?:{hyphen}{w}+)*", ""),
        (f"[{letters}]{w}*(?:[.!?][{letters}]{w}*)+", ""),
        (f"{slashed}{slash}{slashed}(?:{slash}{slashed})?", ""),
        # numbers
        (
            r"(?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])[0-9]{3,4}[- \xa0]?[0-9]{3,5}",
            "spaced",
        ),
        (f"(?:[0-9]{{1,4}}[- \xa0])?[0-9]{{1,4}}{fraction}[0-9]{{1,4}}", "spaced"),
        ("[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}", ""),
        ("[-+]?[0-9]*(?:[.,:⁄\u066b\u066c][0-9]+)+|[-+]?[0-9]+", ""),
        # plain words, and what is neither
        (joined, "letters"),
        (f"{any_letter}{running}*", "letters"),
        (r"[<>]?[:;=][-o']?[()DdPpO@\\|\[\]{](?![A-Za-z0-9])", "smiley"),
        (rf"\({face}[_.]?{face}\)|{face}_{face}", "smiley"),
        ("(?i:&(?:lt|gt|amp|quot|nbsp|apos|mdash|ndash);)", "entity"),
        ("&#[0-9]+;", ""),
        (r"[!?]+|<<|>>|(?:\\\*)+|_+|\*+|#+|@+|-{5,}", ""),
        (r"-+|\.\.\.+|''", "drop"),
    ]
    if unicode:
        rules += [("[«»‹›‘-‟`]{1,2}", "quotes"), ("[²³¹⁰⁴-⁹]+|[₀-₉]+", "")]
    return [(re.compile(pattern).match, kind) for pattern, kind in rules]
