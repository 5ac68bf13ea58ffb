"""The figures of a training for other programs, through the loggers of Lightning Fabric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from napari_jrss.errors import JRSSError
from napari_jrss.training.events import EpochEnd, Event, RoundFinished

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger


class LogToError(JRSSError):
    """There is no such log, or its library is missing."""


def open_logger(where: str) -> Logger:
    """The logger of ``csv:FOLDER`` or ``tensorboard:FOLDER``; each run gets a folder in it."""
    kind, _, folder = where.partition(":")
    if kind not in ("csv", "tensorboard") or not folder:
        raise LogToError(f"{where}: say csv:FOLDER or tensorboard:FOLDER")
    from lightning_fabric.loggers.csv_logs import CSVLogger
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    try:
        return (CSVLogger if kind == "csv" else TensorBoardLogger)(folder, name="")
    except ModuleNotFoundError:
        raise LogToError("TensorBoard isn't installed: pip install tensorboard") from None


def logged(events: Iterator[Event], logger: Logger) -> Iterator[Event]:
    """Pass events on; log the losses and the validation Dice of each epoch and round."""
    outcome = "failed"
    try:
        for event in events:
            if isinstance(event, EpochEnd):
                figures = {f"{event.stage}/{name}": loss for name, loss in event.losses.items()}
                if event.validation is not None:
                    figures[f"{event.stage}/validation_dice"] = event.validation
                logger.log_metrics(figures, event.step)
                logger.save()
            elif isinstance(event, RoundFinished):
                figures = {f"round/{name}": value for name, value in event.metrics.items()}
                logger.log_metrics(figures, event.number)
                logger.save()
            yield event
        outcome = "success"
    finally:
        logger.finalize(outcome)
