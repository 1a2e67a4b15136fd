"""Push against a hub on this machine: what arrives, what `datasets` and transformers make of it, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, Repo, running
from huggingface_hub import DatasetCard, ModelCard

from toolkit.commands.push import push
from toolkit.errors import InputError, OutputError
from toolkit.options import FinetuneOptions, HubOptions, PushOptions
from toolkit.options.fields import from_flat
from toolkit.records import Summary


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with running(monkeypatch) as found:
        yield found


@pytest.fixture
def model(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the trained model, with places of this machine in it as a real run leaves them."""
    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config["encoder"]["_name_or_path"] = "/home/somebody/vit-tiny"
    (folder / "config.json").write_text(json.dumps(config))
    card = (folder / "README.md").read_text()
    assert "| encoder | tiny |" in card
    (folder / "README.md").write_text(card.replace("| encoder | tiny |", r"| encoder | /home/somebody/vit\-tiny |"))
    return folder


def put(path: Path, name: str = "captioner", **more: Any) -> Summary:
    return push(from_flat(PushOptions, {"path": path, "name": name, **more}))


# ---- what arrives ---------------------------------------------------------------------------------------------------


def test_a_model(hub: FakeHub, model: Path) -> None:
    found = put(model, license="mit", language=("en",), dataset=("me/photos",), private=True)
    repo = hub.repos["models/me/captioner"]
    assert repo.private
    expected = {
        ".gitattributes", "README.md", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
        "tokenizer.json", "tokenizer_config.json", "training.jsonl",
    }  # fmt: skip
    assert set(repo.files) == expected
    assert found.values == {
        "path": str(model), "kind": "model", "name": "me/captioner", "url": f"{hub.address}/me/captioner", "files": 8, "sent": 8,
    }  # fmt: skip
    assert len(repo.commits) == 1  # nothing shows before all of it is there
    assert repo.files["model.safetensors"] == (model / "model.safetensors").read_bytes()
    assert not any(b"/home/somebody" in data for data in repo.files.values())
    assert json.loads(repo.files["config.json"])["encoder"]["_name_or_path"] == "vit-tiny"
    card = ModelCard(repo.files["README.md"].decode())
    summary = json.loads((model / "finetune.json").read_text())
    data = card.data
    assert (data.license, data.language, data.datasets) == ("mit", "en", ["me/photos"])
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("transformers", "image-to-text", "captioner")
    assert {"image-captioning", "captioning-toolkit"} <= set(data.tags or [])
    results = {result.metric_type: (result.dataset_type, result.metric_value) for result in data.eval_results or []}
    assert results["cider"] == ("me/photos", round(100 * summary["validation"]["cider"], 2))
    assert 'VisionEncoderDecoderModel.from_pretrained("me/captioner")' in card.text
    assert "--model me/captioner" in card.text
    assert r"| encoder | vit\-tiny |" in card.text


@pytest.mark.slow
def test_a_model_is_loaded_from_there(hub: FakeHub, model: Path) -> None:
    from toolkit import load_captioner

    put(model)
    picture = next((Path(__file__).parents[1] / "data" / "photos" / "Images").glob("*.jpg"))
    there, here = (load_captioner(name).caption([picture])[0] for name in ("me/captioner", str(model)))
    assert there == here


