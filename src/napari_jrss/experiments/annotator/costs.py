"""What an annotator's work is counted in, and the seconds that each count stands for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class CostModel:
    """Seconds of each thing that an annotator does. The computer's time isn't part of it.

    The times of single acts are those of the keystroke-level model (Card, Moran and Newell 1980):
    1.35 s to think what to do, 1.1 s to point at something, 0.1 s to press or release a button,
    0.28 s for a key. A drawn line follows the steering law (Accot and Zhai 1997): a time that
    grows with its length divided by the width within which the hand has to stay.
    """

    case_s: float = 10.0
    """For each case, seconds: go to it, see what it is, accept it. About four thoughts and
    clicks; nobody has measured it for this program."""
    look_s: float = 0.7
    """For each slice that is looked at in passing, seconds: two fixations of the eye of 0.3 s
    (Rayner 1998) and a notch of the wheel."""
    slice_s: float = 1.6
    """For each slice that is stopped at to correct it, seconds: a thought and a key."""
    stroke_s: float = 1.3
    """For each stroke, seconds, before it moves: point at its start, press, release."""
    steering_s: float = 0.1
    """For each width of :attr:`tolerance_voxels` that a stroke is long, seconds."""
    tolerance_voxels: float = 1.4
    """Width within which the hand stays on its way, voxels: 4.133 standard deviations of where it
    ends up (the effective width of MacKenzie 1992), which are 0.35 voxels here."""
    key_s: float = 0.3
    """For each key, seconds: another size of the brush, another structure, undo."""
    click_s: float = 2.7
    """For each tool or draft that is chosen by the mouse, seconds: think, point, press, release."""


@dataclass
class Effort:
    """How often an annotator did what."""

    cases: int = 0
    looks: int = 0  # slices looked at in passing
    slices: int = 0  # slices stopped at and corrected
    strokes: int = 0
    path_voxels: float = 0.0  # length of all strokes
    keys: int = 0
    clicks: int = 0
    voxels: int = 0  # voxels of the accepted label that differ from the draft it was drawn from

    def __add__(self, other: Effort) -> Effort:
        """Both together."""
        return Effort(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Effort) -> Effort:
        """What came after the other."""
        return Effort(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def parts(self, model: CostModel) -> dict[str, float]:
        """Seconds by what they are spent on."""
        return {
            "cases": self.cases * model.case_s,
            "looking": self.looks * model.look_s,
            "slices": self.slices * model.slice_s,
            "strokes": self.strokes * model.stroke_s
            + self.path_voxels / model.tolerance_voxels * model.steering_s,
            "keys and tools": self.keys * model.key_s + self.clicks * model.click_s,
        }

    def seconds(self, model: CostModel) -> float:
        """Seconds of all of it."""
        return sum(self.parts(model).values())

    def as_dict(self) -> dict[str, float]:
        """For a file."""
        return asdict(self)
