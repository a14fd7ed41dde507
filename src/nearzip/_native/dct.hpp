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
    std::vector<uint8_t> map;                      // context -> table
    StaticTables tables;
    std::vector<int32_t> steps, shifts;            // [channel][64], [channel][3][64], in 1/16 of a level

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

// Throws Corrupt on anything that no encoder writes.
void decode_levels(const DctModel &model, BlockShape shape, View in, int16_t *levels);
// pixels: [height][width][channel].
void decode_image(const DctModel &model, size_t height, size_t width, View in, uint8_t *pixels);

}  // namespace nearzip
