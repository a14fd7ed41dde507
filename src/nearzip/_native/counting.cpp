#include "counting.hpp"

#include <cmath>

namespace nearzip {
namespace {

struct Slot {
    uint64_t word;
    uint32_t count;
};

}  // namespace

template <class U>
double entropy(const U *words, size_t n) {
    if (!n) return 0.0;
    // Open addressing, at most half full. Sorting takes several times as long.
    const int bits = bit_length(2 * n - 1);
    const size_t mask = (size_t(1) << bits) - 1;
    std::vector<Slot> slots(mask + 1);
    for (size_t i = 0; i < n; ++i) {
        const uint64_t word = words[i];
        size_t at = size_t((word * 0x9E3779B97F4A7C15u) >> (64 - bits));
        while (slots[at].count && slots[at].word != word) at = (at + 1) & mask;
        slots[at].word = word;
        ++slots[at].count;
    }
    // By the counts, each of which few or many words have: few logarithms, and one order of adding whatever the words.
    std::vector<uint32_t> times(n + 1);
    for (const Slot &slot : slots) ++times[slot.count];
    double sum = 0;
    for (size_t count = 2; count <= n; ++count)
        if (times[count]) sum += double(times[count]) * double(count) * std::log2(double(count));
    return std::log2(double(n)) - sum / double(n);
}

template <class F>
bool is_near(const F *x, const F *base, size_t stride, size_t looks, float share, size_t enough) {
    size_t n_near = 0;
    // A look is a way to memory: those far from each other first, so that few suffice for a tensor that is near.
    constexpr size_t kEvery = 8;
    for (size_t first = 0; first < kEvery; ++first)
        for (size_t look = first; look < looks; look += kEvery) {
            const float one = float(x[look * stride]), other = float(base[look * stride]);
            n_near += std::fabs(one - other) <= share * std::fabs(one);
            if (n_near > enough) return true;
        }
    return false;
}

template bool is_near<float>(const float *, const float *, size_t, size_t, float, size_t);
template bool is_near<double>(const double *, const double *, size_t, size_t, float, size_t);

template <class F>
Levels sampled_levels(const F *x, const F *base, size_t n, double step, size_t runs, size_t run, double limit) {
    Levels found;
    if (n <= runs * run) runs = 1, run = n;
    for (size_t r = 0; r < runs; ++r) {
        const size_t begin = runs > 1 ? r * (n - run) / (runs - 1) : 0;
        for (size_t i = begin; i < begin + run; ++i) {
            const double size = std::fabs(std::nearbyint((double(x[i]) - (base ? double(base[i]) : 0.0)) / step));
            if (size < limit) found.sum += size, ++found.n;
        }
    }
    return found;
}

template Levels sampled_levels<float>(const float *, const float *, size_t, double, size_t, size_t, double);
template Levels sampled_levels<double>(const double *, const double *, size_t, double, size_t, size_t, double);

template double entropy<uint8_t>(const uint8_t *, size_t);
template double entropy<uint16_t>(const uint16_t *, size_t);
template double entropy<uint32_t>(const uint32_t *, size_t);
template double entropy<uint64_t>(const uint64_t *, size_t);

}  // namespace nearzip
