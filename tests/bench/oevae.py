"""OEVAE on modeled machines: does the extractor separate, is z_d tied to v and z_c free of the domain, and
what happens without faults.

`oevae` trains the demo study's detector: every machine once, the gearbox with further seeds, and once with
shuffled training conditions. `oevae_null` trains a small one on machines at severity 0, where every interval
should hold 0.5 about as often as it says.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from asdlib.analysis import latents
from asdlib.data import index, synthetic
from asdlib.data.store import open_store
from asdlib.detectors.base import detect
from asdlib.detectors.oevae import OEVAE
from asdlib.evaluation import metrics
from asdlib.scoring import fusion
from asdlib.studies import config
from tests.sizes import Context, detector_of

SEEDS, NULL_SEEDS = (1, 2), range(6)


def recordings(cfg, folder):
    """Store of the study's synthetic machines."""
    synthetic.write_tree(folder / "raw", cfg.synthetic, cfg.data.sample_rate)
    return open_store(*index.index([folder / "raw"]), folder / "store", cfg.data)


def shuffled(table, machine):
    """The clip table with the training conditions of a machine dealt out anew within each domain."""
    table, rng = table.copy(), np.random.default_rng(0)
    columns = [name for name in table if name.startswith("attr_")] + ["level_db"]
    for _, rows in table[(table["machine"] == machine) & (table["split"] == "train")].groupby("domain"):
        table.loc[rows.index, columns] = rows[columns].to_numpy()[rng.permutation(len(rows))]
    return table


def row(cfg, store, machine, seed, what=""):
    """One training, measured."""
    began = time.process_time()
    detector = detector_of(OEVAE, Context(cfg, store, torch.device("cpu"), seed))
    scores = fusion.systems(detect(detector, store, [machine]), cfg.fusion)
    seconds = time.process_time() - began
    found = latents.arranged(detector.tensors(), store.clips, machine, cfg.oevae.domain_latent)
    told, refits = latents.measures(found, seed), latents.refit_table(found).set_index("k_scale")["R²"]
    reached = metrics.table(scores, cfg.metrics.replace(bootstrap=20), seed).query(
        "machine == @machine and metric == 'hmean'"
    )
    reached = reached.set_index("component")["value"]
    value = {
        (s, o): latents.value_of(told, s, o, m)[0]
        for s, o, m in (
            ("z_d", "v", "R²"),
            ("embedding", "domain", "balanced accuracy"),
            ("z_c", "domain", "balanced accuracy"),
        )
    }
    alive = latents.channels(found).groupby("part")["alive"].sum()
    return {
        "machine": machine,
        "seed": seed,
        "what": what,
        "cpu s": seconds,
        "held-out accuracy": detector.history["held_out_accuracy"].iloc[-1],
        "R2 z_d": value["z_d", "v"],
        "R2 refit k5": refits.get(5.0),
        "domain, embedding": value["embedding", "domain"],
        "domain, z_c": value["z_c", "domain"],
        "alive z_c": alive["z_c"],
        "alpha": reached["alpha"],
        "beta": reached["beta"],
        "score": reached["score"],
    }


def main():
    torch.set_num_threads(1)
    cfg = config.load("demo")
    with tempfile.TemporaryDirectory() as folder:
        store = recordings(cfg, Path(folder))
        rows = [row(cfg, store, machine, 0) for machine in cfg.synthetic.machines]
        rows += [row(cfg, store, "gearbox", seed) for seed in SEEDS]
        other = dataclasses.replace(store, clips=shuffled(store.clips, "gearbox"))
        rows.append(row(cfg, other, "gearbox", 0, "v shuffled"))
    print(pd.DataFrame(rows).round(3).to_string(index=False))


def null():
    torch.set_num_threads(1)
    base = config.load(
        "demo",
        [
            "synthetic.train_source=40",
            "synthetic.train_target=6",
            "synthetic.test=20",
            "synthetic.seconds=2.0",
            "synthetic.severity=0.0",
            "oevae.width=8",
            "oevae.epochs=3",
            "oevae.k_scales=[]",
            "oevae.features.n_mels=32",
            "oevae.features.segments=3",
            "oevae.features.segment_s=1.0",
            "metrics.bootstrap=500",
        ],
    )
    rows = []
    for seed in NULL_SEEDS:
        cfg = base.replace(synthetic=base.synthetic.replace(seed=seed))
        with tempfile.TemporaryDirectory() as folder:
            store = recordings(cfg, Path(folder))
            for machine in cfg.synthetic.machines:
                detector = detector_of(OEVAE, Context(cfg, store, torch.device("cpu"), seed))
                scores = fusion.systems(detect(detector, store, [machine]), cfg.fusion)
                for domain in (
                    "source",
                    "target",
                ):  # anomalies of the other domain are not draws of this domain's normal clips
                    part = scores[
                        (scores["domain"] == domain) & scores["component"].isin(["alpha", "beta", "score"])
                    ]
                    found = metrics.table(part, cfg.metrics, seed).query(
                        "machine == @machine and metric == @name",
                        local_dict={"machine": machine, "name": f"auc_{domain}"},
                    )
                    rows.append(found.assign(domain=domain))
    table = pd.concat(rows)
    table["outside"] = (table["low"] > 0.5) | (table["high"] < 0.5)
    print(
        table.groupby("component")
        .agg(
            intervals=("value", "size"),
            mean=("value", "mean"),
            sd=("value", "std"),
            outside=("outside", "sum"),
        )
        .round(3)
        .to_string()
    )
    print("expected outside: 5 %")
