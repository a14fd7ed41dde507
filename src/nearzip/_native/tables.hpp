// Frequencies of tokens: how they are counted, rounded to a power of two, priced, and written down.
#pragma once

#include <array>

#include "bits.hpp"

namespace nearzip {

// How values lie in their tensor, seen as a matrix of cells: how many there are in a row, in a cell (of one row and one
// column; a convolution's kernel), and in a row of a cell, and the place of the first one in the tensor. All 0 if unknown.
struct Grid {
    uint64_t row, cell, width, start;
};

// Sizes of the tensors whose values follow each other in one stream, and, where they are known, the grids of these tensors.
// A chunk never spans two parts.
class Parts {
public:
    Parts() = default;
    Parts(std::vector<uint64_t> sizes, std::vector<Grid> grids = {}) : sizes_(std::move(sizes)), grids_(std::move(grids)) {}

    void push_back(uint64_t size) { sizes_.push_back(size); }
    void push_back(uint64_t size, Grid grid) { sizes_.push_back(size), grids_.push_back(grid); }
    size_t size() const { return sizes_.size(); }
    uint64_t operator[](size_t i) const { return sizes_[i]; }
    auto begin() const { return sizes_.begin(); }
    auto end() const { return sizes_.end(); }
    // One for each part, or none.
    const std::vector<Grid> &grids() const { return grids_; }

private:
    std::vector<uint64_t> sizes_;
    std::vector<Grid> grids_;
};

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
