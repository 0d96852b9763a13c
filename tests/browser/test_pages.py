"""The pages of a report in a real browser: whole, quiet, readable narrow, wide and on paper."""

import axe
import pytest

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


def test_a_page_is_accessible(report, page, checker):
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
    context.close()
