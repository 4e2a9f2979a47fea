"""The statistics page in a real browser: live, narrow, dark, readable, without an error and without JavaScript too.

Needs chromium, and playwright for Python. DISTRICOMP_PAGE_PICTURES=FOLDER keeps the pictures.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from districomp.documents import Counts
from tests.integration.weblab import Coordinator, Site, definition, job, site, status, worker
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

CHROMIUM = os.environ.get("DISTRICOMP_CHROMIUM", "/usr/bin/chromium")
PICTURES = os.environ.get("DISTRICOMP_PAGE_PICTURES", "")
FLAGS = [
    "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--disable-quic",
]  # fmt: skip
WIDE = {"width": 1280, "height": 860}
NARROW = {"width": 380, "height": 800}
SETTLED_S = PATIENCE_S

CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    const [a, b] = [luminance(parse(getComputedStyle(node).color).slice(0, 3)), luminance(ground(node))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), walker.currentNode.textContent.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


def answers() -> dict[str, Any]:
    """A cluster with something of everything."""
    return {
        "status": [status(name="physics-lab", uptime_s=93784.0, tasks=Counts(16759, 24, 5592, 13, 40, 6))],
        "jobs": [
            job(37, "cancelled", Counts(done=60, cancelled=40), name="wrong input", definition="shell", eta_s=None),
            job(38, "done", Counts(done=1200), name="thumbnails", eta_s=None),
            job(39, "failed", Counts(done=1190, failed=10), name="ocr", eta_s=None),
            job(40, "paused", Counts(120, 0, 60), name="a-name-that-nobody-shortened-" + "x" * 60, eta_s=None),
            job(41, "running", Counts(3800, 16, 1935, 3), name="render: fjord at dawn", eta_s=83.2),
            job(42, "queued", Counts(14000), name="", definition="identifiers", eta_s=None),
        ],
        "workers": [
            worker("pc-00", "busy", 2),
            worker("pc-01", "idle", 0),
            worker("pc-02", "draining", 1, last_seen_s=3.0),
            worker("pc-03", "lost", 0, last_seen_s=143.0),
        ],
        "definitions": [definition("render"), definition("simulate", ["simulate.yaml:3:1: x", "y"])],
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        it = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield it
        it.close()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("page"), answers=answers()) as it:
        yield it


@contextmanager
def opened(browser: Browser, web: Site, refreshes: int = 2, **options: Any) -> Iterator[Page]:
    """The page after some refreshes; it must have had no error, and asked nobody else for anything."""
    url = f"http://127.0.0.1:{web.web_port}"
    page = browser.new_page(**options)
    complaints: list[str] = []
    strangers: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: strangers.append(request.url) if not request.url.startswith(url) else None)
    try:
        page.goto(url + "/")
        refreshed(page, refreshes)
        yield page
        assert complaints == []
        assert strangers == []
    finally:
        page.close()


def refreshed(page: Page, more: int) -> None:
    """Wait for so many more refreshes."""
    if more:
        before = int(page.evaluate("document.documentElement.dataset.refreshed || 0"))
        waited(page, lambda: int(page.evaluate("document.documentElement.dataset.refreshed || 0")) >= before + more)


def shown(page: Page, selector: str, text: str) -> None:
    waited(page, lambda: text in (page.text_content(selector) or ""))


def waited(page: Page, condition: Callable[[], bool]) -> None:
    """Poll from outside: the page's content policy forbids what `wait_for_function` does inside."""
    deadline = time.monotonic() + SETTLED_S
    while not condition():
        assert time.monotonic() < deadline, page.inner_text("body")
        page.wait_for_timeout(50)


def picture(page: Page, name: str) -> bytes:
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
    return page.screenshot(path=Path(PICTURES) / f"{name}.png" if PICTURES else None, full_page=True)


