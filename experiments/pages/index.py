"""The page of a batch: a card for each pair. It fetches nothing, runs no script, and escapes names."""

import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple
from urllib.parse import quote

from PIL import Image

from .packing import encode
from .page import ASSETS, MARK
from .pictures import BOTTOM, SIDE, TOP

KINDS = {  # verdicts, and the classes of their cards
    "found": "found",
    "partly found": "partly-found",
    "not found": "not-found",
    "no verdict": "no-verdict",
    "failed": "failed",
    "not done yet": "waiting",
}
MOST_BYTES = 20_000  # of a thumbnail
WIDTHS = (240, 180, 120, 60)  # of a thumbnail, pixels: the first that is small enough
COLOURS = 48  # of a thumbnail


class Card(NamedTuple):
    """What the page shows of a pair.

    Attributes:
        name: of the pair and its folder.
        kind: its verdict, of KINDS.
        said: the verdict in words, or what failed.
        facts: its scores in words.
        picture: a small PNG; may be empty.
        report: whether its folder has a report.
    """

    name: str
    kind: str
    said: str
    facts: Sequence[str]
    picture: bytes
    report: bool


def build(cards: Sequence[Card], summary: str) -> str:
    """Build the page, with a line that sums up the cards."""
    filled = {
        "style": (ASSETS / "page.css").read_text() + (ASSETS / "index.css").read_text(),
        "summary": escape(summary),
        "filters": "".join(map(choice, (kind for kind in KINDS if any(card.kind == kind for card in cards)))),
        "cards": "\n".join(map(card_text, cards)),
    }
    return MARK.sub(lambda mark: filled[mark[1]], (ASSETS / "index.html").read_text())


def choice(kind: str) -> str:
    """A box that shows or hides the pairs of a verdict."""
    return f'<label><input type="checkbox" id="show-{KINDS[kind]}" checked> {escape(kind)}</label>'


def card_text(card: Card) -> str:
    """A card as HTML; its picture and name lead to the report, where there is one."""
    name, image = escape(card.name), ""
    if card.picture:
        image = f'<img src="data:image/png;base64,{encode(card.picture)}" alt="the end of the morph of {name}">'
    if card.report:
        link = f'<a href="./{quote(card.name)}/report.html">'
        name, image = f"{link}{name}</a>", image and f"{link}{image}</a>"
    said = escape(card.said[:1].upper() + card.said[1:])
    facts = "".join(f"<p>{escape(fact)}</p>" for fact in card.facts)
    kind = KINDS.get(card.kind, "no-verdict")
    return f'<article class="card {kind}">{image}<h2>{name}</h2><p class="verdict {kind}">{said}</p>{facts}</article>'


def thumbnail(film: Image.Image) -> bytes:
    """The end of a film, which plays there and back, as a PNG of the molecule of at most MOST_BYTES."""
    film.seek(getattr(film, "n_frames", 1) // 2)
    picture = film.convert("RGB")
    side = picture.width / SIDE
    picture = picture.crop((0, round(TOP * side), picture.width, picture.height - round(BOTTOM * side)))
    encoded = b""
    for width in WIDTHS:
        small = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        encoded = file.getvalue()
        if len(encoded) <= MOST_BYTES:
            return encoded
    return b""
