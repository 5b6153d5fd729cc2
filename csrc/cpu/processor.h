// Differences between processors of one instruction set: which of two equivalent instruction sequences is faster.
#pragma once

namespace dissim {
namespace {

#if defined(__AVX512F__)
// Whether an arithmetic instruction should broadcast its operand from memory. Otherwise the operand is broadcast by a
// load into a register first. Zen 4 executes that load's broadcast on its arithmetic pipes. Other processors do it in
// the load, but load only two vectors while they compute four: on Zen 5 the operand from memory costs 17 % of the time.
inline bool prefers_broadcast_operand() { return __builtin_cpu_is("amdfam19h"); }
// Whether sums of absolute differences should be added with saturation. Intel executes those sums on one port, which
// plain additions may occupy and saturating additions do not. AMD has fewer pipes for saturating additions: on Zen 5
// they cost 15 % of the time of the quantized search.
inline bool prefers_saturating_add() { return __builtin_cpu_is("intel"); }
#else
inline bool prefers_broadcast_operand() { return false; }
inline bool prefers_saturating_add() { return false; }
#endif

}  // namespace
}  // namespace dissim
