// The channel with the highest score at every pixel, scores interpolated between the rows of a grid.
//
//     score_c(y, x) = (1 - b) g_c(y0, x) + b g_c(y1, x)        label(y, x) = the first c of the highest score
//
// The grid comes already interpolated along x, its rows padded to whole vectors. No score is ever stored.
#pragma once
#include "common.h"
#include "simd.h"

// labels u8 [rows columns] <- grid [channels height columns]; columns is a multiple of 16.
SCCAM_EXPORT int sccam_pixel_labels(const float* grid, int64_t channels, int64_t height, int64_t columns, int64_t rows,
                                    const int32_t* first, const int32_t* second, const float* weight, uint8_t* labels) {
    using namespace sccam;
    return guarded([&] {
        Aligned<int32_t> best_of_row(columns);
        for (int64_t y = 0; y < rows; ++y) {
            const Vector below = all(weight[y]), above = all(1.0f - weight[y]);
            for (int64_t x = 0; x < columns; x += LANES) {
                const float *top = grid + first[y] * columns + x, *bottom = grid + second[y] * columns + x;
                Vector highest = load(top) * above + load(bottom) * below;
                Integers best = {};
                for (int64_t c = 1; c < channels; ++c) {
                    const int64_t plane = c * height * columns;
                    const Vector score = load(top + plane) * above + load(bottom + plane) * below;
                    const Integers higher = score > highest;
                    highest = higher ? score : highest;
                    best = higher ? static_cast<int32_t>(c) - Integers{} : best;
                }
                *reinterpret_cast<Integers*>(&best_of_row[x]) = best;
            }
            for (int64_t x = 0; x < columns; ++x) labels[y * columns + x] = static_cast<uint8_t>(best_of_row[x]);
        }
        return OK;
    });
}
