// A check of one instruction set without torch or Python, so that it can be cross-compiled and run under an emulator.
// Every kernel runs on odd sizes, in every dtype. Results are compared with loops in double, within the rounding bounds
// of E9 and E2. Random values lie on a coarse grid: ties are frequent, and every dtype holds the values exactly. The
// program prints what is wrong and exits with 1. It is compiled for one instruction set, with -DDISSIM_ISA=name and the
// flags of that set, together with the kernels.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "../csrc/cpu/kernels.h"
#include "../csrc/cpu/max_form.h"
#include "../csrc/cpu/sad.h"
#include "native_check_inputs.h"

using namespace dissim;

namespace {

int failures = 0;
bool quick = false;  // fewer sizes and options, see main()

void check(bool right, const char* what, const char* dtype, int64_t n, int64_t m, int64_t d) {
  if (right) return;
  ++failures;
  std::printf("%s is wrong: %s, N=%ld, M=%ld, D=%ld\n", what, dtype, long(n), long(m), long(d));
}

void run_threads(int, int64_t count, void (*each)(void*, int, int64_t), void* context) {
  std::thread other([&] {
    for (int64_t i = 1; i < count; i += 2) each(context, 1, i);
  });
  for (int64_t i = 0; i < count; i += 2) each(context, 0, i);
  other.join();
}

// A random problem of one size, its scores in double, and a check of each kernel on it.
template <class E>
class SizeCheck {
  using A = Acc<E>;

 public:
  // `out_unit`: the unit roundoff of the dtype, which rounds the results.
  SizeCheck(Dtype dtype, const char* name, double out_unit, int64_t n, int64_t m, int64_t d, const Parallel& parallel)
      : dtype(dtype),
        name(name),
        out_unit(out_unit),
        n(n),
        m(m),
        d(d),
        parallel(parallel),
        q(random_values(n * d)),
        w(random_values(d)),
        upstream(random_values(n * m)),
        r(random_values(m * d)) {
    // Equal rows do not meet the condition of the max form (E7).
    for (int64_t j = 0; j < m; j += 9) std::copy_n(&q[j % n * d], d, &r[j * d]);
    query = to_elements<E>(q), reference = to_elements<E>(r);
    weight.assign(w.begin(), w.end());
    queries = {query.data(), n, n * d, d, 1}, references = {reference.data(), m, m * d, d, 1};
    exact.assign(n * m, bias), terms.assign(n * m, bias);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < m; ++j)
        for (int64_t k = 0; k < d; ++k) {
          exact[i * m + j] += w[k] * std::fabs(q[i * d + k] - r[j * d + k]);
          terms[i * m + j] += std::fabs(w[k] * (q[i * d + k] - r[j * d + k]));
        }
  }

  void run() {
    check_score();
    check_topk();
    check_quantized_topk();
    check_clustered_topk();
    check_score_backward();
    check_hinge();
    check_logsumexp();
    check_rank(3, false);
    check_rank(2, true);
    check_nan_query();
  }

 private:
  void report(bool right, const char* what) const { check(right, what, name, n, m, d); }

  void check_score() const {
    std::vector<E> scores(n * m);
    DISSIM_ISA::score({dtype, 1, 1, d, queries, references, weight.data(), &bias, scores.data()}, parallel);
    bool right = true;
    for (int64_t i = 0; i < n * m; ++i) right &= is_close<A>(to_acc(scores[i]), exact[i], terms[i], d + 3, out_unit);
    report(right, "score");
  }

  TopK topk_problem(int64_t k, bool largest, std::vector<A>& scores, std::vector<int64_t>& indices) const {
    scores.resize(n * k), indices.resize(n * k);
    return {dtype, d, k, largest, queries, references, weight.data(), &bias, {}, scores.data(), indices.data()};
  }

