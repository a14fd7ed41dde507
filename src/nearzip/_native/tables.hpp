// Frequencies of tokens: how they are counted, rounded to a power of two, priced, and written down.
#pragma once

#include <array>

#include "common.hpp"

namespace nearzip {

// Sizes of the tensors whose values follow each other in one stream. A chunk never spans two of them.
using Parts = std::vector<uint64_t>;

constexpr int kMinScale = 8, kMaxScale = 16;
constexpr size_t kAlphabet = 256;
constexpr int kFraction = 16;  // costs are bits in units of 2^-16

using Counts = std::array<uint32_t, kAlphabet>;
using Freqs = std::array<uint32_t, kAlphabet>;

// log2(v) for v >= 1, in units of 2^-16 bits: integers, so that encoders on every machine make the same choices.
uint64_t log2_fixed(uint64_t v);

uint64_t total_of(const Counts &counts);

// Integer frequencies that sum to 2^scale, at least 1 for every token that occurs.
Freqs normalise(const Counts &counts, int scale);

// What the counted tokens take under these frequencies.
uint64_t coding_cost(const Counts &counts, const Freqs &freqs, int scale);

// The frequency of token 0 is what the others leave of 2^scale.
void write_table(BitWriter &bits, const Freqs &freqs);
Freqs read_table(BitReader &bits, int scale);

// The scale that codes these tables' tokens, tables included, in the fewest bits; coarse ones decode faster.
int choose_scale(const std::vector<Counts> &tables, uint64_t n);

bool is_constant(const Freqs &freqs, int scale);
uint8_t only_token(const Freqs &freqs);

// Every part cut into chunks of 2^chunk_log values.
std::vector<uint32_t> chunk_sizes(const Parts &parts, int chunk_log);

}  // namespace nearzip
