"""A real browser, headless and without a network, for pages that a person opens."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

BINARY, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
#: Why no browser can be started here; empty where one can.
MISSING = ", ".join(
    name for name, found in {"chromium": BINARY, "chromedriver": DRIVER, "selenium": find_spec("selenium")}.items()
    if not found
)  # fmt: skip
REASON = f"no browser can be started: {MISSING} is missing"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@contextmanager
def chrome(*flags: str, width: int = 1200, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A browser with a profile of its own, whose console and requests can be asked for."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BINARY)
        for flag in (
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            *flags,
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            metrics = {
                "width": width,
                "height": height,
                "deviceScaleFactor": 1,
                "mobile": width < 600,
            }
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
            yield driver
        finally:
            driver.quit()


def console_errors(driver: Any) -> list[str]:
    """What the page complained of since it was last asked."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]


def foreign_requests(driver: Any, *own: str) -> list[str]:
    """Addresses that were asked for since it was last asked, but for those that begin with one of ``own``."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(str(message["params"]["request"]["url"]))
    return [
        url for url in found if not url.startswith((*own, "data:", "blob:", "about:", "chrome"))
    ]
