"""The explorer's widgets. Controls write a state; a change of state redraws. No maths here."""

from __future__ import annotations

import base64
import html
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ipywidgets as widgets
import numpy as np
from traitlets import HasTraits, Instance, observe

from g2g_utils.explorer import export, maps, render, state
from g2g_utils.explorer.session import Session, View
from g2g_utils.explorer.state import Chip, State

log = logging.getLogger(__name__)

PAGE = 8  # thumbnails at a time
NONE = "none"  # a drop-down takes no None for a choice
LABEL = "92px"  # width of the labels in the side column
LINK_BYTES = 8 * 2**20  # larger files are only written, not offered as a link
COLOURS = "button colours: mean attention, dark is low, bright is high"
NUMBERS = {
    "cnr": "CNR",
    "iou": "IoU",
    "balanced_iou": "balanced IoU",
    "pointing": "pointing game",
    "auc_roc": "AUC-ROC",
}
STYLE = """<style>
.g2g {max-width: 1240px; font-size: 13px}
.g2g .g2g-row {flex-flow: row wrap; align-items: center; gap: 4px 6px}
.g2g .g2g-main {flex: 1 1 540px; min-width: 300px}
.g2g .g2g-side {flex: 0 1 370px; min-width: 300px}
.g2g img {display: block}
.g2g .lm-TabBar-tab, .g2g .p-TabBar-tab {max-width: none !important; flex: 0 0 auto !important}
.g2g .widget-html, .g2g .widget-html-content {line-height: 1.45}
.g2g .widget-toggle-buttons {display: flex}
.g2g .widget-toggle-buttons > .widget-label {flex: 0 0 auto; text-align: right; margin-right: 8px}
.g2g .widget-toggle-button {padding: 0 4px}
.g2g .widget-readout {font-size: 11px; min-width: 108px}
.g2g h3 {margin: 0; font-size: 13px; font-weight: 600}
.g2g-title {font-size: 18px; font-weight: 600; line-height: 1.3}
.g2g-notice {color: #5f666e}
.g2g-status {padding: 2px 8px; border-left: 4px solid #2b8a3e; line-height: 1.5}
.g2g-status.error {border-color: #c92a2a; color: #c92a2a; font-weight: 600}
.g2g-status.busy {border-color: #e67700}
.g2g table.g2g-numbers {border-collapse: collapse; line-height: 1.5}
.g2g table.g2g-numbers td, .g2g table.g2g-numbers th {padding: 1px 10px 1px 0; text-align: right;
  font-variant-numeric: tabular-nums; font-weight: 400}
.g2g table.g2g-numbers th:first-child {text-align: left}
.g2g table.g2g-numbers thead th {border-bottom: 1px solid #adb5bd; font-weight: 600}
.g2g button:focus-visible, .g2g input:focus-visible, .g2g select:focus-visible,
.g2g .noUi-handle:focus-visible {outline: 3px solid #1971c2; outline-offset: 1px}
.g2g .g2g-on {border: 2px solid #212529 !important; font-weight: 600}
.g2g .g2g-picked {border: 2px solid #1971c2 !important; font-weight: 600}
.g2g .g2g-off {border: 1px dashed #868e96 !important}
.g2g .widget-tab-contents, .g2g .jp-TabPanel {padding: 4px 0}
.g2g textarea.g2g-code {width: 100%; height: 190px; font: 12px monospace; box-sizing: border-box}
</style>"""


# Copies the text beside a button; the old way where a page may not use the clipboard.
COPY = (
    "const text = this.parentNode.querySelector('textarea'); text.select();"
    "(navigator.clipboard?.writeText(text.value) ?? Promise.reject())"
    ".catch(() => document.execCommand('copy')).then(() => { this.textContent = 'Copied'; })"
)


