// Bitmask and values of a mostly-zero tensor, and back, on the GPU. One pass: every byte of the dense tensor, the mask
// and the values moves once; a tile's place among the values comes from the look-back. The order of the values does not
// depend on timing: it is the elements' order.
#pragma once

#include "fastalter/look_back.cuh"

namespace fastalter {

constexpr int PACK_ROWS = 4;  // packs a thread holds: 64 bytes in flight

// What a block works on at a time, and the shared memory it needs for that. Tile: | warp 0: row 0 .. row 3 | warp 1
// ...; a row is 32 packs, one a lane.
template <class T, int BLOCK>
struct SparseTile {
    static constexpr int LANES = Pack<T>::LANES;
    static constexpr int ROW = WARP * LANES;
    static constexpr int WARPS = BLOCK / WARP;
    static constexpr int SIZE = WARPS * PACK_ROWS * ROW;

    T staged[SIZE];  // the tile's values, contiguous
    int count_of_warp[WARPS];
    int64_t tile;
    Word base;  // where the tile's values start among all values

    // Index of the thread's first element in `row` of the tile.
    static __device__ int64_t place(int64_t tile, int row) {
        const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        return tile * SIZE + (warp * PACK_ROWS + row) * ROW + lane * LANES;
    }
};

// Where a thread's present elements go among those of the tile, and how many the tile has.
struct Ranks {
    int first[PACK_ROWS];
    int count;
};

// The sum over the lanes up to this one.
inline __device__ Word scan_over_warp(Word value) {
    for (int distance = 1; distance < WARP; distance *= 2) {
        const Word other = __shfl_up_sync(ALL_LANES, value, distance);
        if (static_cast<int>(threadIdx.x) % WARP >= distance) value += other;
    }
    return value;
}

// Holds a barrier. One scan serves all rows: a row has at most 256 elements, so its count fits 16 bits of a word.
template <class Tile>
__device__ Ranks rank(Tile& shared, const uint32_t (&flags)[PACK_ROWS]) {
    static_assert(PACK_ROWS * 16 == 64 && Tile::ROW <= 256, "the counts of all rows share a 64-bit word");
    Word counts = 0;
    for (int row = 0; row < PACK_ROWS; ++row) counts |= Word(__popc(flags[row])) << (16 * row);
    const Word inclusive = scan_over_warp(counts);
    const Word of_warp = __shfl_sync(ALL_LANES, inclusive, WARP - 1);

    Ranks ranks{};
    int rows_before = 0;
    for (int row = 0; row < PACK_ROWS; ++row) {
        ranks.first[row] = rows_before + static_cast<int>((inclusive - counts) >> (16 * row) & 0xffff);
        rows_before += static_cast<int>(of_warp >> (16 * row) & 0xffff);
    }
    const int own = threadIdx.x / WARP;
    if (threadIdx.x % WARP == 0) shared.count_of_warp[own] = rows_before;
    __syncthreads();
    int warps_before = 0;
    for (int warp = 0; warp < Tile::WARPS; ++warp) {
        if (warp == own) warps_before = ranks.count;
        ranks.count += shared.count_of_warp[warp];
    }
    for (int row = 0; row < PACK_ROWS; ++row) ranks.first[row] += warps_before;
    return ranks;
}

// Holds a barrier, which also makes what the block staged before visible to all its threads.
template <class Tile>
__device__ int64_t base_of(Tile& shared, Word* status, int64_t tile, int count) {
    if (threadIdx.x < WARP) {
        const Word base = sum_before(status, tile, count);
        if (threadIdx.x == 0) shared.base = base;
    }
    __syncthreads();
    return static_cast<int64_t>(shared.base);
}

// A bit per element whose bits are not all zero.
template <class T>
__device__ uint32_t flags_of(const Pack<T>& pack) {
    uint32_t flags = 0;
    for (int lane = 0; lane < Pack<T>::LANES; ++lane) flags |= uint32_t(pack.lane[lane] != 0) << lane;
    return flags;
}

// The flags of a row, gathered from as many lanes as share a byte of the mask. Whole warp.
template <class T>
__device__ void write_mask(uint8_t* mask, int64_t i, int64_t size, uint32_t flags) {
    constexpr int LANES = Pack<T>::LANES;
    const int64_t padded = (size + 63) / 64 * 64;
    flags <<= i % 8;
    for (int distance = 1; distance < 8 / LANES; distance *= 2) {
        flags |= __shfl_xor_sync(ALL_LANES, flags, distance);
    }
    if (i % 8 == 0 && i < padded) mask[i / 8] = static_cast<uint8_t>(flags);
}

// staged -> values, with 128-bit stores from the first 16-byte boundary on.
template <class T, int BLOCK>
__device__ void copy_out(T* values, const T* staged, int count) {
    const Stretch stretch = stretch_of(values, count);
#pragma unroll 1
    for (int64_t p = threadIdx.x; p < stretch.packs; p += BLOCK) {
        const int64_t i = stretch.head + p * Pack<T>::LANES;
        Pack<T> pack;
        for (int lane = 0; lane < Pack<T>::LANES; ++lane) pack.lane[lane] = staged[i + lane];
        store_bits(values + i, as_bits(pack));
    }
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < stretch.head; i += BLOCK) values[i] = staged[i];
#pragma unroll 1
    for (int64_t i = stretch.tail + threadIdx.x; i < count; i += BLOCK) values[i] = staged[i];
}

