"""The folder of a training run: where it lives, and whether it may be gone on with.

A run lives in `<output-dir>.partial` until it is whole (runtime/swap.py): options.json first, checkpoints, the log, the
model. A finished run lists its files by content hash in finetune.json.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from toolkit.cache.schema import MANIFEST, Cache
from toolkit.errors import OutputError
from toolkit.evaluation.tokenizers import PTB, Choice, choose_tokenizer
from toolkit.models.precision import pick_device, resolve_precision
from toolkit.options import FinetuneOptions
from toolkit.options.fields import to_json
from toolkit.options.finetune import BEFORE
from toolkit.options.generation import BEAM_SEARCH
from toolkit.options.push import HUB
from toolkit.runtime.files import beside, read_object, write_json
from toolkit.runtime.overwrite import check_folder
from toolkit.runtime.progress import say
from toolkit.runtime.swap import clear, held, take_place
from toolkit.training.checkpoints import last_checkpoint
from toolkit.training.run_files import (
    CHECKPOINTS,
    FINISHED,
    RUN,
    STARTED,
    RunSummary,
    carry,
    is_cut,
    listed,
    move_unfinished,
    read_summary,
)

# Options that do not change the model.
INDIFFERENT = ("cache", "more_caches", "output_dir", "resume", "overwrite", "num_workers", "report_to", "run_name", "save_total_limit",
               "save_steps", "save_minutes", "push_to_hub", *HUB)  # fmt: skip
# Options that do not change the weights: with other values a finished run is only evaluated again.
EVALUATION = (*BEAM_SEARCH, "eval_batch_size")


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        task: "nothing" if the run is finished; "train", from the start if `fresh`, else from the last checkpoint;
            "extend" a finished run by more epochs or steps; "evaluate" a finished run with other generation options.
        place: the folder of the finished model, links resolved.
        fresh: what is in `partial` is deleted first.
        precision: what the run computes in; of a run that goes on, what it began with.
        tokenizer: what evaluations count words by; of a run that goes on, what it began with.
        summary: of the finished run.
        extended: how long the run was before it was extended, each time.
    """

    task: str
    place: Path
    precision: str
    tokenizer: str
    fresh: bool = False
    summary: RunSummary | None = None
    extended: list[dict[str, Any]] = field(default_factory=list)

    @property
    def partial(self) -> Path:
        """The folder of the run until it is finished."""
        return beside(self.place, ".partial")


@dataclass(frozen=True)
class RunIdentity:
    """What makes two runs give the same model, as it stands in `STARTED`.

    Attributes:
        cache: the fingerprint of the rows of each split.
        ranks: how many processes train.
        precision: what `--precision auto` stood for when the run began; None of runs before it was written down.
        tokenizer: what `--tokenize auto` stood for when the run began; of runs before the option it is `ptb`.
        extended: as in `Plan`.
        preparing: the folder still lacks what it takes from the finished run.
    """

    options: dict[str, Any]
    cache: dict[str, str]
    ranks: int = 1
    precision: str | None = None
    tokenizer: str = PTB.name
    extended: list[dict[str, Any]] = field(default_factory=list)
    preparing: bool = False

    def write(self, folder: Path) -> None:
        unusual = {name: value for name in ("extended", "preparing") if (value := getattr(self, name))}
        names = ("options", "cache", "ranks", "precision", "tokenizer")
        values = {name: getattr(self, name) for name in names} | unusual
        write_json(folder / STARTED, values)

    @property
    def computes_in(self) -> str:
        """Runs before it was written down took fp32 on every CPU."""
        return self.precision or resolve_precision(self.options["precision"], pick_device("auto"))

    def differences(self, now: RunIdentity) -> dict[str, str]:
        """What differs, by name: how to say it. An option that is newer than the run had its default."""
        old, new = {**BEFORE, **self.options}, now.options
        changed = {
            name: f"--{name.replace('_', '-')} {old[name]}, now {new[name]}" for name in new if old[name] != new[name]
        }
        if self.tokenizer == now.tokenizer:  # however it was named
            changed.pop("tokenize", None)
        if self.cache != now.cache:
            changed["cache"] = "another cache, or other shares of several"
        if self.ranks != now.ranks:
            changed["ranks"] = f"{self.ranks} processes, now {now.ranks}"
        return changed


