"""What several test folders use."""

from collections.abc import Iterator
from pathlib import Path

import pytest


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
