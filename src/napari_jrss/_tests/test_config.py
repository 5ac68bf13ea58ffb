"""Settings: each has a title or a group, and a description for the forms and the reference."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from napari_jrss.config import (
    PreprocessingConfig,
    RefinementConfig,
    SegmentationTraining,
    Shape,
    TrainingConfig,
    preset,
)


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


@pytest.mark.parametrize(
    ("shape", "crop"),
    [
        ((40, 48, 40), (24, 28, 24)),
        ((80, 96, 80), (36, 44, 36)),  # no more than 64,000 voxels
        ((12, 40, 20), (12, 24, 16)),  # short axes are seen whole
    ],
)
def test_crops_are_a_part_of_each_axis(shape: Shape, crop: Shape) -> None:
    settings = SegmentationTraining(crop_fraction=0.6)
    assert settings.crop(shape) == crop
    assert SegmentationTraining().crop(shape) == shape


def test_a_change_of_a_part_keeps_the_rest_of_the_preset() -> None:
    changed = preset("fast", segmentation={"minimum_steps": 2000}, seed=3)
    expected = preset("fast").model_dump()
    expected["segmentation"]["minimum_steps"], expected["seed"] = 2000, 3
    assert changed.model_dump() == expected
    whole = changed.segmentation.model_copy(update={"batch_size": 4})
    assert preset("smoke", segmentation=whole).segmentation == whole
    assert preset("fast").segmentation.minimum_steps == 1000


def test_obelisk_is_not_trained_on_crops() -> None:
    with pytest.raises(ValidationError, match="obelisk samples the whole scan"):
        preset("fast", segmentation_network={"name": "obelisk"})


@pytest.mark.parametrize(
    ("joint", "problem"),
    [
        ({}, "a registered student needs a registration network"),
        ({"student": "perturbed"}, "joint.registration_epochs must be 0"),
    ],
)
def test_what_needs_a_registration_network_says_so(joint: dict[str, str], problem: str) -> None:
    untrained = {"epochs": 0, "minimum_steps": 0}
    with pytest.raises(ValidationError, match=problem):
        TrainingConfig.model_validate({"registration": untrained, "joint": joint})
