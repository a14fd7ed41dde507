// The decoder of images for x86-64-v3. Vector types are lowered when code is read, so a clone of a function comes too late.
#include "dct.hpp"
#include "lanes.hpp"
#include "static_coder.hpp"

#include "v3.hpp"

#ifdef NZ_V3
#include "dct_kernels.hpp"
#endif

namespace nearzip {

const DctDecoders *dct_decoders_v3() {
#ifdef NZ_V3
    if (has_vectors()) return &kDecoders;
#endif
    return nullptr;
}

}  // namespace nearzip
