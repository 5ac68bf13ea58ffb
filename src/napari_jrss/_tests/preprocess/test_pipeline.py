from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_jrss._tests.io.phantoms import (
    LPS_FROM_RAS,
    ORIENTATIONS,
    blobs,
    block_label,
    orientations,
    oriented_affine,
    origins,
    rotation,
    shapes,
    tilts,
    volume,
    write,
)
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ScanError
from napari_jrss.io.label_files import label_table_from_csv
from napari_jrss.io.layouts import FoundCase, discover
from napari_jrss.io.nifti import read_label_volume
from napari_jrss.io.read import read_volume
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.grid import training_grid
from napari_jrss.preprocess.pipeline import preprocess
from napari_jrss.preprocess.prealign import align
from napari_jrss.preprocess.resample import inside, resample_image, resample_label
from napari_jrss.preprocess.transform import GridTransform, TrainingGrid

PLAIN = PreprocessingConfig()


def dice(one, other, index):
    return (
        2
        * np.sum((one == index) & (other == index))
        / (np.sum(one == index) + np.sum(other == index))
    )


def same_world(transform: GridTransform, zyx_of_grid, zyx_of_source):
    """Whether a voxel of the training grid and one of the scan lie at one place."""
    here = transform.grid_affine @ (*zyx_of_grid[::-1], 1)
    there = np.array(transform.source_affine) @ (*zyx_of_source[::-1], 1)
    return np.allclose(here, there, atol=1e-6)


@given(orientations, tilts, origins, shapes, st.integers(0, 2**32 - 1))
def test_without_resampling_the_way_back_is_bit_for_bit(orientation, tilt, origin, shape, seed):
    rng = np.random.default_rng(seed)
    affine = oriented_affine(orientation, (1.5,) * 3, tilt, origin)
    image = volume(rng.normal(size=shape).astype(np.float32), affine)
    label = volume(rng.integers(0, 5, shape).astype(np.uint8), affine)
    label.array.flat[0] = 1
    grid = TrainingGrid(shape=(16, 16, 16), spacing_mm=(1.5, 1.5, 1.5))
    done = preprocess(image, label, PLAIN, grid)
    assert done.transform.exact
    assert done.label_kept == 1
    assert done.label.shape == done.image.shape == (16, 16, 16)
    transform = GridTransform.model_validate_json(done.transform.model_dump_json())
    assert transform == done.transform
    np.testing.assert_array_equal(transform.label_to_source(done.label), label.array)
    np.testing.assert_allclose(transform.image_to_source(done.image), image.array, atol=1e-5)
    spot = np.unravel_index(np.argmax(image.array), shape)
    assert same_world(transform, np.unravel_index(np.argmax(done.image), done.image.shape), spot)


@given(orientations, st.tuples(*[st.integers(8, 12)] * 3))
def test_a_crop_keeps_what_it_covers_and_loses_no_more(orientation, shape):
    label = block_label()
    affine = oriented_affine(orientation)
    done = preprocess(
        volume(blobs(), affine),
        volume(label, affine),
        PLAIN,
        TrainingGrid(shape=shape, spacing_mm=(1, 1, 1)),
    )
    back = done.transform.label_to_source(done.label)
    ones = done.transform.label_to_source(np.ones(shape, np.uint8)) > 0
    assert ones.sum() == np.prod(shape)
    np.testing.assert_array_equal(back, np.where(ones, label, 0))
    assert done.label_kept == pytest.approx(np.sum(back > 0) / np.sum(label > 0))


@pytest.mark.slow
@settings(max_examples=25)
@given(orientations, tilts, st.sampled_from([(0.7, 0.8, 0.9), (1.3, 1.0, 1.2), (0.5, 0.5, 1.5)]))
def test_resampled_labels_come_back_close_and_in_place(orientation, tilt, spacing):
    label = np.kron(block_label(), np.ones((2, 2, 2), np.uint8))
    affine = oriented_affine(orientation, tilt=tilt)
    grid = TrainingGrid(
        shape=tuple(int(max(label.shape) / s) + 2 for s in spacing), spacing_mm=spacing
    )
    done = preprocess(volume(blobs(label.shape), affine), volume(label, affine), PLAIN, grid)
    assert not done.transform.exact
    back = done.transform.label_to_source(done.label)
    assert back.shape == label.shape
    for index in (1, 2):
        assert dice(back, label, index) > 0.93
    volumes = [np.sum(done.label == i) * np.prod(spacing) for i in (1, 2)]
    np.testing.assert_allclose(volumes, [np.sum(label == 1), np.sum(label == 2)], rtol=0.1)


