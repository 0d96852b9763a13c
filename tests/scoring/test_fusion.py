"""Scales from training scores, weights, and the rule that no test clip moves another's score."""

import itertools

import numpy as np
import oracle
import pandas as pd
import pytest
from scipy import special, stats

from asdlib import errors, schemas
from asdlib.evaluation import metrics, roc
from asdlib.scoring import fusion, thresholds

TRAINS = {
    "gamma": np.random.default_rng(0).gamma(3.0, 2.0, 400) - 7,
    "normal": np.random.default_rng(1).normal(50, 1e-3, 400),
    "left_tail": -np.random.default_rng(2).lognormal(size=400),
    "ties": np.repeat([1.0, 2.0, 3.0, 7.0], [5, 3, 9, 1]),
    "equal": np.full(30, 0.1),
    "single": np.array([4.0]),
}


def scored(
    parts=(("oevae", "alpha"), ("oevae", "beta")), machines=("fan", "valve"), seeds=(0, 1), train=40, test=15
):
    rng, rows = np.random.default_rng(0), []
    for machine in machines:
        for split, label, n in (
            ("train", "normal", train),
            ("test", "normal", test),
            ("test", "anomaly", test),
        ):
            for i in range(n):
                clip = (
                    machine,
                    "00",
                    split,
                    "source" if i % 3 else "target",
                    label,
                    f"{machine}/{split}/{label}_{i:03d}.wav",
                )
                for seed in seeds:
                    for unit, (system, component) in enumerate(
                        parts
                    ):  # parts of quite different units and places
                        score = 10.0**unit * (rng.gamma(4.0) + 2 * (label == "anomaly") + 5 * seed) - 3 * unit
                        rows.append((system, component, *clip, score, seed))
    return pd.DataFrame(rows, columns=list(schemas.SCORE_COLUMNS))


def equal_weights(parts=(("oevae", "alpha"), ("oevae", "beta"))):
    return {part: 1 / len(parts) for part in parts}


# ---------------------------------------------------------------- scales


@pytest.mark.parametrize("mode", list(fusion.MODES))
@pytest.mark.parametrize("name", list(TRAINS))
def test_contract_of_every_scale(mode, name):
    train = TRAINS[name]
    scale = fusion.fit_scale(train, mode)
    width = max(train.std(), 1e-3)
    test = np.sort(
        np.concatenate([train, np.linspace(train.min() - 30 * width, train.max() + 300 * width, 500)])
    )
    scaled = scale(test)
    assert scaled.shape == test.shape and scaled.dtype == np.float64 and np.isfinite(scaled).all()
    assert (np.diff(scaled) >= 0).all()
    alone = [scale(test[i : i + 1])[0] for i in range(0, len(test), 7)]
    np.testing.assert_array_equal(scaled[::7], alone)
    np.testing.assert_array_equal(scale(test[:12].reshape(3, 4)), scaled[:12].reshape(3, 4))
    assert np.ndim(scale(1.5)) == 0
    if mode != "rank":  # far scores keep their order; the rank scale says that it does not
        far = train.max() + width * np.array([1.0, 10.0, 100.0, 1e3, 1e4])
        assert (np.diff(scale(far)) > 0).all()


def test_zscore_is_the_plain_one():
    train, test = TRAINS["gamma"], np.array([-3.0, 0.0, 9.0])
    np.testing.assert_allclose(
        fusion.fit_scale(train, "zscore")(test), (test - train.mean()) / train.std(), rtol=1e-14
    )
    assert fusion.fit_scale(TRAINS["equal"], "zscore")(0.6) == pytest.approx(0.5)  # a std of 0 counts as 1


def test_none_changes_nothing():
    np.testing.assert_array_equal(fusion.fit_scale(TRAINS["ties"], "none")([3.0, -1.0]), [3.0, -1.0])


