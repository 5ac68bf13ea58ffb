"""From a folder of scans to a project: where they are, what was found, how to prepare them."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import (
    QDialog,
    QDoubleSpinBox,
    QFormLayout,
    QLineEdit,
    QListWidget,
    QSpinBox,
    QWidget,
)

from napari_jrss.app.runner import JobRunner, JobState
from napari_jrss.app.session import Session
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError, from_validation
from napari_jrss.io.dicom_layout import series_in_words
from napari_jrss.labels import LabelTable
from napari_jrss.project.importing import (
    Found,
    ScanFolders,
    groups_file_of,
    look_into,
)
from napari_jrss.widgets.bridge import Relay, failure
from napari_jrss.widgets.controls import PathField, button, choice, in_form, in_row
from napari_jrss.widgets.dialogs.choose_structures import ChooseStructures
from napari_jrss.widgets.dialogs.dialog import Dialog
from napari_jrss.widgets.dialogs.plan import PlanChoice
from napari_jrss.widgets.forms import editor, folded

_AXES = "zyx"
_ONE_IMAGE = "each case has one"
_NO_LABEL = "No scan has a label: name the structures with a CSV file."


class ImportDialog(Dialog):
    """Asks for a folder of scans, shows what is in it, and starts the import.

    It makes a project, or is `adding` scans to the open one, whose settings prepare them.
    """

    def __init__(
        self, session: Session, parent: QWidget, folder: Path | None = None, adding: bool = False
    ) -> None:
        title = "Add scans" if adding else "New project"
        super().__init__(parent, title, "Import", "Read the scans in the background (Enter)")
        self.start.setEnabled(False)
        self.setMinimumWidth(520)
        self._session, self._adding = session, adding
        self.found: Found | None = None
        self._stale = False
        self._named = False  # whether the person named the project
        self._runner = JobRunner("preview")
        self._relay = Relay(self)
        self._relay.connect(self._runner.event, self._show_found)
        self._relay.connect(self._runner.state_changed, self._preview_ended)

        self.images = PathField(
            "Folder of scans",
            "Folder of scans, DICOM too, or a folder in a known layout: images/ and labels/, "
            "labels beside scans, BIDS, TotalSegmentator, nnU-Net, the Decathlon, ...",
        )
        self.labels = PathField(
            "Folder of labels",
            "Folder of labels with the names of their scans, or of a folder of masks for each; "
            "empty: those that the layout has",
        )
        self.groups = PathField(
            "Structures",
            "Table that names the structures: CSV with the columns label, name, class_id and "
            "class_name, or as FreeSurfer, ITK-SNAP, Slicer or BIDS write it; empty: one structure "
            "for each number or name in the labels",
            "Tables (*.csv *.tsv *.txt *.ctbl *.json)",
        )
        self.choose = button(
            "Choose structures…",
            "Tick, rename, merge and colour the structures of the labels",
            self._choose_structures,
        )
        self.choose.setEnabled(False)
        self.choose.setAutoDefault(False)
        self._all_structures: LabelTable | None = None  # as they are in the labels
        self._chosen: LabelTable | None = None  # by a person
        self.project = PathField("Project folder", "A new folder for the project, <name>.jrss")
        self.shown = choice(
            "Of several images of each case: the one that is shown and registered, on whose voxels "
            "the labels lie; the segmentation sees all"
        )
        self.shown.setEnabled(False)
        self.shown.addItem(_ONE_IMAGE)
        self.shown.activated.connect(lambda _: self._look())
        self.series = QLineEdit(
            placeholderText="T1=*mprage*, FLAIR=*tirm*",
            toolTip="Of DICOM: the images of a case, which are series of one study. Each is a name "
            "that the series' description holds, or a name and a pattern of the description; the "
            "first is registered. Empty: each series is a case",
        )
        self.series.setEnabled(False)
        self.studies = QListWidget(toolTip="Series and studies of the folder, and what is left out")
        self.studies.setMaximumHeight(130)
        self.studies.hide()
        self._without_names: list[str] = []  # the series, while no images of a study were named
        rows = {"Scans": self.images, "Labels": self.labels, "DICOM series": self.series}
        if not adding:
            rows |= {"Structures": self.groups, "": self.choose}
            rows |= {"Shown image": self.shown, "Project": self.project}
        self.plan = PlanChoice()
        self.preparation = Preparation()
        advanced = folded("Grid and alignment")
        advanced.addWidget(self.preparation)
        advanced.setToolTip("How scans are resampled to the grid that all cases of a project share")
        self.message.setText("Choose a folder of scans.")
        self.message.setMinimumHeight(90)
        self.message.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.lay_out(in_form(rows), self.studies, *(() if adding else (self.plan, advanced)))

        # Typing a path shouldn't read the disk at every letter.
        self._soon = QTimer(self, singleShot=True, interval=250)
        self._soon.timeout.connect(self._look)
        self.images.changed.connect(self._folder_changed)
        self.project.edit.textEdited.connect(self._name_given)
        for field in (self.images, self.labels, self.groups):
            field.changed.connect(self._forget_structures)
            field.changed.connect(self._soon.start)
        self.preparation.changed.connect(self._soon.start)
        self.series.textEdited.connect(lambda _: self._soon.start())
        if folder is not None:
            self.images.set_path(folder)

    def accept(self) -> None:
        """Start the import; if that fails, the reason is shown and the dialog stays."""
        found, project = self.found, self.project.path()
        if found is None:
            return
        with self.reporting():
            if self._adding:
                self._session.cohort.add(found.cohort)
            elif project is None:
                raise ProjectError("Choose a folder for the project.")
            else:
                plan = self.plan.plan
                config = self.preparation.config() if plan is None else plan.preprocessing
                table = found.require_table()
                self._session.make_project(project, found.cohort, table, config, plan)
            super().accept()

    def done(self, result: int) -> None:
        """Stop looking, however the dialog ends."""
        self._soon.stop()
        self._relay.disconnect_all()
        self._runner.cancel()
        super().done(result)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Closing the window is cancelling."""
        self.done(int(QDialog.DialogCode.Rejected))
        super().closeEvent(event)

    def _name_given(self) -> None:
        self._named = bool(self.project.edit.text().strip())

    def _folder_changed(self) -> None:
        folder = self.images.path()
        self._show_images(())
        self.series.clear()
        self.series.setEnabled(False)
        self._show_series([])
        if folder is not None and folder.is_dir():
            self.groups.set_path(groups_file_of(folder))
            if not self._named:
                name = folder.parent.name if folder.name == "images" else folder.name
                self.project.set_path(folder.parent / f"{name}.jrss")
        self._soon.start()

    def _look(self) -> None:
        """Look into the folder, once the look before it has ended."""
        self.found = None
        self.start.setEnabled(False)
        self.plan.show_plans({})
        if self._runner.state.busy:
            self._stale = True
            self._runner.cancel()
            return
        self._stale = False
        images = self.images.path()
        if images is None:
            self.message.setText("Choose a folder of scans.")
            return
        try:
            wishes = None if self._adding else self.preparation.config()
        except ValidationError as error:
            self.message.setText(from_validation(error))
            return
        groups = None if self._adding else self.groups.path()
        folders = ScanFolders(images, self.labels.path(), groups, channels=self._channels())
        self.message.setText("Looking …")
        chosen = self._chosen
        self._runner.start(lambda cancel: look_into(folders, wishes, cancel, table=chosen))

    def _channels(self) -> tuple[str, ...]:
        """The images that each case has to have, the one that is shown first; none: any."""
        wishes = tuple(part.strip() for part in self.series.text().split(",") if part.strip())
        named = {wish.partition("=")[0].strip(): wish for wish in wishes}
        if self._adding:
            return wishes or self._session.workspace.open_project.channels
        names = [self.shown.itemText(i) for i in range(self.shown.count())]
        if wishes and (len(named) < len(wishes) or set(named) != set(names)):
            return wishes
        if names == [_ONE_IMAGE]:
            return ()
        first = self.shown.currentText()
        ordered = (first, *(name for name in names if name != first))
        return tuple(named.get(name, name) for name in ordered)

    def _show_images(self, names: Sequence[str]) -> None:
        """Offer the images of each case, if they aren't offered already."""
        offered = [self.shown.itemText(i) for i in range(self.shown.count())]
        if set(offered) != set(names or [_ONE_IMAGE]):
            self.shown.clear()
            self.shown.addItems(names or [_ONE_IMAGE])
        self.shown.setEnabled(bool(names))

    def _show_found(self, found: Found) -> None:
        from napari_jrss.io.dicom import most_telling

        if self._stale:
            return
        scans = len(found.cohort.cases)
        lines = [f"{scans} scan{'s'[: scans != 1]}, {found.labelled} with a label"]
        if found.cohort.layout != "plain":
            lines[0] += f" (layout: {found.cohort.layout})"
        self._show_images(found.cohort.channels)
        self.series.setEnabled(found.cohort.layout == "dicom")
        if found.cohort.channels:
            lines.append(f"Images of each case: {', '.join(found.cohort.channels)}")
        if found.cohort.unmatched_labels:
            names = ", ".join(path.name for path in found.cohort.unmatched_labels[:3])
            lines.append(f"{len(found.cohort.unmatched_labels)} labels without a scan: {names}")
        left = found.cohort.left_out
        self.message.setToolTip("\n".join(f"{each.what}: {each.reason}" for each in left))
        images = self.images.path()
        if self.series.isEnabled() and images is not None:
            series = series_in_words(found.cohort, images)
            if not found.cohort.channels:
                self._without_names = series
            self._show_series([*series, *(f"Left out: {e.what}: {e.reason}" for e in left)])
        first = most_telling(left)
        if first is not None:
            more = f"; {len(left) - 1} more, see the tooltip" if len(left) > 1 else ""
            lines.append(f"Left out: {first.what}: {first.reason}{more}")
        if self._adding:
            self.found = found if found.complete else None
        elif found.table is not None:
            names = found.table.names[1:]
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            count = f"{len(names)} structure{'s'[: len(names) != 1]}"
            lines.append(f"{count}: {', '.join(names[:12])}{more}")
            self.found = found if found.complete else None
            self._all_structures = self._all_structures or found.table
            self.choose.setEnabled(True)
        elif not found.labelled:
            lines.append(_NO_LABEL)
        else:
            lines.append("Reading the numbers in the labels …")
        if found.looked and not found.complete:
            lines.append(f"Looking at scan {found.looked} of {scans} …")
        self.plan.show_plans(found.plans)
        self.message.setText("\n".join(lines))
        self.start.setEnabled(self.found is not None)

    def _show_series(self, lines: Sequence[str]) -> None:
        self.studies.clear()
        self.studies.addItems(lines)
        self.studies.setVisible(bool(lines))

    def _forget_structures(self) -> None:
        self._all_structures = self._chosen = None
        self.choose.setEnabled(False)

    def _choose_structures(self) -> None:
        found = self._all_structures
        if found is not None:
            ChooseStructures(found, self._chosen or found, self._use_structures, self).open()

    def _use_structures(self, table: LabelTable) -> None:
        self._chosen = table
        self._look()

    def _preview_ended(self, state: JobState) -> None:
        if self._stale and not state.busy:
            self._look()
        elif why := failure(state, self._runner):
            self.message.setText(why)
            if self.series.isEnabled():  # what there is to name
                self._show_series(self._without_names)