  // The scores of grid values are exact, so the order of the references is known.
  void check_topk() const {
    const int64_t k = std::min<int64_t>(m, 5);
    std::vector<A> best;
    std::vector<int64_t> indices;
    DISSIM_ISA::topk(topk_problem(k, true, best, indices), parallel);
    bool right = true;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t place = 0; place < k; ++place) {
        const int64_t index = indices[i * k + place];
        if (index < 0 || index >= m) {
          right = false;
          continue;
        }
        const double score = exact[i * m + index];
        int64_t better = 0;
        for (int64_t j = 0; j < m; ++j) better += exact[i * m + j] > score || (exact[i * m + j] == score && j < index);
        right &= better == place && double(best[i * k + place]) == score;
      }
    report(right, "topk");
  }

  void check_quantized_topk() const {
    const int64_t k = std::min<int64_t>(m, 5);
    const bool largest = n % 2 == 0;
    const Codes query_codes = quantize_rows(q, w), reference_codes = quantize_rows(r, w);
    const std::vector<double> bases(n, bias);
    const double step = 0.25;
    std::vector<A> best, found;
    std::vector<int64_t> indices, found_indices, rescored(n);
    DISSIM_ISA::topk(topk_problem(k, largest, best, indices), parallel);
    DISSIM_ISA::quantized_topk(
        {topk_problem(k, largest, found, found_indices), query_codes.groups, &query_codes.positive, &step,
         query_codes.codes.data(), reference_codes.codes.data(), query_codes.errors.data(),
         reference_codes.errors.data(), bases.data(), rescored.data()},
        parallel);
    bool right = found == best && found_indices == indices;
    for (int64_t count : rescored) right &= k <= count && count <= m;
    report(right, "quantized_topk");
  }

  // Every reference is a cluster of its own. They are in reverse order, and every third one has no bound.
  void check_clustered_topk() const {
#ifndef DISSIM_CUDA_ON_HOST  // CUDA has no search of clusters
    const bool largest = n % 2 == 0;
    const Rows pivots{reference.data() + (m - 1) * d, m, m * d, -d, 1};
    std::vector<int64_t> offsets(m + 1), order(m), indices, found_indices, scored(n);
    std::vector<double> radii(m, 1e-3), slack(n);
    for (int64_t i = 0; i <= m; ++i) offsets[i] = i;
    for (int64_t i = 0; i < m; ++i) order[i] = m - 1 - i;
    for (int64_t i = 0; i < m; i += 3) radii[i] = HUGE_VAL;
    std::vector<A> best, found;
    DISSIM_ISA::topk(topk_problem(1, largest, best, indices), parallel);
    DISSIM_ISA::clustered_topk({topk_problem(1, largest, found, found_indices), pivots, offsets.data(), order.data(),
                                radii.data(), weight.data(), slack.data(), scored.data()},
                               parallel);
    bool right = found == best && found_indices == indices;
    for (int64_t count : scored) right &= 1 <= count && count <= m;
    report(right, "clustered_topk");
    if (m < 128) return;  // such a search is the plain one
    order[0] = m;
    DISSIM_ISA::clustered_topk({topk_problem(1, largest, found, found_indices), pivots, offsets.data(), order.data(),
                                radii.data(), weight.data(), slack.data(), scored.data()},
                               parallel);
    report(scored[0] == -1, "clustered_topk with an invalid order");
#endif
  }

  void check_score_backward() const {
    const std::vector<E> grad = to_elements<E>(upstream);
    check_gradients(upstream, "score_backward", [&](E* grad_query, E* grad_reference, A* grad_weight) {
      DISSIM_ISA::score_backward({dtype, 1, 1, d, queries, references, weight.data(), grad.data(), n * m, n * m, m, 1,
                                  grad_query, grad_reference, grad_weight},
                                 parallel);
    });
  }

  // call(grad_query, grad_reference, grad_weight) computes the gradients (E2) for the upstream gradients g, each of
  // which may be off by `g_roundings`.
  template <class Call>
  void check_gradients(const std::vector<double>& g, const char* what, const Call& call,
                       int64_t g_roundings = 0) const {
    std::vector<E> grad_query(n * d), grad_reference(m * d);
    std::vector<A> grad_weight(d);
    call(grad_query.data(), grad_reference.data(), grad_weight.data());
    bool right = true;
    for (int64_t c = 0; c < d; ++c) {
      std::vector<double> dr(m), dr_terms(m);
      double dw = 0, dw_terms = 0;
      for (int64_t i = 0; i < n; ++i) {
        double dq = 0, dq_terms = 0;
        for (int64_t j = 0; j < m; ++j) {
          const double t = q[i * d + c] - r[j * d + c], term = g[i * m + j] * w[c] * sgn(t);
          dq += term, dq_terms += std::fabs(term);
          dr[j] -= term, dr_terms[j] += std::fabs(term);
          dw += g[i * m + j] * std::fabs(t);
          dw_terms += 8 * std::fabs(g[i * m + j]);  // |q - center| + |r - center| <= 8
        }
        right &= is_close<A>(to_acc(grad_query[i * d + c]), dq, dq_terms, m + 4 + g_roundings, out_unit);
      }
      for (int64_t j = 0; j < m; ++j)
        right &= is_close<A>(to_acc(grad_reference[j * d + c]), dr[j], dr_terms[j], n + 4 + g_roundings, out_unit);
      right &= is_close<A>(double(grad_weight[c]), dw, dw_terms, n + m + 4 + g_roundings, 0);
    }
    report(right, what);
  }

  void check_hinge() const {
    std::vector<int64_t> query_labels(n), reference_labels(m);
    for (int64_t i = 0; i < n; ++i) query_labels[i] = i % 3;
    for (int64_t j = 0; j < m; ++j) reference_labels[j] = j % 4;
    std::vector<double> margins(n * m);  // a pair is active for larger margins
    for (int64_t i = 0; i < n * m; ++i)
      margins[i] = (query_labels[i / m] == reference_labels[i % m] ? 1 : -1) * exact[i];
    std::sort(margins.begin(), margins.end());
    const double sparse = margins[n * m / 30] + 0.125;  // between two possible scores
    check_hinge(sparse, query_labels, reference_labels);  // few pairs
    check_hinge(2.0 + double(d), query_labels, reference_labels);  // nearly all
    if (quick) return;
    check_hinge(1.0, query_labels, reference_labels);  // some
    check_hinge(-1e9, query_labels, reference_labels);  // none
  }

  void check_hinge(double margin, const std::vector<int64_t>& query_labels,
                   const std::vector<int64_t>& reference_labels) const {
    const int64_t row_bytes = (m + 7) / 8;
    std::vector<A> positive(n), negative(n);
    std::vector<uint8_t> active(n * row_bytes);
    DISSIM_ISA::hinge({dtype, d, queries, references, weight.data(), &bias, query_labels.data(),
                       reference_labels.data(), nullptr, margin, -1, positive.data(), negative.data(), active.data()},
                      parallel);
    const std::vector<A> grad_positive(n, A(0.5)), grad_negative(n, A(0.25));
    std::vector<double> pair_grads(n * m);
    double grad_bias = 0;
    bool right = true;
    for (int64_t i = 0; i < n; ++i) {
      double sums[2] = {}, sizes[2] = {};  // of positives, of negatives
      for (int64_t j = 0; j < m; ++j) {
        const bool same = query_labels[i] == reference_labels[j];
        const double violation = margin - (same ? 1 : -1) * exact[i * m + j];
        sums[!same] += violation > 0 ? violation : 0;
        sizes[!same] += std::fabs(margin) + terms[i * m + j];
        right &= (active[i * row_bytes + j / 8] >> j % 8 & 1) == (violation > 0);
        pair_grads[i * m + j] = violation > 0 ? (same ? -0.5 : 0.25) : 0;
        grad_bias += pair_grads[i * m + j];
      }
      right &= is_close<A>(double(positive[i]), sums[0], sizes[0], d + m + 4, 0) &&
               is_close<A>(double(negative[i]), sums[1], sizes[1], d + m + 4, 0);
    }
    report(right, "hinge");
    A bias_found = 0;
    check_gradients(pair_grads, "hinge_backward", [&](E* grad_query, E* grad_reference, A* grad_weight) {
      DISSIM_ISA::hinge_backward({dtype, d, queries, references, weight.data(), query_labels.data(),
                                  reference_labels.data(), grad_positive.data(), grad_negative.data(), active.data(),
                                  grad_query, grad_reference, grad_weight, &bias_found},
                                 parallel);
    });
    report(double(bias_found) == grad_bias, "hinge_backward of the bias");
  }

  void check_logsumexp() const {
    double max_score = 1;
    for (const double score : exact) max_score = std::max(max_score, std::fabs(score));
    for (const bool among_same : {false, true}) {
      check_logsumexp(A(1 / max_score), among_same);  // nearly all pairs are active
      check_logsumexp(A((among_same ? -200 : 200) / max_score), among_same);  // few
    }
  }

  // The scores of grid values are exact, so logits, exponentials and sums alone are rounded. With two labels and an
  // excluded reference, a single reference leaves rows without any pair.
  void check_logsumexp(A scale, bool among_same) const {
    constexpr double unit = sizeof(A) == 4 ? 0x1p-24 : 0x1p-53;
    std::vector<int64_t> query_labels(n), reference_labels(m), excluded(n);
    for (int64_t i = 0; i < n; ++i) query_labels[i] = i % 2, excluded[i] = i % 3 ? -1 : i % m;
    for (int64_t j = 0; j < m; ++j) reference_labels[j] = j % 5 % 2;
    const int64_t row_bytes = (m + 7) / 8;
    std::vector<A> value(n), mean_score(n);
    std::vector<uint8_t> active(n * row_bytes, 0xff);
    DISSIM_ISA::logsumexp({dtype,
                           d,
                           queries,
                           references,
                           weight.data(),
                           &bias,
                           &scale,
                           {query_labels.data(), reference_labels.data(), excluded.data(), among_same},
                           value.data(),
                           mean_score.data(),
                           active.data()},
                          parallel);
    std::vector<double> pair_grads(n * m);
    double max_size = 0;
    bool right = true;
    for (int64_t i = 0; i < n; ++i) {
      const auto is_kept = [&](int64_t j) {
        return j < m && j != excluded[i] && (query_labels[i] == reference_labels[j]) == among_same;
      };
      double max_logit = -INFINITY, sum = 0, mean = 0, mean_terms = 0, dropped = 0;
      for (int64_t j = 0; j < m; ++j)
        if (is_kept(j)) max_logit = std::max(max_logit, double(scale) * exact[i * m + j]);
      for (int64_t j = 0; j < m; ++j)
        if (is_kept(j)) sum += std::exp(double(scale) * exact[i * m + j] - max_logit);
      const double expected = sum > 0 ? max_logit + std::log(sum) : -INFINITY;
      const double size = sum > 0 ? std::fabs(max_logit) + std::fabs(expected) + double(m) + 64 : 0;
      max_size = std::max(max_size, size);
      for (int64_t j = 0; j < row_bytes * 8; ++j) {
        const bool is_active = active[i * row_bytes + j / 8] >> j % 8 & 1;
        right &= is_kept(j) || !is_active;
        if (!is_kept(j)) continue;
        const double score = exact[i * m + j], share = std::exp(double(scale) * score - expected);
        mean += share * score, mean_terms += share * std::fabs(score);
        if (!is_active) dropped += share;
        if (is_active) pair_grads[i * m + j] = 0.5 * double(scale) * share;
      }
      right &= dropped <= unit * (1 + 8 * size * unit);  // E15
      right &= sum > 0 ? is_close<A>(double(value[i]), expected, 1, int64_t(size), 0) &&
                             is_close<A>(double(mean_score[i]), mean, mean_terms, int64_t(4 * size), 0)
                       : double(value[i]) == expected && mean_score[i] == 0;
    }
    report(right, "logsumexp");
#ifndef DISSIM_CUDA_ON_HOST  // on CUDA score and score_backward compute the gradients (backends/logsumexp_bands.py)
    const std::vector<A> grad(n, A(0.5));
    check_gradients(
        pair_grads, "logsumexp_backward",
        [&](E* grad_query, E* grad_reference, A* grad_weight) {
          DISSIM_ISA::logsumexp_backward({dtype, d, queries, references, weight.data(), &bias, &scale, grad.data(),
                                          value.data(), active.data(), grad_query, grad_reference, grad_weight},
                                         parallel);
        },
        int64_t(4 * max_size));
#endif
  }

  // Every `step`-th reference is listed, and one `beyond` either end.
  void check_rank(int64_t step, bool beyond) const {
    std::vector<int64_t> offsets = {0}, indices, expected;
    std::vector<A> listed_scores;
    for (int64_t i = 0; i < n; ++i) {
      std::vector<std::pair<double, int64_t>> list;  // -score, index: in the order of ranks
      for (int64_t j = 0; j < m; j += step) list.emplace_back(-exact[i * m + j], j);
      if (beyond) list.emplace_back(-exact[i * m], -1), list.emplace_back(-exact[i * m], m);
      std::sort(list.begin(), list.end());
      for (const auto& pair : list) {
        indices.push_back(pair.second), listed_scores.push_back(A(-pair.first)), expected.push_back(0);
        for (int64_t j = 0; j < m; ++j) expected.back() += std::pair(-exact[i * m + j], j) < pair;
      }
      offsets.push_back(int64_t(indices.size()));
    }
    const int64_t pairs = int64_t(indices.size());
    if (!beyond) {
      std::vector<A> found(pairs);
      DISSIM_ISA::listed_scores(
          {dtype, d, queries, references, weight.data(), &bias, pairs, offsets.data(), indices.data(), found.data()},
          parallel);
      report(found == listed_scores, "listed_scores");
    }
    std::vector<int64_t> counts(pairs, -1);
    std::vector<uint8_t> nan_rows(n, 1);
    DISSIM_ISA::rank({dtype, d, queries, references, weight.data(), &bias, pairs, offsets.data(), indices.data(),
                      listed_scores.data(), counts.data(), nan_rows.data()},
                     parallel);
    report(counts == expected && nan_rows == std::vector<uint8_t>(n), "rank");
  }

  // The last query has a NaN: rank reports it, its log-sum-exp is NaN and all of its pairs are active.
  void check_nan_query() const {
    std::vector<E> some_nan = query;
    some_nan.back() = narrow<E>(A(NAN));
    Rows rows = queries;
    rows.data = some_nan.data();
    const std::vector<int64_t> offsets(n + 1);
    std::vector<uint8_t> nan_rows(n), expected_rows(n), active(n * ((m + 7) / 8));
    expected_rows.back() = 1;
    DISSIM_ISA::rank({dtype, d, rows, references, weight.data(), &bias, 0, offsets.data(), nullptr, nullptr, nullptr,
                      nan_rows.data()},
                     parallel);
    const A scale = 1;
    std::vector<A> value(n), mean_score(n);
    DISSIM_ISA::logsumexp(
        {dtype, d, rows, references, weight.data(), &bias, &scale, {}, value.data(), mean_score.data(), active.data()},
        parallel);
    bool right = nan_rows == expected_rows;
    for (int64_t i = 0; i < n; ++i) right &= std::isnan(double(value[i])) == (i + 1 == n);
    for (int64_t j = 0; j < m; ++j) right &= active[(n - 1) * ((m + 7) / 8) + j / 8] >> j % 8 & 1;
    report(right, "a NaN query");
  }

  const Dtype dtype;
  const char* const name;
  const double out_unit;
  const int64_t n, m, d;
  const Parallel& parallel;
  const std::vector<double> q, w, upstream;
  std::vector<double> r;
  std::vector<E> query, reference;
  std::vector<A> weight;
  const A bias = A(0.5);
  Rows queries, references;
  std::vector<double> exact, terms;  // the scores, and the sums of their absolute terms
};

