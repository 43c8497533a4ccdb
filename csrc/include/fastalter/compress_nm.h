// 2:4 compression (32-bit elements: 1:2) in the layout of CUTLASS, as torch's semi-structured tensors hold it. Moves
// bits. U is the unsigned integer as wide as the elements, uint16_t or uint32_t.
#pragma once

#include <cstdint>

#include "sweep.h"

namespace fastalter {

// The code of four elements by which of them are nonzero (bit j: element j): index of the first kept one, and of the
// second times four. Two nonzeros name themselves; of more or fewer, torch's own formulas decide.
constexpr uint8_t code_of(int nonzero) {
    const bool m0 = nonzero & 1, m1 = nonzero & 2, m3 = nonzero & 8;
    const int first = m0 ? 0 : m1 ? 1 : 2;
    const int second = m0 && m1 ? 1 : m0 || m1 ? 2 + m3 : 3;
    return static_cast<uint8_t>(first | second << 2);
}

struct Codes {
    uint8_t of[16];
    constexpr Codes() : of() {
        for (int nonzero = 0; nonzero < 16; ++nonzero) of[nonzero] = code_of(nonzero);
    }
};

// Whether a float with these bits is nonzero: all but the sign.
template <class U>
inline bool is_nonzero(U bits) {
    return U(bits << 1) != 0;
}

// One metadata word: the codes of four groups, and the kept elements of each to `values`.
inline uint16_t compress_word(uint16_t* values, const uint16_t* elements) {
    constexpr Codes CODES;
    uint32_t word = 0;
    for (int group = 0; group < 4; ++group) {
        const uint16_t* x = elements + 4 * group;
        const int nonzero = is_nonzero(x[0]) | is_nonzero(x[1]) << 1 | is_nonzero(x[2]) << 2 | is_nonzero(x[3]) << 3;
        const uint32_t code = CODES.of[nonzero];
        values[2 * group] = x[code & 3];
        values[2 * group + 1] = x[code >> 2];
        word |= code << 4 * group;
    }
    return static_cast<uint16_t>(word);
}

// Of two elements the first stays unless it is zero; each counts as two halves of a group of four.
inline uint16_t compress_word(uint32_t* values, const uint32_t* elements) {
    uint32_t word = 0;
    for (int group = 0; group < 4; ++group) {
        const bool first = is_nonzero(elements[2 * group]);
        values[group] = elements[2 * group + !first];
        word |= (first ? code_of(3) : code_of(12)) << 4 * group;
    }
    return static_cast<uint16_t>(word);
}

// dense [rows, columns], rows a multiple of 32. values [rows, columns / 2]; metadata as many words as rows times groups
// of four codes, in the order the tensor cores read: rows regrouped by 32, blocks of 2x2 swizzled, columns by pairs.
template <class U, class Workers>
void compress_nm(const Workers& workers, U* values, uint16_t* metadata, const U* dense, int64_t rows, int64_t columns) {
    constexpr int64_t PER_WORD = 32 / sizeof(U);
    constexpr int64_t ROWS = 32;  // that share cache lines of the metadata: one worker's
    const int64_t words = columns / PER_WORD;
    for_items(workers, rows / ROWS, [&](int64_t tile, int) {
        for (int64_t row = tile * ROWS; row < (tile + 1) * ROWS; ++row) {
            const int64_t regrouped = tile * ROWS + row % 8 * 4 + row % ROWS / 8;
            uint16_t* of_row = metadata + (regrouped / 2 * 4 + regrouped % 2);
            for (int64_t w = 0; w < words; ++w) {
                const int64_t at = row * words + w;
                of_row[w / 2 * 2 * rows + w % 2 * 2] =
                    compress_word(values + at * (PER_WORD / 2), dense + at * PER_WORD);
            }
        }
    });
}

}  // namespace fastalter
