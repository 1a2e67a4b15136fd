"""What a person changes in the captions stays, is counted and named, and goes only by --overwrite."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.commands.batch_caption import batch_caption
from toolkit.errors import ModelError, OutputError
from toolkit.options import BatchCaptionOptions
from toolkit.options.fields import from_flat
from toolkit.records import Summary
from toolkit.runtime import shelf

FAST = {"num_beams": 1, "max_length": 8}
SUFFIXES = {"jsonl": "jsonl", "csv": "csv", "parquet": "parquet", "coco": "json"}


@pytest.fixture(autouse=True)
def _names_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "ENTRIES", 1)
    monkeypatch.setattr(shelf, "CHUNK", 2)


@pytest.fixture
def folder(pictures: Callable[[int], Path]) -> Path:
    return pictures(4)


def output_of(folder: Path, form: str) -> Path:
    places = {"txt": folder, "imagefolder": folder / "metadata.jsonl"}
    return places.get(form, folder.parent / f"out.{SUFFIXES.get(form)}")


def run(folder: Path, model: Path, form: str, **more: Any) -> Summary:
    output = None if form in ("txt", "imagefolder") else output_of(folder, form)
    given = {"paths": (str(folder),), "model": str(model), "format": form, "output": output, **FAST, **more}
    return batch_caption(from_flat(BatchCaptionOptions, given))


def lines_of(folder: Path, form: str) -> list[dict]:
    return [json.loads(line) for line in output_of(folder, form).read_text().splitlines()]


def forget_hashes(folder: Path, form: str, names: list[str]) -> None:
    """The journal as toolkit 0.1 had it: only the paths of what it wrote."""
    state = output_of(folder, form)
    database = sqlite3.connect(state.with_name(state.name + ".state"))
    database.execute("DROP TABLE exports")
    database.execute("CREATE TABLE IF NOT EXISTS written (path BLOB PRIMARY KEY) WITHOUT ROWID")
    database.executemany("INSERT INTO written VALUES (?)", [(name.encode(),) for name in names])
    database.commit()
    database.close()


@pytest.mark.parametrize("former", [False, True])
def test_text_files(folder: Path, model_dir: Path, former: bool) -> None:
    run(folder, model_dir, "txt")
    first = {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    assert sorted(first) == [f"{i}.txt" for i in range(4)]
    if former:
        forget_hashes(folder, "txt", sorted(first))
    (folder / "1.txt").write_text("A person said this.\n")
    (folder / "2.txt").unlink()
    summary = run(folder, model_dir, "txt", suffix="!")
    assert summary.values["kept"] == 1
    assert "1 were changed since they were written and are kept (first: 1.txt); --overwrite" in summary.text
    now = {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    assert now == {name: text[:-1] + b"!\n" for name, text in first.items()} | {"1.txt": b"A person said this.\n"}
    assert run(folder, model_dir, "txt").values["kept"] == 1  # ours are told from it for good
    assert {path.name: path.read_bytes() for path in folder.glob("*.txt")} == first | {"1.txt": now["1.txt"]}
    assert run(folder, model_dir, "txt", existing="overwrite").values["kept"] == 1  # which is about our own rows
    assert "kept" not in run(folder, model_dir, "txt", overwrite=True).values
    assert {path.name: path.read_bytes() for path in folder.glob("*.txt")} == first
    assert "kept" not in run(folder, model_dir, "txt").values
    assert not [path for path in folder.iterdir() if path.suffix not in (".jpg", ".txt")]


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize(("form", "key", "name"), [("jsonl", "caption", "image"), ("imagefolder", "text", "file_name")])
def test_rows(folder: Path, model_dir: Path, form: str, key: str, name: str, former: bool) -> None:
    run(folder, model_dir, form)
    output = output_of(folder, form)
    first = lines_of(folder, form)
    assert [row[name] for row in first] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"] + ["bad.jpg"] * (form == "jsonl")
    if former:
        forget_hashes(folder, form, [output.name])
    edited = [dict(row) for row in first]
    edited[1][key] = "A person said this."
    edited[2][key] = "And this."
    del edited[3]  # a row that is missing comes back
    # written down another way, it is still the same row
    output.write_text("\n\n".join(json.dumps(row, sort_keys=True, indent=None) for row in reversed(edited)))
    (folder / "2.jpg").unlink()  # the words about it stay
    (folder / "0.jpg").unlink()
    summary = run(folder, model_dir, form, suffix="!")
    assert summary.values["kept"] == 2
    assert "(first: 1.jpg)" in summary.text
    rows = {row[name]: row for row in lines_of(folder, form)}
    assert list(rows) == [row[name] for row in first[1:]]
    assert (rows["1.jpg"], rows["2.jpg"]) == (edited[1], edited[2])
    assert rows["3.jpg"] == {**first[3], key: first[3][key] + "!"}
    before, time = output.read_bytes(), output.stat().st_mtime_ns
    assert run(folder, model_dir, form, suffix="!").values["kept"] == 2
    assert (output.read_bytes(), output.stat().st_mtime_ns) == (before, time)
    assert "kept" not in run(folder, model_dir, form, overwrite=True).values
    assert [row for row in lines_of(folder, form) if row[name] != "bad.jpg"] == [first[1], first[3]]


def test_a_persons_caption_of_what_can_not_be_read(folder: Path, model_dir: Path) -> None:
    assert run(folder, model_dir, "jsonl").exit_code == 3
    output = output_of(folder, "jsonl")
    rows = lines_of(folder, "jsonl")
    rows[-1].update(caption="A dog.", error=None)
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = run(folder, model_dir, "jsonl")
    assert (summary.exit_code, summary.values["errors"], summary.values["kept"]) == (0, 0, 1)
    assert lines_of(folder, "jsonl") == rows


@pytest.mark.parametrize("line", ["no JSON", '["a list"]', '{"caption": "of what?"}'])
def test_lines_that_are_no_rows(folder: Path, model_dir: Path, line: str) -> None:
    run(folder, model_dir, "jsonl")
    output = output_of(folder, "jsonl")
    output.write_text(output.read_text() + line + "\n")
    before = output.read_bytes()
    with pytest.raises(
        OutputError, match=r"line 6, which was changed, is not the row of one image any more; correct it"
    ):
        run(folder, model_dir, "jsonl", prefix="x")
    assert output.read_bytes() == before
    run(folder, model_dir, "jsonl", overwrite=True)
    assert len(lines_of(folder, "jsonl")) == 5


def test_a_file_that_is_edited_while_captions_are_made(
    folder: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, model_dir, "jsonl")
    output = output_of(folder, "jsonl")
    from toolkit.captioning.captioner import Captioner
    from toolkit.outputs import exports

    def edit() -> dict:
        rows = lines_of(folder, "jsonl")
        rows[0]["caption"] = "A person said this."
        output.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return rows[0]

    real = Captioner.generate
    monkeypatch.setattr(Captioner, "generate", lambda *given: edit() and real(*given))
    assert run(folder, model_dir, "jsonl", max_length=9).values["kept"] == 1
    monkeypatch.setattr(Captioner, "generate", real)
    # and at the last moment: nothing is written
    write = exports.write_jsonl
    monkeypatch.setattr(exports, "write_jsonl", lambda path, rows: [write(path, rows), output.write_text("mine")])
    with pytest.raises(OutputError, match="is not what this command wrote"):
        run(folder, model_dir, "jsonl", max_length=10)
    assert output.read_text() == "mine"


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize("form", ["csv", "parquet", "coco"])
def test_files_that_can_not_be_told_row_by_row(folder: Path, model_dir: Path, form: str, former: bool) -> None:
    import pyarrow.parquet as pq

    run(folder, model_dir, form)
    output = output_of(folder, form)
    first = output.read_bytes()
    if former:
        forget_hashes(folder, form, [output.name])
    run(folder, model_dir, form, suffix="!")  # as it was written, it is replaced
    assert output.read_bytes() != first
    if form == "parquet":
        table = pq.read_table(output)
        pq.write_table(table.set_column(1, "caption", table["caption"].combine_chunks().fill_null("edited")), output)
    else:
        output.write_bytes(output.read_bytes().replace(b"!", b"?"))
    if former:
        forget_hashes(folder, form, [output.name])
    before = output.read_bytes()
    with pytest.raises(
        OutputError, match=r"exists and is not what this command wrote; name another file, or add --overw"
    ):
        run(folder, model_dir, form)
    assert output.read_bytes() == before
    run(folder, model_dir, form, overwrite=True)
    assert output.read_bytes() == first


def test_a_kill_between_the_journal_and_the_file(
    folder: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the old content nor the new one is taken for a person's."""
    for form, count in (("txt", 1), ("jsonl", 0)):
        run(folder, model_dir, form)
        real, calls = os.replace, list[int]()

        def stop(source: Any, target: Any, real: Any = real, calls: list[int] = calls, count: int = count) -> None:
            calls.append(1)
            if len(calls) > count:
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stop)
            with pytest.raises(KeyboardInterrupt):
                run(folder, model_dir, form, suffix="!")
        assert "kept" not in run(folder, model_dir, form, suffix="!").values
        if form == "jsonl":
            assert all(row["caption"].endswith("!") for row in lines_of(folder, form)[:4])
        else:
            assert all(path.read_text().endswith("!\n") for path in folder.glob("*.txt"))


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
def test_all_captions_anew_over_what_was_written_before(folder: Path, model_dir: Path, form: str) -> None:
    """What toolkit 0.1 wrote is still ours when the captions that it is known by are gone."""
    run(folder, model_dir, form)
    names = [f"{i}.txt" for i in range(4)] if form == "txt" else [output_of(folder, form).name]
    forget_hashes(folder, form, names)
    summary = run(folder, model_dir, form, existing="overwrite", num_beams=2, length_penalty=-3.0)
    assert (summary.values["new"], "kept" in summary.values) == (5, False)
    assert "kept" not in run(folder, model_dir, form).values


