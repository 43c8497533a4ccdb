// What the bindings of the CUDA library share: the device a call runs on, launches, and memory on its stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "binding.h"
#include "fastalter/device.cuh"

namespace fastalter::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The device of a tensor, made the current one, and torch's current stream on it.
class Gpu {
  public:
    explicit Gpu(const Tensor& tensor) : device(tensor.get_device_index()), guard(device) {
        void* current = nullptr;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
        stream = static_cast<cudaStream_t>(current);
    }

    int blocks_that_fill_an_sm() const { return attribute(cudaDevAttrMaxThreadsPerMultiProcessor) / THREADS; }

    // At most so many blocks per SM, and no more than there is work for: the kernels stride over the rest.
    template <class... Parameters, class... Arguments>
    void launch(void (*kernel)(Parameters...), int64_t blocks, int blocks_per_sm, const Arguments&... arguments) const {
        if (blocks == 0) return;
        const int64_t most = int64_t(attribute(cudaDevAttrMultiProcessorCount)) * blocks_per_sm;
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, most)));
        config.blockDim = dim3(THREADS);
        config.stream = stream;
        STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
    }

    // Host memory may go as soon as this returns: what is not pinned is staged first.
    void copy(void* target, const void* source, int64_t bytes, cudaMemcpyKind kind) const {
        if (bytes > 0) STD_CUDA_CHECK(cudaMemcpyAsync(target, source, bytes, kind, stream));
    }

    // A number the kernels have written; waits for them.
    template <class T>
    T read(const T* from) const {
        T value{};
        copy(&value, from, sizeof(T), cudaMemcpyDeviceToHost);
        STD_CUDA_CHECK(cudaStreamSynchronize(stream));
        return value;
    }

  private:
    int attribute(cudaDeviceAttr which) const {
        int value = 0;
        STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
        return value;
    }

    int device;
    torch::stable::accelerator::DeviceGuard guard;
    cudaStream_t stream;
};

inline int64_t ceil_div(int64_t n, int64_t by) {
    return (n + by - 1) / by;
}

template <class T>
const T* data(const Tensor& tensor) {
    return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
    return static_cast<T*>(tensor.mutable_data_ptr());
}

// The tensor at an address that 128-bit accesses can start from: itself, but for views into the middle of a storage.
inline Tensor aligned(const Tensor& tensor) {
    const bool is = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
    return is ? tensor : torch::stable::clone(tensor);
}

}  // namespace fastalter::cuda
