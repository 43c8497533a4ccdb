// Binds the CPU kernels on the products of masked_fuse; masked_fuse itself is fastalter/ops/cpu.py.
#include <tuple>

#include "cpu.h"
#include "fastalter/fuse_grad.h"
#include "fastalter/fuse_norm.h"
#include "fastalter/fuse_sums.h"

namespace fastalter::cpu {
namespace {

// Gradients come from autograd as they are: expanded, transposed.
Tensor dense(const Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
    return tensor ? std::optional(dense(*tensor)) : std::nullopt;
}

Planes planes_of(const Tensor& product) {
    const int64_t batch = product.size(0), channels = product.size(1);
    return {batch, channels, batch * channels == 0 ? 0 : product.numel() / (batch * channels)};
}

// One row per state, which the wrapper has made contiguous.
std::vector<const double*> rows_of(const std::vector<Tensor>& table) {
    require(table.size() == STATES, "masked_fuse_norm: ", table.size(), " rows for ", STATES, " mask states");
    return data_of_all<double>(table);
}

// What belongs to a second feature that is not there.
Tensor nothing(const Tensor& like, std::optional<ScalarType> dtype = std::nullopt) {
    return torch::stable::new_empty(like, {0}, dtype);
}

std::tuple<Tensor, Tensor, Tensor> sums(Tensor p_first, std::optional<Tensor> p_second) {
    const Tensor first = dense(p_first);
    const std::optional<Tensor> second = dense(p_second);
    const int64_t channels = first.size(1);
    const auto table = [&](bool used, torch::headeronly::IntHeaderOnlyArrayRef shape) {
        return used ? torch::stable::new_empty(first, shape, ScalarType::Double) : nothing(first, ScalarType::Double);
    };
    Tensor sums_first = table(true, {2, channels});
    Tensor sums_second = table(second.has_value(), {2, channels});
    Tensor sums_cross = table(second.has_value(), {channels});
    for_dtype(first, [&](auto zero) {
        using S = decltype(zero);
        masked_fuse_sums(TorchWorkers(first.numel()), mutable_data<double>(sums_first),
                         second ? mutable_data<double>(sums_second) : nullptr,
                         second ? mutable_data<double>(sums_cross) : nullptr, data<S>(first), data_or_null<S>(second),
                         planes_of(first));
    });
    return {sums_first, sums_second, sums_cross};
}

Tensor grad(std::optional<Tensor> grad, std::optional<Tensor> grad_sums, std::optional<Tensor> grad_cross, Tensor p,
            std::optional<Tensor> other) {
    const Tensor of_p = dense(p);
    const std::optional<Tensor> of_other = dense(other), given = dense(grad), given_sums = dense(grad_sums);
    const std::optional<Tensor> given_cross = of_other ? dense(grad_cross) : std::nullopt;
    Tensor out = new_result(of_p, of_p.sizes());
    for_dtype(of_p, [&](auto zero) {
        using S = decltype(zero);
        masked_fuse_grad(TorchWorkers(of_p.numel()), mutable_data<S>(out), data_or_null<S>(given),
                         data_or_null<double>(given_sums), data_or_null<double>(given_cross), data<S>(of_p),
                         data_or_null<S>(of_other), planes_of(of_p));
    });
    return out;
}

std::tuple<Tensor, Tensor, Tensor> norm(Tensor p_first, std::optional<Tensor> p_second, std::vector<Tensor> scale,
                                        std::vector<Tensor> shift, bool relu) {
    const Tensor first = dense(p_first);
    const std::optional<Tensor> second = dense(p_second);
    const std::vector<const double*> scales = rows_of(scale), shifts = rows_of(shift);
    Tensor outputs[STATES];
    for (int state = 0; state < STATES; ++state) {
        outputs[state] = second || state == FIRST ? new_result(first, first.sizes()) : nothing(first);
    }
    for_dtype(first, [&](auto zero) {
        using S = decltype(zero);
        S* to[STATES] = {};
        for (int state = 0; state < STATES; ++state) {
            if (second || state == FIRST) to[state] = mutable_data<S>(outputs[state]);
        }
        masked_fuse_norm(TorchWorkers(first.numel()), to, data<S>(first), data_or_null<S>(second), scales.data(),
                         shifts.data(), relu, planes_of(first));
    });
    return {outputs[BOTH], outputs[FIRST], outputs[SECOND]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_backward(std::optional<Tensor> grad_both,
                                                         std::optional<Tensor> grad_first,
                                                         std::optional<Tensor> grad_second, Tensor p_first,
                                                         std::optional<Tensor> p_second, std::vector<Tensor> scale,
                                                         std::vector<Tensor> shift, bool relu) {
    const Tensor first = dense(p_first);
    const std::optional<Tensor> second = dense(p_second);
    const std::vector<const double*> scales = rows_of(scale), shifts = rows_of(shift);
    std::optional<Tensor> given[STATES];
    given[FIRST] = dense(grad_first);
    if (second) given[BOTH] = dense(grad_both), given[SECOND] = dense(grad_second);
    const bool uses_first = given[BOTH] || given[FIRST], uses_second = given[BOTH] || given[SECOND];
    Tensor dp_first = uses_first ? new_result(first, first.sizes()) : nothing(first);
    Tensor dp_second = uses_second ? new_result(first, first.sizes()) : nothing(first);
    Tensor dscale = torch::stable::new_empty(first, {STATES, first.size(1)}, ScalarType::Double);
    Tensor dshift = torch::stable::new_empty(first, {STATES, first.size(1)}, ScalarType::Double);
    for_dtype(first, [&](auto zero) {
        using S = decltype(zero);
        const NormGradients<S> gradients{
            {data_or_null<S>(given[BOTH]), data_or_null<S>(given[FIRST]), data_or_null<S>(given[SECOND])},
            uses_first ? mutable_data<S>(dp_first) : nullptr,
            uses_second ? mutable_data<S>(dp_second) : nullptr,
            mutable_data<double>(dscale),
            mutable_data<double>(dshift)};
        NormBackward<S>(gradients, data<S>(first), data_or_null<S>(second), scales.data(), shifts.data(), relu,
                        planes_of(first))
            .run(TorchWorkers(first.numel()));
    });
    return {dp_first, dp_second, dscale, dshift};
}

}  // namespace
}  // namespace fastalter::cpu

STABLE_TORCH_LIBRARY_IMPL(fastalter, CPU, m) {
    m.impl("masked_fuse_sums", TORCH_BOX(&fastalter::cpu::sums));
    m.impl("masked_fuse_grad", TORCH_BOX(&fastalter::cpu::grad));
    m.impl("masked_fuse_norm", TORCH_BOX(&fastalter::cpu::norm));
    m.impl("masked_fuse_norm_backward", TORCH_BOX(&fastalter::cpu::norm_backward));
}
