// The decoders of images on untrusted bytes, with models that contain anything that they may: one after the other and side by
// side they give the same or refuse the same, and what is encoded comes back.
//
//   byte 0      bit 0: levels (dct.hpp) or pixels (pixels.hpp); bits 1, 2: channels less one; bit 3: colour, if there are three;
//               bit 4: what follows are streams, else images that are encoded, and then harmed
//   byte 1, 2   height and width less one, modulo 12
//   byte 3      images less one, modulo 19
//   byte 4      the model's seed
//   byte 5, 6   which byte of the streams is harmed, and how
//   the rest    streams of equal length, or images
#include "dct.hpp"
#include "input.hpp"
#include "pixels.hpp"

namespace {

using nearzip::View;

struct Numbers {
    uint32_t seed, i = 0;
    uint32_t next() {
        uint32_t x = seed * 0x9e3779b9u + i++;
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = (x ^ (x >> 15)) * 0x846ca68bu;
        return x ^ (x >> 16);
    }
    int32_t weight(int32_t most) { return int32_t(next() % uint32_t(2 * most + 1)) - most; }
    template <class T>
    void fill(std::vector<T> &to, size_t n, int32_t most) {
        to.resize(n);
        for (T &x : to) x = T(weight(most));
    }
};

// Three tables: all tokens alike, small ones most often, and one token nearly always.
nearzip::StaticTables tables(Numbers &numbers, size_t n_contexts) {
    std::vector<uint16_t> freqs;
    for (uint32_t most : {370u, 60u, 1u}) {
        uint32_t rest = 1u << nearzip::kStaticScale;
        for (int t = 1; t < nearzip::kStaticTokens; ++t) {
            const uint32_t f = 1 + numbers.next() % most;
            freqs.push_back(uint16_t(f));
            rest -= f;
        }
        freqs.insert(freqs.end() - (nearzip::kStaticTokens - 1), uint16_t(rest));
    }
    std::vector<uint8_t> map(n_contexts);
    for (uint8_t &x : map) x = uint8_t(numbers.next() % 3);
    return nearzip::StaticTables(freqs.data(), 3, map.data(), n_contexts);
}

constexpr int32_t kMost[4] = {0, 64, 1024, 1 << 12};

nearzip::DctModel dct_model(int channels, bool color, uint32_t seed) {
    Numbers numbers{seed};
    const int32_t most = kMost[seed & 3];
    const size_t n = size_t(channels);
    nearzip::DctModel m;
    m.channels = channels, m.color = color;
    numbers.fill(m.mean, n * nearzip::kMeanFeatures * 64, 4 * most);
    numbers.fill(m.scale, n * nearzip::kScaleFeatures * 64, most);
    numbers.fill(m.dc_mean, n * nearzip::kBorders * nearzip::kDcFeatures, 4 * most);
    numbers.fill(m.dc_scale, n * nearzip::kBorders * nearzip::kDcFeatures, most);
    m.start.resize(n * 64), m.steps.resize(n * 64), m.shifts.resize(n * 192);
    for (uint8_t &x : m.start) x = uint8_t(numbers.next());
    for (int32_t &x : m.steps) x = int32_t(numbers.next() & 0xffff);
    for (int32_t &x : m.shifts) x = int32_t(numbers.next() & 0xffff);
    m.tables = tables(numbers, nearzip::kDctContexts);
    m.arrange();
    return m;
}

nearzip::PixelModel pixel_model(int channels, bool color, uint32_t seed) {
    Numbers numbers{seed};
    const size_t sets = size_t(channels) * nearzip::kTextures;
    nearzip::PixelModel m;
    m.channels = channels, m.color = color;
    numbers.fill(m.mean, sets * nearzip::kPixelMean, 4 * kMost[seed & 3]);
    numbers.fill(m.scale, sets * nearzip::kPixelScale, 4 * kMost[seed & 3]);
    numbers.fill(m.start, size_t(channels), 511);
    m.tables = tables(numbers, nearzip::kPixelContexts);
    m.arrange();
    return m;
}

// decode(streams, out) on each stream alone and on all of them: the values, and whether they were refused.
template <class T, class Decode>
bool agree(const std::vector<View> &streams, size_t each, std::vector<T> &out, Decode decode) {
    std::vector<T> alone(streams.size() * each, T(1));
    out.assign(alone.size(), T(2));
    const auto refused = [&](const std::vector<View> &some, T *to) {
        try {
            decode(some, to);
        } catch (const nearzip::Corrupt &) {
            return true;
        }
        return false;
    };
    bool any = false;
    for (size_t i = 0; i < streams.size(); ++i) any |= refused({streams[i]}, alone.data() + i * each);
    fuzz::require(refused(streams, out.data()) == any, "side by side something else is refused");
    fuzz::require(any || alone == out, "side by side other values are decoded");
    return !any;
}

struct Streams {
    nearzip::Bytes bytes;
    std::vector<size_t> begin{0};

