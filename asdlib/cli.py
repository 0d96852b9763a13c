"""`asd`: the workbench from a terminal. Bad input is one sentence and exit code 2; an interrupted run exits
with 130.

    asd init DIR                                        a working folder: notebooks and studies
    asd run demo                                        a study: notebooks in order, then the report
    asd index ROOT... [--json]                          what recordings there are, and what is wrong with them
    asd download dcase2024 --root DIR                   the challenge's recordings, from their public records
    asd synth OUT --machines fan gearbox                recordings of modeled machines
    asd compare STUDY STUDY [--html FILE]               two finished studies: settings, results, is one better
    asd settings [NAME]                                 every setting with its default and meaning
    asd import FOLDER... --root DIR --machine NAME      recordings as people have them become a machine
    asd score STUDY --machine M FILE...                 score, threshold and decision of any recording
    asd accepted STUDY                                  what was accepted as normal, to list or take back
    asd export STUDY --machine M OUT                    a detector as a folder that scores by itself
    asd submit STUDY OUT                                the challenge's score and decision files
    asd evaluate OUT --truth DIR                        the official result of such files
    asd studies | verify | clean                        what lies below runs/: list it, check it, tidy it
    asd open STUDY [--notebook 05]                      its report in the browser, or a notebook in JupyterLab

Every command is a function of the parsed arguments that imports what it needs and returns an exit code, or
None for 0. Source: METHOD 8.6, 7.3.
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
from pathlib import Path

from asdlib import errors


def _init(args: argparse.Namespace) -> None:
    from asdlib.studies import home

    files = home.init(args.dir)
    print(f"wrote {len(files)} files below {args.dir}; next: cd {shlex.quote(args.dir)} && asd run demo")


def _run(args: argparse.Namespace) -> None:
    import pandas as pd

    from asdlib import io
    from asdlib.evaluation import comparison
    from asdlib.studies import config, jobs, runner, stages, sweeps
    from asdlib.studies import study as studies
    from asdlib.studies.report import claims_text, metrics_text
    from asdlib.viz import claims

    study, overrides = _asked(args)
    only = args.stages.split(",") if args.stages else []
    for name in only:
        stages.stage_of(name)
    run = studies.open_run(study, overrides, args.home)
    if args.dry_run:
        opened = sweeps.of(run)
        if all(one.found_store() for one in opened.values()):
            print("\n".join([*_about(run), jobs.text(jobs.plan(opened, only))]))
        else:
            print("\n".join([f"study {run.cfg.name}, device {run.device.type}", jobs.outline(run, only)]))
        return
    if args.name:
        path = config.save(args.name, study, overrides, args.home)
        study, overrides = args.name, []
        run = studies.open_run(study, overrides, args.home)
        print(f"wrote {path}")
    print("\n".join(_about(run)), flush=True)
    executed = runner.run_study(
        run, study, overrides, only, where=runner.Executor(args.workers, args.scheduler)
    )
    ending = []
    if run.finished(*stages.jobs(run)[-1]):
        with io.refused(run.folder / "metrics.csv", "metrics"):
            found, controls = (pd.read_csv(run.folder / name) for name in ("metrics.csv", "controls.csv"))
            pairs = comparison.all_pairs(io.scores(run.folder / "scores.parquet"), run.cfg.metrics, run.seed)
            told = claims.claims(found, controls, pairs, run.cfg.metrics, run.cfg.chosen_by)
        with io.refused(run.reports / "report.json", "a report's numbers"):
            headline = json.loads((run.reports / "report.json").read_text(encoding="utf-8"))["headline"]
        ending += [headline, claims_text(told), metrics_text(found)]
        ending.append(f"report {run.reports / 'index.html'}")
    changed = run.cfg.name.partition(studies.CHANGED)
    if changed[1] and (run.home / "runs" / changed[0] / "scores.parquet").is_file():
        ending.append(f"beside the study as it was: asd compare {changed[0]} {run.cfg.name}")
    print("\n".join([*([] if executed else ["nothing to do: everything is up to date"]), *ending]))


def _asked(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The study and the overrides that the arguments of `asd run` ask for.

    Recordings, machines and device belong to the study; with other settings it is a study of its own name,
    so that what is there stays.
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


def _about(run) -> list[str]:
    """What a run is about: device, folders, recordings, and what is left out of them."""
    from asdlib.data import index as clip_index
    from asdlib.studies import housekeeping

    lines = [f"study {run.cfg.name}, device {run.device.type}, run folder {run.folder}"]
    sizes = ", ".join(f"{n} {split} clips" for split, n in run.clips.groupby("split").size().items())
    lines.append(f"data {', '.join(map(str, run.roots))}: {len(run.machines)} machines, {sizes}")
    if housekeeping.earlier_layout(run.study_folder):
        lines.append(f"note: {run.study_folder} holds results of an earlier layout: neither used nor deleted")
    left_out = run.problems[run.problems["left_out"]]
    lines += [f"left out: {row.path}: {row.reason}" for row in left_out.head(5).itertuples()]
    lines += [f"left out: {len(left_out) - 5} more; all are in the report"] if len(left_out) > 5 else []
    return lines + [f"note: {words}" for said in clip_index.one_sided(run.clips).values() for words in said]


def _index(args: argparse.Namespace) -> None:

    from asdlib.data import decode
    from asdlib.data import index as clip_index

    data = decode.DataSettings(roots=tuple(args.roots))
    table, problems = clip_index.index(args.roots)
    table, problems = decode.inspect(table, problems, data)
    beside = clip_index.supplemental(args.roots).groupby("machine")["content"]
    summary = clip_index.summary(table, problems)
    summary["supplemental"] = {machine: rows.value_counts().to_dict() for machine, rows in beside}
    print(json.dumps(summary, indent=1) if args.json else clip_index.summary_text(summary))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _download(args: argparse.Namespace) -> None:

    from asdlib.data import download as data_download

    truth = Path(args.truth) if args.truth else None
    given = {
        "parts": _words(args.parts),
        "machines": _words(args.machines),
        "mirror": args.mirror,
        "truth": truth,
    }
    folders = data_download.download(args.dataset, Path(args.root).absolute(), **given)
    print(f"all there; next: asd run paper --data-root {shlex.join(map(str, folders))}")


def _synth(args: argparse.Namespace) -> None:

    from asdlib.data import synthetic
    from asdlib.data.synthetic import write_tree

    names = ("machines", "train_source", "train_target", "test", "seconds", "severity", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = synthetic.SyntheticSettings(**given)
    write_tree(Path(args.out), settings)
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


class _Version(argparse.Action):
    """Print the installed version, looked up only when it is asked for."""

    def __call__(self, parser, *_):
        from importlib.metadata import version

        print(f"asdlib {version('asdlib')}")
        parser.exit()


def _studies(args: argparse.Namespace) -> None:
    """List what was run below a home."""
    from asdlib.studies import home, housekeeping

    table = housekeeping.studies(home.home_folder(args.home))
    print(table.to_string(index=False) if len(table) else "no study was run here; start with `asd run smoke`")


def _open(args: argparse.Namespace) -> None:
    """Show the report of a study, or one of its notebooks, in the browser or JupyterLab."""
    import subprocess
    import webbrowser

    from asdlib.studies import home, stages
    from asdlib.studies import study as studies

    run = studies.open(_name(args.study), args.home)
    if not args.notebook:
        page = run.reports / "index.html"
        print(page)
        webbrowser.open(page.as_uri())
        return
    path = home.notebooks(args.home) / f"{stages.stage_of(args.notebook).notebook}.ipynb"
    subprocess.run([sys.executable, "-m", "jupyter", "lab", str(path)], check=False)


def _verify(args: argparse.Namespace) -> int:
    """Read every file below runs/ against its digest; 1 if one is damaged."""
    from asdlib.studies import home, housekeeping

    found = list(housekeeping.damage(home.home_folder(args.home)))
    print("\n".join(found or ["every file is as it was written"]))
    return int(bool(found))


def _clean(args: argparse.Namespace) -> None:
    """Say which artifacts nothing refers to; with --yes delete them."""
    from asdlib.studies import home, housekeeping

    folders = housekeeping.unused(home.home_folder(args.home))
    lines = [f"{path.name}: {housekeeping.size_mb(path):.1f} MB" for path in folders]
    total = sum(housekeeping.size_mb(path) for path in folders)
    print("\n".join([*lines, f"{len(folders)} artifacts that no study or variant refers to: {total:.1f} MB"]))
    if folders and args.yes:
        housekeeping.remove(folders)
        print("deleted")
    elif folders:
        print("nothing was deleted; add --yes")


HOME = (
    "folder of runs/ and reports/ (default: the current folder or its nearest parent that holds"
    " notebooks/studies, else the clone)"
)


def _option(flag: str, text: str, **keywords) -> tuple[str, dict]:
    """An argument of a command, as `add_argument` takes it; an option that takes a text is "" by default."""
    plain = flag.startswith("--") and not {"action", "default", "required"} & set(keywords)
    return flag, ({"default": ""} if plain else {}) | {"help": text} | keywords


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} came, expected a whole number, 0 or more")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="asd", description="Anomalous sound detection of machines: run studies, look at recordings."
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, action: Callable, text: str, about: str, example: str, *options: tuple):
        """A command: what it does, what it reads and writes, an example, and its arguments."""
        one = commands.add_parser(name, help=text, description=about, epilog=f"example: {example}")
        for flag, keywords in options:
            one.add_argument(flag, **keywords)
        one.set_defaults(action=action)
        return one

    home = _option("--home", HOME, metavar="DIR")
    study = "name in notebooks/studies, or path of a .toml file"
    add(
        "init",
        _init,
        "make a working folder of notebooks and studies",
        "Reads the notebooks and studies of the installed package; writes them into DIR/notebooks. All"
        " commands given in DIR use them, and make runs/ and reports/ there. Nothing is overwritten.",
        "asd init work && cd work && asd run demo",
        _option("dir", "folder to fill; made where it is missing", metavar="DIR"),
    )
    run = add(
        "run",
        _run,
        "run a study and write its report",
        "Run a study (a name in notebooks/studies, for example demo, or a .toml file): reads recordings,"
        " writes runs/STUDY and reports/STUDY. What is up to date is not computed again. With --set or"
        " --include, it is a study of its own name, and what is there stays.",
        "asd run demo --set autoencoder.epochs=5",
        _option("study", study),
        _option(
            "--data-root",
            "folders of recordings (development, additional, evaluation)",
            nargs="+",
            action="extend",
            metavar="DIR",
        ),
        _option("--machines", "only these, separated by commas"),
        _option(
            "--set",
            "change a setting, for example autoencoder.epochs=5",
            action="append",
            default=[],
            metavar="NAME=VALUE",
        ),
        _option(
            "--include",
            "TOML files whose settings hold where the study says nothing, for example runs/demo/tuned.toml",
            nargs="+",
            action="extend",
            default=[],
            metavar="FILE",
        ),
        _option("--stages", "only these notebooks, for example 01,03"),
        _option("--device", "where to compute", choices=("auto", "cpu", "cuda")),
        home,
        _option(
            "--dry-run",
            "print the jobs: what is fresh, stale or missing, why, and about how long; write nothing",
            action="store_true",
        ),
        _option(
            "--name",
            "save the study with these settings as notebooks/studies/NEW.toml, and run that",
            metavar="NEW",
        ),
    )
    where = run.add_mutually_exclusive_group()
    workers = (
        "this many jobs side by side in processes of Dask (extra: cluster); without it, one per core, or one"
        " on a GPU"
    )
    where.add_argument("--workers", type=_count, default=0, metavar="N", help=workers)
    cluster = "do the jobs on this Dask cluster, for example tcp://host:8786"
    where.add_argument("--scheduler", default="", metavar="ADDRESS", help=cluster)
    json_too = _option("--json", "machine-readable", action="store_true")
    add(
        "index",
        _index,
        "say what recordings there are and what is wrong with them",
        "Reads DCASE-style trees and prints counts, attributes, classes, durations and problems; writes"
        " nothing.",
        "asd index data/dev_data data/eval_data --json",
        _option("roots", "folder that holds <machine>/train and <machine>/test", nargs="+", metavar="ROOT"),
        json_too,
    )
    add(
        "download",
        _download,
        "fetch the challenge's recordings",
        "Reads public records (dcase2020 to dcase2026), writes their recordings into DIR, verified and"
        " unpacked. What is in place is not fetched again; an interrupted download goes on.",
        "asd download dcase2024 --root data/dcase2024 --parts dev --machines fan,valve",
        _option("dataset", "name of the challenge, for example dcase2024"),
        _option("--root", "folder to fill", required=True, metavar="DIR"),
        _option(
            "--parts", "only these, separated by commas: dev, additional (training clips for eval), eval"
        ),
        _option("--machines", "only these, separated by commas"),
        _option("--mirror", "another server with Zenodo's interface (default: Zenodo)", metavar="URL"),
        _option(
            "--truth",
            "the organizers' list of true evaluation names (eval_data_list_2024.csv)",
            metavar="FILE",
        ),
    )
    add(
        "synth",
        _synth,
        "write recordings of modeled machines",
        "Reads nothing; writes a DCASE 2024-style tree of physically modeled machines with faults to a new"
        " folder.",
        "asd synth data/toy --machines fan gearbox --severity 0.5 1 2",
        _option("out", "folder to make"),
        _option(
            "--machines",
            "modeled machines, for example fan gearbox; NAME:KIND gives one another name",
            nargs="+",
            default=None,
        ),
        _option("--train-source", "training clips, source domain", type=int, default=None),
        _option("--train-target", "training clips, target domain", type=int, default=None),
        _option("--test", "test clips per domain and label", type=int, default=None),
        _option("--seconds", "length", type=float, default=None),
        _option("--seed", "seed", type=int, default=None),
        _option(
            "--severity",
            "fault severity, 0 inaudible to 3 blatant; several are spread over the anomalies",
            type=float,
            nargs="+",
            default=None,
        ),
    )
    add(
        "compare",
        _compare,
        "say how two finished studies differ, in settings and in results",
        "Reads two studies that `asd run` has finished and compares them: settings, metrics with"
        " intervals, and a paired test where both scored the same clips. Prints text; writes nothing but"
        " the page that --html asks for.",
        "asd compare paper best --html difference.html",
        _option("study", "name of a study below runs/, or path of its run folder", nargs=2, metavar="STUDY"),
        _option("--html", "write the comparison as a page too", metavar="FILE"),
        home,
    )
    add(
        "settings",
        _settings,
        "list every setting with its default and meaning",
        "Reads the settings' own explanations and prints them; writes nothing.",
        "asd settings autoencoder",
        _option("name", "only settings whose name starts so", nargs="?", default=""),
    )
    add(
        "import",
        _import,
        "make a machine of recordings as you have them",
        "Reads recordings (any format, rate, channels and length from 1 s) from folders (normal/,"
        " test/normal, test/anomaly, loose files, the challenge's layout) or a csv (path, label, and where"
        " known split, domain, section, attributes), which governs what it names; writes DIR/NAME in the"
        " layout that studies read, by links or copies, and says what it found and left out. A machine"
        " that an import made is added to; nothing is overwritten.",
        "asd import rec/pump7 --root machines --machine pump7 && asd run own --data-root machines",
        _option("folders", "folders, single recordings, or csv files", nargs="+", metavar="FOLDER"),
        _option(
            "--root", "folder that holds machines; made where it is missing", required=True, metavar="DIR"
        ),
        _option(
            "--machine", "name of the machine, new or of an earlier import", required=True, metavar="NAME"
        ),
        _option(
            "--accept-folders",
            "these folder names say nothing: their recordings are read as if they lay one folder higher",
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME",
        ),
        _option(
            "--clip-seconds",
            "cut longer recordings into clips of this length",
            type=float,
            default=0.0,
            metavar="S",
        ),
        _option(
            "--rate", "bring other rates to this one (default: 16000)", type=int, default=16000, metavar="HZ"
        ),
        _option(
            "--channel", "channel of recordings with several (default: 0)", type=int, default=0, metavar="N"
        ),
        _option("--dry-run", "show what would become what; decode and write nothing", action="store_true"),
        _option("--copy", "copy what fits instead of linking to it", action="store_true"),
        _option("--license", "license of the recordings, for the model card", metavar="TEXT"),
    )
    finished = (
        _option("study", f"{study}; it must have been run to its end"),
        _option("--system", "whose scores (default: the system that combines most, else the study's last)"),
        _option(
            "--seed",
            "which training of a study with several seeds (default: the first)",
            type=int,
            default=None,
            metavar="N",
        ),
        _option(
            "--data-root",
            "where the study's recordings are now, if they were moved",
            nargs="+",
            action="extend",
            default=[],
            metavar="DIR",
        ),
        home,
    )
    of_machine = _option("--machine", "machine of the study (default: its only one)")
    add(
        "score",
        _score,
        "score recordings with a finished study",
        "Reads the trained weights in runs/STUDY, or of an exported detector, and recordings; writes CSV to"
        " stdout: file,score,threshold,decision,alpha,beta,classifier,remark (alpha to classifier: raw scores"
        " of these parts, empty where the system has none; remark: what is odd about the recording, such as"
        " silence), and with --explain a page per recording. Higher scores are more anomalous; above the"
        " threshold (from training clips) the decision is anomaly. A bad file is told on stderr, the others"
        " are scored, and the exit code is 1.",
        "asd score demo --machine fan new/*.wav > scores.csv; find new -name '*.flac' | asd score demo"
        " --machine fan -",
        *finished,
        _option(
            "files",
            "recordings, folders of them, or - for a list of paths on stdin",
            nargs="+",
            metavar="FILE",
        ),
        of_machine,
        _option(
            "--threshold-quantile",
            "share of normal clips that the threshold is to let pass, for example 0.99 for fewer alarms"
            " (default: metrics.decision_quantile of the study)",
            type=float,
            default=None,
            metavar="Q",
        ),
        _option(
            "--accept",
            "instead of scoring: show what changes if these recordings are references of the machine, on"
            " which nothing is trained",
            action="store_true",
        ),
        _option("--yes", "with --accept: keep them", action="store_true"),
        _option(
            "--explain",
            "write a page for each: what made the score, and the nearest training clips",
            metavar="DIR",
        ),
    )
    add(
        "accepted",
        _accepted,
        "list or take back recordings that were accepted as normal",
        "Reads what `asd score --accept` keeps in runs/STUDY/accepted and prints it; writes nothing, and with"
        " --revoke takes recordings back.",
        "asd accepted demo --revoke new/a.wav",
        _option("study", study),
        _option(
            "--revoke",
            "take these back: files as they are listed, or first digits of their digests",
            nargs="+",
            default=[],
            metavar="FILE",
        ),
        home,
    )
    add(
        "export",
        _export,
        "write a fitted detector as a folder that scores without its study",
        "Reads a finished study; writes weights, references, settings, threshold, model card and checksums of"
        " one machine and system (with all detectors behind it) to a new folder, and says its size and how"
        " long a clip takes. `asd score OUT FILE...` scores with it, on any machine, bit for bit as the study"
        " does; no recording is needed or contained.",
        "asd export demo --machine fan fan_detector && asd score fan_detector new/*.wav",
        *finished,
        _option("out", "folder to make", metavar="OUT"),
        of_machine,
    )
    add(
        "submit",
        _submit,
        "write the challenge's score and decision files",
        "Reads scores of a finished study; writes anomaly_score_... and decision_result_... of every"
        " machine to a new folder, as the official evaluator reads them, and refuses with a list what it"
        " would skip, swallow or crash on.",
        "asd submit paper submission/me_task2_1",
        *finished,
        _option("out", "folder to make", metavar="OUT"),
    )
    add(
        "evaluate",
        _evaluate,
        "the official result of score and decision files",
        "Reads a folder of challenge files (of any system) and the ground truth in the official"
        " evaluator's layout; writes the official result to stdout, with intervals. Faulty files are"
        " refused with a list.",
        "asd evaluate submission/me_task2_1 --truth dcase2024_task2_evaluator",
        _option("out", "folder of anomaly_score_... and decision_result_... files", metavar="OUT"),
        _option(
            "--truth",
            "folder that holds ground_truth_data and ground_truth_domain",
            required=True,
            metavar="DIR",
        ),
        _option(
            "--bootstrap",
            "resamples behind every interval (default: 2000)",
            type=int,
            default=2000,
            metavar="N",
        ),
        _option("--json", "machine-readable, fractions in full precision", action="store_true"),
    )
    for name, action, text, rest, more in (
        ("studies", _studies, "list the studies that were run, with age and size", "writes nothing", ()),
        ("verify", _verify, "check everything that was computed against its digests", "writes nothing", ()),
        (
            "clean",
            _clean,
            "say which artifacts no study or variant refers to",
            "writes nothing, and deletes them with --yes",
            (_option("--yes", "delete them", action="store_true"),),
        ),
    ):
        add(name, action, text, f"Reads runs/ to {text}; {rest}.", f"asd {name}", home, *more)
    add(
        "open",
        _open,
        "open the report of a study, or one of its notebooks",
        "Reads a finished study; opens its report in the browser, or a notebook in JupyterLab; writes"
        " nothing.",
        "asd open demo --notebook 05",
        _option("study", "name of a study that was run to its end"),
        _option("--notebook", "a notebook by number instead of the report", metavar="NN"),
        home,
    )
    return top


PLAIN = {"Ω": "Omega", "α": "alpha", "β": "beta", "−": "-", "—": "-", "…": "..."}


def _plain(error: UnicodeEncodeError) -> tuple[str, int]:
    """Characters that the terminal's encoding lacks, in ASCII: by PLAIN, others as escapes."""
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(x) or x.encode("ascii", "backslashreplace").decode() for x in lacking), error.end


