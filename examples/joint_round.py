"""A joint round without a window: pre-train, run a round, and see what it gained.

Without arguments it makes a synthetic cohort and takes about a minute on two CPU cores::

    python examples/joint_round.py

With your own scans, whose labels (for some of them) bear the same file names, and of which most
have one, since what the round gained is measured on test cases::

    python examples/joint_round.py --images scans --labels labels --preset fast --out study

The project, ``brain.jrss`` in the folder ``--out``, can be opened in napari afterwards.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence
from pathlib import Path

from napari_jrss.app.evaluation import RoundEvaluated, evaluate
from napari_jrss.app.rounds.train import train
from napari_jrss.config import PreprocessingConfig, preset
from napari_jrss.io.label_files import label_table_from_files
from napari_jrss.io.layouts import discover
from napari_jrss.project.project import Project
from napari_jrss.sample_data import make_cohort
from napari_jrss.training.events import CaseScreened, StageStarted


def main(arguments: Sequence[str] | None = None) -> list[RoundEvaluated]:
    """Run the example; the figures of the pre-training and of the joint round."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder of scans")
    parser.add_argument("--labels", type=Path, help="folder of their labels")
    parser.add_argument("--out", type=Path, default=Path("joint_round"))
    parser.add_argument("--preset", choices=("paper", "fast", "smoke"), default="smoke")
    parser.add_argument("--labelled", type=int, default=2, help="labelled cases, N")
    parser.add_argument("--epochs", type=int, help="of the student, if not the preset's")
    parser.add_argument("--size", type=int, default=24, help="voxels of a synthetic scan's edge")
    chosen = parser.parse_args(arguments)

    config = preset(chosen.preset)
    if chosen.epochs is not None:
        joint = config.joint.model_copy(update={"segmentation_epochs": chosen.epochs})
        config = config.model_copy(update={"joint": joint})

    images, labels = chosen.images, chosen.labels
    if images is None:
        shape = (chosen.size, chosen.size * 4 // 3, chosen.size)
        cohort = make_cohort(chosen.out / "cohort", cases=12, shape=shape, structures=3)
        images, labels = cohort / "images", cohort / "labels"
    found = discover(images=images, labels=labels)
    table = label_table_from_files([case.label for case in found.cases if case.label])

    with Project.create(chosen.out / "brain.jrss", table, PreprocessingConfig()) as project:
        for result in project.add_cases(found.cases):
            print(f"{result.case_id}: {result.reason or 'imported'}")
        # The labels of the other training cases are hidden, as if nobody had made them.
        project.split(labelled=chosen.labelled, validation=2, test=3)
        for event in train(project, config, 1, threading.Event()):
            if isinstance(event, StageStarted):
                print(f"{event.stage}: {event.steps} steps")
            elif isinstance(event, CaseScreened):
                print(event.model_dump_json())
        return [show(each) for each in evaluate(project).rounds]


def show(figures: RoundEvaluated) -> RoundEvaluated:
    """Print the figures of a round."""
    segmentation, registration = figures.segmentation["dice"], figures.registration["dice"]
    print(
        f"{figures.name}: Dice of the segmentation {segmentation['mean']:.3f} "
        f"± {segmentation['std']:.3f}, of the registration {registration['mean']:.3f} "
        f"± {registration['std']:.3f}"
    )
    return figures


if __name__ == "__main__":
    main()
