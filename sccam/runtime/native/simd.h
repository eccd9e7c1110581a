// Vectors of the instruction set that this is compiled for, as compiler vector extensions.
#pragma once

#include <cstdint>

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

// e^x to 1e-7 relative for x in [-87, 88]; smaller x give e^-87, larger ones e^88.
// x = n ln 2 + r, |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, 2^n through the exponent bits.
inline Vector exponential(Vector x) {
    x = minimum(maximum(x, all(-87.0f)), all(88.0f));
    const Vector scaled = x * 1.44269504f;
    const Integers n = __builtin_convertvector(scaled + (scaled < 0 ? all(-0.5f) : all(0.5f)), Integers);
    const Vector whole = __builtin_convertvector(n, Vector);
    const Vector r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vector sum = all(1.0f / 5040);
    for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * r + factor;
    return sum * reinterpret_cast<const Vector&>(static_cast<const Integers&>((n + 127) << 23));
}

}  // namespace sccam
