"""Pictures of the morph with a title and a key, and films of them: GIF, MP4 and the stills of the page."""

import io
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from cryotrans_jax.io.files import whole_file
from cryotrans_jax.plots import GREY, INK, displacement_colours

from .. import exchange

SIDE = 1080  # pixels of a picture
TOP, BOTTOM = 100, 76  # pixels above and below the molecule, for the title and the key
AREA = SIDE - TOP - BOTTOM, SIDE  # height and width of the molecule's picture, pixels
FINER = 1.5  # times as many pixels are drawn, and averaged
MARGIN = 36  # pixels beside the text
SMALLEST, LONGEST = 14, 100  # size of a font, and letters of a line
GIF, STILL = 600, 320  # pixels of a picture in the GIF and on the page
COLOURS = 96  # of a GIF and of a still
PAUSE, STEP = 0.7, 0.1  # seconds for which both ends are shown, and the pictures between
RATE = round(1 / STEP)  # frames per second of the MP4, so that each picture on the way is encoded once
ROUNDS = 2  # times that the MP4 goes there and back
CODEC = "-vcodec libx264 -preset veryfast -pix_fmt yuv420p -crf 20 -movflags +faststart -f mp4".split()


def compose(picture: UInt8[np.ndarray, "h w 3"], title: str, names: str, top: float, time: float) -> Image.Image:
    """A picture of the morph with its title above, and the key of its colours and the time below.

    Args:
        picture: of the molecule, of AREA or a multiple of it.
        title: what moves.
        names: of the maps.
        top: displacement at the end of the key, Å.
        time: of the frame, from 0 to 1.
    """
    whole = Image.new("RGB", (SIDE, SIDE), "white")
    whole.paste(Image.fromarray(picture).resize(AREA[::-1], Image.Resampling.LANCZOS), (0, TOP))
    key = np.repeat(displacement_colours(np.linspace(0, 1, 300), 1.0)[None], 22, axis=0)
    line = SIDE - BOTTOM // 2
    whole.paste(Image.fromarray((255 * key).astype(np.uint8)), (MARGIN + 40, line - 11))
    draw = ImageDraw.Draw(whole)
    fits, title, names = SIDE - 2 * MARGIN, shortened(title), shortened(names)
    draw.text((MARGIN, 44), title, fill=INK, font=font(title, 34, fits, "-Bold"), anchor="lm")
    draw.text((MARGIN, 82), names, fill=GREY, font=font(names, 24, fits), anchor="lm")
    plain = font("", 26, fits)
    texts = (
        (MARGIN, "0", "lm"),
        (MARGIN + 352, f"≥ {top:g} Å displacement", "lm"),
        (SIDE - MARGIN, f"t = {time:.2f}", "rm"),
    )
    for x, text, anchor in texts:
        draw.text((x, line), text, fill=INK, font=plain, anchor=anchor)
    return whole


def font(text: str, size: int, width: float, style: str = "") -> ImageFont.FreeTypeFont:
    """The font in which a text has a size, or is as wide as it may be (pixels)."""
    path = Path(matplotlib.get_data_path(), f"fonts/ttf/DejaVuSans{style}.ttf")
    found = ImageFont.truetype(path, size)
    length = found.getlength(text)
    return found if length <= width else ImageFont.truetype(path, max(int(size * width / length), SMALLEST))


def shortened(text: str) -> str:
    """A text that fits in its smallest font; a longer one ends with dots."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def there_and_back(count: int) -> list[tuple[int, float]]:
    """Numbers of the pictures of one round, and the seconds for which each is shown."""
    order = exchange.there_and_back(count)
    return [(number, PAUSE if number in (0, count - 1) else STEP) for number in order]


def animation(pictures: Sequence[Image.Image]) -> bytes:
    """Encode pictures, played there and back, as an endless GIF that pauses at both ends."""
    small = [picture.resize((GIF, GIF), Image.Resampling.LANCZOS) for picture in pictures]
    chosen = [small[k] for k in {0, len(small) // 2, len(small) - 1}]
    strip = Image.new("RGB", (GIF * len(chosen), GIF))
    for place, picture in enumerate(chosen):
        strip.paste(picture, (place * GIF, 0))
    palette = strip.quantize(COLOURS, method=Image.Quantize.MEDIANCUT)  # shared, so that colours do not flicker
    flat = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in small]
    turn = there_and_back(len(flat))
    first, *others = [flat[number] for number, _ in turn]
    file, times = io.BytesIO(), [round(1000 * seconds) for _, seconds in turn]
    first.save(file, "GIF", save_all=True, append_images=others, duration=times, loop=0, optimize=False)
    return file.getvalue()


def write_film(path: Path, pictures: Sequence[Image.Image]) -> bool:
    """Write pictures, played there and back, as an MP4 (H.264); return False where this machine has no encoder.

    The encoder is a process of its own. That of imageio_ffmpeg's `write_frames` is made by a fork, which JAX warns of.
    """
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        return False
    width, height = pictures[0].size
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{RATE}", "-i", "-"]
    with whole_file(path) as temporary:
        command = [program, "-y", "-loglevel", "error", *given, *CODEC, str(temporary)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as encoder:
            assert encoder.stdin is not None
            for picture in played(pictures):
                encoder.stdin.write(picture.tobytes())
        if encoder.returncode:
            raise OSError(f"{path} could not be encoded: {program} ended with status {encoder.returncode}")
    return True


def played(pictures: Sequence[Image.Image]) -> Iterator[Image.Image]:
    """The pictures of the MP4, one for each of its moments."""
    for number, seconds in ROUNDS * there_and_back(len(pictures)):
        yield from [pictures[number]] * round(RATE * seconds)


def still(picture: Image.Image) -> bytes:
    """Encode a picture as a small PNG."""
    file, size = io.BytesIO(), (STILL, STILL)
    small = picture.resize(size, Image.Resampling.LANCZOS)
    small = small.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(file, "PNG", compress_level=4)
    return file.getvalue()
