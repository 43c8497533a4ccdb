// sum |theta*grad| and, per reactivation stage s, sum |theta*(start_s - end_s)|: the normalisers of eq. 11-13.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "low_precision.h"
#include "sweep.h"

namespace fastalter {

// Products are rounded to T, as they are where the score uses them, and added up in float64.
template <class T>
FASTALTER_SIMD double sum_abs_product(const T* theta, const T* grad, int64_t size) {
    double lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] += std::fabs(theta[i + lane] * grad[i + lane]);
    }
    for (; i < size; ++i) lanes[0] += std::fabs(theta[i] * grad[i]);
    return sum_of_lanes(lanes);
}

template <class T>
FASTALTER_SIMD double sum_abs_change(const T* theta, const T* start, const T* end, int64_t size) {
    double lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) {
            lanes[lane] += std::fabs(theta[i + lane] * (start[i + lane] - end[i + lane]));
        }
    }
    for (; i < size; ++i) lanes[0] += std::fabs(theta[i] * (start[i] - end[i]));
    return sum_of_lanes(lanes);
}

// sums: float64 [1 + stages]. start, end: one arena per stage. theta may have a lower precision than T.
template <class S, class T, class Workers>
void indicator_sums(const Workers& workers, double* sums, const S* theta, const T* grad, const T* const* start,
                    const T* const* end, int64_t stages, int64_t size) {
    const int64_t blocks = blocks_of(size);
    std::vector<double> partial((1 + stages) * blocks);
    for_blocks(workers, size, [&](int64_t i, int64_t stop, int) {
        alignas(64) T room[BLOCK];
        const T* weight = widened(theta + i, room, stop - i);
        double* of_block = partial.data() + i / BLOCK;
        of_block[0] = sum_abs_product(weight, grad + i, stop - i);
        for (int64_t s = 0; s < stages; ++s) {
            of_block[(1 + s) * blocks] = sum_abs_change(weight, start[s] + i, end[s] + i, stop - i);
        }
    });
    for (int64_t row = 0; row <= stages; ++row) {
        sums[row] = 0;
        for (int64_t block = 0; block < blocks; ++block) sums[row] += partial[row * blocks + block];
    }
}

}  // namespace fastalter
