"""Captions of the drawn scenes in Korean and Chinese: five wordings of each, all correct, and whether a caption is one of them.

Korean particles follow the sound that a noun ends in: 고리가, but 삼각형이. Every shape is counted with 个 in Chinese, and 하나 is
"one" in Korean. As in English a size has a second word (조그마한, 커다란) or place (红色的小十字) in one of the wordings.
"""

from __future__ import annotations

import unicodedata

from toolkit.data.scenes import INVERSE, Scene, SceneObject

KOREAN = {
    "red": "빨간", "green": "초록색", "blue": "파란", "yellow": "노란", "purple": "보라색", "black": "검은",
    "ring": "고리", "square": "정사각형", "triangle": "삼각형", "cross": "십자가",
    "small": "작은", "large": "큰", "little": "조그마한", "big": "커다란",
    "on the left": "왼쪽에", "on the right": "오른쪽에", "at the top": "위쪽에", "at the bottom": "아래쪽에",
    "in the middle": "가운데에",
    "to the left of": "왼쪽에", "to the right of": "오른쪽에", "above": "위쪽에", "below": "아래쪽에",
}  # fmt: skip
CHINESE = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色", "black": "黑色",
    "ring": "圆环", "square": "正方形", "triangle": "三角形", "cross": "十字",
    "small": "小", "large": "大",
    "on the left": "左边", "on the right": "右边", "at the top": "上方", "at the bottom": "下方", "in the middle": "中间",
    "to the left of": "左边", "to the right of": "右边", "above": "上方", "below": "下方",
}  # fmt: skip


def _ending(noun: str, after_consonant: str, after_vowel: str) -> str:
    """The noun with its particle: a Hangul syllable that ends in a consonant decomposes into three letters."""
    return noun + (after_consonant if len(unicodedata.normalize("NFD", noun[-1])) == 3 else after_vowel)


def _korean(item: SceneObject, second: bool = False) -> str:
    size = {"small": "little", "large": "big"}[item["size"]] if second else item["size"]
    return f"{KOREAN[size]} {KOREAN[item['colour']]} {KOREAN[item['shape']]}"


def korean(scene: Scene) -> list[str]:
    """ "왼쪽에 작은 빨간 십자가가 있다" (on the left there is a small red cross), and four more."""
    first, last = scene["objects"][0], scene["objects"][-1]
    a, other = _korean(first), _korean(first, True)
    if len(scene["objects"]) == 1:
        p = KOREAN[scene["says"]]
        return [
            f"{p} {_ending(a, '이', '가')} 있다",
            f"{_ending(a, '은', '는')} {p} 있다",
            f"그림의 {p} {_ending(a, '이', '가')} 보인다",
            f"{p} 있는 {a}",
            f"{other} 하나가 {p} 있다",
        ]
    b, another = _korean(last), _korean(last, True)
    r, i = KOREAN[scene["says"]], KOREAN[INVERSE[scene["says"]]]
    return [
        f"{b}의 {r} {_ending(a, '이', '가')} 있다",
        f"{_ending(a, '은', '는')} {b}의 {r} 있다",
        f"{a}의 {i} {_ending(b, '이', '가')} 보인다",
        f"{b}의 {r} 있는 {a}",
        f"{_ending(other, '이', '가')} 있고 그 {i} {_ending(another, '이', '가')} 있다",
    ]


def _chinese(item: SceneObject, second: bool = False) -> str:
    size, colour, shape = CHINESE[item["size"]], CHINESE[item["colour"]], CHINESE[item["shape"]]
    return f"{colour}的{size}{shape}" if second else f"{size}的{colour}{shape}"


def chinese(scene: Scene) -> list[str]:
    """ "左边有一个小的红色十字" (on the left there is a small red cross), and four more."""
    first, last = scene["objects"][0], scene["objects"][-1]
    a, other = _chinese(first), _chinese(first, True)
    if len(scene["objects"]) == 1:
        p = CHINESE[scene["says"]]
        return [f"{p}有一个{a}", f"一个{a}在{p}", f"图片的{p}有一个{a}", f"这幅图的{p}是一个{a}", f"一个{other}位于{p}"]
    b, another = _chinese(last), _chinese(last, True)
    r, i = CHINESE[scene["says"]], CHINESE[INVERSE[scene["says"]]]
    return [
        f"在一个{b}的{r}有一个{a}",
        f"一个{a}在一个{b}的{r}",
        f"图片里有一个{a}，它的{i}是一个{b}",
        f"一个{b}在一个{a}的{i}",
        f"一个{another}位于一个{other}的{i}",
    ]


LANGUAGES = {"Korean": korean, "Chinese": chinese}


def judge(caption: str, scene: Scene, language: str) -> bool:
    """Whether a caption says exactly what was drawn, as `toolkit.data.scenes.judge` does in English: it is one of the wordings,
    with the two objects in either order and either word for a size."""
    captions_of = LANGUAGES[language]
    right = captions_of(scene)
    if len(scene["objects"]) == 2:
        right += captions_of({**scene, "objects": scene["objects"][::-1], "says": INVERSE[scene["says"]]})
    return _plain(caption) in {_plain(text) for text in right}


def _plain(caption: str) -> str:
    """One word for each size; the second order of the Chinese words is that of its own wording, and stays."""
    return " ".join(caption.split()).replace("조그마한", "작은").replace("커다란", "큰")
