"""A real browser: Debian's Chromium, headless, with a profile of its own, and no network.

Import the fixture: ``from browser import browser, Browser  # noqa: F401``.
"""

import base64
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
"""Build artifacts that people look at; `make screenshots` copies some into docs/images."""
SIZES = {"desktop": (1280, 900), "phone": (390, 844), "print": (718, 1016)}
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


class Browser:
    """A page of a headless Chromium, and what is asked of it.

    Attributes:
        driver: Selenium's, for what this class does not do.
    """

    def __init__(self, driver):
        self.driver = driver

    def open(self, target, size="desktop", dark=False):
        """Load a file or a URL at a size of ``SIZES``; return the seconds until it had loaded."""
        width, height = SIZES[size]
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == "phone",
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        # Empty: as it is used, so that what is printed is styled for print.
        media = "print" if size == "print" else ""
        self._send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.driver.get_log("browser")
        begun = time.monotonic()
        self.driver.get(target.resolve().as_uri() if isinstance(target, Path) else target)
        return time.monotonic() - begun

    def before(self, script):
        """Run JavaScript in every page from now on, before its own; return what forgets it."""
        given = self._send("Page.addScriptToEvaluateOnNewDocument", source=script)
        return lambda: self._send("Page.removeScriptToEvaluateOnNewDocument", **given)

    def errors(self):
        """Return what the console has reported as errors since the page was opened."""
        return [x["message"] for x in self.driver.get_log("browser") if x["level"] == "SEVERE"]

    def run(self, script, *arguments):
        """Run JavaScript and return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def until(self, script, seconds=30):
        """Wait until JavaScript returns something true, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.05)
        return found

    def text(self):
        """Return the page's visible text."""
        return self.run("return document.body.innerText")

    def screenshot(self, name, whole=True):
        """Write ``build/screenshots/NAME.png``: the whole page, or what the window shows."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        given = {"captureBeyondViewport": whole}
        if whole:
            size = self._send("Page.getLayoutMetrics")["cssContentSize"]
            # Chromium draws no more than 16,384 pixels.
            height = min(size["height"], 16000)
            given["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1}
        data = self._send("Page.captureScreenshot", format="png", **given)["data"]
        path = SCREENSHOTS / f"{name}.png"
        path.write_bytes(base64.b64decode(data))
        return path

    def element(self, selector, name):
        """Write ``build/screenshots/NAME.png``: one element of the page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        box = self.run(
            "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height}",
            selector,
        )
        data = self._send(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=True,
            clip={**box, "scale": 1},
        )["data"]
        path = SCREENSHOTS / f"{name}.png"
        path.write_bytes(base64.b64decode(data))
        return path

    def pdf(self, name):
        """Write ``build/screenshots/NAME.pdf``: the page as it is printed on A4."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        data = self._send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"]
        path = SCREENSHOTS / f"{name}.pdf"
        path.write_bytes(base64.b64decode(data))
        return path

    def _send(self, command, **given):
        return self.driver.execute_cdp_cmd(command, given)


@contextmanager
def started():
    """Start a browser with a new profile; end it and delete the profile afterwards."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tempfile.mkdtemp(prefix="prunetune-chromium-")
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(60)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def browser():
    """Yield a browser; skip, with the reason, where there is none."""
    missing = [path for path in (CHROMIUM, DRIVER) if not Path(path).exists()]
    if missing:
        pytest.skip(f"{missing[0]} is missing; apt-get install chromium chromium-driver")
    pytest.importorskip("selenium.webdriver", reason="selenium is missing")
    with started() as found:
        yield found
