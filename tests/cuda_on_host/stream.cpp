// A function of CUDA builds of torch that the library calls; here there is one stream. A library linked without this
// file behaves as with a CPU build of torch.
#include <cstdint>

extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
