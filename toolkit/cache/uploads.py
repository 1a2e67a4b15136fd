"""Captions and caches that go to a URL, and caches that come from one.

Outputs are made in `cache/stores/<hash>.out/`, as anywhere, and put into the store when they are finished. `put.json`
in it says what was put, so that only what is new or different goes again. A store's put of one object is atomic; of a
cache the manifest is put last and taken away first, and without it there is no cache. What is not of the cache, by the
manifest there or by `put.json`, is neither fetched nor replaced nor removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import Timeout

from toolkit.cache.schema import MANIFEST, listed_files
from toolkit.data.sources import fetch_annotations
from toolkit.errors import InputError, OutputError
from toolkit.runtime.copies import Copy, make_room, using
from toolkit.runtime.files import beside, new_lock, write_json
from toolkit.runtime.hashing import hash_hex
from toolkit.runtime.progress import Progress, say
from toolkit.runtime.remote import (
    CONNECTIONS,
    STORES,
    Found,
    fetch,
    found_of,
    lies_below,
    list_objects,
    open_store,
    store_errors,
)

RECORD = "put.json"
# Stores of files rather than objects: a put shows a file that grows, so it goes under another name and is renamed.
WITH_RENAME = {"file", "local", "dir", "sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs"}


class Outbox:
    """One output at a URL, for one run at a time.

    `file` is the local file or folder to make. `prepare_...` brings it in line with the store before, `put_...` sends it
    afterwards: a file of captions, with `texts` a folder of text files, or a cache.

    Raises:
        OutputError: (all methods) the store fails or denies access.
    """

    def __init__(self, url: str, texts: bool = False) -> None:
        self.url, self.texts = url, texts
        self.folder = STORES / f"{hash_hex(url)[:12]}.out"
        self.file = Copy.of(url, self.folder / (url.rpartition("/")[2] or "output"))
        with store_errors(url, OutputError):
            self.fs, self.path = open_store(url)
            self.fs.invalidate_cache()
        # Beside the output, or within where that is a whole bucket: beside it would be another one.
        self.state = ".state" if "/" in self.path.strip("/") or not texts else "/.state"
        self.state_file = beside(self.file, ".state")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = new_lock(beside(self.folder, ".lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise OutputError(f"{url}: another run is writing it; wait for it, or name another output.") from None
        try:
            self.record: dict[str, Any] = json.loads((self.folder / RECORD).read_bytes())
        except (OSError, ValueError):
            self.record = {}

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _objects(self, suffix: str = "") -> dict[str, Found]:
        """By name relative to the URL; the object at the URL itself is ''."""
        path = self.path + suffix
        if self.fs.isfile(path):
            return {"": found_of(self.url, self.fs.info(path))}
        return list_objects(self.fs, self.url, path) if self.fs.exists(path) else {}

    def _is_as_put(self, name: str, found: Found) -> bool:
        return self.record.get(name, {}).get("there") == [found.size, found.version]

    def _remember(self, there: Mapping[str, Found], here: Mapping[str, Path]) -> None:
        for name in there.keys() & here.keys():
            found = there[name]
            self.record[name] = {"there": [found.size, found.version], "here": _state(here[name])}
        write_json(self.folder / RECORD, self.record)

    # ---- captions ---------------------------------------------------------------------------------------------------

    def _captions(self) -> dict[str, Found]:
        """The file there, or with `texts` the text files below the URL."""
        there = self._objects()
        if self.texts:
            return {name: found for name, found in there.items() if name.endswith(".txt") and lies_below(name)}
        if there and "" not in there:
            raise OutputError(f"--output {self.url}: a folder; name a file.")
        return there

    def prepare_captions(self) -> None:
        """What lies in the store counts, if others put it there, or we from elsewhere: it is brought here, and the state of
        whoever wrote it, so that our captions are told from others. What is no more there is written anew."""
        with store_errors(self.url, OutputError):
            there, state = self._captions(), self._objects(self.state).get("")
            here: dict[str, Path] = {name: self.file / name for name in there}
            wanted = {here[name]: found for name, found in there.items() if not self._is_as_put(name, found)}
            if self.texts:
                self.file.mkdir(exist_ok=True)
                for path in set(self.file.rglob("*.txt")) - set(here.values()):
                    path.unlink()
            if state is None and wanted and not self.texts:
                self.state_file.unlink(missing_ok=True)
            if state is not None and (not self._is_as_put("", state) if self.texts else wanted):
                wanted[self.state_file] = state
            fetch(self.fs, self.url, wanted)
            self.record = {
                name: made for name, made in self.record.items() if name in there or (self.texts and not name)
            }
            self._remember({name: there[name] for name, path in here.items() if path in wanted}, here)

    def put_captions(self) -> None:
        """Sends what is new or different; before it the state, by which whoever finds it knows what it was made of."""
        with store_errors(self.url, OutputError):
            paths = self.file.rglob("*.txt") if self.texts else [self.file]
            here: dict[str, Path] = {str(path)[len(str(self.file)) :].lstrip("/"): path for path in paths}
            todo = [name for name, path in here.items() if self.record.get(name, {}).get("here") != _state(path)]
            if not todo:
                return
            self._put(self.state_file, self.state)
            with Progress("send", len(todo), "files") as sending, ThreadPoolExecutor(CONNECTIONS) as pool:
                for _ in pool.map(lambda name: self._put(here[name], f"/{name}" if name else ""), todo):
                    sending.update()
            there = self._captions()
            if self.texts:  # no text file is called nothing
                there[""], here[""] = self._objects(self.state)[""], self.state_file
            self._remember(there, here)

    # ---- caches -----------------------------------------------------------------------------------------------------

    def prepare_cache(self) -> None:
        """A finished cache that is not as we put it, or that we have not got, is fetched: what it has serves again."""
        with store_errors(self.url, OutputError):
            there = self._objects()
            if "" in there:
                raise OutputError(f"--out {self.url}: a file; name a folder for the cache.")
            if there and MANIFEST not in there and not set(there) & set(self.record):  # else we were cut short there
                raise OutputError(f"--out {self.url}: holds files that are no finished cache; name another folder.")
            if MANIFEST in there and not (self.file.is_dir() and self._is_as_put(MANIFEST, there[MANIFEST])):
                shutil.rmtree(self.file, ignore_errors=True)
                shutil.copytree(fetch_cache(self.url), self.file, copy_function=_link)
                here = {name: self.file / name for name in there if (self.file / name).is_file()}
                self._remember(there, here)

    def put_cache(self) -> None:
        """Sends what is new or different, removes what is no more; the manifest last."""
        with store_errors(self.url, OutputError):
            there = self._objects()
            names = _names((self.file / MANIFEST).read_bytes(), str(self.file))
            here = {name: self.file / name for name in names}
            owned = {MANIFEST, *self.record}
            if MANIFEST in there:
                owned |= listed_files(self.fs.cat_file(f"{self.path}/{MANIFEST}")) or set()
            foreign = sorted(name for name in names if name in there and name not in owned)
            if foreign:
                raise OutputError(
                    f"--out {self.url}: {foreign[0]} is there, and does not belong to a cache; name another folder."
                )
            same = {n for n, found in there.items() if self._is_as_put(n, found) and n in here}
            todo = [n for n in here if n not in same or self.record[n]["here"] != _state(here[n])]
            gone = [name for name in there if name in owned and name not in here]
            if not todo and not gone:
                return
            if MANIFEST in there:
                self.fs.rm_file(f"{self.path}/{MANIFEST}")
            total = sum(here[name].stat().st_size for name in todo)
            say(f"{self.url}: sending {len(todo)} files, {total / 1e6:.1f} MB")
            for name in gone:
                self.fs.rm_file(f"{self.path}/{name}")
                self.record.pop(name, None)
            with Progress("send", total, "bytes") as sending:
                for name in [*sorted({*todo} - {MANIFEST}), MANIFEST]:
                    self._put(here[name], f"/{name}")
                    self._remember({name: found_of(self.url, self.fs.info(f"{self.path}/{name}"))}, here)
                    sending.update(here[name].stat().st_size)

    def _put(self, file: Path, suffix: str) -> None:
        target = self.path + suffix
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        if protocols & WITH_RENAME:
            self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.fs.put_file(str(file), f"{target}.{os.getpid()}.tmp")
            self.fs.mv(f"{target}.{os.getpid()}.tmp", target)
        else:
            self.fs.put_file(str(file), target)
        self.fs.invalidate_cache()


def fetch_cache(url: str) -> Copy:
    """A finished cache at a URL, copied once into a folder of its own for each manifest.

    Raises:
        InputError: there is no finished cache, it changed while it was fetched, or the store fails.
    """
    with store_errors(url):
        fs, path = open_store(url)
        fs.invalidate_cache()
        if not fs.exists(f"{path}/{MANIFEST}"):
            raise InputError(f"{url}: no finished cache here (it has no {MANIFEST}); run `toolkit preprocess` first.")
        manifest = fs.cat_file(f"{path}/{MANIFEST}")
        place = STORES / f"{hash_hex(url)[:12]}.in" / hash_hex(manifest)[:12] / (url.rpartition("/")[2] or "cache")
        with using(place.parent):
            if not place.is_dir():
                listed = list_objects(fs, url, path)
                for name in listed:
                    if not lies_below(name):
                        raise InputError(
                            f"{url}: {name} is listed there, outside of it; this is not a cache of toolkit."
                        )
                names, sizes, partial = _names(manifest, url), json.loads(manifest)["files"], beside(place, ".partial")
                fetch(fs, url, {partial / name: found for name, found in listed.items() if name in names})
                whole = all(
                    name in listed and listed[name].size == sizes.get(name, listed[name].size) for name in names
                )
                unchanged = whole and manifest == (partial / MANIFEST).read_bytes() == fs.cat_file(f"{path}/{MANIFEST}")
                if not unchanged:
                    raise InputError(f"{url}: the cache is changing or not whole; try again when it is finished.")
                os.rename(partial, place)
                make_room()
    return Copy.of(url, place)


def fetch_source(url: str) -> Copy:
    """A cache, or else annotations."""
    with store_errors(url):
        fs, path = open_store(url)
        is_cache = fs.exists(f"{path}/{MANIFEST}")
    return fetch_cache(url) if is_cache else fetch_annotations(url)


def _names(manifest: bytes, place: str) -> set[str]:
    """The files of a finished cache."""
    listed = listed_files(manifest)
    if listed is None:
        raise InputError(f"{place}: not a cache (no readable {MANIFEST}); `toolkit preprocess` writes one.")
    return {*listed, MANIFEST}


def _state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
