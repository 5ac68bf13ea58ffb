"""Whether the errors that a person corrected in one case are in the other cases, too.

    python benchmarks/echo.py STUDY.jrss      # a project with a teacher and hidden labels

Some cases without a label are taken as accepted with their hidden label, the others as still to
do. Each place where the teacher was wrong in an accepted case is carried to each of the others by
registration, and the hidden label there says whether the teacher has the same error. The control
is the places where a carried label and the teacher differ, though the teacher was right there in
the accepted case. Nothing is drawn at random but which cases are accepted (seed 0).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_jrss.app.pairs.registering import project_registrar
from napari_jrss.app.review import echo
from napari_jrss.app.review.opinions import Dispute, disputes
from napari_jrss.inference.load import load_predictor
from napari_jrss.inference.predict import RegisteredPair, Votes, warp_array
from napari_jrss.metrics import dice_per_class
from napari_jrss.project.project import Project

MOST = 1000  # corrections of a case that are carried
SAME = 0.25  # share of a place that has to be wrong in the same way, within a voxel of it


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--accepted", type=int, default=8)
    parser.add_argument("--engine", default="refine")
    arguments = parser.parse_args()
    with Project.open(arguments.study, read_only=True) as project:
        measure(project, arguments.accepted, arguments.engine)


def measure(project: Project, count: int, engine: str) -> None:
    """Carry each correction to each case, and look at what is there."""
    teacher, classes = project.require_teacher(), len(project.table.names)
    names = sorted(c.case_id for c in project.cases() if not c.labelled and c.reference_version)
    names = np.random.default_rng(0).permutation(names).tolist()
    predict = load_predictor(teacher.files, "cpu", with_student=False)
    image = {name: project.image(name) for name in names}
    drafts = {name: predict(project.channel_images(name)).label for name in names}
    truth = {name: project.label(name, project.case(name).reference_version) for name in names}
    accepted, others = names[:count], names[count:]
    spacing = project.grid.spacing_mm
    registrar = project_registrar(project, engine)
    corrections = {a: echo.corrections(drafts[a], truth[a], spacing, MOST) for a in accepted}
    places, scores = defaultdict(list), defaultdict(list)
    started, pairs = time.process_time(), 0
    for b in others:
        carried, warped = {}, {}
        vote = Votes(image[b], classes)
        for a in accepted:
            field = registrar.field(image[a], image[b])
            pairs += 1
            carried[a] = warp_array(truth[a], field, nearest=True)
            vote.add(RegisteredPair(field, warp_array(image[a], field), carried[a]))
            warped[a] = [echo.carried_place(c, field) for c in corrections[a]]
        voted = vote.prediction().label
        scores["teacher"].append(_dice(drafts[b], truth[b], classes))
        scores["vote of the accepted"].append(_dice(voted, truth[b], classes))
        for a in accepted:
            rest = [carried[c] for c in accepted if c != a]
            alone, agreed = drafts[b].copy(), drafts[b].copy()
            for correction, mask in zip(corrections[a], warped[a], strict=True):
                found = _look(correction, mask, drafts[b], truth[b], carried[a], rest)
                if found is None:
                    continue
                here, seen = found
                places["same place and confusion"].append(seen)
                alone[here] = correction.second
                if seen["support"] >= echo.SUPPORT:
                    agreed[here & (voted == correction.second)] = correction.second
            wrong_in_a = np.any(warped[a], axis=0) if warped[a] else np.zeros(image[b].shape, bool)
            for dispute in disputes(drafts[b], carried[a], spacing, least_ml=echo.LEAST_ML):
                mask = np.zeros(image[b].shape, bool)
                mask[dispute.box] = dispute.mask
                if np.count_nonzero(mask & wrong_in_a) < 0.1 * np.count_nonzero(mask):
                    found = _look(dispute, mask, drafts[b], truth[b], carried[a], rest)
                    if found is not None:
                        places["control"].append(found[1])
            scores["every place carried"].append(_dice(alone, truth[b], classes))
            scores["supported places, where the vote agrees"].append(
                _dice(agreed, truth[b], classes)
            )
    seconds = (time.process_time() - started) / pairs
    print(f"{count} accepted, {len(others)} others; {engine}, {seconds:.2f} CPU s a pair")
    print("| Places | others that agree | places | the same error | voxels right | wrong |")
    print("|---|---|---:|---:|---:|---:|")
    for kind, found in places.items():
        for least in (0.0, 0.25, 0.5, 0.6):
            some = [each for each in found if each["support"] >= least]
            if not some:
                continue
            same = np.mean([each["same"] for each in some])
            good, bad = (sum(int(each[key]) for each in some) for key in ("good", "bad"))
            print(f"| {kind} | {least:.2f} | {len(some)} | {same:.2f} | {good} | {bad} |")
    print("| Label | Dice |\n|---|---:|")
    for kind, values in scores.items():
        print(f"| {kind} | {np.mean(values):.4f} |")


def _look(
    correction: Dispute,
    mask: NDArray[np.bool_],
    draft: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    carried: NDArray[np.uint8],
    rest: list[NDArray[np.uint8]],
) -> tuple[NDArray[np.bool_], dict[str, float]] | None:
    """What would change at a place, and whether that is right; None where too little would."""
    here = echo.same_confusion(correction, mask, draft, carried)
    if not here.any():
        return None
    wrong = (draft == correction.first) & (truth == correction.second)
    near = np.count_nonzero(wrong & ndimage.binary_dilation(mask))
    return here, {
        "same": near >= max(echo.LEAST_VOXELS, SAME * np.count_nonzero(mask)),
        "support": echo.support(correction, here, rest),
        "good": np.count_nonzero(truth[here] == correction.second),
        "bad": np.count_nonzero(truth[here] == correction.first),
    }


def _dice(label: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> float:
    return float(np.nanmean(dice_per_class(label, truth, classes)))


if __name__ == "__main__":
    main()
