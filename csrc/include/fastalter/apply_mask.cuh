// Zero what the mask drops, in place, on the GPU. Framework-free: compiles with nvcc, with NVRTC, and on the host
// through the tests' compat header.
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cstdint>
#endif

namespace fastalter {

// Blocks that fill an SM. The compiler then keeps within the registers that this leaves each thread: 32 of 65536 where
// an SM holds 2048 threads, 42 where it holds 1536 (sm_86, sm_89, sm_120).
constexpr int THREADS = 256;
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr int BLOCKS_PER_SM = 1536 / THREADS;
#else
constexpr int BLOCKS_PER_SM = 2048 / THREADS;
#endif

// One 128-bit access: the widest a thread can make, so 2048 threads keep 32 KB in flight on an SM.
template <class T>
struct alignas(16) Pack {
    static constexpr int LANES = 16 / sizeof(T);
    T lane[LANES];
};

// The `count` <= 8 flags that start at any bit; touches only bytes that hold some of them.
inline __device__ uint32_t flags_at(const uint8_t* mask, int64_t bit, int count) {
    const int shift = static_cast<int>(bit % 8);
    uint32_t flags = uint32_t(mask[bit / 8]) >> shift;
    if (shift + count > 8) flags |= uint32_t(mask[bit / 8 + 1]) << (8 - shift);
    return flags;
}

template <class T>
__device__ void apply_mask_to_element(T* element, const uint8_t* mask, int64_t bit) {
    if (!(flags_at(mask, bit, 1) & 1)) *element = T(0);
}

// theta[i] becomes +0 where bit `bit + i` is 0. Any grid; memory-bound: reads and writes every element once.
//   theta: | head: up to the first 16-byte boundary | packs of LANES elements | tail |
template <class T>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
    apply_mask_kernel(T* theta, const uint8_t* mask, int64_t bit, int64_t size) {
    constexpr int LANES = Pack<T>::LANES;
    const int64_t to_boundary = (16 - reinterpret_cast<uintptr_t>(theta) % 16) % 16 / sizeof(T);
    const int64_t head = to_boundary < size ? to_boundary : size;
    const int64_t packs = (size - head) / LANES;
    const int64_t tail = head + packs * LANES;

    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t threads = int64_t(gridDim.x) * blockDim.x;
    for (int64_t p = thread; p < packs; p += threads) {
        Pack<T>* where = reinterpret_cast<Pack<T>*>(theta + head) + p;
        const uint32_t flags = flags_at(mask, bit + head + p * LANES, LANES);
        Pack<T> pack = *where;
        for (int lane = 0; lane < LANES; ++lane) pack.lane[lane] = flags >> lane & 1 ? pack.lane[lane] : T(0);
        *where = pack;
    }
    for (int64_t i = thread; i < head; i += threads) apply_mask_to_element(theta + i, mask, bit + i);
    for (int64_t i = tail + thread; i < size; i += threads) apply_mask_to_element(theta + i, mask, bit + i);
}

constexpr int MAX_DIMS = 8;

struct Geometry {
    int dims;
    int64_t shape[MAX_DIMS];
    int64_t strides[MAX_DIMS];
};

// The same for a tensor of any strides, one thread an element; bits follow row-major order.
template <class T>
__global__ void apply_mask_strided_kernel(T* theta, Geometry geometry, const uint8_t* mask, int64_t bit, int64_t size) {
    const int64_t threads = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += threads) {
        int64_t rest = i;
        int64_t offset = 0;
        for (int dim = geometry.dims - 1; dim >= 0; --dim) {
            offset += rest % geometry.shape[dim] * geometry.strides[dim];
            rest /= geometry.shape[dim];
        }
        apply_mask_to_element(theta + offset, mask, bit + i);
    }
}

}  // namespace fastalter
