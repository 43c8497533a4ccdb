// pack_sparse.cuh on the host, against plain loops: sizes around warps' rows and tiles, densities, several blocks at
// once that wait for each other's sums; and the look-back alone, with every state of its predecessors.
#include "on_host.h"
//
#include "fastalter/pack_sparse.cuh"

constexpr int BLOCK = 64;
constexpr int GRID = 3;
using fastalter::Word;

// Shared memory of several blocks that run at once; on a GPU it starts out undefined.
template <class T>
struct Storage {
    Storage() {
        for (int b = 0; b < GRID; ++b) of_block.emplace_back(1);
    }
    fastalter::SparseTile<T, BLOCK>& operator()() const { return of_block[blockIdx.x][0]; }
    std::vector<Buffer<fastalter::SparseTile<T, BLOCK>>> of_block;
};

template <class T>
std::vector<Word> zeros(int64_t size) {
    return std::vector<Word>(1 + (size + fastalter::SparseTile<T, BLOCK>::SIZE - 1) /
                                     fastalter::SparseTile<T, BLOCK>::SIZE);
}

template <class T>
void check_pack(const Buffer<T>& dense, int64_t size, Buffer<uint8_t>& mask, std::vector<T>& expected) {
    Buffer<T> values(size);
    std::vector<Word> words = zeros<T>(size);
    const Storage<T> storage;
    const int64_t tiles = words.size() - 1;
    launch_at_once(GRID, GRID, BLOCK, [&] {
        fastalter::pack_sparse_block<T, BLOCK>(storage(), dense.data(), size, mask.data(), values.data(), &words[0],
                                               &words[1], tiles);
    });
    for (int64_t i = 0; i < size; ++i) {
        if (dense[i] != 0) expected.push_back(dense[i]);
    }
    CHECK(words[tiles] >> 2 == expected.size(), "pack: %zu bytes, size %ld: count", sizeof(T), size);
    for (int64_t i = 0; i < (size + 63) / 64 * 64; ++i) {
        const bool present = i < size && dense[i] != 0;
        CHECK((mask[i / 8] >> i % 8 & 1) == present, "pack: %zu bytes, size %ld: bit %ld", sizeof(T), size, i);
    }
    for (size_t v = 0; v < expected.size(); ++v) {
        CHECK(values[v] == expected[v], "pack: %zu bytes, size %ld: value %zu", sizeof(T), size, v);
    }
}

// With `missing` values left out the result is nothing, but must stay inside its memory and count the bits.
template <class T>
void check_unpack(const Buffer<T>& dense, int64_t size, const Buffer<uint8_t>& mask, const std::vector<T>& packed,
                  int64_t offset, int64_t missing) {
    const int64_t count = packed.size() - missing;
    Buffer<T> values(count, offset), result(size);
    std::copy(packed.begin(), packed.end() - missing, values.data());
    std::vector<Word> words = zeros<T>(size);
    const Storage<T> storage;
    const int64_t tiles = words.size() - 1;
    launch_at_once(GRID, GRID, BLOCK, [&] {
        fastalter::unpack_sparse_block<T, BLOCK>(storage(), mask.data(), values.data(), count, result.data(), size,
                                                 &words[0], &words[1], tiles);
    });
    CHECK(words[tiles] >> 2 == packed.size(), "unpack: %zu bytes, size %ld: count", sizeof(T), size);
    for (int64_t i = 0; i < size && missing == 0; ++i) {
        CHECK(result[i] == dense[i], "unpack: %zu bytes, size %ld, offset %ld: element %ld", sizeof(T), size, offset,
              i);
    }
}

template <class T>
void run(int64_t size, double density, int64_t offset, std::mt19937_64& random) {
    const Buffer<T> dense(size);
    for (int64_t i = 0; i < size; ++i) dense[i] = random_element<T>(random, density);
    Buffer<uint8_t> mask((size + 63) / 64 * 8);
    std::vector<T> packed;
    check_pack(dense, size, mask, packed);
    check_unpack(dense, size, mask, packed, offset, 0);
    if (packed.size() > 2) check_unpack(dense, size, mask, packed, offset, packed.size() / 2);
    // Bits behind the end belong to no element.
    if (size % 64 != 0) {
        mask[size / 8] |= static_cast<uint8_t>(0xff << size % 8);
        check_unpack(dense, size, mask, packed, offset, 0);
    }
}

template <class T>
void run_all(bool thorough) {
    std::mt19937_64 random(sizeof(T));
    const int64_t tile = fastalter::SparseTile<T, BLOCK>::SIZE;
    run<T>(65, 1, 0, random);
    run<T>(3 * tile + 77, 0.2, 1, random);
    if (!thorough) return;
    for (const double density : {0.0, 0.2, 1.0}) {
        for (const int64_t size :
             {int64_t(1), int64_t(63), int64_t(64), tile - 1, tile, tile + 1, 5 * tile, 40 * tile + 5}) {
            run<T>(size, density, size % 3, random);
        }
    }
}

// Tile 70 behind tiles that have published sums, the nearest prefix `distance` tiles back.
void check_look_back(int64_t distance) {
    const int64_t tile = 70;
    std::vector<Word> status(tile + 1);
    Word expected = 0;
    for (int64_t t = 0; t < tile; ++t) {
        const Word sum = 3 * t + 1;
        expected += sum;
        status[t] = t <= tile - distance ? expected << 2 | fastalter::PREFIX : sum << 2 | fastalter::SUM;
    }
    std::vector<Word> found(fastalter::WARP);
    launch(1, fastalter::WARP, [&] { found[threadIdx.x] = fastalter::sum_before(status.data(), tile, 5); });
    for (const Word before : found) CHECK(before == expected, "look-back over %ld tiles", distance);
    CHECK(status[tile] == ((expected + 5) << 2 | fastalter::PREFIX), "look-back publishes the prefix");
}

int main(int argc, char**) {
    for (const int64_t distance : {1, 32, 33, 71}) check_look_back(distance);
    run_all<uint16_t>(argc > 1);
    run_all<uint32_t>(argc > 1);
    run_all<uint64_t>(argc > 1);
}
