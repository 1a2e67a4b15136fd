"""Self-critical training: its gradient against brute force, its loss against plain torch, runs that go on, refusals."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stopping import stops
from transformers import (
    GenerationConfig,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from toolkit.cache.labels import IGNORE_INDEX
from toolkit.captioning.generate import decode
from toolkit.commands.finetune import finetune
from toolkit.errors import InputError, RunError
from toolkit.options import FinetuneOptions, GenerationOptions
from toolkit.records import SpecialTokens
from toolkit.training.collator import FILLER, CaptionCollator
from toolkit.training.guards import measure, verdict
from toolkit.training.self_critical import (
    SampledDataset,
    SelfCriticalTrainer,
    advantages,
    divergence,
    policy_loss,
    resting,
    sampling_config,
)

EOS, LONGEST = 3, 3  # tokens of the longest caption; the vocabulary is 0, 1, 2 and EOS
TOKENS = SpecialTokens(start=EOS, eos=EOS, pad=EOS)
PACKED = ("decoder_input_ids", "decoder_position_ids", "decoder_attention_mask")


@pytest.fixture(scope="module")
def model() -> VisionEncoderDecoderModel:
    """In double precision, with dropout that must not be used."""
    torch.manual_seed(0)
    encoder = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8,
                        patch_size=4, initializer_range=0.3)  # fmt: skip
    decoder = GPT2Config(vocab_size=4, n_embd=8, n_layer=2, n_head=2, n_positions=8, initializer_range=0.4)
    made = VisionEncoderDecoderModel(config=VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    for config in (made.config, made.generation_config):
        config.decoder_start_token_id = config.bos_token_id = config.eos_token_id = config.pad_token_id = EOS
    made.encoder.requires_grad_(False)
    return made.double().eval()


@pytest.fixture(scope="module")
def features(model: VisionEncoderDecoderModel) -> torch.Tensor:
    """Of one image: (1, S, D)."""
    with torch.no_grad():
        return model.encoder(pixel_values=torch.randn(1, 3, 8, 8, dtype=torch.float64)).last_hidden_state


def every_caption() -> list[list[int]]:
    """All that can be drawn: ended by EOS, or cut off at the longest length."""
    ended = [[*words, EOS] for n in range(LONGEST) for words in product(range(3), repeat=n)]
    return ended + [list(words) for words in product(range(3), repeat=LONGEST)]


CAPTIONS = every_caption()
REWARDS = torch.tensor(np.random.default_rng(0).normal(size=len(CAPTIONS)))


def probabilities(model: Any, features: torch.Tensor) -> torch.Tensor:
    """Of all captions, by a row for each and transformers' own forward pass."""
    rows = torch.tensor([[EOS, *caption, *[EOS] * (LONGEST - len(caption))] for caption in CAPTIONS])
    logits = model(encoder_outputs=(features.repeat(len(rows), 1, 1),), decoder_input_ids=rows[:, :-1]).logits
    chosen = logits.log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
    used = torch.arange(LONGEST) < torch.tensor([len(caption) for caption in CAPTIONS])[:, None]
    return (chosen * used).sum(1).exp()


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    weights = [weight for weight in model.decoder.parameters() if weight.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, allow_unused=True) if g is not None])


def drawn_loss(model: Any, features: torch.Tensor, rows: list[list[int]], gained: torch.Tensor) -> torch.Tensor:
    """The loss of samples (captions by number) of the one image, (B, K), as training computes it: packed."""
    packed = CaptionCollator(TOKENS).packed(
        [np.array([[*CAPTIONS[c], *[IGNORE_INDEX] * (LONGEST - len(CAPTIONS[c]))] for c in row]) for row in rows]
    )
    labels = packed["labels"]
    lengths = [[len(CAPTIONS[c]) for c in row] for row in rows]
    weights = torch.zeros(labels.shape, dtype=torch.float64)
    for row, (n, value) in enumerate(zip(lengths, gained, strict=True)):
        weights[row, : sum(n)] = value.repeat_interleave(torch.tensor(n))
    inputs = {name: packed[name] for name in PACKED}
    logits = model(encoder_outputs=(features.repeat(len(rows), 1, 1),), **inputs).logits
    used = labels != IGNORE_INDEX
    return policy_loss(logits[used].log_softmax(-1), labels[used], weights[used])


