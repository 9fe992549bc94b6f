"""Figures are whole files that open, say the same as the numbers, and take any text as text."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from cryotrans_jax import plots

SVG = "{http://www.w3.org/2000/svg}"
FREQUENCY = np.linspace(0, 0.5, 21)
CURVES = {
    "target_before": (FREQUENCY, np.exp(-8 * FREQUENCY)),
    "target_after": (FREQUENCY, 1 - 1.5 * FREQUENCY),
    "reference_before": (FREQUENCY, np.cos(7 * FREQUENCY)),
    "reference_after": (FREQUENCY, 1 - FREQUENCY),
}
FIGURES = {
    "fsc": plots.fsc_drawing(CURVES),
    "loss": plots.loss_drawing(
        [
            ("a", np.geomspace(5, 0.1, 40)),
            ("b", np.array([0.3])),
            ("c", np.zeros(3)),
            ("d", np.array([np.nan])),
        ]
    ),
    "slices": plots.slices_drawing(
        {name: np.random.default_rng(0).normal(size=(9, 7, 12)) for name in ("initial", "target", "difference")},
        np.array([1.0, 1.5, 2.0]),
        [4, 3, 6],
    ),
}  # fmt: skip


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_the_same_in_both_formats_each_time(figure):
    text, picture = plots.svg(figure), plots.png(figure)
    assert (plots.svg(figure), plots.png(figure)) == (text, picture)
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and "http" not in text.replace("http://www.w3.org", "")
    size = [float(root.get(side)) for side in ("width", "height")]
    image = Image.open(io.BytesIO(picture))
    np.testing.assert_allclose(image.size, plots.PIXELS * np.array(size), atol=1)
    assert len(image.convert("L").getcolors()) > 10  # it is not empty


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_no_text_of_a_figure_is_cut_off_or_over_another(figure):
    plots.svg(figure)
    boxes = [
        text.get_window_extent()
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible() and text.axes not in (None, text)
    ]
    for number, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_curves_go_through_their_numbers():
    """All but the first shell, which holds the mean density alone."""
    (axes,) = FIGURES["fsc"].axes
    for line, (frequency, correlation) in zip(axes.lines, CURVES.values(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([frequency, correlation], -1)[1:])
        assert axes.viewLim.x0 <= line.get_xdata().min() and line.get_xdata().max() <= axes.viewLim.x1
        assert axes.viewLim.y0 <= line.get_ydata().min() and line.get_ydata().max() <= axes.viewLim.y1


def test_a_text_stays_a_text():
    name = "</text><script>a&b $x$ 3 Å"
    root = ElementTree.fromstring(plots.svg(plots.named_drawing({name: CURVES["target_after"]})))
    assert name in [node.text for node in root.iter(f"{SVG}text")]
    assert not list(root.iter(f"{SVG}script"))


def test_colours_run_along_the_palette():
    ends = plots.displacement_colours(np.array([0.0, 5.0, 10.0, 99.0]), 10.0)
    for colour, stop in zip(
        ends, (plots.PALETTE[0], plots.PALETTE[2], plots.PALETTE[-1], plots.PALETTE[-1]), strict=True
    ):
        assert "#" + "".join(f"{round(255 * float(c)):02x}" for c in colour) == stop


def test_the_difference_is_blue_below_and_red_above():
    red, green, blue = plots.DIFFERENCE([0.0, 0.5, 1.0])[:, :3].T
    assert blue[0] > red[0] and red[2] > blue[2]
    np.testing.assert_allclose([red[1], green[1], blue[1]], 1, atol=1 / 128)
