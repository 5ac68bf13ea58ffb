"""What several test folders use."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Don't even import the window's tests for ``-m "not gui"``: napari takes seconds."""
    window = collection_path == Path(__file__).parent / "widgets"
    return True if window and "not gui" in config.option.markexpr else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the window as gui; skip gui and gpu where there is no display or GPU."""
    # What takes long begins first, so that no worker of -n is left alone with it at the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    without = {}
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        # Qt ends the whole process where it finds no display.
        without["gui"] = pytest.mark.skip(reason="no display: run under xvfb-run -a")
    for item in items:
        if "/widgets/" in item.nodeid or "make_napari_viewer" in getattr(item, "fixturenames", ()):
            item.add_marker("gui")
        if item.get_closest_marker("gpu") and "gpu" not in without:
            import torch

            without["gpu"] = pytest.mark.skipif(
                not torch.cuda.is_available(), reason="no CUDA device"
            )
        for name, skip in without.items():
            if item.get_closest_marker(name):
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Pass over all that was imported where garbage is collected, as napari does in each test."""
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data(pytestconfig: pytest.Config) -> Path:
    """Folder of real scans beside the checkout; tests that need it skip where it isn't."""
    for checkout in (pytestconfig.rootpath, Path.cwd()):
        folder = checkout.parent / "shared" / "data"
        if folder.is_dir():
            return folder
    pytest.skip(f"no real scans at {pytestconfig.rootpath.parent / 'shared' / 'data'}")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of torch, since a pool costs more than it brings on 16 voxels; and one seed."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
