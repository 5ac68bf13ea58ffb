"""Our networks, losses and warps beside the official implementations, on the same inputs.

    git clone https://github.com/mattiaspaul/OBELISK CHECKOUTS/OBELISK     # and so on
    python benchmarks/agreement.py CHECKOUTS --project PROJECT

Prints a table in Markdown: the largest difference of the outputs, and their largest value for
scale. CHECKOUTS holds clones named as their repositories: OBELISK, voxelmorph (one that has
voxelmorph/torch/networks.py), pdd_net, tutorials (of Project-MONAI). Their code is imported from
there, never copied; what isn't there is left out. PROJECT is a project with labels, for SyN's pair.

Two of them can't be imported as they are: a script that begins to train, and a notebook. Of these,
the classes, functions and settings compared are picked by name and run by themselves. Code older
than torch 1.3 gets the meaning that ``grid_sample`` and ``affine_grid`` had then.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import monai
import numpy as np
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor, nn
from torch.nn import functional as F

from napari_jrss.experiments.methods import deep_atlas, pdd_net, syn
from napari_jrss.experiments.pdd_network import PddNet, control_shape, displacements
from napari_jrss.inference.predict import warp_array
from napari_jrss.losses import (
    class_weights,
    diffusion_regulariser,
    local_normalized_cross_correlation,
    one_hot,
    soft_dice_loss,
)
from napari_jrss.metrics import dice_per_class
from napari_jrss.networks import obelisk as our_obelisk
from napari_jrss.networks.build import RegistrationNetwork
from napari_jrss.networks.spatial import integrate_velocity, warp
from napari_jrss.networks.unet import VoxelMorphUNet
from napari_jrss.project.project import Project
from napari_jrss.training.screening import IGNORED
from napari_jrss.training.steps import PairBatch

CLASSES = 9


@dataclass(frozen=True)
class Row:
    """One comparison."""

    method: str
    what: str
    inputs: str
    difference: float
    largest: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", type=Path, nargs="?", help="folder of the clones")
    parser.add_argument("--project", type=Path, help="project with labels, for SyN")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", module=r"monai|torch\.functional")
    print("| Method | Compared | Input | Largest difference | Largest value |")
    print("|---|---|---|---:|---:|")
    for row in rows(arguments.checkouts, arguments.project):
        numbers = f"{row.difference:.1e} | {row.largest:.3g}"
        print(f"| {row.method} | {row.what} | {row.inputs} | {numbers} |", flush=True)


@torch.no_grad()
def rows(checkouts: Path | None, project: Path | None) -> Iterator[Row]:
    """All comparisons that can be made with what was given."""
    yield from warps()
    yield from losses()
    compare = {
        "OBELISK": compare_obelisk,
        "voxelmorph": compare_voxelmorph,
        "pdd_net": compare_pdd_net,
        "tutorials": compare_deep_atlas,
    }
    for name, function in compare.items():
        if checkouts is not None and (checkouts / name).is_dir():
            yield from function(checkouts / name)
        else:
            print(f"{name}: no clone, left out", file=sys.stderr)
    if project is None:
        print("SyN: no project, left out", file=sys.stderr)
    else:
        yield from compare_syn(project)


def row(method: str, what: str, inputs: str, ours: Any, theirs: Any) -> Row:
    """The largest difference of two arrays or numbers."""
    ours, theirs = (torch.as_tensor(each) for each in (ours, theirs))
    if ours.shape != theirs.shape:
        raise SystemExit(f"{method}, {what}: {tuple(ours.shape)} and {tuple(theirs.shape)}")
    difference, largest = (ours.double() - theirs.double()).abs().max(), theirs.abs().max()
    return Row(method, what, inputs, float(difference), float(largest))


def warps() -> Iterator[Row]:
    """Ours beside scipy's and MONAI's."""
    shape = (20, 24, 28)
    volume, field = torch.randn(1, 1, *shape), smooth_field(shape, 3)
    name = "random, 20x24x28, field of 3 voxels"
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")) + field[0].numpy()
    for ours, scipys in (("zeros", "grid-constant"), ("border", "nearest")):
        theirs = map_coordinates(volume[0, 0].double().numpy(), points, order=1, mode=scipys)
        found = warp(volume, field, padding=ours)[0, 0]
        yield row("Warp", f"linear, {ours} outside; scipy map_coordinates", name, found, theirs)
    theirs = monai.networks.blocks.Warp("bilinear", "border")(volume, field)
    found = warp(volume, field, padding="border")
    yield row("Warp", "linear, border outside; MONAI Warp", name, found, theirs)


def losses() -> Iterator[Row]:
    """Ours beside MONAI's, which DeepAtlas is trained with."""
    shape = (20, 24, 28)
    name = "random, 20x24x28"
    first, second = torch.randn(2, 1, *shape), torch.randn(2, 1, *shape)
    for window in (3, 9):
        theirs = monai.losses.LocalNormalizedCrossCorrelationLoss(3, window)(first, second)
        found = local_normalized_cross_correlation(first, second, window)
        yield row("Loss", f"LNCC, window {window}; MONAI", name, found, theirs)
    field = smooth_field(shape, 3)
    theirs = monai.losses.BendingEnergyLoss()(field)
    yield row("Loss", "bending energy; MONAI", name, deep_atlas.bending_energy(field), theirs)
    soft, label = torch.randn(2, CLASSES, *shape).softmax(1), random_label(shape, 2)
    theirs = monai.losses.DiceLoss()(soft, one_hot(label, CLASSES))
    found = soft_dice_loss(soft, one_hot(label, CLASSES))
    yield row("Loss", "soft Dice; MONAI", name, found, theirs)


