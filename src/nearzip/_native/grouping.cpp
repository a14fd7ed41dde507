#include "grouping.hpp"

#include <algorithm>

namespace nearzip {
namespace {

constexpr int kTableBits = 6;
constexpr int64_t kJoinShare = 1024;

Counts sum(const Counts &a, const Counts &b) {
    Counts both;
    for (size_t t = 0; t < kAlphabet; ++t) both[t] = a[t] + b[t];
    return both;
}

struct Group {
    Counts counts;
    uint64_t cost;
    int last;       // its last context
    int64_t gain;   // of joining it with the next
};

}  // namespace

uint64_t table_cost(const Counts &counts) {
    const uint64_t all = log2_fixed(std::max<uint64_t>(1, total_of(counts)));
    uint64_t cost = uint64_t(12) << kFraction;
    for (uint32_t c : counts)
        if (c) cost += c * (all - log2_fixed(c)) + (uint64_t(8) << kFraction);
    return cost;
}

// Neighbours are joined as long as that saves bits, the best pair first.
Grouping join_contexts(const std::vector<Counts> &contexts, size_t most_tables) {
    std::vector<Group> groups;
    for (size_t c = 0; c < contexts.size(); ++c)
        if (total_of(contexts[c])) groups.push_back({contexts[c], table_cost(contexts[c]), int(c), 0});
    const auto weigh = [&](size_t i) {
        if (i + 1 < groups.size())
            groups[i].gain = int64_t(groups[i].cost + groups[i + 1].cost) -
                             int64_t(table_cost(sum(groups[i].counts, groups[i + 1].counts)));
    };
    int64_t to_spend = 0;
    for (size_t i = 0; i < groups.size(); ++i) {
        weigh(i);
        to_spend += int64_t(groups[i].cost) / kJoinShare;
    }
    while (groups.size() > 1) {
        const auto best = std::max_element(groups.begin(), groups.end() - 1,
                                           [](const Group &a, const Group &b) { return a.gain < b.gain; });
        if (best->gain <= 0 && (to_spend += best->gain) <= 0 && groups.size() <= most_tables) break;
        const size_t i = size_t(best - groups.begin());
        groups[i].counts = sum(groups[i].counts, groups[i + 1].counts);
        groups[i].cost = table_cost(groups[i].counts);
        groups[i].last = groups[i + 1].last;
        groups.erase(groups.begin() + ptrdiff_t(i) + 1);
        weigh(i);
        if (i) weigh(i - 1);
    }
    Grouping grouping;
    for (const Group &group : groups) {
        grouping.tables.push_back(group.counts);
        grouping.last.push_back(group.last);
    }
    grouping.last.back() = int(contexts.size()) - 1;
    return grouping;
}

Freqs open_frequencies(const Counts &counts, int scale) {
    Freqs freqs = normalise(counts, scale);
    if (is_constant(freqs, scale)) {
        const size_t only = only_token(freqs);
        --freqs[only];
        ++freqs[only == 0];
    }
    return freqs;
}

void OpenTables::write(BitWriter &bits) const {
    bits.put(freqs.size() - 1, kTableBits);
    int from = 0;
    for (size_t k = 0; k + 1 < freqs.size(); ++k) {
        bits.put_golomb(uint64_t(last[k] - from));
        from = last[k] + 1;
    }
    for (const Freqs &f : freqs) write_table(bits, f);
}

OpenTables OpenTables::read(BitReader &bits, int scale, int n_contexts) {
    OpenTables tables;
    const size_t n_tables = size_t(bits.get(kTableBits)) + 1;
    uint64_t from = 0;
    for (size_t k = 0; k + 1 < n_tables; ++k) {
        from += bits.get_golomb() + 1;
        if (from >= uint64_t(n_contexts)) throw Corrupt("contexts out of range");
        tables.last.push_back(int(from) - 1);
    }
    tables.last.push_back(n_contexts - 1);
    for (size_t k = 0; k < n_tables; ++k) {
        tables.freqs.push_back(read_table(bits, scale));
        if (is_constant(tables.freqs.back(), scale)) throw Corrupt("a frequency table is not open");
    }
    return tables;
}

Numbers::Numbers(const std::vector<int> &last) : of() {
    int c = 0;
    for (size_t k = 0; k < last.size(); ++k)
        for (; c <= last[k]; ++c) of[c] = uint8_t(k);
}

}  // namespace nearzip