def test_rank_is_the_share_below_with_ties_half():
    train = TRAINS["ties"]
    test = np.array([0.0, 1.0, 1.5, 2.0, 3.0, 7.0, 8.0])
    np.testing.assert_allclose(
        fusion.fit_scale(train, "rank")(test), [oracle.mid_rank(x, train) for x in test], rtol=1e-14
    )
    assert fusion.fit_scale(train, "rank")(train).mean() == pytest.approx(0.5)


def test_gamma_is_minus_log_survival_and_goes_on_smoothly():
    scale = fusion.fit_scale(TRAINS["gamma"], "gamma")
    assert isinstance(scale, thresholds.Gamma)
    inside = np.linspace(TRAINS["gamma"].min() + 0.1, TRAINS["gamma"].max() + 200, 300)
    truth = stats.gamma(scale.shape, scale.loc, scale.scale)
    inside = inside[truth.sf(inside) > 1e-99]
    np.testing.assert_allclose(scale(inside), -np.log(truth.sf(inside)), rtol=1e-9, atol=1e-15)
    edge = scale.loc + scale.scale * special.gammainccinv(scale.shape, 1e-100)
    assert scale(edge) == pytest.approx(100 * np.log(10), rel=1e-9)
    step = 1e-3 * scale.scale
    before, after = (
        np.diff(scale(edge + step * np.array([-2.0, -1.0]))),
        np.diff(scale(edge + step * np.array([1.0, 2.0]))),
    )
    assert after == pytest.approx(before, rel=1e-4)  # the straight line leaves along the tangent
    assert truth.cdf(inside[-1]) == 1.0  # where the cdf itself has lost the order


def test_gamma_of_its_own_kind_of_scores_is_exponential():
    fresh = np.random.default_rng(9).gamma(3.0, 2.0, 20000) - 7
    scaled = fusion.fit_scale(np.random.default_rng(8).gamma(3.0, 2.0, 5000) - 7, "gamma")(fresh)
    assert scaled.mean() == pytest.approx(1.0, abs=0.05) and scaled.std() == pytest.approx(1.0, abs=0.07)


def test_gamma_falls_back_where_there_is_no_shape():
    for name in ("equal", "single", "left_tail"):
        assert isinstance(fusion.fit_scale(TRAINS[name], "gamma"), thresholds.ZScore)


def test_gamma_does_not_depend_on_the_unit():
    train = TRAINS["gamma"]
    plain, scaled = fusion.fit_scale(train, "gamma"), fusion.fit_scale(1e6 * train - 4, "gamma")
    np.testing.assert_allclose(plain(train), scaled(1e6 * train - 4), rtol=1e-6)


@pytest.mark.parametrize("mode", ["zscore", "none", "gamma"])
def test_a_scale_leaves_the_auc_of_one_part_alone(mode):
    train, rng = TRAINS["gamma"], np.random.default_rng(3)
    normal, anomaly = rng.gamma(3.0, 2.0, 50) - 7, rng.gamma(3.0, 2.0, 50) * 3 - 7
    scale = fusion.fit_scale(train, mode)
    clips, label = np.r_[normal, anomaly], np.repeat(["normal", "anomaly"], [len(normal), len(anomaly)])
    before, after = (roc.grid(x, np.full(len(label), "source"), label)[[0, 2]] for x in (clips, scale(clips)))
    np.testing.assert_array_equal(after, before)


def test_refusals_of_scales():
    with pytest.raises(errors.InputError, match="unknown normalize mode 'zscor'; did you mean zscore"):
        fusion.fit_scale([1.0, 2.0], "zscor")
    with pytest.raises(
        errors.InputError,
        match="no training scores given, expected those of the machine's normal training clips",
    ):
        fusion.fit_scale([], "zscore")
    with pytest.raises(errors.InputError, match="training scores contain NaN or infinite values"):
        fusion.fit_scale([1.0, np.inf], "rank")


# ---------------------------------------------------------------- fusion


