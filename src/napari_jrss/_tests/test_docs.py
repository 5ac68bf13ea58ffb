"""The blocks of README.md and docs/ run as they stand, but for what :data:`SHRUNK` replaces.

Each page gets a folder of its own with the files that the pages name: ``scans/``, ``labels/``,
``groups.csv``, ``new.nii.gz``, ``study.jrss`` with a trained teacher, and so on. Its blocks run in
order and share their variables. A block that can't run here stands below a comment
``<!-- not run: reason -->``.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

import napari_jrss.cli
from napari_jrss import config, pool
from napari_jrss._tests.io.dicom_phantoms import lps_affine, save, slices
from napari_jrss.experiments.protocol import Protocol
from napari_jrss.sample_data import make_case, make_cohort

ROOT = Path(__file__).parents[3]
if not (ROOT / "docs").is_dir():
    pytest.skip("docs/ belongs to a checkout", allow_module_level=True)

SHRUNK = {
    "--preset fast": "--preset smoke",
    'preset="fast"': 'preset="smoke"',
    'preset("fast")': 'preset("smoke")',
    "--rounds 3": "--rounds 1",
    "rounds=3": "rounds=1",
    "--tau 0.6": "--tau 0.05",
    '"minimum_steps": 1500': '"minimum_steps": 6',
    "--labelled 5 --validation 4 --test 10": "--labelled 2 --validation 1 --test 2",
    "labelled=5, validation=4, test=10": "labelled=2, validation=1, test=2",
}
"""What the pages say, and what runs in its place, so that all pages take a few minutes."""

STEPS = {
    "segmentation": {"minimum_steps": 6, "epochs": 1},
    "registration": {"minimum_steps": 6, "epochs": 1},
    "joint": {"segmentation_epochs": 1, "registration_epochs": 1, "minimum_steps": 1},
    "screening": {"tau": 0.05, "learned_gate": False},
}
"""What the preset ``smoke`` is here."""

CASES = [f"case_{letter}" for letter in "abcdefghij"]
RUN, SHOWN = ("bash", "python"), ("text", "json", "yaml")
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    reason: str | None


def blocks(text: str) -> list[Block]:
    return [
        Block(found["language"], found["text"], found["reason"]) for found in _BLOCK.finditer(text)
    ]


PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))


def parts() -> Iterator[tuple[str, str]]:
    """Every page with its text; the README section by section, since these stand by themselves."""
    for section in (ROOT / "README.md").read_text(encoding="utf-8").split("\n## "):
        yield f"README.md: {section.splitlines()[0]}", section
    for page in PAGES:
        yield page, (ROOT / page).read_text(encoding="utf-8")


TO_RUN = {
    name: found
    for name, text in parts()
    if (found := [b for b in blocks(text) if b.reason is None and b.language in RUN])
}


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_each_block_is_run_or_says_why_not(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = blocks(text)
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.MULTILINE)), "a fence that is odd"
    assert text.count("<!-- not run:") == sum(block.reason is not None for block in found)
    for block in found:
        assert block.language in RUN + SHOWN, block
        assert block.reason is None or len(block.reason.split()) >= 3, block
        if block.language == "json":
            config.TrainingConfig.model_validate_json(block.text)
        if block.language == "yaml":
            Protocol.model_validate(yaml.safe_load(block.text))


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name; ``study.jrss`` has a teacher of one round."""
    folder = tmp_path_factory.mktemp("docs") / "here"
    folder.mkdir()
    cohort = make_cohort(folder / "cohort", cases=len(CASES), shape=(16, 20, 16), structures=3)
    for kind, name in (("images", "scans"), ("labels", "labels")):
        (folder / name).mkdir()
        for case, file in zip(CASES, sorted((cohort / kind).iterdir()), strict=True):
            shutil.copy(file, folder / name / f"{case}.nii.gz")
    shutil.move(cohort / "groups.csv", folder)
    shutil.rmtree(cohort)
    for name in ("new.nii.gz", "new_scan.nii.gz"):
        shutil.copy(folder / "scans" / "case_j.nii.gz", folder / name)
    for name, case in (("reader_1", "case_a"), ("reader_2", "case_b")):
        shutil.copy(folder / "labels" / f"{case}.nii.gz", folder / f"{name}.nii.gz")
    write_bids(folder)
    write_masks(folder)
    write_dicom(folder / "dicom")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, folder)
        command("napari-jrss init study.jrss --images scans --labels labels --groups groups.csv")
        command("napari-jrss split study.jrss --labelled 2 --validation 1 --test 1")
        command("napari-jrss train study.jrss --rounds 1 --preset smoke")
    return folder.rename(folder.with_name("kept"))


