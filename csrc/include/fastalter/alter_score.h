// The AlterEva score of eq. 11-13 and the histogram of its keys, in one sweep.
#pragma once

#include <cmath>
#include <cstdint>

#include "key.h"
#include "low_precision.h"
#include "sweep.h"

namespace fastalter {

// d = weight * |theta * grad|
template <class T>
FASTALTER_SIMD void weigh_product(T* FASTALTER_RESTRICT d, T weight, const T* FASTALTER_RESTRICT theta,
                                  const T* FASTALTER_RESTRICT grad, int64_t size) {
    for (int64_t i = 0; i < size; ++i) d[i] = weight * std::fabs(theta[i] * grad[i]);
}

// r = r + weight * |theta * (start - end)|
template <class T>
FASTALTER_SIMD void add_change(T* FASTALTER_RESTRICT r, T weight, const T* FASTALTER_RESTRICT theta,
                               const T* FASTALTER_RESTRICT start, const T* FASTALTER_RESTRICT end, int64_t size) {
    for (int64_t i = 0; i < size; ++i) r[i] += weight * std::fabs(theta[i] * (start[i] - end[i]));
}

// score = alpha * d - beta * r
template <class T>
FASTALTER_SIMD void weigh_terms(T* FASTALTER_RESTRICT score, T alpha, const T* FASTALTER_RESTRICT d, T beta,
                                const T* FASTALTER_RESTRICT r, int64_t size) {
    for (int64_t i = 0; i < size; ++i) score[i] = alpha * d[i] - beta * r[i];
}

template <class T>
struct ScoreWeights {
    T alpha, beta, deci;
    const T* reri;  // [stages]
};

// score is overwritten; histogram [BINS] is added to; deci and reri, unless null, receive d and r. theta may have a
// lower precision than T.
template <class S, class T, class Workers>
void alter_score(const Workers& workers, T* score, int64_t* histogram, const S* theta, const T* grad,
                 const T* const* start, const T* const* end, int64_t stages, const ScoreWeights<T>& weights, T* deci,
                 T* reri, int64_t size) {
    constexpr int64_t PART = 512;  // elements; d, r and the score of a part live in the L1 cache
    Tally tally(workers.count);
    for_blocks(workers, size, [&](int64_t block, int64_t block_end, int worker) {
        alignas(64) T d[PART], r[PART], s[PART], room[PART];
        for (int64_t i = block; i < block_end; i += PART) {
            const int64_t n = std::min(PART, block_end - i);
            const T* weight = widened(theta + i, room, n);
            weigh_product(d, weights.deci, weight, grad + i, n);
            std::fill_n(r, n, T(0));
            for (int64_t k = 0; k < stages; ++k) add_change(r, weights.reri[k], weight, start[k] + i, end[k] + i, n);
            weigh_terms(s, weights.alpha, d, weights.beta, r, n);
            stream_out(score + i, s, n);
            if (deci) stream_out(deci + i, d, n);
            if (reri) stream_out(reri + i, r, n);
            // Counting leaves the memory idle: fetch the next part meanwhile.
            prefetch(theta + i + n, n);
            prefetch(grad + i + n, n);
            for (int64_t k = 0; k < stages; ++k) {
                prefetch(start[k] + i + n, n);
                prefetch(end[k] + i + n, n);
            }
            count_top_digits(tally, worker, s, n);
        }
        stream_end();
    });
    add_key_counts<T>(tally, histogram);
}

}  // namespace fastalter
