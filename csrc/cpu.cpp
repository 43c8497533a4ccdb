// Binds the CPU kernels on arenas to torch's dispatcher through its stable ABI: one library for every torch from 2.10
// on and every Python. The wrappers of fastalter/ops have checked shapes, dtypes and devices.
#include <limits>
#include <tuple>

#include "cpu.h"
#include "fastalter/alter_score.h"
#include "fastalter/apply_mask.h"
#include "fastalter/channel_sum.h"
#include "fastalter/indicator_sums.h"
#include "fastalter/kth_value.h"
#include "fastalter/make_mask.h"

namespace fastalter::cpu {
namespace {

// Calls body with a T of the gradients' dtype and an S of theta's, which may have a lower precision.
template <class Body>
void for_dtypes(const Tensor& grad, const Tensor& theta, const Body& body) {
    for_arena_dtype(grad, [&](auto t) {
        if (theta.scalar_type() == ScalarType::BFloat16) return body(t, Bfloat16{});
        if (theta.scalar_type() == ScalarType::Half) return body(t, Float16{});
        require(theta.scalar_type() == grad.scalar_type(), "fastalter: theta and its gradients differ in dtype");
        body(t, t);
    });
}

Tensor indicator_sums(Tensor theta, Tensor grad, std::vector<Tensor> start, std::vector<Tensor> end) {
    const int64_t stages = start.size();
    Tensor sums = torch::stable::new_empty(theta, {1 + stages}, ScalarType::Double);
    for_dtypes(grad, theta, [&](auto t, auto s) {
        using T = decltype(t);
        fastalter::indicator_sums(TorchWorkers(theta.numel()), mutable_data<double>(sums), data<decltype(s)>(theta),
                                  data<T>(grad), data_of_all<T>(start).data(), data_of_all<T>(end).data(), stages,
                                  theta.numel());
    });
    return sums;
}

void check_countable(const Tensor& score) {
    require(score.numel() <= std::numeric_limits<uint32_t>::max(), "fastalter: 2^32 or more scores in one call");
}

void alter_score(Tensor score, Tensor histogram, Tensor theta, Tensor grad, std::vector<Tensor> start,
                 std::vector<Tensor> end, double alpha, double beta, double deci_weight,
                 std::vector<double> reri_weights, std::optional<Tensor> deci, std::optional<Tensor> reri) {
    check_countable(score);
    for_dtypes(grad, theta, [&](auto t, auto s) {
        using T = decltype(t);
        const std::vector<T> of_stage(reri_weights.begin(), reri_weights.end());
        const ScoreWeights<T> weights{T(alpha), T(beta), T(deci_weight), of_stage.data()};
        fastalter::alter_score(TorchWorkers(theta.numel()), mutable_data<T>(score), mutable_data<int64_t>(histogram),
                               data<decltype(s)>(theta), data<T>(grad), data_of_all<T>(start).data(),
                               data_of_all<T>(end).data(), start.size(), weights, mutable_data_or_null<T>(deci),
                               mutable_data_or_null<T>(reri), theta.numel());
    });
}

std::tuple<Tensor, Tensor> kth_value(Tensor score, int64_t keep, std::optional<Tensor> histogram) {
    check_countable(score);
    Tensor threshold = torch::stable::new_empty(score, {});
    Tensor cut = torch::stable::new_empty(score, {}, ScalarType::Long);
    for_arena_dtype(score, [&](auto zero) {
        using T = decltype(zero);
        const int64_t size = score.numel();
        const TorchWorkers workers(size);
        std::vector<int64_t> counted;
        if (!histogram) {
            counted.resize(BINS);
            key_histogram(workers, counted.data(), data<T>(score), size);
        }
        const int64_t* counts = histogram ? data<int64_t>(*histogram) : counted.data();
        require(counts[NAN_BIN] == 0, "kth_value: the scores hold NaN, which has no rank");
        int64_t total = 0;
        for (int64_t bin = 0; bin < BINS; ++bin) total += counts[bin];
        require(total == size, "kth_value: the histogram counts ", total, " scores, but there are ", size);
        T value = std::numeric_limits<T>::infinity();
        int64_t index = -1;
        if (keep > 0) {
            KthSelect<T> select(data<T>(score), size);
            select.run(workers, counts, keep);
            value = select.threshold;
            index = select.cut;
        }
        *mutable_data<T>(threshold) = value;
        *mutable_data<int64_t>(cut) = index;
    });
    return {threshold, cut};
}

std::tuple<Tensor, Tensor> make_mask(Tensor score, Tensor threshold, Tensor cut, Tensor segments) {
    const int64_t size = score.numel();
    const TorchWorkers workers(size);
    Tensor mask = torch::stable::new_empty(score, {(size + 63) / 64 * 8}, ScalarType::Byte);
    Tensor kept = torch::stable::new_empty(segments, {segments.numel() - 1});
    uint64_t* words = mutable_data<uint64_t>(mask);
    for_arena_dtype(score, [&](auto zero) {
        using T = decltype(zero);
        fastalter::make_mask(workers, words, data<T>(score), *data<T>(threshold), *data<int64_t>(cut), size);
    });
    count_kept(workers, mutable_data<int64_t>(kept), words, data<int64_t>(segments), kept.numel());
    return {mask, kept};
}

void apply_mask(std::vector<Tensor> theta, Tensor mask, std::vector<int64_t> offsets) {
    const uint8_t* bits = data<uint8_t>(mask);
    for (size_t t = 0; t < theta.size(); ++t) {
        const Tensor& weight = theta[t];
        const int64_t size = weight.numel();
        if (size == 0) continue;
        const TorchWorkers workers(size);
        for_width(weight, [&](auto zero) {
            auto* elements = mutable_data<decltype(zero)>(weight);
            if (weight.is_contiguous()) {
                for_blocks(workers, size, [&](int64_t begin, int64_t end, int) {
                    fastalter::apply_mask(elements + begin, bits, offsets[t] + begin, end - begin);
                });
            } else {
                const int64_t dims = weight.dim();
                for_items(workers, size / weight.size(dims - 1), [&](int64_t row, int) {
                    fastalter::apply_mask_to_row(elements, weight.sizes().data(), weight.strides().data(), dims, row,
                                                 bits, offsets[t]);
                });
            }
        });
    }
}

Tensor channel_sum(Tensor theta, Tensor grad, Tensor members, Tensor groups) {
    Tensor sums = torch::stable::new_empty(theta, {groups.size(0) - 1}, ScalarType::Double);
    for_dtypes(grad, theta, [&](auto t, auto s) {
        fastalter::channel_sum(TorchWorkers(theta.numel()), mutable_data<double>(sums), data<decltype(s)>(theta),
                               data<decltype(t)>(grad), reinterpret_cast<const Member*>(data<int64_t>(members)),
                               members.size(0), data<int64_t>(groups), sums.numel());
    });
    return sums;
}

}  // namespace
}  // namespace fastalter::cpu

STABLE_TORCH_LIBRARY_IMPL(fastalter, CPU, m) {
    namespace cpu = fastalter::cpu;
    m.impl("indicator_sums", TORCH_BOX(&cpu::indicator_sums));
    m.impl("alter_score", TORCH_BOX(&cpu::alter_score));
    m.impl("kth_value", TORCH_BOX(&cpu::kth_value));
    m.impl("make_mask", TORCH_BOX(&cpu::make_mask));
    m.impl("apply_mask", TORCH_BOX(&cpu::apply_mask));
    m.impl("channel_sum", TORCH_BOX(&cpu::channel_sum));
}
