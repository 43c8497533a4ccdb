// The k-th largest score, exactly, without sorting or copying the arena: a radix select by 16-bit digits of the keys.
//
// The histogram of the top digit says in which bin the threshold lies. One sweep marks the elements of that bin in a
// bitmap (1/32 of a float32 arena) and counts their next digit on the way. Every further digit looks at marked elements
// only and unmarks those that differ. After the last digit the marks are exactly the elements equal to the threshold,
// so the tie rule is a walk over the bitmap.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "key.h"
#include "sweep.h"

namespace fastalter {

// The numbers whose key starts with one digit, as an interval. Comparing floats is cheaper than making keys.
template <class T>
struct Bin {
    explicit Bin(uint16_t digit) {
        constexpr T INF = std::numeric_limits<T>::infinity();
        constexpr Word<T> LAST_NEGATIVE = SIGN<T> - 2;  // SIGN - 1 would be -0, which counts as +0
        const Word<T> first = Word<T>(digit) << (width<T> - DIGIT_BITS);
        const Word<T> last = first | (~Word<T>(0) >> DIGIT_BITS);
        low = value_of<T>(std::max(first, key_of(-INF)));
        high = value_of<T>(last == SIGN<T> - 1 ? LAST_NEGATIVE : std::min(last, key_of(INF)));
    }

    bool holds(T value) const { return (value >= low) & (value <= high); }

    T low, high;
};

// One flag per element, set if the bin holds it; n full words.
template <class T>
FASTALTER_SIMD void mark_bin(Word<T>* FASTALTER_RESTRICT marks, const T* FASTALTER_RESTRICT score, Bin<T> bin,
                             int64_t n) {
    for (int64_t w = 0; w < n; ++w) {
        Word<T> word = 0;
        prefetch(score + w * width<T> + AHEAD<T>, width<T>);
        for (int j = 0; j < width<T>; ++j) word |= Word<T>(bin.holds(score[w * width<T> + j])) << j;
        marks[w] = word;
    }
}

template <class T>
class KthSelect {
  public:
    KthSelect(const T* score, int64_t size) : score_(score), size_(size), marks_(new uint64_t[(size + 63) / 64]) {
        marks_[(size - 1) / 64] = 0;  // its unused bits must be 0; all else is written before it is read
    }

    // Needs size > 0. rank counts from the top, 1 <= rank <= size. histogram [BINS] holds the counts of the top digit.
    template <class Workers>
    void run(const Workers& workers, const int64_t* histogram, int64_t rank) {
        uint16_t digit = descend(histogram, rank);
        Word<T> key = digit;
        for (int next = 1; next < DIGITS<T>; ++next) {
            Tally tally(workers.count);
            for_blocks(workers, size_, [&](int64_t begin, int64_t end, int worker) {
                if (next == 1) {
                    mark(begin, end, Bin<T>(digit));
                } else {
                    unmark(begin, end, next - 1, digit);
                }
                count(begin, end, next, worker, tally);
            });
            std::vector<int64_t> counts(BINS);
            for (int64_t bin = 0; bin < BINS; ++bin) counts[bin] = tally.total(bin);
            digit = descend(counts.data(), rank);
            key = key << DIGIT_BITS | digit;
        }
        threshold = value_of<T>(key);

        std::vector<int64_t> ties(blocks_of(size_));
        for_blocks(workers, size_, [&](int64_t begin, int64_t end, int) {
            ties[begin / BLOCK] = unmark(begin, end, DIGITS<T> - 1, digit);
        });
        int64_t block = 0;
        while (rank > ties[block]) rank -= ties[block++];
        cut = find(block * BLOCK, std::min(size_, (block + 1) * BLOCK), rank);
    }

    T threshold;  // the rank-th largest score
    int64_t cut;  // index of the last element equal to it that is among the `rank` largest, ties lowest index first

  private:
    // Finds the bin that holds the rank-th element from the top; rank becomes the rank inside that bin.
    static uint16_t descend(const int64_t* counts, int64_t& rank) {
        int64_t bin = BINS - 1;
        while (rank > counts[bin]) rank -= counts[bin--];
        return static_cast<uint16_t>(bin);
    }

    void mark(int64_t begin, int64_t end, Bin<T> bin) {
        Word<T>* marks = reinterpret_cast<Word<T>*>(marks_.get()) + begin / width<T>;
        const int64_t full = (end - begin) / width<T>;
        mark_bin(marks, score_ + begin, bin, full);
        for (int64_t i = begin + full * width<T>; i < end; ++i) {
            marks_[i / 64] |= uint64_t(bin.holds(score_[i])) << i % 64;
        }
    }

    uint16_t digit_at(int64_t i, int which) const { return digit_of<T>(key_of(score_[i]), which); }

    // Unmarks the elements of the block with another digit; returns how many are left.
    int64_t unmark(int64_t begin, int64_t end, int which, uint16_t digit) {
        int64_t left = 0;
        for (int64_t w = begin / 64; w * 64 < end; ++w) {
            uint64_t stays = 0;
            for (uint64_t rest = marks_[w]; rest != 0; rest &= rest - 1) {
                const int bit = __builtin_ctzll(rest);
                const bool same = digit_at(w * 64 + bit, which) == digit;
                stays |= uint64_t(same) << bit;
                left += same;
            }
            marks_[w] = stays;
        }
        return left;
    }

    void count(int64_t begin, int64_t end, int which, int worker, Tally& tally) const {
        uint32_t* const tables[Tally::COPIES] = {tally.table(worker, 0), tally.table(worker, 1)};
        for (int64_t w = begin / 64; w * 64 < end; ++w) {
            for (uint64_t rest = marks_[w]; rest != 0; rest &= rest - 1) {
                const int bit = __builtin_ctzll(rest);
                ++tables[bit % Tally::COPIES][digit_at(w * 64 + bit, which)];
            }
        }
    }

    // Index of the rank-th marked element of the block, counted from 1.
    int64_t find(int64_t begin, int64_t end, int64_t rank) const {
        for (int64_t i = begin; i < end; ++i) {
            rank -= marks_[i / 64] >> i % 64 & 1;
            if (rank == 0) return i;
        }
        return -1;
    }

    const T* score_;
    int64_t size_;
    std::unique_ptr<uint64_t[]> marks_;  // bit i % 64 of word i / 64 belongs to element i; little-endian, as the mask
};

// Adds the counts of the keys' top digit to histogram [BINS].
template <class T, class Workers>
void key_histogram(const Workers& workers, int64_t* histogram, const T* score, int64_t size) {
    Tally tally(workers.count);
    for_blocks(workers, size, [&](int64_t begin, int64_t end, int worker) {
        count_top_digits(tally, worker, score + begin, end - begin);
    });
    add_key_counts<T>(tally, histogram);
}

}  // namespace fastalter
