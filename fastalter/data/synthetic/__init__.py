"""A synthetic nuScenes: six cameras and a LiDAR that see the same made-up traffic.

`world` draws what is there, `rig` says where the sensors sit, `camera` and `lidar` look at it, `frames` serves samples
from memory, `tables` and `dataset` write them as a nuScenes dataset. It is made so that fusion pays: the size of a
thing tells most classes apart only in pairs (truck or construction vehicle, bus or trailer, ...) and which of the two
shows in its colours, which the cameras alone see; how far away a thing is, the LiDAR measures and the cameras guess.
Painted discs on the ground deceive the cameras, grey boxes that belong to no class deceive the LiDAR.
"""

from fastalter.data.synthetic.frames import SyntheticFrames
from fastalter.data.synthetic.settings import SyntheticSettings

__all__ = ["SyntheticFrames", "SyntheticSettings"]
