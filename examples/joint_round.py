"""A joint round without a window: pre-train, run a round, and see what it gained.

Without arguments it makes a synthetic cohort and takes about a minute on two CPU cores::

    python examples/joint_round.py

With your own scans, and labels with the same file names. Most scans need a label, since what the
round gained is measured on test cases::

    python examples/joint_round.py --images scans --labels labels --preset fast --out study

The project, ``brain.jrss`` in the folder ``--out``, can be opened in napari afterwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import napari_jrss as jrss
from napari_jrss.app.evaluation import Evaluation


def main(arguments: Sequence[str] | None = None) -> Evaluation:
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

    config = jrss.preset(chosen.preset)
    if chosen.epochs is not None:
        joint = config.joint.model_copy(
            update={"segmentation_epochs": chosen.epochs, "minimum_steps": 1}
        )
        config = config.model_copy(update={"joint": joint})

    chosen.out.mkdir(parents=True, exist_ok=True)
    images, labels = chosen.images, chosen.labels
    if images is None:
        shape = (chosen.size, chosen.size * 4 // 3, chosen.size)
        cohort = jrss.make_cohort(chosen.out / "cohort", cases=12, shape=shape, structures=3)
        images, labels = cohort / "images", cohort / "labels"

    with jrss.Project.from_folders(chosen.out / "brain.jrss", images, labels) as project:
        # The labels of the other training cases are hidden, as if nobody had made them.
        project.split(labelled=chosen.labelled, validation=2, test=3)
        jrss.train(project, config, rounds=1)
        figures = jrss.evaluate(project)
    print(figures.summary())
    return figures


if __name__ == "__main__":
    main()
