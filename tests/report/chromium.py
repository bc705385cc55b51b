"""Drives an installed Chromium over its debugging protocol: just what the browser test needs."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    "--window-size=1400,1000",
)


def find() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


class Tab:
    """One page. `evaluate` runs JavaScript in it and returns the JSON value (promises are awaited)."""

    def __init__(self, socket):
        self.socket = socket
        self.sent = 0
        self.requests: list[str] = []  # every URL the page asked for
        self.problems: list[str] = []  # uncaught errors and console errors

    async def call(self, method: str, **params) -> dict:
        self.sent += 1
        await self.socket.send_json({"id": self.sent, "method": method, "params": params})
        while True:
            message = json.loads((await self.socket.receive()).data)
            if message.get("id") == self.sent:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            event, details = message.get("method"), message.get("params", {})
            if event == "Network.requestWillBeSent":
                self.requests.append(details["request"]["url"])
            elif event == "Runtime.exceptionThrown":
                self.problems.append(str(details["exceptionDetails"]))
            elif event == "Log.entryAdded" and details["entry"]["level"] == "error":
                self.problems.append(details["entry"]["text"])

    async def evaluate(self, script: str):
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    async def until(self, script: str, seconds: float = 20.0):
        """Wait until the script's value is truthy."""
        deadline = time.monotonic() + seconds
        while not (value := await self.evaluate(script)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{script} did not become true; the page says {self.problems}")
            await asyncio.sleep(0.05)
        return value

    async def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    async def screenshot(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


def browse(url: str, visit, folder: Path):
    """Open `url` in a fresh profile under `folder`, await `visit(tab)`, and return what it returns."""
    profile = folder / "profile"
    process = subprocess.Popen(
        [find(), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        return asyncio.run(_visit(url, visit, profile))
    finally:
        process.terminate()
        process.wait(10)


async def _visit(url: str, visit, profile: Path):
    import aiohttp

    port_file, deadline = profile / "DevToolsActivePort", time.monotonic() + 30
    while not (port_file.exists() and port_file.read_text().strip()):
        if time.monotonic() > deadline:
            raise TimeoutError("the browser did not start")
        await asyncio.sleep(0.05)
    port = port_file.read_text().split()[0]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            target = next(one for one in await answer.json() if one["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            for domain in ("Page", "Runtime", "Network", "Log"):
                await tab.call(f"{domain}.enable")
            await tab.call("Page.navigate", url=url)
            return await visit(tab)
