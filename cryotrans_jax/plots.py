"""Draw figures with matplotlib; no display is needed.

Figures are vector graphics whose text stays text, and are the same bytes every time.
"""

import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba_array
from matplotlib.figure import Figure

Real = int | float  # the type checks of the tests do not accept an int as a float
Curve = tuple[Float[np.ndarray, "shells"], Float[np.ndarray, "shells"]]
PALETTE = ("#c9d0d8", "#f4dd86", "#f2994a", "#d94a38", "#861a68")  # of displacement: grey for none
CURVES = {  # colour and width: pale and thin before the fit
    "target_before": ("#8fb3cf", 1.2),
    "target_after": ("#1f5f8b", 2.0),
    "reference_before": ("#e3b48d", 1.2),
    "reference_after": ("#c2571a", 2.0),
    "half_maps": ("#3f8f5b", 1.2),
}
HALF_MAPS = "half-maps of the target"
SERIES = ("#c2571a", "#7b8793", "#1f5f8b", "#3f8f5b", "#8a6bb1", "#c99a1b", "#2b3440", "#d94a8c")  # of methods
RAMP = ("#12466b", "#2f8f9d", "#8fae3c", "#e0a030", "#c2571a", "#861a68")  # from the first target to the last
DISTINCT = ("#8fb3cf", "#c2571a", "#1f5f8b", "#c8cfd6", "#e3b48d", "#861a68")  # of named curves
DIFFERENCE = LinearSegmentedColormap.from_list("difference", ["#2166ac", "white", "#b2182b"])
INK, GREY, RULE = "#2b3440", "#7b8793", "#d9dee3"
STYLE = matplotlib.rc_context(
    {
        "figure.constrained_layout.h_pad": 0.1,
        "figure.constrained_layout.w_pad": 0.1,
        "font.size": 10,
        "text.color": INK,
        "text.parse_math": False,  # names of files may have dollar signs
        "axes.labelcolor": INK,
        "axes.titlesize": 10,
        "axes.edgecolor": GREY,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": RULE,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "ytick.left": False,
        "legend.frameon": False,
        "lines.solid_joinstyle": "round",
        "svg.fonttype": "none",
        "svg.hashsalt": "cryotrans",
    }
)
PIXELS = 2  # of a PNG, and of the images in an SVG, for each unit of a figure


class Drawing(Figure):
    """A figure of width × height units, each a pixel of a page at its usual size."""

    def __init__(self, width: Real, height: Real):
        """Make an empty figure whose parts will be arranged so that they do not overlap."""
        super().__init__((width / 72, height / 72), dpi=72, layout="constrained")

    def _repr_svg_(self) -> str:
        """The figure as SVG, for notebooks."""
        return svg(self)


def svg(drawing: Drawing) -> str:
    """Format the figure as a self-contained SVG element."""
    text = encode(drawing, "svg", ("Creator", "Date", "Format", "Type")).decode()
    return text[text.index("<svg") :].replace('pt"', '"', 2)  # its width and height are in pixels


def png(drawing: Drawing) -> bytes:
    """Render the figure as a PNG."""
    return encode(drawing, "png", ("Software",))


@STYLE
def encode(drawing: Drawing, format: str, unknown: Sequence[str]) -> bytes:
    """Encode the figure in a format, without the metadata of these names."""
    file = io.BytesIO()
    drawing.savefig(file, format=format, dpi=72 * PIXELS, metadata=dict.fromkeys(unknown))
    drawing.set_layout_engine("none")  # its parts stay where they are
    return file.getvalue()


def fsc_drawing(curves: dict[str, Curve], marks: Mapping[str, float] = MappingProxyType({})) -> Drawing:
    """Plot Fourier shell correlations against frequency.

    Args:
        curves: by name: "target" or "reference", then "_before" or "_after"; or "half_maps".
        marks: resolutions (Å) that are marked, by name.
    """
    styled: dict[str, tuple[Curve, str, float]] = {}
    for name, curve in curves.items():
        against, _, when = name.partition("_")
        which = {"before": f"initial against {against}", "after": f"generated against {against}"}
        styled[which.get(when, HALF_MAPS)] = (curve, *CURVES[name])
    return curves_drawing(styled, marks)


