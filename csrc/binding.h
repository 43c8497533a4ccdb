// What the bindings of both libraries share.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>

namespace fastalter {

// Throws what the wrappers show: the message alone, without the place in this code that STD_TORCH_CHECK puts before it.
template <class... Parts>
void require(bool holds, const Parts&... parts) {
    if (holds) return;
    std::ostringstream message;
    (message << ... << parts);
    throw std::runtime_error(message.str());
}

// Calls body with an unsigned integer as wide as the tensor's elements, for kernels that only move bits.
template <class Body>
void for_width(const torch::stable::Tensor& tensor, const Body& body) {
    switch (tensor.element_size()) {
        case 2:
            return body(uint16_t{});
        case 4:
            return body(uint32_t{});
        case 8:
            return body(uint64_t{});
        default:
            require(false, "fastalter: elements of ", tensor.element_size(), " bytes are not served");
    }
}

}  // namespace fastalter
