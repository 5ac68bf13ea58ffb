"""The story of a project, as the command line and the window tell it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from napari_jrss.app.status import history
from napari_jrss.cli import app
from napari_jrss.errors import ProjectError
from napari_jrss.project.corrections import Corrections, unsaved
from napari_jrss.project.project import Project


@pytest.fixture
def path(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A closed project in which one label was corrected and one pseudo-label rejected."""
    first, second = project.snapshot().labelled
    label = project.label(first)
    label[0, 0, :4] = 1
    project.add_label_version(
        first, label, "Ada", draft="version:v0001", status="corrected", seconds=65.2
    )
    project.reject(second, "Grace", "leaks [everywhere]", round_number=None)
    project.close()
    for variable in ("XDG_CONFIG_HOME", "APPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv("NAPARI_JRSS_USER", raising=False)
    return project.path


def test_corrections_never_accepted_are_recovered_or_given_up(path: Path) -> None:
    run = CliRunner()
    with Project.open(path) as project:
        cases = project.snapshot().labelled
        for case in cases:
            blank = 0 * project.label(case)
            painted = blank[0].copy()
            painted.flat[:3] = 1
            Corrections(project, case, "blank", blank, "Ada").save({0: painted})
    refused = run.invoke(app, ["recover", str(path), cases[0]])
    assert "a name is needed" in str(refused.exception)
    told = run.invoke(app, ["recover", str(path), cases[0], "--author", "Emmy"]).output
    assert told == f"{cases[0]}: 3 voxels that Ada corrected are now in v0003\n"
    told = run.invoke(app, ["recover", str(path), cases[1], "--discard"]).output
    assert told == f"{cases[1]}: 3 corrected voxels were thrown away\n"
    with Project.open(path, read_only=True) as project:
        assert unsaved(project) == []
        assert np.count_nonzero(project.label(cases[0])) == 3
        assert project.label_versions(cases[0])[-1].author == "Emmy"
        assert len(project.label_versions(cases[1])) == 1
    again = run.invoke(app, ["recover", str(path), cases[1]])
    assert "there are no corrections" in str(again.exception)


def test_the_story_is_told_and_a_version_brought_back(path: Path) -> None:
    with Project.open(path, read_only=True) as project:
        case, other = project.snapshot().labelled
        lines = history(project, case)
        with pytest.raises(ProjectError, match="no case 'nobody'"):
            history(project, "nobody")
    assert [line.event for line in lines] == ["imported", "corrected"]
    assert (lines[1].author, lines[1].version, lines[1].draft) == ("Ada", "v0002", "version:v0001")
    assert (lines[1].voxels_changed, lines[1].seconds, lines[1].detail) == (4, 65.2, "")

    run = CliRunner()
    told = run.invoke(app, ["history", str(path)], env={"COLUMNS": "200"}).output
    assert "4 voxels changed, 65 s" in told
    assert "leaks [everywhere]" in told
    assert "Grace" in told
    assert "created" in told
    lines = json.loads(run.invoke(app, ["history", str(path), other, "--json"]).output)
    assert [(line["event"], line["author"]) for line in lines] == [
        ("imported", "import"),
        ("rejected", "Grace"),
    ]

    refused = run.invoke(app, ["restore", str(path), case, "v0001"])
    assert "a name is needed" in str(refused.exception)
    assert "\n" not in str(refused.exception)
    made = run.invoke(app, ["restore", str(path), case, "v0001", "--author", "Emmy"]).output
    assert made == f"{case}: v0001 is the current label again, as v0003, by Emmy\n"
    assert "saved in" in run.invoke(app, ["author", "Ada"]).output
    assert run.invoke(app, ["author"]).output == "Ada\n"
    assert "by Ada" in run.invoke(app, ["restore", str(path), case, "v0002"]).output
    unknown = run.invoke(app, ["restore", str(path), case, "v0009"])
    assert f"case {case} has no label version 'v0009'" in str(unknown.exception)
    with Project.open(path, read_only=True) as project:
        assert [v.version for v in project.label_versions(case)][-1] == "v0004"
        assert project.case(case).label_version == "v0004"
        assert project.label(case)[0, 0, :4].all()
