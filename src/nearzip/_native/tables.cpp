#include "tables.hpp"

#include <algorithm>

namespace nearzip {
namespace {

struct LogTable {
    uint32_t entry[1025];
    LogTable() {
        for (int i = 0; i <= 1024; ++i) {
            uint64_t x = (uint64_t(1024 + i) << 21);  // mantissa in [1, 2] as 1.31 fixed point
            uint32_t bits = 0;
            if (i == 1024) {
                entry[i] = 1u << kFraction;
                break;
            }
            for (int b = 0; b < kFraction; ++b) {
                x = (x * x) >> 31;
                bits <<= 1;
                if (x >= (uint64_t(1) << 32)) bits |= 1, x >>= 1;
            }
            entry[i] = bits;
        }
    }
};

uint64_t table_bits(const Freqs &freqs) {
    Bytes scratch;
    BitWriter bits(scratch);
    write_table(bits, freqs);
    bits.finish();
    return scratch.size() * 8;
}

}  // namespace

uint64_t log2_fixed(uint64_t v) {
    static const LogTable table;
    int whole = bit_length(v) - 1;
    uint64_t mantissa = (v << (63 - whole)) << 1;  // the bits after the leading one, at the top
    uint32_t index = uint32_t(mantissa >> 54);
    uint64_t rest = (mantissa >> 38) & 0xffff;
    uint64_t low = table.entry[index], high = table.entry[index + 1];
    return (uint64_t(whole) << kFraction) + low + (((high - low) * rest) >> 16);
}

uint64_t total_of(const Counts &counts) {
    uint64_t n = 0;
    for (uint32_t c : counts) n += c;
    return n;
}

Freqs normalise(const Counts &counts, int scale) {
    const uint64_t n = total_of(counts), whole = uint64_t(1) << scale;
    Freqs freqs{};
    if (!n) {
        freqs[0] = uint32_t(whole);
        return freqs;
    }
    int64_t excess = -int64_t(whole);
    for (size_t t = 0; t < kAlphabet; ++t) {
        if (!counts[t]) continue;
        freqs[t] = uint32_t(std::max<uint64_t>(1, (counts[t] * whole + n / 2) / n));
        excess += freqs[t];
    }
    const auto largest = size_t(std::max_element(freqs.begin(), freqs.end()) - freqs.begin());
    if (excess < 0) freqs[largest] += uint32_t(-excess);
    // Take from where a unit costs least: the count over the frequency is smallest.
    while (excess > 0) {
        size_t best = kAlphabet;
        for (size_t t = 0; t < kAlphabet; ++t) {
            if (freqs[t] < 2) continue;
            if (best == kAlphabet ||
                uint64_t(counts[t]) * (freqs[best] - 1) < uint64_t(counts[best]) * (freqs[t] - 1))
                best = t;
        }
        --freqs[best];
        --excess;
    }
    return freqs;
}

uint64_t coding_cost(const Counts &counts, const Freqs &freqs, int scale) {
    uint64_t cost = 0;
    for (size_t t = 0; t < kAlphabet; ++t)
        if (counts[t]) cost += counts[t] * ((uint64_t(scale) << kFraction) - log2_fixed(freqs[t]));
    return cost;
}

void write_table(BitWriter &bits, const Freqs &freqs) {
    size_t last = kAlphabet - 1;
    while (last > 0 && !freqs[last]) --last;
    bits.put(last, 8);
    for (size_t t = 1; t <= last;) {
        bits.put_golomb(freqs[t]);
        if (freqs[t++]) continue;
        size_t run = 0;
        while (!freqs[t + run]) ++run;  // ends at `last`
        bits.put_golomb(run);
        t += run;
    }
}

Freqs read_table(BitReader &bits, int scale) {
    Freqs freqs{};
    const uint64_t whole = uint64_t(1) << scale;
    const size_t last = size_t(bits.get(8));
    uint64_t sum = 0;
    for (size_t t = 1; t <= last;) {
        const uint64_t f = bits.get_golomb();
        sum += f;
        if (sum > whole) throw Corrupt("frequencies exceed their total");
        freqs[t++] = uint32_t(f);
        if (f) continue;
        const uint64_t run = bits.get_golomb();
        if (t + run > last) throw Corrupt("frequency table overruns");
        t += size_t(run);
    }
    if (last && !freqs[last]) throw Corrupt("frequency table is not canonical");
    freqs[0] = uint32_t(whole - sum);
    return freqs;
}

std::vector<uint32_t> chunk_sizes(const Parts &parts, int chunk_log) {
    const uint64_t size = uint64_t(1) << chunk_log;
    std::vector<uint32_t> sizes;
    for (uint64_t part : parts)
        for (uint64_t left = part; left;) {
            const uint64_t n = std::min(left, size);
            sizes.push_back(uint32_t(n));
            left -= n;
        }
    return sizes;
}

// 12 bits keep a table in the first-level cache; finer ones only where they save 0.2 % (very skewed tokens).
int choose_scale(const std::vector<Counts> &tables, uint64_t n) {
    int best_scale = 12;
    uint64_t best = ~uint64_t(0);
    for (int scale : {12, 10, 14, 16}) {
        if (scale < 12 && n > (1u << 14)) continue;
        uint64_t cost = 0;
        for (const Counts &counts : tables) {
            size_t distinct = 0;
            for (uint32_t c : counts) distinct += c > 0;
            if (distinct > (size_t(1) << (scale - 2))) {
                cost = ~uint64_t(0) >> 1;
                break;
            }
            const Freqs freqs = normalise(counts, scale);
            cost += coding_cost(counts, freqs, scale) + (table_bits(freqs) << kFraction);
        }
        const uint64_t asked = scale > 12 ? cost + cost / 512 : cost;
        if (asked < best) best = cost, best_scale = scale;
    }
    return best_scale;
}

bool is_constant(const Freqs &freqs, int scale) {
    return *std::max_element(freqs.begin(), freqs.end()) == uint32_t(1) << scale;
}

uint8_t only_token(const Freqs &freqs) {
    return uint8_t(std::max_element(freqs.begin(), freqs.end()) - freqs.begin());
}

}  // namespace nearzip
