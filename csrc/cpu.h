// What the bindings of the CPU library share: torch's thread pool, data pointers and the choice of element type.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "binding.h"
#include "fastalter/low_precision.h"
#include "fastalter/sweep.h"

namespace fastalter::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// torch's own pool, so that torch.set_num_threads holds here too. Small arenas are not worth waking it.
class TorchWorkers {
  public:
    explicit TorchWorkers(int64_t size) : count(size < 16 * BLOCK ? 1 : torch::stable::get_num_threads()) {}

    template <class Body>
    void run(const Body& body) const {
        torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
            for (int64_t worker = begin; worker < end; ++worker) body(static_cast<int>(worker));
        });
    }

    const int count;
};

// The dtypes that torch knows by their C++ type, which it then checks; the others are types of our own.
template <class T>
constexpr bool KNOWN = std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, int64_t>;

template <class T>
const T* data(const Tensor& tensor) {
    if constexpr (KNOWN<T>) {
        return tensor.const_data_ptr<T>();
    } else {
        return static_cast<const T*>(tensor.const_data_ptr());
    }
}

template <class T>
T* mutable_data(const Tensor& tensor) {
    if constexpr (KNOWN<T>) {
        return tensor.mutable_data_ptr<T>();
    } else {
        return static_cast<T*>(tensor.mutable_data_ptr());
    }
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
    return tensor ? data<T>(*tensor) : nullptr;
}

template <class T>
T* mutable_data_or_null(const std::optional<Tensor>& tensor) {
    return tensor ? mutable_data<T>(*tensor) : nullptr;
}

template <class T>
std::vector<const T*> data_of_all(const std::vector<Tensor>& tensors) {
    std::vector<const T*> pointers;
    for (const Tensor& tensor : tensors) pointers.push_back(data<T>(tensor));
    return pointers;
}

// A new tensor for results. malloc often takes what is this large anew from the system, and the first touch of each
// page costs more than the write itself: pages of 2 MB, where the system grants them, are a fraction of the number.
inline Tensor new_result(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                         std::optional<ScalarType> dtype = std::nullopt) {
    Tensor result = torch::stable::new_empty(like, shape, dtype);
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(result.const_data_ptr());
    const uintptr_t end = begin + result.numel() * result.element_size();
    const uintptr_t first = (begin + PAGE - 1) / PAGE * PAGE, last = end / PAGE * PAGE;
    if (end - begin >= 4 * PAGE && first < last) {
        madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: no harm if it is not taken
    }
#endif
    return result;
}

// Calls body with a T of the tensor's dtype.
template <class Body>
void for_arena_dtype(const Tensor& tensor, const Body& body) {
    const ScalarType dtype = tensor.scalar_type();
    if (dtype == ScalarType::Float) return body(float{});
    require(dtype == ScalarType::Double, "fastalter: arenas must be float32 or float64");
    body(double{});
}

template <class Body>
void for_dtype(const Tensor& tensor, const Body& body) {
    const ScalarType dtype = tensor.scalar_type();
    if (dtype == ScalarType::BFloat16) return body(Bfloat16{});
    if (dtype == ScalarType::Half) return body(Float16{});
    for_arena_dtype(tensor, body);
}

// Elements of a single byte too.
template <class Body>
void for_width(const Tensor& tensor, const Body& body) {
    if (tensor.element_size() == 1) return body(uint8_t{});
    fastalter::for_width(tensor, body);
}

}  // namespace fastalter::cpu
