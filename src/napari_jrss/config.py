"""All settings of a project and of its training, as frozen pydantic models.

Titles become form labels; the docstrings of fields become tooltips and ``--help``. The defaults
are those of the paper (section 4.3) or, if it gives none, those of docs/dev/choices.md;
:func:`preset` gives two faster variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

Triple: TypeAlias = tuple[float, float, float]
Shape: TypeAlias = tuple[int, int, int]
Prealign: TypeAlias = Literal["none", "center_of_mass", "affine"]
PresetName: TypeAlias = Literal["paper", "fast", "smoke"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        for field in cls.model_fields.values():
            field.description = " ".join((field.description or "").split())


class PreprocessingConfig(_Settings):
    """How a scan is brought to the training grid that all cases of a project share."""

    spacing_mm: Triple | None = Field(None, title="Spacing (mm)")
    """Voxel size of the training grid as z y x in mm. None: that of the reference case."""
    shape: Shape | None = Field(None, title="Grid shape (voxels)")
    """Shape of the training grid as z y x in voxels. None: it holds the largest scan."""
    crop: Literal["center", "foreground", "labelled"] = Field("center", title="Centre of the crop")
    """Crop or pad around the scan's centre, around its foreground, or around the extent of all
    labels. The last needs a pre-alignment, or scans that lie in one frame already."""
    resize: bool = Field(False, title="Resize the extent to the grid")
    """Stretch the cropped extent to the grid shape instead of cropping it at a fixed spacing, as
    OBELISK does with abdominal CT."""
    prealign: Prealign = Field("none", title="Pre-alignment")
    """How each scan is aligned to the reference case before it is resampled: not at all, by a
    shift of the centre of mass, or by an affine registration."""
    reference_case: str | None = Field(None, title="Reference case")
    """The case to which the others are aligned. None: the first labelled case."""
    clip_percentiles: tuple[float, float] | None = Field(
        None, title="Clip intensities (percentiles)"
    )
    """Lower and upper percentile to which intensities are clipped, before each image is scaled
    to mean 0 and standard deviation 1. None: they are not clipped."""
    clip_values: tuple[float, float] | None = Field(None, title="Clip intensities (values)")
    """Lowest and highest intensity in the scans' own unit, such as HU. They are clipped to these,
    and all scans are scaled alike: the middle becomes 0, and the two become -2 and 2."""

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
        if self.clip_values is not None:
            if self.clip_percentiles is not None:
                raise ValueError("give clip_values or clip_percentiles, not both")
            if not self.clip_values[0] < self.clip_values[1]:
                raise ValueError("clip_values must rise")
        if self.resize and self.shape is None:
            raise ValueError("resize needs a shape")
        return self


class NetworkConfig(_Settings):
    """Which network, and its options."""

    name: str = Field(
        "obelisk",
        title="Network",
        examples=["unet", "obelisk", "vm_unet", "voxelmorph", "monai_unet"],
    )
    """unet, obelisk, vm_unet, voxelmorph, monai_unet, or a function of yours as
    module:function."""
    leaky_slope: float = Field(0.2, ge=0, title="LeakyReLU slope")
    """Slope of the activation for negative values."""
    sample_channels: Literal["both", "fixed"] = Field("both", title="Obelisk input for pairs")
    """Whether the registration network's obelisk layers sample both images or only the fixed
    image."""
    integration_steps: int = Field(0, ge=0, le=10, title="Scaling-and-squaring steps")
    """0: the registration network predicts displacements. More: it predicts a stationary velocity
    field, which is integrated in this many squarings."""
    output_scale: float = Field(1.0, gt=0, title="Voxels per unit of output")
    """Factor on the registration network's output. The output starts at 0, and a training step
    changes a weight by about the learning rate: with a factor of 1, displacements of several
    voxels take thousands of steps."""


class AugmentationConfig(_Settings):
    """Random deformation and intensity changes of training images."""

    affine_std: float = Field(0.075, ge=0, title="Affine strength")
    """Standard deviation of the random changes to the 12 entries of an affine matrix, in
    normalised coordinates (0.075 in OBELISK)."""
    pair_affine_std: float = Field(0.0, ge=0, title="Affine strength on pairs")
    """The same for registration pairs; the two images are deformed independently."""
    intensity_std: float = Field(0.0, ge=0, title="Intensity strength")
    """Standard deviation of a random factor and offset of the intensities of images, which have
    standard deviation 1."""


class ScreeningConfig(_Settings):
    """Which of the teacher's predictions become pseudo-labels (Eq. 3)."""

    tau: Probability = Field(0.7, title="Confidence threshold")
    """What the paper calls tau: 0.7 for brains, 0.6 for the abdomen."""
    voxel_gate: bool = Field(True, title="Screen voxels")
    """Ignore voxels with a confidence of at most tau; they don't count as background."""
    class_gate: Literal["mean", "max", "none"] = Field("mean", title="Screen classes")
    """A class is trusted if the mean or the maximum of its voxels' confidence exceeds tau."""
    learned_gate: bool = Field(False, title="Screen classes by the labelled scans")
    """Don't trust structures that the teacher segments badly even in the labelled scans (Dice
    below 0.5), however confident it is in other scans."""
    accept_fraction: Probability = Field(1.0, title="Classes needed")
    """Fraction of the structures in the labelled scans that must be trusted in a case, or the
    case doesn't supervise the registration."""


