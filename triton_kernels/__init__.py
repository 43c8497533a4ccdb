"""Home of the Triton kernels: one kernel family a file, each with its kernel, launcher and ahead-of-time budget.

The folder installs as `fastalter.triton_kernels`, because a top-level `triton_kernels` is Triton's own package. The
kernels land with their own change; until then CUDA tensors are served by the compiled CUDA library where it has the
op, and by the reference, on the tensors' own device, elsewhere.
"""
