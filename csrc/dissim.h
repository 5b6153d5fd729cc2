// The contract of every compiled entry point: shapes, units, who owns what. Torch-free: the bindings
// (torch_bindings.cpp, numpy_bindings.cpp) fill these structs from their own tensors. Pointers are borrowed for the
// length of a call; strides count elements; outputs are contiguous and wholly overwritten.
// "Wide" is the accumulate type: double for float64, float for the other three (contract.py has the same table).
#pragma once

#include <cstdint>

namespace dissim {

enum class Dtype : int { float16, bfloat16, float32, float64 };

// A batch of matrices [batch, rows, D]; a stride of 0 repeats.
struct Rows {
  const void* data;
  int64_t rows;
  int64_t batch_stride, row_stride, dim_stride;
};

// How an entry point runs on many threads: each(context, i) is called once for every i < count, in any order.
// Results never depend on `threads`: work is cut by shape alone and every sum has a fixed order.
struct Parallel {
  void (*run)(int64_t count, void (*each)(void* context, int64_t i), void* context);
  int threads;
};

// E1: scores[b, c, n, m] = bias[c] + sum_d weight[c, d] |query[b, n, d] - reference[b, m, d]|.
struct Score {
  Dtype dtype;
  int64_t batch, heads, dim;
  Rows query, reference;
  const void* weight;  // wide [heads, dim]
  const void* bias;    // wide [heads], or null for 0
  void* scores;        // dtype [batch, heads, query.rows, reference.rows]
};

// E2: the gradients of `Score` for an upstream gradient; a null output is not computed.
struct ScoreBackward {
  Dtype dtype;
  int64_t batch, heads, dim;
  Rows query, reference;
  const void* weight;  // wide [heads, dim]
  const void* grad;    // dtype [batch, heads, query.rows, reference.rows], by these strides
  int64_t grad_batch_stride, grad_head_stride, grad_row_stride, grad_column_stride;
  void* grad_query;      // dtype [batch, query.rows, dim]
  void* grad_reference;  // dtype [batch, reference.rows, dim]
  void* grad_weight;     // wide [heads, dim]
};

// The entry points as one instruction set compiled them.
struct Kernels {
  const char* isa;
  void (*score)(const Score&, const Parallel&);
  void (*score_backward)(const ScoreBackward&, const Parallel&);
};

// The best set this machine runs, or the one named by the environment variable DISSIM_ISA; chosen once.
// Null if that name is unknown or the machine cannot run it.
const Kernels* kernels();
// Null-terminated: every instruction set that was compiled, best first, and whether this machine can run it.
const Kernels* const* compiled_kernels();
bool can_run(const Kernels&);

}  // namespace dissim
