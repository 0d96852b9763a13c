"""Benchmarks, from the project's root:

    python -m tests.bench [NAME ...] [--device cpu|cuda] [--write]

Without a name all stages are measured, each beside a plain reference in the same run and beside the limit of
the hardware (how: `tests.bench.measure`). `--write` puts the table into reports/rates.md. Some minutes
on two cores; a machine with nothing else to do gives the better figures. The names in CHECKS are long
experiments on synthetic machines, and run only when asked for. By themselves, with arguments of their own:

    python -m tests.bench study    where every second of a study goes
    python -m tests.bench gpu      what is to be measured on a GPU, in one run
"""

import argparse
import datetime
import importlib
import importlib.util
import sys
from pathlib import Path

import threadpoolctl
import torch

from asdlib import errors, io
from asdlib.studies import artifacts, home, model_card
from asdlib.viz import tables
from tests.bench import data, gpu, jobs, measure, null, quality, search, steps, study

STAGES = {
    "decode": data.decode,
    "features": data.feature,
    "oevae_step": steps.oevae_step,
    "classifier_step": steps.classifier_step,
    "autoencoder_step": steps.autoencoder_step,
    "embedding": steps.embedding,
    "knn": search.knn,
    "kmeans": search.kmeans,
    "metrics_grid": search.metrics_grid,
    "report": jobs.page,
    "kernel": jobs.kernel,
    "layouts": gpu.layouts,
}
CHECKS = {"null": null.main, "quality": quality.main}
ALONE = {"study": study.main, "gpu": gpu.main}  # with their own arguments
PAGE = home.CLONE / "reports" / "rates.md"

if importlib.util.find_spec("asdlib.analysis.tuning"):  # the tuner's arithmetic
    STAGES["tick"] = lambda device: search.tick(
        device, importlib.import_module("asdlib.analysis.tuning").from_scores
    )


def text(found: list[measure.Measure], device: torch.device) -> str:
    """The page."""
    known = ("python", "torch", "numpy", "scikit-learn", "commit")
    versions = ", ".join(
        f"{name} {version}" for name, version in artifacts.versions().items() if name in known
    )
    where = f"{model_card.hardware(device)}; {measure.machine(device)}"
    how = (
        "Rates of one run of `python -m tests.bench`, on one thread of a CPU. The plain way was timed in"
        " turns with ours; its column is the median of the rounds' ratios with the smallest and the largest."
        " `limit` is what this machine could do by its measured matrix-product and copy rates, `of limit` how"
        " much of it is reached. `peak MB` is memory beyond what was there before."
    )
    head = f"# Benchmarks\n\n{datetime.date.today().isoformat()}, {where}\n\n{versions}\n\n{how}"
    return f"{head}\n\n{tables.markdown_table(measure.table(found))}\n"


def main() -> int:
    """Measure what was asked for."""
    if sys.argv[1:2] and sys.argv[1] in ALONE:
        try:
            return ALONE[sys.argv[1]](sys.argv[2:])
        except errors.InputError as refusal:
            print(refusal, file=sys.stderr)
            return 2
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(STAGES)}; or one of {', '.join(CHECKS)}"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(home.CLONE)}")
    given = parser.parse_args()
    try:
        for name in given.names:
            errors.check_choice("benchmark", name, [*STAGES, *CHECKS])
    except errors.InputError as refusal:
        print(refusal, file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    device, found = torch.device(given.device), []
    with threadpoolctl.threadpool_limits(1):
        for name in given.names or STAGES:
            if name in CHECKS:
                CHECKS[name]()
            else:
                found += STAGES[name](device)
        if found:
            page = text(found, device)
            print(page)
            if given.write:
                Path(PAGE).parent.mkdir(exist_ok=True)
                io.write_text(PAGE, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
