// apply_mask.cuh on the host, against a bit-by-bit loop: every alignment of theta, every bit offset, sizes around the
// packs.
#include "on_host.h"
//
#include "fastalter/apply_mask.cuh"

constexpr int GRID = 2;
constexpr int BLOCK = 3;  // fewer threads than packs: the strides over the grid are walked too

template <class T>
void run(int64_t size, int64_t offset, int64_t bit, bool transposed, std::mt19937_64& random) {
    const Buffer<T> theta(size, offset);
    std::vector<T> before(size);
    for (int64_t i = 0; i < size; ++i) theta[i] = before[i] = random_element<T>(random, 1);
    const Buffer<uint8_t> mask((bit + size + 7) / 8);
    for (int64_t i = 0; i < (bit + size + 7) / 8; ++i) mask[i] = static_cast<uint8_t>(random());

    std::vector<int64_t> place(size);  // where the element of row-major index i lies
    const int64_t rows = 3, columns = size / 3;
    for (int64_t i = 0; i < size; ++i) place[i] = transposed ? i / columns + i % columns * rows : i;
    if (transposed) {
        const fastalter::Geometry geometry{2, {rows, columns}, {1, rows}};
        launch(GRID, BLOCK, fastalter::apply_mask_strided_kernel<T>, theta.data(), geometry, mask.data(), bit, size);
    } else {
        launch(GRID, BLOCK, fastalter::apply_mask_kernel<T>, theta.data(), mask.data(), bit, size);
    }
    for (int64_t i = 0; i < size; ++i) {
        const bool kept = mask[(bit + i) / 8] >> ((bit + i) % 8) & 1;
        CHECK(theta[place[i]] == (kept ? before[place[i]] : T(0)), "%zu bytes, size %ld, offset %ld, bit %ld",
              sizeof(T), size, offset, bit);
    }
}

template <class T>
void run_all() {
    std::mt19937_64 random(0);
    for (const int64_t size : {1, 3, 8, 15, 33, 66}) {
        for (int64_t offset = 0; offset < int64_t(16 / sizeof(T)); offset += sizeof(T) == 2 ? 3 : 1) {
            for (const int64_t bit : {0, 1, 5, 7, 63}) {
                run<T>(size, offset, bit, false, random);
                if (size % 3 == 0 && offset == 0) run<T>(size, offset, bit, true, random);
            }
        }
    }
}

int main() {
    run_all<uint16_t>();
    run_all<uint32_t>();
    run_all<uint64_t>();
}
