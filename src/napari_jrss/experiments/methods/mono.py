"""Mono-Net: Mono-Seg on the labelled cases (Eq. 2), Mono-Reg on all of them (Eq. 10).

With N = K the paper's upper bound, with N = 0 its unsupervised registration, where there is no
segmentation to learn.
"""

from __future__ import annotations

from pathlib import Path

from napari_jrss.experiments.recipe import NEVER, Task, Trained, train_registration
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.networks.build import build_registration_network, build_segmentation_network
from napari_jrss.networks.weights import load_weights
from napari_jrss.training.round import RoundTask, run_round

ROUND = "round0"


def train(task: Task) -> Trained:
    """The pre-training of JRSS, round 0."""
    if not task.snapshot.labelled:
        task.seed()
        registration = build_registration_network(task.config.registration_network)
        train_registration(task, registration, "mono_registration")
        return Trained(registration=registration)
    folder = task.folder / ROUND
    for event in run_round(RoundTask(0, task.snapshot, task.config, folder), task.fabric, NEVER):
        task.report(event)
    return networks_of(task, folder)


def networks_of(task: Task, folder: Path) -> Trained:
    """Teacher and registration network of a round's folder."""
    config = task.config
    teacher = build_segmentation_network(config.segmentation_network, task.snapshot.classes)
    registration = build_registration_network(config.registration_network)
    load_weights(teacher, RoundFiles(folder).teacher)
    load_weights(registration, RoundFiles(folder).registration)
    return Trained(teacher.to(task.device), registration.to(task.device))
