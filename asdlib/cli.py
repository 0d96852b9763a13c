"""The `asd` command line; `asd --help` lists its commands.

Each command is a function of the parsed arguments that returns an exit code, or None for 0. Commands import
what they need when they are called, so that `asd --help` is fast. Bad input is reported in one sentence with
exit code 2; an interrupted command exits with 130. Source: METHOD 8.6, 7.3.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from asdlib import errors


def _init(args: argparse.Namespace) -> None:
    from asdlib.studies import home

    files = home.init(args.dir)
    print(f"wrote {len(files)} files to {args.dir}; next: cd {shlex.quote(args.dir)} && asd run demo")


def _run(args: argparse.Namespace) -> None:
    import pandas as pd

    from asdlib import io
    from asdlib.evaluation import comparison
    from asdlib.studies import config, jobs, runner, stages, sweeps
    from asdlib.studies import study as studies
    from asdlib.studies.report import claims_text, metrics_text
    from asdlib.viz import claims

    study, overrides = _study_and_overrides(args)
    only = args.stages.split(",") if args.stages else []
    for name in only:
        stages.stage_of(name)
    run = studies.open_run(study, overrides, args.home)
    if args.dry_run:
        opened = sweeps.of(run)
        if all(each.found_store() for each in opened.values()):
            print("\n".join([*_run_summary(run), jobs.text(jobs.plan(opened, only))]))
        else:
            print("\n".join([f"study {run.cfg.name}, device {run.device.type}", jobs.outline(run, only)]))
        return
    if args.name:
        path = config.save(args.name, study, overrides, args.home)
        study, overrides = args.name, []
        run = studies.open_run(study, overrides, args.home)
        print(f"wrote {path}")
    print("\n".join(_run_summary(run)), flush=True)
    executed = runner.run_study(
        run, study, overrides, only, executor=runner.Executor(args.workers, args.scheduler)
    )
    lines = [] if executed else ["nothing to do: everything is up to date"]
    if run.finished(*stages.jobs(run)[-1]):
        with io.refused(run.folder / "metrics.csv", "metrics"):
            metrics, controls = (pd.read_csv(run.folder / name) for name in ("metrics.csv", "controls.csv"))
            pairs = comparison.all_pairs(io.scores(run.folder / "scores.parquet"), run.cfg.metrics, run.seed)
            claim_table = claims.claims(metrics, controls, pairs, run.cfg.metrics, run.cfg.chosen_by)
        with io.refused(run.reports / "report.json", "a report's numbers"):
            headline = json.loads((run.reports / "report.json").read_text(encoding="utf-8"))["headline"]
        lines += [headline, claims_text(claim_table), metrics_text(metrics)]
        lines.append(f"report {run.reports / 'index.html'}")
    original, changed, _ = run.cfg.name.partition(studies.CHANGED)
    if changed and (run.home / "runs" / original / "scores.parquet").is_file():
        lines.append(f"compare with the original study: asd compare {original} {run.cfg.name}")
    print("\n".join(lines))


def _study_and_overrides(args: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the study name and the overrides (`name=value`) given by the arguments of `asd run`.

    Recordings, machines and device may change within a study. Any other setting makes a study with its own
    name, so that existing results stay.
    """
    from asdlib.settings import digest
    from asdlib.studies import config
    from asdlib.studies import study as studies

    own, study = [], _name(args.study)
    if args.data_root:
        roots = [str(Path(root).resolve()) for root in args.data_root]
        own.append("data.roots=" + json.dumps(roots, ensure_ascii=False))
    if args.machines:
        own.append("data.machines=" + json.dumps([name.strip() for name in args.machines.split(",")]))
    if args.device:
        own.append(f"device={json.dumps(args.device)}")
    own += [text for text in args.set if text.partition("=")[0].strip() == "device"]
    given = [text for text in args.set if text not in own]
    study, own = studies.origin(study, own, args.home)
    changes = list(given)
    if args.include:
        files = [
            *config.load(study, own, args.home).include,
            *(str(Path(file).resolve()) for file in args.include),
        ]
        changes.append("include=" + json.dumps(files, ensure_ascii=False))
    before, now = (config.load(study, given, args.home) for given in (own, [*own, *changes]))
    if args.name:
        changes.append(f"name={json.dumps(args.name)}")
    elif now.name == before.name and digest(now) != digest(before):
        changes.append(f"name={json.dumps(studies.change_name(before.name, [*given, *args.include]))}")
    return study, [*own, *changes]


