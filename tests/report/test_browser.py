"""The page in a real browser: `pip install playwright`, a Chromium (`apt-get install chromium`), `pytest -m slow tests/report`.

Nothing is downloaded: the installed ``chromium`` (or ``google-chrome``) is used. ``KDPLUG_SCREENSHOTS=DIR`` keeps pictures.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from report_scene import SCENES, write_run

from kdplug.report.page.write import write_comparison, write_report

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCHEMES = ("light", "dark")
WIDTHS = (400, 1400)

# Contrast by WCAG 2 of each visible text with its background, composed of the backgrounds of its ancestors.
CONTRAST = """() => {
  const parse = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a)); };
  const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b; };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('.hidden, desc')) continue;
    const chain = []; for (let e = element; e; e = e.parentElement) chain.unshift(parse(getComputedStyle(e).backgroundColor));
    const paper = chain.reduce((below, top) => over(top, below), [255, 255, 255]);
    const style = getComputedStyle(element);
    const ink = over(parse(element instanceof SVGElement ? style.fill : style.color), paper);
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) found.push([walker.currentNode.data.trim().slice(0, 40), element.className?.baseVal ?? element.className, ratio]);
  }
  return found;
}"""

# Labels of a chart that reach out of its drawing.
CUT_OFF = """() => [...document.querySelectorAll('figure > svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const inner = text.getBoundingClientRect();
    return inner.left < box.left - 1 || inner.right > box.right + 1 || inner.bottom > box.bottom + 1;
  }).map(text => text.textContent);
})"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of each scene, and one comparison."""
    root = tmp_path_factory.mktemp("pages")
    found = {name: write_report(write_run(root / name, **scene)) for name, scene in SCENES.items()}
    folders = [root / name for name in ("beats", "cannot-tell", "loses")]
    return {**found, "comparison": write_comparison(folders, root / "comparison.html")}


@pytest.fixture
def shown(browser, pages):
    """Open a page and return it with the messages of its console and its requests."""
    contexts = []

    def show(name, width, scheme):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page, messages, requests = context.new_page(), [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(pages[name].as_uri(), wait_until="networkidle")
        if folder := os.environ.get("KDPLUG_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name}-{width}-{scheme}.png", full_page=True)
        return page, messages, requests

    yield show
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [*SCENES, "comparison"])
def test_the_page_is_quiet_makes_no_request_and_fits(name, width, scheme, shown, pages):
    page, messages, requests = shown(name, width, scheme)
    assert messages == []
    assert requests == [pages[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate(CONTRAST) == []


def test_dark_mode_changes_the_colours(shown):
    colours = {
        shown("beats", 1400, scheme)[0].evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in SCHEMES
    }
    assert len(colours) == 2


def test_the_table_of_three_arms_fits_a_phone_without_scrolling(shown):
    page, _, _ = shown("loses", 400, "light")
    assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('#arms .scroll'))") == 0


def test_a_picture_that_data_smuggle_in_would_not_be_loaded(shown):
    """The policy holds even where escaping would fail."""
    page, messages, _ = shown("beats", 400, "light")
    failures = []
    page.on("requestfailed", lambda request: failures.append(request.failure))
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/x.png><b style=\"color:red\">b</b>')"
    )
    page.wait_for_timeout(200)
    assert len(messages) == 2
    assert all("Content Security Policy" in message for message in messages)
    assert failures == ["csp"]


def test_the_printed_page_is_light_and_shows_the_recipe(shown, tmp_path):
    page, _, _ = shown("beats", 1400, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.querySelector('pre').checkVisibility({contentVisibilityAuto: true})")
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
