"""Every comparator learns on phantoms and has as many parameters as was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_jrss._tests.training.phantoms import (
    LABELLED,
    NAMES,
    UNLABELLED,
    RecordingArrays,
    cpu,
    phantom,
    snapshot,
)
from napari_jrss.app.review.consensus import with_votes
from napari_jrss.config import NetworkConfig, TrainingConfig, preset
from napari_jrss.errors import JRSSError
from napari_jrss.experiments.methods import METHODS, deep_atlas
from napari_jrss.experiments.methods.pdd_net import expected_label_loss
from napari_jrss.experiments.methods.propagation import BesideTeacher
from napari_jrss.experiments.pdd_network import (
    RANGE,
    WIDTH,
    PddNet,
    at_depth,
    control_shape,
    displaced_planes,
    displacements,
    positions,
    sample_at,
)
from napari_jrss.experiments.recipe import Task, Trained, parameters
from napari_jrss.inference.evaluate import evaluate_registration, evaluate_segmentation
from napari_jrss.inference.predict import displacement_field, predict_case, warp_array
from napari_jrss.metrics import dice_per_class
from napari_jrss.networks.build import build_registration_network, build_segmentation_network

UNSEEN = ("f", "h", "s")
PAIRS = (("s", "f"), ("f", "h"), ("h", "s"))
CPU = torch.device("cpu")


def millimetre(case_id: str) -> tuple[float, float, float]:
    return 1, 1, 1


def settings(**registration: object) -> TrainingConfig:
    """Some dozens of steps; tau low enough for barely trained teachers."""
    values = preset("smoke").model_dump() | {"validation_interval": 100}
    values["segmentation"] |= {"minimum_steps": 80}
    values["registration"] |= {"minimum_steps": 60} | registration
    values["joint"] |= {"segmentation_epochs": 3, "registration_epochs": 6, "minimum_steps": 120}
    values["screening"] |= {"tau": 0.3}
    return TrainingConfig.model_validate(values)


def task_of(name: str, folder: Path, *before: Path, **registration: object) -> Task:
    """The phantoms as a method may see them."""
    blind = METHODS[name].labels == "none"
    cases = snapshot((), (*LABELLED, *UNLABELLED)) if blind else snapshot()
    config = settings(**registration)
    return Task(cases, config, folder / name, cpu(), joint_rounds=1, before=before)


def dice_of_segmentation(network: nn.Module | None) -> float:
    """On phantoms that nobody trained on."""
    assert network is not None
    rows = evaluate_segmentation(network, RecordingArrays(), UNSEEN, len(NAMES), millimetre, CPU)
    return float(np.mean([row.dice for row in rows]))


def dice_of_registration(
    network: nn.Module | None, pairs: Sequence[tuple[str, str]] = PAIRS
) -> tuple[float, float]:
    """Before and after, on pairs that nobody trained on."""
    assert network is not None
    rows = list(
        evaluate_registration(network, RecordingArrays(), pairs, len(NAMES), millimetre, CPU)
    )
    before, after = ([getattr(row, name) for row in rows] for name in ("dice_before", "dice"))
    return float(np.mean(before)), float(np.mean(after))


pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def mono(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """Mono-Net's run, which others start from."""
    torch.set_num_threads(1)
    task = task_of("mono", tmp_path_factory.mktemp("mono"))
    return task.folder, METHODS["mono"].train(task)


@pytest.fixture(scope="module")
def jrss(
    mono: tuple[Path, Trained], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Trained]:
    """The joint round that goes on from it."""
    task = task_of("jrss", tmp_path_factory.mktemp("joint"), mono[0])
    return task.folder, METHODS["jrss"].train(task)


def test_mono_net_learns_both_tasks(mono: tuple[Path, Trained]) -> None:
    trained = mono[1]
    assert dice_of_segmentation(trained.segmentation) > 0.5
    before, after = dice_of_registration(trained.registration)
    assert after > before + 0.02


def test_methods_that_learn_registration_are_refused_where_none_is_trained(tmp_path: Path) -> None:
    task = task_of("voxelmorph", tmp_path)
    none = task.config.registration.model_copy(update={"epochs": 0, "minimum_steps": 0})
    task = replace(task, config=task.config.model_copy(update={"registration": none}))
    with pytest.raises(JRSSError, match="needs a registration network, which these settings don't"):
        METHODS["voxelmorph"].train(task)


def test_jrss_goes_on_from_mono_net(mono: tuple[Path, Trained], jrss: tuple[Path, Trained]) -> None:
    trained = jrss[1]
    assert trained.note == ""
    assert dice_of_segmentation(trained.segmentation) > dice_of_segmentation(mono[1].segmentation)


