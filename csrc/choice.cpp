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

// How many positions of a row a step must decide.
int64_t quota_of(int64_t width, const uint8_t* masked, int64_t length, int64_t step,
                 int64_t steps) {
  const int64_t count = std::count(masked, masked + width, 1);
  const int64_t most = std::max<int64_t>(steps, 1);
  const int64_t share = length / most + (step < length % most);
  return step < most ? std::min(share, count) : count;
}

void quota(int64_t num_rows, int64_t width, const uint8_t* masked,
           const int64_t* length, const int64_t* step, const int64_t* steps,
           int64_t* quota) {
  for (int64_t i = 0; i < num_rows; ++i) {
    quota[i] = quota_of(width, masked + i * width, length[i], step[i], steps[i]);
  }
}

// Chooses the best of a row; above may be null. order has room for a row.
void choose(int64_t width, const float* above, const float* score, const uint8_t* may,
            int64_t count, int64_t* order, uint8_t* row) {
  std::fill(row, row + width, 0);
  int64_t total = 0;
  int64_t higher = 0;
  for (int64_t c = 0; c < width; ++c) {
    if (!may[c]) continue;
    order[total++] = c;
    higher += above && score[c] > *above;
  }
  const int64_t wanted = std::clamp<int64_t>(std::max(count, higher), 0, total);
  // As torch sorts: not-a-number is above all, and equals keep their order.
  std::partial_sort(order, order + wanted, order + total,
                    [score](int64_t a, int64_t b) {
                      const float x = std::max(score[a], kLowest);
                      const float y = std::max(score[b], kLowest);
                      if (std::isnan(x) != std::isnan(y)) return std::isnan(x);
                      return x == y || std::isnan(x) ? a < b : x > y;
                    });
  for (int64_t k = 0; k < wanted; ++k) row[order[k]] = 1;
}

// above may be null.
void best(int64_t num_rows, int64_t width, const float* above, const float* scores,
          const uint8_t* among, const int64_t* count, uint8_t* chosen) {
  std::vector<int64_t> order(width);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t row = i * width;
    choose(width, above ? above + i : nullptr, scores + row, among + row, count[i],
           order.data(), chosen + row);
  }
}

// above may be null.
void best_of_quota(int64_t num_rows, int64_t width, const float* above,
                   const float* scores, const uint8_t* masked, const int64_t* length,
                   const int64_t* step, const int64_t* steps, uint8_t* chosen) {
  std::vector<int64_t> order(width);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t row = i * width;
    const int64_t count =
        quota_of(width, masked + row, length[i], step[i], steps[i]);
    choose(width, above ? above + i : nullptr, scores + row, masked + row, count,
           order.data(), chosen + row);
  }
}

}  // namespace

PyMethodDef dllm::choice[] = {
    dllm::method<quota>("quota"),
    dllm::method<best>("best"),
    dllm::method<best_of_quota>("best_of_quota"),
    {nullptr, nullptr, 0, nullptr},
};
