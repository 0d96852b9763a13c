"""Contract over DETECTORS: what every detector promises, on recordings of two machines."""

import numpy as np
import pandas as pd
import pytest
from sizes import detector_of, fit

from asdlib import detectors
from asdlib.data.store import Clips
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
