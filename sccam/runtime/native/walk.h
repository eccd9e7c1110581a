// The random walk and the affinities it goes along.
//
//     y_j = sum over taps o of P_o[j] x[j + o],    P_o[j] = a(j, j + o)^beta / D_j,   D_j = sum over taps,
//
// as a stencil on channel planes: the transition is never formed. A tap is an offset, its opposite, or 0.
//
// Where the work goes: every weight serves a group of G channels and every state value serves up to B rows, so that a
// block of B rows x LANES columns x G channels stays in registers while all taps pass. Weights are packed in the
// order in which they are read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "common.h"
#include "simd.h"

namespace sccam {

// The settings of one walk, as Python hands them over.
struct WalkTask {
    const float* affinity;      // [R h w]
    const int32_t* offsets;     // [R 2] (dy, dx), dy >= 0
    const int32_t* windows;     // [R 4] first cells of the pairs that count: rows [0, 1), columns [2, 3)
    int64_t pairs, height, width;
    const float* scores;        // [C h w]
    float* out;                 // [C h w]
    int64_t channels;
    double beta;
    const double* coefficients;  // [degree + 1] of the Chebyshev polynomials; null: `degree` plain steps
    int64_t degree;
    int threads;
};

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Rows of a register block for G channels: B * G sums, B weights and one state value fit in the registers.
constexpr int rows_of_block(int group) {
    constexpr int wide[] = {0, 8, 8, 6, 5, 4, 4, 3}, narrow[] = {0, 6, 4, 3, 2, 2, 1, 1};
    return LANES == 16 ? wide[group] : narrow[group];
}
constexpr int MOST_CHANNELS_OF_GROUP = 7;

template <int G>
class Walk {
    static constexpr int B = rows_of_block(G);

    // What one state value is used for: rows [first, last) of the block, at an offset from the block's first cell.
    struct Entry {
        int64_t offset;
        int first, last;
        int tap[B];
    };

public:
    explicit Walk(const WalkTask& task)
        : task_(task),
          reach_(reach_of(task)),
          rows_(round_up(task.height, B)),
          columns_(round_up(task.width, LANES)),
          margin_(round_up(reach_, LANES)),
          pitch_(margin_ + columns_),
          plane_((rows_ + 2 * reach_) * pitch_ + margin_),
          groups_((task.channels + G - 1) / G),
          weights_of_block_(list_entries()),
          weights_(rows_ / B * (columns_ / LANES) * weights_of_block_ * LANES),
          powers_(task.pairs * plane_, 0.0f),
          state_{Aligned<float>(groups_ * G * plane_, 0.0f), Aligned<float>(groups_ * G * plane_, 0.0f)},
          result_(groups_ * G * plane_, 0.0f) {}

    void run() {
        const int threads = static_cast<int>(std::min<int64_t>(task_.threads, rows_ / B));
        Barrier barrier(threads);
        on_threads(threads, [&](int n) {
            const Share pairs(task_.pairs, n, threads), blocks(rows_ / B, n, threads);
            for (int64_t r = pairs.first; r < pairs.last; ++r) raise_to_beta(r);
            barrier.wait();
            for (int64_t block = blocks.first; block < blocks.last; ++block) pack_weights(block);
            load_scores(blocks);
            barrier.wait();
            if (task_.coefficients)
                expand(blocks, barrier);
            else
                for (int64_t step = 0; step < task_.degree; ++step) {
                    pass(blocks, state_[step % 2].data(), state_[(step + 1) % 2].data(), Plain{});
                    barrier.wait();
                }
            const float* last = task_.coefficients ? result_.data() : state_[task_.degree % 2].data();
            store_scores(blocks, last);
        });
    }

private:
    static int64_t reach_of(const WalkTask& task) {
        int64_t reach = 1;
        for (int64_t n = 0; n < 2 * task.pairs; ++n) reach = std::max<int64_t>(reach, std::abs(task.offsets[n]));
        return reach;
    }

    int64_t at(int64_t y, int64_t x) const { return (y + reach_) * pitch_ + margin_ + x; }

