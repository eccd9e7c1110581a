// The permutohedral lattice of sccam/stages/permutohedral.py, built by SIMD and threads; same vertices, same weights.
//
//   corners of a pixel   its d + 1 vertices; numbered in the order in which pixels meet them
//   key of a vertex      63 bits: remainder and d quotients; a quotient out of range raises KeyOverflow
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

namespace sccam {
namespace crf {

constexpr int TILE = 16;                // side of a tile [px]; a run is a row of a tile
constexpr int REMAINDER_BITS = 3;       // these and the next three: sccam/stages/permutohedral.py
constexpr int quotient_bits(int dimension) { return dimension == 2 ? 21 : 12; }
constexpr int POINTS_AT_ONCE = 4;
constexpr float NORM_FLOOR = 1e-20f;    // sccam/stages/crf.py

constexpr int KNOWN_BITS = 11;          // simplices that are remembered: as many as a few tiles hold

struct KeyOverflow {};

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

// Vertices by key: open addressing, at most half full. Slots hold numbers only, so that they stay in the cache.
class VertexTable {
public:
    // The number of a vertex, a new one if it was not there.
    int32_t number(uint64_t key) {
        const size_t at = place(key);
        if (slots_[at] != EMPTY) return slots_[at];
        const int32_t number = static_cast<int32_t>(keys_.size());
        slots_[at] = number;
        keys_.push_back(key);
        if (2 * keys_.size() > slots_.size()) grow();
        return number;
    }

    // The number of a vertex, or `otherwise`.
    int32_t find(uint64_t key, int32_t otherwise) const {
        const int32_t number = slots_[place(key)];
        return number == EMPTY ? otherwise : number;
    }

    const std::vector<uint64_t>& keys() const { return keys_; }

private:
    static constexpr int32_t EMPTY = -1;

    size_t place(uint64_t key) const {
        size_t at = key * 0x9E3779B97F4A7C15u >> (64 - bits_);  // 2^64 / golden ratio
        while (slots_[at] != EMPTY && keys_[slots_[at]] != key) at = (at + 1) & (slots_.size() - 1);
        return at;
    }

    void grow() {
        slots_.assign(size_t{1} << ++bits_, EMPTY);
        for (size_t n = 0; n < keys_.size(); ++n) slots_[place(keys_[n])] = static_cast<int32_t>(n);
    }

    int bits_ = 12;
    std::vector<int32_t> slots_ = std::vector<int32_t>(size_t{1} << bits_, EMPTY);
    std::vector<uint64_t> keys_;
};

// The arithmetic of keys and simplices in D dimensions.
template <int D>
struct Geometry {
    static constexpr int SIDES = D + 1, BITS = quotient_bits(D);
    static constexpr float MOST = (1 << (BITS - 1)) - 2;  // |quotient|: one step to neighbours, one to the corners

    static constexpr uint64_t unit(int axis) { return axis < D ? uint64_t{1} << (REMAINDER_BITS + axis * BITS) : 0; }
    static constexpr uint64_t all_units() {
        uint64_t sum = 0;
        for (int axis = 0; axis < D; ++axis) sum += unit(axis);
        return sum;
    }
    static constexpr uint64_t ORIGIN = all_units() << (BITS - 1);  // the key of quotients 0, remainder 0

    // One step down along an axis; the step up from there leads back.
    static uint64_t below(uint64_t key, int axis) {
        const bool wraps = (key & ((1 << REMAINDER_BITS) - 1)) == 0;
        return (wraps ? key - all_units() + D : key - 1) + unit(axis);
    }

    // Simplices around LANES points, and the points' weights.
    struct Simplices {
        float weight[SIDES][LANES];
        int32_t quotient[SIDES][LANES], rank[SIDES][LANES];
        int32_t order[LANES];  // the ranks in one number

        uint64_t key(int lane) const {
            uint64_t sum = ORIGIN;
            for (int axis = 0; axis < D; ++axis) sum += unit(axis) * static_cast<uint64_t>(quotient[axis][lane]);
            return sum;
        }
    };

