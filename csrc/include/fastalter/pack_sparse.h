// A mostly-zero array as one flag per element and the values, and back. An element whose bits are not all zero is a
// value, so nothing is lost: neither -0 nor NaN. U is the unsigned integer as wide as the elements.
//
// Two sweeps: flags and how many a block has, then, when the sums of those counts say where its values go, the values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "sweep.h"

namespace fastalter {

// One word of flags, as wide as an element, per as many elements as it has bits; n full words.
template <class U>
FASTALTER_SIMD void flag_present(U* FASTALTER_RESTRICT flags, const U* FASTALTER_RESTRICT elements, int64_t n) {
    constexpr int WIDTH = 8 * sizeof(U);
    for (int64_t w = 0; w < n; ++w) {
        U word = 0;
        prefetch(elements + w * WIDTH + AHEAD<U>, WIDTH);
        for (int j = 0; j < WIDTH; ++j) word |= U(U(elements[w * WIDTH + j] != 0) << j);
        flags[w] = word;
    }
}

FASTALTER_SIMD inline int64_t count_flags(const uint64_t* words, int64_t n) {
    int64_t count = 0;
    for (int64_t w = 0; w < n; ++w) count += __builtin_popcountll(words[w]);
    return count;
}

// Turns counts per block into where each block starts; returns the sum.
inline int64_t starts_of(std::vector<int64_t>& counts) {
    int64_t total = 0;
    for (int64_t& count : counts) {
        const int64_t before = total;
        total += count;
        count = before;
    }
    return total;
}

// First sweep: mask (64-bit words [ceil(size / 64)], padding bits 0) and, per block, the number of its values.
template <class U, class Workers>
std::vector<int64_t> flag_values(const Workers& workers, uint64_t* mask, const U* dense, int64_t size) {
    constexpr int WIDTH = 8 * sizeof(U);
    std::vector<int64_t> counts(blocks_of(size));
    for_blocks(workers, size, [&](int64_t begin, int64_t end, int) {
        uint64_t* words = mask + begin / 64;
        const int64_t n = (end - begin + 63) / 64;
        const int64_t full = (end - begin) / WIDTH;
        if ((end - begin) % 64 != 0) words[n - 1] = 0;
        flag_present(reinterpret_cast<U*>(words), dense + begin, full);
        for (int64_t i = begin + full * WIDTH; i < end; ++i) mask[i / 64] |= uint64_t(dense[i] != 0) << i % 64;
        counts[begin / BLOCK] = count_flags(words, n);
    });
    return counts;
}

// The elements whose flags are set, to `values`; returns behind the last.
template <class U>
U* take_values(U* values, uint64_t flags, const U* elements) {
    if (flags == ~uint64_t(0)) {
        std::memcpy(values, elements, 64 * sizeof(U));
        return values + 64;
    }
    for (; flags != 0; flags &= flags - 1) *values++ = elements[__builtin_ctzll(flags)];
    return values;
}

// Second sweep. starts: per block, the place of its first value.
template <class U, class Workers>
void gather_values(const Workers& workers, U* values, const uint64_t* mask, const std::vector<int64_t>& starts,
                   const U* dense, int64_t size) {
    for_blocks(workers, size, [&](int64_t begin, int64_t end, int) {
        U* to = values + starts[begin / BLOCK];
        for (int64_t i = begin; i < end; i += 64) {
            prefetch(dense + i + AHEAD<U>, 64);
            to = take_values(to, mask[i / 64], dense + i);
        }
    });
}

// The mask's flags in the bits [0, size), per block.
template <class Workers>
std::vector<int64_t> count_values(const Workers& workers, const uint64_t* mask, int64_t size) {
    std::vector<int64_t> counts(blocks_of(size));
    for_blocks(workers, size, [&](int64_t begin, int64_t end, int) {
        int64_t count = count_flags(mask + begin / 64, (end - begin) / 64);
        if (end % 64 != 0) count += __builtin_popcountll(mask[end / 64] & ~(~uint64_t(0) << end % 64));
        counts[begin / BLOCK] = count;
    });
    return counts;
}

// values to the elements whose flags are set; the others are left alone. Returns behind the last value.
template <class U>
const U* put_values(U* elements, uint64_t flags, const U* values) {
    if (flags == ~uint64_t(0)) {
        std::memcpy(elements, values, 64 * sizeof(U));
        return values + 64;
    }
    for (; flags != 0; flags &= flags - 1) elements[__builtin_ctzll(flags)] = *values++;
    return values;
}

// dense [size]: the values where the mask's flags are set, +0 elsewhere. Plain stores: new memory comes from the system
// just cleared, so that its lines are in the cache already.
template <class U, class Workers>
void scatter_values(const Workers& workers, U* dense, const uint64_t* mask, const std::vector<int64_t>& starts,
                    const U* values, int64_t size) {
    for_blocks(workers, size, [&](int64_t begin, int64_t end, int) {
        const U* next = values + starts[begin / BLOCK];
        for (int64_t i = begin; i < end; i += 64) {
            const int64_t n = std::min<int64_t>(64, end - i);
            std::fill_n(dense + i, n, U(0));
            next = put_values(dense + i, mask[i / 64] & ~uint64_t(0) >> (64 - n), next);
        }
    });
}

}  // namespace fastalter