class SegmentationTraining(_Settings):
    """Segmentation network: optimiser and pre-training (Mono-Seg)."""

    learning_rate: float = Field(1e-3, gt=0, title="Learning rate")
    """Of Adam."""
    weight_decay: float = Field(1e-4, ge=0, title="Weight decay")
    """Of Adam or AdamW."""
    optimizer: Literal["adam", "adamw"] = Field("adam", title="Optimiser")
    """AdamW (Loshchilov and Hutter 2019) keeps the weight decay out of the gradient."""
    loss: Literal["dice", "dice_ce"] = Field("dice", title="Loss of the pre-training")
    """Dice of each image (Eq. 1 and 2), or Dice of the batch over the structures that it holds,
    plus cross-entropy."""
    crop_fraction: float = Field(1.0, gt=0, le=1, title="Crop (fraction of each axis)")
    """Part of the training grid that a step sees along each axis. 1: whole scans. Half of the
    crops are centred on a structure drawn at random."""
    crop_voxels: int = Field(64_000, ge=4096, title="Voxels in a crop, at most")
    """Larger crops are made smaller along each axis. Without effect on whole scans."""
    epochs: int = Field(300, ge=1, title="Pre-training epochs")
    """An epoch has K samples, K being the number of training cases."""
    minimum_steps: int = Field(3000, ge=1, title="Pre-training steps at least")
    """Pre-training takes at least this many steps, however few cases there are."""
    steps_per_structure: int = Field(0, ge=0, title="Pre-training steps per structure, at least")
    """The more structures there are, the longer it takes until all of them are learned."""
    batch_size: int = Field(2, ge=1, title="Batch size")
    """Images in a step."""
    registration_augmentation: Probability = Field(0.0, title="Labelled scans that are deformed")
    """In the pre-training: fraction of the labelled scans that are warped towards an unlabelled
    scan, with their labels, along a part of the field between the two."""
    strong_intensity: Probability = Field(0.0, title="Labelled scans that look different")
    """In the pre-training: fraction of the labelled scans whose intensities are strongly changed,
    as a perturbed student sees unlabelled scans."""
    include_background: bool = Field(True, title="Background in the Dice loss")
    """Whether the background counts as a class in the loss of pre-training (Eq. 1). If it does,
    networks without normalisation may learn to find nothing."""

    def steps(self, steps_per_epoch: int, structures: int) -> int:
        """Steps of the pre-training for a number of foreground classes."""
        least = max(self.minimum_steps, self.steps_per_structure * structures)
        return max(self.epochs * steps_per_epoch, least)

    def crop(self, shape: Shape) -> Shape:
        """Size (z, y, x) in voxels of the crops on a training grid of this shape."""
        if self.crop_fraction == 1:
            return shape
        voxels = prod(shape) * self.crop_fraction**3
        fraction = self.crop_fraction * min(1.0, (self.crop_voxels / voxels) ** (1 / 3))
        z, y, x = (min(size, max(16, 4 * round(size * fraction / 4))) for size in shape)
        return z, y, x


