// Sums of absolute differences (SAD) of 8-bit codes for a tile of pairs, in registers: four columns an instruction.
//
// Memory layout of the codes (csrc/dissim.h): a panel has kCodePanel = 16 rows; a group has kCodeGroup = 8 columns.
// The 16 x 8 bytes of a panel's group are contiguous, row after row.
//
// A block computes 128 x 128 pairs. Thread (x, y) of 16 x 16 holds the pairs of 8 queries and 8 references:
//
//   queries      8 y, 8 y + 1, ..., 8 y + 7
//   references   2 x, 2 x + 1,  2 x + 32, 2 x + 33,  2 x + 64, 2 x + 65,  2 x + 96, 2 x + 97    (sad_column)
//
// Two neighboring rows of a group are 16 bytes, which are loaded at once. Two threads x, x + 1 with x even hold the
// references 2 x to 2 x + 3 of every 32, which quantized_scan.cuh calls a cluster.
//
// The groups pass through two stages of shared memory, kStageGroups at a time.
#pragma once

#include "tile.cuh"

namespace dissim {
namespace {

struct SadTile {
  static constexpr int kPerThread = 8;                        // queries of a thread, and references
  static constexpr int kRows = kBlockSide * kPerThread;       // queries of a tile, and references
  static constexpr int kPanels = kRows / int(kCodePanel);     // of queries, and of references
  static constexpr int kSideBytes = kRows * int(kCodeGroup);  // one group of the queries, or of the references
  static constexpr int kGroupBytes = 2 * kSideBytes;
  static constexpr int kStageGroups = 16, kStageBytes = kStageGroups * kGroupBytes, kSharedBytes = 2 * kStageBytes;
};
constexpr int64_t kPanelGroupBytes = kCodePanel * kCodeGroup;  // one group of a panel's rows

#ifndef DISSIM_CUDA_ON_HOST
// sum + the absolute differences of the four bytes of a and b.
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

// The codes of a tile's queries, or of its references: up to kPanels panels.
struct CodePanels {
  const uint8_t* codes;
  int panels, groups;  // there are fewer than 2^19 dimensions (ops/quantized_topk.py), so int suffices
};

__device__ __forceinline__ CodePanels code_panels(const uint8_t* codes, int64_t first_row, int64_t rows,
                                                  int64_t groups) {
  const int64_t first_panel = first_row / kCodePanel, left = ceil_div(rows, kCodePanel) - first_panel;
  return {codes + first_panel * groups * kPanelGroupBytes, int(min(left, SadTile::kPanels)), int(groups)};
}

// Starts the copies of the groups first to end - 1, at most kStageGroups, to a stage. All threads of the block take
// part, 16 bytes each. Panels that do not exist become 0.
__device__ __forceinline__ void load_codes(const CodePanels& side, int first, int end, uint8_t* to) {
  constexpr int chunks = int(kPanelGroupBytes) / 16;
  constexpr int panels_per_pass = kThreads / chunks / SadTile::kStageGroups;
  const int chunk = threadIdx.x % chunks, group = threadIdx.x / chunks % SadTile::kStageGroups;
  const int panel = threadIdx.x / (chunks * SadTile::kStageGroups);
  const bool group_exists = first + group < end;
  const uint8_t* from = side.codes + int64_t(panel * side.groups + first + group) * kPanelGroupBytes + chunk * 16;
  to += group * SadTile::kGroupBytes + panel * int(kPanelGroupBytes) + chunk * 16;
#pragma unroll
  for (int i = 0; i < SadTile::kPanels; i += panels_per_pass) {
    cp_async(to, from, group_exists && panel + i < side.panels ? 16 : 0);
    from += int64_t(panels_per_pass * side.groups) * kPanelGroupBytes;
    to += panels_per_pass * kPanelGroupBytes;
  }
}

// Which reference of the tile a thread's pairs j belong to.
__device__ __forceinline__ int sad_column(int j) {
  return j / 2 * 2 * kBlockSide + threadIdx.x % kBlockSide * 2 + j % 2;
}

// sums[i][j] += sum over the groups first to end - 1 of |query 8 y + i - reference sad_column(j)|. When it returns, no
// thread reads `shared` any more.
__device__ __forceinline__ void accumulate_groups(const CodePanels& query, const CodePanels& reference, int first,
                                                  int end, uint8_t* shared,
                                                  unsigned (&sums)[SadTile::kPerThread][SadTile::kPerThread]) {
  using T = SadTile;
  const auto load = [&](int group, uint8_t* stage) {
    load_codes(query, group, end, stage);
    load_codes(reference, group, end, stage + T::kSideBytes);
    commit_group();
  };
  const uint8_t* const query_codes = shared + threadIdx.x / kBlockSide * T::kPerThread * int(kCodeGroup);
  const uint8_t* const reference_codes = shared + T::kSideBytes + threadIdx.x % kBlockSide * 2 * int(kCodeGroup);
  const auto load_two_rows = [](const uint8_t* from) { return *reinterpret_cast<const uint4*>(from); };
  int stage = 0;  // offset of the stage that is read; the other one begins at kStageBytes - stage
  load(first, shared);
#pragma unroll 1
  for (; first < end; first += T::kStageGroups) {
    load(first + T::kStageGroups, shared + (T::kStageBytes - stage));  // beyond `end` it writes zeros, never read
    wait_group<1>();
    __syncthreads();
    const int stage_end = stage + min(end - first, T::kStageGroups) * T::kGroupBytes;
#pragma unroll 1
    for (int group = stage; group < stage_end; group += T::kGroupBytes) {
      uint4 q[T::kPerThread / 2];  // two queries each: x, y are the eight columns of the first, z, w of the second
#pragma unroll
      for (int i = 0; i < T::kPerThread / 2; ++i) q[i] = load_two_rows(query_codes + group + i * 16);
#pragma unroll
      for (int j = 0; j < T::kPerThread; j += 2) {
        const uint4 r = load_two_rows(reference_codes + group + j * kBlockSide * int(kCodeGroup));
#pragma unroll
        for (int i = 0; i < T::kPerThread; i += 2) {
          const uint4& two = q[i / 2];
          sums[i][j] = add_sad(two.y, r.y, add_sad(two.x, r.x, sums[i][j]));
          sums[i][j + 1] = add_sad(two.y, r.w, add_sad(two.x, r.z, sums[i][j + 1]));
          sums[i + 1][j] = add_sad(two.w, r.y, add_sad(two.z, r.x, sums[i + 1][j]));
          sums[i + 1][j + 1] = add_sad(two.w, r.w, add_sad(two.z, r.z, sums[i + 1][j + 1]));
        }
      }
    }
    __syncthreads();
    stage = T::kStageBytes - stage;
  }
  wait_group<0>();
  __syncthreads();
}

}  // namespace
}  // namespace dissim
