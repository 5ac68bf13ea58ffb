"""What several test folders use."""

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
