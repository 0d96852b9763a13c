"""The pages of a report in a real browser: whole, quiet, readable narrow, wide and on paper."""

import shlex

import axe
import pytest
from commands import asd_here

pytestmark = pytest.mark.browser
WHOLE = "() => [...document.images].filter(image => !image.complete || !image.naturalWidth).length"
TOO_WIDE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(
    params=["index.html", "smoke/index.html", "smoke/06_embeddings_seed0.html", "smoke/08_tuning.html"]
)
def report(request, page, home):
    page.goto((home / "reports" / request.param).as_uri())
    return request.param.replace("/", "_").removesuffix(".html")


@pytest.mark.parametrize("width", [1400, 700, 420])
def test_a_page_is_whole_and_fits(report, page, shots, width):
    page.set_viewport_size({"width": width, "height": 1000})
    page.wait_for_timeout(300)
    assert page.evaluate(WHOLE) == 0
    assert page.evaluate(TOO_WIDE) <= 0, "the page scrolls sideways"
    page.screenshot(path=shots / f"{report}_{width}.png", full_page=True)


def test_a_page_prints(report, page, shots):
    assert page.pdf(path=shots / f"{report}.pdf", format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_accessible(report, page, checker, scheme):
    page.emulate_media(color_scheme=scheme)
    for folded in page.locator("details").all():
        folded.evaluate("element => (element.open = true)")
    assert axe.findings(page, checker, "main") == []


def test_the_clips_of_the_report_can_be_heard(page, home):
    page.goto((home / "reports" / "smoke" / "index.html").as_uri())
    players = page.locator(".card audio")
    assert players.count() > 0
    players.first.evaluate("player => player.play()")
    page.wait_for_timeout(500)
    assert players.first.evaluate(
        "player => player.currentTime > 0 && Number.isFinite(player.duration) && !player.error"
    )
    assert "smoke" in page.title() or page.locator("h1").count() == 1


def test_what_is_folded_opens_by_keys_and_by_mouse_and_its_command_works(page, home, shots, monkeypatch):
    """The card of a false alarm gives the command that accepts it; other thresholds stand in a table."""
    page.goto((home / "reports" / "smoke" / "index.html").as_uri())
    for title in ("Other thresholds: false alarms and faults found", "Normal after all?"):
        summary = page.locator("summary", has_text=title).first
        folded = summary.locator("xpath=..")
        summary.focus()
        for act, state in ((lambda: page.keyboard.press("Enter"), True), (summary.click, False)):
            act()
            assert folded.evaluate("element => element.open") is state
        page.keyboard.press("Space")  # the click left the focus there
        assert folded.locator("td, code").first.is_visible()
    page.screenshot(path=shots / "card_accept.png")
    monkeypatch.chdir(home)
    program, *given = shlex.split(folded.locator("code").inner_text())
    done = asd_here(*given, "--home", home)
    assert program == "asd" and done.returncode == 0, done.stderr
    assert "(anomaly) -> " in done.stdout and "nothing was kept; add --yes" in done.stdout


def test_the_first_screen_says_what_was_found(page, home):
    page.set_viewport_size({"width": 1400, "height": 1000})
    page.goto((home / "reports" / "smoke" / "index.html").as_uri())
    for selector in (".which", ".lead", ".badges", ".rows", ".split ul"):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] + box["height"] < 1000, f"{selector} is below the first screen"
    assert page.evaluate("document.documentElement.scrollHeight") <= 8000


def test_every_page_of_a_study_links_the_others(page, home):
    for path in (home / "reports" / "smoke").glob("*.html"):
        page.goto(path.as_uri())
        links = page.locator("nav.series a").evaluate_all(
            "links => links.map(link => link.getAttribute('href'))"
        )
        assert len(links) >= 10 and all((path.parent / link).is_file() for link in links), path.name


def test_no_page_of_a_study_scrolls_sideways_on_a_phone(page, home):
    page.set_viewport_size({"width": 420, "height": 900})
    for path in (home / "reports" / "smoke").glob("*.html"):
        page.goto(path.as_uri())
        assert page.evaluate(TOO_WIDE) <= 0, path.name


def test_lists_need_no_script(chromium, home):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((home / "reports" / "smoke" / "06_embeddings_seed0.html").as_uri())
    for why in ("most anomalous", "missed", "false alarm"):
        assert page.get_by_text(why).first.is_visible()
    assert page.locator("main audio").count() > 0
    told = page.locator("p.change")  # what changed, in words, with strips and the most similar normal clip
    assert told.count() == 2 and "normal training clips" in told.first.inner_text()
    assert page.locator(".strip").count() == 4
    context.close()
