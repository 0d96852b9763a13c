"""Settings of a study: all parameters with defaults, ranges, units and sources, and loading from TOML.

A study is a small TOML file in `notebooks/studies` with the settings that differ from the defaults. Names,
types and ranges are validated on loading. Nothing else influences a study.

    cfg = load("demo", overrides=["autoencoder.epochs=5"])

A study may include other TOML files, for example the `tuned.toml` in a run folder: `include =
["../../runs/demo/tuned.toml"]`, relative to the including file. Precedence, lowest first: defaults, included
files in order, the study's own values, `overrides`.

Sources: "report" and equation numbers refer to the technical report, METHOD to notebooks/METHOD.md.
Notebooks: all of them (second cell).
"""

from __future__ import annotations

import json
import tomllib
import typing
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from asdlib import errors, io
from asdlib.analysis.projection import ProjectionSettings
from asdlib.data.decode import DataSettings
from asdlib.data.synthetic import SyntheticSettings
from asdlib.detectors.multires import MultiResolutionSettings
from asdlib.detectors.nearest import NearestNeighborSettings
from asdlib.detectors.pretrained import PretrainedSettings
from asdlib.evaluation.metrics import MetricsSettings
from asdlib.models.autoencoder import AutoencoderSettings
from asdlib.models.classifier import ClassifierSettings
from asdlib.models.oevae import OEVAESettings
from asdlib.scoring.fusion import FusionSettings
from asdlib.settings import Many, Settings, describe_value, flat, merged, setting
from asdlib.studies.home import notebooks

MOST_BYTES = 2**20  # of a file
MAX_DOTS = 200  # of a line; tomllib takes quadratic time in them
MAX_DEPTH = 10  # sections in a setting's name


def parse(text: str) -> dict:
    """Parse TOML text to nested dicts; ValueError if invalid, or so large that parsing would take minutes."""
    if len(text) > MOST_BYTES or any(line.count(".") > MAX_DOTS for line in text.splitlines()):
        raise ValueError(f"more than {MOST_BYTES} characters, or {MAX_DOTS} dots in a line")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def put(tree: dict, text: str) -> None:
    """Set one value in nested dicts from `a.b=value`; the value is TOML, or else a plain string.

    raises : errors.InputError without "=", or if a section of the name is a value
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise errors.InputError(
            f"--set {describe_value(text)}: expected name=value, for example autoencoder.epochs=5"
        )
    try:
        parsed = parse(f"x = {value}")["x"]
    except ValueError:
        parsed = value.strip()
    *sections, last = key.strip().split(".")
    if len(sections) > MAX_DEPTH:
        raise errors.InputError(
            f"--set {describe_value(text)}: expected a name of at most {MAX_DEPTH + 1} parts"
        )
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise errors.InputError(f"--set {describe_value(text)}: {section} is a value, not a section")
    tree[last] = parsed


class ReportSettings(Settings):
    """What the report shows."""

    players: int = setting(24, "clips with a player; 30 keep the file small", 0, 30)
    license: str = setting(
        "",
        "license of the recordings, for the model card; empty: from a LICENSE file next to them, else not"
        " stated",
    )


class StudySettings(Settings):
    """All settings of a study; the name defaults to the file's name."""

    name: str = setting("unnamed", "name of the study: letters, digits, _ and -")
    about: str = setting("", "one sentence for the report: purpose and simplifications of this study")
    include: Many[str] = setting(
        (), "TOML files with defaults for settings the study does not set, relative to the study's file"
    )
    chosen_by: Literal["", "default", "training", "oracle", "hand"] = setting(
        "",
        "how ω, η, k and k_scale were chosen, as recorded in tuned.toml; after oracle and hand, which used"
        " test labels, the report makes no claim",
    )
    seeds: Many[Annotated[int, Field(ge=0, le=2**31 - 1)]] = setting((0,), "random seeds, one run each")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "device; auto: a GPU if available")
    precision: Literal["auto", "float32", "bf16"] = setting(
        "auto",
        "precision of training the large networks; auto: bf16 if the device has units for it; scores are"
        " always float32",
    )
    systems: Many[str] = setting(
        ("baseline_knn", "multires", "baseline_mse", "baseline_mahala", "oevae", "classifier"),
        "systems to run",
    )
    optional: Many[str] = setting(
        (), "systems that are left out, with a note, if their weights are not installed"
    )
    data: DataSettings = DataSettings()
    synthetic: SyntheticSettings = SyntheticSettings()
    baseline_knn: NearestNeighborSettings = NearestNeighborSettings()
    multires: MultiResolutionSettings = MultiResolutionSettings()
    pretrained: PretrainedSettings = PretrainedSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    oevae: OEVAESettings = OEVAESettings()
    classifier: ClassifierSettings = ClassifierSettings()
    fusion: FusionSettings = FusionSettings()
    metrics: MetricsSettings = MetricsSettings()
    maps: ProjectionSettings = ProjectionSettings()
    report: ReportSettings = ReportSettings()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise errors.InputError(
                f"setting name: got {name!r}, expected letters, digits, _ and - only; rename the study"
            )
        return name

    @field_validator("seeds", "systems")
    @classmethod
    def _check_unique(cls, values: tuple, info: ValidationInfo) -> tuple:
        if not values or len(set(values)) < len(values):
            raise errors.InputError(
                f"setting {info.field_name}: got {list(values)}, expected one or more values, no duplicates"
            )
        return values