class Explorer(HasTraits):
    """The widget: `display(Explorer(Session(config)).widget)`, or leave it last in a cell.

    `state` is a trait, and setting it redraws. A state that shows nothing is refused with one line
    in the widget, and the last good view stays.
    """

    state = Instance(State)
    view = Instance(View, allow_none=True)

    def __init__(self, session: Session, start: State | None = None) -> None:
        super().__init__()
        self.session, self._busy, self._answers = session, False, 0
        self.page, self._chips = 0, list[Chip]()
        self._build()
        self._wire()
        self._show_page()
        self.state = start or session.start()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)  # type: ignore[no-untyped-call]

    # -- controls ---------------------------------------------------------------------------------

    def _build(self) -> None:
        """Make every control."""
        self._build_gallery()
        self._build_phrase()
        self._build_panels()
        self._build_ranges()
        self._build_drawing()
        self.status = widgets.HTML(_status("starting", "busy"))
        self.progress = widgets.IntProgress(layout=widgets.Layout(width="120px", display="none"))
        self.numbers = widgets.HTML()
        self.pictures = [widgets.HTML() for _ in range(3)]
        self.tabs = widgets.Tab(self.pictures, titles=["View", "Tokens", "Layers × timesteps"])
        self.tabs.selected_index = 0
        self.export = widgets.Button(
            description="Export", tooltip="Write a PNG and the maps as npz", icon="download"
        )
        self.code = widgets.Button(
            description="Copy as code", tooltip="Python that gives this heat map", icon="code"
        )
        self.taken = widgets.HTML(layout=widgets.Layout(width="100%"))
        self.widget = self._arranged()

    def _build_gallery(self) -> None:
        """Make the thumbnails of the test split, in pages, and the upload."""
        self.thumbs = [widgets.HTML() for _ in range(PAGE)]
        self.picks = [
            widgets.Button(layout={"width": "104px"}, style={"font_size": "11px"})
            for _ in range(PAGE)
        ]
        tiny = {"width": "34px", "height": "72px"}
        self.back = widgets.Button(description="◂", tooltip="Previous images", layout=tiny)
        self.forth = widgets.Button(description="▸", tooltip="Next images", layout=tiny)
        self.upload = widgets.FileUpload(
            accept=".png,.jpg,.jpeg,.dcm,.dicom",
            description="Upload image",
            tooltip="PNG, JPEG or DICOM",
            layout=widgets.Layout(width="150px"),
        )

    def _build_phrase(self) -> None:
        """Make the phrase and its words."""
        self.phrase = widgets.Text(
            description="Phrase",
            continuous_update=False,
            placeholder="what to look for, then Enter",
            style={"description_width": "50px"},
            layout=widgets.Layout(flex="1 1 340px", width="auto"),
        )
        self.swap = widgets.Button(
            description="Swap left/right",
            tooltip="Rewrite the phrase's side and compare",
            icon="exchange",
        )
        self.words = widgets.HBox()
        self.content = widgets.Button(
            description="Content words", tooltip="Choose the content words, as at first"
        )
        self.pieces = _checkbox("word pieces apart")
        self.special = _checkbox("start, end, padding")

    def _build_panels(self) -> None:
        """Make the controls of the content: boxes, model, noise, comparison."""
        kinds = [("nothing", "nothing"), ("another model", "model"), ("another phrase", "phrase")]
        self.region = _dropdown("Boxes of", [])
        self.model = _dropdown("Model", self.session.models)
        self.compare = _dropdown("Compare with", kinds)
        self.other_model = _dropdown("Model B", self.session.models)
        self.other_phrase = widgets.Text(
            description="Phrase B", continuous_update=False, **_labelled()
        )
        self.seed = widgets.BoundedIntText(description="Noise seed", min=0, max=9999, **_labelled())

    def _build_ranges(self) -> None:
        """Make the ranges: timesteps, layers by block and by resolution, bias merging."""
        self.steps, self.layers = (
            widgets.SelectionRangeSlider(
                options=[0], description=name, continuous_update=False, **_labelled()
            )
            for name in ("Timesteps", "Layers")
        )
        self.blocks = widgets.HBox()
        self.sizes = widgets.SelectMultiple(
            description="Resolutions", rows=3, options=[], **_labelled()
        )
        self.curve = _dropdown("Curve", [NONE, "linear", "quadratic", "mixture"])
        names = [(name, method) for method, name in state.METHODS.items()]
        self.method = _dropdown("Method", names)

    def _build_drawing(self) -> None:
        """Make the drawing options."""
        scales = [("0–1, each map min–max", "each"), ("attention, shared", "shared")]
        self.show = widgets.ToggleButtons(
            description="View",
            options=["map", "mask", "difference"],
            style={"button_width": "80px", "description_width": LABEL},
            layout=widgets.Layout(width="auto"),
        )
        self.scale = _dropdown("Colour scale", scales)
        self.opacity = widgets.FloatSlider(
            description="Opacity", min=0, max=1, step=0.05, readout_format=".2f", **_labelled()
        )
        self.boxes, self.contour = _checkbox("boxes"), _checkbox("mask outline")

    def _arranged(self) -> widgets.Widget:
        """The controls in their places. Rows wrap in a narrow window."""
        title = widgets.HTML(
            f'{STYLE}<div class="g2g-title">Tokens, layers and timesteps</div>'
            f'<div class="g2g-notice">{render.NOTICE} · {render.SIDES}</div>'
        )
        notes = [
            widgets.HTML(f'<span class="g2g-notice">{html.escape(text)}</span>')
            for text in (COLOURS, self.session.note)
        ]
        pairs = zip(self.thumbs, self.picks, strict=True)
        center = widgets.Layout(align_items="center")
        gallery = [widgets.VBox([t, p], layout=center) for t, p in pairs]
        side = [
            self.region, self.model, self.method,
            self.compare, self.other_model, self.other_phrase, self.seed,
            self.steps, self.layers, self.blocks, self.sizes, self.curve,
            self.show, self.scale, self.opacity, _row(self.boxes, self.contour), self.numbers,
        ]  # fmt: skip
        main = [self.tabs, _row(self.export, self.code), self.taken]
        box = widgets.VBox(
            [
                title,
                _classed(_row(self.back, *gallery, self.forth), "g2g-gallery"),
                _row(self.phrase, self.swap, self.upload),
                _row(widgets.HTML("<h3>Words</h3>"), self.words),
                _row(self.content, self.pieces, self.special, *notes),
                _row(self.status, self.progress),
                _row(_classed(widgets.VBox(main), "g2g-main"), _classed(_column(side), "g2g-side")),
            ]
        )
        box.children[-1].layout.align_items = "flex-start"
        self.words.add_class("g2g-row")
        return _classed(box, "g2g")

    def _wire(self) -> None:
        """Connect every control to the state; nothing else changes it."""
        plain = {
            "seed": self.seed, "show": self.show, "scale": self.scale,
            "opacity": self.opacity, "boxes": self.boxes, "contour": self.contour,
            "pieces": self.pieces, "special": self.special, "other_model": self.other_model,
            "other_phrase": self.other_phrase,
        }  # fmt: skip
        for name, control in plain.items():
            control.observe(partial(self._changed, name), "value")
        for name, slider in (("steps", self.steps), ("layers", self.layers)):
            slider.observe(partial(self._changed, name), "index")
        session = self.session
        self._on(self.sizes, lambda now, v: replace(now, sizes=v or None))
        self._on(self.phrase, lambda now, v: state.edit_phrase(now, v))
        self._on(self.model, lambda now, v: session.pick_model(now, v))
        self._on(self.region, lambda now, v: session.pick_region(now, None if v == NONE else v))
        self._on(self.method, state.pick_method)
        self._on(self.curve, lambda now, v: replace(now, curve=None if v == NONE else v))
        self._on(self.compare, self._compared)
        self.upload.observe(self._uploaded, "value")
        self.tabs.observe(self._tab_opened, "selected_index")
        self.swap.on_click(lambda _: self._act(state.swap))
        self.content.on_click(lambda _: self._act(lambda now: replace(now, columns=None)))
        self.export.on_click(lambda _: self._take(self._exported))
        self.code.on_click(lambda _: self._take(self._coded))
        self.back.on_click(lambda _: self._turn(-1))
        self.forth.on_click(lambda _: self._turn(1))
        for place, button in enumerate(self.picks):
            button.on_click(partial(self._picked, place))

    def _on(self, control: Any, action: Callable[[State, Any], State]) -> None:
        """Pass a control's value through an action to a new state."""

        def changed(change: Any) -> None:
            if not self._busy:
                self._act(lambda now: action(now, change["new"]))

        control.observe(changed, "value")

    def _changed(self, name: str, change: Any) -> None:
        """Handle a control that is one field of the state."""
        if not self._busy:
            self._act(lambda now: replace(now, **{name: change["new"]}))

    def _compared(self, now: State, value: Any) -> State:
        """Choose the comparison. The second side starts different from the first."""
        models = [m for m in self.session.models if m != now.model]
        if value == "model" and not models:
            raise ValueError("there is only one trained model: run the profile to train the others")
        other = now.other_model if now.other_model in models else (models or [""])[0]
        phrase = now.other_phrase or now.phrase
        return replace(now, compare=value, other_model=other, other_phrase=phrase)

    def _act(self, action: Callable[[State], State]) -> None:
        """Set the state that an action makes. A refusal is one line, and the view stays."""
        with self._reported():
            new = action(self.state)
            if new == self.state and self.view is not None:
                self._settle()  # nothing to draw, but an error or an odd control may be left
            self.state = new

    def _picked(self, place: int, _: Any) -> None:
        keys = list(self.session.pictures)
        self._act(lambda now: self.session.pick_image(now, keys[self.page * PAGE + place]))

    def _turn(self, pages: int) -> None:
        last = (len(self.session.pictures) - 1) // PAGE
        self.page = (self.page + pages) % (last + 1)
        self._show_page()

    def _uploaded(self, change: Any) -> None:
        """Take the uploaded file, open it, and clear the control."""
        if not change["new"]:
            return
        file = change["new"][0]
        with self._reported():
            self._tell("reading the image", 0, 1)
            key = self.session.upload(file["name"], bytes(file["content"]))
            self.page = (len(self.session.pictures) - 1) // PAGE
            self._show_page()
            self._act(lambda now: self.session.pick_image(now, key))
        self.upload.value = ()

    # -- drawing ----------------------------------------------------------------------------------

    @observe("state")
    def _redraw(self, change: Any) -> None:
        """Compute the view of a new state and draw it; on failure return to the last good one."""
        if self._busy:
            return
        with self._reported():
            try:
                self.view = self.session.view(self.state, self._tell)
            except Exception:
                self._go_back(change["old"])
                raise
            self._draw()
            self._settle()

    def _go_back(self, old: Any) -> None:
        """Restore the last good state, in the controls too, except for phrases being typed."""
        if isinstance(old, State) and self.view is not None:
            self._busy = True
            self.state = old
            self._busy = False
            self._sync(texts=False)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Report the block in one line: done, or the error."""
        try:
            yield
        except Exception as error:
            log.debug("explorer", exc_info=True)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            known = isinstance(error, ValueError | OSError)
            text = lines[0] if known else f"{type(error).__name__}: {lines[0]}"
            self._answer(f"⚠ {text}", "error")

    def _settle(self) -> None:
        """Bring controls and status line in line with the view."""
        assert self.view is not None
        self._sync()
        self._answer(_summary(self.view))

    def _answer(self, text: str, kind: str = "") -> None:
        """Send the line that ends every action, counted, after all other updates."""
        self._answers += 1
        self.progress.layout.display = "none"
        self.status.value = _status(text, kind, self._answers)

    def _tell(self, what: str, done: int, total: int) -> None:
        """Show progress of something slow."""
        self.progress.layout.display = None
        self.progress.max, self.progress.value = total, done
        self.status.value = _status(f"{what}: {done} of {total}", "busy", self._answers)

    def _sync(self, texts: bool = True) -> None:
        """Bring every control in line with the state, without triggering anything."""
        assert self.view is not None
        self._busy = True
        now, capture = self.state, self.view.panels[0].capture
        try:
            self._sync_ranges(now, capture)
            regions = [(r.phrase, i) for i, r in enumerate(self.view.picture.regions)]
            region = NONE if now.region is None else now.region
            _set(self.region, [*regions, ("no boxes", NONE)], region)
            self.curve.value = now.curve or NONE
            for name in ("seed", "show", "scale", "opacity", "boxes", "contour", "pieces",
                         "special", "model", "method", "compare"):  # fmt: skip
                getattr(self, name).value = getattr(now, name)
            if now.other_model:
                self.other_model.value = now.other_model
            if texts:
                self.phrase.value, self.other_phrase.value = now.phrase, now.other_phrase
            self.other_model.layout.display = None if now.compare == "model" else "none"
            self.other_phrase.layout.display = None if now.compare == "phrase" else "none"
            plain, alone = now.method == "attention", now.method == "information"
            self.scale.disabled = now.curve is not None or not plain
            self.curve.disabled = not plain
            self.steps.disabled = self.layers.disabled = self.sizes.disabled = alone
        finally:
            self._busy = False

    def _sync_ranges(self, now: State, capture: maps.Capture) -> None:
        """Set the ranges to the model's timesteps, layers and resolutions."""
        _set(self.steps, [f"{t}" for t in capture.timesteps])
        _set(self.layers, list(maps.layer_labels(capture, short=True)))
        defaults = self.session.config.grounding
        self.steps.index = state.step_range(now, capture, defaults)
        self.layers.index = state.layer_range(now, capture, defaults)
        found = maps.resolutions(capture)
        _set(self.sizes, [(f"{r}×{r}", r) for r in found], now.sizes or found)
        spans = maps.blocks(capture)
        if len(self.blocks.children) != len(spans) + 1:
            whole = (0, len(capture.layers) - 1)
            buttons = [self._block(n, s) for n, s in {"all layers": whole, **spans}.items()]
            self.blocks.children = buttons

    def _block(self, name: str, span: tuple[int, int]) -> widgets.Button:
        """A button that sets the layer range to a block."""
        layout = widgets.Layout(width="auto")
        button = widgets.Button(description=name, tooltip=f"Only {name}", layout=layout)
        button.on_click(lambda _: self._act(lambda now: replace(now, layers=span, sizes=None)))
        return button

    def _draw(self) -> None:
        """Draw the visible tab first, for which the user waits; then words and numbers."""
        assert self.view is not None
        self._draw_tab()
        self._draw_words()
        self._mark_picked()
        self.numbers.value = _numbers_table(self.view)
        self.taken.value = ""

    def _tab_opened(self, _: Any) -> None:
        """Draw a tab when it is opened."""
        if self.view is not None:
            with self._reported():
                self._draw_tab()
                self._answer(_summary(self.view))

    def _draw_tab(self) -> None:
        """Draw the open tab. The others wait until they are opened."""
        assert self.view is not None
        index = self.tabs.selected_index or 0
        picture = render.jpeg(self._drawn(self.view, index))
        self.pictures[index].value = _image(picture, "jpeg", _alternative(self.view, index))

    def _drawn(self, view: View, index: int) -> Any:
        """The picture of a tab. Words under information are measured when their tab is open."""
        if index == 1 and view.state.method != "attention":
            return render.word_view(view, self.session.word_information(view.state, self._tell))
        return (render.main_view, render.token_view, render.grid_view)[index](view)

    def _draw_words(self) -> None:
        """Draw word buttons: new ones for a new phrase, else their colours and marks alone."""
        assert self.view is not None
        if [c.label for c in self._chips] != [c.label for c in self.view.chips]:
            self._chips = self.view.chips
            layout = widgets.Layout(width="auto")
            buttons = [widgets.Button(layout=layout) for _ in self._chips]
            for place, button in enumerate(buttons):
                button.on_click(partial(self._toggled, place))
            self.words.children = buttons
        self._chips = self.view.chips
        panel = self.view.panels[0]
        chosen = set(panel.selection.columns)
        for button, chip, colour in zip(
            self.words.children, self._chips, render.chip_colours(self.view), strict=True
        ):
            _dress(button, chip, set(chip.columns) <= chosen, colour, panel.token_means)

    def _toggled(self, place: int, _: Any) -> None:
        assert self.view is not None
        columns = self._chips[place].columns
        before = self.view.panels[0].selection.columns
        self._act(lambda now: replace(now, columns=state.toggle(before, columns)))

    def _show_page(self) -> None:
        """Show the thumbnails of the current page."""
        found = list(self.session.pictures.values())[self.page * PAGE :][:PAGE]
        for place, (thumb, button) in enumerate(zip(self.thumbs, self.picks, strict=True)):
            shown = place < len(found)
            thumb.layout.visibility = button.layout.visibility = "visible" if shown else "hidden"
            if shown:
                picture = found[place]
                title = f"Image {picture.title}"
                thumb.value = _image(render.thumbnail(picture.image), "png", title)
                button.description, button.tooltip = picture.label, title
        count = len(self.session.pictures)
        first = self.page * PAGE + 1
        where = f"now {first} to {first + len(found) - 1} of {count}"
        self.back.tooltip, self.forth.tooltip = f"Previous images, {where}", f"Next images, {where}"
        if self.view is not None:
            self._mark_picked()

    def _mark_picked(self) -> None:
        """Mark the thumbnail of the open picture."""
        keys = list(self.session.pictures)[self.page * PAGE :][:PAGE]
        for place, button in enumerate(self.picks):
            on = place < len(keys) and keys[place] == self.state.image
            (button.add_class if on else button.remove_class)("g2g-picked")

    # -- taking away ------------------------------------------------------------------------------

    def _take(self, make: Callable[[View], tuple[str, str]]) -> None:
        """Export as chosen, and show links or code below the view."""
        with self._reported():
            if self.view is not None:
                self.taken.value, line = make(self.view)
                self._answer(line)

    def _exported(self, view: View) -> tuple[str, str]:
        """Write picture and maps; return links to them and a message."""
        index = self.tabs.selected_index or 0
        picture = render.png(self._drawn(view, index), export.facts(self.session, view))
        paths = export.save(self.session, view, picture)
        kinds = ("image/png", "application/octet-stream")
        links = [
            _link(path.name, path.read_bytes(), kind)
            for path, kind in zip(paths, kinds, strict=True)
        ]
        place = html.escape(str(paths[0].parent))
        return f"{' · '.join(links)}<br>in {place}", f"exported {paths[0].stem}"

    def _coded(self, view: View) -> tuple[str, str]:
        """Code of every panel with a button that copies it, and a message."""
        text = "\n\n".join(
            export.code(self.session, view, letter)
            for letter, _ in zip("AB", view.panels, strict=False)
        )
        found = (
            f'<div><button class="jupyter-button" onclick="{COPY}">Copy to clipboard</button>'
            f'<textarea class="g2g-code" aria-label="Code of this view" readonly>'
            f"{html.escape(text)}</textarea></div>"
        )
        return found, "the code of this view is below it"


