"""Writes an export: what a run trained, in a form that tools other than this one load, and its model card."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import synthalign
from synthalign.export.base import Base, base_of, check_fits, copy_small_files, skeleton_of
from synthalign.export.card import Export, card
from synthalign.export.figures import Figures, figures_of
from synthalign.export.folder import RECORD, check_free, whole
from synthalign.export.merged import write_merged, write_template
from synthalign.export.source import ADAPTER_CONFIG, ADAPTER_WEIGHTS, find
from synthalign.export.trained import Adapters, Trained, does_nothing, read, weights_of
from synthalign.store import fingerprint
from synthalign.vlm.processors import packages_of
from synthalign.weights import DType


class Written(NamedTuple):
    """What came of it."""

    path: Path
    headline: str
    notes: list[str]
    """What else its reader must know."""


def write(
    place: Path,
    out: Path | None = None,
    *,
    merged: bool = False,
    base: str | None = None,
    base_name: str | None = None,
    dtype: DType = "auto",
    shard_gb: float = 5.0,
    results: Path | None = None,
    repo: str | None = None,
    lora: Adapters | None = None,
) -> Written:
    """Write an export into a folder that is whole or absent.

    Args:
        place: A run's folder, the adapter's or model's in it, or a checkpoint.
        out: Where to; by default in ``export/`` of the run's folder. An older export there is replaced.
        merged: Write a whole model in place of the adapter.
        base: Folder or hub id of the base, where the run's own name no longer leads to it.
        base_name: What the export calls a base that is a folder: ``OWNER/NAME``.
        dtype: Type of a whole model's weights; auto: as the base's were saved.
        shard_gb: Largest size of a file of weights, GB.
        results: Evaluations to show in place of the run's own: those of a test.
        repo: Name on the hub, if it will be pushed there.
        lora: ``synthalign.dpo.policy.LoRA``, which a checkpoint needs beside which no adapter was saved.

    Returns:
        Where it is, and what to say of it.

    Raises:
        ValueError: There is nothing to export, its base is not there or not its own, or ``out`` is taken; or an adapter
            whose base is a folder would be pushed.
        RuntimeError: The disk does not take it.
    """
    if not shard_gb > 0:
        raise ValueError(f"a file of weights must be allowed some size, got {shard_gb} GB")
    source = find(place)
    found = base_of(source, base, base_name, needed=source.kind != "model")
    trained = None if source.kind == "model" else read(source, lora)
    is_adapter = trained is not None and trained.adapter is not None and not merged
    if repo is not None and is_adapter and not found.is_public:
        raise ValueError(
            f"an adapter on the hub names its base, and this one's is a folder of this machine, {found.name}: "
            "say with --base-name OWNER/NAME what that is on the hub"
        )
    if not is_adapter and not found.is_public:
        found = found._replace(name=Path(found.name).name)  # it is needed no more: where it was is nobody's business
    if dtype != "auto" and (is_adapter or trained is None):
        raise ValueError("--dtype is that of a --merged model; an adapter, or a model that was saved, stays as it is")
    stem = f"{source.path.stem}-" if source.kind == "checkpoint" else ""
    out = out or source.run / "export" / f"{stem}{'adapter' if is_adapter else 'merged' if merged else 'model'}"
    check_free(out)
    step = None if trained is None else trained.step
    figures = figures_of(source, step, results)
    export = Export(
        name=repo or out.absolute().name,
        source=source,
        base=found,
        is_adapter=is_adapter,
        is_pushed=repo is not None,
        adapter=None if trained is None else trained.adapter,
        step=figures.step if isinstance(figures, Figures) and step is None else step,
        figures=figures,
        template=source.policy("chat_template"),
        dtype="the type that the base was saved in" if dtype == "auto" else dtype,
    )
    with whole(out) as folder:
        if trained is None:
            _copy_model(source.path, folder)
            packages = packages_of(str(folder))
        else:
            same = _write_trained(trained, export, folder, dtype=dtype, shard_gb=shard_gb)
            export = export._replace(same_layout=same)
            packages = packages_of(found.model, revision=found.asked)
        export = export._replace(packages=packages)
        (folder / "README.md").write_text(card(export), encoding="utf-8")
        _record(export, folder)
    return Written(out, _headline(export, out), _notes(export, trained))


def _write_trained(trained: Trained, export: Export, folder: Path, *, dtype: DType, shard_gb: float) -> bool:
    """Write what was trained, and say whether it lies as its base does."""
    base = export.base
    if trained.adapter is not None:
        skeleton = skeleton_of(base)
        kind = {"base_model_class": type(skeleton).__name__, "parent_library": type(skeleton).__module__}
        check_fits(skeleton, trained.adapter, trained.tensors, base)
        config = trained.adapter | {
            "base_model_name_or_path": base.name,
            "revision": base.revision,
            "inference_mode": True,
            "auto_mapping": trained.adapter.get("auto_mapping") or kind,
        }
        if export.is_adapter:
            _write_adapter(config, trained, folder)
            if export.template is not None:
                write_template(folder, export.template)
            return False
        adapter = folder / "adapter"
        adapter.mkdir()
        _write_adapter(config | {"base_model_name_or_path": None}, trained, adapter)  # PEFT would ask the hub for it
    else:
        adapter = None
    sys.stderr.write(f"reading {base.model} …\n")
    same = write_merged(trained, adapter, base, folder, dtype=dtype, shard_gb=shard_gb, template=export.template)
    if adapter is not None:
        shutil.rmtree(adapter)
    return same


def _write_adapter(config: dict[str, Any], trained: Trained, folder: Path) -> None:
    from safetensors.torch import save_file

    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in trained.tensors.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _copy_model(model: Path, folder: Path) -> None:
    """Copy a model that was trained whole: its weights, and the small files that its processor was saved in."""
    copy_small_files(Base(str(model), None, str(model), False), folder, None)
    for path in weights_of(model):
        shutil.copyfile(path, folder / path.name)


def _record(export: Export, folder: Path) -> None:
    """Note what the folder was made from, and what belongs to it."""
    source = export.source
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    run = source.run.absolute()
    record = {
        "synthalign": synthalign.__version__,
        "made_of": source.path.absolute().relative_to(run.parent).as_posix(),
        "fingerprint": fingerprint(source.path),
        "base": export.base.name,
        "revision": export.base.revision,
        "step": export.step,
        "files": files,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _headline(export: Export, out: Path) -> str:
    if export.is_adapter:
        return f"{export.method} adapter of {export.base.name}: {out}; its README.md has the code that loads it"
    served = f"transformers serve {out} serves it, and " if export.same_layout else ""
    return f"Model: {out}; {served}its README.md has the code that loads it"


def _notes(export: Export, trained: Trained | None) -> list[str]:
    notes = []
    if trained is not None and does_nothing(trained):
        notes.append("This adapter is as it was made: its second factors are all zero, and it changes no answer.")
    if export.is_adapter and not export.base.is_public:
        notes.append(
            f"The base is a folder of this machine, {export.base.name}, which the export names: before you share it, "
            "say with --base-name OWNER/NAME what it is on the hub."
        )
    if trained is not None and not export.is_adapter and not export.same_layout:
        notes.append(
            "Its weights have other names or shapes than the base's: transformers reads both, a server may not."
        )
    if isinstance(export.figures, str):
        notes.append(f"The card has no evaluations. {export.figures}")
    return notes
