"""An experiment in one YAML file: data, splits, methods, N, seeds, and what is varied.

:func:`load_protocol` checks the file, :func:`plan` turns it into the list of runs. Neither
trains anything or imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from napari_jrss.config import PreprocessingConfig, PresetName, TrainingConfig, merged, preset
from napari_jrss.errors import JRSSError, from_validation
from napari_jrss.experiments.methods import METHODS

Changes = Mapping[str, Any]
Labelled = Annotated[int, Field(ge=0)] | Literal["K"]
HERE = files("napari_jrss.experiments")
SHIPPED = HERE / "protocols"


class ProtocolError(JRSSError):
    """A protocol that can't be run as it is written."""


@dataclass(frozen=True)
class Ablation:
    """JRSS with one switch turned: its title in the table and the settings that change."""

    title: str
    changes: Changes


ABLATIONS: Mapping[str, Ablation] = MappingProxyType(
    {
        name: Ablation(**described)
        for name, described in yaml.safe_load((HERE / "ablations.yaml").read_text("utf-8")).items()
    }
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SyntheticData(_Part):
    """A cohort of :func:`napari_jrss.sample_data.make_cohort`, made for the experiment."""

    cases: int = Field(12, ge=3)
    shape: tuple[int, int, int] = (24, 32, 24)
    structures: int = Field(3, ge=1, le=10)
    seed: int = Field(0, ge=0)


class DataSet(_Part):
    """Where the scans come from: exactly one of the first four.

    Relative paths start from the folder given to :func:`load_protocol`.
    """

    synthetic: SyntheticData | None = None
    project: Path | None = Field(None, description="A project folder; nothing is written to it.")
    folder: Path | None = Field(None, description="A folder in a known layout.")
    images: Path | None = Field(None, description="A folder of scans.")
    labels: Path | None = Field(None, description="A folder of labels, to go with `images`.")
    groups: Path | None = Field(None, description="CSV of the structures.")
    subjects: str | None = Field(
        None, description="FILE.csv:COLUMN of the subjects that no split may divide."
    )
    preprocessing: PreprocessingConfig = PreprocessingConfig()

    @model_validator(mode="after")
    def _one_source(self) -> DataSet:
        given = [n for n in ("synthetic", "project", "folder", "images") if getattr(self, n)]
        if len(given) != 1:
            raise ValueError("give exactly one of synthetic, project, folder, images")
        if self.labels is not None and self.images is None:
            raise ValueError("labels goes with images")
        if self.subjects is not None and ":" not in self.subjects:
            raise ValueError("subjects wants FILE.csv:COLUMN")
        return self


class SplitSizes(_Part):
    """Numbers of cases; subjects stay together."""

    training: int | None = Field(None, ge=2, description="K; none: all that are left.")
    validation: int = Field(2, ge=0)
    test: int = Field(10, ge=2)
    seed: int | None = Field(
        None, ge=0, description="One split for all runs; none: another for each seed."
    )


class Block(_Part):
    """A part of the grid: every method with every N, tau and ablation."""

    methods: tuple[str, ...] = Field(min_length=1)
    labelled: tuple[Labelled, ...] = Field(min_length=1)
    seeds: tuple[int, ...] | None = Field(None, description="Instead of the protocol's.")
    tau: tuple[float, ...] = ()
    ablations: tuple[str, ...] = ()

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names == ("all",):
            return tuple(METHODS)
        return tuple(_known(name, METHODS, "method") for name in names)

    @field_validator("ablations")
    @classmethod
    def _known_ablations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names == ("all",):
            return tuple(ABLATIONS)
        return tuple(_known(name, ABLATIONS, "ablation") for name in names)

    @model_validator(mode="after")
    def _varied_is_jrss(self) -> Block:
        if (self.tau or self.ablations) and not {"jrss", "jrss_refined"}.issuperset(self.methods):
            raise ValueError("tau and ablations vary jrss: give it a block of its own")
        return self


class AnnotatorSettings(_Part):
    """A simulated annotator, instead of runs; see :mod:`napari_jrss.experiments.annotator`."""

    cases: int = Field(10, ge=3, description="Cases of the cohort, drawn from the training side.")
    plane: Literal["axial", "coronal", "sagittal"] = Field(
        "coronal", description="In which the annotator works."
    )
    goal_dice: float = Field(
        0.9, gt=0, lt=1, description="Of each structure, at which it is good enough."
    )
    hand_sd_voxels: float = Field(
        0.35, ge=0, description="Standard deviation of the hand's outline about the manual one."
    )
    steps_on_labels: int = Field(
        ge=1, description="Steps on labels after each accepted case but the first."
    )
    costs: dict[str, float] = Field(
        default_factory=dict, description="Changes of the model of seconds."
    )

    @property
    def axis(self) -> int:
        """Axis (z, y, x) across which the annotator goes through the slices."""
        return ("axial", "coronal", "sagittal").index(self.plane)


class Protocol(_Part):
    """An experiment."""

    title: str
    data: DataSet
    split: SplitSizes = SplitSizes()
    pairs: Literal["two-fixed", "all"] = "two-fixed"
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    preset: PresetName = "fast"
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Changes of the preset, nested as in TrainingConfig."
    )
    joint_rounds: int = Field(3, ge=1)
    runs: tuple[Block, ...] = ()
    annotator: AnnotatorSettings | None = None
    paper: Literal["lpba40", "tcia"] | None = Field(
        None, description="The paper's experiment that this repeats, if it does to the letter."
    )

    def config(self, seed: int, changes: Changes = MappingProxyType({})) -> TrainingConfig:
        """Settings of a run."""
        settings = merged(preset(self.preset, seed=seed).model_dump(), self.settings)
        return TrainingConfig.model_validate(merged(settings, changes))

    @model_validator(mode="after")
    def _something_to_do(self) -> Protocol:
        if bool(self.runs) == (self.annotator is not None):
            raise ValueError("give either runs or an annotator")
        return self

    @model_validator(mode="after")
    def _settings_fit(self) -> Protocol:
        self.config(0)
        return self


