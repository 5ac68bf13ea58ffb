"""Two CPU processes (DDP over gloo) share each batch, validation and predictions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from napari_jrss._tests.training.phantoms import (
    NAMES,
    UNLABELLED,
    AfterSteps,
    FinePhantoms,
    Never,
    cpu,
    fine_snapshot,
    snapshot,
    tiny_config,
    weights,
)
from napari_jrss.app.rounds.peers import free_port
from napari_jrss.config import TrainingConfig, preset
from napari_jrss.inference.device import make_fabric
from napari_jrss.networks.build import build_segmentation_network
from napari_jrss.networks.weights import load_tensors
from napari_jrss.snapshot import CaseScan
from napari_jrss.training.events import EpochEnd, RoundFinished, StepEnd
from napari_jrss.training.loop import run_validation
from napari_jrss.training.round import RoundTask, run_round
from napari_jrss.training.stages import segmentation_validation
from napari_jrss.training.trainable import RoundError, check_devices

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed"),
]

# One process imports PyTorch, and each rank is forked from it.
RANKS = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")


def be_rank(work: Callable[..., None], rank: int, port: int, arguments: tuple[Any, ...]) -> None:
    """What one of several processes does, which know of each other by the environment."""
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= here | {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    torch.set_num_threads(1)
    work(*arguments)


def stop_and_go_on(folder: Path, told_in: Path) -> None:
    """A pre-training that is stopped and goes on, and a round; tell what was written by whom."""
    written: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = os.O_WRONLY | os.O_RDWR
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & writes:
            written.append(arguments[0])
        elif event in ("os.rename", "os.remove"):
            written.append(os.fsdecode(arguments[0]))

    fabric = make_fabric("cpu", devices=2)
    assert fabric.world_size == 2
    sys.addaudithook(watch)
    # Only the first process is asked to stop: the other one must not wait for it forever.
    looks = AfterSteps(2) if fabric.is_global_zero else Never()
    pretraining = RoundTask(0, snapshot(), tiny_config(), folder / "0")
    stopped = [event.kind for event in run_round(pretraining, fabric, looks)][-1]
    events = list(run_round(pretraining, fabric, Never()))
    this = RoundTask(1, snapshot(), tiny_config(), folder / "1", folder / "0")
    events += run_round(this, fabric, Never())
    kinds = [event.kind for event in events]
    validated = [event.validation for event in events if isinstance(event, EpochEnd)]
    validated += [list(e.metrics.values()) for e in events if isinstance(e, RoundFinished)]
    inside = sorted({name[len(str(folder)) + 1 :] for name in written if str(folder) in name})
    told = {"stopped": stopped, "kinds": kinds, "written": inside, "validated": validated}
    # A file each: what two processes print comes out mixed.
    (told_in / f"told{fabric.global_rank}.json").write_text(json.dumps(told))


class InDouble(FinePhantoms):
    """Phantoms of 15 digits."""

    def image(self, case_id: str) -> Any:
        return super().image(case_id).astype("float64")

    def scan(self, case_id: str) -> CaseScan:
        scan = super().scan(case_id)
        return CaseScan(scan.images.astype("float64"), scan.scan_to_grid)


def train_in_double(folder: Path, config: TrainingConfig, processes: int) -> None:
    """A pre-training and a round; with 15 digits no step is large by a rounding error."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    fabric = make_fabric("cpu", "64-true", processes)
    # Without validation cases the last weights are kept.
    source = InDouble()
    cohort = replace(fine_snapshot(validation=()), arrays=source, scans=source)
    losses = []
    for number, parent in ((0, None), (1, folder / "0")):
        task = RoundTask(number, cohort, config, folder / str(number), parent)
        for event in run_round(task, fabric, Never()):
            if isinstance(event, StepEnd):
                losses.append(event.losses["total"])
    (folder / f"losses{fabric.global_rank}.json").write_text(json.dumps(losses))


