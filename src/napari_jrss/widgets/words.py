"""What the ledger's words are called in the window."""

from collections.abc import Mapping

from napari_jrss.project.records import Split, Status

SPLITS: Mapping[Split, str] = {
    Split.TRAIN: "training",
    Split.VALIDATION: "validation",
    Split.TEST: "test",
    Split.UNUSED: "unused",
}
STATUSES: Mapping[Status, str] = {
    Status.UNLABELLED: "no label",
    Status.MANUAL: "manual",
    Status.ACCEPTED: "accepted",
    Status.CORRECTED: "corrected",
    Status.REJECTED: "rejected",
}
