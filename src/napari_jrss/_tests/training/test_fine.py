"""The fine stage: labels at the scans' own voxels, better than interpolated ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_jrss._tests.training.phantoms import (
    SCAN_TO_GRID,
    UNLABELLED,
    AfterSteps,
    FinePhantoms,
    Never,
    assert_same_tensors,
    cpu,
    fine_snapshot,
    kinds,
    snapshot,
    tiny_config,
    weights,
)
from napari_jrss.config import TrainingConfig, preset
from napari_jrss.inference import fine
from napari_jrss.inference.fine import class_shares, fine_label
from napari_jrss.inference.load import load_predictor
from napari_jrss.inference.predict import predict_case
from napari_jrss.io.predictions import Prediction
from napari_jrss.io.round_files import QuickPlan
from napari_jrss.metrics import dice_per_class
from napari_jrss.networks.fine import FineNetwork
from napari_jrss.networks.weights import load_weights
from napari_jrss.preprocess.transform import carry
from napari_jrss.snapshot import CaseScan, CohortSnapshot
from napari_jrss.training.events import Cancelled, Event, RoundFinished, StepEnd
from napari_jrss.training.quick import run_quick_round
from napari_jrss.training.round import RoundTask, run_round
from napari_jrss.training.trainable import fine_wanted

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fine_config(steps: int = 4) -> TrainingConfig:
    return tiny_config(fine={"steps": steps, "crop": 16})


def run(task: RoundTask, cancel: AfterSteps | Never | None = None) -> list[Event]:
    return list(run_round(task, cpu(), cancel or Never()))


class ByBrightness(torch.nn.Module):
    """A teacher that tells the classes by their brightness alone."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        levels = torch.tensor([-0.4, 1.9, 3.2])[None, :, None, None, None]
        return -((image - levels) ** 2)


def prediction() -> Prediction:
    """What it sees in a phantom, on the training grid."""
    made = predict_case(ByBrightness(), FinePhantoms().channels("a"), CPU)
    assert dice_per_class(made.label, FinePhantoms().label("a"), 3).min() > 0.5
    return made


def test_shares_sum_to_one_and_are_background_beside_the_grid() -> None:
    made = prediction()
    z, y, x = (torch.arange(n, dtype=torch.float32) for n in (36, 48, 32))
    voxels = torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], dim=-1)
    shares = class_shares(made, voxels, SCAN_TO_GRID, 3)
    torch.testing.assert_close(shares.sum(0), torch.ones(36, 48, 32), atol=2e-3, rtol=0)
    assert (shares[:, 32:] == torch.tensor([1.0, 0, 0])[:, None, None, None]).all()
    # Where a voxel lies on one of the grid, its shares are that voxel's.
    on_grid = torch.tensor([[[[2 * 5 + 0.5, 2 * 7 + 0.5, 2 * 3 + 0.5]]]])
    share = class_shares(made, on_grid, SCAN_TO_GRID, 3)[:, 0, 0, 0]
    assert share.argmax() == made.label[3, 7, 5]
    assert share.max() == pytest.approx(float(made.confidence[3, 7, 5]), abs=1e-3)


@pytest.mark.parametrize("turned", [False, True], ids=["along the axes", "oblique"])
def test_an_untrained_network_gives_the_interpolated_label(turned: bool) -> None:
    made, matrix = prediction(), SCAN_TO_GRID
    if turned:
        a = np.deg2rad(10)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
        matrix = SCAN_TO_GRID @ turn
    scan = CaseScan(FinePhantoms().scan("a").images, matrix)
    network = FineNetwork(3)
    network.finer.fill_(2)
    found = fine_label(network, made, scan, CPU)
    assert found is not None
    agree = (found == carry(made, matrix, scan.shape)).mean()
    assert agree > 0.999  # ties are decided otherwise


def test_a_scan_of_another_resolution_is_left_to_the_teacher() -> None:
    network = FineNetwork(3)
    network.finer.fill_(2)
    scan = FinePhantoms().scan("a")
    other = CaseScan(scan.images, np.diag([1.0, 1.0, 1.0, 1.0]))
    assert fine_label(network, prediction(), other, CPU) is None


@pytest.mark.parametrize(
    ("cohort", "config", "wanted"),
    [
        (fine_snapshot(), fine_config(), True),
        (fine_snapshot(), fine_config(0), False),
        (fine_snapshot(), tiny_config(fine={"steps": 4, "least_finer": 2.5}), False),
        (snapshot(), fine_config(), False),
    ],
    ids=["finer", "not asked for", "not fine enough", "no scans at hand"],
)
def test_it_runs_where_the_scans_are_finer_and_at_hand(
    cohort: CohortSnapshot, config: TrainingConfig, wanted: bool
) -> None:
    assert fine_wanted(config, cohort) is wanted


