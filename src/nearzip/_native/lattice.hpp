// Parts of tensors as rows and columns, and how large tokens are in each of them: layers learn at their own pace input by
// input and output by output. Layout: docs/format.md, "Scaled streams".
#pragma once

#include <array>

#include "tables.hpp"

namespace nearzip {

// A part as rows of cells, the first row perhaps without its beginning. Where rows or columns carry no information, one holds all.
struct Lattice {
    uint64_t n, row, cell, start;
    size_t rows, columns;
    size_t kernel, width;  // values of a convolution's kernel, and of a row of it; 1 where there is none

    // Throws Corrupt if the grid is not one of whole cells.
    Lattice(uint64_t n, const Grid &grid);

    size_t n_levels() const { return n ? 1 + (rows > 1 ? rows : 0) + (columns > 1 ? columns : 0) : 0; }

    // Calls `visit(row, from, to, at)`: the row's values from .. to are the part's at .. at + to - from.
    template <class Visit>
    void each_row(Visit visit) const {
        uint64_t at = 0, from = start;
        for (size_t r = 0; r < rows; ++r, from = 0) {
            const uint64_t to = std::min(row, from + n - at);
            visit(r, size_t(from), size_t(to), size_t(at));
            at += to - from;
        }
    }
};

// One for each part. Throws Corrupt where grids are not known.
std::vector<Lattice> lattices_of(const Parts &parts);

// Half octaves of the mean token, of a part and, where there are several, of its rows and columns against it. All of a
// part's rows or columns may be even: then they are whole octaves, which cost less.
struct Levels {
    int own = 0;
    std::vector<int> rows, columns;
};

// What tokens take without levels for rows and columns, and how much less with them. Units of 2^-16 bits.
struct Estimate {
    uint64_t whole = 0, gain = 0;
};

// The levels that pay; adds to the estimate.
Levels choose_levels(const uint8_t *tokens, const Lattice &lattice, Estimate &estimate);

void write_levels(const std::vector<Levels> &levels, const std::vector<Lattice> &lattices, Bytes &out);
// Takes them from the front of `in`. Throws Corrupt.
std::vector<Levels> read_levels(View &in, const std::vector<Lattice> &lattices);

// A token's own level is the sum of its part's, its row's and its column's, as one of 64.
constexpr int kLevels = 64;

// What is written for each level.
using Signs = std::array<uint8_t, kLevels>;
constexpr Signs each_level() {
    Signs signs{};
    for (int i = 0; i < kLevels; ++i) signs[size_t(i)] = uint8_t(i);
    return signs;
}

// The sign of the level of each of a part's tokens.
void fill_levels(const Lattice &lattice, const Levels &levels, const Signs &signs, uint8_t *out);

}  // namespace nearzip
