"""The folder of a project: how it is made and opened, its paths, its grid and its structures."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter, ValidationError

from napari_jrss import __version__
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError, did_you_mean, from_os_error, from_validation
from napari_jrss.io.atomic import new_folder, sweep
from napari_jrss.io.ome_zarr_writer import SUFFIX
from napari_jrss.labels import LabelClass, LabelTable
from napari_jrss.logs import ProjectLog, log_error, versions
from napari_jrss.preprocess.plan import Plan
from napari_jrss.preprocess.transform import TrainingGrid
from napari_jrss.project.database import Ledger
from napari_jrss.project.lock import WriterLock, holder

LEDGER = "project.sqlite"
LOCK = "project.lock"
CASES = "cases"
ROUNDS = "rounds"
REFERENCE = "reference.nii.gz"
LEFTOVERS = "leftovers"
CORRECTIONS = "journal"
CORRECTIONS_SUFFIX = ".sqlite"
DRAFTS = "drafts"

_logger = logging.getLogger(__name__)

# The folder of cases of the first plan, and of later ones.
_CASES = re.compile(rf"{CASES}(?:-[1-9][0-9]*)?")
_CASE_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)


_Names = TypeAdapter(tuple[str, ...])


class ProjectFolder:
    """One project folder, open; see :class:`~napari_jrss.project.project.Project`."""

    def __init__(self, path: Path, ledger: Ledger, lock: WriterLock | None) -> None:
        self.path = path
        self._ledger = ledger
        self._lock = lock
        self._log: ProjectLog | None = None
        self.read_only = ledger.read_only
        self._load()

    def _load(self) -> None:
        """Take in what the ledger says of the structures and of the plan."""
        path, ledger = self.path, self._ledger
        try:
            self.table = LabelTable.model_validate_json(ledger.setting("label_table") or "")
            self.preprocessing = PreprocessingConfig.model_validate_json(
                ledger.setting("preprocessing") or ""
            )
            plan = ledger.setting("plan")
            self.plan = None if plan is None else Plan.model_validate_json(plan)
            self._cases = ledger.setting("cases_folder") or ""
            if not _CASES.fullmatch(self._cases):
                raise ValueError(f"{self._cases[:100]!r} can't be the folder of cases")
            self.channels = _Names.validate_json(ledger.setting("channels") or "")
        except (ValidationError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ProjectError(f"{path / LEDGER}: unreadable settings ({reason})") from error

    @property
    def inputs(self) -> int:
        """Number of images of each case."""
        return max(1, len(self.channels))

    @property
    def writer(self) -> str:
        """Which other program writes, see :func:`~napari_jrss.project.lock.holder`."""
        return "" if self._lock is not None else holder(self.path / LOCK)

    # -- open and close

    @classmethod
    def create(
        cls,
        path: str | Path,
        table: LabelTable,
        preprocessing: PreprocessingConfig,
        plan: Plan | None = None,
        channels: Sequence[str] = (),
    ) -> Self:
        """Make an empty project and open it for writing.

        Parameters
        ----------
        path
            The new folder, usually ``<name>.jrss``.
        table
            Names and colours of the classes.
        preprocessing
            How scans reach the training grid.
        plan
            Why so, and what the training costs; it is kept with the project.
        channels
            Names of the images that each case has, the one that is shown and registered first;
            none: each has one.

        Raises
        ------
        ProjectError
            There is something at this path already, there is no folder for it, or it can't be
            written.
        """
        path = Path(path).absolute()
        if not path.parent.is_dir():
            near = next(each for each in path.parents if each.is_dir())
            names = (each.name for each in near.iterdir() if each.is_dir())
            hint = did_you_mean(path.relative_to(near).parts[0], names)
            raise ProjectError(f"{path.parent}: no such folder for the project{hint}")
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise ProjectError(f"{path}: exists already")
        try:
            with new_folder(path) as folder:
                folder.mkdir()
                (folder / CASES).mkdir()
                (folder / ROUNDS).mkdir()
                Ledger.create(
                    folder / LEDGER,
                    table.model_dump_json(),
                    preprocessing.model_dump_json(),
                    __version__,
                    None if plan is None else plan.model_dump_json(exclude_unset=True),
                    json.dumps(channels),
                )
                if path.exists():
                    path.rmdir()
        except OSError as error:
            raise ProjectError(f"{path}: can't be made ({from_os_error(error)})") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, read_only: bool = False) -> Self:
        """Open a project.

        Parameters
        ----------
        path
            Its folder, which may have been moved.
        read_only
            Only look; possible while another program writes.

        Raises
        ------
        ProjectError
            It is no project, damaged, made by a newer version, or open for writing in another
            program (the message says in which and since when).
        """
        path = Path(path).absolute()
        if not path.exists():
            around = path.parent.iterdir() if path.parent.is_dir() else ()
            hint = did_you_mean(path.name, (each.name for each in around))
            raise ProjectError(f"{path}: no such folder{hint}")
        if not (path / LEDGER).is_file():
            raise ProjectError(f"{path}: not a project (it has no {LEDGER})")
        lock = None if read_only else WriterLock(path / LOCK)
        try:
            ledger = Ledger(path / LEDGER, read_only)
            try:
                project = cls(path, ledger, lock)
            except BaseException:
                ledger.close()
                raise
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if not read_only:
            # What a killed program was still writing.
            for folder in (path, project.cases_path, project._inside(CORRECTIONS)):
                sweep(folder)
            project._remove_other_cases()
            project._log = ProjectLog(path)
            _logger.info("opened %s; %s", path.name, versions())
        return project

    def close(self) -> None:
        """Close the ledger and free the lock; safe to call again."""
        self._ledger.close()
        if self._log is not None:
            _logger.info("closed %s", self.path.name)
            self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.release()

    def _inside(self, *parts: str) -> Path:
        """A path below the project, none of whose folders is a link that leads elsewhere."""
        path = self.path
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise ProjectError(f"{path}: a symbolic link, which a project doesn't follow")
        return path

    def check_writable(self) -> None:
        """Raise :class:`ProjectError` if the project is open read-only."""
        if self.read_only:
            raise ProjectError(f"{self.path}: is open read-only")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            log_error(_logger, "ended early", error)
        self.close()

    # -- paths

    @property
    def cases_path(self) -> Path:
        """The folder with the cases on the present training grid."""
        return self._inside(self._cases)

    def _remove_other_cases(self) -> None:
        """Remove the cases of another plan, which a killed change of the plan left."""
        for folder in self.path.glob(f"{CASES}*"):
            if _CASES.fullmatch(folder.name) and folder.name != self._cases:
                shutil.rmtree(folder)

    def case_path(self, case_id: str) -> Path:
        """The OME-Zarr folder of a case, inside the project whatever the id says.

        A :class:`ProjectError` if the id can't name a folder, or a link leads out of the project.
        """
        check_case_id(case_id)
        name = f"{case_id}{SUFFIX}"
        for part in ("labels", "scan", "channels"):
            self._inside(self._cases, name, part)
        return self._inside(self._cases, name)

    def corrections_path(self, case_id: str, suffix: str = CORRECTIONS_SUFFIX) -> Path:
        """The file with the corrections of a case under way, which need not be there."""
        check_case_id(case_id)
        return self._inside(CORRECTIONS, f"{case_id}{suffix}")

    def drafts_path(self, case_id: str) -> Path:
        """The folder with other programs' drafts of a case, which need not be there."""
        check_case_id(case_id)
        return self._inside(DRAFTS, case_id)

    @property
    def grid(self) -> TrainingGrid:
        """The training grid that all cases share; a ProjectError before scans were added."""
        text = self._ledger.setting("grid")
        if text is None:
            raise ProjectError(f"{self.path}: has no training grid yet; add scans first")
        try:
            grid = TrainingGrid.model_validate_json(text)
            if grid.reference is not None:
                grid = grid.model_copy(update={"reference": self.path / grid.reference})
            return grid
        except ValidationError as error:
            reason = " ".join(str(error).split())
            raise ProjectError(f"{self.path / LEDGER}: unreadable grid ({reason})") from error

    # -- structures

    def rename_structure(self, index: int, name: str, author: str | None = None) -> None:
        """Give a structure another name; its index and the ids of the files stay.

        A :class:`ProjectError` if there is no such structure, or the name is empty or belongs to
        another.
        """
        name = " ".join(name.split())
        if name in (c.name for c in self.table.classes if c.index != index):
            raise ProjectError(f"{self.path}: another structure is named {name!r}")
        before = self.table.classes[index] if 0 < index < len(self.table.classes) else None
        names = () if before is None else (*before.source_names, before.name)
        kept = tuple(dict.fromkeys(each for each in names if each != name))
        self._change_structure(index, author, name=name, source_names=kept)

    def recolour_structure(self, index: int, colour: str, author: str | None = None) -> None:
        """Give a structure another colour, #rrggbb; a :class:`ProjectError` if it is none."""
        self._change_structure(index, author, colour=colour.lower())

    def _change_structure(self, index: int, author: str | None, **changes: object) -> None:
        if not 1 <= index < len(self.table.classes):
            raise ProjectError(f"{self.path}: has no structure {index}")
        classes = list(self.table.classes)
        before = classes[index]
        try:
            after = LabelClass.model_validate({**before.model_dump(), **changes})
        except ValidationError as error:
            reason = from_validation(error)
            raise ProjectError(f"{self.path}: structure {before.name}: {reason}") from error
        if after == before:
            return
        classes[index] = after
        table = self.table.model_copy(update={"classes": tuple(classes)})
        detail = f"{index}: {before.name} {before.colour} -> {after.name} {after.colour}"
        self._ledger.set_label_table(table.model_dump_json(), author, detail)
        self.table = table


def check_case_id(case_id: str) -> None:
    """Raise :class:`ProjectError` unless a case id can name a folder on every system."""
    if not _CASE_ID.fullmatch(case_id) or _RESERVED.fullmatch(case_id):
        raise ProjectError(
            f"{case_id[:120]!r} can't be a case id: letters, digits, dot, dash and underscore, "
            "at most 100, a letter or digit first, no dot last"
        )