def compare_obelisk(checkout: Path) -> Iterator[Row]:
    """The hybrid network with the weights that were published, on the one size it was made for."""
    models = module_of(checkout / "models.py")
    theirs = models.obeliskhybrid_tcia(CLASSES).eval()
    weights = checkout / "models" / "obeliskhybrid_tcia_fold1.pth"
    theirs.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    ours = our_obelisk.ObeliskNetwork(1, CLASSES, slope=0.025).eval()
    load(ours, theirs, obelisk_names())
    for offset, layer in zip(
        (theirs.offset1, theirs.offset2),
        (ours.obelisk_quarter, ours.obelisk_eighth),
        strict=True,
    ):
        layer.offsets.copy_(offset.view(-1, 3).flip(-1))  # theirs are x, y, z
    image = torch.randn(1, 1, 144, 144, 144)
    name = "random, 144x144x144, published weights"
    with mock.patch.object(models, "F", old_functional()):
        of_their_grid = theirs(image)
        theirs.H_grid3 = 18  # 36 in the code, by a slip: 18x36x18 points at 1/8 of 144
        identity = torch.eye(3, 4)[None]
        grid = F.affine_grid(identity, [1, 1, 18, 18, 18], align_corners=True)
        theirs.sample_grid2 = grid.view(1, 1, -1, 1, 3)
        mended = theirs(image)
    yield row("OBELISK", "logits, the coarse grid 18x18x18 in both", name, ours(image), mended)

    divided = our_obelisk._divided

    def slipped(shape: torch.Size, divisor: int) -> tuple[int, int, int]:
        return (18, 36, 18) if divisor == 8 else divided(shape, divisor)

    with mock.patch.object(our_obelisk, "_divided", slipped):
        found = ours(image)
    yield row("OBELISK", "logits, their 18x36x18 in both", name, found, of_their_grid)


def obelisk_names() -> dict[str, str]:
    """Their layers by our names."""
    blocks = {"encode_full": "0", "encode_half.0": "1", "encode_half.1": "11"}
    blocks |= {"encode_quarter.0": "2", "encode_quarter.1": "22", "encode_quarter.2": "3"}
    blocks |= {"decode_quarter": "6bU", "decode_half": "6U", "decode_full": "7U"}
    names = {"head": "conv77U"}
    for block, number in blocks.items():
        names |= {f"{block}.conv": f"conv{number}", f"{block}.norm": f"batch{number}"}
    for layer, number in (("obelisk_quarter", 1), ("obelisk_eighth", 2)):
        names[f"{layer}.mix"] = f"linear{number}a"
        units = {"dense.0": "ab", "dense.1": "bc", "dense.2": "cd", "out": "de"}
        for unit, (batch, linear) in units.items():
            names[f"{layer}.{unit}.0"] = f"batch{number}{batch}"
            names[f"{layer}.{unit}.1"] = f"linear{number}{linear}"
    return names


