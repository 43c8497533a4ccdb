"""AlterMOMA: Algorithm 1 (altermoma.py), its passes, its arena, and the AlterEva score (altereva.py)."""

from fastalter.altermoma.altereva import AlterEva, alter_eva
from fastalter.altermoma.altermoma import AlternateMasking, Progress, ReriData
from fastalter.altermoma.arena import Arena, Entry, Layout
from fastalter.altermoma.batches import Batches
from fastalter.altermoma.clock import Clock
from fastalter.altermoma.passes import Backward, DirectPasses, Gradients, SharedPasses, Stage
from fastalter.altermoma.reactivation import Reactivation

__all__ = [
    "AlterEva",
    "AlternateMasking",
    "Arena",
    "Backward",
    "Batches",
    "Clock",
    "DirectPasses",
    "Entry",
    "Gradients",
    "Layout",
    "Progress",
    "Reactivation",
    "ReriData",
    "SharedPasses",
    "Stage",
    "alter_eva",
]