def test_left_and_right_never_change_sides():
    # The same patient in 48 file orders: one and the same training image, left on the left.
    truth = blobs()
    spot = (10, 5, 14)  # z up, y back, x left
    truth[spot] = 400
    results = []
    for orientation in ORIENTATIONS:
        order, signs = orientation
        array = truth.transpose(2, 1, 0)  # LPS (x, y, z)
        array = array[::-1, ::-1]  # RAS
        array = array.transpose(order)[tuple(slice(None, None, s) for s in signs)]
        vol = volume(array.transpose(2, 1, 0), oriented_affine(orientation))
        grid = TrainingGrid(shape=truth.shape, spacing_mm=(1, 1, 1))
        results.append(preprocess(vol, None, PLAIN, grid).image)
    for image in results:
        assert np.unravel_index(image.argmax(), image.shape) == spot
        np.testing.assert_array_equal(image, results[0])


@pytest.mark.parametrize("clip", [None, (1, 95)])
def test_each_image_is_normalised_where_the_scan_is(clip):
    array = blobs()
    array[3, 3, 3] = 1e6  # one hot voxel
    config = PreprocessingConfig(clip_percentiles=clip)
    grid = TrainingGrid(shape=(24, 24, 24), spacing_mm=(1, 1, 1))
    done = preprocess(volume(array), None, config, grid)
    covered = done.transform.matrix
    assert done.image.dtype == np.float32
    held = resample_image(np.ones_like(array), covered, grid.shape) > 0
    assert done.image[held].mean() == pytest.approx(0, abs=1e-4)
    assert done.image[held].std() == pytest.approx(1, abs=1e-4)
    assert (done.image[held].max() > 20) == (clip is None)
    if clip is None:
        np.testing.assert_allclose(
            done.transform.image_to_source(done.image), array, rtol=1e-4, atol=0.1
        )


def test_a_foreground_crop_follows_the_body():
    array = np.zeros((40, 40, 40), np.float32)
    array[24:36, 3:15, 20:30] = 100
    array += np.random.default_rng(0).normal(0, 1, array.shape)
    config = PreprocessingConfig(crop="foreground")
    grid = TrainingGrid(shape=(12, 12, 12), spacing_mm=(1, 1, 1))
    done = preprocess(volume(array, LPS_FROM_RAS), None, config, grid)
    np.testing.assert_array_equal(done.transform.matrix[:3, 3], (19, 3, 24))
    resized = preprocess(
        volume(array, LPS_FROM_RAS),
        None,
        PreprocessingConfig(crop="foreground", resize=True, shape=(8, 8, 8)),
        TrainingGrid(shape=(8, 8, 8), spacing_mm=(1, 1, 1)),
    )
    np.testing.assert_allclose(np.diag(resized.transform.matrix)[:3], (10 / 8, 12 / 8, 12 / 8))


def test_a_tie_between_classes_favours_none():
    # Shifted by half a voxel, every boundary sample is a tie.
    label = np.zeros((1, 1, 12), np.uint8)
    label[..., 3:7] = 2
    label[..., 7:9] = 1
    matrix = np.eye(4)
    matrix[0, 3] = 0.5
    moved = resample_label(label, matrix, label.shape)
    assert np.bincount(moved.ravel()).tolist() == np.bincount(label.ravel()).tolist()


@pytest.mark.parametrize("step", [0.31, 0.8, 1.7])
def test_probabilities_are_interpolated_alike_along_axes_and_across(step):
    """The quick way for grids with the same axes gives what the general one gives."""
    rng = np.random.default_rng(0)
    label = (40 * ndimage.gaussian_filter(rng.normal(size=(14, 15, 16)), 2)).clip(0, 4)
    label = label.astype(np.uint8)
    sure = rng.uniform(0.5, 1, label.shape)
    shares = [(label, sure), (ndimage.maximum_filter(label, 3), 1 - sure)]
    matrix = np.diag([step, 1.1 * step, 0.9 * step, 1])
    matrix[:3, 3] = -1.37
    leaning = matrix.copy()
    leaning[0, 1] = 1e-8
    shape = (40, 42, 44)
    found = resample_label(label, matrix, shape, shares)
    assert len(np.unique(found)) == 5
    np.testing.assert_array_equal(found, resample_label(label, leaning, shape, shares))
    # In the middle between two voxels, the surer one wins.
    pair, sure = np.array([[[1, 2]]], np.uint8), np.array([[[0.6, 0.9]]])
    half = np.diag([0.5, 1.0, 1.0, 1.0])
    found = resample_label(pair, half, (1, 1, 3), [(pair, sure), (pair[..., ::-1], 1 - sure)])
    assert found.tolist() == [[[1, 2, 2]]]


