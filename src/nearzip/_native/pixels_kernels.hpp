// Going through the pixels of one image or of many at once, with what is expected of each.
//
// Like all of `wide.hpp` it has no linkage: `pixels.cpp` and `pixels_v3.cpp` have it each on their own.
#pragma once

#include "pixels.hpp"
#include "static_decoders.hpp"

namespace nearzip {
namespace {

constexpr int kShift = 10, kHalf = 1 << (kShift - 1);
// No image has values beyond it: luma 0 to 255, differences -255 to 255.
constexpr int32_t kMostValue = 511;
// Expected differences are larger than those of levels: classes begin at 1/32 of a value.
constexpr int kScaleShift = 3;
constexpr int32_t kFirstDifference = 8;

// Green and the differences to it (YCoCg-R), reversible in integers.
void to_planes(const PixelModel &m, const uint8_t *pixels, size_t width, int16_t *const *rows) {
    const size_t n = size_t(m.channels);
    for (size_t x = 0; x < width; ++x) {
        const uint8_t *const p = pixels + x * n;
        for (size_t c = 0; c < n; ++c) rows[c][x] = p[c];
        if (!m.color) continue;
        const int32_t co = p[0] - p[2], t = p[2] + (co >> 1), cg = p[1] - t;
        rows[0][x] = int16_t(t + (cg >> 1)), rows[1][x] = int16_t(co), rows[2][x] = int16_t(cg);
    }
}

// The channels of a pixel; values that no pixel has are out of 0 to 255.
template <class K, class V = typename K::Wide>
NZ_INLINE void from_planes(const PixelModel &m, const typename K::Narrow *const *rows, size_t x, V *v) {
    for (int c = 0; c < m.channels; ++c) v[c] = widened(rows[c][x]);
    if (!m.color) return;
    const V t = v[0] - (v[2] >> 1), g = v[2] + t, b = t - (v[1] >> 1);
    v[0] = b + v[1], v[1] = g, v[2] = b;
}

template <class V>
struct Neighbours {
    V w, n, nw, ne, ww, nn;
};

// A plane's last three rows, with the differences beside the values.
template <class K>
struct Plane {
    using Narrow = typename K::Narrow;
    std::vector<Narrow> memory;
    size_t width;

