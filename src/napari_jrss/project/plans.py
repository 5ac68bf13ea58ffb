"""The plan of a project: proposed for its cases and this machine, and changed."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError, one_line
from napari_jrss.geometry import Triple, rows, whole_box
from napari_jrss.pool import Workers, in_processes
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.cost import this_machine
from napari_jrss.preprocess.facts import ScanFacts, gather, some_of
from napari_jrss.preprocess.pipeline import grid_on_box
from napari_jrss.preprocess.plan import Level, Plan, make_plans
from napari_jrss.preprocess.regrid import case_facts, regrid_case
from napari_jrss.preprocess.transform import TrainingGrid
from napari_jrss.project.folder import CASES, REFERENCE
from napari_jrss.project.relocate import ProjectSources

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseMoved:
    """A case is on the new grid: number `done` of `total`."""

    done: int
    total: int
    case_id: str


class ProjectPlans(ProjectSources):
    """The plan of a project; see :class:`~napari_jrss.project.project.Project`."""

    @property
    def wishes(self) -> PreprocessingConfig:
        """Settings of the training grid that a person gave, and that a new plan keeps."""
        if self.plan is not None:
            return self.plan.wishes
        given = self.preprocessing.model_dump(exclude={"spacing_mm", "shape"})
        return PreprocessingConfig.model_validate(given)

    def propose_plans(
        self, budget_s: float | None = None, wishes: PreprocessingConfig | None = None
    ) -> dict[Level, Plan]:
        """The plan of each level for the cases and labels of today, and for this machine.

        Parameters
        ----------
        budget_s
            Seconds for the pre-training and a round; there is only one plan then.
        wishes
            Settings of the training grid to keep; None: those that the project was made with.
        """
        if wishes is None:
            wishes = self.wishes
        facts, machine, grid = self._facts(), this_machine(), self.grid
        extent: Triple | None = None
        if grid.affine is not None:  # all scans lie in one frame, which stays
            z, y, x = (n * s for n, s in zip(grid.shape, grid.spacing_mm, strict=True))
            extent = z, y, x
        return make_plans(facts, self.table, machine, wishes, budget_s, extent, images=self.inputs)

    def change_plan(
        self, plan: Plan, author: str | None = None, workers: Workers = None
    ) -> Iterator[CaseMoved]:
        """Bring all cases to the grid of another plan; labels, history and decisions stay.

        The scans are those that the project holds. Until the last case is done, and if anything
        fails, the project follows its former plan. The teacher, which was trained on another grid,
        is no longer in force then.

        Raises
        ------
        ProjectError
            The project is read-only, has no cases, a case can't be brought to the new grid, or the
            scans were aligned to each other and would get another frame.
        """
        self.check_writable()
        names = [case.case_id for case in self.cases()]
        if not names:
            raise ProjectError(f"{self.path}: has no cases yet, so nothing to plan for")
        self._carry_labels_to_scans(names)
        grid = self._grid_of(plan)
        plan = plan.model_copy(update={"shape": grid.shape})
        number = int(self._cases.partition("-")[2] or 1) + 1
        folder = self._inside(f"{CASES}-{number}")
        one = partial(
            regrid_case,
            old=self.cases_path,
            new=folder,
            config=plan.preprocessing,
            grid=grid,
            table=self.table,
        )
        try:
            for done, (name, error) in enumerate(in_processes(one, names, workers), start=1):
                if isinstance(error, Exception):
                    raise ProjectError(f"{name}: {one_line(error)}; the plan stays as it was")
                yield CaseMoved(done, len(names), name)
            if grid.reference is not None:  # relative to the project, which may be moved
                grid = grid.model_copy(update={"reference": Path(REFERENCE)})
            self._ledger.change_plan(
                plan.preprocessing.model_dump_json(),
                grid.model_dump_json(),
                plan.model_dump_json(exclude_unset=True),
                folder.name,
                author,
                plan.line(),
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._load()
        self._remove_other_cases()
        _logger.info("the plan is %s", plan.line())

    def _grid_of(self, plan: Plan) -> TrainingGrid:
        """The grid that a plan leads to: that of each scan, or the frame that all scans share."""
        old, config = self.grid, plan.preprocessing
        if config.resize or self.preprocessing.resize:
            raise ProjectError(
                f"{self.path}: scans that are resized to the grid have no other plan"
            )
        if old.affine is None and config.prealign == "none" and config.crop != "labelled":
            return TrainingGrid(shape=plan.shape, spacing_mm=plan.spacing_mm)
        before = self.preprocessing
        if old.affine is None or (config.prealign, config.crop) != (before.prealign, before.crop):
            raise ProjectError(f"{self.path}: alignment and crop are chosen when a project is made")
        shape = plan.preprocessing.shape or plan.shape
        finer = grid_on_box(whole_box(old.shape), old.spacing_mm, shape, plan.spacing_mm)
        return TrainingGrid(
            shape=shape,
            spacing_mm=plan.spacing_mm,
            affine=rows(np.array(old.affine) @ finer),
            reference=old.reference,
        )

    def _facts(self) -> list[ScanFacts]:
        """Of the cases, by their labels of today."""
        cases = self.cases()
        if not cases:
            raise ProjectError(f"{self.path}: has no cases yet, so nothing to plan for")
        known = {(v.case_id, v.version) for v in self._ledger.versions() if v.scan_sha256}
        labels = {
            case.case_id: case.label_version
            for case in cases
            if (case.case_id, case.label_version) in known
        }
        names = [case.case_id for case in cases]
        read = {*labels, *some_of(names)}
        one = partial(case_facts, folder=self.cases_path, labels=labels, read=read)
        about = [self.attributes(name).transform for name in names]
        voxels = sum(math.prod(each.source_shape) for each in about)
        return [fact for fact in gather(one, names, voxels) if fact is not None]

    def _carry_labels_to_scans(self, names: Sequence[str]) -> None:
        """Give each label of an older project that has none its voxels of the scan."""
        for name in names:
            path = self.case_path(name)
            for label in self.label_versions(name):
                array = self.scan_label(name, label.version)
                now = next(v for v in self.label_versions(name) if v.version == label.version)
                if now.scan_sha256 is None:  # its file is gone: what the former grid holds counts
                    store.add_to_scan(path, label.version, array, self.table)
                    self._ledger.add_scan_label(name, label.version, store.fingerprint(array))
            self.scan_image(name)  # kept with the case, where it wasn't yet