def test_what_lies_outside_the_array_is_background_or_fill():
    matrix = np.diag([0.7, 0.7, 0.7, 1.0])
    matrix[:3, 3] = -2
    assert resample_label(np.ones((4, 4, 4), np.uint8), matrix, (12, 12, 12))[0].sum() == 0
    image = resample_image(np.ones((4, 4, 4)), matrix, (12, 12, 12), fill=-5)
    assert set(np.unique(image)) == {-5, 1}


def test_values_come_back_with_the_fill_value_outside():
    grid = TrainingGrid(shape=(8, 8, 8), spacing_mm=(1, 1, 1))
    done = preprocess(volume(blobs()), None, PLAIN, grid)
    back = done.transform.values_to_source(np.full((8, 8, 8), 0.5, np.float32), fill=1)
    assert back.shape == blobs().shape
    assert set(np.unique(back)) == {0.5, 1}
    assert (back == 0.5).sum() == 512
    with pytest.raises(ValueError, match="training grid"):
        done.transform.label_to_source(np.zeros((7, 8, 8), np.uint8))


def test_reasons_to_refuse_a_case():
    image, label = volume(blobs()), volume(block_label())
    grid = TrainingGrid(shape=(16, 16, 24), spacing_mm=(1, 1, 1))
    far = np.eye(4)
    far[0, 3] = 5
    shifted = np.array(grid.shape), np.eye(4)
    shifted[1][:3, 3] = 500
    elsewhere = grid.model_copy(update={"affine": tuple(map(tuple, shifted[1].tolist()))})
    corner = np.zeros_like(label.array)
    corner[0, 0, 0] = 1
    small = TrainingGrid(shape=(8, 8, 8), spacing_mm=(1, 1, 1))
    for arguments, reason in [
        ((image, replace(label, array=label.array[1:]), PLAIN, grid), "label of shape"),
        ((image, volume(block_label(), far), PLAIN, grid), "label lies 5 mm away"),
        ((image, volume(np.zeros_like(label.array)), PLAIN, grid), "label is empty"),
        ((image, volume(corner), PLAIN, small), "label lies outside the training grid"),
        ((volume(np.full((9, 9, 9), 7.5)), None, PLAIN, grid), "image is constant"),
        ((image, None, PLAIN, elsewhere), "outside the training grid"),
    ]:
        with pytest.raises(ScanError, match=reason):
            preprocess(*arguments)


def cohort(tmp_path, *scans):
    """Cases from (image, label, affine) triples, arrays (z, y, x)."""
    cases = []
    for index, (image, label, affine) in enumerate(scans):
        (tmp_path / "labels").mkdir(exist_ok=True)
        path = write(tmp_path / f"c{index}.nii.gz", image.T, affine)
        mark = write(tmp_path / "labels" / f"c{index}.nii.gz", label.T, affine)
        cases.append(FoundCase(f"c{index}", path, mark))
    return cases


def test_the_cohort_decides_what_the_configuration_leaves_open(tmp_path):
    small = (blobs((9, 9, 9)), block_label((9, 9, 9)), LPS_FROM_RAS * 2.0)
    turned = oriented_affine(ORIENTATIONS[40], (1, 1, 1))
    large = (blobs((20, 33, 17)), block_label((20, 33, 17)), turned)
    small[2][3, 3] = 1
    cases = cohort(tmp_path, small, large)
    (tmp_path / "broken.nii").write_bytes(b"")
    cases.insert(0, FoundCase("broken", tmp_path / "broken.nii", tmp_path / "broken.nii"))
    grid = training_grid(cases, PLAIN)
    assert grid.spacing_mm == (2, 2, 2)
    size = np.array(read_volume(cases[2].image).to_lps().shape)
    assert grid.shape == tuple(8 * np.maximum(np.ceil(size / 16), 2).astype(int))
    grid = training_grid(cases, PreprocessingConfig(reference_case="c1", shape=(8, 16, 24)))
    assert (grid.spacing_mm, grid.shape) == ((1, 1, 1), (8, 16, 24))
    with pytest.raises(ScanError, match="no case 'x'"):
        training_grid(cases, PreprocessingConfig(reference_case="x"))
    with pytest.raises(ScanError, match="no scan can be read"):
        training_grid(cases[:1], PLAIN)
    with pytest.raises(ScanError, match="not a NIfTI"):
        training_grid(cases, PreprocessingConfig(reference_case="broken"))


