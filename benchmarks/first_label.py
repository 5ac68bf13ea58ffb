"""Which scan to label first: rules that see images alone, against a scan taken at random.

    python benchmarks/first_label.py --data shared/data/hippocampus_msd --out first_label

The candidates are the training cases of the protocol ``hippocampus_fast``, split 0. A short
`fast`-like teacher is trained from each one's label alone, and each one's label is also carried
onto the test cases by the engine `refine`. Rules choose among cohorts of so many cases, drawn from
the candidates; the table gives the mean of what they chose. It goes on where it was interrupted,
as each figure is kept in `--out`.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy.stats import spearmanr

from napari_jrss.app.case_summary import block_vector
from napari_jrss.config import TrainingConfig, preset
from napari_jrss.experiments.cohort import assign, prepare_cohort, snapshot_of
from napari_jrss.experiments.protocol import load_protocol, plan
from napari_jrss.inference.predict import warp_array
from napari_jrss.inference.refine import register_images
from napari_jrss.losses import local_normalized_cross_correlation
from napari_jrss.metrics import dice_per_class
from napari_jrss.networks.build import build_segmentation_network
from napari_jrss.project.project import Project
from napari_jrss.snapshot import CachedArrays, CohortSnapshot
from napari_jrss.training.round import RoundTask, train_stage
from napari_jrss.training.stages import MonoSegmentationStage, TrainingTensors, segmentation_dice

Table = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_formatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the hippocampus data")
    parser.add_argument("--protocol", default="hippocampus_fast", help="its data and its split")
    parser.add_argument("--out", type=Path, required=True, help="folder for what was measured")
    parser.add_argument("--candidates", type=int, default=30, help="at most")
    parser.add_argument("--tests", type=int, default=20, help="at most")
    parser.add_argument("--steps", type=int, default=300, help="of each teacher")
    parser.add_argument("--seeds", type=int, default=1, help="trainings for each candidate")
    parser.add_argument("--cohort", type=int, default=12, help="cases that a rule chooses from")
    parser.add_argument("--draws", type=int, default=2000, help="cohorts")
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    protocol = load_protocol(Path(wanted.protocol), wanted.data)
    run = next(run for run in plan(protocol) if run.seed == 0)
    with Project.open(prepare_cohort(protocol, wanted.out, [run]), read_only=True) as project:
        sides = assign(protocol, run, project)
        candidates = sides.train[: wanted.candidates]
        tests = sides.test[: wanted.tests]
        pairs = measured(
            wanted.out / "pairs.json",
            [f"{a}>{b}" for a in candidates for b in (*candidates, *tests) if a != b],
            lambda pair: register(project, *pair.split(">")),
        )
        base = snapshot_of(sides, project)
        dice = measured(
            wanted.out / f"teachers-{wanted.steps}.json",
            [f"{case}:{seed}" for seed in range(wanted.seeds) for case in candidates],
            lambda key: teach(project, base, *key.split(":"), tests, wanted.out, wanted.steps),
        )
        images = {case: project.image(case) for case in candidates}
    outcomes = {
        "teacher": {
            case: float(np.mean([dice[f"{case}:{seed}"]["dice"] for seed in range(wanted.seeds)]))
            for case in candidates
        },
        "propagation": {
            case: float(np.mean([pairs[f"{case}>{test}"]["dice"] for test in tests]))
            for case in candidates
        },
    }
    rng = np.random.default_rng(0)
    size = min(wanted.cohort, len(candidates))
    cohorts = [sorted(rng.choice(candidates, size, replace=False)) for _ in range(wanted.draws)]
    similar = similarities(images, pairs)
    for name, values in outcomes.items():
        tell(name, values, cohorts, similar)


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog)


def measured(file: Path, keys: Sequence[str], measure: Callable[[str], dict[str, float]]) -> Table:
    """The figures of each key; those in the file are not measured again."""
    known: Table = json.loads(file.read_text()) if file.exists() else {}
    missing = [key for key in keys if key not in known]
    busy = time.process_time()
    for done, key in enumerate(missing, start=1):
        known[key] = measure(key)
        if done % 25 == 0 or "teachers" in file.name or done == len(missing):
            file.write_text(json.dumps(known))
            each = (time.process_time() - busy) / done
            print(f"{file.stem}: {done} of {len(missing)}, {each:.1f} CPU s each", flush=True)
    return known


def register(project: Project, moving: str, fixed: str) -> dict[str, float]:
    """Carry one case onto another by the engine `refine`: likeness, deformation, Dice."""
    started = time.process_time()
    images = [project.image(case) for case in (moving, fixed)]
    field = register_images(*images).numpy()
    seconds = time.process_time() - started
    warped = warp_array(images[0], field)
    label = warp_array(project.label(moving), field, nearest=True)
    truth = project.label(fixed)
    return {
        "before": correlation(images[0], images[1]),
        "after": correlation(warped, images[1]),
        "deformation": float(np.sqrt((field**2).sum(0).mean())),
        "dice": float(
            np.nanmean(dice_per_class(label, truth, int(truth.max()) + 1, "absent_in_either"))
        ),
        "cpu_seconds": seconds,
    }


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared local correlation."""
    one, two = (torch.from_numpy(each.copy())[None, None] for each in (first, second))
    return float(local_normalized_cross_correlation(one, two))