    // Features [D LANES] in standard deviations; the same roundings as the paper form.
    static void simplices(const float (&feature)[D][LANES], Simplices& out) {
        Vector elevated[SIDES], rounded[SIDES], residue[SIDES];
        Integers rank[SIDES], quotient[SIDES];
        Vector total = all(0);
        for (int axis = D; axis > 0; --axis) {
            const Vector scaled = rounded_product(load(feature[axis - 1]), all(scale(axis)));
            elevated[axis] = total - rounded_product(all(axis), scaled);
            total = total + scaled;
        }
        elevated[0] = total;

        const float inverse = 1.0f / SIDES;
        Integers outside{}, excess{};
        for (int side = 0; side < SIDES; ++side) {
            rounded[side] = nearest(rounded_product(all(inverse), elevated[side]));
            residue[side] = elevated[side] - rounded[side] * all(SIDES);
            outside |= ~(magnitude(rounded[side]) <= MOST);  // true for NaN, too
            quotient[side] = __builtin_convertvector(rounded[side], Integers);
            excess += quotient[side];
            rank[side] = Integers{};
        }
        for (int lane = 0; lane < LANES; ++lane)
            if (outside[lane]) throw KeyOverflow{};

        for (int first = 0; first < SIDES; ++first)
            for (int second = first + 1; second < SIDES; ++second) {
                const Integers smaller = residue[first] < residue[second];  // -1 where true
                rank[first] -= smaller;
                rank[second] += 1 + smaller;
            }
        Integers order{};
        for (int side = 0; side < SIDES; ++side) {
            rank[side] += excess;
            const Integers step = (rank[side] >= SIDES) - (rank[side] < 0);
            quotient[side] += step;
            rank[side] += step * SIDES;
            residue[side] = (elevated[side] - __builtin_convertvector(quotient[side], Vector) * all(SIDES)) * inverse;
            order |= rank[side] << (3 * side);
            reinterpret_cast<Integers&>(out.quotient[side]) = quotient[side];
            reinterpret_cast<Integers&>(out.rank[side]) = rank[side];
        }
        reinterpret_cast<Integers&>(out.order) = order;

        Vector ascending[SIDES];
        for (int place = 0; place < SIDES; ++place) {
            ascending[place] = all(0);
            for (int side = 0; side < SIDES; ++side)
                ascending[place] = rank[side] == D - place ? residue[side] : ascending[place];
        }
        store(out.weight[0], ascending[0] + (1.0f - ascending[D]));
        for (int place = 1; place < SIDES; ++place) store(out.weight[place], ascending[place] - ascending[place - 1]);
    }

