// What grammars leave of a step: tokens, and positions that may be written.
//
// `vllm_dllm/ops/reach.py` holds the contracts and the torch references.

#include "binding.h"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace {

constexpr int64_t kWord = 32;  // bits
constexpr int64_t kParallelLogits = 1 << 18;

// Whether one token is allowed.
bool is_forced(int64_t num_words, const uint32_t* words) {
  int64_t count = 0;
  for (int64_t w = 0; w < num_words && count < 2; ++w) {
    count += __builtin_popcount(words[w]);
  }
  return count == 1;
}

template <typename T>
void ban(int64_t num_words, const uint32_t* words, int64_t vocab, T lowest, T* row) {
  for (int64_t w = 0; w < num_words && w * kWord < vocab; ++w) {
    T* part = row + w * kWord;
    const uint32_t word = words[w];
    const int64_t size = std::min(kWord, vocab - w * kWord);
    if (word == 0) {
      std::fill(part, part + size, lowest);
    } else if (word != std::numeric_limits<uint32_t>::max()) {
      for (int64_t b = 0; b < size; ++b) part[b] = word >> b & 1 ? part[b] : lowest;
    }
  }
}

// logits: [num_rows, vocab] bfloat16 (element_size 2) or float32 (4); places:
// [3, count].
void exclude(int64_t count, int64_t num_words, int64_t vocab, int64_t num_rows,
             int64_t num_blocks, int64_t width, int64_t element_size,
             int64_t logits_stride, char* logits, const uint32_t* words,
             const int64_t* places, const int64_t* first, const int64_t* blocks,
             const int64_t* columns, uint8_t* has_bits, uint8_t* forced,
             int64_t* assumed) {
  const int64_t size = num_blocks * width;
  std::fill(has_bits, has_bits + size, 0);
  std::fill(forced, forced + size, 0);
  std::fill(assumed, assumed + size, 0);
#pragma omp parallel for if (count * vocab > kParallelLogits)
  for (int64_t k = 0; k < count; ++k) {
    const int64_t block = places[k];
    const int64_t column = first[block] + places[count + k];
    const int64_t cell = block * width + column;
    const uint32_t* row_words = words + k * num_words;
    has_bits[cell] = 1;
    forced[cell] = is_forced(num_words, row_words);
    assumed[cell] = places[2 * count + k];
    int64_t row = std::lower_bound(blocks, blocks + num_rows, block) - blocks;
    while (columns[row] != column) ++row;
    char* data = logits + row * logits_stride * element_size;
    if (element_size == 2) {
      constexpr uint16_t kLowest = 0xFF80;
      ban(num_words, row_words, vocab, kLowest, reinterpret_cast<uint16_t*>(data));
    } else {
      constexpr float kLowest = -std::numeric_limits<float>::infinity();
      ban(num_words, row_words, vocab, kLowest, reinterpret_cast<float*>(data));
    }
  }
}

// [num_blocks, width] of a step, and what is free, [num_blocks, vocab]; may be null.
struct Reach {
  int64_t width;
  int64_t vocab;
  const uint8_t* free;
  const uint8_t* has_bits;
  const uint8_t* forced;
  const int64_t* assumed;
  const int64_t* candidate;

  bool follows(int64_t block) const {
    const uint8_t* row = has_bits + block * width;
    return std::find(row, row + width, 1) != row + width;
  }

  // Visits what is reached of a block, from the left, as long as it wants more.
  template <typename Visit>
  void visit(int64_t block, Visit wants_more) const {
    for (int64_t c = 0; c < width; ++c) {
      const int64_t cell = block * width + c;
      if (!has_bits[cell]) continue;
      if (!wants_more(cell)) return;
      const int64_t token = candidate[cell];
      const bool holds =
          token == assumed[cell] || (free && free[block * vocab + token]);
      if (!holds) return;
    }
  }
};

void to_choose_from(int64_t num_blocks, int64_t width, int64_t vocab,
                    const uint8_t* free, const uint8_t* has_bits,
                    const uint8_t* forced, const int64_t* assumed,
                    const int64_t* candidate, uint8_t* found) {
  const Reach reach{width, vocab, free, has_bits, forced, assumed, candidate};
  for (int64_t i = 0; i < num_blocks; ++i) {
    const bool follows = reach.follows(i);
    std::fill(found + i * width, found + (i + 1) * width, !follows);
    if (!follows) continue;
    reach.visit(i, [&](int64_t cell) {
      found[cell] = !forced[cell];
      return true;
    });
  }
}

void from_the_left(int64_t num_blocks, int64_t width, int64_t vocab,
                   const uint8_t* free, const uint8_t* has_bits,
                   const uint8_t* forced, const int64_t* assumed,
                   const int64_t* candidate, const uint8_t* wanted, uint8_t* found) {
  const Reach reach{width, vocab, free, has_bits, forced, assumed, candidate};
  for (int64_t i = 0; i < num_blocks; ++i) {
    const uint8_t* row = wanted + i * width;
    if (!reach.follows(i)) {
      std::copy(row, row + width, found + i * width);
      continue;
    }
    std::fill(found + i * width, found + (i + 1) * width, 0);
    bool is_first = true;
    bool is_alone = false;
    reach.visit(i, [&](int64_t cell) {
      if (!forced[cell]) {
        if (!is_first && (is_alone || !wanted[cell])) return false;
        is_alone = is_first && !wanted[cell];
        is_first = false;
      }
      found[cell] = 1;
      return true;
    });
  }
}

}  // namespace

PyMethodDef dllm::reach[] = {
    dllm::method<exclude>("exclude"),
    dllm::method<to_choose_from>("to_choose_from"),
    dllm::method<from_the_left>("from_the_left"),
    {nullptr, nullptr, 0, nullptr},
};
