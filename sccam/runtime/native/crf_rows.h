// The rows of the dense CRF: how the labels of several unaries lie side by side in lanes, how scores come in and
// posteriors go out, and the softmax. A run is up to TILE pixels; its rows lie `stride` lanes apart.
#pragma once

#include <algorithm>
#include <vector>

#include "lattice.h"
#include "simd.h"

namespace sccam {
namespace crf {

constexpr float NO_LABEL = -1e30f;  // log score of a lane without label
constexpr float FAINTEST = -60;     // e^-60 of the largest counts as zero, so that no sum is a denormal number: slow

// Which lanes of a row belong to which unary.
struct Rows {
    struct Group {
        int first, labels, vectors;  // first lane; whole vectors, 0 where several groups share one
    };
    std::vector<Group> groups;
    int group_width = 1;  // lanes of a group that is no wider than a vector
    int used = 0;         // lanes before the last group's padding
    int lanes = 0;        // of a vertex
    int stride = 0;       // lanes of a pixel while it is worked on: whole vectors if more than one

    explicit Rows(const std::vector<int>& labels) {
        const int most = *std::max_element(labels.begin(), labels.end());
        while (group_width < most && group_width < LANES) group_width *= 2;
        for (int count : labels) {
            const int vectors = most > LANES ? (count + LANES - 1) / LANES : 0;
            groups.push_back({lanes, count, vectors});
            used = lanes + count;
            lanes += vectors ? vectors * LANES : group_width;
        }
        int width = 4;
        while (width < lanes && width < LANES) width *= 2;
        stride = lanes = (lanes + width - 1) / width * width;
        if (LANES == 16 && used > 16 && used <= 24) lanes = 24;  // three half vectors: less memory than two whole ones
    }
};

// What comes in and goes out: a plane of pixels for each label of each unary.
struct Planes {
    Rows rows;
    int64_t pixels;              // of a plane
    const float* const* scores;  // [unaries][labels H W]
    float* const* posteriors;    // likewise
    float score_floor;
};

// A run of one label's plane, as long as it is, and TILE values of it.
inline void copy_run(const float* from, int length, float* to) {
    if (length == TILE) std::copy_n(from, TILE, to);  // a known length is one instruction or two
    else std::copy_n(from, length, to);
}

// Logarithms of the scores of a run, to `rows` [TILE stride].
inline void read_logits(const Planes& planes, int64_t place, int length, float* rows) {
    const int stride = planes.rows.stride;
    std::fill_n(rows, TILE * stride, NO_LABEL);
    float column[LANES][TILE] = {};  // of some labels at a time, as many as fill a vector
    for (size_t unary = 0; unary < planes.rows.groups.size(); ++unary) {
        const Rows::Group& group = planes.rows.groups[unary];
        for (int first = 0; first < group.labels; first += LANES) {
            const int labels = std::min(LANES, group.labels - first);
            for (int label = 0; label < labels; ++label) {
                copy_run(planes.scores[unary] + (first + label) * planes.pixels + place, length, column[label]);
                for (int n = 0; n < TILE; n += LANES) {
                    const Vector score = load(column[label] + n);
                    store(column[label] + n, logarithm(minimum(maximum(score, all(planes.score_floor)), all(1))));
                }
            }
            float* const to = rows + group.first + first;
            if (group.vectors == 0) {
                for (int label = 0; label < labels; ++label)
                    for (int n = 0; n < TILE; ++n) to[n * stride + label] = column[label][n];
                continue;
            }
            for (int n = 0; n < TILE; n += LANES) {
                Vector block[LANES];
                for (int label = 0; label < LANES; ++label)
                    block[label] = label < labels ? load(column[label] + n) : all(NO_LABEL);
                transpose(block);
                for (int pixel = 0; pixel < LANES; ++pixel) store(to + (n + pixel) * stride, block[pixel]);
            }
        }
    }
}

inline void write_posteriors(const Planes& planes, int64_t place, int length, const float* rows) {
    const int stride = planes.rows.stride;
    for (size_t unary = 0; unary < planes.rows.groups.size(); ++unary) {
        const Rows::Group& group = planes.rows.groups[unary];
        float column[LANES][TILE];
        for (int first = 0; first < group.labels; first += LANES) {
            const int labels = std::min(LANES, group.labels - first);
            const float* const from = rows + group.first + first;
            if (group.vectors == 0) {
                for (int label = 0; label < labels; ++label)
                    for (int n = 0; n < TILE; ++n) column[label][n] = from[n * stride + label];
            } else {
                for (int n = 0; n < TILE; n += LANES) {
                    Vector block[LANES];
                    for (int pixel = 0; pixel < LANES; ++pixel) block[pixel] = load(from + (n + pixel) * stride);
                    transpose(block);
                    for (int label = 0; label < LANES; ++label) store(column[label] + n, block[label]);
                }
            }
            for (int label = 0; label < labels; ++label)
                copy_run(column[label], length, planes.posteriors[unary] + (first + label) * planes.pixels + place);
        }
    }
}

inline Vector power(Vector logit) { return logit < FAINTEST ? all(0) : exponential_in_range(logit); }

struct Largest {
    Vector operator()(Vector a, Vector b) const { return maximum(a, b); }
};
struct Sum {
    Vector operator()(Vector a, Vector b) const { return a + b; }
};

// Softmax of groups that share vectors, or fill one; `count` lanes in all.
inline void softmax_within_vectors(float* row, int count, int group_width) {
    for (int n = 0; n < count; n += LANES) {
        const Vector logit = load(row + n);
        const Vector q = power(logit - over_groups(logit, group_width, Largest()));
        store(row + n, q / over_groups(q, group_width, Sum()));
    }
}

// Softmax of one group of whole vectors, in TILE rows.
template <int COUNT>
void softmax_of_vectors(float* row, int stride) {
    for (float* const end = row + TILE * stride; row < end; row += stride) {
        Vector q[COUNT];
        for (int n = 0; n < COUNT; ++n) q[n] = load(row + n * LANES);
        Vector most = q[0], total = all(0);
        for (int n = 1; n < COUNT; ++n) most = maximum(most, q[n]);
        most = over_groups(most, LANES, Largest());
        for (int n = 0; n < COUNT; ++n) total += q[n] = power(q[n] - most);
        total = 1.0f / over_groups(total, LANES, Sum());
        for (int n = 0; n < COUNT; ++n) store(row + n * LANES, q[n] * total);
    }
}

inline void softmax_of_vectors(float* row, int stride, int count) {
    for (float* const end = row + TILE * stride; row < end; row += stride) {
        Vector most = load(row), total = all(0);
        for (int n = 1; n < count; ++n) most = maximum(most, load(row + n * LANES));
        most = over_groups(most, LANES, Largest());
        for (int n = 0; n < count; ++n) {
            const Vector q = power(load(row + n * LANES) - most);
            store(row + n * LANES, q);
            total += q;
        }
        total = 1.0f / over_groups(total, LANES, Sum());
        for (int n = 0; n < count; ++n) store(row + n * LANES, load(row + n * LANES) * total);
    }
}

// Softmax of every group of TILE rows, in place.
inline void softmax(const Rows& rows, float* row) {
    for (const Rows::Group& group : rows.groups) {
        if (group.vectors == 0) return softmax_within_vectors(row, TILE * rows.stride, rows.group_width);
        if (group.vectors == 2) softmax_of_vectors<2>(row + group.first, rows.stride);
        else if (group.vectors == 3) softmax_of_vectors<3>(row + group.first, rows.stride);
        else softmax_of_vectors(row + group.first, rows.stride, group.vectors);
    }
}

}  // namespace crf
}  // namespace sccam
