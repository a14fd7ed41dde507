#include "dct.hpp"

#include <algorithm>
#include <memory>

namespace nearzip {
namespace {

constexpr uint8_t kScan[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
                               41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
                               30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};
// Where a flag says whether anything but zeros follows: behind the fourth and the seventh diagonal.
constexpr int kFlagAt[2] = {10, 28};
constexpr int kShift = 10, kHalf = 1 << (kShift - 1);

NZ_CLONES void smooth(const int16_t *a, int16_t *soft) {
    int16_t wide[10][16] = {};
    for (int u = 0; u < 8; ++u) std::memcpy(&wide[u + 1][1], a + 8 * u, 8 * sizeof(int16_t));
    wide[1][1] = 0;
    for (int u = 0; u < 8; ++u) {
        const int16_t *const above = wide[u], *const own = wide[u + 1], *const below = wide[u + 2];
        int16_t sides[10];
        for (int v = 0; v < 10; ++v) sides[v] = int16_t(above[v] + below[v] + 2 * own[v]);
        for (int v = 0; v < 8; ++v)
            soft[8 * u + v] = int16_t(sides[v] + sides[v + 2] + 2 * (above[v + 1] + below[v + 1]) + 4 * own[v + 1]);
    }
}

struct Block {
    int16_t q[64];     // levels
    int16_t a[64];     // their magnitudes
    int16_t soft[64];  // magnitudes around: 4 times the own one, 2 times its neighbours, and the diagonal ones; with `a`,
                       // of no use where there is no activity
    int rest[2];       // levels that are not 0 behind the flags
    uint8_t row_used;  // bit u: row u has a level that is not 0
    int activity;      // sum of magnitudes without the first
    int surprise;      // how far the first level is from what was expected

