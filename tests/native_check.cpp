// A check of one instruction set without torch or Python, so that it can be cross-compiled and run under an emulator:
// every kernel on odd sizes, in every dtype, against loops in double within the bounds of E9 and E2. Values are drawn
// on a coarse grid, so that ties are frequent and every format holds them exactly. Exit code 1 names what is wrong.
// Built with one instruction set: -DDISSIM_ISA=name and that set's flags, beside the kernels.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../csrc/cpu/kernels.h"
#include "../csrc/cpu/max_form.h"
#include "../csrc/cpu/sad.h"

using namespace dissim;

namespace {

int failures = 0;

void check(bool right, const char* what, const char* dtype, int64_t n, int64_t m, int64_t d) {
  if (right) return;
  ++failures;
  std::printf("%s is wrong: %s, N=%ld, M=%ld, D=%ld\n", what, dtype, long(n), long(m), long(d));
}

double draw() {  // -2, -1.75 ... 1.75
  static uint32_t state = 1;
  state = state * 1664525 + 1013904223;
  return double(state >> 28) / 4 - 2;
}

template <class E>
std::vector<E> narrowed(const std::vector<double>& values) {
  std::vector<E> stored;
  for (double x : values) stored.push_back(narrow<E>(Acc<E>(x)));
  return stored;
}

std::vector<double> drawn(int64_t count) {
  std::vector<double> values(count);
  for (double& x : values) x = draw();
  return values;
}

double sgn(double t) { return double((t > 0) - (t < 0)); }

// |found - expected| within `steps` roundings of the absolute terms and one of the result; NaN is never within.
template <class A>
bool near(double found, double expected, double terms, int64_t steps, double last) {
  const double unit = sizeof(A) == 4 ? 0x1p-24 : 0x1p-53;
  return std::fabs(found - expected) <= 2 * double(steps) * unit * terms + last * std::fabs(expected) + 1e-30;
}

void run_threads(int, int64_t count, void (*each)(void*, int, int64_t), void* context) {
  std::thread other([&] {
    for (int64_t i = 1; i < count; i += 2) each(context, 1, i);
  });
  for (int64_t i = 0; i < count; i += 2) each(context, 0, i);
  other.join();
}

// Rows of the grid as codes in panels (E10), of steps of 1/4 with every dimension's window from -2 on.
struct Coded {
  std::vector<uint8_t> codes;
  std::vector<int32_t> errors;
  int64_t groups, positive;
};

Coded coded(const std::vector<double>& rows, const std::vector<double>& weight) {
  const int64_t d = int64_t(weight.size()), count = int64_t(rows.size()) / d, panels = (count + 15) / 16;
  std::vector<int64_t> columns;  // -1: none
  int64_t positive = 0;
  for (const double sign : {1.0, -1.0}) {
    for (int64_t c = 0; c < d; ++c)
      if (sgn(weight[c]) == sign) columns.push_back(c);
    while (columns.size() % kCodeGroup) columns.push_back(-1);
    if (sign > 0) positive = int64_t(columns.size()) / kCodeGroup;
  }
  const int64_t groups = int64_t(columns.size()) / kCodeGroup;
  Coded made = {std::vector<uint8_t>(panels * groups * kCodePanel * kCodeGroup),
                std::vector<int32_t>(panels * kCodePanel), groups, positive};
  for (int64_t row = 0; row < count; ++row) {
    double error = 0;
    for (int64_t c = 0; c < groups * kCodeGroup; ++c) {
      if (columns[c] < 0) continue;
      const double t = (rows[row * d + columns[c]] + 2) * std::fabs(weight[columns[c]]) * 4, code = std::floor(t + 0.5);
      error += std::fabs(t - code);
      made.codes[((row / kCodePanel * groups + c / kCodeGroup) * kCodePanel + row % kCodePanel) * kCodeGroup +
                 c % kCodeGroup] = uint8_t(code);
    }
    made.errors[row] = int32_t(error) + 1;
  }
  return made;
}

template <class E>
void check_size(Dtype dtype, const char* name, double last, int64_t n, int64_t m, int64_t d, const Parallel& parallel) {
  using A = Acc<E>;
  const std::vector<double> q = drawn(n * d), w = drawn(d), up = drawn(n * m);
  std::vector<double> r = drawn(m * d);
  for (int64_t j = 0; j < m; j += 9) std::copy_n(&q[j % n * d], d, &r[j * d]);  // E7 does not answer for equal rows
  const std::vector<E> query = narrowed<E>(q), reference = narrowed<E>(r), grad = narrowed<E>(up);
  const std::vector<A> weight(w.begin(), w.end());
  const A bias = A(0.5);
  const Rows queries{query.data(), n, n * d, d, 1}, references{reference.data(), m, m * d, d, 1};
  std::vector<double> exact(n * m), terms(n * m);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) {
      exact[i * m + j] = terms[i * m + j] = 0.5;
      for (int64_t k = 0; k < d; ++k) {
        exact[i * m + j] += w[k] * std::fabs(q[i * d + k] - r[j * d + k]);
        terms[i * m + j] += std::fabs(w[k] * (q[i * d + k] - r[j * d + k]));
      }
    }

