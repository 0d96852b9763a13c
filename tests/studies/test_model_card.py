"""The model card says what was measured and what is not known; a license is never made up."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from asdlib import schemas
from asdlib.data import index
from asdlib.evaluation import metrics
from asdlib.studies import model_card, report


def study(context, table, synthetic=False):
    """What the card asks of a run, with made-up scores: (run, findings)."""

    class Run:
        cfg, store, device, problems = (
            context.cfg,
            context.store,
            context.device,
            index.problem_table([("a.wav", "empty file", True)]),
        )
        roots = [Path(table["path"].iloc[0]).parents[2]]

        seed, withdrawn = 0, ()

        def load_table(self, *_):
            return pd.DataFrame()

        def unseen(self, scores):
            return scores["split"] == "train"

        def measure(self, scores):
            small = self.cfg.metrics
            return metrics.table(scores, small, 0), metrics.controls(self.clips, scores, small, 0)

        def timings(self):
            return pd.DataFrame(
                [("03_baseline", "pump", 0, 12.4, "310"), ("09_report", "", "", 3.0, "")],
                columns=["stage", "machine", "seed", "seconds", "peak_memory_mb"],
            )

    run = Run()
    small = context.cfg.metrics.replace(bootstrap=40, shuffles=10)
    changes = {"name": "made | up", "metrics": small, "systems": ("baseline_mse",)}
    run.cfg = context.cfg.model_copy(update=changes)  # unchecked: no study may have this name
    run.clips, run.machines, run.synthetic = table, sorted(set(table["machine"])), synthetic
    facts = table[["machine", "section", "split", "domain", "label", "clip"]]
    score = np.random.default_rng(0).normal(size=len(table)) + 3 * (table["label"] == "anomaly")
    scores = facts.assign(system="baseline_mse", component="score", score=score, seed=0)[
        list(schemas.SCORE_COLUMNS)
    ]
    return run, report.findings(run, scores)


def test_the_card_holds_the_numbers_of_the_study(context):
    run, found = study(context, context.store.clips)
    table, decisions, card = found.table, found.decisions, model_card.text(run, found)
    assert f"**{found.headline}**" in card
    assert "| not compared: no multires on labeled test clips |" in card
    omega = table[(table["machine"] == "all") & (table["metric"] == "omega")].iloc[0]
    assert f"{omega['value']:.3f} [{omega['low']:.3f}, {omega['high']:.3f}]" in card
    row = decisions[(decisions["machine"] == "saw") & (decisions["domain"] == "all")].iloc[0]
    assert re.search(rf"\| baseline_mse \| saw \| {row['threshold']:.3f} \| gamma|empirical \| 13 \|", card)
    assert "| pump | 10 | 3 | 8 | 8 | 0 | 1 to 1.25 | none |" in card and "Left out: 1;" in card
    assert "Few training clips of pump (13) and saw (13)" in card
    assert "About 10% of normal recordings are expected above the threshold" in card
    (alarms,) = found.alarms.itertuples(index=False)
    assert "| baseline_mse | 0.100 | 0." in card and f"{alarms[-2]} | {alarms[-1]} |" in card
    told = f"baseline_mse: share of false alarms on fresh normal clips {alarms.verdict}, nominal 0.100."
    assert (told in card) == (alarms.verdict != "as expected")
    assert "peak memory of training 310 MB" in card and "| 03\\_baseline |".replace("\\", "") in card
    assert "not stated" in card and "nan" not in card.lower().replace("finance", "")


def test_a_machine_without_test_clips_has_a_threshold_and_no_invented_number(context):
    bare = context.store.clips
    bare = bare[~((bare["machine"] == "pump") & (bare["split"] == "test"))].reset_index(drop=True)
    run, found = study(context, bare)
    decisions = found.decisions
    mine = decisions[decisions["machine"] == "pump"]
    assert (
        len(mine) == 3
        and mine["threshold"].notna().all()
        and mine[["precision", "recall", "f1"]].isna().all(axis=None)
    )
    assert (mine[["normal", "anomaly"]] == 0).all(axis=None) and math.isfinite(mine["train_above"].iloc[0])
    card = model_card.text(run, found)
    assert "No labeled test clips of pump: the quality of scores and thresholds cannot be measured." in card
    assert re.search(r"\| baseline_mse \| pump \| -?\d+\.\d{3} \|", card)
    none = bare[bare["split"] == "train"].reset_index(drop=True)
    run, found = study(context, none)
    card = model_card.text(run, found)
    assert found.table["value"].isna().all() and len(found.decisions) == 6
    assert "No labeled test clips of pump and saw" in card


def test_a_study_tuned_on_test_labels_claims_nothing(context):
    run, _ = study(context, context.store.clips)
    run.cfg = run.cfg.model_copy(update={"chosen_by": "oracle"})
    facts = context.store.clips[["machine", "section", "split", "domain", "label", "clip"]]
    score = np.arange(len(facts)) * 1e-3 + (facts["label"] == "anomaly")
    scores = facts.assign(system="baseline_mse", component="score", score=score, seed=0)
    card = model_card.text(run, report.findings(run, scores[list(schemas.SCORE_COLUMNS)]))
    assert "**No claim: ω, η and k were chosen on the test labels (oracle)" in card
    assert "chosen on the test labels (oracle): the results support no claim." in card
    assert "| baseline_mse | no claim: " in card and "is above chance" not in card


@pytest.mark.parametrize(
    "stated, file, machines, synthetic, said",
    [
        ("CC0", "MIT", ["fan"], False, "CC0 (as the study's settings state)"),
        ("", "MIT\nmore", ["fan"], False, "MIT (root/LICENSE.txt)"),
        (
            "",
            "",
            ["fan", "Scanner"],
            False,
            "not stated; recordings of DCASE 2024 Task 2, whose names these machines carry, are CC BY 4.0",
        ),
        ("", "", ["fan", "pump7"], False, "not stated"),
        ("", "", ["fan"], True, "none: the recordings were computed by this project's models of machines"),
    ],
)
def test_a_license_is_stated_found_or_not_known(stated, file, machines, synthetic, said, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    if file:
        (root / "LICENSE.txt").write_text(file)
    assert model_card.license([root], machines, stated, synthetic) == said


def test_an_imported_license_reaches_the_card(tmp_path):
    (tmp_path / "pump").mkdir()
    (tmp_path / "pump" / "LICENSE.txt").write_text("CC BY 4.0\n")
    assert model_card.license([tmp_path], ["pump"], "", False) == "CC BY 4.0 (pump/LICENSE.txt)"
