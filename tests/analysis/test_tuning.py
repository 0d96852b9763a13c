"""The tuner's models: a tick equals the study's own scores and scikit-learn, the sweep equals ticks, rules
see what they may see.
"""

import dataclasses
import time

import numpy as np
import oracle
import pandas as pd
import pytest
import traitlets

from asdlib import errors, schemas
from asdlib.analysis import tuning
from asdlib.analysis.tuning import Choice
from asdlib.evaluation import metrics
from asdlib.models import oevae
from asdlib.scoring import fusion, thresholds
from asdlib.studies import config
from asdlib.viz.widgets.tuner_model import Tuner

COMPONENTS = ("alpha", "alpha_k1", "alpha_k5", "alpha_kl", "beta", "beta_k1", "beta_k2", "beta_k4")
CFG = config.StudySettings(
    name="tried",
    oevae=oevae.OEVAESettings(k_scales=(1.0, 5.0)),
    metrics=metrics.MetricsSettings(bootstrap=20),
)


def scored(machines=3, seeds=(0,), classifier=True, shift=0.4, step=0.25, labels=True, source=25, target=6):
    """Scores in steps, so that many are tied; machines of different sizes; anomalies and target clips lie
    higher.
    """
    rng, rows = np.random.default_rng(5), []
    systems = [("oevae", name) for name in COMPONENTS] + [("classifier", "score")] * classifier
    for m in range(machines):
        plan = [("train", "source", "normal", source), ("train", "target", "normal", target)]
        plan += [("test", d, kind, 8 + m) for d in ("source", "target") for kind in ("normal", "anomaly")]
        for (split, domain, kind, n), (number, (system, component)) in [
            (a, b) for a in plan for b in enumerate(systems)
        ]:
            for seed in seeds:
                score = (
                    rng.normal(size=n) * (1 + number)
                    + (kind == "anomaly")
                    + shift * (domain == "target")
                    + 5 * number
                )
                facts = {"system": system, "component": component, "seed": seed, "machine": f"m{m}"}
                facts |= {"section": "00", "split": split, "domain": domain}
                facts["label"] = kind if split == "train" or labels else "unlabeled"
                clip = f"m{m}/{split}/{domain}_{kind}_"
                steps = np.round(score / step) * step
                rows += [facts | {"clip": f"{clip}{i:03}", "score": value} for i, value in enumerate(steps)]
    return pd.DataFrame(rows)[list(schemas.SCORE_COLUMNS)]


def study_scores(scores, cfg, choice, found):
    """The score table as the study would make it with these settings: other components under the names of the
    chosen ones.
    """
    names = {
        "alpha": {"5 (trained)": "alpha", "1 (refitted)": "alpha_k1", "5 (refitted)": "alpha_k5"}[
            choice.prior
        ],
        "beta": f"beta_k{choice.k}",
    }
    if choice.k == cfg.oevae.neighbors:
        names["beta"] = "beta"
    own = [
        scores[(scores["system"] == "oevae") & (scores["component"] == name)].assign(component=part)
        for part, name in names.items()
    ]
    settings = cfg.fusion.replace(omega=choice.omega, eta=choice.eta)
    table = fusion.systems(pd.concat([*own, scores[scores["system"] == "classifier"]]), settings)
    several = table["seed"].nunique() > 1
    table = fusion.seed_ensembles(table, settings.normalize) if several else table
    return table, (lambda system: system + fusion.SEEDS if several else system)


