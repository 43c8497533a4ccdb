"""The states of Figure 3: Algorithm 1's own theta_B, the masked branch dark, and a model that comes back as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fastalter.altermoma import Reactivation
from fastalter.assets import EMBEDDED
from fastalter.criteria import Scores
from fastalter.errors import ModelError, ScoringError
from fastalter.fusion import adapt
from fastalter.fusion.features import bev_maps, fuser_outlet
from fastalter.fusion.preserve import scoring_mode
from fastalter.report.__main__ import main
from fastalter.report.states import feature_states
from fastalter.scoring import score_model

from ..altermoma.nets import SmallFusion

STEPS = Reactivation(batches=2, lr=0.5)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return SmallFusion().double()


@pytest.fixture
def batches() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)

    def draw() -> torch.Tensor:
        return torch.randn(3, 3, 5, 6, generator=generator, dtype=torch.float64)

    return [{"camera": draw(), "lidar": draw(), "label": torch.tensor([0, 3, 4])} for _ in range(2)]


def expected_maps(model: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Written down again: the feature of each backbone, and the fuser's output, as mean |x| over channels."""
    features = [backbone(batch[name]) for name, backbone in model.backbones.items()]
    fused = model.fuser(torch.cat(features, 1))
    named = dict(zip(("camera", "lidar", "fusion"), (*features, fused), strict=True))
    return {name: feature.detach().abs().mean(1).float() for name, feature in named.items()}


def masked_copy(model: nn.Module, branch: str) -> nn.Module:
    other = copy.deepcopy(model)
    scoring_mode(other, "train")
    for parameter in other.backbones[branch].parameters():
        parameter.data.zero_()
    return other


def test_the_states_are_those_of_algorithm_1(model, batches):
    mask = score_model(model, batches, reactivation=STEPS, progress=False).mask(0.5)
    states = {state.name: state for state in feature_states(adapt(model), batches, mask, reactivation=STEPS)}
    assert list(states) == ["before masking", "lidar masked, reactivated", "camera masked, reactivated", "pruned"]
    found: dict[str, dict[str, torch.Tensor]] = {}
    scoring_mode(plain := copy.deepcopy(model), "train")
    found["before masking"] = expected_maps(plain, batches[0])
    for branch in ("lidar", "camera"):
        trained = masked_copy(model, branch)
        moving = [p for name, p in trained.named_parameters() if not name.startswith(f"backbones.{branch}.")]
        for batch in batches:
            losses = trained.loss(batch)
            gradients = torch.autograd.grad(losses["loss_cls"] + losses["loss_reg"], moving)
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter.data -= STEPS.lr * gradient
        found[f"{branch} masked, reactivated"] = expected_maps(trained, batches[0])
    scoring_mode(pruned := copy.deepcopy(model), "train")
    for name in mask:
        pruned.get_parameter(name).data.mul_(mask[name])
    found["pruned"] = expected_maps(pruned, batches[0])
    for name, maps in found.items():
        assert list(states[name].maps) == ["camera", "lidar", "fusion"]
        for branch, values in maps.items():
            torch.testing.assert_close(states[name].maps[branch], values, rtol=1e-5, atol=1e-6)
    before, after = (states[n].maps["camera"] for n in ("before masking", "lidar masked, reactivated"))
    assert (after - before).abs().max() > 1e-3  # the steps are large enough to be seen
    assert states["lidar masked, reactivated"].maps["lidar"].abs().max() == 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_bitwise(model, batches, fails):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    state = torch.get_rng_state()
    if fails:
        batches[1]["label"][0] = 99  # in the middle of a reactivation
        with pytest.raises(IndexError):
            feature_states(adapt(model), batches, reactivation=STEPS)
    else:
        feature_states(adapt(model), batches, reactivation=STEPS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_too_few_batches_are_refused(model, batches):
    with pytest.raises(ScoringError, match="takes 3 batches and there are 2"):
        feature_states(adapt(model), batches, reactivation=Reactivation(batches=3))


def test_a_network_without_a_known_fuser_shows_its_branches(model, batches):
    model.concat_conv = None
    fusion = adapt(model)
    assert fuser_outlet(fusion) is None
    assert list(bev_maps(fusion, batches[0])) == ["camera", "lidar"]


def test_the_fused_map_is_what_leaves_norm_and_relu(model):
    assert fuser_outlet(adapt(model)) == "fuser.2"


class Flat(nn.Module):
    """Outlets that are no maps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.a(batch) + self.b(batch)).sum()


def test_an_outlet_that_is_no_map_or_does_not_run_is_named():
    batch = torch.ones(4, 2)
    with pytest.raises(ModelError, match=r"a: returned a tensor of shape \[4, 3\], not a map"):
        bev_maps(adapt(Flat(), branches={"camera": ["a"], "lidar": ["b"]}), batch)
    maps = Flat()
    maps.a = maps.b = nn.Unflatten(1, (2, 1, 1))
    fusion = adapt(maps, branches={"camera": ["a"], "lidar": ["unused"]})
    with pytest.raises(ModelError, match="unused: the loss does not run it"):
        bev_maps(fusion, batch)


# ---- the verb with a checkpoint ----------------------------------------------------------------------------------

SMALL = ["--image-size", "32x88", "--batches", "1", "--batch-size", "1"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from fastalter.score import main as score

    folder = tmp_path_factory.mktemp("scored")
    files = [str(folder / "s.safetensors"), str(folder / "m.safetensors")]
    assert score([str(EMBEDDED), *SMALL, "--out", files[0], "--mask", files[1], "--json"]) == 0
    return files


def test_the_verb_shows_the_features_of_the_checkpoint(scored, tmp_path, capsys):
    scores, mask = scored
    given = ["--scores", scores, "--mask", mask, "--checkpoint", str(EMBEDDED), "--json"]
    for name in ("a.html", "b.html"):
        assert main([*given, "--out", str(tmp_path / name)]) == 0
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert (tmp_path / "b.html").read_text(encoding="utf-8") == text
    assert '<section id="features"' in text
    for branch in ("camera", "lidar", "fusion"):
        for state in ("before masking", "lidar masked, reactivated", "camera masked, reactivated", "pruned"):
            assert f'aria-label="{branch} map from above, {state}: mean ' in text
    assert text.count("masked: zero") == 2
    assert "Reactivation: 1 SGD steps at learning rate 0.0001" in text


def test_a_checkpoint_that_is_not_the_scores_own_is_refused(scored, tmp_path, capsys):
    found = Scores.load(scored[0])
    found.metadata["checkpoint"]["sha256"] = "ef" * 32
    found.save(tmp_path / "s.safetensors")
    given = ["--scores", str(tmp_path / "s.safetensors"), "--checkpoint", str(EMBEDDED)]
    capsys.readouterr()
    assert main([*given, "--out", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert "was made from checkpoint efefefefefef" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


def test_data_that_the_scores_did_not_see_is_said(scored, tmp_path, capsys):
    given = ["--scores", scored[0], "--checkpoint", str(EMBEDDED), "--data", "example"]
    capsys.readouterr()
    assert main([*given, "--out", str(tmp_path / "r.html")]) == 0
    assert "note: the feature maps are of" in capsys.readouterr().out
