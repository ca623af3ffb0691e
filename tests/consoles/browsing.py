"""A real browser before a real console: Debian's chromium, driven by Playwright.

A tab keeps what the page said on its console, and its errors; `tests/consoles/artefacts` gets both
and a picture of each test, for whoever has to find out why one failed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Playwright

from tests.support import wait_until

if TYPE_CHECKING:
    from tests.consoles.conftest import Console

ARTEFACTS = Path(__file__).with_name("artefacts")
DEADLINE_S = 30  # of a page on a machine that has other things to do
_ROWS = """
table => [...table.querySelectorAll('[role=row]')].map(row => ({
  selected: row.getAttribute('aria-selected') === 'true',
  cells: [...row.querySelectorAll('[role=columnheader], [role=gridcell]')].map(c => c.textContent),
}))
"""


def launched(playwright: Playwright) -> Browser:
    """Start chromium without a window; it has to be installed."""
    program = shutil.which("chromium")
    assert program is not None, "apt-get install chromium --no-install-recommends"
    # Its sandbox refuses to start for root, as CI runs.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=program, args=flags)


class Tab:
    """Be a tab of a browser that knows no other tab: its cookies are its own."""

    def __init__(self, context: BrowserContext, console: Console) -> None:
        self.context = context
        self.console = console
        self.page: Page = context.new_page()
        self.page.set_default_timeout(DEADLINE_S * 1000)
        self.said: list[str] = []
        self.errors: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(f"pageerror: {error}"))

    def _hear(self, message: ConsoleMessage) -> None:
        where = message.location["url"]
        self.said.append(f"{message.type}: {message.text} ({where})")
        # Streamlit (1.67) looks for its server beneath each part of a page's address first.
        is_search = re.search(r"/[a-z]+/_stcore/(health|host-config)$", where)
        if message.type == "error" and not is_search:
            self.errors.append(f"{message.text} ({where})")

    def enter(self) -> Tab:
        """Open the console by the link that it printed."""
        self.console.wait()
        self.page.goto(self.console.link)
        return self.settled()

    def go(self, path: str) -> Tab:
        """Open a path of the console."""
        self.page.goto(f"{self.console.url}{path}")
        return self.settled()

    def settled(self) -> Tab:
        """Wait until the page is there, and its script has ended."""
        self.page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
        self.page.locator("[data-testid=stMainBlockContainer] [data-testid]").first.wait_for()
        return self

    @property
    def url(self) -> str:
        """Return what stands in the address bar; `page.url` hears of it later."""
        return str(self.page.evaluate("location.href"))

    def part(self, key: str) -> Locator:
        """Return the widget or container with a key of ours."""
        return self.page.locator(f".st-key-{key}")

    def button(self, key: str) -> Locator:
        """Return a button; of one with a tooltip Streamlit draws two."""
        return self.part(key).locator("button").first

    def press(self, key: str) -> None:
        """Press a button once it can be pressed."""
        self.button(key).click()

    def type(self, key: str, text: str) -> None:
        """Type into a field, as far as leaving it."""
        field = self.part(key).locator("input, textarea").first
        field.fill(text)
        field.press("Enter")

    def text(self, key: str) -> str:
        """Return what stands there; "" where nothing is."""
        found = self.part(key)
        return found.first.inner_text() if found.count() else ""

    def until(self, key: str, wanted: str) -> str:
        """Wait until a text stands somewhere in a part; a regular expression."""
        return str(
            wait_until(
                lambda: (text := self.text(key)) and re.search(wanted, text) and text,
                deadline_s=DEADLINE_S,
                what=f"{wanted!r} in {key}",
                every_s=0.05,
            )
        )

    def table(self, key: str = "jobs-table") -> Table:
        """Return the table in a part."""
        return Table(self.part(key).locator("[data-testid=stDataFrame]").first)

    def boxes(self, *keys: str) -> dict[str, Any]:
        """Return where parts are on the page."""
        return {key: self.part(key).first.bounding_box() for key in keys}

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        # Streamlit scrolls within its main section, not the document.
        wide: int = self.page.evaluate(
            """() => Math.max(...[document.scrollingElement,
                 ...document.querySelectorAll('[data-testid=stMain], [data-testid=stAppViewContainer]')]
                 .map(part => part.scrollWidth - part.clientWidth))"""
        )
        return wide

    def is_hacked(self) -> bool:
        """Say whether a script of somebody else's ran in the page, or mark-up of his stands there."""
        return bool(
            self.page.evaluate(
                """() => window.hacked !== undefined
                  || document.querySelector('img[src=x], img[src*=evil], a[href^="javascript:"]') !== null
                  || [...document.scripts].some(one => one.textContent.includes('hacked'))"""
            )
        )

    def shot(self, path: Path) -> None:
        """Keep a picture of the whole page, which Streamlit scrolls inside of the window."""
        path.parent.mkdir(parents=True, exist_ok=True)
        size = self.page.viewport_size
        assert size is not None
        high = self.page.evaluate(
            "() => document.querySelector('[data-testid=stMain]')?.scrollHeight ?? 0"
        )
        self.page.set_viewport_size({**size, "height": min(max(size["height"], high), 8000)})
        self.page.screenshot(path=path)
        self.page.set_viewport_size(size)


class Table:
    """Be a table of Streamlit's: drawn on a canvas, with a table for screen readers beneath it."""

    def __init__(self, frame: Locator) -> None:
        self.frame = frame

    def _lines(self) -> list[dict[str, Any]]:
        if not self.frame.count():
            return []
        found: list[dict[str, Any]] = self.frame.locator("[role=grid]").first.evaluate(_ROWS)
        return found

    def rows(self) -> list[dict[str, str]]:
        """Return the rows that are in sight, by the names of their columns."""
        head, *lines = self._lines() or [{"cells": []}]
        return [dict(zip(head["cells"], line["cells"], strict=True)) for line in lines]

    def column(self, name: str) -> list[str]:
        """Return what stands in a column."""
        return [row[name] for row in self.rows()]

    def ticked(self, name: str = "Job") -> list[str]:
        """Return the cells of a column in the rows that are ticked."""
        head, *lines = self._lines() or [{"cells": []}]
        return [
            dict(zip(head["cells"], line["cells"], strict=True))[name]
            for line in lines
            if line["selected"]
        ]

    def tick(self, job_id: str, *, row_px: int = 33, head_px: int = 35) -> None:
        """Click the box of the row in which a cell says this."""
        place = self.column("Job").index(job_id)
        at = {"x": 16, "y": head_px + row_px * place + row_px // 2}
        # By force: a layer lies over the canvas that takes the clicks for it.
        self.frame.locator("canvas").first.click(position=at, force=True)
