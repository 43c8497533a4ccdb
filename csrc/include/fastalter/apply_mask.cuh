// Zero what the mask drops, in place, on the GPU. Elements are taken as integers of their width: +0 is all bits zero in
// every floating dtype.
#pragma once

#include "fastalter/device.cuh"

namespace fastalter {

// One pack per thread is in flight, so this kernel wants every thread an SM can hold: 2048 of them move 32 KB. The
// compiler then keeps within the registers that this leaves each thread: 32 of 65536 where an SM holds 2048 threads, 42
// where it holds 1536 (sm_86, sm_89, sm_120).
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr int ALL_OF_SM = 1536 / THREADS;
#else
constexpr int ALL_OF_SM = 2048 / THREADS;
#endif

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
template <class T>
__global__ void __launch_bounds__(THREADS, ALL_OF_SM)
    apply_mask_kernel(T* theta, const uint8_t* mask, int64_t bit, int64_t size) {
    constexpr int LANES = Pack<T>::LANES;
    const Stretch stretch = stretch_of(theta, size);
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t threads = int64_t(gridDim.x) * blockDim.x;
#pragma unroll 1
    for (int64_t p = thread; p < stretch.packs; p += threads) {
        T* where = theta + stretch.head + p * LANES;
        Pack<T> pack = as_pack<T>(load_bits(where));
        const uint32_t flags = flags_at(mask, bit + stretch.head + p * LANES, LANES);
        for (int lane = 0; lane < LANES; ++lane) pack.lane[lane] = flags >> lane & 1 ? pack.lane[lane] : T(0);
        store_bits(where, as_bits(pack));
    }
#pragma unroll 1
    for (int64_t i = thread; i < stretch.head; i += threads) apply_mask_to_element(theta + i, mask, bit + i);
#pragma unroll 1
    for (int64_t i = stretch.tail + thread; i < size; i += threads) apply_mask_to_element(theta + i, mask, bit + i);
}

constexpr int MAX_DIMS = 8;

struct Geometry {
    int64_t dims;
    int64_t shape[MAX_DIMS];
    int64_t strides[MAX_DIMS];
};

// The same for a tensor of any strides, one thread an element; bits follow row-major order.
template <class T>
__global__ void __launch_bounds__(THREADS)
    apply_mask_strided_kernel(T* theta, Geometry geometry, const uint8_t* mask, int64_t bit, int64_t size) {
    const int64_t threads = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += threads) {
        int64_t rest = i;
        int64_t offset = 0;
        for (int64_t dim = geometry.dims - 1; dim >= 0; --dim) {
            offset += rest % geometry.shape[dim] * geometry.strides[dim];
            rest /= geometry.shape[dim];
        }
        apply_mask_to_element(theta + offset, mask, bit + i);
    }
}

}  // namespace fastalter
