import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from napari_jrss.networks.spatial import (
    compose,
    forward_jacobian_determinant,
    integrate_velocity,
    jacobian_determinant,
    resize_displacement,
    warp,
)

# no two axes alike: a mix-up of axes cannot hide
SHAPE = (12, 17, 23)
INNER = (..., slice(3, -3), slice(3, -3), slice(3, -3))


def identity_grid(shape: tuple[int, ...]) -> Tensor:
    """Voxel coordinates of a grid, (3, z, y, x), components z, y, x."""
    return torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))


def ramp(coefficients: tuple[float, float, float]) -> Tensor:
    """A volume that is linear in z, y and x, which linear interpolation reproduces."""
    return torch.einsum("c,czyx->zyx", torch.tensor(coefficients), identity_grid(SHAPE))[None, None]


def smooth_field(amplitude: float, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 4, 4, 4, generator=generator)
    field = torch.nn.functional.interpolate(coarse, shape, mode="trilinear", align_corners=True)
    return amplitude * field / field.abs().max()


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_no_displacement_changes_nothing(mode: str) -> None:
    volume = torch.randn(2, 3, *SHAPE)
    warped = warp(volume, torch.zeros(2, 3, *SHAPE), mode=mode)  # type: ignore[arg-type]
    torch.testing.assert_close(warped, volume, atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=25)
@given(st.tuples(*[st.integers(-3, 3)] * 3), st.sampled_from(["zeros", "border"]))
def test_integer_shift_is_a_pull(shift: tuple[int, int, int], padding: str) -> None:
    volume = torch.randn(1, 1, *SHAPE)
    field = torch.tensor(shift, dtype=torch.float32).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    for mode in ("linear", "nearest"):
        warped = warp(volume, field, mode, padding)  # type: ignore[arg-type]
        # warped(p) = volume(p + shift)
        wanted = volume.roll([-step for step in shift], dims=(2, 3, 4))
        torch.testing.assert_close(warped[INNER], wanted[INNER], atol=1e-4, rtol=0)
    outside = warp(volume, field + 100.0, "linear", padding)  # type: ignore[arg-type]
    value = 0 if padding == "zeros" else volume[0, 0, -1, -1, -1]
    torch.testing.assert_close(outside, torch.zeros_like(outside) + value, atol=1e-4, rtol=0)


def test_affine_field_moves_a_linear_image_exactly() -> None:
    matrix = torch.tensor([[0.02, -0.03, 0.01], [0.01, 0.04, -0.02], [-0.03, 0.02, -0.01]])
    field = torch.einsum("ij,jzyx->izyx", matrix, identity_grid(SHAPE))[None]
    moved = identity_grid(SHAPE) + field[0]
    for axis in range(3):
        coefficients = tuple(1.0 if a == axis else 0.0 for a in range(3))
        volume = ramp(coefficients)  # type: ignore[arg-type]
        torch.testing.assert_close(
            warp(volume, field)[INNER], moved[axis][None, None][INNER], atol=1e-3, rtol=0
        )


def test_field_may_have_another_grid_than_the_volume() -> None:
    volume = ramp((1.0, 10.0, 100.0))
    warped = warp(volume, torch.ones(1, 3, 4, 5, 6))
    torch.testing.assert_close(warped, volume[:, :, 1:5, 1:6, 1:7], atol=2e-3, rtol=0)


def test_composition_equals_warping_twice() -> None:
    first, second = smooth_field(2.0, 1), smooth_field(2.0, 2)
    volume = ramp((0.3, -0.2, 0.5))
    twice = warp(warp(volume, first), second)
    once = warp(volume, compose(first, second))
    torch.testing.assert_close(twice[INNER], once[INNER], atol=0.01, rtol=0)
    # the order matters: the other one is far off
    other = warp(volume, compose(second, first))
    assert (twice - other)[INNER].abs().max() > 0.1


def test_composition_of_affine_fields_is_the_product() -> None:
    grid = identity_grid(SHAPE)
    first = torch.tensor([[0.02, 0.03, 0.0], [0.0, -0.02, 0.01], [0.01, 0.0, 0.03]])
    second = torch.tensor([[-0.01, 0.0, 0.02], [0.02, 0.01, 0.0], [0.0, -0.03, 0.0]])
    unit = torch.eye(3)
    # warping by the first and then the second looks up at first(second(p))
    product = (unit + first) @ (unit + second) - unit
    fields = [torch.einsum("ij,jzyx->izyx", m, grid)[None] for m in (first, second, product)]
    torch.testing.assert_close(
        compose(fields[0], fields[1])[INNER], fields[2][INNER], atol=1e-3, rtol=0
    )


