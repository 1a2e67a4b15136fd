"""Captioners as ONNX: the same captions, the layout that other programs read, and what is refused."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from encoders import ENCODERS, tiny_encoder
from graphs import trace_quickly
from random_models import complete, random_model, random_settings
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderModel,
)

from toolkit.cache.schema import open_cache
from toolkit.captioning.attention import Attention
from toolkit.captioning.captioner import Captioner, faster_precision, load_captioner
from toolkit.captioning.generate import decode, stock
from toolkit.captioning.likelihood import split_log_probs
from toolkit.captioning.onnx_model import OnnxModel
from toolkit.commands.batch_caption import batch_caption
from toolkit.commands.export import export
from toolkit.errors import InputError, ModelError, OutputError, RunError, ToolkitError
from toolkit.models import onnx_graphs
from toolkit.models.special_tokens import settle_special_tokens
from toolkit.options import BatchCaptionOptions, ExportOptions, GenerationOptions
from toolkit.records import SpecialTokens

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

GRAPHS = ["onnx/decoder_model_merged.onnx", "onnx/encoder_model.onnx"]
QUANTIZED = [name.replace(".onnx", "_quantized.onnx") for name in GRAPHS]
REST = [
    "config.json",
    "export.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graphs, "trace", trace_quickly)
        yield


@pytest.fixture(scope="module")
def exported(model_dir: Path, tmp_path_factory: pytest.TempPathFactory, _quick: None) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model-onnx"
    summary = export(ExportOptions(str(model_dir), out, int8=True))
    assert summary.values["bytes"] == {name: (out / name).stat().st_size for name in sorted([*GRAPHS, *QUANTIZED])}
    return out


@pytest.fixture(scope="module")
def ours(model_dir: Path) -> Captioner:
    return load_captioner(model_dir, "cpu", "fp32")


@pytest.fixture(scope="module")
def theirs(exported: Path) -> Captioner:
    return load_captioner(exported)


@pytest.fixture(scope="module")
def pixels(cache_dir: Path) -> torch.Tensor:
    """uint8 (6, 3, 64, 64)."""
    reader = open_cache(cache_dir)["train"]
    return torch.stack([torch.from_numpy(reader[i]["pixel_values"].copy()) for i in range(6)])


# ---- captions -------------------------------------------------------------------------------------------------------

OPTIONS = {
    "the model's own": {},
    "greedy": {"num_beams": 1},
    "several": {"num_captions": 3, "length_penalty": 0.5, "early_stopping": "true"},
    "penalties": {"num_beams": 3, "min_length": 9, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "words": {"bad_words": ("circle", "the"), "start_with": "a small", "max_length": 20},
    "samples": {"sample": True, "num_captions": 3, "top_k": 9, "seed": 3},
}


@pytest.mark.parametrize("given", OPTIONS.values(), ids=OPTIONS)
def test_captions_are_those_of_the_model(
    ours: Captioner, theirs: Captioner, pixels: torch.Tensor, given: dict[str, Any]
) -> None:
    options = GenerationOptions(**given)
    for wanted, found in zip(ours.generate(pixels, options), theirs.generate(pixels, options), strict=True):
        assert found.captions == wanted.captions
        assert found.ended == wanted.ended
        assert found.scores == pytest.approx(wanted.scores, abs=1e-4)


def test_int8(exported: Path, theirs: Captioner, pixels: torch.Tensor) -> None:
    """Features are close to fp32's, and do not depend on the other images."""
    captioner = load_captioner(exported, precision="int8")
    inputs = theirs.normalizer(pixels)
    wanted, found = theirs.model.encode(inputs), captioner.model.encode(inputs)
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.03
    assert captioner.precision == "int8"
    together = captioner.generate(pixels, GenerationOptions())
    assert together == [captioner.generate(pixels[i : i + 1], GenerationOptions())[0] for i in range(len(pixels))]