def run_identity(options: FinetuneOptions, cache: Cache, ranks: int) -> RunIdentity:
    names = ("train", "validation")
    small = bool(cache.manifest["options"]["preset"])  # its products are too small to gain: bf16 is slower there
    return RunIdentity(
        {k: v for k, v in to_json(options).items() if k not in INDIFFERENT},
        {n: cache.fingerprint(n) for n in names},
        ranks,
        resolve_precision(options.precision, pick_device("auto"), training=not small),
        tokenizer_of(options, cache).tokenizer.name,
    )


def tokenizer_of(options: FinetuneOptions, cache: Cache) -> Choice:
    """What validation captions are cut into words by."""
    return choose_tokenizer(options.tokenize, (c for said in cache["validation"].column("captions") for c in said))


def read_run(folder: Path) -> RunIdentity | None:
    """The identity that a run has put into its folder; None if no run of toolkit's lives there, whatever else does."""
    value = read_object(folder / STARTED) or {}
    options, cache = value.get("options"), value.get("cache")
    ours = isinstance(options, dict) and options.keys() >= {"epochs", "max_steps", "lr", "batch_size", "seed"}
    if not ours or not isinstance(cache, dict) or cache.keys() != {"train", "validation"}:
        return None
    return RunIdentity(**{f.name: value[f.name] for f in fields(RunIdentity) if f.name in value})


def look(options: FinetuneOptions, identity: RunIdentity) -> Plan:
    """What there is to do in `--output-dir`; changes nothing.

    Raises:
        OutputError: the folder may not be written, holds something else, or a run of other options.
    """
    out = options.output_dir
    place = check_place(options)
    partial = beside(place, ".partial")
    unfinished = None if partial.is_symlink() else read_run(partial)
    if unfinished is None and os.path.lexists(partial) and not _is_empty(partial):
        raise OutputError(
            f"--output-dir {out}: {partial} is the folder of the unfinished run, but holds files that no run "
            "wrote; move them, or name another folder."
        )
    before = read_run(place)
    if before is None and unfinished is None and place.is_dir() and not _is_empty(place):
        raise OutputError(f"--output-dir {out}: holds files that no run wrote; name another folder.")
    plan = Plan("train", place, identity.computes_in, identity.tokenizer)
    if before is not None and not (place / FINISHED).is_file():  # begun by a toolkit that trained in the folder itself
        unfinished = unfinished or before
    elif before is not None and not options.overwrite:
        plan = _after(before, options, identity, place)
    if plan.task == "nothing":
        return plan
    if unfinished is None or unfinished.preparing:
        return replace(plan, fresh=True)
    changed = unfinished.differences(identity)
    wrong = changed or (plan.task != "train" and unfinished.extended != plan.extended)
    if wrong and not options.overwrite and (options.resume or plan.task == "evaluate"):
        raise _other_settings(out, changed, f"{partial.name} holds an unfinished run")
    if plan.task == "evaluate":  # which is soon done again
        return replace(plan, fresh=True)
    fresh = bool(changed) or not options.resume or (options.overwrite and bool(unfinished.extended))
    begun = identity if fresh else unfinished
    extended = [] if fresh else unfinished.extended
    return Plan("train", place, begun.computes_in, begun.tokenizer, fresh=fresh, extended=extended)


def _after(before: RunIdentity, options: FinetuneOptions, identity: RunIdentity, place: Path) -> Plan:
    """What there is to do where a finished run is.

    Args:
        before: its identity.
    """
    out, summary = options.output_dir, read_summary(place)
    if summary is None:
        raise OutputError(f"--output-dir {out}: its {FINISHED} is damaged; train the model again with --overwrite.")
    changed = before.differences(identity)
    if changed.keys() <= set(EVALUATION):
        _check_files(out, place)
        task = "evaluate" if changed else "nothing"
        how = (before.computes_in, before.tokenizer)
        return Plan(task, place, *how, summary=summary, extended=before.extended)
    steps, epochs = options.max_steps, options.epochs
    longer = steps > summary.get("steps", 0) if steps > 0 else (epochs or 0) > (summary.get("epochs") or 0)
    if changed.keys() <= {"epochs", "max_steps"} and longer and options.resume:
        was = {name: before.options.get(name) for name in ("epochs", "max_steps")}
        extended = [*before.extended, {**was, "steps": summary.get("steps")}]
        return Plan("extend", place, before.computes_in, before.tokenizer, summary=summary, extended=extended)
    raise _other_settings(out, changed, "holds a run")


