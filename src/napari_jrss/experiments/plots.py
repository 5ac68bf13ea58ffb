"""The paper's figures from the results of an experiment (its Figures 4 to 10)."""

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
from napari_jrss.experiments.results import MethodResults, TaskName, by_labelled
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
    out: Path, folder: Path, results: Sequence[MethodResults], labelled: int | str
) -> list[str]:
    """Write every figure that there are runs for as PNG and SVG.

    Returns the names of the files, without suffix, in the order of a report.
    """
    names = []
    with mpl.rc_context(STYLE):
        for name, figure in _figures(out, results, labelled):
            figure.savefig(folder / f"{name}.png", dpi=160)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            names.append(name)
    return names


def _figures(
    out: Path, results: Sequence[MethodResults], labelled: int | str
) -> Iterator[tuple[str, Figure]]:
    colours = _colours(results)
    for task in TASKS:
        chosen = with_task(at(results, labelled), task)
        if chosen:
            yield f"boxes_{task}", _boxes(chosen, task, labelled, colours)
    if len({r.labelled for r in results if r.method.name == "jrss" and not r.variant}) > 1:
        yield "over_labelled", _over_labelled(results, colours)
    sweeps = _sweeps(results)
    if sweeps:
        yield "tau", _tau(sweeps)
    chosen = _with_examples(out, at(results, labelled))
    for task in TASKS:
        shown = with_task(chosen, task)
        if shown:
            yield f"slices_{task}", _slices(out, shown, task)
    series = _with_examples(out, [r for r in results if r.method.name == "jrss" and not r.variant])
    for task in TASKS:
        shown = with_task(series, task)
        if len(shown) > 1:
            yield f"slices_{task}_over_labelled", _slices(out, shown, task, over_labelled=True)


def _colours(results: Sequence[MethodResults]) -> dict[str, str]:
    names = dict.fromkeys(r.method.name for r in results)
    colours = {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(names)}
    return colours | {"jrss": JRSS_COLOUR}


def _boxes(
    results: Sequence[MethodResults],
    task: TaskName,
    labelled: int | str,
    colours: Mapping[str, str],
) -> Figure:
    """Figure 4: Dice of each structure by method."""
    structures = [*results[0].runs[0]["structures"]]
    groups = [*structures, None]
    figure = Figure((max(6.0, 0.16 * len(groups) * (len(results) + 2)), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results)
    for i, result in enumerate(results):
        values = [result.samples(task, "dice", s).to_numpy() for s in groups]
        where = [g + (i - (len(results) - 1) / 2) * width for g in range(len(groups))]
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
            box.set(facecolor=colours[result.method.name], linewidth=0.6)
        drawn["boxes"][0].set_label(result.title)
    axes.set_xticks(range(len(groups)), [*structures, "mean"], rotation=30, ha="right")
    axes.set(ylabel="Dice", ylim=(0, 1), title=f"{task.title()}, N = {labelled}")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _over_labelled(results: Sequence[MethodResults], colours: Mapping[str, str]) -> Figure:
    """Figure 7: Dice over N; what needs no labels is a level line."""
    figure = Figure((9, 3.6), layout="constrained")
    plain = [r for r in results if not r.variant]
    counts = sorted({r.labelled for r in plain if r.method.labels != "none"}, key=by_labelled)
    for axes, task in zip(figure.subplots(1, 2), TASKS, strict=True):
        for name in dict.fromkeys(r.method.name for r in plain):
            line = with_task([r for r in plain if r.method.name == name], task)
            if not line:
                continue
            means = [r.samples(task, "dice").mean() for r in line]
            if line[0].method.labels == "none":
                style = {"color": colours[name], "linestyle": ":", "label": line[0].title}
                axes.axhline(means[0], **style)
            else:
                where = [counts.index(r.labelled) for r in line]
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


def _sweeps(results: Sequence[MethodResults]) -> dict[int | str, list[MethodResults]]:
    """JRSS at each N where tau was varied."""
    sweeps: dict[int | str, list[MethodResults]] = {}
    for r in results:
        if r.method.name == "jrss" and (not r.variant or r.variant.startswith("tau")):
            sweeps.setdefault(r.labelled, []).append(r)
    return {n: sorted(each, key=lambda r: r.tau) for n, each in sweeps.items() if len(each) > 1}


def _tau(sweeps: Mapping[int | str, Sequence[MethodResults]]) -> Figure:
    """Figure 10: Dice over the threshold, on the seeds that all points have."""
    figure = Figure((9, 3.4), layout="constrained")
    for axes, task in zip(figure.subplots(1, 2), TASKS, strict=True):
        for labelled, line in sweeps.items():
            seeds = set.intersection(*(set(r.seeds) for r in line))
            figures = [r.samples(task, "dice") for r in line]
            means = [f[f.index.isin(seeds, level="seed")].mean() for f in figures]
            axes.plot([r.tau for r in line], means, "o-", label=f"N = {labelled}")
        axes.set(xlabel="threshold tau", ylabel="Dice", title=f"JRSS, {task}")
        axes.grid(alpha=0.3)
    figure.axes[1].legend(frameon=False)
    return figure


def _with_examples(out: Path, results: Sequence[MethodResults]) -> list[MethodResults]:
    """Those whose runs still have the slices that they wrote; kept figures have none."""
    return [
        r for r in results if all((out / RUNS / run["run"] / EXAMPLES).exists() for run in r.runs)
    ]


def _slices(
    out: Path, results: Sequence[MethodResults], task: TaskName, over_labelled: bool = False
) -> Figure:
    """Figures 5, 6, 8 and 9: one axial slice by every method, with contours."""
    first = results[0]
    seed = min(first.seeds)
    shown = [r for r in results if seed in r.seeds]
    files = [
        np.load(out / RUNS / next(run["run"] for run in r.runs if run["seed"] == seed) / EXAMPLES)
        for r in shown
    ]
    titles = [f"N = {r.labelled}" if over_labelled else r.title for r in shown]
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
