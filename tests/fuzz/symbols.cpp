// decode_symbols and decode_quantized on untrusted bytes, every type; the stream's first byte chooses the split.
#include "floats.hpp"
#include "input.hpp"
#include "symbols.hpp"

namespace {

template <class T>
void decode(const fuzz::Input &input) {
    std::vector<T> one(input.n, T(0)), two(input.n, T(~T(0)));
    try {
        nearzip::decode_symbols<T>(input.rest, one.data(), input.n, input.parts);
    } catch (const nearzip::Corrupt &) {
        return;
    }
    nearzip::decode_symbols<T>(input.rest, two.data(), input.n, input.parts);
    fuzz::require(one == two, "some symbols were left unset");
}

// Decoding straight to floats gives what decoding and dequantizing one after the other gives, or the same refusal.
template <class F>
void decode_floats(const fuzz::Input &input) {
    std::vector<F> base(input.n, F(0.25)), one(input.n, F(1)), two(input.n, F(2));
    std::vector<int32_t> symbols(input.n, 0);
    bool refused = false;
    try {
        nearzip::decode_quantized<F>(input.rest, base.data(), input.n, 0.01, input.parts, one.data());
    } catch (const nearzip::Corrupt &) {
        refused = true;
    }
    try {
        nearzip::decode_symbols<int32_t>(input.rest, symbols.data(), input.n, input.parts);
    } catch (const nearzip::Corrupt &) {
        return fuzz::require(refused, "only one of two decoders refused");
    }
    fuzz::require(!refused, "only one of two decoders refused");
    nearzip::dequantize<F>(symbols.data(), base.data(), input.n, 0.01, two.data());
    fuzz::require(one == two, "two decoders differ");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz::Input input;
    if (!fuzz::read_head(data, size, input)) return 0;
    switch (input.choice % 7) {
        case 0: decode<int32_t>(input); break;
        case 1: decode<uint8_t>(input); break;
        case 2: decode<uint16_t>(input); break;
        case 3: decode<uint32_t>(input); break;
        case 4: decode<uint64_t>(input); break;
        case 5: decode_floats<float>(input); break;
        default: decode_floats<double>(input);
    }
    return 0;
}
