"""A real Chromium without a window, driven by its own driver over plain HTTP (the W3C WebDriver protocol)."""

import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest

QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
QUIET += ("--disable-background-networking", "--disable-component-update", "--window-size=1200,1400")


class Browser:
    """One window."""

    def __init__(self, address, session):
        self.base = f"{address}/session/{session}"

    def open(self, path):
        asked(f"{self.base}/url", {"url": path.absolute().as_uri()})

    def run(self, script, *arguments):
        """What the body of a function returns; `arguments[0]` and so on are its arguments."""
        return asked(f"{self.base}/execute/sync", {"script": script, "args": arguments})

    def all(self, selector):
        """The text of every element; the driver cannot send halves of characters."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map(one => one.innerText.toWellFormed())", selector
        )

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)


@contextmanager
def browser(profile):
    """A Browser; the test is skipped where there is none."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no chromium with its chromedriver on this machine")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(found[1] for line in process.stdout if (found := re.search(r"on port (\d+)\.", line)))
        address = f"http://127.0.0.1:{port}"
        wishes = {"binary": chromium, "args": [*QUIET, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": wishes}}}
        session = asked(f"{address}/session", wanted)["sessionId"]
        try:
            yield Browser(address, session)
        finally:
            asked(f"{address}/session/{session}", method="DELETE")
    finally:
        process.terminate()
        process.communicate()


def asked(address, body=None, method=None):
    request = Request(address, None if body is None else json.dumps(body).encode(), method=method)
    request.add_header("Content-Type", "application/json")
    with urlopen(request, timeout=60) as reply:
        return json.load(reply)["value"]
