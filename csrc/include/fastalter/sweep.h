// How a sweep over an arena is cut up, shared out and vectorised. No framework: raw pointers and a pool of workers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// The innermost loops are compiled once per instruction set; the loader picks the widest the machine has. They hold
// plain loops that the compiler vectorises: no intrinsics, and the same results, bit for bit, in every clone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(FASTALTER_ONE_TARGET)
#define FASTALTER_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTALTER_SIMD
#endif

#define FASTALTER_RESTRICT __restrict__

namespace fastalter {

// Elements per block. Partial results belong to blocks, never to threads, so they do not depend on how many threads
// there are. Small enough that a block of a few arenas stays in the L1/L2 cache between the loops that visit it.
constexpr int64_t BLOCK = 4096;

constexpr int64_t blocks_of(int64_t size) {
    return (size + BLOCK - 1) / BLOCK;
}

// Calls body(item, worker) for every item in [0, items), each worker taking one contiguous run of items in order.
// `Workers` has `int count` and `run(body)`, which calls body(worker) for worker = 0..count-1, in parallel if it can.
template <class Workers, class Body>
void for_items(const Workers& workers, int64_t items, const Body& body) {
    workers.run([&](int worker) {
        const int64_t begin = items * worker / workers.count;
        const int64_t end = items * (worker + 1) / workers.count;
        for (int64_t item = begin; item < end; ++item) body(item, worker);
    });
}

// The same for items that differ in cost: dealt out in turn, so that every worker gets some of each kind.
template <class Workers, class Body>
void deal_items(const Workers& workers, int64_t items, const Body& body) {
    workers.run([&](int worker) {
        for (int64_t item = worker; item < items; item += workers.count) body(item, worker);
    });
}

// Calls body(begin, end, worker) for every block [begin, end) of [0, size).
template <class Workers, class Body>
void for_blocks(const Workers& workers, int64_t size, const Body& body) {
    for_items(workers, blocks_of(size),
              [&](int64_t block, int worker) { body(block * BLOCK, std::min(size, (block + 1) * BLOCK), worker); });
}

// The pool of one: for small arenas and for tests.
struct OneWorker {
    int count = 1;
    template <class Body>
    void run(const Body& body) const {
        body(0);
    }
};

// Independent float64 accumulators, which fill vector registers; their number and order are part of every sum's result.
constexpr int LANES = 16;

inline double sum_of_lanes(const double* lanes) {
    double sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += lanes[lane];
    return sum;
}

// Asks for the cache lines of [from, from + size), which may reach past the end of the arena: prefetches do not fault.
template <class T>
inline void prefetch(const T* from, int64_t size) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(from);
    for (uintptr_t line = 0; line < size * sizeof(T); line += 64) {
        __builtin_prefetch(reinterpret_cast<const void*>(address + line));
    }
}

// How many elements ahead of a light loop over one array to prefetch; the hardware alone stays below the copy speed.
template <class T>
constexpr int64_t AHEAD = 4096 / sizeof(T);

// Copies past the cache: what is written is not read again soon, and a plain store would first fetch the line.
template <class T>
void stream_out(T* to, const T* from, int64_t size) {
    int64_t i = 0;
#if defined(__SSE2__)
    constexpr int64_t WIDTH = 16 / sizeof(T);
    while (i < size && reinterpret_cast<uintptr_t>(to + i) % 64 != 0) {
        to[i] = from[i];
        ++i;
    }
    for (; i + WIDTH <= size; i += WIDTH) {
        const __m128i lanes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), lanes);
    }
#endif
    std::memcpy(to + i, from + i, (size - i) * sizeof(T));
}

// Streaming stores are weakly ordered: a worker calls this before it hands its part over.
inline void stream_end() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace fastalter
