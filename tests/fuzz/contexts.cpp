// decode_contexts on untrusted bytes, every width, against a base of all kinds of values; and round trips of values.
#include "contexts.hpp"

#include <cstring>

#include "input.hpp"

namespace {

constexpr int kMantissaBits[4] = {3, 7, 23, 52};

template <class U>
void decode(const fuzz::Input &input, nearzip::ValueKind kind) {
    std::vector<U> base(input.n), one(input.n, U(0)), two(input.n, U(~U(0)));
    uint64_t bits = 1;
    for (U &value : base) value = U((bits = bits * 6364136223846793005u + 1442695040888963407u) >> 20);
    try {
        nearzip::decode_contexts<U>(input.rest, base.data(), input.n, kind, input.parts, one.data());
    } catch (const nearzip::Corrupt &) {
        return;
    }
    nearzip::decode_contexts<U>(input.rest, base.data(), input.n, kind, input.parts, two.data());
    fuzz::require(one == two, "some values were left unset");
}

// Values are the input's, repeated; the base is theirs, moved by what the input says as well.
template <class U>
void round_trip(const fuzz::Input &input, nearzip::ValueKind kind) {
    std::vector<U> values(input.n), base(input.n), back(input.n, U(0x5a));
    const size_t whole = input.rest.size / sizeof(U);
    for (size_t i = 0; whole && i < input.n; ++i) {
        std::memcpy(&values[i], input.rest.data + (i % whole) * sizeof(U), sizeof(U));
        base[i] = U(values[i] - U(values[i % 7] >> (i / whole % (8 * sizeof(U)))));
    }
    nearzip::Bytes coded;
    nearzip::encode_contexts<U>(values.data(), base.data(), input.n, kind, input.parts, coded);
    nearzip::decode_contexts<U>({coded.data(), coded.size()}, base.data(), input.n, kind, input.parts, back.data());
    fuzz::require(back == values, "values differ after a round trip");
}

template <class U>
void both(const fuzz::Input &input, unsigned choice, int mantissa_bits) {
    const nearzip::ValueKind kind{(choice & 1) == 0, choice & 1 ? 8 * int(sizeof(U)) : mantissa_bits};
    if (choice & 2)
        round_trip<U>(input, kind);
    else
        decode<U>(input, kind);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz::Input input;
    if (!fuzz::read_head(data, size, input)) return 0;
    const unsigned width = input.choice & 3, choice = input.choice >> 2;
    switch (width) {
        case 0: both<uint8_t>(input, choice, kMantissaBits[0]); break;
        case 1: both<uint16_t>(input, choice, kMantissaBits[1]); break;
        case 2: both<uint32_t>(input, choice, kMantissaBits[2]); break;
        default: both<uint64_t>(input, choice, kMantissaBits[3]);
    }
    return 0;
}
