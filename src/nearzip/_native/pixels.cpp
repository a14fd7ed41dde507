#include "pixels.hpp"

#include <algorithm>

namespace nearzip {
namespace {

constexpr int kShift = 10, kHalf = 1 << (kShift - 1);
// No image has values beyond it: luma 0 to 255, differences -255 to 255.
constexpr int32_t kMostValue = 511;
// Expected differences are larger than those of levels: classes begin at 1/32 of a value.
constexpr int kScaleShift = 3;
constexpr int32_t kFirstDifference = 8;

// Green and the differences to it (YCoCg-R), reversible in integers.
void to_planes(const PixelModel &m, const uint8_t *pixels, size_t width, int32_t *const *rows) {
    const size_t n = size_t(m.channels);
    for (size_t x = 0; x < width; ++x) {
        const uint8_t *const p = pixels + x * n;
        for (size_t c = 0; c < n; ++c) rows[c][x] = p[c];
        if (!m.color) continue;
        const int32_t co = p[0] - p[2], t = p[2] + (co >> 1), cg = p[1] - t;
        rows[0][x] = t + (cg >> 1), rows[1][x] = co, rows[2][x] = cg;
    }
}

// Throws Corrupt for values that no pixel has.
void from_planes(const PixelModel &m, const int32_t *const *rows, size_t width, uint8_t *pixels) {
    const size_t n = size_t(m.channels);
    uint32_t outside = 0;
    for (size_t x = 0; x < width; ++x) {
        uint8_t *const p = pixels + x * n;
        int32_t v[kMaxPixelChannels];
        for (size_t c = 0; c < n; ++c) v[c] = rows[c][x];
        if (m.color) {
            const int32_t t = v[0] - (v[2] >> 1), g = v[2] + t, b = t - (v[1] >> 1);
            v[0] = b + v[1], v[1] = g, v[2] = b;
        }
        for (size_t c = 0; c < n; ++c) outside |= uint32_t(v[c]) >> 8, p[c] = uint8_t(v[c]);
    }
    if (outside) throw Corrupt("a pixel is out of range");
}

struct Neighbours {
    int32_t w, n, nw, ne, ww, nn;
};

// A plane's last three rows, with the differences beside the values.
struct Plane {
    std::vector<int32_t> memory;
    size_t width;

