"""The teacher at work on a scan that lies in memory, on the scan's own grid."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_jrss.data.labels import LabelTable
from napari_jrss.data.preprocess import preprocess
from napari_jrss.data.volume import Volume
from napari_jrss.project.errors import ProjectError
from napari_jrss.session.inference import mean_confidence
from napari_jrss.session.training import teacher_warning

if TYPE_CHECKING:
    from napari_jrss.session.session import Session


@dataclass(frozen=True, eq=False)
class VolumeSegmented:
    """A scan's label is there.

    Attributes
    ----------
    name
        As it was given.
    label
        Class indices (z, y, x) on the scan's own grid.
    table
        The classes.
    mean_confidence
        Mean probability of the structures' voxels, 0 to 1; None where there are none.
    warning
        What to know of the teacher before the label is trusted; empty for nothing.
    """

    name: str
    label: NDArray[np.integer]
    table: LabelTable
    mean_confidence: float | None
    warning: str


def segment_volume(session: Session, volume: Volume, name: str) -> None:
    """Segment a scan with the current teacher in the background; nothing is written.

    The result is an event of ``session.inference``, a :class:`VolumeSegmented`.

    Parameters
    ----------
    session
        With a project that has a teacher.
    volume
        The scan, in any orientation.
    name
        Comes back with the result.

    Raises
    ------
    ProjectError
        No project is open, or it has no teacher.
    BusyError
        Another short job is under way.
    """
    project = session.open_project
    teacher = project.teacher
    if teacher is None:
        raise ProjectError(f"{project.path}: has no teacher yet; train it first")
    device = session.device

    def work(cancel: threading.Event) -> Iterator[VolumeSegmented]:
        from napari_jrss.engine.device import make_fabric
        from napari_jrss.engine.predict import predict_case
        from napari_jrss.session.networks import load_teacher

        torch_device = make_fabric(device).device
        ready = preprocess(volume, None, project.preprocessing, project.grid)
        if cancel.is_set():
            return
        prediction = predict_case(load_teacher(teacher, torch_device), ready.image, torch_device)
        yield VolumeSegmented(
            name,
            ready.chain.label_to_source(prediction.label),
            project.table,
            mean_confidence(prediction, ready.chain),
            teacher_warning(project),
        )

    session.inference.start(work)
