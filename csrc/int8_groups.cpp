// Products of eight-bit rows with the eight-bit weights of their group.
//
// `vllm_dllm/ops/int8_groups.py` holds the contract and the torch reference.

#include "binding.h"

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define DLLM_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define DLLM_SIMD __attribute__((target_clones("avx2", "default")))
#else
#define DLLM_SIMD
#endif

namespace {

constexpr int64_t kRows = 4;      // of a tile
constexpr int64_t kOutputs = 4;   // of a tile
constexpr int64_t kChunk = 64;    // outputs that a thread takes at a time

// A tile of a group: `rows` x kOutputs sums over `inputs`.
using Tile = void (*)(int64_t rows, int64_t inputs, const int8_t* x, const int8_t* w,
                      const int32_t* sum, int32_t* out);

DLLM_SIMD int32_t dot(const int8_t* x, const int8_t* w, int64_t inputs) {
  int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < inputs; ++i) {
    sum += static_cast<int32_t>(x[i]) * static_cast<int32_t>(w[i]);
  }
  return sum;
}

void plain_tile(int64_t rows, int64_t inputs, const int8_t* x, const int8_t* w,
                const int32_t*, int32_t* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < kOutputs; ++o) {
      out[r * kOutputs + o] = dot(x + r * inputs, w + o * inputs, inputs);
    }
  }
}

#ifdef DLLM_VNNI
// The instruction multiplies unsigned with signed: inputs get 128 added, and 128 times
// the sum of the weights is taken off again.
template <int64_t Rows>
DLLM_VNNI void vnni_rows(int64_t inputs, const int8_t* x, const int8_t* w,
                         const int32_t* sum, int32_t* out) {
  const __m512i half = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i total[Rows][kOutputs];
  for (int64_t r = 0; r < Rows; ++r) {
    for (int64_t o = 0; o < kOutputs; ++o) total[r][o] = _mm512_setzero_si512();
  }
  for (int64_t i = 0; i < inputs; i += 64) {
    const int64_t left = std::min<int64_t>(inputs - i, 64);
    const __mmask64 valid = left == 64 ? ~0ull : (1ull << left) - 1;
    __m512i weight[kOutputs];
    for (int64_t o = 0; o < kOutputs; ++o) {
      weight[o] = _mm512_maskz_loadu_epi8(valid, w + o * inputs + i);
    }
    for (int64_t r = 0; r < Rows; ++r) {
      const __m512i value = _mm512_maskz_loadu_epi8(valid, x + r * inputs + i);
      const __m512i raised = _mm512_xor_si512(value, half);
      for (int64_t o = 0; o < kOutputs; ++o) {
        total[r][o] = _mm512_dpbusd_epi32(total[r][o], raised, weight[o]);
      }
    }
  }
  for (int64_t r = 0; r < Rows; ++r) {
    for (int64_t o = 0; o < kOutputs; ++o) {
      out[r * kOutputs + o] = _mm512_reduce_add_epi32(total[r][o]) - 128 * sum[o];
    }
  }
}

void vnni_tile(int64_t rows, int64_t inputs, const int8_t* x, const int8_t* w,
               const int32_t* sum, int32_t* out) {
  switch (rows) {
    case 1: return vnni_rows<1>(inputs, x, w, sum, out);
    case 2: return vnni_rows<2>(inputs, x, w, sum, out);
    case 3: return vnni_rows<3>(inputs, x, w, sum, out);
    default: return vnni_rows<4>(inputs, x, w, sum, out);
  }
}
#endif

Tile best_tile() {
#ifdef DLLM_VNNI
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni")) {
    return vnni_tile;
  }
#endif
  return plain_tile;
}

void int8_groups(int64_t groups, int64_t inputs, int64_t outputs, const int64_t* ends,
                 const int8_t* x, const float* x_scale, const int8_t* weight,
                 const float* scale, const int32_t* sum, float* out) {
  static const Tile tile = best_tile();
  const int64_t chunks = (outputs + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(dynamic) collapse(2)
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t begin = group == 0 ? 0 : ends[group - 1];
      const int64_t last = std::min(outputs, (chunk + 1) * kChunk);
      for (int64_t row = begin; row < ends[group]; row += kRows) {
        const int64_t rows = std::min(kRows, ends[group] - row);
        for (int64_t first = chunk * kChunk; first < last; first += kOutputs) {
          const int64_t at = group * outputs + first;
          int32_t found[kRows * kOutputs];
          tile(rows, inputs, x + row * inputs, weight + at * inputs, sum + at, found);
          for (int64_t r = 0; r < rows; ++r) {
            float* to = out + (row + r) * outputs + first;
            for (int64_t o = 0; o < kOutputs; ++o) {
              to[o] = found[r * kOutputs + o] * x_scale[row + r] * scale[at + o];
            }
          }
        }
      }
    }
  }
}

}  // namespace

PyMethodDef dllm::int8[] = {
    dllm::method<int8_groups>("int8_groups"),
    {nullptr, nullptr, 0, nullptr},
};
