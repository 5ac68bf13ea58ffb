import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from napari_jrss._tests.io.phantoms import blobs, block_label, write
from napari_jrss._tests.preprocess.jobs import dies_at_3, threads_and_parent
from napari_jrss.config import PreprocessingConfig
from napari_jrss.io.layouts import discover
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.grid import training_grid
from napari_jrss.preprocess.ingest import ingest
from napari_jrss.processes import WorkerDiedError, in_processes

pytestmark = pytest.mark.slow

TABLE = LabelTable.from_ids([1, 2])


def test_every_failure_has_its_reason_and_the_others_go_on(tmp_path):
    images, labels, cases = tmp_path / "images", tmp_path / "labels", tmp_path / "cases"
    images.mkdir()
    labels.mkdir()
    image, label = blobs().T, block_label().T

    def add(name, image=image, label=label, affine=None):
        write(images / f"{name}.nii.gz", image, affine)
        if label is not None:
            write(labels / f"{name}.nii.gz", label)

    add("good")
    add("unlabelled", label=None)
    add("shape", label=label[1:])
    add("place", affine=np.diag([1.0, 1, 1.5, 1]))
    add("unknown", label=label * 3)
    add("fraction", label=label * np.float32(0.5))
    add("empty", label=label * 0)
    add("constant", image=np.full_like(image, 7))
    add("nan", image=np.where(image > 90, np.nan, image))
    add("frames", image=np.stack([image, image], -1))
    add("cut")
    content = (images / "cut.nii.gz").read_bytes()
    (images / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    add("text")
    (images / "text.nii.gz").write_text("no scan at all")
    add("exists")
    exists = [c for c in discover(tmp_path).cases if c.case_id == "exists"]
    other = PreprocessingConfig(shape=(8, 8, 8))
    assert [r.ok for r in ingest(exists, other, TABLE, cases, 1)] == [True]
    (cases / ".0123.partial").mkdir()

    found = discover(tmp_path)
    results = {r.case_id: r for r in ingest(found.cases, PreprocessingConfig(), TABLE, cases, 2)}
    assert set(results) == {c.case_id for c in found.cases}
    assert {name for name, r in results.items() if r.ok} == {"good", "unlabelled"}
    expected = {
        "shape": "labels/shape.nii.gz: label of shape",
        "place": "mm away from its image",
        "unknown": "labels/unknown.nii.gz: unknown label id 3, 6",
        "fraction": "which is no integer",
        "empty": "labels/empty.nii.gz: label is empty",
        "constant": "images/constant.nii.gz: image is constant",
        "nan": "voxels are NaN",
        "frames": "not that of one 3D scan",
        "cut": "truncated",
        "text": "not a NIfTI file",
        "exists": "exists",
    }
    for name, reason in expected.items():
        assert reason in results[name].reason, results[name]
        assert name in results[name].reason
        assert "\n" not in results[name].reason
    good, unlabelled = results["good"], results["unlabelled"]
    assert (good.labelled, good.label_kept, good.reason) == (True, 1, "")
    assert (unlabelled.labelled, unlabelled.label_kept) == (False, None)
    again = [c for c in found.cases if c.case_id in ("good", "unlabelled")]
    grid = training_grid(found.cases, PreprocessingConfig(), TABLE)
    second = {
        r.case_id: r for r in ingest(again, PreprocessingConfig(), TABLE, cases, 1, grid=grid)
    }
    assert second == {"good": good, "unlabelled": unlabelled}
    back = store.read_attributes(good.path).chain.label_to_source(
        store.read_label(good.path, "manual")
    )
    np.testing.assert_array_equal(back, block_label())
    assert store.label_versions(unlabelled.path) == ()
    assert sorted(p.name for p in cases.iterdir()) == [
        "exists.ome.zarr",
        "good.ome.zarr",
        "unlabelled.ome.zarr",
    ]


def test_labels_without_a_table_are_a_mistake(tmp_path):
    write(tmp_path / "a.nii", blobs().T)
    case = discover(images=tmp_path, labels=None).cases[0]
    labelled = type(case)(case.case_id, case.image, case.image)
    with pytest.raises(ValueError, match="label table"):
        list(ingest([labelled], PreprocessingConfig(), None, tmp_path / "cases"))


def test_a_dying_worker_takes_one_item_with_it():
    results = dict(in_processes(dies_at_3, range(8), 2))
    assert isinstance(results.pop(3), WorkerDiedError)
    assert isinstance(results.pop(5), ValueError)
    assert results == {i: 10 * i for i in (0, 1, 2, 4, 6, 7)}


def test_workers_are_spawned_have_one_thread_and_end_with_the_loop():
    for _, (threads, parent) in in_processes(threads_and_parent, range(3), 2):
        assert (threads, parent) == (1, os.getpid())
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    running = in_processes(dies_at_3, [0] * 40, 1)
    next(running)
    running.close()
    time.sleep(0.1)
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


BUSY = """
import sys
from napari_jrss._tests.preprocess.jobs import (waits)
from napari_jrss.processes import (in_processes)

if __name__ == "__main__":
    list(in_processes(waits, sys.argv[1:], 2))
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "program.py").write_text(BUSY)
    told = [tmp_path / "first", tmp_path / "second"]
    parent = subprocess.Popen([sys.executable, tmp_path / "program.py", *told])
    alive = []
    try:
        while not all(path.exists() and path.read_text() for path in told):
            assert parent.poll() is None
            time.sleep(0.05)
        workers = [psutil.Process(int(path.read_text())) for path in told]
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []
    finally:
        parent.kill()
        for worker in alive:
            worker.kill()


@pytest.mark.parametrize("count", [1, 9])
def test_a_script_without_its_guard_is_told_so(tmp_path, count):
    script = tmp_path / "program.py"
    script.write_text(BUSY.replace('if __name__ == "__main__":', "if True:"))
    ended = subprocess.run(
        [sys.executable, script, *"abcdefghi"[:count]],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == 1
    # Each process tells its own end; ours is the one line with the error's name.
    told = [line for line in ended.stderr.splitlines() if "ProcessError: " in line]
    assert len(told) == 1
    assert "no worker process can start" in told[0]
    assert '`if __name__ == "__main__":`' in told[0]
    assert list(tmp_path.iterdir()) == [script]


def test_no_items_start_nothing():
    assert list(in_processes(dies_at_3, [])) == []
