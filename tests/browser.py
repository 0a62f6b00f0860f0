"""A real browser, headless and without a network, for pages that a person opens."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

BINARY = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
_FOUND = {"chromium": BINARY, "chromedriver": DRIVER, "selenium": find_spec("selenium")}
#: What is missing to start a browser; empty where nothing is.
MISSING = ", ".join(name for name, found in _FOUND.items() if not found)
#: Why no browser can be started.
REASON = f"no browser can be started: {MISSING} is missing"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
#: Windows that are narrower are a phone's.
PHONE_WIDTH = 600
#: How addresses begin that a browser asks itself for.
INTERNAL = ("data:", "blob:", "about:", "chrome")


@contextmanager
def chrome(*flags: str, width: int = 1200, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """Start a browser with a profile of its own, whose console and requests can be asked for."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BINARY)
        own = (f"--user-data-dir={profile}", f"--window-size={width},{height}")
        for flag in (*FLAGS, *own, *flags):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            metrics = {
                "width": width,
                "height": height,
                "deviceScaleFactor": 1,
                "mobile": width < PHONE_WIDTH,
            }
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            scheme = "dark" if dark else "light"
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            yield driver
        finally:
            driver.quit()


def console_errors(driver: Any) -> list[str]:
    """Return what the page complained of since this was last asked."""
    entries = driver.get_log("browser")
    return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]


def foreign_requests(driver: Any, *own: str) -> list[str]:
    """Return addresses that were asked for since this was last asked.

    Addresses that begin with any of ``own`` are left out.
    """
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(str(message["params"]["request"]["url"]))
    return [url for url in found if not url.startswith((*own, *INTERNAL))]
