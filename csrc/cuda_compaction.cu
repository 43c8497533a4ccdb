// Binds the CUDA kernels of compaction to torch's dispatcher, and launches them.
#include <tuple>

#include "cuda.h"
#include "fastalter/compact_channels.cuh"
#include "fastalter/compress_nm.cuh"
#include "fastalter/pack_sparse.cuh"

namespace fastalter::cuda {
namespace {

// ---- compact_channels: a table of tasks ----------------------------------------------------------------------------

// A gathered dim of a weight and what is kept of it.
struct Gather {
    int64_t dim;
    const int64_t* kept;
    int64_t count;
};

// The weight as [A, X, B, Y, C]: its sizes multiplied up to, between and behind the gathered dims. With one gathered
// dim Y is 1, with none all but C.
CompactTask shape_of(const Tensor& weight, const std::vector<Gather>& gathers) {
    int64_t between = 1, behind = 1;
    for (int64_t dim = 0; dim < weight.dim(); ++dim) {
        const bool gathered = std::any_of(gathers.begin(), gathers.end(), [&](auto& g) { return g.dim == dim; });
        if (gathered || (!gathers.empty() && dim < gathers.front().dim)) continue;
        (gathers.size() == 2 && dim < gathers.back().dim ? between : behind) *= weight.size(dim);
    }
    CompactTask task{};
    task.x = task.y = 1;
    task.to_x = task.to_y = divisor_of(1);
    task.b = divisor_of(between);
    task.c = divisor_of(behind);
    if (gathers.size() >= 1) {
        task.x = weight.size(gathers[0].dim);
        task.to_x = divisor_of(gathers[0].count);
        task.kept_x = gathers[0].kept;
    }
    if (gathers.size() == 2) {
        task.y = weight.size(gathers[1].dim);
        task.to_y = divisor_of(gathers[1].count);
        task.kept_y = gathers[1].kept;
    }
    return task;
}

std::vector<Gather> gathers_of(const Tensor* kept, const int64_t* dims) {
    std::vector<Gather> gathers;
    for (int g = 0; g < 2; ++g) {
        if (dims[g] >= 0) gathers.push_back({dims[g], data<int64_t>(kept[g]), kept[g].numel()});
    }
    std::sort(gathers.begin(), gathers.end(), [](auto& one, auto& other) { return one.dim < other.dim; });
    return gathers;
}

Tensor empty_target(const Tensor& weight, const std::vector<Gather>& gathers) {
    std::vector<int64_t> shape(weight.sizes().begin(), weight.sizes().end());
    for (const Gather& gather : gathers) shape[gather.dim] = gather.count;
    return torch::stable::new_empty(weight, shape);
}

// In the widest units that divide the runs and at which the source is aligned.
CompactTask task_of(const Tensor& weight, const Tensor& target, const std::vector<Gather>& gathers) {
    CompactTask task = shape_of(weight, gathers);
    task.source = weight.const_data_ptr();
    task.target = target.mutable_data_ptr();
    const int64_t element = weight.element_size();
    const int64_t run = task.c.by * element;
    task.width = 16;
    while (run % task.width != 0 || reinterpret_cast<uintptr_t>(task.source) % task.width != 0) task.width /= 2;
    task.c = divisor_of(run / task.width);
    task.units = target.numel() * element / task.width;
    return task;
}

std::vector<Tensor> compact_channels(std::vector<Tensor> weights, std::vector<Tensor> kept, std::vector<int64_t> dims) {
    std::vector<Tensor> targets;
    std::vector<CompactTask> tasks;
    std::vector<int64_t> first_tiles;
    int64_t tiles = 0;
    for (size_t t = 0; t < weights.size(); ++t) {
        const std::vector<Gather> gathers = gathers_of(&kept[2 * t], &dims[2 * t]);
        targets.push_back(empty_target(weights[t], gathers));
        if (targets[t].numel() == 0) continue;
        tasks.push_back(task_of(weights[t], targets[t], gathers));
        first_tiles.push_back(tiles);
        tiles += ceil_div(tasks.back().units * tasks.back().width, TILE_BYTES<THREADS>);
    }
    if (tiles == 0) return targets;

    const Gpu gpu(weights[0]);
    const int64_t count = tasks.size(), words = sizeof(CompactTask) / sizeof(int64_t);
    const Tensor table = torch::stable::new_empty(weights[0], {count * (words + 1)}, ScalarType::Long);
    int64_t* const of_tiles = mutable_data<int64_t>(table) + count * words;
    gpu.copy(table.mutable_data_ptr(), tasks.data(), count * sizeof(CompactTask), cudaMemcpyHostToDevice);
    gpu.copy(of_tiles, first_tiles.data(), count * sizeof(int64_t), cudaMemcpyHostToDevice);
    gpu.launch(compact_channels_kernel<>, tiles, HALF_OF_SM, data<CompactTask>(table), of_tiles, count, tiles);
    return targets;
}

// ---- pack_sparse, unpack_sparse: one pass with look-back -----------------------------------------------------------

// The zeroed words that the blocks coordinate through: tickets, then a status per tile.
class LookBack {
  public:
    LookBack(const Tensor& like, int64_t tiles)
        : tiles(tiles), words(torch::stable::new_zeros(like, {1 + tiles}, ScalarType::Long)) {}