def test_combine_is_the_weighted_sum_and_takes_a_grid():
    rng = np.random.default_rng(0)
    alpha, beta, omega = rng.normal(size=7), rng.normal(size=7), np.linspace(0, 1, 51)[:, None]
    grid = fusion.combine({"alpha": alpha, "beta": beta}, {"alpha": omega, "beta": 1 - omega})
    assert grid.shape == (51, 7)
    np.testing.assert_array_equal(grid[50], alpha)
    np.testing.assert_array_equal(grid[0], beta)
    for row, w in zip(grid, omega[:, 0], strict=True):
        np.testing.assert_allclose(
            row, [w * a + (1 - w) * b for a, b in zip(alpha, beta, strict=True)], rtol=1e-14
        )
    with pytest.raises(errors.InputError, match="expected one weight per part"):
        fusion.combine({"alpha": alpha}, {"beta": 1.0})


@pytest.mark.parametrize("mode", list(fusion.MODES))
def test_together_equals_alone(mode):
    scores = scored()
    whole = fusion.fuse(scores, "oevae", equal_weights(), mode).set_index(["clip", "seed"])["score"]
    test_clips = scores.loc[scores["split"] == "test", "clip"].unique()
    for clip in test_clips[::7]:
        machine = clip.split("/")[0]
        one = scores[
            (scores["machine"] == machine) & ((scores["split"] == "train") | (scores["clip"] == clip))
        ]
        alone = fusion.fuse(one, "oevae", equal_weights(), mode).set_index(["clip", "seed"])["score"]
        pd.testing.assert_series_equal(alone, whole.loc[alone.index], check_exact=True)


def test_fuse_standardizes_by_machine_and_seed_on_training_clips():
    scores = scored()
    weights = {("oevae", "alpha"): 0.3, ("oevae", "beta"): 0.7}
    fused = fusion.fuse(scores, "oevae", weights, "zscore")
    schemas.score_table(fused)
    assert tuple(fused.columns) == schemas.SCORE_COLUMNS
    assert set(fused["system"]) == {"oevae"} and set(fused["component"]) == {"score"}
    assert len(fused) == len(scores) / 2
    for (machine, seed), rows in fused.groupby(["machine", "seed"]):
        part = scores[(scores["machine"] == machine) & (scores["seed"] == seed)]
        for clip, found in zip(rows["clip"], rows["score"], strict=True):
            expected = 0.0
            for (_, component), weight in weights.items():
                mine = part[part["component"] == component]
                train = mine.loc[mine["split"] == "train", "score"].to_numpy()
                expected += (
                    weight * (mine.loc[mine["clip"] == clip, "score"].iloc[0] - train.mean()) / train.std()
                )
            assert found == pytest.approx(expected, abs=1e-12)


def test_the_order_of_rows_changes_nothing():
    scores = scored()
    plain = fusion.fuse(scores, "oevae", equal_weights(), "gamma")
    pd.testing.assert_frame_equal(
        plain, fusion.fuse(scores.sample(frac=1, random_state=0), "oevae", equal_weights(), "gamma")
    )


def test_ensemble_of_systems_and_of_seeds():
    parts = (("oevae", "score"), ("classifier", "score"))
    scores = scored(parts)
    only = fusion.fuse(scores, "ensemble", {parts[0]: 1.0, parts[1]: 0.0}, "zscore")
    aligned = fusion.aligned(scores, parts, "zscore")
    np.testing.assert_allclose(only["score"], aligned["oevae/score"])
    mean = fusion.average_seeds(scores, "oevae", "oevae_seeds", "zscore")
    schemas.score_table(mean)
    assert set(mean["seed"]) == {fusion.ALL_SEEDS} and set(mean["system"]) == {"oevae_seeds"}
    assert len(mean) == len(only) / 2
    expected = aligned.groupby("clip")["oevae/score"].mean()
    np.testing.assert_allclose(
        mean.set_index("clip")["score"].sort_index(), expected.sort_index(), rtol=1e-12
    )


