"""The networks: layer sizes against the tables of the cited work, gradients where they belong, refusals in
words.
"""

import oracle
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from asdlib import errors
from asdlib.models import branches, classifier, losses, oevae


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ----------------------------------------------------------------------------------------------------
# branches


def output_sizes(model: nn.Module, kinds, *inputs) -> list[tuple]:
    """Output shapes, batch left out, of the model's modules of the given kinds in the order they run."""
    sizes = []
    chosen = [m for m in model.modules() if isinstance(m, kinds)]
    hooks = [m.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:]))) for m in chosen]
    with torch.no_grad():
        model.eval()(*inputs)
    for hook in hooks:
        hook.remove()
    return sizes


@pytest.mark.parametrize(
    ("seconds", "lengths", "flat"),
    [(12, (1500, 47, 12), 1536), (10, (1250, 40, 10), 1280), (18, (2250, 71, 18), 2304)],
)
def test_spectrum_branch_has_the_table_s_sizes(seconds, lengths, flat):
    bins = seconds * 8000
    branch = branches.SpectrumBranch(bins)
    sizes = output_sizes(branch, branches.SameConv1d, torch.zeros(1, 1, bins))
    assert sizes == [(128, length) for length in lengths]
    assert branch.head[0].in_features == flat
    assert [m.out_features for m in branch.head if isinstance(m, nn.Linear)] == [128] * 5


@pytest.mark.parametrize(
    ("frames", "maps"),
    [
        (374, [(128, 93), (64, 47), (32, 24), (16, 12)]),  # 12 s
        (311, [(128, 77), (64, 39), (32, 20), (16, 10)]),  # 10 s
        (561, [(128, 140), (64, 70), (32, 35), (16, 18)]),  # 18 s
    ],
)
def test_spectrogram_branch_has_the_table_s_sizes(frames, maps):
    branch = branches.SpectrogramBranch(1, 513, center_time=True)
    sizes = output_sizes(branch, (branches.FirstBlock, branches.Block), torch.zeros(1, 1, 513, frames))
    expected = [(channels, *size) for channels, size in zip((16, 32, 64, 128), maps) for _ in range(2)]
    assert sizes == expected
    assert branch.head[1].in_features == 2048 and branch.head[1].out_features == 128
    assert branch.bin_norm.num_features == 513


@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [(374, 7, 2), (513, 7, 2), (93, 3, 2), (128, 3, 2), (96000, 256, 64), (1500, 64, 32), (47, 16, 4)],
)
def test_same_padding_is_keras(size, kernel, stride):
    before, after = branches.same_padding(size, kernel, stride)
    assert (size + before + after - kernel) // stride + 1 == oracle.same_conv_size(size, stride)
    assert 0 <= after - before <= 1
    assert branches.same_padding(374, 7, 2) == (2, 3)


def test_layers_follow_the_sources():
    """No bias but BatchNorm's, PReLU for every ReLU with a slope per channel from 0.25, Keras' BatchNorm, in
    every branch.
    """
    for branch in (branches.SpectrumBranch(4000), branches.SpectrogramBranch(2, 65, center_time=False)):
        kinds = [type(m) for m in branch.modules()]
        assert nn.ReLU not in kinds and nn.PReLU in kinds
        for m in branch.modules():
            if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                assert m.bias is None
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert (m.momentum, m.eps) == (0.01, 1e-3)
            if isinstance(m, nn.PReLU):
                assert (m.weight == 0.25).all()
    gates = [
        m
        for m in branches.SpectrogramBranch(1, 65, center_time=True).modules()
        if isinstance(m, branches.SqueezeExcite)
    ]
    assert len(gates) == 8 and isinstance(gates[0].gate[1], nn.PReLU)