@pytest.mark.parametrize(
    "mode, seeds",
    [
        *((mode, (0,)) for mode in fusion.MODES),
        ("zscore", (0, 3)),
        *(
            pytest.param(mode, (0, 3), marks=pytest.mark.exhaustive)
            for mode in fusion.MODES
            if mode != "zscore"
        ),
    ],
)
def test_a_tick_is_the_score_of_the_study_and_equals_scikit_learn(mode, seeds):
    cfg = CFG.replace(fusion=fusion.FusionSettings(normalize=mode), seeds=seeds)
    scores, rng = scored(seeds=seeds), np.random.default_rng(1)
    found = tuning.from_scores(scores, cfg)
    for _ in range(3 if mode == "zscore" else 1):
        omega, eta = (float(value) for value in rng.choice([0.0, 1.0, *rng.random(4)], 2))
        choice = Choice(omega, eta, int(rng.choice(list(found.betas))), str(rng.choice(list(found.alphas))))
        table, name = study_scores(scores, cfg, choice, found)
        for system in tuning.SYSTEMS:
            tick = found.point(system, choice)
            final = found.final(system, choice).test
            for i, machine in enumerate(found.machines):
                rows = table[
                    (table["system"] == name(system))
                    & (table["component"] == "score")
                    & (table["machine"] == machine)
                ]
                rows = rows[rows["split"] == "test"].sort_values("clip")
                np.testing.assert_allclose(final[i, : len(rows)], rows["score"], rtol=1e-12, atol=1e-12)
                slow = oracle.official_metrics(
                    list(final[i, : len(rows)]), list(rows["domain"]), list(rows["label"])
                )
                np.testing.assert_allclose(tick[i], [*slow, oracle.harmonic_mean(slow)], rtol=0, atol=1e-12)
            every = [value for row in tick[:-1] for value in row[:3]]
            assert tick[-1, 3] == pytest.approx(oracle.harmonic_mean(every), abs=1e-12)


def test_ties_are_there_and_count_half():
    found = tuning.from_scores(scored(step=2.0), CFG)
    final = found.final("oevae", Choice(0.0, 0.5, 1, "5 (trained)")).test[0]
    assert len(np.unique(final)) < len(final) / 2


@pytest.fixture(scope="module")
def tuner():
    found = tuning.from_scores(scored(), CFG)
    return Tuner(found, tuning.make(found, 0))


