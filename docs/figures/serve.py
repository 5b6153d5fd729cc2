"""Draws the photos of docs/cli.md, trains on them as in README.md, and takes a picture of `dissim serve` in Chromium.

python docs/figures/serve.py       writes docs/images/serve.png
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

DOCS = Path(__file__).parents[1]
PHOTO = "photos/g/DejaVuSerif.png"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--no-first-run", "--hide-scrollbars"]


def command(*words):
    return [sys.executable, "-m", "dissim_retrieval.cli", *words]


def make_gallery(folder):
    script = re.search(r"^```python\n(.*?)^```", (DOCS / "cli.md").read_text(), re.M | re.S)[1]
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    training = re.search(r"^\$ dissim (train run .*)$", (DOCS.parent / "README.md").read_text(), re.M)[1]
    subprocess.run(command(*training.split()), cwd=folder, check=True)
    subprocess.run(command("index", "run", "photos", "gallery.dissim"), cwd=folder, check=True)


def wait_for(browser, selector, count):
    WebDriverWait(browser, 20).until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, selector)) >= count)


def take_picture(url, photo, profile):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    size = {"width": 1240, "height": 960, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(url)
    wait_for(browser, "#items img", 11)
    browser.find_element(By.ID, "photo").send_keys(photo)
    wait_for(browser, "#results img", 12)
    browser.save_screenshot(str(DOCS / "images" / "serve.png"))
    browser.quit()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_gallery(folder)
        service = subprocess.Popen(
            command("serve", "gallery.dissim", "--port", "0"), cwd=folder, stdout=subprocess.PIPE
        )
        try:
            url = service.stdout.readline().decode().split(": ")[-1].strip()
            take_picture(url, str(folder / PHOTO), folder / "profile")
        finally:
            service.terminate()
            service.wait()
