"""The study engine: settings files, artifacts by key, jobs, notebooks, runners, results, reports."""

import sys

if "jsonschema" not in sys.modules:
    # where it is installed (with JupyterLab), jsonschema has it compile a grammar of addresses, which is a
    # quarter of all imports (3 of 11 s) and serves no schema of notebooks
    sys.modules["rfc3987_syntax"] = None
    import jsonschema  # noqa: F401

    del sys.modules["rfc3987_syntax"]
