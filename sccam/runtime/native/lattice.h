// The permutohedral lattice around the pixels of an image, built by SIMD and threads.
//
//   corners of a pixel   its d + 1 vertices; numbered in the order in which pixels meet them
//   part of an image     tiles that one thread works on; results depend on the number of parts, not of threads
//
// Pixels are kept tile by tile, so that the vertices that a tile touches stay in the cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common.h"
#include "simd.h"
#include "simplex.h"

namespace sccam {
namespace crf {

constexpr int TILE = 16;              // side of a tile [px]; a run is a row of a tile
constexpr int KNOWN_BITS = 11;        // 2^ simplices that are remembered: as many as some tiles hold
constexpr int POINTS_AT_ONCE = 4;     // sccam/stages/permutohedral.py
constexpr float NORM_FLOOR = 1e-20f;  // sccam/stages/crf.py

// The order of pixels in memory: tiles row by row, within a tile row by row.
struct Tiles {
    int64_t height, width;

    int64_t pixels() const { return height * width; }
    int64_t across() const { return (width + TILE - 1) / TILE; }
    int64_t count() const { return across() * ((height + TILE - 1) / TILE); }

    // Number of the first pixel of a tile.
    int64_t first_pixel(int64_t tile) const {
        const int64_t y = tile / across() * TILE, x = tile % across() * TILE;
        return y * width + x * std::min<int64_t>(TILE, height - y);
    }

    // Calls body(number of the first pixel, y, x, pixels) for every run of a part.
    template <class Body>
    void runs(int part, int parts, Body&& body) const {
        const Share share(count(), part, parts);
        for (int64_t tile = share.first; tile < share.last; ++tile) {
            const int64_t y = tile / across() * TILE, x = tile % across() * TILE;
            const int length = static_cast<int>(std::min<int64_t>(TILE, width - x));
            int64_t pixel = first_pixel(tile);
            for (int64_t row = y; row < std::min(y + TILE, height); ++row, pixel += length) body(pixel, row, x, length);
        }
    }
};

// What the mean field needs: S with D^-1/2 multiplied into its weights, and the neighbours.
struct Lattice {
    int sides;                           // d + 1
    int64_t vertices = 0;                // M
    Aligned<uint32_t> corner{};          // [N sides]
    Aligned<float> weight{};             // [N sides]
    Aligned<uint32_t> neighbour{};       // [sides M 2], M where there is none
    std::vector<int64_t> first{}, last{}; // vertices that each part touches lie in [first, last)
};

// Builds the lattice of D features. `Features` is called with (y, x, count, out) and fills out[D][LANES] for `count`
// pixels from (y, x) on.
template <int D, class Features>
class LatticeBuilder {
public:
    LatticeBuilder(const Tiles& tiles, int parts, int threads, const Features& features)
        : tiles_(tiles), threads_(threads), features_(features), parts_(parts) {}

    Lattice build() {
        lattice_.corner = Aligned<uint32_t>(tiles_.pixels() * SIDES);
        lattice_.weight = Aligned<float>(tiles_.pixels() * SIDES);
        of_parts([&](int part) { find_corners(part); });
        number_vertices();
        find_neighbours();
        sum_rows();
        of_parts([&](int part) { normalise(part); });
        return std::move(lattice_);
    }

private:
    using Shape = Geometry<D>;
    static constexpr int SIDES = Shape::SIDES;

    struct Part {
        VertexTable table;
        std::vector<float> sum;         // of the weights at each of its vertices
        std::vector<uint32_t> number;   // of each of its vertices in the whole lattice
    };
    struct Known {  // a simplex that was met before
        uint64_t key = 0;
        int32_t order = 0;
        uint32_t corner[SIDES];

        static size_t place(uint64_t key, int32_t order) {  // two odd factors that mix all bits
            return (key + order * uint64_t{0x632BE59BD9B4E019}) * 0x9E3779B97F4A7C15u >> (64 - KNOWN_BITS);
        }
    };

    template <class Body>
    void of_parts(Body&& body) {
        on_threads(threads_, [&](int thread) {
            const Share share(parts_.size(), thread, threads_);
            for (int64_t part = share.first; part < share.last; ++part) body(part);
        });
    }

    // Corners of a part's pixels, numbered within the part, and their weights.
    void find_corners(int part) {
        std::vector<Known> cache(size_t{1} << KNOWN_BITS);
        typename Shape::Simplices simplices;
        tiles_.runs(part, parts_.size(), [&](int64_t pixel, int64_t y, int64_t x, int length) {
            for (int begin = 0; begin < length; begin += LANES) {
                float feature[D][LANES] = {};
                const int count = std::min(LANES, length - begin);
                features_(y, x + begin, count, feature);
                Shape::simplices(feature, simplices);
                for (int lane = 0; lane < count; ++lane)
                    add_point(parts_[part], cache, simplices, lane, (pixel + begin + lane) * SIDES);
            }
        });
    }