class RegistrationTraining(_Settings):
    """Registration network: optimiser, loss weights (Eq. 10) and pre-training (Mono-Reg).

    Without a step of pre-training there is no registration network.
    """

    learning_rate: float = Field(4e-4, gt=0, title="Learning rate")
    """Of Adam."""
    weight_decay: float = Field(0.0, ge=0, title="Weight decay")
    """Of Adam."""
    epochs: int = Field(300, ge=0, title="Pre-training epochs")
    """An epoch has K samples, K being the number of training cases. 0, and no least number of
    steps: no registration network is trained; each pair is registered by gradient descent on its
    own field."""
    minimum_steps: int = Field(3000, ge=0, title="Pre-training steps at least")
    """Pre-training takes at least this many steps, however few cases there are."""
    batch_size: int = Field(2, ge=1, title="Batch size (pairs)")
    """Pairs of images in a step."""
    lambda_r: float = Field(0.025, ge=0, title="Smoothness weight")
    """Weight of Eq. 9."""
    lambda_r_warmup: float = Field(0.25, ge=0, title="Smoothness weight at the first step")
    """Falls linearly to the smoothness weight during the warm-up steps."""
    warmup_steps: int = Field(300, ge=0, title="Warm-up steps")
    """Steps until the smoothness weight has its final value."""
    lambda_d: float = Field(0.1, ge=0, title="Dice weight")
    """Weight of Eq. 7, for pairs in which both images have labels."""
    lambda_j: float = Field(0.0, ge=0, title="Folding weight")
    """Weight of the amount by which the Jacobian determinant is below 0.3; not in the paper."""
    similarity: Literal["mse", "lncc"] = Field("mse", title="Image similarity")
    """Mean squared error (Eq. 8), or local normalised cross-correlation."""
    labelled_pair_fraction: Probability = Field(0.0, title="Pairs with two labels, at least")
    """Fraction of each batch that is drawn from pairs with labels on both sides. The others are
    random ordered pairs of all training cases."""

    def steps(self, steps_per_epoch: int) -> int:
        """Steps of the pre-training; 0: there is no registration network."""
        return max(self.epochs * steps_per_epoch, self.minimum_steps)


class JointConfig(_Settings):
    """One joint round: registration, student, averaged teacher (section 3.3)."""

    student: Literal["registered", "perturbed"] = Field("registered", title="Student's task")
    """registered: manual and pseudo-labels of pairs warped onto each other (Eq. 4 to 6).
    perturbed: the student sees unlabelled scans with strongly changed intensities, and has to
    find what the teacher finds in the unchanged scan."""
    segmentation_epochs: int = Field(20, ge=1, title="Student epochs per round")
    """An epoch has K samples, K being the number of training cases."""
    minimum_steps: int = Field(0, ge=0, title="Student steps per round, at least")
    """A round takes at least this many steps, however few cases there are."""
    learning_rate: float = Field(0.0, ge=0, title="Student's learning rate")
    """0: that of the pre-training."""
    registration_augmentation: Probability = Field(0.0, title="Labelled scans that are deformed")
    """For perturbed students: fraction of the labelled scans that are warped towards an
    unlabelled scan, with their labels, along a part of the field between the two."""
    propagated_labels: float = Field(0.0, ge=0, title="Weight of propagated labels")
    """For perturbed students: weight of the labels that registration carries to an unlabelled scan,
    beside 1 for what the teacher finds there, in voxels where the teacher is unsure (below tau)."""
    registration_epochs: int = Field(100, ge=0, title="Registration epochs per round")
    """In the paper, five times the student's epochs."""
    lambda_u: float = Field(0.5, ge=0, title="Uncertainty weight")
    """Weight of the uncertainty (Eq. 5) in the student's loss (Eq. 6); for perturbed students,
    that of the difference from the teacher."""
    lambda_d: float = Field(1.0, ge=0, title="Registration Dice weight")
    """Weight of the Dice of registered labels in the student's loss (Eq. 6)."""
    ema_decay: Probability = Field(0.99, title="Teacher's decay")
    """How much of the teacher is kept at each step; the rest is the student."""
    dropout: float = Field(0.5, ge=0, lt=1, title="Student's dropout")
    """Fraction of feature maps that are set to 0 in a step."""
    uncertainty_weighting: Literal["exp_kl", "none"] = Field(
        "exp_kl", title="Weight of pseudo-labelled voxels"
    )
    """exp(-KL) of teacher and student, or none (Eq. 4 as written)."""
    class_weighting: Literal["none", "inverse_sqrt"] = Field("none", title="Weight of classes")
    """Weight of a class in the student's cross-entropy: none (Eq. 4 as written), or one over the
    square root of its number of voxels, as in OBELISK's reference training."""
    registration_warp: bool = Field(True, title="Registration-warped input")
    """Train the student also on the moving image warped onto the fixed one."""
    supervised_dice: bool = Field(False, title="Dice on manual labels")
    """Add the Dice loss (Eq. 1) of manually labelled images to the student's loss."""

    def steps(self, steps_per_epoch: int) -> int:
        """Steps of the student in a round."""
        return max(self.segmentation_epochs * steps_per_epoch, self.minimum_steps)


