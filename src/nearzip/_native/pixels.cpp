#include "pixels.hpp"

#include <algorithm>

#include "pixels_kernels.hpp"

namespace nearzip {
namespace {

void add_moments(double *to, const int32_t *f, int n, double target) {
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j < n; ++j) to[i * (n + 1) + j] += double(f[i]) * f[j];
        to[i * (n + 1) + n] += f[i] * target;
    }
}

struct FitPixel {
    const PixelModel &m;
    double *mean, *scale;

    int32_t operator()(int c, const Features<int32_t> &f, int16_t value) const {
        const size_t set = size_t(c * kTextures + f.texture);
        const int32_t difference = std::min(std::abs(value - expected_value(m, c, f)), kMostValue);
        add_moments(mean + set * kPixelMean * (kPixelMean + 1), f.mean, kPixelMean, value);
        add_moments(scale + set * kPixelScale * (kPixelScale + 1), f.scale, kPixelScale, difference);
        return difference;
    }
    void pause() const {}
};

}  // namespace

void PixelModel::arrange() {
    by_feature.assign(size_t(channels) * kPixelFeatures * 8, 0);
    for (size_t c = 0; c < size_t(channels); ++c)
        for (size_t f = 0; f < kPixelFeatures; ++f)
            for (size_t t = 0; t < 8; ++t) {
                const size_t set = c * kTextures + t % kTextures;
                by_feature[(c * kPixelFeatures + f) * 8 + t] =
                    f < kPixelMean ? mean[set * kPixelMean + f] : scale[set * kPixelScale + f - kPixelMean];
            }
}

void fit_pixels(const PixelModel &m, size_t height, size_t width, const uint8_t *pixels, double *mean, double *scale) {
    each_pixel<One>(m, height, width, pixels, FitPixel{m, mean, scale}, NoOutput{});
}

void count_pixels(const PixelModel &m, size_t height, size_t width, const uint8_t *pixels, uint32_t *counts) {
    StaticCounter counter(counts);
    each_pixel<One>(m, height, width, pixels, CodePixel<One, StaticCounter>{m, counter}, NoOutput{});
}

void encode_pixels(const PixelModel &m, size_t height, size_t width, const uint8_t *pixels, Bytes &out) {
    StaticEncoder encoder(m.tables);
    each_pixel<One>(m, height, width, pixels, CodePixel<One, StaticEncoder>{m, encoder}, NoOutput{});
    encoder.finish(out);
}

void decode_pixels(const PixelModel &m, size_t height, size_t width, const std::vector<View> &in, uint8_t *pixels) {
    const PixelDecoders *const v3 = pixel_decoders_v3(), &decoders = v3 ? *v3 : kDecoders;
    const size_t row_bytes = 6 * ManyStreams::kMost * sizeof(int16_t) * width * size_t(m.channels);
    decode_each(in, decoders, row_bytes, PixelOutput{m, height, width, pixels});
}

}  // namespace nearzip
