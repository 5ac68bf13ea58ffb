"""Every setting of a project and of its training, as frozen pydantic models.

Titles and descriptions become form labels, tooltips and ``--help``. The defaults are the
paper's (section 4.3) or, where the paper is silent, the decision recorded in
docs/dev/choices.md; :func:`preset` gives the two faster variants.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

Triple: TypeAlias = tuple[float, float, float]
Shape: TypeAlias = tuple[int, int, int]
PresetName: TypeAlias = Literal["paper", "fast", "smoke"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PreprocessingConfig(_Settings):
    """How a scan reaches the training grid that all cases of a project share."""

    spacing_mm: Triple | None = Field(
        None,
        title="Spacing (mm)",
        description="Voxel size of the training grid as z y x in mm; none: the reference case's.",
    )
    shape: Shape | None = Field(
        None,
        title="Grid shape (voxels)",
        description="Training grid as z y x in voxels; none: holds the largest scan.",
    )
    crop: Literal["center", "foreground", "labelled"] = Field(
        "center",
        title="Centre of the crop",
        description="Crop or pad around the scan's centre, its foreground, or the extent of the "
        "labelled cases (which needs a pre-alignment or scans that already share a frame).",
    )
    resize: bool = Field(
        False,
        title="Resize the extent to the grid",
        description="Resample the cropped extent anisotropically to the grid shape instead of "
        "cropping at a fixed spacing (the OBELISK treatment of abdominal CT).",
    )
    prealign: Literal["none", "center_of_mass", "affine"] = Field(
        "none",
        title="Pre-alignment",
        description="Alignment of each scan to the reference case before resampling.",
    )
    reference_case: str | None = Field(
        None,
        title="Reference case",
        description="Case that the others are aligned to; none: the first labelled case.",
    )
    clip_percentiles: tuple[float, float] | None = Field(
        None,
        title="Clip intensities (percentiles)",
        description="Lower and upper percentile to clip at before each image is normalised to "
        "mean 0 and standard deviation 1.",
    )

    @model_validator(mode="after")
    def _sensible(self) -> PreprocessingConfig:
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError("spacing_mm must be positive")
        if self.shape is not None and min(self.shape) < 8:
            raise ValueError("shape must be at least 8 voxels along each axis")
        if self.clip_percentiles is not None:
            low, high = self.clip_percentiles
            if not 0 <= low < high <= 100:
                raise ValueError("clip_percentiles must satisfy 0 <= low < high <= 100")
        if self.resize and self.shape is None:
            raise ValueError("resize needs a shape")
        return self


class NetworkConfig(_Settings):
    """Which network, by name, and its few options."""

    name: str = Field("obelisk", title="Network", description="A name known to networks.build.")
    leaky_slope: float = Field(0.2, ge=0, title="LeakyReLU slope")
    sample_channels: Literal["both", "fixed"] = Field(
        "both",
        title="Obelisk input for pairs",
        description="Whether the registration network's obelisk layers sample both images or "
        "the fixed image only.",
    )
    integration_steps: int = Field(
        0,
        ge=0,
        le=10,
        title="Scaling-and-squaring steps",
        description="0: the registration network predicts displacements; more: it predicts a "
        "stationary velocity field that is integrated in this many squarings.",
    )
    output_scale: float = Field(
        1.0,
        gt=0,
        title="Voxels per unit of output",
        description="Factor on the registration network's output. Its head starts at zero and "
        "Adam moves a weight by about the learning rate per step, so that with a factor of 1 "
        "displacements of several voxels take thousands of steps.",
    )


class AugmentationConfig(_Settings):
    """Random deformation and intensity changes of training images."""

    affine_std: float = Field(
        0.075,
        ge=0,
        title="Affine strength",
        description="Standard deviation of the noise on the 12 entries of an affine matrix in "
        "normalised coordinates (OBELISK: 0.075).",
    )
    pair_affine_std: float = Field(
        0.0,
        ge=0,
        title="Affine strength on pairs",
        description="The same for both images of a registration pair, each by itself.",
    )
    intensity_std: float = Field(
        0.0,
        ge=0,
        title="Intensity strength",
        description="Standard deviation of a random contrast factor and offset, on images of "
        "standard deviation 1.",
    )


class ScreeningConfig(_Settings):
    """Which of the teacher's predictions become pseudo-labels (Eq. 3)."""

    tau: Probability = Field(
        0.7, title="Confidence threshold tau", description="0.7 for brains, 0.6 for the abdomen."
    )
    voxel_gate: bool = Field(
        True,
        title="Screen voxels",
        description="Voxels with a confidence at or below tau are ignored, never background.",
    )
    class_gate: Literal["mean", "max", "none"] = Field(
        "mean",
        title="Screen classes",
        description="Statistic of a class's confidence over its voxels that must exceed tau.",
    )
    learned_gate: bool = Field(
        False,
        title="Screen classes by the labelled scans",
        description="Hold back the structures that the teacher doesn't find even in the labelled "
        "scans (Dice below 0.5), however sure it is of them elsewhere.",
    )
    accept_fraction: Probability = Field(
        1.0,
        title="Classes needed",
        description="Fraction of the labelled set's foreground classes that must pass before a "
        "case supervises the registration.",
    )


