"""Fixtures of the browser tests: a finished smoke study, one JupyterLab, one Chromium, a folder for
screenshots.

pytest -m browser                     where Chromium and playwright are; else the tests are skipped with the
reason
ASDLIB_BROWSER=required               what is missing is a failure (CI)
ASDLIB_SMOKE=DIR                      where the finished study `smoke` lies, or is left for the next time
ASDLIB_BROWSER_SHOTS=DIR              where screenshots stay; else in the folder of the test run
"""

import os
import shutil
from pathlib import Path

import axe
import lab as labs
import pytest


@pytest.fixture(scope="session")
def driven():
    """Skips, or in CI fails, where no browser can be driven."""
    reason = labs.why_not()
    if reason and os.environ.get("ASDLIB_BROWSER") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def home(driven, smoke, tmp_path_factory):
    """The home with the finished smoke study; a copy, for notebooks write into it."""
    folder = tmp_path_factory.mktemp("home") / "home"
    shutil.copytree(smoke, folder, symlinks=True)
    return folder


@pytest.fixture(scope="session")
def chromium(driven):
    with labs.chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def server(home, tmp_path_factory):
    """A JupyterLab over copies of all notebooks, which name the finished study."""
    folder = tmp_path_factory.mktemp("notebooks")
    for path in labs.NOTEBOOKS:
        labs.copied(path.stem, folder, "smoke", home)
    found = labs.Lab(folder, tmp_path_factory.mktemp("lab"))
    yield found
    found.stop()


@pytest.fixture(scope="session")
def shots(tmp_path_factory):
    """Folder for screenshots."""
    folder = Path(os.environ.get("ASDLIB_BROWSER_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(chromium):
    """A window, watched: at the end of a test there was no error in it and no request to another machine."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    found = context.new_page()
    watch = labs.Watch(found)
    yield found
    context.close()
    watch.check()


@pytest.fixture(scope="session")
def checker(driven):
    """Source of axe-core."""
    try:
        return axe.script()
    except OSError as error:
        (pytest.fail if os.environ.get("ASDLIB_BROWSER") == "required" else pytest.skip)(
            f"the npm registry does not answer: {error}"
        )
