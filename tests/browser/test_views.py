"""The tuner and the embedding map as a user meets them: by keys, by mouse, by ear; nothing breaks, nothing
leaves the machine.
"""

import re
import statistics

import axe
import lab as labs
import pandas as pd
import pytest

pytestmark = pytest.mark.browser
PRESSES, SLOWEST_MS = 25, 500
CLOCK = """
() => {
  window.asd = {times: [], start: 0};
  document.addEventListener("keydown", event => { asd.start = event.timeStamp; }, true);
  new MutationObserver(() => {
    const start = asd.start;
    asd.start = 0;
    if (start) requestAnimationFrame(() => requestAnimationFrame(() => asd.times.push(performance.now() - start)));
  }).observe(document.querySelector(".asd-tuner-live"), {subtree: true, childList: true, attributes: true, characterData: true});
}
"""
INK = """
canvas => {
  const g = canvas.getContext("2d"), {data, width, height} = g.getImageData(0, 0, canvas.width, canvas.height), scale = canvas.clientWidth / width;
  for (let y = height - 1; y > 0; y--) for (let x = 0; x < width; x++) {
    const at = 4 * (y * width + x);
    if (data[at] + data[at + 1] + data[at + 2] < 600) return [x * scale, y * scale];
  }
}
"""


def words(page, selector):
    return page.locator(selector).first.inner_text()


def until(page, condition, what, most_ms=8000):
    """Wait until a condition holds."""
    for _ in range(most_ms // 50):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"after {most_ms} ms still not: {what}")


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
    assert (
        "ω 0.50" in first[0] and first[0].endswith(default) and default in first[1]
    )  # what the study itself reports
    before = page.locator(".asd-tuner-live").first.screenshot()
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
    assert moved[1] != first[1] and moved[0].rpartition(" ")[2] in moved[1]
    assert page.locator(".asd-tuner-live").first.screenshot() != before
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
    assert statistics.median(times) <= SLOWEST_MS


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
    until(page, lambda: "written to" in words(page, ".asd-tuner-status"), "the file is written")
    text = (home / "runs" / "smoke" / "tuned.toml").read_text()
    assert "eta = 0.0" in text and "neighbors = 2" in text
    page.screenshot(path=shots / "tuner_chosen.png")


def test_a_point_of_the_map_is_heard_and_explained(opened, shots):
    page = opened("06_embeddings")
    canvas = labs.find(page, "canvas.asd-atlas-canvas")
    page.wait_for_timeout(500)
    x, y = canvas.evaluate(INK)
    canvas.click(position={"x": x, "y": y})
    until(
        page,
        lambda: page.locator(".asd-atlas-detail").first.locator("table").count() >= 2,
        "neighbors and scores are shown",
    )
    until(
        page,
        lambda: page.evaluate("document.querySelector('.asd-atlas-player').currentTime > 0.1"),
        "the clip plays",
    )
    player = page.locator(".asd-atlas-player").first.evaluate(
        "({duration, error, ariaLabel, src}) => [duration, error, ariaLabel, src.slice(0, 15)]"
    )
    assert (
        player[0] == pytest.approx(2.0, abs=0.05)
        and player[1] is None
        and "section_00" in player[2]
        and player[3] == "data:audio/ogg;"
    )
    assert page.locator(".asd-atlas-detail").first.locator("svg, img").count() >= 2  # log-mel and phase
    heard = words(page, ".asd-atlas-said")
    page.screenshot(path=shots / "atlas_point.png")
    canvas.focus()
    steps = []
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        page.wait_for_timeout(700)
        steps.append(words(page, ".asd-atlas-said"))
    assert len({heard, *steps}) >= 2
    page.evaluate("document.querySelector('.asd-atlas-player').pause()")
    page.keyboard.press("Enter")
    until(page, lambda: page.evaluate("!document.querySelector('.asd-atlas-player').paused"), "Enter plays")


def test_lists_colors_and_reasons_of_the_map(opened, shots):
    page = opened("06_embeddings")
    canvas = labs.find(page, "canvas.asd-atlas-canvas")
    before = canvas.screenshot()
    color = page.locator(".asd-atlas-color select").first
    now = color.input_value()
    other = next(option for option in color.locator("option").all_inner_texts() if option != now)
    color.select_option(label=other)
    until(page, lambda: canvas.screenshot() != before, "another coloring draws another map")
    menu = page.locator(".asd-atlas-list select").first
    assert menu.evaluate("list => list.scrollWidth <= list.clientWidth + 1"), "names in the list are cut off"
    label = next(
        text for text in menu.locator("option").all_inner_texts() if ".wav" in text or "anomal" in text
    )
    menu.select_option(label=label)
    until(
        page,
        lambda: page.evaluate("document.querySelector('.asd-atlas-player').ariaLabel") in label,
        "the listed clip is chosen",
    )
    labs.find(page, "button.asd-atlas-why, .asd-atlas-why button").click()
    until(
        page,
        lambda: page.locator(".asd-atlas-reason").first.locator("img, svg").count() > 0,
        "a reason is drawn",
        60_000,
    )
    inside = (
        "image => image.getBoundingClientRect().right <="
        " image.closest('.jp-OutputArea-output').getBoundingClientRect().right + 1"
    )
    assert page.locator(".asd-atlas-reason img").first.evaluate(inside), (
        "the figure is cut off, and the units of its scales with it"
    )
    page.screenshot(path=shots / "atlas_reason.png")


@pytest.mark.parametrize(
    "name, scopes", [("08_tuning", (".asd-tuner", ".asd-tuner-chosen")), ("06_embeddings", (".asd-atlas",))]
)
def test_every_control_has_a_name(opened, checker, name, scopes):
    page = opened(name)
    for scope in scopes:
        labs.find(page, scope)
        assert axe.findings(page, checker, scope) == []
