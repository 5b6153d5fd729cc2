"""The page of `dissim serve` in Chromium."""

import shutil
import tempfile

import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex
from photo_gallery import TOKEN, make_gallery, served, write_photos

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
pytestmark = pytest.mark.skipif(None in PROGRAMS.values(), reason="chromium or chromedriver is not installed")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1240,1200",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_photos(folder / "photos", 20)
    make_gallery(folder / "gallery.dissim", folder / "photos")
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with served(folder / "gallery.dissim", "--token", TOKEN) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(PROGRAMS["chromedriver"]))
        try:
            yield browser
        finally:
            browser.quit()


@pytest.fixture
def page(browser, url):
    browser.get("about:blank")  # so that the next address is a new page, not another place on the old one
    browser.get(f"{url}#token={TOKEN}")
    until(browser, lambda: len(all_of(browser, "#items .frame")) == 24)
    return browser


def until(browser, condition):
    WebDriverWait(browser, 20).until(lambda _: condition())


def all_of(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def result_ids(browser):
    return browser.execute_script("return [...document.querySelectorAll('#results .id')].map(e => e.textContent)")


def status(browser):
    return browser.find_element(By.ID, "status").text


def retype(browser, field, text):
    """Replace the text of a field, and leave it."""
    browser.find_element(By.ID, field).send_keys(Keys.CONTROL, "a", Keys.NULL, text or Keys.DELETE, Keys.TAB)


def upload(browser, photo):
    browser.find_element(By.ID, "photo").send_keys(str(photo))
    until(browser, lambda: "best rows" in status(browser))


def test_a_photo_is_searched_and_the_results_change_with_k_and_filter(page, folder):
    upload(page, folder / "photos/id3/a.png")
    assert len(result_ids(page)) == 12 and result_ids(page)[:2] == ["id3/a.png", "id3/b.png"]
    scores = page.execute_script(
        "return [...document.querySelectorAll('#results .score')].map(e => Number(e.lastChild.textContent))"
    )
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.99
    until(page, lambda: len(all_of(page, "#results img")) >= 6)
    widths = page.execute_script("return [...document.querySelectorAll('#results img')].map(e => e.naturalWidth)")
    assert set(widths) == {150}, "thumbnails are shown"

    retype(page, "k", "3")
    until(page, lambda: len(result_ids(page)) == 3)
    retype(page, "filter", "label != 3")
    until(page, lambda: "id3/a.png" not in result_ids(page))
    assert len(result_ids(page)) == 3
    retype(page, "filter", "label = 77")
    until(page, lambda: status(page) == "No row satisfies the filter.")
    retype(page, "filter", "nothing = 3")
    until(page, lambda: status(page).startswith("filter: expected an SQL condition on id"))
    assert result_ids(page) == []
    retype(page, "filter", "")
    until(page, lambda: result_ids(page)[:1] == ["id3/a.png"])


def test_an_image_of_the_gallery_and_a_result_are_searched(page):
    page.find_element(By.CSS_SELECTOR, "#items [data-query='id12/b.png']").click()
    until(page, lambda: result_ids(page)[:2] == ["id12/b.png", "id12/a.png"])
    assert page.find_element(By.ID, "described").text == "id12/b.png"
    until(page, lambda: page.find_element(By.ID, "shown").get_property("naturalWidth") == 150)
    all_of(page, "#results [data-query]")[1].click()
    until(page, lambda: result_ids(page)[:2] == ["id12/a.png", "id12/b.png"])

    page.find_element(By.ID, "more").click()
    until(page, lambda: len(all_of(page, "#items .frame")) == 40)
    assert not page.find_element(By.ID, "more").is_displayed()


def test_a_double_click_shows_the_next_rows_once(page):
    page.execute_script("const more = document.getElementById('more'); more.click(); more.click()")
    until(page, lambda: not page.find_element(By.ID, "more").is_displayed())
    ids = page.execute_script("return [...document.querySelectorAll('#items .id')].map(e => e.textContent)")
    assert len(ids) == len(set(ids)) == 40


def test_an_id_that_javascript_cannot_hold_is_searched(browser, tmp_path):
    ids = [2**53, 2**53 + 1]
    DissimilarityIndex.create(tmp_path / "g", DissimilarityHead(2)).add(torch.eye(2), ids)
    with served(tmp_path / "g") as (url, _):
        browser.get(url)
        until(browser, lambda: len(all_of(browser, "#items .frame")) == 2)
        for id in map(str, ids):
            browser.find_element(By.CSS_SELECTOR, f"#items [data-query='{id}']").click()
            until(browser, lambda id=id: result_ids(browser)[:1] == [id])


def test_what_is_no_photo_and_a_wrong_k_are_explained(page, tmp_path):
    (tmp_path / "text.png").write_text("no photo")
    page.find_element(By.ID, "photo").send_keys(str(tmp_path / "text.png"))
    until(page, lambda: "in none of the formats" in status(page))
    (tmp_path / "large.png").write_bytes(bytes(21 << 20))
    page.find_element(By.ID, "photo").send_keys(str(tmp_path / "large.png"))
    until(page, lambda: status(page) == "body: expected at most 20,971,520 bytes, got more.")


def test_the_page_asks_for_the_token(browser, url):
    browser.get(url)
    browser.execute_script("sessionStorage.clear()")
    browser.refresh()
    field = browser.find_element(By.ID, "token")
    until(browser, field.is_displayed)
    field.send_keys("wrong", Keys.ENTER)
    until(browser, lambda: browser.find_element(By.ID, "denied").text == "The service has another token.")
    assert not browser.find_element(By.ID, "drop").is_displayed()
    field.clear()
    field.send_keys(TOKEN, Keys.ENTER)
    until(browser, lambda: len(all_of(browser, "#items .frame")) == 24)
    assert not field.is_displayed()


def test_the_token_does_not_stay_in_the_address(page, url):
    assert page.current_url == url


def test_the_page_asks_no_other_server_and_makes_no_error(page, folder, url):
    page.get_log("browser")
    page.refresh()
    until(page, lambda: len(all_of(page, "#items .frame")) == 24)
    upload(page, folder / "photos/id1/a.png")
    until(page, lambda: len(all_of(page, "#results img")) == 12)
    requested = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert len(requested) > 10 and all(name.startswith((url, "blob:")) for name in requested)
    assert page.get_log("browser") == []


@pytest.mark.parametrize("width", [400, 1240])
def test_nothing_is_wider_than_the_window(page, folder, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    upload(page, folder / "photos/id1/a.png")
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    columns = page.execute_script("return getComputedStyle(document.querySelector('main')).gridTemplateColumns")
    assert len(columns.split()) == (1 if width == 400 else 2)
