"""Pictures of the morph and films of them."""

import io
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from experiments.pages import pictures


def composed(count=4, title="Domain A rotates by 30° and shifts by 11 Å"):
    """Pictures of a molecule that becomes lighter."""
    flat = [np.full((*pictures.AREA, 3), 80 * k, np.uint8) for k in range(count)]
    names = "a.mrc → b.mrc"
    return [pictures.compose(p, title, names, 3.2, k / (count - 1)) for k, p in enumerate(flat)]


def grey(picture):
    """Grey of the middle of a picture."""
    rgb = np.asarray(picture.convert("RGB"))
    return int(rgb[rgb.shape[0] // 2, rgb.shape[1] // 2, 0])


def test_an_animation_goes_there_and_back_and_never_ends():
    film = Image.open(io.BytesIO(pictures.animation(composed())))
    assert film.n_frames == 6 and film.info["loop"] == 0 and film.size == (pictures.GIF, pictures.GIF)
    greys = []
    for number in range(6):
        film.seek(number)
        greys.append(grey(film))
    np.testing.assert_allclose(greys, [0, 80, 160, 240, 160, 80], atol=12)  # of the palette of both ends and the middle


def test_the_film_is_h264_and_shows_the_same(tmp_path):
    path = tmp_path / "morph.mp4"
    assert pictures.write_film(path, composed())
    read = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "gray", "-s", "3x3", "-"]
    done = subprocess.run(read, capture_output=True, check=True)
    assert b"Video: h264" in done.stderr and f"{pictures.SIDE}x{pictures.SIDE}".encode() in done.stderr
    shown = np.frombuffer(done.stdout, np.uint8).reshape(-1, 3, 3)[:, 1, 1]
    rounds = sum(round(pictures.RATE * seconds) for _, seconds in pictures.there_and_back(4))
    assert len(shown) == pictures.ROUNDS * rounds
    assert [int(shown[k]) for k in (0, rounds // 2)] == pytest.approx([0, 240], abs=20)  # scaled with the white above
    assert list(tmp_path.iterdir()) == [path]


def test_without_an_encoder_there_is_no_film(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "")
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: (_ for _ in ()).throw(RuntimeError("none here")))
    assert not pictures.write_film(tmp_path / "morph.mp4", composed(2)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("title", ["", "short", 40 * "a long name of a body, "])
def test_titles_stay_in_the_picture(title):
    """Nothing is drawn in the margin, however long the title is."""
    rgb = np.asarray(composed(2, title)[1])
    assert (rgb[: pictures.TOP, : pictures.MARGIN // 2] == 255).all()
    assert (rgb[: pictures.TOP, -pictures.MARGIN // 2 :] == 255).all()
    assert bool((rgb[:64] < 200).any()) == bool(title)


def test_a_still_is_small():
    assert len(pictures.still(composed(2)[1])) < 50_000