class Preparation(QWidget):
    """How scans are resampled to the training grid: the settings that people change most."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        fields = PreprocessingConfig.model_fields
        form = QFormLayout(self)
        self.spacing = [QDoubleSpinBox(maximum=50, decimals=2, singleStep=0.5) for _ in _AXES]
        self.shape = [QSpinBox(maximum=1024, singleStep=8) for _ in _AXES]
        for name, boxes in (("spacing_mm", self.spacing), ("shape", self.shape)):
            for axis, box in zip(_AXES, boxes, strict=True):
                box.setSpecialValueText("auto")
                box.setPrefix(f"{axis} ")
                box.setToolTip(fields[name].description)
                box.valueChanged.connect(self.changed)
            form.addRow(fields[name].title, in_row(*boxes))
        self.crop, self.prealign = editor(fields["crop"]), editor(fields["prealign"])
        for name, each in (("crop", self.crop), ("prealign", self.prealign)):
            each.changed.connect(lambda _: self.changed.emit())
            form.addRow(fields[name].title, each.widget)

    def config(self) -> PreprocessingConfig:
        """The settings that were changed; pydantic's ValidationError if they are invalid."""
        given: dict[str, object] = {}
        for name, boxes in (("spacing_mm", self.spacing), ("shape", self.shape)):
            values = [box.value() or None for box in boxes]
            if any(values):
                given[name] = values
        for name, each in (("crop", self.crop), ("prealign", self.prealign)):
            if each.get() != PreprocessingConfig.model_fields[name].default:
                given[name] = each.get()
        return PreprocessingConfig.model_validate(given)
