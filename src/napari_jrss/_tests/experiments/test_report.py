"""Tables say what the rows say, and the page holds everything it shows."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_jrss.experiments.methods import METHODS
from napari_jrss.experiments.protocol import ProtocolError, Run
from napari_jrss.experiments.report import write_report
from napari_jrss.experiments.results import MethodResults, holm, paired_p, read_results
from napari_jrss.experiments.run import RunEnded
from napari_jrss.experiments.tables import by_round, comparison, gains, over_labelled, variants

pytestmark = pytest.mark.slow

Experiment = tuple[Path, list[RunEnded[Run]]]


def figures(
    dice: dict[str, float], seed: int = 0, round: int = 0, task: str = "segmentation"
) -> pd.DataFrame:
    """The Dice of one structure in some cases, as a run writes it."""
    rows = [
        {
            **{"run": f"seed{seed}", "seed": seed, "round": round, "task": task, "case": case},
            **{"moving": "", "structure": "a", "metric": "dice", "value": value},
        }
        for case, value in dice.items()
    ]
    return pd.DataFrame(rows)


def result(method: str, dice: dict[str, float], seed: int = 0, **changes: object) -> MethodResults:
    """A method whose only figure is the Dice of one structure in some cases."""
    fields: dict[str, object] = {
        "method": METHODS[method],
        "labelled": 5,
        "variant": "",
        "runs": (
            {
                "run": method,
                "seed": seed,
                "parameters": {"segmentation": 12_345},
                "note": "",
                "config": {"screening": {"tau": 0.7}},
            },
        ),
        "table": figures(dice, seed),
    }
    return MethodResults(**(fields | changes))  # type: ignore[arg-type]


def series(values: dict[tuple[int, str, str], float]) -> pd.Series:
    """Figures by seed, case and moving case."""
    index = pd.MultiIndex.from_tuples(list(values), names=["seed", "case", "moving"])
    return pd.Series(list(values.values()), index)


LOW = {f"case{i}": 0.5 + 0.01 * i for i in range(8)}
HIGH = {case: value + 0.1 for case, value in LOW.items()}


def test_holm_is_what_the_textbook_has() -> None:
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_only_raises_and_keeps_the_order(p_values: list[float]) -> None:
    corrected = [p for p in holm(p_values) if p is not None]
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)


def test_the_test_pairs_the_common_cases() -> None:
    first = {(0, case, ""): value for case, value in HIGH.items()}
    second = {(0, case, ""): value for case, value in LOW.items()}
    other = {(1, "case0", ""): 9.0}
    assert paired_p(series(first), series(second | other)) == pytest.approx(2 / 2**8)
    assert paired_p(series(first), series(first)) == 1.0
    assert paired_p(series(first), series(other)) is None


def test_a_case_of_several_seeds_counts_once() -> None:
    first = {(seed, case, ""): HIGH[case] for seed in range(3) for case in HIGH}
    second = {(seed, case, ""): LOW[case] for seed in range(3) for case in LOW}
    assert paired_p(series(first), series(second)) == pytest.approx(2 / 2**8)


def test_a_table_has_mean_std_best_in_bold_and_p() -> None:
    table = comparison([result("mono", LOW), result("jrss", HIGH)], 5, "segmentation", None)
    mono, jrss = table.rows
    assert (mono[0].text, jrss[0].text) == ("Mono-Net", "JRSS")
    assert (jrss[1].text, jrss[1].best) == ("0.635 (0.023)", True)
    assert (mono[1].text, mono[1].best) == ("0.535 (0.023)", False)
    gain = table.header.index("Dice against JRSS")
    assert [cell.text for cell in mono[gain : gain + 3]] == ["-0.100", "0.008", "12,345"]
    assert [cell.text for cell in jrss[gain : gain + 2]] == ["–", "–"]  # noqa: RUF001
    assert "| Mono-Net | 0.535 (0.023) |" in table.markdown()
    assert "JRSS & \\textbf{0.635 (0.023)} &" in table.latex()
    assert "<td><b>0.635 (0.023)</b></td>" in table.html()


def test_a_mean_over_fewer_seeds_is_no_best_one() -> None:
    first, second = (result("jrss", values, seed) for seed, values in enumerate((HIGH, LOW)))
    both = replace(
        first,
        runs=first.runs + second.runs,
        table=pd.concat([first.table, second.table]),
    )
    jrss, mono = comparison([both, result("mono", HIGH)], 5, "segmentation", None).rows
    assert (jrss[1].text, mono[1].text) == ("0.585 (0.055)", "0.635 (0.023)")
    assert (jrss[1].best, mono[1].best) == (True, False)
    assert mono[3].text == "+0.000"  # on the seed that both have


def test_the_papers_figures_stand_only_beside_its_own_experiment() -> None:
    results = [result("mono", LOW), result("jrss", HIGH)]
    assert "0.795 (0.126)" in comparison(results, 5, "segmentation", "lpba40").markdown()
    assert "paper" not in comparison(results, 5, "segmentation", None).markdown()
    others = [result("jrss", HIGH, labelled=3)]
    assert "paper" not in comparison(others, 3, "segmentation", "lpba40").markdown()


def test_a_variant_is_compared_on_the_seeds_that_both_have() -> None:
    whole = result("jrss", HIGH)
    more = pd.concat([whole.table, figures({"case0": 0.0}, seed=1)])
    table = variants(
        [result("jrss", HIGH, table=more), result("jrss", LOW, variant="no_ema")],
        5,
        ["no_ema"],
        "ablations",
    )
    assert table.rows[1][0].text == "JRSS without averaged teacher"
    assert table.rows[1][2].text == "-0.100"


def test_a_variant_of_what_jrss_starts_from_stands_beside_it() -> None:
    results = [
        result("mono", LOW),
        result("mono", HIGH, variant="unet"),
        result("mono_refined", HIGH),
        result("jrss", LOW),
        result("jrss", HIGH, variant="unet"),
        result("jrss", HIGH, variant="no_ema"),
    ]
    rows = variants(results, 5, ["unet"], "ablations").rows
    assert [(row[0].text, row[2].text) for row in rows] == [
        ("Mono-Net", "+0.000"),
        ("Mono-Net with U-Nets instead of obelisk", "+0.100"),
        ("JRSS", "–"),  # noqa: RUF001
        ("JRSS with U-Nets instead of obelisk", "+0.100"),
    ]
    assert rows[0][4].text == "–"  # noqa: RUF001


def test_n_runs_up_with_k_last() -> None:
    results = [result("jrss", LOW, labelled=n) for n in ("K", 7, 10, 1)]
    assert [row[0].text for row in over_labelled(results).rows] == ["1", "7", "10", "K"]


def test_a_round_that_could_not_be_run_leaves_its_seed_the_figures_of_the_one_before(
    experiment: Experiment, tmp_path: Path
) -> None:
    runs = shutil.copytree(experiment[0], tmp_path / "copy") / "runs"
    other = shutil.copytree(runs / "jrss-n2-seed0", runs / "jrss-n2-seed1")
    about = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**about, "run": "jrss-n2-seed1", "seed": 1}))
    rows = list(
        csv.DictReader(gzip.decompress((other / "rows.csv.gz").read_bytes()).decode().splitlines())
    )
    kept = [{**row, "seed": "1"} for row in rows if row["round"] == "1"]
    written = io.StringIO()
    writer = csv.DictWriter(written, rows[0])
    writer.writeheader()
    writer.writerows(kept)
    (other / "rows.csv.gz").write_bytes(gzip.compress(written.getvalue().encode()))
    jrss = next(r for r in read_results(runs.parent) if r.method.name == "jrss" and not r.variant)
    assert jrss.rounds == [1, 2]
    first, second = (jrss.after(n).samples("segmentation", "dice") for n in (1, 2))
    assert {seed for seed, *_ in second.index} == {0, 1}
    for sample, value in second.items():
        assert (value == first[sample]) == (sample[0] == 1)


def test_rounds_are_told_from_the_mono_nets_on() -> None:
    first = figures({case: value + 0.05 for case, value in LOW.items()}, round=1)
    jrss = result("jrss", HIGH, table=pd.concat([first, figures(HIGH, round=2)]))
    table = by_round([result("mono", LOW), jrss])
    told = [(row[2].text, row[3].text) for row in table.rows]
    assert told == [
        ("Mono-Nets", "0.535 (0.023)"),
        ("round 1", "0.585 (0.023)"),
        ("round 2", "0.635 (0.023)"),
    ]
    assert by_round([jrss]).rows == ()  # nothing to start from


def test_gains_are_those_of_the_same_cases() -> None:
    mixed = HIGH | {"case0": LOW["case0"] - 0.1}
    pair = figures({"fixed": 0.5}, task="registration")
    mono = result("mono", {}, table=pd.concat([figures(LOW | {"other": 0.0}), pair]))
    jrss = result("jrss", {}, table=pd.concat([figures(mixed), pair]))
    (row,) = gains([mono, jrss]).rows
    told = [cell.text for cell in row]
    assert told == ["5", "0", "+0.075", "7 of 8", "+0.000", "0 of 1"]


def test_the_report_of_a_real_experiment(experiment: Experiment, tmp_path: Path) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    page = write_report(out)
    text = page.read_text()
    tables = (page.parent / "tables.md").read_text()
    # nothing is loaded from elsewhere
    assert not re.search(r'(src|href)="(?!data:)', text)
    for name in ("boxes_segmentation", "boxes_registration", "slices_registration", "tau"):
        assert (page.parent / f"{name}.png").stat().st_size > 5000
        assert (page.parent / f"{name}.svg").read_text().startswith("<?xml")
    assert text.count("<figure>") == len(list(page.parent.glob("*.png")))
    assert "jrss-n2-seed0-tau0.999: round 1 not run" in tables
    with (out / "results.csv").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["run"], row["task"], row["round"]) == ("jrss-n2-seed0", "segmentation", "2")
        ]
    by_case: dict[str, list[float]] = {}
    for row in rows:
        if row["metric"] == "dice":
            by_case.setdefault(row["case"], []).append(float(row["value"]))
    means = [np.mean(values) for values in by_case.values()]
    assert f"{np.mean(means):.3f} ({np.std(means):.3f})" in tables


def test_the_same_runs_make_the_same_drawing(experiment: Experiment, tmp_path: Path) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    drawings = [(write_report(out).parent / "tau.svg").read_bytes() for _ in range(2)]
    assert drawings[0] == drawings[1]


def test_what_was_not_run_is_named_as_only_takes_it(experiment: Experiment, tmp_path: Path) -> None:
    out = shutil.copytree(experiment[0], tmp_path / "copy")
    assert "Not run" not in (write_report(out).parent / "tables.md").read_text()
    shutil.rmtree(out / "runs" / "initial-n0-seed0")
    tables = (write_report(out).parent / "tables.md").read_text()
    assert "Not run (seeds in brackets): initial-n0-seed* (0)." in tables


def test_a_folder_without_runs_is_told(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="not the folder of an experiment"):
        write_report(tmp_path)
    shutil.copy(experiment[0] / "protocol.json", tmp_path)
    with pytest.raises(ProtocolError, match="no finished run"):
        write_report(tmp_path)
    with pytest.raises(ProtocolError, match="no run has N = 9; known: 0, 2"):
        write_report(experiment[0], "9")
