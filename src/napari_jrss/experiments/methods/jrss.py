"""JRSS: the Mono-Nets (round 0), the joint rounds after them (Fig. 3), and their refined fields.

With N = K the Mono-Nets are the paper's upper bound, with N = 0 its unsupervised registration,
where there is no segmentation to learn.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from napari_jrss.config import RefinementConfig
from napari_jrss.experiments.recipe import NEVER, Task, Trained, train_registration
from napari_jrss.inference.load import load_registration, load_teacher
from napari_jrss.inference.refine import NoDisplacement, RefinedRegistration
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.networks.build import build_registration_network
from napari_jrss.training.round import RoundTask, run_round
from napari_jrss.training.trainable import RoundError

ROUND = "round0"


def train_mono(task: Task) -> Trained:
    """The pre-training: Mono-Seg on the labelled cases (Eq. 2), Mono-Reg on all (Eq. 10)."""
    if not task.snapshot.labelled:
        task.seed()
        registration = build_registration_network(task.config.registration_network)
        train_registration(task, registration, "mono_registration")
        return Trained(registration=registration)
    folder = task.folder / ROUND
    for event in run_round(RoundTask(0, task.snapshot, task.config, folder), task.fabric, NEVER):
        task.report(event)
    return networks_of(task, folder)


def train(task: Task) -> Trained:
    """The joint rounds, as many as the pseudo-labels allow."""
    parent = task.before[-1] / ROUND
    done: list[Trained] = []
    for number in range(1, task.joint_rounds + 1):
        this = RoundTask(number, task.snapshot, task.config, task.folder / f"round{number}", parent)
        try:
            for event in run_round(this, task.fabric, NEVER):
                task.report(event)
        except RoundError as error:
            # The paper: joint training starts only with pseudo-labels that exceed the threshold.
            last = done.pop() if done else networks_of(task, parent)
            return replace(last, note=f"round {number} not run: {error}", earlier=tuple(done))
        parent = this.folder
        done.append(replace(networks_of(task, parent), round=number))
    return replace(done.pop(), earlier=tuple(done))


def train_refined(task: Task) -> Trained:
    """On control points two voxels apart alone, as the kept tables of the docs were made."""
    similarity = task.config.registration.similarity
    config = RefinementConfig(
        control_spacings=(2,), steps=(50,), similarity=similarity, lambda_r=2.0
    )
    return _refined(task, config)


def train_two_levels(task: Task) -> Trained:
    """Refined as a user's pairs are."""
    return _refined(task, RefinementConfig())


def _refined(task: Task, config: RefinementConfig) -> Trained:
    """Nothing is trained: the last networks of the runs before, each field refined on its pair."""
    trained = networks_of(task, last_round(task))
    assert trained.segmentation is not None
    start = trained.registration or NoDisplacement()
    refined = RefinedRegistration(start, trained.segmentation, config)
    return replace(trained, segmentation=None, registration=refined)


def last_round(task: Task) -> Path:
    """Folder of the last finished round of the runs before."""
    *_, last = (path.parent for run in task.before for path in _teachers(run))
    return last


def _teachers(run: Path) -> list[Path]:
    """Of a run's rounds, in their order."""
    paths = run.glob(f"round*/{RoundFiles(run).teacher.name}")
    return sorted(paths, key=lambda path: int(path.parent.name.removeprefix("round")))


def networks_of(task: Task, folder: Path) -> Trained:
    """Teacher of a round's folder, and registration network where one is trained."""
    files = RoundFiles(folder)
    teacher = load_teacher(files, task.device)
    if not task.config.trains_registration:
        return Trained(teacher)
    return Trained(teacher, load_registration(files, task.device))