  std::vector<E> scores(n * m);
  DISSIM_ISA::score({dtype, 1, 1, d, queries, references, weight.data(), &bias, scores.data()}, parallel);
  bool right = true;
  for (int64_t i = 0; i < n * m; ++i) right &= near<A>(to_acc(scores[i]), exact[i], terms[i], d + 3, last);
  check(right, "score", name, n, m, d);

  const int64_t k = m < 5 ? m : 5;
  std::vector<A> best(n * k);
  std::vector<int64_t> indices(n * k);
  DISSIM_ISA::topk({dtype, d, k, true, queries, references, weight.data(), &bias, nullptr, nullptr, nullptr,
                    best.data(), indices.data()},
                   parallel);
  right = true;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t place = 0; place < k; ++place) {  // the grid's scores are exact, so the order is too
      int64_t better = 0;
      const int64_t at = indices[i * k + place];
      if (at < 0 || at >= m) {
        right = false;
        continue;
      }
      for (int64_t j = 0; j < m; ++j)
        better += exact[i * m + j] > exact[i * m + at] || (exact[i * m + j] == exact[i * m + at] && j < at);
      right &= better == place && double(best[i * k + place]) == exact[i * m + at];
    }
  check(right, "topk", name, n, m, d);

  const Coded of_query = coded(q, w), of_reference = coded(r, w);
  const std::vector<double> bases(n, 0.5);
  const double step = 0.25;
  std::vector<A> found(n * k);
  std::vector<int64_t> found_indices(n * k), rescored(n);
  TopK problem = {dtype, d,       k,       n % 2 == 0, queries,     references,    weight.data(),
                  &bias, nullptr, nullptr, nullptr,    best.data(), indices.data()};  // the largest for some sizes, the
                                                                                      // least for others
  DISSIM_ISA::topk(problem, parallel);
  problem.scores = found.data(), problem.indices = found_indices.data();
  DISSIM_ISA::quantized_topk(
      {problem, of_query.groups, &of_query.positive, &step, of_query.codes.data(), of_reference.codes.data(),
       of_query.errors.data(), of_reference.errors.data(), bases.data(), rescored.data()},
      parallel);
  right = found == best && found_indices == indices;
  for (int64_t count : rescored) right &= k <= count && count <= m;
  check(right, "quantized_topk", name, n, m, d);

  const auto gradients = [&](const std::vector<double>& g, const char* what, auto&& call) {
    std::vector<E> of_query(n * d), of_reference(m * d);
    std::vector<A> of_weight(d);
    call(of_query.data(), of_reference.data(), of_weight.data());
    bool good = true;
    for (int64_t c = 0; c < d; ++c) {
      std::vector<double> b(m), b_terms(m);
      double dw = 0, dw_terms = 0;
      for (int64_t i = 0; i < n; ++i) {
        double a = 0, a_terms = 0;
        for (int64_t j = 0; j < m; ++j) {
          const double t = q[i * d + c] - r[j * d + c], part = g[i * m + j] * w[c];
          a += part * sgn(t), a_terms += std::fabs(part * sgn(t));
          b[j] -= part * sgn(t), b_terms[j] += std::fabs(part * sgn(t));
          dw += g[i * m + j] * std::fabs(t), dw_terms += 8 * std::fabs(g[i * m + j]);  // |q| + |r| about the centre
        }
        good &= near<A>(to_acc(of_query[i * d + c]), a, a_terms, m + 4, last);
      }
      for (int64_t j = 0; j < m; ++j) good &= near<A>(to_acc(of_reference[j * d + c]), b[j], b_terms[j], n + 4, last);
      good &= near<A>(double(of_weight[c]), dw, dw_terms, n + m + 4, 0);
    }
    check(good, what, name, n, m, d);
  };
  gradients(up, "score_backward", [&](E* of_query, E* of_reference, A* of_weight) {
    DISSIM_ISA::score_backward({dtype, 1, 1, d, queries, references, weight.data(), grad.data(), n * m, n * m, m, 1,
                                of_query, of_reference, of_weight},
                               parallel);
  });

  std::vector<int64_t> query_labels(n), reference_labels(m);
  for (int64_t i = 0; i < n; ++i) query_labels[i] = i % 3;
  for (int64_t j = 0; j < m; ++j) reference_labels[j] = j % 4;
  std::vector<double> margins(n * m);  // margin from which on a pair is active
  for (int64_t i = 0; i < n * m; ++i) margins[i] = (query_labels[i / m] == reference_labels[i % m] ? 1 : -1) * exact[i];
  std::sort(margins.begin(), margins.end());
  const double few = margins[n * m / 30] + 0.125;  // between the grid's scores
  for (const double margin : {1.0, few, -1e9, 2.0 + double(d)}) {  // some pairs, few, none, nearly all
    const int64_t bytes = (m + 7) / 8;
    std::vector<A> positive(n), negative(n);
    std::vector<uint8_t> active(n * bytes);
    DISSIM_ISA::hinge({dtype, d, queries, references, weight.data(), &bias, query_labels.data(),
                       reference_labels.data(), nullptr, margin, -1, positive.data(), negative.data(), active.data()},
                      parallel);
    const std::vector<A> of_positive(n, A(0.5)), of_negative(n, A(0.25));
    std::vector<double> slope(n * m);
    double of_bias = 0;
    right = true;
    for (int64_t i = 0; i < n; ++i) {
      double sums[2] = {}, sizes[2] = {};
      for (int64_t j = 0; j < m; ++j) {
        const bool same = query_labels[i] == reference_labels[j];
        const double violation = margin - (same ? 1 : -1) * exact[i * m + j];
        sums[!same] += violation > 0 ? violation : 0;
        sizes[!same] += std::fabs(margin) + terms[i * m + j];
        right &= (active[i * bytes + j / 8] >> j % 8 & 1) == (violation > 0);
        slope[i * m + j] = violation > 0 ? (same ? -0.5 : 0.25) : 0;
        of_bias += slope[i * m + j];
      }
      right &= near<A>(double(positive[i]), sums[0], sizes[0], d + m + 4, 0) &&
               near<A>(double(negative[i]), sums[1], sizes[1], d + m + 4, 0);
    }
    check(right, "hinge", name, n, m, d);
    A bias_found = 0;
    gradients(slope, "hinge_backward", [&](E* of_query, E* of_reference, A* of_weight) {
      DISSIM_ISA::hinge_backward(
          {dtype, d, queries, references, weight.data(), query_labels.data(), reference_labels.data(),
           of_positive.data(), of_negative.data(), active.data(), of_query, of_reference, of_weight, &bias_found},
          parallel);
    });
    check(double(bias_found) == of_bias, "hinge_backward of the bias", name, n, m, d);
  }
}