# -- small parts ----------------------------------------------------------------------------------


def _labelled() -> dict[str, Any]:
    """Style and layout of a control in the side column (one object each: they are not shared)."""
    return {"style": {"description_width": LABEL}, "layout": widgets.Layout(width="auto")}


def _dropdown(label: str, options: Any) -> widgets.Dropdown:
    return widgets.Dropdown(description=label, options=options, **_labelled())


def _checkbox(label: str) -> widgets.Checkbox:
    return widgets.Checkbox(description=label, indent=False, layout={"width": "auto"})


def _image(content: bytes, kind: str, alternative: str, style: str = "max-width: 100%") -> str:
    """An image with its text alternative, as HTML; the image widget has none."""
    data = base64.b64encode(content).decode()
    text = html.escape(alternative)
    return (
        f'<img alt="{text}" decoding="sync" style="{style}" src="data:image/{kind};base64,{data}">'
    )


def _row(*parts: widgets.Widget) -> widgets.Widget:
    """Parts beside each other that wrap where it gets narrow."""
    return _classed(widgets.HBox(list(parts)), "g2g-row")


def _column(parts: list[Any]) -> widgets.Widget:
    return widgets.VBox(parts)


def _classed(widget: Any, name: str) -> Any:
    """A widget with a CSS class."""
    return widget.add_class(name)


