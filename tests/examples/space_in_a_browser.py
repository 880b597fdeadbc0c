"""The app's page in Chromium, its buttons pressed: `make test-browser`; the suite calls the functions behind them.

Screenshots are left in pytest's folder of each test, for a look at them.
"""

import os
import shutil
import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.examples.conftest import EXAMPLES

PATIENCE = 180_000  # milliseconds


@pytest.fixture(scope="module")
def url():
    """The address of the app, started as its readme says."""
    options = {"PYTHONUNBUFFERED": "1", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, EXAMPLES / "space" / "app.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | options) as server:
        yield next(line.split()[-1] for line in server.stdout if "Running on" in line)
        server.terminate()


@pytest.fixture(scope="module")
def chromium():
    """The machine's own browser, or the one that `playwright install chromium` fetched."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["light-1100", "dark-1100", "light-400", "dark-400"])
def page(request, url, chromium):
    """The page, freshly opened; no script of it may fail."""
    scheme, width = request.param.split("-")
    page = chromium.new_page(color_scheme=scheme, viewport={"width": int(width), "height": 900})
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.get_by_role("button", name="Compare").wait_for()
    yield page
    page.close()
    assert not errors


def press(page: Page, button: str, sentence: str) -> None:
    """Press, and wait for the sentence and for a picture that was received whole."""
    page.get_by_role("button", name=button).click()
    expect(page.get_by_text(sentence).first).to_be_visible(timeout=PATIENCE)
    page.wait_for_function("[...document.images].some(x => x.src.includes('file=') && x.naturalWidth > 500)")


def test_a_walk(page, tmp_path):
    """Nothing is told before a button is pressed; both tell and draw; a wrong path is told; nothing is cut off."""
    expect(page.get_by_text("in another order")).to_have_count(0)
    press(page, "Compare", "experts in another order in 2 of 2 layers")
    page.screenshot(path=tmp_path / "compare.png", full_page=True)
    press(page, "Align", "2 of 2 layers permuted")
    page.screenshot(path=tmp_path / "align.png", full_page=True)
    page.get_by_label("B", exact=True).fill("./absent")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("neither a folder nor")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("2 of 2 layers permuted")).to_have_count(0)  # no result of another pair beside it
    page.screenshot(path=tmp_path / "error.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
