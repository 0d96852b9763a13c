"""The tuner and the embedding map as a user meets them: by keys, by mouse, by ear; nothing breaks, nothing
leaves the machine.
"""

import re
import statistics
import time
from pathlib import Path

import axe
import lab as labs
import nbformat
import pandas as pd
import pytest

pytestmark = pytest.mark.browser
PRESSES = 25
CLOCK = """
() => {
  window.asd = {times: [], start: 0};
  document.addEventListener("keydown", event => { asd.start = event.timeStamp; }, true);
  new MutationObserver(() => {
    const start = asd.start;
    asd.start = 0;
    if (start) requestAnimationFrame(() => requestAnimationFrame(() => asd.times.push(performance.now() - start)));
  }).observe(document.querySelector(".asd-tuner-panel .asd-drawing-live"), {subtree: true, childList: true, attributes: true, characterData: true});
}
"""
INK = """
canvas => {
  const g = canvas.getContext("2d"), {data, width, height} = g.getImageData(0, 0, canvas.width, canvas.height), scale = canvas.clientWidth / width;
  for (let y = height - 1; y > 0; y--) for (let x = 0; x < width; x++) if (data[4 * (y * width + x) + 3] > 200) return [x * scale, y * scale];
}
"""
CONTRAST = """
scope => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = light(parts(getComputedStyle(document.querySelector(".jp-Notebook")).backgroundColor));
  const ratio = color => (([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05))([light(parts(color)), ground]);
  const drawn = [...document.querySelectorAll(scope + " svg text")].map(e => ratio(getComputedStyle(e).fill));
  const written = [...document.querySelectorAll(scope + " td, " + scope + " p, " + scope + " caption")].map(e => ratio(getComputedStyle(e).color));
  return [drawn.length + written.length, Math.min(...drawn, ...written)];
}
"""
FRAMES = """
() => { asdFrames = []; let last = performance.now(); const next = () => { const now = performance.now(); asdFrames.push(now - last); last = now; if (asdFrames.length < 400) requestAnimationFrame(next); }; requestAnimationFrame(next); }
"""

TOLD = """
() => new MutationObserver(() => (window.asdTold = performance.now())).observe(document.querySelector(".asd-map-words"), {subtree: true, childList: true})
"""


def words(page, selector):
    return page.locator(selector).first.inner_text()


def until(page, condition, what, most_ms=30_000):
    """Wait until a condition holds."""
    for _ in range(most_ms // 50):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"after {most_ms} ms still not: {what}")


def press(page, button, by):
    """Use a button by keys or by mouse."""
    button.scroll_into_view_if_needed()
    if by == "mouse":
        return button.click()
    button.focus()
    page.keyboard.press("Enter")


@pytest.fixture(scope="module")
def opened(chromium, server):
    """notebook -> its window, all cells run, opened once for the tests of this file; watched to the end."""
    found = {}

    def window(name):
        if name not in found:
            context = chromium.new_context(viewport={"width": 1400, "height": 1100})
            page = context.new_page()
            found[name] = (context, page, labs.Watch(page))
            server.open(page, f"{name}.ipynb")
            book = server.run_all(page, f"{name}.ipynb")
            assert labs.errors(book) == [] and f"OK {name[:2]}: " in labs.said(book)
        return found[name][1]

    yield window
    for name, (context, _, watch) in found.items():
        context.close()
        server.end_kernel(f"{name}.ipynb")
        watch.check()


def test_omega_by_keys_and_by_mouse(opened, home, shots, capsys):
    page = opened("08_tuning")
    slider = labs.find(page, ".asd-omega input[type=range]")
    number = page.locator(".asd-omega input[type=number]").first
    table = pd.read_csv(home / "runs" / "smoke" / "metrics.csv").query(
        "machine == 'all' and metric == 'omega' and component == 'score'"
    )
    default = f"{table.set_index('system').loc['ensemble', 'value']:.3f}"
    first = words(page, ".asd-tuner-words"), words(page, ".asd-tuner-table")
    assert "ω 0.50" in first[0] and f"Ω {default}; this is" in first[0]  # what the study itself reports
    assert default in first[1]
    before = page.locator(".asd-tuner-panel").first.screenshot()
    page.evaluate(CLOCK)
    slider.focus()
    for press in range(1, PRESSES + 1):
        page.keyboard.press("ArrowRight")
        until(
            page,
            lambda press=press: page.evaluate("asd.times.length") >= press,
            f"press {press} drew something",
        )
    times = page.evaluate("asd.times")
    with capsys.disabled():
        print(
            f"\nω by key to changed pixels: median {statistics.median(times):.0f} ms of {len(times)} presses"
            f" (largest {max(times):.0f} ms)"
        )
    until(page, lambda: "ω 0.75" in words(page, ".asd-tuner-words"), "the words say ω 0.75")
    assert float(number.input_value()) == float(slider.input_value()) == 0.75
    moved = words(page, ".asd-tuner-words"), words(page, ".asd-tuner-table")
    assert moved[1] != first[1] and re.search(r"Ω (\d\.\d+)", moved[0])[1] in moved[1]
    assert page.locator(".asd-tuner-panel").first.screenshot() != before
    page.screenshot(path=shots / "tuner_keys.png")
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2)
    until(
        page,
        lambda: re.search(r"ω 0\.2\d", words(page, ".asd-tuner-words")),
        "a click at a quarter of the slider sets ω near 0.25",
    )
    by_mouse = words(page, ".asd-tuner-table")
    number.fill("0.5")
    until(
        page, lambda: words(page, ".asd-tuner-words") == first[0], "the number box leads back to the default"
    )
    assert words(page, ".asd-tuner-table") == first[1] != by_mouse