def _run_summary(run) -> list[str]:
    """Return lines that describe a run: study, device, folders, recordings and left-out files."""
    from asdlib.data import index as clip_index
    from asdlib.studies import housekeeping

    lines = [f"study {run.cfg.name}, device {run.device.type}, run folder {run.folder}"]
    sizes = ", ".join(f"{n} {split} clips" for split, n in run.clips.groupby("split").size().items())
    lines.append(f"data {', '.join(map(str, run.roots))}: {len(run.machines)} machines, {sizes}")
    if housekeeping.earlier_layout(run.study_folder):
        lines.append(f"note: {run.study_folder} has results in an older layout; they are ignored and kept")
    left_out = run.problems[run.problems["left_out"]]
    lines += [f"left out: {row.path}: {row.reason}" for row in left_out.head(5).itertuples()]
    lines += [f"left out: {len(left_out) - 5} more; the report lists all"] if len(left_out) > 5 else []
    return lines + [f"note: {note}" for notes in clip_index.one_sided(run.clips).values() for note in notes]


def _index(args: argparse.Namespace) -> None:
    from asdlib.data import decode
    from asdlib.data import index as clip_index

    table, problems = clip_index.index(args.roots)
    table, problems = decode.inspect(table, problems, decode.DataSettings())
    supplemental = clip_index.supplemental(args.roots).groupby("machine")["content"]
    summary = clip_index.summary(table, problems)
    summary["supplemental"] = {machine: rows.value_counts().to_dict() for machine, rows in supplemental}
    print(json.dumps(summary, indent=1) if args.json else clip_index.summary_text(summary))