def plain_loop(folder: Path, inputs: np.ndarray, length: int) -> list[int]:
    """Greedy search for one image as transformers.js runs it: from a past of no tokens, feeding back what comes out."""
    sessions = [onnxruntime.InferenceSession(folder / name) for name in reversed(GRAPHS)]
    settings = json.loads((folder / "generation_config.json").read_text())
    states = sessions[0].run(["last_hidden_state"], {"pixel_values": inputs})[0]
    past = {
        node.name: np.zeros(
            [1 if d == "batch_size" else d if isinstance(d, int) else 0 for d in node.shape], np.float32
        )
        for node in sessions[1].get_inputs()
        if node.name.startswith("past_key_values.")
    }
    names = [node.name for node in sessions[1].get_outputs()]
    tokens = [settings["decoder_start_token_id"]]
    while len(tokens) < length:
        feeds = {"input_ids": np.array([tokens[-1:]]), "encoder_hidden_states": states, **past}
        found = dict(zip(names, sessions[1].run(None, feeds), strict=True))
        tokens.append(int(found["logits"][0, -1].argmax()))
        past = {name.replace("present", "past_key_values"): found[name] for name in names if name != "logits"}
        if tokens[-1] == settings["eos_token_id"]:
            break
    return tokens


def test_a_plain_loop_over_the_graphs_is_stock_generate(
    exported: Path, ours: Captioner, theirs: Captioner, pixels: torch.Tensor
) -> None:
    for image in pixels[:3]:
        inputs = ours.normalizer(image[None])
        wanted = ours.model.generate(pixel_values=inputs, num_beams=1, no_repeat_ngram_size=0, max_length=12)
        assert plain_loop(exported, inputs.numpy(), 12) == wanted[0].tolist()


def test_batch_caption(exported: Path, model_dir: Path, pictures: Callable[[int], Path], tmp_path: Path) -> None:
    """The same rows as of the model; graphs in int8 are other weights, and are captioned with anew."""
    folder = pictures(5)
    options = BatchCaptionOptions(paths=(str(folder),), output=tmp_path / "a.jsonl", num_workers=1)

    def rows(model: Path, output: str, precision: str = "auto", new: int = 5) -> list[dict[str, Any]]:
        summary = batch_caption(replace(options, model=str(model), output=tmp_path / output, precision=precision))
        assert (summary.exit_code, summary.values["errors"]) == (3, 1)
        assert summary.values["new"] == new
        return [json.loads(line) for line in (tmp_path / output).read_text().splitlines()]

    wanted, found = rows(model_dir, "a.jsonl", new=6), rows(exported, "b.jsonl", new=6)
    assert [row["caption"] for row in found] == [row["caption"] for row in wanted]
    assert rows(exported, "b.jsonl", new=0) == found
    assert len(rows(exported, "b.jsonl", "int8", new=6)) == 6


# ---- the folder -----------------------------------------------------------------------------------------------------


def test_layout(exported: Path, model_dir: Path) -> None:
    """What transformers.js looks for, by src/models/session.js, src/configs.js and src/models/modeling_utils.js of 4.3."""
    files = sorted(path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file())
    assert files == sorted([*GRAPHS, *QUANTIZED, *REST])
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "vision-encoder-decoder"
    assert config["architectures"] == ["VisionEncoderDecoderModel"]
    decoder = config["decoder"]
    names = [f"{i}.{kind}" for i in range(decoder["n_layer"]) for kind in ("key", "value")]
    for name in (GRAPHS[0], QUANTIZED[0]):
        graph = onnx.load(exported / name).graph
        shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
        cache = ["batch_size", decoder["n_head"], "past_sequence_length", decoder["n_embd"] // decoder["n_head"]]
        assert shapes.pop("input_ids") == ["batch_size", "sequence_length"]
        assert len(shapes.pop("encoder_hidden_states")) == 4
        assert shapes == {f"past_key_values.{name}": cache for name in names}
        assert [v.name for v in graph.output] == ["logits", *(f"present.{name}" for name in names)]
    # transformers.js cleans up where this is not written down
    assert json.loads((exported / "tokenizer_config.json").read_text())["clean_up_tokenization_spaces"] is False
    wanted, found = (json.loads((folder / "generation_config.json").read_text()) for folder in (model_dir, exported))
    assert found == wanted
    for text in ("a small red circle .", "two  dogs"):
        tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (model_dir, exported)]
        assert len({tuple(tokenizer(text).input_ids) for tokenizer in tokenizers}) == 1
        assert len({tokenizer.decode(tokenizer(text).input_ids) for tokenizer in tokenizers}) == 1


