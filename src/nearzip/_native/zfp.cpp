#include "zfp.hpp"

#include <cmath>
#include <cstring>

namespace nearzip {
namespace {

constexpr int kSide = 4;

// The lifting steps of the library's forward transform. Shifts of negative numbers are arithmetic (C++20).
inline void lift(int32_t *p, size_t s) {
    uint32_t x = uint32_t(p[0]), y = uint32_t(p[s]), z = uint32_t(p[2 * s]), w = uint32_t(p[3 * s]);
    const auto half = [](uint32_t v) { return uint32_t(int32_t(v) >> 1); };
    x += w, x = half(x), w -= x;
    z += y, z = half(z), y -= z;
    x += z, x = half(x), z -= x;
    w += y, w = half(w), y -= w;
    w += half(y), y -= half(w);
    p[0] = int32_t(x), p[s] = int32_t(y), p[2 * s] = int32_t(z), p[3 * s] = int32_t(w);
}

void transform(int32_t *block, int dimensions) {
    const int n = dimensions == 1 ? 1 : dimensions == 2 ? 4 : 16;
    for (int i = 0; i < n; ++i) lift(block + 4 * i, 1);
    if (dimensions > 1)
        for (int z = 0; z < (dimensions > 2 ? 4 : 1); ++z)
            for (int x = 0; x < 4; ++x) lift(block + 16 * z + x, 4);
    if (dimensions > 2)
        for (int i = 0; i < 16; ++i) lift(block + i, 16);
}

// Negabinary, the lower planes zero, and back.
inline int32_t cut(int32_t value, uint32_t kept) {
    constexpr uint32_t mask = 0xaaaaaaaau;
    return int32_t((((uint32_t(value) + mask) ^ mask) & kept ^ mask) - mask);
}

// Where a block's value i of an incomplete side of n comes from.
inline size_t source(size_t i, size_t n) {
    if (i < n) return i;
    if (n == 1) return 0;
    if (n == 2) return i == 2 ? 1 : 0;
    return 0;
}

template <class T>
struct Field {
    size_t nx, ny, nz;
    int dimensions;

    Field(const size_t *sizes, int d)
        : nx(sizes[d - 1]), ny(d > 1 ? sizes[d - 2] : 1), nz(d > 2 ? sizes[0] : 1), dimensions(d) {}

    template <class Work>
    void each_block(const T *values, T *out, Work work) const {
        const size_t px = up(nx), py = dimensions > 1 ? up(ny) : 1;
        T block[64];
        const size_t depth = dimensions > 2 ? 4 : 1, height = dimensions > 1 ? 4 : 1;
        for (size_t z = 0; z < nz; z += kSide)
            for (size_t y = 0; y < ny; y += kSide)
                for (size_t x = 0; x < nx; x += kSide) {
                    const size_t mx = left(nx - x), my = left(ny - y), mz = left(nz - z);
                    for (size_t k = 0; k < depth; ++k)
                        for (size_t j = 0; j < height; ++j)
                            for (size_t i = 0; i < 4; ++i)
                                block[16 * k + 4 * j + i] =
                                    values[((z + source(k, mz)) * ny + y + source(j, my)) * nx + x + source(i, mx)];
                    work(block, 4 * height * depth);
                    for (size_t k = 0; k < depth; ++k)
                        for (size_t j = 0; j < height; ++j)
                            std::memcpy(out + ((z + k) * py + y + j) * px + x, block + 16 * k + 4 * j, 4 * sizeof(T));
                }
    }
    static size_t up(size_t n) { return (n + kSide - 1) / kSide * kSide; }
    static size_t left(size_t n) { return n < kSide ? n : kSide; }
};

uint32_t kept_planes(int precision) { return precision >= 32 ? ~0u : ~((1u << (32 - precision)) - 1); }

}  // namespace

void zfp_coefficients(const int32_t *values, const size_t *sizes, int dimensions, int precision, int32_t *out) {
    const uint32_t kept = kept_planes(precision);
    Field<int32_t>(sizes, dimensions).each_block(values, out, [&](int32_t *block, size_t n) {
        transform(block, dimensions);
        for (size_t i = 0; i < n; ++i) block[i] = cut(block[i], kept);
    });
}

void zfp_coefficients(const float *values, const size_t *sizes, int dimensions, int precision, float *out) {
    const uint32_t kept = kept_planes(precision);
    Field<float>(sizes, dimensions).each_block(values, out, [&](float *block, size_t n) {
        float largest = 0;
        for (size_t i = 0; i < n; ++i) largest = std::fabs(block[i]) > largest ? std::fabs(block[i]) : largest;
        int exponent = 0;
        if (largest > 0) std::frexp(largest, &exponent);
        if (exponent < -126) exponent = -126;  // the library's smallest
        int32_t fixed[64];
        for (size_t i = 0; i < n; ++i) fixed[i] = int32_t(std::ldexp(block[i], 30 - exponent));
        transform(fixed, dimensions);
        for (size_t i = 0; i < n; ++i) block[i] = float(std::ldexp(double(cut(fixed[i], kept)), exponent - 30));
    });
}

}  // namespace nearzip
