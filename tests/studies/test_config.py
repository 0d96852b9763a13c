import pydantic
import pytest

from asdlib import errors, settings
from asdlib.studies import config


def test_studies_that_ship_can_be_loaded():
    assert {"smoke", "demo", "paper", "real"} <= set(config.study_names())
    for name in config.study_names():
        assert config.load(name).name == name


def test_defaults_are_those_of_the_report_and_of_the_official_baseline():
    cfg = config.load("paper")
    assert cfg.data.sample_rate == 16000
    assert (cfg.autoencoder.epochs, cfg.autoencoder.batch, cfg.autoencoder.lr) == (100, 256, 1e-3)
    assert cfg.metrics.max_fpr == 0.1 and cfg.metrics.decision_quantile == 0.9
    assert (cfg.fusion.omega, cfg.fusion.eta) == (0.5, 0.5)


def test_overrides_win_over_the_file_and_take_toml_values():
    cfg = config.load(
        "demo",
        ["autoencoder.epochs=3", "data.machines=['fan']", "device=cpu", "seeds=[1, 2]", "autoencoder.lr=1"],
    )
    assert (
        cfg.autoencoder.epochs == 3
        and cfg.data.machines == ("fan",)
        and cfg.device == "cpu"
        and cfg.seeds == (1, 2)
    )
    assert isinstance(cfg.autoencoder.lr, float)


def test_settings_are_frozen_and_survive_a_round_trip():
    cfg = config.load("demo")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        cfg.name = "other"
    assert config.StudySettings(**settings.to_tree(cfg)) == cfg


def test_digest_changes_with_every_setting():
    base = config.load("demo")
    seen = {settings.digest(base)}
    for name, default, _ in config.describe():
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            continue
        bigger = default + 1 if isinstance(default, int) else default * 0.9 or 0.5
        bigger = 1 if name == "data.subtract" else bigger  # another channel than data.channel
        seen.add(settings.digest(config.load("demo", [f"{name}={bigger}"])))
    numbers = [
        row for row in config.describe() if isinstance(row[1], (int, float)) and not isinstance(row[1], bool)
    ]
    assert len(seen) == len(numbers) + 1


@pytest.mark.parametrize(
    "override, words",
    [
        ("autoencoder.epoch=3", r"unknown setting autoencoder\.epoch; did you mean autoencoder\.epochs\?"),
        ("autoencodr.epochs=3", r"unknown setting autoencodr; did you mean autoencoder\?"),
        ("zzz=3", "unknown setting zzz; known here: name"),
        ("autoencoder.epochs='3'", r"setting autoencoder\.epochs: got '3' \(str\), expected int"),
        ("autoencoder.epochs=3.0", r"got 3\.0 \(float\), expected int"),
        ("autoencoder.epochs=true", r"got True \(bool\), expected int"),
        ("autoencoder.epochs=0", "got 0, expected a number from 1 to"),
        ("autoencoder.lr=nan", "got nan, expected a number from"),
        ("data.resample=1", r"got 1 \(int\), expected bool"),
        ("autoencoder=3", r"got 3, expected a section \[autoencoder\]"),
        ("fusion.normalize=z", "got 'z', expected one of 'zscore', 'none', 'rank', 'gamma'"),
        ("autoencoder.epochs", "expected name=value"),
        ("device.x=1", "device is a value, not a section|expected one of"),
        ("data.machines=[1]", r"setting data\.machines: got 1 \(int\), expected str"),
        ("name='a/b'", "expected letters, digits"),
    ],
)
def test_what_is_wrong_is_refused_in_words(override, words):
    with pytest.raises(errors.InputError, match=words):
        config.load("demo", [override])


def test_unknown_study_is_refused_with_a_suggestion():
    with pytest.raises(errors.InputError, match=r"unknown study 'dmeo'; did you mean demo\?"):
        config.load("dmeo")


