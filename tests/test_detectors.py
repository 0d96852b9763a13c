"""Contract over DETECTORS: what every detector promises, on recordings of two machines."""

import numpy as np
import pandas as pd
import pytest

from asdlib import detectors, fusion


@pytest.mark.parametrize("name", list(detectors.DETECTORS))
def test_every_detector_keeps_the_contract(context, name, tmp_path):
    train, test = (detectors.machine_rows(context.store.clips, "pump", split) for split in ("train", "test"))
    detector = detectors.DETECTORS[name](context)
    detector.fit(train)
    together = detector.scores(test)
    assert {system for system, _ in together} == {system for system, owner in detectors.SYSTEMS.items() if owner == name}
    for system in {system for system, _ in together} - set(fusion.COMPOSED):  # the final score of these is made by fusion
        assert (system, "score") in together
    for i in (0, 5):  # no test clip moves another's score
        for key, value in detector.scores(test[i : i + 1]).items():
            np.testing.assert_allclose(value, together[key][i : i + 1], rtol=1e-4, atol=1e-6)
    for key, values in detector.training_scores().items():
        assert len(values) == len(train) and np.isfinite(values).all() and key in together
    embedding, item = detector.embed(test)
    assert len(embedding) == len(item) and embedding.dtype == np.float32 and set(item) == set(range(len(test)))
    detector.save(tmp_path)
    other = detectors.DETECTORS[name](context)
    other.load(tmp_path, train)
    for key, value in other.scores(test).items():
        np.testing.assert_array_equal(value, together[key])
    np.testing.assert_array_equal(other.embed(test)[0], embedding)


@pytest.mark.parametrize("name", list(detectors.DETECTORS))
def test_same_seed_same_scores(context, name):
    tables = [detectors.detect(detectors.DETECTORS[name](context), context, ["saw"]) for _ in range(2)]
    pd.testing.assert_frame_equal(*tables)