def test_refined_fields_are_those_of_the_last_round_and_better(
    mono: tuple[Path, Trained], jrss: tuple[Path, Trained], tmp_path: Path
) -> None:
    for method, before, trained in (
        ("mono_two_levels", (mono[0],), mono[1]),
        ("jrss_refined", (mono[0], jrss[0]), jrss[1]),
    ):
        refined = METHODS[method].train(task_of(method, tmp_path, *before))
        assert refined.segmentation is None
        assert refined.registration is not None
        assert trained.registration is not None
        weights = refined.registration.registration.state_dict()
        for name, value in trained.registration.state_dict().items():
            assert torch.equal(weights[name], value)
        _, plain = dice_of_registration(trained.registration)
        _, better = dice_of_registration(refined.registration)
        assert better > plain + 0.02


def test_where_no_round_was_run_the_mono_nets_are_refined_as_jrss_falls_back_to_them(
    mono: tuple[Path, Trained], tmp_path: Path
) -> None:
    (tmp_path / "jrss").mkdir()
    task = task_of("jrss_refined", tmp_path, mono[0], tmp_path / "jrss")
    refined = METHODS["jrss_refined"].train(task).registration
    assert refined is not None
    assert mono[1].registration is not None
    weights = refined.registration.state_dict()
    for name, value in mono[1].registration.state_dict().items():
        assert torch.equal(weights[name], value)


def test_propagated_labels_vote(mono: tuple[Path, Trained], tmp_path: Path) -> None:
    trained = METHODS["propagation"].train(task_of("propagation", tmp_path, mono[0]))
    before, _ = dice_of_registration(
        mono[1].registration, [(a, u) for a in LABELLED for u in UNSEEN]
    )
    assert dice_of_segmentation(trained.segmentation) > before


def test_beside_the_votes_a_teacher_finds_what_a_person_gets_as_draft(
    mono: tuple[Path, Trained], jrss: tuple[Path, Trained], tmp_path: Path
) -> None:
    task = task_of("jrss_drafts", tmp_path, mono[0], jrss[0])
    both, teacher = METHODS["jrss_drafts"].train(task).segmentation, jrss[1].segmentation
    assert isinstance(both, BesideTeacher)
    assert teacher is not None
    image = RecordingArrays().image(UNSEEN[0])
    found = predict_case(both, image, CPU)
    vote, of_teacher = (predict_case(each, image, CPU) for each in (both.atlases, teacher))
    draft = with_votes(of_teacher, vote, len(LABELLED))
    same = found.label == draft.label
    assert np.mean(same) > 0.999  # the draft knows two classes of each
    np.testing.assert_allclose(found.confidence[same], draft.confidence[same], atol=2e-3)
    for opinion in (vote, of_teacher):
        assert np.abs(found.confidence - opinion.confidence).max() > 0.1


@pytest.mark.parametrize("name", ["voxelmorph", "voxelmorph_unsupervised", "pdd_net"])
def test_registration_alone_learns(name: str, tmp_path: Path) -> None:
    steps = 12 if name == "pdd_net" else 60
    trained = METHODS[name].train(task_of(name, tmp_path, minimum_steps=steps))
    assert trained.segmentation is None
    before, after = dice_of_registration(trained.registration)
    assert after > before + 0.03


def test_vm_unet_learns(tmp_path: Path) -> None:
    trained = METHODS["vm_unet"].train(task_of("vm_unet", tmp_path))
    assert trained.registration is None
    assert dice_of_segmentation(trained.segmentation) > 0.5


@pytest.mark.parametrize("name", ["deep_atlas", "rsegnet"])
def test_joint_comparators_learn_both_tasks(name: str, tmp_path: Path) -> None:
    trained = METHODS[name].train(task_of(name, tmp_path))
    assert dice_of_segmentation(trained.segmentation) > 0.5
    before, after = dice_of_registration(trained.registration)
    assert after > before + 0.02


def test_rsegnet_sees_labelled_cases_alone(tmp_path: Path) -> None:
    arrays = RecordingArrays()
    task = task_of("rsegnet", tmp_path, minimum_steps=2)
    segmentation = task.config.segmentation.model_copy(update={"minimum_steps": 2})
    config = task.config.model_copy(update={"segmentation": segmentation})
    task = replace(task, snapshot=snapshot(arrays=arrays), config=config)
    METHODS["rsegnet"].train(task)
    assert {case for _, case in arrays.read} & set(UNLABELLED) == set()


def doubled(array: np.ndarray) -> np.ndarray:
    """Each voxel as eight: on 16 voxels ANTs finds now this, now that."""
    return array.repeat(2, 0).repeat(2, 1).repeat(2, 2)


