// 2:4 compression (4-byte elements: 1:2) into the values and metadata of CUTLASS's sparse GEMM, on the GPU. One pass.
#pragma once

#include "fastalter/device.cuh"

namespace fastalter {

// 8 bytes of a row make a group: it gives 4 bytes of values and 4 bits of metadata, the indices of the two kept halves.
struct Group {
    uint32_t kept;
    uint32_t indices;  // low | high << 2
};

// torch's table: the first nonzeros stay; where fewer than two are nonzero, zeros of the higher positions join them.
inline __device__ uint32_t indices_of(bool m0, bool m1, bool m3) {
    const uint32_t low = m0 ? 0 : m1 ? 1 : 2;
    const uint32_t high = m0 && m1 ? 1 : (m0 || m1) && !m3 ? 2 : 3;
    return low | high << 2;
}

// Four elements of 2 bytes; -0 is a zero. Element k is the bytes 2k and 2k + 1 of the two words.
inline __device__ Group compress(uint32_t first, uint32_t second, uint16_t) {
    const uint32_t indices = indices_of(first & 0x7fff, first & 0x7fff0000, second & 0x7fff0000);
    const uint32_t low = indices & 3, high = indices >> 2;
    return {__byte_perm(first, second, 0x3210 - 0x2200 + low * 0x22 + high * 0x2200), indices};
}

// Two elements of 4 bytes, each of two halves that stay or go together.
inline __device__ Group compress(uint32_t first, uint32_t second, uint32_t) {
    const bool m0 = first & 0x7fffffff, m1 = second & 0x7fffffff;
    return {m0 ? first : second, indices_of(m0, m0, m1)};
}

// 32 bytes of a row: 16 bytes of values, one word of metadata.
template <class T>
__device__ uint16_t compress_word(const Bits128& one, const Bits128& two, Bits128& kept) {
    const Group groups[4] = {compress(one.lane[0], one.lane[1], T()), compress(one.lane[2], one.lane[3], T()),
                             compress(two.lane[0], two.lane[1], T()), compress(two.lane[2], two.lane[3], T())};
    uint32_t word = 0;
    for (int g = 0; g < 4; ++g) {
        kept.lane[g] = groups[g].kept;
        word |= groups[g].indices << (4 * g);
    }
    return static_cast<uint16_t>(word);
}

// dense [rows, columns], rows a multiple of 32 and columns of 64 bytes -> values [rows, columns/2] and metadata; all
// 16-byte aligned. Any grid.
//
// The tensor cores' order of metadata, for two neighbouring words c, c + 1 of the rows r = 32*g + 8*j + i: words of the
// rows j = 0, 1, 2, 3 with equal i lie side by side, in 2x2 blocks that are transposed:
//     (j0, c) (j1, c) (j0, c + 1) (j1, c + 1) (j2, c) (j3, c) (j2, c + 1) (j3, c + 1)
// which is 16 bytes. So a thread takes these four rows and two words (256 bytes); threads of successive i follow each
// other in the metadata.
//
// The bounds name no blocks per SM: given four, ptxas spends its 64 registers and spills, left alone it needs fewer.
template <class T>
__global__ void __launch_bounds__(THREADS)
    compress_nm_kernel(const T* dense, T* values, uint16_t* metadata, int64_t rows, int64_t columns) {
    constexpr int LANES = Pack<T>::LANES;
    const int64_t pairs = columns / (4 * LANES);
    const int64_t threads = int64_t(gridDim.x) * blockDim.x;
    for (int64_t n = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; n < rows / 4 * pairs; n += threads) {
        const int64_t i = n % 8, pair = n / 8 % pairs, g = n / 8 / pairs;
        Pack<uint16_t> words;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int64_t at = (32 * g + 8 * j + i) * columns + pair * 4 * LANES;
            Bits128 packs[4], kept;
            for (int p = 0; p < 4; ++p) packs[p] = load_bits(dense + at + p * LANES);
            words.lane[j / 2 * 4 + j % 2] = compress_word<T>(packs[0], packs[1], kept);
            store_bits(values + at / 2, kept);
            words.lane[j / 2 * 4 + j % 2 + 2] = compress_word<T>(packs[2], packs[3], kept);
            store_bits(values + at / 2 + LANES, kept);
        }
        store_bits(metadata + pair * rows * 2 + 64 * g + 8 * i, as_bits(words));
    }
}

}  // namespace fastalter
