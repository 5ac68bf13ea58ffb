"""Keeps the figures of experiments with the sources, and writes docs/results.md from them.

    napari-jrss experiment hippocampus --data FOLDER --out DIR
    python benchmarks/results.py keep hippocampus DIR
    python benchmarks/results.py write

``keep`` copies what a report needs of each finished run (settings, machine, every figure of every
test case; no scan and no weights) to benchmarks/results/NAME, and the pictures of slices to
docs/images/results/NAME. ``write`` makes the tables and drawings of all that is kept; what a
person reads in them stands in benchmarks/results/NAME/reading.md. ``begin`` lays a folder in which
``napari-jrss experiment NAME --resume`` runs only what is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from napari_jrss.experiments.folder import PROTOCOL, ROWS, RUN, RUNS
from napari_jrss.experiments.protocol import Protocol, ProtocolError, load_protocol
from napari_jrss.experiments.report import CAPTIONS, write_report

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
PICTURES = Path("images") / "results"
INTRODUCTION = """# Results

Written by `python benchmarks/results.py write` from the runs' own files in `benchmarks/results`.
`napari-jrss experiment NAME --data FOLDER --out DIR` repeats the runs of a section, whose name is
in brackets; [Experiments](experiments.md) says what the methods are.
"""


def keep(name: str, folder: Path) -> None:
    """Copy the figures of all finished runs, and say where the scans lay in no more than names."""
    page = write_report(folder)
    kept = KEPT / name
    for path in sorted((folder / RUNS).glob(f"*/{RUN}")):
        place = kept / RUNS / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        for file in (path, path.with_name(ROWS)):
            shutil.copy(file, place)
    protocol = json.loads((folder / PROTOCOL).read_text())
    data = protocol["data"]
    for each in ("project", "folder", "images", "labels", "groups", "subjects"):
        if data[each] is not None:
            data[each] = Path(data[each]).name
    (kept / PROTOCOL).write_text(json.dumps(protocol, indent=1) + "\n")
    for picture in page.parent.glob("slices_*.png"):
        place = DOCS / PICTURES / name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place)


def write() -> None:
    """Write docs/results.md and its drawings."""
    parts = [INTRODUCTION]
    for kept in sorted(path.parent for path in KEPT.glob(f"*/{PROTOCOL}")):
        report = write_report(kept).parent
        title, _, tables = (report / "tables.md").read_text().partition("\n")
        parts.append(f"#{title} (`{kept.name}`)\n")
        reading = kept / "reading.md"
        if reading.exists():
            parts.append(reading.read_text())
        parts.append(tables)
        place = DOCS / PICTURES / kept.name
        place.mkdir(parents=True, exist_ok=True)
        for drawing in report.glob("*.png"):
            shutil.copy(drawing, place)
        for picture, caption in CAPTIONS.items():
            if (place / f"{picture}.png").exists():
                parts.append(f"![{caption}]({PICTURES / kept.name / picture}.png)\n\n{caption}\n")
    (DOCS / "results.md").write_text("\n".join(parts))


def begin(name: str, folder: Path, data: Path) -> None:
    """Lay the folder of an experiment whose kept runs are done."""
    if not (KEPT / name).is_dir() or folder.exists():
        raise ProtocolError(
            f"{folder}: is there already" if folder.exists() else f"no run of {name} is kept"
        )
    protocol: Protocol = load_protocol(Path(name), data)
    shutil.copytree(KEPT / name / RUNS, folder / RUNS)
    (folder / PROTOCOL).write_text(protocol.model_dump_json(indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    keeper = commands.add_parser("keep", help="copy the figures of an experiment")
    beginner = commands.add_parser("begin", help="lay a folder for the runs that are missing")
    for each in (keeper, beginner):
        each.add_argument("name")
        each.add_argument("folder", type=Path)
    beginner.add_argument("--data", type=Path, required=True)
    commands.add_parser("write", help="write docs/results.md")
    options = parser.parse_args()
    try:
        if options.command == "keep":
            keep(options.name, options.folder)
        elif options.command == "begin":
            begin(options.name, options.folder, options.data)
        else:
            write()
    except ProtocolError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