def test_broken_toml_is_refused(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("a = [")
    with pytest.raises(errors.InputError, match=r"broken\.toml: not readable as TOML"):
        config.load(str(path))


def test_every_setting_is_explained():
    for name, _, doc in config.describe():
        assert len(doc) > 8, name


def including(tmp_path, text, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "mine.toml").write_text(text)
    return str(tmp_path / "mine.toml")


def test_included_settings_hold_where_the_study_says_nothing(tmp_path):
    files = {
        "a.toml": "about = 'a'\n[fusion]\nomega = 0.1\neta = 0.1\n",
        "b.toml": "[fusion]\nomega = 0.2\nnormalize = 'rank'\n",
    }
    study = including(
        tmp_path, "include = ['a.toml', 'b.toml']\nabout = 'mine'\n[fusion]\nnormalize = 'none'\n", files
    )
    cfg = config.load(study, ["fusion.eta=0.9"])
    assert (cfg.fusion.omega, cfg.fusion.eta, cfg.fusion.normalize) == (
        0.2,
        0.9,
        "none",
    )  # later file, --set, the study itself
    assert (
        cfg.name == "mine"
        and cfg.about == "mine"
        and cfg.include == (str(tmp_path / "a.toml"), str(tmp_path / "b.toml"))
    )
    assert config.load(study, ["include=[]"]).fusion.omega == 0.5


def test_a_study_that_is_included_gives_neither_name_nor_words(tmp_path):
    study = including(
        tmp_path,
        "include = ['base.toml']",
        {"base.toml": "name = 'base'\nabout = 'base'\n[oevae]\nwidth = 8\n"},
    )
    cfg = config.load(study)
    assert (cfg.name, cfg.about, cfg.oevae.width) == ("mine", "", 8)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, r"mine\.toml includes .*a\.toml, which does not exist; run the study that writes it"),
        ("[fusion]\nomgea = 1", r"a\.toml: unknown setting fusion\.omgea; did you mean fusion\.omega\?"),
        ("a = [", r"a\.toml: not readable as TOML"),
        ("include = ['b.toml']", r"a\.toml is included by mine\.toml and has an include itself"),
    ],
)
def test_what_is_wrong_with_an_included_file_is_said(tmp_path, content, words):
    study = including(tmp_path, "include = ['a.toml']", {"a.toml": content} if content else {})
    with pytest.raises(errors.InputError, match=words):
        config.load(study)


def test_a_study_is_saved_with_its_overrides_and_never_over_another(tmp_path):
    (tmp_path / "notebooks" / "studies").mkdir(parents=True)
    (tmp_path / "notebooks" / "studies" / "mine.toml").write_text('about = "a"\n[oevae]\nepochs = 3\n')
    given = ["oevae.smote.ratio=0.5", "sweep.oevae.epochs=[1, 2]", 'systems=["oevae"]']
    path = config.save("new", "mine", given, tmp_path)
    assert config.load("new", (), tmp_path) == config.load("mine", [*given, "name=new"], tmp_path)
    assert config.read("new", (), tmp_path)["sweep"] == {"oevae": {"epochs": [1, 2]}}
    with pytest.raises(
        errors.InputError, match=r"new\.toml exists and is never overwritten; choose another --name"
    ):
        config.save("new", "mine", [], tmp_path)
    with pytest.raises(errors.InputError, match="expected letters, digits"):
        config.save("a b", "mine", [], tmp_path)
    assert path.read_text().startswith("# mine, with changed settings")


def test_paper_is_literal():
    """METHOD 3.9, setting by setting; what it cannot do as printed is in `about`."""
    cfg = config.load("paper")
    assert cfg.precision == "float32" and cfg.data.recorded
    oevae, classifier = cfg.oevae, cfg.classifier
    assert oevae.smote.space == classifier.smote.space == "logmel" and oevae.smote.ratio > 0
    assert oevae.holdout == classifier.holdout == 0
    assert oevae.vae_grad == "literal" and config.load("best").oevae.vae_grad == "split"
    assert (oevae.condition.attribute, oevae.condition.center) == ("random", False)
    assert not classifier.debias_batchnorm and classifier.phase_repr == "angle"
    assert classifier.branches == ("fft", "mel", "phase") and classifier.backend == "kmeans"
    assert oevae.features.wave_norm == classifier.wave_norm == "clip"
    assert (oevae.layers, oevae.pooling, oevae.backend) == (("layer4",), "mean", "knn")
    assert oevae.alpha_mode == "nll" and (oevae.batch, oevae.epochs, oevae.lr) == (128, 20, 1e-3)
    assert (oevae.latent, oevae.domain_latent, oevae.lambda_vae, oevae.condition.k_scale) == (
        64,
        8,
        1e-7,
        5.0,
    )
    additions = (oevae.attribute_weight, oevae.near, oevae.kl_warmup, oevae.mixup.outliers, oevae.pretrained)
    assert not any(additions)
    for departure in ("Eq. 2", "Eq. 3 and 4", "Eq. 6", "power", "source domain", "overlap", "single clip"):
        assert departure in cfg.about
    assert "\n" not in cfg.about
