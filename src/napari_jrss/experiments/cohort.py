"""The cases of an experiment: read in once, then divided for each N and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from napari_jrss.experiments.protocol import DataSet, Protocol, ProtocolError, Run
from napari_jrss.io.layouts import read_case_groups
from napari_jrss.project.importing import Found, ScanFolders, look_into
from napari_jrss.project.project import Project
from napari_jrss.project.records import Split
from napari_jrss.project.split import Assignment, split_by_group
from napari_jrss.sample_data import make_cohort
from napari_jrss.snapshot import CachedArrays, CohortSnapshot, Label

COHORT = "cohort.jrss"


def prepare_cohort(protocol: Protocol, out: Path, runs: Sequence[Run]) -> Path:
    """The experiment's project with all cases, made in `out` unless it is there or was given.

    Every split that the runs want is tried before a scan is read, and again on what could be.
    Raises a ``JRSSError`` of one line where there are fewer cases or labels, or a scan can't be
    read.
    """
    if protocol.data.project is not None:
        path = protocol.data.project
    else:
        path = out / COHORT
        with TemporaryDirectory() as folder:  # of synthetic scans
            _read_in(protocol, path, discover_data(protocol.data, Path(folder)), runs)
    with Project.open(path, read_only=True) as project:
        for run in runs:
            assign(protocol, run, project)
    return path


def assign(protocol: Protocol, run: Run, project: Project) -> Assignment:
    """Which cases train, validate and test in a run, and which N are labelled.

    A project that was given and is split already keeps its sides; only N is taken anew. Evaluating
    needs two test cases with labels; fewer are a :class:`ProtocolError`.
    """
    cases = project.cases()
    with_label = {c.case_id for c in cases if c.label_version}
    if protocol.data.project is not None and any(c.split is Split.TEST for c in cases):
        training = {c.case_id: c.group for c in cases if c.split is Split.TRAIN}
        validation, test = (
            tuple(sorted(with_label & {c.case_id for c in cases if c.split is side}))
            for side in (Split.VALIDATION, Split.TEST)
        )
        dealt = _deal(protocol, run, training, with_label, all_train=True)
        dealt = replace(dealt, validation=validation, test=test, unused=())
    else:
        dealt = _deal(protocol, run, {c.case_id: c.group for c in cases}, with_label)
    if len(dealt.test) < 2:
        raise ProtocolError(
            f"evaluating needs two test cases with labels, and there are {len(dealt.test)}"
        )
    return dealt


def snapshot_of(dealt: Assignment, project: Project) -> CohortSnapshot:
    """What a run may train on; it can't read the labels of any other case.

    Of several images of a case all methods see the first, so that they can be compared.
    """
    versions = {
        case: str(project.case(case).label_version) for case in (*dealt.labelled, *dealt.validation)
    }

    def known_label(case: str) -> Label:
        return project.label(case, versions[case])

    grid = project.grid
    return CohortSnapshot(
        class_names=project.table.names,
        spacing_mm=grid.spacing_mm,
        shape=grid.shape,
        labelled=dealt.labelled,
        unlabelled=tuple(sorted(set(dealt.train) - set(dealt.labelled))),
        validation=dealt.validation,
        label_versions=versions,
        arrays=CachedArrays(project.image, known_label),
    )


def subjects_of(data: DataSet, found: Found) -> dict[str, str | None]:
    """The subject of each scan that was found; None for a subject with one scan alone."""
    names = [case.case_id for case in found.cohort.cases]
    groups: dict[str, str | None] = dict.fromkeys(names)
    groups |= found.cohort.groups
    if data.subjects is not None:
        file, _, column = data.subjects.rpartition(":")
        groups |= read_case_groups(Path(file), column, names)
    return groups


def _deal(
    protocol: Protocol,
    run: Run,
    groups: dict[str, str | None],
    with_label: set[str],
    all_train: bool = False,
) -> Assignment:
    sizes = protocol.split
    return split_by_group(
        groups,
        with_label,
        labelled=run.labelled,
        validation=0 if all_train else sizes.validation,
        test=0 if all_train else sizes.test,
        training=None if all_train else sizes.training,
        seed=run.seed if sizes.seed is None else sizes.seed,
    )


def _read_in(protocol: Protocol, path: Path, found: Found, runs: Sequence[Run]) -> None:
    data, cases = protocol.data, found.cohort.cases
    groups = subjects_of(data, found)
    with_label = {case.case_id for case in cases if case.label is not None}
    for run in runs:
        _deal(protocol, run, groups, with_label)
    there: set[str] = set()
    if path.exists():
        with Project.open(path, read_only=True) as project:
            there = {case.case_id for case in project.cases()}
    wanted = [case for case in cases if case.case_id not in there]
    if not wanted:
        return  # without the lock, so that two experiments may go on in one folder
    if path.exists():
        opened = Project.open(path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        channels = found.cohort.channels
        opened = Project.create(path, found.require_table(), data.preprocessing, channels=channels)
    with opened as project:
        for result in project.add_cases(wanted, groups=groups):
            if not result.ok:
                raise ProtocolError(f"{result.case_id}: {result.reason}")
            if result.case_id in with_label and not result.labelled:
                raise ProtocolError(f"{result.case_id}: {'; '.join(result.notes)}")


def discover_data(data: DataSet, place: Path) -> Found:
    """Look into the folders of a data set; synthetic scans are made in `place`."""
    if data.synthetic is not None:
        wanted = data.synthetic
        folder = make_cohort(place, wanted.cases, wanted.shape, wanted.seed, wanted.structures)
        folders = ScanFolders(folder / "images", folder / "labels", folder / "groups.csv")
    else:
        images = data.images or data.folder
        assert images is not None
        folders = ScanFolders(images, data.labels, data.groups)
    *_, found = look_into(folders)
    if not found.labelled:
        raise ProtocolError("no scan of the data set has a label, which evaluating needs")
    return found
