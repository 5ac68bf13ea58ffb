"""The tools of the tab Review that work at the mouse: brush, region strokes, parts of drafts."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from napari.viewer import Viewer
from qtpy.QtWidgets import QWidget

from napari_jrss.app.review.editor import Box
from napari_jrss.app.review.region_stroke import Preview
from napari_jrss.app.review.review import Review
from napari_jrss.errors import ProjectError
from napari_jrss.widgets import keys
from napari_jrss.widgets.bridge import Relay
from napari_jrss.widgets.controls import button, in_column, in_row, wrapped
from napari_jrss.widgets.layers.region import REGION_ADD, REGION_REMOVE
from napari_jrss.widgets.layers.review import ReviewLayers
from napari_jrss.widgets.planes import LinkedPlanes
from napari_jrss.widgets.tabs.review_panels import BrushPanel, DraftPanel
from napari_jrss.widgets.tabs.tool_menus import GROW, SHRINK, TAKE_PART, MoreTools

Do = Callable[..., Callable[[], None]]

_TEXTS = {
    keys.LESS: ("Less", "Make the region smaller (mouse wheel, or Down)"),
    keys.MORE: ("More", "Make the region larger (mouse wheel, or Up)"),
    keys.TAKE: ("Take", "Change the label as shown (Enter); the next stroke does so, too"),
    keys.DROP: ("Drop", "Leave the label as it is (Escape)"),
}


class RegionPanel(QWidget):
    """What a region stroke would change, while it is shown; `buttons` by their keys."""

    def __init__(self, commands: Mapping[str, Callable[[], object]]) -> None:
        super().__init__()
        self.text = wrapped()
        self.buttons = {
            key: button(text, tip, commands[key]) for key, (text, tip) in _TEXTS.items()
        }
        row = in_row(*self.buttons.values(), stretch=(1, 1, 1, 1))
        in_column(self, self.text, row).setContentsMargins(0, 0, 0, 0)
        self.hide()

    def show_preview(self, preview: Preview | None) -> None:
        """Say what would change, or hide."""
        self.setVisible(preview is not None)
        if preview is None:
            return
        name = preview.case.table.names[preview.region.index]
        volume = int(preview.mask.sum()) * preview.case.voxel_ml
        verb = "Adds {:.2f} ml to {}." if preview.region.adding else "Removes {:.2f} ml from {}."
        self.text.setText(f"{verb.format(volume, name)} Wheel: more or less. Enter takes it.")


class MouseTools:
    """Brings the mouse, the keys and the panels to the commands of `review.tools`.

    Parameters
    ----------
    viewer, review, layers, planes, relay
        What the tab Review works with.
    draft
        The panel whose draft gives its parts.
    structure
        The chosen structure, or None.
    do
        Turns a command and its arguments into a function that tells its errors.
    """

    def __init__(
        self,
        viewer: Viewer,
        review: Review,
        layers: ReviewLayers,
        planes: LinkedPlanes,
        relay: Relay,
        draft: DraftPanel,
        structure: Callable[[], int | None],
        do: Do,
    ) -> None:
        self._viewer, self._review, self._layers, self._planes = viewer, review, layers, planes
        self._tools, self._draft, self._structure, self._do = review.tools, draft, structure, do
        self.brush = BrushPanel()
        self.brush.chosen.connect(layers.set_mode)
        self.brush.sized.connect(layers.set_brush)
        self.brush.menu.ball.connect(self._set_ball)
        self.brush.menu.limited.connect(lambda limits: do(self._tools.limit_brush, limits)())
        self.more = MoreTools(
            {
                GROW: lambda: self.press(keys.GROW),
                SHRINK: lambda: self.press(keys.SHRINK),
                TAKE_PART: lambda: self.press(keys.TAKE_PART),
            }
        )
        self.more.split.connect(
            lambda side, other: self.with_structure(self._tools.split_sides, other, side)
        )
        region = self._tools.region
        self._sweep = {
            keys.MORE: region.more,
            keys.LESS: region.less,
            keys.TAKE: do(region.take),
            keys.DROP: region.drop,
        }
        self.region = RegionPanel(self._sweep)
        relay.connect(region.preview_changed, self._show_region)
        relay.connect(self._tools.limits_changed, self._show_limits)

    KEYS = (
        *(keys.UNDO, keys.REGION_ADD, keys.REGION_REMOVE, keys.GROW, keys.SHRINK),
        *(keys.TAKE_PART, keys.LIKE_HERE),
    )

    def press(self, key: str) -> None:
        """Do what one of :attr:`KEYS` does."""
        tools = self._tools
        if key in (keys.GROW, keys.SHRINK):
            self.with_structure(tools.grow if key == keys.GROW else tools.shrink)
        elif key in (keys.REGION_ADD, keys.REGION_REMOVE):
            mode = REGION_ADD if key == keys.REGION_ADD else REGION_REMOVE
            self._layers.set_mode("paint" if self._layers.region_mode == mode else mode)
        else:
            commands = {
                keys.UNDO: self._undo,
                keys.TAKE_PART: self._take_part,
                keys.LIKE_HERE: self._like_here,
            }
            self._do(commands[key])()

    def with_structure(self, command: Callable[..., object], *arguments: object) -> None:
        """Call a tool with the chosen structure, unless one works already."""
        index = self._structure()
        if index is not None and not self._tools.working:
            self._do(command, index, *arguments)()

    def draw_region(self, within: Box | None) -> bool:
        """Use what was just painted as a region stroke; whether the mouse draws such."""
        mode, index = self._layers.region_mode, self._structure()
        if not mode or index is None:
            return False
        draw = self._tools.region.draw_painted
        self._do(lambda: draw(index, adding=mode == REGION_ADD, within=within))()
        self._layers.refresh_label()
        return True

    def show_case(self) -> None:
        """Show the case under review."""
        self._set_ball(self.brush.menu.in_3d.isChecked())
        if (case := self._review.case) is not None:
            self.more.show_structures(list(case.table.names[1:]))
        self._show_limits()

    def _undo(self) -> None:
        """Undo the latest action; a region that is only shown is dropped instead."""
        if self._tools.region.preview is not None:
            self._tools.region.drop()
        else:
            self._tools.undo()

    def under_mouse(self) -> tuple[int, int, int]:
        """Voxel (z, y, x) under the mouse, in whichever plane it is."""
        label = self._layers.label
        views = [view for view in (self._viewer, *self._planes.views) if view.mouse_over_canvas]
        if label is not None:
            at = label.world_to_data((views or [self._viewer])[0].cursor.position)
            z, y, x = (round(float(i)) for i in at)
            if all(0 <= i < n for i, n in zip((z, y, x), label.data.shape, strict=True)):
                return z, y, x
        raise ProjectError("put the mouse on the scan first")

    def _take_part(self) -> None:
        """Take what the chosen draft has under the mouse."""
        self._tools.take_component(self.under_mouse(), self._draft.draft)

    def _like_here(self) -> None:
        """Limit the brush to intensities like those under the mouse, or no longer."""
        if self._tools.limits.intensities is None:
            self._tools.limit_like(self.under_mouse())
        else:
            self._tools.limit_brush(replace(self._tools.limits, intensities=None))

    def _set_ball(self, ball: bool) -> None:
        """Paint a ball or a disc; its width is told in mm, as napari measures it."""
        self._layers.set_ball(ball)
        if (case := self._review.case) is not None:
            self.brush.show_size(min(case.spacing_mm[0 if ball else 1 :]))

    def _show_region(self) -> None:
        preview = self._tools.region.preview
        if preview is not None and preview.case is not self._review.case:
            preview = None
        self._layers.region.show(preview, self._sweep)
        self.region.show_preview(preview)

    def _show_limits(self) -> None:
        self.brush.menu.show_limits(self._review.case, self._tools.limits)
