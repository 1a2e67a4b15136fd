"""JSON is read in pieces: the values, lines and mistakes are those of the whole, wherever a piece ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.annotations import _json
from toolkit.data.annotations._json import json_shape, read_json
from toolkit.errors import InputError

TEXTS = [
    '[1, 23, "a", {"b": [1.5, null]},\n\n true]',
    '\ufeff{"images": [{"é": "日本 \\ud83d"}, 7],\n "more": {"x": -12.5e3},\r\n "last": 123}\n\n',
    '{"a": [],\n "b": [[]], "c": "\\"]}\\\\"}',
    "[]",
    " {} ",
    "12",
    "",
    "[1, 2",
    '[1,\n 2\n, {"a": tru}]',
    '{"a": [1, 2],\n  "b" 3}',
    '{"a": "never ends',
    '{"a": 1}\n {"b": 2}',
    '[{"image": "a.jpg"},\n{"image": "b.jpg"} {"image": "c.jpg"}]',
]


def read(path: Path) -> tuple[list[Any], str | None]:
    found: list[Any] = []
    try:
        for value in read_json(path):
            found.append(value)
    except InputError as error:
        return found, str(error)
    return found, None


@pytest.mark.parametrize("text", TEXTS)
def test_wherever_a_piece_ends(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode())
    whole = read(path)
    try:
        json.loads(text.removeprefix("\ufeff"))
        assert (whole[1] is None) == (text != "12")
    except json.JSONDecodeError as error:
        assert f"line {error.lineno}, " in (whole[1] or "")  # noqa: PT017
    for window in range(1, 12):
        monkeypatch.setattr(_json, "WINDOW", window)
        assert read(path) == whole


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    """One line of 40 MB, and its format is told by the first values."""
    path = tmp_path / "a.json"
    row = json.dumps({"image": "a.jpg", "caption": "x" * 1000})
    path.write_text(f"[{', '.join([row] * 40_000)}]")
    values = read_json(path)
    line, key, value = next(values)
    assert (line, key, value) == (1, None, json.loads(row))
    source = values.gi_frame.f_locals["source"]  # type: ignore[attr-defined]
    assert sum(1 for _ in values) == 39_999
    assert len(source.text) < 3 * _json.WINDOW
    assert json_shape(path) is not None