def compare_voxelmorph(checkout: Path) -> Iterator[Row]:
    """VxmDense with displacements and with velocities, its transformer, integration and losses."""
    networks, layers, their_losses = voxelmorph_modules(checkout)
    shape = (32, 48, 64)
    moving, fixed = torch.randn(1, 1, *shape), torch.randn(1, 1, *shape)
    name = "random, 32x48x64"
    for steps in (0, 7):
        theirs = networks.VxmDense(shape, int_steps=steps).eval()
        nn.init.normal_(theirs.flow.weight, std=0.5)  # fields of some voxels
        ours = RegistrationNetwork(VoxelMorphUNet(2, 3), steps).eval()
        load(ours.backbone, theirs, vxm_names("unet_model.") | {"head": "flow"})
        their_warped, their_field = theirs(moving, fixed, registration=True)
        field = ours(moving, fixed)
        kind = f"{steps} squarings at half size" if steps else "displacements"
        yield row("VoxelMorph", f"VxmDense's field, {kind}", name, field, their_field)
        if steps == 0:
            warped = warp(moving, field)
            yield row("VoxelMorph", "VxmDense's warped image", name, warped, their_warped)
    theirs = networks.Unet(shape, infeats=1).eval()
    trunk = VoxelMorphUNet(1, CLASSES).eval()
    load(trunk, theirs, vxm_names(""))
    trunk.head = nn.Identity()
    yield row("VM-UNet", "Unet, all but the head", name, trunk(fixed), theirs(fixed))
    field = smooth_field(shape, 3)
    volume = layers.SpatialTransformer(shape)(moving, field)
    yield row("Warp", "SpatialTransformer", name, warp(moving, field), volume)
    velocity = smooth_field(shape, 3, margin=8)  # theirs pulls zeros in from outside, ours doesn't
    theirs = layers.VecInt(shape, 7)(velocity)
    found = integrate_velocity(velocity, 7)
    yield row("VoxelMorph", "VecInt, 7 squarings, inside", name, found, theirs)
    theirs = their_losses.Grad("l2").loss(None, field)
    yield row("Loss", "diffusion; VoxelMorph Grad l2", name, diffusion_regulariser(field), theirs)


def vxm_names(prefix: str) -> dict[str, str]:
    """Their layers by our names."""
    names = {f"encoder.{i}.0": f"{prefix}encoder.{i}.0.main" for i in range(4)}
    names |= {f"decoder.{i}.0": f"{prefix}decoder.{i}.0.main" for i in range(4)}
    return names | {f"final.{i}.0": f"{prefix}remaining.{i}.main" for i in range(3)}


def voxelmorph_modules(checkout: Path) -> tuple[ModuleType, ModuleType, ModuleType]:
    """Its torch modules, without the package's own start, which wants neurite."""
    package = ModuleType("voxelmorph")
    package.__path__ = [str(checkout / "voxelmorph")]
    source = (checkout / "voxelmorph" / "py" / "utils.py").read_text()
    settings = definitions(source, ["default_unet_features"], {})
    package.default_unet_features = settings["default_unet_features"]  # type: ignore[attr-defined]
    sys.modules["voxelmorph"] = package
    names = ("networks", "layers", "losses")
    first, second, third = (importlib.import_module(f"voxelmorph.torch.{name}") for name in names)
    return first, second, third


