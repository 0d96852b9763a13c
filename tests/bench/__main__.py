"""Benchmarks: ratios against plain references timed in the same run, interleaved. Nothing here asserts a time.

    python -m tests.bench [NAME ...]        from the project's root; no name: all
"""

import sys

from tests.bench import autoencoder, classifier_step, cluster, oevae, severity_zero

BENCHES = {
    "autoencoder": autoencoder.main, "oevae": oevae.main, "oevae_null": oevae.null,
    "classifier_step": classifier_step.main, "severity_zero": severity_zero.main, "cluster": cluster.main,
}  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHES:
        if name not in BENCHES:
            sys.exit(f"unknown benchmark {name!r}; known: {', '.join(BENCHES)}")
        BENCHES[name]()