    // Lists which state values a block reads and for which of its rows; returns the number of weights a column takes.
    // Taps are numbered 2 r (offset r), 2 r + 1 (its opposite) and 2 R (the cell itself).
    int64_t list_entries() {
        std::vector<int> tap_at((2 * reach_ + 1) * (2 * reach_ + 1), -1);
        const auto place = [&](int64_t dy, int64_t dx) -> int& {
            return tap_at[(dy + reach_) * (2 * reach_ + 1) + dx + reach_];
        };
        for (int64_t r = 0; r < task_.pairs; ++r) {
            const int32_t dy = task_.offsets[2 * r], dx = task_.offsets[2 * r + 1];
            place(dy, dx) = static_cast<int>(2 * r);
            place(-dy, -dx) = static_cast<int>(2 * r + 1);
        }
        place(0, 0) = static_cast<int>(2 * task_.pairs);
        int64_t weights = 0;
        for (int64_t row = -reach_; row < B + reach_; ++row)
            for (int64_t dx = -reach_; dx <= reach_; ++dx) {
                Entry entry{row * pitch_ + dx, 0, 0, {}};
                for (int b = 0; b <= B; ++b) {  // runs of rows for which this value is a tap
                    const int64_t dy = row - b;
                    const int tap = b < B && std::abs(dy) <= reach_ ? place(dy, dx) : -1;
                    if (tap >= 0) {
                        if (entry.last == entry.first) entry.first = entry.last = b;
                        entry.tap[entry.last++] = tap;
                    } else if (entry.last > entry.first) {
                        weights += entry.last - entry.first;
                        entries_[range_of(entry.first, entry.last)].push_back(entry);
                        entry.first = entry.last = 0;
                    }
                }
            }
        return weights;
    }

    static constexpr int range_of(int first, int last) { return first * B + last - 1; }

    // a^beta of the pairs that count, on padded planes; 0 elsewhere.
    void raise_to_beta(int64_t r) {
        const int32_t* window = task_.windows + 4 * r;
        const auto whole = static_cast<int64_t>(task_.beta);
        const bool integer = task_.beta == static_cast<double>(whole) && whole <= 64;
        for (int64_t y = window[0]; y < window[1]; ++y) {
            const float* from = task_.affinity + (r * task_.height + y) * task_.width;
            float* to = powers_.data() + r * plane_ + at(y, 0);
            if (integer) {
                for (int64_t x = window[2]; x < window[3]; ++x) to[x] = power(from[x], whole);
            } else {
                for (int64_t x = window[2]; x < window[3]; ++x) to[x] = std::pow(static_cast<double>(from[x]), task_.beta);
            }
        }
    }

    static float power(double base, int64_t exponent) {
        double result = 1;
        for (; exponent; exponent >>= 1, base *= base)
            if (exponent & 1) result *= base;
        return static_cast<float>(result);
    }

    const float* weight_source(int tap, int64_t y, int64_t x) const {
        const int64_t r = tap / 2;
        const float* plane = powers_.data() + r * plane_;
        return tap % 2 ? plane + at(y - task_.offsets[2 * r], x - task_.offsets[2 * r + 1]) : plane + at(y, x);
    }

    // P of one block of rows, in the order in which `block_of_cells` reads it. The cell's own weight takes what
    // rounding leaves over, so that weights sum to one and a constant map stays constant.
    void pack_weights(int64_t block) {
        const int own = static_cast<int>(2 * task_.pairs);
        float inverse[B][LANES];
        double rest[B][LANES];
        for (int64_t x = 0; x < columns_; x += LANES) {
            for (int b = 0; b < B; ++b) {
                const int64_t y = block * B + b;
                double sum[LANES];
                for (int l = 0; l < LANES; ++l) sum[l] = rest[b][l] = 1;
                if (y < task_.height)
                    for (int tap = 0; tap < own; ++tap) {
                        const float* source = weight_source(tap, y, x);
                        for (int l = 0; l < LANES; ++l) sum[l] += source[l];
                    }
                for (int l = 0; l < LANES; ++l) {
                    const bool inside = y < task_.height && x + l < task_.width;
                    inverse[b][l] = inside ? static_cast<float>(1 / sum[l]) : 0;
                    if (!inside) rest[b][l] = 0;
                }
            }
            float* const begin = weights_.data() + (block * (columns_ / LANES) + x / LANES) * weights_of_block_ * LANES;
            float* packed = begin;
            float* own_weight[B] = {};
            for (const auto& entries : entries_)
                for (const Entry& entry : entries)
                    for (int b = entry.first; b < entry.last; ++b, packed += LANES) {
                        if (entry.tap[b] == own) {
                            own_weight[b] = packed;
                            continue;
                        }
                        const int64_t y = block * B + b;
                        if (y >= task_.height) {
                            std::memset(packed, 0, LANES * sizeof(float));
                            continue;
                        }
                        const float* source = weight_source(entry.tap[b], y, x);
                        for (int l = 0; l < LANES; ++l) {
                            packed[l] = source[l] * inverse[b][l];
                            rest[b][l] -= packed[l];
                        }
                    }
            for (int b = 0; b < B; ++b)
                for (int l = 0; l < LANES; ++l) {
                    const bool inside = inverse[b][l] > 0;
                    own_weight[b][l] = inside ? static_cast<float>(rest[b][l]) : 0;
                }
        }
    }