def test_the_expected_gradient_is_that_of_the_expected_reward(model: Any, features: torch.Tensor) -> None:
    """Over all 1,600 pairs of captions that can be drawn, each with its probability."""
    chances = probabilities(model, features)
    assert chances.sum().item() == pytest.approx(1, abs=1e-12)
    wanted = gradient(model, -(chances * REWARDS).sum())
    pairs = [list(pair) for pair in product(range(len(CAPTIONS)), repeat=2)]
    chance = chances.detach()[torch.tensor(pairs)].prod(1)
    gained = advantages(REWARDS[torch.tensor(pairs)]) * chance[:, None]
    found = gradient(model, drawn_loss(model, features, pairs, gained) / 2)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-6)


def draw(model: Any, features: torch.Tensor, images: int, samples: int) -> list[list[list[int]]]:
    config = sampling_config(GenerationConfig(
        max_length=LONGEST + 1, decoder_start_token_id=EOS, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=EOS
    ), samples)  # fmt: skip
    single, states = copy.deepcopy(model).float().train(), features.float().repeat(images, 1, 1)
    with resting(single):
        found = decode(single, config, features=states, seeds=range(images))
    assert single.training
    return [image.tokens for image in found]


def test_drawn_captions_and_their_gradient(model: Any, features: torch.Tensor) -> None:
    """Captions come as often as the model's distribution says, without dropout, and the mean of the gradients of those that
    are drawn is the gradient of the expected reward."""
    drawn = draw(model, features, images=3000, samples=5)
    chances = probabilities(model, features).detach()
    times = Counter(tuple(caption) for image in drawn for caption in image)
    share = torch.tensor([times[tuple(caption)] for caption in CAPTIONS]) / 15000
    assert sum(times.values()) == 15000
    assert ((share - chances).abs() < 5 * (chances * (1 - chances) / 15000).sqrt() + 1e-6).all()
    number = {tuple(caption): i for i, caption in enumerate(CAPTIONS)}
    rows = [[number[tuple(caption)] for caption in image] for image in drawn]
    found = gradient(model, drawn_loss(model, features, rows, advantages(REWARDS[torch.tensor(rows)])) / 15000)
    wanted = gradient(model, -(probabilities(model, features) * REWARDS).sum())
    assert (found - wanted).norm() / wanted.norm() < 0.05


