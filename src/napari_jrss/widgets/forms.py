"""A form of the fields of a pydantic model: titles as labels, descriptions as tooltips, bounds."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from qtpy.QtCore import QEvent, QLocale, QObject, Qt, Signal, SignalInstance
from qtpy.QtGui import QValidator
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QSpinBox,
    QWidget,
)
from superqt import QCollapsible

from napari_jrss.widgets.controls import in_column

_WORDS = {
    **{"paper": "paper (original)", "fast": "fast (usual)", "smoke": "smoke (trial)"},
    **{"32-true": "32 bit", "bf16-mixed": "16 bit (bfloat16)", "16-mixed": "16 bit (float16)"},
    **{"exp_kl": "less where teacher and student disagree"},
    **{"inverse_sqrt": "more for small ones", "dice_ce": "Dice and cross-entropy", "dice": "Dice"},
    **{"mse": "squared difference", "lncc": "local correlation", "adam": "Adam", "adamw": "AdamW"},
    **{"mean": "by their mean confidence", "max": "by their largest confidence"},
    **{"both": "both images", "fixed": "the fixed image"},
    **{"registered": "pairs, registered", "perturbed": "scans, strongly changed"},
    **{"center_of_mass": "centre of mass", "labelled": "labelled part"},
}
"""What the choices of a field are called; others are shown as they are."""
_LARGEST = 2**31 - 1
_NEXT = 1e-9
"""What an open bound is moved by: `greater than 0` begins here."""


class NumberBox(QDoubleSpinBox):
    """A number of any size, as a person would write it: 0.025, 1e-05."""

    def __init__(self) -> None:
        super().__init__()
        self.setLocale(QLocale.c())
        self.setDecimals(12)
        self.setStepType(QAbstractSpinBox.StepType.AdaptiveDecimalStepType)

    def textFromValue(self, value: float) -> str:  # noqa: N802
        """Up to nine significant digits, without trailing zeros."""
        return f"{value:.9g}"

    def valueFromText(self, text: str) -> float:  # noqa: N802
        """The number that a text stands for."""
        return float(text)

    def validate(self, text: str, position: int) -> tuple[QValidator.State, str, int]:
        """Accept a number in the range, and whatever may become one."""
        state = QValidator.State.Intermediate
        try:
            if self.minimum() <= float(text) <= self.maximum():
                state = QValidator.State.Acceptable
        except ValueError:
            if not set(text) <= set("0123456789.eE+-"):
                state = QValidator.State.Invalid
        return state, text, position


@dataclass(frozen=True)
class Editor:
    """One field's widget, how it is read and set, and what it emits when a person changes it."""

    widget: QWidget
    get: Callable[[], Any]
    set: Callable[[Any], None]
    changed: SignalInstance


def editor(field: FieldInfo) -> Editor:
    """The widget for a field of a simple type; a TypeError if there is none for it."""
    kind = field.annotation
    if get_origin(kind) is Literal:
        box = QComboBox(minimumContentsLength=12)
        box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        for choice in get_args(kind):
            box.addItem(_WORDS.get(choice, str(choice)), choice)
        made = Editor(
            box,
            box.currentData,
            lambda value: box.setCurrentIndex(box.findData(value)),
            box.currentTextChanged,
        )
    elif kind is bool:
        check = QCheckBox()
        made = Editor(check, check.isChecked, check.setChecked, check.toggled)
    elif kind is int:
        spin = QSpinBox()
        low, high = _bounds(field, 1)
        spin.setRange(int(max(low, -_LARGEST)), int(min(high, _LARGEST)))
        made = Editor(spin, spin.value, spin.setValue, spin.valueChanged)
    elif kind is float:
        number = NumberBox()
        number.setRange(*_bounds(field, _NEXT))
        made = Editor(number, number.value, number.setValue, number.valueChanged)
    elif kind is str and field.examples:
        known = QComboBox(editable=True)
        known.addItems([str(each) for each in field.examples])
        made = Editor(known, known.currentText, known.setCurrentText, known.currentTextChanged)
    elif kind is str:
        line = QLineEdit()
        made = Editor(line, line.text, line.setText, line.textChanged)
    else:
        raise TypeError(f"there is no widget for a field of type {kind}")
    made.widget.setToolTip(field.description or field.title or "")
    made.widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    made.widget.installEventFilter(_NoWheel(made.widget))
    return made


class Form(QWidget):
    """Editors for the fields of a model, its nested models in sections that fold.

    Fields to `leave_out` are given as ``name`` or ``section.name``.
    """

    changed = Signal()

    def __init__(self, model: type[BaseModel], leave_out: Collection[str] = ()) -> None:
        super().__init__()
        self.editors: dict[str, Editor] = {}
        self.sections: dict[str, Form] = {}
        rows = QFormLayout(
            rowWrapPolicy=QFormLayout.RowWrapPolicy.WrapLongRows,
            fieldGrowthPolicy=QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow,
        )
        layout = in_column(self, rows)
        layout.setContentsMargins(0, 0, 0, 0)
        for name, field in model.model_fields.items():
            if name in leave_out:
                continue
            kind = field.annotation
            title = field.title or name.replace("_", " ").capitalize()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                inner = {n.partition(".")[2] for n in leave_out if n.startswith(f"{name}.")}
                section = Form(kind, inner)
                section.changed.connect(self.changed)
                fold = folded(title)
                fold.setToolTip((kind.__doc__ or "").strip())
                fold.addWidget(section)
                fold.layout().setContentsMargins(0, 0, 0, 0)
                layout.addWidget(fold)
                self.sections[name] = section
            else:
                made = editor(field)
                made.changed.connect(lambda *_: self.changed.emit())
                rows.addRow(label_of(field, title), made.widget)
                self.editors[name] = made

    def values(self) -> dict[str, Any]:
        """The values as they stand, nested as in the model."""
        own = {name: made.get() for name, made in self.editors.items()}
        return own | {name: section.values() for name, section in self.sections.items()}

    def show_values(self, model: BaseModel) -> None:
        """Show a model's values; :attr:`changed` is emitted once."""
        self.blockSignals(True)
        for name, made in self.editors.items():
            made.set(getattr(model, name))
        for name, section in self.sections.items():
            section.show_values(getattr(model, name))
        self.blockSignals(False)
        self.changed.emit()


def folded(title: str) -> QCollapsible:
    """A section that is closed at first."""
    return QCollapsible(title, expandedIcon="▼", collapsedIcon="▶")


def label_of(field: FieldInfo, title: str = "") -> QLabel:
    """A field's title with its description as the tooltip."""
    tooltip = field.description or field.title or ""
    return QLabel(title or field.title or "", toolTip=tooltip)


class _NoWheel(QObject):
    """The wheel scrolls the form; it changes a value only where a person has clicked."""

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        if event.type() == QEvent.Type.Wheel and not watched.hasFocus():
            event.ignore()
            return True
        return False


def _bounds(field: FieldInfo, beyond: float) -> tuple[float, float]:
    """The ends that a field's ``ge``, ``gt``, ``le`` and ``lt`` allow."""
    ends = {
        name: float(value)
        for bound in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if (value := getattr(bound, name, None)) is not None
    }
    low = ends.get("ge", ends.get("gt", -1e9 - beyond) + beyond)
    high = ends.get("le", ends.get("lt", 1e9 + beyond) - beyond)
    return low, high