    void add_point(Part& part, std::vector<Known>& cache, const typename Shape::Simplices& simplices, int lane,
                   int64_t at) {
        const uint64_t key = simplices.key(lane);
        const int32_t order = simplices.order[lane];
        Known& known = cache[Known::place(key, order)];
        if (known.key != key || known.order != order) {
            int32_t rank[SIDES];
            for (int side = 0; side < SIDES; ++side) rank[side] = simplices.rank[side][lane];
            Shape::corners(key, rank,
                           [&](int side, uint64_t vertex) { known.corner[side] = part.table.number(vertex); });
            known.key = key, known.order = order;
            part.sum.resize(part.table.keys().size());
        }
        for (int side = 0; side < SIDES; ++side) {
            lattice_.corner[at + side] = known.corner[side];
            lattice_.weight[at + side] = simplices.weight[side][lane];
            part.sum[known.corner[side]] += simplices.weight[side][lane];
        }
    }

    // One numbering for all parts: the first part's, then what each further part adds.
    void number_vertices() {
        for (Part& part : parts_) {
            int64_t first = table_.keys().size();
            for (size_t n = 0; n < part.sum.size(); ++n) {
                const int64_t number = table_.number(part.table.keys()[n]);
                part.number.push_back(number);
                first = std::min(first, number);
                if (number == static_cast<int64_t>(sum_.size())) sum_.push_back(0);
                sum_[number] += part.sum[n];
            }
            lattice_.first.push_back(first);
            lattice_.last.push_back(part.number.empty() ? first : table_.keys().size());
        }
        if (tiles_.pixels() % POINTS_AT_ONCE != 0) {  // points at the origin that densecrf adds
            int32_t rank[SIDES];
            for (int side = 0; side < SIDES; ++side) rank[side] = side;
            Shape::corners(Shape::ORIGIN, rank, [&](int, uint64_t vertex) { table_.number(vertex); });
        }
        lattice_.vertices = table_.keys().size();
    }

    void find_neighbours() {
        const int64_t M = lattice_.vertices;
        lattice_.neighbour = Aligned<uint32_t>(SIDES * M * 2, static_cast<uint32_t>(M));
        const int threads = std::min(threads_, SIDES);
        on_threads(threads, [&](int thread) {
            const Share share(SIDES, thread, threads);
            for (int64_t axis = share.first; axis < share.last; ++axis) {
                uint32_t* const pairs = lattice_.neighbour.data() + axis * M * 2;
                for (int64_t n = 0; n < M; ++n) {
                    const int64_t below = table_.find(Shape::below(table_.keys()[n], axis), M);
                    if (below == M) continue;
                    pairs[2 * n] = below;
                    pairs[2 * below + 1] = n;
                }
            }
        });
    }

    // Blurs the sums of weights, so that slicing them gives K 1.
    void sum_rows() {
        const int64_t M = lattice_.vertices;
        sum_.resize(M + 1);
        std::vector<float> blurred(M + 1);
        for (int axis = 0; axis < SIDES; ++axis) {
            const uint32_t* const pairs = lattice_.neighbour.data() + axis * M * 2;
            for (int64_t n = 0; n < M; ++n)
                blurred[n] = sum_[n] + 0.5f * (sum_[pairs[2 * n]] + sum_[pairs[2 * n + 1]]);
            sum_.swap(blurred);
        }
    }

    // Numbers of the whole lattice for a part's corners, and D^-1/2 into their weights.
    void normalise(int part) {
        const float alpha = 1 / (1 + std::ldexp(1.0f, -D));
        const std::vector<uint32_t>& number = parts_[part].number;
        tiles_.runs(part, parts_.size(), [&](int64_t pixel, int64_t, int64_t, int length) {
            uint32_t* const corner = lattice_.corner.data() + pixel * SIDES;
            float* const weight = lattice_.weight.data() + pixel * SIDES;
            float scale[TILE] = {};
            for (int n = 0; n < length; ++n)
                for (int side = 0; side < SIDES; ++side) {
                    uint32_t& at = corner[n * SIDES + side];
                    at = number[at];
                    scale[n] += weight[n * SIDES + side] * sum_[at];
                }
            for (float& value : scale) value = 1 / std::sqrt(alpha * value + NORM_FLOOR);
            for (int n = 0; n < length; ++n)
                for (int side = 0; side < SIDES; ++side) weight[n * SIDES + side] *= scale[n];
        });
    }

    const Tiles tiles_;
    const int threads_;
    const Features& features_;
    Lattice lattice_{SIDES};
    std::vector<Part> parts_;
    VertexTable table_;        // of all parts
    std::vector<float> sum_;   // of the weights at each vertex
};

template <int D, class Features>
Lattice build_lattice(const Tiles& tiles, int parts, int threads, const Features& features) {
    return LatticeBuilder<D, Features>(tiles, parts, threads, features).build();
}

}  // namespace crf
}  // namespace sccam
