// The best token of each row of logits and its probability, in one visit of the row.
//
// `vllm_dllm/ops/candidate.py` holds the contract and the torch reference.

#include "binding.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// One build for every x86-64: the widest vector unit is picked when the module loads.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define DLLM_SIMD __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define DLLM_SIMD
#endif

namespace {

constexpr int64_t kBlock = 1024;  // logits per pass over the L1 cache
constexpr int64_t kParallelLogits = 1 << 18;

DLLM_SIMD void widen(const uint16_t* from, float* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    to[i] = __builtin_bit_cast(float, static_cast<uint32_t>(from[i]) << 16);
  }
}

DLLM_SIMD float maximum(const float* x, int64_t count) {
  float best = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : best)
  for (int64_t i = 0; i < count; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// Sum of exp(x[i] - top) for x[i] <= top; relative error of a term below 2e-7.
DLLM_SIMD float sum_of_exp(const float* x, float top, int64_t count) {
  // Adding 1.5 * 2^23 rounds to an integer, which the low bits of the sum then hold.
  constexpr float kRound = 12582912.0f;
  constexpr int32_t kRoundBits = 0x4B400000;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    // exp(y) = 2^n * exp(r), |r| <= ln(2) / 2. A logit further below the top than 87
    // counts as 1e-38.
    const float below = x[i] - top;
    const float y = below > -87.0f ? below : -87.0f;
    const float shifted = y * 1.44269504f + kRound;
    const float n = shifted - kRound;
    const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t exponent = __builtin_bit_cast(int32_t, shifted) - kRoundBits + 127;
    sum += p * __builtin_bit_cast(float, exponent << 23);
  }
  return sum;
}

// The running result over the blocks of a row.
struct Best {
  float top = -std::numeric_limits<float>::infinity();
  int64_t token = 0;
  double sum = 0.0;  // of exp(x - top) so far

  void add(const float* x, int64_t first, int64_t count) {
    const float block_top = maximum(x, count);
    if (block_top == -std::numeric_limits<float>::infinity()) return;
    if (block_top > top) {
      sum *= std::exp(static_cast<double>(top) - block_top);
      top = block_top;
      token = first + (std::find(x, x + count, block_top) - x);
    }
    sum += sum_of_exp(x, top, count);
  }
};

// logits: [num_rows, vocab] bfloat16 (element_size 2) or float32 (4).
void candidates(int64_t num_rows, int64_t vocab, int64_t element_size,
                const char* logits, int64_t row_stride, int64_t mask_token_id,
                int64_t* token, float* confidence) {
#pragma omp parallel for if (num_rows * vocab > kParallelLogits)
  for (int64_t row = 0; row < num_rows; ++row) {
    const char* data = logits + row * row_stride * element_size;
    float block[kBlock];
    Best best;
    for (int64_t first = 0; first < vocab; first += kBlock) {
      const int64_t count = std::min(kBlock, vocab - first);
      if (element_size == 2) {
        widen(reinterpret_cast<const uint16_t*>(data) + first, block, count);
      } else {
        std::memcpy(block, data + first * sizeof(float), count * sizeof(float));
      }
      if (first <= mask_token_id && mask_token_id < first + count) {
        block[mask_token_id - first] = -std::numeric_limits<float>::infinity();
      }
      best.add(block, first, count);
    }
    token[row] = best.token;
    confidence[row] = static_cast<float>(1.0 / best.sum);
  }
}

}  // namespace

PyMethodDef dllm::candidate[] = {
    dllm::method<candidates>("candidates"),
    {nullptr, nullptr, 0, nullptr},
};
