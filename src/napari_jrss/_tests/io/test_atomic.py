"""Writes are there in full or not at all, whatever goes wrong on the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from napari_jrss.io.atomic import new_folder, sweep, temp_path, write_bytes


def test_writing_replaces_and_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError):
        write_bytes(path, "text")  # type: ignore[arg-type]
    (tmp_path / "folder" / "in it").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_bytes(tmp_path / "folder", b"new")
    assert path.read_bytes() == b"new"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


def fill_in(folder: Path) -> bytes:
    """Half of what was to be written, then something that isn't."""
    (folder / "below").mkdir(parents=True)
    return "text"  # type: ignore[return-value]


def test_a_folder_gets_its_name_when_it_is_full(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with new_folder(path) as unfinished:
        (unfinished / "below").mkdir(parents=True)
        (unfinished / "below" / "file").write_text("whole")
        assert not path.exists()
    assert (path / "below" / "file").read_text() == "whole"
    with pytest.raises(OSError, match="empty"), new_folder(path) as unfinished:
        unfinished.mkdir()
    with pytest.raises(TypeError), new_folder(tmp_path / "b") as unfinished:
        write_bytes(unfinished / "file", fill_in(unfinished))
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208 - hidden names too


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    temp_path(tmp_path / "file").write_text("half")
    (temp_path(tmp_path / "folder") / "below").mkdir(parents=True)
    (tmp_path / ".hidden").touch()
    (tmp_path / "name.partial").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    temp_path(tmp_path / "link").symlink_to(outside)
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".hidden", "name.partial", "outside"}
    assert (outside / "file").exists()
    sweep(tmp_path / "nowhere")