    // What neighbours need of the levels.
    void finish() {
        activity = 0;
        row_used = 0;
        for (int u = 0; u < 8; ++u) {
            int any = 0;
            for (int v = 0; v < 8; ++v) {
                const int16_t m = int16_t(q[8 * u + v] < 0 ? -q[8 * u + v] : q[8 * u + v]);
                a[8 * u + v] = m;
                activity += m;
                any |= m;
            }
            row_used = uint8_t(row_used | (any ? 1 << u : 0));
        }
        activity -= a[0];
        if (activity) smooth(a, soft);
    }
};

const Block kZero{};

// The blocks that a block's contexts come from.
struct Around {
    const Block *left, *up, *up_left, *up_right;  // for magnitudes: where there is none, another one stands for it
    const int16_t *left_q, *up_q;                 // zeros where there is none
    const Block *first, *second;                  // the same place in earlier channels
    int border, left_rows, up_rows;
};

int32_t dc_features(const Around &n, int32_t f[kDcFeatures]) {
    f[0] = n.left->q[0], f[1] = n.up->q[0], f[2] = n.up_left->q[0], f[3] = n.up_right->q[0];
    f[4] = n.left->q[1], f[5] = n.up->q[8], f[6] = n.first->q[0], f[7] = n.second->q[0];
    return kDcFeatures;
}

void dc_scale_features(const Around &n, int32_t f[kDcFeatures]) {
    const auto apart = [](const Block *x, const Block *y) { return std::abs(x->q[0] - y->q[0]); };
    f[0] = apart(n.left, n.up_left), f[1] = apart(n.up, n.up_left), f[2] = apart(n.up, n.up_right);
    f[3] = std::min(n.left->activity, 4095), f[4] = std::min(n.up->activity, 4095);
    f[5] = std::min(n.first->surprise, 4095), f[6] = std::min(n.second->surprise, 4095), f[7] = 1;
}

int32_t dot(const int32_t *f, const int32_t *w) {
    int32_t sum = 0;
    for (int i = 0; i < kDcFeatures; ++i) sum += f[i] * w[i];
    return sum;
}

// Expected levels of a block, and the part of their expected magnitudes that other blocks tell.
struct Expected {
    int32_t mean[64], scale[64];
};

// Adds weighted values of four rows: w is the first row's weights.
template <class T>
NZ_INLINE void add_rows(int32_t *to, const T *values, const int32_t *w) {
    for (int i = 0; i < 32; ++i) to[i] += values[i] * w[i];
}

// Rows `first` to `first` + 3. Terms that are 0 are left out: most are.
NZ_CLONES void expect(const DctModel &m, int channel, const Around &n, int first, Expected &e) {
    const int32_t *const w = m.mean.data() + channel * kMeanFeatures * 64;
    const int at = 8 * first;
    std::memset(e.mean + at, 0, 32 * sizeof(int32_t));
    for (int u = first; u < first + 4 && u < 7; ++u) {
        int32_t *const to = e.mean + 8 * u;
        if (n.left_rows >> u & 1)
            for (int j = 0; j < 8; ++j) {
                const int32_t x = n.left_q[8 * u + j];
                if (!x) continue;
                for (int v = 0; v < 8; ++v) to[v] += x * w[64 * j + 8 * u + v];
            }
    }
    for (int j = 0; j < 8; ++j) {
        if (!(n.up_rows >> j & 1)) continue;
        int32_t x[8];
        for (int v = 0; v < 8; ++v) x[v] = n.up_q[8 * j + v];
        for (int u = first; u < first + 4; ++u)
            for (int v = 0; v < 8; ++v) e.mean[8 * u + v] += x[v] * w[64 * (8 + j) + 8 * u + v];
    }
    const int32_t *const s = m.scale.data() + channel * kScaleFeatures * 64 + kIntra * 64 + at;
    std::memcpy(e.scale + at, s + 576, 32 * sizeof(int32_t));
    int32_t *const scale = e.scale + at;
    if (n.left->activity) add_rows(scale, n.left->a + at, s), add_rows(scale, n.left->soft + at, s + 192);
    if (n.up->activity) add_rows(scale, n.up->a + at, s + 64), add_rows(scale, n.up->soft + at, s + 256);
    if (n.up_left->activity) add_rows(scale, n.up_left->a + at, s + 128);
    if (n.first->activity) {
        add_rows(e.mean + at, n.first->q + at, w + 64 * 16 + at);
        add_rows(scale, n.first->a + at, s + 320), add_rows(scale, n.first->soft + at, s + 448);
    }
    if (n.second->activity) {
        add_rows(e.mean + at, n.second->q + at, w + 64 * 17 + at);
        add_rows(scale, n.second->a + at, s + 384), add_rows(scale, n.second->soft + at, s + 512);
    }
}

// Magnitudes of a block with two zeros around it, so that no frequency needs a border.
constexpr int kPitch = 12;
NZ_INLINE int padded_place(int pos) { return (pos >> 3) * kPitch + (pos & 7) + 2 * kPitch + 2; }
constexpr int kIntraOffset[kIntra] = {-kPitch, -1, -kPitch - 1, -2 * kPitch, -2, kPitch - 1};

NZ_INLINE int bucket_of(int32_t distance) {
    return (distance >= 30) + (distance >= 100) + (distance >= 200) + (distance >= 350);
}

// An expected level, which no level is far beyond: differences fit the tokens.
NZ_INLINE int32_t expected_level(int32_t sum) {
    const int32_t level = (sum + kHalf) >> kShift;
    return level < -kMaxLevel ? -kMaxLevel : level > kMaxLevel ? kMaxLevel : level;
}

int flag_class(int n) { return n < 8 ? n : std::min(kFlagClasses - 1, 8 + ((n - 8) >> 3)); }

[[noreturn]] void out_of_range() { throw Corrupt("a level is out of range"); }

// Levels From to To in the order of the scan; returns how many are not 0.
template <class Coder, int From, int To>
NZ_INLINE int code_levels(int type, int region, const int32_t *w, const Expected &e, Block &b, int32_t *wide, Coder &coder) {
    const int base = (type * kRegions + region) * kBuckets;
    int used = 0;
    for (int i = From; i < To; ++i) {
        const int pos = kScan[i], at = padded_place(pos);
        int32_t expected = e.scale[pos];
        for (int k = 0; k < kIntra; ++k) expected += wide[at + kIntraOffset[k]] * w[64 * k + pos];
        const int32_t level = expected_level(e.mean[pos]), distance = e.mean[pos] - (level << kShift);
        const bool turned = distance < 0;
        const size_t context = size_t((base + bucket_of(turned ? -distance : distance)) * kScaleClasses + scale_class(expected));
        const int32_t d = coder.code(context, turned ? level - b.q[pos] : b.q[pos] - level);
        const int32_t q = turned ? level - d : level + d;
        if (q < -kMaxLevel || q > kMaxLevel) out_of_range();
        b.q[pos] = int16_t(q);
        wide[at] = q < 0 ? -q : q;
        used += q != 0;
    }
    return used;
}

// Whether anything but zeros follows; `near`: levels that are not 0 in the two diagonals before.
template <class Coder>
NZ_INLINE bool code_flag(int type, int flag, int near, const Around &n, const Block &b, Coder &coder) {
    bool more = false;
    if constexpr (!Coder::kDecodes)
        for (int k = kFlagAt[flag]; k < 64; ++k) more |= b.q[kScan[k]] != 0;
    const int around = 2 * near + n.left->rest[flag] + n.up->rest[flag] + n.first->rest[flag];
    return coder.code(size_t(kAcContexts + kDcContexts + (type * 2 + flag) * kFlagClasses + flag_class(around)), more);
}

// One block: `b.q` is read by coders that encode, and written by those that decode.
template <class Coder>
NZ_INLINE void code_block(const DctModel &m, int channel, const Around &n, Block &b, Coder &coder) {
    const int type = m.type_of(channel);
    const size_t dc_at = size_t(channel * kBorders + n.border) * kDcFeatures;
    int32_t f[kDcFeatures];
    dc_features(n, f);
    const int32_t first = expected_level(dot(f, &m.dc_mean[dc_at]));
    dc_scale_features(n, f);
    const int dc_class = scale_class(dot(f, &m.dc_scale[dc_at]));
    b.surprise = coder.code(size_t(kAcContexts + type * kScaleClasses + dc_class), b.q[0] - first);
    const int32_t dc = first + b.surprise;
    b.surprise = std::abs(b.surprise);
    if (dc < -kMaxLevel || dc > kMaxLevel) out_of_range();
    b.q[0] = int16_t(dc);
    b.rest[0] = b.rest[1] = 0;

    Expected e;
    expect(m, channel, n, 0, e);
    int32_t wide[kPitch * kPitch] = {};
    const int32_t *const w = m.scale.data() + channel * kScaleFeatures * 64;
    code_levels<Coder, 1, 3>(type, 0, w, e, b, wide, coder);
    int recent = code_levels<Coder, 3, kFlagAt[0]>(type, 0, w, e, b, wide, coder);
    if (!code_flag(type, 0, recent, n, b, coder)) return;
    expect(m, channel, n, 4, e);
    b.rest[0] = code_levels<Coder, kFlagAt[0], 15>(type, 1, w, e, b, wide, coder);
    recent = code_levels<Coder, 15, kFlagAt[1]>(type, 1, w, e, b, wide, coder);
    b.rest[0] += recent;
    if (!code_flag(type, 1, recent, n, b, coder)) return;
    b.rest[1] = code_levels<Coder, kFlagAt[1], 64>(type, 2, w, e, b, wide, coder);
    b.rest[0] += b.rest[1];
}

// Goes through the blocks of an image. `each(row, column, channel, block, around)` codes one.
class Blocks {
public:
    Blocks(const DctModel &m, BlockShape shape) : m_(m), width_(shape.columns + 2), rows_(2 * size_t(m.channels) * width_) {
        for (int c = 0; c < m.channels; ++c) {
            for (int i = 0; i < 64; ++i) {
                start_[c].q[i] = int16_t(m.start[size_t(c) * 64 + size_t(i)]);
            }
            start_[c].finish();
            std::fill(start_[c].q, start_[c].q + 64, int16_t(0));
            start_[c].row_used = 0;
        }
    }
    Block &at(size_t row, size_t column, int c) { return rows_[((row & 1) * size_t(m_.channels) + size_t(c)) * width_ + column + 1]; }

