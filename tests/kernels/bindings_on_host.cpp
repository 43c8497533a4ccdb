// The bindings of the CUDA library (csrc/*.cu) as a library of CPU kernels: their code, over a CUDA runtime that is the
// host. "Device" memory is host memory; a launch runs the kernel on threads and is written into a log. Kernels can be
// called by name too, as CuPy does.
#include "cuda_on_host.h"
//
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "fastalter/apply_mask.cuh"
#include "fastalter/compact_channels.cuh"
#include "fastalter/compress_nm.cuh"
#include "fastalter/pack_sparse.cuh"

// ---- the log -------------------------------------------------------------------------------------------------------

namespace host {

std::string log;

// What a launch depends on that does not change from run to run: integers, and tables but for the targets' addresses.
template <class T>
void describe(std::ostream& out, const T& argument) {
    if constexpr (std::is_integral_v<T>) out << ' ' << argument;
    if constexpr (std::is_same_v<T, fastalter::Geometry>) {
        for (int dim = 0; dim < argument.dims; ++dim) out << ' ' << argument.shape[dim] << '/' << argument.strides[dim];
    }
}

void describe_table(std::ostream& out, const fastalter::CompactTask* tasks, const int64_t* first_tiles, int64_t count) {
    for (int64_t t = 0; t < count; ++t) {
        int64_t words[sizeof(fastalter::CompactTask) / 8];
        std::memcpy(words, tasks + t, sizeof words);
        words[1] = 0;
        out << "\n  " << first_tiles[t] << ':';
        for (const int64_t word : words) out << ' ' << word;
    }
}

template <class... Parameters>
void run(const char* name, void (*kernel)(Parameters...), int grid, int threads, const Parameters&... arguments) {
    std::ostringstream out;
    out << name << " <<<" << grid << ", " << threads << ">>>";
    (describe(out, arguments), ...);
    if constexpr (std::is_same_v<std::tuple_element_t<0, std::tuple<Parameters...>>, const fastalter::CompactTask*>) {
        const auto all = std::tie(arguments...);
        describe_table(out, std::get<0>(all), std::get<1>(all), std::get<2>(all));
    }
    log += out.str() + "\n";
    launch(grid, threads, kernel, arguments...);
}

// ---- kernels by name, their arguments behind pointers ---------------------------------------------------------------

using Launcher = void (*)(const char* name, int grid, int threads, void** arguments);
std::map<std::string, std::pair<Launcher, const void*>> kernels;

template <auto kernel>
struct ByName;

template <class... Parameters, void (*kernel)(Parameters...)>
struct ByName<kernel> {
    template <size_t... I>
    static void unpack(const char* name, int grid, int threads, void** arguments, std::index_sequence<I...>) {
        run<Parameters...>(name, kernel, grid, threads, *static_cast<std::remove_cv_t<Parameters>*>(arguments[I])...);
    }
    static void launch(const char* name, int grid, int threads, void** arguments) {
        unpack(name, grid, threads, arguments, std::index_sequence_for<Parameters...>());
    }
};

template <auto kernel>
bool add(const char* name) {
    kernels[name] = {&ByName<kernel>::launch, reinterpret_cast<const void*>(kernel)};
    return true;
}

#define KERNEL(...) add<&__VA_ARGS__>(#__VA_ARGS__)
const bool added[] = {
    KERNEL(fastalter::apply_mask_kernel<uint16_t>),         KERNEL(fastalter::apply_mask_kernel<uint32_t>),
    KERNEL(fastalter::apply_mask_kernel<uint64_t>),         KERNEL(fastalter::apply_mask_strided_kernel<uint16_t>),
    KERNEL(fastalter::apply_mask_strided_kernel<uint32_t>), KERNEL(fastalter::apply_mask_strided_kernel<uint64_t>),
    KERNEL(fastalter::compact_channels_kernel<>),           KERNEL(fastalter::compress_nm_kernel<uint16_t>),
    KERNEL(fastalter::compress_nm_kernel<uint32_t>),        KERNEL(fastalter::pack_sparse_kernel<uint16_t>),
    KERNEL(fastalter::pack_sparse_kernel<uint32_t>),        KERNEL(fastalter::pack_sparse_kernel<uint64_t>),
    KERNEL(fastalter::unpack_sparse_kernel<uint16_t>),      KERNEL(fastalter::unpack_sparse_kernel<uint32_t>),
    KERNEL(fastalter::unpack_sparse_kernel<uint64_t>),
};

const char* name_of(const void* kernel) {
    for (const auto& [name, entry] : kernels) {
        if (entry.second == kernel) return name.c_str();
    }
    fail("a kernel that CuPy's road does not know");
}

}  // namespace host

extern "C" __attribute__((visibility("default"))) int run_kernel(const char* name, int grid, int threads,
                                                                 void** arguments) {
    const auto found = host::kernels.find(name);
    if (found == host::kernels.end()) return 1;
    found->second.first(name, grid, threads, arguments);
    return 0;
}

extern "C" __attribute__((visibility("default"))) const char* take_log() {
    static std::string taken;
    taken = std::exchange(host::log, "");
    return taken.c_str();
}

// ---- the CUDA runtime: a GPU of 2 SMs -------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxThreadsPerMultiProcessor };
using cudaStream_t = void*;

struct dim3 {
    dim3(unsigned x = 1) : x(x) {}
    unsigned x;
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    cudaStream_t stream = nullptr;
};

static cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
    *value = which == cudaDevAttrMultiProcessorCount ? 2 : 1536;
    return cudaSuccess;
}

static cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(target, source, bytes);
    return cudaSuccess;
}

static cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const std::type_identity_t<Parameters>&... arguments) {
    const char* name = host::name_of(reinterpret_cast<const void*>(kernel));
    host::run<Parameters...>(name, kernel, config->gridDim.x, config->blockDim.x, arguments...);
    return cudaSuccess;
}

static AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
    *stream = nullptr;
    return AOTI_TORCH_SUCCESS;
}

namespace torch::stable::accelerator {
struct HostGuard {
    explicit HostGuard(DeviceIndex) {}
};
}  // namespace torch::stable::accelerator

#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(EXPR) STD_TORCH_CHECK((EXPR) == cudaSuccess, #EXPR)
#define DeviceGuard HostGuard
// Registered for the CPU, in a namespace of its own: the library of CPU kernels keeps its place.
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) _STABLE_TORCH_LIBRARY_IMPL(fastalter_on_host, CPU, m, C10_UID)
#include "../../csrc/cuda.cu"
#include "../../csrc/cuda_compaction.cu"
