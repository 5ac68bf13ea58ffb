"""A protocol's mistakes are told before anything is trained; its grid holds each run once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from napari_jrss.experiments.cohort import prepare_cohort
from napari_jrss.experiments.methods import METHODS
from napari_jrss.experiments.protocol import ABLATIONS, SHIPPED, ProtocolError, load_protocol, plan
from napari_jrss.experiments.run import run_experiment


def written(folder: Path, **changes: Any) -> Path:
    """A small protocol with some entries replaced."""
    content: dict[str, Any] = {
        "title": "test",
        "data": {"synthetic": {"cases": 8, "shape": [16, 24, 16], "structures": 2}},
        "split": {"training": 4, "validation": 2, "test": 2},
        "seeds": [0],
        "preset": "smoke",
        "settings": {"joint": {"dropout": 0.2}, "registration": {"lambda_j": 0}},
        "runs": [{"methods": ["mono", "jrss"], "labelled": [2]}],
    }
    path = folder / "protocol.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def ids(path: Path) -> list[str]:
    return [run.id for run in plan(load_protocol(path))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": [{"methods": ["mnoo"], "labelled": [1]}]}, "unknown method 'mnoo'; known: all"),
        ({"seed": 1}, "seed: Extra inputs"),
        ({"data": {}}, "data: give exactly one of synthetic, project"),
        ({"settings": {"joint": {"dropout": 2}}}, "dropout: Input should be less than 1"),
        ({"settings": {"joint": {"drop": 0}}}, "joint.drop: Extra inputs"),
        (
            {"runs": [{"methods": ["mono"], "labelled": [1], "tau": [0.5]}]},
            "runs.0: tau and ablations vary jrss",
        ),
        ({"runs": [{"methods": ["mono"], "labelled": [-1]}]}, "runs.0.labelled"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ProtocolError) as caught:
        load_protocol(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_text_that_is_no_yaml_and_a_missing_file_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("title: [")
    with pytest.raises(ProtocolError, match="not a readable YAML"):
        load_protocol(path)
    with pytest.raises(
        ProtocolError,
        match=r"no such file, nor .*: annotator_hippocampus, .*, hippocampus, .*, ixi, lpba40",
    ):
        load_protocol(tmp_path / "missing.yaml")


def test_a_folder_of_that_name_hides_no_shipped_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smoke").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_protocol(Path("smoke")).title.startswith("Synthetic")


def test_a_block_without_any_possible_run_is_a_mistake(tmp_path: Path) -> None:
    path = written(tmp_path, runs=[{"methods": ["jrss"], "labelled": [0, "K"]}])
    with pytest.raises(ProtocolError, match="jrss can't be run with N = 0, K"):
        ids(path)


def test_the_grid_holds_each_run_once_after_the_one_it_starts_from(tmp_path: Path) -> None:
    blocks = [
        {"methods": ["jrss", "initial"], "labelled": [2, 1]},
        {"methods": ["mono", "jrss"], "labelled": [0, 2, "K"]},
    ]
    assert ids(written(tmp_path, runs=blocks)) == [
        "mono-n2-seed0",
        "jrss-n2-seed0",
        "initial-n0-seed0",
        "mono-n1-seed0",
        "jrss-n1-seed0",
        "mono-n0-seed0",
        "mono-nK-seed0",
    ]


def test_a_sweep_passes_through_the_plain_run_and_shares_its_pretraining(tmp_path: Path) -> None:
    blocks = [
        {"methods": ["jrss"], "labelled": [2], "tau": [0.4, 0.994, 0.995, 0.5]},
        {"methods": ["jrss"], "labelled": [2], "ablations": ["no_dropout", "unet"]},
    ]
    runs = {run.id: run for run in plan(load_protocol(written(tmp_path, runs=blocks)))}
    assert list(runs) == [
        "mono-n2-seed0",
        "jrss-n2-seed0-tau0.40",
        "jrss-n2-seed0-tau0.994",
        "jrss-n2-seed0-tau0.995",
        "jrss-n2-seed0",
        "jrss-n2-seed0-no_dropout",
        "mono-n2-seed0-unet",
        "jrss-n2-seed0-unet",
    ]
    assert runs["jrss-n2-seed0-tau0.40"].config.screening.tau == 0.4
    assert runs["jrss-n2-seed0-no_dropout"].config.joint.dropout == 0
    start = runs["jrss-n2-seed0-unet"].start
    assert start is not None
    assert start.config.segmentation_network.name == "vm_unet"
    assert start.config.joint.dropout > 0


def test_a_run_comes_after_all_that_it_starts_from(tmp_path: Path) -> None:
    blocks = [{"methods": ["jrss_refined"], "labelled": [2, "K"]}]
    with pytest.raises(ProtocolError, match="can't be run with N = K"):
        plan(load_protocol(written(tmp_path, runs=[{**blocks[0], "labelled": ["K"]}])))
    runs = plan(load_protocol(written(tmp_path, runs=blocks)))
    assert [run.id for run in runs] == ["mono-n2-seed0", "jrss-n2-seed0", "jrss_refined-n2-seed0"]
    assert runs[2].before == tuple(runs[:2])

    ablations = [{**blocks[0], "labelled": [2], "ablations": ["residual_unet"]}]
    runs = plan(load_protocol(written(tmp_path, runs=ablations)))
    assert [run.id for run in runs] == [
        f"{method}-n2-seed0-residual_unet" for method in ("mono", "jrss", "jrss_refined")
    ]
    assert {run.config.segmentation_network.name for run in runs} == {"monai_unet"}
    assert {run.config.registration_network.name for run in runs} == {"obelisk"}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_the_settings(tmp_path: Path, name: str) -> None:
    protocol = load_protocol(written(tmp_path))
    assert protocol.config(0, ABLATIONS[name].changes) != protocol.config(0)


@pytest.mark.parametrize("path", sorted(p.name for p in SHIPPED.iterdir()))
def test_a_shipped_protocol_can_be_planned(path: str) -> None:
    runs = plan(load_protocol(Path(path.removesuffix(".yaml"))))
    assert {run.method for run in runs} <= set(METHODS)
    assert len({run.id for run in runs}) == len(runs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": {"training": 9, "validation": 2, "test": 2}}, "9 training cases were asked for"),
        ({"runs": [{"methods": ["mono"], "labelled": [5]}]}, "5 labelled cases were asked for"),
        ({"data": {"folder": "nowhere"}}, "nowhere: no such folder"),
    ],
)
def test_too_few_cases_are_told_before_a_scan_is_read(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    protocol = load_protocol(written(tmp_path, **changes))
    with pytest.raises(ValueError, match=message):
        next(run_experiment(protocol, tmp_path / "out"))
    assert not (tmp_path / "out" / "cohort.jrss").exists()


def test_a_missing_package_is_told_before_a_scan_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, runs=[{"methods": ["syn"], "labelled": [0]}])
    monkeypatch.setitem(sys.modules, "ants", None)  # as if it were not installed
    with pytest.raises(ProtocolError, match=r"method syn needs the package ants: pip install"):
        next(run_experiment(load_protocol(path), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_scans_without_a_label_are_told_before_anything_is_read(tmp_path: Path) -> None:
    from napari_jrss.sample_data import make_cohort

    images = make_cohort(tmp_path / "cohort", 3, (16, 24, 16)) / "images"
    protocol = load_protocol(written(tmp_path, data={"images": str(images)}))
    with pytest.raises(ProtocolError, match="no scan of the data set has a label"):
        prepare_cohort(protocol, tmp_path, plan(protocol))
