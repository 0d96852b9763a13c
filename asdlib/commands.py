"""The commands for one's own machine: import recordings, score files, write and evaluate challenge files.

    asd import FOLDER... --root DIR --machine NAME     recordings as people have them become a machine
    asd score STUDY --machine M FILE...                score, threshold and decision of any recording
    asd submit STUDY OUT                               the challenge's score and decision files
    asd evaluate OUT --truth DIR                       the official result of such files

Every function takes the parsed arguments and returns an exit code, or None for 0. Source: METHOD 8.6, 7.3.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path

from asdlib import errors, io
from asdlib.data import folders, importer
from asdlib.evaluation import challenge
from asdlib.models.training import memory_in_words
from asdlib.scoring.fusion import with_composed
from asdlib.studies import config, explain_report
from asdlib.studies import scorer as scoring_files
from asdlib.studies import study as studies
from asdlib.viz import tables as viz_tables

BLOCK = 16  # files whose lines are printed together


def import_(args: argparse.Namespace) -> None:
    """`asd import`: see `importer.import_machine`."""

    choices = {"rate": args.rate, "channel": args.channel, "clip_seconds": args.clip_seconds, "copy": args.copy, "licence": args.licence,
               "accept": args.accept_folders}  # fmt: skip
    done = importer.import_machine(args.folders, args.root, args.machine, **choices)
    print(done.text())
    print(f"next: asd run own --data-root {args.root}")


def score(args: argparse.Namespace) -> int:
    """`asd score`: CSV lines on stdout as they are ready, what could not be scored on stderr; 1 if there was any of that.

    raises : errors.Refusal without a file, or where the folder of --explain exists
    """

    listed = [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines()] if "-" in args.files else []  # names in any encoding
    paths = [line for name in args.files for line in (listed if name == "-" else [name]) if line.strip()]
    if not paths:
        raise errors.Refusal("no file came, expected recordings, folders of them, or - and a list of paths on stdin")
    run = studies.open(_name(args.study), args.home, args.seed)
    if args.explain and Path(args.explain).exists():
        raise errors.Refusal(f"{args.explain} exists and is never overwritten; name another folder for --explain")
    problems: list[tuple[str, str, bool]] = []
    files = scoring_files.recordings(paths, problems)
    for path, words, _ in problems:
        print(f"asd: {folders.shown(path)}: {words}", file=sys.stderr)
    with memory_in_words("scoring", "free some, or hide the GPU: CUDA_VISIBLE_DEVICES= asd score ..."):
        code = _scored(args, run, files, run.scorer(args.machine, args.system))
    return code or int(any(left_out for *_, left_out in problems))


def _scored(args: argparse.Namespace, run, files: list[Path], ready) -> int:

    print(f"{ready.system} of {ready.name}, threshold by {ready.threshold.method}, seed {ready.seed}", file=sys.stderr)
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
        print(f"asd: {len(odd)} of {len(files)} files have a remark, see the last column; the first: {odd[0]}", file=sys.stderr)
    if bad:
        print(f"asd: {bad} of {len(files)} files could not be scored", file=sys.stderr)
    return 1 if bad else 0


def submit(args: argparse.Namespace) -> None:
    """`asd submit`: see `challenge.write`."""

    run = studies.open(_name(args.study), args.home, args.seed)
    known = list(with_composed(run.cfg.systems))
    system = errors.known_name("system", args.system or scoring_files.final_system(run.cfg.systems), known)
    scoring_files.refuse_stale(run, studies.jobs(run), scoring_files.detectors_of(system))
    scores = io.scores(run.folder / "scores.parquet")
    files = challenge.write(args.out, run.clips, run.problems, scores, run.cfg.metrics, system, run.seed)
    print(f"{args.out}: {len(files)} files of {len(run.machines)} machines, system {system}, seed {run.seed}")


def evaluate(args: argparse.Namespace) -> None:
    """`asd evaluate`: see `challenge.evaluate`."""

    table, quality = challenge.evaluate(args.out, args.truth, config.Metrics(bootstrap=args.bootstrap))
    if not args.json:
        print("\n".join([challenge.result_text(table, quality), *viz_tables.reasons(table)]))
        return
    rows = {"metrics": table.drop(columns=["component", "seed"]), "decisions": quality}
    print(json.dumps({name: [{key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
                             for row in part.to_dict("records")] for name, part in rows.items()}, indent=1))  # fmt: skip


def _name(text: str) -> str:
    return str(Path(text).resolve()) if text.endswith(".toml") else text


def add(commands) -> None:
    """Add these commands to the command line. commands : what `ArgumentParser.add_subparsers` returns."""
    bring = commands.add_parser("import", help="make a machine of recordings as you have them",
        description="Reads recordings (any format, rate, channels and length from 1 s) from folders (normal/, test/normal, test/anomaly, loose "
        "files, the challenge's layout) or a csv (path, label, and where known split, domain, section, attributes), which governs what it names; "
        "writes DIR/NAME in the layout that studies read, by links or copies, and says what it found and left out. Nothing is overwritten.",
        epilog="example: asd import rec/pump7 --root machines --machine pump7 && asd run own --data-root machines")  # fmt: skip
    bring.add_argument("folders", nargs="+", metavar="FOLDER", help="folders, single recordings, or csv files")
    bring.add_argument("--root", required=True, metavar="DIR", help="folder that holds machines; made where it is missing")
    bring.add_argument("--machine", required=True, metavar="NAME", help="name of the new machine")
    bring.add_argument("--accept-folders", nargs="+", action="extend", default=[], metavar="NAME",
        help="these folder names say nothing: their recordings are read as if they lay one folder higher")  # fmt: skip
    bring.add_argument("--clip-seconds", type=float, default=0.0, metavar="S", help="cut longer recordings into clips of this length")
    bring.add_argument("--rate", type=int, default=16000, metavar="HZ", help="bring other rates to this one (default: 16000)")
    bring.add_argument("--channel", type=int, default=0, metavar="N", help="channel of recordings with several (default: 0)")
    bring.add_argument("--copy", action="store_true", help="copy what fits instead of linking to it")
    bring.add_argument("--licence", default="", metavar="TEXT", help="licence of the recordings, for the model card")
    bring.set_defaults(action=import_)

    ask = commands.add_parser("score", help="score recordings with a finished study",
        description="Reads the trained weights in runs/STUDY and recordings; writes CSV to stdout: "
        "file,score,threshold,decision,alpha,beta,classifier,remark (alpha to classifier: raw scores of these parts, empty where the system has "
        "none; remark: what is odd about the recording, such as silence), and with --explain a page per recording. Higher scores are more "
        "anomalous; above the threshold (from training clips) the decision is "
        "anomaly. A bad file is told on stderr, the others are scored, and the exit code is 1.",
        epilog="example: asd score demo --machine fan new/*.wav > scores.csv; find new -name '*.flac' | asd score demo --machine fan -")  # fmt: skip
    _common(ask)
    ask.add_argument("files", nargs="+", metavar="FILE", help="recordings, folders of them, or - for a list of paths on stdin")
    ask.add_argument("--machine", default="", help="machine of the study that the recordings are of (default: its only one)")
    ask.add_argument("--explain", default="", metavar="DIR", help="write a page for each: what made the score, and the nearest training clips")
    ask.set_defaults(action=score)

    hand_in = commands.add_parser("submit", help="write the challenge's score and decision files",
        description="Reads scores of a finished study; writes anomaly_score_... and decision_result_... of every machine to a new folder, as the "
        "official evaluator reads them, and refuses with a list what it would skip, swallow or crash on.",
        epilog="example: asd submit paper submission/me_task2_1")  # fmt: skip
    _common(hand_in)
    hand_in.add_argument("out", metavar="OUT", help="folder to make")
    hand_in.set_defaults(action=submit)

    judge = commands.add_parser("evaluate", help="the official result of score and decision files",
        description="Reads a folder of challenge files (of any system) and the ground truth in the official evaluator's layout; writes the official "
        "result to stdout, with intervals. Faulty files are refused with a list.",
        epilog="example: asd evaluate submission/me_task2_1 --truth dcase2024_task2_evaluator")  # fmt: skip
    judge.add_argument("out", metavar="OUT", help="folder of anomaly_score_... and decision_result_... files")
    judge.add_argument("--truth", required=True, metavar="DIR", help="folder that holds ground_truth_data and ground_truth_domain")
    judge.add_argument("--bootstrap", type=int, default=2000, metavar="N", help="resamples behind every interval (default: 2000)")
    judge.add_argument("--json", action="store_true", help="machine-readable, fractions in full precision")
    judge.set_defaults(action=evaluate)


def _common(parser: argparse.ArgumentParser) -> None:
    """Arguments of the commands that read a finished study."""
    parser.add_argument("study", help="name in notebooks/studies, or path of a .toml file; it must have been run to its end")
    parser.add_argument("--system", default="", help="whose scores (default: the system that combines most, else the study's last)")
    parser.add_argument("--seed", type=int, metavar="N", help="which training of a study with several seeds (default: the first)")
    parser.add_argument("--home", default="", metavar="DIR", help="folder of runs/ and reports/ (default: the clone)")
