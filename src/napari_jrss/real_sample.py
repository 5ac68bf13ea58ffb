"""Real scans to try the program on: hippocampi of the Medical Segmentation Decathlon.

They are downloaded once (27 MB) from where MONAI gets them, and checked. The synthetic cohort of
:mod:`napari_jrss.sample_data` needs no network.
"""

from __future__ import annotations

import shutil
import tarfile
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from napari_jrss.errors import JRSSError, from_os_error, one_line
from napari_jrss.io.atomic import write_text

TASK = "Task04_Hippocampus"
LICENCE = "CC BY-SA 4.0"
CREDIT = f"""Hippocampi of the Medical Segmentation Decathlon, {TASK}
Licence: {LICENCE}, https://creativecommons.org/licenses/by-sa/4.0/
Simpson et al. 2019, arXiv:1902.09063; Antonelli et al. 2022, Nature Communications 13:4128.
Images: Vanderbilt University Medical Center. Labels by hand: 1 anterior, 2 posterior.
Nothing was changed but the names of the folders.
"""
_GROUPS = "label,name\n1,anterior\n2,posterior\n"


class DownloadError(JRSSError):
    """The scans can't be downloaded, or aren't what they should be."""


def fetch_hippocampi(
    folder: str | Path, cases: int = 12, *, url: str = "", checksum: str | None = None
) -> Path:
    """Write real scans with labels by hand: ``images/``, ``labels/``, ``groups.csv``, a licence.

    Parameters
    ----------
    folder
        Made if it doesn't exist.
    cases
        How many, at most 260, in the order of their names. Two that follow one another are often
        the two sides of one person.
    url, checksum
        Another place of the same archive, and what it must be, such as ``md5:...`` (None:
        anything). Without a place, those that MONAI names.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DownloadError
        pooch isn't installed, the archive can't be had, or it is another one.
    """
    if cases < 1:
        raise DownloadError(f"cases must be at least 1, not {cases}")
    folder = Path(folder)
    archive = _download(url, checksum)
    try:
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        _unpack(archive, folder, cases)
        write_text(folder / "groups.csv", _GROUPS)
        write_text(folder / "LICENCE.txt", CREDIT)
    except (OSError, tarfile.TarError) as error:
        reason = from_os_error(error) if isinstance(error, OSError) else one_line(error)
        raise DownloadError(f"{folder}: can't be written from {archive.name} ({reason})") from error
    return folder


def _download(url: str, checksum: str | None) -> Path:
    """The archive, from the person's cache or from the network."""
    if find_spec("pooch") is None:
        raise DownloadError('pooch is not installed: pip install "napari-jrss[sample]"')
    import pooch

    if not url:
        from monai.apps import DecathlonDataset

        url = DecathlonDataset.resource[TASK]
        checksum = f"md5:{DecathlonDataset.md5[TASK]}"
    cache = platformdirs.user_cache_path("napari-jrss", appauthor=False)
    try:
        return Path(pooch.retrieve(url, checksum, fname=f"{TASK}.tar", path=cache))
    except Exception as error:  # of the network, of the disk, or another file than it should be
        raise DownloadError(f"{url}: can't be downloaded ({one_line(error)})") from error


def _unpack(archive: Path, folder: Path, cases: int) -> None:
    """Take the first cases out of the archive; nothing in it says where a file goes."""
    with tarfile.open(archive) as tar:
        members = {m.name.removeprefix("./"): m for m in tar.getmembers() if m.isfile()}
        names = sorted(
            name.rpartition("/")[2]
            for name in members
            if name.startswith(f"{TASK}/labelsTr/hippocampus_") and name.endswith(".nii.gz")
        )
        if not names:
            raise tarfile.TarError(f"it holds no {TASK}/labelsTr")
        for name in names[:cases]:
            for inside, kind in (("imagesTr", "images"), ("labelsTr", "labels")):
                member = members.get(f"{TASK}/{inside}/{name}")
                content = None if member is None else tar.extractfile(member)
                if content is None:
                    raise tarfile.TarError(f"it lacks {inside}/{name}")
                with (folder / kind / name).open("wb") as file:
                    shutil.copyfileobj(content, file)
