"""Losses against plain loops, torch.distributions and their special cases."""

import math

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F

from asdlib import errors
from asdlib.models import losses

C, S, N, D = 5, 3, 8, 6


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def soft(n: int, c: int, seed: int = 0) -> torch.Tensor:
    """Labels of mixup: two non-zero entries per row."""
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(n, 1, generator=g)
    eye = torch.eye(c)
    return w * eye[torch.randint(c, (n,), generator=g)] + (1 - w) * eye[torch.randint(c, (n,), generator=g)]


@pytest.mark.parametrize(
    ("classes", "expected"), [(148, 10.988), (67, 9.866), (4 * 148, 12.949), (4 * 67, 11.828)]
)
def test_initial_scale(classes, expected):
    assert losses.initial_scale(classes, 16) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("subclusters", [1, 3])
def test_sub_cluster_adacos_by_loops(subclusters):
    head = losses.SubClusterAdaCos(D, C, subclusters)
    e, y = torch.randn(N, D), soft(N, C)
    slow = oracle.sub_cluster_adacos(
        e.numpy(), head.centers.detach().numpy(), y, C, subclusters, float(head.scale)
    )
    assert head(e, y).item() == pytest.approx(slow, rel=1e-5)
    torch.testing.assert_close(head.class_log_prob(head.cosines(e)).exp().sum(1), torch.ones(N))


def test_one_sub_cluster_is_adacos():
    head = losses.SubClusterAdaCos(D, C, 1)
    e, label = torch.randn(N, D), torch.randint(C, (N,))
    scale = math.sqrt(2) * math.log(C - 1)
    logits = scale * F.normalize(e) @ F.normalize(head.centers).T
    torch.testing.assert_close(head(e, F.one_hot(label, C).float()), F.cross_entropy(logits, label))


def test_one_sub_cluster_adapts_as_adacos():
    """Plain AdaCos: s = ln(mean Σ exp(s·cos)) / cos(min(π/4, median angle to the own center))."""
    head = losses.SubClusterAdaCos(D, C, 1, scale="adaptive")
    label = torch.arange(C).repeat(3)
    e = head.centers.detach()[label] + 0.05 * torch.randn(
        3 * C, D
    )  # near their centers: the median angle is below π/4
    before = float(head.scale)
    cosines = head.cosines(e)
    own = cosines.gather(1, label[:, None]).acos().median()
    assert own < math.pi / 4
    expected = (before * cosines).exp().sum(1).mean().log() / own.cos()
    head.train()(e, F.one_hot(label, C).float())
    assert float(head.scale) == pytest.approx(expected.item(), rel=1e-4)


def test_adaptive_scale_by_loops_and_its_saturation():
    head = losses.SubClusterAdaCos(D, C, S, scale="adaptive")
    e, y = torch.randn(N, D), soft(N, C)
    before, cosines = float(head.scale), head.cosines(e).detach()
    slow, median = oracle.adapted_scale(cosines, y, C, S, before)
    assert float(head.adapted_scale(cosines, y)) == pytest.approx(slow, rel=1e-5)
    assert median > math.pi / 4  # a sum over sub-clusters: the angle never matters for S >= 2
    log_mean = torch.logsumexp((before * cosines).flatten(), 0) - math.log(N)
    head.train()
    value = head(e, y)
    assert float(head.scale) == pytest.approx(math.sqrt(2) * float(log_mean), rel=1e-5)
    used = oracle.sub_cluster_adacos(e.numpy(), head.centers.detach().numpy(), y, C, S, float(head.scale))
    assert float(value.detach()) == pytest.approx(used, rel=1e-5)  # the new scale is used in the same step
    scale = float(head.scale)
    head.eval()(e, y)
    assert float(head.scale) == scale


