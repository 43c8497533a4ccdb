// What the kernels on the two products P_first and P_second of masked_fuse share. Products are [batch, channels, size],
// size being height times width. States of the mask: both features, the first only, the second only.
#pragma once

#include <algorithm>
#include <cstdint>

#include "low_precision.h"
#include "sweep.h"

namespace fastalter {

enum State { BOTH, FIRST, SECOND };
constexpr int STATES = 3;
constexpr int64_t FUSE_PART = 512;  // elements; the parts that a loop works on live in the L1 cache

struct Planes {
    int64_t batch, channels, size;

    int64_t offset(int64_t b, int64_t channel) const { return (b * channels + channel) * size; }
};

// Calls body(channel, offset, n, worker) for every part of every plane.
template <class Workers, class Body>
void for_parts(const Workers& workers, const Planes& planes, const Body& body) {
    const int64_t blocks = blocks_of(planes.size);
    for_items(workers, planes.batch * planes.channels * blocks, [&](int64_t item, int worker) {
        const int64_t plane = item / blocks;
        const int64_t begin = item % blocks * BLOCK;
        const int64_t end = std::min(planes.size, begin + BLOCK);
        for (int64_t i = begin; i < end; i += FUSE_PART) {
            body(plane % planes.channels, plane * planes.size + i, std::min(FUSE_PART, end - i), worker);
        }
        stream_end();
    });
}

// Calls body(channel, offset, n) for every part of every channel; a channel belongs to one worker, its parts in order.
template <class Workers, class Start, class Body, class End>
void for_channels(const Workers& workers, const Planes& planes, const Start& start, const Body& body, const End& end) {
    for_items(workers, planes.channels, [&](int64_t channel, int) {
        auto state = start(channel);
        for (int64_t b = 0; b < planes.batch; ++b) {
            const int64_t offset = planes.offset(b, channel);
            for (int64_t i = 0; i < planes.size; i += FUSE_PART) {
                body(state, offset + i, std::min(FUSE_PART, planes.size - i));
            }
        }
        end(channel, state);
    });
}

// Sums of a part in float64.
template <class T>
FASTALTER_SIMD double plain_sum(const T* a, int64_t size) {
    double lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] += a[i + lane];
    }
    for (; i < size; ++i) lanes[0] += a[i];
    return sum_of_lanes(lanes);
}

// sum a*b, the products in float64 too.
template <class T>
FASTALTER_SIMD double wide_dot(const T* a, const T* b, int64_t size) {
    double lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] += double(a[i + lane]) * double(b[i + lane]);
    }
    for (; i < size; ++i) lanes[0] += double(a[i]) * double(b[i]);
    return sum_of_lanes(lanes);
}

}  // namespace fastalter
