// Simplices of the permutohedral lattice of sccam/stages/permutohedral.py: which vertices surround a point, with which
// weights, and how vertices are numbered and found.
//
//   key of a vertex   63 bits: remainder and d quotients; a quotient out of range raises KeyOverflow
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "simd.h"

namespace sccam {
namespace crf {

constexpr int REMAINDER_BITS = 3;  // this and the next: sccam/stages/permutohedral.py
constexpr int quotient_bits(int dimension) { return dimension == 2 ? 21 : 12; }

struct KeyOverflow {};

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

}  // namespace crf
}  // namespace sccam
