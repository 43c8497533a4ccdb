"""Draw a batch as a model sees it, for looking: boxes on the augmented images, points and boxes from above."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fastalter.data.augment import IMAGE_MEAN, IMAGE_STD
from fastalter.data.batch import CLASS_NAMES, Batch

COLOURS = (
    *("#ff9e00", "#ff6347", "#e9967a", "#ff4500", "#ff8c00"),
    *("#a0a0b0", "#ff3d63", "#dc143c", "#3c78ff", "#20b090"),
)
"""One per class of `CLASS_NAMES`; label -1 is white."""
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
LEGEND = 22
"""Height of the strip of class names, pixels."""
NEAR = 0.3
"""Edges reaching closer than this to the camera plane are left out, metres."""


def box_corners(boxes: Tensor) -> Tensor:
    """Canonical boxes [G, 9] -> [G, 8, 3]: the lower face counter-clockwise from front left, then the upper one."""
    signs = boxes.new_tensor([(1, 1), (-1, 1), (-1, -1), (1, -1)]).repeat(2, 1)
    local_x, local_y = (boxes[:, None, 3:5] / 2 * signs).unbind(-1)
    cos, sin = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    x = boxes[:, 0:1] + cos * local_x - sin * local_y
    y = boxes[:, 1:2] + sin * local_x + cos * local_y
    half = boxes[:, 5:6] / 2
    z = boxes[:, 2:3] + torch.cat([-half.expand(-1, 4), half.expand(-1, 4)], 1)
    return torch.stack([x, y, z], -1)


def project(batch: Batch, index: int, points: Tensor) -> tuple[Tensor, Tensor]:
    """Points [..., 3] of sample `index`, in the frame of `batch.points`, on its N images: pixels [N, ..., 2] of
    `batch.images` and depths [N, ...] in metres, both float64; what lies behind a camera has a negative depth.
    """
    to_image = batch.lidar2image[index].double() @ torch.linalg.inv(batch.lidar_aug[index].double())
    flat = torch.cat([points.double().reshape(-1, 3), points.new_ones(points[..., 0].numel(), 1).double()], 1)
    scaled = flat @ to_image.transpose(1, 2)
    depth = scaled[..., 2]
    aug = batch.image_aug[index].double()
    pixels = scaled[..., :2] / depth[..., None] @ aug[:, :2, :2].transpose(1, 2) + aug[:, None, :2, 3]
    return pixels.reshape(len(aug), *points.shape[:-1], 2), depth.reshape(len(aug), *points.shape[:-1])


Found = Mapping[str, Tensor]
"""Detections of one sample: boxes [K, 9] canonical, scores [K], labels [K]."""


def draw_sample(
    batch: Batch,
    path: Path | str,
    index: int = 0,
    reach: float = 54.0,
    scale: int = 8,
    found: Found | None = None,
    least_score: float = 0.3,
) -> None:
    """Write a PNG: the N images in rows of three with box outlines, below them the scene from above (x right, y up),
    `reach` metres to each side at `scale` pixels a metre, and the colours of the classes.

    With `found`, the batch's own boxes become broad and pale, and the detections from `least_score` on are drawn over
    them, from above with their scores.
    """
    views = _draw_images(batch, index, found, least_score)
    above = _draw_above(batch, index, reach, scale, found, least_score)
    columns = min(3, len(views))
    rows = -(-len(views) // columns)
    width, height = views[0].size
    sheet = Image.new("RGB", (max(columns * width, above.width), rows * height + above.height + LEGEND))
    for number, view in enumerate(views):
        sheet.paste(view, (number % columns * width, number // columns * height))
    sheet.paste(above, ((sheet.width - above.width) // 2, rows * height))
    _draw_legend(sheet, found is not None)
    sheet.save(path, "PNG")


def _layers(
    batch: Batch, index: int, found: Found | None, least_score: float
) -> list[tuple[Tensor, Tensor, int, bool]]:
    """What to draw, undermost first: boxes, labels, line width, pale."""
    truth = (batch.boxes[index], batch.labels[index])
    if found is None:
        return [(*truth, 1, False)]
    good = found["scores"] >= least_score
    return [(*truth, 3, True), (found["boxes"][good].to(truth[0]), found["labels"][good], 1, False)]


def _draw_images(batch: Batch, index: int, found: Found | None, least_score: float) -> list[Image.Image]:
    views = []
    for tensor in batch.images[index]:
        colour = tensor.float().cpu() * torch.tensor(IMAGE_STD)[:, None, None] + torch.tensor(IMAGE_MEAN)[:, None, None]
        views.append(Image.fromarray((colour.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()))
    for boxes, labels, width, pale in _layers(batch, index, found, least_score):
        pixels, depths = project(batch, index, box_corners(boxes))
        for camera, view in enumerate(views):
            pen = ImageDraw.Draw(view)
            for label, corner, depth in zip(labels.tolist(), pixels[camera], depths[camera], strict=True):
                for a, b in EDGES:
                    if depth[a] > NEAR and depth[b] > NEAR:
                        line = [*corner[a].tolist(), *corner[b].tolist()]
                        pen.line(line, fill=_colour(label, pale), width=width)
    return views


def _draw_above(
    batch: Batch, index: int, reach: float, scale: int, found: Found | None, least_score: float
) -> Image.Image:
    size = round(2 * reach * scale)
    canvas = np.zeros((size, size, 3), dtype=np.uint8)
    points = batch.points[index].double().cpu()
    column, row = ((points[:, 0] + reach) * scale).long().numpy(), ((reach - points[:, 1]) * scale).long().numpy()
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    canvas[row[inside], column[inside]] = 150
    above = Image.fromarray(canvas)
    pen = ImageDraw.Draw(above)
    for boxes, labels, width, pale in _layers(batch, index, found, least_score):
        for label, box, corner in zip(labels.tolist(), boxes, box_corners(boxes), strict=True):
            outline = [((reach + x) * scale, (reach - y) * scale) for x, y, _ in corner[:4].tolist()]
            pen.line([*outline, outline[0]], fill=_colour(label, pale), width=width)
            x, y = (reach + float(box[0])) * scale, (reach - float(box[1])) * scale
            nose = (outline[0][0] + outline[3][0]) / 2, (outline[0][1] + outline[3][1]) / 2
            pen.line([(x, y), nose], fill=_colour(label, pale), width=width)
            if found is None and torch.isfinite(box[7:9]).all():
                pen.line([(x, y), (x + float(box[7]) * scale, y - float(box[8]) * scale)], fill="#00ff60")
    if found is not None:
        for box, score in zip(found["boxes"].tolist(), found["scores"].tolist(), strict=True):
            if score >= least_score:
                place = ((reach + box[0]) * scale + 4, (reach - box[1]) * scale + 4)
                pen.text(place, f"{score:.2f}", fill="#ffffff")
    return above


def _draw_legend(sheet: Image.Image, compared: bool) -> None:
    pen = ImageDraw.Draw(sheet)
    x, y = 8.0, sheet.height - LEGEND + 5
    for label, name in enumerate(CLASS_NAMES):
        pen.text((x, y), name, fill=_colour(label))
        x += pen.textlength(name) + 14
    if compared:
        pen.text((x, y), "broad, pale: ground truth; thin: detection", fill="#ffffff")


def _colour(label: int, pale: bool = False) -> str:
    colour = COLOURS[label] if 0 <= label < len(COLOURS) else "#ffffff"
    if not pale:
        return colour
    return "#" + "".join(f"{int(colour[i : i + 2], 16) // 2 + 20:02x}" for i in (1, 3, 5))
