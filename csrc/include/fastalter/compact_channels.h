// Gathers the kept channels of many tensors, both axes in one pass and all tensors in one parallel region. Moves bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "sweep.h"

namespace fastalter {

// One tensor, seen as [before, of rows, between, of columns, after]: `kept_rows` and `kept_columns` index the second
// and the fourth dimension. An axis without a selection is null.
struct Selection {
    const char* from;
    char* to;
    int64_t element;  // bytes of one element
    int64_t before, rows, between, columns, after;
    const int64_t *kept_rows, *kept_columns;
    int64_t count_rows, count_columns;  // how many are kept; of a null axis: all
};

// Puts a stretch of output together in the L1 cache and writes it past the cache, whole cache lines at a time.
class Stretch {
  public:
    explicit Stretch(char* to) : to_(to) {}
    Stretch(const Stretch&) = delete;
    ~Stretch() {
        stream_out(to_, room_, filled_);
        stream_end();
    }

    void append(const char* from, int64_t bytes) {
        for (int64_t n; bytes > 0; from += n, bytes -= n) {
            n = std::min(bytes, free_bytes());
            std::memcpy(room_ + filled_, from, n);
            filled_ += n;
        }
    }

    // Appends from[index[i]] for all i < count.
    template <class U>
    void pick(const char* from, const int32_t* index, int64_t count) {
        const U* source = reinterpret_cast<const U*>(from);
        for (int64_t n; count > 0; index += n, count -= n) {
            n = std::min<int64_t>(count, free_bytes() / sizeof(U));
            U* target = reinterpret_cast<U*>(room_ + filled_);
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
            for (int64_t i = 0; i < n; ++i) target[i] = source[index[i]];
            filled_ += n * sizeof(U);
        }
    }

  private:
    static constexpr int64_t ROOM = 8192;

    int64_t free_bytes() {
        if (filled_ == ROOM) {
            stream_out(to_, room_, ROOM);
            to_ += ROOM;
            filled_ = 0;
        }
        return ROOM - filled_;
    }

    alignas(64) char room_[ROOM];
    char* to_;
    int64_t filled_ = 0;
};

// How one tensor is gathered: `lines` stretches of the output, each put together from the same pieces of a stretch of
// the input.
class Gather {
  public:
    static constexpr int64_t PORTION = 1 << 16;  // bytes of output that a worker takes at a time, about

    explicit Gather(const Selection& selection) : s_(selection) {
        from_line_ = s_.columns * s_.after * s_.element;
        to_line_ = s_.count_columns * s_.after * s_.element;
        lines_ = s_.before * s_.count_rows * s_.between;
        if (lines_ * to_line_ == 0) {
            lines_ = 0;
            return;
        }
        // A run of one or two elements is not worth a call of memcpy.
        const bool of_word = s_.element == 1 || s_.element == 2 || s_.element == 4 || s_.element == 8;
        if (s_.after == 1 && s_.kept_columns && of_word && count_runs() * 8 > s_.count_columns &&
            s_.columns <= std::numeric_limits<int32_t>::max()) {
            single_.assign(s_.kept_columns, s_.kept_columns + s_.count_columns);
        } else {
            find_runs();
        }
    }

    int64_t lines() const { return lines_; }
    int64_t line_bytes() const { return to_line_; }
    int64_t pieces() const { return runs_.empty() ? s_.count_columns : runs_.size(); }

    // Lines [line, last), of each the pieces [piece, end). Several lines are always whole ones, so that what is written
    // is one stretch.
    void copy(int64_t line, int64_t last, int64_t piece, int64_t end) const {
        const int64_t offset = runs_.empty() ? piece * s_.element : runs_[piece].to;
        Stretch stretch(s_.to + line * to_line_ + offset);
        const char* from = source_of(line);
        for (; line < last; ++line) {
            const char* const next = source_of(std::min(line + 1, lines_ - 1));
            if (runs_.empty()) {
                pick(stretch, from, next, piece, end);
            } else {
                for (int64_t r = piece; r < end; ++r) {
                    __builtin_prefetch(next + runs_[r].from);
                    stretch.append(from + runs_[r].from, runs_[r].bytes);
                }
            }
            from = next;
        }
    }