def write_bids(folder: Path) -> None:
    """Six subjects, of whom four have a label."""
    for number, case in enumerate(CASES[:6], start=1):
        anat = folder / "bids" / f"sub-{number:02d}" / "anat"
        anat.mkdir(parents=True)
        shutil.copy(folder / "scans" / f"{case}.nii.gz", anat / f"sub-{number:02d}_T1w.nii.gz")
        if number <= 4:
            derived = folder / "bids" / "derivatives" / "manual" / f"sub-{number:02d}" / "anat"
            derived.mkdir(parents=True)
            name = f"sub-{number:02d}_space-T1w_dseg.nii.gz"
            shutil.copy(folder / "labels" / f"{case}.nii.gz", derived / name)


def write_masks(folder: Path) -> None:
    """A mask of each of two structures for three cases."""
    for case in CASES[:3]:
        label = nib.load(folder / "labels" / f"{case}.nii.gz")
        (folder / "masks" / case).mkdir(parents=True)
        for number, name in ((1, "spleen"), (2, "liver")):
            mask = (np.asarray(label.dataobj) == number).astype(np.uint8)
            file = folder / "masks" / case / f"{name}.nii.gz"
            nib.save(nib.Nifti1Image(mask, label.affine), file)


def write_dicom(folder: Path) -> None:
    """Two series."""
    for number in (1, 2):
        image = make_case(number, (16, 20, 16)).image
        scan = (100 * (image - image.min())).astype(np.uint16)
        save(folder / str(number), slices(scan, lps_affine(spacing=(4, 4, 4)), "MR"))


def shrink(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Work in a folder, with settings of its own, few steps, and one worker process at a time."""
    patch.chdir(folder)
    patch.setenv("XDG_CONFIG_HOME", str(folder / "settings"))
    patch.delenv("NAPARI_JRSS_USER", raising=False)
    patch.setattr(config, "_SMOKE", STEPS)
    patch.setattr(pool, "available_cores", lambda: 1)


def command(text: str, variables: dict[str, Any] | None = None) -> None:
    """Run one command line; the program's own in this process, since torch loads for seconds."""
    words = shlex.split(text, comments=True)
    if "napari-jrss" not in words[:2]:
        subprocess.run(["bash", "-ec", text], check=True)
        return
    with pytest.MonkeyPatch.context() as patch:
        if words[0] == "PYTHONPATH=.":
            patch.syspath_prepend(str(Path.cwd()))
        patch.setattr("sys.argv", words[words.index("napari-jrss") :])
        code: object = 0
        try:
            napari_jrss.cli.main()
        except SystemExit as ended:
            code = ended.code
    assert not code, f"{text}: code {code}"


def command_lines(text: str) -> Iterator[str]:
    """The command lines of a block: a here-document and a line that goes on are one."""
    gathered, ending = "", ""
    for line in text.splitlines(keepends=True):
        gathered += line
        if ending:
            ending = "" if line.strip() == ending else ending
        elif found := re.search(r"<<'(\w+)'", line):
            ending = found[1]
        if not ending and not line.endswith("\\\n"):
            if shlex.split(gathered, comments=True):
                yield gathered.replace("\\\n", " ")
            gathered = ""
    assert not gathered, "a block ends in the middle of a command"


def shrunk(text: str) -> str:
    for said, done in SHRUNK.items():
        text = text.replace(said, done)
    return text


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", TO_RUN)
def test_blocks_run(page: str, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Always in the same place, since a project knows its scans by their paths.
    folder = study.with_name("here")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(study, folder)
    text = "".join(block.text for block in TO_RUN[page])
    if re.search(r'init study\.jrss|from_folders\("study\.jrss"', text):
        shutil.rmtree(folder / "study.jrss")
    shrink(monkeypatch, folder)
    variables: dict[str, Any] = {"__name__": "__main__"}
    run: dict[str, Callable[[str], None]] = {
        "bash": lambda text: [command(line) for line in command_lines(text)] and None,
        "python": lambda text: exec(compile(text, page, "exec"), variables),
    }
    for block in TO_RUN[page]:
        run[block.language](shrunk(block.text))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "tutorials" / "first_project.ipynb", as_version=4)
    few = f"from napari_jrss import config\nconfig._SMOKE = {STEPS}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(few))
    folder = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=600, resources=folder).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    printed = "".join(out.text for out in outputs if out.get("name") == "stdout")
    assert "9 cases" in printed
    assert "the teacher of round 1 is in force" in printed
    assert "Mono-Nets" in printed
    assert "image/png" in str(outputs)