def command() -> int:
    """`asd` as a process: `main`, and what cannot be said is lost here, as Python's end would make a
    traceback of it.
    """
    codecs.register_error("asdlib.plain", _plain)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="asdlib.plain")
    # jsonschema, which checks notebooks, would make a grammar of addresses: 3 s for what no notebook holds
    sys.modules.setdefault("rfc3987_syntax", None)
    code = main(early=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed from the start
                stream.flush()
        except OSError:  # nobody reads any more, or a disk is full
            code = code or 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def main(argv: list[str] | None = None, early: bool = False) -> int:
    """Entry point of `asd`; returns the exit code.

    early : whether the fork server of kernels starts before this process imports what it needs
    """
    top, words = parser(), sys.argv[1:] if argv is None else argv
    known = next(action.choices for action in top._actions if action.dest == "command")
    if words and not words[0].startswith("-") and words[0] not in known:
        near = errors.suggest(words[0], list(known))
        print(f"asd: unknown command {words[0]!r}{near}", file=sys.stderr)
        return 2
    args = top.parse_args(argv)
    warnings.simplefilter("ignore")
    for name in ("asyncio", "traitlets", "papermill"):  # they would report what an interrupt leaves behind
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # a polite stop is an interrupt: kernels are ended, state stays
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if hasattr(args, "home"):
            from asdlib.studies import home

            home.own_caches(args.home)
        if early and args.command == "run" and not (args.dry_run or args.workers or args.scheduler):
            from asdlib.studies import forks

            with contextlib.suppress(OSError):
                forks.warm()
        return args.action(args) or 0
    except errors.InputError as refusal:
        print(f"asd: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("asd: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:  # of no artifact, see io.wrap_os_errors
        print(
            f"asd: {error.filename or 'what is said here'}: {error.strerror or error}; free space, or send it"
            " somewhere else",
            file=sys.stderr,
        )
        return 2


BLOCK = 16  # files whose lines are printed together


def _import(args: argparse.Namespace) -> None:
    """`asd import`: see `importer.import_machine`."""
    from asdlib.data import importer

    choices = {
        "rate": args.rate,
        "channel": args.channel,
        "clip_seconds": args.clip_seconds,
        "copy": args.copy,
        "license": args.license,
        "accept": args.accept_folders,
        "dry_run": args.dry_run,
    }
    done = importer.import_machine(args.folders, args.root, args.machine, **choices)
    if args.dry_run:
        print(f"{done.table()}\n{done.text()}\nnothing was written; next: the same without --dry-run")
    else:
        print(f"{done.text()}\nnext: asd run own --data-root {args.root}")


def _score(args: argparse.Namespace) -> int:
    """`asd score`: CSV lines on stdout as they are ready, what could not be scored on stderr; 1 if there was
    any of that.

    raises : errors.InputError without a file, or where the folder of --explain exists
    """
    from asdlib.data.folders import shown
    from asdlib.models.training import memory_in_words
    from asdlib.studies import export
    from asdlib.studies import scorer as scoring_files
    from asdlib.studies import study as studies

    listed = (
        [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines()] if "-" in args.files else []
    )  # names in any encoding
    paths = [line for name in args.files for line in (listed if name == "-" else [name]) if line.strip()]
    if not paths:
        raise errors.InputError(
            "no file came, expected recordings, folders of them, or - and a list of paths on stdin"
        )
    if (args.yes and not args.accept) or (args.accept and args.explain):
        raise errors.InputError(
            "--yes came without --accept, or --accept with --explain; add --accept, or leave one out"
        )
    exported = (Path(args.study) / "manifest.json").is_file()
    if exported and (args.machine or args.system or args.seed is not None or args.explain or args.accept):
        raise errors.InputError(
            f"{args.study} is an exported detector, of one machine, system and seed and without training"
            " clips; leave out --machine, --system, --seed, --explain and --accept, or name its study"
        )
    run = None if exported else studies.open(_name(args.study), args.home, args.seed, args.data_root)
    if args.explain and Path(args.explain).exists():
        raise errors.InputError(
            f"{args.explain} exists and is never overwritten; name another folder for --explain"
        )
    problems: list[tuple[str, str, bool]] = []
    files = scoring_files.recordings(paths, problems)
    for path, words, _ in problems:
        print(f"asd: {shown(path)}: {words}", file=sys.stderr)
    with memory_in_words("scoring", "free some, or hide the GPU: CUDA_VISIBLE_DEVICES= asd score ..."):
        ready = export.load_detector(args.study) if run is None else run.scorer(args.machine, args.system)
        ready = ready if args.threshold_quantile is None else ready.with_quantile(args.threshold_quantile)
        code = (_accept if args.accept else _scored)(args, run, files, ready)
    return code or int(any(left_out for *_, left_out in problems))


def _scored(args: argparse.Namespace, run, files: list[Path], ready) -> int:
    from asdlib.studies import scorer as scoring_files

    if args.explain:
        from asdlib.studies import explain_report  # here: drawing takes a second to import

    print(ready.about(), file=sys.stderr)
    bad, odd = 0, []
    for start in range(0, len(files), BLOCK):
        table = ready(files[start : start + BLOCK])
        wrong = table["problem"] != ""
        for row in table[wrong].itertuples():
            print(f"asd: {row.file}: {row.problem}", file=sys.stderr)
        bad += int(wrong.sum())
        odd += [f"{row.file}: {row.remark}" for row in table[table["remark"] != ""].itertuples()]
        if args.explain:
            explain_report.write(run, ready, files[start : start + BLOCK], table, args.explain, start)
        table.loc[~wrong, list(scoring_files.COLUMNS)].to_csv(sys.stdout, index=False, header=start == 0)
        sys.stdout.flush()
    if odd:
        print(
            f"asd: {len(odd)} of {len(files)} files have a remark, see the last column; the first: {odd[0]}",
            file=sys.stderr,
        )
    if bad:
        print(f"asd: {bad} of {len(files)} files could not be scored", file=sys.stderr)
    return 1 if bad else 0


def _accept(args: argparse.Namespace, run, files: list[Path], ready) -> int:
    """`asd score --accept`: see `accepted.accept`."""
    from asdlib.studies import accepted

    print(accepted.accept(run, ready, files, args.yes) + ("" if args.yes else "; add --yes"))
    return 0


def _accepted(args: argparse.Namespace) -> None:
    """`asd accepted`: see `accepted.listed` and `accepted.revoke`."""
    from asdlib import io
    from asdlib.studies import accepted, home
    from asdlib.studies import study as studies

    folder = home.home_folder(args.home) / "runs" / studies.load(_name(args.study), (), args.home).name
    if args.revoke:
        with io.locked(folder):
            gone = accepted.revoke(folder, args.revoke)
        print(f"revoked: {', '.join(gone['file'])}")
    table = accepted.listed(folder)
    shown = table[["digest", "machine", "when", "file"]].assign(digest=table["digest"].str[:8])
    print(shown.to_string(index=False) if len(table) else "nothing is accepted")


def _export(args: argparse.Namespace) -> None:
    """`asd export`: see `export.write`."""
    from asdlib.studies import export
    from asdlib.studies import study as studies

    run = studies.open(_name(args.study), args.home, args.seed, args.data_root)
    told = export.write(run, run.scorer(args.machine, args.system), args.out)
    print(f"{args.out}: {told}\nnext: asd score {shlex.quote(args.out)} FILE...")


def _submit(args: argparse.Namespace) -> None:
    """`asd submit`: see `challenge.write`."""
    from asdlib import io
    from asdlib.evaluation import challenge
    from asdlib.scoring.fusion import with_composed
    from asdlib.studies import scorer as scoring_files
    from asdlib.studies import stages
    from asdlib.studies import study as studies

    run = studies.open(_name(args.study), args.home, args.seed, args.data_root)
    every, views = (run.cfg.systems, run.cfg.fusion.views), run.cfg.fusion.views
    known = list(with_composed(*every))
    system = errors.check_choice("system", args.system or scoring_files.final_system(*every), known)
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
    plain = {
        name: part.astype(object).where(part.notna(), None).to_dict("records") for name, part in rows.items()
    }
    print(json.dumps(plain, indent=1))


def _name(text: str) -> str:
    return str(Path(text).resolve()) if text.endswith(".toml") else text


if __name__ == "__main__":
    sys.exit(command())