// Rows with a large common offset, for which the condition of the max form (E7) fails, and with values off the grid.
template <class A>
void check_offset(Dtype dtype, const char* name, const Parallel& parallel) {
  const int64_t n = 18, m = 150, d = 200;
  std::vector<A> rows((n + m) * d), weight(d), scores(n * m);
  for (A& x : rows) x = A(1e5 + random_value() / 3);
  for (A& w : weight) w = A(random_value() / 3);
  const A* reference = rows.data() + n * d;
  DISSIM_ISA::score(
      {dtype, 1, 1, d, {rows.data(), n, 0, d, 1}, {reference, m, 0, d, 1}, weight.data(), nullptr, scores.data()},
      parallel);
  bool right = true;
  for (int64_t i = 0; i < n * m; ++i) {
    double exact = 0, terms = 0;
    for (int64_t k = 0; k < d; ++k) {
      const double term = double(weight[k]) * std::fabs(double(rows[i / m * d + k]) - double(reference[i % m * d + k]));
      exact += term, terms += std::fabs(term);
    }
    right &= is_close<A>(double(scores[i]), exact, terms, d + 3, 0);
  }
  check(right, "score with a large offset", name, n, m, d);
}

// Both variants of the tile of the max form (E7): a machine uses only one of them.
template <class A>
void check_tile(const char* name) {
  constexpr int64_t panel = kPanel<A>, steps = 20, slice = 8;
  const auto random = [](int64_t count) { return to_elements<A>(random_values(count)); };
  const std::vector<A> rows = random(steps * kQueryPanel), packed = random(steps * panel), weights = random(steps);
  const std::vector<A> row_sums = random(3 * kQueryPanel), packed_sums = random(3 * panel);
  std::vector<A> halves[] = {random(kTileRows * panel), {}};
  halves[1] = halves[0];
  max_tile<A, kTileVectors, false>(rows.data(), row_sums.data(), packed.data(), packed_sums.data(), weights.data(),
                                   steps, slice, false, halves[0].data());
  max_tile<A, kTileVectors, true>(rows.data(), row_sums.data(), packed.data(), packed_sums.data(), weights.data(),
                                  steps, slice, false, halves[1].data());
  check(halves[0] == halves[1], "max_tile with broadcast operands", name, kTileRows, panel, steps);
}

