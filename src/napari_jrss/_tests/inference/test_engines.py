"""Registration engines by name: ours, those of other packages, and what is said of missing ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from napari_jrss.inference import engines as module
from napari_jrss.inference.engines import (
    BUILT_IN,
    GROUP,
    Engine,
    EngineError,
    Field,
    engine_named,
    engines,
)
from napari_jrss.snapshot import Image

pytestmark = pytest.mark.usefixtures("one_thread")
SHIFT = (1, 2, -2)
SPACING = (2.0, 1.0, 1.0)


def moved_pair(shape: tuple[int, int, int]) -> tuple[Image, Image]:
    """A fixed image of smooth noise, and a moving one that a field of SHIFT brings onto it."""
    fixed = gaussian_filter(np.random.default_rng(0).normal(size=shape), 3).astype(np.float32)
    fixed /= fixed.std()
    return np.roll(fixed, SHIFT, (0, 1, 2)), fixed


@pytest.mark.parametrize("engine", BUILT_IN, ids=lambda engine: engine.name)
def test_each_engine_finds_a_shift_in_voxels_of_our_order(engine: Engine) -> None:
    if engine.problem:
        pytest.skip(engine.problem)
    moving, fixed = moved_pair((30, 41, 34))  # odd, and no multiple of a coarse grid
    field = engine.register(moving, fixed, SPACING)
    assert field.shape == (3, *fixed.shape)
    assert field.dtype == np.float32
    inner = field[:, 8:-8, 8:-8, 8:-8]
    np.testing.assert_allclose(np.median(inner, axis=(1, 2, 3)), SHIFT, atol=0.2)


def test_the_same_pair_gives_the_same_field_and_a_stop_ends_it() -> None:
    moving, fixed = moved_pair((16, 24, 16))
    engine = engine_named("refine")
    field = engine.register(moving, fixed, SPACING)
    np.testing.assert_array_equal(field, engine.register(moving, fixed, SPACING))
    seen: list[float] = []

    def watch(done: float) -> bool:
        seen.append(done)
        return False

    assert not engine.register(moving, fixed, SPACING, watch=watch).any()
    assert seen == [0]


def test_an_engine_that_is_unknown_or_not_installed_is_one_line() -> None:
    with pytest.raises(EngineError, match="unknown engine 'greedi'; did you mean 'greedy'"):
        engine_named("greedi")
    with pytest.raises(EngineError, match="unknown engine 'x'; known: refine, greedy"):
        engine_named("x")
    absent = Engine("absent", "of another package", given, "no_such_module", "no-such-package")
    moving, fixed = moved_pair((16, 24, 16))
    with pytest.raises(EngineError, match=r"absent is not installed: pip install no-such-package"):
        absent.register(moving, fixed)


def given(moving: Image, fixed: Image, *_: object) -> Field:
    """Each engine that follows differs from this one in what it gives."""
    return np.zeros((3, *fixed.shape), np.float32)


def misshapen(moving: Image, fixed: Image, *_: object) -> Field:
    return given(moving, fixed)[:2]


def endless(moving: Image, fixed: Image, *_: object) -> Field:
    return given(moving, fixed) + np.float32(np.inf)


def broken(moving: Image, fixed: Image, *_: object) -> Field:
    raise RuntimeError("no\nconvergence")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (misshapen, "gave no usable field"),
        (endless, "gave no usable field"),
        (broken, "the engine theirs failed: no convergence"),
    ],
)
def test_an_engine_that_fails_says_so_in_a_line(function: object, message: str) -> None:
    moving, fixed = moved_pair((16, 24, 16))
    engine = Engine("theirs", "of a test", function)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=message) as caught:
        engine.register(moving, fixed)
    assert "\n" not in str(caught.value)


def add_package(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package with an entry point of the group, as pip would."""
    about = folder / "their_engines-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-engines\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\ntheirs = their_engines:ENGINE\n")
    (folder / "their_engines.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "their_engines", raising=False)


def test_another_package_adds_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        f"from {__name__} import given\n"
        f"from {module.__name__} import Engine\n"
        "ENGINE = Engine('theirs', 'leaves all as it is', given)\n"
    )
    add_package(tmp_path, source, monkeypatch)
    assert list(engines()) == [*(engine.name for engine in BUILT_IN), "theirs"]
    moving, fixed = moved_pair((16, 24, 16))
    assert not engine_named("theirs").register(moving, fixed).any()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise OSError('libgone.so:\\n not found')\n", "libgone.so: not found"),
        ("ENGINE = 'mine'\n", "it is no Engine"),
    ],
)
def test_a_package_with_a_broken_engine_is_named(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_package(tmp_path, source, monkeypatch)
    with pytest.raises(EngineError, match=f"theirs can't be used: their_engines.*{reason}"):
        engine_named("theirs")
    assert not engine_named("refine").problem
