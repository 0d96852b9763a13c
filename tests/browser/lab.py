"""A real JupyterLab and a real Chromium for tests: started fresh, watched, ended by their process numbers.

JupyterLab listens on 127.0.0.1 only, with a port and a token of its own and with empty folders for its
settings, so that nothing of the user's is read or changed; notebooks are copies whose parameters cell names
the study and its home. A `Watch` notes every error of a page and every request that leaves the machine. Why
it waits and which flags it sets: METHOD 8.7.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required"
).split()
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    }
}
NEAR = re.compile(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:|about:|file:")


def why_not() -> str:
    """Why no browser can be driven here, or "" if one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install -e '.[dev,browser]' -c constraints.txt"
    return "" if shutil.which("chromium") else "no chromium on the path: apt-get install chromium"


@contextlib.contextmanager
def chromium():
    """A Chromium with an empty profile."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What a page did that it should not: errors of its scripts, and requests to other machines."""

    def __init__(self, page):
        self.errors, self.requests, self.off_site = [], 0, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._note(request.url))
        page.on("websocket", lambda socket: self._note(socket.url))

    def _note(self, url: str) -> None:
        self.requests += 1
        if not NEAR.match(url):
            self.off_site.append(url)

    def check(self) -> None:
        assert self.requests and not self.off_site and not self.errors, (
            self.requests,
            self.off_site[:5],
            self.errors[:5],
        )


def copied(name: str, folder: Path, study: str, home: Path) -> Path:
    """A copy of a notebook whose parameters cell names this study and home; nothing else is touched."""
    source = next(path for path in NOTEBOOKS if path.stem == name)
    book = json.loads(source.read_text(encoding="utf-8"))
    cell = next(cell for cell in book["cells"] if "parameters" in cell["metadata"].get("tags", []))
    text = "".join(cell["source"])
    for parameter, value in (("study", study), ("home", str(home))):
        text, found = re.subn(
            rf'^{parameter}: str = ".*?"', f"{parameter}: str = {json.dumps(value)}", text, flags=re.MULTILINE
        )
        assert found == 1, f"{name} does not declare {parameter}"
    cell["source"] = text
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ipynb").write_text(json.dumps(book), encoding="utf-8")
    return folder / f"{name}.ipynb"


class Lab:
    """A JupyterLab over one folder of notebooks."""

    def __init__(self, folder: Path, scratch: Path):
        self.folder, self.token = folder, secrets.token_hex(16)
        places = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTER_DATA_DIR": "data",
            "IPYTHONDIR": "ipython",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        }
        env = os.environ | {name: str(scratch / place) for name, place in places.items()}
        env |= {"JUPYTER_PLATFORM_DIRS": "1", "OMP_NUM_THREADS": "1"}
        for name, values in SETTINGS.items():
            path = scratch / "settings" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        (scratch / "runtime").mkdir(parents=True, exist_ok=True)
        words = [
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            "--ServerApp.port=0",
            f"--IdentityProvider.token={self.token}",
        ]
        words += [
            f"--ServerApp.root_dir={folder}",
            "--LabApp.extension_manager=readonly",
            "--ServerApp.terminals_enabled=False",
            "--LabApp.expose_app_in_browser=True",  # for `theme`
        ]
        self.log = open(scratch / "lab.log", "w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words], env=env, stdout=self.log, stderr=subprocess.STDOUT
        )
        self.url = self._wait(scratch)

    def _wait(self, scratch: Path) -> str:
        """The address, once the server answers."""
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(f"JupyterLab ended: {(scratch / 'lab.log').read_text()[-2000:]}")
            for path in (scratch / "runtime").glob("jpserver-*.json"):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    url = f"http://127.0.0.1:{json.loads(path.read_text())['port']}"
                    urllib.request.urlopen(f"{url}/api/status?token={self.token}", timeout=5).close()
                    return url
            time.sleep(0.1)
        raise RuntimeError("JupyterLab did not answer within a minute")

    def stop(self) -> None:
        """End the server and its kernels."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def kernels(self) -> dict[str, str]:
        """State of the kernel of each open notebook."""
        with urllib.request.urlopen(f"{self.url}/api/sessions?token={self.token}", timeout=30) as answer:
            return {session["path"]: session["kernel"]["execution_state"] for session in json.load(answer)}

    def end_kernel(self, name: str) -> None:
        """End the session of a notebook, and its kernel with it."""
        with urllib.request.urlopen(f"{self.url}/api/sessions?token={self.token}", timeout=30) as answer:
            found = [session["id"] for session in json.load(answer) if session["path"] == name]
        for number in found:
            ask = urllib.request.Request(
                f"{self.url}/api/sessions/{number}?token={self.token}", method="DELETE"
            )
            urllib.request.urlopen(ask, timeout=30).close()

    def open(self, page, name: str) -> None:
        """Open a notebook alone in the window and wait until its kernel is there."""
        page.goto(f"{self.url}/doc/tree/{name}?reset&token={self.token}")
        page.locator("#jp-main-statusbar, .jp-StatusBar-Widget").get_by_text(
            re.compile(r"\| Idle")
        ).first.wait_for(timeout=90_000)

    @staticmethod
    def theme(page, name: str) -> None:
        """Change JupyterLab's theme: Light or Dark."""
        page.evaluate(
            "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", f"JupyterLab {name}"
        )
        page.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light", arg=str(name == "Light").lower()
        )
        page.wait_for_timeout(500)

    def run_all(self, page, name: str, most_s: float = 420.0) -> dict:
        """Run > Run All Cells, wait for the end, save; the notebook as it lies on disk then. An error in a
        cell ends the wait.
        """
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        began, idle = time.monotonic(), 0
        while time.monotonic() - began < most_s:
            page.wait_for_timeout(500)
            idle = idle + 1 if self.kernels().get(name) == "idle" else 0
            if idle >= 3:
                page.keyboard.press("Control+s")
                page.wait_for_timeout(1000)
                book = json.loads((self.folder / name).read_text(encoding="utf-8"))
                code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
                if all(cell.get("execution_count") for cell in code) or errors(book):
                    return book
                idle = 0
        raise RuntimeError(f"{name} was not done after {most_s:.0f} s")


def errors(book: dict) -> list[str]:
    """Errors that cells of an executed notebook ended in."""
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", ())]
    return [
        f"{output['ename']}: {output['evalue']}" for output in outputs if output["output_type"] == "error"
    ]


def said(book: dict) -> str:
    """What the last code cell printed."""
    last = [cell for cell in book["cells"] if cell["cell_type"] == "code"][-1]
    return "".join("".join(output.get("text", "")) for output in last["outputs"])


def find(page, selector: str, most: int = 60):
    """Scroll the notebook until an element is on the screen; JupyterLab draws only what is near."""
    panel = page.locator(".jp-WindowedPanel-outer").first
    panel.hover()
    panel.evaluate("element => element.scrollTo(0, 0)")
    for _ in range(most):
        found = page.locator(selector).first
        if found.count() and found.is_visible():
            found.scroll_into_view_if_needed()
            page.wait_for_timeout(300)
            return found
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(200)
    raise AssertionError(f"no {selector} in the notebook")
