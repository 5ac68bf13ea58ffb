"""The plan: the finest grid that keeps to a budget, on any cohort and machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from napari_jrss import threads
from napari_jrss.config import PreprocessingConfig, preset
from napari_jrss.errors import ScanError
from napari_jrss.geometry import Shape, Triple
from napari_jrss.io.found import FoundCase
from napari_jrss.labels import BACKGROUND, LabelClass, LabelTable
from napari_jrss.preprocess import cost
from napari_jrss.preprocess.cost import Machine, learn_speed, step_seconds, training_cost
from napari_jrss.preprocess.facts import ScanFacts, scan_facts
from napari_jrss.preprocess.plan import BUDGETS_S, Plan, budget_seconds, make_plan, make_plans

LAPTOP = Machine("cpu", 2, 16 * 2**30, 0.6)
SERVER = Machine("cuda", 16, 80 * 2**30, 0.01)
HU = (-1000.0, 1500.0)


def structures(count: int) -> LabelTable:
    classes = [
        LabelClass(index=i, name=f"structure {i}", colour="#ffffff", source_ids=(i,))
        for i in range(1, count + 1)
    ]
    return LabelTable(classes=(BACKGROUND, *classes))


def cohort(
    shape: Shape,
    spacing: Triple,
    count: int = 10,
    volumes_ml: Sequence[float] = (5.0,),
    **more: object,
) -> list[ScanFacts]:
    """Scans of one kind, the first with a label."""
    volumes = dict(enumerate(volumes_ml, start=1))
    first = ScanFacts("a", shape, spacing, structures_ml=volumes, **more)  # type: ignore[arg-type]
    return [first, *(ScanFacts(f"s{i}", shape, spacing) for i in range(count - 1))]


def plan(facts: Sequence[ScanFacts], count: int = 1, **more: object) -> Plan:
    machine = more.pop("machine", LAPTOP)
    return make_plan(facts, structures(count), machine, **more)  # type: ignore[arg-type]


def test_a_coarser_grid_is_followed_by_the_scans_own_voxels_if_there_is_time() -> None:
    wishes = PreprocessingConfig(spacing_mm=(2.0, 2.0, 2.0))
    few = plan(cohort((160, 192, 160), (1, 1, 1)), wishes=wishes)
    assert few.config().fine == preset("fast").fine
    assert any("300 steps at the scans' own voxels" in reason for reason in few.reasons)
    many = cohort((256, 256, 256), (1, 1, 1), volumes_ml=[9.0] * 138)
    quick = plan(many, 138, level="quick")
    assert quick.config().fine.steps == 0
    assert any("labels are interpolated" in reason for reason in quick.reasons)
    for scans in (cohort((35, 51, 35), (1, 1, 1)), cohort((70, 90, 70), (2, 2, 2))):
        assert not any("own voxels" in reason for reason in plan(scans, wishes=wishes).reasons[1:])


def test_large_scans_are_learned_from_a_grid_that_is_up_to_twice_as_coarse() -> None:
    heads = cohort((160, 192, 160), (1, 1, 1), count=30, volumes_ml=[8.0] * 10)
    usual, fine = (plan(heads, 10, level=level) for level in ("balanced", "fine"))
    assert usual.spacing_mm == plan(heads, 10, budget_s=7200.0).spacing_mm == (2, 2, 2)
    assert usual.config().fine.steps > 0
    assert usual.pretraining_s < 20 * 60
    assert usual.memory < 3 * 2**30
    assert any("a grid up to 2 times coarser" in reason for reason in usual.reasons)
    assert fine.spacing_mm == (1, 1, 1)
    # the first one of which crops see as much as usual, if there is one
    brains = cohort((80, 96, 80), (2, 2, 2))
    assert plan(brains).spacing_mm == (3, 3, 3)
    # but no structure gets too small by it
    tiny = cohort((160, 192, 160), (1, 1, 1), count=30, volumes_ml=[8.0] * 9 + [0.05])
    assert plan(tiny, 10).spacing_mm == (1, 1, 1)
    assert plan(tiny, 10).small == {}


def test_the_memory_counts_the_scans_whose_own_voxels_are_learned() -> None:
    """A training on 4 CT of 512x512x200 and 300 had 2.16 GiB at its peak, on the grid 0.7."""
    scans = cohort((300, 512, 512), (2.5, 0.8, 0.8), count=4, foreground_mm=(500, 270, 270))
    made = plan(scans, 5, budget_s=1200.0)
    assert made.config().fine.steps > 0
    assert 2.16 / 1.2 < made.memory / 2**30 < 2.16 * 1.6
    here = plan(scans, 5, budget_s=1200.0, machine=Machine("cpu", 2, 2 * 2**30, 0.6))
    assert here.fits
    assert here.config().fine.steps == 0
    assert any("needs more memory" in reason for reason in here.reasons)


def test_small_scans_keep_their_own_voxels_and_the_usual_training() -> None:
    made = plan(cohort((35, 51, 35), (1, 1, 1)))
    assert (made.shape, made.spacing_mm, made.fits) == ((40, 56, 40), (1, 1, 1), True)
    usual = preset("fast").model_dump()
    usual["segmentation"]["strong_intensity"] = 0.5
    assert made.config().model_dump() == usual
    assert made.small == {}
    assert made.pretraining_s + made.round_s <= BUDGETS_S["balanced"]


def test_few_structures_are_learned_from_scans_that_look_different_too() -> None:
    few, many = (plan(cohort((35, 51, 35), (1, 1, 1), volumes_ml=[5.0] * n), n) for n in (3, 4))
    assert few.config().segmentation.strong_intensity == 0.5
    assert few.reasons[-1].startswith("50 % of the labelled scans are made to look different")
    assert many.config() == preset("fast")
    assert not any("look different" in reason for reason in many.reasons)


@pytest.mark.parametrize(
    ("shape", "spacing", "count"),
    [
        ((200, 512, 512), (3.0, 0.8, 0.8), 4),
        ((256, 256, 256), (1.0, 1.0, 1.0), 138),
        ((60, 512, 512), (5.0, 0.4, 0.4), 3),
    ],
    ids=["CT", "brains", "thick slices"],
)
def test_any_cohort_fits_and_more_time_is_finer(shape: Shape, spacing: Triple, count: int) -> None:
    plans = make_plans(cohort(shape, spacing, volumes_ml=[9.0] * count), structures(count), LAPTOP)
    sizes = []
    for level, made in plans.items():
        assert made.fits
        assert made.pretraining_s + made.round_s <= BUDGETS_S[level]
        assert made.memory <= 0.7 * LAPTOP.memory
        assert all(n % 8 == 0 for n in made.shape)
        # an axis is never finer than the scans', and holds them
        assert all(s >= n - 1e-6 for s, n in zip(made.spacing_mm, spacing, strict=True))
        held = np.array(made.shape) * made.spacing_mm + 0.1
        assert (held >= np.array(shape) * spacing).all()
        sizes.append(np.prod(made.shape))
        # what a crop sees is enough to know where it is
        assert np.prod(made.config().segmentation.crop(made.shape)) >= 0.07 * sizes[-1]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    on_server = make_plan(
        cohort(shape, spacing, volumes_ml=[9.0] * count), structures(count), SERVER, "quick"
    )
    assert np.prod(on_server.shape) > sizes[0]


def test_thick_slices_stay_and_only_the_fine_axes_get_coarser() -> None:
    made = plan(cohort((24, 512, 512), (5.0, 0.4, 0.4)), level="quick")
    assert made.spacing_mm[0] == 5.0
    assert 0.4 < made.spacing_mm[1] < 5.0


def test_structures_that_get_too_small_are_named_with_their_voxels() -> None:
    facts = cohort((160, 192, 160), (1, 1, 1), volumes_ml=[20.0, 0.05])
    made = plan(facts, 2, level="quick")
    voxel_ml = np.prod(made.spacing_mm) / 1000
    assert made.small == {"structure 2": round(0.05 / voxel_ml)}
    assert "1 structures have fewer than 30 voxels" in " ".join(made.reasons)


def test_what_was_given_stays() -> None:
    wishes = PreprocessingConfig(spacing_mm=(2, 2, 2), prealign="affine", clip_percentiles=(1, 99))
    made = plan(cohort((160, 192, 160), (1, 1, 1), ct=True, window=HU), wishes=wishes)
    assert made.preprocessing == wishes  # with the alignment, the import finds the shape
    assert made.shape == (80, 96, 80)
    shape = plan(cohort((160, 192, 160), (1, 1, 1)), wishes=PreprocessingConfig(shape=(64, 64, 64)))
    assert shape.preprocessing.shape == (64, 64, 64)
    assert shape.spacing_mm == (1, 1, 1)
    assert Plan.model_validate_json(made.model_dump_json(exclude_unset=True)).wishes == wishes


def test_a_budget_that_nothing_keeps_to_is_said() -> None:
    made = plan(cohort((64, 64, 64), (1, 1, 1)), budget_s=1.0)
    assert not made.fits
    assert "no voxel size keeps to 1 s" in made.reasons
    given = PreprocessingConfig(shape=(80, 80, 80), spacing_mm=(4, 4, 4))
    assert not plan(cohort((64, 64, 64), (1, 1, 1)), budget_s=1.0, wishes=given).fits
    tiny = Machine("cpu", 1, 2**28, 1.0)
    little = plan(cohort((64, 64, 64), (1, 1, 1)), machine=tiny)
    assert (little.fits, little.shape) == (False, (32, 32, 32))
    assert "no voxel size fits into the memory" in " ".join(little.reasons)


def test_the_grid_is_centred_on_a_body_that_holds_the_labels() -> None:
    def seen(inside: float) -> list[ScanFacts]:
        return cohort(
            (100, 400, 400), (3, 1, 1), foreground_mm=(300, 250, 250), label_inside=inside
        )

    inside = plan(seen(1.0), level="fine")
    assert inside.preprocessing.crop == "foreground"
    assert inside.shape[1] * inside.spacing_mm[1] < 300
    assert plan(seen(0.9), level="fine").preprocessing.crop == "center"


def test_ct_is_clipped_to_the_values_of_its_structures() -> None:
    def ct(name: str, low: float, high: float) -> ScanFacts:
        return ScanFacts(name, (40, 40, 40), (3, 3, 3), ct=True, window=(low, high))

    made = plan([ct("a", -80.4, 150), ct("b", -50, 210.2)])
    assert made.preprocessing.clip_values == (-81, 211)
    mixed = [ct("a", -80, 150), ScanFacts("m", (40, 40, 40), (3, 3, 3), ct=False)]
    assert plan(mixed).preprocessing.clip_values is None


def test_no_scan_is_an_error() -> None:
    with pytest.raises(ScanError, match="no scan can be read"):
        plan([])


@pytest.mark.parametrize(
    ("text", "seconds"), [("20min", 1200), ("2h", 7200), (" 1.5 h ", 5400), ("night", 36000)]
)
def test_budgets(text: str, seconds: float) -> None:
    assert budget_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "0min", "-3h", "2 days", "h"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ScanError, match="20min, 2h or night"):
        budget_seconds(text)


def test_the_machine_learns_its_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config, shape = preset("fast"), (64, 64, 64)
    crop = int(np.prod(config.segmentation.crop(shape)))
    model = step_seconds("mono_segmentation", crop, 4)
    before = cost.this_machine("cpu")
    assert not before.known
    learn_speed("cpu", {"mono_segmentation": [3 * model]}, config, shape, 4)
    after = cost.this_machine("cpu")
    assert after.known
    assert after.speed == pytest.approx(3.0)
    learn_speed("cpu", {"mono_segmentation": [model]}, config, shape, 4)
    assert cost.this_machine("cpu").speed == pytest.approx(2.0)
    learn_speed("cpu", {"mono_segmentation": [99.0]}, preset("paper"), shape, 4)
    learn_speed("cpu by ssh", {"mono_segmentation": [99.0]}, config, shape, 4)
    assert cost.this_machine("cpu").speed == pytest.approx(2.0)
    # a few slow steps of another stage count no more than they took
    odd = step_seconds("propagation", int(np.prod(shape)), 4)
    taken = {"mono_segmentation": [2 * model] * 500, "propagation": [10 * odd] * 2}
    learn_speed("cpu", taken, config, shape, 4)
    expected = (1000 * model + 20 * odd) / (500 * model + 2 * odd)
    assert cost.this_machine("cpu").speed == pytest.approx((2.0 + expected) / 2)
    cores = before.cores
    with monkeypatch.context() as other:  # other cores, or fewer threads, are another machine
        other.setattr(threads, "available_cores", lambda: cores + 1)
        assert not cost.this_machine("cpu").known
        other.setenv("OMP_NUM_THREADS", str(cores))
        assert cost.this_machine("cpu").cores == cores
        assert cost.this_machine("cpu").known
    (tmp_path / "napari-jrss" / "speed.json").write_text("damaged")
    assert not cost.this_machine("cpu").known
    slow, fast = (
        training_cost(config, shape, 4, 10, 5, Machine("cpu", 2, 1e10, s)) for s in (2.0, 1.0)
    )
    assert slow.seconds == pytest.approx(2 * fast.seconds)


def save(path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], mm: Triple) -> Path:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*mm, 1])), path)
    return path


def test_facts_of_a_ct_with_a_table_and_an_unreadable_scan(tmp_path: Path) -> None:
    """A body of 24 x 20 x 16 voxels of 2 x 2 x 3 mm in air, with an organ of 5 HU in it."""
    values = np.full((40, 40, 20), -1024, np.int16)
    values[8:32, 10:30, 2:18] = 40
    values[20, 20, 10] = 900
    organ = np.zeros(values.shape, np.uint8)
    organ[14:20, 14:20, 6:12] = 1
    values[organ > 0] = 5
    scan = save(tmp_path / "i" / "a.nii.gz", values, (2, 2, 3))
    label = save(tmp_path / "l" / "a.nii.gz", organ, (2, 2, 3))
    broken = tmp_path / "i" / "b.nii.gz"
    broken.write_bytes(b"no scan")
    found = list(scan_facts([FoundCase("a", scan, label), FoundCase("b", broken)], structures(1)))
    assert found[1] is None
    facts = found[0]
    assert facts is not None
    assert (facts.shape, facts.spacing_mm, facts.ct) == ((20, 40, 40), (3, 2, 2), True)
    assert facts.foreground_mm == (16 * 3, 20 * 2, 24 * 2)
    assert facts.label_inside == 1.0
    assert facts.window == (5, 5)
    assert facts.structures_ml == {1: pytest.approx(6**3 * 12 / 1000)}


def test_of_many_scans_without_a_label_only_some_are_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    cases = [
        FoundCase(f"c{i:02}", save(tmp_path / f"c{i:02}.nii.gz", values, (1, 1, 1)))
        for i in range(20)
    ]
    facts = [each for each in scan_facts(cases, None) if each is not None]
    assert len(facts) == 20
    assert sum(each.foreground_mm is not None for each in facts) <= 8