// Both variants of the sum of absolute differences, with the largest differences.
void check_sad() {
  SadPartial sums[2] = {};
  for (int64_t step = 0; step < kMaxSadAdditions && step < 128; ++step) {
    add_sad<false>(sums[0], Bytes{} + 255, Bytes{});
    add_sad<true>(sums[1], Bytes{} + 255, Bytes{});
  }
  const SadSums plain = to_sad_sums(sums[0]), saturating = to_sad_sums(sums[1]);
  check(!memcmp(&plain, &saturating, sizeof plain), "sum of differences", "uint8", 1, 1, kVectorBytes);
}

}  // namespace

// Without an argument: everything. For sanitizers, which are slow, with one thread: "two-sizes" has two sizes in every
// dtype, "quick" two dtypes of each of them.
int main(int count, char** arguments) {
  const int64_t sizes[][3] = {{67, 141, 19}, {20, 70, 150}, {1, 1, 1},    {1, 300, 33},
                              {3, 17, 7},    {5, 33, 31},   {18, 40, 300}};
  quick = count > 1 && !std::strcmp(arguments[1], "quick");
  check_sad();
  check_tile<float>("float32");
  check_tile<double>("float64");
  for (const Parallel& parallel : {Parallel{nullptr, 1}, Parallel{run_threads, 2}}) {
    check_offset<float>(Dtype::float32, "float32", parallel);
    check_offset<double>(Dtype::float64, "float64", parallel);
    for (const auto& [n, m, d] : sizes) {
      const bool first = n == sizes[0][0], second = n == sizes[1][0];
      if (count > 1 && (parallel.threads > 1 || !(first || second))) continue;
      if (!quick || first) SizeCheck<Half>(Dtype::float16, "float16", 0x1p-11, n, m, d, parallel).run();
      if (!quick || second) SizeCheck<BFloat>(Dtype::bfloat16, "bfloat16", 0x1p-8, n, m, d, parallel).run();
      if (!quick || first) SizeCheck<float>(Dtype::float32, "float32", 0x1p-24, n, m, d, parallel).run();
      if (!quick || second) SizeCheck<double>(Dtype::float64, "float64", 0x1p-53, n, m, d, parallel).run();
    }
  }
  if (!failures) std::puts("every kernel is right");
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
