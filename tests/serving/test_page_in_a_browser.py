"""The page of `perdure serve` in a real browser: a picture dropped, versions compared, a correction kept."""

import os
import shutil

import pytest

from perdure.run_folder import versions
from perdure.serving.app import Settings, make
from tests.served import picture, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


def test_a_dropped_picture_is_answered_compared_and_corrected(run, browser):
    with serving(make(run, Settings(inbox=True))) as client:
        page = browser.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.get_by_role("status").filter(has_text="version 1 answers").wait_for()
        page.set_input_files("#files", [{"name": "a.png", "mimeType": "image/png", "buffer": picture(0)}])
        page.get_by_role("heading", name="version 1").wait_for()
        assert page.locator("article .bar").count() == 4
        shares = page.locator("article meter").evaluate_all("all => all.map(m => m.value)")
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-3)
        page.select_option("#other", "2")
        page.get_by_role("heading", name="version 2").wait_for()
        assert page.locator("article section").count() == 2
        page.get_by_label("The right class").first.fill("heron")
        page.get_by_role("button", name="Keep for the next update").first.click()
        page.get_by_text("Kept as heron (1 in the inbox).").wait_for()
        drop = """element => { const data = new DataTransfer();
            data.items.add(new File(["no picture"], "b.txt"));
            element.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true})); }"""
        page.locator("#drop").evaluate(drop)
        page.get_by_text("this is not an image").first.wait_for()
        assert all(url.startswith((f"http://127.0.0.1:{client.port}/", "blob:")) for url in asked)
        assert not [line for line in said if "favicon" not in line]
        page.close()


def test_a_version_is_chosen_compared_and_promoted_with_the_token(run, browser):
    token = "a-token-of-16-letters"
    with serving(make(run, Settings(token=token, promote=True, every=0.05))) as client:
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        asked = []
        page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept(token)))
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.get_by_role("status").filter(has_text="version 1 answers").wait_for()
        page.set_input_files("#files", [{"name": "a.png", "mimeType": "image/png", "buffer": picture(0, (200, 160))}])
        page.get_by_role("heading", name="version 1").wait_for()
        assert page.get_by_role("button", name="Promote").count() == 0  # version 1 is promoted
        page.select_option("#version", "2")
        page.get_by_role("heading", name="version 2").wait_for()
        page.select_option("#other", "1")
        page.get_by_role("heading", name="version 1").wait_for()
        assert page.get_by_role("button", name="Promote").count() == 0
        page.select_option("#other", "2")
        page.select_option("#version", "")
        page.get_by_role("button", name="Promote version 2").click()
        page.get_by_role("status").filter(has_text="version 2 answers").wait_for()
        assert versions.current(run) == 2 and page.get_by_role("button", name="Promote").count() == 0
        assert asked == ["This server asks for a token:", "Shall version 2 answer everybody from now on?"]
        if folder := os.environ.get("PERDURE_SCREENSHOTS"):
            page.select_option("#other", "1")
            page.get_by_role("heading", name="version 1").wait_for()
            page.screenshot(path=f"{folder}/page.png")
        page.close()