    // Calls body(remainder, key) for the corners of a simplex: each step takes the largest rank that is left.
    template <class Body>
    static void corners(uint64_t key, const int32_t (&rank)[SIDES], Body&& body) {
        int axis_of[SIDES];
        for (int axis = 0; axis < SIDES; ++axis) axis_of[D - rank[axis]] = axis;
        body(0, key);
        for (int remainder = 1; remainder < SIDES; ++remainder) {
            key += 1 - unit(axis_of[remainder - 1]);
            body(remainder, key);
        }
    }

private:
    static float scale(int axis) {
        const float deviation = static_cast<float>(std::sqrt(2.0 / 3.0) * SIDES);
        return static_cast<float>(1.0 / std::sqrt(static_cast<double>((axis + 1) * axis)) * deviation);
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

// Builds the lattice of D features. `features(y, x, count, out)` fills out[D][LANES] for `count` pixels from (y, x) on.
template <int D, class Features>
Lattice build_lattice(const Tiles& tiles, int parts, int threads, Features&& features) {
    using Shape = Geometry<D>;
    constexpr int SIDES = Shape::SIDES;
    struct Known {  // a simplex that was met before
        uint64_t key = 0;
        int32_t order = 0;
        uint32_t corner[SIDES];

        static size_t place(uint64_t key, int32_t order) {  // two odd factors that mix all bits
            return (key + order * uint64_t{0x632BE59BD9B4E019}) * 0x9E3779B97F4A7C15u >> (64 - KNOWN_BITS);
        }
    };
    struct Part {
        VertexTable table;
        std::vector<float> sum;          // of the weights at each vertex
        std::vector<uint32_t> number;    // of each vertex in the whole lattice
    };
    Lattice out{SIDES};
    out.corner = Aligned<uint32_t>(tiles.pixels() * SIDES);
    out.weight = Aligned<float>(tiles.pixels() * SIDES);
    std::vector<Part> part(parts);

    on_threads(threads, [&](int thread) {
        const Share share(parts, thread, threads);
        for (int64_t p = share.first; p < share.last; ++p) {
            std::vector<Known> cache(size_t{1} << KNOWN_BITS);
            VertexTable& table = part[p].table;
            std::vector<float>& sum = part[p].sum;
            typename Shape::Simplices simplices;
            tiles.runs(p, parts, [&](int64_t pixel, int64_t y, int64_t x, int length) {
                for (int begin = 0; begin < length; begin += LANES) {
                    float feature[D][LANES] = {};
                    const int count = std::min(LANES, length - begin);
                    features(y, x + begin, count, feature);
                    Shape::simplices(feature, simplices);
                    for (int lane = 0; lane < count; ++lane) {
                        const uint64_t key = simplices.key(lane);
                        const int32_t order = simplices.order[lane];
                        Known& known = cache[Known::place(key, order)];
                        if (known.key != key || known.order != order) {
                            int32_t rank[SIDES];
                            for (int side = 0; side < SIDES; ++side) rank[side] = simplices.rank[side][lane];
                            Shape::corners(key, rank, [&](int n, uint64_t at) { known.corner[n] = table.number(at); });
                            known.key = key, known.order = order;
                            sum.resize(table.keys().size());
                        }
                        const int64_t at = (pixel + begin + lane) * SIDES;
                        for (int n = 0; n < SIDES; ++n) {
                            out.corner[at + n] = known.corner[n];
                            out.weight[at + n] = simplices.weight[n][lane];
                            sum[known.corner[n]] += simplices.weight[n][lane];
                        }
                    }
                }
            });
        }
    });

    // One numbering for all parts: the first part's, then what each further part adds.
    VertexTable table = std::move(part[0].table);
    std::vector<float> sum = std::move(part[0].sum);
    out.first.push_back(0);
    out.last.push_back(table.keys().size());
    for (int p = 1; p < parts; ++p) {
        int64_t first = table.keys().size();
        for (size_t n = 0; n < part[p].sum.size(); ++n) {
            const int64_t number = table.number(part[p].table.keys()[n]);
            part[p].number.push_back(number);
            first = std::min(first, number);
            if (number == static_cast<int64_t>(sum.size())) sum.push_back(0);
            sum[number] += part[p].sum[n];
        }
        out.first.push_back(first);
        out.last.push_back(part[p].number.empty() ? first : table.keys().size());
    }
    if (tiles.pixels() % POINTS_AT_ONCE != 0) {  // points at the origin that densecrf adds
        int32_t rank[SIDES];
        for (int side = 0; side < SIDES; ++side) rank[side] = side;
        Shape::corners(Shape::ORIGIN, rank, [&](int, uint64_t vertex) { table.number(vertex); });
    }

    const int64_t M = out.vertices = table.keys().size();
    out.neighbour = Aligned<uint32_t>(SIDES * M * 2, static_cast<uint32_t>(M));
    sum.resize(M + 1);
    std::vector<float> blurred(M + 1);
    on_threads(std::min(threads, SIDES), [&](int thread) {
        const Share share(SIDES, thread, std::min(threads, SIDES));
        for (int64_t axis = share.first; axis < share.last; ++axis) {
            uint32_t* pairs = out.neighbour.data() + axis * M * 2;
            for (int64_t n = 0; n < M; ++n) {
                const uint32_t below = table.find(Shape::below(table.keys()[n], axis), M);
                if (below == M) continue;
                pairs[2 * n] = below;
                pairs[2 * below + 1] = n;
            }
        }
    });
    for (int axis = 0; axis < SIDES; ++axis) {
        const uint32_t* pairs = out.neighbour.data() + axis * M * 2;
        for (int64_t n = 0; n < M; ++n) blurred[n] = sum[n] + 0.5f * (sum[pairs[2 * n]] + sum[pairs[2 * n + 1]]);
        sum.swap(blurred);
    }

    const float alpha = 1 / (1 + std::ldexp(1.0f, -D));
    on_threads(threads, [&](int thread) {
        const Share share(parts, thread, threads);
        for (int64_t p = share.first; p < share.last; ++p)
            tiles.runs(p, parts, [&](int64_t pixel, int64_t, int64_t, int length) {
                float scale[TILE] = {};
                for (int n = 0; n < length; ++n)
                    for (int side = 0; side < SIDES; ++side) {
                        uint32_t& corner = out.corner[(pixel + n) * SIDES + side];
                        if (p > 0) corner = part[p].number[corner];
                        scale[n] += out.weight[(pixel + n) * SIDES + side] * sum[corner];
                    }
                for (int n = 0; n < TILE; ++n) scale[n] = 1 / std::sqrt(alpha * scale[n] + NORM_FLOOR);
                for (int n = 0; n < length; ++n)
                    for (int side = 0; side < SIDES; ++side) out.weight[(pixel + n) * SIDES + side] *= scale[n];
            });
    });
    return out;
}

}  // namespace crf
}  // namespace sccam
