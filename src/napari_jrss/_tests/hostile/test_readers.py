"""Every reader on spoiled input: a clear error that names the file, and nothing worse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from .mutations import Mutation
from .targets import READERS, Target, an_arena, attack
from .targets_engine import ENGINE_READERS

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("NAPARI_JRSS_HOSTILE_EXAMPLES", "30"))


@pytest.fixture
def arena() -> Iterator[Path]:
    """A folder for one target."""
    with an_arena() as folder:
        yield folder


@pytest.mark.parametrize("target", [*READERS, *ENGINE_READERS], ids=lambda target: target.name)
def test_spoiled_input_is_refused_or_read(target: Target, arena: Path) -> None:
    refused = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.mutations)
    def spoil(mutation: Mutation) -> None:
        nonlocal refused
        refused += attack(target, mutation, arena)

    spoil()
    assert refused > 0
