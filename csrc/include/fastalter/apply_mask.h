// Zero what the mask drops, in place.
#pragma once

#include <cstdint>
#include <cstring>

#include "sweep.h"

namespace fastalter {

// 32 flags from any bit position; touches only bytes that hold some of them.
inline uint32_t load_flags(const uint8_t* mask, int64_t bit) {
    uint32_t flags;
    std::memcpy(&flags, mask + bit / 8, sizeof flags);
    const int shift = bit % 8;
    return shift == 0 ? flags : flags >> shift | uint32_t(mask[bit / 8 + 4]) << (32 - shift);
}

inline bool flag_at(const uint8_t* mask, int64_t bit) {
    return mask[bit / 8] >> (bit % 8) & 1;
}

// theta[i] becomes +0 where bit `bit + i` is 0.
template <class T>
FASTALTER_SIMD void apply_mask(T* theta, const uint8_t* mask, int64_t bit, int64_t size) {
    int64_t i = 0;
    for (; i + 32 <= size; i += 32) {
        const uint32_t flags = load_flags(mask, bit + i);
        for (int j = 0; j < 32; ++j) theta[i + j] = flags >> j & 1 ? theta[i + j] : T(0);
    }
    for (; i < size; ++i) theta[i] = flag_at(mask, bit + i) ? theta[i] : T(0);
}

// The same for one row (the last dimension) of a tensor of any strides; rows count in row-major order.
template <class T>
void apply_mask_to_row(T* theta, const int64_t* shape, const int64_t* strides, int64_t dims, int64_t row,
                       const uint8_t* mask, int64_t bit) {
    const int64_t length = shape[dims - 1];
    bit += row * length;
    for (int64_t dim = dims - 2; dim >= 0; --dim) {
        theta += row % shape[dim] * strides[dim];
        row /= shape[dim];
    }
    for (int64_t i = 0; i < length; ++i) {
        T& element = theta[i * strides[dims - 1]];
        element = flag_at(mask, bit + i) ? element : T(0);
    }
}

}  // namespace fastalter
