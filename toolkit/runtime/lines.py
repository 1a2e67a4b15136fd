"""A text file that an option names, one entry a line."""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import InputError
from toolkit.runtime.remote import url_of


def read_lines(option: str, path: Path, write: str) -> list[str]:
    """The lines, without blanks around them and without blank ones.

    Args:
        option: as it is written on the command line.
        write: what the file should have, for the sentence about an empty one.

    Raises:
        InputError: no such file, not text, or nothing in it.
    """
    if url := url_of(path):
        raise InputError(f"{option} {url}: must be a file here; copy it first.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{option} {path}: can't be read ({error.strerror}); name a text file.") from None
    except UnicodeDecodeError:
        raise InputError(f"{option} {path}: is not text in UTF-8; save it as that.") from None
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{option} {path}: is empty; {write}.")
    return lines
