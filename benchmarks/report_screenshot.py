"""Open a page in headless Chromium and photograph it: for the README's picture and for the tests of the report.

Speaks the WebDriver protocol (https://www.w3.org/TR/webdriver2/) to Debian's `chromedriver` with the standard library,
so that no browser package is needed in the environment.

    python benchmarks/report_screenshot.py results/42/report.html docs/report.png --width 1200
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def missing_browser() -> str:
    """Why no browser can be driven here; empty if one can."""
    if not any(map(shutil.which, NAMES)):
        return f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)"
    if not shutil.which("chromedriver"):
        return "no chromedriver is installed (Debian: apt-get install chromium-driver)"
    return ""


class Browser:
    """A headless Chromium. Use as a context manager; leaving it ends both processes."""

    def __init__(self, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        if reason := missing_browser():
            raise RuntimeError(reason)
        binary = next(path for path in map(shutil.which, NAMES) if path)
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._base = f"http://127.0.0.1:{self._port()}"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        if dark:
            arguments.append("--blink-settings=preferredColorScheme=0")
        capabilities = {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": binary, "args": arguments},
        }
        try:
            found = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        except BaseException:
            self._stop()
            raise
        self._session = f"/session/{found['sessionId']}"
        self.resize(width, height)

    def _port(self) -> int:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if match := re.search(r"started successfully on port (\d+)", line):
                return int(match[1])
        raise RuntimeError(f"chromedriver ended with exit code {self._driver.wait()} before it listened on a port")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {json.load(error)['value']['message']}") from error

    def _stop(self) -> None:
        self._driver.terminate()
        self._driver.wait(timeout=20)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._stop()

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        """Set the size of the page in CSS pixels (a window cannot be narrower than 500)."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
        )

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        """Send a command of the Chrome DevTools protocol."""
        return self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, page: Path) -> None:
        """Load a local file and wait until it has loaded."""
        self._call("POST", f"{self._session}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page and return its value; a promise is waited for."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector: str) -> None:
        """Click on an element as a user does: it must be visible and not covered."""
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        self._call("POST", f"{self._session}/element/{next(iter(found.values()))}/click", {})

    def press(self, keys: str) -> None:
        """Type on the focused element; "\\ue004" is Tab, "\\ue007" Enter."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", f"{self._session}/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]})

    def console(self) -> list[str]:
        """Messages of the console since the last call."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries]

    def screenshot(self, path: Path, full: bool = True) -> Path:
        """Write a PNG of the page, whole or what the window shows."""
        image = self.devtools("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": full})
        path.write_bytes(base64.b64decode(image["data"]))
        return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1400)
    parser.add_argument("--full", action="store_true", help="the whole page instead of its first screen")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    with Browser(arguments.width, arguments.height, dark=arguments.dark) as browser:
        browser.open(arguments.page)
        browser.run("return new Promise(done => setTimeout(done, 500))")  # charts draw after loading
        print(browser.screenshot(arguments.picture, full=arguments.full))


if __name__ == "__main__":
    main()