def test_what_is_refused_leaves_nothing_behind(
    folder: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.jsonl").write_text("mine")
    (folder / "0.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for form, output, model in (
        ("jsonl", tmp_path / "notes.jsonl", model_dir), ("txt", None, model_dir), ("jsonl", tmp_path / "o", tmp_path),
    ):  # fmt: skip
        with pytest.raises((OutputError, ModelError)):
            run(folder, model, form, output=output)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(OutputError, match=r"--output /: is /, where nothing is written"):
        run(folder, model_dir, "txt", output=Path("/"))
    (folder / "0.txt").unlink()
    monkeypatch.chdir(folder)
    assert run(folder, model_dir, "txt", paths=(".",)).values["new"] == 5
    assert Path("0.txt").is_file()
    assert run(folder, model_dir, "txt").values["new"] == 0  # the same folder by its name


def test_inputs_and_places_of_others(folder: Path, model_dir: Path, tmp_path: Path) -> None:
    """Refused, also with --overwrite, which is about files that somebody could have written for us."""
    image = folder / "0.jpg"
    shutil.copy(image, folder / "a.txt")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "link.jsonl").symlink_to(image)
    os.link(image, tmp_path / "hard.jsonl")
    for overwrite in (False, True):
        for output in (image, tmp_path / "link.jsonl", tmp_path / "hard.jsonl", model_dir / "config.json"):
            with pytest.raises(OutputError, match=r"^--output "):
                run(folder, model_dir, "jsonl", output=output, overwrite=overwrite)
        with pytest.raises(OutputError, match=r"^--output .*a.txt: is one of the images"):
            run(folder, model_dir, "txt", paths=(str(folder / "a.txt"),), output=folder, overwrite=overwrite)
    (folder / "1.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"1.txt: is not a regular file"):
        run(folder, model_dir, "txt", overwrite=True)
    assert not (tmp_path / "elsewhere").exists()
    assert {path: path.read_bytes() for path in before} == before