@dataclass(frozen=True)
class Run:
    """One cell of the grid."""

    method: str  # a name of `METHODS`
    labelled: int | None  # N; None for all K
    seed: int  # of the split, the labelled set and the training
    variant: str  # what is varied: an ablation, `tau0.60`, or nothing
    config: TrainingConfig
    start: Run | None = None  # the run that this one starts from

    @property
    def id(self) -> str:
        """Name of its folder, such as ``jrss-n5-seed0-tau0.60``."""
        n = "K" if self.labelled is None else self.labelled
        name = f"{self.method}-n{n}-seed{self.seed}"
        return f"{name}-{self.variant}" if self.variant else name

    @property
    def before(self) -> tuple[Run, ...]:
        """The runs that have to be done before it, in their order."""
        return () if self.start is None else (*self.start.before, self.start)


def load_protocol(path: Path, data: Path | None = None) -> Protocol:
    """Read and check a protocol: a file, or the name of one of the package, such as ``smoke``.

    Its relative paths start from `data`, by default the file's own folder. A :class:`ProtocolError`
    says in one line what is wrong and where.
    """
    shipped = {file.name.removesuffix(".yaml"): file for file in SHIPPED.iterdir()}
    source = path if path.is_file() else shipped.get(str(path))
    if source is None:
        raise ProtocolError(
            f"{path}: no such file, nor a protocol that comes along: {', '.join(sorted(shipped))}"
        )
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProtocolError(f"{path}: not a readable YAML file ({error})") from None
    if not isinstance(content, dict):
        raise ProtocolError(f"{path}: a protocol is a mapping of names to values")
    try:
        protocol = Protocol.model_validate(content)
    except ValidationError as error:
        raise ProtocolError(f"{path}: {from_validation(error)}") from None
    start = data or path.parent
    moved: dict[str, Any] = {
        name: (start / value).absolute()
        for name in ("project", "folder", "images", "labels", "groups")
        if (value := getattr(protocol.data, name)) is not None
    }
    if protocol.data.subjects is not None:
        moved["subjects"] = str((start / protocol.data.subjects).absolute())
    return protocol.model_copy(update={"data": protocol.data.model_copy(update=moved)})


def plan(protocol: Protocol) -> list[Run]:
    """All runs of a protocol, each once, those that others start from before them.

    What a method can't do is left out: JRSS without a label, or with nothing unlabelled. A block
    that has no run then is a :class:`ProtocolError`.
    """
    runs: dict[str, Run] = {}
    for block in protocol.runs:
        found = list(_runs(protocol, block))
        if not found:
            raise ProtocolError(
                f"{', '.join(block.methods)} can't be run with N = "
                f"{', '.join(map(str, block.labelled))}"
            )
        for run in found:
            for each in (*run.before, run):
                runs.setdefault(each.id, each)
    return list(runs.values())


def _runs(protocol: Protocol, block: Block) -> Iterator[Run]:
    varied: list[tuple[str, Changes]] = [
        *((f"tau{tau_text(tau)}", {"screening": {"tau": tau}}) for tau in block.tau),
        *((name, ABLATIONS[name].changes) for name in block.ablations),
    ]
    for seed in block.seeds or protocol.seeds:
        plain = protocol.config(seed)
        for labelled in block.labelled:
            for name in block.methods:
                method, n = METHODS[name], None if labelled == "K" else labelled
                if method.labels == "none":
                    n = 0
                elif method.needs_unlabelled if n is None else n < method.least_labelled:
                    continue
                for variant, changes in varied or [("", {})]:
                    config = protocol.config(seed, changes)
                    if config == plain:  # a sweep passes through the plain settings
                        variant = ""
                    yield _with_start(Run(name, n, seed, variant, config), plain)


def tau_text(tau: float) -> str:
    """With two digits, or as many as it has."""
    return f"{tau:.2f}" if round(tau, 2) == tau else f"{tau:g}"


def _with_start(run: Run, plain: TrainingConfig) -> Run:
    """The run with the one that it starts from: the plain one where its stages are the same."""
    name = METHODS[run.method].starts_from
    if name is None:
        return run
    before, variant = run.config, run.variant
    if not METHODS[name].needs_unlabelled:
        joint_only = {"joint": plain.joint, "screening": plain.screening}
        before = before.model_copy(update=joint_only)
        variant = "" if before == plain else variant
    return replace(
        run, start=_with_start(Run(name, run.labelled, run.seed, variant, before), plain)
    )


def _known(name: str, names: Mapping[str, object], what: str) -> str:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}; known: all, {', '.join(names)}")
    return name