def test_presets_ask_for_it_but_the_papers() -> None:
    assert [preset(name).fine.steps > 0 for name in ("paper", "fast", "smoke")] == [
        False,
        True,
        True,
    ]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> RoundTask:
    """A pre-training whose fine network learned for a while."""
    config = preset("smoke").model_dump()
    config["segmentation"] |= {"minimum_steps": 60}
    config["registration"] |= {"minimum_steps": 1}
    config["fine"] |= {"steps": 60, "crop": 24}
    folder = tmp_path_factory.mktemp("learned")
    task = RoundTask(0, fine_snapshot(), TrainingConfig.model_validate(config), folder)
    assert isinstance(run(task)[-1], RoundFinished)
    return task


@pytest.mark.slow
def test_it_beats_interpolation_in_cases_that_it_never_saw(learned: RoundTask) -> None:
    gained = []
    for case in UNLABELLED:
        made, truth = learned.files.prediction(case), FinePhantoms().scan_label(case)
        assert made is not None
        assert made.scan_label is not None
        carried = carry(made, SCAN_TO_GRID, FinePhantoms.shape)
        gained.append(
            dice_per_class(made.scan_label, truth, 3).mean()
            - dice_per_class(carried, truth, 3).mean()
        )
    assert min(gained) > 0.01, gained


@pytest.mark.slow
def test_blocks_are_seen_as_the_whole_scan(
    learned: RoundTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = FineNetwork(3)
    load_weights(network, learned.files.fine)
    made, scan = learned.files.prediction("v", on_scan=False), FinePhantoms().scan("v")
    assert made is not None
    whole = fine_label(network, made, scan, CPU)
    monkeypatch.setattr(fine, "_most_voxels", lambda classes, device: 24**3)
    blocks = fine_label(network, made, scan, CPU)
    assert whole is not None
    assert blocks is not None
    changed = (whole != carry(made, SCAN_TO_GRID, scan.shape)).mean()
    assert changed > 0.003
    assert (whole != blocks).mean() < changed / 5


@pytest.mark.slow
def test_a_prediction_made_later_is_that_of_the_round(learned: RoundTask) -> None:
    predict = load_predictor(learned.files, "cpu", with_student=False)
    phantoms, case = FinePhantoms(), UNLABELLED[0]
    made = predict(phantoms.image(case), lambda: phantoms.scan(case))
    kept = learned.files.prediction(case)
    assert kept is not None
    np.testing.assert_array_equal(made.scan_label, kept.scan_label)
    assert learned.files.prediction(case, on_scan=False).scan_label is None  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_quick_round_takes_the_network_over(learned: RoundTask, tmp_path: Path) -> None:
    cohort = replace(learned.snapshot, labelled=("a", "b", "u"), unlabelled=("v", "w"))
    task = RoundTask(1, cohort, learned.config, tmp_path, learned.folder, learned.folder)
    plan = QuickPlan(new=["u"], steps=1, predicted=["v"])
    assert isinstance(list(run_quick_round(task, plan, cpu(), Never()))[-1], RoundFinished)
    assert_same_tensors(
        {"": weights(tmp_path)["fine.safetensors"]},
        {"": weights(learned.folder)["fine.safetensors"]},
    )
    made = task.files.prediction("v")
    assert made is not None
    assert made.scan_label is not None


@pytest.mark.slow
def test_it_comes_after_the_teacher_and_before_the_predictions(tmp_path: Path) -> None:
    events = run(RoundTask(0, fine_snapshot(), fine_config(), tmp_path))
    stages = [stage for kind, stage in kinds(events) if kind == "stage_started"]
    assert stages == [
        "mono_segmentation",
        "mono_registration",
        "labelled_scans",
        "own_voxels_0",
        "prediction",
    ]


@pytest.mark.slow
def test_cancelled_again_and_again_it_ends_like_the_straight_run(tmp_path: Path) -> None:
    straight = RoundTask(0, fine_snapshot(), fine_config(), tmp_path / "straight")
    run(straight)
    broken = replace(straight, folder=tmp_path / "broken")
    stages: list[str] = []
    for look in (18, 1, 4, 5, 5, 6, 6, 8, 10, 12):
        events = run(broken, AfterSteps(look))
        if isinstance(events[-1], RoundFinished):
            break
        assert isinstance(events[-1], Cancelled)
        stages.append(events[-1].stage)
        assert sum(isinstance(e, StepEnd) for e in events) <= look
    assert isinstance(events[-1], RoundFinished)
    assert {"labelled_scans", "own_voxels_0"} <= set(stages)
    assert_same_tensors(weights(broken.folder), weights(straight.folder))


def test_without_structures_nothing_is_looked_at() -> None:
    network = FineNetwork(3)
    network.finer.fill_(2)
    shape: Sequence[int] = (16, 24, 16)
    empty = Prediction(
        np.zeros(shape, np.uint8),
        np.ones(shape, np.float16),
        None,
        np.ones(shape, np.uint8),
        np.zeros(shape, np.float16),
    )
    found = fine_label(network, empty, FinePhantoms().scan("a"), CPU)
    assert found is not None
    assert not found.any()
