"""One run, trained and evaluated in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_jrss import __version__
from napari_jrss.experiments.cohort import assign, snapshot_of
from napari_jrss.experiments.folder import ROWS, RUN, RUNS, SETTINGS, EventLog, rows_of, write_rows
from napari_jrss.experiments.methods import METHODS
from napari_jrss.experiments.protocol import Protocol, ProtocolError, Run
from napari_jrss.io.atomic import write_text
from napari_jrss.project.project import Project

if TYPE_CHECKING:
    import torch

    from napari_jrss.experiments.recipe import Trained
    from napari_jrss.snapshot import CaseArrays

PACKAGES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "antspyx")


def train_and_evaluate(
    protocol: Protocol, out: Path, project_path: Path, device: str, threads: int | None, run: Run
) -> float:
    """Train and evaluate one run; what :func:`run_experiment` does in its processes.

    Returns the seconds it took, with those of starts that were killed.
    """
    if run.start is not None and not (out / RUNS / run.start.id / RUN).exists():
        raise ProtocolError(f"{run.start.id} failed")
    import torch

    from napari_jrss.experiments.examples import write_examples
    from napari_jrss.experiments.recipe import Task
    from napari_jrss.inference.device import make_fabric
    from napari_jrss.inference.evaluate import evaluation_pairs
    from napari_jrss.snapshot import CachedArrays

    if threads is None:
        threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    _flush_denormals()
    folder = out / RUNS / run.id
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SETTINGS, run.config.model_dump_json(indent=1))
    with Project.open(project_path, read_only=True) as project, EventLog(folder) as log:
        dealt = assign(protocol, run, project)
        snapshot = snapshot_of(dealt, project)
        fabric = make_fabric(device, run.config.precision)
        task = Task(
            snapshot=snapshot,
            config=run.config,
            folder=folder,
            fabric=fabric,
            joint_rounds=protocol.joint_rounds,
            before=tuple(out / RUNS / each.id for each in run.before),
            report=log.add,
        )
        trained = METHODS[run.method].train(task)
        train_seconds = log.trained()

        arrays = CachedArrays(project.image, project.label)
        pairs = evaluation_pairs(dealt.test, protocol.pairs, run.seed)
        rows: list[dict[str, object]] = []
        for each in (*trained.earlier, trained):
            rows += _figures(each, project, arrays, dealt.test, pairs, fabric.device, log)
        write_examples(folder, trained, arrays, dealt.test[0], pairs[0], fabric.device)
    write_rows(folder / ROWS, run, rows)
    description = {
        **describe(run, threads),
        "title": METHODS[run.method].title,
        "device": str(fabric.device),
        "device_name": _device_name(fabric.device.type),
        "note": trained.note,
        "parameters": trained.parameters(),
        "train_seconds": train_seconds,
        "seconds": log.seconds,
        "structures": list(snapshot.class_names[1:]),
        "cases": {
            "labelled": dealt.labelled,
            "training": dealt.train,
            "validation": dealt.validation,
            "test": dealt.test,
        },
    }
    write_text(folder / RUN, json.dumps(description, indent=1))
    return log.seconds


def _figures(
    trained: Trained,
    project: Project,
    arrays: CaseArrays,
    test: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    device: torch.device,
    log: EventLog,
) -> Iterator[dict[str, object]]:
    """Every figure of what one round, or the whole training, ended with."""
    from napari_jrss.inference.evaluate import evaluate_registration, evaluate_segmentation

    names, spacing = project.table.names, project.spacing_of
    about: dict[str, object] = {"round": trained.round}
    if trained.segmentation is not None:
        network = trained.segmentation.to(device).eval()
        for case in test:
            one = evaluate_segmentation(network, arrays, [case], len(names), spacing, device)
            figures = log.figures(f"round {trained.round}, {case}", one.__next__)
            of = {**about, "task": "segmentation", "case": case}
            yield from rows_of(figures, of, names)
    if trained.registration is not None:
        network = trained.registration.to(device).eval()
        for moving, fixed in pairs:
            pair = [(moving, fixed)]
            each = evaluate_registration(network, arrays, pair, len(names), spacing, device)
            figures = log.figures(f"round {trained.round}, {moving} on {fixed}", each.__next__)
            of = {**about, "task": "registration", "case": fixed, "moving": moving}
            yield from rows_of(figures, of, names)


def describe(run: Run, threads: int) -> dict[str, Any]:
    """What a run is, and the software and machine it ran on."""
    return {
        "run": run.id,
        "method": run.method,
        "variant": run.variant,
        "labelled": "K" if run.labelled is None else run.labelled,
        "seed": run.seed,
        "config": run.config.model_dump(mode="json"),
        **describe_machine(threads),
    }


def describe_machine(threads: int) -> dict[str, Any]:
    """The software and machine that a run was made on."""
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "versions": {"napari-jrss": __version__, "python": platform.python_version(), **versions},
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": threads,
        },
    }


def _flush_denormals() -> None:
    """Sure predictions are full of numbers below 1e-38, with which a CPU computes much slower."""
    import torch

    torch.set_flush_denormal(True)
    # numpy notices as soon as somebody asks for the properties of a type
    warnings.filterwarnings("ignore", "The value of the smallest subnormal", UserWarning)


def _device_name(kind: str) -> str:
    import torch

    return torch.cuda.get_device_name() if kind == "cuda" else _processor()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
