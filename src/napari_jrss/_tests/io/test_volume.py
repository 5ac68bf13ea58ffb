import gzip
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_jrss._tests.io.phantoms import (
    LPS_FROM_RAS,
    ORIENTATIONS,
    orientations,
    oriented_affine,
    origins,
    shapes,
    tilts,
    volume,
    write,
    zooms,
)
from napari_jrss.errors import ScanError
from napari_jrss.io.nifti import read_label_volume, write_nifti
from napari_jrss.io.read import read_header, read_volume
from napari_jrss.io.volume import ScanHeader


def world_of(vol, zyx):
    z, y, x = zyx
    return (vol.affine @ (x, y, z, 1))[:3]


@given(orientations, zooms, tilts, origins, shapes)
def test_turning_to_lps_keeps_every_voxel_in_its_place(orientation, zoom, tilt, origin, shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    vol = volume(array, oriented_affine(orientation, zoom, tilt, origin))
    turned = vol.to_lps()
    # Each axis points along its own world axis more than along any other's opposite.
    assert (np.diag(turned.affine)[:3] > 0).all()
    assert sorted(turned.spacing_mm) == pytest.approx(sorted(zoom))
    for value in (0, array.size // 2, array.size - 1):
        before, after = np.argwhere(array == value)[0], np.argwhere(turned.array == value)[0]
        np.testing.assert_allclose(world_of(vol, before), world_of(turned, after), atol=1e-6)
    back = turned.to_axes_of(vol)
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_array_equal(back.affine, vol.affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_left_stays_left_whatever_the_file_order(tmp_path, orientation):
    # One marker at the patient's left, one in front, one above, written in 48 orders.
    centre = np.array([7.0, 9.0, 11.0])
    markers = {"left": (-3, 0, 0), "front": (0, 4, 0), "above": (0, 0, 5)}  # RAS mm
    array = np.zeros([(15, 19, 23)[world] for world in orientation[0]], np.uint8)
    affine = oriented_affine(orientation)
    middle = (np.array(array.shape) - 1) / 2
    affine[:3, 3] = centre - affine[:3, :3] @ middle
    for value, offset in enumerate(markers.values(), start=1):
        i, j, k = np.rint(np.linalg.inv(affine) @ (*(centre + offset), 1))[:3].astype(int)
        array[i, j, k] = value
    turned = read_label_volume(write(tmp_path / "a.nii.gz", array, affine)).to_lps()
    assert turned.shape == (23, 19, 15)
    middle = (np.array(turned.shape) - 1) / 2
    found = [np.argwhere(turned.array == v)[0] - middle for v in (1, 2, 3)]
    np.testing.assert_array_equal(found, [(0, 0, 3), (0, -4, 0), (5, 0, 0)])


def test_agrees_with_nibabel_on_values_and_affine(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 200, (4, 5, 6)).astype(np.uint8)
    path = write(tmp_path / "a.nii.gz", array, oriented_affine(ORIENTATIONS[11], (1, 2, 3)))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[112:120] = struct.pack("<ff", 2.5, -7)  # slope and intercept
    path.write_bytes(gzip.compress(bytes(content)))
    theirs = nib.load(path)
    ours = read_volume(path)
    assert theirs.get_fdata().min() < 0
    np.testing.assert_array_equal(ours.array, theirs.get_fdata(dtype=np.float32).T)
    np.testing.assert_allclose(ours.affine, LPS_FROM_RAS @ theirs.affine)
    assert ours.spacing_mm == (3, 2, 1)


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "i4", ">f4", "f8"])
def test_any_common_number_type(tmp_path, dtype):
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    nib.Nifti1Image(array, np.eye(4), header).to_filename(tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").array.T, array)
    np.testing.assert_array_equal(read_label_volume(tmp_path / "a.nii").array.T, array)


def test_one_frame_nifti2_and_a_wrong_suffix(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nib.Nifti2Image(array[..., None], np.eye(4)).to_filename(tmp_path / "frame.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "frame.nii").array.T, array)
    packed = tmp_path / "packed.nii"
    packed.write_bytes(gzip.compress((tmp_path / "frame.nii").read_bytes()))
    np.testing.assert_array_equal(read_volume(packed).array.T, array)


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.AnalyzeImage])
def test_pairs_of_header_and_image(tmp_path, kind):
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    kind(array, np.diag([-1.0, 1, 1, 1])).to_filename(tmp_path / "S01.hdr")
    vol = read_volume(tmp_path / "S01.hdr")
    np.testing.assert_array_equal(vol.array.T, array)
    assert vol.affine[0, 0] == 1  # the first axis grows to the left
    (tmp_path / "S01.img").unlink()
    with pytest.raises(ScanError, match=r"S01\.hdr: has no \.img beside it"):
        read_volume(tmp_path / "S01.hdr")


def test_labels_are_exact(tmp_path):
    array = np.array([[[0, 70001, -3]]], np.int32)
    assert read_label_volume(write(tmp_path / "i.nii", array)).array.ravel().tolist() == [
        0,
        70001,
        -3,
    ]
    path = write(tmp_path / "f.nii.gz", np.array([[[0, 1.5]]], np.float32))
    with pytest.raises(ScanError, match=r"f\.nii\.gz: label holds 1.5, not a whole number"):
        read_label_volume(path)


@pytest.mark.slow
@given(
    orientations,
    zooms,
    tilts,
    origins,
    st.sampled_from([(0, 0), (1, 0), (0, 2), (2, 1), (4, 4)]),
)
def test_written_geometry_repeats_the_header(
    tmp_path_factory, orientation, zoom, tilt, origin, codes
):
    folder = tmp_path_factory.mktemp("written")
    affine = oriented_affine(orientation, zoom, tilt, origin)
    image = nib.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.to_filename(folder / "in.nii.gz")
    vol = read_label_volume(folder / "in.nii.gz")
    write_nifti(folder / "out.nii.gz", vol.array.astype(np.uint8), vol.header)
    before, after = nib.load(folder / "in.nii.gz"), nib.load(folder / "out.nii.gz")
    np.testing.assert_array_equal(before.affine, after.affine)
    np.testing.assert_array_equal(np.asarray(before.dataobj), np.asarray(after.dataobj))
    for key in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(before.header[key], after.header[key], err_msg=key)
    for key in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        np.testing.assert_array_equal(before.header[key], after.header[key], err_msg=key)
    np.testing.assert_array_equal(before.header["pixdim"][:4], after.header["pixdim"][:4])
    assert ScanHeader.model_validate_json(vol.header.model_dump_json()) == vol.header


def test_writing_needs_the_scans_shape_and_leaves_nothing_aside(tmp_path):
    header = ScanHeader.of_affine(np.eye(4), (4, 3, 2))
    with pytest.raises(ScanError, match="doesn't fit"):
        write_nifti(tmp_path / "a.nii", np.zeros((2, 3, 4), np.uint8), header)
    with pytest.raises(ScanError, match=r"a\.png"):
        write_nifti(tmp_path / "a.png", np.zeros((4, 3, 2), np.uint8), header)
    first = write_nifti(tmp_path / "a.nii.gz", np.ones((4, 3, 2), np.uint8), header)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz"]
    second = write_nifti(tmp_path / "b.nii.gz", np.ones((4, 3, 2), np.uint8), header)
    assert first.read_bytes() == second.read_bytes()


def test_broken_files_say_what_is_wrong_in_one_line(tmp_path):
    rng = np.random.default_rng(0)
    good = write(tmp_path / "good.nii.gz", rng.random((20, 20, 20)).astype(np.float32))
    plain = gzip.decompress(good.read_bytes())
    dims = struct.Struct("<8h")

    def variant(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    def with_header(name, offset, layout, *values):
        content = bytearray(plain)
        struct.pack_into(layout, content, offset, *values)
        return variant(name, bytes(content))

    nan = rng.random((4, 4, 4)).astype(np.float32)
    nan[1, 2, 3] = np.nan
    damaged = bytearray(good.read_bytes())
    damaged[-6] ^= 0xFF
    expected = {
        tmp_path / "missing.nii": "No such file",
        tmp_path: "holds no image series",
        variant("empty.nii", b""): "not a NIfTI file",
        variant("text.nii.gz", b"hello" * 200): "not a NIfTI file",
        variant("cut.nii", plain[:-100]): "truncated",
        variant("cut.nii.gz", good.read_bytes()[:-5000]): "truncated",
        variant("short.nii.gz", gzip.compress(plain[:-100])): "truncated",
        variant("checksum.nii.gz", bytes(damaged)): "damaged",
        with_header("huge.nii", 40, dims.format, 3, 30000, 30000, 30000, 1, 1, 1, 1): "truncated",
        with_header("zero.nii", 40, dims.format, 3, 20, 0, 20, 1, 1, 1, 1): "shape",
        with_header("negative.nii", 40, dims.format, 3, -20, 20, 20, 1, 1, 1, 1): "shape",
        with_header("flat.nii", 40, dims.format, 2, 20, 20, 1, 1, 1, 1, 1): "shape",
        with_header("frames.nii", 40, dims.format, 4, 20, 20, 10, 2, 1, 1, 1): "shape",
        with_header("dims.nii", 40, dims.format, 99, 20, 20, 20, 1, 1, 1, 1): "",
        with_header("type.nii", 70, "<h", 1234): "",
        with_header("complex.nii", 70, "<h", 32): "type",
        with_header("colour.nii", 70, "<h", 128): "type",
        with_header("offset.nii", 108, "<f", 1e9): "truncated",
        with_header("flatworld.nii", 280, "<4f", 0, 0, 0, 0): "affine",
        with_header("nowhere.nii", 280, "<4f", np.nan, 0, 0, 0): "affine",
        write(tmp_path / "inf.nii.gz", nan * np.inf): "voxels are infinite",
    }
    for path, reason in expected.items():
        with pytest.raises(ScanError) as caught:
            read_volume(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: "), message
        assert reason in message
        assert "\n" not in message


def test_a_packed_header_that_lies_allocates_nothing(tmp_path):

    content = bytearray(
        gzip.decompress(write(tmp_path / "a.nii.gz", np.zeros((2, 2, 2))).read_bytes())
    )
    # Claims 1.7 GB and packs well enough for the file's size to allow it.
    struct.pack_into("<8h", content, 40, 3, 600, 600, 600, 1, 1, 1, 1)
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(bytes(content) + bytes(10**6), 0) + bytes(10**6))
    assert read_header(path).shape == (600, 600, 600)
    tracemalloc.start()
    with pytest.raises(ScanError, match="truncated"):
        read_volume(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@given(st.integers(0, 347), st.binary(min_size=1, max_size=8))
def test_a_header_of_nonsense_is_read_or_refused(tmp_path_factory, offset, noise):
    path = tmp_path_factory.mktemp("nonsense") / "a.nii"
    content = bytearray(write(path, np.ones((3, 4, 5), np.int16)).read_bytes())
    content[offset : offset + len(noise)] = noise
    path.write_bytes(content)
    try:
        vol = read_volume(path)
    except ScanError as error:
        refusal = str(error)
    else:
        assert np.isfinite(vol.affine).all()
        assert np.isfinite(vol.array).all()
        return
    assert refusal.startswith(f"{path}: ")
    assert "\n" not in refusal
