"""The real sample, downloaded from a server on this computer; no network."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from napari_jrss import real_sample
from napari_jrss.cli import app
from napari_jrss.io.layouts import discover
from napari_jrss.real_sample import TASK, DownloadError, fetch_hippocampi

pytest.importorskip("pooch", reason="pooch is not installed")


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, shared_data: Path
) -> Iterator[tuple[str, str]]:
    """Address and checksum of an archive in the Decathlon's form, of real scans."""
    folder = tmp_path_factory.mktemp("served")
    source = shared_data / "hippocampus_msd"
    with tarfile.open(folder / "archive.tar", "w") as tar:
        for path in sorted((source / "images").glob("*.nii.gz"))[:3]:
            for inside, kind in (("imagesTr", "images"), ("labelsTr", "labels")):
                tar.add(source / kind / path.name, f"{TASK}/{inside}/{path.name}")
                _add(tar, f"{TASK}/{inside}/._{path.name}", b"of a Mac")
        _add(tar, f"{TASK}/labelsTr/../../../hippocampus_999.nii.gz", b"a way out")
    with tarfile.open(folder / "other.tar", "w") as tar:
        _add(tar, "something", b"else")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    digest = hashlib.md5((folder / "archive.tar").read_bytes()).hexdigest()
    yield f"http://127.0.0.1:{server.server_address[1]}", f"md5:{digest}"
    server.shutdown()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "platformdirs.user_cache_path", lambda *_, **__: tmp_path / "cache", raising=True
    )


def test_real_scans_come_with_their_labels_and_their_licence(
    served: tuple[str, str], tmp_path: Path
) -> None:
    address, checksum = served
    folder = fetch_hippocampi(tmp_path / "real", 2, url=f"{address}/archive.tar", checksum=checksum)
    names = [p.name for p in sorted((folder / "images").iterdir())]
    assert len(names) == 2
    assert names == [p.name for p in sorted((folder / "labels").iterdir())]
    for name in names:
        label = nib.load(folder / "labels" / name)
        assert label.shape == nib.load(folder / "images" / name).shape
        assert set(np.unique(label.dataobj)) == {0, 1, 2}
    assert "CC BY-SA 4.0" in (folder / "LICENCE.txt").read_text()
    assert discover(images=folder / "images", labels=folder / "labels").cases[1].label is not None
    assert not list(tmp_path.rglob("hippocampus_999*"))


def test_the_archive_is_downloaded_once(served: tuple[str, str], tmp_path: Path) -> None:
    address, checksum = served
    for name in ("one", "two"):
        fetch_hippocampi(tmp_path / name, 1, url=f"{address}/archive.tar", checksum=checksum)
        address = "http://127.0.0.1:9"  # nobody there


@pytest.mark.parametrize(
    ("file", "checksum", "told"),
    [
        ("archive.tar", "md5:" + "0" * 32, "can't be downloaded"),
        ("gone.tar", "", "404"),
        ("other.tar", "", "holds no Task04_Hippocampus/labelsTr"),
    ],
)
def test_what_goes_wrong_is_one_line(
    served: tuple[str, str], tmp_path: Path, file: str, checksum: str, told: str
) -> None:
    with pytest.raises(DownloadError, match=told) as raised:
        fetch_hippocampi(tmp_path / "real", url=f"{served[0]}/{file}", checksum=checksum or None)
    assert "\n" not in str(raised.value)


def test_the_command_tells_the_licence_and_what_comes_next(
    served: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = partial(fetch_hippocampi, url=f"{served[0]}/archive.tar", checksum=served[1])
    monkeypatch.setattr(real_sample, "fetch_hippocampi", known)
    result = CliRunner().invoke(app, ["sample", str(tmp_path / "r"), "--real", "--cases", "2"])
    assert result.exit_code == 0, result.output
    assert "CC BY-SA 4.0" in result.stdout
    assert f"napari-jrss init PROJECT --images {tmp_path / 'r'}" in result.stdout


@pytest.mark.slow
def test_monai_names_the_archive() -> None:
    from monai.apps import DecathlonDataset

    assert DecathlonDataset.resource[TASK].endswith(f"{TASK}.tar")
    assert len(DecathlonDataset.md5[TASK]) == 32
