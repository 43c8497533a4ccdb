// Binds the CPU kernels to torch's dispatcher through its stable ABI: one library for every torch from 2.10 on and
// every Python. The wrappers of fastalter/ops have checked shapes, dtypes and devices.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "fastalter/alter_score.h"
#include "fastalter/apply_mask.h"
#include "fastalter/indicator_sums.h"
#include "fastalter/kth_value.h"
#include "fastalter/make_mask.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// torch's own pool, so that torch.set_num_threads holds here too. Small arenas are not worth waking it.
class TorchWorkers {
  public:
    explicit TorchWorkers(int64_t size) : count(size < 16 * fastalter::BLOCK ? 1 : torch::stable::get_num_threads()) {}

    template <class Body>
    void run(const Body& body) const {
        torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
            for (int64_t worker = begin; worker < end; ++worker) body(static_cast<int>(worker));
        });
    }

    const int count;
};

// Calls body with a T of the tensor's dtype.
template <class Body>
void for_dtype(const Tensor& tensor, const Body& body) {
    const ScalarType dtype = tensor.scalar_type();
    if (dtype == ScalarType::Float) return body(float{});
    STD_TORCH_CHECK(dtype == ScalarType::Double, "fastalter: arenas must be float32 or float64");
    body(double{});
}

template <class T>
const T* data(const Tensor& tensor) {
    return tensor.const_data_ptr<T>();
}

template <class T>
T* data_or_null(const std::optional<Tensor>& tensor) {
    return tensor ? tensor->mutable_data_ptr<T>() : nullptr;
}

template <class T>
std::vector<const T*> data_of_all(const std::vector<Tensor>& tensors) {
    std::vector<const T*> pointers;
    for (const Tensor& tensor : tensors) pointers.push_back(data<T>(tensor));
    return pointers;
}

Tensor indicator_sums(Tensor theta, Tensor grad, std::vector<Tensor> start, std::vector<Tensor> end) {
    const int64_t stages = start.size();
    Tensor sums = torch::stable::new_empty(theta, {1 + stages}, ScalarType::Double);
    for_dtype(theta, [&](auto zero) {
        using T = decltype(zero);
        fastalter::indicator_sums(TorchWorkers(theta.numel()), sums.mutable_data_ptr<double>(), data<T>(theta),
                                  data<T>(grad), data_of_all<T>(start).data(), data_of_all<T>(end).data(), stages,
                                  theta.numel());
    });
    return sums;
}

void check_countable(const Tensor& score) {
    STD_TORCH_CHECK(score.numel() <= std::numeric_limits<uint32_t>::max(),
                    "fastalter: 2^32 or more scores in one call");
}

void alter_score(Tensor score, Tensor histogram, Tensor theta, Tensor grad, std::vector<Tensor> start,
                 std::vector<Tensor> end, double alpha, double beta, double deci_weight,
                 std::vector<double> reri_weights, std::optional<Tensor> deci, std::optional<Tensor> reri) {
    check_countable(score);
    for_dtype(theta, [&](auto zero) {
        using T = decltype(zero);
        const std::vector<T> of_stage(reri_weights.begin(), reri_weights.end());
        const fastalter::ScoreWeights<T> weights{T(alpha), T(beta), T(deci_weight), of_stage.data()};
        fastalter::alter_score(TorchWorkers(theta.numel()), score.mutable_data_ptr<T>(),
                               histogram.mutable_data_ptr<int64_t>(), data<T>(theta), data<T>(grad),
                               data_of_all<T>(start).data(), data_of_all<T>(end).data(), start.size(), weights,
                               data_or_null<T>(deci), data_or_null<T>(reri), theta.numel());
    });
}

std::tuple<Tensor, Tensor> kth_value(Tensor score, int64_t keep, std::optional<Tensor> histogram) {
    check_countable(score);
    Tensor threshold = torch::stable::new_empty(score, {});
    Tensor cut = torch::stable::new_empty(score, {}, ScalarType::Long);
    for_dtype(score, [&](auto zero) {
        using T = decltype(zero);
        const int64_t size = score.numel();
        const TorchWorkers workers(size);
        std::vector<int64_t> counted;
        if (!histogram) {
            counted.resize(fastalter::BINS);
            fastalter::key_histogram(workers, counted.data(), data<T>(score), size);
        }
        const int64_t* counts = histogram ? data<int64_t>(*histogram) : counted.data();
        STD_TORCH_CHECK(counts[fastalter::NAN_BIN] == 0, "kth_value: the scores hold NaN, which has no rank");
        int64_t total = 0;
        for (int64_t bin = 0; bin < fastalter::BINS; ++bin) total += counts[bin];
        STD_TORCH_CHECK(total == size, "kth_value: the histogram counts ", total, " scores, but there are ", size);
        T value = std::numeric_limits<T>::infinity();
        int64_t index = -1;
        if (keep > 0) {
            fastalter::KthSelect<T> select(data<T>(score), size);
            select.run(workers, counts, keep);
            value = select.threshold;
            index = select.cut;
        }
        *threshold.mutable_data_ptr<T>() = value;
        *cut.mutable_data_ptr<int64_t>() = index;
    });
    return {threshold, cut};
}

std::tuple<Tensor, Tensor> make_mask(Tensor score, Tensor threshold, Tensor cut, Tensor segments) {
    const int64_t size = score.numel();
    const TorchWorkers workers(size);
    Tensor mask = torch::stable::new_empty(score, {(size + 63) / 64 * 8}, ScalarType::Byte);
    Tensor kept = torch::stable::new_empty(segments, {segments.numel() - 1});
    uint64_t* words = static_cast<uint64_t*>(mask.mutable_data_ptr());
    for_dtype(score, [&](auto zero) {
        using T = decltype(zero);
        fastalter::make_mask(workers, words, data<T>(score), *data<T>(threshold), *data<int64_t>(cut), size);
    });
    fastalter::count_kept(workers, kept.mutable_data_ptr<int64_t>(), words, data<int64_t>(segments), kept.numel());
    return {mask, kept};
}

void apply_mask(std::vector<Tensor> theta, Tensor mask, std::vector<int64_t> offsets) {
    const uint8_t* bits = data<uint8_t>(mask);
    for (size_t t = 0; t < theta.size(); ++t) {
        const Tensor& weight = theta[t];
        const int64_t size = weight.numel();
        if (size == 0) continue;
        const TorchWorkers workers(size);
        for_dtype(weight, [&](auto zero) {
            using T = decltype(zero);
            T* elements = weight.mutable_data_ptr<T>();
            if (weight.is_contiguous()) {
                fastalter::for_blocks(workers, size, [&](int64_t begin, int64_t end, int) {
                    fastalter::apply_mask(elements + begin, bits, offsets[t] + begin, end - begin);
                });
            } else {
                const int64_t dims = weight.dim();
                fastalter::for_items(workers, size / weight.size(dims - 1), [&](int64_t row, int) {
                    fastalter::apply_mask_to_row(elements, weight.sizes().data(), weight.strides().data(), dims, row,
                                                 bits, offsets[t]);
                });
            }
        });
    }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastalter, CPU, m) {
    m.impl("indicator_sums", TORCH_BOX(&indicator_sums));
    m.impl("alter_score", TORCH_BOX(&alter_score));
    m.impl("kth_value", TORCH_BOX(&kth_value));
    m.impl("make_mask", TORCH_BOX(&make_mask));
    m.impl("apply_mask", TORCH_BOX(&apply_mask));
}
