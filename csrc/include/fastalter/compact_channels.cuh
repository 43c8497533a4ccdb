// Gather the kept channels of many tensors in one launch, on the GPU. A tensor is seen as [A, X, B, Y, C], of which the
// channels X and Y are gathered; the innermost C are contiguous in source and target.
#pragma once

#include "fastalter/device.cuh"

namespace fastalter {

// Division by a number the host knows: n / by == n * multiplier >> (64 + shift), exact for 0 <= n < 2^63. A GPU divides
// 64-bit integers in a subroutine of some 70 instructions, and every item needs four divisions.
struct Divisor {
    int64_t by;
    uint64_t multiplier;  // floor(2^(64 + shift) / by) + 1
    int64_t shift;        // ceil(log2(by)) - 1; by = 1 has neither
};

#if !defined(__CUDACC_RTC__)
inline Divisor divisor_of(int64_t by) {
    if (by <= 1) return {by, 0, 0};
    int64_t shift = 0;
    while (by > int64_t(2) << shift) ++shift;
    using Wide = unsigned __int128;
    return {by, static_cast<uint64_t>((Wide(1) << (64 + shift)) / Wide(by)) + 1, shift};
}
#endif

// One tensor, in units: the widest integers (1 to 16 bytes) that divide its runs C and its address. The table of these
// in device memory is 20 words a row, addresses included.
struct CompactTask {
    const void* source;
    void* target;  // 16-byte aligned
    const int64_t* kept_x;
    const int64_t* kept_y;     // null: all are kept
    int64_t x, y;              // channels of the source
    Divisor to_x, b, to_y, c;  // sizes in the target
    int64_t width;             // bytes of a unit
    int64_t units;             // of the target
};

// A tile is the part of one tensor that a block copies at a time: 16-byte items of the target, four a thread.
constexpr int ITEMS = 4;
template <int BLOCK>
constexpr int64_t TILE_BYTES = int64_t(BLOCK) * ITEMS * 16;

struct Division {
    int64_t quotient, rest;
};

inline __device__ Division divide(int64_t n, const Divisor& divisor) {
    if (divisor.by == 1) return {n, 0};
    const int64_t quotient = static_cast<int64_t>(__umul64hi(n, divisor.multiplier) >> divisor.shift);
    return {quotient, n - quotient * divisor.by};
}

// The task that the tile belongs to: the last one whose first tile is not behind it.
inline __device__ int64_t task_of(const int64_t* first_tiles, int64_t tasks, int64_t tile) {
    int64_t low = 0, high = tasks;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (first_tiles[middle] <= tile ? low : high) = middle;
    }
    return low;
}

// Where in the source the units of the target come from, in order.
class CompactPlace {
  public:
    __device__ CompactPlace(const CompactTask& of, int64_t unit) : task(of) {
        const Division run = divide(unit, task.c);
        const Division row = divide(run.quotient, task.to_y);
        c = run.rest, y = row.rest, index = row.quotient;
        enter_row();
        enter_run();
    }

    __device__ int64_t source() const { return start + c; }

    // To the next unit; there must be one.
    __device__ void advance() {
        if (++c < task.c.by) return;
        c = 0;
        if (++y == task.to_y.by) {
            y = 0;
            ++index;
            enter_row();
        }
        enter_run();
    }

  private:
    // A row is what belongs to one x and b, a run what belongs to one y of it.
    __device__ void enter_row() {
        const Division of_b = divide(index, task.b);
        const Division of_x = divide(of_b.quotient, task.to_x);
        const int64_t x = task.kept_x ? in_global(task.kept_x)[of_x.rest] : of_x.rest;
        row = ((of_x.quotient * task.x + x) * task.b.by + of_b.rest) * task.y;
    }

    __device__ void enter_run() { start = (row + (task.kept_y ? in_global(task.kept_y)[y] : y)) * task.c.by; }

    const CompactTask& task;
    int64_t index, y, c;  // of the row, within it, within the run
    int64_t row, start;   // in the source: first run of the row, first unit of the run
};

// Units smaller than an item: 16 / sizeof(T) loads, one 128-bit store.
template <class T, int BLOCK>
__device__ void compact_tile(const CompactTask& task, int64_t tile) {
    constexpr int LANES = Pack<T>::LANES;
    const T* source = in_global(static_cast<const T*>(task.source));
    T* target = in_global(static_cast<T*>(task.target));
    const int64_t first = tile * BLOCK * ITEMS + threadIdx.x;
#pragma unroll 1
    for (int n = 0; n < ITEMS; ++n) {
        const int64_t unit = (first + n * BLOCK) * LANES;
        if (unit >= task.units) return;
        CompactPlace place(task, unit);
        Pack<T> pack{};
        pack.lane[0] = source[place.source()];
        for (int lane = 1; lane < LANES; ++lane) {
            if (unit + lane >= task.units) break;
            place.advance();
            pack.lane[lane] = source[place.source()];
        }
        store_pack(target, unit, task.units, pack);
    }
}

// Units of 128 bits: two loads in flight per thread.
template <int BLOCK>
__device__ void compact_wide_tile(const CompactTask& task, int64_t tile) {
    const Bits128* source = static_cast<const Bits128*>(task.source);
    Bits128* target = static_cast<Bits128*>(task.target);
    const int64_t first = tile * BLOCK * ITEMS + threadIdx.x;
#pragma unroll 1
    for (int64_t item = first; item < first + ITEMS * BLOCK; item += 2 * BLOCK) {
        const int64_t next = item + BLOCK;
        Bits128 one{}, two{};
        if (item < task.units) one = load_bits(source + CompactPlace(task, item).source());
        if (next < task.units) two = load_bits(source + CompactPlace(task, next).source());
        if (item < task.units) store_bits(target + item, one);
        if (next < task.units) store_bits(target + next, two);
    }
}

// tasks, first_tiles: of `count` tensors, none empty, in device memory; tiles: of all together. Any grid.
template <int BLOCK = THREADS>
__global__ void __launch_bounds__(BLOCK, HALF_OF_SM)
    compact_channels_kernel(const CompactTask* tasks, const int64_t* first_tiles, int64_t count, int64_t tiles) {
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int64_t t = task_of(first_tiles, count, tile);
        const CompactTask& task = tasks[t];
        const int64_t of_task = tile - first_tiles[t];
        switch (task.width) {
            case 1:
                compact_tile<uint8_t, BLOCK>(task, of_task);
                break;
            case 2:
                compact_tile<uint16_t, BLOCK>(task, of_task);
                break;
            case 4:
                compact_tile<uint32_t, BLOCK>(task, of_task);
                break;
            case 8:
                compact_tile<uint64_t, BLOCK>(task, of_task);
                break;
            default:
                compact_wide_tile<BLOCK>(task, of_task);
        }
    }
}

}  // namespace fastalter
