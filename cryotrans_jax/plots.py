"""Draw figures and pictures from arrays as SVG, PNG and GIF. The only user of Pillow; no display is needed.

A figure is a `Drawing` of lines, texts and images, simple enough to be written as SVG and as PNG in a few lines. That
takes milliseconds, while importing matplotlib takes longer than the rest of a report (and ott-jax imports it wherever
it is installed).
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

Real = int | float  # the type checks of the tests do not accept an int as a float
Curve = tuple[Float[np.ndarray, "shells"], Float[np.ndarray, "shells"]]
PALETTE = ("#c9d0d8", "#f4dd86", "#f2994a", "#d94a38", "#861a68")  # of displacement: grey for none
CURVES = {  # colour and width: pale and thin before the fit
    "target_before": ("#8fb3cf", 1.2),
    "target_after": ("#1f5f8b", 2.0),
    "reference_before": ("#e3b48d", 1.2),
    "reference_after": ("#c2571a", 2.0),
}
SERIES = ("#c2571a", "#7b8793", "#1f5f8b", "#3f8f5b", "#8a6bb1", "#c99a1b", "#2b3440", "#d94a8c")  # of methods
RAMP = ("#12466b", "#2f8f9d", "#8fae3c", "#e0a030", "#c2571a", "#861a68")  # from the first target to the last
DISTINCT = (  # colour and width of named curves
    ("#8fb3cf", 2.0),
    ("#c2571a", 2.0),
    ("#1f5f8b", 2.4),
    ("#c8cfd6", 1.2),
    ("#e3b48d", 1.2),
    ("#861a68", 1.6),
)
INK, GREY, RULE = "#2b3440", "#7b8793", "#d9dee3"
COLOURS = 96  # of a GIF
KEY = 26  # pixels below an animation, for its colour key
PAUSE, STEP = 700, 90  # ms that an animation shows its ends, and the pictures between


@dataclass(repr=False)
class Drawing:
    """Lines, texts and images on a white sheet of width × height, y downwards."""

    width: Real
    height: Real
    items: list[tuple] = field(default_factory=list)

    def __repr__(self) -> str:
        """Describe the size, without the items."""
        return f"Drawing({self.width:g} x {self.height:g})"

    def _repr_svg_(self) -> str:
        """The drawing as SVG, for notebooks."""
        return svg(self)

    def line(self, x, y, colour: str = INK, width: Real = 1.0) -> None:
        """Add a line through points."""
        self.items.append(("line", np.stack([x, y], -1).astype(float), colour, width))

    def text(self, x: Real, y: Real, text: str, anchor: str = "middle", colour: str = INK, size: Real = 11) -> None:
        """Add a text whose baseline starts ("start"), has its middle ("middle") or ends ("end") at the point."""
        self.items.append(("text", (float(x), float(y)), text, anchor, colour, size))

    def image(self, x: Real, y: Real, width: Real, height: Real, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
        """Add an image, stretched over the box."""
        self.items.append(("image", (x, y, width, height), rgb))


def svg(drawing: Drawing) -> str:
    """Format the drawing as a self-contained SVG element."""
    parts = []
    for kind, *what in drawing.items:
        if kind == "line":
            points, colour, width = what
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>')
        elif kind == "text":
            (x, y), text, anchor, colour, size = what
            parts.append(
                f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size:g}">'
                f"{escape(text)}</text>"
            )
        else:
            (x, y, width, height), rgb = what
            data = base64.b64encode(encode_png(Image.fromarray(rgb))).decode()
            parts.append(
                f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
            )
    size = f"{drawing.width:g} {drawing.height:g}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{drawing.width:g}"'
    head += f' height="{drawing.height:g}" font-family="Helvetica, Arial, sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def png(drawing: Drawing, finer: int = 2) -> bytes:
    """Render the drawing as a PNG.

    Args:
        drawing: the drawing.
        finer: pixels per unit.
    """
    over = 2 * finer  # drawn twice as large, for smooth lines
    sheet = Image.new("RGB", (round(drawing.width * over), round(drawing.height * over)), "white")
    draw = ImageDraw.Draw(sheet)
    for kind, *what in drawing.items:
        if kind == "line":
            points, colour, width = what
            draw.line([tuple(p) for p in points * over], fill=colour, width=round(width * over), joint="curve")
        elif kind == "text":
            (x, y), text, anchor, colour, size = what
            draw_text(draw, (x * over, y * over), text, anchor, colour, size * over)
        else:
            (x, y, width, height), rgb = what
            to = (max(round(width * over), 1), max(round(height * over), 1))
            sheet.paste(Image.fromarray(rgb).resize(to, Image.Resampling.BILINEAR), (round(x * over), round(y * over)))
    return encode_png(sheet.reduce(2))


def draw_text(draw: ImageDraw.ImageDraw, at: tuple, text: str, anchor: str, colour: str, size: Real) -> None:
    """Draw a text with Pillow. Its own font has no Å: that is an A with a ring drawn above."""
    font = ImageFont.load_default(size)
    plain = text.replace("Å", "A")
    left = at[0] - font.getlength(plain) * {"start": 0, "middle": 0.5, "end": 1}[anchor]
    draw.text((left, at[1]), plain, fill=colour, font=font, anchor="ls")
    for place in (k for k, letter in enumerate(text) if letter == "Å"):
        middle = left + font.getlength(plain[:place]) + font.getlength("A") / 2
        x, y, r = middle, at[1] - 0.86 * size, 0.11 * size
        draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(round(0.06 * size), 1))


def encode_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)
    return file.getvalue()


@dataclass(frozen=True)
class Axes:
    """Coordinate axes within a drawing.

    Attributes:
        left: left side of the frame in the drawing.
        top: upper side of the frame in the drawing.
        width: of the frame.
        height: of the frame.
        xlim: first and last value of x.
        ylim: first and last value of y.
        log: whether y is logarithmic.
    """

    left: Real
    top: Real
    width: Real
    height: Real
    xlim: tuple[Real, Real]
    ylim: tuple[Real, Real]
    log: bool = False

    def place(self, x, y) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates in the drawing of the values (x, y)."""
        (x0, x1), (y0, y1) = self.xlim, self.ylim
        if self.log:
            y, y0, y1 = np.log(y), np.log(y0), np.log(y1)
        across, up = (np.asarray(x) - x0) / (x1 - x0), (np.asarray(y) - y0) / (y1 - y0)
        return self.left + across * self.width, self.top + (1 - up) * self.height

    def frame(self, drawing: Drawing, xticks: Sequence[tuple[Real, str]], yticks: Sequence[tuple[Real, str]]) -> None:
        """Draw the left and lower side, rules, and labels at the ticks (value, text)."""
        for value, label in yticks:
            x, y = self.place(np.array(self.xlim), np.full(2, value))
            drawing.line(x, y, RULE)
            drawing.text(self.left - 5, y[0] + 4, label, "end")
        for value, label in xticks:
            x, y = self.place(np.full(2, value), np.full(2, self.ylim[0]))
            drawing.line(x, y + (0, 4), GREY)
            for number, row in enumerate(label.split("\n")):
                drawing.text(x[0], y[0] + 16 + 13 * number, row)
        bottom = self.top + self.height
        drawing.line([self.left, self.left, self.left + self.width], [self.top, bottom, bottom], GREY)


