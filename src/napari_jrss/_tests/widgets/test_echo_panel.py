"""A corrected error is named in another case, and a click goes there, in a real window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from napari.settings import get_plugin_settings
from pytestqt.qtbot import QtBot

from napari_jrss._tests.app.test_echoes import give_error, mask_on_scan
from napari_jrss._tests.widgets.person import Person
from napari_jrss.widgets.layers.review import OUTLINE
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.preferences import PLUGIN


def test_accept_then_go_to_the_case_with_the_same_error(
    dock: MainWidget, qtbot: QtBot, taught: Path
) -> None:
    dock.session.open(taught)
    dock.session.workspace.author = "anna"
    project, echoes = dock.session.workspace.open_project, dock.session.review.echoes
    first, _, third = project.snapshot().unlabelled
    give_error(project, first, third)
    person, panel = Person(dock, qtbot), dock.review.echoes
    assert panel.isHidden()
    assert echoes.after_accept
    person.open()
    with person.layer.block_history():  # one stroke over what is wrong
        person.layer.data_setitem(np.nonzero(mask_on_scan(dock.session, first)), 0)
    person.click(person.tab.accept)
    qtbot.waitUntil(lambda: not dock.session.workspace.background.busy, timeout=60_000)
    person.settle()
    assert list(echoes.found) == [third]
    assert panel.text.text() == "1 other case may have an error that you corrected:"
    entry = panel.cases.currentText()
    assert entry.startswith(f"{third}: background, not structure 2, 0.")
    assert entry.endswith(f"as in {first}")
    assert panel.stop.isHidden()
    person.click(panel.go)
    assert person.review.open_case.case_id == third
    layer = person.tab.layers.layer(OUTLINE)
    assert layer is not None
    assert layer.visible
    marked = np.asarray(layer.data) > 0
    assert np.count_nonzero(marked & mask_on_scan(dock.session, third)) > 0.6 * marked.sum() > 0
    assert person.z in range(10, 15)
    assert not person.review.unsaved
    person.click(person.tab.accept)
    assert panel.isHidden()
    get_plugin_settings(PLUGIN).work.echo = False
    assert not echoes.after_accept