def test_one_part_of_one_system_is_that_part():
    scores = scored(seeds=(0,))
    fused = fusion.fuse(scores, "alone", {("oevae", "alpha"): 1.0}, "none").set_index("clip")["score"]
    alpha = scores[scores["component"] == "alpha"].set_index("clip")["score"]
    pd.testing.assert_series_equal(fused, alpha.loc[fused.index])


def test_refusals_of_fusion():
    scores = scored()
    with pytest.raises(
        errors.InputError, match="fusion needs classifier/score, but the score table has only"
    ):
        fusion.fuse(scores, "ensemble", {("oevae", "alpha"): 0.5, ("classifier", "score"): 0.5}, "zscore")
    fewer = scores.drop(
        scores[(scores["component"] == "beta") & (scores["clip"] == "fan/test/normal_003.wav")].index[0]
    )
    with pytest.raises(errors.InputError, match=r"scored different clips \(first: fan/test/normal_003.wav\)"):
        fusion.fuse(fewer, "oevae", equal_weights(), "zscore")
    with pytest.raises(errors.InputError, match="no training scores given"):
        fusion.fuse(scores[scores["split"] == "test"], "oevae", equal_weights(), "zscore")
    with pytest.raises(errors.InputError, match="the seeds scored different clips"):
        fusion.average_seeds(
            fewer.assign(component="score", system=fewer["component"]), "beta", "x", "zscore"
        )


# ---------------------------------------------------------------- composed systems


def test_a_composed_system_gets_its_final_score_at_any_omega():
    parts = scored()
    table = fusion.systems(parts, fusion.FusionSettings(omega=0.3))
    final = table[table["component"] == "score"]
    expected = fusion.fuse(parts, "oevae", {("oevae", "alpha"): 0.3, ("oevae", "beta"): 0.7}, "zscore")
    pd.testing.assert_frame_equal(final.reset_index(drop=True), expected.reset_index(drop=True))
    again = fusion.systems(
        table, fusion.FusionSettings(omega=1.0)
    )  # another omega replaces the score and touches nothing else
    assert len(again) == len(table) and not again.duplicated(["system", "component", "clip", "seed"]).any()
    pd.testing.assert_frame_equal(again[again["component"] != "score"], parts)
    for (machine, seed), rows in again[again["component"].isin(["alpha", "score"])].groupby(
        ["machine", "seed"]
    ):
        wide = rows.pivot(index="clip", columns="component", values="score")
        assert (wide["alpha"].rank() == wide["score"].rank()).all(), (
            machine,
            seed,
        )  # omega = 1 is alpha alone


def test_systems_without_their_parts_stay_as_they_are():
    only = scored(parts=(("oevae", "alpha"), ("baseline_knn", "score")))
    pd.testing.assert_frame_equal(fusion.systems(only, fusion.FusionSettings()), only)


# ---------------------------------------------------------------- composed systems, ensembles over seeds

THREE_PARTS = (("oevae", "alpha"), ("oevae", "beta"), ("classifier", "score"))


def test_the_ensemble_is_a_system_of_its_own_on_one_scale():
    scores, settings = scored(THREE_PARTS), fusion.FusionSettings(omega=0.3, eta=0.8)
    table = fusion.systems(scores, settings)
    assert set(table["system"]) == {"oevae", "classifier", "ensemble"} and schemas.score_table(table) is table
    for (machine, seed), rows in table.groupby(["machine", "seed"]):
        part = {
            key: block.set_index("clip")["score"].sort_index()
            for key, block in rows.groupby(["system", "component"])
        }
        train = part["oevae", "score"].index.str.contains("/train/")
        z = {key: (values - values[train].mean()) / values[train].std(ddof=0) for key, values in part.items()}
        slow = 0.8 * z["oevae", "score"] + 0.2 * z["classifier", "score"]
        np.testing.assert_allclose(
            part["ensemble", "score"].reindex(slow.index), slow, rtol=1e-10, atol=1e-12
        )
        oevae = 0.3 * z["oevae", "alpha"] + 0.7 * z["oevae", "beta"]
        np.testing.assert_allclose(part["oevae", "score"].reindex(oevae.index), oevae, rtol=1e-10, atol=1e-12)
        assert z["oevae", "score"][train].std(ddof=0) == pytest.approx(1.0), (machine, seed)


