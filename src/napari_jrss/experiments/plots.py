"""The paper's figures from the outcomes of an experiment (its Figures 4 to 10)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from napari_jrss.experiments.examples import EXAMPLES
from napari_jrss.experiments.folder import RUNS
from napari_jrss.experiments.outcome import Outcome, TaskName, mean_std, rank
from napari_jrss.experiments.tables import TASKS, at, with_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE: Any = {  # its type in matplotlib is that of every setting there is
    "svg.hashsalt": "napari-jrss",  # the same figures make the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLOURS = [to_hex(colour) for colour in mpl.color_sequences["tab20"]]
JRSS_COLOUR = "#d62728"
OTHER_COLOURS = [colour for colour in COLOURS if colour != JRSS_COLOUR]


def write_plots(
    out: Path, folder: Path, outcomes: Sequence[Outcome], labelled: int | str
) -> list[str]:
    """Write every figure that there are runs for as PNG and SVG.

    Returns
    -------
    list of str
        Names of the files, without suffix, in the order of a report.
    """
    names = []
    with mpl.rc_context(STYLE):
        for name, figure in _figures(out, outcomes, labelled):
            figure.savefig(folder / f"{name}.png", dpi=160)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            names.append(name)
    return names


def _figures(
    out: Path, outcomes: Sequence[Outcome], labelled: int | str
) -> Iterator[tuple[str, Figure]]:
    colours = _colours(outcomes)
    for task in TASKS:
        chosen = with_task(at(outcomes, labelled), task)
        if chosen:
            yield f"boxes_{task}", _boxes(chosen, task, labelled, colours)
    if len({o.labelled for o in outcomes if o.method.name == "jrss" and not o.variant}) > 1:
        yield "over_labelled", _over_labelled(outcomes, colours)
    sweeps = _sweeps(outcomes)
    if sweeps:
        yield "tau", _tau(sweeps)
    chosen = _with_examples(out, at(outcomes, labelled))
    for task in TASKS:
        shown = with_task(chosen, task)
        if shown:
            yield f"slices_{task}", _slices(out, shown, task)
    series = _with_examples(out, [o for o in outcomes if o.method.name == "jrss" and not o.variant])
    for task in TASKS:
        shown = with_task(series, task)
        if len(shown) > 1:
            yield f"slices_{task}_over_labelled", _slices(out, shown, task, over_labelled=True)


def _colours(outcomes: Sequence[Outcome]) -> dict[str, str]:
    names = dict.fromkeys(o.method.name for o in outcomes)
    colours = {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(names)}
    return colours | {"jrss": JRSS_COLOUR}


def _boxes(
    outcomes: Sequence[Outcome],
    task: TaskName,
    labelled: int | str,
    colours: Mapping[str, str],
) -> Figure:
    """Figure 4: Dice of each structure by method."""
    structures = [*outcomes[0].runs[0]["structures"]]
    groups = [*structures, None]
    figure = Figure((max(6.0, 0.16 * len(groups) * (len(outcomes) + 2)), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(outcomes)
    for i, outcome in enumerate(outcomes):
        values = [list(outcome.samples(task, "dice", s).values()) for s in groups]
        where = [g + (i - (len(outcomes) - 1) / 2) * width for g in range(len(groups))]
        drawn = axes.boxplot(
            values,
            positions=where,
            widths=0.85 * width,
            patch_artist=True,
            manage_ticks=False,
            medianprops={"color": "black"},
            flierprops={"markersize": 2, "alpha": 0.5},
        )
        for box in drawn["boxes"]:
            box.set(facecolor=colours[outcome.method.name], linewidth=0.6)
        drawn["boxes"][0].set_label(outcome.title)
    axes.set_xticks(range(len(groups)), [*structures, "mean"], rotation=30, ha="right")
    axes.set(ylabel="Dice", ylim=(0, 1), title=f"{task.title()}, N = {labelled}")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _over_labelled(outcomes: Sequence[Outcome], colours: Mapping[str, str]) -> Figure:
    """Figure 7: Dice over N; what needs no labels is a level line."""
    figure = Figure((9, 3.6), layout="constrained")
    plain = [o for o in outcomes if not o.variant]
    counts = sorted({o.labelled for o in plain if o.method.labels != "none"}, key=rank)
    for axes, task in zip(figure.subplots(1, 2), TASKS, strict=True):
        for name in dict.fromkeys(o.method.name for o in plain):
            line = with_task([o for o in plain if o.method.name == name], task)
            if not line:
                continue
            means = [mean_std(o.samples(task, "dice").values())[0] for o in line]
            if line[0].method.labels == "none":
                style = {"color": colours[name], "linestyle": ":", "label": line[0].title}
                axes.axhline(means[0], **style)
            else:
                where = [counts.index(o.labelled) for o in line]
                bold = 2.4 if name == "jrss" else 1.2
                axes.plot(where, means, "o-", color=colours[name], lw=bold, label=line[0].title)
        axes.set_xticks(range(len(counts)), [str(n) for n in counts])
        axes.set(xlabel="labelled cases N", ylabel="Dice", title=task.title())
        axes.grid(alpha=0.3)
    shown = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(shown.values(), shown, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _sweeps(outcomes: Sequence[Outcome]) -> dict[int | str, list[Outcome]]:
    """JRSS at each N where tau was varied."""
    sweeps: dict[int | str, list[Outcome]] = {}
    for o in outcomes:
        if o.method.name == "jrss" and (not o.variant or o.variant.startswith("tau")):
            sweeps.setdefault(o.labelled, []).append(o)
    return {n: sorted(each, key=lambda o: o.tau) for n, each in sweeps.items() if len(each) > 1}


def _tau(sweeps: Mapping[int | str, Sequence[Outcome]]) -> Figure:
    """Figure 10: Dice over the threshold, on the seeds that all points have."""
    figure = Figure((9, 3.4), layout="constrained")
    for axes, task in zip(figure.subplots(1, 2), TASKS, strict=True):
        for labelled, line in sweeps.items():
            seeds = set.intersection(*(set(o.seeds) for o in line))
            means = [
                mean_std(v for s, v in o.samples(task, "dice").items() if s[0] in seeds)[0]
                for o in line
            ]
            axes.plot([o.tau for o in line], means, "o-", label=f"N = {labelled}")
        axes.set(xlabel="threshold tau", ylabel="Dice", title=f"JRSS, {task}")
        axes.grid(alpha=0.3)
    figure.axes[1].legend(frameon=False)
    return figure


def _with_examples(out: Path, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those whose runs still have the slices that they wrote; kept figures have none."""
    return [
        o for o in outcomes if all((out / RUNS / run["run"] / EXAMPLES).exists() for run in o.runs)
    ]


