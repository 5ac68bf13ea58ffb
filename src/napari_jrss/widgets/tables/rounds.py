"""The rounds of a project as a table: where each came from, what it reached, which teaches."""

from collections.abc import Sequence

from qtpy.QtWidgets import QTableWidgetItem

from napari_jrss.app.rounds.control import RoundRow
from napari_jrss.project.records import RoundOutcome
from napari_jrss.times import local_time
from napari_jrss.widgets.tables.rows import RIGHT, RowTable

_COLUMNS = {
    "Round": "Number of the round; bold: its teacher is the one in use",
    "From": "The round whose teacher this round started from",
    "Outcome": "How the round ended",
    "Labels": "Number of labelled training cases (the paper's N)",
    "Drafts": "Number of unlabelled cases whose draft was sure enough to train on (pseudo-labels)",
    "Seg.": "Mean Dice of the segmentation on the validation cases, 0 to 1; (!): some structures "
    "are not learned yet, see the tooltip of the row",
    "Reg.": "Mean Dice of the registration on the validation pairs, 0 to 1",
    "Settings": "Preset, confidence threshold (tau), and seed of what is random; of a quick round, "
    "the accepted cases that it learned from",
}
_TEXTS = ("Outcome", "Settings")  # the other columns are numbers


class RoundsTable(RowTable):
    """One row per round, the latest first."""

    def __init__(self) -> None:
        super().__init__(_COLUMNS, stretch=len(_COLUMNS) - 1)
        self.setWordWrap(False)
        self.setMinimumHeight(120)
        self._rows: Sequence[RoundRow] = ()

    @property
    def chosen(self) -> int | None:
        """Number of the selected round, if its teacher could be used instead of the present one."""
        rows = self.selectionModel().selectedRows()
        row = self._rows[rows[0].row()] if rows else None
        if row is None or row.outcome is not RoundOutcome.FINISHED or row.is_teacher:
            return None
        return row.number

    def show_rows(self, rows: Sequence[RoundRow]) -> None:
        """Show these rounds; what was selected stays so."""
        if list(reversed(rows)) == list(self._rows):
            return
        chosen = self.chosen
        self._rows = list(reversed(rows))
        self.fill([_items(row) for row in self._rows])
        for place, row in enumerate(self._rows):
            if row.number == chosen:
                self.selectRow(place)


def _items(row: RoundRow) -> list[QTableWidgetItem]:
    # A round that was stopped and can go on is called paused.
    paused = row.resumable and row.outcome is not RoundOutcome.FAILED
    texts = (
        str(row.number),
        _shown(row.parent),
        "paused" if paused else str(row.outcome),
        _shown(row.labelled),
        _shown(row.accepted),
        _shown(row.segmentation_dice, ".3f") + (" (!)" if row.warning else ""),
        _shown(row.registration_dice, ".3f"),
        _settings(row) if row.learned_from is None else "quick: " + ", ".join(row.learned_from),
    )
    tooltip = _tooltip(row)
    items = []
    for heading, text in zip(_COLUMNS, texts, strict=True):
        item = QTableWidgetItem(text)
        item.setToolTip(tooltip)
        font = item.font()
        font.setBold(row.is_teacher)
        item.setFont(font)
        if heading not in _TEXTS:
            item.setTextAlignment(RIGHT)
        items.append(item)
    return items


def _shown(value: float | None, form: str = "") -> str:
    return "" if value is None else format(value, form)


def _settings(row: RoundRow) -> str:
    return "" if row.preset is None else f"{row.preset}, threshold {row.tau:g}, seed {row.seed}"


def _tooltip(row: RoundRow) -> str:
    lines = ["The teacher of this round is in use."] if row.is_teacher else []
    if row.learned_from is not None:
        lines.append(f"Learned at once from {', '.join(row.learned_from)}.")
    lines += filter(None, (row.problem, row.warning, _settings(row)))
    lines += [f"Started {local_time(row.started)}", f"{len(row.label_versions)} labels used:"]
    lines += [f"{case} {version}" for case, version in sorted(row.label_versions.items())[:12]]
    if len(row.label_versions) > 12:
        lines.append("…")
    return "\n".join(lines)
