"""AlterMOMA straight from eq. 6, 10 and 11 to 13, in plain torch and with none of the product's code.

Slow and obvious on purpose: a deep copy per pass, masks by zeroed parameters, `.backward()`, Python loops over names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LossFunction = Callable[[nn.Module, Any], Tensor]


def mode(net: nn.Module, bn: str) -> nn.Module:
    net.train()
    for module in net.modules():
        if isinstance(module, (nn.Dropout, nn.MultiheadAttention)) or (
            bn == "frozen" and isinstance(module, nn.BatchNorm2d)
        ):
            module.training = False
    return net


def gradients(
    net: nn.Module, loss: LossFunction, batches: Sequence[Any], masked: Sequence[str], bn: str
) -> dict[str, Tensor]:
    """dL/dtheta of the mean loss over batches, the parameters named in `masked` multiplied by zero."""
    work = mode(copy.deepcopy(net), bn)
    parameters = dict(work.named_parameters())
    with torch.no_grad():
        for name in masked:
            parameters[name].mul_(0)
    sum(loss(work, batch) for batch in batches).div(len(batches)).backward()  # type: ignore[union-attr]
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}


def reactivated(
    net: nn.Module, loss: LossFunction, batches: Sequence[Any], masked: Sequence[str], lr: float, bn: str
) -> nn.Module:
    """theta_B: plain SGD on one batch a step (eq. 16); masked parameters do not move."""
    work = copy.deepcopy(net)
    for batch in batches:
        step = gradients(work, loss, [batch], masked, bn)
        with torch.no_grad():
            for name, parameter in work.named_parameters():
                if name not in masked and parameter.requires_grad:
                    parameter -= lr * step[name]
    return work


def alter_eva_oracle(
    net: nn.Module,
    loss: LossFunction,
    batches: Sequence[Any],
    branch_of: Callable[[str], str],
    prunable: Sequence[str],
    *,
    sensors: Sequence[str],
    B: int,
    lr: float,
    alpha: float,
    beta: float,
    reri_data: str,
    bn: str,
) -> dict[str, Tensor]:
    """S by weight name."""
    theta = {name: p.detach().clone() for name, p in net.named_parameters()}
    g = gradients(net, loss, batches, [], bn)
    deci = {name: (theta[name] * g[name]).abs() for name in prunable}
    reri: dict[str, dict[str, Tensor]] = {}
    for m in sensors:
        masked = [name for name in theta if branch_of(name) == m]
        g0 = gradients(net, loss, batches, masked, bn)
        net_b = reactivated(net, loss, batches[:B], masked, lr, bn)
        g1 = gradients(net_b, loss, batches if reri_data == "paired" else [batches[B - 1]], masked, bn)
        reri[m] = {n: (theta[n] * g0[n] - theta[n] * g1[n]).abs() for n in prunable if branch_of(n) != m}
    scores = {}
    for name in prunable:
        branch = branch_of(name)
        mates = [n for n in prunable if branch_of(n) == branch]
        score = alpha * deci[name] / sum(deci[n].sum() for n in mates)
        stages = [m for m in sensors if m != branch]
        if branch == "fusion":
            for m in stages:
                score = score - beta / len(stages) * reri[m][name] / sum(reri[m][n].sum() for n in mates)
        else:
            mean = {n: sum(reri[m][n] for m in stages) / len(stages) for n in mates}
            score = score - beta * mean[name] / sum(mean[n].sum() for n in mates)  # type: ignore[union-attr]
        scores[name] = score
    return scores