def compare_pdd_net(checkout: Path) -> Iterator[Row]:
    """Features, what follows from them, and the losses."""
    shape = (45, 43, 41)
    points = control_shape(shape)[0]
    labels = torch.cat([random_label(shape), random_label(shape)])
    source = (checkout / "dense_pdd_net_v01.py").read_text()
    given = {"torch": torch, "nn": nn, "F": old_functional(), "segs": labels, "grid_size": points}
    given |= dict(zip("HWD", shape, strict=True))
    settings = ["o_m", "o_n", "o_o", "ogrid_xyz", "disp_range", "displacement_width", "shift_xyz"]
    settings += ["grid_xyz", "class_weight", "lambda_weight"]
    steps = ["nonlocal_label", "fixed_label", "labelloss", "diffloss"]
    moving, fixed = torch.randn(1, 1, *shape), torch.randn(1, 1, *shape)
    with mock.patch.object(Tensor, "cuda", lambda self: self):
        script = definitions(source, [*settings, "OBELISK", "deeds"], given)
        net, reg = shaken(script["OBELISK"]()), script["deeds"]()
        reg.alpha += torch.rand(6)
        features = [net(image) for image in (moving, fixed)]
        script["cost_soft"], expected = reg(features[1], features[0])
        script["pred_xyz"] = expected.view(1, points, points, points, 3)
        script["label_moving"], script["label_fixed"] = one_hot(labels, CLASSES).split(1)
        found = definitions(source, steps, script)

    ours = PddNet().eval()
    numbers = {"first.0": "layer0", "first.1": "batch0", "second.0": "layer1"}
    numbers |= {"second.1": "batch1", "second.3": "layer2", "second.4": "batch2"}
    load(ours, net, numbers | {"second.6": "layer3"})
    ours.offsets.copy_(net.offsets)
    ours.scalars.copy_(reg.alpha)
    name = f"random, 45x43x41, {points} control points an axis"
    yield row("PDD-Net", "features", name, ours.features(moving), features[0])
    probabilities = ours.matched(*features, [points] * 3)
    field = probabilities @ displacements(moving)
    what = "correlation, min-convolution, mean field"
    flat = probabilities.view_as(script["cost_soft"])
    yield row("PDD-Net", f"{what}: probabilities", name, flat, script["cost_soft"])
    yield row("PDD-Net", f"{what}: field", name, field, script["pred_xyz"])
    weight = class_weights(labels.flatten().bincount(), pdd_net.BACKGROUND)
    loss = pdd_net.expected_label_loss(probabilities, labels[:1], labels[1:], weight)
    yield row("PDD-Net", "label loss", name, loss, found["labelloss"])
    smoothness = pdd_net.SMOOTHNESS * pdd_net.AXES * diffusion_regulariser(field.movedim(-1, 1))
    yield row("PDD-Net", "smoothness", name, smoothness, found["diffloss"])