def run(work: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Run a function in so many processes that know of each other."""
    RANKS.set_forkserver_preload([__name__])
    port = free_port()
    started = [
        RANKS.Process(target=be_rank, args=(work, rank, port, arguments))
        for rank in range(processes)
    ]
    try:
        for process in started:
            process.start()
        for process in started:
            process.join(240)
            assert process.exitcode == 0
    finally:
        for process in started:
            process.kill()


def test_two_processes_run_a_pretraining_and_a_round(tmp_path: Path) -> None:
    folder = tmp_path / "rounds"
    run(stop_and_go_on, 2, folder, tmp_path)
    told = [json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0]["stopped"] == told[1]["stopped"] == "cancelled"
    assert told[0]["kinds"] == told[1]["kinds"]
    assert told[0]["kinds"].count("round_finished") == 2
    # They share the predictions; the first alone writes all else.
    assert {Path(name).parts[1] for name in told[1]["written"]} == {"predictions"}
    assert "0/metrics.jsonl" in told[0]["written"]
    assert told[0]["validated"] == told[1]["validated"]
    teacher, _ = load_tensors(folder / "1" / "teacher.safetensors")
    network = build_segmentation_network(tiny_config().segmentation_network, len(NAMES))
    network.load_state_dict(teacher)
    validation = segmentation_validation(network, snapshot(), torch.device("cpu"))
    _, by_one, _ = run_validation(validation, cpu(), Never())
    assert by_one in [pytest.approx(value) for value in told[0]["validated"][-1]]
    for name, networks in (
        ("0", {"teacher", "registration"}),
        ("1", {"teacher", "student", "registration"}),
    ):
        assert set(weights(folder / name)) == {f"{network}.safetensors" for network in networks}
        predicted = {path.stem for path in (folder / name / "predictions").iterdir()}
        assert predicted == set(UNLABELLED)
        assert not list((folder / name).glob("*.state.safetensors"))


def fast(steps: int, batch: int, **joint: object) -> TrainingConfig:
    """The default settings, for few steps; batch normalisation, crops, a perturbed student."""
    settings = preset("fast").model_dump()
    settings["segmentation"] |= {
        "minimum_steps": steps,
        "steps_per_structure": 0,
        "batch_size": batch,
    }
    settings["joint"] |= {"minimum_steps": steps, **joint}
    settings["screening"] |= {"tau": 0.4, "learned_gate": False}
    settings["fine"] |= {"steps": 6, "crop": 16}
    return TrainingConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("config", "processes"),
    [
        pytest.param(fast(12, 2, dropout=0.3), 2, id="perturbed student"),
        pytest.param(fast(3, 4), 3, id="parts of two, one and one image"),
        pytest.param(
            tiny_config(
                segmentation={"minimum_steps": 10, "learning_rate": 2e-3},
                registration={"minimum_steps": 10},
                joint={"segmentation_epochs": 4, "dropout": 0.3},
            ),
            2,
            id="registered student, dropout",
        ),
    ],
)
def test_several_processes_give_the_weights_of_one(
    config: TrainingConfig, processes: int, tmp_path: Path
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    run(train_in_double, 1, alone, config, 1)
    run(train_in_double, processes, together, config, processes)
    told = [json.loads((together / f"losses{n}.json").read_text()) for n in range(processes)]
    by_one = json.loads((alone / "losses0.json").read_text())
    assert told == [told[0]] * processes
    assert told[0] == pytest.approx(by_one, rel=1e-6)
    for number in ("0", "1"):
        one, several = weights(alone / number), weights(together / number)
        assert one.keys() == several.keys()
        for name, state in one.items():
            for key, tensor in state.items():
                # a bias before batch normalisation, and the mean, move by rounding alone
                least = 1e-3 if key.endswith(("conv.bias", "norm.running_mean")) else 1e-8
                off = float((several[name][key] - tensor).abs().max())
                assert off < least, f"{number} {name} {key}: {off}"


@pytest.mark.parametrize(
    ("config", "devices"),
    [(fast(1, 2), 3), (tiny_config(), 3), (tiny_config(segmentation={"batch_size": 3}), 3)],
)
def test_batches_that_can_not_be_shared_are_refused(config: TrainingConfig, devices: int) -> None:
    check_devices(config, 2)
    with pytest.raises(RoundError, match="3 devices can't share a step of 2 images"):
        check_devices(config, devices)