    Word* tickets() const { return mutable_data<Word>(words); }
    Word* status() const { return tickets() + 1; }
    int64_t total(const Gpu& gpu) const {
        return tiles == 0 ? 0 : static_cast<int64_t>(gpu.read(status() + tiles - 1) >> 2);
    }

    const int64_t tiles;

  private:
    Tensor words;
};

// The kernel needs room for as many values as there are elements, for nobody knows their number before it has run; then
// they move to a tensor of their own size. Of a tensor with a share d of nonzeros that costs 1 + 3d of its size in
// traffic; counting in a pass of its own costs 2 + d, more for every d under a half.
template <class T>
Tensor launch_pack_sparse(const Gpu& gpu, const Tensor& dense, const Tensor& mask) {
    const int64_t size = dense.numel();
    const LookBack look_back(dense, ceil_div(size, SparseTile<T, THREADS>::SIZE));
    const Tensor room = torch::stable::new_empty(dense, {size});
    gpu.launch(pack_sparse_kernel<T>, look_back.tiles, HALF_OF_SM, data<T>(dense), size, mutable_data<uint8_t>(mask),
               mutable_data<T>(room), look_back.tickets(), look_back.status(), look_back.tiles);
    const int64_t count = look_back.total(gpu);
    const Tensor values = torch::stable::new_empty(dense, {count});
    gpu.copy(values.mutable_data_ptr(), room.const_data_ptr(), count * sizeof(T), cudaMemcpyDeviceToDevice);
    return values;
}

std::tuple<Tensor, Tensor> pack_sparse(Tensor dense) {
    const Gpu gpu(dense);
    dense = aligned(dense);
    const Tensor mask = torch::stable::new_empty(dense, {ceil_div(dense.numel(), 64) * 8}, ScalarType::Byte);
    Tensor values;
    for_width(dense, [&](auto bits) { values = launch_pack_sparse<decltype(bits)>(gpu, dense, mask); });
    return {mask, values};
}

template <class T>
int64_t launch_unpack_sparse(const Gpu& gpu, const Tensor& mask, const Tensor& values, const Tensor& dense) {
    const int64_t size = dense.numel();
    const LookBack look_back(mask, ceil_div(size, SparseTile<T, THREADS>::SIZE));
    gpu.launch(unpack_sparse_kernel<T>, look_back.tiles, HALF_OF_SM, data<uint8_t>(mask), data<T>(values),
               values.numel(), mutable_data<T>(dense), size, look_back.tickets(), look_back.status(), look_back.tiles);
    return look_back.total(gpu);
}

Tensor unpack_sparse(Tensor mask, Tensor values, int64_t size) {
    const Gpu gpu(mask);
    const Tensor dense = torch::stable::new_empty(values, {size});
    int64_t bits_set = 0;
    for_width(values, [&](auto bits) { bits_set = launch_unpack_sparse<decltype(bits)>(gpu, mask, values, dense); });
    require(bits_set == values.numel(), "unpack_sparse: the mask has ", bits_set, " bits set, but there are ",
            values.numel(), " values");
    return dense;
}

// ---- compress_nm ---------------------------------------------------------------------------------------------------

template <class T>
void launch_compress_nm(const Gpu& gpu, const Tensor& dense, const Tensor& values, const Tensor& metadata) {
    const int64_t blocks = ceil_div(dense.numel() * sizeof(T), 256 * THREADS);  // a thread takes 256 bytes
    gpu.launch(compress_nm_kernel<T>, blocks, HALF_OF_SM, data<T>(dense), mutable_data<T>(values),
               mutable_data<uint16_t>(metadata), dense.size(0), dense.size(1));
}

std::tuple<Tensor, Tensor> compress_nm(Tensor dense) {
    const Gpu gpu(dense);
    dense = aligned(dense);
    const int64_t rows = dense.size(0), columns = dense.size(1), of_word = 32 / dense.element_size();
    const Tensor values = torch::stable::new_empty(dense, {rows, columns / 2});
    const Tensor metadata = torch::stable::new_empty(dense, {rows, columns / of_word}, ScalarType::Short);
    const bool pairs = dense.element_size() == 4;
    (pairs ? launch_compress_nm<uint32_t> : launch_compress_nm<uint16_t>)(gpu, dense, values, metadata);
    return {values, metadata};
}

}  // namespace
}  // namespace fastalter::cuda

STABLE_TORCH_LIBRARY_IMPL(fastalter, CUDA, m) {
    m.impl("compact_channels", TORCH_BOX(&fastalter::cuda::compact_channels));
    m.impl("pack_sparse", TORCH_BOX(&fastalter::cuda::pack_sparse));
    m.impl("unpack_sparse", TORCH_BOX(&fastalter::cuda::unpack_sparse));
    m.impl("compress_nm", TORCH_BOX(&fastalter::cuda::compress_nm));
}
