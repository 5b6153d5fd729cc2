// What differs between processors of one instruction set: which of two ways to the same bits is the faster one.
#pragma once

namespace dissim {
namespace {

#if defined(__AVX512F__)
// Zen 4 makes a vector of one value where it computes, so an instruction had better read the value in place. Others
// make it as they load it, but load no more than two vectors while they compute four: 17 % of the tile's time on Zen 5.
inline bool reads_in_place() { return __builtin_cpu_is("amdfam19h"); }
// Intel takes sums of absolute differences on one port, which a plain addition may occupy and a saturating one does
// not. AMD has fewer places for a saturating one: 15 % of the quantized search's time on Zen 5.
inline bool adds_saturating() { return __builtin_cpu_is("intel"); }
#else
inline bool reads_in_place() { return false; }
inline bool adds_saturating() { return false; }
#endif

}  // namespace
}  // namespace dissim