def test_adaptive_labels_belong_to_their_own_columns():
    """Centers are grouped by class: with angles 0 for class 0 and large elsewhere, a label of class 0 gives a
    small median.
    """
    head = losses.SubClusterAdaCos(D, 3, 2, scale="adaptive")
    cosines = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    near = head.adapted_scale(cosines, torch.tensor([[1.0, 0, 0]]))
    far = head.adapted_scale(cosines, torch.tensor([[0, 1.0, 0]]))
    assert float(far) == pytest.approx(math.sqrt(2) * near.item(), rel=1e-3)


def test_centers_frozen_or_trainable():
    frozen, free = (losses.SubClusterAdaCos(D, C, S, trainable=t) for t in (False, True))
    assert not list(frozen.parameters()) and len(list(free.parameters())) == 1
    assert (
        set(frozen.state_dict()) == set(free.state_dict()) == {"centers", "scale"}
    )  # both are restored from a checkpoint
    e = torch.randn(N, D, requires_grad=True)
    (frozen(e, soft(N, C)) + free(e, soft(N, C))).backward()
    assert frozen.centers.grad is None and free.centers.grad.abs().sum() > 0 and e.grad.abs().sum() > 0


def test_large_cosines_stay_finite():
    head = losses.SubClusterAdaCos(D, C, S)
    head.scale.fill_(500.0)
    e = (1e4 * torch.randn(N, D)).requires_grad_()
    value = head(e, soft(N, C))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(e.grad).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert head(e.bfloat16(), soft(N, C)).dtype == torch.float32


def test_kl_is_torch_distributions():
    mu, logvar, prior = torch.randn(20, 7), torch.randn(20, 7), torch.randn(20, 1)
    posterior = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(
        posterior, torch.distributions.Normal(prior.expand(20, 7), 1.0)
    )
    torch.testing.assert_close(losses.gaussian_kl(mu, logvar, prior), expected)
    assert torch.equal(losses.gaussian_kl(torch.zeros(3), torch.zeros(3)), torch.zeros(3))


def vae_output(n: int = 10, latent: int = 7, dim: int = 9) -> losses.VAEOutput:
    mu = torch.randn(n, latent)
    return losses.VAEOutput(mu, torch.randn(n, latent), mu, torch.randn(n, dim), torch.randn(n, dim))


def test_equations_2_to_4_by_loops():
    out, logit, kv = vae_output(), torch.randn(10), torch.randn(10)
    t = torch.tensor([1, 1, 0, 1, 0, 0.3, 1, 0.999, 0, 1])
    slow = oracle.oevae_terms(t, logit, out.mu, out.logvar, out.h, out.h_hat, kv, 3)
    terms = losses.vae_terms(out, kv, domain=3, normal=t == 1, conditioned=torch.ones(10, dtype=torch.bool))
    assert float(losses.machine_loss(logit, t)) == pytest.approx(slow["machine"], rel=1e-5)
    for name, value in terms._asdict().items():
        assert float(value) == pytest.approx(slow[name], rel=1e-5)


def test_machine_loss_is_bounded_below():
    """Eq. 2 as printed falls without limit for a negative with a very negative logit; this form does not."""
    logit = torch.linspace(-200, 200, 41)
    for t in (0.0, 0.3, 1.0):
        each = torch.stack([losses.machine_loss(value[None], torch.tensor([t])) for value in logit])
        assert (each >= 0).all()


def test_pseudo_anomalies_never_reach_the_vae_terms():
    leaves = [torch.randn(6, 7, requires_grad=True), torch.randn(6, 7, requires_grad=True)]
    h, h_hat = torch.randn(6, 9, requires_grad=True), torch.randn(6, 9, requires_grad=True)
    out = losses.VAEOutput(*leaves, leaves[0], h, h_hat)
    normal = torch.tensor([True, False, True, False, False, True])
    conditioned = torch.tensor([True, True, True, True, True, False])
    prior = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, float("nan")])
    terms = losses.vae_terms(out, prior, domain=3, normal=normal, conditioned=conditioned)
    sum(terms).backward()
    for leaf in (*leaves, h, h_hat):
        assert (leaf.grad[~normal] == 0).all() and leaf.grad[0].abs().sum() > 0
    assert (leaves[0].grad[5, :3] == 0).all()  # a normal sample without a v is free in z_d
    alone = losses.VAEOutput(*(value[normal & conditioned].detach() for value in out))
    everyone = torch.ones(2, dtype=torch.bool)
    kept = losses.vae_terms(alone, prior[[0, 2]], domain=3, normal=everyone, conditioned=everyone)
    assert float(kept.kl_d) == pytest.approx(float(terms.kl_d.detach()), rel=1e-5)


