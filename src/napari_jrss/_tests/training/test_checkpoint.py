"""Weights and training states: whole or not at all, and nothing is ever unpickled."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import napari_jrss
from napari_jrss.networks.weights import CheckpointError, load_into, load_tensors, save_tensors
from napari_jrss.training.checkpoint import TrainingState, optimizer_moments, restore_moments


def test_tensors_and_description_come_back(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.randn(2, 3).t(),
        "counter": torch.tensor(7),
        "half": torch.randn(4).half(),
    }
    save_tensors(tmp_path / "w.safetensors", tensors, {"stage": "größer", "classes": ["a"]})
    back, description = load_tensors(tmp_path / "w.safetensors")
    assert description == {"stage": "größer", "classes": ["a"]}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "damaged.safetensors"
    save_tensors(path, {"weight": torch.randn(100)}, {})
    path.write_bytes(path.read_bytes()[:-20])
    return path


def pickled(tmp_path: Path) -> Path:
    path = tmp_path / "pickled.safetensors"
    torch.save({"weight": torch.zeros(3)}, path)
    return path


def plain_pickle(tmp_path: Path) -> Path:
    path = tmp_path / "plain.safetensors"
    torch.save({"weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes().startswith(b"\x80")
    return path


def empty(tmp_path: Path) -> Path:
    path = tmp_path / "empty.safetensors"
    path.touch()
    return path


def foreign(tmp_path: Path) -> Path:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    return path


def odd(tmp_path: Path) -> Path:
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(3)}, path, {"description": "[1]"})
    return path


def missing(tmp_path: Path) -> Path:
    return tmp_path / "missing.safetensors"


def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.mark.parametrize(
    "make", [damaged, pickled, plain_pickle, empty, foreign, odd, missing, folder]
)
def test_what_is_no_file_of_ours_is_refused_by_name(make, tmp_path: Path) -> None:
    path = make(tmp_path)
    for read in (load_tensors, TrainingState.read):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_weights_are_no_training_state(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_tensors(path, {"weight": torch.zeros(3)}, {"stage": "student_1"})
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors: not a training state"):
        TrainingState.read(path)


@pytest.mark.parametrize("other", [nn.Linear(4, 2), nn.Linear(3, 2, bias=False), nn.PReLU()])
def test_weights_of_another_network_are_refused_in_one_line(
    other: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="w: weights of another network") as error:
        load_into(other, nn.Linear(3, 2).state_dict(), tmp_path / "w")
    assert "\n" not in str(error.value)


def test_a_training_state_comes_back_and_goes_on(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    adam = torch.optim.Adam(network.parameters(), 0.1)

    def step() -> None:
        adam.zero_grad()
        network(torch.linspace(0, 1, 8).reshape(1, 1, 2, 2, 2)).square().sum().backward()
        adam.step()

    step()
    now, best = (
        {"network": {key: value.clone() for key, value in network.state_dict().items()}}
        for _ in range(2)
    )
    state = TrainingState(now, best, optimizer_moments(adam), 3, 1 / 3, [{"total": 0.1}])
    state.write(tmp_path / "state")
    step()
    expected = {key: value.clone() for key, value in network.state_dict().items()}

    back = TrainingState.read(tmp_path / "state")
    assert (back.step, back.best_validation, back.epoch_losses) == (3, 1 / 3, [{"total": 0.1}])
    assert back.best.keys() == {"network"}
    load_into(network, back.modules["network"], tmp_path / "state")
    restore_moments(adam, back.optimizer, tmp_path / "state")
    step()
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


def test_going_on_does_not_write_into_the_file_it_was_read_from(tmp_path: Path) -> None:
    path = tmp_path / "state"
    TrainingState({"network": {"weight": torch.zeros(100)}}).write(path)
    before = path.read_bytes()
    TrainingState.read(path).modules["network"]["weight"].fill_(1)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_nothing_in_the_package_unpickles() -> None:
    """No ``torch.load``, no pickle module, no ``allow_pickle=True``, under any name."""
    package = Path(napari_jrss.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        if "_tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                names = ["allow_pickle"] if ast.unparse(node.value) != "False" else []
            forbidden = ("torch.load", "pickle", "cPickle", "dill", "cloudpickle", "joblib")
            found += [
                f"{path.relative_to(package)}: {name}"
                for name in names
                if name in ("torch.load", "allow_pickle") or name.split(".")[0] in forbidden[1:]
            ]
    assert found == []
