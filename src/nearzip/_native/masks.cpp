#include "masks.hpp"

#include <algorithm>

#include "rans.hpp"
#include "scaled.hpp"

namespace nearzip {
namespace {

// With tables for rows and columns where that is smaller.
void encode_dense(const uint8_t *tokens, size_t n, const Parts &parts, Activity activity, Bytes &out) {
    const size_t begin = out.size();
    const Pays pays = encode_scaled(tokens, n, parts, activity, out);
    if (pays == Pays::surely) return;
    if (pays == Pays::no) {
        out.resize(begin);
        return encode_chunked(tokens, n, parts, out);
    }
    Bytes chunked;
    encode_chunked(tokens, n, parts, chunked);
    if (chunked.size() > out.size() - begin) return;
    out.resize(begin);
    out.insert(out.end(), chunked.begin(), chunked.end());
}

void decode_dense(View in, uint8_t *out, size_t n, const Parts &parts) {
    if (in.take(1).data[0] == kScaled)
        decode_scaled(in.drop(1), out, n, parts);
    else
        decode_chunked(in, out, n, parts);
}

// ---- zeros in masks --------------------------------------------------------------------------------------------

// A mask of every four tokens says which are not zero; those follow in a stream of their own. Costs 0.2 % on the shared
// traces and leaves a quarter of the symbols to code, or little more.
constexpr uint8_t kZerosApart = 64;  // the first byte of such a stream
constexpr size_t kGroup = kMaskedTokens;
constexpr size_t kZerosFrom = 1 << 15;   // values; shorter streams would pay more for another set of tables
constexpr size_t kFewNonzero = 8;        // at most one value in so many
constexpr size_t kSmallStream = 4 << 10;  // bytes; so few are coded both ways

NZ_CLONES size_t count_nonzero(const uint8_t *tokens, size_t n) {
    size_t zeros = 0;
    for (size_t at = 0; at < n; at += 128) {  // few enough for sums of bytes
        const size_t size = std::min<size_t>(128, n - at);
        uint8_t some = 0;
        for (size_t i = 0; i < size; ++i) some = uint8_t(some + (tokens[at + i] == 0));
        zeros += some;
    }
    return n - zeros;
}

// Bit k of a mask: the k-th of its four tokens is not zero.
NZ_CLONES void masks_of(const uint8_t *tokens, size_t n_masks, uint8_t *masks) {
    constexpr uint32_t low = 0x7f7f7f7f;
    for (size_t i = 0; i < n_masks; ++i) {
        uint32_t four;
        std::memcpy(&four, tokens + 4 * i, 4);
        const uint32_t flags = (((four & low) + low) | four) >> 7 & 0x01010101;
        masks[i] = uint8_t((flags * 0x01020408) >> 24);
    }
}

// How many bits masks have; `any` collects which.
NZ_CLONES uint64_t count_bits(const uint8_t *masks, size_t n, uint64_t &any) {
    uint64_t count = 0;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t eight;
        std::memcpy(&eight, masks + i, 8);
        any |= eight;
        eight = (eight & 0x5555555555555555) + (eight >> 1 & 0x5555555555555555);
        eight = (eight & 0x3333333333333333) + (eight >> 2 & 0x3333333333333333);
        count += (eight * 0x0101010101010101) >> 56;  // at most 32 of bits that masks may have
    }
    for (; i < n; ++i) {
        any |= masks[i];
        count += 0x4332322132212110u >> (4 * (masks[i] & 15)) & 15;
    }
    return count;
}

// The masks of whole rows of masks; no row known where a mask reaches into the next.
Grid mask_grid_of(const Grid &grid) {
    if (grid.row % kGroup || grid.start % kGroup) return {0, 0, 0, 0};
    const uint64_t row = grid.row / kGroup;
    // A column of masks is four columns of values.
    const uint64_t cell = grid.cell && row % grid.cell == 0 ? grid.cell : row;
    return {row, cell, cell, grid.start / kGroup};
}

Parts mask_parts_of(const Parts &parts) {
    Parts masks;
    for (size_t p = 0; p < parts.size(); ++p) {
        const uint64_t n = (parts[p] + kGroup - 1) / kGroup;
        if (parts.grids().empty())
            masks.push_back(n);
        else
            masks.push_back(n, mask_grid_of(parts.grids()[p]));
    }
    return masks;
}

struct Masked {
    uint8_t *mask, *token;  // where the next ones go
    Parts token_parts;
};

// Appends the masks of one part and its tokens that are not zero.
void mask_part(const uint8_t *tokens, size_t n, Masked &masked) {
    uint8_t *mask_at = masked.mask, *const begin = masked.token, *token = begin;
    size_t i = 0;
    const size_t n_masks = n / 32 * 8;
    masks_of(tokens, n_masks, mask_at);
    for (; i < kGroup * n_masks; i += 8 * kGroup, mask_at += 8) {
        uint64_t masks;
        std::memcpy(&masks, mask_at, 8);
        for (; masks; masks &= masks - 1) {
            const size_t bit = size_t(lowest_bit(masks));
            *token++ = tokens[i + kGroup * (bit / 8) + bit % 8];
        }
    }
    for (; i < n; i += kGroup) {
        unsigned mask = 0;
        for (size_t k = 0; k < kGroup && i + k < n; ++k)
            if (tokens[i + k]) mask |= 1u << k, *token++ = tokens[i + k];
        *mask_at++ = uint8_t(mask);
    }
    masked.token_parts.push_back(uint64_t(token - begin));
    masked.mask = mask_at;
    masked.token = token;
}

void encode_zeros_apart(const uint8_t *tokens, size_t n, size_t n_nonzero, const Parts &parts, Bytes &out) {
    static thread_local Scratch<uint8_t> mask_scratch, token_scratch;
    uint8_t *const masks = mask_scratch.get(n / kGroup + parts.size() + 1);
    uint8_t *const nonzero = token_scratch.get(n_nonzero + 1);
    Masked masked{masks, nonzero, {}};
    for (uint64_t part : parts) {
        mask_part(tokens, size_t(part), masked);
        tokens += part;
    }
    out.push_back(kZerosApart);
    const size_t n_masks = size_t(masked.mask - masks);
    put_sized(out, n_masks / 2, [&] { encode_dense(masks, n_masks, mask_parts_of(parts), Activity::masks, out); });
    encode_chunked(nonzero, n_nonzero, masked.token_parts, out);
}

// How many tokens the masks announce for each part. Refuses bits after a part's last value.
Parts nonzero_of(const uint8_t *masks, const Parts &parts) {
    Parts nonzero;
    for (uint64_t part : parts) {
        const size_t n = size_t(part / kGroup), rest = size_t(part % kGroup);
        uint64_t any = 0, count = count_bits(masks, n, any);
        masks += n;
        if (rest) {
            any |= *masks >> rest ? 0xf0 : 0;
            count += 0x4332322132212110u >> (4 * (*masks++ & 15)) & 15;
        }
        if (any & 0xf0f0f0f0f0f0f0f0) throw Corrupt("mask out of range");
        nonzero.push_back(count);
    }
    return nonzero;
}

// `nonzero` is followed by readable bytes.
const uint8_t *unmask_part(const uint8_t *&masks, size_t n, const uint8_t *nonzero, uint8_t *out) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8, masks += 2) {
        std::memset(out + i, 0, 8);
        for (unsigned mask = masks[0] | unsigned(masks[1]) << 4; mask; mask &= mask - 1)
            out[i + lowest_bit(mask)] = *nonzero++;
    }
    for (; i < n; i += kGroup, ++masks)
        for (size_t k = 0; k < kGroup && i + k < n; ++k) out[i + k] = *masks >> k & 1 ? *nonzero++ : 0;
    return nonzero;
}

