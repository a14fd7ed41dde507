#include "kernels.hpp"

#include <algorithm>

namespace nearzip {
namespace {

constexpr size_t kFewestKernels = 32;
constexpr size_t kSample = 2048;  // kernels
constexpr int64_t kLeastLikeness = 8;  // the slope is at least one in so many

// The small number that a token is; 0 for tokens of large ones, whose sign is not in them.
int value_of(uint8_t token) { return token & 0x80 ? 0 : token & 1 ? -int(token >> 1) - 1 : int(token >> 1); }

struct Values {
    int8_t of[256];
    Values() : of() {
        for (int t = 0; t < 256; ++t) of[t] = int8_t(value_of(uint8_t(t)));
    }
};
const Values kValues;

// How far apart classes are, in 2^-16: 0.63 of the mean token, which is the mean of two neighbours' sum, at least 1.43.
int64_t spacing_of(int own) {
    constexpr int64_t least = 93716, unit = 41288, root = 92682;
    const int half = std::clamp(own, 0, 16);
    const int64_t whole = unit << (half / 2);
    return std::max(least, half & 1 ? whole * root >> 16 : whole);
}

}  // namespace

Kernels::Kernels(const Lattice &lattice, int own) : lead(0), count(0), places(1), width_(1), values_(), classes_() {
    if (lattice.kernel < 2) return;
    const size_t first = size_t((lattice.kernel - lattice.start % lattice.kernel) % lattice.kernel);
    if (first > lattice.n || (lattice.n - first) / lattice.kernel < kFewestKernels) return;
    lead = first;
    places = lattice.kernel;
    width_ = lattice.width;
    count = size_t(lattice.n - first) / places;
    values_.resize(count * places);
    const int64_t spacing = spacing_of(own);
    for (int s = -128; s <= 128; ++s) {
        const int64_t half = s < 0 ? -spacing / 2 : spacing / 2;
        classes_[s + 128] = uint8_t(4 + std::clamp<int64_t>(((int64_t(s) << 16) + half) / spacing, -3, 3));
    }
}

void Kernels::contexts(size_t place, const uint8_t *levels, uint16_t *out) const {
    const int8_t *const left = place % width_ ? values_.data() + (place - 1) * count : nullptr;
    const int8_t *const above = place >= width_ ? values_.data() + (place - width_) * count : nullptr;
    const uint8_t *level = levels + index(0, place);
    for (size_t i = 0; i < count; ++i, level += places) {
        const int sum = (left ? left[i] : 0) + (above ? above[i] : 0);
        out[i] = uint16_t((left || above ? classes_[sum + 128] * kLevels : 0) + *level);
    }
}

void Kernels::keep(size_t place, const uint8_t *tokens) {
    int8_t *const values = values_.data() + place * count;
    for (size_t i = 0; i < count; ++i) values[i] = kValues.of[tokens[i]];
}

bool Kernels::alike(const uint8_t *tokens) const {
    int64_t both = 0, squares = 0;
    const size_t step = std::max<size_t>(1, count / kSample);
    for (size_t k = 0; k < count; k += step)
        for (size_t place = 1; place < places; ++place) {
            const int left = kValues.of[tokens[index(k, place - 1)]];
            both += left * kValues.of[tokens[index(k, place)]];
            squares += left * left;
        }
    return both * kLeastLikeness > squares;
}

}  // namespace nearzip
