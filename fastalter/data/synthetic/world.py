"""What is in a scene: where the ego vehicle drives, what stands and moves around it, in what light.

Global frame: x east, y north, z up, the ground at 0. Everything is a function of (seed, scene number); time t runs in
seconds from the first keyframe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastalter.data.sample import Array
from fastalter.data.synthetic.kinds import CLUTTER, KINDS, Colour, Look
from fastalter.data.synthetic.rays import inverse_pose
from fastalter.data.synthetic.rig import lidar_to_ego
from fastalter.data.synthetic.settings import KEY_INTERVAL, SyntheticSettings

REACH = 23.5
"""Things keep their centre within this distance of the LiDAR, along both its axes, at every keyframe; metres."""
NEAREST = 3.5
"""Room between the ego vehicle's middle and the outline of a thing, metres."""
THINGS, CLUTTER_BOXES, DISCS = (9, 16), (2, 6), (4, 10)
"""How many there are in a scene: from, up to but without."""
TRIES = 40
MAP_SIZE = 200.0
"""Side of the map in metres; scenes start around its middle."""
CLASSES = tuple(KINDS)


@dataclass(frozen=True)
class Drive:
    """The ego vehicle on an arc: where it is (m), its heading (rad) and the time (s) at the scene's middle; its speed
    (m/s) and how fast it turns (rad/s).
    """

    position: tuple[float, float]
    heading: float
    middle: float
    speed: float
    turn: float

    def pose(self, t: float) -> Array:
        """[4, 4] float64, ego -> global at time t."""
        after, turned = t - self.middle, self.turn * (t - self.middle)
        chord = self.speed * after * float(np.sinc(turned / (2 * math.pi)))
        along = self.heading + turned / 2
        matrix = np.eye(4)
        cos, sin = math.cos(self.heading + turned), math.sin(self.heading + turned)
        matrix[:2, :2] = [[cos, -sin], [sin, cos]]
        matrix[:2, 3] = self.position[0] + chord * math.cos(along), self.position[1] + chord * math.sin(along)
        return matrix


@dataclass(frozen=True)
class Thing:
    """A box on the ground. label: index of its class, -1 for clutter; position at the scene's middle; m, rad, m/s."""

    label: int
    size: tuple[float, float, float]
    position: tuple[float, float]
    yaw: float
    speed: float
    look: Look

    def box(self, after: float) -> list[float]:
        """x, y, z centre, length, width, height, yaw, `after` seconds after the scene's middle."""
        x = self.position[0] + self.speed * after * math.cos(self.yaw)
        y = self.position[1] + self.speed * after * math.sin(self.yaw)
        return [x, y, self.size[2] / 2, *self.size, self.yaw]

    @property
    def velocity(self) -> tuple[float, float]:
        return self.speed * math.cos(self.yaw), self.speed * math.sin(self.yaw)


@dataclass(frozen=True)
class Disc:
    """Paint on the ground."""

    position: tuple[float, float]
    radius: float
    colour: Colour


@dataclass(frozen=True)
class Light:
    """Brightness and colour cast on everything, where the sun stands (azimuth, rad), the colours of ground and sky."""

    tint: Colour
    sun: float
    ground: Colour
    sky: Colour


@dataclass(frozen=True)
class Scene:
    """A scene; `things` holds the annotated ones first, then the clutter."""

    number: int
    settings: SyntheticSettings
    drive: Drive
    things: tuple[Thing, ...]
    discs: tuple[Disc, ...]
    light: Light

    def boxes(self, t: float) -> Array:
        """[G, 7] float64 global boxes of all things at time t."""
        rows = [thing.box(t - self.drive.middle) for thing in self.things]
        return np.array(rows, dtype=np.float64).reshape(-1, 7)

    @cached_property
    def annotated(self) -> int:
        """How many of the things have a class."""
        return sum(thing.label >= 0 for thing in self.things)

    def rng(self, *purpose: int) -> np.random.Generator:
        """A generator of its own for each purpose."""
        return np.random.default_rng((self.settings.seed, self.number, *purpose))


def make_scene(settings: SyntheticSettings, number: int) -> Scene:
    """Scene `number` of a dataset."""
    rng = np.random.default_rng((settings.seed, number))
    drive = Drive(
        position=(MAP_SIZE / 2 + rng.uniform(-30, 30), MAP_SIZE / 2 + rng.uniform(-30, 30)),
        heading=rng.uniform(-math.pi, math.pi),
        middle=settings.duration / 2,
        speed=max(0.0, rng.uniform(-1.5, 5.0)),
        turn=rng.uniform(-0.2, 0.2),
    )
    things: list[Thing] = []
    for _ in range(rng.integers(*THINGS)):
        _add(things, rng, drive, settings, int(rng.integers(len(CLASSES))))
    for _ in range(rng.integers(*CLUTTER_BOXES)):
        _add(things, rng, drive, settings, -1)
    discs = tuple(_disc(rng, drive) for _ in range(rng.integers(*DISCS)))
    return Scene(number, settings, drive, tuple(things), discs, _light(rng))


