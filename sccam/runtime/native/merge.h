// Eq. 1 after the network: views of one image, summed over mirror images and scales, divided by their maximum.
//
//     merged_s(y, x) = view_s(y, x) + mirrored_s(y, w_s - 1 - x)
//     M(y, x)        = sum_s bilinear(merged_s)(y, x)         M <- M / (max M + epsilon)
//
// Bilinear interpolation is done along x first, on the few rows of the small map, then along y, where the rows lie
// vector after vector: an image row is a weighted sum of two kept rows for each scale. Threads share the image rows of
// all classes; a row is computed in the same way whoever does it, and a maximum has no order.
#pragma once
#include <cstring>

#include "common.h"
#include "simd.h"

namespace sccam {

// One scale: maps [views classes height width], and where each row and column of the grid reads, after torch's rule:
// first cell, second cell, weight of the second.
struct Scale {
    const float* maps;
    int64_t height, width;
    const int32_t *row_first, *row_second;
    const float* row_weight;
    const int32_t *column_first, *column_second;
    const float* column_weight;
};

// Rows of one scale and class, interpolated along x and kept while the image rows pass over them.
class Stretched {
public:
    Stretched(const Scale& scale, int64_t classes, bool flip, int64_t columns, int64_t padded)
        : scale_(scale), classes_(classes), flip_(flip), columns_(columns), padded_(padded),
          line_(scale.width), rows_(2 * padded, 0.0f) {}

    void begin(int64_t c) { class_ = c; kept_[0] = kept_[1] = -1; }

    // The stretched row y of the map. The row of the other parity stays valid.
    const float* row(int64_t y) {
        float* out = rows_.data() + (y & 1) * padded_;
        if (kept_[y & 1] == y) return out;
        kept_[y & 1] = y;
        const int64_t w = scale_.width;
        const float* line = scale_.maps + (class_ * scale_.height + y) * w;
        if (flip_) {
            const float* mirrored = line + classes_ * scale_.height * w;
            for (int64_t x = 0; x < w; ++x) line_[x] = line[x] + mirrored[w - 1 - x];
            line = line_.data();
        }
        const int32_t *first = scale_.column_first, *second = scale_.column_second;
        const float* weight = scale_.column_weight;
        for (int64_t x = 0; x < columns_; ++x)
            out[x] = line[first[x]] * (1.0f - weight[x]) + line[second[x]] * weight[x];
        return out;
    }

private:
    const Scale& scale_;
    const int64_t classes_;
    const bool flip_;
    const int64_t columns_, padded_;
    Aligned<float> line_, rows_;
    int64_t class_ = 0, kept_[2] = {-1, -1};
};

}  // namespace sccam

// scores [classes rows columns] <- the merged and divided maps; `scales` is an array of `count` Scale.
SCCAM_EXPORT int sccam_merge_maps(const sccam::Scale* scales, int64_t count, int64_t classes, int64_t flip, int64_t rows,
                                  int64_t columns, double epsilon, float* scores, int64_t threads) {
    using namespace sccam;
    return guarded([&] {
        const int64_t padded = (columns + LANES - 1) / LANES * LANES;
        std::vector<Aligned<float>> peaks;  // of each class, as each thread saw it
        for (int64_t n = 0; n < threads; ++n) peaks.emplace_back(classes, 0.0f);
        Barrier barrier(static_cast<int>(threads));
        on_threads(static_cast<int>(threads), [&](int n) {
            std::vector<Stretched> stretched;
            for (int64_t s = 0; s < count; ++s) stretched.emplace_back(scales[s], classes, flip != 0, columns, padded);
            Aligned<float> sum(padded);
            const Share share(classes * rows, n, static_cast<int>(threads));
            for (int64_t r = share.first, c = -1; r < share.last; ++r) {
                const int64_t y = r % rows;
                if (r / rows != c) {
                    c = r / rows;
                    for (auto& one : stretched) one.begin(c);
                }
                for (int64_t s = 0; s < count; ++s) {
                    const Scale& scale = scales[s];
                    const float weight = scale.row_weight[y];
                    const float* top = stretched[s].row(scale.row_first[y]);
                    const float* bottom = stretched[s].row(scale.row_second[y]);
                    const Vector below = all(weight), above = all(1.0f - weight);
                    for (int64_t x = 0; x < padded; x += LANES) {
                        const Vector value = load(top + x) * above + load(bottom + x) * below;
                        store(&sum[x], s == 0 ? value : load(&sum[x]) + value);
                    }
                }
                Vector peak = all(0.0f);
                for (int64_t x = 0; x < padded; x += LANES) peak = maximum(load(&sum[x]), peak);
                for (int lane = 0; lane < LANES; ++lane) peaks[n][c] = peak[lane] > peaks[n][c] ? peak[lane] : peaks[n][c];
                std::memcpy(scores + r * columns, sum.data(), columns * sizeof(float));
            }
            barrier.wait();
            for (int64_t r = share.first; r < share.last; ++r) {
                float peak = 0.0f;
                for (auto& one : peaks) peak = one[r / rows] > peak ? one[r / rows] : peak;
                const float divisor = peak + static_cast<float>(epsilon);
                float* row = scores + r * columns;
                for (int64_t x = 0; x < columns; ++x) row[x] /= divisor;
            }
        });
        return OK;
    });
}
