// Include it behind all headers that other files have, too: what follows is compiled for x86-64-v3, and must have no linkage.
// Otherwise the linker might take these for functions of files that run everywhere.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(NZ_NO_CLONES)
#define NZ_V3 1
#include <immintrin.h>
#pragma GCC target("avx2,bmi,bmi2,fma,lzcnt,movbe,popcnt")
#endif