def test_composed_systems_come_with_their_parts():
    assert fusion.with_composed(["baseline_knn", "oevae", "classifier"]) == (
        "baseline_knn",
        "oevae",
        "classifier",
        "ensemble",
    )
    assert fusion.with_composed(["oevae"]) == ("oevae",) and fusion.with_composed(["classifier"]) == (
        "classifier",
    )
    assert "ensemble" not in set(fusion.systems(scored(), fusion.FusionSettings())["system"])


def test_seeds_are_averaged_each_on_its_own_scale():
    table = fusion.systems(scored(THREE_PARTS, seeds=(0, 4)), fusion.FusionSettings())
    whole = fusion.seed_ensembles(table, "zscore")
    assert set(whole["system"]) - set(table["system"]) == {
        "oevae_seeds",
        "classifier_seeds",
        "ensemble_seeds",
    }
    assert (
        set(whole.loc[whole["system"].str.endswith("_seeds"), "seed"]) == {fusion.ALL_SEEDS}
        and schemas.score_table(whole) is whole
    )
    one = table[(table["system"] == "classifier") & (table["machine"] == "fan")].pivot(
        index="clip", columns="seed", values="score"
    )
    train = one.index.str.contains("/train/")
    slow = ((one - one[train].mean()) / one[train].std(ddof=0)).mean(axis=1)
    found = whole[(whole["system"] == "classifier_seeds") & (whole["machine"] == "fan")].set_index("clip")[
        "score"
    ]
    np.testing.assert_allclose(found.reindex(slow.index), slow, rtol=1e-10, atol=1e-12)


def test_what_no_seed_changes_is_not_averaged():
    table = scored((("baseline_knn", "score"),))
    table["score"] = table.groupby("clip")["score"].transform("first")
    assert fusion.seed_ensembles(table, "zscore").equals(table)
    single = scored(THREE_PARTS, seeds=(0,))
    assert fusion.seed_ensembles(single, "zscore").equals(single)


VIEW_COLUMNS = [*fusion.KEYS[:-1], "system", "component", "score", "seed"]


@pytest.mark.parametrize(
    "how, weights, of",
    [
        ("mean", (), np.mean),
        ("mean", (2.0, 1.0), lambda zs: (2 * zs[0] + zs[1]) / 3),
        ("min", (), np.min),
        ("max", (), np.max),
    ],
)
def test_views_are_fused_on_the_scale_of_their_training_scores(how, weights, of):
    """Against loops; the scale of one machine does not reach another, and test clips do not reach each other."""
    rng, rows = np.random.default_rng(0), []
    for machine, split, number in itertools.product(("fan", "pump"), ("train", "test"), range(6)):
        label = "anomaly" if split == "test" and number % 2 else "normal"
        clip = (machine, "00", split, "source", label, f"{machine}/{split}{number}")
        rows += [(*clip, system, "score", rng.normal(3, 2), 0) for system in ("a", "b")]
    table = pd.DataFrame(rows, columns=VIEW_COLUMNS)
    found = fusion.fuse_views(table, ["a", "b"], how, "ab", weights)
    for row in found.itertuples():
        zs = []
        for system in ("a", "b"):
            own = table[(table["system"] == system) & (table["machine"] == row.machine)]
            train = own[own["split"] == "train"]["score"].to_numpy()
            value = own[own["clip"] == row.clip]["score"].item()
            zs.append((value - train.mean()) / train.std())
        assert row.score == pytest.approx(of(zs), abs=1e-12)
    other = table.copy()
    other.loc[other["clip"] == "fan/test1", "score"] += 9
    again = fusion.fuse_views(other, ["a", "b"], how, "ab", weights)
    same = found["clip"] != "fan/test1"
    pd.testing.assert_frame_equal(found[same], again[same])


