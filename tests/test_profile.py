"""Profile of a study (`python -m tests.bench study`): to whom the seconds go."""

import types
from pathlib import Path

import pytest
from bench import study

STACK = 'process 1:"asd";process 2:"fork";main (a.py:1);fit (asdlib/models/training.py:2)'


@pytest.mark.parametrize(
    "inner, share",
    [
        ("", "training"),
        (";conv1d (torch/nn/functional.py:3)", "training"),
        (";_batches (asdlib/detectors/classifier_training.py:4);log_mel (asdlib/features.py:5)", "features"),
        (";Figure.draw (matplotlib/figure.py:6);Thing._find (<frozen importlib._bootstrap>:7)", "imports"),
    ],
)
def test_the_innermost_frame_that_says_something_decides(inner, share):
    assert study.share((STACK + inner).split(";")) == share


def test_the_seconds_of_each_process_are_divided_as_its_stacks_are_and_none_is_lost(tmp_path):
    stacks = f'{STACK} 3\n{STACK};log_mel (asdlib/features.py:5) 1\nprocess 1:"asd";main (a.py:1) 9'
    runs = tmp_path / "runs"
    job = runs / "demo" / "seed0" / "03_baseline" / "fan"
    watch = types.SimpleNamespace(cpu_s={1: 5.0, 2: 8.0, 3: 0.5}, folder={1: Path("/"), 2: job, 3: Path("/")})
    found = study.works(stacks, watch, runs).groupby(["job", "share"])["seconds"].sum().to_dict()
    fan = "seed0/03_baseline/fan"
    assert found == {(fan, "training"): 6.0, (fan, "features"): 2.0, (study.RUNNER, study.REST): 5.5}