// values -> staged, with 128-bit loads likewise.
template <class T, int BLOCK>
__device__ void copy_in(T* staged, const T* values, int64_t count) {
    const Stretch stretch = stretch_of(values, count);
#pragma unroll 1
    for (int64_t p = threadIdx.x; p < stretch.packs; p += BLOCK) {
        const int64_t i = stretch.head + p * Pack<T>::LANES;
        const Pack<T> pack = as_pack<T>(load_bits(values + i));
        for (int lane = 0; lane < Pack<T>::LANES; ++lane) staged[i + lane] = pack.lane[lane];
    }
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < stretch.head; i += BLOCK) staged[i] = values[i];
#pragma unroll 1
    for (int64_t i = stretch.tail + threadIdx.x; i < count; i += BLOCK) staged[i] = values[i];
}

// The block's part of the kernel below.
template <class T, int BLOCK>
__device__ void pack_sparse_block(SparseTile<T, BLOCK>& shared, const T* dense, int64_t size, uint8_t* mask, T* values,
                                  Word* tickets, Word* status, int64_t tiles) {
    using Tile = SparseTile<T, BLOCK>;
    for (int64_t tile = next_tile(tickets, &shared.tile); tile < tiles; tile = next_tile(tickets, &shared.tile)) {
        Bits128 packs[PACK_ROWS];
        uint32_t flags[PACK_ROWS];
        for (int row = 0; row < PACK_ROWS; ++row) packs[row] = load_pack(dense, Tile::place(tile, row), size);
        for (int row = 0; row < PACK_ROWS; ++row) {
            flags[row] = flags_of(as_pack<T>(packs[row]));
            write_mask<T>(mask, Tile::place(tile, row), size, flags[row]);
        }
        const Ranks ranks = rank(shared, flags);
        for (int row = 0; row < PACK_ROWS; ++row) {
            int to = ranks.first[row];
            for (int lane = 0; lane < Tile::LANES; ++lane) {
                if (flags[row] >> lane & 1) shared.staged[to++] = as_pack<T>(packs[row]).lane[lane];
            }
        }
        const int64_t base = base_of(shared, status, tile, ranks.count);
        copy_out<T, BLOCK>(values + base, shared.staged, ranks.count);
    }
}

// dense: 16-byte aligned. mask: 8*ceil(size/64) bytes. values: room for `size` elements. tickets: one zero; status: a
// zero per tile. Afterwards status[tiles - 1] >> 2 is the number of values. Any grid.
template <class T, int BLOCK = THREADS>
__global__ void __launch_bounds__(BLOCK, HALF_OF_SM)
    pack_sparse_kernel(const T* dense, int64_t size, uint8_t* mask, T* values, Word* tickets, Word* status,
                       int64_t tiles) {
    __shared__ SparseTile<T, BLOCK> shared;
    pack_sparse_block<T, BLOCK>(shared, dense, size, mask, values, tickets, status, tiles);
}

// The flags of the elements i, i + 1, ...; none behind the end.
template <class T>
__device__ uint32_t read_mask(const uint8_t* mask, int64_t i, int64_t size) {
    constexpr int LANES = Pack<T>::LANES;
    if (i >= size) return 0;
    const int count = size - i < LANES ? static_cast<int>(size - i) : LANES;
    return uint32_t(mask[i / 8]) >> (i % 8) & ((1u << count) - 1);
}

template <class T, int BLOCK>
__device__ void unpack_sparse_block(SparseTile<T, BLOCK>& shared, const uint8_t* mask, const T* values, int64_t count,
                                    T* dense, int64_t size, Word* tickets, Word* status, int64_t tiles) {
    using Tile = SparseTile<T, BLOCK>;
    for (int64_t tile = next_tile(tickets, &shared.tile); tile < tiles; tile = next_tile(tickets, &shared.tile)) {
        uint32_t flags[PACK_ROWS];
        for (int row = 0; row < PACK_ROWS; ++row) flags[row] = read_mask<T>(mask, Tile::place(tile, row), size);
        const Ranks ranks = rank(shared, flags);
        const int64_t base = base_of(shared, status, tile, ranks.count);
        // A mask with more bits than there are values is refused by the caller, afterwards: until then stay inside.
        const int64_t rest = count - base;
        if (rest > 0) copy_in<T, BLOCK>(shared.staged, values + base, rest < ranks.count ? rest : ranks.count);
        __syncthreads();
        for (int row = 0; row < PACK_ROWS; ++row) {
            int from = ranks.first[row];
            Pack<T> pack{};
            for (int lane = 0; lane < Tile::LANES; ++lane) {
                if (flags[row] >> lane & 1) pack.lane[lane] = shared.staged[from++];
            }
            store_pack(dense, Tile::place(tile, row), size, pack);
        }
    }
}

// The inverse; values, of which there are `count`, may have any alignment, and the rest is as above. Afterwards the
// caller compares status[tiles - 1] >> 2 with count.
template <class T, int BLOCK = THREADS>
__global__ void __launch_bounds__(BLOCK, HALF_OF_SM)
    unpack_sparse_kernel(const uint8_t* mask, const T* values, int64_t count, T* dense, int64_t size, Word* tickets,
                         Word* status, int64_t tiles) {
    __shared__ SparseTile<T, BLOCK> shared;
    unpack_sparse_block<T, BLOCK>(shared, mask, values, count, dense, size, tickets, status, tiles);
}

}  // namespace fastalter