def _add(things: list[Thing], rng: np.random.Generator, drive: Drive, settings: SyntheticSettings, label: int) -> None:
    """Place one more thing where it meets nobody and stays in reach; a scene that is too full goes without it."""
    for _ in range(TRIES):
        thing = _thing(rng, drive, label)
        if _fits(thing, things, drive, settings):
            things.append(thing)
            return


def _thing(rng: np.random.Generator, drive: Drive, label: int) -> Thing:
    kind = KINDS[CLASSES[label if label >= 0 else int(rng.integers(len(CLASSES)))]]
    length, width, height = (side * rng.uniform(0.85, 1.15) for side in kind.size)
    x, y = rng.uniform(-REACH, REACH, 2)
    moves = label >= 0 and rng.random() < 0.5
    return Thing(
        label=label,
        size=(length, width, height),
        position=(drive.position[0] + x, drive.position[1] + y),
        yaw=rng.uniform(-math.pi, math.pi),
        speed=rng.uniform(0.3, 1.0) * kind.top_speed if moves else 0.0,
        look=_painted(rng, kind.look if label >= 0 else CLUTTER),
    )


def _painted(rng: np.random.Generator, look: Look) -> Look:
    """A look as this one thing has it."""
    first = np.clip(np.array(look.first) * rng.uniform(0.75, 1.2) + rng.normal(0, 0.05, 3), 0, 1)
    second = np.clip(np.array(look.second) + rng.normal(0, 0.04, 3), 0, 1)
    return Look(_colour(first), _colour(second), look.pattern, look.period * rng.uniform(0.85, 1.15))


def _fits(thing: Thing, others: list[Thing], drive: Drive, settings: SyntheticSettings) -> bool:
    """Whether a thing stays within reach, clear of the ego vehicle and of the others, at every keyframe."""
    radius = math.hypot(*thing.size[:2]) / 2
    mount = lidar_to_ego()
    for k in range(settings.samples):
        t = k * KEY_INTERVAL
        x, y, *_ = thing.box(t - drive.middle)
        ego = drive.pose(t)
        in_lidar = inverse_pose(ego @ mount) @ (x, y, 1.0, 1.0)
        if np.abs(in_lidar[:2]).max() > REACH:
            return False
        if math.hypot(x - ego[0, 3], y - ego[1, 3]) < NEAREST + thing.size[1] / 2 + _reach_towards(thing, ego):
            return False
        for other in others:
            ox, oy, *_ = other.box(t - drive.middle)
            if math.hypot(x - ox, y - oy) < radius + math.hypot(*other.size[:2]) / 2:
                return False
    return True


def _reach_towards(thing: Thing, ego: Array) -> float:
    """How much a thing's length brings it nearer to the ego vehicle, metres."""
    bearing = math.atan2(ego[1, 3] - thing.position[1], ego[0, 3] - thing.position[0])
    return abs(math.cos(bearing - thing.yaw)) * max(0.0, thing.size[0] - thing.size[1]) / 2


def _disc(rng: np.random.Generator, drive: Drive) -> Disc:
    """Paint in the colour of some class."""
    x, y = rng.uniform(-REACH, REACH, 2)
    look = KINDS[CLASSES[int(rng.integers(len(CLASSES)))]].look
    colour = np.clip(np.array(look.first) * rng.uniform(0.75, 1.2) + rng.normal(0, 0.05, 3), 0, 1)
    return Disc((drive.position[0] + x, drive.position[1] + y), rng.uniform(0.4, 1.5), _colour(colour))


def _light(rng: np.random.Generator) -> Light:
    tint = rng.uniform(0.7, 1.15) * (1 + rng.normal(0, 0.05, 3))
    grey = rng.uniform(0.25, 0.45)
    ground = np.clip(grey + rng.normal(0, 0.015, 3), 0, 1)
    sky = np.clip(np.array([0.6, 0.75, 0.95]) * rng.uniform(0.7, 1.05), 0, 1)
    return Light(_colour(tint), rng.uniform(-math.pi, math.pi), _colour(ground), _colour(sky))


def _colour(values: Array) -> Colour:
    red, green, blue = values.tolist()
    return red, green, blue
