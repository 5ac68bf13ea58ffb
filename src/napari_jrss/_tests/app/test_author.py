"""The author's name: given, from the environment or a setting, never from the system."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

import pytest

from napari_jrss.app import author as module
from napari_jrss.app.author import AuthorError, author, known_author, remember_author


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of the test's own."""
    for variable in ("XDG_CONFIG_HOME", "APPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv("NAPARI_JRSS_USER", raising=False)
    return module.settings_file()


def test_without_a_name_there_is_no_author(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "somebody")
    assert getpass.getuser()
    for given in (None, "", "  "):
        with pytest.raises(AuthorError, match="--author NAME, set NAPARI_JRSS_USER"):
            author(given)
    assert known_author() == ""
    assert not settings.exists()


def test_a_given_name_goes_before_the_environment_and_that_before_the_setting(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert remember_author(" Ada ") == settings
    assert author() == "Ada"
    monkeypatch.setenv("NAPARI_JRSS_USER", "Grace")
    assert author() == "Grace"
    assert author("Emmy ") == "Emmy"
    monkeypatch.delenv("NAPARI_JRSS_USER")
    settings.write_text(json.dumps({"author": "Ada", "other": 1}))
    remember_author("")
    assert json.loads(settings.read_text()) == {"author": "", "other": 1}
    with pytest.raises(AuthorError, match="a name is needed"):
        author()


@pytest.mark.parametrize("content", ["{", "[]", '{"author": 3}', "\x00"])
def test_damaged_settings_are_named_and_left(content: str, settings: Path) -> None:
    settings.parent.mkdir(parents=True)
    settings.write_text(content)
    with pytest.raises(AuthorError, match=r"settings\.json"):
        author()
    assert settings.read_text() == content
    assert author("Ada") == "Ada"
