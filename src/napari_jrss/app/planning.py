"""The plan of a project as a person asks for it, and as a training follows it."""

from __future__ import annotations

from collections.abc import Generator

from napari_jrss.app.rounds.train import interrupted_round, leave_series, rounds_left
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.pool import Workers
from napari_jrss.preprocess.plan import Level, Plan, budget_seconds
from napari_jrss.progress_bar import counting, long_call
from napari_jrss.project.corrections import unsaved
from napari_jrss.project.plans import CaseMoved
from napari_jrss.project.project import Project


def propose(
    project: Project, budget: str | None = None, wishes: PreprocessingConfig | None = None
) -> dict[Level, Plan]:
    """The plan of each level, or the one for a budget such as ``3h``.

    `wishes` are settings of the training grid that replace those that the project was made with.
    """
    changed = {} if wishes is None else wishes.model_dump(exclude_unset=True)
    kept = project.wishes.model_dump(exclude_unset=True)
    return project.propose_plans(
        None if budget is None else budget_seconds(budget),
        PreprocessingConfig.model_validate({**kept, **changed}),
    )


@long_call(lambda *_, **__: counting("moving cases"))
def change_plan(
    project: Project, plan: Plan, author: str | None = None, *, workers: Workers = None
) -> Generator[CaseMoved, None, None]:
    """Let a project follow another plan: its cases are brought to the new training grid.

    Labels, history and decisions stay. Interrupted rounds are left, and the next training begins
    with a pre-training, as the teacher was trained on another grid. If anything fails, the project
    follows its former plan. ``change_plan.events(...)`` yields a :class:`CaseMoved` for each case.

    Parameters
    ----------
    project
        Open for writing.
    plan
        One of :func:`propose`.
    author
        Who changed it, for the history.
    workers
        Processes; None: one per core.

    Raises
    ------
    ProjectError
        Corrections are under way, or a case can't be brought to the new grid.
    """
    project.check_writable()
    if waiting := unsaved(project):
        raise ProjectError(
            f"{project.path}: corrections of {waiting[0].case_id} are neither accepted nor "
            "discarded (recover)"
        )
    yield from project.change_plan(plan, author, workers)
    if interrupted_round(project) is not None or rounds_left(project) > 0:
        leave_series(project)
