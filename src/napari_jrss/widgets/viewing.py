"""A project in a napari viewer, from a script or a notebook."""

import napari
from napari.viewer import Viewer

from napari_jrss.project.project import Project
from napari_jrss.widgets.contributions import dock_of


def view(project: Project, case_id: str | None = None, *, block: bool = True) -> Viewer:
    """Show a project in a napari viewer with the JRSS dock, as ``Plugins > JRSS`` does.

    What is corrected and accepted there is in the project afterwards. The project stays open
    when the window is closed.

    Parameters
    ----------
    project
        Open for writing, or read-only for looking only.
    case_id
        Case to open for review; None: the viewer begins with the table of cases.
    block
        Whether the call returns when the window is closed. In IPython with ``%gui qt`` it
        returns at once in any case.

    Returns
    -------
    napari.Viewer
        The viewer.

    Raises
    ------
    ProjectError
        There is no such case.
    """
    if case_id is not None:
        project.case(case_id)
    viewer = Viewer(title=project.path.name)
    session = dock_of(viewer).session
    session.adopt(project, keep_open=True)
    if case_id is not None:
        session.review.open(case_id)
    if block:
        napari.run()
    return viewer
