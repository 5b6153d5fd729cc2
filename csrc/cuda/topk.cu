// topk: the k best references of each query. Blocks score tiles of their queries against a share of the references and
// keep each query's k best of that share; then a block a query merges the shares. Scores never leave registers.
#include "launchers.h"
#include "select.cuh"
#include "stage.cuh"

namespace dissim {
namespace {

constexpr int64_t kBlocks = 512;       // wanted in a grid: some for every multiprocessor of the largest devices
constexpr int64_t kCandidates = 8192;  // that merging a query compares with each other, if k allows

// Every share's lists: [shares][queries][k].
template <class A>
struct Shares {
  int count, tiles;  // shares of the references, tiles of a share
  Key<A>* keys;
  int64_t* indices;

  __device__ List<A> list(const TopK& p, int64_t share, int64_t n) const {
    const int64_t at = (share * p.query.rows + n) * p.k;
    return {keys + at, indices + at};
  }
};

template <class A>
Shares<A> shares_of(const TopK& p, void* workspace) {
  constexpr int64_t rows = Tile<A>::kRows;
  const int64_t tiles = blocks_of(p.reference.rows, rows), blocks = blocks_of(p.query.rows, rows);
  const int64_t most_shares = most(8, kCandidates / most(1, p.k));
  const int64_t wanted = least(least(most_shares, blocks_of(kBlocks, most(1, blocks))), most(1, tiles));
  const int64_t each = blocks_of(most(1, tiles), wanted), count = blocks_of(most(1, tiles), each);
  int64_t* const indices = static_cast<int64_t*>(workspace);
  return {int(count), int(each), reinterpret_cast<Key<A>*>(indices + count * p.query.rows * p.k), indices};
}

// Offers the scores [rows][columns] of a tile's rows from `first` on to their queries' lists, a warp for each row.
template <class A>
__device__ __forceinline__ void select(const TopK& p, const Shares<A>& shares, const A* scores, int rows, int64_t first,
                                       int64_t m0, Worst<A>* worst_of_rows) {
  using T = Tile<A>;
  const int lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (int row = threadIdx.x / kWarp; row < rows && first + row < p.query.rows; row += kWarps) {
    const int64_t n = first + row, excluded = p.exclude ? p.exclude[n] : -1;
    const List<A> list = shares.list(p, blockIdx.y, n);
    Worst<A> worst = worst_of_rows[row];
#pragma unroll 1
    for (int column = lane; column < T::kRows; column += kWarp) {
      const int64_t m = m0 + column;
      const Candidate<A> mine = {key_of<A>(scores[row * T::kRows + column], p.largest), m};
      bool offered = m < p.reference.rows && mine.better_than(worst.candidate) && m != excluded;
      if (offered && p.query_labels) offered = p.reference_labels[m] != p.query_labels[n];
      offer(list, p.k, worst, mine, offered);
    }
    __syncwarp();
    if (lane == 0) worst_of_rows[row] = worst;
  }
}

template <class E, bool copied>
__global__ void __launch_bounds__(kThreads, kTileBlocks) topk_kernel(TopK p, Shares<Wide<E>> shares) {
  using A = Wide<E>;
  using T = Tile<A>;
  DISSIM_DYNAMIC_SHARED(A, buffers);
  __shared__ Worst<A> worst[T::kRows];
  const int64_t first_query = int64_t(blockIdx.x) * T::kRows;
  for (int row = threadIdx.x / kWarp; row < T::kRows && first_query + row < p.query.rows; row += kWarps) {
    clear_list(shares.list(p, blockIdx.y, first_query + row), p.k);
    if (threadIdx.x % kWarp == 0) worst[row] = {{0, kNoIndex}, 0};
  }
#pragma unroll 1
  for (int tile = 0; tile < shares.tiles; ++tile) {  // 32 bits where they suffice: no register is to spare
    const int64_t m0 = (blockIdx.y * shares.tiles + tile) * T::kRows;
    if (m0 >= p.reference.rows) break;
    A sums[T::kSide][T::kSide];
    score_tile<E, copied>(p.query, p.reference, static_cast<const A*>(p.weight), int(p.dim), first_query, m0, buffers,
                          sums);
    const A bias = p.bias ? *static_cast<const A*>(p.bias) : A(0);
#pragma unroll
    for (int part = 0; part < kParts<A>; ++part) {
      stage_part<A>(sums, part, bias, buffers);
      __syncthreads();
      select<A>(p, shares, buffers, kPartRows<A>, first_query + part * kPartRows<A>, m0, worst + part * kPartRows<A>);
      __syncthreads();
    }
  }
}

// A candidate's place is the number of better ones, for no two are equal.
template <class A>
__global__ void __launch_bounds__(kThreads) topk_merge_kernel(TopK p, Shares<A> shares) {
  const int64_t n = blockIdx.x, candidates = shares.count * p.k;
  const auto at = [&](int64_t c) {
    const List<A> list = shares.list(p, c / p.k, n);
    return Candidate<A>{list.keys[c % p.k], list.indices[c % p.k]};
  };
  A* const scores = static_cast<A*>(p.scores) + n * p.k;
  for (int64_t c = threadIdx.x; c < candidates; c += kThreads) {
    const Candidate<A> mine = at(c);
    int64_t place = 0, found = 0;
    for (int64_t share = 0; share < shares.count; ++share) {
      const List<A> list = shares.list(p, share, n);
      for (int64_t i = 0; i < p.k; ++i) {
        const Candidate<A> other = {list.keys[i], list.indices[i]};
        place += other.better_than(mine);
        found += other.key != 0;
      }
    }
    if (mine.key && place < p.k) {
      scores[place] = score_of<A>(mine.key, p.largest);
      p.indices[n * p.k + place] = mine.index;
    }
    if (c < p.k && c >= found) {  // no candidate is left for this place
      scores[c] = score_of<A>(0, p.largest);
      p.indices[n * p.k + c] = -1;
    }
  }
}

template <class E>
void launch_topk_as(const TopK& p, void* workspace, Stream stream) {
  using A = Wide<E>;
  if (p.query.rows * p.k == 0) return;
  const Shares<A> shares = shares_of<A>(p, workspace);
  const Grid grid = {unsigned(blocks_of(p.query.rows, Tile<A>::kRows)), unsigned(shares.count)};
  if (can_copy<E>(p)) {
    launch(topk_kernel<E, sizeof(E) >= 4>, grid, Tile<A>::kSharedBytes, stream, p, shares);
  } else {
    launch(topk_kernel<E, false>, grid, Tile<A>::kSharedBytes, stream, p, shares);
  }
  launch(topk_merge_kernel<A>, {unsigned(p.query.rows), 1}, 0, stream, p, shares);
}

}  // namespace

int64_t topk_workspace(const TopK& p) {
  const bool wide = p.dtype == Dtype::float64;
  const int64_t count = wide ? shares_of<double>(p, nullptr).count : shares_of<float>(p, nullptr).count;
  return count * p.query.rows * p.k * int64_t(sizeof(int64_t) + (wide ? sizeof(uint64_t) : sizeof(uint32_t)));
}

void launch_topk(const TopK& p, void* workspace, Stream stream) {
  switch (p.dtype) {
    case Dtype::float16: return launch_topk_as<__half>(p, workspace, stream);
    case Dtype::bfloat16: return launch_topk_as<__nv_bfloat16>(p, workspace, stream);
    case Dtype::float32: return launch_topk_as<float>(p, workspace, stream);
    case Dtype::float64: return launch_topk_as<double>(p, workspace, stream);
  }
}

}  // namespace dissim