def test_the_other_controls_of_the_tuner(opened, home, shots):
    page = opened("08_tuning")
    labs.find(page, ".asd-eta")
    menu = page.locator(".asd-k select").first
    menu.select_option("2")
    until(page, lambda: "k 2" in words(page, ".asd-tuner-words"), "the words say k 2")
    slider = page.locator(".asd-eta input[type=range]").first
    slider.focus()
    page.keyboard.press("Home")
    until(page, lambda: "η 0.00" in words(page, ".asd-tuner-words"), "Home sets η to 0")
    page.keyboard.press("Tab")
    assert "η" in page.evaluate(
        "document.activeElement.getAttribute('aria-label')"
    )  # the number box is the next stop, and has a name
    labs.find(page, ".asd-save").click()
    until(page, lambda: "saved to" in words(page, ".asd-tuner-status"), "the file is written")
    text = (home / "runs" / "smoke" / "tuned.toml").read_text()
    assert "eta = 0.0" in text and "neighbors = 2" in text
    page.screenshot(path=shots / "tuner_chosen.png")


def test_the_drawings_of_the_tuner_take_clicks_and_hover(opened, shots):
    page = opened("08_tuning")
    page.get_by_role("button", name="Go to D: default").click()  # wherever an earlier test went
    until(page, lambda: "η 0.50" in words(page, ".asd-tuner-words"), "the default is there again")
    panel = labs.find(page, ".asd-tuner-panel svg")
    box = panel.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    tip = page.locator(".asd-tuner-panel .asd-map-tip").first
    until(
        page,
        lambda: tip.is_visible() and "difference from the default" in tip.inner_text(),
        "the pointer is told",
    )
    page.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    until(page, lambda: re.search(r"ω 0\.2\d", words(page, ".asd-tuner-words")), "a click sets ω")
    labs.find(page, "button.asd-pin-A").click()
    number = labs.find(page, ".asd-omega input[type=number]")
    number.fill("1.4")
    until(
        page,
        lambda: "1.4 is not valid" in words(page, ".asd-omega"),
        "a number out of range is refused in words",
    )
    assert re.search(r"ω 0\.2\d", words(page, ".asd-tuner-words"))
    number.fill("1")
    until(page, lambda: "ω 1.00" in words(page, ".asd-tuner-words"), "1 is taken")
    until(page, lambda: "β has no weight" in words(page, ".asd-tuner-notes"), "it is said why k is disabled")
    assert page.locator(".asd-k select").first.is_disabled()
    press(page, page.locator("button.asd-pin-B").first, "keys")
    until(page, lambda: "B − A" in words(page, ".asd-tuner-pins"), "two pinned points are compared")
    until(page, lambda: "false alarms" in words(page, ".asd-tuner-counts"), "decisions are counted")
    cell = labs.find(page, ".asd-tuner-map svg rect:nth-of-type(20)")
    cell.click()
    until(
        page, lambda: "ω 1.00" not in words(page, ".asd-tuner-words"), "a click on the map goes to the point"
    )
    page.locator(".asd-tuner-all input").first.check()
    until(page, lambda: page.locator(".asd-tuner-curves img").count() == 1, "all curves are drawn on demand")
    page.screenshot(path=shots / "tuner_pinned.png")


