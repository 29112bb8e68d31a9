"""Prefect's UI as a user sees it: pages, forms and menus, driven in headless Chromium by Playwright.

    python -m tests.support.prefect_ui      # which browser the browser tests use, or the one command that installs it

The browser is the system's own, since Playwright's download does not run everywhere: `NIGHTGATE_TEST_BROWSER`, else the
first of `chromium`, `chromium-browser` and `google-chrome` on the PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import httpx

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route

INSTALL = "apt-get install -y chromium"

_FLAGS = [
    # As root, which containers run as, Chromium starts without its sandbox only.
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"),
    # It makes no requests of its own.
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def browser_path() -> str:
    """The browser's executable; '' where there is none."""
    named = os.environ.get("NIGHTGATE_TEST_BROWSER", "")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    return next((found for name in names if (found := shutil.which(name))), "")


@contextmanager
def chromium(executable: str) -> Iterator[Browser]:
    """A running browser. Its event loop keeps Prefect's own client from working in this thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class PrefectUI:
    """One tab of the browser. Every element may take `patience` seconds to appear, because test machines are busy."""

    def __init__(self, browser: Browser, url: str, patience: float = 30) -> None:
        self.url = url
        self.page: Page = browser.new_page(viewport={"width": 1400, "height": 1000})
        self.page.set_default_timeout(1000 * patience)
        # The UI requests its configuration from an outside host; without a network its pages would wait for it.
        self.page.route("**/*", self._block_outside)
        self.main: Locator = self.page.get_by_role("main")

    def _block_outside(self, route: Route) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in {"data", "blob", "file"} or address.hostname in {"127.0.0.1", "localhost"}:
            route.continue_()
        else:
            route.abort()

    def close(self, picture: Path) -> None:
        """Save a picture of the page and close it."""
        self.page.screenshot(path=picture)
        self.page.close()

    # --- a deployment and its form ---

    def open_deployment(self, name: str) -> None:
        """Open the page of a deployment: `FLOW/NAME`, or the name of a pipeline for its nights."""
        full_name = name if "/" in name else f"nightly/{name}"
        found = httpx.get(f"{self.url}/api/deployments/name/{full_name}", timeout=20).raise_for_status().json()
        self.page.goto(f"{self.url}/v2/deployments/deployment/{found['id']}")

    def quick_run(self) -> str:
        """Run > Quick run on a deployment's page, then View run; returns the id of the run."""
        self._run_menu("Quick run")
        return self._view_run()

    def open_custom_run(self, deployment: str) -> None:
        self.open_deployment(deployment)
        self._run_menu("Custom run")
        self.page.get_by_role("heading", name="Parameters").wait_for()

    def _run_menu(self, item: str) -> None:
        self.page.get_by_role("button", name="Run", exact=True).first.click()
        self.page.get_by_role("menuitem", name=item).click()

    def field(self, name: str) -> Locator:
        """The input of an optional parameter."""
        return self.page.get_by_label(f"{name} (Optional)", exact=True)

    def choices(self, name: str) -> list[str]:
        """The choices of a drop-down, which is closed again."""
        self._drop_down(name).click()
        options = self.page.get_by_role("option")
        options.first.wait_for()
        offered = options.all_inner_texts()
        self.page.keyboard.press("Escape")
        options.first.wait_for(state="hidden")
        return offered

    def choose(self, name: str, value: str) -> None:
        self._drop_down(name).click()
        self.page.get_by_role("option", name=value, exact=True).click()
        # While the list is open, the next click would only close it.
        self.page.get_by_role("option").first.wait_for(state="hidden")

    def _drop_down(self, name: str) -> Locator:
        return self.page.get_by_label(f"Select {name}", exact=True)

    def choose_night(self, night: str) -> None:
        self.page.get_by_role("tab", name="a past night").click()
        self.page.get_by_role("button", name="Pick a date").click()
        self.page.get_by_label("Date (yyyy-MM-dd)").fill(night)
        self.page.keyboard.press("Escape")
        self.page.get_by_label("Date (yyyy-MM-dd)").wait_for(state="hidden")

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def submit_and_view(self) -> str:
        """Submit, then View run; returns the id of the run."""
        self.submit()
        return self._view_run()

    def _view_run(self) -> str:
        self.page.get_by_role("button", name="View run").click()
        self.page.wait_for_url("**/runs/flow-run/*")
        return str(re.findall(r"flow-run/([0-9a-f-]{36})", self.page.url)[0])

    def type_json(self, name: str, text: str) -> None:
        """Fill in a field as JSON, by its menu; that input accepts anything."""
        self.block(name).get_by_role("button", name="Open menu").click()
        self.page.get_by_role("menuitem", name="Use JSON Input").click()
        self.page.locator(".cm-content").click()
        self.page.keyboard.insert_text(text)

    def block(self, name: str) -> Locator:
        """A parameter with its label, description and errors."""
        label = self.page.get_by_text(f"{name} (Optional)", exact=True)
        return self.page.locator("div.group").filter(has=label).last

    def complaints(self) -> list[str]:
        """The error messages under the fields of a form."""
        shown = self.page.locator("p.text-destructive, ul.text-destructive > li")
        shown.first.wait_for()
        return shown.all_inner_texts()

    # --- a run ---

    def open_run(self, run_id: str) -> None:
        self.page.goto(f"{self.url}/v2/runs/flow-run/{run_id}")
        self.title().wait_for()

    def title(self) -> Locator:
        """The name of the run in the page's heading."""
        return self.main.get_by_label("breadcrumb").first.get_by_role("listitem").last

    def wait_for_state(self, name: str, seconds: float) -> None:
        """Wait until the open page of a run shows a state, without reloading it."""
        self.main.get_by_text(name, exact=True).first.wait_for(timeout=1000 * seconds)

    def action(self, name: str) -> None:
        """Click an entry of the menu of three dots on the page of a run."""
        self.main.get_by_role("button", name="Open menu").first.click()
        self.page.get_by_role("menuitem", name=name, exact=True).click()

    def confirm(self, button: str) -> None:
        dialog = self.page.get_by_role("alertdialog").or_(self.page.get_by_role("dialog"))
        dialog.get_by_role("button", name=button, exact=True).click()
        dialog.wait_for(state="hidden")

    def tab(self, name: str) -> Locator:
        self.main.get_by_role("tab", name=name, exact=True).click()
        return self.main.get_by_role("tabpanel", name=name, exact=True)

    def open_report(self, key: str) -> None:
        """Open the report from the page of a run: the tab, the artifact, its newest version."""
        self.tab("Artifacts").get_by_role("link").filter(has=self.page.get_by_role("heading", name=key)).click()
        self.page.wait_for_url(f"**/artifacts/key/{key}")
        self.main.locator('a[href*="/artifacts/artifact/"]').first.click()
        self.page.wait_for_url("**/artifacts/artifact/*")

    def colours(self, mode: Literal["Light", "Dark"]) -> None:
        """Choose the theme on the settings page."""
        self.page.goto(f"{self.url}/v2/settings")
        # The button itself is hidden behind its label.
        self.page.locator(f'label[for="{mode.lower()}"]').click()


def main() -> int:
    found = browser_path()
    if found:
        print(f"browser: {found}")
        return 0
    named = os.environ.get("NIGHTGATE_TEST_BROWSER")
    print(
        f"NIGHTGATE_TEST_BROWSER={named} is not a program" if named else "Chromium is missing, which these tests need"
    )
    print(f"  next: {INSTALL}    (as root, on Debian; or set NIGHTGATE_TEST_BROWSER to the path of one)")
    return 1


if __name__ == "__main__":
    sys.exit(main())
