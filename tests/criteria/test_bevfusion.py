"""Every criterion on the in-tree model: sparse convolutions, attention, Hungarian matching."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import fastalter
from fastalter import data
from fastalter.assets import EMBEDDED
from fastalter.checkpoint import load_checkpoint
from fastalter.criteria import CRITERIA
from fastalter.data import Batch
from tests.fusion.test_preserve import assert_same, state

SETTINGS: dict[str, dict[str, Any]] = {
    "synflow": {"iterations": 2},
    "prospr": {"steps": 1},
    "imp": {"rounds": 2, "steps": 1},
    "modalfisher": {"rounds": 2, "steps": 1},
}


@cache
def batch() -> Batch:
    (made,) = data.load("synthetic", config=load_checkpoint(EMBEDDED).model.config, batches=1, batch_size=1)
    return made


ONE_PASS = {"iterations": 1}


def score(model: Any, method: str, batches: list[Batch], settings: Any = None) -> fastalter.Scores:
    return fastalter.score_model(
        model,
        batches,
        method=method,
        settings=settings or SETTINGS.get(method),
        ratio=0.9,
        reactivation=fastalter.Reactivation(1),
        progress=False,
    )


@pytest.mark.parametrize("method", CRITERIA)
def test_it_runs_keeps_exactly_k_and_leaves_no_trace(method: str) -> None:
    model = load_checkpoint(EMBEDDED).model
    before = state(model)
    scores = score(model, method, [batch()])
    assert_same(before, state(model))
    assert bool(torch.isfinite(scores.flat).all())
    assert scores.flat.unique().numel() > 0.01 * scores.layout.size
    mask = scores.mask(0.9)
    assert mask.kept_total == sum(int(mask[n].sum()) for n in mask) == round(0.1 * scores.layout.size)
    assert scores.metadata["method"] == method
    assert scores.metadata.get("order") == ("first" if method == "prospr" else None)


def inputs_seen(model: Any) -> dict[str, Tensor]:
    """What the first layers of both branches are given while SynFlow scores."""
    layers = {
        "images": "encoders.camera.backbone.patch_embed",
        "depth maps": "encoders.camera.vtransform.dtransform.0",
        "voxels": "encoders.lidar.backbone.conv_input.0",
    }
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...]) -> None:
            (x,) = arguments
            seen[name] = getattr(x, "features", x).detach().clone()

        return hook

    hooks = [model.get_submodule(p).register_forward_pre_hook(watch(name)) for name, p in layers.items()]
    score(model, "synflow", [batch()], ONE_PASS)
    for hook in hooks:
        hook.remove()
    assert list(seen) == list(layers)
    return seen


def test_synflow_feeds_ones_to_every_sensor() -> None:
    for name, x in inputs_seen(load_checkpoint(EMBEDDED).model).items():
        assert x.dtype == torch.float64, name
        assert x.numel() > 1000, name
        assert bool((x == 1).all()), name


def test_synflow_looks_at_the_first_sample_and_at_its_geometry_alone() -> None:
    model, real = load_checkpoint(EMBEDDED).model, batch()
    painted = replace(
        real,
        images=torch.randn_like(real.images),
        points=[torch.cat([p[:, :3], torch.rand_like(p[:, 3:])], 1) for p in real.points],
    )
    two = Batch(**{name: both(value) for name, value in vars(painted).items()})
    one, other = (score(model, "synflow", [b], ONE_PASS).flat for b in (real, two))
    assert torch.equal(one, other)


def test_synflow_keeps_the_sign_of_geometry_and_of_nothing_else() -> None:
    model, seen = load_checkpoint(EMBEDDED).model, {}
    view = model.encoders["camera"]["vtransform"]
    names = ("bx", "frustum", "depthnet.0.bias", "downsample.1.running_mean")
    hook = view.register_forward_pre_hook(lambda module, _: seen.update(of(module, names)))
    score(model, "synflow", [batch()], ONE_PASS)
    hook.remove()
    plain = of(view, names)
    for name in names:
        geometry = name in ("bx", "frustum")
        assert geometry or bool((plain[name] < 0).any()), name
        assert torch.equal(seen[name], (plain[name] if geometry else plain[name].abs()).double()), name
    assert bool((plain["bx"] < 0).any())


def of(module: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Parameters and buffers as the module sees them now."""
    parts = ((name, *name.rpartition(".")) for name in names)
    return {name: getattr(module.get_submodule(path), last).detach().clone() for name, path, _, last in parts}


def both(value: Any) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) else [*value, *value]