def test_weights_that_do_not_fit_the_views_are_refused():
    settings = fusion.FusionSettings(views=("a", "b"), weights=(2, 1))
    assert settings.weights == (2.0, 1.0)
    for wrong in ({"weights": (1.0,)}, {"weights": (2.0, 1.0), "how": "max"}):
        with pytest.raises(errors.InputError, match="expected one weight per view and the mean"):
            settings.replace(**wrong)
    with pytest.raises(errors.InputError, match="weights"):
        settings.replace(weights=(1.0, 0.0))


def views(seed, good=2, clips=100, others=60):
    """Scores of a machine's clips and of stand-ins by views that rise with what is odd, and by pure noise."""
    rng, rows = np.random.default_rng(seed), []
    names = [*(f"view{i}" for i in range(good)), "noise"]
    for machine in ("fan", "pump"):
        for split, label in (("train", "normal"), ("test", "normal"), ("test", "anomaly")):
            for i in range(clips):
                domain = "target" if i % 2 else "source"
                fact = (machine, "00", split, domain, label, f"{machine}/{split}/{label}{i}")
                step = np.where(np.array(names) == "noise", 0.0, 1.2 if label == "anomaly" else 0.0)
                rows += [(*fact, v, "score", x, 0) for v, x in zip(names, rng.normal(step))]
        for i in range(others):
            fact = (machine, "00", "stand-in", "source", "anomaly", f"{machine}: other{i}")
            step = np.where(np.array(names) == "noise", 0.0, 2.0)
            rows += [(*fact, v, "score", x, 0) for v, x in zip(names, rng.normal(step))]
    return pd.DataFrame(rows, columns=VIEW_COLUMNS)


def official(table):
    found = metrics.table(table, metrics.MetricsSettings(bootstrap=20), 0)
    return found[(found["machine"] == "all") & (found["metric"] == "omega")]["value"].item()


def test_a_fusion_is_a_system_wherever_its_views_are():
    settings = fusion.FusionSettings(views=["baseline_knn", "oevae/beta"], how="max")
    scores = scored((("baseline_knn", "score"), ("oevae", "alpha"), ("oevae", "beta")), seeds=(0, 4))
    table = fusion.systems(scores, settings)
    own = table[table["system"] == "fusion"].reset_index(drop=True)
    z = fusion.aligned(scores, [("baseline_knn", "score"), ("oevae", "beta")], "zscore")
    np.testing.assert_array_equal(own["score"], z[["baseline_knn/score", "oevae/beta"]].max(axis=1))
    assert len(fusion.systems(table, settings)) == len(table) and set(own["component"]) == {"score"}
    assert "fusion_seeds" in set(fusion.seed_ensembles(table, "zscore")["system"])
    alone = scores[scores["system"] == "oevae"]
    assert "fusion" not in set(fusion.systems(alone, settings)["system"])
    assert fusion.with_composed(["baseline_knn", "oevae"], settings.views)[-1] == "fusion"
    assert fusion.with_composed(["oevae"], settings.views) == ("oevae",)
    one = fusion.systems(scores, settings.replace(views=["oevae/beta"])).query("system == 'fusion'")
    np.testing.assert_array_equal(one["score"], z["oevae/beta"])  # of a single view: that view
    with pytest.raises(errors.InputError, match="fusion needs oevae/gamma, but the score table has"):
        fusion.systems(scores, settings.replace(views=["baseline_knn", "oevae/gamma"]))