    Around around(size_t row, size_t column, int c, size_t columns) {
        const bool has_left = column > 0, has_up = row > 0;
        Around n;
        const Block *const start = &start_[c];
        const Block *const left = has_left ? &at(row, column - 1, c) : nullptr;
        const Block *const up = has_up ? &at(row - 1, column, c) : nullptr;
        n.left = left ? left : up ? up : start;
        n.up = up ? up : n.left;
        n.up_left = left && up ? &at(row - 1, column - 1, c) : n.left;
        n.up_right = up && column + 1 < columns ? &at(row - 1, column + 1, c) : n.up;
        n.left_q = left ? left->q : kZero.q;
        n.up_q = up ? up->q : kZero.q;
        n.first = c > 0 ? &at(row, column, 0) : &kZero;
        n.second = c > 1 ? &at(row, column, 1) : &kZero;
        n.border = has_left + 2 * has_up;
        n.left_rows = left ? left->row_used : 0;
        n.up_rows = up ? up->row_used : 0;
        return n;
    }

private:
    const DctModel &m_;
    size_t width_;
    std::vector<Block> rows_;
    Block start_[kMaxChannels] = {};
};

template <class Coder, class Row>
void code_image(const DctModel &m, BlockShape shape, const int16_t *levels, Coder &coder, Row row_done) {
    Blocks blocks(m, shape);
    for (size_t row = 0; row < shape.rows; ++row) {
        for (size_t column = 0; column < shape.columns; ++column)
            for (int c = 0; c < m.channels; ++c) {
                Block &b = blocks.at(row, column, c);
                if (levels) {
                    std::memcpy(b.q, levels, sizeof b.q);
                    levels += 64;
                } else {
                    std::memset(b.q, 0, sizeof b.q);
                }
                code_block(m, c, blocks.around(row, column, c, shape.columns), b, coder);
                b.finish();
            }
        row_done(row, blocks);
    }
}

constexpr auto kNothing = [](size_t, Blocks &) {};

// ---- least squares ---------------------------------------------------------------------------------------------

void add_moments(double *to, const double *f, int n, double target) {
    for (int i = 0; i < n; ++i) {
        if (f[i] == 0) continue;
        for (int j = 0; j < n; ++j) to[i * (n + 1) + j] += f[i] * f[j];
        to[i * (n + 1) + n] += f[i] * target;
    }
}

void fit_block(const DctModel &m, int c, const Around &n, const Block &b, const Moments &to) {
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
    Expected e;
    expect(m, c, n, 0, e);
    expect(m, c, n, 4, e);
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
        const int32_t level = expected_level(e.mean[pos]);
        add_moments(to.scale + place * kScaleFeatures * (kScaleFeatures + 1), f, kScaleFeatures, std::abs(b.q[pos] - level));
        wide[at] = b.q[pos] < 0 ? -b.q[pos] : b.q[pos];
    }
}

// ---- pixels ----------------------------------------------------------------------------------------------------

// cos((2 i + 1) u pi / 16) times 1/2, for u = 0 times 1/sqrt(8); in units of 2^-13, [u][i].
constexpr int32_t kBasis[8][8] = {
    {2896, 2896, 2896, 2896, 2896, 2896, 2896, 2896},   {4017, 3406, 2276, 799, -799, -2276, -3406, -4017},
    {3784, 1567, -1567, -3784, -3784, -1567, 1567, 3784}, {3406, -799, -4017, -2276, 2276, 4017, 799, -3406},
    {2896, -2896, -2896, 2896, 2896, -2896, -2896, 2896}, {2276, -4017, 799, 3406, -3406, -799, 4017, -2276},
    {1567, -3784, 3784, -1567, -1567, 3784, -3784, 1567}, {799, -2276, 3406, -4017, 4017, -3406, 2276, -799}};
constexpr int kBasisShift = 13;

NZ_INLINE int32_t clamped(int32_t x, int32_t most) { return x < -most ? -most : x > most ? most : x; }

// Levels to values in quarters of a grey level, rows of `pitch`.
NZ_INLINE int32_t restored(int32_t q, int i, const int32_t *steps, const int32_t *shifts) {
    const int32_t m = q < 0 ? -q : q, shift = m == 0 ? 0 : shifts[64 * (m > 2 ? 2 : m - 1) + i];
    const int32_t v = clamped(m * steps[i] - shift, 32767);
    return q < 0 ? -v : v;
}

NZ_CLONES void undo_block(const Block &b, const int32_t *steps, const int32_t *shifts, int32_t *out, size_t pitch) {
    constexpr int32_t first_half = 1 << (kBasisShift - 1), second_half = 1 << (kBasisShift + 1);
    if (!b.activity) {  // one value
        const int32_t half = clamped((kBasis[0][0] * restored(b.q[0], 0, steps, shifts) + first_half) >> kBasisShift, 65535);
        const int32_t value = (half * kBasis[0][0] + second_half) >> (kBasisShift + 2);
        for (int i = 0; i < 8; ++i) std::fill(out + size_t(i) * pitch, out + size_t(i) * pitch + 8, value);
        return;
    }
    int32_t x[64] = {}, half[64] = {};
    int columns = 0;
    for (int u = 0; u < 8; ++u) {
        if (!(b.row_used >> u & 1)) continue;
        for (int v = 0; v < 8; ++v)
            if (b.q[8 * u + v]) x[8 * u + v] = restored(b.q[8 * u + v], 8 * u + v, steps, shifts), columns = std::max(columns, v + 1);
        for (int i = 0; i < 8; ++i)
            for (int v = 0; v < 8; ++v) half[8 * i + v] += kBasis[u][i] * x[8 * u + v];
    }
    for (int i = 0; i < 64; ++i) half[i] = clamped((half[i] + first_half) >> kBasisShift, 65535);
    for (int i = 0; i < 8; ++i) {
        int32_t sum[8] = {};
        for (int v = 0; v < columns; ++v)
            for (int j = 0; j < 8; ++j) sum[j] += half[8 * i + v] * kBasis[v][j];
        for (int j = 0; j < 8; ++j) out[size_t(i) * pitch + size_t(j)] = (sum[j] + second_half) >> (kBasisShift + 2);
    }
}

NZ_INLINE uint8_t to_byte(int32_t quarters) {
    const int32_t v = ((quarters + 2) >> 2) + 128;
    return uint8_t(v < 0 ? 0 : v > 255 ? 255 : v);
}

NZ_CLONES void to_rgb(const int32_t *y, const int32_t *cb, const int32_t *cr, size_t n, uint8_t *out, size_t channels) {
    for (size_t i = 0; i < n; ++i) {
        // Chroma beyond any image's is cut, so that no product overflows.
        const int32_t b = clamped(cb[i], 8191), r = clamped(cr[i], 8191), l = y[i];
        out[i * channels] = to_byte(l + ((91881 * r + 32768) >> 16));
        out[i * channels + 1] = to_byte(l - ((22554 * b + 46802 * r + 32768) >> 16));
        out[i * channels + 2] = to_byte(l + ((116130 * b + 32768) >> 16));
    }
}

}  // namespace

