// The head of every fuzz input of the native targets: how many values, in how many parts, of which type.
//
//   byte 0, 1   n, little-endian (0 .. 65 535)
//   byte 2      low 3 bits: parts less one; high 5 bits: what the target makes of them
//   the rest    the stream, or the values
#pragma once

#include <cstdio>
#include <cstdlib>

#include "common.hpp"
#include "masks.hpp"

namespace fuzz {

constexpr size_t kHead = 3;

struct Input {
    size_t n;
    nearzip::Parts parts;
    unsigned choice;
    nearzip::View rest;
};

inline bool read_head(const uint8_t *data, size_t size, Input &input) {
    if (size < kHead) return false;
    input.n = size_t(data[0]) | size_t(data[1]) << 8;
    const size_t n_parts = 1 + (data[2] & 7);
    input.choice = data[2] >> 3;
    // Uneven parts, some of them empty.
    size_t left = input.n;
    for (size_t i = 1; i < n_parts; ++i) {
        const size_t part = (i % 3) == 2 ? 0 : left / (n_parts - i + 1);
        input.parts.push_back(part);
        left -= part;
    }
    input.parts.push_back(left);
    input.rest = {data + kHead, size - kHead};
    return true;
}

inline void require(bool good, const char *what) {
    if (good) return;
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::abort();
}

}  // namespace fuzz