    void load_scores(const Share& blocks) {
        copy_rows(blocks, [&](int64_t c, int64_t y) {
            std::memcpy(state_[0].data() + c * plane_ + at(y, 0), task_.scores + (c * task_.height + y) * task_.width,
                        task_.width * sizeof(float));
        });
    }

    void store_scores(const Share& blocks, const float* from) {
        copy_rows(blocks, [&](int64_t c, int64_t y) {
            std::memcpy(task_.out + (c * task_.height + y) * task_.width, from + c * plane_ + at(y, 0),
                        task_.width * sizeof(float));
        });
    }

    template <class Copy>
    void copy_rows(const Share& blocks, Copy&& copy) {
        for (int64_t c = 0; c < task_.channels; ++c)
            for (int64_t y = blocks.first * B; y < std::min(blocks.last * B, task_.height); ++y) copy(c, y);
    }

    // What becomes of y = P x at one cell; each writes the next state.
    struct Plain {
        void operator()(float* next, float*, Vector y) const { store(next, y); }
    };
    struct First {  // T_1 = P x; the result begins as c_0 T_0 + c_1 T_1
        float c0, c1;
        const float* current;
        float* result;
        void operator()(float* next, float* base, Vector y) const {
            store(next, y);
            const int64_t n = next - base;
            store(result + n, load(current + n) * c0 + y * c1);
        }
    };
    struct Later {  // T_(k+1) = 2 P T_k - T_(k-1), over T_(k-1); the result takes c T_(k+1)
        float c;
        float* result;
        void operator()(float* next, float* base, Vector y) const {
            const Vector value = 2.0f * y - load(next);
            store(next, value);
            if (c != 0) {
                const int64_t n = next - base;
                store(result + n, load(result + n) + value * c);
            }
        }
    };

    void expand(const Share& blocks, Barrier& barrier) {
        const double* c = task_.coefficients;
        float* current = state_[0].data();
        float* next = state_[1].data();
        for (int64_t k = 1; k <= task_.degree; ++k) {
            if (k == 1)
                pass(blocks, current, next,
                     First{static_cast<float>(c[0]), static_cast<float>(c[1]), current, result_.data()});
            else
                pass(blocks, current, next, Later{static_cast<float>(c[k]), result_.data()});
            barrier.wait();
            std::swap(current, next);
        }
    }

    template <class Finish>
    void pass(const Share& blocks, const float* current, float* next, const Finish& finish) {
        const int64_t across = columns_ / LANES;
        for (int64_t block = blocks.first; block < blocks.last; ++block)
            for (int64_t x = 0; x < across; ++x) {
                const float* weights = weights_.data() + (block * across + x) * weights_of_block_ * LANES;
                const int64_t corner = at(block * B, x * LANES);
                for (int64_t group = 0; group < groups_; ++group)
                    block_of_cells(weights, current + group * G * plane_ + corner, next + group * G * plane_ + corner,
                                   next, finish);
            }
    }

    template <class Finish>
    void block_of_cells(const float* weights, const float* current, float* next, float* base, const Finish& finish) {
        Vector sums[B][G] = {};
        all_ranges<0, 1>(weights, current, sums);
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
            for (int g = 0; g < G; ++g) finish(next + b * pitch_ + g * plane_, base, sums[b][g]);
    }

    template <int First, int Last>
    __attribute__((always_inline)) void all_ranges(const float*& weights, const float* current, Vector (&sums)[B][G]) {
        for (const Entry& entry : entries_[range_of(First, Last)]) {
            Vector w[Last - First];
#pragma GCC unroll 8
            for (int b = 0; b < Last - First; ++b) w[b] = load(weights + b * LANES);
            weights += (Last - First) * LANES;
            const float* from = current + entry.offset;
#pragma GCC unroll 8
            for (int g = 0; g < G; ++g) {
                const Vector value = held(load(from + g * plane_));
#pragma GCC unroll 8
                for (int b = 0; b < Last - First; ++b) sums[First + b][g] += w[b] * value;
            }
        }
        if constexpr (Last < B)
            all_ranges<First, Last + 1>(weights, current, sums);
        else if constexpr (First + 1 < B)
            all_ranges<First + 1, First + 2>(weights, current, sums);
    }