void count_levels(const DctModel &model, BlockShape shape, const int16_t *levels, uint32_t *counts) {
    StaticCounter counter(counts);
    code_image(model, shape, levels, counter, kNothing);
}

void encode_levels(const DctModel &model, BlockShape shape, const int16_t *levels, Bytes &out) {
    StaticEncoder encoder(model.tables, model.map.data());
    code_image(model, shape, levels, encoder, kNothing);
    encoder.finish(out);
}

void decode_levels(const DctModel &model, BlockShape shape, View in, int16_t *levels) {
    StaticDecoder decoder(model.tables, model.map.data(), in);
    code_image(model, shape, nullptr, decoder, [&](size_t row, Blocks &blocks) {
        for (size_t column = 0; column < shape.columns; ++column)
            for (int c = 0; c < model.channels; ++c, levels += 64)
                std::memcpy(levels, blocks.at(row, column, c).q, 64 * sizeof(int16_t));
    });
    decoder.finish();
}

void fit_levels(const DctModel &model, BlockShape shape, const int16_t *levels, const Moments &moments) {
    Blocks blocks(model, shape);
    for (size_t row = 0; row < shape.rows; ++row)
        for (size_t column = 0; column < shape.columns; ++column)
            for (int c = 0; c < model.channels; ++c, levels += 64) {
                Block &b = blocks.at(row, column, c);
                std::memcpy(b.q, levels, sizeof b.q);
                const Around around = blocks.around(row, column, c, shape.columns);
                fit_block(model, c, around, b, moments);
                int32_t d[kDcFeatures];
                dc_features(around, d);
                const int32_t first = expected_level(dot(d, &model.dc_mean[size_t(c * kBorders + around.border) * kDcFeatures]));
                b.surprise = std::abs(b.q[0] - first);
                b.finish();
            }
}

