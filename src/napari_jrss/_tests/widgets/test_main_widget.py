"""The dock as a whole."""

from npe2 import PluginManifest

from napari_jrss.widgets.main_widget import MainWidget


def test_the_manifest_is_valid() -> None:
    manifest = PluginManifest.from_distribution("napari-jrss")
    manifest.validate_imports()
    assert manifest.contributions.widgets is not None


def test_the_dock_has_four_tabs_and_says_that_nothing_is_open(dock: MainWidget) -> None:
    titles = [dock.tabs.tabText(i) for i in range(dock.tabs.count())]
    assert titles == ["Cohort", "Review", "Rounds", "Registration"]
    assert dock.session.project is None