// Rows so far from zero that E7 answers for none of their scores, and off any grid.
template <class A>
void check_far(Dtype dtype, const char* name, const Parallel& parallel) {
  const int64_t n = 18, m = 150, d = 200;
  std::vector<A> rows((n + m) * d), weight(d), scores(n * m);
  for (A& x : rows) x = A(1e5 + draw() / 3);
  for (A& w : weight) w = A(draw() / 3);
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
    right &= near<A>(double(scores[i]), exact, terms, d + 3, 0);
  }
  check(right, "score far from zero", name, n, m, d);
}

// Both ways of the tile of E7 to read queries, of which a machine takes one.
template <class A>
void check_tile(const char* name) {
  constexpr int64_t panel = kPanel<A>, steps = 20, slice = 8;
  const auto some = [](int64_t count) { return narrowed<A>(drawn(count)); };
  const std::vector<A> rows = some(steps * kQueryPanel), packed = some(steps * panel), weights = some(steps);
  const std::vector<A> row_sums = some(3 * kQueryPanel), packed_sums = some(3 * panel);
  std::vector<A> halves[] = {some(kTileRows * panel), {}};
  halves[1] = halves[0];
  max_tile<A, kTileVectors, false>(rows.data(), row_sums.data(), packed.data(), packed_sums.data(), weights.data(),
                                   steps, slice, false, halves[0].data());
  max_tile<A, kTileVectors, true>(rows.data(), row_sums.data(), packed.data(), packed_sums.data(), weights.data(),
                                  steps, slice, false, halves[1].data());
  check(halves[0] == halves[1], "tile that reads in place", name, kTileRows, panel, steps);
}

// Both ways to add sums of absolute differences, of the largest there are.
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

// With an argument, for sanitizers that slow it down: few sizes, one thread.
int main(int count, char**) {
  const int64_t sizes[][3] = {{67, 141, 19}, {20, 70, 150}, {1, 1, 1},    {1, 300, 33},
                              {3, 17, 7},    {5, 33, 31},   {18, 40, 300}};
  const bool quick = count > 1;
  check_sad();
  check_tile<float>("float32");
  check_tile<double>("float64");
  for (const Parallel& parallel : {Parallel{nullptr, 1}, Parallel{run_threads, 2}}) {
    check_far<float>(Dtype::float32, "float32", parallel);
    check_far<double>(Dtype::float64, "float64", parallel);
    for (const auto& [n, m, d] : sizes) {
      if (quick && (parallel.threads > 1 || &n > &sizes[1][0])) continue;
      check_size<Half>(Dtype::float16, "float16", 0x1p-11, n, m, d, parallel);
      check_size<BFloat>(Dtype::bfloat16, "bfloat16", 0x1p-8, n, m, d, parallel);
      check_size<float>(Dtype::float32, "float32", 0x1p-24, n, m, d, parallel);
      check_size<double>(Dtype::float64, "float64", 0x1p-53, n, m, d, parallel);
    }
  }
  if (!failures) std::puts("every kernel is right");
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
