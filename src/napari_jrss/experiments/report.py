"""The report of an experiment: tables, figures, and one HTML page that holds them all.

Everything is read from the runs' own files; nothing is computed anew.
"""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_jrss.experiments.folder import PROTOCOL, collect
from napari_jrss.experiments.protocol import ABLATIONS, Protocol, ProtocolError, plan
from napari_jrss.experiments.results import MethodResults, by_labelled, read_results
from napari_jrss.experiments.tables import (
    Table,
    by_round,
    comparison,
    gains,
    over_labelled,
    variants,
)
from napari_jrss.io.atomic import write_text

REPORT = "report"
CAPTIONS = {
    "boxes_segmentation": "Dice of each structure, segmentation (Figure 4 of the paper).",
    "boxes_registration": "Dice of each structure, registration (Figure 4 of the paper).",
    "over_labelled": "Dice over the number of labelled cases (Figure 7).",
    "tau": "Dice over the confidence threshold (Figure 10).",
    "slices_segmentation": "A test case by each method (Figure 5); the first of the test set, "
    "the slice with most structures.",
    "slices_registration": "A test pair by each method (Figure 6): the first pair; white: the "
    "label of the fixed image.",
    "slices_segmentation_over_labelled": "JRSS with more and more labelled cases (Figure 8).",
    "slices_registration_over_labelled": "JRSS with more and more labelled cases (Figure 9); "
    "white: the label of the fixed image.",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
table { border-collapse: collapse; margin: 1.5rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #444; }
figure { margin: 2rem 0; } img { max-width: 100%; } figcaption { color: #555; }
"""


def write_report(out: Path, labelled: str | None = None) -> Path:
    """Write ``report/`` into an experiment's folder; returns the HTML page.

    `labelled` is the N of the main tables, such as ``5`` or ``K``; by default that with most
    methods, and of these with most runs. A :class:`ProtocolError` if there is nothing to report.
    """
    from napari_jrss.experiments.plots import write_plots

    protocol = protocol_of(out)
    results = read_results(out)
    if not results:
        raise ProtocolError(f"{out}: has no finished run yet")
    collect(out)
    n = _main_labelled(results, labelled)
    folder = out / REPORT
    folder.mkdir(exist_ok=True)
    tables = _tables(protocol, results, n)
    plots = {name: CAPTIONS[name] for name in write_plots(out, folder, results, n)}
    return write_pages(folder, protocol.title, tables, plots, _remarks(protocol, results))


def write_pages(
    folder: Path,
    title: str,
    tables: Sequence[Table],
    plots: Mapping[str, str],
    remarks: Sequence[str],
) -> Path:
    """Write the tables and one page that holds all; returns the page.

    `plots` are the captions of figures that lie in the folder, by their names.
    """
    write_text(folder / "tables.md", _markdown(title, tables, remarks))
    write_text(folder / "tables.tex", "\n".join(table.latex() for table in tables))
    page = folder / "index.html"
    write_text(page, _page(title, tables, plots, remarks, folder))
    return page


def protocol_of(out: Path) -> Protocol:
    """The protocol that an experiment was run by; a :class:`ProtocolError` if there is none."""
    if not (out / PROTOCOL).is_file():
        raise ProtocolError(f"{out}: is not the folder of an experiment")
    return Protocol.model_validate_json((out / PROTOCOL).read_text(encoding="utf-8"))


def _main_labelled(results: Sequence[MethodResults], wanted: str | None) -> int | str:
    counted = [r for r in results if not r.variant and r.method.labels != "none"]
    counts = Counter(r.labelled for r in counted)
    if not counts:
        return 0
    if wanted is None:
        runs = {n: sum(len(r.runs) for r in counted if r.labelled == n) for n in counts}
        return max(counts, key=lambda n: (counts[n], runs[n], -by_labelled(n)))
    found = [n for n in counts if str(n) == wanted]
    if not found:
        known = ", ".join(str(n) for n in sorted(counts, key=by_labelled))
        raise ProtocolError(f"no run has N = {wanted}; known: {known}")
    return found[0]


def _tables(
    protocol: Protocol, results: Sequence[MethodResults], labelled: int | str
) -> list[Table]:
    tables = [
        comparison(results, labelled, "segmentation", protocol.paper),
        comparison(results, labelled, "registration", protocol.paper),
    ]
    tables = [table for table in tables if table.rows]
    if len({r.labelled for r in results if not r.variant and r.method.labels != "none"}) > 1:
        tables.append(over_labelled(results))
    tables += [table for table in (by_round(results), gains(results)) if table.rows]
    jrss = [r for r in results if r.method.name == "jrss"]
    taus = sorted({r.variant for r in jrss if r.variant.startswith("tau")})
    for n in sorted({r.labelled for r in jrss if not r.variant}, key=by_labelled):
        varied = {r.variant for r in jrss if r.labelled == n}
        for kind, names in (("ablations", list(ABLATIONS)), ("tau", taus)):
            if varied & set(names):
                tables.append(variants(results, n, names, kind))
    return tables


def _remarks(protocol: Protocol, results: Sequence[MethodResults]) -> list[str]:
    runs = [run for r in results for run in r.runs]
    done = {run["run"] for run in runs}
    missing: dict[str, list[str]] = {}  # seeds by what --only takes
    for run in plan(protocol):
        if run.id not in done:
            name = run.id.replace(f"-seed{run.seed}", "-seed*")
            missing.setdefault(name, []).append(str(run.seed))
    remarks = [
        "Figures are means over the test cases (or pairs) of all seeds, with the standard "
        "deviation over them in brackets, on the training grid; background is never counted. "
        "Bold: the best mean of the methods with all seeds. Dice against JRSS: mean difference on "
        "the cases (or pairs) and seeds that both have; p: two-sided Wilcoxon signed-rank test of "
        "it, corrected by Holm over the table's methods.",
        f"Settings: preset {protocol.preset}, changes {json.dumps(protocol.settings)}; "
        f"{protocol.joint_rounds} joint rounds; split {protocol.split.model_dump_json()}; "
        f"pairs {protocol.pairs}.",
        _effort(runs),
    ]
    if protocol.paper is None:
        remarks.append(
            "The paper's own figures (LPBA40, TCIA Pancreas-CT) are of other data and are not "
            "comparable with these."
        )
    if missing:
        names = (f"{name} ({', '.join(seeds)})" for name, seeds in missing.items())
        remarks.append(f"Not run (seeds in brackets): {'; '.join(names)}.")
    remarks += [note for r in results for note in r.notes]
    return remarks


def _effort(runs: Sequence[dict[str, Any]] | Sequence[Any]) -> str:
    hours = sum(run["seconds"] for run in runs) / 3600
    devices = Counter(f"{run['device_name']} ({run['device']})" for run in runs)
    threads = sorted({run["machine"]["threads"] for run in runs})
    versions = ", ".join(f"{name} {v}" for name, v in runs[-1]["versions"].items())
    where = ", ".join(f"{count} on {name}" for name, count in devices.items())
    return (
        f"{len(runs)} runs, {hours:.1f} hours of computing in all: {where}, "
        f"{' or '.join(map(str, threads))} thread(s) each. Versions of the last: {versions}."
    )


def _markdown(title: str, tables: Sequence[Table], remarks: Sequence[str]) -> str:
    parts = [f"# {title}", *remarks, *(table.markdown() for table in tables)]
    return "\n\n".join(parts)


def _page(
    title: str,
    tables: Sequence[Table],
    plots: Mapping[str, str],
    remarks: Sequence[str],
    folder: Path,
) -> str:
    figures = "".join(_figure(folder, *plot) for plot in plots.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>"
        f"{''.join(f'<p>{html.escape(remark)}</p>' for remark in remarks)}"
        f"{''.join(table.html() for table in tables)}{figures}</body></html>\n"
    )


def _figure(folder: Path, name: str, text: str) -> str:
    """A figure inside the page: drawings as SVG, slices as PNG."""
    kind, mime = ("png", "image/png") if name.startswith("slices") else ("svg", "image/svg+xml")
    data = base64.b64encode((folder / f"{name}.{kind}").read_bytes()).decode()
    caption = html.escape(text)
    return (
        f'<figure><img alt="{caption}" src="data:{mime};base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
