// Sixteen integers at once: the same steps on sixteen images, or on one (int32_t). Kernels are templates over `One` and `Many`;
// what they share beyond operators is here.
#pragma once

#include "common.hpp"

// Vector types of GCC and clang, for any processor. Without them everything works on one image at a time.
#if defined(__GNUC__)
#define NZ_MANY 1
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed to functions that are always inlined, so to none
#endif
#endif

namespace nearzip {
namespace {

struct One {
    static constexpr int kLanes = 1;
    using Wide = int32_t;
    using Narrow = int16_t;
};

NZ_INLINE int32_t widened(int16_t x) { return x; }
NZ_INLINE void narrow_to(int16_t &to, int32_t x) { to = int16_t(x); }
// Masks are -1 where it is so, else 0.
NZ_INLINE int32_t is_below(int32_t a, int32_t b) { return -int32_t(a < b); }
NZ_INLINE int32_t is_zero(int32_t a) { return -int32_t(a == 0); }
NZ_INLINE int32_t either(int32_t mask, int32_t a, int32_t b) { return mask ? a : b; }
NZ_INLINE bool any(int32_t x) { return x != 0; }
// Exponent of 2 and the bit behind the leading one, for numbers from 4 to 2^24: 2 * bit_length(x) + bit.
NZ_INLINE int32_t half_octaves(int32_t x) {
    const int n = bit_length(uint32_t(x));
    return 2 * n + ((x >> (n - 2)) & 1);
}

#ifdef NZ_MANY

constexpr int kHalves = 2;

struct Wide {
    // Aligned for the largest registers that any clone has: without them GCC would take less to be enough.
    typedef int32_t Half __attribute__((vector_size(32), aligned(32)));
    Half half[kHalves];

    Wide() = default;
    NZ_INLINE Wide(int32_t x) {
        for (Half &h : half) h = Half{x, x, x, x, x, x, x, x};
    }
};

#define NZ_WIDE_OPERATOR(op)                                                   \
    NZ_INLINE Wide operator op(const Wide &a, const Wide &b) {                 \
        Wide c;                                                                \
        for (int i = 0; i < kHalves; ++i) c.half[i] = a.half[i] op b.half[i];  \
        return c;                                                              \
    }
NZ_WIDE_OPERATOR(+)
NZ_WIDE_OPERATOR(-)
NZ_WIDE_OPERATOR(*)
NZ_WIDE_OPERATOR(&)
NZ_WIDE_OPERATOR(|)
NZ_WIDE_OPERATOR(^)
#undef NZ_WIDE_OPERATOR
NZ_INLINE Wide operator>>(const Wide &a, int n) {
    Wide c;
    for (int i = 0; i < kHalves; ++i) c.half[i] = a.half[i] >> n;
    return c;
}
NZ_INLINE Wide operator<<(const Wide &a, int n) {
    Wide c;
    for (int i = 0; i < kHalves; ++i) c.half[i] = a.half[i] << n;
    return c;
}
NZ_INLINE Wide operator-(const Wide &a) { return Wide(0) - a; }
NZ_INLINE Wide &operator+=(Wide &a, const Wide &b) { return a = a + b; }
NZ_INLINE Wide &operator-=(Wide &a, const Wide &b) { return a = a - b; }
NZ_INLINE Wide &operator|=(Wide &a, const Wide &b) { return a = a | b; }
NZ_INLINE Wide is_below(const Wide &a, const Wide &b) {
    Wide c;
    for (int i = 0; i < kHalves; ++i) c.half[i] = a.half[i] < b.half[i];
    return c;
}
NZ_INLINE Wide is_zero(const Wide &a) {
    Wide c;
    for (int i = 0; i < kHalves; ++i) c.half[i] = a.half[i] == 0;
    return c;
}
NZ_INLINE Wide either(const Wide &mask, const Wide &a, const Wide &b) {
    Wide c;
    for (int i = 0; i < kHalves; ++i) c.half[i] = mask.half[i] ? a.half[i] : b.half[i];
    return c;
}
NZ_INLINE bool any(const Wide &a) {
    Wide::Half all = a.half[0];
    for (int i = 1; i < kHalves; ++i) all |= a.half[i];
    uint64_t words[4];
    std::memcpy(words, &all, sizeof words);
    return (words[0] | words[1] | words[2] | words[3]) != 0;
}
NZ_INLINE Wide half_octaves(const Wide &x) {
    typedef float Floats __attribute__((vector_size(32), aligned(32)));
    Wide c;
    for (int i = 0; i < kHalves; ++i) {
        const Floats f = __builtin_convertvector(x.half[i], Floats);  // exact
        Wide::Half bits;
        std::memcpy(&bits, &f, sizeof bits);
        c.half[i] = (bits >> 22) - 252;
    }
    return c;
}

struct Narrow {
    typedef int16_t Half __attribute__((vector_size(16), aligned(16)));
    typedef int16_t All __attribute__((vector_size(16 * kHalves), aligned(16 * kHalves)));
    All all;
};

NZ_INLINE Wide widened(const Narrow &x) {
    Wide c;
    for (int i = 0; i < kHalves; ++i) {
        Narrow::Half half;
        std::memcpy(&half, reinterpret_cast<const char *>(&x) + i * sizeof half, sizeof half);
        c.half[i] = __builtin_convertvector(half, Wide::Half);
    }
    return c;
}
NZ_INLINE void narrow_to(Narrow &to, const Wide &x) {
    for (int i = 0; i < kHalves; ++i) {
        const Narrow::Half half = __builtin_convertvector(x.half[i], Narrow::Half);
        std::memcpy(reinterpret_cast<char *>(&to) + i * sizeof half, &half, sizeof half);
    }
}

// The lowest bytes of sixteen numbers; and the bytes of one lane out of many such.
NZ_INLINE void store_bytes(uint8_t *to, const Wide &x) {
    int32_t values[8 * kHalves];
    std::memcpy(values, &x, sizeof values);
    for (int lane = 0; lane < 8 * kHalves; ++lane) to[lane] = uint8_t(values[lane]);
}
NZ_INLINE void take_lane(uint8_t *to, const uint8_t (*bytes)[8 * kHalves], size_t n, int lane) {
    for (size_t k = 0; k < n; ++k) to[k] = bytes[k][lane];
}

struct Many {
    static constexpr int kLanes = 8 * kHalves;
    using Wide = nearzip::Wide;
    using Narrow = nearzip::Narrow;
};

#endif

template <class V>
NZ_INLINE V magnitude(const V &x) {
    const V sign = x >> 31;
    return (x ^ sign) - sign;
}
template <class V>
NZ_INLINE V smaller(const V &a, const V &b) { return either(is_below(a, b), a, b); }
template <class V>
NZ_INLINE V clamp_to(const V &x, int32_t low, int32_t high) {
    return smaller(either(is_below(x, V(low)), V(low), x), V(high));
}

}  // namespace
}  // namespace nearzip
