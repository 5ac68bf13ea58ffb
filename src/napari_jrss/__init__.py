"""Few-shot segmentation and registration of 3D medical images with a person in the loop.

The names below are loaded when they are first used, so that this import is quick.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_jrss.app.api import register, train
    from napari_jrss.app.evaluation import evaluate
    from napari_jrss.app.exporting import export_labels
    from napari_jrss.app.forecast import forecast
    from napari_jrss.app.pairs.comparison import compare_engines
    from napari_jrss.app.segmenting import segment, segment_scans
    from napari_jrss.config import TrainingConfig, preset
    from napari_jrss.errors import JRSSError
    from napari_jrss.io.volume import Volume
    from napari_jrss.project.project import Project
    from napari_jrss.sample_data import make_cohort
    from napari_jrss.widgets.viewing import view

__version__ = version("napari-jrss")
# A library is silent unless the program that uses it wants its log.
logging.getLogger(__name__).addHandler(logging.NullHandler())
__all__ = [
    "JRSSError",
    "Project",
    "TrainingConfig",
    "Volume",
    "compare_engines",
    "evaluate",
    "export_labels",
    "forecast",
    "make_cohort",
    "preset",
    "register",
    "segment",
    "segment_scans",
    "train",
    "view",
]

_MODULES = {
    "JRSSError": "errors",
    "Project": "project.project",
    "TrainingConfig": "config",
    "Volume": "io.volume",
    "compare_engines": "app.pairs.comparison",
    "evaluate": "app.evaluation",
    "export_labels": "app.exporting",
    "forecast": "app.forecast",
    "make_cohort": "sample_data",
    "preset": "config",
    "register": "app.api",
    "segment": "app.segmenting",
    "segment_scans": "app.segmenting",
    "train": "app.api",
    "view": "widgets.viewing",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
