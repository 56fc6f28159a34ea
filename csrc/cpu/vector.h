// One SIMD register as a vector type of GCC and Clang, which turn its arithmetic into the instructions of whatever set
// the file is compiled for. Everything is in an unnamed namespace and no inline function of the standard library is
// used: the linker must never share code between instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#define INLINE __attribute__((always_inline)) inline

// The build gives each instruction set a name: queue_attention becomes ssl_core_queue_attention_avx512.
#define SSL_CORE_JOIN(name, isa) ssl_core_##name##_##isa
#define SSL_CORE_EXPAND(name, isa) SSL_CORE_JOIN(name, isa)
#define SSL_CORE_SYMBOL(name) SSL_CORE_EXPAND(name, SSL_CORE_ISA)

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

INLINE Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
INLINE void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }
INLINE Vector broadcast(float value) { return value - Vector{}; }

// The second where the first is not a number.
INLINE Vector max(Vector a, Vector b) { return a > b ? a : b; }
INLINE Vector min(Vector a, Vector b) { return a < b ? a : b; }

INLINE Vector reversed(Vector x) {
#if defined(__AVX512F__)
    return __builtin_shufflevector(x, x, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#elif defined(__AVX2__)
    return __builtin_shufflevector(x, x, 7, 6, 5, 4, 3, 2, 1, 0);
#else
    return __builtin_shufflevector(x, x, 3, 2, 1, 0);
#endif
}

INLINE bool any(Integers mask) {
    int32_t found = 0;
    for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
    return found != 0;
}

// 2^x for x < 127; exactly 0 below -126 and exactly 1 at 0. From -126 to 0 the relative error is at most 1.2 * 2^-24 with
// fused multiply-adds, 1.6 * 2^-24 without: the minimax polynomial of degree 6 on [-1/2, 1/2] among those that are 1 at 0,
// which is 0.05 * 2^-24 off, and rounding. Degree 5 gave 2.9 * 2^-24, and saved less than 1 % of a kernel's time.
INLINE Vector exp2(Vector x) {
    const Vector round = broadcast(12582912.f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const Vector shifted = x + round;
    const Vector f = x - (shifted - round);
    Vector p = broadcast(1.53264714e-4f);
    p = p * f + 1.33908063e-3f;
    p = p * f + 9.61850584e-3f;
    p = p * f + 5.55035993e-2f;
    p = p * f + 2.40226477e-1f;
    p = p * f + 6.93147182e-1f;
    p = p * f + 1.f;
    const Vector scaled = (Vector)((Bits)p + ((Bits)shifted << 23));
    return x < -126.f ? Vector{} : scaled;
}

INLINE float from_bfloat16(uint16_t bits) {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

// To nearest, ties to even, as torch; NaN stays NaN.
INLINE uint16_t to_bfloat16(float value) {
    if (value != value) return 0x7FC0;
    uint32_t word;
    memcpy(&word, &value, 4);
    return static_cast<uint16_t>((word + 0x7FFF + ((word >> 16) & 1)) >> 16);
}

}  // namespace
