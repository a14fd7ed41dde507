// Decoding blocks of levels to pixels, one image or many at once, and the contexts that encoders share.
//
// Like all of `wide.hpp` it has no linkage: `dct.cpp` and `dct_v3.cpp` have it each on their own.
#pragma once

#include "dct.hpp"
#include "static_decoders.hpp"

namespace nearzip {
namespace {

constexpr uint8_t kScan[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
                               41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
                               30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};
// Where a flag says whether anything but zeros follows: behind the fourth and the seventh diagonal.
constexpr int kFlagAt[2] = {10, 28};
// The scan in parts: each but the first of a region counts what flags need to know; -1: no flag before it.
struct Stretch {
    int from, to, region, flag;
};
constexpr Stretch kStretches[] = {{1, 3, 0, -1}, {3, 10, 0, -1}, {10, 15, 1, 0}, {15, 28, 1, -1}, {28, 64, 2, 1}};
constexpr int kShift = 10, kHalf = 1 << (kShift - 1);

template <class K>
struct Block {
    typename K::Narrow q[64];     // levels
    typename K::Narrow a[64];     // their magnitudes
    typename K::Narrow soft[64];  // magnitudes around: 4 times the own one, 2 times its neighbours, and the diagonal ones
    typename K::Wide rest[2];     // levels that are not 0 behind the flags
    typename K::Wide activity;    // sum of magnitudes without the first
    typename K::Wide surprise;    // how far the first level is from what was expected
    uint8_t row_used;             // bit u: row u has a level that is not 0, in any image
    bool active;                  // whether there is activity in any image; if not, `a` and `soft` are of no use
};

NZ_INLINE void smooth(const int16_t *a, int16_t *soft) {
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

// What neighbours need of the levels.
NZ_INLINE void finish(Block<One> &b) {
    b.activity = 0;
    b.row_used = 0;
    for (int u = 0; u < 8; ++u) {
        int any = 0;
        for (int v = 0; v < 8; ++v) {
            const int16_t m = int16_t(b.q[8 * u + v] < 0 ? -b.q[8 * u + v] : b.q[8 * u + v]);
            b.a[8 * u + v] = m;
            b.activity += m;
            any |= m;
        }
        b.row_used = uint8_t(b.row_used | (any ? 1 << u : 0));
    }
    b.activity -= b.a[0];
    b.active = b.activity != 0;
    if (b.active) smooth(b.a, b.soft);
}

#ifdef NZ_MANY

NZ_INLINE void finish(Block<Many> &b) {
    using All = Narrow::All;
    b.activity = 0;
    b.row_used = 0;
    All wide[10][10] = {};
    for (int u = 0; u < 8; ++u) {
        All any = {}, sum = {};
        for (int v = 0; v < 8; ++v) {
            const All q = b.q[8 * u + v].all, sign = q >> 15, m = (q ^ sign) - sign;
            b.a[8 * u + v].all = wide[u + 1][v + 1] = m;
            any |= m;
            if (u + v) sum += m;  // of 8 levels, up to 2047 each
        }
        b.activity += widened(Narrow{sum});
        b.row_used = uint8_t(b.row_used | (nearzip::any(widened(Narrow{any})) ? 1 << u : 0));
    }
    b.active = any(b.activity);
    if (!b.active) return;
    wide[1][1] = All{};
    for (int u = 0; u < 8; ++u) {
        const All *const above = wide[u], *const own = wide[u + 1], *const below = wide[u + 2];
        All sides[10];
        for (int v = 0; v < 10; ++v) sides[v] = above[v] + below[v] + own[v] + own[v];
        for (int v = 0; v < 8; ++v) {
            const All half = above[v + 1] + below[v + 1] + own[v + 1] + own[v + 1];
            b.soft[8 * u + v].all = sides[v] + sides[v + 2] + half + half;
        }
    }
}

#endif

template <class K>
const Block<K> kZero{};

// The blocks that a block's contexts come from.
template <class K>
struct Around {
    const Block<K> *left, *up, *up_left, *up_right;  // for magnitudes: where there is none, another one stands for it
    const typename K::Narrow *left_q, *up_q;         // zeros where there is none
    const Block<K> *first, *second;                  // the same place in earlier channels
    int border, left_rows, up_rows;
};

template <class K, class V = typename K::Wide>
NZ_INLINE void dc_features(const Around<K> &n, V f[kDcFeatures]) {
    f[0] = widened(n.left->q[0]), f[1] = widened(n.up->q[0]), f[2] = widened(n.up_left->q[0]);
    f[3] = widened(n.up_right->q[0]), f[4] = widened(n.left->q[1]), f[5] = widened(n.up->q[8]);
    f[6] = widened(n.first->q[0]), f[7] = widened(n.second->q[0]);
}

template <class K, class V = typename K::Wide>
NZ_INLINE void dc_scale_features(const Around<K> &n, V f[kDcFeatures]) {
    const auto apart = [](const Block<K> *x, const Block<K> *y) { return magnitude<V>(widened(x->q[0]) - widened(y->q[0])); };
    f[0] = apart(n.left, n.up_left), f[1] = apart(n.up, n.up_left), f[2] = apart(n.up, n.up_right);
    f[3] = smaller<V>(n.left->activity, 4095), f[4] = smaller<V>(n.up->activity, 4095);
    f[5] = smaller<V>(n.first->surprise, 4095), f[6] = smaller<V>(n.second->surprise, 4095), f[7] = 1;
}

template <class V>
NZ_INLINE V dot(const V *f, const int32_t *w) {
    V sum = f[0] * w[0];
    for (int i = 1; i < kDcFeatures; ++i) sum += f[i] * w[i];
    return sum;
}

// Expected levels of a block, and the part of their expected magnitudes that other blocks tell.
template <class K>
struct Expected;

// Adds weighted values of four rows: w is the first row's weights.
template <class T>
NZ_INLINE void add_rows(int32_t *to, const T *values, const int32_t *w) {
    for (int i = 0; i < 32; ++i) to[i] += values[i] * w[i];
}

// Of one image: row by row, in advance. Terms that are 0 are left out: most are.
template <>
struct Expected<One> {
    const DctModel &m;
    const Around<One> &n;
    int channel;
    int32_t means[64], scales[64];

    NZ_INLINE Expected(const DctModel &model, int c, const Around<One> &around) : m(model), n(around), channel(c) {}
    NZ_INLINE int32_t mean(int pos) const { return means[pos]; }
    NZ_INLINE int32_t scale(int pos) const { return scales[pos]; }
    NZ_INLINE bool has_mean(int) const { return true; }

    // Rows `first` to `first` + 3.
    NZ_INLINE void prepare(int first) {
        const int32_t *const w = m.mean.data() + channel * kMeanFeatures * 64;
        const int at = 8 * first;
        std::memset(means + at, 0, 32 * sizeof(int32_t));
        for (int u = first; u < first + 4 && u < 7; ++u) {
            int32_t *const to = means + 8 * u;
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
                for (int v = 0; v < 8; ++v) means[8 * u + v] += x[v] * w[64 * (8 + j) + 8 * u + v];
        }
        const int32_t *const s = m.scale.data() + channel * kScaleFeatures * 64 + kIntra * 64 + at;
        std::memcpy(scales + at, s + 576, 32 * sizeof(int32_t));
        int32_t *const to = scales + at;
        if (n.left->active) add_rows(to, n.left->a + at, s), add_rows(to, n.left->soft + at, s + 192);
        if (n.up->active) add_rows(to, n.up->a + at, s + 64), add_rows(to, n.up->soft + at, s + 256);
        if (n.up_left->active) add_rows(to, n.up_left->a + at, s + 128);
        if (n.first->active) {
            add_rows(means + at, n.first->q + at, w + 64 * 16 + at);
            add_rows(to, n.first->a + at, s + 320), add_rows(to, n.first->soft + at, s + 448);
        }
        if (n.second->active) {
            add_rows(means + at, n.second->q + at, w + 64 * 17 + at);
            add_rows(to, n.second->a + at, s + 384), add_rows(to, n.second->soft + at, s + 512);
        }
    }
};

#ifdef NZ_MANY

// Of many images: place by place, when it is needed.
template <>
struct Expected<Many> {
    const Around<Many> &n;
    const int32_t *weights;
    const uint8_t *has;

    NZ_INLINE Expected(const DctModel &m, int c, const Around<Many> &around)
        : n(around), weights(&m.by_place[size_t(c) * 64 * kPlaceWeights]), has(&m.has_mean[size_t(c) * 64]) {}
    NZ_INLINE void prepare(int) {}
    NZ_INLINE bool has_mean(int pos) const { return has[pos]; }
    NZ_INLINE Wide mean(int pos) const {
        const int32_t *const w = weights + pos * kPlaceWeights;
        const Narrow *const left = n.left_q + (pos & ~7), *const up = n.up_q + (pos & 7);
        Wide sum = widened(left[0]) * w[0];
        for (int j = 1; j < 8; ++j) sum += widened(left[j]) * w[j];
        for (int j = 0; j < 8; ++j) sum += widened(up[8 * j]) * w[8 + j];
        if (n.first->active) sum += widened(n.first->q[pos]) * w[16];
        if (n.second->active) sum += widened(n.second->q[pos]) * w[17];
        return sum;
    }
    NZ_INLINE Wide scale(int pos) const {
        const int32_t *const w = weights + pos * kPlaceWeights + kMeanFeatures + kIntra;
        Wide sum = w[9];
        if (n.left->active) sum += widened(n.left->a[pos]) * w[0] + widened(n.left->soft[pos]) * w[3];
        if (n.up->active) sum += widened(n.up->a[pos]) * w[1] + widened(n.up->soft[pos]) * w[4];
        if (n.up_left->active) sum += widened(n.up_left->a[pos]) * w[2];
        if (n.first->active) sum += widened(n.first->a[pos]) * w[5] + widened(n.first->soft[pos]) * w[7];
        if (n.second->active) sum += widened(n.second->a[pos]) * w[6] + widened(n.second->soft[pos]) * w[8];
        return sum;
    }
};

#endif

// Magnitudes of a block with two zeros around it, so that no frequency needs a border.
constexpr int kPitch = 12;
NZ_INLINE int padded_place(int pos) { return (pos >> 3) * kPitch + (pos & 7) + 2 * kPitch + 2; }
constexpr int kIntraOffset[kIntra] = {-kPitch, -1, -kPitch - 1, -2 * kPitch, -2, kPitch - 1};

// Which of the borders a distance reaches.
template <class V>
NZ_INLINE V bucket_of(const V &distance) {
    V n = 0;
    for (int32_t border : {30, 100, 200, 350}) n -= is_below(V(border - 1), distance);
    return n;
}

// An expected level, which no level is far beyond: differences fit the tokens.
template <class V>
NZ_INLINE V expected_level(const V &sum) { return clamp_to<V>((sum + kHalf) >> kShift, -kMaxLevel, kMaxLevel); }

template <class V>
NZ_INLINE V flag_class(const V &n) { return either(is_below(n, V(8)), n, smaller<V>(((n - 8) >> 3) + 8, kFlagClasses - 1)); }

// Levels of the scan from `from` to `to`; returns how many are not 0.
template <class K, class Coder, class V = typename K::Wide>
NZ_INLINE V code_levels(int from, int to, int base, const int32_t *w, const Expected<K> &e, Block<K> &b, V *wide, Coder &coder) {
    V used = 0;
    for (int i = from; i < to; ++i) {
        const int pos = kScan[i], at = padded_place(pos);
        V expected = e.scale(pos);
        for (int k = 0; k < kIntra; ++k) expected += wide[at + kIntraOffset[k]] * w[64 * k + pos];
        V context = scale_class(expected) + base, level = 0, turned = 0;
        if (e.has_mean(pos)) {
            const V mean = e.mean(pos);
            level = expected_level(mean);
            const V distance = mean - (level << kShift);
            turned = distance >> 31;  // -1 or 0
            context += bucket_of<V>((distance ^ turned) - turned) * kScaleClasses;
        }
        const V d = coder.code(context, ((widened(b.q[pos]) - level) ^ turned) - turned);
        const V q = in_range(coder, level + ((d ^ turned) - turned), kMaxLevel);
        narrow_to(b.q[pos], q);
        wide[at] = magnitude(q);
        used += is_zero(q) + 1;
    }
    return used;
}

// Whether anything but zeros follows; `near`: levels that are not 0 in the two diagonals before.
template <class K, class Coder, class V = typename K::Wide>
NZ_INLINE bool code_flag(int type, int flag, const V &near, const Around<K> &n, const Block<K> &b, Coder &coder) {
    V more = 0;
    if constexpr (!Coder::kDecodes)
        for (int k = kFlagAt[flag]; k < 64; ++k) more |= b.q[kScan[k]] != 0;
    const V around = near + near + n.left->rest[flag] + n.up->rest[flag] + n.first->rest[flag];
    const int base = kAcContexts + kDcContexts + (type * 2 + flag) * kFlagClasses;
    return coder.keep(coder.code(flag_class(around) + base, more));
}

// One block: `b.q` is read by coders that encode, and written by those that decode.
template <class K, class Coder, class V = typename K::Wide>
NZ_INLINE void code_block(const DctModel &m, int channel, const Around<K> &n, Block<K> &b, Coder &coder) {
    const int type = m.type_of(channel);
    const size_t dc_at = size_t(channel * kBorders + n.border) * kDcFeatures;
    V f[kDcFeatures];
    dc_features(n, f);
    const V first = expected_level(dot(f, &m.dc_mean[dc_at]));
    dc_scale_features(n, f);
    const V dc_class = scale_class(dot(f, &m.dc_scale[dc_at]));
    const V surprise = coder.code(dc_class + (kAcContexts + type * kScaleClasses), widened(b.q[0]) - first);
    narrow_to(b.q[0], in_range(coder, first + surprise, kMaxLevel));
    b.surprise = magnitude(surprise);
    b.rest[0] = b.rest[1] = 0;

    Expected<K> e(m, channel, n);
    V wide[kPitch * kPitch] = {}, recent = 0;
    const int32_t *const w = m.scale.data() + channel * kScaleFeatures * 64;
    e.prepare(0);
    NZ_NO_UNROLL
    for (const Stretch &s : kStretches) {
        if (s.flag >= 0 && !code_flag(type, s.flag, recent, n, b, coder)) return;
        if (s.flag == 0) e.prepare(4);
        recent = code_levels<K>(s.from, s.to, (type * kRegions + s.region) * kBuckets * kScaleClasses, w, e, b, wide, coder);
        for (int flag = 0; flag < s.region; ++flag) b.rest[flag] += recent;
    }
}

// Where the blocks of an image's row and the one above it are.
template <class K>
class Blocks {
public:
    Blocks(const DctModel &m, BlockShape shape) : m_(m), width_(shape.columns + 2), rows_(2 * size_t(m.channels) * width_) {
        for (int c = 0; c < m.channels; ++c) {
            for (size_t i = 0; i < 64; ++i) narrow_to(start_[c].q[i], m.start[size_t(c) * 64 + i]);
            finish(start_[c]);
            for (auto &q : start_[c].q) narrow_to(q, 0);
            start_[c].row_used = 0;
        }
    }
    NZ_INLINE Block<K> &at(size_t row, size_t column, int c) {
        return rows_[((row & 1) * size_t(m_.channels) + size_t(c)) * width_ + column + 1];
    }

    NZ_INLINE Around<K> around(size_t row, size_t column, int c, size_t columns) {
        const bool has_left = column > 0, has_up = row > 0;
        Around<K> n;
        const Block<K> *const start = &start_[c];
        const Block<K> *const left = has_left ? &at(row, column - 1, c) : nullptr;
        const Block<K> *const up = has_up ? &at(row - 1, column, c) : nullptr;
        n.left = left ? left : up ? up : start;
        n.up = up ? up : n.left;
        n.up_left = left && up ? &at(row - 1, column - 1, c) : n.left;
        n.up_right = up && column + 1 < columns ? &at(row - 1, column + 1, c) : n.up;
        n.left_q = left ? left->q : kZero<K>.q;
        n.up_q = up ? up->q : kZero<K>.q;
        n.first = c > 0 ? &at(row, column, 0) : &kZero<K>;
        n.second = c > 1 ? &at(row, column, 1) : &kZero<K>;
        n.border = has_left + 2 * has_up;
        n.left_rows = left ? left->row_used : 0;
        n.up_rows = up ? up->row_used : 0;
        return n;
    }

private:
    const DctModel &m_;
    size_t width_;
    std::vector<Block<K>> rows_;
    Block<K> start_[kMaxChannels] = {};
};

// Goes through the blocks of an image, or of many of one shape. `place_done(row, column, blocks)` is called when all channels
// of a place are there.
template <class K, class Coder, class Place>
NZ_INLINE void code_image(const DctModel &m, BlockShape shape, const int16_t *levels, Coder &coder, const Place &place_done) {
    Blocks<K> blocks(m, shape);
    for (size_t row = 0; row < shape.rows; ++row)
        for (size_t column = 0; column < shape.columns; ++column) {
            for (int c = 0; c < m.channels; ++c) {
                Block<K> &b = blocks.at(row, column, c);
                if constexpr (Coder::kDecodes) {
                    std::memset(static_cast<void *>(b.q), 0, sizeof b.q);
                } else {
                    std::memcpy(b.q, levels, sizeof b.q);
                    levels += 64;
                }
                code_block<K>(m, c, blocks.around(row, column, c, shape.columns), b, coder);
                coder.block_done();
                finish(b);
            }
            place_done(row, column, blocks);
        }
}

struct Nothing {
    template <class... T>
    NZ_INLINE void operator()(const T &...) const {}
};

// ---- pixels ----------------------------------------------------------------------------------------------------

// cos((2 i + 1) u pi / 16) times 1/2, for u = 0 times 1/sqrt(8); in units of 2^-13, [u][i].
constexpr int32_t kBasis[8][8] = {
    {2896, 2896, 2896, 2896, 2896, 2896, 2896, 2896},   {4017, 3406, 2276, 799, -799, -2276, -3406, -4017},
    {3784, 1567, -1567, -3784, -3784, -1567, 1567, 3784}, {3406, -799, -4017, -2276, 2276, 4017, 799, -3406},
    {2896, -2896, -2896, 2896, 2896, -2896, -2896, 2896}, {2276, -4017, 799, 3406, -3406, -799, 4017, -2276},
    {1567, -3784, 3784, -1567, -1567, 3784, -3784, 1567}, {799, -2276, 3406, -4017, 4017, -3406, 2276, -799}};
constexpr int kBasisShift = 13;

template <class V>
NZ_INLINE V clamped(const V &x, int32_t most) { return clamp_to(x, -most, most); }

// Levels to values in 1/16 of a grey level.
template <class V>
NZ_INLINE V restored(const V &q, int i, const int32_t *steps, const int32_t *shifts) {
    const V m = magnitude(q), sign = q >> 31;
    const V above_1 = either(is_zero(m - 2), V(shifts[64 + i]), V(shifts[128 + i]));
    const V shift = either(is_zero(m), V(0), either(is_zero(m - 1), V(shifts[i]), above_1));
    const V v = clamped<V>(m * steps[i] - shift, 32767);
    return (v ^ sign) - sign;
}

constexpr int32_t kFirstHalf = 1 << (kBasisShift - 1), kSecondHalf = 1 << (kBasisShift + 1);

// The value of a block that has but its first level.
template <class V>
NZ_INLINE V flat_value(const V &q, const int32_t *steps, const int32_t *shifts) {
    const V half = clamped<V>((restored(q, 0, steps, shifts) * kBasis[0][0] + kFirstHalf) >> kBasisShift, 65535);
    return (half * kBasis[0][0] + kSecondHalf) >> (kBasisShift + 2);
}

template <class V>
NZ_INLINE void fill(V *out, const V &value) {
    for (int i = 0; i < 64; ++i) out[i] = value;
}

NZ_INLINE void undo_block(const Block<One> &b, const int32_t *steps, const int32_t *shifts, int32_t *out) {
    if (!b.active) return fill(out, flat_value<int32_t>(b.q[0], steps, shifts));
    int32_t x[64] = {}, half[64] = {};
    int columns = 0;
    for (int u = 0; u < 8; ++u) {
        if (!(b.row_used >> u & 1)) continue;
        for (int v = 0; v < 8; ++v)
            if (b.q[8 * u + v]) {
                x[8 * u + v] = restored<int32_t>(b.q[8 * u + v], 8 * u + v, steps, shifts);
                columns = v < columns ? columns : v + 1;
            }
        for (int i = 0; i < 8; ++i)
            for (int v = 0; v < 8; ++v) half[8 * i + v] += kBasis[u][i] * x[8 * u + v];
    }
    for (int i = 0; i < 64; ++i) half[i] = clamped((half[i] + kFirstHalf) >> kBasisShift, 65535);
    for (int i = 0; i < 8; ++i) {
        int32_t sum[8] = {};
        for (int v = 0; v < columns; ++v)
            for (int j = 0; j < 8; ++j) sum[j] += half[8 * i + v] * kBasis[v][j];
        for (int j = 0; j < 8; ++j) out[8 * i + j] = (sum[j] + kSecondHalf) >> (kBasisShift + 2);
    }
}

template <class V>
NZ_INLINE V to_byte(const V &quarters) { return clamp_to<V>(((quarters + 2) >> 2) + 128, 0, 255); }

template <class V>
NZ_INLINE void to_rgb(const V &luma, const V &cb, const V &cr, V *rgb) {
    // Chroma beyond any image's is cut, so that no product overflows.
    const V b = clamped(cb, 8191), r = clamped(cr, 8191);
    rgb[0] = to_byte<V>(luma + ((r * 91881 + 32768) >> 16));
    rgb[1] = to_byte<V>(luma - ((b * 22554 + r * 46802 + 32768) >> 16));
    rgb[2] = to_byte<V>(luma + ((b * 116130 + 32768) >> 16));
}

// Where the pixels of a block go: some of its rows and columns lie outside the image.
struct Corner {
    size_t rows, row_bytes, pitch, at;

    static NZ_INLINE size_t at_most_8(size_t n) { return n < 8 ? n : 8; }
    NZ_INLINE Corner(size_t row, size_t column, size_t height, size_t width, size_t channels)
        : rows(at_most_8(height - 8 * row)), row_bytes(at_most_8(width - 8 * column) * channels),
          pitch(width * channels), at(8 * row * pitch + 8 * column * channels) {}
};

// Takes blocks from where they were decoded to the output.
struct ToOutput {
    const DctOutput &out;
    const size_t *numbers;
    int n_images;

    NZ_INLINE void operator()(size_t row, size_t column, Blocks<One> &blocks) const {
        const DctModel &m = out.m;
        const size_t n = size_t(m.channels);
        if (out.levels) {
            int16_t *to = out.levels + numbers[0] * out.image + (row * out.shape.columns + column) * n * 64;
            for (size_t c = 0; c < n; ++c, to += 64) std::memcpy(to, blocks.at(row, column, int(c)).q, 64 * sizeof(int16_t));
            return;
        }
        int32_t values[kMaxChannels][64];
        uint8_t bytes[kMaxChannels * 64];
        for (size_t c = 0; c < n; ++c)
            undo_block(blocks.at(row, column, int(c)), &m.steps[64 * c], &m.shifts[192 * c], values[c]);
        if (m.color)
            for (size_t i = 0; i < 64; ++i) {
                int32_t rgb[3];
                to_rgb(values[0][i], values[1][i], values[2][i], rgb);
                for (size_t c = 0; c < 3; ++c) bytes[i * n + c] = uint8_t(rgb[c]);
            }
        for (size_t c = m.color ? 3 : 0; c < n; ++c)
            for (size_t i = 0; i < 64; ++i) bytes[i * n + c] = uint8_t(to_byte(values[c][i]));
        const Corner corner(row, column, out.height, out.width, n);
        uint8_t *to = out.pixels + numbers[0] * out.image + corner.at;
        for (size_t i = 0; i < corner.rows; ++i, to += corner.pitch) std::memcpy(to, bytes + 8 * n * i, corner.row_bytes);
    }
#ifdef NZ_MANY
    NZ_INLINE void operator()(size_t row, size_t column, Blocks<Many> &blocks) const;
#endif
};

void decode_one(View in, size_t number, const DctOutput &out) {
    StaticDecoder decoder(out.m.tables, in);
    code_image<One>(out.m, out.shape, nullptr, decoder, ToOutput{out, &number, 1});
    decoder.finish();
}

#ifdef NZ_MANY

// Eight values, `pitch` apart, times the basis. Its rows are even or odd around their middle: half of the products do.
NZ_INLINE void undo_eight(const Wide *x, int pitch, Wide *out) {
    for (int i = 0; i < 4; ++i) {
        Wide even = x[0] * kBasis[0][i], odd = x[pitch] * kBasis[1][i];
        for (int u = 2; u < 8; u += 2) even += x[u * pitch] * kBasis[u][i], odd += x[(u + 1) * pitch] * kBasis[u + 1][i];
        out[i] = even + odd, out[7 - i] = even - odd;
    }
}

NZ_INLINE void undo_block(const Block<Many> &b, const int32_t *steps, const int32_t *shifts, Wide *out) {
    if (!b.active) return fill(out, flat_value(widened(b.q[0]), steps, shifts));
    Wide x[64], sums[8];
    for (int u = 0; u < 8; ++u)
        for (int v = 0; v < 8; ++v)
            x[8 * u + v] = b.row_used >> u & 1 ? restored(widened(b.q[8 * u + v]), 8 * u + v, steps, shifts) : Wide(0);
    for (int v = 0; v < 8; ++v) {
        undo_eight(x + v, 8, sums);
        for (int i = 0; i < 8; ++i) x[8 * i + v] = clamped<Wide>((sums[i] + kFirstHalf) >> kBasisShift, 65535);
    }
    for (int i = 0; i < 8; ++i) {
        undo_eight(x + 8 * i, 1, sums);
        for (int j = 0; j < 8; ++j) out[8 * i + j] = (sums[j] + kSecondHalf) >> (kBasisShift + 2);
    }
}

NZ_INLINE void ToOutput::operator()(size_t row, size_t column, Blocks<Many> &blocks) const {
    const DctModel &m = out.m;
    const size_t n = size_t(m.channels);
    if (out.levels) {
        int16_t *to = out.levels + (row * out.shape.columns + column) * n * 64;
        for (size_t c = 0; c < n; ++c, to += 64) {
            int16_t values[64][Many::kLanes];
            std::memcpy(values, blocks.at(row, column, int(c)).q, sizeof values);
            for (int lane = 0; lane < n_images; ++lane)
                for (size_t i = 0; i < 64; ++i) to[numbers[lane] * out.image + i] = values[i][lane];
        }
        return;
    }
    Wide values[kMaxChannels][64];
    uint8_t bytes[kMaxChannels * 64][Many::kLanes];
    for (size_t c = 0; c < n; ++c)
        undo_block(blocks.at(row, column, int(c)), &m.steps[64 * c], &m.shifts[192 * c], values[c]);
    for (size_t i = 0; i < 64; ++i) {
        if (m.color) {
            Wide rgb[3];
            to_rgb(values[0][i], values[1][i], values[2][i], rgb);
            for (size_t c = 0; c < 3; ++c) store_bytes(bytes[i * n + c], rgb[c]);
        }
        for (size_t c = m.color ? 3 : 0; c < n; ++c) store_bytes(bytes[i * n + c], to_byte(values[c][i]));
    }
    const Corner corner(row, column, out.height, out.width, n);
    for (int lane = 0; lane < n_images; ++lane) {
        uint8_t *to = out.pixels + numbers[lane] * out.image + corner.at;
        for (size_t i = 0; i < corner.rows; ++i, to += corner.pitch)
            take_lane(to, bytes + 8 * n * i, corner.row_bytes, lane);
    }
}

void decode_many(const ManyStreams &in, const size_t *numbers, const DctOutput &out) {
    ManyDecoder<false> decoder(out.m.tables, in);
    code_image<Many>(out.m, out.shape, nullptr, decoder, ToOutput{out, numbers, in.n});
    decoder.finish();
}

constexpr DctDecoders kDecoders{decode_one, decode_many};

#else

constexpr DctDecoders kDecoders{decode_one, nullptr};

#endif

}  // namespace
}  // namespace nearzip