def test_squeeze_excite_by_loops():
    layer = branches.SqueezeExcite(32)
    x = torch.randn(2, 32, 5, 3)
    out = layer(x)
    down, up = layer.gate[0].weight, layer.gate[2].weight
    for i in range(2):
        inner = down @ torch.stack([x[i, c].mean() for c in range(32)])
        gate = torch.sigmoid(up @ torch.where(inner > 0, inner, 0.25 * inner))
        for c in range(32):
            torch.testing.assert_close(out[i, c], x[i, c] * gate[c])


def test_first_blocks_differ_in_their_order():
    order = [
        [type(m).__name__ for m in branches.FirstBlock(16, second=second).residual]
        for second in (False, True)
    ]
    assert order[0] == ["PReLU", "SameConv2d", "BatchNorm2d", "PReLU", "SameConv2d", "SqueezeExcite"]
    assert order[1] == ["PReLU", "SameConv2d", "PReLU", "BatchNorm2d", "SameConv2d", "SqueezeExcite"]


def test_skip_path_carries_the_normalized_input():
    block = branches.Block(16, 16, 1).eval()
    with torch.no_grad():
        block.norm.running_mean.fill_(3.0)
        block.residual[4].weight.zero_()  # the residual vanishes: what is left is BN(x)
    x = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(block(x), block.norm(x))


def test_time_centering_removes_a_constant_spectrum():
    branch = branches.SpectrogramBranch(1, 65, center_time=True).eval()
    x = torch.rand(2, 1, 65, 40)
    torch.testing.assert_close(branch(x), branch(x + torch.rand(2, 1, 65, 1)), atol=1e-4, rtol=1e-4)
    other = branches.SpectrogramBranch(1, 65, center_time=False).eval()
    assert (other(x) - other(x + 1)).abs().max() > 1e-3


def test_l2_covers_kernels_outside_squeeze_excitation():
    branch = branches.SpectrumBranch(4000)
    kernels = branches.regularized(branch)
    assert len(kernels) == 3 + 5
    covered = [value for name, value in branch.named_parameters() if value.ndim > 1 and "gate" not in name]
    expected = sum(float(value.detach().double().square().sum()) for value in covered)
    assert branches.l2_penalty(kernels).item() == pytest.approx(expected, rel=1e-5)
    assert len(branches.regularized(branches.SpectrogramBranch(1, 65, center_time=True))) == 1 + 4 + 3 * 5 + 1


# --------------------------------------------------------------------------------------------------
# classifier

SHORT = {"clip_seconds": 0.75, "n_mels": 40, "dim": 16, "subclusters": 2}


def batch(settings: classifier.ClassifierSettings, n: int = 6, classes: int = 4) -> classifier.Batch:
    wave = torch.randn(n, round(settings.clip_seconds * 16000), generator=generator(1))
    y = F.one_hot(torch.arange(n) % classes, classes).float()
    return classifier.Batch(classifier.branch_inputs(wave, settings), y)


