"""axe-core, the accessibility checker, from the npm registry: one pinned version, taken only if its digest is
the one expected.
"""

import base64
import hashlib
import io
import os
import tarfile
import urllib.request

VERSION = "4.14.1"
INTEGRITY = "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
GRAVE = ("serious", "critical")


def script() -> str:
    """The checker's source. raises : OSError where the registry does not answer, ValueError for other content
    than expected
    """
    registry = (
        os.environ.get("NPM_CONFIG_REGISTRY")
        or os.environ.get("npm_config_registry")
        or "https://registry.npmjs.org"
    )
    with urllib.request.urlopen(
        f"{registry.rstrip('/')}/axe-core/-/axe-core-{VERSION}.tgz", timeout=60
    ) as answer:
        content = answer.read()
    digest = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if digest != INTEGRITY:
        raise ValueError(f"axe-core {VERSION} has the digest {digest}, expected {INTEGRITY}")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


def findings(page, source: str, *selectors: str) -> list[str]:
    """Serious and critical findings inside these elements, one line each."""
    page.evaluate(source)
    here = [[selector] for selector in selectors if page.locator(selector).count()]
    assert here, f"none of {selectors} is on the page"
    found = page.evaluate("include => axe.run({include}, {resultTypes: ['violations']})", here)
    return [
        f"{item['id']} ({item['impact']}): {node['html'][:160]}"
        for item in found["violations"]
        if item["impact"] in GRAVE
        for node in item["nodes"]
    ]
