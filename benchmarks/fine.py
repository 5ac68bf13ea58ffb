r"""Labels at the scans' own voxels: the fine network against interpolated probabilities.

    python benchmarks/fine.py --protocol hippocampus_fast --data shared/data/hippocampus_msd \
        --spacing 2 --out fine
    python benchmarks/fine.py --protocol ixi --data shared/data/ixi_brain_2mm --spacing 4 --out fine

The training grid is coarser than the scans. A teacher with the settings of the preset ``fast`` is
pre-trained from N labels of the protocol's split; with ``--rounds 1`` a joint round follows. Then
the fine network is trained with each of ``--fine-seeds``. Both labels of cases that are in no
split, one of each subject, are compared with the given label on the scan's own voxels. One thread.
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cohorts import on_grid
from scipy.stats import ttest_rel

from napari_jrss.config import TrainingConfig, preset
from napari_jrss.experiments.cohort import snapshot_of
from napari_jrss.inference.device import make_fabric
from napari_jrss.inference.load import load_predictor
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.metrics import dice_per_class
from napari_jrss.project.project import Project
from napari_jrss.snapshot import CohortSnapshot
from napari_jrss.training.round import RoundTask, run_round


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the scans")
    parser.add_argument("--protocol", default="hippocampus_fast", help="its data and its split")
    parser.add_argument("--spacing", type=float, default=2.0, help="of the training grid, in mm")
    parser.add_argument("--labelled", type=int, default=5, help="N")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the teacher")
    parser.add_argument("--fine-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, choices=[0, 1], default=0)
    parser.add_argument("--steps", type=int, default=300, help="of the fine network")
    parser.add_argument("--cases", type=int, default=40, help="that are compared, at most")
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    out = wanted.out / f"{wanted.protocol}-{wanted.spacing:g}mm-n{wanted.labelled}-{wanted.seed}"
    out.mkdir(parents=True, exist_ok=True)
    snapshot, project, judges = cohort(wanted, out)
    with project:
        config = preset("fast", seed=wanted.seed, fine={"steps": 0})
        last = out / "0"
        if wanted.rounds == 0:
            snapshot = replace(snapshot, unlabelled=snapshot.unlabelled[:1])
        train(RoundTask(0, snapshot, config, last))
        if wanted.rounds:
            train(RoundTask(1, snapshot, config, out / "1", parent=last))
            last = out / "1"
        for seed in wanted.fine_seeds:
            folder = out / f"{last.name}-fine-{wanted.steps}-{seed}"
            folder.mkdir(exist_ok=True)
            teacher = RoundFiles(folder).teacher
            if not teacher.exists():
                shutil.copy(RoundFiles(last).teacher, teacher)
            settings = config.model_dump() | {"seed": seed, "fine": {"steps": wanted.steps}}
            # The teacher is there, so nothing but the fine network is trained.
            only_fine = replace(snapshot, unlabelled=snapshot.unlabelled[:1])
            task = RoundTask(0, only_fine, TrainingConfig.model_validate(settings), folder)
            seconds = train(task)
            report(f"seed {seed}, {seconds:.0f} CPU s", folder, project, judges)


def cohort(
    wanted: argparse.Namespace, out: Path
) -> tuple[CohortSnapshot, Project, tuple[str, ...]]:
    """The protocol's split on a grid of the wanted spacing, and cases of no split."""
    project, sides = on_grid(wanted, out)
    subjects = {case.case_id: case.group or case.case_id for case in project.cases()}
    one_each = {subjects[case]: case for case in reversed(sides.unused)}
    snapshot = snapshot_of(replace(sides, validation=()), project)
    snapshot = replace(snapshot, scans=project.snapshot().scans)
    return snapshot, project, tuple(sorted(one_each.values()))[: wanted.cases]


def train(task: RoundTask) -> float:
    """Run or resume a round; its CPU seconds."""
    started = time.process_time()
    for _ in run_round(task, make_fabric("cpu"), threading.Event()):
        pass
    return time.process_time() - started


def report(title: str, folder: Path, project: Project, judges: tuple[str, ...]) -> None:
    """Both labels of each case against the person's."""
    predict = load_predictor(RoundFiles(folder), "cpu", with_student=False)
    classes = len(project.table.names)
    found, seconds = [], 0.0
    for case in judges:
        truth = project.scan_label(case)
        started = time.process_time()
        made = predict(project.channel_images(case), partial(project.case_scan, case))
        seconds += time.process_time() - started
        carried = replace(made, scan_label=None)
        transform = project.attributes(case).transform
        found.append(
            [
                dice_per_class(transform.prediction_to_scan(each), truth, classes)
                for each in (carried, made)
            ]
        )
    dice = np.array(found)
    before, after = np.nanmean(dice, axis=2).T
    of_each = np.nanmean(dice[:, 1] - dice[:, 0], axis=0)
    print(
        f"{title}: interpolated {before.mean():.4f}, fine {after.mean():.4f} "
        f"({after.mean() - before.mean():+.4f}), better in {(after > before).sum()} of "
        f"{len(judges)}, p = {ttest_rel(after, before).pvalue:.1e}; each structure "
        f"{', '.join(f'{change:+.3f}' for change in of_each)}; {seconds / len(judges):.1f} CPU s "
        "a scan, with the teacher",
        flush=True,
    )


if __name__ == "__main__":
    main()