def targets_drawing(start: Curve, ends: dict[str, Curve]) -> Drawing:
    """Plot Fourier shell correlations with one reference: the initial map's in grey, the generated maps' by name."""
    shades = [RAMP[round(k * (len(RAMP) - 1) / max(len(ends) - 1, 1))] for k in range(len(ends))]
    lines = {name: (curve, shade, 1.8) for (name, curve), shade in zip(ends.items(), shades, strict=True)}
    return curves_drawing({"the initial map": (start, GREY, 1.2)} | lines)


def named_drawing(curves: dict[str, Curve]) -> Drawing:
    """Plot Fourier shell correlations against frequency by name, at most six in distinct colours."""
    return curves_drawing({name: (curve, DISTINCT[k % 6], 1.8) for k, (name, curve) in enumerate(curves.items())})


@STYLE
def curves_drawing(
    curves: dict[str, tuple[Curve, str, float]], marks: Mapping[str, float] = MappingProxyType({})
) -> Drawing:
    """Plot Fourier shell correlations against frequency; each is (curve, colour, width), under its name in the key.

    Args:
        curves: by name.
        marks: resolutions (Å) that are marked by a line, by name; those beyond the curves are left out.
    """
    drawing = Drawing(640, 340 + 18 * -(-len(curves) // 2))
    axes = drawing.add_subplot(xlabel="spatial frequency [1/Å] and resolution [Å]", ylabel="Fourier shell correlation")
    axes.set_yticks((0, 0.143, 0.5, 1), ("0", "0.143", "0.5", "1"))
    for name, ((frequency, correlation), colour, width) in curves.items():
        axes.plot(frequency[1:], correlation[1:], color=colour, linewidth=width, label=name)
    last = max(float(frequency[-1]) for (frequency, _), _, _ in curves.values())
    ticks = np.linspace(0, last, 6)
    axes.set_xticks(ticks, ["0", *(f"{tick:.2f}\n{1 / tick:.1f} Å" for tick in ticks[1:])])
    axes.set(xlim=(0, last), ylim=(min(0.0, axes.dataLim.y0), 1.02))
    for name, resolution in marks.items():
        if 1 / resolution <= 1.001 * last:
            axes.axvline(1 / resolution, color=GREY, linewidth=1, linestyle=(0, (3, 3)))
            text = f"{name} {resolution:.1f} Å"
            axes.text(1 / resolution, 1.0, text, rotation=90, ha="right", va="top", color=INK, fontsize=9)
    drawing.legend(loc="outside lower left", ncols=2)
    return drawing


@STYLE
def loss_drawing(stages: Sequence[tuple[str, np.ndarray]]) -> Drawing:
    """Plot the loss of every step, a panel for each stage, because losses of different kinds are not comparable.

    Values that are not finite are left out.

    Args:
        stages: name, and loss of every step.
    """
    drawing = Drawing(max(230 * len(stages), 300) + 10, 230)
    for number, ((name, losses), axes) in enumerate(zip(stages, panels(drawing, len(stages)), strict=True), 1):
        steps = np.flatnonzero(np.isfinite(losses))
        axes.plot(steps + 1, losses[steps], color=CURVES["target_after"][0], linewidth=1.2)
        low, high = axes.dataLim.intervaly if axes.dataLim.height >= 0 else (0.0, 1.0)
        wide = low > 0 and high > 5 * low
        axes.set(title=f"stage {number}: {name}", xlabel="step", yscale="log" if wide else "linear")
        axes.set(xlim=(1, max(len(losses), 2)), xticks=sorted({1, len(losses)}))
        marks = sorted({low, np.sqrt(low * high) if wide else (low + high) / 2, high})
        axes.set_yticks(marks, [f"{value:.2g}" for value in marks])
        axes.minorticks_off()
    return drawing


@STYLE
def panels_drawing(curves: dict[str, dict[str, tuple]], across: str, floor: Real | None = None) -> Drawing:
    """Plot panels, two abreast, each with a curve for each name, in the same colour in all panels.

    Args:
        curves: (x, y) by title and name.
        across: label of x.
        floor: value that the y axis reaches down to at least; None for the least value of the curves.
    """
    names = list(dict.fromkeys(name for each in curves.values() for name in each))
    columns, lines = min(len(curves), 2), -(-len(names) // 4)
    drawing = Drawing(350 * columns + 10, 250 * -(-len(curves) // columns) + 18 * lines + 12)
    key = {}
    for axes, (title, each) in zip(panels(drawing, len(curves), columns), curves.items(), strict=True):
        for name, (x, y) in reversed(each.items()):  # the first curve is on top
            (key[name],) = axes.plot(x, y, color=SERIES[names.index(name) % len(SERIES)], linewidth=1.6)
        axes.set(title=title, xlabel=across)
        axes.margins(x=0)
        if floor is not None:
            axes.set_ylim(bottom=min(axes.dataLim.y0, float(floor)))
    drawing.legend([key[name] for name in names], names, loc="outside lower left", ncols=4)
    return drawing


def panels(drawing: Drawing, count: int, columns: int = 0) -> list[Axes]:
    """Add axes in a grid with this number of columns; 0: in one row."""
    columns = columns or count
    return [drawing.add_subplot(-(-count // columns), columns, number) for number in range(1, count + 1)]


@STYLE
def slices_drawing(
    volumes: dict[str, Float[np.ndarray, "x y z"]],
    voxel_size: Float[np.ndarray, "3"],
    middle: Sequence[int] | None = None,
) -> Drawing:
    """Draw slices of each volume across z, y and x.

    Each is from white to black, "difference" from blue (below zero) to red, all on scales of their own.

    Args:
        volumes: by name.
        voxel_size: Å, along each axis.
        middle: the voxel through which they are cut; if not given, that in the middle of the first volume's mass.
    """
    first = next(iter(volumes.values()))
    middle = middle_voxel(first) if middle is None else middle
    sides = np.round(np.array(first.shape) * voxel_size, 3)  # files keep no more digits
    scale = 170 / sides.max()
    rows = [(axis, *(k for k in range(3) if k != axis)) for axis in (2, 1, 0)]
    tops = np.cumsum([28, *(sides[up] * scale + 10 for _, _, up in rows)])
    width, height = 60 + 180 * len(volumes), float(tops[-1]) + 4
    drawing = Drawing(width, height)
    drawing.set_layout_engine("none")
    for column, (name, volume) in enumerate(volumes.items()):
        black = black_level(volume)
        colours, white = (DIFFERENCE, -black) if name == "difference" else ("binary", 0.0)
        drawing.text((145 + 180 * column) / width, 1 - 18 / height, name, ha="center")
        for (axis, across, up), top in zip(rows, tops, strict=False):
            if column == 0:
                drawing.text(6 / width, 1 - (top + sides[up] * scale / 2) / height, f"across {'xyz'[axis]}")
            left, shape = 60 + 180 * column + (170 - sides[across] * scale) / 2, sides[[across, up]] * scale
            axes = drawing.add_axes((left / width, 1 - (top + shape[1]) / height, shape[0] / width, shape[1] / height))
            axes.imshow(  # the second axis points up the page
                volume.take(middle[axis], axis).T, colours, aspect="auto", interpolation="bilinear", vmin=white,
                vmax=black, origin="lower",
            )  # fmt: skip
            axes.set_axis_off()
    return drawing


def black_level(volume: Float[np.ndarray, "x y z"]) -> float:
    """The density, or difference, that slices show as black, or as the full colour."""
    return max(float(np.percentile(np.abs(volume), 99.9)), 1e-9)


def middle_voxel(volume: Float[np.ndarray, "x y z"]) -> list[int]:
    """The voxel in the middle of a volume's mass."""
    mass = np.maximum(volume, 0)
    sums = [mass.sum(other) + 1e-12 for other in ((1, 2), (0, 2), (0, 1))]
    return [int(np.average(np.arange(len(along)), weights=along)) for along in sums]


def displacement_colours(values: Float[np.ndarray, "n"], top: Real) -> Float[np.ndarray, "n 3"]:
    """Colours (red, green and blue, 0 to 1) of values from 0 to `top`, by PALETTE."""
    at = np.clip(values / top, 0, 1) * (len(PALETTE) - 1)
    stops = to_rgba_array(PALETTE)[:, :3].T
    return np.stack([np.interp(at, np.arange(len(PALETTE)), each) for each in stops], -1).astype(np.float32)