def compare_deep_atlas(checkout: Path) -> Iterator[Row]:
    """Networks and the registration's losses of the tutorial's cells."""
    notebook = json.loads((checkout / "deep_atlas" / "deep_atlas_tutorial.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    source = "\n".join(cell for cell in cells if not cell.lstrip().startswith(("!", "%")))
    shape = (40, 56, 40)
    picked = ["seg_net", "reg_net", "warp", "lncc_loss", "bending_loss", "dice_loss2"]
    picked += ["regularization_loss", "similarity_loss", "anatomy_loss", "lambda_a", "lambda_r"]
    given = {"monai": monai, "num_segmentation_classes": CLASSES, "image_scale": max(shape)}
    tutorial = SimpleNamespace(**definitions(source, picked, given))
    moving, fixed = torch.randn(1, 1, *shape), torch.randn(1, 1, *shape)
    segmentation = deep_atlas.segmentation_network(CLASSES).eval()
    registration = deep_atlas.registration_network().eval()
    name = "random, 40x56x40"
    load(segmentation, nn.ModuleDict({"network": shaken(tutorial.seg_net)}), {"network": "network"})
    unet = registration.backbone[0]
    load(unet, nn.ModuleDict({"network": shaken(tutorial.reg_net)}), {"network": "network"})
    theirs = tutorial.seg_net(fixed)
    yield row("DeepAtlas", "segmentation network", name, segmentation(fixed), theirs)
    pair = torch.cat([fixed, moving], 1)
    found = unet(pair)
    yield row(
        "DeepAtlas", "registration network, but our head", name, found, tutorial.reg_net(pair)
    )

    nn.init.normal_(registration.backbone[1].weight)
    field = registration(moving, fixed)
    stage = deep_atlas.DeepAtlasStage.__new__(deep_atlas.DeepAtlasStage)
    stage.network, stage.mono = registration, SimpleNamespace(network=segmentation)
    stage.tensors = SimpleNamespace(snapshot=SimpleNamespace(classes=CLASSES))
    for known in (True, False):
        sides = [random_label(shape) for _ in range(2)]
        unknown = torch.full_like(sides[0], IGNORED)
        mine = sides if known else [unknown, unknown]
        total = stage._registration(PairBatch(moving, fixed, *mine, torch.tensor([known])))["total"]
        given = [side[:, None] for side in sides] if known else [None, None]
        anatomy = tutorial.anatomy_loss(field, pair, tutorial.seg_net, given[1], given[0])
        theirs = tutorial.similarity_loss(field, pair) + tutorial.lambda_a * anatomy
        theirs += tutorial.lambda_r * tutorial.regularization_loss(field)
        what = "registration loss, " + ("two labels" if known else "no label")
        yield row("DeepAtlas", what, name, total, theirs)


def compare_syn(project_path: Path) -> Iterator[Row]:
    """Our field of a real pair beside ANTs' own application of the transforms that it finds."""
    import ants

    with Project.open(project_path, read_only=True) as project:
        cases = [case.case_id for case in project.cases() if case.label_version][:2]
        images, labels = (
            [np.asarray(read(case)) for case in cases] for read in (project.image, project.label)
        )
        classes = len(project.table.names)
    field = syn.syn(*images)
    points = np.stack(np.meshgrid(*map(np.arange, images[1].shape), indexing="ij")) + field
    ends = np.array(images[0].shape).reshape(3, 1, 1, 1) - 1
    inside = ((points >= 0) & (points <= ends)).all(0)  # beyond, ANTs has 0 and we the border
    shape = "x".join(map(str, images[0].shape))
    name = f"{cases[0]} onto {cases[1]}, {shape}"

    moving, fixed = (ants.from_numpy((i - i.min()).astype(np.float32)) for i in images)
    found = ants.registration(fixed, moving, "SyN")["fwdtransforms"]
    theirs = ants.apply_transforms(fixed, moving, found).numpy()
    ours = warp_array(moving.numpy(), field)
    what = f"warped image, the {inside.mean():.0%} from inside the moving one"
    yield row("SyN", what, name, ours[inside], theirs[inside])
    label = ants.from_numpy(labels[0].astype(np.float32))
    theirs = ants.apply_transforms(fixed, label, found, "nearestNeighbor").numpy()
    ours = warp_array(labels[0], field, nearest=True)
    yield row("SyN", "share of voxels with another label", name, (ours != theirs).mean(), 0)
    dice = [dice_per_class(each.astype(np.uint8), labels[1], classes) for each in (ours, theirs)]
    yield row("SyN", "Dice with the fixed label", name, *map(np.mean, dice))


def smooth_field(shape: Sequence[int], voxels: float, margin: int = 0) -> Tensor:
    """A random field (1, 3, z, y, x), zero within a margin of the border."""
    coarse = voxels * torch.randn(1, 3, 5, 5, 5)
    field = F.interpolate(coarse, tuple(shape), mode="trilinear", align_corners=True)
    inner = torch.zeros_like(field)
    core = tuple(slice(margin, size - margin) for size in shape)
    inner[(..., *core)] = field[(..., *core)]
    return inner


def random_label(shape: Sequence[int], batch: int = 1) -> Tensor:
    """Blobs of all classes, (B, z, y, x)."""
    coarse = torch.randn(batch, CLASSES, 6, 6, 6)
    return F.interpolate(coarse, tuple(shape), mode="trilinear").argmax(1)


def shaken(network: nn.Module) -> nn.Module:
    """In evaluation, with statistics of batch normalisation as after a training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network.eval()


def load(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> None:
    """Copy the weights of modules, given their names by ours."""
    state = theirs.state_dict()
    for mine, its in names.items():
        module = ours.get_submodule(mine)
        module.load_state_dict({key: state[f"{its}.{key}"] for key in module.state_dict()})


def old_functional() -> SimpleNamespace:
    """torch.nn.functional as it was before version 1.3."""
    changed = {
        name: partial(getattr(F, name), align_corners=True)
        for name in ("grid_sample", "affine_grid")
    }
    return SimpleNamespace(**vars(F) | changed)


def definitions(source: str, names: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
    """Run the named classes, functions and assignments of a source and of its loops, in order."""
    body = ast.parse(source).body
    nodes = [n for node in body for n in (node.body if isinstance(node, ast.For) else [node])]
    chosen = [node for node in nodes if _defined(node) in names]
    missing = set(names) - {_defined(node) for node in chosen}
    if missing:
        raise SystemExit(f"not found in the official source: {', '.join(sorted(missing))}")
    namespace = dict(given)
    exec(compile(ast.Module(chosen, []), "official source", "exec"), namespace)
    return namespace


def _defined(node: ast.stmt) -> str | None:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    if isinstance(target, ast.Subscript):
        target = target.value
    return target.id if isinstance(target, ast.Name) else None


def module_of(path: Path) -> ModuleType:
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(f"official_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
