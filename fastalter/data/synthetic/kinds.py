"""The ten classes: how big, how fast, how they look, and what nuScenes calls them.

Sizes come in pairs on purpose: what has the same size differs in its colours alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastalter.data.batch import CLASS_NAMES

Colour = tuple[float, float, float]
WHITE, DARK = (0.92, 0.92, 0.9), (0.1, 0.1, 0.12)


@dataclass(frozen=True)
class Look:
    """Paint: two colours (RGB, 0 to 1) and where the second goes.

    pattern   plain; band: round the upper middle; halves: the upper part; ribs: upright stripes; stripes: slanting
    period    of ribs and stripes, metres
    """

    first: Colour
    second: Colour = DARK
    pattern: str = "plain"
    period: float = 1.0


@dataclass(frozen=True)
class Kind:
    """A class: nuScenes category, size (length, width, height; m), top speed (m/s) and its attributes when it moves and
    when it stands; "" for a class that has none.
    """

    category: str
    size: tuple[float, float, float]
    top_speed: float
    moving: str
    still: str
    look: Look


_LARGE, _LONG, _CYCLE, _SLIM = (6.6, 2.6, 3.0), (11.0, 2.9, 3.6), (1.9, 0.7, 1.5), (0.6, 0.6, 1.5)
_VEHICLE = ("vehicle.moving", "vehicle.parked")
_RIDER = ("cycle.with_rider", "cycle.without_rider")
KINDS = {
    "car": Kind("vehicle.car", (4.6, 1.9, 1.7), 6.0, *_VEHICLE, Look((0.35, 0.45, 0.95), DARK, "band")),
    "truck": Kind("vehicle.truck", _LARGE, 5.0, *_VEHICLE, Look((0.15, 0.3, 0.75), WHITE, "halves")),
    "construction_vehicle": Kind(
        "vehicle.construction", _LARGE, 3.0, *_VEHICLE, Look((0.95, 0.8, 0.1), DARK, "stripes", 1.6)
    ),
    "bus": Kind("vehicle.bus.rigid", _LONG, 5.0, *_VEHICLE, Look((0.8, 0.12, 0.12), DARK, "band")),
    "trailer": Kind("vehicle.trailer", _LONG, 4.0, *_VEHICLE, Look((0.1, 0.6, 0.5), WHITE, "ribs", 1.8)),
    "barrier": Kind(
        "movable_object.barrier", (0.5, 2.5, 1.0), 0.0, "", "", Look((0.85, 0.15, 0.1), WHITE, "ribs", 0.8)
    ),
    "motorcycle": Kind("vehicle.motorcycle", _CYCLE, 6.0, *_RIDER, Look((0.55, 0.15, 0.65), DARK, "halves")),
    "bicycle": Kind("vehicle.bicycle", _CYCLE, 4.0, *_RIDER, Look((0.5, 0.9, 0.2), WHITE, "halves")),
    "pedestrian": Kind(
        *("human.pedestrian.adult", _SLIM, 1.5, "pedestrian.moving", "pedestrian.standing"),
        Look((0.85, 0.35, 0.6), (0.95, 0.75, 0.6), "halves"),
    ),
    "traffic_cone": Kind("movable_object.trafficcone", _SLIM, 0.0, "", "", Look((1.0, 0.5, 0.05), WHITE, "band")),
}
CLUTTER = Look((0.45, 0.45, 0.45))
"""Grey boxes of any size: they belong to no class."""
assert tuple(KINDS) == CLASS_NAMES
