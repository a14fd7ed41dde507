// Token streams with grids: decoded from untrusted bytes, or tokens of the input's, repeated, there and back.
#include "input.hpp"

namespace {

// As in targets.py.
constexpr nearzip::Grid kGrids[8] = {{40, 1, 1, 0},   {27, 9, 3, 0},    {64, 4, 2, 10}, {0, 0, 0, 0},
                                     {16, 16, 4, 0}, {1000, 1, 1, 60}, {8, 2, 2, 0},   {72, 9, 3, 5}};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz::Input input;
    if (!fuzz::read_head(data, size, input)) return 0;
    nearzip::Parts parts;
    for (size_t p = 0; p < input.parts.size(); ++p) parts.push_back(input.parts[p], kGrids[(input.choice / 2 + p) % 8]);
    std::vector<uint8_t> one(input.n, 0x00), two(input.n, 0xff);
    if (input.choice & 1) {
        for (size_t i = 0; input.rest.size && i < input.n; ++i)
            one[i] = uint8_t(input.rest.data[i % input.rest.size] + i / input.rest.size % 3);
        nearzip::Bytes coded;
        nearzip::encode_tokens(one.data(), input.n, parts, coded);
        nearzip::decode_tokens({coded.data(), coded.size()}, two.data(), input.n, parts);
        fuzz::require(one == two, "tokens differ after a round trip");
        return 0;
    }
    try {
        nearzip::decode_tokens(input.rest, one.data(), input.n, parts);
    } catch (const nearzip::Corrupt &) {
        return 0;
    }
    nearzip::decode_tokens(input.rest, two.data(), input.n, parts);
    fuzz::require(one == two, "some tokens were left unset");
    return 0;
}
