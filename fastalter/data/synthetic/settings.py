"""What a synthetic dataset is made of: counts, resolutions, the seed."""

from __future__ import annotations

from dataclasses import dataclass

from fastalter.errors import DataError

KEY_INTERVAL = 0.5
"""Seconds between keyframes, as in nuScenes."""
FULL_IMAGE = (900, 1600)
"""Height and width of a nuScenes image, for which the rig's intrinsics are."""


@dataclass(frozen=True)
class SyntheticSettings:
    """One dataset; the same settings give the same files, bit for bit on one machine.

    scenes          how many scenes of the train split
    val_scenes      how many scenes of the val split, which come after them
    samples         keyframes in a scene, half a second apart
    sweeps          LiDAR scans between two keyframes
    image_size      height and width of the images as written, pixels
    azimuth_steps   directions of each of the LiDAR's 32 beams; the real sensor has about 1085
    seed            of everything
    """

    scenes: int = 10
    val_scenes: int = 2
    samples: int = 4
    sweeps: int = 0
    image_size: tuple[int, int] = (108, 192)
    azimuth_steps: int = 360
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "scenes": (0, 99_999),
            "val_scenes": (0, 99_999),
            "samples": (2, 20),  # the devkit finds velocities between keyframes; things stay in range for ten seconds
            "sweeps": (0, 9),
            "azimuth_steps": (16, 10_000),
            "seed": (0, 2**64 - 1),
        }
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise DataError(f"synthetic data: {name} is {getattr(self, name)}; give {least} to {most}")
        if not self.scenes + self.val_scenes:
            raise DataError("synthetic data: no scenes and no val_scenes; give one of them")
        height, width = self.image_size
        if not (16 <= height <= 4096 and 16 <= width <= 4096):
            raise DataError(f"synthetic data: image size {height}x{width}; give 16 to 4096 pixels each way")

    @property
    def duration(self) -> float:
        """Seconds from the first keyframe of a scene to its last."""
        return (self.samples - 1) * KEY_INTERVAL
