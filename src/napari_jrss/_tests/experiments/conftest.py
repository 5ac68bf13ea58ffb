"""A finished experiment, run once for all tests: three methods on phantoms, a few steps each."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_jrss.experiments.protocol import Protocol, Run
from napari_jrss.experiments.run import RunEnded, run_experiment

PROTOCOL = {
    "title": "Phantoms",
    "data": {"synthetic": {"cases": 9, "shape": [16, 24, 16], "structures": 2}},
    "split": {"training": 4, "validation": 2, "test": 3},
    "seeds": [0],
    "preset": "smoke",
    "settings": {
        "segmentation": {"minimum_steps": 20},
        "registration": {"minimum_steps": 5},
        "joint": {
            "student": "registered",  # which changes its teacher in every round
            "segmentation_epochs": 1,
            "registration_epochs": 1,
            "minimum_steps": 1,
        },
        "screening": {"tau": 0.3, "learned_gate": False},
    },
    "joint_rounds": 2,
    "runs": [
        {"methods": ["initial", "mono", "jrss"], "labelled": [2]},
        {"methods": ["mono"], "labelled": [0]},
        {"methods": ["jrss"], "labelled": [2], "tau": [0.999]},
    ],
}


@pytest.fixture(scope="session")
def protocol() -> Protocol:
    return Protocol.model_validate(PROTOCOL)


@pytest.fixture(scope="session")
def experiment(
    protocol: Protocol, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[RunEnded[Run]]]:
    """The experiment's folder and what was said of its runs."""
    out = tmp_path_factory.mktemp("experiment") / "out"
    return out, list(run_experiment(protocol, out, device="cpu", workers=1, threads=1))