ZerosApart read_apart(View in, const Parts &parts) {
    const uint64_t size = get_varint(in);
    const Parts mask_parts = mask_parts_of(parts);
    uint64_t n_masks = 0, n_nonzero = 0;
    for (uint64_t part : mask_parts) n_masks += part;
    static thread_local Scratch<uint8_t> mask_scratch, token_scratch;
    uint8_t *const masks = mask_scratch.get(size_t(n_masks) + 1);
    decode_dense(in.take(size > in.size ? in.size + 1 : size_t(size)), masks, size_t(n_masks), mask_parts);
    in = in.drop(size_t(size));
    const Parts nonzero = nonzero_of(masks, parts);
    for (uint64_t part : nonzero) n_nonzero += part;
    uint8_t *const tokens = token_scratch.get(size_t(n_nonzero) + 1);
    decode_chunked(in, tokens, size_t(n_nonzero), nonzero);
    if (count_nonzero(tokens, size_t(n_nonzero)) != n_nonzero) throw Corrupt("a zero among those that are none");
    return {masks, tokens};
}

void decode_zeros_apart(View in, uint8_t *out, const Parts &parts) {
    const ZerosApart apart = read_apart(in, parts);
    const uint8_t *at_mask = apart.masks, *at = apart.tokens;
    for (uint64_t part : parts) {
        at = unmask_part(at_mask, size_t(part), at, out);
        out += part;
    }
}

}  // namespace

void encode_tokens(const uint8_t *tokens, size_t n, const Parts &parts, Bytes &out) {
    const size_t n_nonzero = n < kZerosFrom ? n : count_nonzero(tokens, n);
    if (n_nonzero * kFewNonzero > n) return encode_dense(tokens, n, parts, Activity::tokens, out);
    const size_t begin = out.size();
    encode_zeros_apart(tokens, n, n_nonzero, parts, out);
    if (out.size() - begin > kSmallStream) return;
    Bytes plain;
    encode_dense(tokens, n, parts, Activity::tokens, plain);
    if (plain.size() > out.size() - begin) return;
    out.resize(begin);
    out.insert(out.end(), plain.begin(), plain.end());
}

bool read_zeros_apart(View in, const Parts &parts, ZerosApart &found) {
    if (in.take(1).data[0] != kZerosApart) return false;
    found = read_apart(in.drop(1), parts);
    return true;
}

void decode_tokens(View in, uint8_t *out, size_t n, const Parts &parts) {
    if (in.take(1).data[0] == kZerosApart)
        decode_zeros_apart(in.drop(1), out, parts);
    else
        decode_dense(in, out, n, parts);
}

}  // namespace nearzip
