"""Measures of a latent space, on latents whose truth is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from asdlib import errors
from asdlib.analysis import latents
from asdlib.models import oevae
from asdlib.models.oevae import OEVAE

D, C, CLIPS, SEGMENTS = 3, 5, 120, 4


def made(v_in_d=True, domain_in_c=False, alive=True, v_in_c=False):
    """Latents with a known content: 120 clips of 4 segments, half of them trained on, a quarter of the target
    domain.
    """
    rng = np.random.default_rng(0)
    number = np.arange(CLIPS)
    domain = np.where(number % 4 == 3, "target", "source")
    v = (number // 4 % 4).astype(float)
    split, trained = np.where(number < 70, "train", "test"), (number < 60).astype(np.uint8)
    label = np.where((split == "test") & (number % 5 == 0), "anomaly", "normal")
    table = pd.DataFrame(
        {"clip": number.astype(str), "machine": "fan", "domain": domain, "split": split, "label": label}
    )
    prior = 5 * (v - 1.5)
    clip = np.repeat(number, SEGMENTS)
    z = 0.3 * rng.normal(size=(len(clip), D + C)) if alive else 0.001 * rng.normal(size=(len(clip), D + C))
    z[:, :D] += prior[clip, None] if v_in_d else 0
    z[:, D] += 3 * (domain[clip] == "target") if domain_in_c else 0
    z[:, D + 1] += v[clip] if v_in_c else 0
    embedding = np.c_[v[clip], domain[clip] == "target", rng.normal(size=(len(clip), 4))] + 0.1 * rng.normal(
        size=(len(clip), 6)
    )
    tensors = {
        "embedding": embedding.astype(np.float32),
        "z_mean": z.astype(np.float32),
        "z_logvar": np.full(z.shape, -6, np.float32),
        "clip": clip,
        "rows": number,
        "v": v,
        "prior": prior.astype(np.float32),
        "trained": trained,
        "z_mean_k5": z.astype(np.float32),
        "z_mean_k1": z[:, ::-1].astype(np.float32),
    }
    tensors |= {f"z_logvar_k{scale}": tensors["z_logvar"] for scale in (1, 5)}
    return tensors, table


def arranged(**truth):
    return latents.arranged(*made(**truth), "fan", D)


def values(found):
    table = pd.concat([latents.measures(found), latents.information(found)])
    return table, lambda *which: latents.value_of(table, *which)[0]


def test_what_was_put_in_is_found():
    table, value = values(arranged())
    assert (
        value("z_d", "v", "R²") > 0.95
        and value("embedding", "v", "R²") > 0.95
        and value("z_c", "v", "R²") < 0.2
    )
    assert value("z_d", "v", "balanced accuracy") > 0.9 and value("z_c", "v", "balanced accuracy") < 0.5
    assert (
        value("embedding", "domain", "balanced accuracy") > 0.95
        and 0.25 < value("z_c", "domain", "balanced accuracy") < 0.75
    )
    assert (
        value("z_d", "v", "mutual information (nats)") > 1
        and latents.value_of(table, "z_d", "v", "mutual information (nats)")[1] < 0.5
    )
    leak = values(arranged(domain_in_c=True))[1]
    assert (
        leak("z_c", "domain", "balanced accuracy") > 0.95
        and leak("z_d", "domain", "balanced accuracy") < 0.75
    )
    assert values(arranged(v_in_c=True))[1]("z_c", "v", "R²") > 0.6


def test_verdicts_say_what_is_dead_and_what_lives():
    living, dead, untied = (
        latents.verdict(latents.measures(found), latents.channels(found))
        for found in (arranged(), arranged(v_in_d=False, alive=False), arranged(v_in_d=False))
    )
    assert living.startswith(
        "fan: z_d follows v (R² 1.00); 5 of 5 channels of z_c are active; z_c reveals the domain less than the"
        " embedding"
    )
    assert "fan: this VAE is dead: z_d does not follow v" in dead
    assert "0 of 5 channels of z_c are active" in dead
    assert dead.endswith("α is then nearly constant and uninformative.")
    assert "dead" not in untied and "z_d does not follow v" in untied


def test_fresh_clips_are_normal_and_untrained():
    found = arranged()
    assert (
        found.fresh.sum() == 50
        and not (found.fresh & found.trained).any()
        and (found.clips["label"][found.fresh] == "normal").all()
    )


def test_kl_of_channels_against_torch_distributions():
    found = arranged()
    table = latents.channels(found)
    items = found.fresh[found.clip]
    mu, std = (
        torch.from_numpy(found.z_mean[items]).double(),
        torch.from_numpy(np.exp(0.5 * found.z_logvar[items])).double(),
    )
    mean = torch.zeros_like(mu)
    mean[:, :D] = torch.from_numpy(found.clips["prior"].to_numpy()[found.clip][items])[:, None]
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, std), torch.distributions.Normal(mean, 1.0)
    ).mean(0)
    np.testing.assert_allclose(table["kl"], expected, rtol=1e-5)
    assert list(table["part"]) == ["z_d"] * D + ["z_c"] * C and table["alive"].all()
    assert not latents.channels(arranged(v_in_d=False, alive=False))["alive"].any()


def test_refits_are_judged_by_their_scale():
    table = latents.refit_table(arranged())
    assert list(table["k_scale"]) == [1.0, 5.0]
    assert table["R²"].iloc[1] > 0.95 and table["R²"].iloc[0] < 0.95


def test_what_cannot_be_judged_is_nan():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    assert np.isnan(latents.r_squared(x, np.zeros(20), x, np.zeros(20))) and np.isnan(
        latents.classifier_accuracy(x, np.zeros(20))
    )
    assert np.isnan(latents.classifier_accuracy(x, np.arange(20) == 0)) and np.isnan(
        latents.mutual_information(x, np.zeros(20))[0]
    )
    tensors, table = made()
    tensors["v"] = np.full(CLIPS, 2.0)
    found = latents.arranged(tensors, table.assign(domain="source"), "fan", D)
    line = latents.verdict(latents.measures(found), latents.channels(found))
    assert "z_d cannot be judged, v is constant" in line and "domain" not in line
    assert latents.traversal(found, None).empty
    assert np.isnan(
        latents.mutual_information(x, np.arange(20).astype(str))
    ).all()  # a condition of its own for every clip
    tensors, table = made()
    untrained = latents.arranged(
        tensors, table.assign(domain=np.where(tensors["trained"], "target", "source")), "fan", D
    )
    assert latents.traversal(untrained, None).empty and np.isnan(
        latents.tie(untrained, untrained.spaces["z_d"])
    )


def test_saturation_is_said():
    history = pd.DataFrame({"epoch": [1, 2, 3], "machine": [0.4, 0.009, 0.0001]})
    assert latents.saturation(history).startswith(
        "Saturated: the binary loss is below 0.01 nats from epoch 2 of 3 on"
    )
    assert (
        latents.saturation(history.assign(machine=0.2))
        == "The binary loss ends at 0.200 nats: the extractor still learns from the pseudo-anomalies."
    )


def test_why_alpha_points_the_way_it_does():
    length = np.arange(20.0)
    short = pd.DataFrame({"label": np.where(length < 10, "anomaly", "normal"), "α": length, "‖h‖": length**2})
    assert latents.why_alpha(short, 0.2, 0.1, 0.3) == (
        "α is below chance (0.20 [0.10, 0.30]). α ranks clips by ‖h‖ (rank correlation +1.00); h of anomalies is"
        " shorter than h of normal clips (AUC of ‖h‖ 0.00)."
    )
    even = short.assign(label=np.where(np.isin(length % 4, (0, 3)), "anomaly", "normal"), α=(7 * length) % 20)
    told = latents.why_alpha(even, 0.48, 0.4, 0.6)
    assert "not distinguishable from chance" in told and "α does not rank clips by ‖h‖" in told
    assert "about as long as" in told
    assert "needs labeled test clips" in latents.why_alpha(
        short.assign(label="unlabeled"), np.nan, np.nan, np.nan
    )


class Decoder(torch.nn.Module):
    """Answers with the embedding whose first entry is the v that z_d stands for."""

    def decoder(self, z):
        return torch.nn.functional.pad((z[:, :1] / 5 + 1.5), (0, 5))


def test_a_traversal_finds_what_it_set():
    walk = latents.traversal(arranged(), Decoder(), steps=4)
    np.testing.assert_allclose(walk["set"], [0, 1, 2, 3])
    np.testing.assert_allclose(walk["found"], walk["set"], atol=0.3)
    assert (walk["low"] <= walk["found"]).all() and walk["moved"].iloc[0] > 0


def test_files_are_read_back_and_a_missing_one_is_refused(tmp_path):
    tensors, table = made()
    with pytest.raises(
        errors.InputError, match=r"embeddings\.safetensors does not exist; run stage 05_oevae of fan first"
    ):
        latents.load(tmp_path, table, "fan", D)
    save_file(tensors, tmp_path / "embeddings.safetensors")
    found = latents.load(tmp_path, table, "fan", D)
    np.testing.assert_array_equal(found.z_mean, tensors["z_mean"])
    settings = oevae.OEVAESettings(width=4, hidden=16, latent=8, domain_latent=3)
    torch.manual_seed(0)
    model = OEVAE(settings)
    save_file(
        {name: value.numpy() for name, value in model.state_dict().items()}, tmp_path / "weights.safetensors"
    )
    vae = latents.load_vae(tmp_path, settings)
    for name, value in vae.state_dict().items():
        assert torch.equal(value, model.vae.state_dict()[name])
    with pytest.raises(errors.InputError, match="does not hold the weights of this VAE"):
        latents.load_vae(tmp_path, settings.replace(latent=6))