def test_no_normal_sample_gives_zero():
    nobody = torch.zeros(10, dtype=torch.bool)
    terms = losses.vae_terms(vae_output(), torch.zeros(10), domain=3, normal=nobody, conditioned=nobody)
    assert [float(term) for term in terms] == [0, 0, 0]


def test_kl_per_channel_adds_up():
    out, kv = vae_output(), torch.randn(10)
    mask = {"domain": 3, "normal": torch.arange(10) < 6, "conditioned": torch.arange(10) % 2 == 0}
    each = losses.kl_per_channel(out, kv, **mask)
    terms = losses.vae_terms(out, kv, **mask)
    assert float(each[:3].sum()) == pytest.approx(float(terms.kl_d), rel=1e-5)
    assert float(each[3:].sum()) == pytest.approx(float(terms.kl_c), rel=1e-5)


def test_scale_gradient():
    x = torch.randn(4, requires_grad=True)
    y = losses.scale_gradient(x, 1e-7)
    assert torch.equal(y, x)
    (y * torch.arange(4.0)).sum().backward()
    torch.testing.assert_close(x.grad, 1e-7 * torch.arange(4.0))


def test_alpha_modes_are_what_they_say():
    out = vae_output()
    alpha = losses.alpha_scores(out, domain=3)
    standard = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(alpha["nll"], -standard.log_prob(out.mu[:, 3:]).sum(1))
    posterior = torch.distributions.Normal(out.mu[:, 3:], (0.5 * out.logvar[:, 3:]).exp())
    torch.testing.assert_close(alpha["kl"], torch.distributions.kl_divergence(posterior, standard).sum(1))
    torch.testing.assert_close(
        alpha["kl"], alpha["expected_nll"] - posterior.entropy().sum(1)
    )  # KL = cross-entropy − entropy
    torch.testing.assert_close(alpha["neg_elbo"], alpha["kl"] + alpha["recon"])
    moved = out._replace(mu=torch.cat([out.mu[:, :3] + 100, out.mu[:, 3:]], 1))
    torch.testing.assert_close(losses.alpha_scores(moved, domain=3), alpha)  # z_d has no say


def test_alpha_of_a_perfect_latent():
    """56 standard normal channels: mean 79.4, standard deviation 5.3 (METHOD 6.2)."""
    mu = torch.from_numpy(np.random.default_rng(0).normal(size=(20000, 64)).astype("float32"))
    alpha = losses.alpha_scores(losses.VAEOutput(mu, torch.zeros_like(mu), mu, mu, mu), domain=8)["nll"]
    assert float(alpha.mean()) == pytest.approx(79.46, abs=0.2) and float(alpha.std()) == pytest.approx(
        5.29, abs=0.1
    )


def test_refusals():
    with pytest.raises(errors.InputError, match=r"labels have shape \(8, 4\), expected \(8, 5\)"):
        losses.SubClusterAdaCos(D, C, S)(torch.randn(N, D), torch.rand(N, 4))
    with pytest.raises(
        errors.InputError, match="got 1 classes of 2 sub-clusters, expected at least 3 centers"
    ):
        losses.SubClusterAdaCos(D, 1, 2)
    with pytest.raises(errors.InputError, match="did you mean adaptive"):
        losses.SubClusterAdaCos(D, C, S, scale="adaptiv")
