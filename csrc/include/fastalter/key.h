// Order-preserving keys of floats, and counts of their 16-bit digits.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "sweep.h"

namespace fastalter {

// The unsigned integer as wide as T. It serves as T's key and, elsewhere, as a word of one flag per bit: an operation
// on W = width<T> floats then yields one word, and lanes of floats and flags have the same width.
template <class T>
using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

template <class T>
constexpr int width = 8 * sizeof(T);

template <class T>
constexpr Word<T> SIGN = Word<T>(1) << (width<T> - 1);

// -0 becomes +0 and a signalling NaN a quiet one; every other value keeps its bits.
template <class T>
inline Word<T> canonical_bits(T value) {
    value += T(0);
    Word<T> bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Keys compare as unsigned integers exactly as the floats do: flip the sign bit, or all bits of a negative number.
template <class T>
inline Word<T> key_of(T value) {
    const Word<T> bits = canonical_bits(value);
    return bits & SIGN<T> ? ~bits : bits | SIGN<T>;
}

template <class T>
inline T value_of(Word<T> key) {
    const Word<T> bits = key & SIGN<T> ? key ^ SIGN<T> : ~key;
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

constexpr int DIGIT_BITS = 16;
constexpr int64_t BINS = int64_t(1) << DIGIT_BITS;
constexpr int64_t NAN_BIN = BINS - 1;  // the histogram's bin for NaN; no number's key starts with this digit

template <class T>
constexpr int DIGITS = width<T> / DIGIT_BITS;

// Digit 0 is the most significant.
template <class T>
inline uint16_t digit_of(Word<T> bits, int digit) {
    return static_cast<uint16_t>(bits >> (width<T> - DIGIT_BITS * (digit + 1)));
}

// Private counts of one digit per worker. Neighbours often share a digit, and an increment waits for the store of one
// to the same bin just before it: so neighbours go to COPIES tables in turn.
class Tally {
  public:
    static constexpr int COPIES = 2;

    explicit Tally(int workers) : tables_(workers * COPIES), counts_(tables_ * BINS) {}

    // Table `copy` of the worker, [BINS].
    uint32_t* table(int worker, int64_t copy) { return counts_.data() + (worker * COPIES + copy) * BINS; }

    // Integer sums: the same whoever counted what.
    int64_t total(int64_t digit) const {
        int64_t sum = 0;
        for (int64_t table = 0; table < tables_; ++table) sum += counts_[table * BINS + digit];
        return sum;
    }

  private:
    int64_t tables_;
    std::vector<uint32_t> counts_;  // [workers, COPIES, BINS]; arenas of 2^32 elements and more are refused
};

template <class T>
FASTALTER_SIMD void all_canonical_bits(Word<T>* FASTALTER_RESTRICT bits, const T* FASTALTER_RESTRICT values,
                                       int64_t size) {
    for (int64_t i = 0; i < size; ++i) bits[i] = canonical_bits(values[i]);
}

// Counts the top digit of `size` values, at most BLOCK. Counting the digit of the float's own bits leaves one vector
// add per value; `add_key_counts` maps those bins to the keys' afterwards.
template <class T>
void count_top_digits(Tally& tally, int worker, const T* values, int64_t size) {
    Word<T> bits[BLOCK];
    all_canonical_bits(bits, values, size);
    uint32_t* tables[Tally::COPIES];
    for (int copy = 0; copy < Tally::COPIES; ++copy) tables[copy] = tally.table(worker, copy);
    int64_t i = 0;
    for (; i + Tally::COPIES <= size; i += Tally::COPIES) {
        for (int copy = 0; copy < Tally::COPIES; ++copy) ++tables[copy][digit_of<T>(bits[i + copy], 0)];
    }
    for (; i < size; ++i) ++tables[0][digit_of<T>(bits[i], 0)];
}

// Adds what `count_top_digits` counted to a histogram [BINS] of the top digit of the keys.
template <class T>
void add_key_counts(const Tally& tally, int64_t* histogram) {
    const int64_t sign = BINS / 2;
    const int64_t infinity = digit_of<T>(canonical_bits(std::numeric_limits<T>::infinity()), 0);
    for (int64_t magnitude = 0; magnitude < sign; ++magnitude) {
        const int64_t positive = tally.total(magnitude);
        const int64_t negative = tally.total(sign + magnitude);
        // A quiet NaN's top digit is above infinity's.
        histogram[magnitude > infinity ? NAN_BIN : sign + magnitude] += positive;
        histogram[magnitude > infinity ? NAN_BIN : sign - 1 - magnitude] += negative;
    }
}

}  // namespace fastalter
