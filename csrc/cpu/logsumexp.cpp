// logsumexp: E1 over all pairs. Of each row the log-sum-exp is kept, the mean score under its softmax, and one bit for
// each pair whose share of the row is above rounding (E15). A row has one sum for each chunk of references, so it
// depends on the shape alone.
#include "exp.h"
#include "kernels.h"
#include "labels.h"
#include "select.h"

namespace dissim {
namespace {

// Of some pairs of a row: the largest logit, the sum of exp(logit - shift) and of that times the score. The shift is
// the largest logit, or 0 where that is infinite.
template <class A>
struct RowSum {
  A max, sum, weighted;
  A shift() const { return max - max == 0 ? max : 0; }
};

template <class A>
A exp_of(A x) {
  return exp<A>(broadcast<A>(x))[0];
}
inline float log_of(float x) { return __builtin_logf(x); }
inline double log_of(double x) { return __builtin_log(x); }

template <class E>
class RowSums {
  using A = Acc<E>;
  static constexpr int lanes = kLanes<A>;

 public:
  static void run(const LogSumExp& p, const Parallel& parallel) {
    const AllPairs<E> all{
        p.query, p.reference, 1, 1, p.dim, static_cast<const A*>(p.weight), static_cast<const A*>(p.bias)};
    const int64_t row_bytes = max(1, partition_work(all, 1).chunks) * int64_t(sizeof(RowSum<A>));
    for_each_query_range(all, row_bytes, [&](int64_t begin, int64_t end) {
      const Partition partition = partition_work(all.query_range(begin, end, 0), parallel.threads);
      const AllPairs<E> pairs = all.query_range(begin, end, (end - begin) * row_bytes);
      RowSums sums(p, begin, end - begin, partition);
      scan<E>(pairs, partition, parallel, [&](const ScoreBlock<A>& block) { sums.take(block); });
      for_each(parallel, end - begin, [&](int64_t row) { sums.finish(begin + row); });
    });
  }

 private:
  RowSums(const LogSumExp& p, int64_t first, int64_t rows, const Partition& partition)
      : p_(p),
        first_(first),
        partition_(partition),
        scale_(*static_cast<const A*>(p.scale)),
        min_share_(kRounding / A(max(1, p.reference.rows))),
        sums_(rows * partition.chunks) {
    for (int64_t i = 0; i < rows * partition.chunks; ++i) sums_[i] = {-kInfinity, 0, 0};
  }

  void take(const ScoreBlock<A>& block) {
    const int64_t m = block.column, chunk = partition_.chunk_of(m);
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t n = block.row + i;
      const uint64_t kept = candidates(p_.filter, n, m, block.columns);
      const uint64_t active = kept ? add(block[i], kept, row_sums(n)[chunk]) : 0;
      memcpy(row_bits(n) + m / 8, &active, size_t(ceil_div(block.columns, 8)));
    }
  }

  // Adds the kept pairs of up to 64 scores and returns those whose share of the chunk so far is above rounding. A NaN
  // is no maximum, but the sums become NaN.
  uint64_t add(const A* scores, uint64_t kept, RowSum<A>& row) const {
    constexpr int vectors = kBlockColumns / lanes;
    Vector<A> logits[vectors], largest = broadcast<A>(row.max);
    for (int j = 0; j < vectors; ++j) {
      const Integers<A> mask = mask_of_bits<A>(kept >> j * lanes);
      logits[j] = where<A>(mask, load<A>(scores + j * lanes) * scale_) + where<A>(~mask, broadcast<A>(-kInfinity));
      const Integers<A> above = logits[j] > largest;
      largest = where<A>(above, logits[j]) + where<A>(~above, largest);
    }
    RowSum<A> next = row;
    for (int i = 0; i < lanes; ++i) next.max = largest[i] > next.max ? largest[i] : next.max;
    const A shift = next.shift();
    Vector<A> sums = {}, weighted = {};
    for (int j = 0; j < vectors; ++j) {
      logits[j] = exp<A>(logits[j] - shift);
      sums += logits[j];
      weighted += where<A>(logits[j] != 0, logits[j] * load<A>(scores + j * lanes));  // 0 * infinity is 0 here
    }
    const A factor = row.sum == 0 ? 0 : exp_of<A>(row.shift() - shift);
    next.sum = row.sum * factor + sum<A>(sums);
    next.weighted = row.weighted * factor + sum<A>(weighted);
    row = next;
    uint64_t active = 0;
    for (int j = 0; j < vectors; ++j) active |= uint64_t(bits<A>(~(logits[j] <= min_share_ * next.sum))) << j * lanes;
    return active & kept;
  }

  // The row's result from its chunks, in order. A chunk of c pairs that as a whole holds at most c u / M of the row has
  // its bits cleared.
  void finish(int64_t n) {
    RowSum<A>* const chunks = row_sums(n);
    RowSum<A> row = {-kInfinity, 0, 0};
    for (int64_t chunk = 0; chunk < partition_.chunks; ++chunk)
      row.max = chunks[chunk].max > row.max ? chunks[chunk].max : row.max;
    for (int64_t chunk = 0; chunk < partition_.chunks; ++chunk) {
      const RowSum<A>& some = chunks[chunk];
      const A factor = some.sum == 0 ? 0 : exp_of<A>(some.shift() - row.shift());
      chunks[chunk].sum *= factor;
      row.sum += some.sum;
      row.weighted += some.weighted * factor;
    }
    const A value = log_of(row.sum) + row.shift();
    static_cast<A*>(p_.value)[n] = value;
    static_cast<A*>(p_.mean_score)[n] = row.sum == 0 ? 0 : row.weighted / row.sum;
    for (int64_t chunk = 0; chunk < partition_.chunks; ++chunk) {
      const int64_t begin = chunk * partition_.chunk_columns,
                    end = min(begin + partition_.chunk_columns, p_.reference.rows);
      if (!(value < kInfinity))
        activate(n, begin, end);
      else if (chunks[chunk].sum <= A(end - begin) * min_share_ * row.sum)
        memset(row_bits(n) + begin / 8, 0, size_t(ceil_div(end - begin, 8)));
    }
  }

  // All kept pairs of a row whose value is NaN or infinity: some of them have a NaN gradient.
  void activate(int64_t n, int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m += 64) {
      const int64_t columns = min(64, end - m);
      const uint64_t kept = candidates(p_.filter, n, m, columns);
      memcpy(row_bits(n) + m / 8, &kept, size_t(ceil_div(columns, 8)));
    }
  }

  RowSum<A>* row_sums(int64_t n) { return sums_ + (n - first_) * partition_.chunks; }
  uint8_t* row_bits(int64_t n) { return p_.active + n * ceil_div(p_.reference.rows, 8); }

  static constexpr A kInfinity = A(__builtin_inf());
  static constexpr A kRounding = sizeof(A) == 4 ? A(0x1p-24) : A(0x1p-53);

  const LogSumExp& p_;
  const int64_t first_;
  const Partition partition_;
  const A scale_, min_share_;
  Scratch<RowSum<A>> sums_;  // [rows from first_ on][chunks]
};

}  // namespace

namespace DISSIM_ISA {
void logsumexp(const LogSumExp& problem, const Parallel& parallel) { dispatch<RowSums>(problem, parallel); }
}  // namespace DISSIM_ISA
}  // namespace dissim
