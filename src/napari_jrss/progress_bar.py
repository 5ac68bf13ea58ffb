"""Long calls: call one and see a progress bar, or iterate over its events instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

P = ParamSpec("P")
E = TypeVar("E")
R = TypeVar("R")
E_co = TypeVar("E_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class Bar:
    """How far one part of the work is; each has a bar of its own."""

    name: str  # empty: there is only a line to print
    done: int
    total: int | None = None  # steps; None where that isn't known
    note: str | None = None  # stands beside the bar; None leaves it as it was
    line: str = ""  # printed above the bars
    milestone: bool = False  # whether this is worth a line where no bar can be drawn


class LongCall(Protocol[P, E_co, R_co]):
    """A function whose work takes long.

    A call shows a progress bar and returns the result. ``function.events(...)`` takes the same
    arguments, shows nothing, and yields each event of the work as it happens.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Do the work, show how far it is, and return the result."""
        ...

    def events(self, *args: P.args, **kwargs: P.kwargs) -> Generator[E_co, None, R_co]:
        """Do the work step by step, and yield what happens."""
        ...


def long_call(
    bars: Callable[..., Callable[[Any], Bar | None]],
) -> Callable[[Callable[P, Generator[E, None, R]]], LongCall[P, E, R]]:
    """Make a :class:`LongCall` of a generator that yields events and returns the result.

    `bars` gets the arguments of each call; what it returns says for each event which bar to draw.
    """

    def decorate(work: Callable[P, Generator[E, None, R]]) -> LongCall[P, E, R]:
        @wraps(work)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return finish(shown(work(*args, **kwargs), bars(*args, **kwargs)))

        made = cast("Any", call)
        made.events = work
        # What help() shows: the call returns the result, not the generator.
        signature = inspect.signature(work)
        made.__signature__ = signature.replace(return_annotation=signature.empty)
        return cast("LongCall[P, E, R]", made)

    return decorate


def finish(events: Generator[E, None, R], each: Callable[[E], object] = lambda _: None) -> R:
    """Run a long call to its end; its result. `each` is called with every event."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return cast("R", end.value)
        each(event)


def counting(name: str, total: int | None = None) -> Callable[[object], Bar]:
    """Count events. Where they have ``done`` and ``total``, these say how far the work is."""
    seen = failed = 0

    def bar(event: object) -> Bar:
        nonlocal seen, failed
        seen += 1
        failed += bool(getattr(event, "problem", ""))
        done, of = getattr(event, "done", seen), getattr(event, "total", total)
        tenth = done % 10 == 0 if of is None else done * 10 // of > (done - 1) * 10 // of
        return Bar(name, done, of, f"{failed} failed" if failed else "", milestone=tenth)

    return bar


def counted(items: Iterable[E], name: str, total: int | None = None) -> Generator[E, None, None]:
    """A bar over items as they come, one by one."""
    return shown((item for item in items), counting(name, total))


@contextmanager
def watching(name: str) -> Iterator[Callable[[float], bool]]:
    """A bar for work that calls what this yields with the share that is done, from 0 to 1.

    It returns True, which asks the work to go on.
    """
    with _bars()[0] as progress:
        task = progress.add_task(name, total=100, note="")

        def watch(done: float) -> bool:
            progress.update(task, completed=round(100 * done))
            return True

        yield watch
        progress.update(task, completed=100)


def shown(
    events: Generator[E, None, R], bar_of: Callable[[Any], Bar | None]
) -> Generator[E, None, R]:
    """Pass events on, and draw their bars on the standard error.

    In a terminal, and in a notebook with ipywidgets, bars are drawn. Elsewhere, such as in the
    log of a cluster, milestones are printed as lines.
    """
    progress, drawn = _bars()
    tasks: dict[str, TaskID] = {}
    notes: dict[str, str] = {}
    with closing(events), progress:
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                return cast("R", end.value)
            bar = bar_of(event)
            if bar is not None and bar.name:
                note = notes[bar.name] = notes.get(bar.name, "") if bar.note is None else bar.note
                if bar.name not in tasks:
                    tasks[bar.name] = progress.add_task(bar.name, total=bar.total, note="")
                progress.update(tasks[bar.name], completed=bar.done, note=note)
                if bar.milestone and not drawn:
                    of = "" if bar.total is None else f"/{bar.total}"
                    line = f"{bar.name} {bar.done}{of} {note}".rstrip()
                    progress.console.print(line, soft_wrap=True)
            if bar is not None and bar.line:
                progress.console.print(bar.line, soft_wrap=True)
            yield event


def _bars() -> tuple[Progress, bool]:
    """Bars on the standard error, and whether they can be drawn there."""
    from rich import progress as rich
    from rich.console import Console

    # A notebook without ipywidgets can only show lines, though its kernel asks for colours.
    only_lines = Console().is_jupyter and find_spec("ipywidgets") is None
    forced = False if only_lines else None
    console = Console(
        stderr=True, markup=False, highlight=False, force_jupyter=forced, force_terminal=forced
    )
    drawn = console.is_terminal or console.is_jupyter
    progress = rich.Progress(
        rich.TextColumn("{task.description:<17}"),
        rich.BarColumn(bar_width=10),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(elapsed_when_finished=True),
        rich.TextColumn("{task.fields[note]}"),
        console=console,
        disable=not drawn,
    )
    return progress, drawn
