// scale*P + shift and its ReLU for all states of the mask, the products read once; and the way back.
#pragma once

#include "fuse.h"
#include "fuse_grad.h"

namespace fastalter {

template <class T>
FASTALTER_SIMD void add_parts(T* FASTALTER_RESTRICT sum, const T* FASTALTER_RESTRICT a, const T* FASTALTER_RESTRICT b,
                              int64_t size) {
    for (int64_t i = 0; i < size; ++i) sum[i] = a[i] + b[i];
}

// y = scale * p + shift
template <class T>
FASTALTER_SIMD void scale_and_shift(T* FASTALTER_RESTRICT y, T scale, T shift, const T* FASTALTER_RESTRICT p,
                                    int64_t size) {
    for (int64_t i = 0; i < size; ++i) y[i] = scale * p[i] + shift;
}

// The same with ReLU: NaN stays.
template <class T>
FASTALTER_SIMD void scale_and_rectify(T* FASTALTER_RESTRICT y, T scale, T shift, const T* FASTALTER_RESTRICT p,
                                      int64_t size) {
    for (int64_t i = 0; i < size; ++i) {
        const T value = scale * p[i] + shift;
        y[i] = value < 0 ? T(0) : value;
    }
}

// outputs[state], unless null, receives the state's result; scale[state], shift[state]: [channels]. Without p_second
// only the state "first" can be asked for.
template <class S, class Workers>
void masked_fuse_norm(const Workers& workers, S* const* outputs, const S* p_first, const S* p_second,
                      const double* const* scale, const double* const* shift, bool relu, const Planes& planes) {
    using T = Wide<S>;
    for_parts(workers, planes, [&](int64_t channel, int64_t at, int64_t n, int) {
        alignas(64) T both[FUSE_PART], room[2][FUSE_PART], y[FUSE_PART];
        const T* a = widened(p_first + at, room[0], n);
        const T* b = p_second ? widened(p_second + at, room[1], n) : nullptr;
        if (b) add_parts(both, a, b, n);
        const T* of_state[STATES] = {both, a, b};
        for (int state = 0; state < STATES; ++state) {
            if (outputs[state] == nullptr) continue;
            const T slope = T(scale[state][channel]), constant = T(shift[state][channel]);
            (relu ? scale_and_rectify<T> : scale_and_shift<T>)(y, slope, constant, of_state[state], n);
            store(outputs[state] + at, y, n);
        }
    });
}

// g = grad where the state's output before the ReLU is positive, else 0
template <class T>
FASTALTER_SIMD void pass_positive(T* FASTALTER_RESTRICT g, const T* FASTALTER_RESTRICT grad, T scale, T shift,
                                  const T* FASTALTER_RESTRICT p, int64_t size) {
    for (int64_t i = 0; i < size; ++i) g[i] = scale * p[i] + shift > 0 ? grad[i] : T(0);
}

template <class S>
struct NormGradients {
    const S* outputs[STATES];  // per state dL/d(output), or null
    S *first, *second;         // dL/dP; null where no state that has a gradient uses the product
    double *scale, *shift;     // [STATES, channels]
};

template <class S>
class NormBackward {
  public:
    using T = Wide<S>;
    struct Channel {
        T scale[STATES], shift[STATES];
        double product[STATES] = {}, plain[STATES] = {};  // sum g*p and sum g
    };

    NormBackward(const NormGradients<S>& gradients, const S* p_first, const S* p_second, const double* const* scale,
                 const double* const* shift, bool relu, const Planes& planes)
        : gradients_(gradients),
          products_{p_first, p_second},
          scale_(scale),
          shift_(shift),
          relu_(relu),
          planes_(planes) {}

    template <class Workers>
    void run(const Workers& workers) const {
        for_channels(
            workers, planes_, [&](int64_t channel) { return begin(channel); },
            [&](Channel& channel, int64_t at, int64_t n) { part(channel, at, n); },
            [&](int64_t channel, const Channel& done) { end(channel, done); });
    }

  private:
    Channel begin(int64_t channel) const {
        Channel found;
        for (int state = 0; state < STATES; ++state) {
            found.scale[state] = T(scale_[state][channel]);
            found.shift[state] = T(shift_[state][channel]);
        }
        return found;
    }

    void part(Channel& channel, int64_t at, int64_t n) const {
        alignas(64) T room[2][FUSE_PART], both[FUSE_PART], totals[2][FUSE_PART];
        const T* of_state[STATES] = {both, nullptr, nullptr};
        if (gradients_.first) of_state[FIRST] = widened(products_[0] + at, room[0], n);
        if (gradients_.second) of_state[SECOND] = widened(products_[1] + at, room[1], n);
        if (gradients_.outputs[BOTH]) add_parts(both, of_state[FIRST], of_state[SECOND], n);
        for (T* total : {totals[0], totals[1]}) std::fill_n(total, n, T(0));
        for (int state = 0; state < STATES; ++state) {
            if (gradients_.outputs[state] == nullptr) continue;
            add_state(channel, state, of_state[state], at, n, totals);
        }
        if (gradients_.first) store(gradients_.first + at, totals[0], n);
        if (gradients_.second) store(gradients_.second + at, totals[1], n);
    }

    void add_state(Channel& channel, int state, const T* p, int64_t at, int64_t n, T (*totals)[FUSE_PART]) const {
        alignas(64) T room[FUSE_PART], passed[FUSE_PART];
        const T scale = channel.scale[state];
        const T* g = widened(gradients_.outputs[state] + at, room, n);
        if (relu_) {
            pass_positive(passed, g, scale, channel.shift[state], p, n);
            g = passed;
        }
        channel.product[state] += wide_dot(g, p, n);
        channel.plain[state] += plain_sum(g, n);
        if (state != SECOND) add_scaled(totals[0], scale, g, n);
        if (state != FIRST) add_scaled(totals[1], scale, g, n);
    }

    void end(int64_t channel, const Channel& done) const {
        for (int state = 0; state < STATES; ++state) {
            gradients_.scale[state * planes_.channels + channel] = done.product[state];
            gradients_.shift[state * planes_.channels + channel] = done.plain[state];
        }
        stream_end();
    }

    NormGradients<S> gradients_;
    const S* products_[2];
    const double *const *scale_, *const *shift_;
    bool relu_;
    Planes planes_;
};

}  // namespace fastalter