@pytest.mark.parametrize(
    "names",
    [
        ("fft",),
        ("mel",),
        ("phase",),
        ("fft", "mel", "phase"),
        ("mel", "phase"),
        ("fft", "stft256", "stft1024", "stft4096"),
    ],
)
def test_any_subset_of_branches_trains_every_parameter(names):
    settings = classifier.ClassifierSettings(
        branches=names, **{**SHORT, "clip_seconds": 1.0}
    )  # 4096-sample frames need a second
    model = classifier.Classifier(settings, 4).train()
    data = batch(settings)
    assert model(data.features).shape == (6, 16 * len(names))
    parts = model.loss(data, generator())
    parts["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if "gate.0" not in name and "gate.1" not in name:
            assert parameter.grad.abs().sum() > 0, name
    assert not model.plain.centers.requires_grad and model.plain.centers.grad is None
    assert (model.featex is None) == (len(names) == 1)
    assert all(torch.isfinite(value) for value in parts.values())


def test_loss_is_the_sum_of_its_parts():
    settings = classifier.ClassifierSettings(featex_weight=0.5, l2=1e-3, **SHORT)
    parts = classifier.Classifier(settings, 4).loss(batch(settings), generator())
    total = parts["plain"] + 0.5 * parts["featex"] + 1e-3 * parts["l2"]
    torch.testing.assert_close(parts["loss"], total)
    assert classifier.Classifier(settings, 4).featex.classes == 16


@pytest.mark.parametrize("representation", ["angle", "cossin", "if", "gd"])
def test_all_phase_representations(representation):
    settings = classifier.ClassifierSettings(branches=("fft", "phase"), phase_repr=representation, **SHORT)
    model = classifier.Classifier(settings, 4)
    assert torch.isfinite(model.loss(batch(settings), generator())["loss"])


def test_paper_dimensions():
    """12 s, three branches of 128, 148 classes: 384-d embeddings, heads of 148·16 and 4·148·16 centers."""
    settings = classifier.ClassifierSettings()
    model = classifier.Classifier(settings, 148)
    assert model.shapes == {"fft": (1, 96000), "mel": (1, 128, 374), "phase": (1, 513, 374)}
    assert model.plain.centers.shape == (148 * 16, 384) and model.featex.centers.shape == (4 * 148 * 16, 384)
    assert float(model.plain.scale) == pytest.approx(10.988, abs=5e-4)
    assert float(model.featex.scale) == pytest.approx(12.949, abs=5e-4)


def test_embedding_in_evaluation_depends_on_the_clip_alone():
    torch.manual_seed(0)
    settings = classifier.ClassifierSettings(**SHORT)
    model = classifier.Classifier(settings, 4).eval()
    data = batch(settings)
    with torch.no_grad():
        together = model(data.features)
        alone = torch.cat(
            [model({name: x[i : i + 1] for name, x in data.features.items()}) for i in range(6)]
        )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.class_probabilities(data.features).sum(1), torch.ones(6))


def test_a_few_steps_learn_and_repeat_by_seed():
    settings = classifier.ClassifierSettings(branches=("fft", "mel"), mixup_prob=0.0, **SHORT)
    tone = torch.sin(
        2 * torch.pi * torch.arange(12000) * torch.tensor([400.0, 900.0, 1500.0, 2500.0])[:, None] / 16000
    )
    wave = tone.repeat(2, 1) + 0.1 * torch.randn(8, 12000)
    data = classifier.Batch(classifier.branch_inputs(wave, settings), torch.eye(4).repeat(2, 1))
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        model, draws, losses_seen = classifier.Classifier(settings, 4), generator(4), []
        optimizer = torch.optim.Adamax(model.parameters(), lr=3e-3)
        for _ in range(12):
            parts = model.loss(data, draws)
            optimizer.zero_grad()
            parts["loss"].backward()
            optimizer.step()
            losses_seen.append(parts["plain"].item())
        runs.append(losses_seen)
    assert runs[0][-1] < 0.5 * runs[0][0]
    assert runs[0] == runs[1]


def test_classifier_refusals():
    settings = classifier.ClassifierSettings(**SHORT)
    model = classifier.Classifier(settings, 4)
    longer = classifier.branch_inputs(torch.zeros(2, 16000), settings)
    with pytest.raises(
        errors.InputError,
        match=r"branch fft: features have shape \(1, 8000\), expected \(1, 6000\) for clips of 0.75 s",
    ):
        model(longer)
    with pytest.raises(errors.InputError, match="no features given for branch mel"):
        model({"fft": torch.zeros(2, 1, 6000)})
    with pytest.raises(errors.InputError, match="unknown branch 'phases'; did you mean phase"):
        classifier.Classifier(classifier.ClassifierSettings(branches=("phases",)), 4)
    with pytest.raises(errors.InputError, match="expected at least one branch, without duplicates"):
        classifier.Classifier(classifier.ClassifierSettings(branches=("fft", "fft")), 4)
    with pytest.raises(errors.InputError, match="expected at least one branch"):
        classifier.Classifier(classifier.ClassifierSettings(branches=()), 4)
    with pytest.raises(
        errors.InputError,
        match=r"branch stft4096: 2049 bins and 4 frames from 0.75 s, expected at least 5 of each",
    ):
        classifier.Classifier(classifier.ClassifierSettings(branches=("stft4096",), **SHORT), 4)
    with pytest.raises(errors.InputError, match="expected at least n_fft = 4096"):
        classifier.Classifier(classifier.ClassifierSettings(branches=("stft4096",), clip_seconds=0.1), 4)


