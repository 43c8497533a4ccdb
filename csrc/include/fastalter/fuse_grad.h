// dL/dP of one product of masked_fuse: what came for P itself and what came for the sums it went into, in one sweep.
#pragma once

#include "fuse.h"

namespace fastalter {

// total = total + constant + slope * p
template <class T>
FASTALTER_SIMD void add_line(T* FASTALTER_RESTRICT total, T constant, T slope, const T* FASTALTER_RESTRICT p,
                             int64_t size) {
    for (int64_t i = 0; i < size; ++i) total[i] = total[i] + constant + p[i] * slope;
}

// total = total + slope * p
template <class T>
FASTALTER_SIMD void add_scaled(T* FASTALTER_RESTRICT total, T slope, const T* FASTALTER_RESTRICT p, int64_t size) {
    for (int64_t i = 0; i < size; ++i) total[i] += p[i] * slope;
}

// grad (like p), grad_sums [2, channels], grad_cross [channels] and the other product may be null and count as zero.
template <class S, class Workers>
void masked_fuse_grad(const Workers& workers, S* out, const S* grad, const double* grad_sums, const double* grad_cross,
                      const S* p, const S* other, const Planes& planes) {
    using T = Wide<S>;
    for_parts(workers, planes, [&](int64_t channel, int64_t at, int64_t n, int) {
        alignas(64) T total[FUSE_PART], room[FUSE_PART];
        if (grad) {
            std::copy_n(widened(grad + at, room, n), n, total);
        } else {
            std::fill_n(total, n, T(0));
        }
        if (grad_sums) {
            const T constant = T(grad_sums[channel]), slope = T(2 * grad_sums[planes.channels + channel]);
            add_line(total, constant, slope, widened(p + at, room, n), n);
        }
        if (grad_cross && other) add_scaled(total, T(grad_cross[channel]), widened(other + at, room, n), n);
        store(out + at, total, n);
    });
}

}  // namespace fastalter
