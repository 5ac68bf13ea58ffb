"""The box from which a registration engine is chosen."""

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox

from napari_jrss.app.pairs.registering import NETWORK
from napari_jrss.inference.engines import engines


def engine_choices(_widget: object = None) -> list[tuple[str, str]]:
    """Each engine in words, and its name; the first is empty: automatic."""
    choices = [("Automatic", ""), (f"{NETWORK}: the project's network", NETWORK)]
    for name, engine in engines().items():
        missing = " (not installed)" if engine.problem else ""
        choices.append((f"{name}: {engine.about}{missing}", name))
    return choices


class EngineBox(QComboBox):
    """All engines; whoever chooses one whose package is missing is told what to install."""

    chosen = Signal(str)  # name of the engine that the person chose; empty: automatic

    def __init__(self, tip: str) -> None:
        super().__init__(toolTip=tip)
        for words, name in engine_choices():
            self.addItem(words, name)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.activated.connect(lambda _index: self.chosen.emit(self.currentData()))

    def choose(self, engine: str) -> None:
        """Show an engine as the one that is chosen."""
        self.setCurrentIndex(max(0, self.findData(engine)))
