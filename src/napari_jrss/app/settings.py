"""Training settings from a preset, a file of changes and single values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from napari_jrss.config import PresetName, TrainingConfig, preset
from napari_jrss.errors import JRSSError, ScanError, from_validation
from napari_jrss.io.text_files import read_json
from napari_jrss.preprocess.plan import Plan


class SettingsError(JRSSError):
    """A settings file that can't be used."""


def training_config(
    name: PresetName,
    changes: Path | None = None,
    *,
    plan: Plan | None = None,
    seed: int = 0,
    tau: float | None = None,
) -> TrainingConfig:
    """Training settings: a preset with the changes of a JSON file, nested as in TrainingConfig.

    Raises a :class:`SettingsError` if the file isn't JSON, or has an unknown setting or an
    impossible value. Without `tau`, the confidence threshold is that of the preset. The preset
    ``fast`` is as the project's `plan` has it.
    """
    start = preset(name) if plan is None or name != "fast" else plan.config()
    settings: dict[str, Any] = start.model_dump()
    if changes is not None:
        try:
            _merge(settings, read_json(changes))
        except ScanError as error:
            raise SettingsError(str(error)) from None
    settings["seed"] = seed
    if tau is not None:
        settings["screening"]["tau"] = tau
    try:
        return TrainingConfig.model_validate(settings)
    except ValidationError as error:
        raise SettingsError(f"{changes or 'settings'}: {from_validation(error)}") from None


def _merge(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(settings.get(name), dict):
            _merge(settings[name], value)
        else:
            settings[name] = value