def test_a_point_of_the_map_is_heard_and_explained(opened, shots, capsys):
    page = opened("06_embeddings")
    canvas = labs.find(page, "canvas.asd-map-canvas")
    page.wait_for_timeout(500)
    assert "No clip is chosen" in words(page, ".asd-map-words")
    x, y = canvas.evaluate(INK)
    canvas.hover(position={"x": x, "y": y})
    tip = page.locator(".asd-map-tip").first
    until(page, lambda: tip.is_visible() and "section_00" in tip.inner_text(), "the pointer is told the clip")
    page.evaluate(TOLD)
    began = page.evaluate("performance.now()")
    canvas.click(position={"x": x, "y": y})
    until(page, lambda: page.locator(".asd-map-detail table").count() >= 2, "scores are shown")
    with capsys.disabled():
        print(f"\nclick on the map to words: {page.evaluate('asdTold') - began:.0f} ms")
    until(
        page,
        lambda: page.evaluate("document.querySelector('.asd-map-player-a').currentTime > 0.1"),
        "the clip plays",
    )
    player = page.locator(".asd-map-player-a").first.evaluate(
        "({duration, error, ariaLabel, src}) => [duration, error, ariaLabel, src.slice(0, 15)]"
    )
    assert player[0] == pytest.approx(2.0, abs=0.05) and player[1] is None
    assert "section_00" in player[2] and player[3] == "data:audio/ogg;"
    assert page.locator(".asd-map-detail svg").count() >= 3  # log-mel, difference, phase
    heard = words(page, ".asd-map-words")
    page.screenshot(path=shots / "map_point.png")
    canvas.focus()
    steps = []
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        page.wait_for_timeout(700)
        steps.append(words(page, ".asd-map-words"))
    assert len({heard, *steps}) >= 2
    page.evaluate("document.querySelector('.asd-map-player-a').pause()")
    page.keyboard.press("Enter")
    playing = "!document.querySelector('.asd-map-player-{}').paused"
    until(page, lambda: page.evaluate(playing.format("a")), "Enter plays")
    page.keyboard.press("b")
    until(page, lambda: page.evaluate(playing.format("b")), "b plays the nearest normal clip")
    assert not page.evaluate(playing.format("a"))
    before = words(page, ".asd-map-words")
    press(page, page.locator(".asd-map-near button").first, "keys")
    until(page, lambda: words(page, ".asd-map-words") != before, "a neighbor is chosen by its button")