void decode_image(const DctModel &model, size_t height, size_t width, View in, uint8_t *pixels) {
    const BlockShape shape{(height + 7) / 8, (width + 7) / 8};
    const size_t pitch = 8 * shape.columns, n = size_t(model.channels);
    std::vector<int32_t> planes(n * 8 * pitch);
    StaticDecoder decoder(model.tables, model.map.data(), in);
    code_image(model, shape, nullptr, decoder, [&](size_t row, Blocks &blocks) {
        for (size_t c = 0; c < n; ++c)
            for (size_t column = 0; column < shape.columns; ++column)
                undo_block(blocks.at(row, column, int(c)), &model.steps[64 * c], &model.shifts[192 * c],
                           &planes[c * 8 * pitch + 8 * column], pitch);
        for (size_t i = 0; i < std::min<size_t>(8, height - 8 * row); ++i) {
            uint8_t *const to = pixels + (8 * row + i) * width * n;
            const int32_t *const from = &planes[i * pitch];
            const size_t first = model.color ? 3 : 0;
            if (model.color) to_rgb(from, from + 8 * pitch, from + 16 * pitch, width, to, n);
            for (size_t c = first; c < n; ++c)
                for (size_t x = 0; x < width; ++x) to[x * n + c] = to_byte(from[c * 8 * pitch + x]);
        }
    });
    decoder.finish();
}

}  // namespace nearzip
