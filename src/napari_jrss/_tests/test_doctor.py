"""The report on this machine names what is there and, above all, what isn't."""

import os
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from napari_jrss import doctor


def test_a_complete_installation_has_no_problem_and_a_cpu() -> None:
    report = doctor.examine()
    assert report.versions["torch"] == torch.__version__
    assert report.version == metadata.version("napari-jrss")
    assert "napari" not in report.versions, "an extra is no requirement of the core"
    assert report.devices[0].name == "cpu"
    assert len(report.devices) == 1 + torch.cuda.device_count() + torch.backends.mps.is_available()
    assert report.log.startswith("napari-jrss.log in the project's folder")
    assert 0 < report.free_memory_gib < report.memory_gib
    broken = [problem for problem in report.problems if "memory" not in problem]
    assert broken == []


def test_what_pytorch_is_built_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, attribute, told in (("12.8", "cuda", "CUDA 12.8"), ("6.4", "hip", "ROCm 6.4")):
        with monkeypatch.context() as patched:
            patched.setattr(torch.version, attribute, version)
            patched.setattr(torch.cuda, "device_count", lambda: 1)
            assert doctor._torch_build() == told
            patched.setattr(torch.cuda, "device_count", lambda: 0)
            assert doctor._torch_build() == f"{told}, but sees no GPU here"
    for each in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, each, None)
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mps, "is_built", lambda: True)
        assert doctor._torch_build() == "Apple GPUs (MPS)"
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._torch_build() == "CPUs"
    name = "nvidia-smi.exe" if os.name == "nt" else "nvidia-smi"
    (tmp_path / name).touch(0o755)
    assert doctor._torch_build() == "CPUs, though an NVIDIA GPU is here"


@pytest.mark.parametrize(
    ("requirement", "version", "problem"),
    [
        ("no-such-package-here>=1", None, "no-such-package-here is not installed: pip install"),
        ("numpy>=999", metadata.version("numpy"), "does not satisfy >=999: pip install"),
    ],
)
def test_what_is_missing_is_named_with_its_cure(
    requirement: str, version: str | None, problem: str
) -> None:
    found, message = doctor._check(Requirement(requirement))
    assert found == version
    assert message is not None
    assert problem in message


def test_a_package_that_cannot_be_imported_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "broken_here-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken_here\nVersion: 1.0\n")
    (tmp_path / "broken_here.py").write_text("raise OSError('libgone.so.1:\\n no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    version, problem = doctor._check(Requirement("broken_here"))
    assert version == "1.0"
    assert problem is not None
    assert "libgone.so.1: no such file" in problem


def test_each_registration_engine_is_ready_or_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "picsl_greedy.py").write_text("raise OSError('libgone.so.1: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    engines = doctor.examine().engines
    assert engines["refine"] == "ready"
    assert engines["greedy"] == "can't be imported: libgone.so.1: no such file"
    assert set(engines) >= {"ants", "convexadam", "fireants"}
    client = doctor.examine().partners["nninteractive-client"]
    assert client.endswith("for prompts") or client == 'pip install "napari-jrss[prompts]"'
    for state in engines.values():
        assert state == "ready" or "import" in state or state.startswith("pip install ")