def test_the_map_zooms_selects_and_filters(opened, shots, capsys):
    page = opened("06_embeddings")
    canvas = labs.find(page, "canvas.asd-map-canvas")
    panel = page.locator(".asd-map-panel").first
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    canvas.focus()
    page.evaluate(FRAMES)
    for _ in range(5):
        page.mouse.wheel(0, -100)
    until(page, lambda: float(panel.get_attribute("data-zoom")) > 2, "the wheel zooms")
    drawn = canvas.screenshot()
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 30, steps=5)
    page.mouse.up()
    until(page, lambda: canvas.screenshot() != drawn, "dragging moves the map")
    frames = sorted(page.evaluate("asdFrames"))
    with capsys.disabled():
        print(f"\nzoom and drag: median frame {statistics.median(frames):.0f} ms of {len(frames)}")
    page.keyboard.press("0")
    until(page, lambda: panel.get_attribute("data-zoom") == "1.000", "0 shows the whole map")
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for dx, dy in ((1, 0), (1, 1), (0, 1), (0, 0)):
        page.mouse.move(
            box["x"] + 2 + dx * (box["width"] - 4), box["y"] + 2 + dy * (box["height"] - 4), steps=4
        )
    page.mouse.up()
    page.keyboard.up("Shift")
    points = int(panel.get_attribute("data-points"))
    rows = page.locator(".asd-map-selection tbody tr")
    until(page, lambda: rows.count() == min(points, 50), "a lasso around all selects all")
    with page.expect_download() as saved:
        page.locator(".asd-map-csv").first.click()
    assert len(pd.read_csv(saved.value.path())) == points
    menu = page.locator(".asd-map-filter-label select").first
    menu.select_option(label="anomaly")
    until(page, lambda: "pass the filters" in words(page, ".asd-map-legend"), "the filter is told")
    page.screenshot(path=shots / "map_selection.png")
    canvas.focus()
    page.keyboard.press("Escape")
    until(page, lambda: rows.count() == 0, "Escape empties the selection")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(700)
    page.keyboard.press("s")
    until(page, lambda: rows.count() == 1, "s selects the chosen clip")
    page.keyboard.press("Escape")
    menu.select_option(label="any")
    until(page, lambda: "pass the filters" not in words(page, ".asd-map-legend"), "nothing is filtered")
    second = page.locator(".asd-map-beside select").first
    second.select_option(index=1)
    until(
        page, lambda: page.locator("canvas.asd-map-canvas").nth(1).is_visible(), "a second map stands beside"
    )
    page.screenshot(path=shots / "map_two.png")
    second.select_option(index=0)


def test_nothing_of_an_old_view_remains(opened):
    page = opened("06_embeddings")
    labs.find(page, ".asd-map-list select").select_option(index=1)
    loaded = "document.querySelector('.asd-map-player-a').getAttribute('src')"
    until(page, lambda: page.evaluate(loaded), "the listed clip is loaded")
    page.evaluate("document.querySelector('.asd-map-player-a').play()")
    view = page.locator(".asd-map-view select").first
    first = view.input_value()
    chosen = words(page, ".asd-map-words").split(": ")[1].split(",")[0]  # its machine
    other = next(
        o for o in view.locator("option").all_inner_texts() if o.startswith("oevae") and chosen not in o
    )
    view.select_option(label=other)
    until(page, lambda: "No clip is chosen" in words(page, ".asd-map-words"), "no clip is chosen")
    until(page, lambda: not page.evaluate(loaded), "no clip is loaded")
    assert page.evaluate(
        "[...document.querySelectorAll('.asd-map audio')].every(a => a.paused && a.networkState === 0)"
    )
    gone = page.locator(".asd-map-near table, .asd-map-detail svg")
    until(page, lambda: gone.count() == 0, "no neighbor and no picture is left")
    assert page.locator(".asd-map-list select").first.evaluate("list => list.selectedIndex") <= 0
    view.select_option(first)


def test_lists_colors_and_reasons_of_the_map(opened, shots):
    page = opened("06_embeddings")
    canvas = labs.find(page, "canvas.asd-map-canvas")
    before = canvas.screenshot()
    color = page.locator(".asd-map-color select").first
    now = color.input_value()
    other = next(option for option in color.locator("option").all_inner_texts() if option != now)
    color.select_option(label=other)
    until(page, lambda: canvas.screenshot() != before, "another coloring draws another map")
    menu = page.locator(".asd-map-list select").first
    assert menu.evaluate("list => list.scrollWidth <= list.clientWidth + 1"), "names in the list are cut off"
    label = next(
        text for text in menu.locator("option").all_inner_texts() if ".wav" in text or "anomal" in text
    )
    menu.select_option(label=label)
    until(
        page,
        lambda: page.evaluate("document.querySelector('.asd-map-player-a').ariaLabel") in label,
        "the listed clip is chosen",
    )
    labs.find(page, "button.asd-map-why").click()
    until(page, lambda: page.locator(".asd-map-reason img").count() > 0, "a reason is drawn", 60_000)
    reason = words(page, ".asd-map-reason")
    assert re.search(
        "normal training clips (differ|show)|differs as much", words(page, ".asd-map-reason .change")
    )
    assert (
        "score of each section" in reason
        and "louder than in the most similar normal clips" in reason
        and "softer" in reason
    )
    assert page.locator(".asd-map-reason audio").count() == 2  # the clip and the most similar normal one
    assert page.locator(".asd-map-reason .strip").count() == 2
    inside = (
        "image => image.getBoundingClientRect().right <="
        " image.closest('.jp-OutputArea-output').getBoundingClientRect().right + 1"
    )
    assert page.locator(".asd-map-reason img").first.evaluate(inside), (
        "the figure is cut off, and the units of its scales with it"
    )
    page.screenshot(path=shots / "map_reason.png")


