"""A headless Chromium for tests of pages: started without a download, and asked what it complained of and fetched."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

QUIET = ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-dev-shm-usage", "disable-sync")
QUIET += ("disable-background-networking", "disable-component-update", "disable-default-apps", "no-proxy-server")


def reason_to_skip() -> str | None:
    """What is missing for tests in a browser, or None."""
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed"
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    missing = [
        name
        for name, found in {"chromium": chromium, "chromedriver": shutil.which("chromedriver")}.items()
        if not found
    ]
    return f"{' and '.join(missing)} not installed" if missing else None


@contextmanager
def chrome(profile: Path, width: int = 1280, height: int = 900, *more: str) -> Iterator[Any]:
    """A browser with an empty profile in the folder ``profile``, gone at the end."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for word in (*QUIET, f"user-data-dir={profile}", f"window-size={width},{height}", *more):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # a proxy that is set for the tests would stand between them and their own driver
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    # named, so that selenium does not look for one to download
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver"), env=environment))
    try:
        yield driver
    finally:
        driver.quit()


def console_errors(driver: Any) -> list[str]:
    """What the page's console holds of errors and warnings since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def foreign_requests(driver: Any, address: str) -> list[str]:
    """Other hosts than ``address``'s of which something was asked over the network since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    hosts = {urlsplit(url).netloc for url in urls if urlsplit(url).scheme in ("http", "https", "ws", "wss")}
    return sorted(hosts - {urlsplit(address).netloc})