class FineTraining(_Settings):
    """A second network at the scans' own voxels, where these are finer than the training grid.

    It sees crops around the borders of structures and the teacher's probabilities, which it
    corrects. Learning rate, optimiser and batch size are those of the segmentation.
    """

    steps: int = Field(0, ge=0, title="Steps at the scans' own voxels")
    """After the pre-training and after each round. 0: no such network is trained; labels are
    interpolated from the training grid."""
    crop: int = Field(48, ge=16, title="Crop (voxels along each axis)")
    """Part of a scan that a step sees; less where the structures take up less."""
    least_finer: float = Field(1.5, ge=1, title="Only where scans are finer, at least")
    """How many times smaller the scans' voxels have to be: the cube root of the volumes' ratio, in
    the middle of the labelled scans."""


class RefinementConfig(_Settings):
    """How the field of one pair is improved after the network (docs/explanation/method.md)."""

    control_spacings: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (2, 1), min_length=1, title="Voxels between two control points, level by level"
    )
    """The larger, the smoother the improvement. Grids of more than two million voxels take twice
    these values."""
    image_spacings: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, title="Voxels between two samples of the images, level by level"
    )
    """None: as many as between two control points, but two at most. Grids of more than two million
    voxels take twice these values."""
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((30, 15), title="Steps of each level")
    """Steps of Adam."""
    learning_rate: float = Field(0.3, gt=0, title="Learning rate")
    """Of Adam, in voxels of the control grid."""
    similarity: Literal["mse", "lncc", "mind"] = Field("mind", title="Image similarity")
    """Mean squared error (Eq. 8), local correlation, or MIND-SSC, which matches images of
    different contrast too."""
    lambda_d: float = Field(2.0, ge=0, title="Dice weight")
    """Weight of the Dice of the teacher's probabilities."""
    lambda_r: float = Field(4.0, ge=0, title="Smoothness weight")
    """Weight of Eq. 9."""
    lambda_j: float = Field(10.0, ge=0, title="Folding weight")
    """Weight of the amount by which the Jacobian determinant is below 0.3, by central and forward
    differences in turn."""

    @model_validator(mode="after")
    def _steps_of_each_level(self) -> RefinementConfig:
        if len(self.steps) != len(self.control_spacings):
            raise ValueError("steps: give as many as control_spacings")
        if self.image_spacings and len(self.image_spacings) != len(self.control_spacings):
            raise ValueError("image_spacings: give as many as control_spacings")
        return self


class TrainingConfig(_Settings):
    """All settings that, together with the data, determine the weights."""

    preset: PresetName = Field("paper", title="Preset it started from")
    """paper: as published, for a GPU. fast: for a CPU. smoke: shows that everything runs."""
    seed: int = Field(0, ge=0, lt=2**32, title="Random seed")
    """Decides everything that is random."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true", title="Precision")
    """bf16-mixed needs about three quarters of the memory. It is faster on CPUs with AMX; on a
    GPU it may be slower (docs/benchmarks.md)."""
    schedule: Literal["decay", "cosine"] = Field("decay", title="Learning-rate schedule")
    """decay: the same factor after each epoch. cosine: a rise over the first 5 % of a stage's
    steps, then half a cosine down to 1 %; the last weights are kept, not the best on validation."""
    gamma: float = Field(0.99, gt=0, le=1, title="Learning-rate decay")
    """Factor on the learning rate after each epoch; without effect on the cosine."""
    gradient_clip: float = Field(0.0, ge=0, title="Largest gradient norm")
    """Longer gradients are shortened to this norm. 0: none is."""
    validation_interval: int = Field(5, ge=1, title="Validate every")
    """Epochs between two validations."""
    segmentation_network: NetworkConfig = NetworkConfig()
    """The network of teacher and student."""
    registration_network: NetworkConfig = NetworkConfig()
    """The network that predicts displacement fields."""
    segmentation: SegmentationTraining = SegmentationTraining()
    """Pre-training of the segmentation network."""
    registration: RegistrationTraining = RegistrationTraining()
    """Training of the registration network."""
    joint: JointConfig = JointConfig()
    """Joint rounds."""
    screening: ScreeningConfig = ScreeningConfig()
    """Screening of pseudo-labels."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Augmentation of training images."""
    fine: FineTraining = FineTraining()
    """Labels at the scans' own voxels."""
    mirror_image: bool = Field(False, title="Segment the mirror image, too")
    """Where left and right are alike, average what the teacher finds in a scan and in its mirror
    image; left and right structures change places. Cohorts whose labelled scans aren't like their
    mirror images, or that have structures on one side alone, are segmented as they are."""

    @model_validator(mode="after")
    def _sensible(self) -> TrainingConfig:
        if self.segmentation.crop_fraction < 1 and self.segmentation_network.name == "obelisk":
            raise ValueError("obelisk samples the whole scan: segmentation.crop_fraction must be 1")
        if not self.trains_registration:
            if self.joint.student == "registered":
                raise ValueError(
                    "a registered student needs a registration network: registration.epochs or "
                    "registration.minimum_steps must be above 0"
                )
            if self.joint.registration_epochs > 0:
                raise ValueError(
                    "joint.registration_epochs must be 0 where no registration network is "
                    "pre-trained"
                )
        return self

    @property
    def trains_registration(self) -> bool:
        """Whether there is a registration network."""
        return self.registration.steps(1) > 0

    def registering_stage(self, *, joint: bool) -> str:
        """The stage that registers pairs before a round or the pre-training; "" if none does."""
        if not joint:
            return "deformation" if self.segmentation.registration_augmentation else ""
        if self.joint.student != "perturbed":
            return ""
        if self.joint.propagated_labels:
            return "propagation"
        return "deformation" if self.joint.registration_augmentation else ""