@pytest.fixture
def cheap(exported: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Exports take their graphs from the first; the models that they were asked to write."""
    asked = []

    def copied(model: Any, shape: tuple[int, ...], folder: Path, int8: bool) -> None:
        assert shape == (3, 64, 64)
        asked.append(model)
        for name in [*GRAPHS, *(QUANTIZED if int8 else [])]:
            shutil.copy(exported / name, folder)

    monkeypatch.setattr("toolkit.commands.export.write_graphs", copied)
    return asked


def test_a_folder_is_replaced_only_when_asked(model_dir: Path, tmp_path: Path, cheap: list[Any]) -> None:
    out = tmp_path / "out"
    options = ExportOptions(str(model_dir), out)
    out.mkdir()
    export(replace(options, int8=True))
    with pytest.raises(
        OutputError, match=r"^DIRECTORY .*/out: exists; add --overwrite to replace it, or name another folder\.$"
    ):
        export(options)
    (out / "notes.txt").write_text("mine")
    (out / "generation_config.json").write_text("{}")
    export(replace(options, overwrite=True))
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {*GRAPHS, *REST, "notes.txt", "generation_config.json.old"}  # int8 is gone, what is mine stays
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    foreign_folder = tmp_path / "photos"
    foreign_folder.mkdir()
    (foreign_folder / "a.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="exists, and `toolkit export` did not write it; name another folder"):
            export(replace(options, directory=foreign_folder, overwrite=overwrite))
    assert [path.name for path in foreign_folder.iterdir()] == ["a.txt"]
    with pytest.raises(OutputError, match="is an input of this command"):
        export(replace(options, directory=model_dir))


def test_what_fails_leaves_nothing(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap: list[Any]
) -> None:
    def fails(model: Any, shape: tuple[int, ...], folder: Path, int8: bool) -> None:
        (folder / "encoder_model.onnx").write_text("half")
        raise RunError("no.")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("toolkit.commands.export.write_graphs", fails)
        with pytest.raises(RunError):
            export(ExportOptions(str(model_dir), out))
        assert list(tmp_path.iterdir()) == []
    partial = tmp_path / "out.partial"
    (partial / "onnx").mkdir(parents=True)  # of a run that was killed
    (partial / "onnx" / "encoder_model.onnx").write_text("half")
    export(ExportOptions(str(model_dir), out))
    assert not partial.exists()
    partial.mkdir()
    (partial / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.partial/mine\.txt is in the way, and no earlier export wrote it"):
        export(ExportOptions(str(model_dir), out, overwrite=True))


@pytest.mark.slow
def test_adapters_are_merged(
    cache_dir: Path, tmp_path: Path, three_updates: Callable[..., None], cheap: list[Any]
) -> None:
    pytest.importorskip("peft")
    three_updates(tmp_path / "lora", lora_rank=2)
    export(ExportOptions(str(tmp_path / "lora"), tmp_path / "out"))
    (model,) = cheap
    wanted = load_captioner(tmp_path / "lora", "cpu").model
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = [m(pixel_values=inputs, decoder_input_ids=torch.tensor([[0, 5]])).logits for m in (model, wanted)]
    assert torch.equal(*found)
    assert not any("lora" in name for name in model.state_dict())


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_other_models_are_refused(exported: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = next(
        model for i in range(99) if (model := random_model(random.Random(i))).config.decoder.model_type == "bert"
    )
    bert.save_pretrained(tmp_path / "bert")
    foreign.make("blip", tmp_path / "blip")
    for name, sentence in (
        (
            tmp_path / "bert",
            "can't be exported, because its decoder is of type bert, and only GPT-2 decoders are; name another captioner.",
        ),
        (tmp_path / "blip", "a model of type blip, and only a VisionEncoderDecoderModel can be exported"),
        (tmp_path / "none", "no such folder"),
        (exported, "is an export already; name the model that it was made from."),
    ):
        text = refusal(lambda name=name: export(ExportOptions(str(name), tmp_path / "out")))
        assert text.startswith(f"MODEL {name}: ")
        assert sentence in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "blip"]
    with pytest.raises(InputError, match=r"^--to gguf: choose one of onnx\.$"):
        ExportOptions("m", Path("d"), to="gguf")


def refusal(call: Callable[[], object]) -> str:
    """What a call is refused with, which is one sentence."""
    with pytest.raises(ToolkitError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_what_an_export_can_not_do_is_one_sentence(
    exported: Path, theirs: Captioner, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("--device cuda: .* runs on the CPU here", lambda: load_captioner(exported, device="cuda")),
        ("--precision bf16: .* has graphs in fp32 and int8 only; use fp32 or int8", lambda: load_captioner(exported, precision="bf16")),
        ("--attention: .* a model of type ONNX has no cross-attention", lambda: Attention(theirs, str(exported))),
        ("a model of type ONNX is not asked how probable", lambda: split_log_probs(theirs, "m", open_cache(cache_dir), "test")),
    ]  # fmt: skip
    whole = tmp_path / "no-int8"
    shutil.copytree(exported, whole, ignore=shutil.ignore_patterns("*_quantized.onnx"))
    calls.append(("--precision int8: .* export it again with --int8", lambda: load_captioner(whole, precision="int8")))
    damaged = tmp_path / "damaged"
    shutil.copytree(exported, damaged)
    (damaged / GRAPHS[1]).write_bytes((exported / GRAPHS[1]).read_bytes()[:5000])
    calls.append(("encoder_model.onnx: can't be opened by onnxruntime", lambda: load_captioner(damaged)))
    other = tmp_path / "other"
    shutil.copytree(exported, other)
    shutil.copy(exported / GRAPHS[1], other / GRAPHS[0])
    calls.append(("decoder_model_merged.onnx: not a graph that `toolkit export` writes", lambda: load_captioner(other)))
    settings = tmp_path / "settings"
    shutil.copytree(exported, settings)
    config = json.loads((exported / "generation_config.json").read_text())
    (settings / "generation_config.json").write_text(json.dumps({**config, "encoder_repetition_penalty": 1.3}))
    calls.append(("have encoder_repetition_penalty=1.3, which a captioner in ONNX can't do",
                  lambda: load_captioner(settings).caption([np.zeros((9, 9), np.uint8)])))  # fmt: skip
    for sentence, call in calls:
        assert re.search(sentence, refusal(call))
    assert faster_precision(theirs) is None
    monkeypatch.setattr(onnx_graphs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError,
        match=r"^ONNX needs onnxruntime, which is not installed; pip install 'captioning-toolkit\[onnx\]'\.$",
    ):
        load_captioner(exported)


def test_a_graph_that_gives_other_numbers_is_not_written(
    exported: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where torch has taken a number of images for a constant."""

    def wrong(module: Any, inputs: Any, outputs: list[str], path: Path) -> None:
        graph = onnx.load(exported / "onnx" / path.name)
        weight = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.01, weight.name))
        onnx.save(graph, path)

    monkeypatch.setattr(onnx_graphs, "trace", wrong)
    with pytest.raises(RunError, match="the encoder as ONNX gives other numbers than the model"):
        export(ExportOptions(str(model_dir), tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


# ---- slow: torch's own exporter, other encoders, transformers.js -----------------------------------------------------


def _joined(encoder: Any) -> VisionEncoderDecoderModel:
    decoder = GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=2, n_positions=40, initializer_range=0.3,
                   add_cross_attention=True, is_decoder=True, bos_token_id=None, eos_token_id=None)
    )  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    settle_special_tokens(model, SpecialTokens(1, 2, 0))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_by_torch_s_own_exporter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are those of stock `generate`, under many settings."""
    monkeypatch.undo()
    monkeypatch.setattr(onnx_graphs, "trace", TRACE)
    torch.manual_seed(1)
    model = _joined(tiny_encoder(name))
    (tmp_path / "onnx").mkdir()
    onnx_graphs.write_graphs(model, (3, 32, 32), tmp_path / "onnx", int8=False)
    model.config.save_pretrained(tmp_path)
    model.generation_config.save_pretrained(tmp_path)
    graphs, rng, inputs = OnnxModel(tmp_path, "fp32"), random.Random(0), torch.randn(3, 3, 32, 32)
    for _ in range(30):
        config = random_settings(rng)
        wanted = stock(model, inputs, complete(model, config))
        assert [found.tokens for found in decode(graphs, config, inputs)] == [found.tokens for found in wanted]


TRACE = onnx_graphs.trace  # before any test replaces it


@pytest.mark.slow
@pytest.mark.skipif("TRANSFORMERS_JS" not in os.environ, reason="TRANSFORMERS_JS names no folder with node_modules")
def test_transformers_js_gives_the_same_captions(
    exported: Path, theirs: Captioner, pictures: Callable[[int], Path], tmp_path: Path
) -> None:
    images = sorted(str(path) for path in pictures(20).glob("[0-9]*.jpg"))
    (tmp_path / "images.txt").write_text("\n".join(images))
    script = Path(__file__).parents[2] / "scripts" / "caption.mjs"
    done = subprocess.run(
        ["node", script, exported, "fp32", tmp_path / "images.txt"], capture_output=True, text=True, check=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = theirs.caption(images, GenerationOptions(num_beams=1))
    assert [row["caption"] for row in rows] == [result.caption for result in wanted]
