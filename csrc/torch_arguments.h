// Checks of the arguments of a private operator. Exported programs and other languages call these operators without our
// Python code. So each pointer is returned only after its tensor was checked: a kernel reads and writes nothing else.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "dissim.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Sizes = std::initializer_list<int64_t>;

constexpr int64_t kAny = -1;  // a size that no other argument fixes

[[noreturn]] inline void raise_argument_error(const std::string& name, const std::string& expected,
                                              const std::string& got, const std::string& remedy) {
  throw std::runtime_error(name + ": expected " + expected + ", got " + got + ". " + remedy);
}

inline void check_integer(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value < min || value > max)
    raise_argument_error(name, "an integer from " + std::to_string(min) + " to " + std::to_string(max),
                         std::to_string(value), "Pass a value in this range.");
}

inline const char* dtype_name(ScalarType type) {  // torch's name in Python
  switch (type) {
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return torch::headeronly::toString(type);
  }
}

template <class Values>
std::string list(const Values& values) {
  std::string text;
  for (const int64_t value : values)
    text += (text.empty() ? "" : ", ") + (value == kAny ? "any" : std::to_string(value));
  return "[" + text + "]";
}

inline std::string device_name(const torch::stable::Device& device) {
  if (device.is_cpu()) return "cpu";
  return (device.is_cuda() ? "cuda:" : "device ") + std::to_string(device.index());
}

// ceil(count / size)
inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

class Arguments {
 public:
  // The device and the dtypes of all other tensors follow from `rows`.
  explicit Arguments(const Tensor& rows, const char* name = "query")
      : device_(defined(name, rows).device()), element_(rows.scalar_type()) {
    if (element_ != ScalarType::Half && element_ != ScalarType::BFloat16 && element_ != ScalarType::Float &&
        element_ != ScalarType::Double)
      raise_argument_error(name, "float16, bfloat16, float32 or float64", dtype_name(element_), "Convert it.");
    seen_.reserve(20);
  }

  ScalarType element() const { return element_; }
  ScalarType acc() const { return element_ == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }
  bool on_cpu() const { return device_.is_cpu(); }

  dissim::Dtype dtype() const {
    switch (element_) {
      case ScalarType::Half: return dissim::Dtype::float16;
      case ScalarType::BFloat16: return dissim::Dtype::bfloat16;
      case ScalarType::Float: return dissim::Dtype::float32;
      default: return dissim::Dtype::float64;
    }
  }

  // An input in the dtype of the rows, with any strides.
  const void* strided(const char* name, const Tensor& tensor, Sizes sizes) {
    check(name, tensor, element_, sizes, false);
    const void* data = tensor.const_data_ptr();
    check_memory(name, tensor, data, false);
    return data;
  }

  // Rows [batch, any, dim].
  dissim::Rows rows(const char* name, const Tensor& tensor, int64_t batch, int64_t dim) {
    const void* data = strided(name, tensor, {batch, kAny, dim});
    return {data, tensor.size(1), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
  }

  // A contiguous input; null if there is none.
  const void* input(const char* name, const Optional& tensor, ScalarType type, Sizes sizes) {
    if (!tensor) return nullptr;
    check(name, *tensor, type, sizes, true);
    const void* data = tensor->const_data_ptr();
    check_memory(name, *tensor, data, false);
    return data;
  }

  // A contiguous output that shares no memory with another argument; null if there is none.
  void* output(const char* name, const Optional& tensor, ScalarType type, Sizes sizes) {
    if (!tensor) return nullptr;
    check(name, *tensor, type, sizes, true);
    void* data = tensor->mutable_data_ptr();
    check_memory(name, *tensor, data, true);
    return data;
  }

  // The same for tensors whose dtype does not follow from the rows.
  template <class T>
  const T* input(const char* name, const Optional& tensor, Sizes sizes) {
    return static_cast<const T*>(input(name, tensor, scalar_type_of<T>(), sizes));
  }
  template <class T>
  T* output(const char* name, const Optional& tensor, Sizes sizes) {
    return static_cast<T*>(output(name, tensor, scalar_type_of<T>(), sizes));
  }

 private:
  // The memory of a tensor, from its first element to the end of its last one.
  struct Memory {
    const char *name, *begin, *end;
    bool is_output;
  };

  template <class T>
  static constexpr ScalarType scalar_type_of() {
    if (std::is_same_v<T, uint8_t>) return ScalarType::Byte;
    if (std::is_same_v<T, int32_t>) return ScalarType::Int;
    return std::is_same_v<T, int64_t> ? ScalarType::Long : ScalarType::Double;
  }

  static const Tensor& defined(const char* name, const Tensor& tensor) {
    if (!tensor.defined()) raise_argument_error(name, "a tensor", "none", "Pass one.");
    return tensor;
  }

  void check(const char* name, const Tensor& tensor, ScalarType type, Sizes sizes, bool contiguous) const {
    bool fits = defined(name, tensor).scalar_type() == type && tensor.device() == device_ &&
                tensor.dim() == int64_t(sizes.size());
    int64_t axis = 0;
    for (const int64_t size : sizes) {
      fits = fits && (size == kAny || size == tensor.size(axis));
      ++axis;
    }
    if (fits && (!contiguous || tensor.is_contiguous())) return;
    raise_argument_error(name,
                         std::string(contiguous ? "contiguous " : "") + dtype_name(type) + " " + list(sizes) + " on " +
                             device_name(device_),
                         std::string(dtype_name(tensor.scalar_type())) + " " + list(tensor.sizes()) + " with strides " +
                             list(tensor.strides()) + " on " + device_name(tensor.device()),
                         "Convert it, or call the function of dissim_kernels, which converts its arguments.");
  }

  // Checks that the storage of a tensor holds all its elements and that no output overlaps another argument.
  void check_memory(const char* name, const Tensor& tensor, const void* data, bool is_output) {
    if (!tensor.numel()) return;
    int64_t last = 0;  // the offset of the last element from the first
    for (int64_t axis = 0; axis < tensor.dim(); ++axis) last += (tensor.size(axis) - 1) * tensor.stride(axis);
    check_storage(name, tensor, last);
    const char* begin = static_cast<const char*>(data);
    const Memory memory{name, begin, begin + (last + 1) * int64_t(tensor.element_size()), is_output};
    for (const Memory& other : seen_)
      if ((is_output || other.is_output) && memory.begin < other.end && other.begin < memory.end)
        raise_argument_error(name, "memory of its own", std::string("memory of ") + other.name,
                             "Allocate outputs apart from all other arguments.");
    seen_.push_back(memory);
  }

  // A storage can be resized to less than its tensors need.
  static void check_storage(const char* name, const Tensor& tensor, int64_t last) {
    int64_t storage = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &storage));
    const int64_t needed = (tensor.storage_offset() + last + 1) * int64_t(tensor.element_size());
    if (needed > storage)
      raise_argument_error(name, "a storage of at least " + std::to_string(needed) + " bytes", std::to_string(storage),
                           "Do not resize the storage of a tensor that is in use.");
  }

  const torch::stable::Device device_;
  const ScalarType element_;
  std::vector<Memory> seen_;  // of the tensors so far
};

}  // namespace
