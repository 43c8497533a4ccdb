// apply_mask.cuh on the host, against a bit-by-bit loop: every alignment of theta, every bit offset, sizes around the
// packs. Buffers end exactly where the data does, so that a sanitizer sees one step too far. Exit status 1: wrong
// result.
#include "cuda_on_host.h"
//
#include <cstdio>
#include <memory>
#include <random>

#include "fastalter/apply_mask.cuh"

constexpr int GRID = 2;
constexpr int BLOCK = 3;  // fewer threads than packs: the strides over the grid are walked too

template <class T>
bool matches(const T* theta, const std::vector<T>& before, const uint8_t* mask, int64_t bit,
             const std::vector<int64_t>& place) {
    for (size_t i = 0; i < before.size(); ++i) {
        const bool kept = mask[(bit + i) / 8] >> ((bit + i) % 8) & 1;
        if (theta[place[i]] != (kept ? before[place[i]] : T(0))) return false;
    }
    return true;
}

template <class T>
bool run(int64_t size, int64_t offset, int64_t bit, bool transposed, std::mt19937& random) {
    // theta starts `offset` elements behind an address that new aligns to 16, and fills its buffer to the last byte.
    std::unique_ptr<T[]> buffer(new T[offset + size]);
    T* theta = buffer.get() + offset;
    std::vector<T> before(size);
    for (int64_t i = 0; i < size; ++i) theta[i] = before[i] = T(1 + random() % 1000);
    std::unique_ptr<uint8_t[]> mask(new uint8_t[(bit + size + 7) / 8]);
    for (int64_t i = 0; i < (bit + size + 7) / 8; ++i) mask[i] = static_cast<uint8_t>(random());

    std::vector<int64_t> place(size);  // where the element of row-major index i lies
    if (transposed) {
        const int64_t rows = 3, columns = size / 3;
        const fastalter::Geometry geometry{2, {rows, columns}, {1, rows}};
        for (int64_t i = 0; i < size; ++i) place[i] = i / columns + i % columns * rows;
        launch(GRID, BLOCK, fastalter::apply_mask_strided_kernel<T>, theta, geometry, mask.get(), bit, size);
    } else {
        for (int64_t i = 0; i < size; ++i) place[i] = i;
        launch(GRID, BLOCK, fastalter::apply_mask_kernel<T>, theta, mask.get(), bit, size);
    }
    return matches(theta, before, mask.get(), bit, place);
}

template <class T>
bool run_all(const char* name) {
    std::mt19937 random(0);
    for (const int64_t size : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 66}) {
        for (int64_t offset = 0; offset < 4; ++offset) {
            for (const int64_t bit : {0, 1, 4, 5, 6, 7, 8, 63, 65}) {
                for (const bool transposed : {false, true}) {
                    if (transposed && size % 3 != 0) continue;
                    if (run<T>(size, offset, bit, transposed, random)) continue;
                    std::printf("%s: wrong at size %ld, offset %ld, bit %ld\n", name, size, offset, bit);
                    return false;
                }
            }
        }
    }
    return true;
}

int main() {
    const bool right = run_all<float>("float") && run_all<double>("double");
    return right ? 0 : 1;
}
