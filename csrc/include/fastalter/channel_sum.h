// sum theta*grad over channel groups. A group's members are channels of weights: strided pieces of the arenas.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "low_precision.h"
#include "sweep.h"

namespace fastalter {

// The elements start + o*step + i for o < outer, i < inner.
struct Member {
    int64_t start, outer, step, inner;

    bool long_rows() const { return inner >= 256; }
    std::tuple<int64_t, int64_t, int64_t, int64_t> order() const { return {inner, outer, step, start}; }
    bool continues(const Member& before) const {
        return std::tuple(inner, outer, step, start) ==
               std::tuple(before.inner, before.outer, before.step, before.start + before.inner);
    }
};

// sum theta*grad of a row: products rounded to T, added up in float64 by LANES accumulators.
template <class T>
FASTALTER_SIMD double sum_product(const T* theta, const T* grad, int64_t size) {
    double lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        for (int lane = 0; lane < LANES; ++lane) lanes[lane] += theta[i + lane] * grad[i + lane];
    }
    for (; i < size; ++i) lanes[0] += theta[i] * grad[i];
    return sum_of_lanes(lanes);
}

template <class T>
FASTALTER_SIMD void add_products(double* FASTALTER_RESTRICT columns, const T* FASTALTER_RESTRICT theta,
                                 const T* FASTALTER_RESTRICT grad, int64_t size) {
    for (int64_t i = 0; i < size; ++i) columns[i] += theta[i] * grad[i];
}

// How a member is summed depends on its own shape only, so that the bits do not depend on how the work is shared out.
// Long rows are summed one by one. Members with short rows (input channels: `outer` rows of kh*kw elements) that lie
// side by side are summed together, column by column, so that each cache line is read once: a tile.
template <class S, class T>
class ChannelSums {
  public:
    ChannelSums(const S* theta, const T* grad, const Member* members, int64_t count)
        : theta_(theta), grad_(grad), members_(members), sums_(count), order_(count) {
        for (int64_t m = 0; m < count; ++m) order_[m] = m;
        std::sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) {
            return std::tuple(members[a].order(), a) < std::tuple(members[b].order(), b);
        });
        for (int64_t at = 0; at < count; ++at) {
            if (!extends_tile(at)) tiles_.push_back(at);
        }
        tiles_.push_back(count);
    }

    template <class Workers>
    void run(const Workers& workers) {
        deal_items(workers, tiles_.size() - 1, [&](int64_t t, int) { sum_tile(tiles_[t], tiles_[t + 1]); });
    }

    double of_member(int64_t member) const { return sums_[member]; }

  private:
    static constexpr int64_t WIDTH = 512;  // columns of a tile at the most; they live in the L1 cache

    const Member& at(int64_t place) const { return members_[order_[place]]; }

    bool extends_tile(int64_t place) const {
        if (tiles_.empty() || at(place).long_rows()) return false;
        const int64_t width = (place + 1 - tiles_.back()) * at(place).inner;
        return width <= WIDTH && at(place).continues(at(place - 1));
    }

    void sum_tile(int64_t first, int64_t last) {
        const Member& member = at(first);
        if (member.long_rows()) {
            sums_[order_[first]] = sum_rows(member);
        } else {
            sum_columns(member, first, last);
        }
    }

    double sum_rows(const Member& member) const {
        alignas(64) T room[BLOCK];
        double sum = 0;
        for (int64_t o = 0; o < member.outer; ++o) {
            const int64_t row = member.start + o * member.step;
            for (int64_t i = 0; i < member.inner; i += BLOCK) {
                const int64_t n = std::min(BLOCK, member.inner - i);
                sum += sum_product(widened(theta_ + row + i, room, n), grad_ + row + i, n);
            }
        }
        return sum;
    }

    void sum_columns(const Member& member, int64_t first, int64_t last) {
        alignas(64) double columns[WIDTH] = {};
        alignas(64) T room[WIDTH];
        const int64_t width = (last - first) * member.inner;
        for (int64_t o = 0; o < member.outer; ++o) {
            const int64_t row = member.start + o * member.step;
            add_products(columns, widened(theta_ + row, room, width), grad_ + row, width);
        }
        for (int64_t place = first; place < last; ++place) {
            const double* column = columns + (place - first) * member.inner;
            double sum = 0;
            for (int64_t i = 0; i < member.inner; ++i) sum += column[i];
            sums_[order_[place]] = sum;
        }
    }

    const S* theta_;
    const T* grad_;
    const Member* members_;
    std::vector<double> sums_;    // per member
    std::vector<int64_t> order_;  // members such that those of one tile are neighbours
    std::vector<int64_t> tiles_;  // first place in `order_` of every tile, and the end
};

// sums [groups]: group g has the members edges[g] to edges[g + 1] - 1.
template <class S, class T, class Workers>
void channel_sum(const Workers& workers, double* sums, const S* theta, const T* grad, const Member* members,
                 int64_t count, const int64_t* edges, int64_t groups) {
    ChannelSums<S, T> of(theta, grad, members, count);
    of.run(workers);
    for (int64_t g = 0; g < groups; ++g) {
        sums[g] = 0;
        for (int64_t m = edges[g]; m < edges[g + 1]; ++m) sums[g] += of.of_member(m);
    }
}

}  // namespace fastalter