def study_names(home: str | Path = "") -> list[str]:
    """Return the names of the studies in notebooks/studies.  home : see `asdlib.studies.home`"""
    return sorted(path.stem for path in (notebooks(home) / "studies").glob("*.toml"))


def load(name: str, overrides: typing.Sequence[str] = (), home: str | Path = "") -> StudySettings:
    """Load the settings of a study.

    name : name of a study in notebooks/studies, or path of a TOML file
    overrides : strings like "autoencoder.epochs=5"; the value is TOML, or else a plain string
    home : see `asdlib.studies.home`
    returns : the settings; `include` has absolute paths
    raises : errors.InputError for unknown studies and settings, wrong types, values out of range, and missing
        included files
    """
    tree = read(name, overrides, home)
    tree.pop("sweep", None)
    return StudySettings(**tree)


def read(name: str, overrides: typing.Sequence[str] = (), home: str | Path = "") -> dict:
    """Return a study's file, included files and overrides as nested dicts, including a table `sweep`.

    Arguments as in `load`.
    raises : errors.InputError as in `load`
    """
    path = Path(name) if name.endswith(".toml") else notebooks(home) / "studies" / f"{name}.toml"
    if not _is_file(path):
        known = study_names(home)
        raise errors.InputError(f"unknown study {describe_value(name)}" + errors.suggest(name, known))
    tree = _read(path)
    for text in overrides:
        put(tree, text)
    if "include" in tree:
        given = StudySettings(include=tree["include"]).include
        try:
            tree["include"] = [str((path.parent / Path(file).expanduser()).resolve()) for file in given]
        except (OSError, ValueError, RuntimeError) as error:  # unknown ~user, or not a path
            raise errors.InputError(
                f"setting include: got {describe_value(list(given))} ({error}), expected paths of TOML files"
            ) from error
        included: dict = {}
        for file in tree["include"]:
            included = merged(included, _included(Path(file), path))
        tree = merged(included, tree)
    tree.setdefault("name", path.stem)
    return tree


def save(name: str, study: str, overrides: typing.Sequence[str] = (), home: str | Path = "") -> Path:
    """Save a study with overrides as a new study in notebooks/studies.

    name : of the new study.  study, overrides, home : as in `load`
    returns : the file, with all settings that differ from the defaults and without includes
    raises : errors.InputError if a study of that name exists, and as in `load`
    """
    load(study, [*overrides, f"name={json.dumps(name)}"], home)
    path = notebooks(home) / "studies" / f"{name}.toml"
    if path.exists():
        raise errors.InputError(f"{path} exists and is never overwritten; choose another --name")
    tree = read(study, overrides, home)
    values = {key: value for key, value in flat(tree).items() if key not in ("name", "include")}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    with io.wrap_os_errors(path):
        io.write_text(path, "\n".join([f"# {study}, with changed settings", *lines, ""]))
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # name too long, or with invalid characters
        return False


def _read(path: Path) -> dict:
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise errors.InputError(f"{path}: not readable as TOML ({error}); correct the file") from error


def _included(file: Path, study: Path) -> dict:
    """Return the settings of an included file except name and about."""
    if not _is_file(file):
        raise errors.InputError(
            f"{study.name} includes {file}, which does not exist; run the study that writes it, or remove it"
            " from include"
        )
    tree = _read(file)
    if "include" in tree:
        raise errors.InputError(
            f"{file} is included by {study.name} and has an include itself; list all files in {study.name}"
        )
    try:
        StudySettings(**tree)
    except errors.InputError as error:
        raise errors.InputError(f"{file}: {error}") from error
    return {key: value for key, value in tree.items() if key not in ("name", "about")}


def describe(cls: type[Settings] = StudySettings, where: str = "") -> list[tuple[str, object, str]]:
    """Return (name, default, description) of every setting, for `asd settings`."""
    rows = []
    for name, item in cls.model_fields.items():
        if isinstance(item.default, Settings):
            rows += describe(item.annotation, f"{where}{name}.")
        else:
            rows.append((f"{where}{name}", item.default, item.description))
    return rows
