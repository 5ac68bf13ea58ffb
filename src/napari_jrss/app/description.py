"""What a round's ``config.json`` says, checked."""

from __future__ import annotations

from pydantic import BaseModel

from napari_jrss.config import TrainingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.project.records import Round


class RoundDescription(BaseModel):
    """Settings and classes of a round, and how many rounds were to follow it."""

    training: TrainingConfig
    classes: list[str]
    rounds_left: int = 0


def description_of(entry: Round) -> RoundDescription:
    """Read a round's ``config.json``; :class:`ProjectError` if it can't be understood."""
    path = entry.folder / "config.json"
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        return RoundDescription.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ProjectError(f"{path}: unreadable description of a round ({reason})") from None


def config_of(entry: Round) -> TrainingConfig:
    """The settings that a round was started with."""
    return description_of(entry).training