def test_noise_among_the_views_does_not_hurt_the_weighted_mean():
    """The mean of five draws falls by .015 at most, and the plain mean by more."""
    lost = []
    for seed in range(5):
        scores = views(seed)
        pair = ("view0", "view1")
        for how in ("weighted", "mean"):
            before, after = (
                official(fusion.fuse_views(scores, names, how)) for names in (pair, (*pair, "noise"))
            )
            lost.append((how, before - after))
    mean = {how: np.mean([value for name, value in lost if name == how]) for how in ("weighted", "mean")}
    assert mean["weighted"] <= 0.015 < mean["mean"], mean


def test_weights_by_pairs_and_the_mean_with_them():
    """2·AUC − 1 by counting pairs; a view below one half counts as 0."""
    scores = views(3)
    odd = scores["split"] == "stand-in"
    scores.loc[odd & (scores["system"] == "noise"), "score"] -= 0.5  # below the normal clips
    names = ["view0", "view1", "noise"]
    weights = fusion.view_weights(scores, names)
    for machine in ("fan", "pump"):
        train = scores[(scores["machine"] == machine) & (scores["split"] == "train")]
        gain = []
        for name in names:
            one = train[train["system"] == name]["score"].to_numpy()
            other = scores[odd & (scores["machine"] == machine) & (scores["system"] == name)]["score"]
            gain.append(max(0, 2 * np.mean([b > a for a in one for b in other]) - 1))
        assert gain[2] == 0 < gain[0]
        np.testing.assert_allclose(weights.loc[(machine, 0)], np.array(gain) / sum(gain), atol=1e-12)
    found = fusion.fuse_views(scores, names, "weighted", "all").set_index("clip")["score"]
    one = fusion.fuse_views(scores, ["view0"]).set_index("clip")["score"]
    two = fusion.fuse_views(scores, ["view1"]).set_index("clip")["score"]
    fan = one.index.str.startswith("fan/")
    slow = weights.loc[("fan", 0), "view0"] * one + weights.loc[("fan", 0), "view1"] * two
    np.testing.assert_allclose(found[fan], slow[fan], atol=1e-12)


def test_weights_read_no_test_clip_and_are_equal_where_no_view_is_above_one_half():
    scores = views(4)
    names, other = ["view0", "noise"], scores.copy()
    other.loc[other["split"] == "test", "score"] *= -7
    before, after = (fusion.view_weights(table, names) for table in (scores, other))
    pd.testing.assert_frame_equal(before, after)
    scores.loc[scores["split"] == "stand-in", "score"] -= 100
    assert (fusion.view_weights(scores, names) == 0.5).all(axis=None)


def test_a_fused_result_stands_beside_itself_without_each_view():
    scores = views(5)
    names = ["view0", "view1", "noise"]
    found = fusion.leave_one_view_out(scores, names, "weighted", "sum")
    assert list(found["system"].unique()) == ["sum", *(f"sum without {name}" for name in names)]
    rest = fusion.fuse_views(scores, ["view0", "noise"], "weighted", "sum without view1")
    same = found[found["system"] == "sum without view1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, rest.reset_index(drop=True))
    with pytest.raises(errors.InputError, match="expected at least two views"):
        fusion.leave_one_view_out(scores, ["view0"])


def test_views_of_other_clips_are_refused():
    table = pd.DataFrame(
        [
            ("fan", "00", "train", "source", "normal", clip, system, "score", 1.0, 0)
            for clip, system in (("1", "a"), ("2", "a"), ("1", "b"))
        ],
        columns=VIEW_COLUMNS,
    )
    with pytest.raises(errors.InputError, match="a/score and b/score scored different clips"):
        fusion.fuse_views(table, ["a", "b"])
    with pytest.raises(errors.InputError, match="unknown fusion of views 'mode'"):
        fusion.fuse_views(table, ["a"], "mode")
    with pytest.raises(errors.InputError, match="fusion needs c/score"):
        fusion.fuse_views(table, ["c"])
    with pytest.raises(errors.InputError, match="a has no stand-in scores for fan, seed 0"):
        fusion.fuse_views(table, ["a"], "weighted")
