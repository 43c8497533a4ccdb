// Sums over all earlier tiles while the data is read only once (Merrill and Garland's decoupled look-back): each tile
// publishes its own sum at once, then adds up what its predecessors have published, and publishes that.
#pragma once

#include "fastalter/device.cuh"

namespace fastalter {

// A tile's status: value << 2 | state. Value and state change together in one 64-bit word, so relaxed accesses do and
// no fence is needed.
using Word = unsigned long long;
constexpr Word UNKNOWN = 0;  // nothing published: what the words are initialised to
constexpr Word SUM = 1;      // the tile's own sum
constexpr Word PREFIX = 2;   // the sum of the tile and all before it
constexpr Word STATE = 3;

inline __device__ Word read_relaxed(const Word* word) {
#if defined(__CUDA_ARCH__)
    Word value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
#else
    return __atomic_load_n(word, __ATOMIC_RELAXED);
#endif
}

inline __device__ void write_relaxed(Word* word, Word value) {
#if defined(__CUDA_ARCH__)
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" : : "l"(word), "l"(value) : "memory");
#else
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
#endif
}

// Blocks take tiles in the order in which they start, so every earlier tile belongs to a block that runs: waiting for
// it cannot deadlock. Holds a barrier; all threads of the block get the same tile.
inline __device__ int64_t next_tile(Word* tickets, int64_t* shared_tile) {
    if (threadIdx.x == 0) *shared_tile = static_cast<int64_t>(atomicAdd(tickets, Word(1)));
    __syncthreads();
    return *shared_tile;
}

inline __device__ Word wait_for(const Word* status, int64_t tile) {
    if (tile < 0) return PREFIX;  // before the first tile the sum is zero
    Word word = read_relaxed(status + tile);
    while ((word & STATE) == UNKNOWN) {
        __nanosleep(32);
        word = read_relaxed(status + tile);
    }
    return word;
}

inline __device__ Word sum_over_warp(Word value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

// Publishes the tile's sum and returns the sum of all earlier tiles. For one whole warp; looks at 32 tiles at a time.
inline __device__ Word sum_before(Word* status, int64_t tile, Word sum) {
    const int lane = threadIdx.x % WARP;
    if (lane == 0) write_relaxed(status + tile, sum << 2 | SUM);
    Word before = 0;
    for (int64_t last = tile - 1;; last -= WARP) {
        const Word word = wait_for(status, last - lane);
        const uint32_t prefixes = __ballot_sync(ALL_LANES, (word & STATE) == PREFIX);
        const int nearest = prefixes ? __ffs(prefixes) - 1 : WARP - 1;  // what lies further back is part of its prefix
        before += sum_over_warp(lane <= nearest ? word >> 2 : 0);
        if (prefixes) break;
    }
    if (lane == 0) write_relaxed(status + tile, (before + sum) << 2 | PREFIX);
    return before;
}

}  // namespace fastalter