    explicit Plane(size_t w) : memory(6 * w), width(w) {}
    NZ_INLINE Narrow *values(size_t y) { return memory.data() + (y % 3) * width; }
    NZ_INLINE Narrow *differences(size_t y) { return memory.data() + (3 + y % 3) * width; }
};

// At borders the nearest neighbour stands for those that are missing.
template <class K, class N = typename K::Narrow, class V = typename K::Wide>
NZ_INLINE Neighbours<V> around(const N *own, const N *above, const N *above2, size_t x, size_t y, size_t width, int32_t start) {
    Neighbours<V> a;
    if (!y) {
        a.w = x ? widened(own[x - 1]) : V(start), a.ww = x > 1 ? widened(own[x - 2]) : a.w;
        a.n = a.nw = a.ne = a.nn = a.w;
        return a;
    }
    a.n = widened(above[x]), a.w = x ? widened(own[x - 1]) : a.n, a.nw = x ? widened(above[x - 1]) : a.n;
    a.ww = x > 1 ? widened(own[x - 2]) : a.w;
    a.ne = x + 1 < width ? widened(above[x + 1]) : a.n, a.nn = y > 1 ? widened(above2[x]) : a.n;
    return a;
}

// What a pixel's expectation is made of.
template <class V>
struct Features {
    V mean[kPixelMean], scale[kPixelScale], texture;
    int n_mean;  // so many of the mean's, and its last one, are not always 0
};

// Streams are checked after so many pixels.
constexpr size_t kPause = 64;
static_assert(kPause <= ManyStreams::kUnchecked);

// Goes through an image, or many of one shape. `each(channel, features, value)` reads or writes the value, and returns how
// far it is from what was expected; `row_done(y, rows)` gets the values of every row.
template <class K, class Each, class Row>
NZ_INLINE void each_pixel(const PixelModel &m, size_t height, size_t width, const uint8_t *pixels, const Each &each,
                          const Row &row_done) {
    using V = typename K::Wide;
    std::vector<Plane<K>> planes(size_t(m.channels), Plane<K>(width));
    typename K::Narrow *rows[kMaxPixelChannels];
    for (size_t y = 0; y < height; ++y) {
        for (int c = 0; c < m.channels; ++c) rows[c] = planes[size_t(c)].values(y);
        if constexpr (K::kLanes == 1)
            if (pixels) to_planes(m, pixels + y * width * size_t(m.channels), width, rows);
        for (int c = 0; c < m.channels; ++c) {
            Plane<K> &own = planes[size_t(c)];
            auto *const v = rows[c], *const d = own.differences(y);
            const auto *const v1 = own.values(y + 2), *const v2 = own.values(y + 1);
            const auto *const d1 = own.differences(y + 2), *const d2 = own.differences(y + 1);
            Features<V> f;
            f.n_mean = 6 + 4 * (c < 2 ? c : 2);
            for (V &x : f.mean) x = 0;
            for (V &x : f.scale) x = 0;
            f.mean[14] = 1, f.scale[11] = 1;
            for (size_t x = 0; x < width; ++x) {
                const Neighbours<V> n = around<K>(v, v1, v2, x, y, width, m.start[size_t(c)]);
                const Neighbours<V> e = around<K>(d, d1, d2, x, y, width, kFirstDifference);
                f.mean[0] = n.w, f.mean[1] = n.n, f.mean[2] = n.nw, f.mean[3] = n.ne, f.mean[4] = n.ww, f.mean[5] = n.nn;
                f.scale[0] = e.w, f.scale[1] = e.n, f.scale[2] = e.nw, f.scale[3] = e.ne, f.scale[4] = e.ww, f.scale[5] = e.nn;
                for (int back = 1; back <= 2 && back <= c; ++back) {
                    Plane<K> &earlier = planes[size_t(c - back)];
                    const auto *const q = earlier.values(y), *const above = earlier.values(y + 2);
                    V *const g = f.mean + 2 + 4 * back;
                    g[0] = widened(q[x]);
                    g[1] = x ? widened(q[x - 1]) : y ? widened(above[x]) : g[0];
                    g[2] = y ? widened(above[x]) : g[1];
                    g[3] = y && x ? widened(above[x - 1]) : g[2];
                    f.scale[5 + back] = widened(earlier.differences(y)[x]);
                }
                f.scale[8] = magnitude<V>(n.w - n.nw), f.scale[9] = magnitude<V>(n.n - n.nw);
                f.scale[10] = magnitude<V>(n.n - n.ne);
                const V vary = f.scale[8] + f.scale[9] + f.scale[10];
                f.texture = -is_below(V(5), vary) - is_below(V(17), vary) - is_below(V(47), vary);
                narrow_to(d[x], each(c, f, v[x]));
                if (x % kPause == kPause - 1) each.pause();
            }
            each.pause();
        }
        row_done(y, rows);
    }
}

NZ_INLINE int32_t dot(const int32_t *f, const int32_t *w, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; ++i) sum += f[i] * w[i];
    return sum;
}

NZ_INLINE int32_t weighted_mean(const PixelModel &m, int c, const Features<int32_t> &f) {
    return dot(f.mean, &m.mean[size_t(c * kTextures + f.texture) * kPixelMean], kPixelMean);
}
NZ_INLINE int32_t weighted_scale(const PixelModel &m, int c, const Features<int32_t> &f) {
    return dot(f.scale, &m.scale[size_t(c * kTextures + f.texture) * kPixelScale], kPixelScale);
}

// What a pixel is expected to be; no value is far beyond it, so that differences fit the tokens.
template <class V>
NZ_INLINE V expected_value(const PixelModel &m, int c, const Features<V> &f) {
    return clamp_to<V>((weighted_mean(m, c, f) + kHalf) >> kShift, -kMostValue, kMostValue);
}

template <class K, class Coder>
struct CodePixel {
    using V = typename K::Wide;
    const PixelModel &m;
    Coder &coder;

    NZ_INLINE V operator()(int c, const Features<V> &f, typename K::Narrow &value) const {
        const V expected = expected_value(m, c, f);
        const V scale = scale_class<V>(weighted_scale(m, c, f) >> kScaleShift);
        const V difference = coder.code((f.texture + c * kTextures) * kScaleClasses + scale, widened(value) - expected);
        narrow_to(value, in_range(coder, expected + difference, kMostValue));
        return smaller<V>(magnitude(difference), kMostValue);
    }
    NZ_INLINE void pause() const { coder.block_done(); }
};

struct NoOutput {
    NZ_INLINE void operator()(size_t, const int16_t *const *) const {}
};

struct ToPixelsOfOne {
    const PixelModel &m;
    size_t width;
    uint8_t *pixels;