    const WalkTask& task_;
    std::vector<Entry> entries_[B * B];
    // A row's margin on the left serves the row above as its margin on the right.
    const int64_t reach_, rows_, columns_, margin_, pitch_, plane_, groups_, weights_of_block_;
    Aligned<float> weights_, powers_;
    Aligned<float> state_[2], result_;
};

template <int G>
void walk_in_groups(const WalkTask& task, int64_t group) {
    if (group == G) return Walk<G>(task).run();
    if constexpr (G > 1) walk_in_groups<G - 1>(task, group);
}

// Sums of |f_i - f_j| over channels for one row of cells and all its offsets; affinities are exp(-mean).
class AffinityPlanes {
public:
    AffinityPlanes(const float* features, int64_t channels, int64_t height, int64_t width, const int32_t* offsets,
                   int64_t pairs, float* values)
        : features_(features), channels_(channels), height_(height), width_(width), offsets_(offsets), pairs_(pairs),
          values_(values), reach_(0) {
        for (int64_t n = 0; n < 2 * pairs; ++n) reach_ = std::max<int64_t>(reach_, std::abs(offsets[n]));
        pitch_ = round_up(reach_ + round_up(width, LANES) + reach_, LANES);
        packed_ = std::make_unique<Aligned<float>>(height * channels * pitch_, 0.0f);
    }

    void run(int threads) {
        threads = static_cast<int>(std::min<int64_t>(threads, height_));
        Barrier barrier(threads);
        on_threads(threads, [&](int n) {
            const Share rows(height_, n, threads);
            for (int64_t d = 0; d < channels_; ++d)
                for (int64_t y = rows.first; y < rows.last; ++y)
                    std::memcpy(row(y, d), features_ + (d * height_ + y) * width_, width_ * sizeof(float));
            barrier.wait();
            for (int64_t y = rows.first; y < rows.last; ++y)
                for (int64_t r = 0; r < pairs_; r += AT_ONCE) some_pairs(y, r, std::min(AT_ONCE, pairs_ - r));
        });
    }

private:
    static constexpr int64_t AT_ONCE = LANES == 16 ? 20 : 10;  // sums that stay in registers

    float* row(int64_t y, int64_t d) { return packed_->data() + (y * channels_ + d) * pitch_ + reach_; }

    void some_pairs(int64_t y, int64_t first, int64_t count) {
        const float* there[AT_ONCE];
        for (int64_t k = 0; k < AT_ONCE; ++k) {  // pairs that leave the image, and places left over, read this row
            const int32_t* offset = offsets_ + 2 * (first + std::min(k, count - 1));
            there[k] = (y + offset[0] < height_ ? row(y + offset[0], 0) : row(y, 0)) + offset[1];
        }
        const float* here = row(y, 0);
        const float scale = -1.0f / static_cast<float>(channels_);
        for (int64_t x = 0; x < width_; x += LANES) {
            Vector sums[AT_ONCE] = {};
            for (int64_t d = 0; d < channels_; ++d) {
                const Vector value = load(here + d * pitch_ + x);
#pragma GCC unroll 20
                for (int k = 0; k < AT_ONCE; ++k) sums[k] += magnitude(value - load(there[k] + d * pitch_ + x));
            }
            for (int64_t k = 0; k < count; ++k) {
                const int32_t dy = offsets_[2 * (first + k)], dx = offsets_[2 * (first + k) + 1];
                float affinity[LANES];
                store(affinity, exponential(sums[k] * scale));
                float* out = values_ + ((first + k) * height_ + y) * width_ + x;
                for (int64_t l = 0; l < std::min<int64_t>(LANES, width_ - x); ++l)
                    out[l] = y + dy < height_ && x + l + dx >= 0 && x + l + dx < width_ ? affinity[l] : 0.0f;
            }
        }
    }

    const float* features_;
    int64_t channels_, height_, width_;
    const int32_t* offsets_;
    int64_t pairs_;
    float* values_;
    int64_t reach_, pitch_;
    std::unique_ptr<Aligned<float>> packed_;
};

}  // namespace sccam

// Walks `channels` planes; see WalkTask.
SCCAM_EXPORT int sccam_walk(const float* affinity, const int32_t* offsets, const int32_t* windows, int64_t pairs,
                            int64_t height, int64_t width, const float* scores, float* out, int64_t channels,
                            double beta, const double* coefficients, int64_t degree, int64_t threads) {
    using namespace sccam;
    return guarded([&] {
        const WalkTask task{affinity, offsets, windows, pairs,  height,       width,  scores,
                            out,      channels, beta,   coefficients, degree, static_cast<int>(threads)};
        const int64_t groups = (channels + MOST_CHANNELS_OF_GROUP - 1) / MOST_CHANNELS_OF_GROUP;
        walk_in_groups<MOST_CHANNELS_OF_GROUP>(task, (channels + groups - 1) / groups);
        return OK;
    });
}

// Affinities [R h w] of features [D h w]; 0 where the second cell lies outside.
SCCAM_EXPORT int sccam_affinity(const float* features, int64_t channels, int64_t height, int64_t width,
                                const int32_t* offsets, int64_t pairs, float* values, int64_t threads) {
    using namespace sccam;
    return guarded([&] {
        AffinityPlanes(features, channels, height, width, offsets, pairs, values).run(static_cast<int>(threads));
        return OK;
    });
}
