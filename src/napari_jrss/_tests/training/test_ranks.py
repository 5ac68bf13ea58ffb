"""Two CPU processes (DDP over gloo) train together, and share validation and predictions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from napari_jrss._tests.training.phantoms import (
    NAMES,
    UNLABELLED,
    Never,
    cpu,
    snapshot,
    tiny_config,
    weights,
)
from napari_jrss.networks.build import build_segmentation_network
from napari_jrss.networks.weights import load_tensors
from napari_jrss.training.loop import run_validation
from napari_jrss.training.stages import segmentation_validation

pytestmark = pytest.mark.slow

RUN = """
import json, os, sys
from pathlib import Path

rank = int(os.environ.get("LOCAL_RANK", 0))
written = []

def watch(event, arguments):
    writes = os.O_WRONLY | os.O_RDWR
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & writes:
        written.append(arguments[0])
    elif event in ("os.rename", "os.remove"):
        written.append(os.fsdecode(arguments[0]))

import torch
from napari_jrss._tests.training.phantoms import (AfterSteps, Never, snapshot, tiny_config)
from napari_jrss.inference.device import (make_fabric)
from napari_jrss.training.round import RoundTask, run_round

torch.set_num_threads(1)
folder = Path(sys.argv[1])
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
validated = [event.validation for event in events if event.kind == "epoch_end"]
validated += [list(event.metrics.values()) for event in events if event.kind == "round_finished"]
inside = sorted({name[len(str(folder)) + 1 :] for name in written if name.startswith(str(folder))})
told = {"stopped": stopped, "kinds": kinds, "written": inside, "validated": validated}
# A file each: what two processes print comes out mixed.
Path(sys.argv[2], f"told{fabric.global_rank}.json").write_text(json.dumps(told))
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
def test_two_processes_run_a_pretraining_and_a_round(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    folder = tmp_path / "rounds"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, script, folder, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise
    assert process.returncode == 0, output
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