def _check_files(out: Path, place: Path) -> None:
    """Whether the model of a finished run is there; checkpoints may be gone."""
    names = [name for name in listed(place / FINISHED, place) if "/" not in name]
    if not any(name.endswith(".safetensors") for name in names):  # of an older toolkit's, which listed none
        names.append("model.safetensors")
    missing = [name for name in names if not (place / name).is_file()]
    if missing:
        raise OutputError(
            f"--output-dir {out}: a finished run, but its {missing[0]} is missing; put it back, or train the model again with "
            "--overwrite."
        )


def check_place(options: FinetuneOptions) -> Path:
    """Where the model is to be, links resolved.

    Raises:
        OutputError: no place for a model: an input, what holds one, the working folder, a cache, a home folder.
    """
    out = options.output_dir
    check_folder("--output-dir", out, [options.cache, *map(Path, options.more_caches), options.init_from])
    place = out.resolve()
    for folder in (place, *place.parents):
        if (folder / MANIFEST).is_file() and (folder / "dataset_dict.json").is_file():
            within = "is a cache" if folder == place else f"is inside the cache {folder}"
            raise OutputError(f"--output-dir {out}: {within}; name another folder.")
    return place


def holding(options: FinetuneOptions) -> AbstractContextManager[None]:
    """`--output-dir` for this run alone."""
    return held(f"--output-dir {options.output_dir}", check_place(options), "training there")


def finish_swap(place: Path, out: Path) -> None:
    """What a run that was killed in its very last moments has left to do."""
    if is_cut(beside(place, ".partial")):
        replace_model(beside(place, ".partial"), place, out)


def replace_model(partial: Path, place: Path, out: Path) -> None:
    """The whole run in `partial` becomes the finished model."""
    for name in take_place(f"--output-dir {out}", partial, place, RUN):
        say(f"{out}: changed since the last run wrote it, and kept as {name}")


def start(plan: Plan, options: FinetuneOptions, identity: RunIdentity) -> None:
    """Makes the folder of the run; called once everything else has been checked.

    Raises:
        OutputError: it can't be written, or a finished run has no checkpoint to be extended from.
    """
    out, place, partial = options.output_dir, plan.place, plan.partial
    checkpoint = last_checkpoint(place / CHECKPOINTS, say) if plan.task == "extend" else None
    if plan.task == "extend":
        if checkpoint is None:
            raise OutputError(
                f"--output-dir {out}: no undamaged checkpoint of the finished run is left, so it can't be extended; name another "
                "folder, or train again with --overwrite."
            )
        done, summary = plan.extended[-1], plan.summary or {}
        say(
            f"{out}: finished after {_length(done)} ({summary.get('steps')} updates); going on to "
            f"{_length(identity.options)} from {checkpoint.name}, on the schedule of the whole length, so the learning "
            "rate rises again; a run of this length from the start would give another model"
        )
    try:
        unfinished = read_run(place) is not None and not (place / FINISHED).is_file()
        if plan.fresh:
            clear(partial, RUN)
            if unfinished:
                clear(place, RUN)
        elif unfinished and read_run(partial) in (None, read_run(place)):
            move_unfinished(place, partial)
        partial.mkdir(parents=True, exist_ok=True)
        identity = replace(identity, extended=plan.extended, precision=plan.precision, tokenizer=plan.tokenizer)
        if plan.task in ("extend", "evaluate"):
            replace(identity, preparing=True).write(partial)
            carry(place, partial, checkpoint)
        identity.write(partial)
        (partial / CHECKPOINTS).mkdir(exist_ok=True)
    except OSError as error:
        if plan.fresh:
            clear(partial, RUN)
        raise OutputError(f"--output-dir {out}: can't be written ({error.strerror}); name another folder.") from None


def _length(options: dict[str, Any]) -> str:
    return f"{options['max_steps']} updates" if options["max_steps"] > 0 else f"{options['epochs']:g} epochs"


def check_shared(plan: Plan, out: Path) -> None:
    """Whether this process sees the folder that another one has made."""
    if not (plan.partial / STARTED).is_file():
        raise OutputError(f"--output-dir {out}: is not the same folder for all processes; name one that they share.")


def _is_empty(folder: Path) -> bool:
    """Of a kill in the first moments of a run a part of its first file may be left."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(path.name == f"{STARTED}.tmp" for path in folder.iterdir())


def _other_settings(out: Path, changed: dict[str, str], what: str) -> OutputError:
    listed = "; ".join(changed.values()) or "it extends another run"
    return OutputError(
        f"--output-dir {out}: {what} with other settings ({listed}); use those again, name another folder, or replace it "
        "with --overwrite."
    )
