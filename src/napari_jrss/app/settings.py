"""Training settings from a preset, a file of changes and single values."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from napari_jrss.config import PresetName, TrainingConfig, merged, preset
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
    settings: dict[str, object] = start.model_dump()
    if changes is not None:
        try:
            settings = merged(settings, read_json(changes))
        except ScanError as error:
            raise SettingsError(str(error)) from None
    screening = {} if tau is None else {"screening": {"tau": tau}}
    settings = merged(settings, {"seed": seed, **screening})
    try:
        return TrainingConfig.model_validate(settings)
    except ValidationError as error:
        raise SettingsError(f"{changes or 'settings'}: {from_validation(error)}") from None
