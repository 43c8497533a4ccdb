// bfloat16 and float16 as they are stored. Arithmetic never runs in them: parts are cast up in the L1 cache, and down
// once at the store. Plain integer arithmetic, so that every compiler vectorises it and every clone gives one result.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "sweep.h"

namespace fastalter {

struct Bfloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

// What the elements of a tensor of S are computed in.
template <class S>
using Wide = std::conditional_t<sizeof(S) == 2, float, S>;

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float up(Bfloat16 value) {
    return float_of(uint32_t(value.bits) << 16);
}

inline float up(Float16 value) {
    constexpr uint32_t EXPONENT = 0x7c00u << 13;
    const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
    const uint32_t exponent = magnitude & EXPONENT;
    const uint32_t normal = magnitude + ((127 - 15) << 23);
    const uint32_t infinite = normal + ((128 - 16) << 23);  // NaN too
    const uint32_t small = bits_of(float_of(magnitude + (113 << 23)) - float_of(113 << 23));
    const uint32_t found = exponent == EXPONENT ? infinite : exponent == 0 ? small : normal;
    return float_of(found | (value.bits & 0x8000u) << 16);
}

// To nearest, ties to even.
inline void down(Bfloat16& to, float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    to.bits = static_cast<uint16_t>(nan ? 0x7fc0 : rounded);
}

inline void down(Float16& to, float value) {
    constexpr uint32_t SMALL = ((127 - 15) + (23 - 10) + 1) << 23;  // adding it leaves a denormal's bits at the bottom
    const uint32_t bits = bits_of(value);
    const uint32_t sign = bits & 0x80000000u;
    const uint32_t magnitude = bits ^ sign;
    const uint32_t large = magnitude > 0x7f800000u ? 0x7e00 : 0x7c00;
    const uint32_t small = bits_of(float_of(magnitude) + float_of(SMALL)) - SMALL;
    const uint32_t normal = (magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    const uint32_t found = magnitude >= (143u << 23) ? large : magnitude < (113u << 23) ? small : normal;
    to.bits = static_cast<uint16_t>(found | sign >> 16);
}

template <class T, class S>
FASTALTER_SIMD void widen(T* FASTALTER_RESTRICT to, const S* FASTALTER_RESTRICT from, int64_t size) {
    for (int64_t i = 0; i < size; ++i) to[i] = up(from[i]);
}

template <class S>
FASTALTER_SIMD void narrow(S* FASTALTER_RESTRICT to, const float* FASTALTER_RESTRICT from, int64_t size) {
    for (int64_t i = 0; i < size; ++i) down(to[i], from[i]);
}

// The elements as T: where they lie if they are stored so, else cast up into `room`.
template <class S, class T>
const T* widened(const S* from, T* room, int64_t size) {
    if constexpr (std::is_same_v<S, T>) {
        return from;
    } else {
        widen(room, from, size);
        return room;
    }
}

// Writes a finished part past the cache, cast down if need be.
template <class S, class T>
void store(S* to, const T* part, int64_t size) {
    if constexpr (std::is_same_v<S, T>) {
        stream_out(to, part, size);
    } else {
        constexpr int64_t AT_ONCE = 512;
        alignas(64) S narrowed[AT_ONCE];
        for (int64_t i = 0; i < size; i += AT_ONCE) {
            const int64_t n = std::min(AT_ONCE, size - i);
            narrow(narrowed, part + i, n);
            stream_out(to + i, narrowed, n);
        }
    }
}

}  // namespace fastalter
