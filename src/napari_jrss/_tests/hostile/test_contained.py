"""Nothing is unpickled, nothing unpacks without end, nothing is written outside a project."""

from __future__ import annotations

import ast
import gzip
import json
import os
import pickle  # noqa: TID251 - a hostile file is made with it
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numcodecs
import numpy as np
import pytest
import zarr

import napari_jrss
from napari_jrss.app.status import project_status
from napari_jrss.cli.render import status_tables
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.layouts import FoundCase
from napari_jrss.io.predictions import Prediction, write_prediction
from napari_jrss.io.read import read_volume
from napari_jrss.io.zarr_check import open_array, read_array
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.grid import training_grid
from napari_jrss.project.project import Project

from .targets import SHAPE, TABLE, make_case, make_project

PACKAGE = Path(napari_jrss.__file__).parent
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "_tests" not in p.relative_to(PACKAGE).parts)


# -- nothing is unpickled


def unpickling(tree: ast.Module) -> Iterator[str]:
    """Whatever in a module could run a stranger's pickle, or a stranger's text."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from (str(n) for n in names if str(n).split(".")[0] in modules)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("torch.load", "eval", "exec"):
                yield called
            if any(
                k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords
            ):
                yield f"{called} with allow_pickle"


def test_no_module_unpickles() -> None:
    assert len(MODULES) > 100
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
    assert [(path, found) for path, tree in trees.items() for found in unpickling(tree)] == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "torch.load(p)", "np.load(p, allow_pickle=True)", "exec(text)"],
)
def test_the_check_itself_finds_it(source: str) -> None:
    assert len(list(unpickling(ast.parse(source)))) == 1


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_a_pickle_codec_of_zarr_2_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Newer versions of numcodecs ask for this leave; older ones never did.
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    trap = tmp_path / "sprung"
    case = make_case(tmp_path, "a")
    for array in (case / "0", case / "labels" / "v0001" / "0"):
        for path in sorted(array.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        metadata = {
            "zarr_format": 2,
            "shape": list(SHAPE),
            "chunks": list(SHAPE),
            "dtype": "|O",
            "compressor": None,
            "fill_value": 0,
            "order": "C",
            "filters": [{"id": "pickle", "protocol": 5}],
        }
        (array / ".zarray").write_text(json.dumps(metadata))
        (array / "0.0.0").write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(ScanError, match=r"a\.ome\.zarr"):
        store.read_image(case)
    with pytest.raises(ScanError, match=r"a\.ome\.zarr"):
        store.read_label(case, "v0001")
    assert not trap.exists()
    # The trap is a real one: numcodecs, asked directly, springs it.
    numcodecs.Pickle().decode((case / "0" / "0.0.0").read_bytes())
    assert trap.exists()


@pytest.mark.parametrize("codec", ["numcodecs.pickle", "pickle", "vlen-bytes", "numcodecs.delta"])
def test_a_foreign_codec_is_refused(tmp_path: Path, codec: str) -> None:
    case = make_case(tmp_path, "a")
    path = case / "0" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["codecs"][0]["configuration"]["codecs"].insert(0, {"name": codec, "configuration": {}})
    path.write_text(json.dumps(metadata))
    with pytest.raises(ScanError, match="codecs"):
        store.read_image(case)


# -- nothing unpacks without end


def peak_megabytes(script: str, *arguments: object) -> tuple[str, float]:
    """What a script in a process of its own prints, and by how much its memory grew."""
    measured = (
        "import sys, resource\n"
        "import napari_jrss.preprocess.case_store\n"
        "from napari_jrss.errors import ScanError\n"
        "from napari_jrss.io.read import read_volume\n"
        "from napari_jrss.io.zarr_check import read_array\n"
        "from pathlib import Path\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try:\n    {script}\n"
        "except ScanError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", measured, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    *said, grown = done.stdout.splitlines()
    return "\n".join(said), int(grown) / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.slow
def test_a_bomb_behind_a_scan_is_left_packed(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "a.nii")
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", 9) as file:
        file.write((tmp_path / "a.nii").read_bytes())
        for _ in range(32):
            file.write(bytes(2**24))  # half a gigabyte in half a megabyte
    assert path.stat().st_size < 2**20
    said, grown = peak_megabytes("read_volume(sys.argv[1])", path)
    assert said == f"{path}: more than 16777216 bytes follow the voxels"
    assert grown < 100


@pytest.mark.slow
@pytest.mark.parametrize("compressor", ["blosc", "zstd"])
def test_a_bomb_in_a_chunk_is_left_packed(tmp_path: Path, compressor: str) -> None:
    codec = {
        "blosc": zarr.codecs.BloscCodec(cname="zstd", clevel=9),
        "zstd": zarr.codecs.ZstdCodec(level=9),
    }[compressor]
    path = tmp_path / "array"
    array = np.ones(SHAPE, np.uint8)
    zarr.create_array(path, data=array, chunks=SHAPE, compressors=codec)
    np.testing.assert_array_equal(read_array(path), array)
    packed: numcodecs.abc.Codec = (
        numcodecs.Blosc("zstd", 9) if compressor == "blosc" else numcodecs.Zstd(9)
    )
    (path / "c" / "0" / "0" / "0").write_bytes(packed.encode(bytes(2**29)))
    said, grown = peak_megabytes("read_array(Path(sys.argv[1]))", path)
    assert said.startswith(f"{path}")
    assert said.endswith("damaged")
    assert grown < 100


def test_a_scan_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<8h", content, 40, 3, 6000, 6000, 6000, 1, 1, 1, 1)
    path = tmp_path / "large.nii"
    with path.open("wb") as file:
        file.write(content)
        file.truncate(352 + 6000**3)  # a hole, as large as the header says
    with pytest.raises(ScanError, match=r"large\.nii: needs .* GiB of memory"):
        read_volume(path)


def test_a_missing_or_changed_part_of_an_image_is_damage(tmp_path: Path) -> None:
    case = make_case(tmp_path, "a")
    shard = case / "0" / "c" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1  # Blosc would decode it into other voxels
    shard.write_bytes(content)
    with pytest.raises(ScanError, match=r"a\.ome\.zarr/0: damaged"):
        store.read_image(case)
    shard.unlink()
    with pytest.raises(ScanError, match="a part of its voxels is missing"):
        store.read_image(case)


def test_what_is_written_is_whole_even_where_it_is_all_zero(tmp_path: Path) -> None:
    zeros = np.zeros(SHAPE, np.uint8)
    case = make_case(tmp_path, "a", label=False)
    store.add_label(case, "v0001", zeros, TABLE)
    open_array(case / "labels" / "v0001" / "0", whole=True)
    write_prediction(tmp_path, "a", Prediction(zeros, zeros.astype(np.float16)))
    open_array(tmp_path / "a.zarr" / "label", whole=True)


# -- nothing is written outside


@pytest.fixture
def brain(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    make_project(folder)
    return folder / "brain.jrss"


@pytest.mark.parametrize(
    "case_id", ["../../x", "/tmp/x", "..", ".", "", "a/b", "a\\b", "C:x", "CON", "a\0b", "x" * 200]
)
def test_a_case_id_never_leaves_the_folder(brain: Path, case_id: str) -> None:
    scan = brain.parent / "scan.nii"
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), scan)
    before = set(brain.parent.parent.rglob("*"))
    with Project.open(brain) as project:
        with pytest.raises(ProjectError):
            project.case_path(case_id)
        with pytest.raises(ProjectError):
            project.register_case(case_id)
        (result,) = project.add_cases([FoundCase(case_id, scan)], workers=1)
        assert not result.ok
    new = set(brain.parent.parent.rglob("*")) - before
    assert {path.name for path in new} <= {"project.lock", "project.sqlite-journal"}


def test_a_label_name_in_the_metadata_never_leaves_the_case(tmp_path: Path) -> None:
    case = make_case(tmp_path, "a")
    listing = case / "labels" / "zarr.json"
    content = json.loads(listing.read_text())
    content["attributes"]["ome"]["labels"] = ["../../secret"]
    listing.write_text(json.dumps(content))
    with pytest.raises(ScanError, match="can't be a label of this case"):
        store.label_versions(case)


@pytest.mark.parametrize(
    "part",
    [
        *("cases", "cases/a.ome.zarr", "cases/a.ome.zarr/labels", "cases/a.ome.zarr/channels"),
        *("rounds", "rounds/0001"),
        *("rounds/0001/predictions", "project.lock", "journal"),
    ],
)
def test_a_link_in_the_project_is_not_followed(brain: Path, part: str) -> None:
    outside, place = brain.parent / "outside", brain / part
    outside.mkdir()
    if place.exists():
        place.rename(outside / "moved")
        place.symlink_to(outside / "moved")
    else:
        place.symlink_to(outside)
    before = {p: p.stat().st_mtime_ns for p in outside.rglob("*")}

    def work() -> None:
        with Project.open(brain) as project:
            project.add_label_version("a", np.ones(SHAPE, np.uint8), "Ada")
            project.start_round(None, "{}", project.snapshot().label_versions)
            project.resume_round(1)

    with pytest.raises(ProjectError):
        work()
    assert {p: p.stat().st_mtime_ns for p in outside.rglob("*")} == before


# -- the command line


@pytest.mark.slow
def test_hostile_input_on_the_command_line_is_one_line(brain: Path, tmp_path: Path) -> None:
    """The message of a reader reaches the person without a traceback."""

    def mistake(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "napari_jrss", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        (line,) = [n for n in done.stderr.splitlines() if n.startswith("error: ")]
        return line

    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    assert "deep.json" in mistake("train", brain, "--config", deep)
    (brain / "rounds/0001/config.json").write_bytes(b"\xff\xfe")
    assert "config.json" in mistake("train", brain, "--resume")
    ledger = brain / "project.sqlite"
    content = bytearray(ledger.read_bytes())
    content[4096:4200] = b"\xaa" * 104
    ledger.write_bytes(content)
    assert "project.sqlite: " in mistake("status", brain)


def test_names_are_printed_as_they_are(
    brain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with Project.open(brain) as project:
        project.rename_structure(1, "[/red][bold]x")
        project._ledger.fail_import("y", "[/images]: truncated")
        status_tables(project_status(project))
    said = capsys.readouterr().out
    assert "[/red][bold]x" in said
    assert "[/images]: truncated" in said


def test_one_scan_of_impossible_size_is_named(tmp_path: Path) -> None:
    for name, zoom in (("a", 1.0), ("b", 20_000.0)):
        image = nib.Nifti1Image(np.ones((16, 16, 16), np.float32), np.diag([zoom] * 3 + [1.0]))
        nib.save(image, tmp_path / f"{name}.nii")
    cases = [FoundCase(name, tmp_path / f"{name}.nii") for name in "ab"]
    with pytest.raises(ScanError, match=r"b\.nii: is 3.2e\+05 mm long"):
        training_grid(cases, PreprocessingConfig())


def test_training_never_reads_a_label_that_nobody_accepted(brain: Path) -> None:
    with Project.open(brain) as project:
        snapshot = project.snapshot()
        case_id = snapshot.labelled[0]
        version = snapshot.label_versions[case_id]
        label = snapshot.arrays.label(case_id)
        case = project.case_path(case_id)
        shutil.rmtree(case / "labels" / version / "0")
        zarr.create_array(case / "labels" / version / "0", data=np.roll(label, 1), chunks=SHAPE)
        assert store.read_label(case, version).any()
        with pytest.raises(ProjectError, match=f"label {version} isn't what was written"):
            project.snapshot().arrays.label(case_id)
