// Interleaved rANS states: the inner loops that code tokens and decode them. Value i of a run uses state i mod lanes, and
// the table `numbers[i]`; where there are no numbers, all values use one.
#pragma once

#include "tables.hpp"

namespace nearzip {

// Eight states hide the latency of the multiplier in plain code; 32 fill four vectors of eight.
constexpr int kFewLanes = 8, kManyLanes = 32;
// A stream of this many bytes bears the states of 32 lanes, which decode faster.
constexpr uint64_t kManyLanesFrom = 16 << 10;
constexpr int kManyLanesFlag = 32;  // in the byte of a stream's scale
inline int lanes_for(uint64_t n_bytes) { return n_bytes >= kManyLanesFrom ? kManyLanes : kFewLanes; }

constexpr uint32_t kLow = 1u << 16;  // states live in [2^16, 2^32), words of 16 bits go in and out
constexpr int kNarrowScale = 12;     // up to here a slot of a decoding table fits 32 bits
// A group of lanes reads past the end of the words before that is noticed: so many zeros must follow them.
constexpr size_t kWordPadding = 2 * kManyLanes + 32;

// For tests: whether the loops for AVX2 may be used where the processor has it. Returns whether they are. The bytes are the
// same either way.
bool allow_vectors(bool allowed);
// Whether they may be used, and the processor has them: AVX2 and what all processors with it have.
bool has_vectors();

// bytes[i] = table[bytes[i]] for bytes below 128.
void look_up(const uint8_t *table, uint8_t *bytes, size_t n);

// So many words in front of the last one written may be overwritten with anything.
constexpr size_t kWordsBefore = 8;

struct EncodeEntry {
    uint64_t reciprocal;  // the state divided by the frequency, as a product
    uint32_t bias, complement;
};

// Encoding tables, an entry for each token.
class EncodeTables {
public:
    explicit EncodeTables(int scale) : scale_(scale) {}
    void add(const Freqs &freqs);

    // Codes n tokens back to front; `words` grows downwards. Returns its new place.
    uint16_t *encode_run(const uint8_t *numbers, size_t first_table, size_t n, int lanes, uint32_t *states,
                         const uint8_t *tokens, uint16_t *words) const;

private:
    int scale_;
    std::vector<EncodeEntry> entries_;
    std::vector<uint32_t> narrow_;  // frequency, and 2^16 times where its slots begin
};

// Decoding tables, 2^scale slots each. No token's frequency may be 2^scale.
class DecodeTables {
public:
    explicit DecodeTables(int scale) : scale_(scale) {}
    void add(const Freqs &freqs);

    // Decodes n tokens. `words` may end up behind `end`: then the stream ended early, and the tokens mean nothing.
    const uint8_t *decode_run(const uint8_t *numbers, size_t first_table, size_t n, int lanes, uint32_t *states,
                              const uint8_t *words, const uint8_t *end, uint8_t *tokens) const;

private:
    int scale_;
    std::vector<uint32_t> narrow_;
    std::vector<uint64_t> wide_;
};

}  // namespace nearzip