    explicit Plane(size_t w) : memory(6 * w), width(w) {}
    int32_t *values(size_t y) { return memory.data() + (y % 3) * width; }
    int32_t *differences(size_t y) { return memory.data() + (3 + y % 3) * width; }
};

// At borders the nearest neighbour stands for those that are missing.
NZ_INLINE Neighbours around(const int32_t *own, const int32_t *above, const int32_t *above2, size_t x, size_t y, size_t width,
                            int32_t start) {
    Neighbours a;
    if (!y) {
        a.w = x ? own[x - 1] : start, a.ww = x > 1 ? own[x - 2] : a.w;
        a.n = a.nw = a.ne = a.nn = a.w;
        return a;
    }
    a.n = above[x], a.w = x ? own[x - 1] : a.n, a.nw = x ? above[x - 1] : a.n, a.ww = x > 1 ? own[x - 2] : a.w;
    a.ne = x + 1 < width ? above[x + 1] : a.n, a.nn = y > 1 ? above2[x] : a.n;
    return a;
}

// Goes through an image. `each(channel, texture, features, scale features, value)` reads or writes the value, and returns
// how far it is from what was expected.
template <class Each>
NZ_INLINE void each_pixel(const PixelModel &m, size_t height, size_t width, const uint8_t *pixels, uint8_t *out, Each each) {
    std::vector<Plane> planes(size_t(m.channels), Plane(width));
    int32_t *rows[kMaxPixelChannels];
    for (size_t y = 0; y < height; ++y) {
        for (int c = 0; c < m.channels; ++c) rows[c] = planes[size_t(c)].values(y);
        if (pixels) to_planes(m, pixels + y * width * size_t(m.channels), width, rows);
        for (int c = 0; c < m.channels; ++c) {
            Plane &own = planes[size_t(c)];
            int32_t *const v = rows[c], *const d = own.differences(y);
            const int32_t *const v1 = own.values(y + 2), *const v2 = own.values(y + 1);
            const int32_t *const d1 = own.differences(y + 2), *const d2 = own.differences(y + 1);
            for (size_t x = 0; x < width; ++x) {
                const Neighbours n = around(v, v1, v2, x, y, width, m.start[size_t(c)]);
                const Neighbours e = around(d, d1, d2, x, y, width, kFirstDifference);
                int32_t f[kPixelMean] = {n.w, n.n, n.nw, n.ne, n.ww, n.nn}, s[kPixelScale] = {e.w, e.n, e.nw, e.ne, e.ww, e.nn};
                for (int back = 1; back <= 2 && back <= c; ++back) {
                    Plane &earlier = planes[size_t(c - back)];
                    const int32_t *const q = earlier.values(y);
                    const Neighbours o = around(q, earlier.values(y + 2), q, x, std::min<size_t>(y, 1), width, q[0]);
                    int32_t *const g = f + 2 + 4 * back;
                    g[0] = q[x], g[1] = o.w, g[2] = o.n, g[3] = o.nw;
                    s[5 + back] = earlier.differences(y)[x];
                }
                f[14] = 1, s[11] = 1;
                s[8] = std::abs(n.w - n.nw), s[9] = std::abs(n.n - n.nw), s[10] = std::abs(n.n - n.ne);
                const int32_t vary = s[8] + s[9] + s[10];
                d[x] = each(c, (vary >= 6) + (vary >= 18) + (vary >= 48), f, s, v[x]);
            }
        }
        if (out) from_planes(m, rows, width, out + y * width * size_t(m.channels));
    }
}

NZ_INLINE int32_t dot(const int32_t *f, const int32_t *w, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; ++i) sum += f[i] * w[i];
    return sum;
}

// What a pixel is expected to be; no value is far beyond it, so that differences fit the tokens.
NZ_INLINE int32_t expected_value(const PixelModel &m, int set, const int32_t *f) {
    const int32_t value = (dot(f, &m.mean[size_t(set) * kPixelMean], kPixelMean) + kHalf) >> kShift;
    return value < -kMostValue ? -kMostValue : value > kMostValue ? kMostValue : value;
}

template <class Coder>
void code_pixels(const PixelModel &m, size_t height, size_t width, const uint8_t *pixels, uint8_t *out, Coder &coder) {
    each_pixel(m, height, width, pixels, out, [&](int c, int texture, const int32_t *f, const int32_t *s, int32_t &value) {
        const int set = c * kTextures + texture;
        const int32_t expected = expected_value(m, set, f);
        const int scale = scale_class(dot(s, &m.scale[size_t(set) * kPixelScale], kPixelScale) >> kScaleShift);
        const int32_t difference = coder.code(size_t(set * kScaleClasses + scale), value - expected);
        value = expected + difference;
        if (value < -kMostValue || value > kMostValue) throw Corrupt("a pixel is out of range");
        return std::min(std::abs(difference), kMostValue);
    });
}

void add_moments(double *to, const int32_t *f, int n, double target) {
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j < n; ++j) to[i * (n + 1) + j] += double(f[i]) * f[j];
        to[i * (n + 1) + n] += f[i] * target;
    }
}

}  // namespace

void fit_pixels(const PixelModel &m, size_t height, size_t width, const uint8_t *pixels, double *mean, double *scale) {
    each_pixel(m, height, width, pixels, nullptr, [&](int c, int texture, const int32_t *f, const int32_t *s, int32_t &value) {
        const int set = c * kTextures + texture;
        const int32_t expected = expected_value(m, set, f);
        const int32_t difference = std::min(std::abs(value - expected), kMostValue);
        add_moments(mean + size_t(set) * kPixelMean * (kPixelMean + 1), f, kPixelMean, value);
        add_moments(scale + size_t(set) * kPixelScale * (kPixelScale + 1), s, kPixelScale, difference);
        return difference;
    });
}

void count_pixels(const PixelModel &m, size_t height, size_t width, const uint8_t *pixels, uint32_t *counts) {
    StaticCounter counter(counts);
    code_pixels(m, height, width, pixels, nullptr, counter);
}

void encode_pixels(const PixelModel &m, size_t height, size_t width, const uint8_t *pixels, Bytes &out) {
    StaticEncoder encoder(m.tables, m.map.data());
    code_pixels(m, height, width, pixels, nullptr, encoder);
    encoder.finish(out);
}

void decode_pixels(const PixelModel &m, size_t height, size_t width, View in, uint8_t *pixels) {
    StaticDecoder decoder(m.tables, m.map.data(), in);
    code_pixels(m, height, width, nullptr, pixels, decoder);
    decoder.finish();
}

}  // namespace nearzip
