// Scores to a bit-packed mask (least significant bit first), and the number kept in each segment.
#pragma once

#include <cstdint>

#include "key.h"
#include "kth_value.h"
#include "sweep.h"

namespace fastalter {

template <class T>
FASTALTER_SIMD void flag_greater(Word<T>* FASTALTER_RESTRICT flags, const T* FASTALTER_RESTRICT score, T threshold,
                                 int64_t n) {
    for (int64_t w = 0; w < n; ++w) {
        Word<T> word = 0;
        prefetch(score + w * width<T> + AHEAD<T>, width<T>);
        for (int j = 0; j < width<T>; ++j) word |= Word<T>(score[w * width<T> + j] > threshold) << j;
        flags[w] = word;
    }
}

template <class T>
FASTALTER_SIMD void flag_greater_equal(Word<T>* FASTALTER_RESTRICT flags, const T* FASTALTER_RESTRICT score,
                                       T threshold, int64_t n) {
    for (int64_t w = 0; w < n; ++w) {
        Word<T> word = 0;
        prefetch(score + w * width<T> + AHEAD<T>, width<T>);
        for (int j = 0; j < width<T>; ++j) word |= Word<T>(score[w * width<T> + j] >= threshold) << j;
        flags[w] = word;
    }
}

FASTALTER_SIMD inline int64_t count_range(const uint64_t* mask, int64_t begin, int64_t end) {
    int64_t count = 0;
    while (begin < end) {
        const int64_t first = begin % 64;
        const int64_t bits = std::min<int64_t>(64 - first, end - begin);
        const uint64_t wanted = ~uint64_t(0) >> (64 - bits) << first;
        count += __builtin_popcountll(mask[begin / 64] & wanted);
        begin += bits;
    }
    return count;
}

// mask: 64-bit words [ceil(size / 64)]. Element i stays iff score > threshold, or == and i <= cut. Padding bits are 0.
template <class T, class Workers>
void make_mask(const Workers& workers, uint64_t* mask, const T* score, T threshold, int64_t cut, int64_t size) {
    Word<T>* words = reinterpret_cast<Word<T>*>(mask);
    if (size > 0) mask[(size - 1) / 64] = 0;  // the padding
    for_blocks(workers, size, [&](int64_t begin, int64_t end, int) {
        // Ties stay up to the cut and go after it; only in the block that holds the cut do both happen.
        const bool mixed = begin <= cut && cut < end;
        const int64_t full = mixed ? 0 : (end - begin) / width<T>;
        (end <= cut ? flag_greater_equal<T> : flag_greater<T>)(words + begin / width<T>, score + begin, threshold,
                                                               full);
        std::fill(words + begin / width<T> + full, words + (end + width<T> - 1) / width<T>, Word<T>(0));
        for (int64_t i = begin + full * width<T>; i < end; ++i) {
            const bool stays = score[i] > threshold || (score[i] == threshold && i <= cut);
            words[i / width<T>] |= Word<T>(stays) << (i % width<T>);
        }
    });
}

// kept [segments]: set bits between edges[k] and edges[k + 1].
template <class Workers>
void count_kept(const Workers& workers, int64_t* kept, const uint64_t* mask, const int64_t* edges, int64_t segments) {
    for_items(workers, segments, [&](int64_t k, int) { kept[k] = count_range(mask, edges[k], edges[k + 1]); });
}

}  // namespace fastalter
