"""From a file to a filled model and back: every layout and container, bitwise; every misfit as one line."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from fastalter.checkpoint import Loaded, load_checkpoint, read_checkpoint, save_checkpoint
from fastalter.checkpoint.layouts import GEOMETRY
from fastalter.errors import CheckpointError, ModelError
from fastalter.models import BEVFusionConfig, build, config_of
from fastalter.models.bevfusion import BEVFusion
from tests.checkpoint.files import FROM_NATIVE, MIT, MMDET3D, forget, in_layout, manifest_state, pickled_by

FAMILIES = ("mit", "mmdet3d")
FUSER = "fuser.0.weight"


@pytest.fixture(scope="module")
def tiny() -> BEVFusion:
    """Random weights, running statistics that are not those of a fresh model, constants as a file has them."""
    model = build("bevfusion-tiny", seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(7)
    return model


def write(path: Path, payload: Any, container: str = "zip") -> Path:
    if container == "safetensors":
        save_file(payload, path)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=container == "zip")
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


def same_state(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize(
    ("family", "sparse", "container"),
    [
        *((family, sparse, "zip") for family in FAMILIES for sparse in FROM_NATIVE),
        ("mit", "spconv1", "legacy"),
        ("mmdet3d", "spconv2", "safetensors"),
        ("mit", "spconv2.1", "safetensors"),
    ],
)
def test_every_layout_loads_and_is_written_back_as_it_came(
    tiny: BEVFusion, family: str, sparse: str, container: str, tmp_path: Path
) -> None:
    state = in_layout(tiny.state_dict(), family, sparse)
    payload: Any = (
        state if container == "safetensors" else {"meta": {"epoch": 6, "t": torch.ones(2)}, "state_dict": state}
    )
    loaded = load_checkpoint(write(tmp_path / "in.pth", payload, container))
    assert (loaded.layout, loaded.sparse_layout) == (family, sparse)
    assert loaded.config == replace(config_of("bevfusion-tiny"), box_convention=family)  # type: ignore[arg-type]
    assert loaded.notes == []
    same_state(loaded.model.state_dict(), tiny.state_dict())

    loaded.save(tmp_path / "out.pth")
    before, after = read_checkpoint(tmp_path / "in.pth"), read_checkpoint(tmp_path / "out.pth")
    assert (after.container, after.state_key) == (container, before.state_key)
    same_state(dict(after.state), dict(before.state))
    if container != "safetensors":
        assert list(after.root) == ["meta", "state_dict"]
        assert after.root["meta"]["epoch"] == 6  # type: ignore[index]
        torch.load(tmp_path / "out.pth", weights_only=True)  # and torch agrees that it is one


@pytest.mark.parametrize("family", FAMILIES)
def test_changed_weights_are_written_in_the_files_layout(tiny: BEVFusion, family: str, tmp_path: Path) -> None:
    path = write(tmp_path / "in.pth", {"state_dict": in_layout(tiny.state_dict(), family, "spconv1", "module.")})
    loaded = load_checkpoint(path)
    changed = {k: v * 2 if v.is_floating_point() and k not in GEOMETRY else v for k, v in tiny.state_dict().items()}
    loaded.save(tmp_path / "out.pth", changed)
    same_state(dict(read_checkpoint(tmp_path / "out.pth").state), in_layout(changed, family, "spconv1", "module."))
    assert not [p for p in tmp_path.iterdir() if p.name not in ("in.pth", "out.pth")]


def test_a_file_may_be_written_over_itself(tiny: BEVFusion, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", {"state_dict": tiny.state_dict(), "optimizer": {"momentum": torch.arange(9.0)}})
    loaded = load_checkpoint(path)
    loaded.save(path)
    loaded.save(path)
    again = read_checkpoint(path)
    same_state(dict(again.state), tiny.state_dict())
    assert torch.equal(again.root["optimizer"]["momentum"], torch.arange(9.0))  # type: ignore[index]


def test_what_is_kept_does_not_hang_on_the_file(tiny: BEVFusion, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", {"state_dict": tiny.state_dict(), "optimizer": {"momentum": torch.arange(99.0)}})
    loaded = load_checkpoint(path)
    with open(path, "r+b") as file:  # in place, so the same file changes under whatever still maps it
        file.write(b"\0" * path.stat().st_size)
    loaded.save(tmp_path / "b.pth")
    again = read_checkpoint(tmp_path / "b.pth")
    same_state(dict(again.state), tiny.state_dict())
    assert torch.equal(again.root["optimizer"]["momentum"], torch.arange(99.0))  # type: ignore[index]


def test_the_older_mmdet3d_file_loads(tiny: BEVFusion, tmp_path: Path) -> None:
    state = in_layout(tiny.state_dict(), "mmdet3d", "spconv2")
    older = {key.replace("view_transform.", "vtransform."): value for key, value in state.items()}
    loaded = load_checkpoint(write(tmp_path / "a.pth", older))
    assert loaded.layout == "mmdet3d"
    same_state(loaded.model.state_dict(), tiny.state_dict())
    loaded.save(tmp_path / "b.pth")
    assert list(read_checkpoint(tmp_path / "b.pth").state) == list(older)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_noted_and_written_back(tiny: BEVFusion, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny.state_dict().items()}
    state |= {k: v for k, v in tiny.state_dict().items() if k in GEOMETRY}
    loaded = load_checkpoint(write(tmp_path / "a.pth", state))
    assert loaded.notes == [f"weights stored as {str(dtype).removeprefix('torch.')} are used as float32"]
    assert loaded.model.state_dict()[FUSER].dtype == torch.float32
    loaded.save(tmp_path / "b.pth")
    same_state(dict(read_checkpoint(tmp_path / "b.pth").state), state)


def test_what_is_not_plain_data_is_left_out_and_said(tiny: BEVFusion, tmp_path: Path) -> None:
    name = "mmengine.logging.history_buffer"
    meta = {"epoch": 3, "seed": np.int64(4), "scores": np.arange(3)}
    try:
        hub = pickled_by(name, "HistoryBuffer", lambda kind: kind())
        meta["hooks"] = [1, {"last": hub}]
        payload = {"meta": meta, "message_hub": {"loss": hub, "lr": 0.5}, "state_dict": tiny.state_dict()}
        path = write(tmp_path / "a.pth", payload)
    finally:
        forget("mmengine")
    loaded = load_checkpoint(path)
    assert loaded.notes == [
        "not plain data, so not loaded and left out when saving: "
        f"meta.hooks ({name}.HistoryBuffer), message_hub.loss ({name}.HistoryBuffer)"
    ]
    loaded.save(tmp_path / "b.pth")
    root: Any = torch.load(tmp_path / "b.pth", weights_only=False)
    assert list(root) == ["meta", "message_hub", "state_dict"]
    assert root["message_hub"] == {"lr": 0.5}
    assert list(root["meta"]) == ["epoch", "seed", "scores"]
    assert root["meta"]["seed"] == 4
    assert (root["meta"]["scores"] == np.arange(3)).all()
    assert root["state_dict"]._metadata == tiny.state_dict()._metadata  # type: ignore[attr-defined]


def test_an_image_size_of_ones_own_keeps_the_files_constants(tiny: BEVFusion, tmp_path: Path) -> None:
    state = tiny.state_dict()
    loaded = load_checkpoint(write(tmp_path / "a.pth", state), image_size=(128, 352))
    assert loaded.config == config_of("bevfusion-tiny").with_image_size(128, 352)
    assert loaded.model.state_dict()["encoders.camera.vtransform.frustum"].shape[1:3] == (16, 44)
    assert loaded.notes == ["view-transform constants (frustum) follow the model's grid and images, not the file's"]
    loaded.save(tmp_path / "b.pth")
    same_state(dict(read_checkpoint(tmp_path / "b.pth").state), state)


def test_a_named_model_is_taken_at_its_word(tiny: BEVFusion, tmp_path: Path) -> None:
    state = {key: value for key, value in tiny.state_dict().items() if key not in GEOMETRY}
    path = write(tmp_path / "a.pth", {"state_dict": state})
    assert "is missing" in refusal(path)
    loaded = load_checkpoint(path, model="bevfusion-tiny")
    same_state(loaded.model.state_dict(), tiny.state_dict())
    assert "(dx, bx, nx, frustum)" in loaded.notes[0]
    assert "wrong shapes: encoders.camera.backbone" in refusal(path, model="bevfusion-mit-swint-voxelnet")
    with pytest.raises(ModelError, match="there is no model 'nothing'"):
        load_checkpoint(path, model="nothing")


def test_own_checkpoints_carry_their_configuration(tmp_path: Path) -> None:
    config = config_of("bevfusion-tiny")
    config = replace(config, name="mine", head=replace(config.head, num_proposals=33), box_convention="mit")
    model = build(config, seed=1)
    for sparse in FROM_NATIVE:
        save_checkpoint(tmp_path / "a.pth", model, meta={"from": "here"}, sparse=sparse)
        loaded = load_checkpoint(tmp_path / "a.pth")
        assert (loaded.config, loaded.sparse_layout, loaded.notes) == (config, sparse, [])
        same_state(loaded.model.state_dict(), model.state_dict())
        assert torch.load(tmp_path / "a.pth", weights_only=True)["meta"]["from"] == "here"
    with pytest.raises(CheckpointError, match="no sparse layout 'spconv9'"):
        save_checkpoint(tmp_path / "a.pth", model, sparse="spconv9")
    with pytest.raises(CheckpointError, match="a Linear has no configuration"):
        save_checkpoint(tmp_path / "a.pth", torch.nn.Linear(1, 1))


def broken(state: dict[str, Tensor], key: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {k: change(v.clone()) if k == key else v for k, v in state.items()}


def test_weights_that_are_not_finite_are_named(tiny: BEVFusion, tmp_path: Path) -> None:
    def spoil(value: Tensor) -> Tensor:
        value.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
        return value

    norm = "decoder.backbone.blocks.0.1.running_var"
    state = broken(broken(tiny.state_dict(), FUSER, spoil), norm, spoil)
    theirs = in_layout(state, "mmdet3d", "spconv2")
    message = refusal(write(tmp_path / "a.pth", theirs))
    numel = state[FUSER].numel()
    assert message.startswith(
        f"weights that are not finite: fusion_layer.0.weight (1 NaN, 2 Inf of {numel}), pts_backbone"
    )


def test_keys_that_do_not_fit_are_named_and_counted(tiny: BEVFusion, tmp_path: Path) -> None:
    state = tiny.state_dict()
    norms = [key for key in state if ".bn2." in key]
    message = refusal(write(tmp_path / "a.pth", {k: v for k, v in state.items() if k not in norms}))
    assert message.startswith(f"lacks {norms[0]} {list(state[norms[0]].shape)}, {norms[1]}")
    assert f"({len(norms)} in all)" in message
    extra = {**state, "heads.object.extra.weight": torch.zeros(2, 3)}
    assert "has heads.object.extra.weight [2, 3] that the model does not" in refusal(write(tmp_path / "a.pth", extra))


def test_wrong_shapes_and_types_are_named(tiny: BEVFusion, tmp_path: Path) -> None:
    state = tiny.state_dict()
    bias = "heads.object.shared_conv.bias"
    wide = broken(state, bias, lambda v: torch.zeros(7))
    wanted = list(state[bias].shape)
    assert f"wrong shapes: {bias} [7] instead of {wanted}" in refusal(write(tmp_path / "a.pth", wide))
    whole = broken(state, bias, lambda v: v.int())
    assert f"wrong types: {bias} torch.int32 instead of torch.float32" in refusal(write(tmp_path / "a.pth", whole))


def test_sizes_in_a_damaged_file_do_not_allocate(tiny: BEVFusion, tmp_path: Path) -> None:
    """A patch embedding of a million channels would ask for terabytes of attention weights."""
    state = broken(
        tiny.state_dict(),
        "encoders.camera.backbone.patch_embed.projection.weight",
        lambda v: torch.zeros(10**6, 1, 1, 1),
    )
    assert "wrong shapes" in refusal(write(tmp_path / "a.pth", state))


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tensor_in_place_of_another_is_only_refused(tiny: BEVFusion, tmp_path: Path, data: st.DataObject) -> None:
    state = tiny.state_dict()
    telling = [key for key in state if "blocks" not in key and "bn" not in key]
    key = data.draw(st.sampled_from([*telling, *sorted(GEOMETRY)]))
    shape = data.draw(st.permutations(state[key].shape) | st.lists(st.integers(0, 9), max_size=5))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.int64, torch.complex64, torch.bool]))
    fill = data.draw(st.sampled_from([0, 1, -3, 10**6, float("nan"), float("inf")]))
    value = torch.full(tuple(shape), fill).to(dtype)
    path = write(tmp_path / "a.pth", {k: value if k == key else v for k, v in state.items()})
    if value.shape != state[key].shape or not torch.equal(value, state[key]):
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            assert str(error).isprintable(), error  # noqa: PT017


def test_a_state_dict_of_another_model_is_not_written(tiny: BEVFusion, tmp_path: Path) -> None:
    loaded = load_checkpoint(write(tmp_path / "a.pth", tiny.state_dict()))
    fewer = {key: value for key, value in tiny.state_dict().items() if key != FUSER}
    with pytest.raises(CheckpointError, match=f"lacks {FUSER}"):
        loaded.save(tmp_path / "b.pth", fewer)
    with pytest.raises(CheckpointError, match="has more"):
        loaded.save(tmp_path / "b.pth", {**tiny.state_dict(), "more": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=rf"{FUSER} is \[1, .* where the file has"):
        loaded.save(tmp_path / "b.pth", broken(tiny.state_dict(), FUSER, lambda v: v[:1]))
    assert not (tmp_path / "b.pth").exists()


def test_a_write_that_fails_leaves_the_old_file(
    tiny: BEVFusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.pth", tiny.state_dict())
    loaded, old = load_checkpoint(path), path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        loaded.save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.pth"]


@pytest.mark.parametrize("manifest", [MIT, MMDET3D])
def test_the_published_models_fit_the_full_size_model(manifest: str, tmp_path: Path) -> None:
    """A whole file of the published keys and shapes, zeros for weights."""
    state = OrderedDict(
        (key, value if value.device.type == "cpu" else torch.zeros(value.shape, dtype=value.dtype))
        for key, value in manifest_state(manifest).items()
    )
    loaded: Loaded = load_checkpoint(write(tmp_path / "a.pth", {"state_dict": state}))
    family = "mit" if manifest == MIT else "mmdet3d"
    assert loaded.config == replace(BEVFusionConfig(), box_convention=family)  # type: ignore[arg-type]
    assert loaded.notes == []
    assert sum(p.abs().sum() for n, p in loaded.model.named_parameters() if n not in GEOMETRY) == 0