    std::vector<View> views() const {
        std::vector<View> found;
        for (size_t i = 0; i + 1 < begin.size(); ++i) found.push_back({bytes.data() + begin[i], begin[i + 1] - begin[i]});
        return found;
    }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    constexpr size_t head = 7;
    if (size < head) return 0;
    const int channels = 1 + ((data[0] >> 1) & 3);
    const bool pixels = data[0] & 1, color = channels >= 3 && (data[0] & 8), given = data[0] & 16;
    const size_t height = 1 + data[1] % 12, width = 1 + data[2] % 12, n = 1 + data[3] % 19;
    const View rest{data + head, size - head};
    const nearzip::BlockShape shape{(height + 7) / 8, (width + 7) / 8};
    const size_t each = pixels ? height * width * size_t(channels) : shape.rows * shape.columns * size_t(channels) * 64;
    const nearzip::DctModel dct = pixels ? nearzip::DctModel() : dct_model(channels, color, data[4]);
    const nearzip::PixelModel exact = pixels ? pixel_model(channels, color, data[4]) : nearzip::PixelModel();
    std::vector<uint8_t> images(n * each);
    std::vector<int16_t> levels(pixels ? 0 : n * each);
    for (size_t i = 0; i < images.size(); ++i) images[i] = rest.size ? rest.data[i % rest.size] : 0;
    // Small ones mostly, and nothing behind some place of each block.
    for (size_t i = 0; i < levels.size(); ++i)
        levels[i] = i % 64 > images[i / 64 % n] % 64u ? int16_t(0) : int16_t(int8_t(images[i]) / (i % 64 > 2 ? 16 : 1));

    Streams streams;
    for (size_t i = 0; i < n; ++i) {
        if (given)
            streams.bytes.insert(streams.bytes.end(), rest.data + i * (rest.size / n), rest.data + (i + 1) * (rest.size / n));
        else if (pixels)
            nearzip::encode_pixels(exact, height, width, images.data() + i * each, streams.bytes);
        else
            nearzip::encode_levels(dct, shape, levels.data() + i * each, streams.bytes);
        streams.begin.push_back(streams.bytes.size());
    }

    const auto decode_pixels = [&](const std::vector<View> &in, uint8_t *out) { nearzip::decode_pixels(exact, height, width, in, out); };
    const auto decode_levels = [&](const std::vector<View> &in, int16_t *out) { nearzip::decode_levels(dct, shape, in, out); };
    const auto decode_images = [&](const std::vector<View> &in, uint8_t *out) { nearzip::decode_images(dct, height, width, in, out); };
    std::vector<uint8_t> bytes;
    std::vector<int16_t> found;
    for (int harmed = 0; harmed < (given ? 1 : 2); ++harmed) {
        if (harmed) streams.bytes[(size_t(data[5]) * 257 + data[6]) % streams.bytes.size()] ^= uint8_t(data[6] | 1);
        const std::vector<View> views = streams.views();
        const bool good = pixels ? agree(views, each, bytes, decode_pixels) : agree(views, each, found, decode_levels);
        if (!given && !harmed) fuzz::require(good && (pixels ? bytes == images : found == levels), "encoded images differ");
        if (!pixels)
            fuzz::require(agree(views, height * width * size_t(channels), bytes, decode_images) == good, "levels are refused, or pixels");
    }
    return 0;
}
