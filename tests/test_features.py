"""Features: against torchaudio and scipy, and against what physics says of tones, clicks and chirps."""

import math

import numpy as np
import oracle
import pytest
import scipy.signal
import torch
import torchaudio

from asdlib import errors, features

RATE = 16000


def tone(hz, seconds=2.0, amplitude=1.0, phase=0.0):
    t = torch.arange(int(RATE * seconds), dtype=torch.float64) / RATE
    return (amplitude * torch.cos(2 * math.pi * hz * t + phase)).float()[None]


@pytest.fixture(scope="module")
def noise():
    return torch.randn(3, 32000, generator=torch.Generator().manual_seed(1))


def test_log_mel_equals_torchaudio(noise):
    reference = torchaudio.transforms.MelSpectrogram(
        RATE, 1024, hop_length=256, f_min=50, f_max=7800, n_mels=224
    )(noise)
    made = features.log_mel(noise)
    assert made.shape == (3, 1, 224, 126)
    torch.testing.assert_close(made[:, 0], 10 * reference.clamp_min(1e-10).log10(), rtol=1e-4, atol=1e-3)


def test_baseline_mel_equals_torchaudio(noise):
    reference = torchaudio.transforms.MelSpectrogram(
        RATE,
        1024,
        hop_length=512,
        n_mels=128,
        f_min=0.0,
        f_max=8000,
        norm="slaney",
        mel_scale="slaney",
        pad_mode="constant",
    )(noise)
    made = features.baseline_mel(noise)
    assert made.shape == (3, 63, 128) and features.baseline_mel(torch.zeros(1, 160000)).shape == (1, 313, 128)
    torch.testing.assert_close(made.mT, 10 * reference.clamp_min(2.2e-16).log10(), rtol=1e-4, atol=1e-3)
    assert features.baseline_mel(torch.zeros(1, 16000)).min() == pytest.approx(
        10 * math.log10(2.220446e-16), abs=1e-3
    )


def test_stft_equals_scipy(noise):
    made = features.spectrogram(noise, kind="stft")
    _, _, reference = scipy.signal.stft(
        noise.numpy(), nperseg=1024, noverlap=512, boundary=None, padded=False, scaling="spectrum"
    )
    window_sum = scipy.signal.get_window("hann", 1024).sum()
    np.testing.assert_allclose(made[:, 0].numpy(), np.abs(reference) * window_sum, rtol=1e-3, atol=2e-3)
    angle = features.phase(noise, representation="angle")[:, 0].numpy() * np.pi
    loud = np.abs(reference) * window_sum > 1
    gap = np.angle(np.exp(1j * (angle - np.angle(reference))))
    assert np.abs(gap[loud]).max() < 1e-2


def test_spectrum_equals_numpy(noise):
    np.testing.assert_allclose(
        features.spectrum(noise)[:, 0].numpy(),
        np.abs(np.fft.rfft(noise.numpy()))[:, :16000],
        rtol=1e-3,
        atol=1e-2,
    )


@pytest.mark.parametrize("n_fft, empty", [(1024, 0), (2048, 0)])
def test_the_bank_of_224_bands_has_no_empty_filter(n_fft, empty):
    bank = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 50.0, 7800.0, 224, RATE)
    assert int((bank.sum(0) == 0).sum()) == empty


def test_frames_and_bins_of_a_twelve_second_clip():
    wave = torch.zeros(1, 192000)
    assert features.spectrum(wave).shape == (1, 1, 96000)
    assert features.spectrogram(wave).shape == (1, 1, 513, 374)
    assert features.spectrogram(wave, kind="mel", n_mels=128).shape == (1, 1, 128, 374)
    for name in features.PHASE:
        assert features.phase(wave, representation=name).shape == (1, 2 if name == "cossin" else 1, 513, 374)


@pytest.mark.parametrize("hz", [250.0, 1000.0, 5012.5])
def test_a_tone_lands_in_its_bin_at_its_level(hz):
    spectrum = features.spectrum(tone(hz, amplitude=0.5))[0, 0]
    assert int(spectrum.argmax()) == round(hz * 2)
    assert float(spectrum.max()) == pytest.approx(0.5 * 16000, rel=1e-3)
    stft = features.spectrogram(tone(hz, amplitude=0.5))[0, 0]
    assert int(stft.mean(1).argmax()) == round(hz / RATE * 1024)
    louder, quieter = features.log_mel(tone(hz)), features.log_mel(tone(hz, amplitude=0.1))
    assert float(louder.max() - quieter.max()) == pytest.approx(
        20.0, abs=0.05
    )  # a tenth of the amplitude is 20 dB less


def test_instantaneous_frequency_says_how_far_a_tone_is_from_its_bin():
    k, hop = 64, 512
    for offset_hz in (0.0, 3.0, -5.0):
        hz = k * RATE / 1024 + offset_hz
        value = features.phase(tone(hz), representation="if")[0, 0, k]
        expected = 2 * hop * offset_hz / RATE  # phase advance 2π·Δf·hop/rate, in units of π
        torch.testing.assert_close(value, torch.full_like(value, expected), atol=2e-3, rtol=0)


