// compact_channels.cuh on the host, against loops over [A, X, B, Y, C]: all layouts and widths of units in one launch.
#include "on_host.h"
//
#include "fastalter/compact_channels.cuh"

constexpr int BLOCK = 32;
using fastalter::Bits128;
using fastalter::CompactTask;

struct Shape {
    const char* name;
    int64_t a, x, b, y, c;
    bool gather_x, gather_y;
};

const Shape SHAPES[] = {
    {"OI", 1, 13, 1, 37, 1, true, true},       {"OI, outputs", 1, 21, 1, 1, 19, true, false},
    {"OIHW", 1, 7, 1, 5, 9, true, true},       {"KRSC", 1, 6, 9, 11, 1, true, true},
    {"RSCK", 9, 5, 1, 12, 1, true, true},      {"inputs alone", 6, 1, 1, 10, 4, false, true},
    {"1-D", 1, 67, 1, 1, 1, true, false},      {"nothing gathered", 1, 1, 1, 1, 777, false, false},
    {"wide runs", 1, 3, 2, 4, 64, true, true}, {"one element", 1, 1, 1, 1, 1, false, false},
};

// One tensor with its memory and what is expected of it.
template <class T>
struct Case {
    Case(const Shape& s, std::mt19937_64& random)
        : shape(s),
          kept_x(choose(s.x, s.gather_x, random)),
          kept_y(choose(s.y, s.gather_y, random)),
          source(s.a * s.x * s.b * s.y * s.c, sizeof(T) < 16 ? 1 : 0),
          target(units()),
          indices_x(kept_x.size()),
          indices_y(kept_y.size()) {
        unsigned char* bytes = reinterpret_cast<unsigned char*>(source.data());
        for (size_t i = 0; i < s.a * s.x * s.b * s.y * s.c * sizeof(T); ++i) bytes[i] = random();
        std::copy(kept_x.begin(), kept_x.end(), indices_x.data());
        std::copy(kept_y.begin(), kept_y.end(), indices_y.data());
    }

    // Some of the channels, in any order, one of them twice; at least one.
    static std::vector<int64_t> choose(int64_t channels, bool gather, std::mt19937_64& random) {
        std::vector<int64_t> kept;
        for (int64_t i = 0; i < channels; ++i) {
            if (!gather || random() % 2) kept.push_back(gather ? int64_t(random() % channels) : i);
        }
        if (kept.empty()) kept.push_back(channels - 1);
        return kept;
    }

    int64_t units() const { return shape.a * int64_t(kept_x.size()) * shape.b * int64_t(kept_y.size()) * shape.c; }

    CompactTask task() const {
        using fastalter::divisor_of;
        return {source.data(),
                target.data(),
                shape.gather_x ? indices_x.data() : nullptr,
                shape.gather_y ? indices_y.data() : nullptr,
                shape.x,
                shape.y,
                divisor_of(kept_x.size()),
                divisor_of(shape.b),
                divisor_of(kept_y.size()),
                divisor_of(shape.c),
                sizeof(T),
                units()};
    }

    void check() const {
        int64_t unit = 0;
        for (int64_t a = 0; a < shape.a; ++a)
            for (const int64_t x : kept_x)
                for (int64_t b = 0; b < shape.b; ++b)
                    for (const int64_t y : kept_y)
                        for (int64_t c = 0; c < shape.c; ++c, ++unit) {
                            const int64_t from = (((a * shape.x + x) * shape.b + b) * shape.y + y) * shape.c + c;
                            CHECK(std::memcmp(&target[unit], &source[from], sizeof(T)) == 0,
                                  "%s, units of %zu bytes, unit %ld", shape.name, sizeof(T), unit);
                        }
    }

    Shape shape;
    std::vector<int64_t> kept_x, kept_y;
    Buffer<T> source, target;
    Buffer<int64_t> indices_x, indices_y;
};

// Exact for every dividend below 2^63, its last ones and those around multiples of the divisor included.
void check_division(std::mt19937_64& random) {
    for (int round = 0; round < 2000; ++round) {
        const int64_t by = 1 + static_cast<int64_t>(random() >> (1 + random() % 62) >> 1);
        const fastalter::Divisor divisor = fastalter::divisor_of(round < 70 ? round + 1 : by);
        const int64_t multiple = static_cast<int64_t>(random() >> 1) / divisor.by * divisor.by;
        for (const int64_t n : {int64_t(0), INT64_MAX, INT64_MAX - 1, multiple, multiple ? multiple - 1 : 0}) {
            const fastalter::Division division = fastalter::divide(n, divisor);
            CHECK(division.quotient == n / divisor.by && division.rest == n % divisor.by, "%ld / %ld", n, divisor.by);
        }
    }
}

template <class T>
void add(std::vector<Case<T>>& cases, std::vector<CompactTask>& tasks, std::mt19937_64& random) {
    for (const Shape& shape : SHAPES) cases.emplace_back(shape, random);
    for (const Case<T>& of : cases) tasks.push_back(of.task());
}

int main() {
    std::mt19937_64 random(0);
    check_division(random);
    std::vector<CompactTask> tasks;
    std::vector<Case<uint8_t>> bytes;
    std::vector<Case<uint16_t>> halves;
    std::vector<Case<uint32_t>> words;
    std::vector<Case<uint64_t>> doubles;
    std::vector<Case<Bits128>> wide;
    add(bytes, tasks, random), add(halves, tasks, random), add(words, tasks, random), add(doubles, tasks, random);
    add(wide, tasks, random);
    std::shuffle(tasks.begin(), tasks.end(), random);

    const Buffer<CompactTask> table(tasks.size());
    const Buffer<int64_t> first_tiles(tasks.size());
    int64_t tiles = 0;
    for (size_t t = 0; t < tasks.size(); ++t) {
        table[t] = tasks[t];
        first_tiles[t] = tiles;
        tiles += (tasks[t].units * tasks[t].width + fastalter::TILE_BYTES<BLOCK> - 1) / fastalter::TILE_BYTES<BLOCK>;
    }
    launch_at_once(2, 4, BLOCK, fastalter::compact_channels_kernel<BLOCK>, table.data(), first_tiles.data(),
                   int64_t(tasks.size()), tiles);
    for (const auto& of : bytes) of.check();
    for (const auto& of : halves) of.check();
    for (const auto& of : words) of.check();
    for (const auto& of : doubles) of.check();
    for (const auto& of : wide) of.check();
}
