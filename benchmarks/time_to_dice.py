r"""Dice over CPU seconds of training: the defaults, the defaults before them, and MONAI's network.

    python benchmarks/time_to_dice.py --data shared/data/ixi_brain_2mm --out time_to_dice
    python benchmarks/time_to_dice.py --protocol hippocampus_fast --spacing 1 \
        --data shared/data/hippocampus_msd --out time_to_dice

All learn from the same N labels of the same split, on one thread, and are judged on its test
cases every so many steps; the seconds of judging are not counted. `ours` is the preset ``fast``,
its pre-training and then one joint round. `former` is OBELISK with the settings of the protocol
``ixi``, its pre-training alone. `monai` is DynUNet with nnU-Net's recipe: instance normalisation,
deep supervision, Dice and cross-entropy, SGD with Nesterov's momentum, a rate that falls as a
polynomial, a third of the crops around a structure, affine and intensity augmentation. It has as
many CPU seconds as `ours` took with its round, sees crops of the same size, and mirrors nothing.
Each curve is a JSON file in `--out`; one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cohorts import on_grid
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_jrss.config import TrainingConfig, preset
from napari_jrss.experiments.cohort import snapshot_of
from napari_jrss.experiments.protocol import load_protocol
from napari_jrss.metrics import dice_per_class
from napari_jrss.networks.build import build_segmentation_network
from napari_jrss.project.project import Project
from napari_jrss.snapshot import CohortSnapshot
from napari_jrss.training.deformation import find_fields
from napari_jrss.training.events import EpochEnd, Event
from napari_jrss.training.round import RoundTask, run_round, train_stage
from napari_jrss.training.sampling import draw_start
from napari_jrss.training.stages import MonoSegmentationStage, TrainingTensors
from napari_jrss.training.steps import label_losses

Point = tuple[int, float, float]
"""Steps, CPU seconds, mean Dice of the test cases."""
Curve = dict[str, object]
TITLES = {
    "ours": "preset fast",
    "round": "preset fast, its joint round",
    "former": "OBELISK, former settings",
    "monai": "MONAI DynUNet, nnU-Net's recipe",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the scans")
    parser.add_argument("--protocol", default="ixi", help="its data and its split")
    parser.add_argument("--spacing", type=float, default=4.0, help="of the training grid, in mm")
    parser.add_argument("--labelled", type=int, default=5, help="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=["ours", "former", "monai"], action="append")
    parser.add_argument("--every", type=int, default=100, help="steps between two judgements")
    parser.add_argument("--steps", type=int, help="of each training, to try the script")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    out = wanted.out / f"{wanted.protocol}-{wanted.spacing:g}mm-n{wanted.labelled}-{wanted.seed}"
    out.mkdir(parents=True, exist_ok=True)
    snapshot, project = cohort(wanted, out)
    with project:
        for name in wanted.only or ("ours", "former", "monai"):
            if not (out / f"{name}.json").exists():
                METHODS[name](snapshot, wanted, out)
    report(out)


def cohort(wanted: argparse.Namespace, out: Path) -> tuple[CohortSnapshot, Project]:
    """The protocol's split on a grid of the wanted spacing; its test cases are the judges."""
    project, sides = on_grid(wanted, out)
    return snapshot_of(replace(sides, validation=sides.test), project), project


def ours(snapshot: CohortSnapshot, wanted: argparse.Namespace, out: Path) -> None:
    """The pre-training of ``fast``, then its joint round."""
    config = judged_often(preset("fast", seed=wanted.seed), snapshot, wanted)
    points = pretrain(snapshot, config, out / "ours")
    keep(out, "ours", points, config)
    task = RoundTask(1, snapshot, config, out / "round", parent=out / "ours")
    events = run_round(task, one_thread(), threading.Event())
    steps, seconds, _ = points[-1]
    after = [(steps + n, seconds + s, d) for n, s, d in curve(events, "student_1", "joint round")]
    keep(out, "round", [points[-1], *after], config)


def former(snapshot: CohortSnapshot, wanted: argparse.Namespace, out: Path) -> None:
    """Mono-Seg with the settings that were the defaults before."""
    settings = load_protocol(Path("ixi")).config(wanted.seed).model_dump()
    config = TrainingConfig.model_validate(settings | {"precision": "32-true"})
    config = judged_often(config, snapshot, wanted)
    keep(out, "former", pretrain(snapshot, config, out / "former"), config)


