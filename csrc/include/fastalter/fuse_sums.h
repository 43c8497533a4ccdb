// Five sums a channel, from which batch norm's statistics follow for every state of the mask: in float64, in an order
// that does not depend on the number of threads.
#pragma once

#include "fuse.h"

namespace fastalter {

// sums_first, sums_second: [2, channels], sum P and sum P^2; sums_cross: [channels], sum P_first*P_second. Where there
// is no second product, the sums it goes into are null too; those of the first have the same bits.
template <class S, class Workers>
void masked_fuse_sums(const Workers& workers, double* sums_first, double* sums_second, double* sums_cross,
                      const S* p_first, const S* p_second, const Planes& planes) {
    struct Sums {
        double first[2] = {}, second[2] = {}, cross = 0;
    };
    for_channels(
        workers, planes, [](int64_t) { return Sums(); },
        [&](Sums& sums, int64_t at, int64_t n) {
            alignas(64) Wide<S> room[2][FUSE_PART];
            const Wide<S>* a = widened(p_first + at, room[0], n);
            sums.first[0] += plain_sum(a, n);
            sums.first[1] += wide_dot(a, a, n);
            if (sums_second == nullptr) return;
            const Wide<S>* b = widened(p_second + at, room[1], n);
            sums.second[0] += plain_sum(b, n);
            sums.second[1] += wide_dot(b, b, n);
            sums.cross += wide_dot(a, b, n);
        },
        [&](int64_t channel, const Sums& sums) {
            for (int power = 0; power < 2; ++power) {
                sums_first[power * planes.channels + channel] = sums.first[power];
                if (sums_second) sums_second[power * planes.channels + channel] = sums.second[power];
            }
            if (sums_cross) sums_cross[channel] = sums.cross;
        });
}

}  // namespace fastalter
