// What native_check.cpp compares with: random inputs on a coarse grid, their 8-bit codes, and the rounding bound.
#pragma once

#include <cmath>
#include <vector>

#include "../csrc/cpu/kernels.h"

using namespace dissim;

namespace {

double random_value() {  // -2, -1.75 ... 1.75
  static uint32_t state = 1;
  state = state * 1664525 + 1013904223;
  return double(state >> 28) / 4 - 2;
}

template <class E>
std::vector<E> to_elements(const std::vector<double>& values) {
  std::vector<E> stored;
  for (double x : values) stored.push_back(narrow<E>(Acc<E>(x)));
  return stored;
}

std::vector<double> random_values(int64_t count) {
  std::vector<double> values(count);
  for (double& x : values) x = random_value();
  return values;
}

double sgn(double t) { return double((t > 0) - (t < 0)); }

// Whether |found - expected| is within the rounding bound (E9): `roundings` of `terms`, the sum of the absolute terms,
// and one of the result, whose unit roundoff is `out_unit`; float16 also has few subnormal numbers. False for NaN.
template <class A>
bool is_close(double found, double expected, double terms, int64_t roundings, double out_unit) {
  const double unit = sizeof(A) == 4 ? 0x1p-24 : 0x1p-53, min_error = out_unit == 0x1p-11 ? 0x1p-25 : 1e-30;
  return std::fabs(found - expected) <=
         2 * double(roundings) * unit * terms + out_unit * std::fabs(expected) + min_error;
}

// Codes (E10) of rows of grid values, in panels. A step is 1/4, and code 0 is -2 in every dimension.
struct Codes {
  std::vector<uint8_t> codes;
  std::vector<int32_t> errors;
  int64_t groups, positive;
};

Codes quantize_rows(const std::vector<double>& rows, const std::vector<double>& weight) {
  const int64_t d = int64_t(weight.size()), count = int64_t(rows.size()) / d, panels = (count + 15) / 16;
  std::vector<int64_t> columns;  // the dimension of each column, -1 for an unused one
  int64_t positive = 0;
  for (const double sign : {1.0, -1.0}) {
    for (int64_t c = 0; c < d; ++c)
      if (sgn(weight[c]) == sign) columns.push_back(c);
    while (columns.size() % kCodeGroup) columns.push_back(-1);
    if (sign > 0) positive = int64_t(columns.size()) / kCodeGroup;
  }
  const int64_t groups = int64_t(columns.size()) / kCodeGroup;
  Codes made = {std::vector<uint8_t>(panels * groups * kCodePanel * kCodeGroup),
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

}  // namespace
