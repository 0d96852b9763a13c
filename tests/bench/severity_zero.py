"""Where there is nothing to find: do the classifier's intervals leave out chance more often than they should?

Synthetic machines at severity 0: anomalies are draws of the normal distribution, so the AUC of each domain by
itself, its normals against its own anomalies, is 0.5. (The official AUC_source and AUC_target compare with
the anomalies of both domains and lie off 0.5 wherever the target scores higher at all.) Every seed makes new
machines and a new, tiny training. A 95 % interval may leave out 0.5 in 1 of 20 cases; intervals of one
training's back-ends, and of the domains of one machine, are not independent.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from asdlib import detectors
from asdlib.data import index, synthetic
from asdlib.data.store import open_store
from asdlib.detectors import base
from asdlib.evaluation import metrics, roc
from asdlib.studies import config
from tests.sizes import Context, detector_of

SEEDS = 8
TINY = (
    "synthetic.severity=[0.0]",
    "synthetic.seconds=3.0",
    "synthetic.train_source=40",
    "classifier.epochs=2",
)


def main() -> None:
    """Print, per back-end, how many intervals leave out 0.5 and how likely so many are."""
    torch.set_num_threads(1)
    outside, values = {}, {}
    for seed in range(SEEDS):
        cfg = config.load("demo", [*TINY, f"synthetic.seed={seed}"])
        with tempfile.TemporaryDirectory() as folder:
            synthetic.write_tree(Path(folder) / "data", cfg.synthetic)
            store = open_store(*index.index([Path(folder) / "data"]), Path(folder) / "store", cfg.data)
            context = Context(cfg, store, torch.device("cpu"), seed)
            table = base.detect(
                detector_of(detectors.DETECTORS["classifier"], context),
                context.store,
                sorted(store.clips["machine"].unique()),
            )
        table = table[table["split"] == "test"]
        for (component, _), part in table.groupby(["component", "machine"]):
            for domain in ("source", "target"):
                here, column = part[part["domain"] == domain], roc.THREE.index(f"auc_{domain}")
                arrays = [here[name].to_numpy() for name in ("score", "domain", "label")]
                weights = roc.bootstrap_weights(*arrays[1:], cfg.metrics.bootstrap, seed)
                low, high = np.quantile(roc.bootstrap(*arrays, weights)[:, column], [0.025, 0.975])
                outside.setdefault(component, []).append(low > 0.5 or high < 0.5)
                values.setdefault(component, []).append(roc.grid(*arrays)[column])
        over_all = metrics.table(table, cfg.metrics, seed).query("machine == 'all' and component == 'score'")
        official = ", ".join(
            f"{row.metric} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in over_all.itertuples()
        )
        print(f"seed {seed}: official {official}", flush=True)
    print(f"{'back-end':16} {'leave out 0.5':>14} {'P(so many | 5 %)':>17} {'mean AUC':>9} {'sd':>6}")
    for component, left_out in outside.items():
        chance = stats.binom.sf(sum(left_out) - 1, len(left_out), 0.05)
        mean, sd = np.mean(values[component]), np.std(values[component])
        print(f"{component:16} {sum(left_out):>5} of {len(left_out):<5} {chance:17.3f} {mean:9.3f} {sd:6.3f}")