def test_jacobian_of_an_affine_field_is_its_determinant() -> None:
    matrix = torch.tensor([[0.1, 0.2, -0.1], [0.05, -0.2, 0.1], [0.3, 0.0, 0.15]])
    field = torch.einsum("ij,jzyx->izyx", matrix, identity_grid(SHAPE))[None]
    wanted = torch.linalg.det(torch.eye(3) + matrix)
    torch.testing.assert_close(
        jacobian_determinant(field), wanted.expand(1, *SHAPE), atol=1e-4, rtol=0
    )


def test_jacobian_equals_that_of_the_metrics() -> None:
    from napari_jrss.metrics import jacobian_statistics

    field = smooth_field(4.0)
    statistics = jacobian_statistics(field[0].numpy())
    determinant = jacobian_determinant(field)
    assert statistics.std == pytest.approx(float(determinant.std(correction=0)), rel=1e-4)
    folded = 100 * float((determinant <= 0).float().mean())
    assert statistics.folded_percent == pytest.approx(folded, abs=0.03)
    forward = forward_jacobian_determinant(field)
    assert forward.shape == (1, *(size - 1 for size in SHAPE))
    folded = 100 * float((forward <= 0).float().mean())
    assert statistics.folded_percent_forward == pytest.approx(folded, abs=0.03)


def test_constant_velocity_integrates_to_itself() -> None:
    velocity = torch.tensor([1.5, -2.0, 0.5]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    torch.testing.assert_close(integrate_velocity(velocity, 6), velocity, atol=1e-4, rtol=0)


def test_linear_velocity_integrates_to_the_matrix_exponential() -> None:
    matrix = torch.tensor([[0.05, 0.08, 0.0], [-0.06, 0.02, 0.04], [0.0, 0.05, -0.07]])
    centred = identity_grid(SHAPE) - (torch.tensor(SHAPE) - 1).view(3, 1, 1, 1) / 2
    velocity = torch.einsum("ij,jzyx->izyx", matrix, centred)[None]
    wanted = torch.einsum("ij,jzyx->izyx", torch.matrix_exp(matrix) - torch.eye(3), centred)[None]
    torch.testing.assert_close(
        integrate_velocity(velocity, 8)[INNER], wanted[INNER], atol=0.02, rtol=0
    )


def test_opposite_velocity_is_the_inverse_and_never_folds() -> None:
    velocity = smooth_field(6.0)
    forward, backward = integrate_velocity(velocity, 7), integrate_velocity(-velocity, 7)
    error = compose(forward, backward)
    assert error[INNER].abs().mean() < 0.05 < velocity[INNER].abs().mean()
    assert jacobian_determinant(forward).min() > 0
    assert jacobian_determinant(velocity).min() < 0, "the velocity itself must be a hard case"


def test_resized_field_moves_the_same_points() -> None:
    matrix = torch.tensor([[0.02, 0.03, 0.0], [0.0, -0.02, 0.01], [0.01, 0.0, 0.03]])
    new = (7, 30, 12)
    field = torch.einsum("ij,jzyx->izyx", matrix, identity_grid(SHAPE))[None]
    resized = resize_displacement(field, new)
    scale = (torch.tensor(new) - 1) / (torch.tensor(SHAPE) - 1)
    # new voxels = scale * old voxels
    points = identity_grid(new) / scale.view(3, 1, 1, 1)
    wanted = torch.einsum("ij,jzyx->izyx", matrix, points) * scale.view(3, 1, 1, 1)
    torch.testing.assert_close(resized, wanted[None], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_gradients_reach_field_and_volume() -> None:
    volume = torch.randn(1, 2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    # away from whole voxels, where linear interpolation has a kink
    field = (0.3 + 0.2 * torch.rand(1, 3, 5, 6, 7, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(warp, (volume, field))


def test_autocast_does_not_touch_coordinates() -> None:
    volume = ramp((1.0, 1.0, 1.0))
    field = smooth_field(2.0)
    wanted = warp(volume, field)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(volume, field), wanted)
