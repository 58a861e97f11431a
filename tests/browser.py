"""A real Chromium without a window, driven by its own driver over plain HTTP (the W3C WebDriver protocol)."""

import base64
import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest

QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
QUIET += ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
QUIET += ("--disable-background-networking", "--disable-component-update", "--window-size=1200,1400")


class Browser:
    """One window."""

    def __init__(self, address, session):
        self.base = f"{address}/session/{session}"

    def open(self, place):
        """A file's path, or an address."""
        asked(f"{self.base}/url", {"url": place if isinstance(place, str) else place.absolute().as_uri()})

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

    def type(self, selector, text):
        """Keys into a field; into one for files, their paths."""
        found = asked(f"{self.base}/element", {"using": "css selector", "value": selector})
        asked(f"{self.base}/element/{next(iter(found.values()))}/value", {"text": text})

    def keys(self, *pressed):
        """Keys to whatever has the focus."""
        steps = [{"type": kind, "value": key} for key in pressed for kind in ("keyDown", "keyUp")]
        asked(f"{self.base}/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": steps}]})

    def drag(self, start, end):
        """The mouse from one point (x, y) of the window to another, pressed."""
        places = [{"type": "pointerMove", "x": round(x), "y": round(y), "duration": 50} for x, y in (start, end)]
        steps = [places[0], {"type": "pointerDown", "button": 0}, places[1], {"type": "pointerUp", "button": 0}]
        asked(f"{self.base}/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": steps}]})

    def tell(self, command, **parameters):
        """A command of Chromium's own protocol: other sizes, dark colours, where downloads go."""
        asked(f"{self.base}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def complaints(self):
        """What the console has had to say since it was last asked."""
        return [line["message"] for line in asked(f"{self.base}/se/log", {"type": "browser"})]

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(asked(f"{self.base}/screenshot")))


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
        wanted = {"alwaysMatch": {"goog:chromeOptions": wishes, "goog:loggingPrefs": {"browser": "ALL"}}}
        session = asked(f"{address}/session", {"capabilities": wanted})["sessionId"]
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