def test_a_clip_is_accepted_as_normal_and_revoked_by_keys_and_by_mouse(opened, home, shots, capsys):
    """The effect is shown before anything is kept, what is kept is listed, and it can be taken back."""
    page = opened("06_embeddings")
    path = home / "runs" / "smoke" / "accepted" / "accepted.csv"
    show, keep = (page.locator(f"button.asd-accept-{name}") for name in ("show", "keep"))
    revoke = page.locator("button.asd-accept-revoke")
    for number, by in enumerate(("keys", "mouse")):
        menu = labs.find(page, ".asd-map-list select")
        listed = lambda: [text for text in menu.locator("option").all_inner_texts() if "sd:" in text]  # noqa: B023, E731
        until(page, listed, "clips are listed")
        label = listed()[number]
        clip = label.split(":")[1].strip()
        menu.select_option(label=label)
        until(page, lambda: clip in words(page, ".asd-map-words"), "the clip is chosen")  # noqa: B023
        until(page, lambda: show.is_enabled() and not keep.is_enabled(), "only what was shown can be kept")
        began = time.monotonic()
        press(page, show, by)
        until(page, lambda: "threshold: " in words(page, ".asd-accept-words"), "the effect is shown", 90_000)
        with capsys.disabled():
            print(f"\n“This is normal” by {by}: effect shown after {time.monotonic() - began:.1f} s")
        told = words(page, ".asd-accept-words")
        assert re.search(rf"{clip}.*: \S+ \((anomaly|normal)\) -> \S+ \((anomaly|normal)\)", told), told
        assert "decisions on test clips of the study change" in told
        assert not path.is_file() or clip not in path.read_text()
        until(page, keep.is_enabled, "what was shown can be kept")
        page.screenshot(path=shots / f"map_accept_{by}.png")
        if by == "keys":
            page.keyboard.press("Tab")
            assert keep.evaluate("button => button === document.activeElement"), "Keep is the next stop"
            page.keyboard.press("Enter")
        else:
            keep.click()
        until(page, lambda: "kept; " in words(page, ".asd-accept-words"), "it is said to be kept")
        assert clip in path.read_text()
        until(page, lambda: clip in words(page, ".asd-accept-list"), "it is listed")  # noqa: B023
        press(page, revoke.first, by)
        until(page, lambda: "revoked: " in words(page, ".asd-accept-words"), "it is said to be revoked")
        until(page, lambda: revoke.count() == 0, "nothing is listed")
        assert clip not in path.read_text()
    assert not list(path.parent.glob("*.wav"))


POINTS = (800, 5_000, 20_000)


