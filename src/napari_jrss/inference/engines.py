"""Registration engines by name: two images on one grid give a displacement field, untrained.

Besides our own, an engine drives another package, which is imported when it is first used. Any
installed package can add engines through the entry-point group ``napari_jrss.registration``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

import numpy as np

from napari_jrss.errors import JRSSError, did_you_mean, one_line
from napari_jrss.geometry import Triple
from napari_jrss.inference import partners
from napari_jrss.inference.partners import Field
from napari_jrss.inference.watch import Watch, to_the_end
from napari_jrss.snapshot import Image

GROUP = "napari_jrss.registration"
"""The entry-point group; each entry is an :class:`Engine`, under its name."""


class EngineError(JRSSError):
    """An engine is unknown, its package is missing, or it failed on a pair."""


@dataclass(frozen=True)
class Engine:
    """A way to register two images without training.

    Attributes
    ----------
    name
        How it is asked for.
    about
        What it is, in a few words.
    field
        ``(moving, fixed, spacing_mm, device, watch)`` -> displacement. The images are float32
        (z, y, x) on one grid with voxels of `spacing_mm` (z, y, x); `device` is ``cpu`` or
        ``cuda``, for engines that can use it; `watch` is told the share of the work that is done
        and says whether to go on. The displacement is (3, z, y, x) in voxels, order z, y, x:
        ``warped(p) = moving(p + u(p))``.
    module
        The top-level module that has to be there; empty if nothing but napari-jrss is needed.
    install
        What to install if it isn't there, as pip's arguments.
    broken
        Why it can't be used though it is installed; empty otherwise.
    """

    name: str
    about: str
    field: Callable[[Image, Image, Triple, str, Watch], Field]
    module: str = ""
    install: str = ""
    broken: str = ""

    @property
    def problem(self) -> str:
        """Why it can't be used, and what to install, in a line; empty if it can."""
        if self.broken:
            return f"the engine {self.name} can't be used: {self.broken}"
        if not self.module or find_spec(self.module) is not None:
            return ""
        return f"the engine {self.name} is not installed: pip install {self.install}"

    @property
    def state(self) -> str:
        """``ready``, or what to do."""
        if self.broken:
            return self.broken
        return f"pip install {self.install}" if self.problem else "ready"

    def require(self) -> None:
        """Raise an :class:`EngineError` if it can't be used."""
        if self.problem:
            raise EngineError(self.problem)

    def register(
        self,
        moving: Image,
        fixed: Image,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        *,
        device: str = "cpu",
        watch: Watch = to_the_end,
    ) -> Field:
        """The field of one pair, see :attr:`field`.

        Raises
        ------
        EngineError
            Its package is missing, or it gave no usable field.
        """
        self.require()
        z, y, x = (float(size) for size in spacing_mm)
        try:
            field = self.field(moving, fixed, (z, y, x), device, watch)
        except (JRSSError, MemoryError):
            raise
        except Exception as error:  # another package may raise any error
            raise EngineError(f"the engine {self.name} failed: {one_line(error)}") from error
        if field.shape != (3, *fixed.shape) or not np.isfinite(field).all():
            raise EngineError(f"the engine {self.name} gave no usable field for this pair")
        return np.ascontiguousarray(field, dtype=np.float32)


def engines() -> dict[str, Engine]:
    """All engines by name, ours first; whether each can be used, it says itself."""
    found = {engine.name: engine for engine in BUILT_IN}
    for entry in metadata.entry_points(group=GROUP):
        if entry.name in found:
            continue
        try:
            engine = entry.load()
            if not isinstance(engine, Engine):
                raise TypeError("it is no Engine")
        except Exception as error:  # of a package that is broken
            reason = f"{entry.value} can't be loaded ({one_line(error)})"
            engine = Engine(entry.name, entry.value, partners.refine, broken=reason)
        found[entry.name] = engine
    return found


def engine_named(name: str) -> Engine:
    """The engine of this name, ready to be used.

    Raises
    ------
    EngineError
        There is none, or its package isn't installed.
    """
    known = engines()
    if name not in known:
        hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        raise EngineError(f"unknown engine {name!r}{hint}")
    known[name].require()
    return known[name]


BUILT_IN = (
    Engine("refine", "gradient descent on local correlation, ours", partners.refine),
    Engine(
        "greedy",
        "greedy diffeomorphic registration by local correlation (PICSL)",
        partners.greedy,
        "picsl_greedy",
        '"napari-jrss[greedy]"',
    ),
    Engine(
        "ants",
        "SyN by mutual information (ANTs)",
        partners.ants_syn,
        "ants",
        '"napari-jrss[ants]"',
    ),
    Engine(
        "convexadam",
        "ConvexAdam on MIND features",
        partners.convexadam,
        "convexAdam",
        '"napari-jrss[convexadam]"',
    ),
    Engine(
        "fireants",
        "greedy diffeomorphic registration by Adam (FireANTs)",
        partners.fireants,
        "fireants",
        # It asks for an old SimpleITK, but works with ours.
        "--no-deps fireants",
    ),
)