def test_advantages_and_divergence() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    assert advantages(rewards).tolist() == [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]]
    one, other = (torch.randn(5, 7, generator=torch.Generator().manual_seed(s)).log_softmax(-1) for s in (0, 1))
    theirs = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=logits) for logits in (one, other))
    )
    torch.testing.assert_close(divergence(one, other), theirs)
    assert divergence(one, one).abs().max() == 0


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def options(cache_dir: Path, model_dir: Path, tmp_path: Path) -> FinetuneOptions:
    """A second phase of four updates."""
    return FinetuneOptions(
        cache=cache_dir, objective="cider", init_from=str(model_dir), output_dir=tmp_path / "model", max_steps=4, batch_size=8,
        samples_per_image=3, lr=1e-3, generation=GenerationOptions(num_beams=1, max_length=20),
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def test_a_run_goes_on_to_the_bit(options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that a loss may have; stopped after the third update, within the epoch."""
    options = replace(options, xe_weight=0.1, kl_weight=0.2, decoder_dropout=0.1, reward="cider:1,bleu_4:0.5")
    finetune(options)
    other = replace(options, output_dir=options.output_dir.with_name("other"), save_steps=2)
    with monkeypatch.context() as patch:
        stops(patch, 4)
        with pytest.raises(RunError, match="go on from the last checkpoint"):
            finetune(other)
    finetune(other)
    one, two = (load_file(run.output_dir / "model.safetensors") for run in (options, other))
    assert all(one[name].equal(two[name]) for name in one)
    first, *_, last = [row for row in rows(other.output_dir) if "eval_cider" in row]
    assert (first["step"], last["step"]) == (0, 4)
    assert {"eval_bad_endings", "eval_alike", "eval_words", "eval_length"} <= last.keys()
    drawn = next(row for row in rows(options.output_dir) if "reward" in row)
    assert {"reward_spread", "sample_ended", "sample_tokens", "entropy", "kl", "sampling_s", "reward_s"} <= drawn.keys()
    page = (options.output_dir / "report.html").read_text()
    assert "words a caption on validation" in page
    assert "drawing captions" in page


def test_the_loss_is_that_of_plain_torch(options: FinetuneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accumulated over two batches, features from the cache: the sum over captions, a row each, one after another."""
    from toolkit.training.collator import caption_loss

    options = replace(
        options, max_steps=1, xe_weight=0.3, kl_weight=0.2, gradient_accumulation_steps=2, batch_size=3,
        cache_features=True, feature_precision="fp32", precision="fp32",
    )  # fmt: skip
    compute, draw_, losses, kept = SelfCriticalTrainer.compute_loss, SelfCriticalTrainer._draw, [], []

    def _draw(self: Any, *args: Any) -> Any:
        kept.append(draw_(self, *args))
        return kept[-1]

    def compute_loss(
        self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        phase, given = self.phase, dict(inputs)
        if self.state.global_step == 0:  # of the start on, another than the first phase's
            with torch.no_grad():
                phase.before.decoder.transformer.ln_f.bias.fill_(0.1)
        loss = compute(self, model, inputs, num_items_in_batch=num_items_in_batch)
        (drawn, weights), features = kept[-1], given["encoder_outputs"][0]
        total = torch.zeros(())
        for row in range(len(features)):
            positions, labels = drawn["decoder_position_ids"][row], drawn["labels"][row]
            starts = [i for i in range(len(labels)) if positions[i] == 0 and labels[i] != IGNORE_INDEX]
            used = int((labels != IGNORE_INDEX).sum())
            for low, high in zip(starts, [*starts[1:], used], strict=True):
                alone = {"encoder_outputs": (features[row : row + 1],), "labels": labels[None, low:high]}
                logprobs = model(**alone).logits[0].log_softmax(-1)
                before = phase.before(**alone).logits[0].log_softmax(-1)
                chosen = logprobs[torch.arange(high - low), labels[low:high]]
                kl = torch.nn.functional.kl_div(before, logprobs, reduction="sum", log_target=True)
                total = total - weights[row, low] * chosen.sum() + 0.2 * kl
        total = total / (6 * 3 * phase.caption_tokens)
        inputs = {name: given[name] for name in PACKED}
        logits = model(encoder_outputs=(features,), **inputs).logits
        total = total + 0.3 * caption_loss(logits, given["labels"], num_items_in_batch)
        losses.append((loss.item(), total.item()))
        return loss

    monkeypatch.setattr(SelfCriticalTrainer, "_draw", _draw)
    monkeypatch.setattr(SelfCriticalTrainer, "compute_loss", compute_loss)
    finetune(options)
    assert len(losses) == 2
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_features_from_the_cache_change_nothing(options: FinetuneOptions) -> None:
    """And the encoder, which is trained otherwise, gets its gradient through the pass that captions were drawn from."""
    logs = {}
    for name, more in (("pixels", {}), ("features", {"cache_features": True, "feature_precision": "fp32"})):
        run = replace(
            options, max_steps=1, warmup_steps=0, output_dir=options.output_dir.with_name(name), kl_weight=0.1, **more
        )
        finetune(run)
        logs[name] = next(row for row in rows(run.output_dir) if "reward" in row)
        trained = load_file(run.output_dir / "model.safetensors")
        before = load_file(Path(str(options.init_from)) / "model.safetensors")
        moved = {key.split(".")[0] for key in trained if not trained[key].equal(before[key])}
        assert moved == ({"encoder", "decoder"} if name == "pixels" else {"decoder"})
    for key in ("reward", "reward_spread", "sample_tokens", "entropy"):
        assert logs["pixels"][key] == pytest.approx(logs["features"][key], rel=1e-5)
    assert logs["pixels"]["kl"] == pytest.approx(0, abs=1e-6)


def test_what_is_drawn_depends_on_seed_epoch_and_image() -> None:
    class Items:
        seed, epoch = 7, 0

        def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
            return [{"labels": i} for i in indices]

    items: Any = Items()
    drawn = SampledDataset(items)
    first = {item["image"]: item["seed"] for item in drawn.__getitems__([3, 1, FILLER])}
    assert drawn[1] == {"labels": 1, "image": 1, "seed": first[1]}
    assert len(set(first.values())) == 3
    items.epoch = 1
    assert drawn[1]["seed"] != first[1]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"init_from": None}, r"--objective cider: goes on from a captioner .*; add --init-from model\."),
        ({"output_dir": "model"}, r"--objective cider: makes another model, .*; add --output-dir m-cider\."),
        ({"label_smoothing": 0.1}, r"--label-smoothing 0\.1: has no effect with --objective cider; leave it out\."),
        ({"captions_per_image": "2"}, r"--captions-per-image 2: .* --samples-per-image says how many are drawn\."),
        ({"samples_per_image": 1}, r"--samples-per-image 1: must be at least 2\."),
        ({"reward": "meteor"}, r"--reward meteor: meteor is no reward; choose from cider, bleu_4, as cider:1,bleu_4:0\.5\."),
        ({"kl_weight": -1.0}, r"--kl-weight -1\.0: must be at least 0\."),
        ({"objective": "bleu"}, r"--objective bleu: choose one of cross-entropy, cider\."),
        ({"objective": "cross-entropy", "kl_weight": 0.1}, r"--kl-weight 0\.1: only applies with --objective cider; add that\."),
        ({"fsdp": True}, r"--objective cider: draws captions from whole weights, which --fsdp shards"),
    ],
)  # fmt: skip
def test_refusals(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=rf"^{sentence}"):
        FinetuneOptions(**{"objective": "cider", "init_from": "some/m", "output_dir": "m-cider", **given})


