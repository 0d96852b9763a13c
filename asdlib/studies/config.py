"""Every number a study can turn, with its unit and its source.

A study is a small TOML file in `notebooks/studies` that says only what differs from the defaults below. Names
and types are checked on arrival: an unknown name is refused with a suggestion, a wrong type with what was
expected. Nothing is read from anywhere else; `digest` of the resolved settings stands beside every artifact.

    cfg = load("demo", overrides=["autoencoder.epochs=5"])

A study may include other TOML files, for example the `tuned.toml` of a study's run folder: `include =
["../../runs/demo/tuned.toml"]`, relative to the file that says it. The default is overruled by what is
included (the last file wins), that by the study's own values, those by `overrides`.

Sources: report and Eq. with a number are those of the technical report, METHOD those of notebooks/METHOD.md.
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

MOST_BYTES, MOST_DOTS, DEEPEST = (
    2**20,
    200,
    10,
)  # of a file, of a line (each costs its square), of a setting's name


def parse(text: str) -> dict:
    """TOML text as nested dicts; ValueError in words for what is none, or would take minutes."""
    if len(text) > MOST_BYTES or any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise ValueError(f"more than {MOST_BYTES} letters, or {MOST_DOTS} dots in a line")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def put(tree: dict, text: str) -> None:
    """Set one value in nested dicts from `a.b=value`; the right side is TOML, or else taken as a string.

    raises : errors.InputError where the text has no = or a value stands in the place of a section
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
    if len(sections) > DEEPEST:
        raise errors.InputError(
            f"--set {describe_value(text)}: expected a name of at most {DEEPEST + 1} parts"
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
        "license of the recordings, for the model card; empty: what a LICENSE file beside them says, else not"
        " stated",
    )


class StudySettings(Settings):
    """All settings of one study. The name is the file's name."""

    name: str = setting("unnamed", "name of the study: letters, digits, _ and -")
    about: str = setting("", "one sentence for the report: what this study is for and what it simplifies")
    include: Many[str] = setting(
        (), "TOML files whose settings hold where the study's file says nothing, relative to that file"
    )
    chosen_by: Literal["", "default", "training", "oracle", "hand"] = setting(
        "",
        "how ω, η, k and k_scale were chosen, as tuned.toml says it; after oracle and hand, which saw test"
        " labels, the report makes no claim",
    )
    seeds: Many[Annotated[int, Field(ge=0, le=2**31 - 1)]] = setting((0,), "one run per seed")
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "where tensors live; auto takes a GPU where there is one"
    )
    precision: Literal["auto", "float32", "bf16"] = setting(
        "auto",
        "of training steps of the large networks; auto: bf16 where the device has units for it; scores are"
        " always float32",
    )
    systems: Many[str] = setting(
        ("baseline_knn", "multires", "baseline_mse", "baseline_mahala", "oevae", "classifier"),
        "systems to run",
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
    def _a_folder_can_have_it(cls, name: str) -> str:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise errors.InputError(
                f"setting name: got {name!r}, expected letters, digits, _ and - only; rename the study"
            )
        return name

    @field_validator("seeds", "systems")
    @classmethod
    def _each_once(cls, values: tuple, info: ValidationInfo) -> tuple:
        if not values or len(set(values)) < len(values):
            raise errors.InputError(
                f"setting {info.field_name}: got {list(values)}, expected at least one value and none twice"
            )
        return values


def study_names(home: str | Path = "") -> list[str]:
    """Names of the studies in notebooks/studies.  home : as of `asdlib.studies.home`."""
    return sorted(path.stem for path in (notebooks(home) / "studies").glob("*.toml"))


def load(name: str, overrides: typing.Sequence[str] = (), home: str | Path = "") -> StudySettings:
    """Settings of a study: its file in notebooks/studies (or a path to a .toml) over the defaults, then
    `a.b=value`.

    name : name of a study, or the path of a TOML file
    overrides : strings like "autoencoder.epochs=5"; the right side is TOML, or else taken as a string
    home : whose notebooks/studies, see `asdlib.studies.home`
    returns : the settings; `include` holds whole paths
    raises : errors.InputError for unknown studies, names, types and values out of range, and for an included
        file that is missing
    """
    tree = read(name, overrides, home)
    tree.pop("sweep", None)
    return StudySettings(**tree)


def read(name: str, overrides: typing.Sequence[str] = (), home: str | Path = "") -> dict:
    """What a study's file and the overrides say, as nested dicts; a table `sweep` belongs to
    asdlib.studies.sweeps.

    Arguments and refusals as of `load`.
    """
    path = Path(name) if name.endswith(".toml") else notebooks(home) / "studies" / f"{name}.toml"
    if not _there(path):
        known = study_names(home)
        raise errors.InputError(f"unknown study {describe_value(name)}" + errors.suggest(name, known))
    tree = _read(path)
    for text in overrides:
        put(tree, text)
    if "include" in tree:
        given = StudySettings(include=tree["include"]).include
        try:
            tree["include"] = [str((path.parent / Path(file).expanduser()).resolve()) for file in given]
        except (OSError, ValueError, RuntimeError) as error:  # no user of that name, or no path at all
            raise errors.InputError(
                f"setting include: {describe_value(list(given))} are no paths ({error}), expected TOML files"
            ) from error
        under: dict = {}
        for file in tree["include"]:
            under = merged(under, _included(Path(file), path))
        tree = merged(under, tree)
    tree.setdefault("name", path.stem)
    return tree


def save(name: str, study: str, overrides: typing.Sequence[str] = (), home: str | Path = "") -> Path:
    """Write a study with overrides as a study file of its own, in notebooks/studies.

    name : of the new study;  study, overrides, home : as of `load`
    returns : the file; it holds all that differs from the defaults, and includes nothing
    raises : errors.InputError for a study of that name, and as `load`
    """
    load(study, [*overrides, f"name={json.dumps(name)}"], home)
    path = notebooks(home) / "studies" / f"{name}.toml"
    if path.exists():
        raise errors.InputError(f"{path} exists and is never overwritten; give another --name")
    tree = read(study, overrides, home)
    kept = {key: value for key, value in flat(tree).items() if key not in ("name", "include")}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in kept.items()]
    with io.wrap_os_errors(path):
        io.write_text(path, "\n".join([f"# {study}, with settings of its own", *lines, ""]))
    return path


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or with signs that no name has
        return False


def _read(path: Path) -> dict:
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise errors.InputError(f"{path}: not readable as TOML ({error}); correct the file") from error


def _included(file: Path, study: Path) -> dict:
    """Settings of an included file; name and about stay the study's own."""
    if not _there(file):
        raise errors.InputError(
            f"{study.name} includes {file}, and there is no such file; run the study that writes it, or take"
            " it out of include"
        )
    tree = _read(file)
    if "include" in tree:
        raise errors.InputError(
            f"{file} is included by {study.name} and has an include of its own; name all files in"
            f" {study.name}"
        )
    try:
        StudySettings(**tree)
    except errors.InputError as refusal:
        raise errors.InputError(f"{file}: {refusal}") from refusal
    return {key: value for key, value in tree.items() if key not in ("name", "about")}


def describe(cls: type[Settings] = StudySettings, where: str = "") -> list[tuple[str, object, str]]:
    """(name, default, explanation) of every setting, for `asd settings`."""
    rows = []
    for name, item in cls.model_fields.items():
        if isinstance(item.default, Settings):
            rows += describe(item.annotation, f"{where}{name}.")
        else:
            rows.append((f"{where}{name}", item.default, item.description))
    return rows
