#include "static_coder.hpp"

namespace nearzip {

ManyStreams::ManyStreams(const View *in, int n_streams) : n(n_streams) {
    // A number takes two words at most; a word is looked at before it is needed.
    constexpr size_t padding = 4 * kUnchecked + 2;
    size_t size = 0;
    for (int i = 0; i < n; ++i) size += in[i].size + padding;
    bytes_.resize(size);
    uint8_t *to = bytes_.data();
    for (int i = 0; i < n; ++i, to += padding) {
        if (in[i].size < 4 || in[i].size % 2) throw Corrupt("stream ends early");
        std::memcpy(to, in[i].data, in[i].size);
        state[i] = uint32_t(to[0]) << 16 | uint32_t(to[1]) << 24 | uint32_t(to[2]) | uint32_t(to[3]) << 8;
        if (state[i] < kStaticLow) throw Corrupt("malformed state");
        at[i] = to + 4;
        end[i] = to += in[i].size;
    }
}

void throw_corrupt(const char *what) { throw Corrupt(what); }

}  // namespace nearzip