  private:
    struct Run {
        int64_t from, to, bytes;  // offsets within a line
    };

    int64_t count_runs() const {
        int64_t count = 1;
        for (int64_t i = 1; i < s_.count_columns; ++i) count += s_.kept_columns[i] != s_.kept_columns[i - 1] + 1;
        return count;
    }

    void find_runs() {
        const int64_t entry = s_.after * s_.element;
        for (int64_t i = 0, length; i < s_.count_columns; i += length) {
            length = s_.kept_columns ? 1 : s_.count_columns;
            const int64_t first = s_.kept_columns ? s_.kept_columns[i] : 0;
            while (i + length < s_.count_columns && s_.kept_columns[i + length] == first + length) ++length;
            add_run({first * entry, i * entry, length * entry});
        }
    }

    // Long runs come in portions, which workers can share.
    void add_run(const Run& run) {
        for (int64_t at = 0; at < run.bytes; at += PORTION) {
            runs_.push_back({run.from + at, run.to + at, std::min(PORTION, run.bytes - at)});
        }
    }

    const char* source_of(int64_t line) const {
        const int64_t row = line / s_.between % s_.count_rows, outer = line / s_.between / s_.count_rows;
        const int64_t kept = s_.kept_rows ? s_.kept_rows[row] : row;
        return s_.from + ((outer * s_.rows + kept) * s_.between + line % s_.between) * from_line_;
    }

    void pick(Stretch& stretch, const char* from, const char* next, int64_t piece, int64_t end) const {
        switch (s_.element) {
            case 1:
                return pick_as<uint8_t>(stretch, from, next, piece, end);
            case 2:
                return pick_as<uint16_t>(stretch, from, next, piece, end);
            case 4:
                return pick_as<uint32_t>(stretch, from, next, piece, end);
            default:
                return pick_as<uint64_t>(stretch, from, next, piece, end);
        }
    }

    template <class U>
    void pick_as(Stretch& stretch, const char* from, const char* next, int64_t piece, int64_t end) const {
        constexpr int64_t AT_ONCE = 64;
        const U* const ahead = reinterpret_cast<const U*>(next);
        for (int64_t i = piece; i < end; i += AT_ONCE) {
            const int64_t n = std::min(AT_ONCE, end - i);
            for (int64_t j = 0; j < n; j += 8) __builtin_prefetch(ahead + single_[i + j]);
            stretch.pick<U>(from, single_.data() + i, n);
        }
    }

    Selection s_;
    int64_t lines_, from_line_, to_line_;  // number of lines; bytes of a line before and after
    std::vector<Run> runs_;
    std::vector<int32_t> single_;  // instead of runs: the kept columns, to be copied one by one
};

template <class Workers>
void compact_channels(const Workers& workers, const std::vector<Selection>& selections) {
    struct Portion {
        int64_t tensor, line, last, piece, end;
    };
    std::vector<Gather> gathers(selections.begin(), selections.end());
    std::vector<Portion> portions;
    for (size_t t = 0; t < gathers.size(); ++t) {
        const Gather& gather = gathers[t];
        if (gather.lines() == 0) continue;
        const int64_t lines = std::max<int64_t>(1, Gather::PORTION / gather.line_bytes());
        const int64_t cuts = std::min(gather.pieces(), (gather.line_bytes() - 1) / Gather::PORTION + 1);
        for (int64_t line = 0; line < gather.lines(); line += lines) {
            for (int64_t cut = 0; cut < cuts; ++cut) {
                portions.push_back({int64_t(t), line, std::min(gather.lines(), line + lines),
                                    gather.pieces() * cut / cuts, gather.pieces() * (cut + 1) / cuts});
            }
        }
    }
    deal_items(workers, portions.size(), [&](int64_t item, int) {
        const Portion& portion = portions[item];
        gathers[portion.tensor].copy(portion.line, portion.last, portion.piece, portion.end);
    });
}

}  // namespace fastalter
