"""Which encoding bytes that are not UTF-8 look like: for the advice to convert them, never to read them by.

Each candidate decodes the bytes, and what comes out is weighed character by character: frequent letters of the language
count much, rare ones little, symbols amid words nothing. Captions are short, so that statistics of pairs, which need a
page of text, are wrong here more often than a look at the letters themselves.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable

SAMPLE_BYTES = 1 << 16

_KOREAN = frozenset(
    "이다는의에을가고를한은하지사들로기나자도인아서있리어그스대시해으전일정여게라부수주면과상적보안만원구니성무제동내경러신것저우마장선방했비습니두서길개소빨파입옷앉서걷달뛰들남여람"
)
_SIMPLIFIED = frozenset(
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又么利比或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题党程展五果料象员革位入常文总次品式活设及管特件长求老头基资边流路级少图山统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战先回则任取据处队南给色光门即保治北造百规热领七海口东导器压志世金增争济阶油思术极交受联认六共权收证改清己美再采转更单风切打白教速花带安场身车例真务具万每目至达走积示议声报斗完类八离华名确才科张信马节话米整空元况今集温传土许步群广石记需段研界拉林律叫且究观越织装影算低持音众书布复容儿须际商非验连断深难近矿千周委素技备半办青省列习响约支般史感劳便团往酸历市克何除消构府称太准精值号率族维划选标写存候毛亲快效斯院查江型眼王按格养易置派层片始却专状育厂京识适属圆包火住调满县局照参红细引听该铁价严狗猫穿衣草奔跑孩笑坐椅桌停汽男女跳站球骑"
)
_TRADITIONAL = frozenset(
    "的一是在不了有和人這中大為上個國我以要他時來用們生到作地於出就分對成會可主發年動同工也能下過子說產種面而方後多定行學法所民得經十三之進著等部度家電力裡如水化高自二理起小現實加量都兩體制機當使點從業本去把性好應開它合還因由其些然前外天政四日那社義事平形相全表間樣與關各重新線內數正心反你明看原又麼利比或但質氣第向道命此變條只沒結解問意建月公無系軍很情者最立代想已通並提直題黨程展五果料象員革位入常文總次品式活設及管特件長求老頭基資邊流路級少圖山統接知較將組見計別她手角期根論運農指幾九區強放決西被幹做必戰先回則任取據處隊南給色光門即保治北造百規熱領七海口東導器壓志世金增爭濟階油思術極交受聯認六共權收證改清己美再採轉更單風切打白教速花帶安場身車例真務具萬每目至達走積示議聲報鬥完類八離華名確才科張信馬節話米整空元況今集溫傳土許步群廣石記需段研界拉林律叫且究觀越織裝影算低持音眾書布復容兒須際商非驗連斷深難近隻狗貓穿衣草奔跑孩笑坐椅桌停汽男女跳站球騎紅旁"
)
_WESTERN = frozenset("éèêëàâäáãåæçíìîïñóòôöõøœúùûüßÿ¿¡ÉÈÊÀÂÄÁÅÆÇÍÎÑÓÔÖØŒÚÜ")
_CENTRAL = frozenset("ąćęłńóśźżčďěňřšťůžáéíýúőűşţăâîđäöüßôľĺŕĄĆĘŁŃÓŚŹŻČĎĚŇŘŠŤŮŽÁÉÍÝÚŐŰŞŢĂÂÎĐÄÖÜ")
_TURKISH = frozenset("çğıöşüâîûÇĞİÖŞÜ")
_PUNCTUATION = frozenset("“”‘’–—…«»„‚€°´")


def likely_encoding(data: bytes) -> str:
    """The name, as `iconv` and Python know it, of the encoding that some text most likely has."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    return max(_CANDIDATES, key=lambda name: _score(data, name))


def _score(data: bytes, name: str) -> float:
    """How much of what isn't ASCII is as the language has it: 0 to 1; below 0 for bytes that the encoding hasn't."""
    try:
        text = codecs.getincrementaldecoder(name)().decode(data)  # not final: a sample may end within a character
    except UnicodeDecodeError:
        return -1
    weigh = _CANDIDATES[name]
    weights = [weigh(text, i) for i, char in enumerate(text) if not char.isascii()]
    return sum(weights) / len(weights) if weights else -1


def _common_in(charset: str, char: str) -> bool:
    try:
        char.encode(charset)
    except UnicodeEncodeError:
        return False
    return True


def _east_asian(frequent: frozenset[str], charset: str) -> Callable[[str, int], float]:
    def weigh(text: str, i: int) -> float:
        char = text[i]
        if char in "，。、！？；：「」『』“”《》（）":
            return 0.6
        if not "\u4e00" <= char <= "\u9fff":
            return 0
        return 1 if char in frequent else 0.4 if _common_in(charset, char) else 0

    return weigh


def _japanese(text: str, i: int) -> float:
    char = text[i]
    if "\u3041" <= char <= "\u30fe":
        return 1
    if char in "、。「」！？（）・":
        return 0.8
    return 0.5 if "\u4e00" <= char <= "\u9fff" else 0  # half-width katakana: what stray bytes become


def _korean(text: str, i: int) -> float:
    char = text[i]
    if not "\uac00" <= char <= "\ud7a3":
        return 0
    return 1 if char in _KOREAN else 0.6 if _common_in("euc_kr", char) else 0.2


def _latin(letters: frozenset[str]) -> Callable[[str, int], float]:
    def weigh(text: str, i: int) -> float:
        char = text[i]
        if char in _PUNCTUATION:
            return 0.7
        if char not in letters:
            return 0
        beside = text[max(0, i - 1) : i] + text[i + 1 : i + 2]
        return 0.9 if any(c.isascii() and c.isalpha() for c in beside) or beside.isspace() else 0.3

    return weigh


def _of_script(script: str) -> Callable[[str, int], float]:
    """Alphabets of their own: words are in lower case but for their first letter, and not mixed with Latin letters."""

    def weigh(text: str, i: int) -> float:
        char = text[i]
        if char in _PUNCTUATION:
            return 0.7
        if not unicodedata.name(char, "").startswith(script):
            return 0
        start, end = i, i + 1
        while start and text[start - 1].isalpha():
            start -= 1
        while end < len(text) and text[end].isalpha():
            end += 1
        word = text[start:end]
        if re.search("[A-Za-z]", word) or not (word[1:].islower() or word.isupper() or len(word) == 1):
            return 0
        return (
            0.95
            if all(char.isalpha() or char in " \n.,;:!?-\"'" for char in text[max(0, start - 1) : end + 1])
            else 0.5
        )

    return weigh


# The first of equals is taken.
_CANDIDATES: dict[str, Callable[[str, int], float]] = {
    "cp1252": _latin(_WESTERN),
    "cp1250": _latin(_CENTRAL),
    "cp1254": _latin(_TURKISH),
    "cp1251": _of_script("CYRILLIC"),
    "cp1253": _of_script("GREEK"),
    "cp949": _korean,
    "cp932": _japanese,
    "euc-jp": _japanese,
    "gb18030": _east_asian(_SIMPLIFIED, "gb2312"),
    "big5": _east_asian(_TRADITIONAL, "big5"),
}