def teach(
    project: Project,
    base: CohortSnapshot,
    case: str,
    seed: str,
    tests: Sequence[str],
    out: Path,
    steps: int,
) -> dict[str, float]:
    """Train from one label, and return the mean Dice on the test cases."""
    known = preset("fast").model_dump()
    known["segmentation"] |= {"minimum_steps": steps, "steps_per_structure": 0}
    config = TrainingConfig.model_validate(known | {"seed": int(seed)})
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.seed_everything(config.seed, verbose=False)
    version = str(project.case(case).label_version)
    snapshot = CohortSnapshot(
        base.class_names,
        base.spacing_mm,
        base.shape,
        (case,),
        (),
        (),
        {case: version},
        CachedArrays(project.image, project.label),
    )
    network = build_segmentation_network(config.segmentation_network, snapshot.classes)
    stage = MonoSegmentationStage(
        network, TrainingTensors(snapshot, {}, fabric.device), config, fabric
    )
    folder = out / "training"
    folder.mkdir(exist_ok=True)
    stage.name = f"{case}-{seed}-{steps}"
    weights = folder / f"{stage.name}.safetensors"
    task = RoundTask(0, snapshot, config, folder)
    for _ in train_stage(stage, {weights: network}, task, fabric, threading.Event()):
        pass
    weights.unlink()
    found = [segmentation_dice(network, snapshot, test, fabric.device) for test in tests]
    means = np.nanmean(np.array(found, float), axis=1)
    return {"dice": float(means.mean()), "worst": float(means.min())}


def similarities(
    images: Mapping[str, np.ndarray], pairs: Table
) -> dict[str, Callable[[str, str], float]]:
    """By rule: how like two candidates are. A rule takes the case most like the others."""
    vectors = {case: block_vector(image) for case, image in images.items()}

    def both(figure: str, sign: float = 1.0) -> Callable[[str, str], float]:
        return lambda a, b: sign * (pairs[f"{a}>{b}"][figure] + pairs[f"{b}>{a}"][figure]) / 2

    return {
        "block correlation": lambda a, b: float(vectors[a] @ vectors[b]),
        "local correlation": both("before"),
        "local correlation after registration": both("after"),
        "as moving image only": lambda a, b: pairs[f"{a}>{b}"]["after"],
        "least deformation": both("deformation", -1.0),
    }


def tell(
    name: str,
    values: Mapping[str, float],
    cohorts: Sequence[Sequence[str]],
    similar: Mapping[str, Callable[[str, str], float]],
) -> None:
    """Print the table of one outcome."""
    numbers = np.array(list(values.values()))
    print(
        f"\n{name}: {len(numbers)} candidates, mean {numbers.mean():.3f}, std {numbers.std():.3f}, "
        f"from {numbers.min():.3f} to {numbers.max():.3f}"
    )
    print("| rule | Dice of its choice | gain on random | share of the best's gain | rho |")
    print("|---|---|---|---|---|")
    random = np.array([np.mean([values[c] for c in cohort]) for cohort in cohorts])
    best = np.array([max(values[c] for c in cohort) for cohort in cohorts])
    worst = np.array([min(values[c] for c in cohort) for cohort in cohorts])
    cases = list(values)
    for rule, likeness in similar.items():
        table = np.array([[0.0 if a == b else likeness(a, b) for b in cases] for a in cases])
        place = {case: i for i, case in enumerate(cases)}
        chosen = []
        for cohort in cohorts:
            rows = [place[case] for case in cohort]
            chosen.append(values[cohort[int(table[np.ix_(rows, rows)].sum(1).argmax())]])
        gain = np.array(chosen) - random
        rho = spearmanr(table.sum(1), numbers).statistic
        print(
            f"| {rule} | {np.mean(chosen):.3f} | {gain.mean():+.3f} "
            f"| {gain.mean() / (best - random).mean():.2f} | {rho:+.2f} |"
        )
    for rule, outcome in (("random", random), ("best", best), ("worst", worst)):
        print(f"| {rule} | {outcome.mean():.3f} | {(outcome - random).mean():+.3f} | | |")


if __name__ == "__main__":
    main()