def judged_often(
    config: TrainingConfig, snapshot: CohortSnapshot, wanted: argparse.Namespace
) -> TrainingConfig:
    """The settings, validated about every `--every` steps."""
    epoch = max(1, round(len(snapshot.training) / config.segmentation.batch_size))
    known = config.model_dump() | {"validation_interval": max(1, round(wanted.every / epoch))}
    if wanted.steps:
        known["segmentation"] |= {"minimum_steps": wanted.steps, "steps_per_structure": 0}
        known["joint"] |= {"minimum_steps": wanted.steps}
    return TrainingConfig.model_validate(known)


def one_thread() -> Fabric:
    """One process on the CPU."""
    return Fabric(accelerator="cpu", devices=1)


def pretrain(snapshot: CohortSnapshot, config: TrainingConfig, folder: Path) -> list[Point]:
    """Mono-Seg alone; leaves its weights in `folder`."""
    fabric = one_thread()
    fabric.seed_everything(config.seed, verbose=False)
    network = build_segmentation_network(config.segmentation_network, snapshot.classes)
    tensors, cancel = TrainingTensors(snapshot, {}, fabric.device), threading.Event()
    folder.mkdir(parents=True, exist_ok=True)
    task = RoundTask(0, snapshot, config, folder)

    def work() -> Iterator[Event]:
        fields = yield from find_fields(config, snapshot, 0, fabric, cancel)
        stage = MonoSegmentationStage(network, tensors, config, fabric, fields)
        yield from train_stage(stage, {task.files.teacher: network}, task, fabric, cancel)

    return list(curve(work(), "mono_segmentation", folder.name))


def curve(events: Iterator[Event], stage: str, title: str) -> Iterator[Point]:
    """The Dice after each validation of a stage, and the CPU seconds that were not validation."""
    started = before = time.process_time()
    judging = 0.0
    for event in events:
        now = time.process_time()
        if isinstance(event, EpochEnd) and event.stage == stage and event.validation is not None:
            judging += now - before
            point = (event.step, now - started - judging, event.validation)
            print(
                f"{title}: step {point[0]}, {point[1]:.0f} CPU s, Dice {point[2]:.4f}", flush=True
            )
            yield point
        before = now


def monai(snapshot: CohortSnapshot, wanted: argparse.Namespace, out: Path) -> None:
    """DynUNet with nnU-Net's recipe, for as long as our pre-training and round."""
    own = json.loads((out / "round.json").read_text())
    budget = float(own["points"][-1][1])
    torch.manual_seed(wanted.seed)
    rng = np.random.default_rng(wanted.seed)
    crop = preset("fast").segmentation.crop(snapshot.shape)
    network = dynunet(snapshot.classes, min(crop))
    augment = nnunet_augmentation(wanted.seed)
    images = {c: torch.from_numpy(snapshot.arrays.image(c)) for c in snapshot.labelled}
    labels = {c: torch.from_numpy(snapshot.arrays.label(c).astype(np.int64)) for c in images}
    places = {c: [torch.nonzero(v == s) for s in v.unique() if s] for c, v in labels.items()}
    optimizer = torch.optim.SGD(
        network.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5
    )
    points: list[Point] = []
    seconds, steps, step = 0.0, 0, 0
    while not steps or step < steps:
        started = time.process_time()
        rate = 0.01 * (1 - step / steps) ** 0.9 if steps else 0.01
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = []
        for number in range(2):
            case = str(rng.choice(snapshot.labelled))
            centre = None
            if number == 0 and rng.random() < 2 / 3:  # a third of the crops of a batch of two
                where = places[case][int(rng.integers(len(places[case])))]
                centre = tuple(int(i) for i in where[int(rng.integers(len(where)))])
            first = draw_start(snapshot.shape, crop, rng, centre)
            part = tuple(slice(a, a + n) for a, n in zip(first, crop, strict=True))
            batch.append(
                augment({"image": images[case][part][None], "label": labels[case][part][None]})
            )
        image = torch.stack([torch.as_tensor(each["image"]) for each in batch])
        label = torch.stack([torch.as_tensor(each["label"])[0].long() for each in batch])
        network.train()
        loss = deep_supervision(network(image), label)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        step += 1
        seconds += time.process_time() - started
        if step == 20 and not steps:
            steps = wanted.steps or max(40, round(budget / (seconds / 20)))
        if step % wanted.every == 0 or step == steps:
            points.append((step, seconds, judged(network, snapshot)))
            print("monai: step {}, {:.0f} CPU s, Dice {:.4f}".format(*points[-1]), flush=True)
    keep(out, "monai", points, None)


