"""What a network costs: parameters, floating-point operations, time and memory, by branch and by part."""

from fastalter.profiling.flops import count_flops, count_kinds
from fastalter.profiling.job import Profile, ProfileOptions, profile_checkpoint
from fastalter.profiling.parts import Part, parts_of

__all__ = ["Part", "Profile", "ProfileOptions", "count_flops", "count_kinds", "parts_of", "profile_checkpoint"]
