"""What lies in an experiment's folder.

``protocol.json`` is what was asked for; ``runs/<run>/run.json`` says what was run, on what, and
how it ended; ``rows.csv.gz`` beside it holds every figure of every test case; ``results.csv`` is
all of them in one; ``events.jsonl`` has the losses and the validation of each epoch and the figures
as they come, and ``settings.json`` what a run was begun with.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from napari_jrss.io.atomic import end_with_whole_line, write_bytes, write_text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from napari_jrss.experiments.protocol import Run
    from napari_jrss.training.events import Event

PROTOCOL, RUNS, RESULTS = "protocol.json", "runs", "results.csv"
RUN, ROWS, EVENTS = "run.json", "rows.csv.gz", "events.jsonl"  # in the folder of each run
SETTINGS = "settings.json"  # there from its first start
TRAINED, FIGURES = "trained", "figures"  # kinds of lines beside the events
COLUMNS = (
    "run",
    "method",
    "variant",
    "labelled",
    "tau",
    "seed",
    "round",
    "task",
    "case",
    "moving",
    "structure",
    "metric",
    "value",
)


class EventLog:
    """A run's ``events.jsonl``, each line with the seconds spent on the run so far.

    The log of a killed run goes on, time included; that of an ended one begins anew.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / EVENTS
        if (folder / RUN).exists():
            path.unlink(missing_ok=True)
        end_with_whole_line(path)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        self._before = float(lines[-1].get("seconds", 0.0)) if lines else 0.0
        self._figures: dict[str, dict[str, Any]] = {
            line["of"]: line["figures"] for line in lines if line["kind"] == FIGURES
        }
        self._trained = next((line["seconds"] for line in lines if line["kind"] == TRAINED), None)
        self._started = time.perf_counter()
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def seconds(self) -> float:
        """Spent on the run, in all its starts."""
        return self._before + time.perf_counter() - self._started

    def add(self, event: Event) -> None:
        """Keep what outlives the run; single steps don't."""
        if event.kind != "step_end":
            self._write(event.model_dump(mode="json"))

    def trained(self) -> float:
        """Seconds that the training took, in all its starts; asked when it has ended."""
        if self._trained is None:
            self._trained = self.seconds
            self._write({"kind": TRAINED})
        return self._trained

    def figures(self, of: str, evaluate: Callable[[], BaseModel]) -> dict[str, Any]:
        """Figures of a test case or pair: those that a killed run left, else evaluated now."""
        if of not in self._figures:
            self._figures[of] = evaluate().model_dump()
            self._write({"kind": FIGURES, "of": of, "figures": self._figures[of]})
        return self._figures[of]

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps({**line, "seconds": round(self.seconds, 1)}) + "\n")
        self._file.flush()


def begun_with(folder: Path) -> dict[str, Any] | None:
    """Settings of a run that was begun or has ended; None for a new one."""
    settings, ended = folder / SETTINGS, folder / RUN
    found: dict[str, Any] | None = None
    if settings.exists():
        found = json.loads(settings.read_text(encoding="utf-8"))
    elif ended.exists():  # kept without the other files
        found = json.loads(ended.read_text(encoding="utf-8"))["config"]
    return found


def collect(out: Path) -> Path:
    """Put the rows of all finished runs into one tidy ``results.csv``."""
    parts = [out / RUNS / run["run"] / ROWS for run in finished_runs(out)]
    content = [",".join(COLUMNS) + "\n"]
    for path in parts:
        content += read_rows(path).splitlines(keepends=True)[1:]
    write_text(out / RESULTS, "".join(content))
    return out / RESULTS


def finished_runs(out: Path) -> list[dict[str, Any]]:
    """What ``run.json`` says of each finished run, in the order of their ids."""
    paths = sorted((out / RUNS).glob(f"*/{RUN}"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def read_rows(path: Path) -> str:
    """A run's rows as CSV."""
    return gzip.decompress(path.read_bytes()).decode()


def rows_of(
    figures: dict[str, Any], about: dict[str, object], names: Sequence[str]
) -> Iterator[dict[str, object]]:
    """One row per figure: per structure for a list, one without a structure for a number."""
    for metric, value in figures.items():
        if isinstance(value, list):
            for name, each in zip(names[1:], value, strict=True):
                yield {**about, "structure": name, "metric": metric, "value": _digits(each)}
        elif isinstance(value, float):
            yield {**about, "structure": "", "metric": metric, "value": _digits(value)}


def _digits(value: float | None) -> str:
    """Six digits are more than any figure here is good for, and keep the files small."""
    return "" if value is None else f"{value:.6g}"


def write_rows(path: Path, run: Run, rows: Sequence[dict[str, object]]) -> None:
    """Keep a run's rows, each with what run it is of."""
    about = {
        "run": run.id,
        "method": run.method,
        "variant": run.variant,
        "labelled": "K" if run.labelled is None else run.labelled,
        "tau": run.config.screening.tau,
        "seed": run.seed,
    }
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**about, **row} for row in rows)
    # without a time in it, the same figures make the same file
    write_bytes(path, gzip.compress(text.getvalue().encode(), mtime=0))