def test_a_cache(hub: FakeHub, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset(NAME)` gives the rows of `load_from_disk`, and the cache is opened from there."""
    import datasets

    from toolkit import open_cache
    from toolkit.cache.uploads import fetch_source

    found = put(cache_dir, "me/cache", language=("en", "de"))
    repo = hub.repos["datasets/me/cache"]
    assert (found.values["kind"], found.values["url"]) == ("dataset", f"{hub.address}/datasets/me/cache")
    manifest = json.loads((cache_dir / "manifest.json").read_text())
    assert set(repo.files) == {*manifest["files"], "manifest.json", "README.md", ".gitattributes"}
    assert set(repo.commits[-1][-2:]) == {"manifest.json", "README.md"}
    assert b"captions.txt" in repo.files["manifest.json"]
    assert str(cache_dir.parent.parent).encode() not in repo.files["manifest.json"] + repo.files["README.md"]
    data = DatasetCard(repo.files["README.md"].decode()).data
    assert (data.language, data.task_categories, data.size_categories) == (["en", "de"], ["image-to-text"], ["n<1K"])
    assert data.license is None

    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.setattr(datasets.config, name, hub.address if name == "HF_ENDPOINT" else False, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    loaded, local = datasets.load_dataset("me/cache"), datasets.load_from_disk(str(cache_dir))
    assert {split: len(rows) for split, rows in loaded.items()} == {split: len(rows) for split, rows in local.items()}
    assert loaded["test"].features == local["test"].features
    assert loaded["test"].to_list() == local["test"].to_list()

    monkeypatch.chdir(tmp_path)
    fetched = open_cache(fetch_source("hf://datasets/me/cache"))
    assert fetched.fingerprint("train") == open_cache(cache_dir).fingerprint("train")


def test_an_exported_model(hub: FakeHub, model: Path) -> None:
    """Graphs in place of weights, under the names that transformers.js asks for."""
    (model / "model.safetensors").unlink()
    (model / "README.md").unlink()
    with pytest.raises(InputError, match=r"has no weights \(no file ends in .safetensors, and there is no onnx/\)"):
        put(model)
    (model / "onnx").mkdir()
    for name in ("encoder_model.onnx", "decoder_model_merged.onnx"):
        (model / "onnx" / name).write_bytes(name.encode())
    put(model, license="mit")
    files = hub.repos["models/me/captioner"].files
    assert {"onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx", "config.json", "tokenizer.json"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert (card.data.library_name, card.data.license) == ("transformers.js", "mit")
    assert "pipeline('image-to-text', 'me/captioner', { dtype: 'fp32' })" in card.text


ROWS = [
    {"image": "a.jpg", "caption": "a dog", "score": -0.5, "ended": True, "error": None, "width": 3, "height": 4},
    {"image": "b.jpg", "caption": "a |cat|", "captions": ["a |cat|", "two"], "score": -1.0, "ended": True, "error": None,
     "width": 3, "height": 4},
    {"image": "c.jpg", "caption": None, "score": None, "ended": None, "error": "not an image", "width": None, "height": None},
]  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_captions(hub: FakeHub, suffix: str, tmp_path: Path) -> None:
    """What `datasets` makes of the repository's files and card; their way through the network is that of a cache."""
    import datasets
    import pandas as pd

    file = tmp_path / f"captions.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif suffix == "csv":
        pd.DataFrame(ROWS).drop(columns="captions").to_csv(file, index=False)
    else:
        pd.DataFrame(ROWS).to_parquet(file)
    put(file, "me/captions", license="cc-by-4.0", dataset=("me/photos",))
    repo = hub.repos["datasets/me/captions"]
    assert set(repo.files) == {f"captions.{suffix}", "README.md", ".gitattributes"}
    folder = tmp_path / "there"
    folder.mkdir()
    for name, data in repo.files.items():
        (folder / name).write_bytes(data)
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "datasets")).to_list()
    assert [(row["image"], row["caption"], row["error"]) for row in rows] == [
        (row["image"], row["caption"], row["error"]) for row in ROWS
    ]
    if suffix != "csv":
        assert rows[1]["captions"] == ["a |cat|", "two"]
    card = DatasetCard(repo.files["README.md"].decode())
    assert (card.data.license, card.data.source_datasets) == ("cc-by-4.0", ["me/photos"])
    assert r"- b.jpg: a \|cat\|" in card.text.replace(r"b\.jpg", "b.jpg")
    assert "Captions of 3 images" in card.text
    assert "1 of the images could not be read" in card.text


# ---- going on, and what is there ------------------------------------------------------------------------------------


def test_a_push_that_failed_goes_on(hub: FakeHub, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a broken line nothing shows, and what has arrived is not sent again; done twice it does nothing."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its own attempts
    hub.fail("PUT /lfs/[89a-f]", 0)
    with pytest.raises(
        OutputError, match=r"^me/cache: the connection to the hub broke \(.+\); run the same command again; what has"
    ):
        put(cache_dir, "me/cache")
    assert hub.repos["datasets/me/cache"].commits == []
    before = list(hub.sent)
    hub.fails.clear()
    hub.fail("POST .*/commit/", 503, times=1)
    with pytest.raises(OutputError, match=r"^me/cache: the hub answers with status 503; run the same command again"):
        put(cache_dir, "me/cache")
    assert 0 < len(before) < len(hub.sent) == len(set(hub.sent))
    sent = len(hub.sent)
    found = put(cache_dir, "me/cache")
    assert len(hub.sent) == sent
    assert found.values["sent"] == found.values["files"]
    again = put(cache_dir, "me/cache")
    assert again.values["sent"] == 0
    assert "all of it is there already, nothing to do" in again.text
    assert len(hub.repos["datasets/me/cache"].commits) == 1


def test_many_files_are_several_commits(hub: FakeHub, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.runtime.hub_repo.COMMIT", 4)
    monkeypatch.setattr("toolkit.runtime.hub_repo.BATCH", 3)
    put(cache_dir, "me/cache")
    commits = hub.repos["datasets/me/cache"].commits
    assert len(commits) > 2
    assert {"README.md", "manifest.json"} <= {*commits[-1], *commits[-2]}
    assert sum(map(len, commits)) == len(hub.repos["datasets/me/cache"].files) - 1


def test_what_the_card_there_says_stays(hub: FakeHub, model: Path) -> None:
    put(model, license="mit", language=("en",), dataset=("me/photos",))
    assert put(model).values["sent"] == 0
    put(model, license="apache-2.0", overwrite=True)
    data = ModelCard(hub.repos["models/me/captioner"].files["README.md"].decode()).data
    assert (data.license, data.language, data.datasets) == ("apache-2.0", "en", ["me/photos"])
    hub.repos["models/me/captioner"].files["README.md"] = b"---\nlanguage: English, mostly\nlicense: [no, 3]\n---\n"
    put(model, overwrite=True)
    assert ModelCard(hub.repos["models/me/captioner"].files["README.md"].decode()).data.language is None


def test_nothing_there_is_replaced_unasked(hub: FakeHub, cache_dir: Path, model: Path) -> None:
    put(model)
    repo = hub.repos["models/me/captioner"]
    repo.files["notes.txt"] = b"mine"
    (model / "generation_config.json").write_text('{"num_beams": 2}')
    with pytest.raises(
        OutputError, match=r"^captioner: already has another generation_config.json; name another repository, or"
    ):
        put(model)
    assert len(repo.commits) == 1
    found = put(model, overwrite=True)
    assert (found.values["sent"], repo.commits[-1]) == (1, ["generation_config.json"])
    assert repo.files["notes.txt"] == b"mine"

    put(cache_dir, "me/cache")
    other = hub.repos["datasets/me/cache"]
    other.files |= {"train/data-000099.arrow": b"of a larger one", "notes.txt": b"mine", "manifest.json": b"{}"}
    with pytest.raises(OutputError, match=r"already has another manifest\.json"):
        put(cache_dir, "me/cache")
    put(cache_dir, "me/cache", overwrite=True)
    assert "train/data-000099.arrow" not in other.files
    assert other.files["notes.txt"] == b"mine"


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "name", "sentence"),
    [
        ("hf_wrong", "captioner", r"captioner: the hub does not accept your token \(401\); log in with `hf auth login`, or"),
        ("hf_reads", "captioner", "captioner: your token may only read; log in"),
        ("hf_writes", "somebody/captioner", r"somebody/captioner: your token may not write there \(403\); log in"),
        (None, "captioner", "captioner: there is no token for the hub on this machine; log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_writes", "a b", "a b: not a possible name on the hub; use letters"),
        ("hf_writes", "a/b/c", "a/b/c: not a possible name on the hub; use letters"),
    ],
)  # fmt: skip
def test_who_may_not(hub: FakeHub, model: Path, token: str | None, name: str, sentence: str,
                     monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OutputError, match=f"^{sentence}") as error:
        put(model, name)
    assert "\n" not in str(error.value)
    assert "hf_" not in str(error.value).replace("HF_TOKEN", "")
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("fails", "status", "sentence"),
    [
        ("/api/whoami-v2", 429, r"the hub has had too many requests from here \(429\); wait a few minutes"),
        (
            "/api/repos/create",
            404,
            r"no such user, organisation or repository on the hub, or your token may not see it",
        ),
        ("/preupload/", 403, r"your token may not write there \(403\)"),
        ("/commit/", 409, r"it was changed by somebody else at the same time \(409\); run the same command again"),
        ("/commit/", 412, r"it was changed by somebody else at the same time \(412\); run the same command again"),
        ("PUT /lfs/", 403, r"your token may not write there \(403\)"),
        ("/api/models/me/captioner$", 500, "the hub answers with status 500; run the same command again"),
    ],
)
def test_what_the_hub_answers(hub: FakeHub, model: Path, fails: str, status: int, sentence: str) -> None:
    hub.fail(fails, status)
    with pytest.raises(OutputError, match=f"^captioner: {sentence}") as error:
        put(model)
    assert "\n" not in str(error.value)


def test_somebody_pushes_meanwhile(hub: FakeHub, model: Path) -> None:
    from toolkit.reports.hub_push import model_contents
    from toolkit.runtime.hub_repo import claim_repo

    repo = claim_repo("--push-to-hub", "captioner", "model", False)
    hub.repos["models/me/captioner"].files["notes.txt"] = b"mine"
    with pytest.raises(OutputError, match=r"^--push-to-hub captioner: it was changed by somebody else"):
        model_contents(model, HubOptions()).push(repo, False)


def test_no_network(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(OutputError, match=r"^captioner: there is no connection to 127.0.0.1; try again where"):
            put(model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match=r"^captioner: HF_HUB_OFFLINE is set; unset it"):
        put(model)
    assert hub.asked == []


def test_what_may_not_be_pushed(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    hub.repos["models/me/public"] = Repo(private=False)
    with pytest.raises(OutputError, match=r"^public: --private, but the model is there and public; make it private"):
        put(model, "public", private=True)
    with pytest.raises(
        OutputError, match=r"^captioner: the hub refuses the card's metadata \(.*license.*\); correct --license"
    ):
        put(model, license="my own")
    (tmp_path / "captions.txt").write_text("a dog")
    (tmp_path / "empty").mkdir()
    (model / "adapter_config.json").write_text("{}")
    (model / "base.json").write_text('{"init_from": "/home/somebody/model"}')
    for path, sentence in (
        (tmp_path / "no", "no: no such file or folder; name a model"),
        (tmp_path / "empty", "empty: neither a model, a cache nor a file of captions"),
        (tmp_path / "captions.txt", r"captions.txt: a file of captions ends in \.jsonl, "),
        (model, "model: an adapter of /home/somebody/model, which is on this machine only"),
    ):
        with pytest.raises(InputError, match=sentence):
            put(path)
    for wrong in ({"language": ("English!",)}, {"license": " "}, {"dataset": ("a/b/c",)}):
        with pytest.raises(InputError, match=r"^--"):
            HubOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^--private True: only applies with --push-to-hub"):
        FinetuneOptions(hub=HubOptions(private=True))


# ---- finetune -------------------------------------------------------------------------------------------------------


def finished(cache: Path, out: Path, **more: Any) -> FinetuneOptions:
    """The options that `model_dir` was trained with."""
    return replace(FinetuneOptions(cache=cache, epochs=2, batch_size=8, output_dir=out), **more)


def test_finetune_puts_it_there(hub: FakeHub, cache_dir: Path, model_dir: Path) -> None:
    """A run that is finished already is pushed as one that has just been; a second time there is nothing to send."""
    from toolkit.commands.finetune import finetune

    options = finished(cache_dir, model_dir, push_to_hub="captioner", hub=HubOptions(license="mit"))
    first, second = finetune(options), finetune(options)
    assert (first.values["pushed"]["sent"], second.values["pushed"]["sent"]) == (8, 0)
    assert first.values["pushed"]["url"] in first.text
    assert ModelCard(hub.repos["models/me/captioner"].files["README.md"].decode()).data.license == "mit"


def test_what_is_wrong_is_told_before_training(
    hub: FakeHub, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.commands import finetune as module

    def trained(*_: Any) -> None:
        raise AssertionError("training was begun")

    monkeypatch.setattr(module, "prepare", trained)
    hub.repos["models/me/used"] = Repo(private=False)
    hub.repos["models/me/used"].files["config.json"] = b"{}"
    options = finished(cache_dir, tmp_path / "model", push_to_hub="captioner")
    for more, sentence in (
        ({"push_to_hub": "used"}, r"--push-to-hub used: holds files already \(config.json\); name another repository"),
        ({"push_to_hub": "somebody/x"}, r"--push-to-hub somebody/x: your token may not write there \(403\)"),
        ({"hub": HubOptions(license="my own")}, "--push-to-hub captioner: the hub refuses the card's metadata"),
    ):
        with pytest.raises(OutputError, match=f"^{sentence}"):
            module.finetune(replace(options, **more))  # type: ignore[arg-type]
    assert not (tmp_path / "model").exists()
    with pytest.raises(AssertionError, match="training was begun"):
        module.finetune(options)
    with pytest.raises(AssertionError, match="training was begun"):
        module.finetune(replace(options, push_to_hub="used", overwrite=True))


@pytest.mark.slow
def test_trained_and_put_there(hub: FakeHub, three_updates: Any, tmp_path: Path) -> None:
    three_updates(tmp_path / "model", push_to_hub="captioner", private=True)
    repo = hub.repos["models/me/captioner"]
    assert repo.private
    assert repo.files["model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()


def test_the_token_stays_where_it_was(hub: FakeHub, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    put(model)
    told = capsys.readouterr()
    assert "hf_writes" not in told.out + told.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(b"hf_writes" in path.read_bytes() for path in written)
    assert not any(b"hf_writes" in data for data in hub.repos["models/me/captioner"].files.values())
