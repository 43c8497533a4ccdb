// compress_nm.cuh on the host, against the layout's rules written out: index pairs per group, CUTLASS's order of words.
#include "on_host.h"
//
#include "fastalter/compress_nm.cuh"

constexpr int GRID = 2;
constexpr int BLOCK = 5;  // fewer threads than units: the strides over the grid are walked too

template <class T>
bool nonzero(T bits) {
    return T(bits << 1) != 0;
}

// The two halves of a group of 8 bytes that stay, as torch's table has it.
template <class T>
std::pair<int, int> choice(const T* group) {
    bool half[4];
    for (int h = 0; h < 4; ++h) half[h] = nonzero(group[sizeof(T) == 4 ? h / 2 : h]);
    if (half[0] && half[1]) return {0, 1};
    if (half[0] || half[1]) return {half[0] ? 0 : 1, half[3] ? 3 : 2};
    return {2, 3};
}

// Where the word of a row and column of words lies: rows regrouped, then 2x2 blocks transposed, then columns in pairs.
int64_t place_of(int64_t rows, int64_t row, int64_t column) {
    int64_t to = row / 32 * 32 + row % 8 * 4 + row % 32 / 8;
    const bool swap = to % 2 == 0 && column % 2 == 1, back = to % 2 == 1 && column % 2 == 0;
    to += swap - back;
    column += back - swap;
    return column / 2 * rows * 2 + to * 2 + column % 2;
}

template <class T>
void run(int64_t rows, int64_t columns, double density, std::mt19937_64& random) {
    constexpr int OF_GROUP = 8 / sizeof(T);
    const Buffer<T> dense(rows * columns), values(rows * columns / 2);
    const int64_t words_of_row = columns * sizeof(T) / 32;
    const Buffer<uint16_t> metadata(rows * words_of_row);
    for (int64_t i = 0; i < rows * columns; ++i) dense[i] = random_element<T>(random, density);
    launch(GRID, BLOCK, fastalter::compress_nm_kernel<T>, dense.data(), values.data(), metadata.data(), rows, columns);

    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t group = 0; group < columns / OF_GROUP; ++group) {
            const T* of = dense.data() + row * columns + group * OF_GROUP;
            const auto [low, high] = choice(of);
            const T* found = values.data() + (row * columns + group * OF_GROUP) / 2;
            const bool right = sizeof(T) == 4 ? found[0] == of[low / 2] : found[0] == of[low] && found[1] == of[high];
            CHECK(right, "values: %zu bytes, [%ld, %ld], row %ld, group %ld", sizeof(T), rows, columns, row, group);
            const uint16_t word = metadata[place_of(rows, row, group / 4)];
            CHECK((word >> group % 4 * 4 & 15) == (low | high << 2),
                  "metadata: %zu bytes, [%ld, %ld], row %ld, group %ld", sizeof(T), rows, columns, row, group);
        }
    }
}

template <class T>
void run_all() {
    std::mt19937_64 random(0);
    const int64_t least = 64 / sizeof(T);
    for (const double density : {0.0, 0.3, 0.6, 1.0}) {
        run<T>(32, least, density, random);
        run<T>(96, 5 * least, density, random);
    }
}

int main() {
    run_all<uint16_t>();
    run_all<uint32_t>();
}