def test_defaults() -> None:
    resolved = FinetuneOptions(objective="cider", init_from="m", output_dir=Path("n")).resolved("tiny")
    assert (resolved.samples_per_image, resolved.captions_per_image, resolved.batch_size) == (5, None, 32)
    assert FinetuneOptions().resolved(None).samples_per_image is None


def test_guards_name_what_is_wrong() -> None:
    def told(captions: list[str], first: Callable[[dict[str, float]], Any] = lambda found: None, **more: float) -> str:
        found = {"loops": 0.0, "ended": 1.0, **measure(captions), **more}
        named = {f"eval_{name}": value for name, value in found.items()}
        return verdict(captions, named, first(named))

    good = [f"a dog number {i} runs" for i in range(60)]
    assert told(good) == (
        "captions are sound (bad endings 0.0%, loops 0.0%, commonest caption 1.7%, without end 0.0%, 64 different words, "
        "4.9 words a caption)".replace("4.9", f"{measure(good)['length']:.1f}")
    )
    assert 'warning: captions break off, as "a man with a" (bad endings 9.1%' in told([*good, *["a man with a"] * 6])
    assert 'warning: many images get "a dog" (' in told([*good, *["a dog"] * 40])
    assert "words are being lost" in told(good, lambda found: {"eval_words": 90})
    assert "64 different words, 70 before" in told(good, lambda found: {"eval_words": 70})
    assert "captions do not end" in told(good, ended=0.9)
    assert "captions repeat themselves" in told(good, loops=0.2)
