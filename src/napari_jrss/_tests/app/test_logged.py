"""The figures of a training in a table, and one line where there can't be any."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest

import napari_jrss as jrss
from napari_jrss._tests.training.phantoms import tiny_config
from napari_jrss.app.rounds.logged import LogToError, open_logger
from napari_jrss.project.project import Project
from napari_jrss.training.events import EpochEnd, RoundFinished


@pytest.mark.slow
def test_losses_and_dice_of_each_epoch_stand_in_a_table(project: Project, tmp_path: Path) -> None:
    where = f"csv:{tmp_path / 'figures'}"
    events = list(jrss.train.events(project, tiny_config(), rounds=0, device="cpu", log_to=where))
    with (tmp_path / "figures" / "version_0" / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    epochs = [event for event in events if isinstance(event, EpochEnd)]
    assert len(lines) == len(epochs) + 1
    for line, epoch in zip(lines, epochs, strict=False):
        assert int(line["step"]) == epoch.step
        assert float(line[f"{epoch.stage}/total"]) == epoch.losses["total"]
        told = line[f"{epoch.stage}/validation_dice"]
        assert told == ("" if epoch.validation is None else str(epoch.validation))
    assert isinstance(events[-1], RoundFinished)
    assert float(lines[-1]["round/accepted"]) == events[-1].metrics["accepted"]


def test_what_is_no_log_is_one_line(tmp_path: Path) -> None:
    for where in ("figures", "csv:", "excel:figures"):
        with pytest.raises(LogToError, match="say csv:FOLDER or tensorboard:FOLDER"):
            open_logger(where)
    if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        with pytest.raises(LogToError, match="TensorBoard isn't installed"):
            open_logger(f"tensorboard:{tmp_path}")
