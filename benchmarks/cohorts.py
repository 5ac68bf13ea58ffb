"""What benchmarks share: the data and the split of a protocol on a grid of another spacing."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from napari_jrss.experiments.cohort import assign, prepare_cohort
from napari_jrss.experiments.protocol import load_protocol, plan
from napari_jrss.project.project import Project
from napari_jrss.project.split import Assignment


def on_grid(wanted: argparse.Namespace, out: Path) -> tuple[Project, Assignment]:
    """The protocol's scans in a project below `out`, and which of them train and test.

    `wanted` has the protocol, the folder of its data, the spacing in mm, N (`labelled`) and the
    seed.
    """
    protocol = load_protocol(Path(wanted.protocol), wanted.data)
    known = protocol.data.preprocessing
    own = known.spacing_mm or (1.0, 1.0, 1.0)
    shape = known.shape and tuple(
        max(16, 4 * round(n * s / wanted.spacing / 4))
        for n, s in zip(known.shape, own, strict=True)
    )
    grid = known.model_copy(update={"spacing_mm": (wanted.spacing,) * 3, "shape": shape})
    protocol = protocol.model_copy(
        update={"data": protocol.data.model_copy(update={"preprocessing": grid})}
    )
    run = replace(plan(protocol)[0], seed=wanted.seed, labelled=wanted.labelled)
    project = Project.open(prepare_cohort(protocol, out, [run]), read_only=True)
    return project, assign(protocol, run, project)
