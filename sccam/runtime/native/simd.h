// Vectors of the instruction set that this is compiled for, as compiler vector extensions.
#pragma once

#include <cstdint>
#include <utility>

namespace sccam {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

template <int WIDTH>
struct VectorOf {
    typedef float type __attribute__((vector_size(WIDTH * sizeof(float)), aligned(sizeof(float)), may_alias));
};

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
inline Vector all(float value) { return value - Vector{}; }
inline Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
inline Vector minimum(Vector a, Vector b) { return a < b ? a : b; }
inline Vector magnitude(Vector a) { return maximum(a, -a); }

// Says that a loaded value stays in a register: compilers may otherwise read it from memory once for every use.
inline Vector held(Vector value) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(value));
#elif defined(__x86_64__)
    __asm__("" : "+x"(value));
#endif
    return value;
}

// a * b, rounded: never part of a fused multiply-add. For sums that must not depend on the instruction set.
inline Vector rounded_product(Vector a, Vector b) {
    Vector product = a * b;
#if defined(__x86_64__)
    asm("" : "+x"(product));
#elif defined(__aarch64__)
    asm("" : "+w"(product));
#endif
    return product;
}

// The nearest whole number, halves to even; for |a| < 2^22.
inline Vector nearest(Vector a) {
    const Vector shift = all(12582912.0f);  // 1.5 * 2^23: adding it leaves no bits for fractions
    return (a + shift) - shift;
}

template <int STEP, int... LANE>
inline Vector exchanged(Vector a, std::integer_sequence<int, LANE...>) {
    return Vector{a[LANE ^ STEP]...};
}

// Lane n gets the combination, by maximum or by sum, of the lanes of its group: aligned, `width` lanes, a power of two.
template <class Combine>
inline Vector over_groups(Vector a, int width, Combine combine) {
    constexpr std::make_integer_sequence<int, LANES> lanes;
    if (width > 1) a = combine(a, exchanged<1>(a, lanes));
    if (width > 2) a = combine(a, exchanged<2>(a, lanes));
    if constexpr (LANES > 4)
        if (width > 4) a = combine(a, exchanged<4>(a, lanes));
    if constexpr (LANES > 8)
        if (width > 8) a = combine(a, exchanged<8>(a, lanes));
    return a;
}

template <int STEP, int... LANE>
inline void transpose_step(Vector (&rows)[LANES], std::integer_sequence<int, LANE...> lanes) {
    const Integers upper = {(LANE & STEP ? -1 : 0)...};
    for (int row = 0; row < LANES; ++row) {
        if (row & STEP) continue;
        const Vector a = rows[row], b = rows[row | STEP];
        rows[row] = upper ? exchanged<STEP>(b, lanes) : a;
        rows[row | STEP] = upper ? b : exchanged<STEP>(a, lanes);
    }
}

// Rows become columns: in blocks of 1, 2, 4, ... lanes, the upper right one and the lower left one change places.
inline void transpose(Vector (&rows)[LANES]) {
    constexpr std::make_integer_sequence<int, LANES> lanes;
    transpose_step<1>(rows, lanes);
    transpose_step<2>(rows, lanes);
    if constexpr (LANES > 4) transpose_step<4>(rows, lanes);
    if constexpr (LANES > 8) transpose_step<8>(rows, lanes);
}

// ln x to 1e-7 for positive normal x. x = 2^n m, m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s), s = (m - 1) / (m + 1),
// by its series up to s^9, since |s| <= 0.172.
inline Vector logarithm(Vector x) {
    const Integers bits = reinterpret_cast<const Integers&>(x);
    const Integers n = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3: sqrt(1/2)
    const Integers rest = bits - (n << 23);
    const Vector m = reinterpret_cast<const Vector&>(rest);
    const Vector s = (m - 1.0f) / (m + 1.0f), square = s * s;
    Vector series = all(2.0f / 9);
    for (float factor : {2.0f / 7, 2.0f / 5, 2.0f / 3, 2.0f}) series = series * square + factor;
    return __builtin_convertvector(n, Vector) * 0.693147181f + series * s;
}

// e^x to 2e-7 relative for x in [-87, 88] and nothing useful beyond.
// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, 2^n through the exponent bits.
inline Vector exponential_in_range(Vector x) {
    const Vector shift = all(12582912.0f);  // 1.5 * 2^23: the sum's last bits are the nearest whole number
    const Vector shifted = x * 1.44269504f + shift;
    const Vector n = shifted - shift;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector sum = all(1.0f / 5040);
    for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * r + factor;
    const Integers bits = (reinterpret_cast<const Integers&>(shifted) + 127) << 23;
    return sum * reinterpret_cast<const Vector&>(bits);
}

// e^x; x below -87 gives e^-87, above 88 e^88.
inline Vector exponential(Vector x) { return exponential_in_range(minimum(maximum(x, all(-87.0f)), all(88.0f))); }

}  // namespace sccam
