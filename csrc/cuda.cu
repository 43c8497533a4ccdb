// Binds apply_mask's CUDA kernels to torch's dispatcher through its stable ABI, and launches them. The wrappers of
// fastalter/ops have checked shapes, dtypes and devices.
#include "cuda.h"
#include "fastalter/apply_mask.cuh"

namespace fastalter::cuda {
namespace {

Geometry geometry_of(const Tensor& tensor) {
    require(tensor.dim() <= MAX_DIMS, "apply_mask: a strided tensor of more than 8 dimensions");
    Geometry geometry{tensor.dim(), {}, {}};
    std::copy(tensor.sizes().begin(), tensor.sizes().end(), geometry.shape);
    std::copy(tensor.strides().begin(), tensor.strides().end(), geometry.strides);
    return geometry;
}

template <class T>
void launch_apply_mask(const Gpu& gpu, const Tensor& theta, const uint8_t* mask, int64_t bit) {
    const int64_t size = theta.numel();
    T* const elements = mutable_data<T>(theta);
    const int most = gpu.blocks_that_fill_an_sm();
    if (theta.is_contiguous()) {
        const int64_t blocks = ceil_div(ceil_div(size, Pack<T>::LANES), THREADS);
        gpu.launch(apply_mask_kernel<T>, blocks, most, elements, mask, bit, size);
    } else {
        const int64_t blocks = ceil_div(size, THREADS);
        gpu.launch(apply_mask_strided_kernel<T>, blocks, most, elements, geometry_of(theta), mask, bit, size);
    }
}

void apply_mask(std::vector<Tensor> theta, Tensor mask, std::vector<int64_t> offsets) {
    const Gpu gpu(mask);
    for (size_t t = 0; t < theta.size(); ++t) {
        for_width(theta[t], [&](auto bits) {
            launch_apply_mask<decltype(bits)>(gpu, theta[t], data<uint8_t>(mask), offsets[t]);
        });
    }
}

}  // namespace
}  // namespace fastalter::cuda

STABLE_TORCH_LIBRARY_IMPL(fastalter, CUDA, m) {
    m.impl("apply_mask", TORCH_BOX(&fastalter::cuda::apply_mask));
}