def _split(text: str) -> list[str]:
    """Split a comma-separated list; "" gives an empty list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _download(args: argparse.Namespace) -> None:
    from asdlib.data import download as data_download

    folders = data_download.download(
        args.dataset,
        Path(args.root).absolute(),
        parts=_split(args.parts),
        machines=_split(args.machines),
        mirror=args.mirror,
        truth=Path(args.truth) if args.truth else None,
    )
    print(f"download complete; next: asd run paper --data-root {shlex.join(map(str, folders))}")


def _synth(args: argparse.Namespace) -> None:
    from asdlib.data import synthetic

    names = ("machines", "train_source", "train_target", "test", "seconds", "severity", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = synthetic.SyntheticSettings(**given)
    synthetic.write_tree(Path(args.out), settings)
    print(f"wrote {', '.join(settings.machines)} to {args.out}")


def _compare(args: argparse.Namespace) -> None:
    from asdlib.studies import compare as comparison

    first, second = (comparison.load(study, args.home) for study in args.study)
    print(comparison.text(first, second))
    if args.html:
        comparison.write_page(Path(args.html).resolve(), first, second)
        print(f"page {args.html}")


def _settings(args: argparse.Namespace) -> None:
    from asdlib.studies import config

    rows = [row for row in config.describe() if row[0].startswith(args.name)]
    if not rows:
        known = [row[0] for row in config.describe()]
        raise errors.InputError(f"no setting starts with {args.name!r}{errors.suggest(args.name, known)}")
    for name, default, doc in rows:
        print(f"{name} = {json.dumps(default)}\n    {doc}")


def _studies(args: argparse.Namespace) -> None:
    """`asd studies`: list the studies that were run."""
    from asdlib.studies import home, housekeeping

    table = housekeeping.studies(home.home_folder(args.home))
    print(table.to_string(index=False) if len(table) else "no study was run here; start with `asd run smoke`")


def _open(args: argparse.Namespace) -> None:
    """`asd open`: open a report in the browser, or a notebook in JupyterLab."""
    import subprocess
    import webbrowser

    from asdlib.studies import home, stages
    from asdlib.studies import study as studies

    name = studies.load(_name(args.study), (), args.home).name
    if not args.notebook:
        page = home.home_folder(args.home) / "reports" / name / "index.html"
        if not page.is_file():
            raise errors.InputError(
                f"{page}: no such report; run `asd run {name}` first, or name its folder by --home"
            )
        print(page)
        webbrowser.open(page.as_uri())
        return
    path = home.notebooks(args.home) / f"{stages.stage_of(args.notebook).notebook}.ipynb"
    subprocess.run([sys.executable, "-m", "jupyter", "lab", str(path)], check=False)


def _verify(args: argparse.Namespace) -> int:
    """`asd verify`: check every file in runs/ against its digest; return 1 if any is damaged."""
    from asdlib.studies import home, housekeeping

    found = list(housekeeping.damage(home.home_folder(args.home)))
    print("\n".join(found or ["all files are intact"]))
    return int(bool(found))


def _clean(args: argparse.Namespace) -> None:
    """`asd clean`: list artifacts that nothing refers to; delete them with --yes."""
    from asdlib.studies import home, housekeeping

    folders = housekeeping.unused(home.home_folder(args.home))
    lines = [f"{path.name}: {housekeeping.size_mb(path):.1f} MB" for path in folders]
    total = sum(housekeeping.size_mb(path) for path in folders)
    print("\n".join([*lines, f"{len(folders)} artifacts that no study or variant refers to: {total:.1f} MB"]))
    if folders and args.yes:
        housekeeping.remove(folders)
        print("deleted")
    elif folders:
        print("nothing was deleted; add --yes to delete them")


HOME = (
    "folder that holds runs/ and reports/ (default: the current folder or its nearest parent with"
    " notebooks/studies, else the clone)"
)


def _option(flag: str, text: str, **keywords) -> tuple[str, dict]:
    """Return the arguments of `add_argument`; text options default to ""."""
    plain = flag.startswith("--") and not {"action", "default", "required"} & set(keywords)
    return flag, ({"default": ""} if plain else {}) | {"help": text} | keywords


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number >= 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Build the argument parser of `asd`."""
    top = argparse.ArgumentParser(
        prog="asd", description="Anomalous sound detection for machines: run studies, score recordings."
    )
    top.add_argument("--version", action="version", version=f"asdlib {metadata.version('asdlib')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, action: Callable, text: str, about: str, example: str, *options: tuple):
        """Add a command: what it does, what it reads and writes, an example, its arguments."""
        subparser = commands.add_parser(name, help=text, description=about, epilog=f"example: {example}")
        for flag, keywords in options:
            subparser.add_argument(flag, **keywords)
        subparser.set_defaults(action=action)
        return subparser

    home = _option("--home", HOME, metavar="DIR")
    study = "name of a study in notebooks/studies, or path to a .toml file"
    add(
        "init",
        _init,
        "create a working folder with notebooks and studies",
        "Reads the notebooks and studies of the installed package and writes them to DIR/notebooks. Commands"
        " run in DIR use them and write runs/ and reports/ there. Nothing is overwritten.",
        "asd init work && cd work && asd run demo",
        _option("dir", "folder to fill; created if missing", metavar="DIR"),
    )
    run = add(
        "run",
        _run,
        "run a study and write its report",
        "Reads recordings, executes the notebooks of a study in order, and writes runs/STUDY and"
        " reports/STUDY. Up-to-date results are not recomputed. With --set or --include, the run becomes a"
        " study with its own name, and existing results are kept.",
        "asd run demo --set autoencoder.epochs=5",
        _option("study", study),
        _option(
            "--data-root",
            "folders of recordings (development, additional, evaluation)",
            nargs="+",
            action="extend",
            metavar="DIR",
        ),
        _option("--machines", "only these machines, comma-separated"),
        _option(
            "--set",
            "change a setting, for example autoencoder.epochs=5",
            action="append",
            default=[],
            metavar="NAME=VALUE",
        ),
        _option(
            "--include",
            "TOML files with defaults for settings the study does not set, for example runs/demo/tuned.toml",
            nargs="+",
            action="extend",
            default=[],
            metavar="FILE",
        ),
        _option("--stages", "only these notebooks, for example 01,03"),
        _option("--device", "device to compute on", choices=("auto", "cpu", "cuda")),
        home,
        _option(
            "--dry-run",
            "print which jobs are fresh, stale or missing, why, and an estimated time; write nothing",
            action="store_true",
        ),
        _option(
            "--name",
            "save the study with these settings as notebooks/studies/NEW.toml and run that",
            metavar="NEW",
        ),
    )
    executor = run.add_mutually_exclusive_group()
    workers = (
        "number of parallel jobs in local Dask workers (extra: cluster); default: without Dask, one job per"
        " core, or one on a GPU"
    )
    executor.add_argument("--workers", type=_count, default=0, metavar="N", help=workers)
    cluster = "run the jobs on this Dask cluster, for example tcp://host:8786"
    executor.add_argument("--scheduler", default="", metavar="ADDRESS", help=cluster)
    add(
        "index",
        _index,
        "list recordings and their problems",
        "Reads DCASE-style folders and prints counts, attributes, classes, durations and problems; writes"
        " nothing.",
        "asd index data/dev_data data/eval_data --json",
        _option("roots", "folder with <machine>/train and <machine>/test", nargs="+", metavar="ROOT"),
        _option("--json", "print JSON", action="store_true"),
    )
    add(
        "download",
        _download,
        "download the recordings of a challenge",
        "Reads public records (dcase2020 to dcase2026) and writes their recordings to DIR, verified and"
        " unpacked. Existing files are not downloaded again; an interrupted download resumes.",
        "asd download dcase2024 --root data/dcase2024 --parts dev --machines fan,valve",
        _option("dataset", "name of the challenge, for example dcase2024"),
        _option("--root", "folder to fill", required=True, metavar="DIR"),
        _option(
            "--parts", "only these parts, comma-separated: dev, additional (training clips for eval), eval"
        ),
        _option("--machines", "only these machines, comma-separated"),
        _option("--mirror", "another server with Zenodo's API (default: Zenodo)", metavar="URL"),
        _option(
            "--truth",
            "the organizers' list of true evaluation names (eval_data_list_2024.csv)",
            metavar="FILE",
        ),
    )
    add(
        "synth",
        _synth,
        "synthesize recordings of modeled machines",
        "Reads nothing; writes recordings of physically modeled machines, normal and faulty, to a new folder"
        " in the DCASE 2024 layout.",
        "asd synth data/toy --machines fan gearbox --severity 0.5 1 2",
        _option("out", "folder to create"),
        _option(
            "--machines",
            "modeled machines, for example fan gearbox; NAME:KIND names a machine of that kind",
            nargs="+",
            default=None,
        ),
        _option("--train-source", "training clips, source domain", type=int, default=None),
        _option("--train-target", "training clips, target domain", type=int, default=None),
        _option("--test", "test clips per domain and label", type=int, default=None),
        _option("--seconds", "length of a clip", type=float, default=None),
        _option("--seed", "random seed", type=int, default=None),
        _option(
            "--severity",
            "fault severity, from 0 (inaudible) to 3 (obvious); several are spread over the anomalies",
            type=float,
            nargs="+",
            default=None,
        ),
    )
    add(
        "compare",
        _compare,
        "compare the settings and results of two finished studies",
        "Reads two finished studies and prints how they differ: settings, metrics with intervals, and a"
        " paired test if both scored the same clips. Writes nothing, or a page with --html.",
        "asd compare paper best --html difference.html",
        _option("study", "name of a study in runs/, or path to its run folder", nargs=2, metavar="STUDY"),
        _option("--html", "also write the comparison to this HTML file", metavar="FILE"),
        home,
    )
    add(
        "settings",
        _settings,
        "list every setting with its default and meaning",
        "Reads the descriptions of all settings and prints them; writes nothing.",
        "asd settings autoencoder",
        _option("name", "only settings whose name starts with this", nargs="?", default=""),
    )
    add(
        "import",
        _import,
        "import your own recordings as a machine",
        "Reads recordings (any format, rate and channels; 1 s or longer) from folders (normal/, test/normal,"
        " test/anomaly, loose files, or the DCASE layout) or from a CSV file (path, label and optionally"
        " split, domain, section, attributes), which takes precedence for the files it lists. Writes DIR/NAME"
        " in the layout that studies read, by links or copies, and prints what was found and left out. A"
        " second import adds to the machine; nothing is overwritten.",
        "asd import rec/pump7 --root machines --machine pump7 && asd run own --data-root machines",
        _option("folders", "folders, single recordings, or CSV files", nargs="+", metavar="FOLDER"),
        _option("--root", "folder of machines; created if missing", required=True, metavar="DIR"),
        _option(
            "--machine", "name of the machine, new or from an earlier import", required=True, metavar="NAME"
        ),
        _option(
            "--accept-folders",
            "folder names without meaning: their recordings are read as if they were one folder higher",
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME",
        ),
        _option(
            "--clip-seconds",
            "cut longer recordings into clips of this length in seconds",
            type=float,
            default=0.0,
            metavar="S",
        ),
        _option("--rate", "resample to this rate (default: 16000)", type=int, default=16000, metavar="HZ"),
        _option(
            "--channel", "channel of multichannel recordings (default: 0)", type=int, default=0, metavar="N"
        ),
        _option("--dry-run", "show what would be imported, without decoding or writing", action="store_true"),
        _option("--copy", "copy compatible files instead of linking to them", action="store_true"),
        _option("--license", "license of the recordings, for the model card", metavar="TEXT"),
    )
    finished = (
        _option("study", f"{study}; the study must be finished"),
        _option(
            "--system", "system to use (default: the one that combines most systems, else the study's last)"
        ),
        _option(
            "--seed", "seed of a study with several (default: the first)", type=int, default=None, metavar="N"
        ),
        _option(
            "--data-root",
            "new location of the study's recordings, if they were moved",
            nargs="+",
            action="extend",
            default=[],
            metavar="DIR",
        ),
        home,
    )
    machine = _option("--machine", "machine of the study (default: its only one)")
    add(
        "score",
        _score,
        "score recordings with a finished study",
        "Reads the trained detectors of a study (or an exported detector) and recordings; writes CSV to"
        " stdout: file,score,threshold,decision,alpha,beta,classifier,remark, and with --explain a page per"
        " recording. Higher scores are more anomalous; above the threshold (set on training clips) the"
        " decision is anomaly. alpha, beta and classifier are raw component scores, empty if the system has"
        " no such component; remark notes peculiarities such as silence. Files that cannot be scored are"
        " reported on stderr, and the exit code is 1.",
        "asd score demo --machine fan new/*.wav > scores.csv; find new -name '*.flac' | asd score demo"
        " --machine fan -",
        *finished,
        _option(
            "files",
            "recordings, folders of recordings, or - to read paths from stdin",
            nargs="+",
            metavar="FILE",
        ),
        machine,
        _option(
            "--threshold-quantile",
            "quantile of normal training scores for the threshold, for example 0.99 for fewer alarms"
            " (default: metrics.decision_quantile of the study)",
            type=float,
            default=None,
            metavar="Q",
        ),
        _option(
            "--accept",
            "instead of scoring, show what changes if these recordings become normal references of the"
            " machine; nothing is retrained",
            action="store_true",
        ),
        _option("--yes", "with --accept: keep them as references", action="store_true"),
        _option(
            "--explain",
            "write a page per recording: contributions to its score, and the nearest training clips",
            metavar="DIR",
        ),
    )
    add(
        "accepted",
        _accepted,
        "list or revoke recordings accepted as normal",
        "Reads the recordings kept by `asd score --accept --yes` in runs/STUDY/accepted and lists them;"
        " writes nothing, except with --revoke, which removes recordings from the list.",
        "asd accepted demo --revoke new/a.wav",
        _option("study", study),
        _option(
            "--revoke",
            "recordings to revoke: file names as listed, or leading digits of their digests",
            nargs="+",
            default=[],
            metavar="FILE",
        ),
        home,
    )
    add(
        "export",
        _export,
        "export a fitted detector to a folder that works without the study",
        "Reads a finished study; writes weights, references, settings, threshold, model card and checksums of"
        " one machine and system to a new folder, and prints its size and the time per clip. `asd score OUT"
        " FILE...` uses it on any computer, with scores bit-identical to the study's. It contains no"
        " recordings and needs none.",
        "asd export demo --machine fan fan_detector && asd score fan_detector new/*.wav",
        *finished,
        _option("out", "folder to create", metavar="OUT"),
        machine,
    )
    add(
        "submit",
        _submit,
        "write the challenge's score and decision files",
        "Reads the scores of a finished study; writes anomaly_score_... and decision_result_... of every"
        " machine to a new folder, in the format of the official evaluator. If the evaluator would skip or"
        " crash on anything, lists it and writes nothing.",
        "asd submit paper submission/me_task2_1",
        *finished,
        _option("out", "folder to create", metavar="OUT"),
    )
    add(
        "evaluate",
        _evaluate,
        "compute the official result of score and decision files",
        "Reads a folder of challenge files (of any system) and the ground truth in the layout of the official"
        " evaluator; writes the official result with intervals to stdout. Faulty files are listed and"
        " rejected.",
        "asd evaluate submission/me_task2_1 --truth dcase2024_task2_evaluator",
        _option("out", "folder of anomaly_score_... and decision_result_... files", metavar="OUT"),
        _option(
            "--truth", "folder with ground_truth_data and ground_truth_domain", required=True, metavar="DIR"
        ),
        _option(
            "--bootstrap",
            "bootstrap resamples per interval (default: 2000)",
            type=int,
            default=2000,
            metavar="N",
        ),
        _option("--json", "print JSON, with fractions in full precision", action="store_true"),
    )
    for name, action, text, written, *options in (
        ("studies", _studies, "list the studies that were run, with age and size", "writes nothing"),
        ("verify", _verify, "check all results against their digests", "writes nothing"),
        (
            "clean",
            _clean,
            "list artifacts that no study or variant refers to",
            "writes nothing; deletes them with --yes",
            _option("--yes", "delete them", action="store_true"),
        ),
    ):
        add(name, action, text, f"Reads runs/ to {text}; {written}.", f"asd {name}", home, *options)
    add(
        "open",
        _open,
        "open the report of a study, or one of its notebooks",
        "Reads a finished study and opens its report in the browser, or a notebook in JupyterLab; writes"
        " nothing.",
        "asd open demo --notebook 05",
        _option("study", "name of a finished study"),
        _option("--notebook", "number of a notebook to open instead of the report", metavar="NN"),
        home,
    )
    return top


PLAIN = {"Ω": "Omega", "α": "alpha", "β": "beta", "−": "-", "—": "-", "…": "..."}


def _plain(error: UnicodeEncodeError) -> tuple[str, int]:
    """Codec error handler: replace unencodable characters by ASCII (PLAIN), or else by escapes."""
    chars = error.object[error.start : error.end]
    return "".join(PLAIN.get(x) or x.encode("ascii", "backslashreplace").decode() for x in chars), error.end


def command() -> int:
    """Console-script entry point: run `main`, then flush; a failing flush must not end in a traceback."""
    codecs.register_error("asdlib.plain", _plain)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="asdlib.plain")
    # jsonschema (validates notebooks) would build a URI grammar with it, which takes 3 s and is never used
    sys.modules.setdefault("rfc3987_syntax", None)
    code = main(early=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # None: closed by the caller
                stream.flush()
        except OSError:  # the reader is gone, or the disk is full
            code = code or 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def main(argv: list[str] | None = None, early: bool = False) -> int:
    """Run a command and return its exit code.

    early : start the fork server of the kernels first, so that it imports in parallel to this process
    """
    top, given = parser(), sys.argv[1:] if argv is None else argv
    known = next(action.choices for action in top._actions if action.dest == "command")
    if given and not given[0].startswith("-") and given[0] not in known:
        print(f"asd: unknown command {given[0]!r}{errors.suggest(given[0], list(known))}", file=sys.stderr)
        return 2
    args = top.parse_args(argv)
    warnings.simplefilter("ignore")
    for name in ("asyncio", "traitlets", "papermill"):  # they log errors after an interrupt
        logging.getLogger(name).setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    try:
        if hasattr(args, "home"):
            from asdlib.studies import home

            home.own_caches(args.home)
        if early and args.command == "run" and not (args.dry_run or args.workers or args.scheduler):
            from asdlib.studies import forks

            with contextlib.suppress(OSError):
                forks.warm()
        return args.action(args) or 0
    except errors.InputError as error:
        print(f"asd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("asd: interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:  # on stdout or a user's file; artifacts: see io.wrap_os_errors
        print(
            f"asd: cannot write {error.filename or 'the output'}: {error.strerror or error}; free disk space,"
            " or write it somewhere else",
            file=sys.stderr,
        )
        return 2


BLOCK = 16  # files scored before their lines are printed


def _import(args: argparse.Namespace) -> None:
    """`asd import`: see `importer.import_machine`."""
    from asdlib.data import importer

    done = importer.import_machine(
        args.folders,
        args.root,
        args.machine,
        rate=args.rate,
        channel=args.channel,
        clip_seconds=args.clip_seconds,
        copy=args.copy,
        license=args.license,
        accept=args.accept_folders,
        dry_run=args.dry_run,
    )
    if args.dry_run:
        print(f"{done.table()}\n{done.text()}\nnothing was written; next: run again without --dry-run")
    else:
        print(f"{done.text()}\nnext: asd run own --data-root {args.root}")


def _score(args: argparse.Namespace) -> int:
    """`asd score`: stream CSV lines to stdout and problems to stderr; return 1 if any file was not scored.

    raises : errors.InputError if no files are given, options conflict, or the folder of --explain exists
    """
    from asdlib.data.folders import shown
    from asdlib.models.training import memory_in_words
    from asdlib.studies import export
    from asdlib.studies import scorer as scoring_files
    from asdlib.studies import study as studies

    paths = []
    for name in args.files:  # stdin in bytes: file names may have any encoding
        lines = sys.stdin.buffer.read().splitlines() if name == "-" else [name]
        paths += [line for line in map(os.fsdecode, lines) if line.strip()]
    if not paths:
        raise errors.InputError(
            "no files given; expected recordings, folders of recordings, or - with a list of paths on stdin"
        )
    if args.yes and not args.accept:
        raise errors.InputError("--yes given without --accept; add --accept or leave out --yes")
    if args.accept and args.explain:
        raise errors.InputError("--accept given with --explain; leave one of them out")
    exported = (Path(args.study) / "manifest.json").is_file()
    if exported and (args.machine or args.system or args.seed is not None or args.explain or args.accept):
        raise errors.InputError(
            f"{args.study} is an exported detector, with one machine, system and seed and no training clips;"
            " leave out --machine, --system, --seed, --explain and --accept, or give the study instead"
        )
    run = None if exported else studies.open(_name(args.study), args.home, args.seed, args.data_root)
    if args.explain and Path(args.explain).exists():
        raise errors.InputError(
            f"{args.explain} exists and is never overwritten; choose another folder for --explain"
        )
    problems: list[tuple[str, str, bool]] = []
    files = scoring_files.recordings(paths, problems)
    for path, problem, _ in problems:
        print(f"asd: {shown(path)}: {problem}", file=sys.stderr)
    with memory_in_words("scoring", "free some, or hide the GPU: CUDA_VISIBLE_DEVICES= asd score ..."):
        scorer = export.load_detector(args.study) if run is None else run.scorer(args.machine, args.system)
        if args.threshold_quantile is not None:
            scorer = scorer.with_quantile(args.threshold_quantile)
        code = (_accept if args.accept else _print_scores)(args, run, files, scorer)
    return code or int(any(left_out for *_, left_out in problems))


def _print_scores(args: argparse.Namespace, run, files: list[Path], scorer) -> int:
    """Print the scores of recordings as CSV, block by block; return 1 if any could not be scored."""
    from asdlib.studies import scorer as scoring_files

    if args.explain:
        from asdlib.studies import explain_report  # only here: matplotlib takes a second to import

    print(scorer.about(), file=sys.stderr)
    failures, remarks = 0, []
    for start in range(0, len(files), BLOCK):
        table = scorer(files[start : start + BLOCK])
        failed = table["problem"] != ""
        for row in table[failed].itertuples():
            print(f"asd: {row.file}: {row.problem}", file=sys.stderr)
        failures += int(failed.sum())
        remarks += [f"{row.file}: {row.remark}" for row in table[table["remark"] != ""].itertuples()]
        if args.explain:
            explain_report.write(run, scorer, files[start : start + BLOCK], table, args.explain, start)
        table.loc[~failed, list(scoring_files.COLUMNS)].to_csv(sys.stdout, index=False, header=start == 0)
        sys.stdout.flush()
    if remarks:
        print(
            f"asd: {len(remarks)} of {len(files)} files have a remark (last column), first: {remarks[0]}",
            file=sys.stderr,
        )
    if failures:
        print(f"asd: {failures} of {len(files)} files could not be scored", file=sys.stderr)
    return int(failures > 0)


def _accept(args: argparse.Namespace, run, files: list[Path], scorer) -> int:
    """`asd score --accept`: see `accepted.accept`."""
    from asdlib.studies import accepted

    print(accepted.accept(run, scorer, files, args.yes) + ("" if args.yes else "; add --yes to keep them"))
    return 0


def _accepted(args: argparse.Namespace) -> None:
    """`asd accepted`: see `accepted.listed` and `accepted.revoke`."""
    from asdlib import io
    from asdlib.studies import accepted, home
    from asdlib.studies import study as studies

    folder = home.home_folder(args.home) / "runs" / studies.load(_name(args.study), (), args.home).name
    if args.revoke:
        with io.locked(folder):
            revoked = accepted.revoke(folder, args.revoke)
        print(f"revoked: {', '.join(revoked['file'])}")
    table = accepted.listed(folder)
    short = table[["digest", "machine", "when", "file"]].assign(digest=table["digest"].str[:8])
    print(short.to_string(index=False) if len(table) else "no recordings are accepted")


def _export(args: argparse.Namespace) -> None:
    """`asd export`: see `export.write`."""
    from asdlib.studies import export
    from asdlib.studies import study as studies

    run = studies.open(_name(args.study), args.home, args.seed, args.data_root)
    summary = export.write(run, run.scorer(args.machine, args.system), args.out)
    print(f"{args.out}: {summary}\nnext: asd score {shlex.quote(args.out)} FILE...")


def _submit(args: argparse.Namespace) -> None:
    """`asd submit`: see `challenge.write`."""
    from asdlib import io
    from asdlib.evaluation import challenge
    from asdlib.studies import scorer as scoring_files
    from asdlib.studies import stages
    from asdlib.studies import study as studies

    run = studies.open(_name(args.study), args.home, args.seed, args.data_root)
    systems, views = run.cfg.systems, run.cfg.fusion.views
    system = scoring_files.final_system(systems, views, args.system)
    scoring_files.refuse_stale(run, stages.jobs(run), scoring_files.detectors_of(system, views=views))
    scores = io.scores(run.folder / "scores.parquet")
    files = challenge.write(args.out, run.clips, run.problems, scores, run.cfg.metrics, system, run.seed)
    print(f"{args.out}: {len(files)} files of {len(run.machines)} machines, system {system}, seed {run.seed}")


def _evaluate(args: argparse.Namespace) -> None:
    """`asd evaluate`: see `challenge.evaluate`."""
    from asdlib.evaluation import challenge, metrics
    from asdlib.viz import tables as viz_tables

    table, quality = challenge.evaluate(
        args.out, args.truth, metrics.MetricsSettings(bootstrap=args.bootstrap)
    )
    if not args.json:
        print("\n".join([challenge.result_text(table, quality), *viz_tables.reasons(table)]))
        return
    rows = {"metrics": table.drop(columns=["component", "seed"]), "decisions": quality}
    print(
        json.dumps(
            {
                name: part.astype(object).where(part.notna(), None).to_dict("records")
                for name, part in rows.items()
            },
            indent=1,
        )
    )


def _name(text: str) -> str:
    """A study's name unchanged, or the absolute path of its TOML file."""
    return str(Path(text).resolve()) if text.endswith(".toml") else text


if __name__ == "__main__":
    sys.exit(command())
