"""Model of the tuner: metrics of one point of ω, η, k and k_scale, its gain over the default, and its file.

`Tuner` is a traitlets class without widgets: set `omega`, `eta`, `k`, `prior` or `system`, read `table()`,
`curves()`, `bands()`, `gains()`, `map()`. `table` takes less than 1 ms for 7 machines × 200 clips; curves are
looked up in the `Sweep`, or computed if it does not contain the η. `save` writes the point as a TOML file
that any study can include, with the rule that chose it. Choices by hand are made with test labels visible.

Sources: METHOD 3.7, 8.5.  Notebook: 08_tuning
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import traitlets

from asdlib import errors, io
from asdlib.analysis import tuning as sweeps
from asdlib.analysis.tuning import Choice, Parts

BY_HAND = "hand, with test labels visible: not a claim"
BATCH = "a batch run"
MIN_VALIDITY = 0.3  # rank correlation above which the training rule is considered useful


class Tuner(traitlets.HasTraits):
    """One point of a study.

    parts, sweep : of `tuning.from_scores` and `tuning.open_sweep`;  seed : of the bootstrap
    """

    system = traitlets.Unicode(help="oevae or ensemble")
    omega = traitlets.Float(min=0.0, max=1.0, help="weight of α in OEVAE")
    eta = traitlets.Float(min=0.0, max=1.0, help="weight of OEVAE in the ensemble")
    k = traitlets.Int(help="neighbors of β")
    prior = traitlets.Unicode(help="k_scale of the prior")

    def __init__(self, parts: Parts, sweep: sweeps.Sweep, seed: int = 0):
        self.parts, self.sweep, self._weights = parts, sweep, sweeps.resamples(parts, seed)
        self.rules = sweeps.rules(parts, sweep, seed)
        self.validity, self._quality = sweeps.rule_validity(parts, sweep), sweeps.quality(parts, sweep)
        self._made: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
        self._usual = sweeps.default_replicates(parts, parts.systems[-1], self._weights)
        super().__init__(system=parts.systems[-1], **parts.default._asdict())

    @traitlets.validate("system", "k", "prior")
    def _known(self, proposal):
        known = {
            "system": self.parts.systems,
            "k": tuple(self.parts.betas),
            "prior": tuple(self.parts.alphas),
        }[proposal.trait.name]
        if proposal.value not in known:
            raise errors.InputError(
                f"{proposal.trait.name}: got {proposal.value!r}, expected one of {', '.join(map(str, known))}"
            )
        return proposal.value

    @property
    def choice(self) -> Choice:
        """The point."""
        return Choice(self.omega, self.eta, self.k, self.prior)

    def choose(self, choice: Choice) -> None:
        """Go to a point, with one notification per trait that changed."""
        with self.hold_trait_notifications():
            self.omega, self.eta, self.k, self.prior = choice

    def table(self) -> np.ndarray:
        """Return all metrics of the point, float64 (machines + 1, 4): AUC source, AUC target, pAUC, hmean.

        The last row is for all machines, with Ω.
        """
        return self.parts.point(self.system, self.choice)

    @property
    def _place(self) -> tuple[int, int]:
        return list(self.parts.alphas).index(self.prior), list(self.parts.betas).index(self.k)

    def slot(self) -> int:
        """Return the slot of the sweep shown, or that of the nearest η."""
        return 0 if self.system == "oevae" else 1 + int(np.abs(self.sweep.etas - self.eta).argmin())

    def _exact(self) -> bool:
        return self.system == "oevae" or self.sweep.etas[self.slot() - 1] == self.eta

    def _live(self) -> tuple[np.ndarray, np.ndarray]:
        """Return areas and bands over ω for an η that is not in the sweep; the last 20 are cached."""
        key = (self.eta, self.k, self.prior)
        if key not in self._made:
            parts = self.parts
            oevae = parts.scaled(parts.oevae(self.prior, self.k, self.sweep.omegas[:, None, None, None]))
            test = parts.over_seeds(parts.ensemble(oevae, self.eta)).test
            areas = self.sweep.areas[(self.slot(), *self._place)] if self._exact() else parts.areas(test)
            self._made = dict(list(self._made.items())[-20:]) | {
                key: (areas, sweeps.band(parts, test[:: sweeps.EVERY], self._weights, self._usual))
            }
        return self._made[key]

    def curves(self) -> np.ndarray:
        """Return all metrics over ω at this η, k and prior, float64 (W, machines + 1, 4)."""
        return self.parts.table(
            self.sweep.areas[(self.slot(), *self._place)] if self._exact() else self._live()[0]
        )

    def _all_bands(self) -> np.ndarray:
        """Return `tuning.band` at every fifth ω."""
        ready = self.system == "oevae" or self.eta == self.parts.default.eta
        return self.sweep.bands[(int(self.system == "ensemble"), *self._place)] if ready else self._live()[1]

    def bands(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the bootstrap bands of the curves: ω (V,), and low and high (V, 2, machines + 1, 4)."""
        return self.sweep.omegas[:: sweeps.EVERY], self._all_bands()[:, :2]

    def gains(self) -> tuple[np.ndarray, np.ndarray]:
        """Return bands of the gain over the default on the same resamples, in the format of `bands`."""
        return self.sweep.omegas[:: sweeps.EVERY], self._all_bands()[:, 2:]

    def interval(self, gain: bool = False) -> np.ndarray:
        """Return low and high of `bands` or `gains` at the point, (2, machines + 1, 4), interpolated in ω."""
        omegas, found = self.gains() if gain else self.bands()
        i = min(int(np.searchsorted(omegas, self.omega, side="right")), len(omegas) - 1)
        share = (self.omega - omegas[i - 1]) / (omegas[i] - omegas[i - 1])
        return (1 - share) * found[i - 1] + share * found[i]

    def gained(self, one: tuple[str, Choice], other: tuple[str, Choice]) -> np.ndarray:
        """Return the gain of a (system, point) over another over all machines, with low and high, (4, 3)."""
        parts = self.parts
        boots = [sweeps.replicates(parts, parts.final(*x).test, self._weights)[:, -1] for x in (one, other)]
        values = parts.point(*one)[-1] - parts.point(*other)[-1]
        return np.stack([values, *sweeps.interval(parts, boots[0] - boots[1])], axis=1)

    def map(self) -> tuple[np.ndarray, float | None]:
        """Return Ω over prior, k and ω, (P, K, W), and its η (the nearest in the sweep; None for OEVAE)."""
        slot = self.slot()
        return self._quality[slot], float(self.sweep.etas[slot - 1]) if slot else None

    def reached(self, choice: Choice) -> np.ndarray:
        """Return Ω of a point and its gain over the default, each with low and high, (2, 3)."""
        system, parts = self.parts.systems[-1], self.parts
        values = [parts.point(system, point)[-1, 3] for point in (choice, parts.default)]
        boots = [
            sweeps.replicates(parts, parts.final(system, point).test, self._weights)[:, -1, 3]
            for point in (choice, parts.default)
        ]
        rows = ((values[0], boots[0]), (values[0] - values[1], boots[0] - boots[1]))
        return np.array([[value, *sweeps.interval(parts, resampled)] for value, resampled in rows])

    def verdict(self) -> str:
        """Describe whether the training rule led to better detection."""
        if np.isnan(self.validity):
            return "without test labels and target training clips the training rule cannot be validated"
        text = f"rank correlation of a small mismatch with a high Ω over all points: {self.validity:+.2f}; "
        if self.validity < MIN_VALIDITY:
            return text + "here the training rule does not lead to better detection: do not use it"
        return text + "here the training rule leads to better detection; on other machines it may not"

    def chosen_by(self) -> str:
        """Return the name of the first rule that chooses the point, or "hand".

        The default of a study counts as chosen by the rule recorded in its settings.
        """
        found = next((name for name, rule in self.rules.items() if rule.choice == self.choice), "hand")
        return (self.parts.chosen_by or found) if found == "default" else found

    def rule(self) -> str:
        """Describe the rules that choose the point, or that it was chosen by hand."""
        return (
            "; and by ".join(
                sweeps.named(rule.name) for rule in self.rules.values() if rule.choice == self.choice
            )
            or BY_HAND
        )

    def toml(self, by: str = "a person") -> str:
        """Return the point as a settings file that a study can include.  by : its author, for the header"""
        return f"""\
# chosen by {self.rule()}; written by {by}
# include it: asd run STUDY --include FILE, or include = [...] in the study's file
chosen_by = "{self.chosen_by()}"  # for oracle and hand the report makes no claim

[fusion]
omega = {self.omega!r}
eta = {self.eta!r}

[oevae]
neighbors = {self.k}

[oevae.condition]
k_scale = {float(self.parts.scales[self.prior])!r}  # a new value retrains OEVAE
"""

    def save(self, path: Path, by: str = "a person") -> None:
        """Write `toml` atomically.

        raises : errors.InputError if the folder cannot be written, or a run is using it
        """
        with io.locked(path.parent), io.wrap_os_errors(path.parent):
            io.write_text(path, self.toml(by))

    def keep(self, path: Path, included: tuple[str, ...] = ()) -> str:
        """Save the default in a batch run, unless a person wrote the file or the study includes it.

        included : the study's `include`.  returns : a sentence on what was done
        """
        if str(path) in included:
            return f"{path.name} is included by this study and was not changed"
        if path.is_file() and f"; written by {BATCH}" not in path.read_text(encoding="utf-8"):
            return f"{path.name} was written by a person and was not changed"
        before = self.choice
        self.choose(self.rules["default"].choice)
        self.save(path, BATCH)
        self.choose(before)
        return f"{path.name} contains the {sweeps.named('default')}"