def test_cossin_is_if_on_a_circle_weighted_by_magnitude(noise):
    both = features.phase(noise, representation="cossin")
    difference = features.phase(noise, representation="if")[:, 0] * math.pi
    magnitude = torch.log1p(features.spectrogram(noise)[:, 0])
    torch.testing.assert_close(both[:, 0], magnitude * difference.cos(), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(both[:, 1], magnitude * difference.sin(), atol=2e-3, rtol=1e-3)


def test_group_delay_finds_a_click_in_its_frame():
    wave = torch.zeros(1, 4096)
    wave[0, 512 + 700] = 1.0  # sample 700 of frame 1
    delay = features.phase(wave, representation="gd")[0, 0, 5:500, 1]
    torch.testing.assert_close(delay, torch.full_like(delay, (700 - 512) / 512), atol=1e-3, rtol=0)


def test_a_shift_of_the_clip_changes_angle_but_not_if():
    wave = tone(1003.0, 3.0)
    a, b = wave[:, :32000], wave[:, 77 : 77 + 32000]
    k = round(1003 / RATE * 1024)
    change = {
        name: (
            (features.phase(a, representation=name) - features.phase(b, representation=name))[0, 0, k]
            .abs()
            .mean()
        )
        for name in ("angle", "if")
    }
    assert change["angle"] > 0.1 and change["if"] < 1e-3


def test_a_clip_alone_has_the_features_it_has_in_a_batch(noise):
    for make in (
        features.log_mel,
        features.baseline_mel,
        features.spectrum,
        features.spectrogram,
        features.phase,
    ):
        torch.testing.assert_close(make(noise)[1:2], make(noise[1:2]), rtol=1e-4, atol=1e-4)


def test_refusals():
    with pytest.raises(errors.InputError, match=r"waveforms have shape \(100,\), expected \(n, samples\)"):
        features.log_mel(torch.zeros(100))
    with pytest.raises(errors.InputError, match="waveforms have 100 samples, expected at least n_fft = 1024"):
        features.spectrogram(torch.zeros(1, 100))
    with pytest.raises(errors.InputError, match="unknown phase representation 'cosin'; did you mean cossin"):
        features.phase(torch.zeros(1, 2048), representation="cosin")


VARIANTS = [
    (features.log_mel, {}),
    (features.baseline_mel, {}),
    (features.spectrogram, {}),
    (features.spectrogram, {"kind": "mel"}),
]
VARIANTS += [(features.phase, {"representation": name}) for name in features.PHASE]


@pytest.mark.parametrize("function, more", VARIANTS)
def test_pieces_are_the_batch(function, more, monkeypatch):
    wave = torch.randn(7, 6000, generator=torch.Generator().manual_seed(0))
    whole = function(wave, **more)
    monkeypatch.setattr(features, "CHUNK", 13000)  # two waveforms, and one that is left over
    torch.testing.assert_close(function(wave, **more), whole)


# ---------------------------------------------------------------- modulation spectrum


def test_modulation_spectrum_equals_its_definition():
    mel = torch.randn(3, 10, 77, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    made = features.modulation_spectrum(mel, frame_hz=31.25, groups=4, bins=5)
    assert made.shape == (3, 20) and made.dtype == torch.float64
    for one, level in zip(made.numpy(), mel.numpy()):
        np.testing.assert_allclose(one, oracle.modulation(level, 31.25, 4, 5), rtol=1e-9)


@pytest.mark.parametrize("hz", [0.9, 3.0, 11.0, 40.0])
@pytest.mark.parametrize("seconds", [3.0, 10.0])
def test_a_swelling_tone_lies_in_the_bin_of_its_speed(hz, seconds):
    """Whatever the length of the clip, and only in the group of its band."""
    noise = 1e-3 * torch.randn(1, int(RATE * seconds), generator=torch.Generator().manual_seed(0))
    swell = 1.2 + tone(hz, seconds)
    wave = noise + tone(300.0, seconds) * swell
    mel = features.log_mel(wave, n_fft=256, win=256, hop=128, n_mels=32)[:, 0]
    made = features.modulation_spectrum(mel, frame_hz=RATE / 128)[0].reshape(8, 14)
    edges = np.geomspace(0.5, RATE / 256, 15)
    group, place = divmod(int(made.argmax()), 14)
    assert group <= 1 and edges[place] <= hz < edges[place + 1]


def test_constant_levels_have_no_modulation_and_bad_sizes_are_refused():
    assert (features.modulation_spectrum(torch.full((1, 8, 50), -20.0), frame_hz=100.0) == -100).all()
    with pytest.raises(errors.InputError, match="got 9 groups for 8 mel bands, expected 1 to 8"):
        features.modulation_spectrum(torch.zeros(1, 8, 50), frame_hz=100.0, groups=9)
    with pytest.raises(errors.InputError, match="frame rate is 1 Hz, expected more than 1 Hz to resolve"):
        features.modulation_spectrum(torch.zeros(1, 8, 50), frame_hz=1.0)


def test_log_mel_keeps_double_precision():
    wave = torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    made = features.log_mel(wave.double(), n_mels=40)
    assert made.dtype == torch.float64
    torch.testing.assert_close(made.float(), features.log_mel(wave, n_mels=40), rtol=1e-4, atol=1e-3)
