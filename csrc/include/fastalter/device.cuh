// What the GPU kernels share: integers of fixed width, blocks, 128-bit accesses. Framework-free like all of them: they
// compile with nvcc, with NVRTC, and on the host through the tests' compat header.
#pragma once

#if defined(__CUDACC_RTC__)  // NVRTC comes without the standard headers
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using int64_t = long long;
using uintptr_t = unsigned long long;
#else
#include <cstdint>
#include <cstring>
#endif

namespace fastalter {

constexpr int WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffff;
constexpr int THREADS = 256;  // of a block

// Kernels that keep 64 bytes of loads in flight per thread need only half of an SM's threads to cover the latency: four
// blocks, which leave 64 registers to each thread.
constexpr int HALF_OF_SM = 1024 / THREADS;

// One 128-bit access: the widest a thread can make.
template <class T>
struct alignas(16) Pack {
    static constexpr int LANES = 16 / sizeof(T);
    T lane[LANES];
};
using Bits128 = Pack<uint32_t>;

// What waits in registers waits as Bits128: two 2-byte lanes then share one.
template <class T>
__device__ Bits128 as_bits(const Pack<T>& pack) {
    Bits128 bits;
    memcpy(&bits, &pack, 16);
    return bits;
}

template <class T>
__device__ Pack<T> as_pack(const Bits128& bits) {
    Pack<T> pack;
    memcpy(&pack, &bits, 16);
    return pack;
}

// For addresses that come out of memory: without it the compiler has every access ask which memory they point to.
template <class T>
__device__ T* in_global(T* address) {
#if defined(__CUDA_ARCH__)
    __builtin_assume(__isGlobal(address));
#endif
    return address;
}

// An access of 128 bits in one instruction, which a plain assignment is only where the compiler finds it so.
inline __device__ Bits128 load_bits(const void* from) {
#if defined(__CUDA_ARCH__)
    Bits128 bits;
    uint32_t* const lane = bits.lane;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(lane[0]), "=r"(lane[1]), "=r"(lane[2]), "=r"(lane[3])
                 : "l"(from));
    return bits;
#else
    return *static_cast<const Bits128*>(from);
#endif
}

inline __device__ void store_bits(void* to, const Bits128& bits) {
#if defined(__CUDA_ARCH__)
    const uint32_t* const lane = bits.lane;
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(lane[0]), "r"(lane[1]), "r"(lane[2]), "r"(lane[3])
                 : "memory");
#else
    *static_cast<Bits128*>(to) = bits;
#endif
}

// The elements i, i + 1, ... of an aligned array; zeros behind its end. i is a multiple of LANES.
template <class T>
__device__ Bits128 load_pack(const T* array, int64_t i, int64_t size) {
    if (i + Pack<T>::LANES <= size) return load_bits(array + i);
    Pack<T> pack{};
    for (int lane = 0; lane < Pack<T>::LANES; ++lane) {
        if (i + lane < size) pack.lane[lane] = array[i + lane];
    }
    return as_bits(pack);
}

template <class T>
__device__ void store_pack(T* array, int64_t i, int64_t size, const Pack<T>& pack) {
    if (i + Pack<T>::LANES <= size) {
        store_bits(array + i, as_bits(pack));
        return;
    }
    for (int lane = 0; lane < Pack<T>::LANES; ++lane) {
        if (i + lane < size) array[i + lane] = pack.lane[lane];
    }
}

// An array of any alignment: | head: up to the first 16-byte boundary | packs | tail |
struct Stretch {
    int64_t head, packs, tail;  // elements before the packs, packs, index of the tail's first element
};

template <class T>
__device__ Stretch stretch_of(const T* array, int64_t size) {
    const int64_t to_boundary = (16 - reinterpret_cast<uintptr_t>(array) % 16) % 16 / sizeof(T);
    const int64_t head = to_boundary < size ? to_boundary : size;
    const int64_t packs = (size - head) / Pack<T>::LANES;
    return {head, packs, head + packs * Pack<T>::LANES};
}

}  // namespace fastalter