@pytest.mark.slow
def test_a_crop_around_the_labels_holds_them_all(tmp_path):
    moved = np.eye(4)
    moved[:3, 3] = (6, 0, 0)
    cases = cohort(tmp_path, (blobs(), block_label(), np.eye(4)), (blobs(), block_label(), moved))
    config = PreprocessingConfig(crop="labelled")
    grid = training_grid(cases, config, workers=1)
    # Labels span x 3..14 in one scan and 9..20 in the other; y 5..12, z 4..11.
    assert grid.shape == (8, 8, 24)
    for case in cases:
        done = preprocess(read_volume(case.image), read_label_volume(case.label), config, grid)
        assert done.transform.exact
        assert done.label_kept == 1
    resized = training_grid(
        cases, PreprocessingConfig(crop="labelled", resize=True, shape=(8,) * 3)
    )
    assert resized.spacing_mm == pytest.approx((7 / 8, 7 / 8, 17 / 8))
    # Ids that are background in the table don't count.
    table = LabelTable.of_groups({"one": (1,)}, unlisted_is_background=True)
    assert training_grid(cases, config, table, workers=1).shape == (8, 8, 16)


def test_centre_of_mass_brings_bodies_together_without_resampling(tmp_path):
    away = np.eye(4)
    away[:3, 3] = (40, -30, 20)
    cases = cohort(
        tmp_path,
        (blobs(seed=1), block_label(), np.eye(4)),
        (
            np.roll(blobs(seed=2), (1, -2, 1), (0, 1, 2)),
            np.roll(block_label(), (1, -2, 1), (0, 1, 2)),
            away,
        ),
    )
    config = PreprocessingConfig(prealign="center_of_mass")
    grid = training_grid(cases, config)
    done = [
        preprocess(read_volume(c.image), read_label_volume(c.label), config, grid) for c in cases
    ]
    assert all(d.transform.exact for d in done)
    np.testing.assert_array_equal(done[0].label, done[1].label)


@pytest.mark.slow
def test_affine_prealignment_finds_a_known_map(tmp_path):
    big = blobs((36, 40, 44), seed=3)
    fixed = volume(big, np.eye(4))
    truth = np.eye(4)
    truth[:3, :3] = rotation(4, -6, 8) @ np.diag([1.05, 0.95, 1.0])
    centre = (fixed.affine @ (*((np.array(big.shape[::-1]) - 1) / 2), 1))[:3]
    truth[:3, 3] = centre - truth[:3, :3] @ centre + (3, -2, 1)
    # The moving scan shows at truth(p) what the reference shows at p.
    inverse = np.linalg.inv(fixed.affine) @ np.linalg.inv(truth) @ fixed.affine
    moved = resample_image(big, inverse, big.shape)
    label = np.kron(block_label(), np.ones((2, 2, 2), np.uint8))
    label = np.pad(label, [(0, n - m) for n, m in zip(big.shape, label.shape, strict=True)])
    cases = cohort(
        tmp_path,
        (big, label, np.eye(4)),
        (moved, resample_label(label, inverse, big.shape), np.eye(4)),
    )
    moving = read_volume(cases[1].image)
    found = align(moving, cases[0].image, "affine")
    corners = np.array([[0, 0, 0, 1], [-43, 0, 0, 1], [0, -39, 0, 1], [0, 0, 35, 1]])
    assert np.abs(corners @ (found - truth).T).max() < 1.5
    np.testing.assert_array_equal(found, align(moving, cases[0].image, "affine"))
    config = PreprocessingConfig(prealign="affine")
    grid = training_grid(cases, config)
    one, two = (
        preprocess(read_volume(c.image), read_label_volume(c.label), config, grid) for c in cases
    )
    assert one.transform.exact
    for index in (1, 2):
        before = dice(label, read_label_volume(cases[1].label).array, index)
        assert dice(one.label, two.label, index) > max(0.9, before)
    back = two.transform.label_to_source(two.label)
    assert dice(back, read_label_volume(cases[1].label).array, 2) > 0.93
    # grid_affine leads from the shared grid into each scan's own world.
    p = (20.0, 20.0, 18.0, 1.0)
    np.testing.assert_allclose(
        two.transform.grid_affine @ p, found @ one.transform.grid_affine @ p, atol=1e-6
    )


