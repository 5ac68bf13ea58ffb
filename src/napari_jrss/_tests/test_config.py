"""Settings: each has a title or a group, and a description for the forms and the reference."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from napari_jrss.config import PreprocessingConfig, RefinementConfig, TrainingConfig, preset


@pytest.mark.parametrize("settings", [PreprocessingConfig, RefinementConfig, TrainingConfig])
def test_every_setting_is_described_in_one_line(settings: type[BaseModel]) -> None:
    for name, field in settings.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description, name
        if isinstance(field.default, BaseModel):
            test_every_setting_is_described_in_one_line(type(field.default))
        else:
            assert field.title, name


def test_a_preset_is_the_settings_with_some_changed() -> None:
    assert preset("paper") == TrainingConfig()
    fast = preset("fast", seed=3)
    assert (fast.preset, fast.seed) == ("fast", 3)
    assert TrainingConfig.model_validate_json(fast.model_dump_json()) == fast
    with pytest.raises(ValueError, match="unknown preset 'slow'; known: paper, fast, smoke"):
        preset("slow")  # type: ignore[arg-type]
