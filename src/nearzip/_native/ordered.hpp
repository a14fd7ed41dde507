// Integers that sort like the floats with the same bits, and signed differences as unsigned numbers.
#pragma once

#include "common.hpp"

namespace nearzip {

template <class U>
NZ_INLINE U ordered(U u, bool floats) {
    constexpr U sign = U(U(1) << (8 * sizeof(U) - 1));
    if (!floats) return u;
    return U(u & sign ? ~u : u | sign);
}

template <class U>
NZ_INLINE U unordered(U u, bool floats) {
    constexpr U sign = U(U(1) << (8 * sizeof(U) - 1));
    if (!floats) return u;
    return U(u & sign ? u ^ sign : ~u);
}

template <class U>
NZ_INLINE U zigzag(U d) {
    constexpr int top = 8 * sizeof(U) - 1;
    return U(U(d << 1) ^ U(U(0) - U(d >> top)));
}

template <class U>
NZ_INLINE U unzigzag(U z) {
    return U(U(z >> 1) ^ U(U(0) - U(z & 1)));
}

}  // namespace nearzip