def has_no_sideways_scroll(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def overflowing(page: Page) -> list[str]:
    """Texts that stick out of the cell, panel or card that they are in."""
    found: list[str] = page.evaluate(
        """() => {
          const found = [];
          const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
          while (walker.nextNode()) {
            const node = walker.currentNode;
            const outer = node.parentElement.closest("td, th, .card, .panel");
            const head = node.parentElement.closest("thead");
            if (!node.textContent.trim() || !node.parentElement.checkVisibility()) continue;
            if (head && getComputedStyle(head).position === "absolute") continue;
            const range = document.createRange();
            range.selectNodeContents(node);
            const [text, box] = [range.getBoundingClientRect(), outer.getBoundingClientRect()];
            if (text.right > box.right + 0.5 || text.left < box.left - 0.5) found.push(node.textContent.trim());
          }
          return found;
        }"""
    )
    return found


def test_a_secure_page_says_so_and_counts_who_waits(browser: Browser, tmp_path: Path) -> None:
    with site(tmp_path, secure=True, answers=answers()) as web, opened(browser, web, viewport=WIDE) as page:
        assert page.locator("#insecure").count() == 0
        assert page.inner_text("#secure") == "secured by TLS and certificates"
        assert page.inner_text("#workers-pending") == ""
        for names, text in ((["x"], "1 waits to be let in"), (["x", "y"], "2 wait to be let in")):
            waiting = [worker(name, "pending", 0, words="a-b-c") for name in names]
            web.coordinator.answers["workers"] = [worker("pc-00", "busy", 2), *waiting]
            shown(page, "#workers-pending", text)
            assert page.inner_text("#workers-total") == "1"
            assert f'id="workers-pending">{text}<' in web.fetch("/").body.decode(), "as without JavaScript"
        picture(page, "secure")


def test_the_page_shows_the_cluster(browser: Browser, web: Site) -> None:
    with opened(browser, web, viewport=WIDE) as page:
        assert page.title() == "physics-lab · districomp"
        assert page.inner_text("#insecure").startswith("Insecure: no TLS, no authentication.")
        assert page.inner_text("#link") == "coordinator reachable"
        assert page.inner_text("#tasks-done") == "5,592"
        assert page.inner_text("#workers-states") == "1 busy, 1 draining, 1 idle, 1 lost"
        assert [row.inner_text() for row in page.locator("#jobs td.number").all()] == [
            "42",
            "41",
            "40",
            "39",
            "38",
            "37",
        ]
        assert "1 min 23 s" in page.inner_text('#jobs tr[data-key="41"]')
        assert "simulate: 2 problems" in page.inner_text("#faulty")
        assert has_no_sideways_scroll(page)
        assert overflowing(page) == []
        picture(page, "wide")


def test_it_changes_by_itself_and_nothing_jumps(browser: Browser, tmp_path: Path) -> None:
    with site(tmp_path, answers=answers()) as web, opened(browser, web, viewport=WIDE) as page:
        page.evaluate(
            """() => {
              window.shift = 0;
              new PerformanceObserver((list) => list.getEntries().forEach((entry) => { window.shift += entry.value; }))
                .observe({ type: "layout-shift", buffered: false });
              document.querySelector('#jobs tr[data-key="41"]').dataset.mark = "the same element";
            }"""
        )
        web.coordinator.answers["status"] = [status(name="physics-lab", tasks=Counts(16000, 24, 6351, 13, 40, 6))]
        web.coordinator.answers["jobs"] = [
            *answers()["jobs"][:4], job(41, "running", Counts(3000, 16, 2735, 3), name="render: fjord at dawn", eta_s=61.0),
        ]  # fmt: skip
        web.coordinator.answers["workers"] = answers()["workers"][:3]
        shown(page, "#tasks-done", "6,351")
        shown(page, '#jobs tr[data-key="41"]', "1 min 01 s")
        refreshed(page, 1)
        assert page.locator("#workers tr").count() == 3
        assert page.get_attribute('#jobs tr[data-key="41"]', "data-mark") == "the same element"
        assert page.locator('#jobs tr[data-key="42"]').count() == 0
        before = page.evaluate("window.shift")
        refreshed(page, 3)
        assert page.evaluate("window.shift") == before, "a refresh of the same numbers moves nothing"
        assert len(page.get_attribute("#spark-line", "d") or "") > 10


def test_a_higher_highest_rate_does_not_move_the_line(browser: Browser, web: Site) -> None:
    with opened(browser, web, 1, viewport=WIDE) as page:
        places = page.evaluate(
            """() => ["1.0", "837", "99,999"].map((highest) => {
              document.getElementById("highest").textContent = highest;
              return document.querySelector(".spark").getBoundingClientRect().x;
            })"""
        )
        assert len(set(places)) == 1, places


def test_the_words_without_javascript_are_the_same(browser: Browser, web: Site) -> None:
    def words(page: Page) -> list[str]:
        page.wait_for_selector("#jobs tr")
        texts: list[str] = page.evaluate(
            """() => [...document.querySelectorAll("header, main, tr, li, dd, title")]
              .map((node) => node.innerText.replace(/\\s+/g, " "))"""
        )
        return texts

    def shapes(page: Page) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = page.evaluate(
            """() => [...document.querySelectorAll("main rect")]
              .map((node) => ["class", "x", "width"].map((name) => node.getAttribute(name) || "0"))"""
        )
        return found

    with opened(browser, web, viewport=WIDE) as page:
        live = (words(page), shapes(page))
    context = browser.new_context(java_script_enabled=False, viewport=WIDE)  # type: ignore[arg-type]
    still_page = context.new_page()
    still_page.goto(f"http://127.0.0.1:{web.web_port}/")
    still = (words(still_page), shapes(still_page))
    assert "does not refresh by itself" in still_page.inner_text("footer")
    context.close()
    changing = ("last 3 minutes", "Numbers as of")
    assert [line for line in live[0] if not any(each in line for each in changing)] == [
        line for line in still[0] if not any(each in line for each in changing)
    ]
    assert live[1] == still[1]


@pytest.mark.parametrize("width", [320, 380, 560, 800, 1101])
def test_it_fits_any_width(browser: Browser, web: Site, width: int) -> None:
    with opened(browser, web, 1, viewport={"width": width, "height": 800}) as page:
        assert has_no_sideways_scroll(page)
        assert overflowing(page) == []
        picture(page, f"width-{width}")


def test_dark_is_another_picture(browser: Browser, web: Site) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        with opened(browser, web, viewport=WIDE, color_scheme=scheme) as page:
            grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            picture(page, scheme)
    assert grounds == ["rgb(244, 246, 249)", "rgb(16, 20, 27)"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("is_away", [False, True])
def test_every_text_can_be_read(browser: Browser, tmp_path: Path, scheme: str, is_away: bool) -> None:
    with site(tmp_path, answers=answers()) as web, opened(browser, web, viewport=WIDE, color_scheme=scheme) as page:
        if is_away:
            web.coordinator.stop()
            shown(page, "#link-text", "coordinator not reachable since")
            waited(page, lambda: page.evaluate("document.getAnimations().length") == 0)  # the colours' transition
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 60
        assert contrasts[0][0] >= 4.5, contrasts[:3]
        picture(page, f"{scheme}-{'away' if is_away else 'there'}")
        web.coordinator = Coordinator(web.coordinator.path) if is_away else web.coordinator


def test_it_has_the_structure_that_a_screen_reader_needs(browser: Browser, web: Site) -> None:
    with opened(browser, web, viewport=WIDE) as page:
        assert page.get_attribute("html", "lang") == "en"
        assert page.locator("h1").count() == 1
        for table in page.locator("table").all():
            assert all(head.get_attribute("scope") == "col" for head in table.locator("thead th").all())
            rows = table.locator("tbody tr")
            assert rows.locator('th[scope="row"]').count() == rows.count()
        assert page.locator("main section:not([aria-label]):not([aria-labelledby])").count() == 0
        assert page.locator("svg:not([aria-hidden]):not([role=img])").count() == 0
        assert page.get_attribute("#link", "role") == "status"
        assert "tasks" in page.locator(".rate").inner_text().lower()


def test_reduced_motion_has_no_transition(browser: Browser, web: Site) -> None:
    durations = {}
    for motion in ("reduce", "no-preference"):
        with opened(browser, web, viewport=WIDE, reduced_motion=motion) as page:
            durations[motion] = page.evaluate("getComputedStyle(document.querySelector('main svg')).transitionDuration")
    assert durations == {"reduce": "0s", "no-preference": "0.3s"}


def test_the_coordinators_absence_and_return_are_seen(browser: Browser, tmp_path: Path) -> None:
    with site(tmp_path, answers=answers()) as web, opened(browser, web, viewport=WIDE) as page:
        web.coordinator.stop()
        shown(page, "#link-text", "coordinator not reachable since")
        assert page.inner_text("#tasks-done") == "5,592", "the last numbers stay"
        web.coordinator = Coordinator(web.coordinator.path)
        web.coordinator.start()
        shown(page, "#link-text", "coordinator reachable")
        shown(page, "#name", "room-12")


def test_a_new_cluster_says_what_to_do_first(browser: Browser, tmp_path: Path) -> None:
    nothing: dict[str, Any] = {
        "status": [status(workers=0, slots=0, tasks=Counts(), tasks_per_s=0.0)], "jobs": [], "workers": [], "definitions": [],
    }  # fmt: skip
    with site(tmp_path, answers=nothing) as web, opened(browser, web, viewport=WIDE) as page:
        assert page.inner_text("#no-workers pre") == "dworker"
        assert page.inner_text("#no-jobs pre").startswith("dctl run ")
        assert not page.is_visible("#jobs-table")
        picture(page, "empty")
        web.coordinator.answers.update(answers())
        page.wait_for_selector("#jobs-table", state="visible", timeout=1000 * SETTLED_S)
        assert not page.is_visible("#no-jobs")
        assert not page.is_visible("#no-workers")


def test_the_web_servers_own_end_is_seen(browser: Browser, tmp_path: Path) -> None:
    with site(tmp_path, answers=answers()) as web:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{web.web_port}/")
        refreshed(page, 1)
        web.stop()
        shown(page, "#link-text", "the web server does not answer")
        page.close()


def test_a_hidden_page_asks_nothing(browser: Browser, web: Site) -> None:
    with opened(browser, web) as page:

        def hide(hidden: bool) -> None:
            page.evaluate(
                "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
                " document.dispatchEvent(new Event('visibilitychange')); }",
                hidden,
            )

        def is_quiet() -> bool:
            before = page.evaluate("document.documentElement.dataset.refreshed")
            page.wait_for_timeout(2500)
            return bool(page.evaluate("document.documentElement.dataset.refreshed") == before)

        hide(True)
        waited(page, is_quiet)  # what it had asked already is answered first
        hide(False)
        refreshed(page, 1)