def fsc_drawing(curves: dict[str, Curve]) -> Drawing:
    """Plot Fourier shell correlations against frequency.

    Args:
        curves: by name: "target" or "reference", then "_before" or "_after".
    """
    styled: dict[str, tuple[Curve, str, float]] = {}
    for name, curve in curves.items():
        against, _, when = name.partition("_")
        which = "initial" if when == "before" else "generated"
        colour, width = CURVES[name]
        styled[f"{which} against {against}"] = (curve, colour, width)
    return curves_drawing(styled)


def targets_drawing(start: Curve, ends: dict[str, Curve]) -> Drawing:
    """Plot Fourier shell correlations with one reference: the initial map's in grey, the generated maps' by name."""
    shades = [RAMP[round(k * (len(RAMP) - 1) / max(len(ends) - 1, 1))] for k in range(len(ends))]
    lines = {name: (curve, shade, 1.8) for (name, curve), shade in zip(ends.items(), shades, strict=True)}
    return curves_drawing({"the initial map": (start, GREY, 1.2)} | lines)


def named_drawing(curves: dict[str, Curve]) -> Drawing:
    """Plot Fourier shell correlations against frequency by name, at most six in distinct colours."""
    looks = [*DISTINCT, *[("#9aa3ad", 1.2)] * len(curves)]
    return curves_drawing({name: (curve, *look) for (name, curve), look in zip(curves.items(), looks, strict=False)})