# -------------------------------------------------------------------------------------------------------
# OEVAE

NARROW = {"width": 8, "hidden": 16, "latent": 8, "domain_latent": 3}


def segments(n: int = 8, soft: bool = False) -> oevae.Batch:
    t = torch.tensor([1.0, 0.0] * (n // 2))
    if soft:
        t[0] = 0.4
    return oevae.Batch(torch.randn(n, 1, 64, 40), t, torch.arange(float(n)), torch.ones(n, dtype=torch.bool))


def test_resnet_is_torchvision_s_with_one_channel():
    net = oevae.resnet18()
    reference = torchvision.models.resnet18()
    ours = {name: value.shape for name, value in net.state_dict().items()}
    theirs = {
        name: value.shape for name, value in reference.state_dict().items() if not name.startswith("fc.")
    }
    assert ours.pop("conv1.weight") == (64, 1, 7, 7) and theirs.pop("conv1.weight") == (64, 3, 7, 7)
    assert ours == theirs
    sizes = output_sizes(net, nn.Sequential, torch.zeros(1, 1, 224, 126))
    assert sizes[-1] == (512, 7, 4)  # 2 s: 224 mel bands, 126 frames


@pytest.mark.parametrize("width", [8, 16, 64])
def test_width_scales_every_stage(width):
    net = oevae.resnet18(width)
    with torch.no_grad():
        assert net.eval()(torch.zeros(2, 1, 64, 40)).shape == (2, 8 * width)
    assert [stage[1].conv2.out_channels for stage in (net.layer1, net.layer2, net.layer3, net.layer4)] == [
        width * 2**i for i in range(4)
    ]


def test_oevae_shapes_of_the_report():
    model = oevae.OEVAE(oevae.OEVAESettings())
    assert [m.out_features for m in model.vae.encoder if isinstance(m, nn.Linear)] == [256, 128]
    assert [m.out_features for m in model.vae.decoder if isinstance(m, nn.Linear)] == [256, 512]
    assert model.machine.in_features == 512 and model.vae.domain == 8 and model.attribute is None


@pytest.mark.parametrize("soft", [False, True])
def test_equation_1_from_its_parts(soft):
    for mode, weight in (("split", 1.0), ("literal", 1e-7)):
        model = oevae.OEVAE(oevae.OEVAESettings(vae_grad=mode, **NARROW)).eval()
        data = segments(soft=soft)
        parts = model.loss(data, generator())
        with torch.no_grad():
            out = model(data.x, generator())
        slow = oracle.oevae_terms(
            data.t, out.logit, out.vae.mu, out.vae.logvar, out.h, out.vae.h_hat, data.prior, 3
        )
        for name, value in slow.items():
            assert parts[name].item() == pytest.approx(value, rel=1e-4)
        total = slow["machine"] + weight * (slow["kl_d"] + slow["kl_c"] + slow["recon"])
        assert parts["loss"].item() == pytest.approx(total, rel=1e-4)


def gradients(mode: str, lam: float, *, machine: bool) -> dict[str, torch.Tensor]:
    """Gradients of every parameter; with machine=False only those that come from the VAE's terms."""
    torch.manual_seed(0)
    model = oevae.OEVAE(oevae.OEVAESettings(vae_grad=mode, lambda_vae=lam, **NARROW)).eval()
    parts = model.loss(segments(), generator())
    loss = parts["loss"] if machine else parts["loss"] - parts["machine"]
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {name: g for (name, _), g in zip(model.named_parameters(), grads)}


def test_split_gradient():
    """Under split the VAE's own parameters get the whole gradient and f_FE exactly λ of it; under literal
    both get λ.
    """
    lam = 2.0**-23  # 1.2e-7; a power of two scales float32 without rounding, so that equal means equal
    whole, split, literal = (
        gradients(mode, scale, machine=False)
        for mode, scale in (("literal", 1.0), ("split", lam), ("literal", lam))
    )
    checked = 0
    for name, full in whole.items():
        if name.startswith("machine"):
            continue
        checked += 1
        share = lam if name.startswith("extractor") else 1.0
        torch.testing.assert_close(split[name], share * full, rtol=0, atol=0)
        torch.testing.assert_close(literal[name], lam * full, rtol=1e-5, atol=1e-12)
        assert full.abs().sum() > 0, name
    assert checked > 60
    both, alone = gradients("split", lam, machine=True), gradients("split", 0.0, machine=True)
    torch.testing.assert_close(both["machine.weight"], alone["machine.weight"])  # the head sees Eq. 2 only


def test_pseudo_anomalies_do_not_move_the_vae():
    model = oevae.OEVAE(oevae.OEVAESettings(**NARROW)).eval()
    data = segments(soft=True)
    normal = data.t == 1
    assert normal.sum() == 3
    h = model.embed(data.x).detach().requires_grad_()
    total, _ = model.vae.terms(model.vae(h, generator()), data, normal)
    total.backward()
    assert (h.grad[~normal] == 0).all() and (h.grad[normal].abs().sum(1) > 0).all()


def test_every_parameter_of_oevae_gets_a_gradient():
    model = oevae.OEVAE(oevae.OEVAESettings(attribute_weight=10.0, **NARROW), attributes=3).train()
    data = segments(soft=True)._replace(
        attributes=torch.eye(3)[torch.arange(8) % 3] * (torch.arange(8) % 2 == 0)[:, None]
    )
    parts = model.loss(data, generator())
    parts["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (
            parameter.grad is not None
            and torch.isfinite(parameter.grad).all()
            and parameter.grad.abs().sum() > 0
        ), name
    assert set(parts) == {"loss", "machine", "attribute", "kl_d", "kl_c", "recon", "active", "accuracy"}
    warm = oevae.OEVAE(oevae.OEVAESettings(**NARROW)).eval()
    cold = segments()
    difference = (
        warm.loss(cold, generator())["loss"] - warm.loss(cold._replace(kl_weight=0.0), generator())["loss"]
    )
    kl = warm.loss(cold, generator())
    torch.testing.assert_close(difference, kl["kl_d"] + kl["kl_c"], rtol=1e-3, atol=1e-3)


def test_latent_is_drawn_with_the_generator_only():
    vae = oevae.VAE(12, 16, 8, 3)
    h = torch.randn(4000, 12)
    with torch.no_grad():
        assert torch.equal(vae(h).z, vae(h).mu)
        one, two, other = (vae(h, generator(s)) for s in (1, 1, 2))
    assert torch.equal(one.z, two.z) and not torch.equal(one.z, other.z)
    unit = (one.z - one.mu) / (0.5 * one.logvar).exp()
    assert abs(float(unit.mean())) < 0.02 and abs(float(unit.std()) - 1) < 0.02


def test_refit_ties_z_d_to_the_condition():
    """The VAE alone on cached embeddings: z_d follows k·v where the embedding knows v, and the pull grows
    with k.
    """
    v = torch.randint(3, (256,)).float()
    h = torch.randn(256, 12)
    h[:, 0] = v
    vae = oevae.VAE(12, 32, 8, 3)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    draws = generator()
    data = oevae.VAEBatch(h, 5 * v, torch.ones(256, dtype=torch.bool))
    for _ in range(150):
        optimizer.zero_grad()
        vae.loss(data, draws)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        mu = vae(h).mu
    assert torch.corrcoef(torch.stack([mu[:, 0], v]))[0, 1] > 0.95
    assert abs(float(torch.corrcoef(torch.stack([mu[:, 5], v]))[0, 1])) < 0.5


def test_scores_come_in_every_mode_and_clip_by_clip():
    model = oevae.OEVAE(oevae.OEVAESettings(**NARROW)).eval()
    x = torch.randn(5, 1, 64, 40)
    h, alpha = model.score(x)
    assert h.shape == (5, 64) and list(alpha) == ["nll", "expected_nll", "kl", "recon", "neg_elbo"]
    for i in range(5):
        h_i, alpha_i = model.score(x[i : i + 1])
        torch.testing.assert_close(h_i[0], h[i], rtol=1e-4, atol=1e-5)
        for mode, values in alpha.items():
            torch.testing.assert_close(alpha_i[mode][0], values[i], rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_losses_in_float32():
    model = oevae.OEVAE(oevae.OEVAESettings(**NARROW))
    with torch.autocast("cpu", torch.bfloat16):
        parts = model.loss(segments(), generator())
    assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in parts.values())
    settings = classifier.ClassifierSettings(**SHORT)
    net = classifier.Classifier(settings, 4)
    with torch.autocast("cpu", torch.bfloat16):
        value = net.loss(batch(settings), generator())["loss"]
    value.backward()
    assert value.dtype == torch.float32 and all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_pretrained_weights_come_from_disk_only(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = oevae.OEVAESettings(pretrained=True)
    with pytest.raises(
        errors.InputError,
        match=r"checkpoints/resnet18-f37072fd.pth not found; download https://download.pytorch.org",
    ):
        oevae.OEVAE(settings)
    with pytest.raises(errors.InputError, match="width 8, expected 64"):
        oevae.OEVAE(oevae.OEVAESettings(pretrained=True, width=8))
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not weights")
    with pytest.raises(errors.InputError, match="does not contain torchvision's resnet18"):
        oevae.OEVAE(oevae.OEVAESettings(pretrained=True, pretrained_file=str(file)))
    reference = torchvision.models.resnet18()
    torch.save(reference.state_dict(), file)
    model = oevae.OEVAE(oevae.OEVAESettings(pretrained=True, pretrained_file=str(file)))
    gray = torch.randn(2, 1, 64, 40)
    with torch.no_grad():
        reference.fc = nn.Identity()
        torch.testing.assert_close(
            model.extractor.eval()(gray), reference.eval()(gray.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4
        )


def test_oevae_refusals():
    with pytest.raises(errors.InputError, match="domain_latent is 64 of 64"):
        oevae.OEVAE(oevae.OEVAESettings(domain_latent=64))
    model = oevae.OEVAE(oevae.OEVAESettings(attribute_weight=1.0, **NARROW), attributes=2)
    with pytest.raises(errors.InputError, match="no labels for the attribute head"):
        model.loss(segments(), generator())
    with pytest.raises(
        errors.InputError, match=r"log-mel segments have shape \(8, 64, 40\), expected \(n, 1, mels, frames\)"
    ):
        model.embed(torch.zeros(8, 64, 40))


def test_settings_are_the_report_s():
    s = oevae.OEVAESettings()
    f = s.features
    assert (f.n_mels, f.n_fft, f.win_length, f.hop_length, f.low_hz, f.high_hz) == (
        224,
        1024,
        1024,
        256,
        50.0,
        7800.0,
    )
    assert (s.latent, s.domain_latent, s.lambda_vae, s.batch, s.epochs, s.lr, s.width) == (
        64,
        8,
        1e-7,
        128,
        20,
        1e-3,
        64,
    )
    assert losses.initial_scale(148, classifier.ClassifierSettings().subclusters) == pytest.approx(
        10.988, abs=5e-4
    )