def _slices(
    out: Path, outcomes: Sequence[Outcome], task: TaskName, over_labelled: bool = False
) -> Figure:
    """Figures 5, 6, 8 and 9: one axial slice by every method, with contours."""
    first = outcomes[0]
    seed = min(first.seeds)
    shown = [o for o in outcomes if seed in o.seeds]
    files = [
        np.load(out / RUNS / next(r["run"] for r in o.runs if r["seed"] == seed) / EXAMPLES)
        for o in shown
    ]
    titles = [f"N = {o.labelled}" if over_labelled else o.title for o in shown]
    if task == "segmentation":
        panels = [("manual label", files[0]["case_image"], files[0]["case_truth"])]
        shown_image, shown_label = "case_image", "case_label"
    else:
        panels = [
            (side, files[0][f"{side}_image"], files[0][f"{side}_label"])
            for side in ("moving", "fixed")
        ]
        shown_image, shown_label = "warped_image", "warped_label"
    given = len(panels)
    panels += [
        (title, f[shown_image], f[shown_label]) for title, f in zip(titles, files, strict=True)
    ]
    columns = min(len(panels), 6)
    rows = -(-len(panels) // columns)
    height, width = panels[0][1].shape
    figure = Figure((1.7 * columns, rows * (1.7 * height / width + 0.3)), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    structures = len(first.runs[0]["structures"])
    for i, (axes, (title, image, label)) in enumerate(zip(figure.axes, panels, strict=False)):
        _draw(axes, image, label, structures)
        if task == "registration" and i >= given:
            _contours(axes, files[0]["fixed_label"], ["white"] * structures, 0.5)
        axes.set_title(title, fontsize=8)
    return figure


def _draw(axes: Axes, image: np.ndarray, label: np.ndarray, structures: int) -> None:
    low, high = np.percentile(image, (1, 99.5))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    colours = [COLOURS[2 * i % len(COLOURS) + (i >= 10)] for i in range(structures)]
    _contours(axes, label, colours, 1.1)


def _contours(axes: Axes, label: np.ndarray, colours: Sequence[str], width: float) -> None:
    for index, colour in enumerate(colours, start=1):
        if (label == index).any():
            axes.contour(label == index, [0.5], colors=[colour], linewidths=width)
