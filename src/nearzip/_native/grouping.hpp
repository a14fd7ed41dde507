// Contexts that follow each other, as of rising scales: which of them share a frequency table, and how that is written.
#pragma once

#include "lanes.hpp"

namespace nearzip {

struct Grouping {
    std::vector<Counts> tables;
    std::vector<int> last;  // context of each table; the last one's is the last of all
};

// What a table's tokens take, and about what the table does, in units of 2^-16 bits.
uint64_t table_cost(const Counts &counts);

// Neighbours are joined as long as that saves bits, the best pair first; then on while all that costs less than a 1 024th of
// them, or there are too many tables: a third of the tables fewer, and those that are left stay nearer to the processor while
// decoding. At least one context has counts.
Grouping join_contexts(const std::vector<Counts> &contexts, size_t most_tables);

// As `normalise`, but a table that is certain of its token leaves one slot to another: decoding slots cannot say 2^scale.
Freqs open_frequencies(const Counts &counts, int scale);

constexpr int kMostContexts = 128;

// The tables of all contexts in the form stored in a stream: at most 64.
struct OpenTables {
    std::vector<int> last;
    std::vector<Freqs> freqs;

    void write(BitWriter &bits) const;
    // Throws Corrupt, also for a table that is not open.
    static OpenTables read(BitReader &bits, int scale, int n_contexts);
};

// The table of each context.
struct Numbers {
    uint8_t of[kMostContexts];

    explicit Numbers(const std::vector<int> &last);
    // Contexts to numbers, in place.
    void replace(uint8_t *contexts, size_t n) const { look_up(of, contexts, n); }
};

}  // namespace nearzip