class SegmentationTraining(_Settings):
    """Segmentation network: optimiser and pre-training (Mono-Seg)."""

    learning_rate: float = Field(1e-3, gt=0, title="Learning rate")
    weight_decay: float = Field(1e-4, ge=0, title="Weight decay")
    epochs: int = Field(300, ge=1, title="Pre-training epochs", description="Of K samples each.")
    minimum_steps: int = Field(3000, ge=1, title="Pre-training steps at least")
    steps_per_structure: int = Field(
        0,
        ge=0,
        title="Pre-training steps per structure, at least",
        description="The more structures there are, the longer some of them stay unfound.",
    )
    batch_size: int = Field(2, ge=1, title="Batch size")
    include_background: bool = Field(
        True,
        title="Background in the Dice loss",
        description="Whether the background counts as a class of the pre-training's loss (Eq. 1). "
        "Networks without normalisation learn to find nothing if it does.",
    )

    def steps(self, steps_per_epoch: int, structures: int) -> int:
        """Steps of the pre-training, with so many foreground classes."""
        least = max(self.minimum_steps, self.steps_per_structure * structures)
        return max(self.epochs * steps_per_epoch, least)


class RegistrationTraining(_Settings):
    """Registration network: optimiser, loss weights (Eq. 10) and pre-training (Mono-Reg)."""

    learning_rate: float = Field(4e-4, gt=0, title="Learning rate")
    weight_decay: float = Field(0.0, ge=0, title="Weight decay")
    epochs: int = Field(300, ge=1, title="Pre-training epochs", description="Of K samples each.")
    minimum_steps: int = Field(3000, ge=1, title="Pre-training steps at least")
    batch_size: int = Field(2, ge=1, title="Batch size (pairs)")
    lambda_r: float = Field(0.025, ge=0, title="Smoothness weight", description="Eq. 9.")
    lambda_r_warmup: float = Field(
        0.25,
        ge=0,
        title="Smoothness weight at the first step",
        description="Falls linearly to the smoothness weight over the warm-up steps.",
    )
    warmup_steps: int = Field(300, ge=0, title="Warm-up steps")
    lambda_d: float = Field(
        0.1, ge=0, title="Dice weight", description="Eq. 7, where both sides have labels."
    )
    lambda_j: float = Field(
        0.0,
        ge=0,
        title="Folding weight",
        description="Of what the Jacobian's determinant lacks of 0.3; not in the paper.",
    )
    similarity: Literal["mse", "lncc"] = Field("mse", title="Image similarity")
    labelled_pair_fraction: Probability = Field(
        0.0,
        title="Pairs with two labels, at least",
        description="Fraction of each batch drawn from pairs with labels on both sides; the "
        "rest are random ordered pairs of all training cases.",
    )


class JointConfig(_Settings):
    """One joint round: registration, student, averaged teacher (section 3.3)."""

    segmentation_epochs: int = Field(20, ge=1, title="Student epochs per round")
    registration_epochs: int = Field(
        100, ge=0, title="Registration epochs per round", description="The paper's ratio is 5:1."
    )
    lambda_u: float = Field(0.5, ge=0, title="Uncertainty weight", description="Eq. 5 and 6.")
    lambda_d: float = Field(
        1.0, ge=0, title="Registration Dice weight", description="Of the student's loss, Eq. 6."
    )
    ema_decay: Probability = Field(0.99, title="Teacher's decay", description="Per step.")
    dropout: float = Field(
        0.5, ge=0, lt=1, title="Student's dropout", description="Of whole feature maps."
    )
    uncertainty_weighting: Literal["exp_kl", "none"] = Field(
        "exp_kl",
        title="Weight of pseudo-labelled voxels",
        description="exp(-KL) of teacher and student, or none (Eq. 4 to the letter).",
    )
    class_weighting: Literal["none", "inverse_sqrt"] = Field(
        "none",
        title="Weight of classes",
        description="Of the student's cross-entropy: none (Eq. 4 to the letter), or one over the "
        "square root of the number of voxels, as in OBELISK's reference training.",
    )
    registration_warp: bool = Field(
        True,
        title="Registration-warped input",
        description="Show the student the moving image warped onto the fixed one.",
    )
    supervised_dice: bool = Field(
        False,
        title="Dice on manual labels",
        description="Add the Dice loss (Eq. 1) of manually labelled images to the student's loss.",
    )


