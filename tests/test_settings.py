"""Settings classes used directly: every one checks itself when it is made, changed, copied or read again."""

import copy
import json
import pickle

import pydantic
import pytest

from asdlib import errors, settings
from asdlib.data.decode import DataSettings
from asdlib.data.synthetic import SyntheticSettings
from asdlib.detectors import OEVAE
from asdlib.models.classifier import ClassifierSettings
from asdlib.models.oevae import OEVAESettings
from asdlib.studies.config import StudySettings

BAD = [
    ({"epochs": -5}, "setting epochs: got -5, expected a number from 0 to 100000"),
    ({"epochs": 10**6}, "setting epochs: got 1000000, expected a number from 0 to 100000"),
    ({"epochs": 10**5000}, "setting epochs: got a very long int, expected a number from 0 to 100000"),
    ({"epochs": True}, "setting epochs: got True (bool), expected int"),
    ({"epochs": "3"}, "setting epochs: got '3' (str), expected int"),
    ({"epochs": 3.0}, "setting epochs: got 3.0 (float), expected int"),
    ({"epochs": None}, "setting epochs: got None (NoneType), expected int"),
    ({"lr": True}, "setting lr: got True (bool), expected float"),
    ({"lr": "1"}, "setting lr: got '1' (str), expected float"),
    ({"lr": float("nan")}, "setting lr: got nan, expected a number from 0.0 to 1.0"),
    ({"lr": float("inf")}, "setting lr: got inf, expected a number from 0.0 to 1.0"),
    ({"pretrained": 1}, "setting pretrained: got 1 (int), expected bool"),
    ({"pretrained_file": 1}, "setting pretrained_file: got 1 (int), expected str"),
    ({"alpha_mode": "nl"}, "got 'nl', expected one of 'nll', 'expected_nll', 'kl', 'recon', 'neg_elbo'"),
    ({"k_scales": [1, -1]}, "setting k_scales: got -1, expected a number from 0.0 to 1000.0"),
    ({"k_scales": ["1"]}, "setting k_scales: got '1' (str), expected float"),
    ({"k_scales": [float("nan")]}, "setting k_scales: got nan, expected a number from 0.0 to 1000.0"),
    ({"epocs": 5}, "unknown setting epocs; did you mean epochs?"),
    ({"zzz": 5}, "unknown setting zzz; known here: features, condition,"),
    ({"mixup": 3}, "setting mixup: got 3, expected a section [mixup]"),
    ({"mixup": {"prob": 2}}, "setting mixup.prob: got 2, expected a number from 0.0 to 1.0"),
    ({"mixup": {"porb": 1}}, "unknown setting mixup.porb; did you mean mixup.prob?"),
    ({"mixup": {1: 1}}, "setting mixup: got 1, expected"),
    ({"domain_latent": 64}, "oevae.domain_latent is 64 of 64 latent channels"),
]


@pytest.mark.parametrize(("values", "words"), BAD)
@pytest.mark.parametrize(
    "make", [OEVAESettings, OEVAESettings().replace, OEVAE], ids=["made", "changed", "detector"]
)
def test_what_is_wrong_is_refused_in_one_sentence(make, values, words):
    with pytest.raises(errors.InputError) as refusal:
        make(**values)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)
    assert not isinstance(refusal.value, pydantic.ValidationError)


@pytest.mark.parametrize(
    ("cls", "values", "words"),
    [
        (
            StudySettings,
            {"autoencoder": {"epochs": -5}},
            "setting autoencoder.epochs: got -5, expected a number",
        ),
        (
            StudySettings,
            {"oevae": {"mixup": {"prob": 2}}},
            "setting oevae.mixup.prob: got 2, expected a number",
        ),
        (StudySettings, {"oevae": {"domain_latent": 64}}, "oevae.domain_latent is 64 of 64 latent channels"),
        (StudySettings, {"name": "a/b"}, "setting name: got 'a/b', expected letters, digits"),
        (
            StudySettings,
            {"seeds": [1, 1]},
            "setting seeds: got [1, 1], expected one or more values, no duplicates",
        ),
        (StudySettings, {"data": {"roots": "tree"}}, "setting data.roots: 'tree' is a relative path"),
        (DataSettings, {"roots": ["tree"]}, "setting data.roots: 'tree' is a relative path"),
        (ClassifierSettings, {"branches": []}, "expected at least one branch, without duplicates"),
        (SyntheticSettings, {"severity": []}, "no values given, expected at least one"),
        (
            SyntheticSettings,
            {"machines": ["fann"]},
            "unknown kind of synthetic machine 'fann'; did you mean fan",
        ),
    ],
)
def test_sections_of_a_study_and_what_belongs_together(cls, values, words):
    with pytest.raises(errors.InputError) as refusal:
        cls(**values)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_any_word_may_come_as_a_name():
    for name in ("self", "", "\x1b", "model_config"):
        with pytest.raises(errors.InputError, match="unknown setting") as refusal:
            OEVAESettings(**{name: 1})
        assert "\x1b" not in str(refusal.value)


def test_an_int_is_taken_for_a_float_and_a_list_or_one_value_for_a_tuple():
    made = OEVAESettings(lr=1, k_scales=[1, 2.5])
    assert repr((made.lr, made.k_scales)) == "(1.0, (1.0, 2.5))"
    assert OEVAESettings(k_scales=3).k_scales == (3.0,) and OEVAESettings(k_scales=()).k_scales == ()
    assert DataSettings(machines="fan").machines == ("fan",)


def test_a_section_is_changed_as_a_whole_or_in_part():
    base = OEVAESettings(mixup={"prob": 0.25, "beta": 2.0})
    assert base.replace(mixup={"prob": 1}).mixup == base.mixup.replace(prob=1.0)
    assert base.replace(mixup=OEVAESettings().mixup) == OEVAESettings() and base.mixup.prob == 0.25


def test_settings_survive_json_pickle_and_copies():
    made = OEVAESettings(lr=0.1, mixup={"beta": 0.2}, k_scales=(1.0,))
    tree = settings.to_tree(made)
    assert json.loads(json.dumps(tree)) == tree and OEVAESettings(**tree) == made
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert other == made and hash(other) == hash(made) and settings.digest(other) == settings.digest(made)


def test_equal_settings_have_the_digest_that_they_always_had():
    """Runs on disk are found by it."""
    assert settings.digest(SyntheticSettings(), 16000) == "ba9550cda1876fa5"
