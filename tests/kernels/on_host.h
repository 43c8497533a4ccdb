// What the programs that run kernels on the host share: buffers that end exactly where the data does, so that a
// sanitizer sees one step too far, and random bits.
#ifndef FASTALTER_ON_HOST_H
#define FASTALTER_ON_HOST_H

#include "cuda_on_host.h"
//
#include <algorithm>
#include <cstring>
#include <random>

// `size` elements, `offset` elements behind an address that is a multiple of 16; filled with a pattern.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t size, int64_t offset = 0) : offset(offset), memory(new T[offset + size]) {
        std::memset(static_cast<void*>(memory.get()), 0xcd, (offset + size) * sizeof(T));
    }
    T* data() const { return memory.get() + offset; }
    T& operator[](int64_t i) const { return memory[offset + i]; }

  private:
    int64_t offset;
    std::unique_ptr<T[]> memory;
};

// Zero, a zero of negative sign, a NaN or a number, with a given share of what is not all zero bits.
template <class T>
T random_element(std::mt19937_64& random, double density) {
    if (std::uniform_real_distribution<>(0, 1)(random) >= density) return 0;
    const T sign = T(1) << (8 * sizeof(T) - 1);
    switch (random() % 4) {
        case 0:
            return sign;
        case 1:
            return T(~T(0));
        default:
            return T(T(random()) | 1);
    }
}

#define CHECK(condition, ...)         \
    do {                              \
        if (!(condition)) {           \
            std::printf("wrong: ");   \
            std::printf(__VA_ARGS__); \
            std::printf("\n");        \
            std::exit(1);             \
        }                             \
    } while (0)

#endif