def test_the_sweep_holds_what_a_tick_computes(tuner):
    found, points, rng = tuner.parts, tuner.sweep, np.random.default_rng(2)
    for _ in range(20):
        slot, p, j, w = (int(rng.integers(n)) for n in points.areas.shape[:4])
        eta = float(points.etas[slot - 1]) if slot else 0.5
        choice = Choice(float(points.omegas[w]), eta, list(found.betas)[j], list(found.alphas)[p])
        np.testing.assert_allclose(
            found.table(points.areas[slot, p, j, w]),
            found.point("ensemble" if slot else "oevae", choice),
            atol=1e-12,
        )
        if w % tuning.EVERY == 0:
            slow = tuning.domain_mismatch(found, found.final("ensemble" if slot else "oevae", choice).train)
            assert points.mismatch[slot, p, j, w // tuning.EVERY] == pytest.approx(float(slow), abs=1e-12)


def test_curves_pass_through_the_point_and_lie_in_their_bands(tuner):
    for eta in (0.5, 0.37):  # in the sweep, and made at once
        tuner.choose(Choice(0.4, eta, 2, "1 (refitted)"))
        curves, (omegas, bands) = tuner.curves(), tuner.bands()
        at = int(np.argmin(abs(tuner.sweep.omegas - 0.4)))
        np.testing.assert_allclose(curves[at], tuner.table(), atol=1e-12)
        assert (bands[:, 0] <= curves[:: tuning.EVERY] + 0.1).all() and (
            bands[:, 1] >= curves[:: tuning.EVERY] - 0.1
        ).all()
        np.testing.assert_allclose(tuner.interval(), bands[int(np.argmin(abs(omegas - 0.4)))], atol=1e-12)
    values, eta = tuner.map()
    assert eta == pytest.approx(0.4) and values.shape == (3, 3, 51)


def test_bands_are_those_of_the_resamples_written_out(tuner):
    found, test = tuner.parts, tuner.parts.final("oevae", tuner.parts.default).test
    weights = tuning.resamples(found, 0)
    boots = tuning.replicates(found, test, weights)
    for b in (0, 7):
        for i in range(len(found.machines)):
            n = len(found.domain[i])
            slow = oracle.resampled_metrics(
                list(test[i, :n]), list(found.domain[i]), list(found.label[i]), weights[i][b]
            )
            np.testing.assert_allclose(boots[b, i, :3], slow, atol=1e-12)
    usual = tuning.default_replicates(found, "ensemble", weights)
    band = tuning.band(found, test[None], weights, usual)[0]
    np.testing.assert_allclose(band[:2], np.quantile(boots, [0.025, 0.975], axis=0))
    np.testing.assert_allclose(band[2:], np.quantile(boots - usual, [0.025, 0.975], axis=0))  # paired


def test_gains_are_zero_at_the_default_and_decisions_are_counted_one_by_one(tuner):
    for system in tuner.parts.systems:
        tuner.system = system
        tuner.choose(tuner.parts.default)
        np.testing.assert_allclose(tuner.interval(gain=True), 0, atol=1e-12)
    tuner.omega = 0.2
    values = tuner.table()[-1] - tuner.parts.point(tuner.system, tuner.parts.default)[-1]
    gained = tuner.gained((tuner.system, tuner.choice), (tuner.system, tuner.parts.default))
    np.testing.assert_allclose(gained[:, 0], values)
    np.testing.assert_allclose(gained[:, 1:].T, tuner.interval(gain=True)[:, -1], atol=1e-12)
    parts, final = tuner.parts, tuner.parts.final(tuner.system, tuner.choice)
    for i, row in enumerate(tuning.counts(parts, tuner.system, tuner.choice)):
        train = final.train[i, : len(parts.target[i])]
        limit = thresholds.gamma_threshold(train, parts.settings.decision_quantile).value
        slow = dict.fromkeys([("anomaly", True), ("anomaly", False), ("normal", True), ("normal", False)], 0)
        for score, label in zip(final.test[i], parts.label[i]):
            slow[label, bool(score > limit)] += 1
        assert row.tolist() == list(slow.values()) and row.sum() == len(parts.label[i])


def test_domain_mismatch_is_the_auc_counted_pair_by_pair():
    found = tuning.from_scores(scored(machines=2), CFG)
    train = found.final("oevae", found.default).train
    slow = [
        abs(2 * oracle.pair_auc(train[i, : len(t)][~t], train[i, : len(t)][t]) - 1)
        for i, t in enumerate(found.target)
    ]
    assert float(tuning.domain_mismatch(found, train)) == pytest.approx(np.mean(slow), abs=1e-12)


def test_the_default_point_is_the_row_of_metrics_csv():
    scores = scored(machines=2, seeds=(0, 1))
    cfg = CFG.replace(seeds=(0, 1))
    table = fusion.seed_ensembles(fusion.systems(scores, cfg.fusion), cfg.fusion.normalize)
    own = metrics.table(table[table["system"] == "ensemble_seeds"], cfg.metrics, 0)
    found = tuning.from_scores(scores, cfg)
    np.testing.assert_allclose(found.point("ensemble", found.default).ravel(), own["value"], atol=1e-12)


# ---------------------------------------------------------------- rules


def test_the_training_rule_never_sees_a_test_clip():
    """Other test scores and other labels: the same choice. This is what makes it usable for a claim."""
    scores = scored(shift=2.0, target=20, source=60)
    other = scores.copy()
    test = other["split"] == "test"
    other.loc[test, "score"] = np.random.default_rng(0).normal(size=test.sum())
    chosen = []
    for table in (scores, other):
        found = tuning.from_scores(table, CFG)
        rules = tuning.rules(found, tuning.make(found, 0), 0)
        chosen.append(rules)
    assert (
        chosen[0]["training"] == chosen[1]["training"]
        and chosen[0]["oracle"].choice != chosen[1]["oracle"].choice
    )


def test_the_training_rule_leaves_the_default_only_for_more_than_chance():
    kept = tuning.from_scores(scored(shift=0.0, target=3), CFG)
    rule = tuning.rules(kept, tuning.make(kept, 0), 0)["training"]
    assert rule.choice == kept.default and "not significant" in rule.why
    scores = scored(shift=0.0, target=25, source=60)  # one part alone tells the domains apart
    scores.loc[(scores["component"] == "alpha") & (scores["domain"] == "target"), "score"] += 6
    moved = tuning.from_scores(scores, CFG)
    rule = tuning.rules(moved, tuning.make(moved, 0), 0)["training"]
    assert rule.choice != moved.default and (
        rule.choice.omega < 0.5 or rule.choice.prior != moved.default.prior or rule.choice.eta < 0.5
    )


def test_the_oracle_is_the_best_point_there_is(tuner):
    best = tuner.rules["oracle"].choice
    reached = tuner.parts.point("ensemble", best)[-1, 3]
    assert reached == pytest.approx(np.nanmax(tuning.quality(tuner.parts, tuner.sweep)[1:]), abs=1e-12)
    assert "oracle, not a claim" in tuning.named("oracle")


def test_what_a_rule_gains_is_paired(tuner):
    gained = tuner.reached(tuner.rules["oracle"].choice)
    np.testing.assert_array_equal(tuner.reached(tuner.parts.default)[1], 0)
    assert (
        gained[1, 0] == pytest.approx(gained[0, 0] - tuner.reached(tuner.parts.default)[0, 0], abs=1e-12)
        and gained[1, 1] <= gained[1, 2]
    )


# ---------------------------------------------------------------- what is missing


def test_a_study_without_classifier_tunes_oevae_alone():
    found = tuning.from_scores(scored(classifier=False), CFG)
    points = tuning.make(found, 0)
    tuner = Tuner(found, points)
    assert found.systems == ("oevae",) and points.areas.shape[0] == 1 and len(points.etas) == 0
    assert (
        tuner.rules["oracle"].choice.eta == CFG.fusion.eta
        and np.isfinite(tuner.table()).all()
        and tuner.map()[1] is None
    )


def test_a_study_without_oevae_is_refused():
    scores = scored()
    with pytest.raises(errors.InputError, match=r"study tried has no scores of oevae.*add oevae to systems"):
        tuning.from_scores(scores[scores["system"] == "classifier"], CFG)


def test_refits_and_neighbors_that_were_not_computed_are_not_offered():
    scores = scored()
    found = tuning.from_scores(scores[~scores["component"].isin(["alpha_k1", "alpha_k5", "beta_k4"])], CFG)
    assert list(found.alphas) == ["5 (trained)"] and list(found.betas) == [1, 2]


def test_without_labels_only_the_oracle_is_missing():
    found = tuning.from_scores(scored(labels=False), CFG)
    tuner = Tuner(found, tuning.make(found, 0))
    assert (
        np.isnan(tuner.table()).all()
        and tuner.rules["oracle"].choice is None
        and tuner.rules["training"].choice
        and np.isnan(tuner.validity)
    )


def test_seeds_that_scored_other_clips_are_refused():
    scores = scored(seeds=(0, 1))
    with pytest.raises(errors.InputError, match="the seeds did not score the same clips"):
        tuning.from_scores(scores[~((scores["seed"] == 1) & (scores["clip"] == scores["clip"].iloc[0]))], CFG)


# ---------------------------------------------------------------- the tuner


def test_values_out_of_range_are_refused(tuner):
    with pytest.raises(traitlets.TraitError):
        tuner.omega = 1.5
    with pytest.raises(errors.InputError, match=r"k: got 3, expected one of 1, 2, 4"):
        tuner.k = 3
    with pytest.raises(errors.InputError, match="prior: got '7', expected one of"):
        tuner.prior = "7"


def test_the_file_can_be_included_by_any_study(tuner, tmp_path):
    tuner.choose(Choice(0.62, 0.35, 2, "1 (refitted)"))
    tuner.save(tmp_path / "tuned.toml")
    text = (tmp_path / "tuned.toml").read_text()
    assert text.startswith("# chosen by hand, with test labels visible: not a claim; written by a person\n")
    cfg = config.load("demo", [f"include=['{tmp_path}/tuned.toml']"])
    assert (cfg.fusion.omega, cfg.fusion.eta, cfg.oevae.neighbors, cfg.oevae.condition.k_scale) == (
        0.62,
        0.35,
        2,
        1.0,
    )
    assert cfg.chosen_by == "hand"


def test_the_file_keeps_how_its_point_was_chosen(tuner):
    """Each rule by its name; the default of a study whose own settings were an oracle's is no default."""
    for name, rule in tuner.rules.items():
        tuner.choose(rule.choice)
        first = next(each.name for each in tuner.rules.values() if each.choice == rule.choice)
        assert tuner.chosen_by() == first and f'\nchosen_by = "{first}"' in tuner.toml(), name
    assert tuner.rules["oracle"].choice != tuner.parts.default
    tuner.choose(tuner.rules["oracle"].choice)
    assert tuner.chosen_by() == "oracle"
    again = Tuner(dataclasses.replace(tuner.parts, chosen_by="oracle"), tuner.sweep)
    assert again.chosen_by() == "oracle"  # at its default


def test_a_batch_run_keeps_what_a_person_wrote(tuner, tmp_path):
    path = tmp_path / "tuned.toml"
    tuner.choose(Choice(0.62, 0.35, 2, "1 (refitted)"))
    assert "is included by this study" in tuner.keep(path, (str(path),)) and not path.exists()
    assert (
        "contains the fixed default" in tuner.keep(path)
        and "omega = 0.5" in path.read_text()
        and "written by a batch run" in path.read_text()
    )
    assert tuner.choice == Choice(0.62, 0.35, 2, "1 (refitted)")
    tuner.save(path)
    mine = path.read_text()
    assert "was written by a person and was not changed" in tuner.keep(path) and path.read_text() == mine


def test_the_sweep_is_found_again_and_made_anew_for_other_scores(tmp_path):
    scores = scored(machines=2)
    found = tuning.from_scores(scores, CFG)
    first = tuning.open_sweep(tmp_path, found, 0)
    again = tuning.open_sweep(tmp_path, found, 0)
    assert (
        all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again, strict=True))
        and len(list(tmp_path.iterdir())) == 1
    )
    scores.loc[0, "score"] += 1
    tuning.open_sweep(tmp_path, tuning.from_scores(scores, CFG), 0)
    assert len(list(tmp_path.iterdir())) == 2


