"""Figures are whole files that open, say the same as the numbers, and take any text as text."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
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
            ("a", np.geomspace(5, 0.1, 40), np.where(np.arange(40) % 10 == 9, 0.5, np.nan)),
            ("b", np.array([0.3]), np.array([np.nan])),
            ("c", np.zeros(3), np.full(3, np.nan)),
            ("d", np.array([np.nan]), np.array([np.nan])),
        ]
    ),
    "slices": plots.slices_drawing(
        {name: np.random.default_rng(0).normal(size=(9, 7, 12)) for name in ("initial", "target", "difference")},
        np.array([1.0, 1.5, 2.0]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_the_same_in_both_formats_each_time(figure):
    text, picture = plots.svg(figure), plots.png(figure)
    assert (plots.svg(figure), plots.png(figure)) == (text, picture)
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and "http" not in text.replace("http://www.w3.org", "")
    image = Image.open(io.BytesIO(picture))
    assert image.size == (round(2 * figure.width), round(2 * figure.height))
    assert len(image.convert("L").getcolors()) > 10  # it is not empty
    for line in root.iter(f"{SVG}polyline"):
        x, y = np.array([point.split(",") for point in line.get("points").split()], float).T
        assert x.min() >= 0 and x.max() <= figure.width and y.min() >= 0 and y.max() <= figure.height


def test_curves_go_through_their_numbers():
    """Read back from the SVG by its axes: the rules at 0 and 1, the ticks at 0 and the last frequency."""
    root = ElementTree.fromstring(plots.svg(FIGURES["fsc"]))
    lines = [
        np.array([p.split(",") for p in line.get("points").split()], float) for line in root.iter(f"{SVG}polyline")
    ]
    zero, one = lines[0], lines[3]
    assert zero[0, 1] == zero[1, 1] and one[0, 1] == one[1, 1]
    curves = [line for line in lines if len(line) == len(FREQUENCY) - 1]
    for line, (_, correlation) in zip(curves, CURVES.values(), strict=True):
        x = (line[:, 0] - zero[0, 0]) / (zero[1, 0] - zero[0, 0]) * FREQUENCY[-1]
        y = (line[:, 1] - zero[0, 1]) / (one[0, 1] - zero[0, 1])
        np.testing.assert_allclose(x, FREQUENCY[1:], atol=1e-4)  # tenths of a unit of some 500
        np.testing.assert_allclose(y, correlation[1:], atol=1e-3)


def test_a_text_stays_a_text():
    drawing = plots.Drawing(100, 40)
    drawing.text(5, 20, "</text><script>a&b $x$ 3 Å", "start")
    root = ElementTree.fromstring(plots.svg(drawing))
    assert [node.text for node in root.iter(f"{SVG}text")] == ["</text><script>a&b $x$ 3 Å"]
    assert not list(root.iter(f"{SVG}script"))
    assert Image.open(io.BytesIO(plots.png(drawing))).size == (200, 80)


def test_colours_run_along_the_palette():
    ends = plots.displacement_colours(np.array([0.0, 5.0, 10.0, 99.0]), 10.0)
    for colour, stop in zip(
        ends, (plots.PALETTE[0], plots.PALETTE[2], plots.PALETTE[-1], plots.PALETTE[-1]), strict=True
    ):
        assert "#" + "".join(f"{round(255 * float(c)):02x}" for c in colour) == stop


def test_the_difference_is_blue_below_and_red_above():
    red, green, blue = plots.diverging(np.array([[-1.0, 0.0, 1.0]]))[0].T.astype(int)
    assert blue[0] > red[0] and red[2] > blue[2] and red[1] == green[1] == blue[1] == 255
    assert plots.greys(np.array([[-1.0, 0.0, 1.0, 2.0]]))[0, :, 0].tolist() == [255, 255, 0, 0]


def test_an_animation_goes_there_and_back_and_never_ends():
    pictures = [np.full((40, 60, 3), 80 * k, np.uint8) for k in range(4)]
    film = Image.open(io.BytesIO(plots.animation([plots.with_caption(p, 3.2, k / 3) for k, p in enumerate(pictures)])))
    assert film.n_frames == 6 and film.info["loop"] == 0
    greys = []
    for number in range(6):
        film.seek(number)
        greys.append(int(np.asarray(film.convert("RGB"))[5, 5, 0]))
    np.testing.assert_allclose(greys, [0, 80, 160, 240, 160, 80], atol=8)  # of a palette of 96
    assert film.size == (30, 20 + plots.KEY)