class RefinementConfig(_Settings):
    """How the field of one pair is improved after the network (docs/explanation/method.md)."""

    steps: int = Field(50, ge=1, title="Steps")
    learning_rate: float = Field(
        0.3, gt=0, title="Learning rate", description="Of Adam, in voxels of the control grid."
    )
    control_spacing: int = Field(2, ge=1, title="Voxels between two control points")
    similarity: Literal["mse", "lncc"] = Field("mse", title="Image similarity")
    lambda_d: float = Field(
        2.0, ge=0, title="Dice weight", description="Of the teacher's probabilities."
    )
    lambda_r: float = Field(2.0, ge=0, title="Smoothness weight", description="Eq. 9.")
    lambda_j: float = Field(
        10.0,
        ge=0,
        title="Folding weight",
        description="Of what the Jacobian's determinant lacks of 0.3.",
    )


class TrainingConfig(_Settings):
    """Everything that decides the weights, given the data."""

    preset: PresetName = Field(
        "paper",
        title="Preset it started from",
        description="paper: to the letter, for a GPU. fast: for a CPU. smoke: shows that "
        "everything runs.",
    )
    seed: int = Field(0, ge=0, lt=2**32, title="Seed")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true",
        title="Precision",
        description="bf16-mixed needs about three quarters of the memory. It is faster on CPUs "
        "with AMX; on a GPU it may be slower (docs/benchmarks.md).",
    )
    gamma: float = Field(
        0.99, gt=0, le=1, title="Learning-rate decay", description="Factor per epoch."
    )
    validation_interval: int = Field(
        5, ge=1, title="Validate every", description="Epochs between two validations."
    )
    segmentation_network: NetworkConfig = NetworkConfig()
    registration_network: NetworkConfig = NetworkConfig()
    segmentation: SegmentationTraining = SegmentationTraining()
    registration: RegistrationTraining = RegistrationTraining()
    joint: JointConfig = JointConfig()
    screening: ScreeningConfig = ScreeningConfig()
    augmentation: AugmentationConfig = AugmentationConfig()


def preset(name: PresetName, **changes: object) -> TrainingConfig:
    """Settings for a purpose: ``paper`` to the letter, ``fast`` on a CPU, ``smoke`` for tests.

    Parameters
    ----------
    name
        ``paper``, ``fast`` or ``smoke``.
    **changes
        Top-level fields of :class:`TrainingConfig` to replace, such as ``seed=1``.

    Returns
    -------
    TrainingConfig
        All settings of a training.

    Raises
    ------
    pydantic.ValidationError
        A field doesn't exist, or its value is impossible.
    """
    variants = {"paper": {}, "fast": _FAST, "smoke": _SMOKE}
    if name not in variants:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(variants)}")
    return TrainingConfig.model_validate({"preset": name, **variants[name], **changes})


# Few labels are learned in a few hundred steps; docs/dev/choices.md has the figures.
_FAST: dict[str, object] = {
    "registration_network": {"output_scale": 10.0},
    "segmentation": {"epochs": 1, "minimum_steps": 750, "steps_per_structure": 225},
    "registration": {
        "learning_rate": 1e-3,
        "epochs": 1,
        "minimum_steps": 750,
        "lambda_r": 1.0,
        "lambda_r_warmup": 2.0,
        "warmup_steps": 50,
        "lambda_d": 1.0,
        "lambda_j": 10.0,
        "labelled_pair_fraction": 0.5,
    },
    "joint": {
        "segmentation_epochs": 12,
        "registration_epochs": 10,
        "lambda_d": 0.0,
        "dropout": 0.0,
        "supervised_dice": True,
    },
    "screening": {"learned_gate": True},
}
# The synthetic cohort within a minute; tau fits networks that have hardly begun to be sure.
_SMOKE: dict[str, object] = {
    **_FAST,
    "segmentation": {"learning_rate": 3e-3, "epochs": 1, "minimum_steps": 150},
    "registration": {
        **_FAST["registration"],  # type: ignore[dict-item]
        "minimum_steps": 40,
        "warmup_steps": 10,
    },
    "joint": {
        **_FAST["joint"],  # type: ignore[dict-item]
        "segmentation_epochs": 40,
        "registration_epochs": 4,
        "ema_decay": 0.95,
    },
    "screening": {"tau": 0.5, "accept_fraction": 0.5, "learned_gate": True},
}
