"""Content hashes: xxh3, at memory speed (a cryptographic hash would cost a tenth of decoding), strings as UTF-8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xxhash


class Hasher:
    """A running 128-bit xxh3 over strings and bytes."""

    def __init__(self, *parts: Any) -> None:
        self._digest = xxhash.xxh3_128()
        for part in parts:
            self.update(part)

    def update(self, part: Any) -> None:
        """Adds a string or anything with the buffer interface."""
        self._digest.update(part.encode() if isinstance(part, str) else part)

    def update_from(self, path: Path) -> None:
        """Adds a file's contents, which need not fit into memory."""
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                self.update(part)

    def copy(self) -> Hasher:
        other = Hasher()
        other._digest = self._digest.copy()
        return other

    def hex(self) -> str:
        return self._digest.hexdigest()


def hash_hex(*parts: Any) -> str:
    """32 hexadecimal digits over all parts, in order."""
    return Hasher(*parts).hex()


def hash_int(text: str) -> int:
    """An integer from 0 to 2**64 - 1."""
    return xxhash.xxh3_64_intdigest(text.encode())


def file_hash(path: Path) -> str:
    """The hash of a file's contents."""
    digest = Hasher()
    digest.update_from(path)
    return digest.hex()
