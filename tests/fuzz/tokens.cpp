// decode_tokens on untrusted bytes: an answer or Corrupt. A stream that decodes fills its output the same way twice.
#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz::Input input;
    if (!fuzz::read_head(data, size, input)) return 0;
    std::vector<uint8_t> one(input.n, 0x00), two(input.n, 0xff);
    try {
        nearzip::decode_tokens(input.rest, one.data(), input.n, input.parts);
    } catch (const nearzip::Corrupt &) {
        return 0;
    }
    nearzip::decode_tokens(input.rest, two.data(), input.n, input.parts);
    fuzz::require(one == two, "some tokens were left unset");
    return 0;
}
