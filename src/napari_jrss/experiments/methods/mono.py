"""Mono-Net: Mono-Seg on the labelled cases (Eq. 2), Mono-Reg on all of them (Eq. 10).

With N = K the paper's upper bound, with N = 0 its unsupervised registration, where there is no
segmentation to learn.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from napari_jrss.engine.checkpoint import load_into, load_tensors
from napari_jrss.engine.joint_round import REGISTRATION, TEACHER, Round, run_round
from napari_jrss.engine.stages import RegistrationStage
from napari_jrss.experiments.recipe import NEVER, Task, Trained, train_stage
from napari_jrss.networks.build import build_registration_network, build_segmentation_network

ROUND = "round0"


def train(task: Task) -> Trained:
    """The pre-training of JRSS, round 0."""
    if not task.snapshot.labelled:
        return Trained(registration=registration_alone(task))
    folder = task.folder / ROUND
    for event in run_round(Round(0, task.snapshot, task.config, folder), task.fabric, NEVER):
        task.report(event)
    return networks_of(task, folder)


def registration_alone(task: Task) -> nn.Module:
    """The registration network of ``task.config``, trained on its own."""
    task.seed()
    network = build_registration_network(task.config.registration_network)
    settings = task.config.registration
    stage = RegistrationStage(
        "mono_registration",
        network,
        task.tensors(),
        task.config,
        task.fabric,
        settings.epochs,
        settings.minimum_steps,
        settings.warmup_steps,
    )
    train_stage(task, stage)
    return network


def networks_of(task: Task, folder: Path, note: str = "") -> Trained:
    """Teacher and registration network of a round's folder."""
    config = task.config
    teacher = build_segmentation_network(config.segmentation_network, task.snapshot.classes)
    registration = build_registration_network(config.registration_network)
    for network, name in ((teacher, TEACHER), (registration, REGISTRATION)):
        load_into(network, load_tensors(folder / name)[0], folder / name)
        network.to(task.device)
    return Trained(teacher, registration, note)