    NZ_INLINE void operator()(size_t y, const int16_t *const *rows) const {
        const size_t n = size_t(m.channels);
        uint8_t *p = pixels + y * width * n;
        uint32_t outside = 0;
        for (size_t x = 0; x < width; ++x, p += n) {
            int32_t v[kMaxPixelChannels];
            from_planes<One>(m, rows, x, v);
            for (size_t c = 0; c < n; ++c) outside |= uint32_t(v[c]) >> 8, p[c] = uint8_t(v[c]);
        }
        if (outside) throw_corrupt("a pixel is out of range");
    }
};

void decode_one(View in, size_t number, const PixelOutput &out) {
    StaticDecoder decoder(out.m.tables, in);
    each_pixel<One>(out.m, out.height, out.width, nullptr, CodePixel<One, StaticDecoder>{out.m, decoder},
                    ToPixelsOfOne{out.m, out.width, out.pixels + number * out.image()});
    decoder.finish();
}

#ifdef NZ_MANY

// Products of features with the weights of each image's texture.
NZ_INLINE void add_weighted(Wide &sum, const Wide &feature, const int32_t *w, const Wide &texture) {
#ifdef NZ_V3
    Wide::Half all;
    std::memcpy(&all, w, sizeof all);
    for (int i = 0; i < kHalves; ++i) sum.half[i] += feature.half[i] * __builtin_shuffle(all, texture.half[i]);
#else
    const Wide low = texture & 1, high = texture >> 1;
    const Wide first = either(is_zero(low), Wide(w[0]), Wide(w[1])), second = either(is_zero(low), Wide(w[2]), Wide(w[3]));
    sum += feature * either(is_zero(high), first, second);
#endif
}

NZ_INLINE Wide weighted_mean(const PixelModel &m, int c, const Features<Wide> &f) {
    const int32_t *const w = &m.by_feature[size_t(c) * kPixelFeatures * 8];
    Wide sum = 0;
    for (int i = 0; i < f.n_mean; ++i) add_weighted(sum, f.mean[i], w + 8 * i, f.texture);
    add_weighted(sum, 1, w + 8 * (kPixelMean - 1), f.texture);
    return sum;
}
NZ_INLINE Wide weighted_scale(const PixelModel &m, int c, const Features<Wide> &f) {
    const int32_t *const w = &m.by_feature[(size_t(c) * kPixelFeatures + kPixelMean) * 8];
    Wide sum = 0;
    for (int i = 0; i < kPixelScale - 1; ++i) add_weighted(sum, f.scale[i], w + 8 * i, f.texture);
    add_weighted(sum, 1, w + 8 * (kPixelScale - 1), f.texture);
    return sum;
}

struct ToPixelsOfMany {
    const PixelOutput &out;
    const size_t *numbers;
    const ManyDecoder<true> &decoder;
    int n_images;

    NZ_INLINE void operator()(size_t y, const Narrow *const *rows) const {
        const PixelModel &m = out.m;
        const size_t n = size_t(m.channels);
        Wide outside = 0;
        for (size_t x = 0; x < out.width;) {
            uint8_t bytes[8 * kMaxPixelChannels][Many::kLanes];
            const size_t from = (y * out.width + x) * n;
            size_t n_bytes = 0;
            for (int k = 0; k < 8 && x < out.width; ++k, ++x) {
                Wide v[kMaxPixelChannels];
                from_planes<Many>(m, rows, x, v);
                for (size_t c = 0; c < n; ++c) outside |= v[c], store_bytes(bytes[n_bytes++], v[c]);
            }
            for (int lane = 0; lane < n_images; ++lane)
                take_lane(out.pixels + numbers[lane] * out.image() + from, bytes, n_bytes, lane);
        }
        if (any((outside >> 8) & decoder.mask())) throw_corrupt("a pixel is out of range");
    }
};

void decode_many(const ManyStreams &in, const size_t *numbers, const PixelOutput &out) {
    ManyDecoder<true> decoder(out.m.tables, in);
    each_pixel<Many>(out.m, out.height, out.width, nullptr, CodePixel<Many, ManyDecoder<true>>{out.m, decoder},
                     ToPixelsOfMany{out, numbers, decoder, in.n});
    decoder.finish();
}

constexpr PixelDecoders kDecoders{decode_one, decode_many};

#else

constexpr PixelDecoders kDecoders{decode_one, nullptr};

#endif

}  // namespace
}  // namespace nearzip
