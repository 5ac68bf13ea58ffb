"""Scans and labels that SimpleITK, nibabel, highdicom, zarr and Slicer write are read alike."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import zarr
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from highdicom.sr import CodedConcept

from napari_jrss._tests.io.dicom_phantoms import lps_affine, slices
from napari_jrss._tests.io.phantoms import blobs, block_label
from napari_jrss.errors import ScanError
from napari_jrss.io.dicom_layout import discover_dicom
from napari_jrss.io.found import Masks
from napari_jrss.io.label_files import (
    label_table_from_file,
    label_table_from_files,
    read_classes,
)
from napari_jrss.io.nifti import file_checksum
from napari_jrss.io.ome_zarr import read_zarr_image, read_zarr_labels
from napari_jrss.io.read import read_header, read_label, read_volume

AFFINE = lps_affine("PSL", (1.5, 2.0, 2.5), 20)


def itk(array, affine=AFFINE):
    image = sitk.GetImageFromArray(array)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


@pytest.mark.parametrize("name", ["x.nrrd", "x.nhdr", "x.mha", "x.mhd"])
def test_what_simpleitk_writes(tmp_path, name):
    array = np.round(blobs()).astype(np.int16)
    sitk.WriteImage(itk(array), str(tmp_path / name), useCompression=name != "x.nhdr")
    scan = read_volume(tmp_path / name)
    np.testing.assert_array_equal(scan.array, array)
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(read_header(tmp_path / name).affine, AFFINE, atol=1e-4)
    sitk.WriteImage(itk(block_label()), str(tmp_path / f"seg_{name}"))
    label, names = read_label(tmp_path / f"seg_{name}")
    np.testing.assert_array_equal(label.array, block_label())
    assert names is None
    before = file_checksum(tmp_path / name)
    voxels = [p for p in tmp_path.iterdir() if p.stem == "x" and p.suffix not in (".nhdr", ".mhd")]
    if name in ("x.nhdr", "x.mhd"):  # the checksum covers the voxels beside the header
        content = bytearray(voxels[0].read_bytes())
        content[-20] ^= 1
        voxels[0].write_bytes(content)
        assert file_checksum(tmp_path / name) != before


def test_a_file_with_a_fourth_axis_of_one_is_a_scan(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(1, 3, 4, 5)
    image = sitk.GetImageFromArray(array, isVector=False)
    sitk.WriteImage(image, str(tmp_path / "x.nrrd"))
    assert read_volume(tmp_path / "x.nrrd").shape == (3, 4, 5)
    sitk.WriteImage(
        sitk.GetImageFromArray(np.repeat(array, 2, 0), isVector=False), str(tmp_path / "y.nrrd")
    )
    with pytest.raises(ScanError, match="not that of one 3D scan"):
        read_volume(tmp_path / "y.nrrd")


def test_headers_lead_nowhere_else_and_damage_is_said(tmp_path):
    sitk.WriteImage(itk(block_label()), str(tmp_path / "x.mhd"))
    text = (tmp_path / "x.mhd").read_text()
    (tmp_path / "y.mhd").write_text(text.replace("x.raw", "../../x.raw"))
    (tmp_path / "z.nrrd").write_bytes(b"NRRD0004\ntype: short\nrubbish\n\n")
    (tmp_path / "w.mgz").write_bytes(b"\x1f\x8brubbish")
    for name, reason in {
        "y.mhd": "must be in one file beside it",
        "z.nrrd": "can't be read",
        "w.mgz": "",
        "none.mha": "No such file",
    }.items():
        with pytest.raises(ScanError, match=reason) as caught:
            read_volume(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_mgz_of_freesurfer_and_its_lookup_table(tmp_path):
    ras = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    array = blobs().T
    nib.save(nib.MGHImage(array.astype(np.float32), ras), tmp_path / "brain.mgz")
    scan = read_volume(tmp_path / "brain.mgz")
    np.testing.assert_array_equal(scan.array, array.T)
    np.testing.assert_allclose(scan.affine, AFFINE, atol=1e-5)
    aseg = np.choose(block_label(), [0, 17, 53]).astype(np.int32)
    nib.save(nib.MGHImage(aseg.T, ras), tmp_path / "aseg.mgz")
    lines = [f"{i}  structure-{i}   {i % 256} 10 20 0" for i in range(1, 400)]
    table = ["#$Id: FreeSurferColorLUT.txt", "", "0   Unknown   0 0 0 0"]
    lines[16], lines[52] = (
        "17  Left-Hippocampus   220 216 20 0",
        "53  Right-Hippocampus  220 216 20 0",
    )
    (tmp_path / "lut.txt").write_text("\n".join([*table, *lines]))
    found = label_table_from_file(tmp_path / "lut.txt", [tmp_path / "aseg.mgz"])
    assert found.names == ("background", "Left-Hippocampus", "Right-Hippocampus")
    assert found.classes[1].colour == "#dcd814"
    np.testing.assert_array_equal(read_classes(tmp_path / "aseg.mgz", found).array, block_label())


SLICER = "0 background 0 0 0 0\n3 left_part 255 0 16 255\n"
SNAP = (
    "####\n# ITK-SnAP Label Description File\n####\n"
    '    0     0    0    0        0  0  0    "Clear Label"\n'
    '    3   255    0   16        1  1  1    "left part"\n'
)


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.ctbl", f"# Color table\n{SLICER}", ("left_part", "#ff0010")),
        ("a.txt", SNAP, ("left part", "#ff0010")),
        ("dseg.tsv", "index\tname\tcolor\n0\tbg\t#000000\n3\tleft part\t#FF0010\n", None),
        ("a.csv", "label;name;colour\n3;left part;#ff0010\n", None),
    ],
)
def test_tables_of_structures_of_other_programs(tmp_path, name, text, wanted):
    (tmp_path / name).write_text(text)
    table = label_table_from_file(tmp_path / name)
    (only,) = table.classes[1:]
    assert (only.name, only.colour) == (wanted or ("left part", "#ff0010"))
    assert only.source_ids == (3,)


def slicer_segmentation(path, names, layers=None):
    """As Slicer writes a ``.seg.nrrd``: segments by name, values and layers in its keys."""
    array = block_label() if layers is None else np.stack(layers, -1)
    image = sitk.GetImageFromArray(array, isVector=layers is not None)
    image.CopyInformation(itk(block_label()))
    for index, (name, value, layer) in enumerate(names):
        for key, text in {"ID": f"Segment_{index}", "Name": name, "LabelValue": str(value),
                          "Layer": str(layer)}.items():  # fmt: skip
            image.SetMetaData(f"Segment{index}_{key}", text)
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def test_segments_of_slicer_count_by_name(tmp_path):
    one = slicer_segmentation(tmp_path / "a.seg.nrrd", [("liver", 1, 0), ("spleen", 2, 0)])
    other = slicer_segmentation(tmp_path / "b.seg.nrrd", [("spleen", 1, 0), ("kidney", 2, 0)])
    table = label_table_from_files([one, other])
    assert table.names == ("background", "liver", "spleen", "kidney")
    np.testing.assert_array_equal(read_classes(one, table).array, block_label())
    np.testing.assert_array_equal(
        read_classes(other, table).array, np.choose(block_label(), [0, 2, 3])
    )
    layers = [(block_label() == 1).astype(np.uint8), (block_label() == 2).astype(np.uint8)]
    both = slicer_segmentation(tmp_path / "c.seg.nrrd", [("liver", 1, 0), ("spleen", 1, 1)], layers)
    np.testing.assert_array_equal(read_classes(both, table).array, block_label())


def test_masks_are_one_label(tmp_path):
    for value, name in ((1, "liver"), (2, "spleen")):
        mask = (block_label() == value).astype(np.uint8)
        mask[4, 5, 3] = 1  # in both
        sitk.WriteImage(itk(mask), str(tmp_path / f"{name}.nii.gz"))
    masks = Masks(tmp_path, tuple((n, tmp_path / f"{n}.nii.gz") for n in ("liver", "spleen")))
    label, names = read_label(masks)
    wanted = block_label().astype(int)
    wanted[4, 5, 3] = 2
    np.testing.assert_array_equal(label.array, wanted)
    assert names == {1: "liver", 2: "spleen"}
    assert label.notes == ("1 voxels are in two masks; the later name counts",)


@pytest.fixture
def series(tmp_path):
    """A series of a tilted plane in a folder, with its objects."""
    affine = lps_affine("LPS", (1.5, 2.0, 2.5), 20)
    objects = slices(np.round(blobs()).astype(np.int16), affine)
    folder = tmp_path / "study" / "scan"
    folder.mkdir(parents=True)
    for number, each in enumerate(objects):
        each.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return affine, objects, folder


def test_a_dicom_seg_is_the_label_of_its_series(series):
    _, objects, folder = series
    code = CodedConcept("T-1", "99TEST", "tissue")
    described = [
        SegmentDescription(n, name, code, code, SegmentAlgorithmTypeValues.MANUAL)
        for n, name in ((1, "liver"), (2, "spleen"))
    ]
    ordered = sorted(objects, key=lambda d: -d.InstanceNumber)
    seg = Segmentation(
        *(ordered, block_label(), "BINARY", described, pydicom.uid.generate_uid(), 7),
        *(pydicom.uid.generate_uid(), 1, "maker", "model", "1", "serial"),
    )
    seg.save_as(folder.parent / "seg.dcm")
    found = discover_dicom(folder.parent)
    (case,) = found.cases
    assert case.label == folder.parent / "seg.dcm"
    table = label_table_from_files([case.label])
    assert table.names == ("background", "liver", "spleen")
    about = read_header(case.image)
    alone = read_classes(case.label, table, image=about)  # the geometry is enough
    np.testing.assert_array_equal(alone.array, block_label())
    label = read_classes(case.label, table, image=case.image)
    np.testing.assert_array_equal(label.array, block_label())


def test_contours_of_an_rtstruct_are_the_label_of_their_series(series):
    affine, objects, folder = series
    rt = pydicom.Dataset()
    rt.ensure_file_meta()
    rt.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    rt.SOPClassUID, rt.SOPInstanceUID = (
        pydicom.uid.RTStructureSetStorage,
        pydicom.uid.generate_uid(),
    )
    rt.Modality = "RTSTRUCT"

    def item(**values):
        held = pydicom.Dataset()
        for name, value in values.items():
            setattr(held, name, value)
        return held

    about = item(SeriesInstanceUID=objects[0].SeriesInstanceUID)
    study = item(RTReferencedSeriesSequence=[about])
    rt.ReferencedFrameOfReferenceSequence = [item(RTReferencedStudySequence=[study])]
    rt.StructureSetROISequence = [item(ROINumber=4, ROIName="box")]

    def square(z, low, high):
        corners = [(low, low), (high, low), (high, high), (low, high)]
        points = [affine @ (x, y, z, 1) for x, y in corners]
        data = [f"{v:.5f}" for p in points for v in p[:3]]
        return item(ContourGeometricType="CLOSED_PLANAR", ContourData=data)

    contours = [square(z, 2.5, 9.5) for z in (5, 6)] + [square(6, 4.5, 6.5)]  # the last is a hole
    rt.ROIContourSequence = [item(ReferencedROINumber=4, ContourSequence=contours)]
    rt.save_as(folder / "rt.dcm", enforce_file_format=True)
    (case,) = discover_dicom(folder).cases
    label, names = read_label(case.label, case.image)
    wanted = np.zeros(block_label().shape, int)
    wanted[5:7, 3:10, 3:10] = 4
    wanted[6, 5:7, 5:7] = 0
    np.testing.assert_array_equal(label.array, wanted)
    assert names == {4: "box"}
    with pytest.raises(ScanError, match="can't be read without its series"):
        read_label(case.label)


def test_a_seg_without_segments_is_refused(series):
    _, objects, folder = series
    broken = pydicom.Dataset()
    broken.ensure_file_meta()
    broken.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    broken.SOPClassUID = pydicom.uid.SegmentationStorage
    broken.SOPInstanceUID, broken.Modality = pydicom.uid.generate_uid(), "SEG"
    about = pydicom.Dataset()
    about.SeriesInstanceUID = objects[0].SeriesInstanceUID
    broken.ReferencedSeriesSequence = [about]
    broken.save_as(folder / "seg.dcm", enforce_file_format=True)
    (case,) = discover_dicom(folder).cases
    for read in (
        lambda: label_table_from_files([case.label]),
        lambda: read_label(case.label, case.image),
    ):
        with pytest.raises(ScanError, match=r"seg\.dcm: names no structures"):
            read()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["int16", "float64", "uint32"])
def test_ome_zarr_of_other_programs(tmp_path, version, dtype):
    array = np.arange(120).reshape(2, 3, 4, 5).astype(dtype)
    space = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    scales = [
        {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 4, 3, 2]}]}
    ]
    multi = {"axes": [{"name": "c", "type": "channel"}, *space], "datasets": scales}
    folder = tmp_path / "x.ome.zarr"
    root = zarr.create_group(folder, zarr_format=version)
    if version == 2:
        root.attrs["multiscales"] = [multi]
    else:
        root.attrs["ome"] = {"version": "0.5", "multiscales": [multi]}
    codec = zarr.codecs.GzipCodec() if version == 3 else "auto"
    root.create_array("0", data=array, chunks=(1, 2, 2, 5), compressors=codec)
    for channel in (0, 1):
        image = read_zarr_image(folder, channel)
        np.testing.assert_array_equal(image.array, array[channel])
        assert image.spacing_mm == pytest.approx((0.004, 0.003, 0.002))
    outer = zarr.create_group(tmp_path / "raw.zarr", zarr_format=version)
    about = {"bioformats2raw.layout": 3}
    outer.attrs.update(about if version == 2 else {"ome": about})
    folder.rename(tmp_path / "raw.zarr" / "0")
    assert read_zarr_image(tmp_path / "raw.zarr").shape == (3, 4, 5)
    assert list(read_zarr_labels(tmp_path / "raw.zarr")) == []


def test_zarr_that_runs_code_or_lies_is_refused(tmp_path):
    root = zarr.create_group(tmp_path / "x.zarr", zarr_format=2)
    axes = [{"name": a, "type": "space"} for a in "zyx"]
    root.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "0"}]}]
    root.create_array("0", data=np.ones((4, 4, 4)), chunks=(4, 4, 4))
    meta = tmp_path / "x.zarr" / "0" / ".zarray"
    good = meta.read_text()
    meta.write_text(good.replace('"blosc"', '"pickle"'))
    with pytest.raises(ScanError, match=r"packed by pickle isn't read"):
        read_zarr_image(tmp_path / "x.zarr")
    meta.write_text(good.replace("4,", "400000,", 3))
    with pytest.raises(ScanError):
        read_zarr_image(tmp_path / "x.zarr")
