// Sums of absolute differences of codes for a tile of pairs, in registers: four elements an instruction.
//
// A block of 16 x 16 threads owns 128 queries and 128 references, thread (x, y) the pairs of the queries 8 y .. 8 y + 7
// and the references 2 x, 2 x + 1, 2 x + 32, 2 x + 33 and so on: two rows are 16 bytes of a group, loaded at a time.
// Groups of code columns pass through two buffers, kDepth at a time.
#pragma once

#include "tile.cuh"

namespace dissim {
namespace {

struct SadTile {
  static constexpr int kSide = 8, kRows = kGrid * kSide, kPanels = kRows / int(kCodePanel), kDepth = 16;
  static constexpr int kGroup = 2 * kRows * int(kCodeGroup);  // bytes of a group of either side's rows
  static constexpr int kStage = kDepth * kGroup, kSharedBytes = 2 * kStage;
};
constexpr int64_t kPanelGroup = kCodePanel * kCodeGroup;  // bytes of a group of a panel's rows, together in memory

#ifndef DISSIM_CUDA_ON_HOST
// sum + the four bytes' absolute differences.
__device__ __forceinline__ unsigned add_sad(unsigned a, unsigned b, unsigned sum) {
  asm("vabsdiff4.u32.u32.u32.add %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(sum));
  return sum;
}
#else
inline unsigned add_sad(unsigned a, unsigned b, unsigned sum) {
  for (int shift = 0; shift < 32; shift += 8) sum += unsigned(std::abs(int(a >> shift & 255) - int(b >> shift & 255)));
  return sum;
}
#endif

// A tile's codes of one side: its panels, of which kPanels or fewer are left, of so many groups.
struct CodePanels {
  const uint8_t* codes;
  int panels, groups;  // dimensions are fewer than 2^19 (ops/quantized_topk.py)
};

__device__ __forceinline__ CodePanels code_panels(const uint8_t* codes, int64_t row, int64_t rows, int64_t groups) {
  const int64_t first = row / kCodePanel, left = ceil_div(rows, kCodePanel) - first;
  return {codes + first * groups * kPanelGroup, int(min(left, SadTile::kPanels)), int(groups)};
}

// A thread's share of copying the groups from `first` to `end`, kDepth at most; zeros for panels there are none of.
__device__ __forceinline__ void load_codes(const CodePanels& side, int first, int end, uint8_t* to) {
  constexpr int copies = int(kPanelGroup) / 16, panels_at_once = kThreads / copies / SadTile::kDepth;
  const int copy = threadIdx.x % copies, group = threadIdx.x / copies % SadTile::kDepth;
  const int panel = threadIdx.x / (copies * SadTile::kDepth);
  const bool real = first + group < end;
  const uint8_t* from = side.codes + int64_t(panel * side.groups + first + group) * kPanelGroup + copy * 16;
  to += group * SadTile::kGroup + panel * int(kPanelGroup) + copy * 16;
#pragma unroll
  for (int i = 0; i < SadTile::kPanels; i += panels_at_once) {
    copy_async(to, from, real && panel + i < side.panels ? 16 : 0);
    from += int64_t(panels_at_once * side.groups) * kPanelGroup;
    to += panels_at_once * kPanelGroup;
  }
}

// The reference of a tile whose pairs are a thread's column j.
__device__ __forceinline__ int sad_column(int j) { return j / 2 * 2 * kGrid + threadIdx.x % kGrid * 2 + j % 2; }

// sums[i][j] += the groups from `first` to `end` of |query 8 y + i - reference sad_column(j)|. Ends with all threads
// done with `shared`.
__device__ __forceinline__ void add_groups(const CodePanels& query, const CodePanels& reference, int first, int end,
                                           uint8_t* shared, unsigned (&sums)[SadTile::kSide][SadTile::kSide]) {
  using T = SadTile;
  const auto load = [&](int group, uint8_t* stage) {
    load_codes(query, group, end, stage);
    load_codes(reference, group, end, stage + T::kGroup / 2);
    end_group();
  };
  const uint8_t* const of_query = shared + threadIdx.x / kGrid * T::kSide * int(kCodeGroup);
  const uint8_t* const of_reference = shared + T::kGroup / 2 + threadIdx.x % kGrid * 2 * int(kCodeGroup);
  const auto at = [](const uint8_t* from) { return *reinterpret_cast<const uint4*>(from); };
  int now = 0;  // the buffer that is computed with begins here, the other at kStage less that
  load(first, shared);
#pragma unroll 1
  for (; first < end; first += T::kDepth) {
    load(first + T::kDepth, shared + (T::kStage - now));  // beyond the last group: zeros that nobody reads
    wait_for_groups<1>();
    __syncthreads();
    const int last = now + min(end - first, T::kDepth) * T::kGroup;
#pragma unroll 1
    for (int group = now; group < last; group += T::kGroup) {
      uint4 q[T::kSide / 2];
#pragma unroll
      for (int i = 0; i < T::kSide / 2; ++i) q[i] = at(of_query + group + i * 16);
#pragma unroll
      for (int j = 0; j < T::kSide; j += 2) {
        const uint4 r = at(of_reference + group + j * kGrid * int(kCodeGroup));
#pragma unroll
        for (int i = 0; i < T::kSide; i += 2) {
          const uint4& two = q[i / 2];
          sums[i][j] = add_sad(two.y, r.y, add_sad(two.x, r.x, sums[i][j]));
          sums[i][j + 1] = add_sad(two.y, r.w, add_sad(two.x, r.z, sums[i][j + 1]));
          sums[i + 1][j] = add_sad(two.w, r.y, add_sad(two.z, r.x, sums[i + 1][j]));
          sums[i + 1][j + 1] = add_sad(two.w, r.w, add_sad(two.z, r.z, sums[i + 1][j + 1]));
        }
      }
    }
    __syncthreads();
    now = T::kStage - now;
  }
  wait_for_groups<0>();
  __syncthreads();
}

}  // namespace
}  // namespace dissim