@pytest.mark.parametrize("name", ["hippocampus_msd", "ixi_brain_2mm"])
def test_real_labels_come_back_bit_for_bit(shared_data, name):
    cases = discover(shared_data / name).cases[:3]
    if name == "ixi_brain_2mm":
        table = label_table_from_csv(shared_data / name / "groups.csv")
    else:
        table = LabelTable.from_ids([1, 2])
    grid = training_grid(cases, PLAIN)
    assert all(n % 8 == 0 for n in grid.shape)
    for case in cases:
        label = read_label_volume(case.label)
        label = replace(label, array=table.to_classes(label.array))
        done = preprocess(read_volume(case.image), label, PLAIN, grid)
        assert done.transform.exact
        np.testing.assert_array_equal(done.transform.label_to_source(done.label), label.array)
        assert len(np.unique(done.label)) == len(table.classes)


def test_a_real_head_stands_upright(shared_data):
    table = label_table_from_csv(shared_data / "ixi_brain_2mm" / "groups.csv")
    case = discover(shared_data / "ixi_brain_2mm").cases[0]
    raw = read_label_volume(case.label)
    label = replace(raw, array=table.to_classes(raw.array))
    done = preprocess(read_volume(case.image), label, PLAIN, training_grid([case], PLAIN))
    centres = {n: np.argwhere(done.label == i).mean(0) for i, n in enumerate(table.names) if i}
    assert centres["parietal"][0] > centres["cerebellum_brainstem"][0] + 15  # above
    assert centres["occipital"][1] > centres["frontal"][1] + 30  # behind
    # Left and right caudate by the files' own ids, on the training grid.
    sides = {
        side: np.argwhere(
            resample_label(
                (raw.array == i).astype(np.uint8), done.transform.matrix, done.transform.shape
            )
        )
        for side, i in {"right": 36, "left": 37}.items()
    }
    assert sides["left"].mean(0)[2] > sides["right"].mean(0)[2] + 5


def test_a_tilted_scan_is_seen_upright_and_labelled_on_its_own_slices():
    """A CT of a tilted gantry: each slice a little further back than the one before."""
    tilted = np.diag([1.0, 1.0, 2.0, 1.0])
    tilted[1, 2] = 2 * np.tan(np.deg2rad(20))
    tilted[:3, 3] = (3, -4, 5)

    def ball(affine, shape):
        z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
        world = np.stack([x, y, z, np.ones_like(x)], -1) @ affine.T
        return np.linalg.norm(world[..., :3] - (19, 21, 21), axis=-1)

    shape = (20, 30, 34)
    distance = ball(tilted, shape)
    scan = Volume((100 - 3 * distance).astype(np.float32), tilted)
    label = Volume((distance < 9).astype(np.uint8), tilted)
    for crop in ("center", "foreground"):
        config = PreprocessingConfig(crop=crop)
        grid = TrainingGrid(shape=(24, 48, 40), spacing_mm=(2, 1, 1))
        done = preprocess(scan, label, config, grid)
        placed = done.transform.grid_affine
        linear = placed[:3, :3] / np.linalg.norm(placed[:3, :3], axis=0)
        np.testing.assert_allclose(linear, np.eye(3), atol=1e-6)  # no shear, and LPS
        # The grid covers the whole scan, and a ball is a ball on it.
        truth = ball(placed, grid.shape)
        covered = inside(done.transform.matrix, grid.shape, shape)
        assert covered.sum() > 0.9 * np.prod(shape)
        scale = done.transform.intensity
        seen = (done.image * scale.std + scale.mean)[covered & (truth > 3)]
        off = np.abs(seen - (100 - 3 * truth[covered & (truth > 3)]))
        assert np.quantile(off, 0.95) < 0.1
        assert off.max() < 1.6  # half a voxel beyond the last row's centre
        upright = truth < 9
        assert 2 * (upright & (done.label == 1)).sum() > 0.97 * (upright.sum() + done.label.sum())
        # Slices stay slices: along z nothing is interpolated.
        np.testing.assert_allclose(done.transform.matrix[2, :2], 0, atol=1e-9)
        np.testing.assert_allclose(done.transform.matrix[2] % 1 % 1, 0, atol=1e-6)
        back = done.transform.label_to_source(done.label)
        assert 2 * (back & label.array).sum() > 0.96 * (back.sum() + label.array.sum())