def _set(control: Any, options: Any, value: Any = ...) -> None:
    """Set new options if they differ, then the value."""
    if list(control.options) != list(options):
        control.options = options
    if value is not ... and control.value != value:
        control.value = value


def _status(text: str, kind: str = "", number: int = 0) -> str:
    """The status line. Its number counts the answers given."""
    return (
        f'<div class="g2g-status {kind}" role="status" aria-live="polite" data-answers="{number}">'
        f"{html.escape(text)}</div>"
    )


def _summary(view: View) -> str:
    """One line on the view, and on parts of the phrases that could not be used."""
    panel = view.panels[0]
    shown = state.describe(panel.selection, panel.capture, view.state.method)
    phrases = [p.capture.phrase for p in view.panels]
    return "; ".join([shown, *dict.fromkeys(r for p in phrases for r in state.remarks(p))])


def _alternative(view: View, index: int) -> str:
    """Description of a picture for screen readers."""
    kind = ("overlay", "map of every token", "map of every layer and timestep")[index]
    if index < 2 and view.state.method != "attention":
        what = state.METHODS[view.state.method]
        kind = f"overlay of {what}" if index == 0 else "information of every word"
    phrases = " and ".join(f"“{p.phrase}” ({p.model})" for p in view.panels)
    place = _where(view.panels[0].heatmap.numpy())
    return f"{kind} of {phrases} on image {view.picture.title}; highest at {place}; {render.SIDES}"


