// Which positions of a block become tokens: how many, and the best of them.
//
// `vllm_dllm/ops/choice.py` holds the contracts and the torch references. [n, width]
// tensors are contiguous.

#include "binding.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();

void quota(int64_t num_rows, int64_t width, const uint8_t* masked,
           const int64_t* length, const int64_t* step, const int64_t* steps,
           int64_t* quota) {
  for (int64_t i = 0; i < num_rows; ++i) {
    const uint8_t* row = masked + i * width;
    const int64_t count = std::count(row, row + width, 1);
    const int64_t most = std::max<int64_t>(steps[i], 1);
    const int64_t share = length[i] / most + (step[i] < length[i] % most);
    quota[i] = step[i] < most ? std::min(share, count) : count;
  }
}

// above may be null.
void best(int64_t num_rows, int64_t width, const float* above, const float* scores,
          const uint8_t* among, const int64_t* count, uint8_t* chosen) {
  std::vector<int64_t> order(width);
  for (int64_t i = 0; i < num_rows; ++i) {
    const float* score = scores + i * width;
    const uint8_t* may = among + i * width;
    uint8_t* row = chosen + i * width;
    std::fill(row, row + width, 0);
    int64_t total = 0;
    int64_t higher = 0;
    for (int64_t c = 0; c < width; ++c) {
      if (!may[c]) continue;
      order[total++] = c;
      higher += above && score[c] > above[i];
    }
    const int64_t wanted = std::clamp<int64_t>(std::max(count[i], higher), 0, total);
    // As torch sorts: not-a-number is above all, and equals keep their order.
    std::partial_sort(order.begin(), order.begin() + wanted, order.begin() + total,
                      [score](int64_t a, int64_t b) {
                        const float x = std::max(score[a], kLowest);
                        const float y = std::max(score[b], kLowest);
                        if (std::isnan(x) != std::isnan(y)) return std::isnan(x);
                        return x == y || std::isnan(x) ? a < b : x > y;
                      });
    for (int64_t k = 0; k < wanted; ++k) row[order[k]] = 1;
  }
}

}  // namespace

PyMethodDef dllm::choice[] = {
    dllm::method<quota>("quota"),
    dllm::method<best>("best"),
    {nullptr, nullptr, 0, nullptr},
};
