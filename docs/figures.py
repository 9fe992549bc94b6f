"""Make the tutorial's small pictures from a run's folder: its slices, and its report in Chromium.

python docs/figures.py RUN NAME     writes docs/figures/NAME_slices.png and NAME_report.png
"""

import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

FIGURES = Path(__file__).parent / "figures"
WIDTH = 1100  # pixels, the width in the page


def small(path: Path, name: str, colours: int = 64) -> None:
    """Write the picture into the folder of figures, no wider than WIDTH, with few colours."""
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    picture.quantize(colours, dither=Image.Dither.NONE).save(FIGURES / f"{name}.png", optimize=True)


def report(page: Path, picture: Path) -> None:
    """Write a picture of the top of the report, half way through the morph."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--use-angle=swiftshader"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options)
    try:
        browser.set_window_size(1400, 1043)
        browser.get(page.resolve().as_uri())
        WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.readyState") == "complete")
        WebDriverWait(browser, 60).until(
            lambda b: b.execute_script("return document.getElementById('frame').textContent")
        )
        browser.execute_script(
            "const s = document.getElementById('time');"
            "s.value = (Number(s.min) + Number(s.max)) / 2; s.dispatchEvent(new Event('input'));"
        )
        browser.execute_async_script("setTimeout(arguments[0], 2000)")
        browser.save_screenshot(str(picture))
    finally:
        browser.quit()


def main(run: Path, name: str) -> None:
    """Write both pictures into the folder of figures."""
    FIGURES.mkdir(exist_ok=True)
    small(run / "slices.png", f"{name}_slices")
    shot = FIGURES / f"{name}_report.png"
    report(run / "report.html", shot)
    small(shot, shot.stem, 96)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