def _where(heatmap: Any) -> str:
    """Place of a map's maximum in words."""
    row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    vertical = ("upper", "middle", "lower")[int(3 * row / heatmap.shape[0])]
    return f"image {('left', 'centre', 'right')[int(3 * column / heatmap.shape[1])]}, {vertical}"


def _dress(button: widgets.Button, chip: Chip, on: bool, colour: Any, means: Any) -> None:
    """Set label, colour and marks of a word button."""
    red, green, blue = colour
    button.description = f"✓ {chip.label}" if on else chip.label
    button.style.button_color = f"#{red:02x}{green:02x}{blue:02x}"
    button.style.text_color = render.ink(colour)
    mean = float(means[list(chip.columns)].mean())
    button.tooltip = f"{'chosen' if on else 'not chosen'}; mean attention {mean:.4f}"
    button.add_class("g2g-on" if on else "g2g-off")
    button.remove_class("g2g-off" if on else "g2g-on")


def _numbers_table(view: View) -> str:
    """Metrics of every panel beside the no-skill map's, confidence above."""
    panels = view.panels
    sure = [f"{p.confidence:.2f}" for p in panels if p.confidence is not None]
    top = f"<div>confidence c = {' and '.join(sure)}</div>" if sure else ""
    top += _presence(view)
    top += "".join(f'<div class="g2g-notice">{html.escape(line)}</div>' for line in view.told)
    if not panels[0].metrics:
        return top + "<div>no boxes known: no numbers</div>"
    names = ["A", "B"] if len(panels) == 2 else ["this view"]
    head = "".join(f'<th scope="col">{n}</th>' for n in [*names, "no skill"])
    rows = "".join(
        f'<tr><th scope="row">{label}</th>'
        + "".join(
            f"<td>{_decimal(s[key])}</td>" for s in [p.metrics for p in panels] + [view.no_skill]
        )
        + "</tr>"
        for key, label in NUMBERS.items()
    )
    why = "no skill: the mean box of the validation images, blind to image and phrase"
    target = view.picture.regions[view.state.region or 0].phrase
    against = f"<div>against the boxes of “{html.escape(target)}”</div>"
    return (
        f'{top}{against}<table class="g2g-numbers"><thead><tr><th></th>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table><div class="g2g-notice">{why}</div>'
    )


def _presence(view: View) -> str:
    """What the film says of every panel's phrase, under information."""
    said = [(p.phrase, p.presence) for p in view.panels if p.presence]
    lines = [f"“{html.escape(phrase)}”: {html.escape(of['said'])}" for phrase, of in said]
    limits = dict.fromkeys(html.escape(of["limits"]) for _, of in said if "limits" in of)
    notes = "".join(f'<div class="g2g-notice">{text}</div>' for text in limits)
    body = "<br>".join(lines)
    return f'<div class="g2g-presence"><b>Presence</b> {body}{notes}</div>' if said else ""


def _decimal(value: Any) -> str:
    return "–" if value != value else f"{value:.2f}".replace("-", "−")


def _link(name: str, content: bytes, kind: str) -> str:
    """A link that downloads a file, or its name if the file is too large."""
    if len(content) > LINK_BYTES:
        return html.escape(name)
    data = base64.b64encode(content).decode()
    text = html.escape(name)
    return f'<a download="{text}" href="data:{kind};base64,{data}">{text}</a>'
