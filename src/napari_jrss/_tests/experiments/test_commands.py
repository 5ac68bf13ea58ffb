"""The commands' faces: lists, one-line errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from napari_jrss.cli import app

pytestmark = pytest.mark.slow


def test_the_runs_of_a_shipped_protocol_are_listed() -> None:
    result = CliRunner().invoke(app, ["experiment", "hippocampus", "--list"])
    runs = result.output.split()
    assert result.exit_code == 0
    assert {"jrss-n5-seed2", "mono-nK-seed0", "jrss-n5-seed0-tau0.80"} <= set(runs)
    assert "jrss-n0-seed0" not in runs


def test_only_shortens_the_list_and_keeps_what_a_run_starts_from() -> None:
    arguments = ["experiment", "hippocampus_fast", "--list", "--only", "jrss-n5-seed1"]
    result = CliRunner().invoke(app, arguments)
    assert result.output.split() == ["mono-n5-seed1", "jrss-n5-seed1"]


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    protocol = tmp_path / "mine.yaml"
    protocol.write_text("title: x\ndata: {synthetic: {}}\nruns: [{methods: [vm], labelled: [1]}]\n")
    result = subprocess.run(
        [sys.executable, "-m", "napari_jrss", "experiment", protocol, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {protocol}: runs.0.methods: unknown method 'vm'; known: all,")
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named_in_one_line() -> None:
    command = (
        "import sys; from napari_jrss.cli import main; sys.modules['yaml'] = None; "
        "sys.argv = ['napari-jrss', 'experiment', 'smoke', '--list']; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == (
        "error: experiments need yaml: pip install 'napari-jrss[experiments]'\n"
    )
