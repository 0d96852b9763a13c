"""Contract over DETECTORS: what every detector promises, on recordings of two machines."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sizes import detector_of, fit

import asdlib as asd
from asdlib import detectors, errors
from asdlib.data.store import Clips, in_memory
from asdlib.detectors import base
from asdlib.scoring import fusion


@pytest.mark.parametrize("name", list(detectors.DETECTORS))
def test_every_detector_keeps_the_contract(context, name, tmp_path):
    train, test = (base.machine_rows(context.store.clips, "pump", split) for split in ("train", "test"))
    detector = detector_of(detectors.DETECTORS[name], context)
    fit(detector, context.store, train)
    together = detector.components(Clips(detector.store, test))
    assert {system for system, _ in together} == {
        system for system, owner in detectors.SYSTEMS.items() if owner == name
    }
    for system in {system for system, _ in together} - set(
        fusion.COMPOSED
    ):  # the final score of these is made by fusion
        assert (system, "score") in together
    for i in (0, 5):  # no test clip moves another's score
        for key, value in detector.components(Clips(detector.store, test[i : i + 1])).items():
            np.testing.assert_allclose(value, together[key][i : i + 1], rtol=1e-4, atol=1e-6)
    for key, values in detector.training_components().items():
        assert len(values) == len(train) and np.isfinite(values).all() and key in together
    for key, values in detector.training_components(as_seen=True).items():  # clips the network saw are raised
        raised = detector.training_components()[key] - values
        assert (raised[detector.unseen] == 0).all() and (raised >= 0).all()
        assert len(np.unique(raised[~detector.unseen].round(9))) <= 1
    assert detector.unseen.all() == (name not in ("oevae", "classifier"))
    embedding, item = detector.embed(Clips(detector.store, test))
    assert (
        len(embedding) == len(item) and embedding.dtype == np.float32 and set(item) == set(range(len(test)))
    )
    detector.save(tmp_path)
    other = detector_of(detectors.DETECTORS[name], context)
    other.restore(tmp_path, Clips(context.store, train))
    for key, value in other.components(Clips(other.store, test)).items():
        np.testing.assert_array_equal(value, together[key])
    np.testing.assert_array_equal(other.embed(Clips(other.store, test))[0], embedding)


@pytest.mark.parametrize("name", list(detectors.DETECTORS))
def test_same_seed_same_scores(context, name):
    tables = [
        base.detect(detector_of(detectors.DETECTORS[name], context), context.store, ["saw"]) for _ in range(2)
    ]
    pd.testing.assert_frame_equal(*tables)


CHOICES = [  # of the settings that score: every back-end of the classifier is a component, whatever is chosen
    *((name, {}) for name in detectors.DETECTORS),
    ("multires", {"backend": "both"}),
    ("oevae", {"layers": ("layer1",), "pooling": "bands", "backend": "local_density"}),
    ("oevae", {"layers": ("layer1", "layer4"), "pooling": "mean_std", "neighbor_domains": "min"}),
]


def fitted(context, name, **changed):
    settings = getattr(context.cfg, name).replace(**changed)
    made = detector_of(
        detectors.DETECTORS[name], dataclasses.replace(context, cfg=context.cfg.replace(**{name: settings}))
    )
    return fit(made, context.store, base.machine_rows(context.store.clips, "pump", "train"))


@pytest.mark.parametrize("name, changed", CHOICES)
def test_other_test_clips_change_nothing(context, name, changed):
    """Half of the test clips replaced by those of another machine: the other half's scores are the same to
    the bit.
    """
    detector, store = fitted(context, name, **changed), context.store
    test, foreign = (base.machine_rows(store.clips, machine, "test") for machine in ("pump", "saw"))
    mixed = np.where(np.arange(len(test)) % 2, foreign, test)
    table = pd.DataFrame({"machine": "pump", "split": "test"}, index=range(len(mixed)))
    as_pump = asd.from_arrays([store.int16(row) for row in mixed], table)
    before, after = (detector.components(clips) for clips in (Clips(store, test), as_pump))
    for key, values in before.items():
        assert np.abs(values[::2] - after[key][::2]).max() == 0, key
    assert any(np.abs(values[1::2] - after[key][1::2]).min() > 0 for key, values in before.items())


@pytest.mark.parametrize("name", list(detectors.DETECTORS))
def test_stand_ins_are_other_machines_scored_as_this_one(context, name):
    detector, store = fitted(context, name), context.store
    found = base.stand_ins(detector, store, "pump", most=5)
    assert set(found["machine"]) == {"pump"} and set(found["split"]) == {"stand-in"}
    assert found["clip"].nunique() == 5 and found["clip"].str.contains("pump: .*saw/train").all()
    one = found["clip"].iloc[0]
    (row,) = np.flatnonzero("pump: " + store.clips["clip"] == one)
    table = pd.DataFrame({"machine": ["pump"], "split": ["test"]})
    alone = detector.components(asd.from_arrays([store.int16(row)], table))
    for (system, component), values in alone.items():
        same = found[(found["clip"] == one) & (found["system"] == system) & (found["component"] == component)]
        assert same["score"].item() == values[0]


def test_stand_ins_need_another_machine(context):
    detector = fitted(context, "multires")
    table = context.store.clips
    own = np.flatnonzero(table["machine"] == "pump")
    alone = in_memory(table.iloc[own].reset_index(drop=True), [context.store.int16(i) for i in own], 16000)
    with pytest.raises(errors.InputError, match="pump is the only machine"):
        base.stand_ins(detector, alone, "pump")
