// Binds the CPU kernels that make weights physically smaller.
#include <functional>
#include <numeric>
#include <tuple>
#include <utility>

#include "cpu.h"
#include "fastalter/compact_channels.h"
#include "fastalter/compress_nm.h"
#include "fastalter/pack_sparse.h"

namespace fastalter::cpu {
namespace {

// The kept indices of one dimension.
struct Axis {
    int64_t dim;  // -1: none
    const Tensor* kept;
};

int64_t product(const std::vector<int64_t>& shape, int64_t begin, int64_t end) {
    return std::accumulate(shape.begin() + begin, shape.begin() + end, int64_t(1), std::multiplies<>());
}

void check_range(int64_t t, const Axis& axis, int64_t size) {
    const int64_t* kept = data<int64_t>(*axis.kept);
    bool inside = true;
    for (int64_t i = 0; i < axis.kept->numel(); ++i) inside &= uint64_t(kept[i]) < uint64_t(size);
    require(inside, "compact_channels: kept[", t, "][", axis.dim, "] holds an index outside 0..", size - 1);
}

// A single axis with long rows behind it is one of rows, else one of columns.
Selection select(const Tensor& weight, const std::vector<int64_t>& shape, Axis rows, Axis columns) {
    const int64_t dims = shape.size(), element = weight.element_size();
    if (columns.dim < 0 && rows.dim >= 0 && product(shape, rows.dim + 1, dims) * element < 64) std::swap(rows, columns);
    Selection found{};
    found.from = static_cast<const char*>(weight.const_data_ptr());
    found.element = element;
    const int64_t row = rows.dim, column = columns.dim;
    found.before = row < 0 ? 1 : product(shape, 0, row);
    found.rows = found.count_rows = row < 0 ? 1 : shape[row];
    found.between = column < 0 ? 1 : product(shape, row + 1, column);
    found.columns = found.count_columns = column < 0 ? product(shape, row + 1, dims) : shape[column];
    found.after = column < 0 ? 1 : product(shape, column + 1, dims);
    if (row >= 0) {
        found.kept_rows = data<int64_t>(*rows.kept);
        found.count_rows = rows.kept->numel();
    }
    if (column >= 0) {
        found.kept_columns = data<int64_t>(*columns.kept);
        found.count_columns = columns.kept->numel();
    }
    return found;
}

std::vector<Tensor> compact(std::vector<Tensor> weights, std::vector<Tensor> kept, std::vector<int64_t> dims) {
    std::vector<Tensor> compacted;
    std::vector<Selection> selections;
    int64_t size = 0;
    for (size_t t = 0; t < weights.size(); ++t) {
        Axis rows{dims[2 * t], &kept[2 * t]}, columns{dims[2 * t + 1], &kept[2 * t + 1]};
        if (rows.dim < 0 || (columns.dim >= 0 && columns.dim < rows.dim)) std::swap(rows, columns);
        require(rows.dim != columns.dim || rows.dim < 0, "compact_channels: dim ", rows.dim, " is given twice");
        if (!weights[t].is_contiguous()) weights[t] = torch::stable::contiguous(weights[t]);
        std::vector<int64_t> shape(weights[t].sizes().begin(), weights[t].sizes().end());
        selections.push_back(select(weights[t], shape, rows, columns));
        for (const Axis& axis : {rows, columns}) {
            if (axis.dim < 0) continue;
            check_range(t, axis, shape[axis.dim]);
            shape[axis.dim] = axis.kept->numel();
        }
        compacted.push_back(new_result(weights[t], shape));
        selections.back().to = mutable_data<char>(compacted.back());
        size += compacted.back().numel();
    }
    compact_channels(TorchWorkers(size), selections);
    return compacted;
}

std::tuple<Tensor, Tensor> pack(Tensor dense) {
    const int64_t size = dense.numel();
    const TorchWorkers workers(size);
    Tensor mask = torch::stable::new_empty(dense, {(size + 63) / 64 * 8}, ScalarType::Byte);
    std::optional<Tensor> values;
    for_width(dense, [&](auto zero) {
        using U = decltype(zero);
        uint64_t* flags = mutable_data<uint64_t>(mask);
        std::vector<int64_t> starts = flag_values(workers, flags, data<U>(dense), size);
        values = new_result(dense, {starts_of(starts)});
        gather_values(workers, mutable_data<U>(*values), flags, starts, data<U>(dense), size);
    });
    return {mask, *values};
}

Tensor unpack(Tensor mask, Tensor values, int64_t size) {
    const TorchWorkers workers(size);
    const bool aligned = reinterpret_cast<uintptr_t>(mask.const_data_ptr()) % sizeof(uint64_t) == 0;
    const Tensor words = aligned ? mask : torch::stable::clone(mask);  // a mask may be a slice of bytes
    const uint64_t* flags = data<uint64_t>(words);
    std::vector<int64_t> starts = count_values(workers, flags, size);
    const int64_t bits = starts_of(starts);
    require(bits == values.numel(), "unpack_sparse: the mask has ", bits, " bits set, but there are ", values.numel(),
            " values");
    Tensor dense = new_result(values, {size});
    for_width(values, [&](auto zero) {
        using U = decltype(zero);
        scatter_values(workers, mutable_data<U>(dense), flags, starts, data<U>(values), size);
    });
    return dense;
}

std::tuple<Tensor, Tensor> compress(Tensor dense) {
    const int64_t rows = dense.size(0), columns = dense.size(1);
    Tensor values = new_result(dense, {rows, columns / 2});
    const int64_t words = columns / (dense.element_size() == 4 ? 8 : 16);
    Tensor metadata = torch::stable::new_empty(dense, {rows, words}, ScalarType::Short);
    const auto run = [&](auto zero) {
        using U = decltype(zero);
        compress_nm(TorchWorkers(dense.numel()), mutable_data<U>(values), mutable_data<uint16_t>(metadata),
                    data<U>(dense), rows, columns);
    };
    if (dense.element_size() == 4) {
        run(uint32_t{});
    } else {
        run(uint16_t{});
    }
    return {values, metadata};
}

}  // namespace
}  // namespace fastalter::cpu

STABLE_TORCH_LIBRARY_IMPL(fastalter, CPU, m) {
    namespace cpu = fastalter::cpu;
    m.impl("compact_channels", TORCH_BOX(&cpu::compact));
    m.impl("pack_sparse", TORCH_BOX(&cpu::pack));
    m.impl("unpack_sparse", TORCH_BOX(&cpu::unpack));
    m.impl("compress_nm", TORCH_BOX(&cpu::compress));
}