def curves_drawing(curves: dict[str, tuple[Curve, str, float]]) -> Drawing:
    """Plot Fourier shell correlations against frequency; each is (curve, colour, width), under its name in the key."""
    drawing = Drawing(640, 340 + 18 * -(-len(curves) // 2))
    last = max(float(frequency[-1]) for (frequency, _), _, _ in curves.values())
    least = min(0.0, *(float(correlation.min()) for (_, correlation), _, _ in curves.values()))
    axes = Axes(48, 14, 575, 265, (0.0, last), (least, 1.02))
    ticks = np.linspace(0, last, 6)[1:]
    axes.frame(
        drawing,
        [(0.0, "0"), *((tick, f"{tick:.2f}\n{1 / tick:.1f} Å") for tick in ticks)],
        [(0.0, "0"), (0.143, "0.143"), (0.5, "0.5"), (1.0, "1")],
    )
    drawing.text(48 + 575 / 2, 324, "spatial frequency [1/Å] and resolution [Å]")
    for number, (name, ((frequency, correlation), colour, width)) in enumerate(curves.items()):
        drawing.line(*axes.place(frequency[1:], correlation[1:]), colour, width)
        x, y = 48 + 300 * (number % 2), 348 + 18 * (number // 2)
        drawing.line([x, x + 20], [y - 4, y - 4], colour, width)
        drawing.text(x + 25, y, name, "start")
    return drawing


def loss_drawing(stages: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Drawing:
    """Plot the loss of every step, a panel for each stage, because losses of different kinds are not comparable.

    Values that are not finite are left out.

    Args:
        stages: name, loss, and loss on the other half-map of every step. The latter is in another colour, and NaN where
            there is none.
    """
    drawing = Drawing(max(230 * len(stages), 300) + 10, 230)
    for number, (name, losses, validation) in enumerate(stages):
        left = 62 + number * (drawing.width - 10) / len(stages)
        steps = np.flatnonzero(np.isfinite(losses))
        validated = np.flatnonzero(np.isfinite(validation))
        every = np.concatenate([losses[steps], validation[validated]])
        low, high = (float(end(every)) for end in (np.min, np.max)) if len(every) else (0.0, 1.0)
        log = low > 0 and high > 5 * low
        pad = 1.08 if log else max(0.06 * (high - low), 1e-9 + 1e-6 * abs(high))
        ylim = (low / pad, high * pad) if log else (low - pad, high + pad)
        axes = Axes(left, 26, (drawing.width - 10) / len(stages) - 76, 150, (1.0, max(len(losses), 2)), ylim, log)
        middle = np.sqrt(low * high) if log else (low + high) / 2
        marks = [(value, f"{value:.2g}") for value in dict.fromkeys((low, middle, high))]
        axes.frame(drawing, [(1.0, "1"), (float(len(losses)), str(len(losses)))][: len(losses)], marks)
        if len(steps):
            drawing.line(*axes.place(steps + 1.0, losses[steps]), CURVES["target_after"][0], 1.2)
        if len(validated):
            drawing.line(*axes.place(validated + 1.0, validation[validated]), CURVES["reference_after"][0], 1.2)
        drawing.text(left + axes.width / 2, 16, f"stage {number + 1}: {name}")
        drawing.text(left + axes.width / 2, 218, "step")
    return drawing


def panels_drawing(panels: dict[str, dict[str, tuple]], across: str, floor: Real | None = None) -> Drawing:
    """Plot panels, two abreast, each with a curve for each name, in the same colour in all panels.

    Args:
        panels: curves (x, y) by title and name.
        across: label of x.
        floor: value that the y axis reaches down to at least; None for the least value of the curves.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colours = {name: SERIES[k % len(SERIES)] for k, name in enumerate(names)}
    columns = min(len(panels), 2)
    rows, lines = -(-len(panels) // columns), -(-len(names) // 4)
    drawing = Drawing(350 * columns + 10, 250 * rows + 18 * lines + 12)
    for number, (title, curves) in enumerate(panels.items()):
        left, top = 46 + 350 * (number % columns), 30 + 250 * (number // columns)
        every = [np.concatenate([np.ravel(curve[axis]) for curve in curves.values()]) for axis in (0, 1)]
        low, high = (float(end(every[1])) for end in (np.min, np.max))
        low = low if floor is None else min(low, float(floor))
        step = tick_step(high - low)
        first, last = np.floor(low / step + 1e-9) * step, np.ceil(high / step - 1e-9) * step
        axes = Axes(
            left, top, 300, 170, (float(every[0].min()), float(every[0].max())), (first, max(last, first + step))
        )
        ticks = np.arange(first, axes.ylim[1] + step / 2, step)
        spacing = tick_step(axes.xlim[1] - axes.xlim[0])
        marks = np.arange(np.ceil(axes.xlim[0] / spacing) * spacing, axes.xlim[1] + spacing * 1e-6, spacing)
        axes.frame(
            drawing, [(float(v), f"{v:g}") for v in marks.round(9)], [(float(v), f"{v:g}") for v in ticks.round(9)]
        )
        for name, (x, y) in reversed(curves.items()):  # the first curve is on top
            drawing.line(*axes.place(x, y), colours[name], 1.6)
        drawing.text(left + 150, top - 12, title, size=12)
        drawing.text(left + 150, top + 204, across)
    for number, name in enumerate(names):
        x, y = 46 + 170 * (number % 4), 250 * rows + 18 * (number // 4) + 14
        drawing.line([x, x + 20], [y - 4, y - 4], colours[name], 2.4)
        drawing.text(x + 25, y, name, "start")
    return drawing


def tick_step(span: Real) -> float:
    """Distance of about five ticks over a span: 1, 2 or 5 times a power of ten."""
    rough = max(float(span), 1e-9) / 5
    unit = 10 ** np.floor(np.log10(rough))
    return float(unit * next(k for k in (1, 2, 5, 10) if k * unit >= rough * (1 - 1e-9)))


def slices_drawing(volumes: dict[str, Float[np.ndarray, "x y z"]], voxel_size: Float[np.ndarray, "3"]) -> Drawing:
    """Draw slices of each volume across z, y and x through the middle of the first volume's mass.

    Each is from white to black, "difference" from blue (below zero) to red on the scale of "target".

    Args:
        volumes: by name.
        voxel_size: Å, along each axis.
    """
    first = np.maximum(next(iter(volumes.values())), 0)
    sums = [first.sum(other) + 1e-12 for other in ((1, 2), (0, 2), (0, 1))]
    middle = [int(np.average(np.arange(len(s)), weights=s)) for s in sums]
    sides = np.array(first.shape) * voxel_size
    scale = 170 / sides.max()
    rows = [(axis, *(k for k in range(3) if k != axis)) for axis in (2, 1, 0)]
    tops = np.cumsum([28, *(sides[up] * scale + 10 for _, _, up in rows)])
    drawing = Drawing(60 + 180 * len(volumes), float(tops[-1]) + 4)
    for column, (name, volume) in enumerate(volumes.items()):
        brightest = volumes["target"] if name == "difference" else volume
        black = max(float(np.percentile(brightest, 99.9)), 1e-9)
        drawing.text(60 + 180 * column + 85, 18, name, size=12)
        for (axis, across, up), top in zip(rows, tops, strict=False):
            part = volume.take(middle[axis], axis).T[::-1] / black  # the axis points up the page
            width, height = sides[across] * scale, sides[up] * scale
            rgb = diverging(part) if name == "difference" else greys(part)
            drawing.image(60 + 180 * column + (170 - width) / 2, top, width, height, rgb)
            if column == 0:
                drawing.text(6, top + height / 2, f"across {'xyz'[axis]}", "start")
    return drawing


def greys(values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels from white (0 and less) to black (1)."""
    grey = 255 * (1 - np.clip(values, 0, 1))
    return np.repeat(grey[..., None], 3, -1).astype(np.uint8)


def diverging(values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels from blue (-1) through white (0) to red (1)."""
    ends = np.where(values[..., None] < 0, np.array([33, 102, 172]), np.array([178, 24, 43]))
    share = np.clip(np.abs(values), 0, 1)[..., None]
    return (255 + share * (ends - 255)).astype(np.uint8)


def displacement_colours(values: Float[np.ndarray, "n"], top: Real) -> Float[np.ndarray, "n 3"]:
    """Colours (red, green and blue, 0 to 1) of values from 0 to `top`, by PALETTE."""
    stops = np.array([[int(stop[k : k + 2], 16) / 255 for k in (1, 3, 5)] for stop in PALETTE])
    at = np.clip(values / top, 0, 1) * (len(stops) - 1)
    return np.stack([np.interp(at, np.arange(len(stops)), component) for component in stops.T], -1).astype(np.float32)


def with_caption(picture: UInt8[np.ndarray, "h w 3"], top: Real, time: Real) -> Image.Image:
    """Halve a picture, and add the key of its colours (0 to `top` Å) and the time below it."""
    small = Image.fromarray(picture).reduce(2)
    whole = Image.new("RGB", (small.width, small.height + KEY), "white")
    whole.paste(small, (0, 0))
    key = np.repeat(displacement_colours(np.linspace(0, 1, 60), 1.0)[None], 8, axis=0)
    whole.paste(Image.fromarray((255 * key).astype(np.uint8)), (18, small.height + 9))
    draw, line = ImageDraw.Draw(whole), small.height + 17
    draw_text(draw, (15, line), "0", "end", INK, 11)
    draw_text(draw, (82, line), f"{top:g} Å", "start", INK, 11)
    draw_text(draw, (small.width - 4, line), f"t = {time:.2f}", "end", INK, 11)
    return whole


def animation(pictures: Sequence[Image.Image]) -> bytes:
    """Encode pictures, played forward and backward, as an endless GIF that pauses at both ends."""
    chosen = [pictures[k] for k in {0, len(pictures) // 2, len(pictures) - 1}]
    strip = Image.new("RGB", (sum(p.width for p in chosen), chosen[0].height))
    for place, picture in enumerate(chosen):
        strip.paste(picture, (place * picture.width, 0))
    palette = strip.quantize(COLOURS, method=Image.Quantize.MEDIANCUT)  # shared, so that colours do not flicker
    flat = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    turn = [*flat, *flat[-2:0:-1]]
    rests = [PAUSE if k in (0, len(flat) - 1) else STEP for k in range(len(turn))]
    file = io.BytesIO()
    turn[0].save(file, "GIF", save_all=True, append_images=turn[1:], duration=rests, loop=0, optimize=False)
    return file.getvalue()


def small_png(picture: Image.Image) -> bytes:
    """Encode a picture as a small PNG."""
    return encode_png(picture.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
