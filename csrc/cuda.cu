// Binds the CUDA kernels to torch's dispatcher through its stable ABI, and launches them; the kernels are in the .cuh.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "fastalter/apply_mask.cuh"

namespace {

using fastalter::THREADS;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

cudaStream_t current_stream(int device) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
}

// Enough blocks to fill the GPU, no more than there is work for; the kernels stride over the rest.
int grid_for(int64_t work, int device) {
    int processors = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    const int64_t wanted = (work + THREADS - 1) / THREADS;
    return static_cast<int>(std::clamp<int64_t>(wanted, 1, processors * fastalter::BLOCKS_PER_SM));
}

fastalter::Geometry geometry_of(const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.dim() <= fastalter::MAX_DIMS, "apply_mask: a strided tensor of more than 8 dimensions");
    fastalter::Geometry geometry{static_cast<int>(tensor.dim()), {}, {}};
    std::copy(tensor.sizes().begin(), tensor.sizes().end(), geometry.shape);
    std::copy(tensor.strides().begin(), tensor.strides().end(), geometry.strides);
    return geometry;
}

template <class T>
void launch_apply_mask(const Tensor& theta, const uint8_t* mask, int64_t bit, int device) {
    const int64_t size = theta.numel();
    T* elements = theta.mutable_data_ptr<T>();
    const cudaStream_t stream = current_stream(device);
    if (theta.is_contiguous()) {
        const int grid = grid_for(size / fastalter::Pack<T>::LANES, device);
        fastalter::apply_mask_kernel<<<grid, THREADS, 0, stream>>>(elements, mask, bit, size);
    } else {
        const int grid = grid_for(size, device);
        fastalter::apply_mask_strided_kernel<<<grid, THREADS, 0, stream>>>(elements, geometry_of(theta), mask, bit,
                                                                           size);
    }
    STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void apply_mask(std::vector<Tensor> theta, Tensor mask, std::vector<int64_t> offsets) {
    const int device = mask.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const uint8_t* bits = mask.const_data_ptr<uint8_t>();
    for (size_t t = 0; t < theta.size(); ++t) {
        if (theta[t].numel() == 0) continue;
        const bool single = theta[t].scalar_type() == ScalarType::Float;
        (single ? launch_apply_mask<float> : launch_apply_mask<double>)(theta[t], bits, offsets[t], device);
    }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastalter, CUDA, m) {
    m.impl("apply_mask", TORCH_BOX(&apply_mask));
}