def test_one_tick_is_cheap():
    """Prints what a tick costs at the size of the challenge; fails only where it is far out (a busy machine
    is slow).
    """
    rng = np.random.default_rng(0)
    domain, label = (
        np.repeat(["source", "target", "source", "target"], 50),
        np.repeat(["normal", "anomaly"], 100),
    )
    split = tuning.Split(rng.normal(size=(7, 1, 200)), rng.normal(size=(7, 1, 1000)))
    target = np.arange(1000) >= 990
    kinds = np.tile(tuning.roc.kinds(domain, label)[:, None], (1, 7, 1))
    names = tuple(f"m{i}" for i in range(7))
    default = Choice(0.5, 0.5, 1, "5")
    found = tuning.Parts(
        names,
        {"5": split},
        {1: split},
        split,
        [domain] * 7,
        [label] * 7,
        [target] * 7,
        kinds,
        "zscore",
        CFG.metrics,
        default,
        {"5": 5.0},
    )
    spent = []
    for omega in np.linspace(0, 1, 60):
        began = time.perf_counter()
        found.point("ensemble", default._replace(omega=float(omega)))
        spent.append(1e3 * (time.perf_counter() - began))
    print(f"one tick of 7 machines × 200 clips: {np.median(spent):.2f} ms")
    assert np.median(spent) < 20


def test_a_rule_that_points_the_wrong_way_is_not_recommended(tuner):
    before = tuner.validity
    for value, words in (
        (-0.85, "do not use it"),
        (0.8, "leads to better detection"),
        (float("nan"), "cannot be validated"),
    ):
        tuner.validity = value
        assert words in tuner.verdict()
    tuner.validity = before