def test_syn_registers_images_whatever_their_zero_and_twice_alike(tmp_path: Path) -> None:
    """With cross-correlation to full resolution it takes minutes, and is the same call."""
    pytest.importorskip("ants", reason="antspyx is an extra")
    network = METHODS["syn"].train(task_of("syn", tmp_path)).registration
    assert network is not None
    (moving, label), (fixed, truth) = map(phantom, "ab")
    # Around zero there is no centre of mass, which ANTs starts from.
    field = displacement_field(network, doubled(moving) - 3, doubled(fixed) - 0.1, CPU)
    again = displacement_field(network, doubled(moving) - 3, doubled(fixed) - 0.1, CPU)
    np.testing.assert_array_equal(again, field)
    warped = warp_array(doubled(label), field, nearest=True)
    before, after = (
        np.mean(dice_per_class(each, doubled(truth), len(NAMES)))
        for each in (doubled(label), warped)
    )
    assert before < 0.7
    assert after > before + 0.15


def test_doing_nothing_changes_nothing(tmp_path: Path) -> None:
    network = METHODS["initial"].train(task_of("initial", tmp_path)).registration
    before, after = dice_of_registration(network)
    assert before == after


def test_parameters_are_as_published() -> None:
    """Figures of the methods' own sources, for 9 classes; the additions are named."""
    pdd = PddNet()
    assert parameters(pdd) == 120_780 + pdd.scalars.numel()
    assert parameters(deep_atlas.segmentation_network(9)) == 437_133
    head = 3 * 3 + 3  # ours, to start at zero
    assert parameters(deep_atlas.registration_network()) == 239_147 + head
    names = {name: NetworkConfig(name=name) for name in ("voxelmorph", "vm_unet", "obelisk")}
    assert parameters(build_registration_network(names["voxelmorph"])) == 327_331
    assert parameters(build_segmentation_network(names["vm_unet"], 9)) == 329_497
    assert parameters(build_segmentation_network(names["obelisk"], 9)) == 229_217
    assert parameters(build_registration_network(names["obelisk"])) == 251_213


def test_pdd_net_gives_probabilities_on_the_control_grid() -> None:
    torch.manual_seed(0)
    network = PddNet().eval()
    image = torch.randn(1, 1, 20, 24, 16)
    with torch.no_grad():
        probabilities = network.probabilities(image, image)
        field = network(image, image)
    assert probabilities.shape == (1, 4, 5, 4, WIDTH**3)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 4, 5, 4))
    assert field.shape == (1, 3, 20, 24, 16)


def test_pdd_net_samples_by_matrices_what_grid_sample_does() -> None:
    volume = torch.randn(2, 3, 9, 7, 8, generator=torch.Generator().manual_seed(0))
    shape = (3, 4, 2)
    there = positions(shape, volume).unsqueeze(-2) + displacements(volume)
    planes, depth = displaced_planes(volume, shape)
    for z in range(shape[0]):
        sampled = at_depth(planes, depth[z]).permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
        torch.testing.assert_close(
            sampled, sample_at(volume, there[z : z + 1])[:, :, 0], rtol=0, atol=1e-5
        )


def test_pdd_nets_expected_displacement_is_in_voxels_of_the_image() -> None:
    """All the probability on one displacement of half an extent's RANGE along y."""
    shape = (11, 21, 31)
    control = control_shape(shape)
    index = np.ravel_multi_index((WIDTH // 2, WIDTH - 1, WIDTH // 2), (WIDTH,) * 3)
    probabilities = torch.zeros(1, *control, WIDTH**3)
    probabilities[..., index] = 1
    field = PddNet().field(probabilities, shape)
    wanted = torch.tensor([0.0, RANGE * (21 - 1) / 2, 0.0]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(field, wanted.expand(1, 3, *shape))


def test_pdd_nets_label_loss_is_zero_where_the_sure_displacement_is_right() -> None:
    label = torch.zeros(1, 11, 11, 11, dtype=torch.long)
    label[:, :5] = 1  # the control points are voxels 0, 5 and 10
    probabilities = torch.zeros(1, 3, 3, 3, WIDTH**3)
    probabilities[..., WIDTH**3 // 2] = 1  # no displacement
    weight = torch.tensor([1.0, 3.0])
    assert float(expected_label_loss(probabilities, label, label, weight)) == 0
    # each of both classes is off by one at every point
    wrong = expected_label_loss(probabilities, label, 1 - label, weight)
    assert float(wrong) == pytest.approx(2)


def test_bending_energy_of_a_parabola() -> None:
    z = torch.arange(6.0)
    field = torch.zeros(1, 3, 6, 6, 6)
    field[0, 1] = (z**2)[:, None, None]  # second derivative 2, one component of 3
    assert float(deep_atlas.bending_energy(field)) == pytest.approx(4 / 3)
    field[0, 1] = z[:, None, None] * z[None, :, None]  # mixed derivative 1, counted twice
    assert float(deep_atlas.bending_energy(field)) == pytest.approx(2 / 3)
