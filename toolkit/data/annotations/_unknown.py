"""What a file is that is no annotation file, for the sentence that says so."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

from toolkit.data.annotations._json import json_shape, read_json
from toolkit.data.annotations._text import head
from toolkit.data.images import is_image

_BINARY = (
    (b"PK\x03\x04", "an archive (zip)", "unpack it and name the file or folder in it"),
    (b"\x1f\x8b", "an archive (gzip)", "unpack it and name the file or folder in it"),
    (b"BZh", "an archive (bzip2)", "unpack it and name the file or folder in it"),
    (b"\xfd7zXZ", "an archive (xz)", "unpack it and name the file or folder in it"),
    (b"\x28\xb5\x2f\xfd", "an archive (zstandard)", "unpack it and name the file or folder in it"),
    (b"7z\xbc\xaf\x27\x1c", "an archive (7z)", "unpack it and name the file or folder in it"),
    (b"Rar!", "an archive (rar)", "unpack it and name the file or folder in it"),
    (b"%PDF", "a PDF", "give a table of image names and captions"),
    (b"\xd0\xcf\x11\xe0", "an Office document", "save it as CSV UTF-8 and name that"),
    (b"ARROW1", "an Arrow file", "name the folder that `save_to_disk` wrote, or write it as Parquet"),
    (b"SQLite format 3", "an SQLite database", "export the table with the captions as CSV"),
    (b"\x80\x04", "a pickle", "write its captions as CSV, JSON Lines or Parquet"),
    (b"\x93NUMPY", "a NumPy array", "write its captions as CSV, JSON Lines or Parquet"),
)
_OFFICE = re.compile(rb"(xl|word|ppt)/|\[Content_Types\]\.xml")


def named_for_what_it_is(path: Path) -> str | None:
    """'is an HTML page; download the file itself' and the like; None for what can't be told.

    Raises:
        InputError: it is JSON, but broken.
    """
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(262)[257:] == b"ustar":
                return "is a tar that isn't called .tar; rename it, or name it with --format webdataset"
    return no_text(path) or _json(path)


def no_text(path: Path) -> str | None:
    """The same for what is neither a table nor JSON."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        start = file.read(4096)
    text = head(path).lstrip()
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"
    if re.match(r"<(!doctype html|html|head|body)\b", text, re.IGNORECASE):
        return "is an HTML page, as a failed download leaves behind; download the file itself"
    if re.match(r"<\?xml|<[a-zA-Z]+>", text):
        return "is XML, which is not read; write its captions as CSV or JSON Lines"
    if start.startswith(b"PK\x03\x04") and _OFFICE.search(start):
        return "is an Excel workbook or another Office document; save the table as CSV UTF-8 and name that"
    for magic, what, remedy in _BINARY:
        if start.startswith(magic):
            return f"is {what}; {remedy}"
    if is_image(start) and b"\0" in start:
        return "is an image; name the file that holds the captions, or the folder of images and texts"
    return None


def _json(path: Path) -> str | None:
    shape = json_shape(path)
    if head(path).lstrip()[:1] in ("[", "{") and (shape is None or shape.kind != "lines"):
        deque(read_json(path), maxlen=0)  # says what is broken
    if shape is None:
        return None
    remedy = "name those of image and captions with --image-column and --caption-column, or see docs/formats.md"
    keys = [key for key in shape.samples if key is not None]
    objects = shape.objects(None)
    if shape.kind == "object":
        some = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
        return f"is a JSON object with the keys {some or '(none)'}, which do not name images and captions; {remedy}"
    if objects:
        return f"is JSON whose objects have the keys {', '.join(list(objects[0])[:8])}; {remedy}"
    return "is a JSON list without objects in it; give one {...} per image"
