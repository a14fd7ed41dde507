// Rounding to a grid with the error carried into the values still to come: one tile of `nearzip.calibrate`.
//
// Encoders only: nothing here decides what a file decodes to.
#pragma once

#include "common.hpp"

namespace nearzip {

// A tile of a matrix, all arrays row by row, `rows` x `columns` unless another size is given.
struct RoundingTile {
    size_t rows = 0, columns = 0;
    const float *target = nullptr;         // what should be rounded, without any carried error
    const float *from_rows = nullptr;      // error carried here from the rows above the tile
    const float *from_columns = nullptr;   // error of these rows, carried from the columns left of the tile
    const float *row_factor = nullptr;     // upper triangular, rows x rows
    const float *column_factor = nullptr;  // upper triangular, columns x columns
    double step = 0;
    double reach = 0;  // a level stays this near to its target, where there is one; infinity: anywhere

    int32_t *levels = nullptr;    // out: multiples of the step
    float *remainders = nullptr;  // out: errors in the units in which they cost the same
    float *carried = nullptr;     // out: remainders and `from_columns` together, for the rows below the tile
};

// Rows from top to bottom, each from left to right. Targets are below 2^30 steps.
void round_tile(const RoundingTile &tile);

}  // namespace nearzip
