"""JRSS: joint rounds of registration, student and averaged teacher after the Mono-Nets (Fig. 3)."""

from __future__ import annotations

from dataclasses import replace

from napari_jrss.experiments.methods.mono import ROUND, networks_of
from napari_jrss.experiments.recipe import NEVER, Task, Trained
from napari_jrss.training.round import RoundTask, run_round
from napari_jrss.training.trainable import RoundError


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
