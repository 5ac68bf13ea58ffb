"""The keys of the window, in one list: for binding them, and for the sheet that shows them."""

from collections.abc import Mapping
from types import MappingProxyType

UNDO, REDO, NEXT_UNCERTAIN, INTERPOLATE = "Control-Z", "Control-Shift-Z", "U", "I"
ALONE, CONTOURS, PLANES, SEARCH = "S", "O", "Shift-P", "F3"
REGION_ADD, REGION_REMOVE = "R", "Shift-R"
GROW, SHRINK, TAKE_PART, LIKE_HERE = "G", "Shift-G", "C", "K"
TAKE, DROP, MORE, LESS = "Enter", "Escape", "Up", "Down"
ACCEPT, NEXT_CASE, SHEET = "Shift-A", "Shift-N", "? or F1"
NEXT_DISPUTE, FIRST_OPINION, SECOND_OPINION, NEXT_SLICE = ("D", "Q", "W", "Shift-I")
REVIEW: Mapping[str, str] = MappingProxyType(
    {
        UNDO: "Undo, across the brush, the tools and the drafts",
        REDO: "Redo",
        NEXT_UNCERTAIN: "Go to the next uncertain region",
        INTERPOLATE: "Interpolate the chosen structure between the slices that you painted",
        NEXT_SLICE: "Go to the slice that interpolation needs most",
        NEXT_DISPUTE: "Go to the next place that teacher and propagated label dispute",
        FIRST_OPINION: "Take the teacher's label there, and go on",
        SECOND_OPINION: "Take the propagated label there, and go on",
        REGION_ADD: "Region stroke that adds to the chosen structure; once more: the brush",
        REGION_REMOVE: "Region stroke that removes from it; once more: the brush",
        "Up and Down": "Larger and smaller region, as the mouse wheel, while one is shown",
        TAKE: "Take the region that is shown",
        DROP: "Drop the region that is shown",
        GROW: "Grow the chosen structure by a voxel",
        SHRINK: "Shrink it by a voxel",
        TAKE_PART: "Take what the draft has under the mouse, where it differs from the label",
        LIKE_HERE: "Paint only intensities like those under the mouse; once more: all",
        ALONE: "Show only the chosen structure, or all of them",
        CONTOURS: "Show the label filled, or its outlines",
        PLANES: "Show three planes, or one; T moves their crosshair to the mouse",
        SEARCH: "Search a structure",
        ACCEPT: "Accept the case",
        NEXT_CASE: "Open the next case",
        "Alt-1 to Alt-4": "Go to one of the tabs",
        SHEET: "Show this list",
    }
)
REGISTRATION: Mapping[str, str] = MappingProxyType(
    {
        "Alt-R": "Register the chosen pair",
        "Alt-S": "Swap moving and fixed, and register",
        "Alt-N": "Register the next pair",
        "Alt-A": "Register all labelled cases onto the fixed one",
    }
)
NAPARI: Mapping[str, str] = MappingProxyType(
    {
        "1 or E": "Erase",
        "2 or P": "Paint",
        "3": "Paint a polygon",
        "4 or F": "Fill",
        "5 or L": "Pick the structure under the mouse",
        "6 or Z": "Move and zoom",
        "Space": "Move and zoom while it is held",
        "[ and ]": "Smaller and larger brush",
        "X": "Swap the chosen structure and the background",
        "B": "Keep other structures as they are while you paint",
        "V": "Show or hide the selected layer",
        "Control-E": "Look along the next axis",
        "Control-Y": "Between 2D and 3D",
    }
)