@pytest.mark.exhaustive
def test_many_points(chromium, server, shots, capsys):
    """Zoom and drag of 800, 5,000 and 20,000 points, and a click until its words; printed."""
    cells = [nbformat.v4.new_code_cell("import sys, tempfile\nfrom pathlib import Path")]
    cells[0].source += f"\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport points"
    for number in POINTS:
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        book = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell()], metadata=kernel)
        book.cells[1].source = f"points.view({number}, Path(tempfile.mkdtemp()))"
        nbformat.write(book, server.folder / f"points{number}.ipynb")
        context = chromium.new_context(viewport={"width": 1400, "height": 1100})
        page = context.new_page()
        server.open(page, f"points{number}.ipynb")
        assert labs.errors(server.run_all(page, f"points{number}.ipynb")) == []
        canvas = labs.find(page, "canvas.asd-map-canvas")
        panel = page.locator(".asd-map-panel").first
        until(page, lambda: panel.get_attribute("data-points") == str(number), "all points are drawn")  # noqa: B023
        box = canvas.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(*middle)
        canvas.focus()
        page.evaluate(FRAMES)
        for _ in range(6):
            page.mouse.wheel(0, -60)
        page.mouse.down()
        page.mouse.move(middle[0] + 90, middle[1] + 45, steps=20)
        page.mouse.up()
        frames = sorted(page.evaluate("asdFrames"))
        assert float(panel.get_attribute("data-zoom")) > 2
        page.keyboard.press("0")
        page.wait_for_timeout(300)
        clicks = []
        page.evaluate(TOLD)
        for _ in range(5):
            x, y = canvas.evaluate(INK)
            before = words(page, ".asd-map-words")
            began = page.evaluate("performance.now()")
            canvas.click(position={"x": x, "y": y})
            until(page, lambda: words(page, ".asd-map-words") != before, "the clip is told")  # noqa: B023
            clicks.append(page.evaluate("asdTold") - began)
            page.keyboard.press("ArrowUp")
            page.wait_for_timeout(500)
            idle = lambda: server.kernels()[f"points{number}.ipynb"] == "idle"  # noqa: B023, E731
            until(page, idle, "its sounds and pictures are there")
        page.screenshot(path=shots / f"map_{number}.png")
        with capsys.disabled():
            print(
                f"\n{number} points: median frame {statistics.median(frames):.0f} ms, 95 % of {len(frames)} below"
                f" {frames[int(0.95 * len(frames))]:.0f} ms; click to words {statistics.median(clicks):.0f} ms"
            )
        context.close()
        server.end_kernel(f"points{number}.ipynb")


VIEWS = [("08_tuning", ".asd-tuner"), ("08_tuning", ".asd-tuner-chosen"), ("06_embeddings", ".asd-map")]


@pytest.mark.parametrize("name, scope", VIEWS)
@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_a_view_is_readable_and_named_in_both_themes(opened, server, checker, shots, name, scope, theme):
    page = opened(name)
    server.theme(page, theme)
    try:
        shown = labs.find(page, scope)
        if scope == ".asd-map":
            labs.find(page, ".asd-map-list select").select_option(index=1)
            until(page, lambda: page.locator(".asd-map-detail svg").count() >= 3, "a clip is shown")
            press(page, page.locator("button.asd-map-why"), "keys")
            until(page, lambda: page.locator(".asd-map-reason .change").count(), "its words are told", 60_000)
            press(page, page.locator("button.asd-accept-show"), "keys")
            told = page.locator(".asd-accept-words")
            until(page, lambda: "threshold: " in told.inner_text(), "what accepting changes is told", 60_000)
        texts, least = page.evaluate(CONTRAST, scope)
        assert texts > 10 and least >= 4.5, f"contrast {least:.1f}"
        schemes = page.evaluate(
            "[...document.querySelectorAll('.plot img')].map(i => getComputedStyle(i).colorScheme)"
        )
        assert set(schemes) <= {theme.lower()}
        assert axe.findings(page, checker, scope) == []
        for width in (1400, 420):
            page.set_viewport_size({"width": width, "height": 1100})
            page.wait_for_timeout(800)
            shown.evaluate("element => element.scrollIntoView({block: 'start'})")
            page.screenshot(path=shots / f"{scope[1:]}_{theme}_{width}.png")
            if scope == ".asd-map":
                labs.find(page, ".asd-map-reason")
                page.locator("button.asd-map-why").evaluate(
                    "button => button.scrollIntoView({block: 'start'})"
                )
                page.wait_for_timeout(300)
                page.screenshot(path=shots / f"asd-map-why_{theme}_{width}.png")
    finally:
        page.set_viewport_size({"width": 1400, "height": 1100})
        server.theme(page, "Light")