def preset(name: PresetName, **changes: object) -> TrainingConfig:
    """Settings for a purpose: ``paper`` as published, ``fast`` on a CPU, ``smoke`` for tests.

    Parameters
    ----------
    name
        ``paper``, ``fast`` or ``smoke``.
    **changes
        Fields of :class:`TrainingConfig` to replace, such as ``seed=1``. Of a part, only what is
        named is replaced: ``segmentation={"minimum_steps": 2000}`` keeps the rest of the preset's.

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
    return TrainingConfig.model_validate(merged({"preset": name, **variants[name]}, changes))


def merged(settings: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Nested settings with some changes; what these don't name stays as it is."""
    result = dict(settings)
    for name, value in changes.items():
        old, new = result.get(name), value.model_dump() if isinstance(value, BaseModel) else value
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            new = merged(old, new)
        result[name] = new
    return result


# Few labels are learned in a few hundred steps; docs/dev/choices.md has the figures.
_FAST: dict[str, object] = {
    "schedule": "cosine",
    "gradient_clip": 5.0,
    "segmentation_network": {"name": "unet"},
    "registration_network": {"output_scale": 10.0},
    "segmentation": {
        "learning_rate": 2e-3,
        "weight_decay": 1e-2,
        "optimizer": "adamw",
        "loss": "dice_ce",
        "crop_fraction": 0.6,
        "epochs": 1,
        "minimum_steps": 1000,
        "steps_per_structure": 150,
        "registration_augmentation": 0.7,
    },
    # No registration network: refinements that start from one end as those that start from zero.
    "registration": {
        "learning_rate": 1e-3,
        "epochs": 0,
        "minimum_steps": 0,
        "lambda_r": 1.0,
        "lambda_r_warmup": 2.0,
        "warmup_steps": 50,
        "lambda_d": 1.0,
        "lambda_j": 10.0,
        "labelled_pair_fraction": 0.5,
    },
    "joint": {
        "student": "perturbed",
        "segmentation_epochs": 1,
        "minimum_steps": 700,
        "learning_rate": 1e-3,
        "registration_augmentation": 0.7,
        "propagated_labels": 1.0,
        "registration_epochs": 0,
        "ema_decay": 0.98,
        "dropout": 0.0,
    },
    "screening": {"tau": 0.8, "learned_gate": True},
    "mirror_image": True,
    "fine": {"steps": 300},
}
# The synthetic cohort within a minute; tau fits networks that have hardly begun to be sure.
_SMOKE: dict[str, object] = {
    **_FAST,
    "segmentation": {
        **_FAST["segmentation"],  # type: ignore[dict-item]
        "minimum_steps": 120,
        "steps_per_structure": 0,
        "registration_augmentation": 0.0,
    },
    "registration": {
        **_FAST["registration"],  # type: ignore[dict-item]
        "minimum_steps": 40,
        "warmup_steps": 10,
    },
    "joint": {
        **_FAST["joint"],  # type: ignore[dict-item]
        "minimum_steps": 150,
        "learning_rate": 2e-3,
        "propagated_labels": 0.0,
        "registration_epochs": 4,
        "ema_decay": 0.95,
    },
    "screening": {"tau": 0.5, "accept_fraction": 0.5, "learned_gate": True},
    "mirror_image": False,
    "fine": {"steps": 60},
}
