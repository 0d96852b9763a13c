"""The pictures of README from a real run, in a real browser: the report's first screen, tuner, embedding map.

    python -m tests.browser.pictures --home DIR [--study demo] [--out reports/demo]        from the project's
    root

DIR holds the finished study. Writes report.png, tuner.png and embedding_map.png, reduced to 160 colors so that they
stay small.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import lab as labs

COLORS, MARGIN = 160, 8  # px around what is shown


def shot(page, selector: str, path: Path, most: int = 900) -> None:
    """The part of the window that an element takes, at most so many px high."""
    labs.find(page, selector)
    page.locator(selector).first.evaluate("element => element.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(500)
    box = page.locator(selector).first.bounding_box()
    clip = {
        "x": max(box["x"] - MARGIN, 0),
        "y": max(box["y"] - MARGIN, 0),
        "width": box["width"] + 2 * MARGIN,
    }
    save(page.screenshot(clip=clip | {"height": min(box["height"] + 2 * MARGIN, most)}), path)


def save(picture: bytes, path: Path) -> None:
    """Few colors, so that it stays small."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLORS).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} kB")


def take(study: str, home: Path, out: Path) -> None:
    """Open both notebooks on the study, run them, turn and choose something, and keep what is seen."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("08_tuning", "06_embeddings"):
            labs.copied(name, Path(scratch) / "notebooks", study, home)
        server = labs.Lab(Path(scratch) / "notebooks", Path(scratch))
        try:
            with labs.chromium() as browser:
                page = browser.new_context(viewport={"width": 1160, "height": 620}).new_page()
                page.goto((home / "reports" / study / "index.html").as_uri())
                save(page.screenshot(), out / "report.png")
                page = browser.new_context(viewport={"width": 1480, "height": 1500}).new_page()
                opened(server, page, "08_tuning")
                labs.find(page, ".asd-omega input[type=range]").focus()
                for _ in range(15):
                    page.keyboard.press("ArrowRight")
                page.wait_for_timeout(1500)
                shot(page, ".asd-tuner", out / "tuner.png")
                opened(server, page, "06_embeddings")
                menu = page.locator(".asd-map-list select").first
                labs.find(page, "canvas.asd-map-canvas")
                menu.select_option(index=1)
                page.wait_for_timeout(2500)
                shot(page, ".asd-map", out / "embedding_map.png")
        finally:
            server.stop()


def opened(server, page, name: str) -> None:
    server.open(page, f"{name}.ipynb")
    book = server.run_all(page, f"{name}.ipynb")
    if labs.errors(book):
        sys.exit(f"{name}: {labs.errors(book)[0]}")


def main() -> None:
    words = argparse.ArgumentParser(description="Take README's pictures from a finished study.")
    words.add_argument(
        "--home", type=Path, default=labs.ROOT, help="folder that holds runs/ (default: the clone)"
    )
    words.add_argument("--study", default="demo", help="a finished study")
    words.add_argument(
        "--out", type=Path, default=labs.ROOT / "reports" / "demo", help="folder for the pictures"
    )
    given = words.parse_args()
    if labs.why_not():
        sys.exit(labs.why_not())
    given.out.mkdir(parents=True, exist_ok=True)
    take(given.study, given.home.resolve(), given.out)


if __name__ == "__main__":
    main()
