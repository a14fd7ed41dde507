// Images as quantized 8x8 cosine transforms, coded with contexts from neighbouring blocks, channels and frequencies.
// Layout and arithmetic: docs/dataset-format.md, "nearzip".
#pragma once

#include "static_coder.hpp"

namespace nearzip {

constexpr int kMaxChannels = 4;
// Features of a coefficient's mean: the left block's row, the upper block's column, the same coefficient of two channels.
constexpr int kMeanFeatures = 18;
// Features of its magnitude: six lower frequencies of its own block, nine values of other blocks, a constant.
constexpr int kIntra = 6, kScaleFeatures = 16;
constexpr int kPlaceWeights = kMeanFeatures + kScaleFeatures;
// Features of a block's mean brightness, and of how far it is from what was expected; each for four kinds of borders.
constexpr int kDcFeatures = 8, kBorders = 4;
constexpr int kBuckets = 5, kRegions = 3, kFlagClasses = 12;
constexpr int kAcContexts = 2 * kRegions * kBuckets * kScaleClasses;
constexpr int kDcContexts = 2 * kScaleClasses;
constexpr int kDctContexts = kAcContexts + kDcContexts + 2 * 2 * kFlagClasses;
constexpr int kMaxLevel = 2047;

struct DctModel {
    int channels = 0;
    bool color = false;                            // channels 0 to 2 are luma and two chromas of RGB
    std::vector<int32_t> mean, scale;              // [channel][feature][64], in units of 2^-10
    std::vector<int32_t> dc_mean, dc_scale;        // [channel][border][feature]
    std::vector<uint8_t> start;                    // [channel][64]: magnitudes that a first block's neighbours are taken to have
    StaticTables tables;
    std::vector<int32_t> steps, shifts;            // [channel][64], [channel][3][64], in 1/16 of a level

    // The same weights by place, for many images at once: [channel][64][kPlaceWeights], mean before scale; and whether a
    // place's mean has any.
    std::vector<int32_t> by_place;
    std::vector<uint8_t> has_mean;

    void arrange();
    int type_of(int channel) const { return color && channel < 3 && channel > 0; }
};

struct BlockShape {
    size_t rows, columns;  // of blocks
};

// Sums for least squares: `moments` [n][n + 1] for each row: features times features, and times the target.
struct Moments {
    double *mean, *dc_mean, *scale, *dc_scale;
};

// levels: [row][column][channel][64] of one image.
void count_levels(const DctModel &model, BlockShape shape, const int16_t *levels, uint32_t *counts);
void fit_levels(const DctModel &model, BlockShape shape, const int16_t *levels, const Moments &moments);
void encode_levels(const DctModel &model, BlockShape shape, const int16_t *levels, Bytes &out);

// Images of one shape, of levels or of pixels [height][width][channel], each from its bytes. Throw Corrupt on anything that no
// encoder writes.
void decode_levels(const DctModel &model, BlockShape shape, const std::vector<View> &in, int16_t *levels);
void decode_images(const DctModel &model, size_t height, size_t width, const std::vector<View> &in, uint8_t *pixels);

// What images of one shape are decoded to: one of `pixels` and `levels`, `image` values of each.
struct DctOutput {
    const DctModel &m;
    BlockShape shape;
    size_t height, width, image;
    uint8_t *pixels;
    int16_t *levels;
};

using DctDecoders = Decoders<DctOutput>;

// For x86-64-v3, where the compiler makes such code and the processor has it; else null.
const DctDecoders *dct_decoders_v3();

}  // namespace nearzip