def dynunet(classes: int, smallest: int) -> nn.Module:
    """nnU-Net's network, as deep as its rule allows: no axis of the crop below four voxels."""
    from monai.networks.nets import DynUNet

    depth = 1
    while smallest / 2**depth >= 4 and depth < 5:
        depth += 1
    strides = [1] + [2] * (depth - 1)
    return DynUNet(
        3,
        1,
        classes,
        kernel_size=[3] * depth,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(320, 32 * 2**i) for i in range(depth)],
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=depth > 2,
        deep_supr_num=max(1, depth - 2),
    )


def nnunet_augmentation(seed: int) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """nnU-Net's augmentation in MONAI's transforms, without mirroring."""
    from monai import transforms as t

    composed = t.Compose(
        [
            t.RandAffined(
                ["image", "label"],
                prob=0.35,
                rotate_range=[np.pi / 6] * 3,
                scale_range=[(-0.3, 0.4)] * 3,
                mode=["bilinear", "nearest"],
                padding_mode="border",
            ),
            t.RandGaussianNoised("image", prob=0.1, std=0.1),
            t.RandGaussianSmoothd("image", (0.5, 1), (0.5, 1), (0.5, 1), prob=0.2),
            t.RandScaleIntensityd("image", (-0.25, 0.25), prob=0.15),
            t.RandAdjustContrastd("image", prob=0.15, gamma=(0.75, 1.25), retain_stats=True),
            t.RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1)),
            t.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )
    composed.set_random_state(seed)
    return composed


def deep_supervision(outputs: Tensor, label: Tensor) -> Tensor:
    """Dice and cross-entropy of each resolution, each weighing half of the finer one."""
    heads = outputs.unbind(1) if outputs.ndim == 6 else [outputs]
    total, weights = torch.zeros(()), 0.0
    for level, logits in enumerate(heads):
        weight = 0.5**level
        total = total + weight * label_losses(logits, label)["total"]
        weights += weight
    return total / weights


@torch.no_grad()
def judged(network: nn.Module, snapshot: CohortSnapshot) -> float:
    """Mean Dice of the test cases, each segmented whole, padded to what the network takes."""
    network.eval()
    found = []
    for case in snapshot.validation:
        image = torch.from_numpy(snapshot.arrays.image(case))[None, None]
        size = image.shape[2:]
        pad = [p for n in reversed(size) for p in (0, -n % 16)]
        logits = network(nn.functional.pad(image, pad, mode="replicate"))
        logits = logits[:, :, : size[0], : size[1], : size[2]]
        label = logits.argmax(1)[0].numpy()
        found.append(
            np.nanmean(dice_per_class(label, snapshot.arrays.label(case), snapshot.classes))
        )
    return float(np.mean(found))


def keep(out: Path, name: str, points: list[Point], config: TrainingConfig | None) -> None:
    """Write one curve."""
    known: Curve = {"title": TITLES[name], "points": points}
    if config is not None:
        known["settings"] = config.model_dump(mode="json")
    (out / f"{name}.json").write_text(json.dumps(known, indent=1))


def report(out: Path) -> None:
    """Draw the curves, and print the last point of each."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    print("| Training | steps | CPU s | Dice |\n|---|---:|---:|---:|")
    for name, title in TITLES.items():
        if (out / f"{name}.json").exists():
            steps, seconds, dice = np.array(
                json.loads((out / f"{name}.json").read_text())["points"]
            ).T
            axes.plot(seconds, dice, marker=".", label=title)
            print(f"| {title} | {steps[-1]:.0f} | {seconds[-1]:.0f} | {dice[-1]:.4f} |")
    axes.set(xlabel="CPU seconds of training, one thread", ylabel="mean Dice of the test cases")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out / "time_to_dice.png", dpi=110)


METHODS = {"ours": ours, "former": former, "monai": monai}

if __name__ == "__main__":
    main()
