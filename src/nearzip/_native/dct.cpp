#include "dct.hpp"

#include <algorithm>

#include "dct_kernels.hpp"

namespace nearzip {
namespace {

// ---- least squares ---------------------------------------------------------------------------------------------

void add_moments(double *to, const double *f, int n, double target) {
    for (int i = 0; i < n; ++i) {
        if (f[i] == 0) continue;
        for (int j = 0; j < n; ++j) to[i * (n + 1) + j] += f[i] * f[j];
        to[i * (n + 1) + n] += f[i] * target;
    }
}

void fit_block(const DctModel &m, int c, const Around<One> &n, const Block<One> &b, const Moments &to) {
    double f[kMeanFeatures];
    int32_t d[kDcFeatures];
    const size_t dc_at = size_t(c * kBorders + n.border), row = kDcFeatures * (kDcFeatures + 1);
    dc_features(n, d);
    const int32_t first = expected_level(dot(d, &m.dc_mean[dc_at * kDcFeatures]));
    std::copy(d, d + kDcFeatures, f);
    add_moments(to.dc_mean + dc_at * row, f, kDcFeatures, b.q[0]);
    dc_scale_features(n, d);
    std::copy(d, d + kDcFeatures, f);
    add_moments(to.dc_scale + dc_at * row, f, kDcFeatures, std::abs(b.q[0] - first));
    Expected<One> e(m, c, n);
    e.prepare(0);
    e.prepare(4);
    int32_t wide[kPitch * kPitch] = {};
    for (int i = 1; i < 64; ++i) {
        const int pos = kScan[i], at = padded_place(pos), u = pos >> 3, v = pos & 7;
        const size_t place = size_t(c) * 64 + size_t(pos);
        for (int j = 0; j < 8; ++j) f[j] = n.left_q[8 * u + j], f[8 + j] = n.up_q[8 * j + v];
        f[16] = n.first->q[pos], f[17] = n.second->q[pos];
        add_moments(to.mean + place * kMeanFeatures * (kMeanFeatures + 1), f, kMeanFeatures, b.q[pos]);
        for (int k = 0; k < kIntra; ++k) f[k] = wide[at + kIntraOffset[k]];
        const double other[] = {double(n.left->a[pos]),    double(n.up->a[pos]),      double(n.up_left->a[pos]),
                                double(n.left->soft[pos]), double(n.up->soft[pos]),   double(n.first->a[pos]),
                                double(n.second->a[pos]),  double(n.first->soft[pos]), double(n.second->soft[pos]), 1.0};
        std::copy(other, other + 10, f + kIntra);
        const int32_t level = expected_level(e.mean(pos));
        add_moments(to.scale + place * kScaleFeatures * (kScaleFeatures + 1), f, kScaleFeatures, std::abs(b.q[pos] - level));
        wide[at] = b.q[pos] < 0 ? -b.q[pos] : b.q[pos];
    }
}

void decode_all(const std::vector<View> &in, const DctOutput &out) {
    const DctDecoders *const v3 = dct_decoders_v3(), &decoders = v3 ? *v3 : kDecoders;
    const size_t blocks = 2 * (out.shape.columns + 2) * size_t(out.m.channels);
    decode_each(in, decoders, blocks * ManyStreams::kMost * 3 * 64 * sizeof(int16_t), out);
}

NZ_CLONES void count_clones(const DctModel &m, BlockShape shape, const int16_t *levels, StaticCounter &counter) {
    Nothing nothing;
    code_image<One>(m, shape, levels, counter, nothing);
}

NZ_CLONES void encode_clones(const DctModel &m, BlockShape shape, const int16_t *levels, StaticEncoder &encoder) {
    Nothing nothing;
    code_image<One>(m, shape, levels, encoder, nothing);
}

}  // namespace

void DctModel::arrange() {
    by_place.assign(size_t(channels) * 64 * kPlaceWeights, 0);
    has_mean.assign(size_t(channels) * 64, 0);
    for (size_t c = 0; c < size_t(channels); ++c)
        for (size_t pos = 0; pos < 64; ++pos) {
            int32_t *const to = &by_place[(c * 64 + pos) * kPlaceWeights];
            // The left block's row says nothing of the last row.
            for (size_t f = pos < 56 ? 0 : 8; f < kMeanFeatures; ++f) {
                to[f] = mean[(c * kMeanFeatures + f) * 64 + pos];
                has_mean[c * 64 + pos] |= to[f] != 0;
            }
            for (size_t f = 0; f < kScaleFeatures; ++f) to[kMeanFeatures + f] = scale[(c * kScaleFeatures + f) * 64 + pos];
        }
}

void count_levels(const DctModel &model, BlockShape shape, const int16_t *levels, uint32_t *counts) {
    StaticCounter counter(counts);
    count_clones(model, shape, levels, counter);
}

void encode_levels(const DctModel &model, BlockShape shape, const int16_t *levels, Bytes &out) {
    StaticEncoder encoder(model.tables);
    encode_clones(model, shape, levels, encoder);
    encoder.finish(out);
}

void fit_levels(const DctModel &model, BlockShape shape, const int16_t *levels, const Moments &moments) {
    Blocks<One> blocks(model, shape);
    for (size_t row = 0; row < shape.rows; ++row)
        for (size_t column = 0; column < shape.columns; ++column)
            for (int c = 0; c < model.channels; ++c, levels += 64) {
                Block<One> &b = blocks.at(row, column, c);
                std::memcpy(b.q, levels, sizeof b.q);
                const Around<One> around = blocks.around(row, column, c, shape.columns);
                fit_block(model, c, around, b, moments);
                int32_t d[kDcFeatures];
                dc_features(around, d);
                const int32_t first = expected_level(dot(d, &model.dc_mean[size_t(c * kBorders + around.border) * kDcFeatures]));
                b.surprise = std::abs(b.q[0] - first);
                finish(b);
            }
}

void decode_levels(const DctModel &m, BlockShape shape, const std::vector<View> &in, int16_t *levels) {
    const size_t image = shape.rows * shape.columns * size_t(m.channels) * 64;
    decode_all(in, {m, shape, 8 * shape.rows, 8 * shape.columns, image, nullptr, levels});
}

void decode_images(const DctModel &m, size_t height, size_t width, const std::vector<View> &in, uint8_t *pixels) {
    const BlockShape shape{(height + 7) / 8, (width + 7) / 8};
    decode_all(in, {m, shape, height, width, height * width * size_t(m.channels), pixels, nullptr});
}

}  // namespace nearzip
