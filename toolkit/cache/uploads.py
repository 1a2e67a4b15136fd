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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from toolkit.cache.schema import MANIFEST, listed_files
from toolkit.errors import InputError, OutputError
from toolkit.runtime.files import beside, new_lock, write_json
from toolkit.runtime.hashing import hash_hex
from toolkit.runtime.progress import Progress, say
from toolkit.runtime.remote import (
    CONNECTIONS,
    STORES,
    Found,
    alone,
    fetch,
    found_of,
    lies_below,
    listing,
    open_store,
    store_errors,
)

RECORD = "put.json"
# Stores of files rather than objects: a put shows a file that grows, so it goes under another name and is renamed.
WITH_RENAME = {"file", "local", "dir", "sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs"}


class Outbox:
    """One output at a URL, for one run at a time.

    `file` is the local file or folder to make. `prepare_...` brings it in line with the store before, `put_...` sends it
    afterwards: a file, text files, or a cache.

    Raises:
        OutputError: (all methods) the store fails or denies access.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.folder = STORES / f"{hash_hex(url)[:12]}.out"
        self.file = self.folder / (url.rpartition("/")[2] or "output")
        with store_errors(url, OutputError):
            self.fs, self.path = open_store(url)
            self.fs.invalidate_cache()
        # Beside the output, or within where that is a whole bucket: beside it would be another one.
        self.state = ".state" if "/" in self.path.strip("/") else "/.state"
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
        return listing(self.fs, self.url, path) if self.fs.exists(path) else {}

    def _is_as_put(self, name: str, found: Found) -> bool:
        return self.record.get(name, {}).get("there") == [found.size, found.version]

    # ---- captions ---------------------------------------------------------------------------------------------------

    def prepare_file(self) -> None:
        """What somebody else, or we elsewhere, have put there meanwhile counts; else what lies here."""
        with store_errors(self.url, OutputError):
            there = self._objects()
            if there and "" not in there:
                raise OutputError(f"--output {self.url}: a folder; name a file.")
            if not there or self._is_as_put("", there[""]):
                return
            self.file.with_name(self.file.name + ".state").unlink(missing_ok=True)
            state = self._objects(".state")
            wanted = [(self.file, there[""])]
            wanted += [(self.file.with_name(self.file.name + ".state"), state[""])] if "" in state else []
            fetch(self.fs, self.url, wanted)
            self._remember("", hash_hex(self.file.read_bytes()), there[""])

    def put_file(self) -> None:
        """The state first: whoever finds the finished file finds what it was made of."""
        with store_errors(self.url, OutputError):
            there = self._objects()
            content = hash_hex(self.file.read_bytes())
            known = self.record.get("", {})
            if "" in there and self._is_as_put("", there[""]) and known.get("here") == content:
                return
            self._put(self.file.with_name(self.file.name + ".state"), ".state")
            self._put(self.file, "")
            self._remember("", content, self._objects()[""])

    # ---- a text file for each image -----------------------------------------------------------------------------------

    def prepare_sidecars(self) -> None:
        """The text files there are brought here, and the state of whoever wrote them, so that ours are told from others."""
        with store_errors(self.url, OutputError):
            there = self._sidecars()
            state = self._objects(self.state)
            wanted = [(self.file / name, found) for name, found in there.items() if not self._is_as_put(name, found)]
            if "" in state and not self._is_as_put("", state[""]):
                wanted.append((self.file.with_name(self.file.name + ".state"), state[""]))
            self.file.mkdir(exist_ok=True)
            for path in self.file.rglob("*.txt"):
                if path.relative_to(self.file).as_posix() not in there:  # removed there, or never sent
                    path.unlink()
            for path, _ in wanted:
                path.parent.mkdir(parents=True, exist_ok=True)
            if wanted:
                fetch(self.fs, self.url, wanted)
            for name, found in there.items():
                self.record[name] = {"there": [found.size, found.version], "here": _state(self.file / name)}

    def put_sidecars(self) -> None:
        """Those that are new or different, and before them the state, which says that they are ours."""
        with store_errors(self.url, OutputError):
            here = {path.relative_to(self.file).as_posix(): path for path in self.file.rglob("*.txt")}
            todo = [name for name, path in here.items() if self.record.get(name, {}).get("here") != _state(path)]
            if not todo:
                return
            self._put(self.file.with_name(self.file.name + ".state"), self.state)
            with Progress("send", len(todo), "files") as sending, ThreadPoolExecutor(CONNECTIONS) as pool:
                for _ in pool.map(lambda name: self._put(here[name], f"/{name}"), todo):
                    sending.update()
            there = {**self._sidecars(), "": self._objects(self.state)[""]}  # no text file is called nothing
            self.record = {name: {"there": [found.size, found.version]} for name, found in there.items()}
            for name in here:
                self.record[name]["here"] = _state(here[name])
            write_json(self.folder / RECORD, self.record)

    def _sidecars(self) -> dict[str, Found]:
        return {name: found for name, found in self._objects().items() if name.endswith(".txt") and lies_below(name)}

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
                shutil.copytree(local_cache(self.url), self.file, copy_function=_link)
                for name, found in there.items():
                    with suppress(FileNotFoundError):
                        self.record[name] = {"there": [found.size, found.version], "here": _state(self.file / name)}
                write_json(self.folder / RECORD, self.record)

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
                    f"--out {self.url}: {foreign[0]} is there, and is not of a cache of ours; name another folder."
                )
            todo = [
                name
                for name, path in sorted(here.items())
                if name not in there
                or not self._is_as_put(name, there[name])
                or self.record[name]["here"] != _state(path)
            ]
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
                for name in sorted({*todo, MANIFEST}, key=lambda name: (name == MANIFEST, name)):
                    before = _state(here[name])
                    self._put(here[name], f"/{name}")
                    self._remember(name, before, found_of(self.url, self.fs.info(f"{self.path}/{name}")))
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

    def _remember(self, name: str, here: Any, found: Found) -> None:
        self.record[name] = {"there": [found.size, found.version], "here": here}
        write_json(self.folder / RECORD, self.record)


def local_cache(url: str) -> Path:
    """A finished cache at a URL, fetched once into a folder of its own for each manifest.

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
        if place.is_dir():
            return place
        partial = place.with_name(place.name + ".partial")
        listed = listing(fs, url, path)
    with store_errors(url), alone(place.parent):
        if place.is_dir():  # another process has fetched it meanwhile
            return place
        for name in listed:
            if not lies_below(name):
                raise InputError(f"{url}: {name} leads outside; this is no cache of ours.")
        names = _names(manifest, url)
        objects = {name: found for name, found in listed.items() if name in names}
        missing = []
        for name, found in objects.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            if not found.stands_at(partial / name):
                missing.append((partial / name, found))
        fetch(fs, url, missing)
        sizes = json.loads(manifest)["files"]
        whole = all(name in objects and objects[name].size == sizes.get(name, objects[name].size) for name in names)
        if not whole or (partial / MANIFEST).read_bytes() != manifest or fs.cat_file(f"{path}/{MANIFEST}") != manifest:
            raise InputError(f"{url}: the cache is changing or not whole; try again when it is finished.")
        os.rename(partial, place)
        return place


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
