"""Keeps the rows of a simulated annotator with the sources, and writes them into the docs.

    napari-jrss experiment annotator_hippocampus --data FOLDER --out DIR
    python benchmarks/annotator.py hippocampus DIR      # keep the finished runs, then write
    python benchmarks/annotator.py                      # only write what is kept

What is kept lies in benchmarks/results/annotator/NAME: the protocol, and of each finished run its
``run.json`` and ``cases.jsonl``; no scan, no label, no weights. The tables go into
docs/annotators-hour.md between ``<!-- measured: NAME -->`` and ``<!-- end -->``, or to its end; the
figures to docs/images/annotator.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

from napari_jrss.experiments.annotator.report import PLOTS, write_annotator_report
from napari_jrss.experiments.annotator.session_work import ROWS
from napari_jrss.experiments.folder import PROTOCOL, RUN, RUNS

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results" / "annotator"
PAGE = ROOT / "docs" / "annotators-hour.md"
PREFIX = "A simulated annotator, "
PICTURES = Path("images") / "annotator"


def main() -> None:
    """Keep the runs that are named, if any, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.name and arguments.folder:
        keep(arguments.folder, KEPT / arguments.name)
    for kept in sorted(KEPT.iterdir()):
        write(kept)


def keep(folder: Path, kept: Path) -> None:
    """Copy the rows of all finished runs, and say where the scans lay in no more than names."""
    shutil.rmtree(kept, ignore_errors=True)
    for run in sorted((folder / RUNS).glob(f"*/{RUN}")):
        rows = run.with_name(ROWS)
        if rows.exists():
            place = kept / RUNS / run.parent.name
            place.mkdir(parents=True)
            for file in (run, rows):
                shutil.copy(file, place)
    protocol = json.loads((folder / PROTOCOL).read_text())
    data = protocol["data"]
    for each in ("project", "folder", "images", "labels", "groups", "subjects"):
        if data[each] is not None:
            data[each] = Path(data[each]).name
    (kept / PROTOCOL).write_text(json.dumps(protocol, indent=1) + "\n")


def write(kept: Path) -> None:
    """Write the tables of one study into the page, and its figures beside the other pictures."""
    with tempfile.TemporaryDirectory() as folder:
        copied = shutil.copytree(kept, Path(folder) / kept.name)
        report = write_annotator_report(copied).parent
        text = (report / "tables.md").read_text().split("\n", 1)[1].strip()
        (ROOT / "docs" / PICTURES).mkdir(parents=True, exist_ok=True)
        for name, caption in PLOTS.items():
            picture = PICTURES / f"{kept.name}_{name}.png"
            shutil.copy(report / f"{name}.png", ROOT / "docs" / picture)
            text += f"\n\n![{caption}]({picture.as_posix()})\n\n{caption}"
    begin = f"<!-- measured: {kept.name} -->"
    page = PAGE.read_text()
    measured = f"{begin}\n\n{text}\n\n<!-- end -->"
    page, places = re.subn(f"{begin}.*?<!-- end -->", lambda _: measured, page, flags=re.DOTALL)
    if not places:
        title = json.loads((kept / PROTOCOL).read_text())["title"].removeprefix(PREFIX)
        page += f"\n## {title}\n\n{measured}\n"
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
