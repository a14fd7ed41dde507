// Images without loss: pixels expected from their neighbours and earlier channels, and the difference coded in contexts.
// Layout and arithmetic: docs/dataset-format.md, "lossless".
#pragma once

#include "static_coder.hpp"

namespace nearzip {

constexpr int kMaxPixelChannels = 4;
// Own neighbours: 6; four values of each of two earlier channels; a constant.
constexpr int kPixelMean = 15;
// Differences around: 6; of earlier channels in the same place: 2; steps between neighbours: 3; a constant.
constexpr int kPixelScale = 12;
constexpr size_t kPixelFeatures = kPixelMean + kPixelScale;
// Sets of weights, by how much a pixel's surroundings vary.
constexpr int kTextures = 4;
constexpr int kPixelContexts = kMaxPixelChannels * kTextures * kScaleClasses;

struct PixelModel {
    int channels = 0;
    bool color = false;                // red, green and blue become luma and two differences, reversibly
    std::vector<int32_t> mean, scale;  // [channel][texture][feature], in units of 2^-10
    std::vector<int32_t> start;        // [channel]: what the first pixel is expected to be
    StaticTables tables;
    // The same weights by feature, for many images at once: [channel][mean, scale][8], those of the four textures twice.
    std::vector<int32_t> by_feature;

    void arrange();
};

// mean: [channel * textures][features][features + 1], and scale alike.
void fit_pixels(const PixelModel &model, size_t height, size_t width, const uint8_t *pixels, double *mean, double *scale);
void count_pixels(const PixelModel &model, size_t height, size_t width, const uint8_t *pixels, uint32_t *counts);
void encode_pixels(const PixelModel &model, size_t height, size_t width, const uint8_t *pixels, Bytes &out);
// Images of one shape, each from its bytes. Throws Corrupt on anything that no encoder writes.
void decode_pixels(const PixelModel &model, size_t height, size_t width, const std::vector<View> &in, uint8_t *pixels);

// What images of one shape are decoded to.
struct PixelOutput {
    const PixelModel &m;
    size_t height, width;
    uint8_t *pixels;

    NZ_INLINE size_t image() const { return height * width * size_t(m.channels); }
};
using PixelDecoders = Decoders<PixelOutput>;

// For x86-64-v3, where the compiler makes such code and the processor has it; else null.
const PixelDecoders *pixel_decoders_v3();

}  // namespace nearzip
